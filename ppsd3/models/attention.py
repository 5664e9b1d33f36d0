"""The MM-DiT block: two streams with weights of their own that meet in one attention (paper, figure 2b)."""

from contextlib import contextmanager

import paddle
from paddle import nn

from ..ops import Linear, gated_residual, layer_norm_modulate, linear_gelu
from ..utils.errors import InputError
from .attention_processor import Attention, check_attention_kwargs
from .normalization import AdaLayerNormContinuous, AdaLayerNormZero, SD35AdaLayerNormZeroX


class GELU(nn.Layer):
    """Linear projection followed by tanh-approximated GELU: ``[..., dim_in] -> [..., dim_out]``."""

    def __init__(self, dim_in, dim_out):
        super().__init__()
        self.proj = Linear(dim_in, dim_out)

    def forward(self, hidden_states):
        return linear_gelu(hidden_states, self.proj)


class FeedForward(nn.Layer):
    """``net.2(gelu(net.0.proj(x)))``, four times as wide inside: ``[B, S, D] -> [B, S, D]``.

    Args:
        dim (int): width D. mult (int): inner width over D. Default 4.
    """

    def __init__(self, dim, mult=4):
        super().__init__()
        self.net = nn.LayerList([GELU(dim, dim * mult), nn.Dropout(0.0), Linear(dim * mult, dim)])
        self.chunk_size, self.chunk_dim = None, 0

    def set_chunk_feed_forward(self, chunk_size, dim=0):
        """Work on ``chunk_size`` slices of axis ``dim`` (0 batch, 1 sequence) at a time; None for all at once."""
        self.chunk_size, self.chunk_dim = chunk_size, dim

    def forward(self, hidden_states):
        size = hidden_states.shape[self.chunk_dim]
        if self.chunk_size is None or size <= self.chunk_size:
            return self._run(hidden_states)
        starts = range(0, size, self.chunk_size)
        chunks = [hidden_states.slice([self.chunk_dim], [i], [min(i + self.chunk_size, size)]) for i in starts]
        return paddle.concat([self._run(chunk) for chunk in chunks], axis=self.chunk_dim)

    def _run(self, hidden_states):
        for layer in self.net:
            hidden_states = layer(hidden_states)
        return hidden_states


class _ModulatedBlock(nn.Layer):
    """What blocks have in common: time and pooled text steer them, through :meth:`modulation`."""

    def forward(self, hidden_states, encoder_hidden_states, temb, joint_attention_kwargs=None):
        return self.with_modulation(hidden_states, encoder_hidden_states, self.modulation(temb), joint_attention_kwargs)

    def modulation(self, temb):
        """Shifts, scales and gates: ``temb [..., B, D]`` -> for each stream a list of [..., B, D]."""
        raise NotImplementedError

    def with_modulation(self, hidden_states, encoder_hidden_states, modulation, joint_attention_kwargs=None):
        """The block, given what :meth:`modulation` returned."""
        raise NotImplementedError

    @staticmethod
    def _feed_forward(feed_forward, tokens, modulation):
        normalized = layer_norm_modulate(tokens, modulation.shift_mlp, modulation.scale_mlp)
        return gated_residual(tokens, modulation.gate_mlp, feed_forward(normalized))


class JointTransformerBlock(_ModulatedBlock):
    """One MM-DiT block.

    Args:
        dim (int): width D.
        num_attention_heads (int), attention_head_dim (int): h and d.
        context_pre_only (bool): the last block: text serves the attention and is then dropped. Default False.
        qk_norm (str, optional): None or ``"rms_norm"``.
        use_dual_attention (bool): a second, image-only attention on the block's input (SD3.5-medium). Default False.

    Shapes: ``hidden_states [B, N, D]``, ``encoder_hidden_states [B, L, D]``, ``temb [B, D]`` ->
    ``(encoder_hidden_states or None, hidden_states)``, text first as in diffusers.
    """

    def __init__(
        self,
        dim,
        num_attention_heads,
        attention_head_dim,
        context_pre_only=False,
        qk_norm=None,
        use_dual_attention=False,
    ):
        super().__init__()
        self.context_pre_only, self.use_dual_attention = context_pre_only, use_dual_attention
        self.norm1 = SD35AdaLayerNormZeroX(dim) if use_dual_attention else AdaLayerNormZero(dim)
        self.norm1_context = AdaLayerNormContinuous(dim, dim) if context_pre_only else AdaLayerNormZero(dim)
        heads = dict(query_dim=dim, heads=num_attention_heads, dim_head=attention_head_dim, qk_norm=qk_norm)
        self.attn = Attention(added_kv_proj_dim=dim, context_pre_only=context_pre_only, **heads)
        self.attn2 = Attention(**heads) if use_dual_attention else None
        self.ff = FeedForward(dim)
        self.ff_context = None if context_pre_only else FeedForward(dim)

    def modulation(self, temb):
        return self.norm1.modulation(temb), self.norm1_context.modulation(temb)

    def with_modulation(self, hidden_states, encoder_hidden_states, modulation, joint_attention_kwargs=None):
        kwargs = joint_attention_kwargs or {}
        image_modulation, text_modulation = modulation
        image = self.norm1.with_modulation(hidden_states, image_modulation)
        text = self.norm1_context.with_modulation(encoder_hidden_states, text_modulation)
        text_input = text if self.context_pre_only else text.hidden_states

        image_output, text_output = self.attn(image.hidden_states, text_input, **kwargs)

        hidden_states = gated_residual(hidden_states, image.gate_msa, image_output)
        if self.use_dual_attention:
            hidden_states = gated_residual(hidden_states, image.gate_msa2, self.attn2(image.hidden_states2, **kwargs))
        hidden_states = self._feed_forward(self.ff, hidden_states, image)
        if self.context_pre_only:
            return None, hidden_states

        encoder_hidden_states = gated_residual(encoder_hidden_states, text.gate_msa, text_output)
        return self._feed_forward(self.ff_context, encoder_hidden_states, text), hidden_states


class SD3SingleTransformerBlock(_ModulatedBlock):
    """A block of image tokens alone, as ControlNets of SD3.5-large have it.

    Args:
        dim (int): width D.
        num_attention_heads (int), attention_head_dim (int): h and d.

    Shapes: those of :class:`JointTransformerBlock`, with None for the text that goes in and out.
    """

    def __init__(self, dim, num_attention_heads, attention_head_dim):
        super().__init__()
        self.norm1 = AdaLayerNormZero(dim)
        self.attn = Attention(query_dim=dim, heads=num_attention_heads, dim_head=attention_head_dim)
        self.ff = FeedForward(dim)

    def modulation(self, temb):
        return (self.norm1.modulation(temb),)

    def with_modulation(self, hidden_states, encoder_hidden_states, modulation, joint_attention_kwargs=None):
        image = self.norm1.with_modulation(hidden_states, *modulation)
        output = self.attn(image.hidden_states, **(joint_attention_kwargs or {}))
        hidden_states = gated_residual(hidden_states, image.gate_msa, output)
        return None, self._feed_forward(self.ff, hidden_states, image)


class AttentionMixin:
    """The seam of attention processors and the switches of blocks, under their diffusers names: for networks that have
    :class:`Attention` and :class:`FeedForward` in them."""

    def _forget_graphs(self):
        """For changes that a traced graph would not see; there is none here."""

    @property
    def attn_processors(self):
        """dict: name of each attention plus ``.processor`` -> its processor."""
        return {f"{name}.processor": layer.processor for name, layer in self._attentions()}

    def set_attn_processor(self, processor):
        """Sets one processor for all attentions, or one per name from a dict like :attr:`attn_processors`.

        Raises:
            InputError: the dict lacks or misnames an attention.
        """
        attentions = {f"{name}.processor": layer for name, layer in self._attentions()}
        if not isinstance(processor, dict):
            processor = dict.fromkeys(attentions, processor)
        wrong = sorted(set(attentions) ^ set(processor))
        if wrong:
            raise InputError(
                f"set_attn_processor takes one processor for each of the {len(attentions)} attentions; "
                f"missing or unknown: {wrong[:5]}. Start from model.attn_processors."
            )
        for name, layer in attentions.items():
            layer.set_processor(processor[name])
        self._forget_graphs()

    def _check_attention_kwargs(self, kwargs):
        """Refuses ``kwargs`` that no processor takes; where there are none, no processor is looked for."""
        if kwargs:
            check_attention_kwargs(self.attn_processors.values(), kwargs)

    @contextmanager
    def attention_of(self, processors):
        """Within the block some attentions have other processors.

        Args:
            processors (dict): name of an attention plus ``.processor``, as in :attr:`attn_processors` -> its processor.
        """
        attentions = {f"{name}.processor": layer for name, layer in self._attentions()} if processors else {}
        before = {name: attentions[name].processor for name in processors}
        try:
            for name, processor in processors.items():
                attentions[name].set_processor(processor)
            yield self
        finally:
            for name, processor in before.items():
                attentions[name].set_processor(processor)

    def fuse_qkv_projections(self):
        """Computes Q, K and V by one product per stream. Call again after weights or dtype change."""
        for _, layer in self._attentions():
            layer.fuse_projections()
        self._forget_graphs()

    def unfuse_qkv_projections(self):
        """Undoes :meth:`fuse_qkv_projections`."""
        for _, layer in self._attentions():
            layer.unfuse_projections()
        self._forget_graphs()

    def enable_forward_chunking(self, chunk_size=None, dim=0):
        """Runs feed-forwards on ``chunk_size`` (default 1) slices of axis ``dim``: less memory, more time."""
        set_chunk_feed_forward(self, chunk_size or 1, dim)
        self._forget_graphs()

    def disable_forward_chunking(self):
        """Runs feed-forwards on all tokens at once again."""
        set_chunk_feed_forward(self, None, 0)
        self._forget_graphs()

    def _attentions(self):
        return [(name, layer) for name, layer in self.named_sublayers() if isinstance(layer, Attention)]


def set_chunk_feed_forward(model, chunk_size, dim):
    """Sets the chunking of every :class:`FeedForward` in ``model``.

    Raises:
        InputError: ``dim`` is neither 0 (batch) nor 1 (sequence).
    """
    if dim not in (0, 1):
        raise InputError(f"dim is {dim!r}; feed-forward chunks run over 0 (batch) or 1 (sequence).")
    for layer in model.sublayers():
        if isinstance(layer, FeedForward):
            layer.set_chunk_feed_forward(chunk_size, dim)
