"""Checks of a call's arguments that depend on the pipeline or on one another, each with its remedy, before any work.

What a value has to be by itself is declared with the argument, in ``arguments.py``.
"""

from typing import Optional

import paddle

from ...ops.shapes import cast
from ...utils.checking import fit
from ...utils.device import can_compute, device_name
from ...utils.errors import InputError


def check_size(height, width, multiple, largest):
    """``height`` and ``width`` are multiples of ``multiple`` pixels and at most ``largest``."""
    for name, size in (("height", height), ("width", width)):
        if size % multiple:
            below, above = size - size % multiple, size - size % multiple + multiple
            nearest = f"{below} or {above}" if below else f"{above}"
            raise InputError(f"`{name}` is {size}, which is not divisible by {multiple}. Use {nearest}.")
        if size > largest:
            raise InputError(
                f"`{name}` is {size}, but this transformer's positional embedding ends at {largest} pixels "
                f"(pos_embed_max_size). Use {largest} or less."
            )


def check_guidance(arguments, num_layers):
    """``guidance`` is the only one; skip-layer guidance names layers that exist, and has a guidance to add to."""
    guidance, layers = getattr(arguments, "guidance", None), getattr(arguments, "skip_guidance_layers", None)
    if layers is not None:
        _check_skip_layers(layers, num_layers, guidance, arguments.guidance_scale > 1)


def check_clip_skip(clip_skip, encoders):
    """Every CLIP encoder that is there has the layer that ``clip_skip`` asks for."""
    most = min((e.config.num_hidden_layers - 1 for e in encoders if e is not None), default=None)
    if clip_skip is not None and most is not None and clip_skip > most:
        raise InputError(f"`clip_skip` is {clip_skip}; these text encoders have layers for numbers from 0 to {most}.")


def check_callback_tensors(names, allowed):
    """Every tensor that a callback asks for is one that it can have."""
    unknown = [name for name in names or () if name not in allowed]
    if unknown:
        raise InputError(f"`callback_on_step_end_tensor_inputs` names {unknown}; a callback can have {list(allowed)}.")


def callback_result(result, latents):
    """What a callback returned, as a dict of tensors in the dtype of ``latents``; its latents have their shape."""
    changed = fit("what the callback returned", {} if result is None else result, dict[str, Optional[paddle.Tensor]])
    if changed.get("latents", latents).shape != latents.shape:
        raise InputError(
            f"A callback returned latents of the shape {list(changed['latents'].shape)}, and this call draws "
            f"{list(latents.shape)}."
        )
    return {name: None if tensor is None else cast(tensor, latents.dtype) for name, tensor in changed.items()}


def _check_skip_layers(layers, num_layers, guidance, guided):
    if guidance is not None:
        raise InputError(
            "Both `guidance` and `skip_guidance_layers` are given. Pass guidance=SkipLayerGuidance(scale, layers)."
        )
    wrong = [n for n in layers if n >= num_layers]
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
        if not can_compute(part):
            raise InputError(
                f"The `{name}` is {str(part.dtype).rpartition('.')[-1]} on the CPU, where Paddle computes in float32 "
                "only. Load with paddle_dtype='float32' and, to hold its weights in 16 bits, storage_dtype='float16'; "
                "or call pipe.to('float32'), or move the pipeline to a GPU."
            )


def check_device(device, own):
    """``device`` is None or the one that the pipeline is on."""
    own = device_name(own) or str(own)
    if device is not None and device_name(device) not in (own, own.partition(":")[0]):
        raise InputError(f"`device` is {device}, but the pipeline is on {own}. Call pipe.to({str(device)!r}) first.")
