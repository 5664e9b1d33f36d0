"""Checks of a pipeline call's arguments, each with its remedy, before any work is done."""

import dataclasses
from typing import Any

from ...utils.errors import InputError

_TEXTS = ("prompt", "prompt_2", "prompt_3")
MAX_SEQUENCE_LENGTH = 512  # T5 was trained on no longer ones


def check_size(height, width, multiple, largest):
    """``height`` and ``width`` are positive multiples of ``multiple`` pixels and at most ``largest``."""
    for name, size in (("height", height), ("width", width)):
        if not isinstance(size, int) or isinstance(size, bool) or size <= 0:
            raise InputError(f"`{name}` is {size!r}; it has to be a positive number of pixels, e.g. {multiple * 8}.")
        if size % multiple:
            below, above = size - size % multiple, size - size % multiple + multiple
            nearest = f"{below} or {above}" if below else f"{above}"
            raise InputError(f"`{name}` is {size}, which is not divisible by {multiple}. Use {nearest}.")
        if size > largest:
            raise InputError(
                f"`{name}` is {size}, but this transformer's positional embedding ends at {largest} pixels "
                f"(pos_embed_max_size). Use {largest} or less."
            )


@dataclasses.dataclass
class PromptInputs:
    """What a call says about its pictures: as texts, or as the tensors that ``encode_prompt`` returns.

    A text is a str or a list of B str. ``prompt_2`` and ``prompt_3`` fall back on ``prompt`` if None or "", the
    negative ones on ``negative_prompt``, which falls back on "". One negative text serves the whole batch.
    """

    prompt: Any = None
    prompt_2: Any = None
    prompt_3: Any = None
    negative_prompt: Any = None
    negative_prompt_2: Any = None
    negative_prompt_3: Any = None
    prompt_embeds: Any = None
    negative_prompt_embeds: Any = None
    pooled_prompt_embeds: Any = None
    negative_pooled_prompt_embeds: Any = None

    @property
    def batch(self):
        """Number of prompts B."""
        if self.prompt is None:
            return int(self.prompt_embeds.shape[0])
        return 1 if isinstance(self.prompt, str) else len(self.prompt)

    def texts(self, sign=""):
        """The three texts; ``sign`` is ``""`` or ``"negative_"``. Each a list of B str."""
        first, second, third = (getattr(self, sign + name) for name in _TEXTS)
        first = first or ""
        return [[t] * self.batch if isinstance(t, str) else t for t in (first, second or first, third or first)]

    def embeds(self, sign=""):
        """``(embeds [B, L, D], pooled [B, P])``, or ``(None, None)``."""
        return getattr(self, sign + "prompt_embeds"), getattr(self, sign + "pooled_prompt_embeds")

    def check(self):
        """Texts or tensors, not both; lists as long as one another; tensors of matching shapes. Returns self."""
        for sign in ("", "negative_"):
            for name in (sign + name for name in _TEXTS):
                text = getattr(self, name)
                if text is not None and self.embeds(sign)[0] is not None:
                    raise InputError(f"Both `{name}` and `{sign}prompt_embeds` are given. Pass one of the two.")
                _check_text(name, text)
            _check_embeds(sign, *self.embeds(sign))
        if self.prompt is None and self.prompt_embeds is None:
            raise InputError("Neither `prompt` nor `prompt_embeds` is given. Pass one of the two.")
        self._check_counts()
        self._check_signs_agree()
        return self

    def _check_counts(self):
        for name in (*_TEXTS, *("negative_" + name for name in _TEXTS)):
            text = getattr(self, name)
            if not text or (isinstance(text, str) and name.startswith("negative_")):
                continue
            count = 1 if isinstance(text, str) else len(text)
            if count != self.batch:
                raise InputError(
                    f"`{name}` holds {count} texts, but there are {self.batch} prompts. Pass {self.batch}, or leave "
                    f"`{name}` out."
                )

    def _check_signs_agree(self):
        for name in ("prompt_embeds", "pooled_prompt_embeds"):
            positive, negative = getattr(self, name), getattr(self, "negative_" + name)
            if positive is not None and negative is not None and list(positive.shape) != list(negative.shape):
                raise InputError(
                    f"`{name}` has the shape {list(positive.shape)} and `negative_{name}` {list(negative.shape)}. They "
                    "have to be equal: encode both with the same max_sequence_length and as many prompts."
                )


@dataclasses.dataclass
class Call:
    """The arguments of a pipeline's call that all tasks share; they are explained where the call is."""

    texts: PromptInputs
    num_inference_steps: int
    guidance_scale: float
    num_images_per_prompt: int
    height: Any = None
    width: Any = None
    sigmas: Any = None
    generator: Any = None
    latents: Any = None
    ip_adapter_image: Any = None
    ip_adapter_image_embeds: Any = None
    output_type: str = "pil"
    return_dict: bool = True
    joint_attention_kwargs: Any = None
    clip_skip: Any = None
    callback_on_step_end: Any = None
    callback_on_step_end_tensor_inputs: Any = ("latents",)
    max_sequence_length: int = 256
    mu: Any = None
    guidance: Any = None
    skip_guidance_layers: Any = None
    skip_layer_guidance_scale: float = 2.8
    skip_layer_guidance_stop: float = 0.2
    skip_layer_guidance_start: float = 0.01

    @classmethod
    def of(cls, arguments):
        """``arguments`` (dict, the ``locals()`` of a call) -> (Call, dict of those that belong to the task)."""
        arguments = {name: value for name, value in arguments.items() if name not in ("self", "__class__")}
        texts, own = ({f.name for f in dataclasses.fields(kind)} for kind in (PromptInputs, cls))
        call = cls(
            texts=PromptInputs(**{name: value for name, value in arguments.items() if name in texts}),
            **{name: value for name, value in arguments.items() if name in own},
        )
        return call, {name: value for name, value in arguments.items() if name not in texts | own}

    @property
    def batch(self):
        """Number of pictures: each prompt's, one after the other."""
        return self.texts.batch * self.num_images_per_prompt

    @property
    def steps(self):
        """Number of steps of the whole schedule."""
        return self.num_inference_steps if self.sigmas is None else len(self.sigmas)


def check_guidance(call, num_layers):
    """``guidance`` is a guidance, and alone; else the numbers that make one go together."""
    if call.guidance is None:
        check_skip_layers(call.skip_guidance_layers, num_layers, call.guidance_scale > 1)
        return
    members = ("copies", "expand", "queries", "combine", "fit", "check")
    if not all(hasattr(call.guidance, name) for name in members):
        raise InputError(
            f"`guidance` is a {type(call.guidance).__name__}; pass an object such as ClassifierFreeGuidance(7.0), or "
            "leave it out and set guidance_scale."
        )
    if call.skip_guidance_layers is not None:
        raise InputError(
            "Both `guidance` and `skip_guidance_layers` are given. Pass guidance=SkipLayerGuidance(scale, layers)."
        )


def _check_text(name, text):
    if text is None or isinstance(text, str):
        return
    if not isinstance(text, list):
        raise InputError(f"`{name}` is a {type(text).__name__}; it has to be a str or a list of str.")
    if not text:
        raise InputError(f"`{name}` is an empty list. Pass at least one text.")
    for index, item in enumerate(text):
        if not isinstance(item, str):
            raise InputError(f"`{name}[{index}]` is a {type(item).__name__}; each entry has to be a str.")


def _check_embeds(sign, embeds, pooled):
    if embeds is None and pooled is None:
        return
    if embeds is None or pooled is None:
        given, missing = ("prompt_embeds", "pooled_prompt_embeds")[:: 1 if pooled is None else -1]
        raise InputError(
            f"`{sign}{given}` comes without `{sign}{missing}`. Pass both, as `encode_prompt` returns them."
        )
    if len(embeds.shape) != 3 or len(pooled.shape) != 2 or embeds.shape[0] != pooled.shape[0] or embeds.shape[0] < 1:
        raise InputError(
            f"`{sign}prompt_embeds` has the shape {list(embeds.shape)} and `{sign}pooled_prompt_embeds` "
            f"{list(pooled.shape)}; they have to be [B, L, D] and [B, P] of the same B >= 1."
        )


def check_whole(name, value, least, most=None):
    """``value`` is an int of at least ``least`` and at most ``most``."""
    whole = isinstance(value, int) and not isinstance(value, bool)
    if not whole or value < least or (most is not None and value > most):
        bounds = f"{least} or more" if most is None else f"from {least} to {most}"
        raise InputError(f"`{name}` is {value!r}; it has to be a whole number, {bounds}.")


def check_sequence_length(max_sequence_length):
    """T5's number of tokens is one that it can be given."""
    check_whole("max_sequence_length", max_sequence_length, 1, MAX_SEQUENCE_LENGTH)


def check_clip_skip(clip_skip, encoders):
    """Every CLIP encoder that is there has the layer that ``clip_skip`` asks for."""
    for encoder in encoders:
        if clip_skip is not None and encoder is not None:
            check_whole("clip_skip", clip_skip, 0, encoder.config.num_hidden_layers - 1)


def check_callback_tensors(names, allowed):
    """Every tensor that a callback asks for is one that it can have."""
    unknown = [name for name in names or () if name not in allowed]
    if unknown:
        raise InputError(f"`callback_on_step_end_tensor_inputs` names {unknown}; a callback can have {list(allowed)}.")


def check_skip_layers(layers, num_layers, guided):
    """Skip-layer guidance names layers that exist, and has a guidance to add to."""
    if layers is None:
        return
    wrong = [n for n in layers if not isinstance(n, int) or not 0 <= n < num_layers]
    if wrong:
        raise InputError(
            f"`skip_guidance_layers` names {wrong}, but the transformer's layers are 0 to {num_layers - 1}."
        )
    if not guided:
        raise InputError(
            "`skip_guidance_layers` only acts together with guidance. Set guidance_scale above 1, or leave them out."
        )


def check_dtypes(components):
    """No network is in a 16-bit dtype on the CPU, where Paddle has no matrix product for it."""
    for name, part in components.items():
        dtype = str(getattr(part, "dtype", "")).split(".")[-1]
        if dtype in ("float16", "bfloat16") and part.device.is_cpu_place():
            raise InputError(
                f"The `{name}` is {dtype} on the CPU, where Paddle computes in float32 only. Load with "
                "paddle_dtype='float32' and, to hold its weights in 16 bits, storage_dtype='float16'; or call "
                "pipe.to('float32'), or move the pipeline to a GPU."
            )


def check_device(device, own):
    """``device`` is None or the one that the pipeline is on."""
    kind = "cpu" if own.is_cpu_place() else "gpu"
    if device is not None and str(device).split(":")[0].replace("cuda", "gpu") not in (kind, str(own)):
        raise InputError(f"`device` is {device}, but the pipeline is on {own}. Call pipe.to({str(device)!r}) first.")
