"""What a form says becomes requests to the engine, and pictures with their settings in the output directory."""

from __future__ import annotations

import collections
import dataclasses
import json
import os
import secrets
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

from ..cli.from_png import NOTES, SAFE
from ..cli.options import CACHES, SCHEDULERS
from ..cli.png import output_files, read_settings, save_png
from ..serving import TASKS, Cancelled, Catalog, DrawRequest, Engine, Job, ModelChoice, make_request
from ..utils.errors import InputError, PPSD3Error
from ..utils.json_files import parse_json_object, read_json
from .fields import Field, fields_of, guidances, make_guidance

MOST_LORAS = 3  # that a form can add
_BUNDLED_CONTROLNET = "shapes-silhouette"
_MOST_REMEMBERED = 200  # drawings that a page can come back to
_MOST_CELLS = 36  # of a grid


def task_fields(task: str) -> list[Field]:
    """What the form of a task asks for."""
    from .. import pipelines

    return fields_of(getattr(pipelines, TASKS[task]))


@dataclasses.dataclass(frozen=True)
class Form:
    """What a form says.

    Args:
        task: one of ``ppsd3.serving.TASKS``.
        values: field of the call -> what its component holds; pictures are PIL pictures.
        seed: of the first picture, None for a random one.
        model: name in the catalog.
        scheduler, cache: names of ``ppsd3.cli.options``, "" for the model's own and none.
        loras: (name in the catalog, scale) of each.
        guidance: name of a guidance, "" for the plain scale; ``guidance_values`` are its other arguments.
        controlnet: name in the catalog of ControlNets.
    """

    task: str
    values: Mapping[str, Any]
    seed: int | None = None
    model: str = "shapes"
    scheduler: str = ""
    cache: str = ""
    quantize: bool = False
    on_demand: bool = False
    prompt_weighting: bool = False
    loras: Sequence[tuple[str, float]] = ()
    guidance: str = ""
    guidance_values: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    controlnet: str = ""

    def changed(self, name: str, value: Any) -> Form:
        """The form with another value of a field of the call, or of its own."""
        if name in {field.name for field in dataclasses.fields(self)}:
            return dataclasses.replace(self, **{name: value})
        return dataclasses.replace(self, values={**self.values, name: value})


def form_of_png(path: str) -> tuple[Form, list[str]]:
    """(the form that a PNG of ppsd3's says, names of its settings that are not used).

    The picture may come from a stranger: it sets prompts and numbers within limits, as ``--from-png`` does without
    ``--trust-png``. Which models and files it names is not used.

    Raises:
        InputError: no such PNG, or a setting that is not one.
    """
    settings = read_settings(path)
    task = settings.pop("command", "generate")
    if task not in TASKS:
        raise InputError("The picture was drawn by another command, which this page does not have.")
    declared = {field.name: field for field in task_fields(task)}
    form, unused = Form(task, {}), []
    for name, value in settings.items():
        if name in NOTES or (name, value) == ("model", form.model):
            continue
        if name == "guidance":
            kind, values = _read_guidance(value)
            form = dataclasses.replace(form, guidance=kind, guidance_values=values)
        elif name in SAFE and name in declared:
            form = form.changed(name, declared[name].read(_within(name, value)))
        elif name == "seed" and isinstance(value, int):
            form = form.changed(name, _within(name, value))
        elif isinstance(value, (str, bool)) and (name, value) in _FORM_SETTINGS:
            form = form.changed(*_FORM_SETTINGS[name, value])
        else:
            unused.append(name)
    return form, unused


# Setting in a PNG -> field of a form.
_FORM_SETTINGS: dict[tuple[str, Any], tuple[str, Any]] = {
    **{("scheduler", name): ("scheduler", name) for name in SCHEDULERS},
    **{("cache", name): ("cache", name) for name in CACHES},
    ("quantize", "int8"): ("quantize", True),
    ("on_demand", True): ("on_demand", True),
    ("prompt_weighting", True): ("prompt_weighting", True),
}


def _within(name: str, value: Any) -> Any:
    limits = SAFE[name]
    for number in value if isinstance(value, list) else [value]:
        if limits is not None and isinstance(number, (int, float)) and not limits[0] <= number <= limits[1]:
            raise InputError(f"The picture has {name} {number!r}; it can set {limits[0]} to {limits[1]}.")
    return value


def _read_guidance(value: Any) -> tuple[str, dict[str, Any]]:
    given = parse_json_object(str(value), "The picture's guidance", InputError)
    kind = given.pop("kind", None)
    if kind not in guidances():
        raise InputError(f"The picture has a guidance that there is not; there are {', '.join(guidances())}.")
    return str(kind), {field.name: field.read(given.get(field.name)) for field in guidances()[str(kind)]}


class Drawing:
    """Some requests on their way, and the files of their pictures. A page follows it by its ``id``.

    Attributes:
        files: of each request the PNG files that are done.
        error: why it stopped, None if it did not.
        over: whether all is done, saved or stopped.
    """

    def __init__(self, jobs: Sequence[Job], labels: Sequence[str], columns: int = 1) -> None:
        self.id = secrets.token_urlsafe(16)
        self.jobs, self.labels, self.columns = list(jobs), list(labels), columns
        self.files: list[list[str]] = [[] for _ in jobs]
        self.error: Exception | None = None
        self.over = False

    @property
    def seeds(self) -> list[int]:
        """Of all its pictures."""
        return list(dict.fromkeys(seed for job in self.jobs for seed in job.request.seeds))

    @property
    def job(self) -> Job:
        """The one that is being drawn, or else the next or the last one."""
        return next((job for job in self.jobs if not job.over), self.jobs[-1])

    def seconds_left(self) -> float | None:
        """Estimated from the steps that are done; None before the first."""
        job = self.job
        if job.began is None or not job.progress:
            return None
        whole = (time.monotonic() - job.began) / job.progress
        return whole * (1 - job.progress) + whole * sum(not each.over for each in self.jobs if each is not job)

    def cancel(self) -> None:
        """Stops all of it within a step."""
        for job in self.jobs:
            job.cancel()


class Studio:
    """Draws what forms ask for with one engine, for all who look at the page.

    Args:
        engine: draws.
        catalog: of models and LoRAs that a form may name.
        output: directory where the PNG files go; it is made.
    """

    def __init__(self, engine: Engine, catalog: Catalog, output: str) -> None:
        self.engine, self.catalog, self.output = engine, catalog, os.path.realpath(output)
        os.makedirs(self.output, exist_ok=True)
        self._drawings: collections.OrderedDict[str, Drawing] = collections.OrderedDict()
        self._lock = threading.Lock()

    def request(self, form: Form) -> DrawRequest:
        """The checked request of a form.

        Raises:
            InputError: a value is not one that the call takes.
        """
        declared = {field.name: field for field in task_fields(form.task)}
        values = {name: declared[name].read(value) for name, value in form.values.items() if name in declared}
        values = {name: value for name, value in values.items() if value is not None and value != ""}
        if form.scheduler and form.scheduler not in SCHEDULERS:
            raise InputError(f"There is no sampler {form.scheduler!r}; there are {', '.join(SCHEDULERS)}.")
        if form.cache and form.cache not in CACHES:
            raise InputError(f"There is no step cache {form.cache!r}; there are {', '.join(CACHES)}.")
        limits = self.engine.limits
        request = make_request(form.task, values, form.seed, form.scheduler or None, self._choice(form), limits)
        scale = values.get("guidance_scale")
        if form.guidance and scale is None:
            raise InputError(f"{form.guidance} needs `guidance_scale`. Give a number beside it.")
        guidance = make_guidance(form.guidance, scale or 0.0, dict(form.guidance_values))
        if guidance is None:
            return request
        return dataclasses.replace(request, arguments={**request.arguments, "guidance": guidance})

    def _choice(self, form: Form) -> ModelChoice:
        loras, known = [], self.catalog.loras()
        for name, scale in form.loras:
            if name not in known:
                raise InputError(f"There is no LoRA {name!r} in the directory of models.")
            loras.append(f"{known[name]}:{1.0 if scale is None else scale}")
        changes: dict[str, Any] = {
            "cache": form.cache or None,
            "quantize": "int8" if form.quantize else None,
            "on_demand": form.on_demand,
            "prompt_weighting": form.prompt_weighting,
            "lora": tuple(loras),
        }
        if form.task.startswith("control"):
            nets = self.controlnets()
            if form.controlnet not in nets:
                raise InputError(f"There is no ControlNet {form.controlnet!r}; there are {', '.join(nets)}.")
            changes["controlnet"] = (nets[form.controlnet],)
        return self.catalog.choice(form.model or None, **changes)

    def draw(self, forms: Sequence[Form], labels: Sequence[str] = ("",), columns: int = 1) -> Drawing:
        """Submits a request for each form, all of them checked before.

        Raises:
            InputError: a form cannot be drawn.
            QueueFull: too much is waiting.
        """
        if len(forms) > _MOST_CELLS:
            raise InputError(f"The grid has {len(forms)} pictures, and {_MOST_CELLS} are the most. Give fewer values.")
        requests = [self.request(form) for form in forms]
        jobs: list[Job] = []
        try:
            for request in requests:
                jobs.append(self.engine.submit(request, previews=True))
        except PPSD3Error:
            for job in jobs:
                job.cancel()
            raise
        drawing = Drawing(jobs, labels, columns)
        with self._lock:
            self._drawings[drawing.id] = drawing
            while len(self._drawings) > _MOST_REMEMBERED:
                self._drawings.popitem(last=False)
        threading.Thread(target=self._save, args=(drawing, list(forms)), name="ppsd3-save", daemon=True).start()
        return drawing

    def find(self, drawing: str | None) -> Drawing | None:
        """The drawing of this id, if it is remembered."""
        return self._drawings.get(drawing or "")

    def place_in_queue(self, job: Job) -> int:
        """How many are before it."""
        with self._lock:
            drawings = list(self._drawings.values())
        return sum(not j.over and j.accepted < job.accepted for drawing in drawings for j in drawing.jobs)

    def _save(self, drawing: Drawing, forms: list[Form]) -> None:
        for index, (job, form) in enumerate(zip(drawing.jobs, forms)):
            try:
                for picture, image in enumerate(job.result()):
                    drawing.files[index].append(self._save_one(job.request, form, picture, image))
            except Exception as error:  # noqa: BLE001 (the page shows it)
                drawing.error = drawing.error or error
                if not isinstance(error, Cancelled):
                    drawing.cancel()
        drawing.over = True

    def _save_one(self, request: DrawRequest, form: Form, index: int, image: Any) -> str:
        settings = dict(request.settings(index))
        settings.pop("guidance", None)
        if form.guidance:
            settings["guidance"] = json.dumps({"kind": form.guidance, **form.guidance_values})
        settings.setdefault("width", image.width)
        settings.setdefault("height", image.height)
        prompt = str(request.arguments.get("prompt") or "")
        target = output_files(self.output + os.sep, [prompt], [request.seeds[index]])[0]
        return save_png(image, target, settings, replace=False)

    def controlnets(self) -> dict[str, str]:
        """Name -> path of the bundled ControlNet, and of those in directories below that of the models."""
        found = {_BUNDLED_CONTROLNET: _BUNDLED_CONTROLNET}
        root = self.catalog.directory
        for folder, _, files in os.walk(root) if root else ():
            if "config.json" in files and "ControlNet" in str(_class_in(os.path.join(folder, "config.json"))):
                found[os.path.relpath(folder, root)] = folder
        return found

    def pictures(self, most: int = 60) -> list[str]:
        """The newest PNG files of the output directory, the newest first."""
        entries = [entry for entry in os.scandir(self.output) if entry.name.endswith(".png") and entry.is_file()]
        entries.sort(key=lambda entry: entry.stat().st_mtime_ns, reverse=True)
        return [entry.path for entry in entries[:most]]


def _class_in(path: str) -> object:
    """The class that a network's configuration names; None where it cannot be read."""
    try:
        return read_json(path, purpose="a network's configuration").get("_class_name")
    except PPSD3Error:
        return None
