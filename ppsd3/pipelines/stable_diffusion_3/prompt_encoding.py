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

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import paddle
import paddle.nn.functional as F

from ...ops.shapes import repeat_rows
from ...transformers import CLIPTextModelWithProjection, CLIPTokenizer, T5EncoderModel, T5Tokenizer
from ...utils.errors import InputError
from ...utils.finite import check_finite
from .prompt_reading import PromptReader

if TYPE_CHECKING:
    from .prompt_cache import PromptCache
    from .prompt_inputs import PromptInputs

CLIP_MAX_LENGTH = 77  # when no CLIP tokenizer is there to ask


@dataclasses.dataclass
class TextCondition:
    """``embeds`` [B, L, joint_attention_dim] and ``pooled`` [B, pooled_projection_dim]; and of a picture beside the
    text, for an IP-adapter, ``image_embeds`` [B, T, E]."""

    embeds: paddle.Tensor
    pooled: paddle.Tensor
    image_embeds: paddle.Tensor | None = None
    _halves: dict[int, TextCondition] = dataclasses.field(default_factory=dict, init=False, repr=False, compare=False)

    @classmethod
    def cat(cls, conditions: Sequence[TextCondition]) -> TextCondition:
        """The conditions one after the other on the batch axis; all have a picture, or none."""
        pictures = [c.image_embeds for c in conditions if c.image_embeds is not None]
        return cls(
            paddle.concat([c.embeds for c in conditions]),
            paddle.concat([c.pooled for c in conditions]),
            paddle.concat(pictures) if pictures else None,
        )

    def repeat(self, n: int) -> TextCondition:
        """Each row ``n`` times in a row: p0, p0, p1, p1 (the order of pictures for num_images_per_prompt = n)."""
        return self if n == 1 else self._of_each(lambda part: repeat_rows(part, n))

    def half(self, index: int) -> TextCondition:
        """The first (0) or second (1) half of the rows; the same object at each call, so what is prepared of it once
        serves every step."""
        if index not in self._halves:
            self._halves[index] = self._of_each(lambda part: part.chunk(2)[index])
        return self._halves[index]

    def astype(self, dtype: Any) -> TextCondition:
        """The same in another dtype."""
        return self._of_each(lambda part: part.astype(dtype))

    def with_image(self, image_embeds: paddle.Tensor | None) -> TextCondition:
        """The same text with a picture (or without, for None)."""
        return dataclasses.replace(self, image_embeds=image_embeds)

    def with_text(self, embeds: paddle.Tensor, pooled: paddle.Tensor) -> TextCondition:
        """Another text; if it has half the rows, they are the second half, and of the picture that half is kept."""
        image_embeds = self.image_embeds
        if image_embeds is not None and image_embeds.shape[0] == 2 * embeds.shape[0]:
            image_embeds = image_embeds.chunk(2)[1]
        return TextCondition(embeds, pooled, image_embeds)

    def _of_each(self, function):
        picture = None if self.image_embeds is None else function(self.image_embeds)
        return TextCondition(function(self.embeds), function(self.pooled), picture)


@dataclasses.dataclass
class TextEncoders:
    """The three towers as the pipeline holds them; any pair may be None.

    ``joint_attention_dim`` and ``pooled_projection_dim`` are the transformer's: the widths of what is made here.
    ``using``: name of a tower -> context manager that gives the tower, ready to compute.
    ``reader``: makes tokens of prompts.
    """

    tokenizer: CLIPTokenizer | None
    text_encoder: CLIPTextModelWithProjection | None
    tokenizer_2: CLIPTokenizer | None
    text_encoder_2: CLIPTextModelWithProjection | None
    tokenizer_3: T5Tokenizer | None
    text_encoder_3: T5EncoderModel | None
    joint_attention_dim: int
    pooled_projection_dim: int
    dtype: Any
    clip_max_length: int = CLIP_MAX_LENGTH
    using: Callable[[str], contextlib.AbstractContextManager[Any]] | None = None
    reader: PromptReader = dataclasses.field(default_factory=PromptReader)

    @property
    def any_there(self) -> bool:
        """Whether at least one tower is there."""
        return any(part is not None for part in (self.text_encoder, self.text_encoder_2, self.text_encoder_3))

    def tower(self, name: str) -> contextlib.AbstractContextManager[Any]:
        """Context manager that gives the tower ``name``: towers are needed one after the other."""
        return contextlib.nullcontext(getattr(self, name)) if self.using is None else self.using(name)


@dataclasses.dataclass
class Request:
    """B texts for each tower, and how many more of CLIP's last layers than usual to leave out (None or 0: the layer
    before the last is read, which SD3 was trained on)."""

    prompt: Sequence[str]
    prompt_2: Sequence[str]
    prompt_3: Sequence[str]
    clip_skip: int | None = None


def encode_conditions(
    encoders: TextEncoders,
    texts: PromptInputs,
    guided: bool,
    num_images_per_prompt: int,
    max_sequence_length: int,
    clip_skip: int | None,
    cache: PromptCache | None = None,
) -> tuple[TextCondition, TextCondition | None]:
    """The conditions that guidance weighs against one another.

    Args:
        encoders, texts: checked, of B prompts.
        guided: whether a negative condition is needed.
        num_images_per_prompt: n.
        max_sequence_length: as in ``encode_prompts``.
        clip_skip: as in ``Request``, for the positive prompts alone.
        cache: what was encoded before.

    Returns:
        Positive and negative condition, of B * n rows each; the negative one is None if not ``guided`` and
        not given.

    Raises:
        InputError: given embeddings do not fit the transformer or the condition of the other sign.
    """
    positive, negative = _given(encoders, *texts.embeds()), _given(encoders, *texts.embeds("negative_"))
    requests = []
    if negative is None and guided:
        if positive is not None and not encoders.any_there:
            raise _no_negative()
        requests.append(Request(*texts.texts("negative_")))
    if positive is None:
        requests.append(Request(*texts.texts(), clip_skip=clip_skip))
    if cache is None:
        encoded = encode_prompts(encoders, requests, max_sequence_length)
    else:
        encoded = cache.encode(encode_prompts, encoders, requests, max_sequence_length)
    if positive is None:
        positive = encoded.pop()
    if encoded:
        negative = encoded.pop()
    if negative is None:
        return positive.repeat(num_images_per_prompt), None
    if list(negative.embeds.shape) != list(positive.embeds.shape):
        raise _different_shapes(positive, negative)
    return positive.repeat(num_images_per_prompt), negative.repeat(num_images_per_prompt)


def _no_negative():
    return InputError(
        "Guidance needs `negative_prompt_embeds` and `negative_pooled_prompt_embeds` too: the pipeline has no text "
        "encoder for a negative prompt. Pass them, or guidance_scale=1."
    )


def _different_shapes(positive, negative):
    return InputError(
        f"The positive condition has the shape {list(positive.embeds.shape)} and the negative one "
        f"{list(negative.embeds.shape)}. Pass embeddings for both, or the max_sequence_length that the given one "
        "was encoded with."
    )


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


def encode_prompts(
    encoders: TextEncoders, requests: list[Request], max_sequence_length: int = 256
) -> list[TextCondition]:
    """Prompts for each tower -> conditions. A tower reads all requests at once.

    Args:
        encoders, requests: what reads, and what is read.
        max_sequence_length: tokens that T5 gets, cut or padded to.

    Returns:
        Of each request: embeds [B, chunks * clip_max_length + max_sequence_length, joint_attention_dim]; chunks
        is 1, unless the reader goes on in further rows.
    """
    if not requests:
        return []
    sizes = [len(request.prompt) for request in requests]
    skips = [request.clip_skip or 0 for request in requests]
    length, reason = encoders.clip_max_length, f"CLIP reads {encoders.clip_max_length} tokens at most"
    clip_tokens = [
        read_tokens(encoders, "", [r.prompt for r in requests], length, reason, in_chunks=True),
        read_tokens(encoders, "_2", [r.prompt_2 for r in requests], length, reason, in_chunks=True),
    ]
    chunks = max((tokens.chunks for tokens in clip_tokens if tokens is not None), default=1)
    clip = [
        encode_clip(encoders, suffix, tokens and tokens.with_chunks(chunks), sizes, skips)
        for suffix, tokens in zip(("", "_2"), clip_tokens)
    ]
    t5 = encode_t5(encoders, [r.prompt_3 for r in requests], max_sequence_length)
    made = zip(("text_encoder", "text_encoder_2", "text_encoder_3"), (*clip, [t5]))
    check_finite(*((name, part) for name, parts in made for part in parts or ()))
    features, pooled = _join_clip(clip, encoders, sum(sizes))
    if features.shape[-1] > encoders.joint_attention_dim or pooled.shape[-1] != encoders.pooled_projection_dim:
        raise _other_widths(encoders, features, pooled)
    features = F.pad(features, [0, encoders.joint_attention_dim - features.shape[-1]], data_format="NCL")
    embeds = paddle.concat([features, t5], axis=1)
    return [TextCondition(*rows) for rows in zip(_split(embeds, sizes), _split(pooled, sizes))]


def _other_widths(encoders, features, pooled):
    return InputError(
        f"The CLIP encoders give features of width {features.shape[-1]} and pooled ones of {pooled.shape[-1]}; the "
        f"transformer takes at most {encoders.joint_attention_dim} and exactly {encoders.pooled_projection_dim}. "
        "Use the text encoders that belong to this transformer."
    )


def _split(rows, sizes):
    return paddle.split(rows, sizes) if len(sizes) > 1 else [rows]


def encode_clip(encoders, suffix, tokens, sizes, skips):
    """-> features [sum of B, chunks * 77, d] and pooled [sum of B, P] of one CLIP tower, or None if it is absent.

    Args:
        suffix: of the components' names.
        tokens: of all requests.
        sizes, skips: of each request, its B and how many more layers it leaves out.
    """
    if tokens is None:
        return None
    with encoders.tower("text_encoder" + suffix) as encoder:
        output = encoder(tokens.rows(), output_hidden_states=True)
    features = []
    for first, size, skip in zip(itertools.accumulate(sizes, initial=0), sizes, skips):
        # hidden_states counts the embeddings and stops before final_layer_norm: [-2] is the layer before the last.
        features.append(_weighted(encoders, output.hidden_states[-2 - skip], tokens, first, size))
    features = paddle.concat(features) if len(features) > 1 else features[0]
    pooled = output.text_embeds[: sum(sizes) * tokens.chunks : tokens.chunks]  # of each prompt's first row
    return features.astype(encoders.dtype), pooled.astype(encoders.dtype)


def _weighted(encoders, states, tokens, first, size):
    """The features [size, chunks * L, d] of the prompts from ``first`` on, out of the ``states`` of all rows."""
    rows = states[first * tokens.chunks : (first + size) * tokens.chunks].reshape([size, -1, states.shape[-1]])
    if tokens.weights is None:
        return rows
    weights = paddle.to_tensor(tokens.weights[first : first + size].reshape(size, -1, 1)).astype(rows.dtype)
    return encoders.reader.emphasize(rows, states[-1:].tile([1, tokens.chunks, 1]), weights)


def _join_clip(outputs, encoders, batch):
    """Both towers side by side: features [batch, L, d + d'] and pooled [batch, P + P']."""
    if any(output is None for output in outputs):
        outputs = _with_zeros(outputs, encoders, batch)
    return tuple(paddle.concat(parts, axis=-1) for parts in zip(*outputs))


def _with_zeros(outputs, encoders, batch):
    """``outputs`` with zeros where the numbers of an absent tower would be, so that the other stays in the columns that
    the transformer learnt to read it from."""

    def zeros(length, width, pooled_width):
        return (
            paddle.zeros([batch, length, width], encoders.dtype),
            paddle.zeros([batch, pooled_width], encoders.dtype),
        )

    present = [output for output in outputs if output is not None]
    if not present:
        return [zeros(encoders.clip_max_length, encoders.joint_attention_dim, encoders.pooled_projection_dim)]
    features, pooled = present[0]
    # SD3's CLIP towers project to their own width, so the pooled columns left over give the missing width too.
    missing = encoders.pooled_projection_dim - pooled.shape[-1]
    absent = zeros(features.shape[1], missing, missing)
    return [absent if output is None else output for output in outputs]


def encode_t5(encoders, prompts, max_sequence_length):
    """-> [sum of B, max_sequence_length, joint_attention_dim]; zeros if T5 is absent."""
    count = sum(len(some) for some in prompts)
    reason = f"max_sequence_length is {max_sequence_length} tokens (T5 takes up to 512)"
    tokens = read_tokens(encoders, "_3", prompts, max_sequence_length, reason, in_chunks=False)
    if tokens is None:
        return paddle.zeros([count, max_sequence_length, encoders.joint_attention_dim], encoders.dtype)
    with encoders.tower("text_encoder_3") as encoder:
        states = encoder(tokens.rows())[0]
    return _weighted(encoders, states, tokens, 0, count).astype(encoders.dtype)


def read_tokens(encoders, suffix, prompts, length, reason, in_chunks):
    """-> PromptTokens of all requests' ``prompts`` (lists of str) for one tower, or None if it is absent."""
    name = "tokenizer" + suffix
    tokenizer = getattr(encoders, name)
    if getattr(encoders, "text_encoder" + suffix) is None:
        return None
    if tokenizer is None:
        raise InputError(f"The pipeline has a text encoder but no `{name}` for it. Load both, or pass both as None.")
    return encoders.reader.read(name, tokenizer, sum(prompts, []), length, reason, in_chunks)
