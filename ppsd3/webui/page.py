"""The page: a tab for each task, laid out with Gradio; all that it does is asked of a :class:`.drawing.Studio`."""

from __future__ import annotations

import asyncio
import base64
import html
import io
import random
import urllib.parse
from collections.abc import AsyncIterator, Sequence
from typing import Any

from PIL import Image

from ..cli.png import describe, read_settings
from ..utils.errors import InputError, PPSD3Error
from ..utils.logging import get_logger
from .drawing import Drawing, Form, Studio, form_of_png, task_fields
from .forms import ModelForm, TaskForm, brush_for, picture_input, plain_values, read_form, shown_form
from .pictures import PREPROCESSORS, preprocess
from .wording import LANGUAGES, Words

TABS = {
    "generate": "Text to image",
    "img2img": "Image to image",
    "inpaint": "Inpainting",
    "control": "ControlNet",
    "compare": "Compare",
    "grid": "X/Y grid",
    "gallery": "Gallery",
}
_TASKS = ("generate", "img2img", "inpaint", "control")
_SENT = {"img2img": "image", "inpaint": "editor", "control": "source"}  # tab -> the part that takes a picture
_SEND = {"img2img": "Send to image to image", "inpaint": "Send to inpainting", "control": "Send to ControlNet"}
_INTERVAL = 0.1  # seconds between two looks at a drawing
_UPLOADS = (3600, 86400)  # seconds between two looks for old uploads, and when one is old
_BUTTONS: Any = ["download", "fullscreen"]  # of pictures: without the one that shares them on the internet
_MOST_SHOWN = 60
_MOST_SEED = 2**32

_logger = get_logger(__name__)


class Page:
    """The page in one language.

    Args:
        studio: draws.
        language: a key of ``LANGUAGES``.

    Attributes:
        blocks: the Gradio app.
    """

    def __init__(self, studio: Studio, language: str) -> None:
        import gradio as gr

        self.studio, self.language, self.words = studio, language, Words(language)
        self.forms: dict[str, TaskForm] = {}
        self.outputs: dict[str, tuple[Any, Any]] = {}  # tab -> its status and its result
        words = self.words
        title = f"ppsd3: {words('Stable Diffusion 3 on PaddlePaddle')}"
        with gr.Blocks(title=title, analytics_enabled=False, delete_cache=_UPLOADS) as page:
            self.saved = gr.BrowserState({}, storage_key="ppsd3", secret="ppsd3")
            self._header()
            with gr.Accordion(words("Model"), open=False):
                self.model = ModelForm(studio, words)
            with gr.Accordion(words("Settings from a picture"), open=False):
                self.dropped = gr.File(
                    label=words("A PNG that ppsd3 drew"), file_types=[".png"], type="filepath", elem_id="dropped"
                )
                self.said = gr.HTML("", elem_id="said")
            with gr.Tabs(elem_id="tabs") as self.tabs:
                for task in _TASKS:
                    with gr.Tab(words(TABS[task]), id=task):
                        self._task_tab(task)
                with gr.Tab(words(TABS["compare"]), id="compare"):
                    self._compare_tab()
                with gr.Tab(words(TABS["grid"]), id="grid"):
                    self._grid_tab()
                with gr.Tab(words(TABS["gallery"]), id="gallery") as gallery:
                    self._gallery_tab(gallery)
            self._connect_sending()
            self._connect_settings()
            self._connect_reload(page)
        self.blocks = page

    # Layout

    def _header(self):
        import gradio as gr

        words = self.words
        links = " ".join(
            f'<a href="../{code}/" lang="{code}" hreflang="{code}"'
            f"{' aria-current=page' if code == self.language else ''}>{name}</a>"
            for code, name in LANGUAGES.items()
        )
        with gr.Row(elem_id="header"):
            gr.HTML(
                f'<header class="top"><h1>ppsd3 <small>{words("Stable Diffusion 3 on PaddlePaddle")}</small></h1>'
                f'<nav aria-label="{words("Language")}">{links}</nav></header>'
            )
            theme = gr.Button(words("Light or dark"), size="sm", elem_id="theme", scale=0, min_width=120)
        theme.click(None, js=_SWITCH_THEME, api_visibility="private")

    def _task_tab(self, task):
        import gradio as gr

        words = self.words
        with gr.Row():
            with gr.Column(scale=3, min_width=300):
                before = self._control_source() if task == "control" else {}
                form = self.forms[task] = TaskForm(task, self.studio, words)
                form.parts.update(before)
            with gr.Column(scale=2, min_width=300):
                draw, cancel = self._buttons(task)
                status = self._status(task)
                result = gr.Gallery(
                    label=words("Pictures"),
                    columns=2,
                    object_fit="contain",
                    elem_id=f"{task}-result",
                    interactive=False,
                    buttons=_BUTTONS,
                )
                self.outputs[task] = status, result
                again = gr.Button(words("Use this seed again"), size="sm", elem_id=f"{task}-again")
        parts = {**self.model.parts, **form.parts}
        events = [draw.click, form.parts["prompt"].submit]
        self._connect_drawing(task, parts, events, cancel, lambda values: ([read_form(task, values)], [""], 1))
        again.click(
            lambda saved: self._last_seed(saved, task), self.saved, form.parts["seed"], api_visibility="private"
        )
        if task == "control":
            self._connect_preprocessor(form)
        if task == "inpaint":
            editor = form.parts["editor"]
            editor.upload(
                lambda edited: gr.ImageEditor(brush=brush_for(edited["background"].size)),
                editor,
                editor,
                show_progress="hidden",
                api_visibility="private",
            )

    def _control_source(self):
        import gradio as gr

        words, parts = self.words, {}
        nets = list(self.studio.controlnets())
        parts["controlnet"] = gr.Dropdown(nets, value=nets[0], label=words("ControlNet model"))
        parts["source"] = picture_input(words, image_mode="RGB", label=words("Picture"), elem_id="source")
        parts["preprocessor"] = gr.Dropdown(
            [(words(name), name) for name in PREPROCESSORS],
            value="as it is",
            label=words("Preprocessor"),
            info=words("Makes the control picture of the picture above."),
            elem_id="preprocessor",
        )
        return parts

    def _buttons(self, tab):
        import gradio as gr

        with gr.Row():
            draw = gr.Button(self.words("Draw"), variant="primary", elem_id=f"{tab}-draw")
            cancel = gr.Button(self.words("Cancel"), variant="stop", elem_id=f"{tab}-cancel")
        return draw, cancel

    def _status(self, tab):
        import gradio as gr

        return gr.HTML(_status_html(self.words("Nothing has been drawn yet.")), elem_id=f"{tab}-status")

    def _compare_tab(self):
        import gradio as gr

        words = self.words
        gr.Markdown(
            words(
                "Draws with the prompt, the seed and the settings of Text to image; what is empty stays as it is there."
            )
        )
        same = (words("as in Text to image"), "")
        names = ("model", "scheduler", "cache", "num_inference_steps", "guidance_scale", "guidance", "prompt")
        sides: dict[str, Any] = {}
        fields = {field.name: field for field in task_fields("generate")}
        with gr.Row():
            for side in ("Left", "Right"):
                with gr.Column(min_width=280):
                    gr.Markdown(f"### {words(side)}")
                    for name in names:
                        sides[f"{side}.{name}"] = self._override(name, fields, same, f"{side.lower()}-{name}")
        draw, cancel = self._buttons("compare")
        self.outputs["compare"] = self._status("compare"), gr.HTML("", elem_id="compare-result")

        def forms(values):
            base = self._base(values)
            both = []
            for side in ("Left", "Right"):
                form = base
                for name in names:
                    value = values[f"{side}.{name}"]
                    form = form if value in (None, "") else form.changed(name, value)
                both.append(form)
            return both, [words("Left"), words("Right")], 2

        parts = {**self.model.parts, **self.forms["generate"].parts, **sides}
        self._connect_drawing("compare", parts, [draw.click], cancel, forms)

    def _override(self, name, fields, same, element):
        """A component for a field of the form that may be left as it is."""
        import gradio as gr

        if name in fields:
            label = self.words.label(fields[name])
            return gr.Textbox("", label=label, placeholder=same[0], elem_id=element)
        model = {**self.model.parts, **self.forms["generate"].parts}[name]
        choices = [same, *(choice for choice in model.choices if choice[1] != "")]
        return gr.Dropdown(choices, value="", label=model.label, elem_id=element)

    def _grid_tab(self):
        import gradio as gr

        words = self.words
        gr.Markdown(words("Draws a picture for each pair of values, with the settings and one seed of Text to image."))
        fields = {f.name: f for f in task_fields("generate") if f.kind in ("text", "whole", "number")}
        choices = [(words.label(field), name) for name, field in fields.items()]
        choices += [(words("Sampler"), "scheduler"), (words("Step cache"), "cache"), (words("Checkpoint"), "model")]
        choices.append((words("Seed"), "seed"))
        names = {name: label for label, name in choices}

        def said(name, value):
            return "" if value is None else f"{names[name]}: {value}"

        parts: dict[str, Any] = {}
        with gr.Row():
            for axis, name, example in (("X", "num_inference_steps", "4; 8"), ("Y", "guidance_scale", "1; 3")):
                with gr.Column(min_width=280):
                    parts[f"{axis}.name"] = gr.Dropdown(
                        choices, value=name, label=words(f"{axis} parameter"), elem_id=f"{axis.lower()}-name"
                    )
                    parts[f"{axis}.values"] = gr.Textbox(
                        example,
                        label=words(f"{axis} values"),
                        info=words("Separated by semicolons, e.g. 4; 8; 16"),
                        elem_id=f"{axis.lower()}-values",
                    )
        draw, cancel = self._buttons("grid")
        self.outputs["grid"] = self._status("grid"), gr.HTML("", elem_id="grid-result")

        def forms(values):
            base, axes = self._base(values), []
            for axis in ("X", "Y"):
                name = values[f"{axis}.name"]
                given = [value.strip() for value in str(values[f"{axis}.values"] or "").split(";") if value.strip()]
                read = [fields[name].read(v) if name in fields else _plain(name, v) for v in given] or [None]
                axes.append([(name, value) for value in read])
            cells = [(x, y) for y in axes[1] for x in axes[0]]
            labels = [f"{said(*x)}\n{said(*y)}".strip() for x, y in cells]
            return [_with(_with(base, *x), *y) for x, y in cells], labels, len(axes[0])

        self._connect_drawing(
            "grid", {**self.model.parts, **self.forms["generate"].parts, **parts}, [draw.click], cancel, forms
        )

    def _base(self, values):
        """The form of the tab Text to image, with a seed that all pictures share, and one picture each."""
        form = read_form("generate", values)
        seed = random.randrange(_MOST_SEED) if form.seed is None else form.seed
        return form.changed("seed", seed).changed("num_images_per_prompt", 1)

    def _gallery_tab(self, tab):
        import gradio as gr

        words = self.words
        gr.Markdown(f"{words('Output directory')}: `{self.studio.output}`")
        refresh = gr.Button(words("Refresh"), size="sm", elem_id="refresh")
        self.gallery = gr.Gallery(
            label=words("Gallery"),
            columns=4,
            object_fit="contain",
            interactive=False,
            buttons=_BUTTONS,
            elem_id="gallery",
        )
        self.chosen = gr.State(None)  # the file that is selected
        self.gallery_settings = gr.Textbox(
            label=words("Settings of the picture"), lines=4, interactive=False, elem_id="gallery-settings"
        )
        self.take = gr.Button(words("Take the settings"), size="sm", elem_id="take")
        shown = gr.State([])

        def show():
            files = self.studio.pictures(_MOST_SHOWN)
            return files, files

        for event in (tab.select, refresh.click):
            event(show, None, [self.gallery, shown], show_progress="hidden", api_visibility="private")

        def choose(files, event: gr.SelectData):
            file = files[event.index] if event.index < len(files) else None
            try:
                return file, describe(read_settings(file)) if file else ""
            except (PPSD3Error, OSError) as error:
                return file, str(error)

        choose.__annotations__["event"] = gr.SelectData
        self.gallery.select(choose, shown, [self.chosen, self.gallery_settings], api_visibility="private")

    # What happens

    def _connect_drawing(self, tab, parts, events, cancel, forms):
        import gradio as gr

        names, (status, result) = list(parts), self.outputs[tab]
        of_tab = self.forms[tab].parts if tab in self.forms else {}

        async def draw(saved, *held) -> AsyncIterator[Any]:
            values = dict(zip(names, held))
            try:
                drawing = await asyncio.to_thread(lambda: self.studio.draw(*forms(values)))
            except (PPSD3Error, OSError) as error:
                yield self._failed(error), gr.skip(), saved  # gr.skip() would be stored as it is
                return
            saved = dict(saved or {})
            saved["drawings"] = {**saved.get("drawings", {}), tab: drawing.id}
            saved["model"] = plain_values(self.model.parts, values)
            if tab in self.forms:
                saved["forms"] = {**saved.get("forms", {}), tab: plain_values(of_tab, values)}
            yield self._progress(drawing), gr.skip(), saved
            async for shown in self.follow(tab, drawing):
                yield (*shown, saved)

        gr.on(
            events,
            draw,
            [self.saved, *parts.values()],
            [status, result, self.saved],
            show_progress="hidden",
            concurrency_limit=None,
            trigger_mode="once",  # a second click waits for the end of the first, or for Cancel
            api_visibility="private",
        )
        cancel.click(lambda saved: self._cancel(saved, tab), self.saved, None, queue=False, api_visibility="private")

    async def follow(self, tab: str, drawing: Drawing) -> AsyncIterator[tuple[Any, Any]]:
        """(status, result) at each change until the drawing is over."""
        import gradio as gr

        before = None
        while not drawing.over:
            now = self._progress(drawing)
            if now != before:
                before = now
                yield now, gr.skip()
            await asyncio.sleep(_INTERVAL)
        yield self._ended(drawing), self._result(tab, drawing)

    def _cancel(self, saved, tab):
        drawing = self._drawing(saved, tab)
        if drawing is not None:
            drawing.cancel()

    def _drawing(self, saved: Any, tab: str) -> Drawing | None:
        return self.studio.find(((saved or {}).get("drawings") or {}).get(tab))

    def _last_seed(self, saved, tab):
        drawing = self._drawing(saved, tab)
        return str(drawing.seeds[0]) if drawing is not None else ""

    def _progress(self, drawing: Drawing) -> str:
        words, job = self.words, drawing.job
        steps = job.steps
        done = sum(each.progress for each in drawing.jobs) / len(drawing.jobs)
        if job.began is None:
            text = words("waiting, {n} before it", n=self.studio.place_in_queue(job))
        elif not steps:
            text = words("loading the model")
        else:
            seconds = drawing.seconds_left()
            step = max(row.step for row in job.rows)
            text = words(
                "step {step} of {steps}, about {seconds} s left",
                step=step,
                steps=steps,
                seconds="?" if seconds is None else round(seconds),
            )
        previews = [picture for picture in job.previews if picture is not None]
        return _status_html(text, done, [(_data_url(p), words("picture as it is by now")) for p in previews])

    def _ended(self, drawing: Drawing) -> str:
        from ..serving import Cancelled

        if isinstance(drawing.error, Cancelled):
            return _status_html(self.words("cancelled"))
        if drawing.error is not None:
            return self._failed(drawing.error)
        return _status_html(self.words("done, seed {seeds}", seeds=", ".join(map(str, drawing.seeds[:4]))))

    def _failed(self, error: Exception) -> str:
        known = isinstance(error, (PPSD3Error, OSError))
        if not known:
            _logger.error("A picture was not drawn.", exc_info=error)
        said = str(error) if known else f"{type(error).__name__}: {error}"
        return f'<div class="status failed" role="alert">{html.escape(said)}</div>'

    def _result(self, tab: str, drawing: Drawing) -> Any:
        """What the tab shows of the files: a gallery, or a table of pictures."""
        if tab in self.forms:
            return [
                (file, f"{self.words('Seed')} {seed}")
                for job, files in zip(drawing.jobs, drawing.files)
                for file, seed in zip(files, job.request.seeds)
            ]
        cells = [
            (label, self._address(files[0]) if files else None) for label, files in zip(drawing.labels, drawing.files)
        ]
        return _figures_html(cells, drawing.columns)

    def _address(self, file: str) -> str:
        """Where the browser finds a file of the output directory."""
        return f"../{self.language}/gradio_api/file={urllib.parse.quote(file)}"

    def _connect_preprocessor(self, form):
        """The control picture is what the preprocessor makes of the source, shown before drawing."""
        parts = form.parts

        def make(name, picture):
            import gradio as gr

            try:
                return preprocess(name, picture)
            except InputError as error:
                raise gr.Error(str(error), print_exception=False) from error

        for event in (parts["source"].change, parts["preprocessor"].change):
            event(make, [parts["preprocessor"], parts["source"]], parts["control_image"], api_visibility="private")

    def _connect_sending(self):
        """Buttons under each result, and in the gallery, that take a picture to another tab."""
        import gradio as gr

        words = self.words
        for tab in (*_TASKS, "gallery"):
            with gr.Row(elem_id=f"{tab}-send", elem_classes="send") as row:
                for target, part in _SENT.items():
                    button = gr.Button(
                        words(_SEND[target]),
                        size="sm",
                        elem_id=f"{tab}-to-{target}",
                    )
                    self._connect_send(tab, button, target, self.forms[target].parts[part])
            self._place(row, tab)

    def _place(self, row, tab):
        """Moves the row of buttons into its tab, which stands before the tabs that it sends to."""
        column: Any = self.gallery.parent if tab == "gallery" else self.outputs[tab][1].parent
        row.parent.children.remove(row)
        column.add(row)
        row.parent = column

    def _connect_send(self, tab, button, target, part):
        import gradio as gr

        def send(saved, chosen):
            file = chosen if tab == "gallery" else self._first_file(saved, tab)
            if file is None:
                return gr.skip(), gr.skip()
            if target != "inpaint":
                return file, gr.Tabs(selected=target)
            with Image.open(file) as picture:
                brush = brush_for(picture.size)
            value: Any = {"background": file, "layers": [], "composite": file}
            return gr.ImageEditor(value, brush=brush), gr.Tabs(selected=target)

        button.click(send, [self.saved, self.chosen], [part, self.tabs], api_visibility="private")

    def _first_file(self, saved, tab):
        drawing = self._drawing(saved, tab)
        return next((file for files in drawing.files for file in files), None) if drawing else None

    def _connect_settings(self):
        """A PNG that is dropped, or taken from the gallery, fills the form of its task."""
        import gradio as gr

        places = [(task, name) for task in _TASKS for name in self.forms[task].parts]
        outputs = [*self.model.parts.values(), *(self.forms[task].parts[name] for task, name in places)]

        def fill(path):
            nothing = [gr.skip()] * len(outputs)
            if not path:
                return [gr.skip(), gr.skip(), *nothing]
            try:
                form, unused = form_of_png(path)
            except (PPSD3Error, OSError) as error:
                return [self._failed(_without_path(error, path)), gr.skip(), *nothing]
            shown = shown_form(form)
            said = self.words("Settings were read. Draw to see the picture.")
            if unused:
                said += " " + self.words("A picture sets prompts and numbers alone. Not used: ") + ", ".join(unused)
            values = [shown.get(name, gr.skip()) for name in self.model.parts]
            values += [shown.get(name, gr.skip()) if task == form.task else gr.skip() for task, name in places]
            return [_status_html(said), gr.Tabs(selected=form.task), *values]

        for event, source in ((self.dropped.upload, self.dropped), (self.take.click, self.chosen)):
            event(fill, source, [self.said, self.tabs, *outputs], api_visibility="private")

    def _connect_reload(self, page):
        """A page that is loaded again has its forms as they were, and goes on with what is being drawn."""
        import gradio as gr

        places = [(task, name) for task in _TASKS for name in self.forms[task].parts]
        outputs = [*self.model.parts.values(), *(self.forms[task].parts[name] for task, name in places)]

        def restore(saved):
            saved = saved or {}
            model, forms = saved.get("model") or {}, saved.get("forms") or {}
            values = [
                _listed(part, model[name]) if name in model else gr.skip() for name, part in self.model.parts.items()
            ]
            for task, name in places:
                held = forms.get(task) or {}
                values.append(_listed(self.forms[task].parts[name], held[name]) if name in held else gr.skip())
            return values

        page.load(restore, self.saved, outputs, show_progress="hidden", api_visibility="private")
        for tab, (status, result) in self.outputs.items():
            self._connect_resume(page, tab, status, result)

    def _connect_resume(self, page, tab, status, result):
        import gradio as gr

        async def resume(saved) -> AsyncIterator[Any]:
            drawing = self._drawing(saved, tab)
            if drawing is None:
                yield gr.skip(), gr.skip()
                return
            async for shown in self.follow(tab, drawing):
                yield shown

        page.load(
            resume,
            self.saved,
            [status, result],
            show_progress="hidden",
            concurrency_limit=None,
            api_visibility="private",
        )


def _listed(part: Any, value: Any) -> Any:
    """``value``, or nothing new where it is no choice of ``part`` any more."""
    import gradio as gr

    choices = getattr(part, "choices", None)
    return value if choices is None or value in [choice[1] for choice in choices] else gr.skip()


def _with(form: Form, name: str, value: Any) -> Form:
    return form if value is None else form.changed(name, value)


def _plain(name: str, value: str) -> Any:
    if name != "seed":
        return value
    try:
        return int(value)
    except ValueError as error:
        raise InputError(f"The seed {value[:100]!r} is no whole number. Give whole numbers.") from error


def _without_path(error: Exception, path: str) -> Exception:
    return type(error)(str(error).replace(path, "The file")) if isinstance(error, InputError) else error


def _data_url(picture: Any) -> str:
    content = io.BytesIO()
    picture.save(content, format="PNG")
    return "data:image/png;base64," + base64.b64encode(content.getvalue()).decode()


def _status_html(text: str, progress: float | None = None, previews: Sequence[tuple[str, str]] = ()) -> str:
    bar = (
        ""
        if progress is None
        else f'<progress value="{progress:.3f}" max="1" aria-label="{html.escape(text)}"></progress>'
    )
    images = "".join(f'<img src="{address}" alt="{html.escape(alt)}">' for address, alt in previews)
    role = 'role="status"' if progress is None else ""
    return f'<div class="status"><p {role}>{html.escape(text)}</p>{bar}<div class="previews">{images}</div></div>'


def _figures_html(cells: Sequence[tuple[str, str | None]], columns: int) -> str:
    figures = []
    for label, address in cells:
        text = html.escape(label)
        image = "" if address is None else f'<img src="{html.escape(address)}" alt="{text}">'
        figures.append(f"<figure>{image}<figcaption>{text}</figcaption></figure>")
    return f'<div class="figures" style="--columns: {columns}">{"".join(figures)}</div>'


_SWITCH_THEME = """() => {
    const dark = document.body.classList.toggle("dark");
    localStorage.setItem("ppsd3-theme", dark ? "dark" : "light");
}"""
