"""From forms to pictures in the output directory, by an engine that does not draw; and settings of strangers' PNGs."""

import json
from concurrent.futures import Future

import numpy as np
import pytest
from PIL import Image

from ppsd3.cli.png import read_settings, save_png
from ppsd3.serving import Catalog, Job, Limits, ModelChoice
from ppsd3.utils.errors import InputError
from ppsd3.webui.drawing import Form, Studio, form_of_png
from ppsd3.webui.pictures import PREPROCESSORS, painted_mask, preprocess


class StillEngine:
    """Accepts, and draws nothing by itself."""

    limits = Limits()

    def __init__(self):
        self.jobs = []

    def submit(self, request, previews=False):
        self.jobs.append(Job(request, 0, 60, previews))
        return self.jobs[-1]

    def finish(self):
        for job in self.jobs:
            for row in job.rows:
                job.drawn(row, Image.new("RGB", (64, 64), "red"))


@pytest.fixture
def studio(tmp_path):
    return Studio(StillEngine(), Catalog(ModelChoice(), hub_cache=False), str(tmp_path / "out"))


def wait(drawing):
    done = Future()
    for _ in range(200):
        if drawing.over:
            return
        try:
            done.result(0.02)
        except Exception:  # noqa: BLE001 (a pause)
            continue
    raise AssertionError("not over")


def test_a_form_becomes_a_picture_with_its_settings(studio):
    form = Form("generate", {"prompt": "a cat", "guidance_scale": "4"}, seed=7, scheduler="heun")
    drawing = studio.draw([form.changed("guidance", "GuidanceRescale").changed("guidance_values", {"factor": 0.5})])
    assert studio.find(drawing.id) is drawing and studio.find("another") is None
    assert drawing.job.request.arguments["guidance"].factor == 0.5
    studio.engine.finish()
    wait(drawing)
    ((file,),) = drawing.files
    settings = read_settings(file)
    assert (settings["prompt"], settings["seed"], settings["scheduler"]) == ("a cat", 7, "heun")
    again, unused = form_of_png(file)
    assert not unused and again.guidance == "GuidanceRescale" and again.guidance_values["factor"] == 0.5
    assert studio.pictures() == [file]


def test_cancel_ends_all_of_a_drawing(studio):
    drawing = studio.draw([Form("generate", {"prompt": "a"}, seed=1)] * 3, ["a", "b", "c"], 3)
    assert [studio.place_in_queue(job) for job in drawing.jobs] == [0, 1, 2]
    drawing.cancel()
    wait(drawing)
    assert all(job.state == "cancelled" for job in drawing.jobs) and not any(drawing.files)


@pytest.mark.parametrize(
    "change, said",
    [
        ({"model": "/etc/passwd"}, "no model"),
        ({"loras": [("/etc/passwd", 1.0)]}, "no LoRA"),
        ({"scheduler": "os"}, "no sampler"),
        ({"cache": "os"}, "no step cache"),
        ({"task": "control", "controlnet": "/etc"}, "no ControlNet"),
        ({"guidance": "GuidanceRescale"}, "guidance_scale"),
        ({"values": {"prompt": "a", "num_inference_steps": "1000"}}, "num_inference_steps"),
    ],
)
def test_what_is_not_offered_is_refused(studio, change, said):
    import dataclasses

    form = dataclasses.replace(Form("generate", {"prompt": "a", "control_image": Image.new("RGB", (64, 64))}), **change)
    with pytest.raises(InputError, match=said):
        studio.draw([form])
    assert not studio.engine.jobs


def test_a_grid_has_an_end(studio):
    with pytest.raises(InputError, match="36"):
        studio.draw([Form("generate", {"prompt": "a"})] * 37)


def png(tmp_path, **settings):
    return save_png(Image.new("RGB", (16, 16)), str(tmp_path / "a.png"), {"prompt": "a", **settings})


def test_a_strangers_png_sets_prompts_and_numbers_alone(tmp_path):
    path = png(tmp_path, model="/elsewhere", lora=["x"], image="/etc/passwd", seed=3, cache="taylor", quantize="int8")
    form, unused = form_of_png(path)
    assert (form.model, form.seed, form.cache, form.quantize, form.loras) == ("shapes", 3, "taylor", True, ())
    assert sorted(unused) == ["image", "lora", "model"]


@pytest.mark.parametrize(
    "settings",
    [
        {"num_inference_steps": 10**9},
        {"seed": 2**70},
        {"strength": 7, "command": "img2img"},
        {"command": "train"},
        {"guidance": "[]"},
        {"guidance": json.dumps({"kind": "Guidance"})},
        {"guidance": json.dumps({"kind": "GuidanceRescale", "factor": "x"})},
        {"prompt_2": 5},
    ],
)
def test_impossible_settings_are_refused(tmp_path, settings):
    with pytest.raises(InputError):
        form_of_png(png(tmp_path, **settings))


def test_preprocessors_show_what_they_promise():
    pixels = np.full((64, 64, 3), 200, np.uint8)
    pixels[16:48, 16:48] = (20, 40, 60)
    picture = Image.fromarray(pixels)
    shown = {name: np.asarray(preprocess(name, picture))[..., 0] for name in PREPROCESSORS}
    inside = pixels[..., 0] == 20
    assert ((shown["silhouette"] > 127) == inside).all()
    assert (shown["inverted"] == 255 - pixels[..., 0]).all()
    rows, columns = np.nonzero(shown["edges"])
    border = np.minimum(abs(rows - 15.5), abs(rows - 47.5)).clip(max=99)
    border = np.minimum(border, np.minimum(abs(columns - 15.5), abs(columns - 47.5)))
    assert len(rows) > 80 and border.max() < 3 and shown["edges"][32, 32] == 0
    assert preprocess("edges", None) is None
    with pytest.raises(InputError, match="no preprocessor"):
        preprocess("os", picture)


def test_the_mask_is_where_any_layer_was_painted():
    background, layer = Image.new("RGBA", (8, 8), "white"), Image.new("RGBA", (8, 8))
    assert painted_mask(None) == (None, None)
    assert painted_mask({"background": background, "layers": [layer]})[1] is None
    layer.putpixel((3, 2), (255, 0, 0, 255))
    picture, mask = painted_mask({"background": background, "layers": [None, layer]})
    assert picture.mode == "RGB" and np.argwhere(np.asarray(mask)).tolist() == [[2, 3]]
