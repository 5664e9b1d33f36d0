"""Checks of a call's arguments, each with its remedy, before any work is done."""

from ...utils.device import device_name
from ...utils.errors import InputError
from .guidance import Guidance

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


def check_picture_size(pipe, height, width):
    """``pipe`` can draw so many pixels."""
    multiple = pipe.vae_scale_factor * pipe.patch_size
    check_size(height, width, multiple, pipe.transformer.config.pos_embed_max_size * multiple)


def check_guidance(arguments, num_layers):
    """``guidance`` is a :class:`Guidance`, and the only one; skip-layer guidance names layers that exist."""
    guidance, layers = getattr(arguments, "guidance", None), getattr(arguments, "skip_guidance_layers", None)
    if guidance is None:
        check_skip_layers(layers, num_layers, arguments.guidance_scale > 1)
        return
    if not isinstance(guidance, Guidance):
        raise InputError(
            f"`guidance` is a {type(guidance).__name__}; pass an object such as ClassifierFreeGuidance(7.0) (your own "
            "is a subclass of ppsd3.Guidance), or leave it out and set guidance_scale."
        )
    if layers is not None:
        raise InputError(
            "Both `guidance` and `skip_guidance_layers` are given. Pass guidance=SkipLayerGuidance(scale, layers)."
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
    own = device_name(own) or str(own)
    if device is not None and device_name(device) not in (own, own.partition(":")[0]):
        raise InputError(f"`device` is {device}, but the pipeline is on {own}. Call pipe.to({str(device)!r}) first.")
