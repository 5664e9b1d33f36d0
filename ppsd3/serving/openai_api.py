"""OpenAI's images API: ``/v1/images/generations``, ``/v1/images/edits``, ``/v1/models``.

Beside OpenAI's fields a request may have every argument of the call (``num_inference_steps``, ``guidance_scale``,
``negative_prompt``, ...), ``seed`` and ``scheduler``.
"""

# No `from __future__ import annotations`: FastAPI reads the types of the routes.
import asyncio
import json
import time
from typing import Any

from ..utils.errors import InputError
from ..utils.json_files import parse_json_object
from .requests import call_arguments_of
from .service import HTTPError, Service, decode_picture, encode_picture, http_error, settings_of

_FORMATS = {"png": "PNG", "jpeg": "JPEG", "webp": "WEBP"}
# Fields of OpenAI's that have one meaning here -> the values that ask for it.
_FIXED = {
    "response_format": ("b64_json",),
    "background": ("auto", "opaque"),
    "quality": ("auto", "standard"),
    "moderation": ("auto", "low"),
    "style": (),
    "input_fidelity": (),
}
_NOTES = ("user", "safety_identifier")  # about who asks; not kept
_MOST_PARTIAL = 3
_MOST_FIELDS, _MOST_FILES = 100, 4


def add_routes(app: Any, service: Service) -> None:
    """Adds the routes to a FastAPI application."""
    from fastapi import Request
    from fastapi.responses import JSONResponse, StreamingResponse

    @app.get("/v1/models")
    async def models(request: Request):
        """The models that may be asked for."""
        service.key_of(request.headers)
        names = await asyncio.to_thread(service.catalog.names)
        entries = [{"id": name, "object": "model", "created": 0, "owned_by": "ppsd3"} for name in names]
        return {"object": "list", "data": entries}

    @app.get("/v1/models/{name:path}")
    async def model(request: Request, name: str):
        """One of them."""
        service.key_of(request.headers)
        if name not in await asyncio.to_thread(service.catalog.names):
            raise HTTPError(404, f"There is no model {name[:100]!r}.", "model_not_found")
        return {"id": name, "object": "model", "created": 0, "owned_by": "ppsd3"}

    @app.post("/v1/images/generations")
    async def generations(request: Request):
        """Draws from a prompt."""
        key = service.key_of(request.headers)
        fields = parse_json_object(await request.body(), "The body", InputError)
        return await answer(request, key, "generate", fields)

    @app.post("/v1/images/edits")
    async def edits(request: Request):
        """Draws from a picture, or what is transparent in a mask anew."""
        key = service.key_of(request.headers)
        if not request.headers.get("content-type", "").startswith("multipart/form-data"):
            raise InputError("The body is not multipart/form-data, in which pictures are sent here.")
        fields = {}
        async with request.form(max_files=_MOST_FILES, max_fields=_MOST_FIELDS, max_part_size=1 << 20) as form:
            for name, value in form.multi_items():
                name = name.removesuffix("[]")
                if name in fields:
                    raise InputError(f"`{name[:100]}` is given twice, and one is taken. Send one.")
                fields[name] = value if isinstance(value, str) else await value.read()
        task = "inpaint" if "mask" in fields else "img2img"
        fields = await asyncio.to_thread(_from_form, task, fields)
        return await answer(request, key, task, fields)

    async def answer(request, key, task, fields):
        asked = _Asked(fields)
        seed, scheduler, model = (asked.fields.pop(name, None) for name in ("seed", "scheduler", "model"))
        for name, value in (("scheduler", scheduler), ("model", model)):
            if value is not None and not isinstance(value, str):
                raise InputError(f"`{name}` is a {type(value).__name__}; it is a text.")
        seed = None if seed is None else _whole("seed", seed)
        job = await asyncio.to_thread(
            service.submit, key, task, asked.fields, seed, scheduler, model, bool(asked.partial_images)
        )
        job.future.add_done_callback(lambda future: service.log_job(job, key))

        async def encoded(index, picture):
            settings = settings_of(service, job, index)
            return await asyncio.to_thread(encode_picture, picture, settings, asked.kind, asked.quality)

        if asked.stream:
            return StreamingResponse(streamed(job, asked, encoded), media_type="text/event-stream")
        pictures = await service.finished(job, request)
        data = [{"b64_json": await encoded(index, picture)} for index, picture in enumerate(pictures)]
        size = "{}x{}".format(*pictures[0].size)
        return JSONResponse({"created": int(time.time()), "data": data, "output_format": asked.format, "size": size})

    async def streamed(job, asked, encoded):
        """Events of the stream, as OpenAI has them: some pictures on the way, then the last ones."""
        loop, changed, sent = asyncio.get_running_loop(), asyncio.Event(), 0
        prefix = "image_generation" if job.request.task == "generate" else "image_edit"

        def wake(job):
            if not loop.is_closed():
                loop.call_soon_threadsafe(changed.set)

        def event(kind, picture, text, **more):
            size = "{}x{}".format(*picture.size)
            body = {"type": f"{prefix}.{kind}", "b64_json": text, "created_at": int(time.time()), "size": size, **more}
            body.update(output_format=asked.format, background="opaque", quality="auto")
            return f"event: {body['type']}\ndata: {json.dumps(body)}\n\n"

        job.listen(wake)
        try:
            while not job.over:
                await changed.wait()
                changed.clear()
                preview, due = job.previews[0], (sent + 1) / (asked.partial_images + 1)
                if sent < asked.partial_images and preview is not None and due <= job.progress < 1:
                    picture = preview.resize([8 * side for side in preview.size])
                    yield event("partial_image", picture, await encoded(0, picture), partial_image_index=sent)
                    sent += 1
            error = job.future.exception()
            if error is not None:
                yield f"event: error\ndata: {json.dumps(http_error(error).body)}\n\n"
                return
            usage: dict[str, Any] = {"input_tokens": 0, "output_tokens": 0, "total_tokens": 0}
            usage["input_tokens_details"] = {"image_tokens": 0, "text_tokens": 0}  # nothing is counted in tokens here
            for index, picture in enumerate(job.result()):
                yield event("completed", picture, await encoded(index, picture), usage=usage)
        finally:
            job.cancel()


class _Asked:
    """The fields of a request that are about the answer, taken out of ``fields``; the rest is about the picture."""

    def __init__(self, fields):
        self.fields = {name: value for name, value in fields.items() if name not in _NOTES}
        take = self.fields.pop
        for name, values in _FIXED.items():
            value = take(name, None)
            if value is not None and value not in values:
                raise InputError(f"`{name}` is {str(value)[:100]!r}; it may be {', '.join(values) or 'left out'} here.")
        self.format = take("output_format", None) or "png"
        if self.format not in _FORMATS:
            raise InputError(f"`output_format` is {str(self.format)[:100]!r}; it may be {', '.join(_FORMATS)}.")
        self.kind = _FORMATS[self.format]
        compression = take("output_compression", None)
        if compression is not None and self.kind == "PNG":
            raise InputError("`output_compression` is for jpeg and webp. Leave it out.")
        self.quality = 100 if compression is None else _whole("output_compression", compression, 0, 100)
        stream, partial = take("stream", None), take("partial_images", None)
        if stream not in (None, True, False):
            raise InputError("`stream` is true or false.")
        self.stream = bool(stream)
        self.partial_images = 0 if partial is None else _whole("partial_images", partial, 0, _MOST_PARTIAL)
        if self.partial_images and not self.stream:
            raise InputError("`partial_images` goes with `stream`. Ask for both.")
        count, size = take("n", None), take("size", None)
        if count is not None:
            self.fields["num_images_per_prompt"] = _whole("n", count)
        if size not in (None, "auto"):
            sides = size.split("x") if isinstance(size, str) and len(size) < 20 else ()
            if len(sides) != 2 or not all(side.isascii() and side.isdigit() for side in sides):
                raise InputError(f"`size` is {str(size)[:100]!r}; it is auto, or WIDTHxHEIGHT in pixels.")
            self.fields.update(width=int(sides[0]), height=int(sides[1]))
        if "prompt" not in self.fields:
            raise InputError("`prompt` is missing.")


def _whole(name, value, least=-(2**63), most=2**64):
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise InputError(f"`{name}` is {str(value)[:100]!r}; it is a whole number from {least} to {most}.")
    return value


def _from_form(task, fields):
    """Fields of a form, which are texts and files, as those of JSON have them; pictures are decoded."""
    declared = {argument.name: argument for argument in call_arguments_of(task)}
    kinds = {name: argument.kind for name, argument in declared.items()}
    kinds.update(dict.fromkeys(("seed", "n", "output_compression", "partial_images", "stream"), "whole"))
    values = {}
    for name, value in fields.items():
        kind = kinds.get(name, "text")
        if name == "mask":
            values["mask_image"] = _mask(_file(name, value))
        elif kind.startswith("picture"):
            values[name] = decode_picture(_file(name, value), name)
        elif not isinstance(value, str):
            raise InputError(f"`{name[:100]}` is a file; it is a text.")
        else:
            values[name] = value if kind == "text" else _parsed(name, value)
    return values


def _file(name, value):
    if isinstance(value, str):
        raise InputError(f"`{name}` is a text; send the picture as a file.")
    return value


def _parsed(name, value):
    found = parse_json_object(f'{{"value": {value}}}', f"`{name}`", InputError)
    return found["value"]


def _mask(content):
    """OpenAI's mask: what is transparent is drawn anew. Here that is white."""
    from PIL import ImageOps

    alpha = decode_picture(content, "mask", 4).getchannel("A")
    if not any(alpha.histogram()[:128]):
        raise InputError("`mask` has no transparent part, which is what would be drawn anew.")
    return ImageOps.invert(alpha)
