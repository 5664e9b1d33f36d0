"""The SD3 / SD3.5 transformer (MM-DiT): noisy latents, text and time in, velocity out.

Legend: B batch, C latent channels, H W latent grid, p patch side, N = (H/p)(W/p) image tokens, L text tokens,
D width. Joint order is [image, text]; attention tensors are [B, S, h, d].
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import islice
from typing import Any, Callable

import paddle
from paddle import nn

from ..compilation import Compilable
from ..configuration_utils import register_to_config
from ..ops import Linear, adapter_scale, scaled_adapters
from ..ops.gradients import recomputed
from ..ops.shapes import sizes_of
from ..outputs import BaseOutput
from ..utils.config_types import Heads, HeadWidth, Index, Layers, PatchSide, Pixels, PositionTable, Width
from ..utils.errors import ConfigError, InputError
from .attention import AttentionMixin, BlockConditioning, JointTransformerBlock, Streams
from .attention_processor import AttentionProcessor, check_attention_kwargs
from .embeddings import CombinedTimestepTextProjEmbeddings, PatchEmbed
from .normalization import AdaLayerNormContinuous, Conditioning

# A block of one call: ``(image tokens, text tokens) -> (text tokens, image tokens)``.
Block = Callable[..., Streams]


@dataclass
class Transformer2DModelOutput(BaseOutput):
    """``sample [B, C, H, W]``: the predicted velocity."""

    sample: paddle.Tensor


@dataclass
class PreparedCondition:
    """Text and one timestep, as far as they can be worked on without the latents.

    Attributes:
        context: projected text tokens [B, L, D], where the blocks read some.
        blocks: what steers each block: its modulation, or [B, D] that it has yet to make it of.
        out: what steers the last norm, where there is one.
        picture: () -> what an IP-adapter makes of a picture at this timestep: arguments of the attention processors,
            tensors [B, ...].
    """

    context: paddle.Tensor | None
    blocks: Sequence[BlockConditioning]
    out: Conditioning
    picture: Callable[[], dict[str, paddle.Tensor]] | None = None

    @cached_property
    def attention(self) -> dict[str, paddle.Tensor]:
        """What ``picture`` gives, worked out when the step is taken: a picture has many features."""
        return {} if self.picture is None else self.picture()

    def repeated(self, tokens: paddle.Tensor) -> paddle.Tensor:
        """``tokens [B, N, D]`` as often as this has B rows."""
        steering = self.blocks[0]
        rows = (steering[0][0] if isinstance(steering, tuple) else steering).shape[0]
        copies = rows // tokens.shape[0]
        return paddle.concat([tokens] * copies) if copies > 1 else tokens

    def flat(self) -> paddle.Tensor:
        """All modulation as one tensor [B, chunks * D]."""
        chunks = [chunk for block in self.blocks for stream in block for chunk in stream]
        return paddle.concat([*chunks, *self.out], axis=-1)


@dataclass
class GivenCondition:
    """Text and one timestep as they are given: in the place of a :class:`PreparedCondition` where ``forward`` takes
    tensors alone.

    Attributes:
        encoder_hidden_states: text tokens [B, L, joint_attention_dim].
        pooled_projections: pooled text [B, pooled_projection_dim].
        timestep: [B].
        joint_attention_kwargs: what the IP-adapter reads, if there is such.
    """

    encoder_hidden_states: paddle.Tensor
    pooled_projections: paddle.Tensor
    timestep: paddle.Tensor
    joint_attention_kwargs: dict[str, paddle.Tensor]


class ConditionedBlocks(AttentionMixin):
    """What the transformer and its ControlNets share: blocks that text and timestep steer.

    Both are prepared by the same layers for a step of training and for all steps of sampling. In the former case each
    block makes its own modulation, which gradient checkpointing then need not keep.
    """

    context_embedder: Linear | None
    time_text_embed: CombinedTimestepTextProjEmbeddings
    transformer_blocks: nn.LayerList
    norm_out: AdaLayerNormContinuous | None

    def prepare(
        self,
        encoder_hidden_states: paddle.Tensor | None,
        pooled_projections: paddle.Tensor,
        timesteps: paddle.Tensor,
    ) -> list[PreparedCondition]:
        """What sampling can know before it starts: projected text, and the modulation of each step.

        At two rows a step the modulation's matrices, a third of the model, are read for hardly any arithmetic; read
        once for many steps they cost nothing.

        Args:
            encoder_hidden_states: text tokens [B, L, joint_attention_dim]; None for blocks without text.
            pooled_projections: pooled text [B, pooled_projection_dim].
            timesteps: [T], 0 to 1000, fp32.

        Returns:
            T of them, for ``forward(prepared=...)``.
        """
        context = self._context(encoder_hidden_states)
        temb = self.time_text_embed.of_steps(timesteps, pooled_projections)  # [T, B, D]
        blocks = [block.modulation(temb) for block in self.transformer_blocks]
        out = [] if self.norm_out is None else self.norm_out.modulation(temb)
        return [
            PreparedCondition(
                context,
                [tuple([chunk[t] for chunk in stream] for stream in block) for block in blocks],
                [chunk[t] for chunk in out],
            )
            for t in range(temb.shape[0])
        ]

    def _condition(self, encoder_hidden_states, pooled_projections, timestep):
        """The :class:`PreparedCondition` of one call, ``timestep [B]``; modulation is left to the blocks."""
        temb = self.time_text_embed(timestep, pooled_projections)  # [B, D]
        return PreparedCondition(self._context(encoder_hidden_states), [temb] * len(self.transformer_blocks), temb)

    def _context(self, encoder_hidden_states):
        embedder = self.context_embedder
        if (encoder_hidden_states is None) != (embedder is None):
            raise self._wrong_text()
        return None if embedder is None else embedder(encoder_hidden_states)  # [B, L, D]

    def _wrong_text(self):
        if self.context_embedder is not None:
            return InputError(f"This {type(self).__name__} reads text tokens. Pass encoder_hidden_states.")
        return InputError(
            f"This {type(self).__name__} has blocks without text (joint_attention_dim is None). Leave "
            "encoder_hidden_states out."
        )

    def _blocks_of(self, condition: PreparedCondition, kwargs: Mapping, processors: Mapping) -> list[Block]:
        """The blocks, steered by ``condition``; ``kwargs`` and ``processors`` are those of the call."""
        kwargs = {**kwargs, **condition.attention}

        def bound(i, block):
            prefix, suffix = f"transformer_blocks.{i}.", ".processor"
            own = {name[len(prefix) : -len(suffix)]: p for name, p in processors.items() if name.startswith(prefix)}
            return lambda image, text: self._run_block(block, image, text, condition.blocks[i], kwargs, own)

        return [bound(i, block) for i, block in enumerate(self.transformer_blocks)]

    def _run_block(self, block, hidden_states, encoder_hidden_states, temb, kwargs, processors):
        arguments = hidden_states, encoder_hidden_states, temb, kwargs, processors
        modulated = isinstance(temb, tuple)
        if modulated or not (self.gradient_checkpointing and self.training and paddle.is_grad_enabled()):
            return block(*arguments)
        if block.context_pre_only:  # recompute() cannot return the None that stands for the ended text stream
            return None, recomputed(lambda *inputs: block(*inputs)[1], *arguments)
        return recomputed(block, *arguments)

    def _split_attention_kwargs(self, kwargs, processors):
        """``(scale, what is left for the processors)``, checked."""
        kwargs = dict(kwargs or {})
        scale = kwargs.pop("scale", 1.0)
        self._check_attention(kwargs, processors)
        return scale, kwargs


class SD3Transformer2DModel(Compilable, ConditionedBlocks):
    """MM-DiT of SD3 and SD3.5 (paper, section 4; counterpart of diffusers' class of the same name).

    Args:
        sample_size: native latent side, 128 for 1024 pixels.
        patch_size: latent cells per token along a side.
        in_channels: latent channels in: 16, or 33 for inpainting models.
        num_layers: blocks: 24 in SD3-medium and SD3.5-medium, 38 in SD3.5-large.
        attention_head_dim, num_attention_heads: d and h; the width is D = h * d.
        joint_attention_dim: width of the text tokens that come in (T5-XXL: 4096).
        caption_projection_dim: width they are projected to; equals D.
        pooled_projection_dim: width of the pooled text (CLIP-L 768 + CLIP-G 1280).
        out_channels: latent channels out; None for ``in_channels``.
        pos_embed_max_size: side of the stored position table, in patches: 192; SD3.5-medium 384.
        dual_attention_layers: blocks with a second, image-only attention: 0..12 in SD3.5-medium.
        qk_norm: ``"rms_norm"`` in SD3.5.

    Attributes:
        ip_adapter: ``(image embeddings [B, ...], timestep [B]) -> dict`` of arguments for the attention processors,
            with the weights of these; see ``ppsd3.models.ip_adapter``.

    Raises:
        ConfigError: ``qk_norm`` is unknown, or the text is not projected to the model's width.
    """

    _attachments = ("ip_adapter",)
    _quantizable_modules = ("attn", "attn2", "ff", "ff_context")
    _weight_only_modules = ("norm1", "norm1_context")
    _components = ("transformer",)
    _output_class = Transformer2DModelOutput

    norm_out: AdaLayerNormContinuous
    ip_adapter: Any

    @register_to_config
    def __init__(
        self,
        sample_size: Pixels = 128,
        patch_size: PatchSide = 2,
        in_channels: Width = 16,
        num_layers: Layers = 18,
        attention_head_dim: HeadWidth = 64,
        num_attention_heads: Heads = 18,
        joint_attention_dim: Width = 4096,
        caption_projection_dim: Width = 1152,
        pooled_projection_dim: Width = 2048,
        out_channels: Width | None = 16,
        pos_embed_max_size: PositionTable | None = 96,
        dual_attention_layers: Sequence[Index] = (),
        qk_norm: str | None = None,
    ) -> None:
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
        self.norm_out = AdaLayerNormContinuous(self.inner_dim, self.inner_dim, elementwise_affine=False, eps=1e-6)
        self.proj_out = Linear(self.inner_dim, patch_size * patch_size * self.out_channels)
        self.ip_adapter = None

    def forward(
        self,
        hidden_states: paddle.Tensor,
        encoder_hidden_states: paddle.Tensor | None = None,
        pooled_projections: paddle.Tensor | None = None,
        timestep: paddle.Tensor | None = None,
        block_controlnet_hidden_states: Sequence[paddle.Tensor] | None = None,
        joint_attention_kwargs: Mapping[str, Any] | None = None,
        return_dict: bool = True,
        skip_layers: Sequence[int] | None = None,
        prepared: PreparedCondition | None = None,
        run_blocks: Callable[..., paddle.Tensor] | None = None,
        attn_processors: Mapping[str, AttentionProcessor] | None = None,
    ) -> Transformer2DModelOutput | tuple[paddle.Tensor]:
        """Velocity at ``hidden_states``. A call changes nothing of the model, so threads can share it.

        Args:
            hidden_states: noisy latents [B, C, H, W].
            encoder_hidden_states: text tokens [B, L, joint_attention_dim].
            pooled_projections: pooled text [B, pooled_projection_dim].
            timestep: [B], 0 to 1000, kept in fp32.
            block_controlnet_hidden_states: residuals of a ControlNet, each [B, N, D], spread evenly over the blocks;
                the last block gets none.
            joint_attention_kwargs: handed to every attention processor, but for ``"scale"``: a factor of the strength
                of all LoRA layers (text that was prepared has it from ``ops.scaled_adapters``), and
                ``"ip_adapter_image_embeds"``: what the IP-adapter reads, [B, T, E], unless :meth:`prepare` had it.
            return_dict: return :class:`Transformer2DModelOutput` or a tuple of one.
            skip_layers: blocks to leave out (skip-layer guidance).
            prepared: text and timestep as :meth:`prepare` made them, in the place of ``encoder_hidden_states``,
                ``pooled_projections`` and ``timestep``. It may have a multiple of B rows: all latents, then all again.
            run_blocks: ``(blocks, image tokens, text tokens) -> image tokens``, called in the place of running
                ``blocks`` one after the other, each ``(image, text) -> (text, image)``; for caches.
            attn_processors: processors of this call in the place of the model's own, by names of
                :attr:`attn_processors` (perturbed-attention guidance).

        Raises:
            InputError: a layer index, a size, an attention argument or a processor that this model does not have.
        """
        rows, columns = (size // self.config.patch_size for size in sizes_of(hidden_states)[2:])
        skip_layers, processors = self._check_skip_layers(skip_layers), dict(attn_processors or {})
        image_embeds, kwargs = self._split_picture(joint_attention_kwargs, prepared)
        scale, kwargs = self._split_attention_kwargs(kwargs, processors)
        with scaled_adapters([self], scale, "joint_attention_kwargs['scale']"):
            condition = prepared or self._condition(encoder_hidden_states, pooled_projections, timestep)
            if image_embeds is not None:
                self._add_picture(condition, image_embeds, timestep)
            tokens = condition.repeated(self.pos_embed(hidden_states))  # [B, C, H, W] -> [B, N, D]
            residuals = block_controlnet_hidden_states
            if self.is_compiled and prepared and not kwargs and residuals is None and run_blocks is None:
                tokens = self._run_graph(tokens, condition, skip_layers, processors)
            else:
                tokens = self._run(tokens, condition, skip_layers, processors, kwargs, residuals, run_blocks)
            tokens = self.proj_out(tokens)
        sample = unpatchify(tokens, rows, columns, self.config.patch_size)
        return Transformer2DModelOutput(sample=sample) if return_dict else (sample,)

    def _run(self, tokens, condition, skip_layers, processors, kwargs=None, residuals=None, run_blocks=None):
        """The blocks and the last norm: image tokens [B, N, D] -> [B, N, D]."""
        blocks = self._blocks_of(condition, kwargs or {}, processors)
        for i in skip_layers:
            blocks[i] = _left_out
        if residuals is not None:
            interval = len(blocks) / len(residuals)
            for i in range(len(blocks) - 1):
                blocks[i] = _with_residual(blocks[i], residuals[int(i / interval)])
        tokens = (run_blocks or run_all)(blocks, tokens, condition.context)
        return self.norm_out(tokens, condition.out)

    def _run_graph(self, tokens, condition, skip_layers, processors):
        """:meth:`_run` as a static graph, which takes tensors alone."""
        names = tuple(condition.attention)

        def run(tokens, context, modulation, *attention):
            chunks = iter(modulation.split(modulation.shape[1] // self.inner_dim, axis=-1))
            blocks = [
                tuple(list(islice(chunks, norm.chunks)) for norm in (block.norm1, block.norm1_context))
                for block in self.transformer_blocks
            ]
            condition = PreparedCondition(context, blocks, list(chunks), lambda: dict(zip(names, attention)))
            return self._run(tokens, condition, skip_layers, processors)

        tensors = [tokens, condition.context, condition.flat(), *condition.attention.values()]
        shapes = [[-1] * (tensor.ndim - 1) + [tensor.shape[-1]] for tensor in tensors]
        acting = {**self.attn_processors, **processors}.values()
        scales = [getattr(processor, "scale", None) for processor in acting]
        variant = skip_layers, names, (*acting, *scales), adapter_scale(self)
        return self._graph("trunk", run, shapes, *variant)(*tensors)

    def prepare(
        self,
        encoder_hidden_states: paddle.Tensor,
        pooled_projections: paddle.Tensor,
        timesteps: paddle.Tensor,
        ip_adapter_image_embeds: paddle.Tensor | None = None,
    ) -> list[PreparedCondition]:
        """As :meth:`ConditionedBlocks.prepare`, and ``ip_adapter_image_embeds [B, ...]``: what the IP-adapter reads."""
        if "forward" in vars(self) and self.is_inference_model:
            return self._as_given(encoder_hidden_states, pooled_projections, timesteps, ip_adapter_image_embeds)
        steps = super().prepare(encoder_hidden_states, pooled_projections, timesteps)
        if ip_adapter_image_embeds is not None:
            for t, step in enumerate(steps):
                timestep = timesteps[t : t + 1].expand([pooled_projections.shape[0]])
                self._add_picture(step, ip_adapter_image_embeds, timestep)
        return steps

    @staticmethod
    def _as_given(text, pooled, timesteps, picture) -> Any:
        """:meth:`prepare` for a graph that takes tensors alone."""
        kwargs = {} if picture is None else {"ip_adapter_image_embeds": picture}
        return [GivenCondition(text, pooled, t.expand([pooled.shape[0]]), kwargs) for t in timesteps]

    def _call_inference_model(self, arguments):
        condition = arguments.get("prepared")
        if not isinstance(condition, GivenCondition):
            return super()._call_inference_model(arguments)
        latents = arguments["hidden_states"]
        rows = paddle.concat([latents] * (condition.pooled_projections.shape[0] // latents.shape[0]))
        kwargs = {**(arguments.get("joint_attention_kwargs") or {}), **condition.joint_attention_kwargs}
        given = {**vars(condition), "hidden_states": rows, "joint_attention_kwargs": kwargs, "prepared": None}
        return (super()._call_inference_model({**arguments, **given}),)

    def _split_picture(self, kwargs, prepared):
        """``(ip_adapter_image_embeds or None, joint_attention_kwargs without it)``."""
        kwargs = dict(kwargs or {})
        image_embeds = kwargs.pop("ip_adapter_image_embeds", None)
        if image_embeds is not None and prepared is not None:
            raise InputError(
                "joint_attention_kwargs has 'ip_adapter_image_embeds' for a condition that is prepared already. Give "
                "them to prepare(), or to the pipeline's call as the argument of that name."
            )
        return image_embeds, kwargs

    def _add_picture(self, condition, image_embeds, timestep):
        """Gives ``condition`` what the IP-adapter makes of a picture at ``timestep [B]``."""
        if self.ip_adapter is None:
            raise InputError(
                "ip_adapter_image_embeds are for an IP-adapter, and this transformer has none. Load one by the "
                "pipeline's load_ip_adapter()."
            )
        condition.picture = partial(self._attention_arguments, image_embeds, timestep)

    def _attention_arguments(self, image_embeds, timestep):
        """dict of what attention processors get of the picture that an IP-adapter reads."""
        arguments = self.ip_adapter(image_embeds, timestep)
        for processor in self.attn_processors.values():  # one that was set after the adapter would know nothing of it
            check_attention_kwargs([processor], arguments)
        return arguments

    def _check_skip_layers(self, skip_layers):
        skip_layers = tuple(skip_layers or ())
        depth = len(self.transformer_blocks)
        wrong = [i for i in skip_layers if not 0 <= i < depth]
        if wrong:
            raise InputError(f"skip_layers has {wrong}, but this transformer has blocks 0 to {depth - 1}.")
        return skip_layers


def run_all(blocks: Sequence[Block], hidden_states: paddle.Tensor, encoder_hidden_states: Any) -> paddle.Tensor:
    """``blocks`` one after the other; returns the image stream."""
    for block in blocks:
        encoder_hidden_states, hidden_states = block(hidden_states, encoder_hidden_states)
    return hidden_states


def _left_out(hidden_states, encoder_hidden_states):
    """In the place of a block that is skipped."""
    return encoder_hidden_states, hidden_states


def _with_residual(block, residual):
    """``block``, and then ``residual [B, N, D]`` added to the image tokens."""

    def run(hidden_states, encoder_hidden_states):
        encoder_hidden_states, hidden_states = block(hidden_states, encoder_hidden_states)
        return encoder_hidden_states, hidden_states + residual

    return run


def unpatchify(tokens: paddle.Tensor, rows: int, columns: int, patch_size: int) -> paddle.Tensor:
    """Tokens to a grid: ``[B, rows * columns, p * p * C] -> [B, C, rows * p, columns * p]``, channels fastest."""
    p = patch_size
    tokens = tokens.reshape([-1, rows, columns, p, p, tokens.shape[-1] // (p * p)])
    return tokens.transpose([0, 5, 1, 3, 2, 4]).flatten(4).flatten(2, 3)  # B C (rows p) (columns p)
