"""The IP-adapter of SD3.5 (InstantX): an image as a second prompt.

:class:`IPAdapterTimeImageProjection` projects an image tower's features and the timestep to a few picture tokens. In
every attention, the image's queries then attend to image and picture tokens, with keys and values of the adapter's own
(:class:`IPAdapterAttention`), and the result is added. Counterpart of diffusers' ``IPAdapterTimeImageProjection``
and ``SD3IPAdapterJointAttnProcessor2_0``; parameter names are those of the files.

Legend: T features of the picture, E their width, Q picture tokens, D the transformer's width.
"""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from typing import Any, cast

import paddle
import paddle.nn.functional as F
from paddle import nn

from ..configuration_utils import FrozenConfig
from ..layerwise_casting import cast_layers_, held_weights
from ..modeling_utils import to_be_filled
from ..ops import AffineLayerNorm, Linear, attention, joint_attention, modulate
from ..serialization import load_weights
from ..serialization.rearranged import Piece, RearrangedCheckpoint, Recipe
from ..serialization.source import TensorSource, explain_source
from ..utils.contexts import held
from ..utils.errors import CheckpointFormatError, InputError, WeightMismatchError
from ..utils.types import Dtype, Shape, Tensors
from .attention_processor import JointAttnProcessor2_5
from .embeddings import TimestepEmbedding, Timesteps
from .normalization import AdaLayerNorm, RMSNorm
from .transformer_sd3 import SD3Transformer2DModel

HEAD_DIM = 64  # of the projection's attention, in every file
DEFAULT_SCALE = 0.5

_all_scales = threading.Lock()  # held while all scales of an adapter are read or set
_own_scales: ContextVar[dict[IPAdapterAttention, float]] = ContextVar("ip_adapter_scales", default={})  # noqa: B039

# Names in InstantX's own files -> diffusers' names.
_ORIGINAL_NAMES = (
    (r"^(image_proj\.layers\.\d+)\.0\.norm1\.", r"\1.ln0."),
    (r"^(image_proj\.layers\.\d+)\.0\.norm2\.", r"\1.ln1."),
    (r"^(image_proj\.layers\.\d+)\.0\.to_out\.", r"\1.attn.to_out.0."),
    (r"^(image_proj\.layers\.\d+)\.0\.(to_q|to_kv)\.", r"\1.attn.\2."),
    (r"^(image_proj\.layers\.\d+)\.1\.0\.", r"\1.adaln_norm."),
    (r"^(image_proj\.layers\.\d+)\.1\.1\.", r"\1.ff.net.0.proj."),
    (r"^(image_proj\.layers\.\d+)\.1\.3\.", r"\1.ff.net.2."),
    (r"^(image_proj\.layers\.\d+)\.2\.1\.", r"\1.adaln_proj."),
)


class IPAdapterTimeImageProjection(nn.Layer):
    """Projects an image's features to Q picture tokens: a perceiver resampler with timestep-dependent adaLN.

    Args:
        embed_dim: width E of the features. SigLIP so400m: 1152.
        output_dim: width D of the picture tokens. SD3.5-large: 2432.
        hidden_dim: width H of the blocks.
        depth: number of blocks.
        heads: of 64 channels each.
        num_queries: Q.
        ffn_ratio: inner width of the feed-forwards over ``hidden_dim``.
        timestep_in_dim: width of the timestep's sinusoids.

    Shapes: ``image_embeds [B, T, E]``, ``timestep [B]`` (fp32, 0 to 1000) -> ``[B, Q, D]`` and the embedded timestep
    ``[B, hidden_dim]``.
    """

    embed_dim: int
    latents: paddle.Tensor

    def __init__(
        self,
        embed_dim: int = 1152,
        output_dim: int = 2432,
        hidden_dim: int = 1280,
        depth: int = 4,
        heads: int = 20,
        num_queries: int = 64,
        ffn_ratio: int = 4,
        timestep_in_dim: int = 320,
    ) -> None:
        super().__init__()
        self.embed_dim = embed_dim
        normal = nn.initializer.Normal(0.0, hidden_dim**-0.5)
        self.latents = self.create_parameter([1, num_queries, hidden_dim], default_initializer=normal)
        self.proj_in: Linear = Linear(embed_dim, hidden_dim)
        self.proj_out: Linear = Linear(hidden_dim, output_dim)
        self.norm_out: nn.LayerNorm = AffineLayerNorm(output_dim)
        self.layers: nn.LayerList = nn.LayerList(
            [IPAdapterTimeImageProjectionBlock(hidden_dim, heads, ffn_ratio) for _ in range(depth)]
        )
        self.time_proj: Timesteps = Timesteps(timestep_in_dim)
        self.time_embedding: TimestepEmbedding = TimestepEmbedding(timestep_in_dim, hidden_dim)

    def forward(self, image_embeds: paddle.Tensor, timestep: paddle.Tensor) -> tuple[paddle.Tensor, paddle.Tensor]:
        temb = self.time_embedding(self.time_proj(timestep).astype(image_embeds.dtype))
        features = self.proj_in(image_embeds) + temb.unsqueeze(1)
        tokens = self.latents.expand([image_embeds.shape[0], -1, -1])
        for block in self.layers:
            tokens = block(features, tokens, temb)
        return self.norm_out(self.proj_out(tokens)), temb


class IPAdapterTimeImageProjectionBlock(nn.Layer):
    """Attention of picture tokens to features and picture tokens, then a feed-forward; both modulated by the timestep.

    Shapes: ``features [B, T, H]``, ``tokens [B, Q, H]``, ``temb [B, H]`` -> ``[B, Q, H]``.
    """

    def __init__(self, hidden_dim: int, heads: int, ffn_ratio: int) -> None:
        super().__init__()
        self.ln0: nn.LayerNorm = AffineLayerNorm(hidden_dim)
        self.ln1: nn.LayerNorm = AffineLayerNorm(hidden_dim)
        self.attn: nn.Layer = _PackedAttention(hidden_dim, heads)
        self.ff: nn.Layer = _FeedForward(hidden_dim, ffn_ratio * hidden_dim)
        self.adaln_proj: Linear = Linear(hidden_dim, 4 * hidden_dim)
        self.adaln_norm: nn.LayerNorm = AffineLayerNorm(hidden_dim)

    def forward(self, features: paddle.Tensor, tokens: paddle.Tensor, temb: paddle.Tensor) -> paddle.Tensor:
        shift_msa, scale_msa, shift_mlp, scale_mlp = self.adaln_proj(F.silu(temb)).chunk(4, axis=-1)
        queries = modulate(self.ln1(tokens), shift_msa, scale_msa)
        tokens = tokens + self.attn(queries, paddle.concat([self.ln0(features), queries], axis=1))
        return tokens + self.ff(modulate(self.adaln_norm(tokens), shift_mlp, scale_mlp))


class _PackedAttention(nn.Layer):
    """Attention with keys and values projected by one matrix, without biases."""

    def __init__(self, dim, heads):
        super().__init__()
        self.heads = heads
        self.to_q = Linear(dim, heads * HEAD_DIM, bias=False)
        self.to_kv = Linear(dim, 2 * heads * HEAD_DIM, bias=False)
        self.to_out = nn.LayerList([Linear(heads * HEAD_DIM, dim, bias=False)])

    def forward(self, queries, tokens):
        heads = [0, 0, self.heads, HEAD_DIM]
        k, v = self.to_kv(tokens).chunk(2, axis=-1)
        return self.to_out[0](
            attention(self.to_q(queries).reshape(heads), k.reshape(heads), v.reshape(heads)).flatten(2)
        )


class _FeedForward(nn.Layer):
    """``net.2(gelu(net.0.proj(x)))`` with the exact GELU, without biases."""

    def __init__(self, dim, inner_dim):
        super().__init__()
        entrance = nn.Layer()
        entrance.proj = Linear(dim, inner_dim, bias=False)
        self.net = nn.LayerList([entrance, nn.Dropout(0.0), Linear(inner_dim, dim, bias=False)])

    def forward(self, x):
        return self.net[2](F.gelu(self.net[0].proj(x)))


class IPAdapterAttention(nn.Layer):
    """The image prompt's part of one attention: image tokens attend to image and picture tokens.

    Args:
        hidden_size: width D of the attention.
        ip_hidden_states_dim: width of the picture tokens.
        head_dim: d.
        timesteps_emb_dim: width of the embedded timestep.

    Attributes:
        scale: factor of what it adds; within :func:`held_scales`, that of the block.
    """

    head_dim: int

    def __init__(
        self,
        hidden_size: int,
        ip_hidden_states_dim: int,
        head_dim: int,
        timesteps_emb_dim: int = 1280,
        scale: float = DEFAULT_SCALE,
    ) -> None:
        super().__init__()
        self.head_dim, self._scale = head_dim, scale
        self.norm_ip: AdaLayerNorm = AdaLayerNorm(timesteps_emb_dim, ip_hidden_states_dim)
        self.to_k_ip: Linear = Linear(ip_hidden_states_dim, hidden_size, bias=False)
        self.to_v_ip: Linear = Linear(ip_hidden_states_dim, hidden_size, bias=False)
        self.norm_q: RMSNorm = RMSNorm(head_dim)
        self.norm_k: RMSNorm = RMSNorm(head_dim)
        self.norm_ip_k: RMSNorm = RMSNorm(head_dim)

    @property
    def scale(self) -> float:
        return _own_scales.get().get(self, self._scale)

    @scale.setter
    def scale(self, value: float) -> None:
        own = _own_scales.get()
        if self in own:
            own[self] = value
        else:
            self._scale = value

    def forward(
        self, q: paddle.Tensor, k: paddle.Tensor, v: paddle.Tensor, ip_hidden_states: paddle.Tensor, temb: paddle.Tensor
    ) -> paddle.Tensor:
        """``q, k, v [B, N, h, d]`` of the image, not normalised, ``ip_hidden_states [B, Q, D]``, ``temb [B, E]`` ->
        ``[B, N, h, d]``."""
        tokens = self.norm_ip(ip_hidden_states, temb)
        ip_k, ip_v = (
            layer(tokens).reshape([0, 0, q.shape[2], self.head_dim]) for layer in (self.to_k_ip, self.to_v_ip)
        )
        return joint_attention((self.norm_q(q), self.norm_k(k), v), (None, self.norm_ip_k(ip_k), ip_v))[0]


class SD3IPAdapterJointAttnProcessor2_5:
    """Joint attention plus the result of an :class:`IPAdapterAttention`.

    Args:
        weights: shared by all processors of one attention.
        joint: attention of image and text.
    """

    def __init__(self, weights: IPAdapterAttention, joint: JointAttnProcessor2_5) -> None:
        self.weights: IPAdapterAttention = weights
        self.joint: JointAttnProcessor2_5 = joint
        self._perturbed = None

    @property
    def scale(self) -> float:
        """Weight of the image prompt; 0 leaves it out."""
        return self.weights.scale

    @scale.setter
    def scale(self, value: float) -> None:
        self.weights.scale = value

    def __call__(
        self,
        attn: Any,
        hidden_states: paddle.Tensor,
        encoder_hidden_states: paddle.Tensor | None = None,
        ip_hidden_states: paddle.Tensor | None = None,
        temb: paddle.Tensor | None = None,
    ) -> paddle.Tensor | tuple[paddle.Tensor, paddle.Tensor]:
        """As :class:`JointAttnProcessor2_5`, and:

        Args:
            ip_hidden_states [B, Q, D]: picture tokens; without them nothing is added.
            temb [B, E]: the embedded timestep that goes with them.
        """
        projected = attn.project(hidden_states)
        text = None if encoder_hidden_states is None else attn.added_qkv(encoder_hidden_states)
        image, text = self.joint.attend(attn.normalize(*projected), text)
        if ip_hidden_states is not None and self.scale != 0:
            image = image + self.scale * self.weights(*projected, ip_hidden_states, temb)
        image = attn.project_out(image)
        return image if encoder_hidden_states is None else (image, attn.project_added_out(text))

    def perturbed(self) -> SD3IPAdapterJointAttnProcessor2_5:
        """A processor with perturbed joint attention and the same image prompt (perturbed-attention guidance)."""
        if self._perturbed is None:
            self._perturbed = type(self)(self.weights, self.joint.perturbed())
        return self._perturbed


class IPAdapter(nn.Layer):
    """All weights of an IP-adapter, under the names of its file.

    Args:
        config: of the transformer that it is for.
        embed_dim: width E of the features. SigLIP so400m: 1152.
        **projection: the other sizes of :class:`IPAdapterTimeImageProjection`, but for ``output_dim``.

    Shapes: ``image_embeds [B, T, E]``, ``timestep [B]`` -> the processors' arguments ``ip_hidden_states [B, Q, D]`` and
    ``temb [B, hidden_dim]``.
    """

    def __init__(self, config: FrozenConfig, embed_dim: int = 1152, **projection: int) -> None:
        super().__init__()
        count, width, head_dim = _attentions_of(config)
        self.image_proj: IPAdapterTimeImageProjection = IPAdapterTimeImageProjection(embed_dim, width, **projection)
        temb_dim = self.image_proj.latents.shape[-1]
        # in the order of the transformer's attentions
        self.ip_adapter: nn.LayerList = nn.LayerList(
            [IPAdapterAttention(width, width, head_dim, temb_dim) for _ in range(count)]
        )

    @property
    def embed_dim(self) -> int:
        """Width E of the features."""
        return self.image_proj.embed_dim

    @property
    def scales(self) -> list[float]:
        """Weight of the image prompt in each attention."""
        with _all_scales:
            return [attention.scale for attention in self.ip_adapter]

    @scales.setter
    def scales(self, values: Sequence[float]) -> None:
        with _all_scales:
            for attention, value in zip(self.ip_adapter, values):
                attention.scale = float(value)

    def forward(self, image_embeds: paddle.Tensor, timestep: paddle.Tensor) -> Tensors:
        tokens, temb = self.image_proj(image_embeds, timestep)
        return {"ip_hidden_states": tokens, "temb": temb}


def held_scales(adapter: IPAdapter | None) -> contextlib.AbstractContextManager[None]:
    """Within the block, the scales of ``adapter`` are those at its start or what the block sets; other threads have
    theirs. None changes nothing."""
    own: dict[Any, float] = {} if adapter is None else dict(zip(adapter.ip_adapter, adapter.scales))
    return held(_own_scales, {**_own_scales.get(), **own})


def _attentions_of(config):
    """``(number, width, head width)`` of the attentions of the transformer that has this ``config``."""
    count = sum(1 + (i in config.dual_attention_layers) for i in range(config.num_layers))
    return count, config.num_attention_heads * config.attention_head_dim, config.attention_head_dim


def read_ip_adapter(
    source: TensorSource, config: FrozenConfig, dtype: paddle.dtype, storage_dtype: Dtype | None = None
) -> IPAdapter:
    """The :class:`IPAdapter` that ``source`` holds.

    Args:
        config: of the transformer that it is for.
        dtype: to compute in.
        storage_dtype: 16-bit dtype for layerwise casting.

    Raises:
        CheckpointFormatError: not an IP-adapter of SD3.
        WeightMismatchError: one for another transformer, or tensors are missing, unexpected or of another shape.
    """
    source = _with_diffusers_names(source)
    shapes = _Shapes(source)
    hidden_dim, embed_dim = shapes.of("image_proj.proj_in.weight")
    found = (
        shapes.count("ip_adapter"),
        shapes.of("ip_adapter.0.to_k_ip.weight")[0],
        shapes.of("ip_adapter.0.norm_q.weight")[0],
    )
    own = _attentions_of(config)
    if found != own:
        raise WeightMismatchError(
            f"{source.path} is for a transformer of {found[0]} attentions of width {found[1]} with heads of "
            f"{found[2]}, and this one has {own[0]} of width {own[1]} with heads of {own[2]}. Use the IP-adapter that "
            "was trained for this transformer."
        )
    with to_be_filled():
        adapter = IPAdapter(
            config,
            embed_dim,
            hidden_dim=hidden_dim,
            depth=shapes.count("image_proj.layers"),
            heads=shapes.of("image_proj.layers.0.attn.to_q.weight")[0] // HEAD_DIM,
            num_queries=shapes.of("image_proj.latents")[1],
            ffn_ratio=shapes.of("image_proj.layers.0.ff.net.0.proj.weight")[0] // hidden_dim,
            timestep_in_dim=shapes.of("image_proj.time_embedding.linear_1.weight")[1],
        )
    if storage_dtype is not None:
        cast_layers_(adapter, storage_dtype, compute_dtype=dtype)
    load_weights(adapter, source, dtype, layout="torch", held=held_weights(adapter))
    adapter.eval()
    return adapter


def attach(transformer: SD3Transformer2DModel, adapter: IPAdapter) -> None:
    """Attaches ``adapter`` to ``transformer``, in place of an earlier one.

    Raises:
        InputError: an attention has a processor of another kind, which would be lost.
    """
    processors = {}
    attentions = cast("list[IPAdapterAttention]", adapter.ip_adapter)
    for (name, joint), weights in zip(_without_adapter(transformer).items(), attentions):
        if not isinstance(joint, JointAttnProcessor2_5):
            raise InputError(
                f"{name} is a {type(joint).__name__}, which an IP-adapter cannot add to. Derive it from "
                "JointAttnProcessor2_5, or set that back by set_attn_processor() first."
            )
        processors[name] = SD3IPAdapterJointAttnProcessor2_5(weights, joint)
    transformer.ip_adapter = adapter
    transformer.set_attn_processor(processors)


def detach(transformer: SD3Transformer2DModel) -> None:
    """Removes the IP-adapter and restores the processors from before."""
    transformer.set_attn_processor(_without_adapter(transformer))
    transformer.ip_adapter = None


def _without_adapter(transformer):
    """``transformer.attn_processors`` without the IP-adapter."""
    return {
        name: processor.joint if isinstance(processor, SD3IPAdapterJointAttnProcessor2_5) else processor
        for name, processor in transformer.attn_processors.items()
    }


@contextlib.contextmanager
def attached(transformer: SD3Transformer2DModel, adapter: IPAdapter) -> Iterator[None]:
    """Attaches ``adapter`` to ``transformer`` within the block."""
    attach(transformer, adapter)
    try:
        yield
    finally:
        detach(transformer)


def _with_diffusers_names(source: TensorSource) -> RearrangedCheckpoint:
    """``source`` with each name of InstantX's own files replaced by diffusers'."""
    recipes = {}
    for key in source.keys():
        name = key
        for pattern, replacement in _ORIGINAL_NAMES:
            name = re.sub(pattern, replacement, name)
        recipes[name] = Recipe((Piece(key),))
    return RearrangedCheckpoint(source, recipes)


class _Shapes:
    """Shapes of the tensors in a file, from which the adapter's sizes are inferred."""

    def __init__(self, source: TensorSource) -> None:
        self._source, self._names = source, set(source.keys())

    def of(self, name: str) -> Shape:
        if name not in self._names:
            raise CheckpointFormatError(
                explain_source(self._source, wanted="ip_adapter")
                or f"{self._source.path} is no IP-adapter of SD3: it has no {name}. Use one for Stable Diffusion 3.5, "
                "e.g. InstantX's; those for other models do not fit."
            )
        return tuple(self._source.info(name).shape)

    def count(self, prefix: str) -> int:
        """Number of the numbered modules within ``prefix``."""
        numbers = {name[len(prefix) + 1 :].split(".")[0] for name in self._names if name.startswith(prefix + ".")}
        return len(numbers)
