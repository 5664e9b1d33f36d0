"""Gradio components for what a form asks for, and a :class:`.drawing.Form` of what they hold."""

from __future__ import annotations

from typing import Any, Optional

from PIL import Image

from ..cli.options import CACHES, SCHEDULERS
from .drawing import MOST_LORAS, Form, Studio, task_fields
from .fields import COMMON, Field, guidances
from .pictures import painted_mask
from .wording import Words

_PICTURES = ("picture", "picture or pictures")
_TALL = ("prompt", "negative_prompt")
_MOST_CHARACTERS = 10_000
_SEED = Field("seed", "whole", Optional[int], None, "a whole number")
_STEPS = {"whole": 1, "number": 0.1}  # of the arrows beside a number
_PAINT = "#e6007e"  # on a mask; shown whatever the picture's colours
_STROKES = 16  # of the brush at first, side by side on a picture
_SIDE = 280  # pixels, of a picture in a form


def component_of(field: Field, words: Words, **options: Any) -> Any:
    """The component that asks for ``field``."""
    import gradio as gr

    shared: dict[str, Any] = {"label": words.label(field), **options}
    meaning = words.meaning(field)
    if field.kind in _PICTURES:
        mode = "L" if "mask" in field.name else "RGB"
        return picture_input(words, image_mode=mode, height=_SIDE, **shared)
    shared["info"] = meaning
    default = None if field.of_checkpoint else field.default
    if field.kind == "flag":
        return gr.Checkbox(bool(default), **shared)
    if field.kind in ("whole", "number") and default is not None:  # Gradio shows an empty number as 0
        return gr.Number(default, precision=0 if field.kind == "whole" else None, step=_STEPS[field.kind], **shared)
    if field.of_checkpoint or field.kind in ("whole", "number"):
        shared["placeholder"] = words("auto")
    lines = 2 if field.name in _TALL else 1
    return gr.Textbox(field.shown(default), lines=lines, max_lines=8, max_length=_MOST_CHARACTERS, **shared)


def picture_input(words: Words, **options: Any) -> Any:
    """A component that takes a picture, and is emptied, with a word why, if an upload is none."""
    import gradio as gr

    component = gr.Image(type="pil", sources=["upload", "clipboard"], **options)

    def check(upload: Any) -> Any:
        try:
            with Image.open(upload["path"]) as picture:
                picture.load()
        except Exception:  # noqa: BLE001 (whatever PIL raises for a stranger's bytes)
            gr.Warning(words("This is no picture, a damaged one, or one of more than 4096 x 4096 pixels."))
            return None
        return gr.skip()

    component.upload(check, component, component, preprocess=False, show_progress="hidden", api_visibility="private")
    return component


def brush_for(size: tuple[int, int]) -> Any:
    """A brush for masks on a picture of this size in pixels."""
    import gradio as gr

    return gr.Brush(default_size=max(2, max(size) // _STROKES), colors=[_PAINT], color_mode="fixed")


class ModelForm:
    """What all tabs share: the model, in which form, with which sampler and LoRAs.

    Attributes:
        parts: name -> component; names are fields of :class:`Form`, or ``lora_0``, ``lora_scale_0`` and so on.
    """

    def __init__(self, studio: Studio, words: Words) -> None:
        import gradio as gr

        self.parts: dict[str, Any] = {}
        parts = self.parts
        models, loras = studio.catalog.names(), list(studio.catalog.loras())
        with gr.Row():
            parts["model"] = gr.Dropdown(
                models,
                value=models[0],
                label=words("Checkpoint"),
                info=words("The bundled model, what lies in the directory of models, and what the hub's cache has."),
            )
            parts["scheduler"] = gr.Dropdown(
                [(words("the model's own"), ""), *SCHEDULERS], value="", label=words("Sampler")
            )
            parts["cache"] = gr.Dropdown(
                [(words("none"), ""), *CACHES],
                value="",
                label=words("Step cache"),
                info=words("Evaluates the transformer at fewer steps."),
            )
        with gr.Row():
            for name, label, info in (
                ("quantize", "int8 weights", "Less memory, and on many CPUs less time."),
                ("on_demand", "On demand", "Reads each network when it is used: least memory."),
                ("prompt_weighting", "Weighted prompts", "Reads (word:1.3), [word] and BREAK."),
            ):
                parts[name] = gr.Checkbox(False, label=words(label), info=words(info))
        if not loras:
            gr.Markdown(words("There are no LoRAs in the directory of models."))
        for index in range(MOST_LORAS if loras else 0):
            with gr.Row():
                parts[f"lora_{index}"] = gr.Dropdown(
                    [(words("none"), ""), *loras], value="", label=f"{words('LoRA')} {index + 1}", scale=3
                )
                parts[f"lora_scale_{index}"] = gr.Number(
                    1.0, step=0.1, label=f"{words('Scale')} {index + 1}", scale=1, min_width=100
                )


class TaskForm:
    """The form of one task.

    Attributes:
        parts: name -> component: fields of the call, ``"seed"``, ``"guidance"``, ``"guidance:NAME.argument"``, and of
            ControlNets ``"controlnet"``. Inpainting has an ``"editor"`` in place of ``"image"``.
    """

    def __init__(self, task: str, studio: Studio, words: Words, without: tuple[str, ...] = ()) -> None:
        import gradio as gr

        self.task, self.fields = task, task_fields(task)
        self.parts: dict[str, Any] = {}
        shown = [field for field in self.fields if field.name not in without]
        common = [field for field in shown if field.name in COMMON]
        if task == "inpaint":
            common = [field for field in common if field.name not in ("image", "mask_image")]
            self.parts["editor"] = gr.ImageEditor(
                type="pil",
                label=words("Picture"),
                sources=["upload", "clipboard"],
                brush=brush_for((512, 512)),
                eraser=gr.Eraser(default_size=16),
                transforms=(),
                layers=False,
                height=400,
                elem_id="editor",
            )
            gr.Markdown(words("Paint over what should change, or give a mask below."))
        numbers = [field for field in common if field.kind in ("whole", "number")]
        for field in common:
            if field not in numbers:
                self._add(field, words)
        with gr.Row(elem_classes="numbers"):
            for field in numbers:
                self._add(field, words, min_width=130)
        with gr.Row():
            self.parts["seed"] = gr.Textbox(
                "",
                max_length=32,
                label=words("Seed"),
                info=words("Empty: a random one. The same seed gives the same picture."),
                elem_id=f"{task}-seed",
            )
        self._add_guidance(words)
        others = [field for field in shown if field.name not in self.parts and field.name != "image"]
        with gr.Accordion(words("More settings"), open=False):
            for group in dict.fromkeys(field.group for field in others):
                with gr.Accordion(words.group(group), open=False):
                    for field in others:
                        if field.group == group:
                            self._add(field, words)

    def _add(self, field: Field, words: Words, **options: Any) -> None:
        self.parts[field.name] = component_of(field, words, elem_id=f"{self.task}-{field.name}", **options)

    def _add_guidance(self, words: Words) -> None:
        import gradio as gr

        with gr.Accordion(words("Guidance"), open=False):
            chosen = self.parts["guidance"] = gr.Dropdown(
                [(words("The plain scale"), ""), *guidances()],
                value="",
                label=words("Guidance"),
                info=words("What weighs the prompts, at the guidance scale."),
            )
            blocks = []
            for name, fields in guidances().items():
                with gr.Column(visible=False) as block:
                    for field in fields:
                        self.parts[f"guidance:{name}.{field.name}"] = component_of(field, words)
                blocks.append(block)
            chosen.change(
                lambda name: [gr.Column(visible=name == each) for each in guidances()],
                chosen,
                blocks,
                show_progress="hidden",
                api_visibility="private",
            )


def read_form(task: str, values: dict[str, Any]) -> Form:
    """The form that ``values`` say: names of the parts of both forms -> what their components hold."""
    fields = {field.name for field in task_fields(task)}
    call = {name: value for name, value in values.items() if name in fields}
    if "editor" in values:
        picture, mask = painted_mask(values["editor"])
        call.update(image=picture, mask_image=mask or call.get("mask_image"))
    guidance = values.get("guidance") or ""
    prefix = f"guidance:{guidance}."
    loras = [(values.get(f"lora_{i}"), values.get(f"lora_scale_{i}")) for i in range(MOST_LORAS)]
    return Form(
        task,
        call,
        seed=_SEED.read(values.get("seed")),
        model=values.get("model") or "",
        scheduler=values.get("scheduler") or "",
        cache=values.get("cache") or "",
        quantize=bool(values.get("quantize")),
        on_demand=bool(values.get("on_demand")),
        prompt_weighting=bool(values.get("prompt_weighting")),
        loras=[(name, 1.0 if scale is None else scale) for name, scale in loras if name],
        guidance=guidance,
        guidance_values={name[len(prefix) :]: value for name, value in values.items() if name.startswith(prefix)},
        controlnet=values.get("controlnet") or "",
    )


def shown_form(form: Form) -> dict[str, Any]:
    """The reverse of :func:`read_form`, without pictures: name of a part -> what its component is to hold."""
    fields = {field.name: field for field in task_fields(form.task)}
    shown: dict[str, Any] = {
        name: "" if field.of_checkpoint or field.default is None else field.shown(field.default)
        for name, field in fields.items()
        if field.kind not in _PICTURES
    }
    given = {name: fields[name].shown(value) for name, value in form.values.items() if name in fields}
    shown.update({name: str(value) if shown.get(name) == "" else value for name, value in given.items()})
    shown.update(seed="" if form.seed is None else str(form.seed), guidance=form.guidance)
    shown.update({f"guidance:{form.guidance}.{name}": value for name, value in form.guidance_values.items()})
    names = ("scheduler", "cache", "quantize", "on_demand", "prompt_weighting")
    shown.update({name: getattr(form, name) for name in names})
    return shown


def plain_values(parts: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    """Those of ``values`` that a browser can remember: no pictures."""
    return {
        name: value
        for name, value in values.items()
        if name in parts and (value is None or isinstance(value, (str, int, float, bool)))
    }
