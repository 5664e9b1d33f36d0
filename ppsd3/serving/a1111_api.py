"""A1111's API below ``/sdapi/v1``: txt2img, img2img, options, progress, interrupt, sd-models, samplers.

Its fields are named as there. One that asks for what this server does not do (upscaling, face restoration, scripts) is
refused, unless it has the value by which A1111 leaves it out.
"""

# No `from __future__ import annotations`: FastAPI reads the types of the routes.
import asyncio
import json
import time
from typing import Any

from ..cli.options import SCHEDULERS
from ..utils.errors import InputError
from ..utils.json_files import parse_json_object
from ..utils.samplers import explain_option
from .jobs import Cancelled
from .service import HTTPError, Service, decode_base64, decode_picture, encode_picture, settings_of

# A1111's names of samplers -> ours.
SAMPLERS = {
    "Euler": "euler",
    "Heun": "heun",
    "LCM": "lcm",
    "DPM++ 2M": "dpm",
    "DPM++ 2M SDE": "dpm-sde",
    "UniPC": "unipc",
}

# A1111's fields that are arguments of the call.
_ARGUMENTS = {
    "prompt": "prompt",
    "negative_prompt": "negative_prompt",
    "steps": "num_inference_steps",
    "cfg_scale": "guidance_scale",
    "width": "width",
    "height": "height",
}
# Fields that another field switches on, off by default: without it they say nothing in A1111 either.
_ASLEEP = (
    *("firstphase_width", "firstphase_height", "subseed", "seed_resize_from_h", "seed_resize_from_w", "script_args"),
    *("image_cfg_scale", "override_settings_restore_afterwards", "do_not_save_samples", "do_not_save_grid", "eta"),
    *("s_churn", "s_tmax", "s_tmin", "s_noise", "s_min_uncond", "sampler_index", "include_init_images"),
)
# Fields -> the values by which they ask for nothing.
_OFF = {
    "enable_hr": (False,),
    "restore_faces": (False,),
    "tiling": (False,),
    "styles": ([],),
    "subseed_strength": (0,),
    "script_name": ("",),
    "alwayson_scripts": ({},),
    "save_images": (False,),
    "send_images": (True,),
    "scheduler": ("automatic", "Automatic"),
    "resize_mode": (0,),
    "initial_noise_multiplier": (1,),
}
_MOST_BLUR = 256


def add_routes(app: Any, service: Service) -> None:
    """Adds the routes to a FastAPI application."""
    from fastapi import Request

    engine, catalog = service.engine, service.catalog

    @app.post("/sdapi/v1/txt2img")
    async def txt2img(request: Request):
        """Draws from a prompt."""
        fields = parse_json_object(await request.body(), "The body", InputError)
        fields.pop("denoising_strength", None)  # of the second pass, which `enable_hr` asks for
        return await answer(request, "generate", dict(fields), {})

    @app.post("/sdapi/v1/img2img")
    async def img2img(request: Request):
        """Draws from a picture, or a marked part of it anew."""
        service.key_of(request.headers)
        fields = parse_json_object(await request.body(), "The body", InputError)
        task = "img2img" if fields.get("mask") is None else "inpaint"
        return await answer(request, task, fields, await asyncio.to_thread(_pictures, fields))

    async def answer(request, task, fields, values):
        key = service.key_of(request.headers)
        asked = dict(fields)
        override = fields.pop("override_settings", None) or {}
        if not isinstance(override, dict):
            raise InputError(f"`override_settings` is a {type(override).__name__}; it is an object of options.")
        seed, model = fields.pop("seed", None), override.pop("sd_model_checkpoint", None)
        if not isinstance(model, (str, type(None))):
            raise InputError(f"`sd_model_checkpoint` is a {type(model).__name__}; it is a model's name.")
        scheduler = _sampler(fields)
        _refuse(override, "override_settings.")
        values.update(_values(fields))
        seed = None if seed in (None, -1) else _number("seed", seed)
        job = await asyncio.to_thread(service.submit, key, task, values, seed, scheduler, model, True)
        job.future.add_done_callback(lambda future: service.log_job(job, key))
        try:
            pictures = await service.finished(job, request)
        except Cancelled:  # what `interrupt` leaves is the answer
            pictures = [picture for picture in job.pictures if picture is not None]
        settings = [settings_of(service, job, index) for index in range(len(pictures))]
        encoded = [await asyncio.to_thread(encode_picture, picture, each) for picture, each in zip(pictures, settings)]
        asked = {name: value for name, value in asked.items() if name not in ("init_images", "mask")}
        return {"images": encoded, "parameters": asked, "info": json.dumps(_info(job, settings, pictures))}

    @app.get("/sdapi/v1/progress")
    async def progress(request: Request, skip_current_image: bool = False):
        """How far the asking key's first job is."""
        jobs = service.jobs_of(service.key_of(request.headers))
        job = next(iter(jobs), None)
        preview = None if job is None or skip_current_image else next((p for p in job.previews if p is not None), None)
        step = 0 if job is None else max(row.step if row.state == "drawing" else 0 for row in job.rows)
        state = {
            "skipped": False,
            "interrupted": False,
            "job": "" if job is None else job.id,
            "job_count": len(jobs),
            "job_no": 0,
            "job_timestamp": time.strftime("%Y%m%d%H%M%S"),
            "sampling_step": step,
            "sampling_steps": 0 if job is None else job.steps,
        }
        return {
            "progress": 0.0 if job is None else job.progress,
            "eta_relative": 0.0 if job is None else engine.seconds_left(job) or 0.0,
            "state": state,
            "current_image": None if preview is None else await asyncio.to_thread(encode_picture, preview, {}),
            "textinfo": None,
        }

    @app.post("/sdapi/v1/interrupt")
    async def interrupt(request: Request):
        """Cancels the asking key's jobs that are drawn."""
        for job in service.jobs_of(service.key_of(request.headers)):
            if job.state == "drawing":
                job.cancel()
        return {}

    @app.get("/sdapi/v1/options")
    async def options(request: Request):
        """The model that requests get unasked."""
        service.key_of(request.headers)
        name = await asyncio.to_thread(catalog.name_of, engine.choice)
        return {"sd_model_checkpoint": name, "sd_checkpoint_hash": None, "samples_format": "png"}

    @app.post("/sdapi/v1/options")
    async def set_options(request: Request):
        """Loads another model in its place; what waits is drawn by it."""
        key = service.key_of(request.headers)
        fields = parse_json_object(await request.body(), "The body", InputError)
        name = fields.pop("sd_model_checkpoint", None)
        _refuse(fields)
        if name is not None:
            if not key.admin:
                raise HTTPError(403, "This key may not change the model of all others.", "not_admin")
            choice = await asyncio.to_thread(catalog.choice, str(name))
            if choice != engine.choice:
                await asyncio.wrap_future(engine.load(choice))
        return

    @app.get("/sdapi/v1/sd-models")
    async def sd_models(request: Request):
        """The models that may be asked for."""
        service.key_of(request.headers)
        names = await asyncio.to_thread(catalog.names)
        rest = {"hash": None, "sha256": None, "config": None}
        return [{"title": name, "model_name": name, "filename": name, **rest} for name in names]

    @app.get("/sdapi/v1/samplers")
    async def samplers(request: Request):
        """The samplers, by A1111's names."""
        service.key_of(request.headers)
        return [{"name": name, "aliases": [ours], "options": {}} for name, ours in SAMPLERS.items()]


def _values(fields):
    """Arguments of the call, taken out of ``fields``; what is left over is refused."""
    values = {name: fields.pop(field) for field, name in _ARGUMENTS.items() if fields.get(field) is not None}
    count = _number("batch_size", fields.pop("batch_size", None) or 1)
    repeats = _number("n_iter", fields.pop("n_iter", None) or 1)
    values["num_images_per_prompt"] = count * repeats
    said = {name: value for name, value in fields.items() if not name.startswith("hr_") and name not in _ASLEEP}
    _refuse({name: value for name, value in said.items() if value not in _OFF.get(name, ())})
    return values


def _refuse(fields, prefix=""):
    for name, value in fields.items():
        if value is not None:
            raise InputError(f"`{prefix}{name[:100]}` asks for what this server does not do. Leave it out.")


def _number(name, value):
    if isinstance(value, bool) or not isinstance(value, int) or abs(value) > 2**64:
        raise InputError(f"`{name}` is {str(value)[:100]!r}; it is a whole number.")
    return value


def _sampler(fields):
    name = fields.pop("sampler_name", None) or fields.get("sampler_index")
    if name is None or name == "":
        return None
    if not isinstance(name, str) or SAMPLERS.get(name, name) not in SCHEDULERS:
        said = explain_option(name, SCHEDULERS) if isinstance(name, str) else None
        raise InputError(f"{said or 'There is no such sampler'}. The samplers are {', '.join(SAMPLERS)}.")
    return SAMPLERS.get(name, name)


def _pictures(fields):
    """The pictures among A1111's fields, and what is said of them, taken out."""
    from PIL import ImageOps

    from ..pipelines import VaeImageProcessor

    pictures = fields.pop("init_images", None)
    if not isinstance(pictures, list) or len(pictures) != 1:
        raise InputError("`init_images` is a list of one picture as a base64 text.")
    values: dict[str, Any] = {"image": decode_picture(decode_base64(pictures[0], "init_images"), "init_images")}
    strength = fields.pop("denoising_strength", None)
    if strength is not None:
        values["strength"] = strength
    mask, blur = fields.pop("mask", None), fields.pop("mask_blur", None)
    blur = max((fields.pop(name, None) or 0 for name in ("mask_blur_x", "mask_blur_y")), default=0) or blur
    invert, fill = fields.pop("inpainting_mask_invert", None), fields.pop("inpainting_fill", None)
    whole, padding = fields.pop("inpaint_full_res", None), fields.pop("inpaint_full_res_padding", None)
    if mask is None:
        return values
    if fill not in (None, 1):
        raise InputError("`inpainting_fill` is 1 here: what is drawn anew begins with the picture itself.")
    mask = decode_picture(decode_base64(mask, "mask"), "mask", 1)
    if mask.size != values["image"].size:
        raise InputError(f"`mask` is {mask.size} pixels and the picture {values['image'].size}. Make them of one size.")
    if blur:
        if not 0 <= _number("mask_blur", blur) <= _MOST_BLUR:
            raise InputError(f"`mask_blur` is from 0 to {_MOST_BLUR}.")
        mask = VaeImageProcessor.blur(mask, blur)
    values["mask_image"] = ImageOps.invert(mask) if invert else mask
    if whole:
        values["padding_mask_crop"] = _number("inpaint_full_res_padding", padding or 0)
    return values


def _info(job, settings, pictures):
    """A1111's ``info``: what was drawn, with the seeds that were chosen."""
    from ..cli.png import describe

    request, size = job.request, pictures[0].size if pictures else (0, 0)
    prompt, negative = (request.arguments.get(name, "") for name in ("prompt", "negative_prompt"))
    return {
        "prompt": prompt,
        "all_prompts": [prompt] * len(pictures),
        "negative_prompt": negative,
        "all_negative_prompts": [negative] * len(pictures),
        "seed": request.seeds[0],
        "all_seeds": list(request.seeds[: len(pictures)]),
        "width": size[0],
        "height": size[1],
        "steps": job.steps,
        "cfg_scale": request.arguments.get("guidance_scale"),
        "sampler_name": next((name for name, ours in SAMPLERS.items() if ours == request.scheduler), None),
        "batch_size": len(pictures),
        "sd_model_name": settings[0]["model"] if settings else None,
        "infotexts": [describe(each) for each in settings],
    }
