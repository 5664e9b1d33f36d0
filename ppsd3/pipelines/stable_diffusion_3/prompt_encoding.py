"""Prompts -> the condition that the transformer reads.

::

    prompt   -> CLIP-L -> [B, 77, 768]  --.
    prompt_2 -> CLIP-G -> [B, 77, 1280] --+ features -> [B, 77, 2048] -> zero pad -> [B, 77, 4096] --.
    prompt_3 -> T5     -> [B, 256, 4096] ---------------------------------------------------------- + tokens
                                                                                                     |
    embeds [B, 333, 4096] <--------------------------------------------------------------------------'
    pooled [B, 2048] <- CLIP-L projection [B, 768] ++ CLIP-G projection [B, 1280]

(widths of the published models). No attention mask exists: the transformer attends to padding as well. An encoder
that is absent contributes zeros of its width, which is how SD3 was trained to do without it.
"""

import dataclasses
from typing import Any

import paddle
import paddle.nn.functional as F

from ...utils.errors import InputError
from ...utils.logging import get_logger

logger = get_logger(__name__)

CLIP_MAX_LENGTH = 77  # when no CLIP tokenizer is there to ask


@dataclasses.dataclass
class TextCondition:
    """``embeds`` [B, L, joint_attention_dim] and ``pooled`` [B, pooled_projection_dim]."""

    embeds: paddle.Tensor
    pooled: paddle.Tensor

    @classmethod
    def cat(cls, conditions):
        """The conditions one after the other on the batch axis."""
        return cls(paddle.concat([c.embeds for c in conditions]), paddle.concat([c.pooled for c in conditions]))

    def repeat(self, n):
        """Each row ``n`` times in a row: p0, p0, p1, p1 (the order of pictures for num_images_per_prompt = n)."""
        if n == 1:
            return self
        return TextCondition(
            paddle.repeat_interleave(self.embeds, n, axis=0), paddle.repeat_interleave(self.pooled, n, axis=0)
        )

    def half(self, index):
        """The first (0) or second (1) half of the rows."""
        return TextCondition(self.embeds.chunk(2)[index], self.pooled.chunk(2)[index])

    def astype(self, dtype):
        return TextCondition(self.embeds.astype(dtype), self.pooled.astype(dtype))


@dataclasses.dataclass
class TextEncoders:
    """The three towers as the pipeline holds them; any pair may be None.

    ``joint_attention_dim`` and ``pooled_projection_dim`` are the transformer's: the widths of what is made here.
    """

    tokenizer: Any
    text_encoder: Any
    tokenizer_2: Any
    text_encoder_2: Any
    tokenizer_3: Any
    text_encoder_3: Any
    joint_attention_dim: int
    pooled_projection_dim: int
    dtype: Any
    clip_max_length: int = CLIP_MAX_LENGTH


def encode_conditions(encoders, texts, guided, num_images_per_prompt, max_sequence_length, clip_skip):
    """The conditions that guidance weighs against one another.

    Args:
        encoders (TextEncoders), texts (PromptInputs): checked, of B prompts.
        guided (bool): whether a negative condition is needed.
        num_images_per_prompt (int): n.
        max_sequence_length, clip_skip: as in ``encode_prompts``; ``clip_skip`` is for the positive prompts alone.

    Returns:
        (TextCondition, TextCondition or None): of B * n rows each; the negative one is None if not ``guided`` and
        not given.

    Raises:
        InputError: given embeddings do not fit the transformer or the condition of the other sign.
    """
    positive = _given(encoders, *texts.embeds())
    if positive is None:
        positive = encode_prompts(encoders, *texts.texts(), max_sequence_length, clip_skip)
    negative = _given(encoders, *texts.embeds("negative_"))
    if negative is None and guided:
        negative = encode_prompts(encoders, *texts.texts("negative_"), max_sequence_length)
    if negative is None:
        return positive.repeat(num_images_per_prompt), None
    if list(negative.embeds.shape) != list(positive.embeds.shape):
        raise InputError(
            f"The positive condition has the shape {list(positive.embeds.shape)} and the negative one "
            f"{list(negative.embeds.shape)}. Pass embeddings for both, or the max_sequence_length that the given one "
            "was encoded with."
        )
    return positive.repeat(num_images_per_prompt), negative.repeat(num_images_per_prompt)


def _given(encoders, embeds, pooled):
    if embeds is None:
        return None
    if embeds.shape[-1] != encoders.joint_attention_dim or pooled.shape[-1] != encoders.pooled_projection_dim:
        raise InputError(
            f"The given embeddings have the widths {embeds.shape[-1]} and {pooled.shape[-1]} (pooled); this "
            f"transformer takes {encoders.joint_attention_dim} and {encoders.pooled_projection_dim}. "
            "Encode with its own pipeline."
        )
    return TextCondition(embeds, pooled).astype(encoders.dtype)


def encode_prompts(encoders, prompt, prompt_2, prompt_3, max_sequence_length=256, clip_skip=None):
    """B prompts for each tower -> TextCondition.

    Args:
        encoders (TextEncoders)
        prompt, prompt_2, prompt_3 (list of B str): for CLIP-L, CLIP-G and T5.
        max_sequence_length (int): tokens that T5 gets, cut or padded to.
        clip_skip (int or None): how many more of CLIP's last layers to leave out; None or 0 is the layer before
            the last, which SD3 was trained on.

    Returns:
        TextCondition: embeds [B, clip_max_length + max_sequence_length, joint_attention_dim].
    """
    batch = len(prompt)
    clip = [
        _encode_clip("tokenizer", encoders.tokenizer, encoders.text_encoder, prompt, encoders, clip_skip),
        _encode_clip("tokenizer_2", encoders.tokenizer_2, encoders.text_encoder_2, prompt_2, encoders, clip_skip),
    ]
    t5 = _encode_t5(encoders, prompt_3, max_sequence_length)
    features, pooled = _join_clip(clip, encoders, batch)
    if features.shape[-1] > encoders.joint_attention_dim or pooled.shape[-1] != encoders.pooled_projection_dim:
        raise InputError(
            f"The CLIP encoders give features of width {features.shape[-1]} and pooled ones of {pooled.shape[-1]}; the "
            f"transformer takes at most {encoders.joint_attention_dim} and exactly {encoders.pooled_projection_dim}. "
            "Use the text encoders that belong to this transformer."
        )
    features = F.pad(features, [0, encoders.joint_attention_dim - features.shape[-1]], data_format="NCL")
    return TextCondition(paddle.concat([features, t5], axis=1), pooled)


def _encode_clip(name, tokenizer, encoder, prompts, encoders, clip_skip):
    """-> features [B, 77, d] and pooled [B, P] of one CLIP tower, or None if it is absent."""
    if encoder is None:
        return None
    length = encoders.clip_max_length
    ids = _tokenize(name, tokenizer, prompts, length, f"CLIP reads {length} tokens at most")
    output = encoder(ids, output_hidden_states=True)
    # hidden_states counts the embeddings and stops before final_layer_norm: [-2] is the layer before the last.
    features = output.hidden_states[-(2 + (clip_skip or 0))]
    return features.astype(encoders.dtype), output.text_embeds.astype(encoders.dtype)


def _join_clip(outputs, encoders, batch):
    """Both towers side by side. One that is absent leaves zeros where its numbers would be, so that the other
    stays in the columns that the transformer learnt to read it from."""
    present = [output for output in outputs if output is not None]
    if not present:
        features = paddle.zeros([batch, encoders.clip_max_length, encoders.joint_attention_dim], encoders.dtype)
        return features, paddle.zeros([batch, encoders.pooled_projection_dim], encoders.dtype)
    if len(present) == 1:
        features, pooled = present[0]
        # SD3's CLIP towers project to their own width, so the pooled columns left over give the missing width too.
        missing = encoders.pooled_projection_dim - pooled.shape[-1]
        zeros = (
            paddle.zeros([batch, features.shape[1], missing], encoders.dtype),
            paddle.zeros([batch, missing], encoders.dtype),
        )
        outputs = [zeros if output is None else output for output in outputs]
    return tuple(paddle.concat(parts, axis=-1) for parts in zip(*outputs))


def _encode_t5(encoders, prompts, max_sequence_length):
    """-> [B, max_sequence_length, joint_attention_dim]; zeros if T5 is absent."""
    if encoders.text_encoder_3 is None:
        shape = [len(prompts), max_sequence_length, encoders.joint_attention_dim]
        return paddle.zeros(shape, encoders.dtype)
    reason = f"max_sequence_length is {max_sequence_length} tokens (T5 takes up to 512)"
    ids = _tokenize("tokenizer_3", encoders.tokenizer_3, prompts, max_sequence_length, reason)
    return encoders.text_encoder_3(ids)[0].astype(encoders.dtype)


def _tokenize(name, tokenizer, prompts, length, reason):
    """-> ids [B, length] int64; warns about each prompt that loses its end."""
    if tokenizer is None:
        raise InputError(f"The pipeline has a text encoder but no `{name}` for it. Load both, or pass both as None.")
    tokens = tokenizer(prompts, padding="max_length", max_length=length, truncation=True)
    for prompt, removed in zip(prompts, getattr(tokens, "truncated", None) or ()):
        if removed:
            logger.warning("%s cut the end off a prompt, because %s: %r was removed.", name, reason, removed)
    return paddle.to_tensor(tokens.input_ids, dtype="int64")
