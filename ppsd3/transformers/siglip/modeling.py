"""SigLIP's image tower (Zhai et al., 2023): a vision transformer, pre-norm, pooled by attention.

Counterpart of transformers' ``SiglipVisionModel``. The IP-adapter of SD3.5 reads the tower of
``google/siglip-so400m-patch14-384``: 27 layers of width 1152 over 27 x 27 patches.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import paddle
from paddle import nn

from ...configuration_utils import register_to_config
from ...ops import AffineLayerNorm, Linear, attention, linear
from ...ops.vision import patch_tokens
from ...outputs import BaseOutput
from ...serialization.rearranged import Piece, RearrangedCheckpoint, Recipe
from ...serialization.source import TensorSource
from ...utils.checking import shown
from ...utils.config_types import Epsilon, Heads, Layers, PatchSide, Pixels, Share, Width
from ...utils.errors import ConfigError, InputError
from ...utils.types import PathLike
from ..encoder import Encoder, PreNormLayer, activation, init_normal

# The tower's part of the names in files of transformers 4, and in those of the whole SigLIP, text tower included.
_PREFIX = "vision_model."


@dataclasses.dataclass
class SiglipVisionModelOutput(BaseOutput):
    """What the tower gives for ``B`` pictures of ``N`` patches.

    Attributes:
        last_hidden_state: [B, N, hidden_size], after ``post_layernorm``.
        pooler_output: [B, hidden_size], pooled by attention; None without the head.
        hidden_states: [B, N, hidden_size], the embeddings, then the output of each layer,
            none of them after ``post_layernorm``. An IP-adapter reads ``hidden_states[-2]``.
    """

    last_hidden_state: Any
    pooler_output: Any = None
    hidden_states: tuple | None = None


class SiglipVisionModel(Encoder):
    """Pictures to hidden states.

    Reads checkpoints of this tower alone, as transformers 4 and 5 write them, and takes it out of those of the whole
    SigLIP.

    Args:
        hidden_size: width D. Default 768; so400m 1152.
        intermediate_size: width of the MLP.
        num_hidden_layers: default 12.
        num_attention_heads: heads h; divides ``hidden_size``.
        num_channels: of the pictures.
        image_size: pixels of a side.
        patch_size: pixels of a patch's side. Default 16. What is left of the picture at the right and at the
            bottom is not seen.
        hidden_act: default ``"gelu_pytorch_tanh"``.
        layer_norm_eps: default 1e-6.
        attention_dropout: must be 0 in training mode.
        vision_use_head: whether there is the pooling head.

    Raises:
        ConfigError: heads do not divide the width, or ``hidden_act`` is unknown.
    """

    extra_saved_config = {"architectures": ["SiglipVisionModel"], "model_type": "siglip_vision_model"}
    ignored_config_keys = (*Encoder.ignored_config_keys, "initializer_factor", "initializer_range", "projection_dim")
    _components = ("image_encoder",)

    @register_to_config
    def __init__(
        self,
        hidden_size: Width = 768,
        intermediate_size: Width = 3072,
        num_hidden_layers: Layers = 12,
        num_attention_heads: Heads = 12,
        num_channels: Width = 3,
        image_size: Pixels = 224,
        patch_size: PatchSide = 16,
        hidden_act: str = "gelu_pytorch_tanh",
        layer_norm_eps: Epsilon = 1e-06,
        attention_dropout: Share = 0.0,
        vision_use_head: bool = True,
    ) -> None:
        super().__init__()
        if hidden_size % num_attention_heads:
            raise ConfigError(
                f"num_attention_heads ({num_attention_heads}) does not divide hidden_size ({hidden_size})."
            )
        if patch_size > image_size:
            raise ConfigError(f"patch_size ({patch_size}) is larger than image_size ({image_size}): there is no patch.")
        self.embeddings = _Embeddings(self.config)
        self.encoder = nn.Layer()
        self.encoder.layers = nn.LayerList(
            [PreNormLayer(self.config, _Attention, _MLP) for _ in range(num_hidden_layers)]
        )
        self.post_layernorm = AffineLayerNorm(hidden_size, layer_norm_eps)
        self.head = _PoolingHead(self.config) if vision_use_head else None

    @classmethod
    def load_config(
        cls, pretrained_model_name_or_path: PathLike, subfolder: str | None = None, **options: Any
    ) -> dict[str, Any]:
        config = super().load_config(pretrained_model_name_or_path, subfolder, **options)
        vision = config.get("vision_config", config)
        if not isinstance(vision, dict):
            raise ConfigError(
                f"{pretrained_model_name_or_path} has a vision_config that is no object: {shown(vision)}."
            )
        return vision

    @classmethod
    def with_own_names(cls, source: TensorSource) -> TensorSource:
        """``source`` without the prefix that files may have; the text tower of a whole SigLIP is left out."""
        keys = [key for key in source.keys() if key.startswith(_PREFIX)]
        if not keys:
            return source
        recipes = {key[len(_PREFIX) :]: Recipe((Piece(key),)) for key in keys}
        return RearrangedCheckpoint(source, recipes, metadata=source.metadata)

    def forward(self, pixel_values: paddle.Tensor, output_hidden_states: bool = False) -> SiglipVisionModelOutput:
        """Encodes a batch of pictures.

        Args:
            pixel_values: [B, num_channels, image_size, image_size], as ``SiglipImageProcessor`` gives them.
            output_hidden_states: whether to return ``hidden_states``.

        Returns:
            SiglipVisionModelOutput

        Raises:
            InputError: pictures of another shape, or weights that cannot be used where they are.
        """
        config = self.config
        self._check_dtype()
        side = config.image_size
        if list(pixel_values.shape[1:]) != [config.num_channels, side, side]:
            raise InputError(
                f"pixel_values has the shape {list(pixel_values.shape)}; this image encoder takes "
                f"[B, {config.num_channels}, {side}, {side}], num_channels and image_size of its configuration, as the "
                "pipeline's feature_extractor gives them."
            )
        if self.training and config.attention_dropout > 0:
            raise InputError(
                f"attention_dropout={config.attention_dropout} is not supported in training; load the tower with "
                "attention_dropout=0, or call eval()."
            )
        states = self._run_blocks(self.encoder.layers, self.embeddings(pixel_values.astype(self.dtype)))
        last = self.post_layernorm(states[-1])
        return SiglipVisionModelOutput(
            last_hidden_state=last,
            pooler_output=None if self.head is None else self.head(last),
            hidden_states=tuple(states) if output_hidden_states else None,
        )


class _Embeddings(nn.Layer):
    """Patches plus learnt positions: ``[B, C, S, S]`` -> ``[B, N, D]``."""

    def __init__(self, config):
        super().__init__()
        width, patch = config.hidden_size, config.patch_size
        self.patch_embedding = nn.Conv2D(config.num_channels, width, kernel_size=patch, stride=patch)
        self.position_embedding = nn.Embedding((config.image_size // patch) ** 2, width)
        init_normal(self.position_embedding.weight, width**-0.5)

    def forward(self, pixel_values):
        return patch_tokens(pixel_values, self.patch_embedding) + self.position_embedding.weight


class _Attention(nn.Layer):
    """Multi-head self-attention of all patches."""

    def __init__(self, config):
        super().__init__()
        self.heads = config.num_attention_heads
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            setattr(self, name, _linear(config.hidden_size, config.hidden_size))

    def forward(self, x):
        q, k, v = (_split_heads(projection(x), self.heads) for projection in (self.q_proj, self.k_proj, self.v_proj))
        return self.out_proj(attention(q, k, v).flatten(2))


class _MLP(nn.Layer):
    def __init__(self, config):
        super().__init__()
        self.activation = activation(config.hidden_act, "hidden_act")
        self.fc1 = _linear(config.hidden_size, config.intermediate_size)
        self.fc2 = _linear(config.intermediate_size, config.hidden_size)

    def forward(self, x):
        return self.fc2(self.activation(self.fc1(x)))


class _PoolingHead(nn.Layer):
    """One learnt query asks all patches, then an MLP: ``[B, N, D]`` -> ``[B, D]``."""

    def __init__(self, config):
        super().__init__()
        self.probe = self.create_parameter([1, 1, config.hidden_size], default_initializer=nn.initializer.Normal())
        self.attention = _PackedAttention(config)
        self.layernorm = AffineLayerNorm(config.hidden_size, config.layer_norm_eps)
        self.mlp = _MLP(config)

    def forward(self, hidden):
        pooled = self.attention(self.probe.expand([hidden.shape[0], -1, -1]), hidden)
        return (pooled + self.mlp(self.layernorm(pooled)))[:, 0]


class _PackedAttention(nn.Layer):
    """Cross-attention whose three projections are one matrix [3 D, D], as ``torch.nn.MultiheadAttention`` holds it."""

    def __init__(self, config):
        super().__init__()
        width = config.hidden_size
        self.heads = config.num_attention_heads
        xavier, zeros = nn.initializer.XavierUniform(), nn.initializer.Constant(0.0)
        self.in_proj_weight = self.create_parameter([3 * width, width], default_initializer=xavier)
        self.in_proj_bias = self.create_parameter([3 * width], default_initializer=zeros)
        self.out_proj = _linear(width, width)

    def forward(self, queries, tokens):
        weights, biases = (packed.chunk(3) for packed in (self.in_proj_weight, self.in_proj_bias))
        q, k, v = (
            _split_heads(linear(x, weight.contiguous(), bias), self.heads)
            for x, weight, bias in zip((queries, tokens, tokens), weights, biases)
        )
        return self.out_proj(attention(q, k, v).flatten(2))


def _linear(width, out):
    layer: Any = Linear(width, out)
    nn.initializer.XavierUniform()(layer.weight)
    nn.initializer.Constant(0.0)(layer.bias)
    return layer


def _split_heads(x, heads):
    """``[B, N, D]`` -> ``[B, N, h, d]``."""
    return x.reshape([0, 0, heads, x.shape[-1] // heads])
