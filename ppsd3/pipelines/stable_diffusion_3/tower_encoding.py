"""One text encoder at a time, under the names that diffusers and ppdiffusers give these steps of ``encode_prompt``."""

from __future__ import annotations

from typing import Any, Literal, cast

import paddle

from ...ops.shapes import repeat_rows
from ...serialization.tensors import floating_dtype
from ...utils.checking import checks_arguments
from ...utils.errors import InputError
from ...utils.paddle_internals import no_grad
from ...utils.threads import works_with_networks
from ...utils.types import Dtype
from ..call_signature import Texts
from . import checks
from .arguments import ClipSkip, Copies, SequenceLength
from .prompt_encoding import TextEncoders, encode_clip, encode_t5, read_tokens
from .prompt_inputs import PromptInputs

_SUFFIXES = ("", "_2")  # of the components' names, by clip_model_index


class TowerEncoding:
    """Methods of a pipeline that encode prompts by one of its text encoders. ``encode_prompt`` does it by all, with the
    negative prompt in the same batch, so that a tower is read once."""

    _text_encoders: Any

    @works_with_networks
    @no_grad
    @checks_arguments
    def _get_clip_prompt_embeds(
        self,
        prompt: Texts,
        num_images_per_prompt: Copies = 1,
        clip_skip: ClipSkip = None,
        clip_model_index: Literal[0, 1] = 0,
        device: Any = None,
    ) -> tuple[paddle.Tensor, paddle.Tensor]:
        """Prompts by CLIP-L (``clip_model_index`` 0) or CLIP-G (1).

        Args:
            prompt: a text or a list of B.
            num_images_per_prompt: n; each row comes n times in a row.
            clip_skip: how many more of the last layers than usual are left out.
            clip_model_index: which of the two.
            device: the one that the pipeline is on, or None.

        Returns:
            Features [B * n, 77, 768] and the pooled vector [B * n, 768]; of CLIP-G 1280 wide.

        Raises:
            InputError: an argument cannot be used, or the pipeline has no such encoder.
        """
        suffix = _SUFFIXES[clip_model_index]
        texts, encoders = self._texts_for_tower(prompt, device)
        checks.check_clip_skip(clip_skip, (encoders.text_encoder, encoders.text_encoder_2))
        length = encoders.clip_max_length
        tokens = read_tokens(encoders, suffix, [texts], length, f"CLIP reads {length} tokens at most", in_chunks=True)
        if tokens is None:
            raise InputError(f"The pipeline has no `text_encoder{suffix}`. Load it, or use encode_prompt without it.")
        features, pooled = cast(Any, encode_clip(encoders, suffix, tokens, [len(texts)], [clip_skip or 0]))
        return repeat_rows(features, num_images_per_prompt), repeat_rows(pooled, num_images_per_prompt)

    @works_with_networks
    @no_grad
    @checks_arguments
    def _get_t5_prompt_embeds(
        self,
        prompt: Texts,
        num_images_per_prompt: Copies = 1,
        max_sequence_length: SequenceLength = 256,
        device: Any = None,
        dtype: Dtype | None = None,
    ) -> paddle.Tensor:
        """Prompts by T5: [B * n, max_sequence_length, 4096]; zeros where the pipeline has no T5.

        Args:
            prompt, num_images_per_prompt, device: as in :meth:`_get_clip_prompt_embeds`.
            max_sequence_length: tokens, up to 512; ppdiffusers has 77.
            dtype: of the result; default the transformer's.

        Raises:
            InputError: an argument cannot be used.
        """
        texts, encoders = self._texts_for_tower(prompt, device)
        rows = encode_t5(encoders, [texts], max_sequence_length).astype(
            encoders.dtype if dtype is None else floating_dtype(dtype, "dtype")
        )
        return repeat_rows(rows, num_images_per_prompt)

    def _texts_for_tower(self, prompt: Texts, device: Any):
        checks.check_device(device, self.device)  # type: ignore[attr-defined]
        encoders: TextEncoders = self._text_encoders()
        return PromptInputs(prompt).check(self).texts()[0], encoders
