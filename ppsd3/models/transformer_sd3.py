"""The SD3 / SD3.5 transformer (MM-DiT): noisy latents, text and time in, velocity out.

Legend: B batch, C latent channels, H W latent grid, p patch side, N = (H/p)(W/p) image tokens, L text tokens,
D width. Joint order is [image, text]; attention tensors are [B, S, h, d].
"""

from dataclasses import dataclass
from functools import cached_property, partial
from itertools import islice
from typing import Callable, Optional

import paddle
from paddle import nn
from paddle.distributed.fleet.utils import recompute

from ..compilation import Compilable
from ..configuration_utils import register_to_config
from ..modeling_utils import ModelMixin
from ..ops import Linear, adapter_scale, scaled_adapters
from ..outputs import BaseOutput
from ..utils.errors import ConfigError, InputError
from .attention import AttentionMixin, JointTransformerBlock
from .attention_processor import check_attention_kwargs
from .embeddings import CombinedTimestepTextProjEmbeddings, PatchEmbed
from .normalization import AdaLayerNormContinuous


@dataclass
class Transformer2DModelOutput(BaseOutput):
    """``sample [B, C, H, W]``: the predicted velocity."""

    sample: paddle.Tensor


@dataclass
class PreparedCondition:
    """Text and one timestep, as far as they can be worked on without the latents.

    Attributes:
        context (Tensor [B, L, D] or None): projected text tokens, where the blocks read some.
        blocks (list): for each block the modulation of its streams, as ``JointTransformerBlock.modulation`` returns.
        out (list of Tensor [B, D]): modulation of the last norm, where there is one.
        picture (callable or None): () -> what an IP-adapter makes of a picture at this timestep: dict of arguments of
            the attention processors, tensors [B, ...].
    """

    context: paddle.Tensor
    blocks: list
    out: list
    picture: Optional[Callable] = None

    @cached_property
    def attention(self):
        """What ``picture`` gives, worked out when the step is taken: a picture has many features."""
        return {} if self.picture is None else self.picture()

    def flat(self):
        """All modulation as one tensor [B, chunks * D]."""
        chunks = [chunk for block in self.blocks for stream in block for chunk in stream]
        return paddle.concat([*chunks, *self.out], axis=-1)

    @classmethod
    def of_steps(cls, context, temb, blocks, norm_out=None):
        """The :class:`PreparedCondition` of each step, from ``temb [T, B, D]``, with the same ``context``."""
        blocks = [block.modulation(temb) for block in blocks]
        out = [] if norm_out is None else norm_out.modulation(temb)
        return [
            cls(
                context,
                [tuple([chunk[t] for chunk in stream] for stream in block) for block in blocks],
                [chunk[t] for chunk in out],
            )
            for t in range(temb.shape[0])
        ]


class SD3Transformer2DModel(Compilable, AttentionMixin, ModelMixin):
    """MM-DiT of SD3 and SD3.5 (paper, section 4; counterpart of diffusers' class of the same name).

    Args:
        sample_size (int): native latent side, 128 for 1024 pixels.
        patch_size (int): latent cells per token along a side.
        in_channels (int): latent channels in: 16, or 33 for inpainting models.
        num_layers (int): blocks: 24 in SD3-medium and SD3.5-medium, 38 in SD3.5-large.
        attention_head_dim (int), num_attention_heads (int): d and h; the width is D = h * d.
        joint_attention_dim (int): width of the text tokens that come in (T5-XXL: 4096).
        caption_projection_dim (int): width they are projected to; equals D.
        pooled_projection_dim (int): width of the pooled text (CLIP-L 768 + CLIP-G 1280).
        out_channels (int): latent channels out.
        pos_embed_max_size (int): side of the stored position table, in patches: 192; SD3.5-medium 384.
        dual_attention_layers (tuple of int): blocks with a second, image-only attention: 0..12 in SD3.5-medium.
        qk_norm (str, optional): ``"rms_norm"`` in SD3.5.

    Attributes:
        ip_adapter (nn.Layer or None): ``(image embeddings [B, ...], timestep [B]) -> dict`` of arguments for the
            attention processors, with the weights of these; see ``ppsd3.adapters.ip_adapter``.

    Raises:
        ConfigError: ``qk_norm`` is unknown, or the text is not projected to the model's width.
    """

    _attachments = ("ip_adapter",)
    _quantizable_modules = ("attn", "attn2", "ff", "ff_context")
    _weight_only_modules = ("norm1", "norm1_context")
    _components = ("transformer",)

    @register_to_config
    def __init__(
        self,
        sample_size=128,
        patch_size=2,
        in_channels=16,
        num_layers=18,
        attention_head_dim=64,
        num_attention_heads=18,
        joint_attention_dim=4096,
        caption_projection_dim=1152,
        pooled_projection_dim=2048,
        out_channels=16,
        pos_embed_max_size=96,
        dual_attention_layers=(),
        qk_norm=None,
    ):
        super().__init__()
        self.out_channels = in_channels if out_channels is None else out_channels
        self.inner_dim = num_attention_heads * attention_head_dim
        if caption_projection_dim != self.inner_dim:
            raise ConfigError(
                f"caption_projection_dim is {caption_projection_dim}, but text and image meet at the model's width "
                f"of {self.inner_dim} (num_attention_heads * attention_head_dim). Make them equal."
            )
        self.pos_embed = PatchEmbed(
            height=sample_size,
            width=sample_size,
            patch_size=patch_size,
            in_channels=in_channels,
            embed_dim=self.inner_dim,
            pos_embed_max_size=pos_embed_max_size,
        )
        self.time_text_embed = CombinedTimestepTextProjEmbeddings(self.inner_dim, pooled_projection_dim)
        self.context_embedder = Linear(joint_attention_dim, caption_projection_dim)
        self.transformer_blocks = nn.LayerList(
            [
                JointTransformerBlock(
                    dim=self.inner_dim,
                    num_attention_heads=num_attention_heads,
                    attention_head_dim=attention_head_dim,
                    context_pre_only=i == num_layers - 1,
                    qk_norm=qk_norm,
                    use_dual_attention=i in dual_attention_layers,
                )
                for i in range(num_layers)
            ]
        )
        self.norm_out = AdaLayerNormContinuous(self.inner_dim, self.inner_dim)
        self.proj_out = Linear(self.inner_dim, patch_size * patch_size * self.out_channels)
        self.gradient_checkpointing = False
        self.ip_adapter = None

    def forward(
        self,
        hidden_states,
        encoder_hidden_states=None,
        pooled_projections=None,
        timestep=None,
        block_controlnet_hidden_states=None,
        joint_attention_kwargs=None,
        return_dict=True,
        skip_layers=None,
        prepared=None,
        run_blocks=None,
    ):
        """Velocity at ``hidden_states``.

        Args:
            hidden_states (Tensor [B, C, H, W]): noisy latents.
            encoder_hidden_states (Tensor [B, L, joint_attention_dim]): text tokens.
            pooled_projections (Tensor [B, pooled_projection_dim]): pooled text.
            timestep (Tensor [B]): 0 to 1000, kept in fp32.
            block_controlnet_hidden_states (sequence of Tensor [B, N, D], optional): residuals of a ControlNet,
                spread evenly over the blocks; the last block gets none.
            joint_attention_kwargs (dict, optional): handed to every attention processor, but for ``"scale"``: a factor
                of the strength of all LoRA layers (text that was prepared has it from ``ops.scaled_adapters``), and
                ``"ip_adapter_image_embeds"``: what the IP-adapter reads, [B, T, E], unless :meth:`prepare` had it.
            return_dict (bool): return :class:`Transformer2DModelOutput` (default) or a tuple of one.
            skip_layers (sequence of int, optional): blocks to leave out (skip-layer guidance).
            prepared (PreparedCondition, optional): text and timestep as :meth:`prepare` made them, in the place of
                ``encoder_hidden_states``, ``pooled_projections`` and ``timestep``. It may have a multiple of B rows:
                all latents, then all again.
            run_blocks (callable, optional): ``(blocks, image tokens, text tokens) -> image tokens``, called in the
                place of running ``blocks`` one after the other, each ``(image, text) -> (text, image)``; for caches.

        Raises:
            InputError: a layer index, a size or an attention argument that this model does not have.
        """
        grid = [size // self.config.patch_size for size in hidden_states.shape[-2:]]
        skip_layers = self._check_skip_layers(skip_layers)
        scale, image_embeds, joint_attention_kwargs = self._split_attention_kwargs(joint_attention_kwargs)
        if image_embeds is not None and prepared is None:
            joint_attention_kwargs.update(self._attention_arguments(image_embeds, timestep))
        elif image_embeds is not None:
            raise InputError(
                "joint_attention_kwargs has 'ip_adapter_image_embeds' for a condition that is prepared already. Give "
                "them to prepare(), or to the pipeline's call as the argument of that name."
            )
        with scaled_adapters([self], scale, "joint_attention_kwargs['scale']"):
            tokens = self._run(
                hidden_states,
                encoder_hidden_states,
                pooled_projections,
                timestep,
                block_controlnet_hidden_states,
                joint_attention_kwargs,
                skip_layers,
                prepared,
                run_blocks,
            )
        sample = unpatchify(tokens, *grid, self.config.patch_size)
        return Transformer2DModelOutput(sample=sample) if return_dict else (sample,)

    def _run(
        self,
        hidden_states,
        encoder_hidden_states,
        pooled_projections,
        timestep,
        controls,
        joint_attention_kwargs,
        skip_layers,
        prepared,
        run_blocks,
    ):
        """:meth:`forward` with checked arguments, up to the tokens [B, N, p * p * C]."""
        hidden_states = self.pos_embed(hidden_states)  # [B, C, H, W] -> [B, N, D]
        if prepared is None:
            temb = self.time_text_embed(timestep, pooled_projections)  # [B, D]
            encoder_hidden_states = self.context_embedder(encoder_hidden_states)  # [B, L, D]
        else:
            encoder_hidden_states = prepared.context
            copies = encoder_hidden_states.shape[0] // hidden_states.shape[0]
            hidden_states = paddle.concat([hidden_states] * copies) if copies > 1 else hidden_states

        streams = hidden_states, encoder_hidden_states
        if prepared is None:

            def run(i, *streams):
                return self._run_block(self.transformer_blocks[i], *streams, temb, joint_attention_kwargs or None)

            hidden_states = self._run_blocks(*streams, run, skip_layers, controls, run_blocks or run_all)
            hidden_states = self.norm_out(hidden_states, temb)
        elif self.is_compiled and controls is None and not joint_attention_kwargs and run_blocks is None:
            hidden_states = self._run_compiled(*streams, prepared, skip_layers)
        else:
            hidden_states = self._run_prepared(
                *streams, prepared, skip_layers, controls, joint_attention_kwargs, run_blocks or run_all
            )
        return self.proj_out(hidden_states)

    def prepare(self, encoder_hidden_states, pooled_projections, timesteps, ip_adapter_image_embeds=None):
        """What sampling can know before it starts: projected text, and the modulation of each step.

        At two rows a step the modulation's matrices, a third of the model, are read for hardly any arithmetic; read
        once for many steps they cost nothing.

        Args:
            encoder_hidden_states (Tensor [B, L, joint_attention_dim]): text tokens.
            pooled_projections (Tensor [B, pooled_projection_dim]): pooled text.
            timesteps (Tensor [T]): 0 to 1000, fp32.
            ip_adapter_image_embeds (Tensor [B, ...], optional): what the IP-adapter reads.

        Returns:
            list of T :class:`PreparedCondition`, for ``forward(prepared=...)``.
        """
        context = self.context_embedder(encoder_hidden_states)
        temb = self.time_text_embed.of_steps(timesteps, pooled_projections)
        steps = PreparedCondition.of_steps(context, temb, self.transformer_blocks, self.norm_out)
        if ip_adapter_image_embeds is not None:
            self._check_ip_adapter()
            for t, step in enumerate(steps):
                timestep = timesteps[t : t + 1].expand([pooled_projections.shape[0]])
                step.picture = partial(self._attention_arguments, ip_adapter_image_embeds, timestep)
        return steps

    def _check_ip_adapter(self):
        if self.ip_adapter is None:
            raise InputError(
                "ip_adapter_image_embeds are for an IP-adapter, and this transformer has none. Load one by the "
                "pipeline's load_ip_adapter()."
            )

    def _attention_arguments(self, image_embeds, timestep):
        """dict of what attention processors get of the picture that an IP-adapter reads."""
        self._check_ip_adapter()
        arguments = self.ip_adapter(image_embeds, timestep)
        for processor in self.attn_processors.values():  # one that was set after the adapter would know nothing of it
            check_attention_kwargs([processor], arguments)
        return arguments

    def _run_blocks(self, hidden_states, encoder_hidden_states, run, skip_layers, controls, run_blocks):
        """All blocks but the skipped, ``run(i, *streams)`` being one; returns the image stream."""

        def controlled(i, hidden_states, encoder_hidden_states):
            if i not in skip_layers:
                encoder_hidden_states, hidden_states = run(i, hidden_states, encoder_hidden_states)
            if controls is not None and not self.transformer_blocks[i].context_pre_only:
                interval = len(self.transformer_blocks) / len(controls)
                hidden_states = hidden_states + controls[int(i / interval)]
            return encoder_hidden_states, hidden_states

        blocks = [partial(controlled, i) for i in range(len(self.transformer_blocks))]
        return run_blocks(blocks, hidden_states, encoder_hidden_states)

    def _run_block(self, block, hidden_states, encoder_hidden_states, temb, joint_attention_kwargs):
        arguments = (hidden_states, encoder_hidden_states, temb, joint_attention_kwargs)
        if not (self.gradient_checkpointing and self.training and paddle.is_grad_enabled()):
            return block(*arguments)
        if block.context_pre_only:  # recompute() cannot return the None that stands for the ended text stream
            return None, recompute(lambda *inputs: block(*inputs)[1], *arguments)
        return recompute(block, *arguments)

    def _run_prepared(
        self,
        hidden_states,
        context,
        prepared,
        skip_layers,
        controls=None,
        joint_attention_kwargs=None,
        run_blocks=None,
    ):
        """The blocks and the last norm, given what :meth:`prepare` made."""
        kwargs = {**(joint_attention_kwargs or {}), **prepared.attention}

        def run(i, *streams):
            return self.transformer_blocks[i].with_modulation(*streams, prepared.blocks[i], kwargs)

        streams = hidden_states, context
        hidden_states = self._run_blocks(*streams, run, skip_layers, controls, run_blocks or run_all)
        return self.norm_out.with_modulation(hidden_states, prepared.out)

    def _run_compiled(self, hidden_states, context, prepared, skip_layers):
        """:meth:`_run_prepared` as a graph."""
        tensors = [hidden_states, context, prepared.flat(), *prepared.attention.values()]
        shapes = [[-1] * (tensor.ndim - 1) + [tensor.shape[-1]] for tensor in tensors]
        processors = [layer.processor for _, layer in self._attentions()]
        names = tuple(prepared.attention)
        scales = tuple(getattr(processor, "scale", None) for processor in processors)
        variant = skip_layers, names, (*processors, *scales), adapter_scale(self)
        graph = self._graph("trunk", partial(self._run_flat, skip_layers, names), shapes, *variant)
        return graph(*tensors)

    def _run_flat(self, skip_layers, names, hidden_states, context, modulation, *attention):
        """:meth:`_run_prepared` of tensors alone, as a graph takes them: ``modulation [B, chunks * D]`` is what
        ``PreparedCondition.flat`` gives, ``names`` are those of the tensors in ``attention``."""
        chunks = iter(modulation.split(modulation.shape[1] // self.inner_dim, axis=-1))
        blocks = [
            tuple(list(islice(chunks, norm.chunks)) for norm in (block.norm1, block.norm1_context))
            for block in self.transformer_blocks
        ]
        prepared = PreparedCondition(context, blocks, list(chunks), lambda: dict(zip(names, attention)))
        return self._run_prepared(hidden_states, context, prepared, skip_layers)

    def _check_skip_layers(self, skip_layers):
        skip_layers = tuple(skip_layers or ())
        depth = len(self.transformer_blocks)
        wrong = [i for i in skip_layers if not 0 <= i < depth]
        if wrong:
            raise InputError(f"skip_layers has {wrong}, but this transformer has blocks 0 to {depth - 1}.")
        return skip_layers

    def _split_attention_kwargs(self, kwargs):
        """``(scale, ip_adapter_image_embeds or None, what is left for the processors)``."""
        kwargs = dict(kwargs or {})
        scale, image_embeds = kwargs.pop("scale", 1.0), kwargs.pop("ip_adapter_image_embeds", None)
        self._check_attention_kwargs(kwargs)
        return scale, image_embeds, kwargs


def run_all(blocks, hidden_states, encoder_hidden_states):
    """``blocks`` one after the other; returns the image stream."""
    for block in blocks:
        encoder_hidden_states, hidden_states = block(hidden_states, encoder_hidden_states)
    return hidden_states


def unpatchify(tokens, rows, columns, patch_size):
    """Tokens to a grid: ``[B, rows * columns, p * p * C] -> [B, C, rows * p, columns * p]``, channels fastest."""
    p = patch_size
    tokens = tokens.reshape([-1, rows, columns, p, p, tokens.shape[-1] // (p * p)])
    return tokens.transpose([0, 5, 1, 3, 2, 4]).flatten(4).flatten(2, 3)  # B C (rows p) (columns p)
