"""The IP-adapter of SD3.5 (InstantX): a picture as a second prompt.

An image tower's features and the timestep are worked into a few picture tokens (:class:`IPAdapterTimeImageProjection`);
in every attention image tokens then ask image and picture tokens once more, with keys and values of the adapter's own
(:class:`IPAdapterAttention`), and what they learn is added. Counterpart of diffusers' ``IPAdapterTimeImageProjection``
and ``SD3IPAdapterJointAttnProcessor2_0``; parameter names are those of the files.

Legend: T features of the picture, E their width, Q picture tokens, D the transformer's width.
"""

import contextlib
import re

import paddle
import paddle.nn.functional as F
from paddle import nn

from ..layerwise_casting import cast_layers_, held_weights
from ..modeling_utils import to_be_filled
from ..models.attention_processor import JointAttnProcessor2_5
from ..models.embeddings import TimestepEmbedding, Timesteps
from ..models.normalization import AdaLayerNorm, RMSNorm
from ..ops import Linear, attention, joint_attention, modulate
from ..serialization import load_weights
from ..serialization.rearranged import Piece, RearrangedCheckpoint, Recipe
from ..utils.errors import CheckpointFormatError, InputError, WeightMismatchError

HEAD_DIM = 64  # of the projection's attention, in every file
DEFAULT_SCALE = 0.5

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
    """Q learnt queries gather what the image tower saw, as the timestep needs it (a perceiver resampler with adaLN).

    Args:
        embed_dim (int): width E of the features. SigLIP so400m: 1152.
        output_dim (int): width D of the picture tokens. SD3.5-large: 2432.
        hidden_dim (int): width in between. Default 1280.
        depth (int): blocks. Default 4.
        heads (int): of 64 channels each. Default 20.
        num_queries (int): Q. Default 64.
        ffn_ratio (int): inner width of the feed-forwards over ``hidden_dim``. Default 4.
        timestep_in_dim (int): width of the timestep's sinusoids. Default 320.

    Shapes: ``image_embeds [B, T, E]``, ``timestep [B]`` (fp32, 0 to 1000) -> ``[B, Q, D]`` and the embedded timestep
    ``[B, hidden_dim]``.
    """

    def __init__(
        self,
        embed_dim=1152,
        output_dim=2432,
        hidden_dim=1280,
        depth=4,
        heads=20,
        num_queries=64,
        ffn_ratio=4,
        timestep_in_dim=320,
    ):
        super().__init__()
        self.embed_dim = embed_dim
        normal = nn.initializer.Normal(0.0, hidden_dim**-0.5)
        self.latents = self.create_parameter([1, num_queries, hidden_dim], default_initializer=normal)
        self.proj_in = Linear(embed_dim, hidden_dim)
        self.proj_out = Linear(hidden_dim, output_dim)
        self.norm_out = nn.LayerNorm(output_dim)
        self.layers = nn.LayerList(
            [IPAdapterTimeImageProjectionBlock(hidden_dim, heads, ffn_ratio) for _ in range(depth)]
        )
        self.time_proj = Timesteps(timestep_in_dim)
        self.time_embedding = TimestepEmbedding(timestep_in_dim, hidden_dim)

    def forward(self, image_embeds, timestep):
        temb = self.time_embedding(self.time_proj(timestep).astype(image_embeds.dtype))
        features = self.proj_in(image_embeds) + temb.unsqueeze(1)
        tokens = self.latents.expand([image_embeds.shape[0], -1, -1])
        for block in self.layers:
            tokens = block(features, tokens, temb)
        return self.norm_out(self.proj_out(tokens)), temb


class IPAdapterTimeImageProjectionBlock(nn.Layer):
    """Picture tokens ask the features and one another, then a feed-forward; both inputs modulated by the timestep.

    Shapes: ``features [B, T, H]``, ``tokens [B, Q, H]``, ``temb [B, H]`` -> ``[B, Q, H]``.
    """

    def __init__(self, hidden_dim, heads, ffn_ratio):
        super().__init__()
        self.ln0, self.ln1 = nn.LayerNorm(hidden_dim), nn.LayerNorm(hidden_dim)
        self.attn = _PackedAttention(hidden_dim, heads)
        self.ff = _FeedForward(hidden_dim, ffn_ratio * hidden_dim)
        self.adaln_proj = Linear(hidden_dim, 4 * hidden_dim)
        self.adaln_norm = nn.LayerNorm(hidden_dim)

    def forward(self, features, tokens, temb):
        shift_msa, scale_msa, shift_mlp, scale_mlp = self.adaln_proj(F.silu(temb)).chunk(4, axis=-1)
        queries = modulate(self.ln1(tokens), shift_msa, scale_msa)
        tokens = tokens + self.attn(queries, paddle.concat([self.ln0(features), queries], axis=1))
        return tokens + self.ff(modulate(self.adaln_norm(tokens), shift_mlp, scale_mlp))


class _PackedAttention(nn.Layer):
    """Cross-attention with keys and values in one matrix, without biases."""

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
    """What one attention adds for the picture: image tokens ask image and picture tokens.

    Args:
        hidden_size (int): width D of the attention.
        ip_hidden_states_dim (int): width of the picture tokens.
        head_dim (int): d.
        timesteps_emb_dim (int): width of the embedded timestep.

    Attributes:
        scale (float): weight of what is added.
    """

    def __init__(self, hidden_size, ip_hidden_states_dim, head_dim, timesteps_emb_dim=1280, scale=DEFAULT_SCALE):
        super().__init__()
        self.head_dim, self.scale = head_dim, scale
        self.norm_ip = AdaLayerNorm(timesteps_emb_dim, ip_hidden_states_dim)
        self.to_k_ip = Linear(ip_hidden_states_dim, hidden_size, bias=False)
        self.to_v_ip = Linear(ip_hidden_states_dim, hidden_size, bias=False)
        self.norm_q, self.norm_k, self.norm_ip_k = (RMSNorm(head_dim) for _ in range(3))

    def forward(self, q, k, v, ip_hidden_states, temb):
        """``q, k, v [B, N, h, d]`` of the image, not normalised, ``ip_hidden_states [B, Q, D]``, ``temb [B, E]`` ->
        ``[B, N, h, d]``."""
        tokens = self.norm_ip(ip_hidden_states, temb)
        ip_k, ip_v = (
            layer(tokens).reshape([0, 0, q.shape[2], self.head_dim]) for layer in (self.to_k_ip, self.to_v_ip)
        )
        return joint_attention((self.norm_q(q), self.norm_k(k), v), (None, self.norm_ip_k(ip_k), ip_v))[0]


class SD3IPAdapterJointAttnProcessor2_5:
    """Joint attention, and what an :class:`IPAdapterAttention` adds to it.

    Args:
        weights (IPAdapterAttention): shared by all processors of one attention.
        joint (JointAttnProcessor2_5): attention of image and text.
    """

    def __init__(self, weights, joint):
        self.weights, self.joint, self._perturbed = weights, joint, None

    @property
    def scale(self):
        """Weight of the picture; 0 leaves it out."""
        return self.weights.scale

    @scale.setter
    def scale(self, value):
        self.weights.scale = value

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, ip_hidden_states=None, temb=None):
        """As :class:`JointAttnProcessor2_5`, and:

        Args:
            ip_hidden_states (Tensor [B, Q, D], optional): picture tokens; without them nothing is added.
            temb (Tensor [B, E], optional): the embedded timestep that goes with them.
        """
        projected = attn.project(hidden_states)
        text = None if encoder_hidden_states is None else attn.added_qkv(encoder_hidden_states)
        image, text = self.joint.attend(attn.normalize(*projected), text)
        if ip_hidden_states is not None and self.scale != 0:
            image = image + self.scale * self.weights(*projected, ip_hidden_states, temb)
        image = attn.project_out(image)
        return image if encoder_hidden_states is None else (image, attn.project_added_out(text))

    def perturbed(self):
        """With the joint attention weakened; the picture is seen as ever."""
        if self._perturbed is None:
            self._perturbed = type(self)(self.weights, self.joint.perturbed())
        return self._perturbed


class IPAdapter(nn.Layer):
    """All weights of an IP-adapter, under the names of its file.

    Args:
        config (FrozenConfig): of the transformer that it is for.
        embed_dim (int): width E of the features. SigLIP so400m: 1152.
        **projection: the other sizes of :class:`IPAdapterTimeImageProjection`, but for ``output_dim``.

    Shapes: ``image_embeds [B, T, E]``, ``timestep [B]`` -> dict of what the processors read: ``ip_hidden_states
    [B, Q, D]`` and ``temb [B, hidden_dim]``.
    """

    def __init__(self, config, embed_dim=1152, **projection):
        super().__init__()
        count, width, head_dim = _attentions_of(config)
        self.image_proj = IPAdapterTimeImageProjection(embed_dim, width, **projection)
        temb_dim = self.image_proj.latents.shape[-1]
        # in the order of the transformer's attentions
        self.ip_adapter = nn.LayerList([IPAdapterAttention(width, width, head_dim, temb_dim) for _ in range(count)])

    @property
    def embed_dim(self):
        """Width E of the features that it reads."""
        return self.image_proj.embed_dim

    @property
    def scales(self):
        """list of float: weight of the picture in each attention."""
        return [attention.scale for attention in self.ip_adapter]

    def forward(self, image_embeds, timestep):
        tokens, temb = self.image_proj(image_embeds, timestep)
        return {"ip_hidden_states": tokens, "temb": temb}


def _attentions_of(config):
    """``(number, width, head width)`` of the attentions of the transformer that has this ``config``."""
    count = sum(1 + (i in config.dual_attention_layers) for i in range(config.num_layers))
    return count, config.num_attention_heads * config.attention_head_dim, config.attention_head_dim


def read_ip_adapter(source, config, dtype, storage_dtype=None):
    """The :class:`IPAdapter` that ``source`` holds.

    Args:
        source: a :class:`~ppsd3.serialization.SafetensorsFile` or anything with its methods.
        config (FrozenConfig): of the transformer that it is for.
        dtype (paddle dtype): that this computes in.
        storage_dtype (paddle dtype, optional): 16-bit dtype to hold the weights of linear layers in.

    Raises:
        CheckpointFormatError: no IP-adapter of SD3.
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
        cast_layers_(adapter, storage_dtype, unfilled=True, compute_dtype=dtype)
    load_weights(adapter, source, dtype, layout="torch", held=held_weights(adapter))
    adapter.eval()
    return adapter


def attach(transformer, adapter):
    """Makes ``transformer`` read pictures by ``adapter``, in the place of another one.

    Raises:
        InputError: an attention has a processor of another kind, which would no longer act.
    """
    others = _without_adapter(transformer)
    for name, processor in others.items():
        if not isinstance(processor, JointAttnProcessor2_5):
            raise InputError(
                f"{name} is a {type(processor).__name__}, which an IP-adapter cannot add to. Derive it from "
                "JointAttnProcessor2_5, or set that back by set_attn_processor() first."
            )
    transformer.ip_adapter = adapter
    transformer.set_attn_processor(
        {
            name: SD3IPAdapterJointAttnProcessor2_5(weights, joint)
            for (name, joint), weights in zip(others.items(), adapter.ip_adapter)
        }
    )


def detach(transformer):
    """Takes the IP-adapter away; attentions have the processors again that they had before."""
    transformer.set_attn_processor(_without_adapter(transformer))
    transformer.ip_adapter = None


def _without_adapter(transformer):
    """``transformer.attn_processors`` as they are without an IP-adapter."""
    return {
        name: processor.joint if isinstance(processor, SD3IPAdapterJointAttnProcessor2_5) else processor
        for name, processor in transformer.attn_processors.items()
    }


@contextlib.contextmanager
def attached(transformer, adapter):
    """Within the block ``transformer`` has ``adapter``."""
    attach(transformer, adapter)
    try:
        yield
    finally:
        detach(transformer)


def _with_diffusers_names(source):
    """``source`` with each name of InstantX's own files replaced by diffusers'."""
    recipes = {}
    for key in source.keys():
        name = key
        for pattern, replacement in _ORIGINAL_NAMES:
            name = re.sub(pattern, replacement, name)
        recipes[name] = Recipe((Piece(key),))
    return RearrangedCheckpoint(source, recipes)


class _Shapes:
    """Shapes of the tensors in a file, by which the adapter's sizes are known."""

    def __init__(self, source):
        self._source, self._names = source, set(source.keys())

    def of(self, name):
        if name not in self._names:
            raise CheckpointFormatError(
                f"{self._source.path} is no IP-adapter of SD3: it has no {name}. Use one for Stable Diffusion 3.5, "
                "e.g. InstantX's; those for other models do not fit."
            )
        return tuple(self._source.info(name).shape)

    def count(self, prefix):
        """How many numbered parts ``prefix`` has."""
        numbers = {name[len(prefix) + 1 :].split(".")[0] for name in self._names if name.startswith(prefix + ".")}
        return len(numbers)
