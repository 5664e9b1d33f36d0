"""ControlNets of SD3 and SD3.5: from noisy latents and a picture that guides them to residuals for the transformer.

Legend: B batch, C latent channels, H W latent grid, N image tokens, L text tokens, D width.
"""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count, takewhile
from typing import TYPE_CHECKING, Any

import paddle
from paddle import nn

from ..configuration_utils import FrozenConfig, register_to_config
from ..modeling_utils import ModelMixin, is_to_be_filled
from ..ops import Linear, scaled_adapters
from ..outputs import BaseOutput
from ..quantization import CONFIG_KEY as QUANTIZATION
from ..utils.checking import checks_arguments
from ..utils.config_types import Heads, HeadWidth, Index, Layers, PatchSide, Pixels, PositionTable, Width
from ..utils.errors import ConfigError, InputError
from ..utils.files import replacing
from ..utils.keywords import HUB_KEYWORDS, LOADING, SAVING, takes_keywords_of
from ..utils.types import Dtype, PathLike
from ..utils.weight_names import is_former_component_file
from .attention import JointTransformerBlock, SD3SingleTransformerBlock
from .embeddings import CombinedTimestepTextProjEmbeddings, PatchEmbed
from .transformer_sd3 import ConditionedBlocks, PreparedCondition, SD3Transformer2DModel

if TYPE_CHECKING:
    from typing_extensions import Self


@dataclass
class SD3ControlNetOutput(BaseOutput):
    """``controlnet_block_samples``: list of Tensor [B, N, D], what the transformer adds to its image tokens."""

    controlnet_block_samples: list


class SD3ControlNetModel(ConditionedBlocks):
    """ControlNet (Zhang et al., 2023) with blocks of the MM-DiT; counterpart of diffusers' class of the same name.

    Published ones have 6 or 12 joint blocks (SD3-medium) or 19 blocks of image tokens alone (SD3.5-large: no text, and
    tokens that the transformer has embedded).

    Args:
        sample_size, patch_size, in_channels, num_layers, attention_head_dim, num_attention_heads,
            pooled_projection_dim, out_channels, pos_embed_max_size, dual_attention_layers, qk_norm: as in
            :class:`SD3Transformer2DModel`. (``out_channels`` is in published files and changes nothing.)
        joint_attention_dim: width of the text tokens that come in; None makes blocks without text.
        caption_projection_dim: width that the text is projected to; equals D.
        extra_conditioning_channels: of the guiding latents, beside ``in_channels``: 1 for the mask of an
            inpainting ControlNet.
        pos_embed_type: "sincos", or None for latents without positions.
        use_pos_embed: False for tokens [B, N, D] in place of latents, from the transformer's ``pos_embed``.
        force_zeros_for_pooled_projection: trained without pooled text, and with guiding latents that were not
            shifted. Pipelines read it.

    Raises:
        ConfigError: the text is not projected to the model's width, or blocks without text are to have ``qk_norm`` or
            dual attention.
    """

    _quantizable_modules = ("attn", "attn2", "ff", "ff_context")
    _weight_only_modules = ("norm1", "norm1_context")
    _components = ("controlnet",)

    @register_to_config
    def __init__(
        self,
        sample_size: Pixels = 128,
        patch_size: PatchSide = 2,
        in_channels: Width = 16,
        num_layers: Layers = 18,
        attention_head_dim: HeadWidth = 64,
        num_attention_heads: Heads = 18,
        joint_attention_dim: Width | None = 4096,
        caption_projection_dim: Width = 1152,
        pooled_projection_dim: Width = 2048,
        out_channels: Width = 16,
        pos_embed_max_size: PositionTable | None = 96,
        extra_conditioning_channels: Index = 0,
        dual_attention_layers: Sequence[Index] = (),
        qk_norm: str | None = None,
        pos_embed_type: str | None = "sincos",
        use_pos_embed: bool = True,
        force_zeros_for_pooled_projection: bool = True,
    ) -> None:
        super().__init__()
        self.inner_dim = num_attention_heads * attention_head_dim
        patches: dict[str, Any] = {
            "height": sample_size,
            "width": sample_size,
            "patch_size": patch_size,
            "embed_dim": self.inner_dim,
        }
        self.pos_embed = None
        if use_pos_embed:
            self.pos_embed = PatchEmbed(
                in_channels=in_channels,
                pos_embed_max_size=pos_embed_max_size,
                pos_embed_type=pos_embed_type,
                **patches,
            )
        self.time_text_embed = CombinedTimestepTextProjEmbeddings(self.inner_dim, pooled_projection_dim)
        heads: dict[str, Any] = {
            "dim": self.inner_dim,
            "num_attention_heads": num_attention_heads,
            "attention_head_dim": attention_head_dim,
        }
        if joint_attention_dim is None:
            if qk_norm is not None or dual_attention_layers:
                raise ConfigError(
                    "joint_attention_dim is None, which makes blocks without text; these have neither qk_norm nor "
                    "dual_attention_layers. Leave both out."
                )
            self.context_embedder = None
            blocks = [SD3SingleTransformerBlock(**heads) for _ in range(num_layers)]
        else:
            if caption_projection_dim != self.inner_dim:
                raise ConfigError(
                    f"caption_projection_dim is {caption_projection_dim}, but text and image meet at the model's width "
                    f"of {self.inner_dim} (num_attention_heads * attention_head_dim). Make them equal."
                )
            self.context_embedder = Linear(joint_attention_dim, caption_projection_dim)
            blocks = [
                JointTransformerBlock(qk_norm=qk_norm, use_dual_attention=i in dual_attention_layers, **heads)
                for i in range(num_layers)
            ]
        self.transformer_blocks = nn.LayerList(blocks)
        self.controlnet_blocks = nn.LayerList([_zeroed(Linear(self.inner_dim, self.inner_dim)) for _ in blocks])
        self.pos_embed_input = _zeroed(
            PatchEmbed(in_channels=in_channels + extra_conditioning_channels, pos_embed_type=None, **patches)
        )
        self.norm_out = None

    @classmethod
    def from_transformer(
        cls,
        transformer: SD3Transformer2DModel,
        num_layers: int = 12,
        num_extra_conditioning_channels: int = 0,
        load_weights_from_transformer: bool = True,
    ) -> SD3ControlNetModel:
        """A ControlNet to be trained for ``transformer``: its first blocks, which at first add nothing.

        It reads pooled text and shifted latents (``force_zeros_for_pooled_projection=False``).

        Args:
            num_layers: blocks; at most the transformer's for its weights.
            num_extra_conditioning_channels: 1 for inpainting.
            load_weights_from_transformer: False begins with fresh weights.

        Raises:
            InputError: more layers than the transformer has, or its weights are int8.
        """
        if load_weights_from_transformer and transformer.is_quantized:
            raise InputError("The transformer is in int8, and its copies are to be trained. Load the original.")
        depth = len(transformer.transformer_blocks)
        if not 0 < num_layers <= depth:
            raise InputError(f"num_layers is {num_layers}; the transformer has {depth} blocks. Use 1 to {depth}.")
        made = cls(
            **{
                **transformer.config,
                "num_layers": num_layers,
                "extra_conditioning_channels": num_extra_conditioning_channels,
                "dual_attention_layers": tuple(i for i in transformer.config.dual_attention_layers if i < num_layers),
                "force_zeros_for_pooled_projection": False,
            }
        )
        if load_weights_from_transformer:
            theirs = transformer.state_dict()
            with paddle.no_grad():
                for name, tensor in made.state_dict().items():
                    # the text of the transformer's last block ends there, so a few tensors may be missing
                    if name in theirs and list(theirs[name].shape) == list(tensor.shape):
                        tensor.set_value(theirs[name].astype(tensor.dtype))
        return made

    def forward(
        self,
        hidden_states: paddle.Tensor,
        controlnet_cond: paddle.Tensor,
        conditioning_scale: float = 1.0,
        encoder_hidden_states: paddle.Tensor | None = None,
        pooled_projections: paddle.Tensor | None = None,
        timestep: paddle.Tensor | None = None,
        joint_attention_kwargs: Mapping[str, Any] | None = None,
        return_dict: bool = True,
        prepared: PreparedCondition | None = None,
    ) -> SD3ControlNetOutput | tuple[list[paddle.Tensor]]:
        """What guides the transformer at ``hidden_states``.

        Args:
            hidden_states: noisy latents [B, C, H, W], or tokens [B, N, D] without ``use_pos_embed``.
            controlnet_cond: [B, C + extra_conditioning_channels, H, W], guiding latents.
            conditioning_scale: weight of the result.
            encoder_hidden_states: [B, L, joint_attention_dim], text tokens; None for blocks without text.
            pooled_projections: pooled text [B, pooled_projection_dim].
            timestep: [B], 0 to 1000, fp32.
            joint_attention_kwargs: as in :class:`SD3Transformer2DModel`.
            return_dict: return :class:`SD3ControlNetOutput` (default) or a tuple of one list.
            prepared: text and timestep as :meth:`prepare` made them, in the place of
                ``encoder_hidden_states``, ``pooled_projections`` and ``timestep``. It may have a multiple of B rows.

        Raises:
            InputError: latents where tokens are needed or the reverse; guiding latents of another size; text that is
                not read, or is missing.
        """
        if hidden_states.ndim != (3 if self.pos_embed is None else 4):
            raise InputError(
                f"hidden_states has {hidden_states.ndim} axes. This ControlNet "
                + (
                    "embeds no latents itself (use_pos_embed=False): pass the tokens [B, N, D] of the transformer's "
                    "pos_embed."
                    if self.pos_embed is None
                    else "takes latents [B, C, H, W]."
                )
            )
        if paddle.in_dynamic_mode():
            self._check_hint(hidden_states, controlnet_cond)
        scale, kwargs = self._split_attention_kwargs(joint_attention_kwargs, {})
        with scaled_adapters([self], scale, "joint_attention_kwargs['scale']"):
            condition = prepared or self._condition(encoder_hidden_states, pooled_projections, timestep)
            tokens = hidden_states if self.pos_embed is None else self.pos_embed(hidden_states)
            tokens = condition.repeated(tokens + self.pos_embed_input(controlnet_cond))
            context, residuals = condition.context, []
            for block, project in zip(self._blocks_of(condition, kwargs, {}), self.controlnet_blocks):
                context, tokens = block(tokens, context)
                residual = project(tokens)
                residuals.append(residual if conditioning_scale == 1 else residual * conditioning_scale)
        return SD3ControlNetOutput(controlnet_block_samples=residuals) if return_dict else (residuals,)

    def _check_hint(self, hidden_states, controlnet_cond):
        """The guiding latents have the channels that this ControlNet reads, and the size of what they guide."""
        channels = self.config.in_channels + self.config.extra_conditioning_channels
        shape, rows = list(controlnet_cond.shape), hidden_states.shape[0]
        if len(shape) != 4 or shape[1] != channels:
            raise InputError(
                f"`controlnet_cond` has the shape {shape}; this ControlNet reads [B, {channels}, H, W], latents"
                + (" and the mask in their size." if self.config.extra_conditioning_channels else ".")
            )
        patch = self.config.patch_size
        tokens = (shape[2] // patch) * (shape[3] // patch)
        same = tokens == hidden_states.shape[1] if self.pos_embed is None else shape[2:] == hidden_states.shape[2:]
        if shape[0] not in (1, rows) or not same:
            raise InputError(
                f"`controlnet_cond` has the shape {shape} beside hidden_states {list(hidden_states.shape)}; it has to "
                "be of their height and width (in latent units), with as many rows or one. Resize the guiding picture."
            )


_NET_OPTIONS = ("variant", "paddle_dtype", "storage_dtype", *HUB_KEYWORDS)


class SD3MultiControlNetModel(ModelMixin):
    """Several ControlNets, whose residuals are added.

    Saved as ``controlnet``, ``controlnet_1``, ... side by side, as diffusers saves several ControlNets of other models.

    Raises:
        InputError: ``controlnets`` is empty, or has something else in it.
    """

    _components = ()

    @checks_arguments
    def __init__(self, controlnets: Sequence[SD3ControlNetModel] | nn.LayerList) -> None:
        super().__init__()
        if not controlnets:
            raise InputError("controlnets is an empty list. Pass one or more SD3ControlNetModels.")
        self.nets = nn.LayerList(list(controlnets))

    def _shared_parts(self) -> Iterable[Any]:
        return self.nets

    @property
    def config(self) -> FrozenConfig:
        """FrozenConfig: ``nets`` is the list of the ControlNets' own."""
        return FrozenConfig({"nets": [net.config for net in self.nets]})

    def forward(
        self,
        hidden_states: paddle.Tensor,
        controlnet_cond: Sequence[paddle.Tensor],
        conditioning_scale: Sequence[float],
        pooled_projections: paddle.Tensor | None = None,
        encoder_hidden_states: paddle.Tensor | None = None,
        timestep: paddle.Tensor | None = None,
        joint_attention_kwargs: Mapping[str, Any] | None = None,
        return_dict: bool = True,
    ) -> SD3ControlNetOutput | tuple[list[paddle.Tensor]]:
        """As :class:`SD3ControlNetModel`, with a list of ``controlnet_cond`` and of ``conditioning_scale``, one for
        each net. Nets without text are not given any.

        Raises:
            InputError: lists of another length, or what a net refuses.
        """
        for name, values in (("controlnet_cond", controlnet_cond), ("conditioning_scale", conditioning_scale)):
            if len(values) != len(self.nets):
                raise InputError(f"`{name}` has {len(values)} entries for {len(self.nets)} ControlNets.")
        residuals = functools.reduce(
            _sum_of_two,
            (
                net(
                    hidden_states,
                    cond,
                    scale,
                    None if net.context_embedder is None else encoder_hidden_states,
                    pooled_projections,
                    timestep,
                    joint_attention_kwargs,
                    return_dict=False,
                )[0]
                for net, cond, scale in zip(self.nets, controlnet_cond, conditioning_scale)
            ),
        )
        return SD3ControlNetOutput(controlnet_block_samples=residuals) if return_dict else (residuals,)

    @classmethod
    @takes_keywords_of(LOADING, also=lambda cls: (*_NET_OPTIONS, *SD3ControlNetModel._known_keys()))
    def from_pretrained(
        cls, pretrained_model_name_or_path: PathLike, subfolder: str | None = None, **options: Any
    ) -> Self:
        """Loads a directory and those beside it with ``_1``, ``_2``, ... after its name; ``options`` are those of
        :meth:`SD3ControlNetModel.from_pretrained`."""
        path = os.path.join(os.fspath(pretrained_model_name_or_path), subfolder or "")
        return cls([SD3ControlNetModel.from_pretrained(folder, **options) for folder in _folders(path)])

    @takes_keywords_of(SAVING, also=("variant", "max_shard_size", "layout"))
    def save_pretrained(self, save_directory: PathLike, **options: Any) -> None:
        """Writes the first net into ``save_directory``, the others beside it with ``_1``, ``_2``, ... after its name;
        ``options`` are those of :meth:`SD3ControlNetModel.save_pretrained`."""
        parent, name = os.path.split(os.path.abspath(save_directory))
        with replacing(parent, functools.partial(is_former_component_file, numbered=name)) as new:
            for index, net in enumerate(self.nets):
                net.save_pretrained(_numbered(os.path.join(new, name), index), **options)

    @classmethod
    @takes_keywords_of(LOADING, also=())
    def load_config(
        cls, pretrained_model_name_or_path: PathLike, subfolder: str | None = None, **options: Any
    ) -> dict[str, Any]:
        """dict: ``nets`` is the list of configurations found in a directory and beside it."""
        path = os.path.join(os.fspath(pretrained_model_name_or_path), subfolder or "")
        nets = [SD3ControlNetModel.load_config(folder) for folder in _folders(path)]
        return {"nets": [{key: value for key, value in net.items() if key != QUANTIZATION} for net in nets]}

    @classmethod
    @takes_keywords_of(LOADING, also=lambda cls: SD3ControlNetModel._known_keys())
    def from_config(cls, config: Mapping[str, Any], paddle_dtype: Dtype | None = None, **overrides: Any) -> Self:
        """Fresh ControlNets of these configurations; the arguments are those of :class:`SD3ControlNetModel`'s."""
        return cls([SD3ControlNetModel.from_config(net, paddle_dtype, **overrides) for net in config["nets"]])


def add_residuals(lists: Iterable[list[paddle.Tensor]]) -> list[paddle.Tensor] | None:
    """The sum of several ControlNets' residuals, each a list of Tensor [B, N, D]; None of none.

    A list is spread evenly over the transformer's blocks, however long it is; so lists of different lengths are
    first brought to their least common multiple.
    """
    lists = list(lists)
    return functools.reduce(_sum_of_two, lists) if lists else None


def _sum_of_two(first, second):
    length = math.lcm(len(first), len(second))
    return [first[i * len(first) // length] + second[i * len(second) // length] for i in range(length)]


def _zeroed(layer):
    """``layer`` with all parameters zero: what is trained starts as nothing."""
    if not is_to_be_filled():
        for parameter in layer.parameters():
            parameter.set_value(paddle.zeros_like(parameter))
    return layer


def _numbered(path, index):
    return f"{os.fspath(path).rstrip(os.sep)}{f'_{index}' if index else ''}"


def _folders(path):
    """``path`` and those beside it that are numbered from 1 on without a gap."""
    return [os.fspath(path), *takewhile(os.path.isdir, (_numbered(path, index) for index in count(1)))]
