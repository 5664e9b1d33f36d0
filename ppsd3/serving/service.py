"""What the routes have in common: who asks, what they may, and the way of a request through the engine and back."""

from __future__ import annotations

import asyncio
import base64
import binascii
import dataclasses
import io
import json
import os
import sys
import time
import traceback
import weakref
from collections.abc import Mapping
from typing import Any

from PIL import Image

from ..cli.png import PARAMETERS_KEY, SETTINGS_KEY, describe
from ..utils.errors import CheckpointError, ConfigError, InputError, PPSD3Error
from ..utils.images import open_picture, read_pictures
from .engine import Engine
from .jobs import Cancelled, Job, QueueFull, ShuttingDown, TimedOut
from .keys import Key, find_key, read_keys
from .models import Catalog, ModelChoice
from .requests import Limits, make_request

_MOST_PIXELS = 4096 * 4096  # of an uploaded picture: 50 MB in memory
LEFT = 499  # nginx's number for a client that has left; nobody reads it


class HTTPError(PPSD3Error):
    """An answer that is an error."""

    def __init__(self, status: int, message: str, code: str | None = None, headers: Mapping[str, str] | None = None):
        super().__init__(message)
        self.status, self.code, self.headers = status, code, dict(headers or {})

    @property
    def body(self) -> dict[str, Any]:
        """As clients of OpenAI (``error``) and of A1111 (``detail``) read it."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        kind = "rate_limit_error" if self.status == 429 else kind
        error = {"message": str(self), "type": kind, "param": None, "code": self.code}
        return {"error": error, "detail": str(self)}


def http_error(error: BaseException) -> HTTPError:
    """What a client is told of ``error``. Of a defect or a broken checkpoint it is told nothing that it could use."""
    if isinstance(error, HTTPError):
        return error
    if isinstance(error, QueueFull):
        return HTTPError(429, str(error), "queue_full", {"Retry-After": str(error.retry_after)})
    if isinstance(error, ShuttingDown):
        return HTTPError(503, str(error), "shutting_down", {"Retry-After": "5"})
    if isinstance(error, TimedOut):
        return HTTPError(504, str(error), "timed_out")
    if isinstance(error, Cancelled):
        return HTTPError(409, str(error), "cancelled")
    if isinstance(error, InputError):
        return HTTPError(400, str(error), "invalid_value")
    if isinstance(error, (CheckpointError, ConfigError)):
        return HTTPError(503, "The model cannot be loaded; the server's log says why.", "model_not_loaded")
    return HTTPError(500, "The server could not draw this; its log says why.", "internal_error")


@dataclasses.dataclass
class Service:
    """Everything that the routes use.

    Args:
        engine: draws.
        catalog: the models that may be asked for.
        key_file: whose keys are asked for; None: nobody is asked.
        log_prompts: whether logs hold prompts.
    """

    engine: Engine
    catalog: Catalog
    key_file: str | None = None
    log_prompts: bool = False

    def __post_init__(self) -> None:
        self.keys: list[Key] = []
        self.owners: weakref.WeakKeyDictionary[Job, str] = weakref.WeakKeyDictionary()
        self.read_keys()

    def read_keys(self) -> None:
        """Reads the file of keys, again."""
        if self.key_file is not None:
            self.keys = read_keys(self.key_file)

    def reload(self) -> None:
        """Reads the keys and loads the model again; what waits is drawn by the new one. If the keys cannot be read the
        old ones stay. The log has what became of it."""
        if self.key_file is not None:
            try:
                self.read_keys()
                self.log(event="keys", read=len(self.keys))
            except PPSD3Error as error:
                self.log(event="keys", kept=len(self.keys), text=str(error))
        self.engine.load(self.engine.choice).add_done_callback(self._log_load)

    def _log_load(self, loaded):
        error = loaded.exception()
        self.log(event="model", loaded=error is None, text=None if error is None else str(error))

    def key_of(self, headers: Mapping[str, str]) -> Key:
        """Who asks: by ``Authorization: Bearer KEY``, as OpenAI's clients do, or by a password, as A1111's do.

        Raises:
            HTTPError: 401.
        """
        if self.key_file is None:
            return Key("anyone", admin=True)
        scheme, _, given = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "basic":
            try:
                given = base64.b64decode(given, validate=True).decode().partition(":")[2]
            except (binascii.Error, UnicodeDecodeError):
                given = ""
        key = find_key(self.keys, given.strip())
        if key is None:
            raise HTTPError(401, "This API key is not known.", "invalid_api_key", {"WWW-Authenticate": "Bearer"})
        return key

    def limits_of(self, key: Key) -> Limits:
        """The engine's limits, and the key's where they are lower."""
        return key.of(self.engine.limits)

    def submit(
        self,
        key: Key,
        task: str,
        values: Mapping[str, Any],
        seed: int | None = None,
        scheduler: str | None = None,
        model: str | None = None,
        previews: bool = False,
    ) -> Job:
        """A job of ``key``. Reads the disk for the list of models if ``model`` is named: not for the thread of the
        loop. Without one it takes less time there than the way to another thread, which those that draw delay.

        Raises:
            HTTPError, PPSD3Error: it is refused; see :func:`http_error`.
        """
        limits = self.limits_of(key)
        choice = self._choice(model)
        request = make_request(task, values, seed, scheduler, choice, limits)
        own = sum(len(job.rows) for job in self.jobs_of(key))
        if key.waiting is not None and own + len(request.seeds) > key.waiting:
            self.engine.counts["refused"] += 1
            raise QueueFull(own, self.engine.retry_after())
        job = self.engine.submit(request, key.priority, limits.seconds, previews)
        self.owners[job] = key.name
        return job

    def jobs_of(self, key: Key) -> list[Job]:
        """Those of ``key`` that are not over."""
        return [job for job in self.engine.jobs() if self.owners.get(job) == key.name]

    def _choice(self, model: str | None) -> ModelChoice | None:
        """None for the model that requests get unasked, so that it may change while they wait."""
        if model is None or model == self.catalog.name_of(self.engine.choice):
            return None
        try:
            return self.catalog.choice(model)
        except InputError as error:
            raise HTTPError(404, str(error), "model_not_found") from None

    async def finished(self, job: Job, request: Any) -> list[Image.Image]:
        """The pictures of ``job``, which ends when the client of ``request`` leaves.

        Raises:
            HTTPError, PPSD3Error: it was not drawn.
        """
        left = asyncio.ensure_future(_left(request))
        drawn = asyncio.wrap_future(job.future)
        drawn.add_done_callback(
            lambda future: future.cancelled() or future.exception()
        )  # asyncio logs what nobody takes
        try:
            await asyncio.wait({left, drawn}, return_when=asyncio.FIRST_COMPLETED)
            if not drawn.done():
                raise HTTPError(LEFT, "The client has left.", "client_left")
            return drawn.result()
        finally:
            left.cancel()
            job.cancel()

    def log(self, **facts: Any) -> None:
        """One line of JSON to the standard error stream."""
        facts = {name: value for name, value in facts.items() if value is not None}
        line = json.dumps({"time": round(time.time(), 3), **facts}, ensure_ascii=True)
        print(line + "\n", end="", file=sys.stderr, flush=True)  # at once: threads log, too

    def log_error(self, error: BaseException) -> None:
        """The kind and place of a defect, or why there is no model; the message, which may quote a prompt, only if the
        service logs prompts. Of what the client is to mend there is no more than the line of its request."""
        if http_error(error).code not in ("internal_error", "model_not_loaded"):
            return
        frames = traceback.extract_tb(error.__traceback__)[-5:]
        where = [f"{os.path.basename(frame.filename)}:{frame.lineno}" for frame in frames]
        text = str(error)[:1000] if self.log_prompts else None
        self.log(event="error", error=type(error).__name__, where=where, text=text)

    def log_job(self, job: Job, key: Key) -> None:
        """What became of a job. Prompts are in it only if the service was told so."""
        texts = {"prompt": job.request.arguments.get("prompt")} if self.log_prompts else {}
        error = None if job.future.cancelled() else job.future.exception()
        if error is not None:
            self.log_error(error)
        ended = job.ended or time.monotonic()
        waited = (job.began or ended) - job.accepted
        self.log(
            event="job",
            job=job.id,
            key=key.name,
            task=job.request.task,
            state=job.state,
            pictures=len(job.rows),
            steps=job.steps,
            waited=round(waited, 3),
            seconds=round(ended - job.accepted, 3),
            **texts,
        )


async def _left(request):
    while (await request.receive())["type"] != "http.disconnect":
        pass


def decode_picture(content: bytes, name: str, channels: int = 3) -> Image.Image:
    """An uploaded picture. Its size is looked at before it is decoded.

    Args:
        name: of the field, for errors.
        channels: 3 for colours, 1 for masks, 4 to keep what is transparent.

    Raises:
        InputError: it is no picture, a damaged one, or larger than 4096 x 4096 pixels.
    """
    try:
        with Image.open(io.BytesIO(content)) as opened:
            width, height = opened.size
    except Exception:  # noqa: BLE001 (whatever PIL raises for a stranger's bytes)
        width = height = 0
    if width * height > _MOST_PIXELS:
        raise InputError(f"`{name}` has {width} x {height} pixels, and {_MOST_PIXELS:,} are the most. Make it smaller.")
    picture = open_picture(io.BytesIO(content), f"`{name}`")
    if channels == 4:
        return picture.convert("RGBA")
    picture = read_pictures(name, picture, channels)
    return picture.convert("L") if channels == 1 else picture


def decode_base64(text: Any, name: str) -> bytes:
    """The bytes of a base64 text, with or without ``data:...;base64,`` before it.

    Raises:
        InputError: it is none. A path or a link is none either: nothing is read for a client.
    """
    if not isinstance(text, str):
        raise InputError(f"`{name}` is a {type(text).__name__}; it is a picture as a base64 text.")
    text = text.partition(",")[2] if text.startswith("data:") else text
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise InputError(f"`{name}` is no base64 text. Send the picture's bytes, not a path or a link.") from None


def encode_picture(picture: Image.Image, settings: Mapping[str, Any], kind: str = "PNG", quality: int = 100) -> str:
    """A picture as base64; a PNG has its ``settings`` in it, as ``ppsd3 generate`` writes them."""
    from PIL.PngImagePlugin import PngInfo

    file, more = io.BytesIO(), {}
    if kind == "PNG":
        info = PngInfo()
        info.add_text(PARAMETERS_KEY, describe(settings))
        info.add_text(SETTINGS_KEY, json.dumps(settings))
        more = {"pnginfo": info}
    else:
        more = {"quality": quality}
    picture.save(file, format=kind, **more)
    return base64.b64encode(file.getvalue()).decode()


def settings_of(service: Service, job: Job, index: int) -> dict[str, Any]:
    """The settings for a PNG that a client gets: the model by the name that it has here, not by its path."""
    choice = job.request.choice or service.engine.choice
    settings = dataclasses.replace(job.request, choice=None).settings(index)
    return {**settings, "model": service.catalog.name_of(choice)}
