"""Requests: what is drawn, checked against the one declaration of a call's arguments."""

from __future__ import annotations

import dataclasses
import json
import random
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..utils.elsewhere import CALL_ARGUMENTS, check_argument_names
from ..utils.errors import InputError

if TYPE_CHECKING:
    from ..pipelines.call_signature import Argument
    from .models import ModelChoice

# Task -> class of its pipeline. The first four are called as the command that draws the same.
TASKS = {
    "generate": "StableDiffusion3Pipeline",
    "img2img": "StableDiffusion3Img2ImgPipeline",
    "inpaint": "StableDiffusion3InpaintPipeline",
    "control": "StableDiffusion3ControlNetPipeline",
    "control-img2img": "StableDiffusion3ControlNetImg2ImgPipeline",
    "control-inpaint": "StableDiffusion3ControlNetInpaintingPipeline",
    "pag": "StableDiffusion3PAGPipeline",
    "pag-img2img": "StableDiffusion3PAGImg2ImgPipeline",
}

_COUNT = "num_images_per_prompt"
_PICTURES = ("picture", "picture or pictures")
_NEEDED = ("image", "mask_image", "control_image", "control_mask")
_MOST_SEED = 2**32


@dataclasses.dataclass(frozen=True)
class Limits:
    """The most that one request may ask for.

    Args:
        side: pixels of height and width.
        steps: denoising steps.
        pictures: number of them.
        characters: of each text.
        seconds: from acceptance to the last picture.
    """

    side: int = 2048
    steps: int = 100
    pictures: int = 10
    characters: int = 10_000
    seconds: float = 600.0

    def check(self, argument: str, value: float, most: float, unit: str) -> None:
        """Raises an InputError if ``value`` is more than ``most``."""
        if value > most:
            raise InputError(f"`{argument}` asks for {value} {unit}, and {most} are the most here. Ask for less.")


@dataclasses.dataclass(frozen=True)
class DrawRequest:
    """One request that has been checked; :func:`make_request` makes it.

    Args:
        task: one of ``TASKS``.
        arguments: of the pipeline's call, without ``generator`` and ``num_images_per_prompt``, and without those left
            out.
        seeds: of the pictures, one each.
        scheduler: a name of ``ppsd3.cli.options.SCHEDULERS``; None for the model's own.
        choice: the model; None for the engine's.
    """

    task: str
    arguments: Mapping[str, Any]
    seeds: tuple[int, ...]
    scheduler: str | None = None
    choice: ModelChoice | None = None

    def key(self, choice: ModelChoice) -> Any:
        """Equal for requests whose pictures one call may draw, each to the last bit as alone; ``choice`` is the model
        that is used. Pictures to begin with, step caches (which look at a whole batch) and weighted prompts (which
        differ in length) are drawn alone."""
        alone = choice.cache is not None or choice.prompt_weighting or "guidance" in self.arguments
        if self.task != "generate" or alone:
            return id(self)
        shared = {name: value for name, value in self.arguments.items() if name not in _texts("generate")}
        if any(name.startswith("ip_adapter") for name in shared):
            return id(self)
        return choice, self.scheduler, json.dumps(shared, sort_keys=True)

    def settings(self, index: int = 0) -> dict[str, Any]:
        """What draws picture ``index`` again, as ``save_png`` of ``ppsd3.cli.png`` writes it and ``--from-png`` reads
        it: plain values. Pictures to begin with are not in it."""
        from .. import __version__

        plain_names = {a.name for a in call_arguments_of(self.task) if a.kind not in _PICTURES}
        plain = {name: value for name, value in self.arguments.items() if name in plain_names}
        model = {} if self.choice is None else self.choice.settings()
        scheduler = {} if self.scheduler is None else {"scheduler": self.scheduler}
        more = {"seed": self.seeds[index], "command": self.task, "ppsd3_version": __version__}
        return {**plain, **model, **scheduler, **more}


def call_arguments_of(task: str) -> list[Argument]:
    """The arguments of a task that a request can give, as ``describe()`` has them; what only Python can say is left
    out.

    Raises:
        InputError: no such task.
    """
    from .. import pipelines

    if task not in TASKS:
        raise InputError(f"There is no task {task!r}. The tasks are {', '.join(TASKS)}.")
    described = getattr(pipelines, TASKS[task]).call_arguments()
    return [argument for argument in described if argument.option is not None]


def make_request(
    task: str,
    values: Mapping[str, Any],
    seed: int | None = None,
    scheduler: str | None = None,
    choice: ModelChoice | None = None,
    limits: Limits = Limits(),
) -> DrawRequest:
    """A request, checked.

    Args:
        task: one of ``TASKS``.
        values: argument of the call -> value, pictures as PIL pictures; None counts as left out. Height and width that
            are left out are those of the picture to begin with, if there is one.
        seed: of the first picture, the next has ``seed + 1``. Default: a random one.
        scheduler: a name of ``ppsd3.cli.options.SCHEDULERS``.
        choice: the model. Default: the engine's.
        limits: the most that it may ask for.

    Raises:
        InputError: an argument that the task does not have, or a value that it does not take, or more than ``limits``.
    """
    from ..cli.options import SCHEDULERS

    declared = {argument.name: argument for argument in call_arguments_of(task)}
    check_argument_names(f"The task {task!r}", values, list(declared), CALL_ARGUMENTS)
    given = {name: declared[name].fit(value) for name, value in values.items() if value is not None}
    for name in _NEEDED:
        if name in declared and name not in given:
            raise InputError(f"`{name}` is missing; {task} needs it: {declared[name].text}")
    if scheduler is not None and scheduler not in SCHEDULERS:
        raise InputError(f"There is no sampler {scheduler!r}. The samplers are {', '.join(SCHEDULERS)}.")
    first = 0 if seed is None else seed
    if not -(2**63) <= first < 2**64 - limits.pictures:
        raise InputError(f"The seed is {seed}; it is from -2**63 to 2**64 - 1.")
    given.setdefault("prompt", "")
    _take_size(given, declared)
    _check_limits(given, declared, limits)
    first = random.randrange(_MOST_SEED) if seed is None else seed
    count = given.pop(_COUNT, 1)
    return DrawRequest(task, given, tuple(first + i for i in range(count)), scheduler, choice)


def call_of(requests: Sequence[DrawRequest]) -> dict[str, Any]:
    """Keyword arguments of the one call that draws a picture for each of ``requests``, whose keys are equal; without
    generators."""
    if len(requests) == 1:
        return dict(requests[0].arguments)
    texts = _texts("generate")
    rows = [request.arguments for request in requests]
    call = {name: value for name, value in rows[0].items() if name not in texts}
    for name in texts:
        if any(name in row for row in rows):  # those of the other encoders are by default the first one's
            main = "negative_prompt" if name.startswith("negative") else "prompt"
            call[name] = [row.get(name, row.get(main, "")) for row in rows]
    return call


def request_schema(task: str) -> dict[str, Any]:
    """JSON schema of the arguments of a task, made from where they are declared; pictures are base64 texts."""
    kinds = {
        "text": {"type": "string"},
        "flag": {"type": "boolean"},
        "whole": {"type": "integer"},
        "number": {"type": "number"},
        "wholes": {"type": "array", "items": {"type": "integer"}},
        "numbers": {"type": "array", "items": {"type": "number"}},
        "number or numbers": {"type": "number"},
        "picture": {"type": "string", "contentEncoding": "base64"},
        "picture or pictures": {"type": "string", "contentEncoding": "base64"},
    }
    properties = {}
    for argument in call_arguments_of(task):
        schema: dict[str, Any] = {**kinds[argument.kind], "description": argument.text}
        if argument.limits is not None and argument.kind in ("whole", "number", "number or numbers"):
            schema.update(minimum=argument.limits.least, maximum=argument.limits.most)
        if argument.default is not None and not argument.of_checkpoint:
            schema["default"] = argument.default
        properties[argument.name] = schema
    return {"type": "object", "properties": properties}


def _texts(task):
    return [argument.name for argument in call_arguments_of(task) if argument.kind == "text"]


def _take_size(given, declared):
    """Height and width of the picture to begin with, where they are left out."""
    from ..cli.drawing import size_like

    picture = next((given[name] for name in ("image", "control_image") if name in given), None)
    picture = picture[0] if isinstance(picture, list) and picture else picture
    if hasattr(picture, "getbands") and "height" in declared:
        size = {name: given.get(name) for name in ("height", "width")}
        size_like(size, picture)
        given.update(size)


def _check_limits(given, declared, limits):
    for name in ("height", "width"):
        limits.check(name, given.get(name, 0), limits.side, "pixels")
    for name, value in given.items():
        if declared[name].kind == "text":
            if not isinstance(value, str):
                raise InputError(f"`{name}` is one text in a request, not a list. Make a request for each.")
            limits.check(name, len(value), limits.characters, "characters")
        elif isinstance(value, list):
            limits.check(name, len(value), limits.steps, "values")
    limits.check("num_inference_steps", given.get("num_inference_steps", 1), limits.steps, "steps")
    limits.check(_COUNT, given.get(_COUNT, 1), limits.pictures, "pictures")
