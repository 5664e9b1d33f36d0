"""Models for Paddle Inference: they draw the pipeline's picture, and are written completely or not at all."""

import json
import os
import pathlib
from types import SimpleNamespace

import numpy as np
import paddle
import pytest
from helpers import loras, markdown, tiny
from helpers.originals import write
from helpers.parameters import thorough

import ppsd3
from ppsd3.pipelines import exporting
from ppsd3.utils.errors import CheckpointError, InputError

PAGE = pathlib.Path(ppsd3.__file__).parent.parent / "docs" / "guide" / "export.md"
SHAPE = [1, tiny.TRANSFORMER["in_channels"], 16, 12]  # other than the sizes that anything was traced with
CALL = {"num_inference_steps": 3, "guidance_scale": 5.0, "max_sequence_length": 256}


@pytest.fixture(scope="module")
def pipe():
    return tiny.make_pipeline()


@pytest.fixture(scope="module")
def exported(pipe, tmp_path_factory):
    return pathlib.Path(ppsd3.export_pipeline(pipe, tmp_path_factory.mktemp("export") / "exported"))


def program(directory, monkeypatch):
    """The names of the guide's program, which reads what is exported beside it."""
    (code,) = (block.code for block in markdown.blocks(PAGE.read_text(encoding="utf-8")) if "def draw(" in block.code)
    monkeypatch.chdir(directory.parent)
    assert directory.name == "exported"
    names = {"__name__": "guide"}
    exec(compile(code, PAGE, "exec"), names)
    return names


def pipelines_picture(pipe, noise):
    height, width = (side * pipe.vae_scale_factor for side in noise.shape[2:])
    size = {"height": height, "width": width, "output_type": "np"}
    return pipe("a red circle", latents=paddle.to_tensor(noise), **CALL, **size).images


def gap(names, pipe, shape=SHAPE, seed=3):
    """Largest difference between the two pictures, of 255."""
    noise = np.random.default_rng(seed).standard_normal(shape, "float32")
    drawn = names["draw"]("a red circle", noise, steps=3, guidance_scale=5.0)
    return 255 * np.abs(drawn - pipelines_picture(pipe, noise)).max()


def test_the_guides_program_draws_the_pipelines_picture(pipe, exported, monkeypatch):
    names = program(exported, monkeypatch)
    assert gap(names, pipe) <= 0.02
    assert gap(names, pipe, [1, SHAPE[1], 24, 16]) <= 0.02
    assert (exported.parent / "drawn.png").is_file()


@pytest.mark.parametrize("kind", ["sd3.5", *thorough("lora", "on demand")])
def test_other_pipelines(kind, tiny_checkpoint, tmp_path, monkeypatch):
    if kind == "on demand":
        pipe = ppsd3.StableDiffusion3Pipeline.from_pretrained(tiny_checkpoint, load_components="on_demand")
        pipe.set_progress_bar_config(disable=True)
    else:
        pipe = tiny.make_pipeline(**(tiny.SD35 if kind == "sd3.5" else {}))
    if kind == "lora":
        write(tmp_path / "lora.safetensors", loras.for_pipeline(pipe))
        pipe.load_lora_weights(tmp_path / "lora.safetensors", adapter_name="a")
        pipe.set_adapters("a", 0.7)
    names = program(pathlib.Path(ppsd3.export_pipeline(pipe, tmp_path / "exported")), monkeypatch)
    assert gap(names, pipe) <= 0.02


def test_the_encoder_gives_the_posterior(pipe, exported, monkeypatch):
    pixels = np.random.default_rng(1).uniform(-1, 1, [2, 3, 32, 48]).astype("float32")
    mean, std = program(exported, monkeypatch)["load"]("vae_encoder")(pixels=pixels)
    posterior = pipe.vae.encode(paddle.to_tensor(pixels)).latent_dist
    np.testing.assert_allclose(mean, pipe.vae.scale_latents(posterior.mean), atol=1e-5)
    np.testing.assert_allclose(std, posterior.std * pipe.vae.config.scaling_factor, atol=1e-5)


def test_the_index_says_what_the_models_take_and_give(exported):
    from paddle.inference import Config, create_predictor

    index = json.loads((exported / exporting.INDEX).read_text())
    assert set(index["models"]) == {path.parent.name for path in exported.glob("*/inference.pdiparams")}
    assert index["largest_size"] == 24 * 2 * 4 and index["default_size"] == 64
    for name, entry in index["models"].items():
        predictor = create_predictor(Config(str(exported / entry["program"]), str(exported / entry["weights"])))
        assert set(predictor.get_input_names()) == {port["name"] for port in entry["inputs"]}, name
        assert len(predictor.get_output_names()) == len(entry["outputs"]), name


def test_an_absent_text_encoder_has_no_model(tmp_path):
    pipe = tiny.make_pipeline()
    pipe.text_encoder_3 = pipe.tokenizer_3 = None
    ppsd3.export_pipeline(pipe, tmp_path / "x")
    assert "text_encoder_3" not in json.loads((tmp_path / "x" / exporting.INDEX).read_text())["models"]
    assert not (tmp_path / "x" / "tokenizer_3").exists()


def everything_in(directory):
    return {path.relative_to(directory): path.stat().st_size for path in directory.rglob("*") if path.is_file()}


def test_an_earlier_export_is_replaced_as_a_whole(pipe, exported, tmp_path):
    ppsd3.export_pipeline(pipe, tmp_path / "x")
    (tmp_path / "x" / "transformer" / "stale").touch()
    ppsd3.export_pipeline(pipe, tmp_path / "x")
    assert everything_in(tmp_path / "x").keys() == everything_in(exported).keys()
    assert os.listdir(tmp_path) == ["x"]
    assert (tmp_path / "x").stat().st_mode & 0o777 == 0o777 & ~_umask()


def _umask():
    umask = os.umask(0)
    os.umask(umask)
    return umask


@pytest.mark.parametrize("failure", [KeyboardInterrupt, *thorough(OSError, RuntimeError)])
def test_a_failure_leaves_what_was_there(pipe, exported, tmp_path, monkeypatch, failure):
    ppsd3.export_pipeline(pipe, tmp_path / "old")
    before = everything_in(tmp_path)
    save = paddle.jit.save

    def fails(layer, path, **options):
        save(layer, path, **options)
        if "transformer" in path:
            raise failure("in the middle")

    monkeypatch.setattr(paddle.jit, "save", fails)
    for name in ("old", "new"):
        with pytest.raises((failure, CheckpointError)):
            ppsd3.export_pipeline(pipe, tmp_path / name)
    assert everything_in(tmp_path) == before


@pytest.mark.parametrize("suffix, lost", [("pdiparams", 1), ("pdiparams", 300), ("pdiparams", None), (None, 20)])
def test_files_that_a_full_disk_cut_short_are_noticed(pipe, tmp_path, monkeypatch, suffix, lost):
    save = paddle.jit.save

    def fills_the_disk(layer, path, **options):
        save(layer, path, **options)
        cut = f"{path}.{suffix or ('json' if os.path.exists(path + '.json') else 'pdmodel')}"
        os.truncate(cut, 0 if lost is None else os.path.getsize(cut) - lost)

    monkeypatch.setattr(paddle.jit, "save", fills_the_disk)
    with pytest.raises(CheckpointError, match=r"disk of .* is full"):
        ppsd3.export_pipeline(pipe, tmp_path / "x")
    assert os.listdir(tmp_path) == []


def test_a_full_disk_is_told_before_anything_is_written(pipe, tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(CheckpointError, match="GB free"):
        ppsd3.export_pipeline(pipe, tmp_path / "x")
    assert os.listdir(tmp_path) == []


def test_targets_that_are_refused(pipe, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "mine.png").touch()
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for target, message in {"../file": "is a file", "../photos": "other files", ".": "current directory"}.items():
        with pytest.raises(InputError, match=message):
            ppsd3.export_pipeline(pipe, target)
    assert everything_in(tmp_path).keys() == {pathlib.Path("file"), pathlib.Path("photos/mine.png")}


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda pipe: pipe.quantize("int8"), "quantize"),
        (lambda pipe: pipe.text_encoder_3.enable_layerwise_casting(), "storage_dtype"),
        (lambda pipe: setattr(pipe.transformer, "ip_adapter", object()), "unload_ip_adapter"),
        (lambda pipe: pipe.register_modules(controlnet=object()), "from_pipe"),
        (lambda pipe: setattr(pipe, "vae", None), "vae"),
    ],
    ids=["int8", "casting", "ip-adapter", "controlnet", "no vae"],
)
def test_what_a_model_has_no_place_for_is_refused(tmp_path, change, message):
    pipe = tiny.make_pipeline()
    change(pipe)
    with pytest.raises(InputError, match=message):
        ppsd3.export_pipeline(pipe, tmp_path / "x")
    assert os.listdir(tmp_path) == []
