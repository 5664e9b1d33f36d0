"""``ppsd3 generate``: pictures with their settings in them, and no work before the arguments are known to be good."""

import argparse
import inspect
import json
import os

import numpy as np
import pytest
from helpers import loras
from PIL import Image

import ppsd3
from ppsd3.cli.call_options import add_call_options, call_arguments
from ppsd3.cli.main import main
from ppsd3.cli.options import split_word
from ppsd3.cli.png import describe, output_files, read_settings, save_png
from ppsd3.utils.errors import InputError

PROMPT = "a red circle"


@pytest.fixture
def run(tiny_checkpoint, tmp_path, monkeypatch, capsys):
    """Runs ``ppsd3 generate PROMPT ...`` in an empty directory -> (exit code, stdout lines, stderr)."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments, prompt=PROMPT):
        capsys.readouterr()
        prompts = [] if prompt is None else [prompt]
        code = main(["generate", *prompts, "--model", str(tiny_checkpoint), "--steps", "1", *arguments])
        out, err = capsys.readouterr()
        return code, out.splitlines(), err

    return call


@pytest.fixture
def nothing_is_loaded(monkeypatch):
    def refuse(*arguments, **options):
        raise AssertionError("the model was loaded before the arguments were checked")

    monkeypatch.setattr(ppsd3.StableDiffusion3Pipeline, "from_pretrained", classmethod(refuse))


def pixels(path):
    with Image.open(path) as image:
        return np.asarray(image)


# ------------------------------------------------------------------------------------------------------------ pictures


def test_draws_what_the_pipeline_draws(run, tiny_checkpoint):
    code, out, err = run("--seed", "5", "--output", "x.png", "--negative-prompt", "blue", "--guidance-scale", "3")
    assert (code, out) == (0, ["x.png"]) and "1/1" in err
    pipe = ppsd3.StableDiffusion3Pipeline.from_pretrained(tiny_checkpoint)
    arguments = {"negative_prompt": "blue", "guidance_scale": 3.0, "num_inference_steps": 1}
    image = pipe(PROMPT, generator=ppsd3.TorchGenerator(5), **arguments).images[0]
    assert np.array_equal(pixels("x.png"), np.asarray(image))


def test_settings_are_in_the_file(run, tiny_checkpoint):
    run("--seed", "5", "--output", "x.png", "--negative-prompt", "blue é 日本", "--without-t5", "--height", "32")
    settings = read_settings("x.png")
    expected = {
        "prompt": PROMPT,
        "negative_prompt": "blue é 日本",
        "num_inference_steps": 1,
        "guidance_scale": 7.0,
        "max_sequence_length": 256,
        "seed": 5,
        "width": 64,
        "height": 32,
        "model": str(tiny_checkpoint),
        "dtype": "float32",
        "without_t5": True,
        "ppsd3_version": ppsd3.__version__,
    }
    assert {name: settings[name] for name in expected} == expected
    with Image.open("x.png") as image:
        prose = image.text["parameters"]
    assert prose.startswith(f"{PROMPT}\nNegative prompt: blue é 日本\n") and "seed: 5" in prose


def test_a_picture_can_be_drawn_again_from_its_settings(run):
    run("--num-images", "2", "--output", "first.png")
    seed = read_settings("first-2.png")["seed"]
    run("--seed", str(seed), "--output", "again.png")
    assert np.abs(pixels("again.png").astype(int) - pixels("first-2.png")).max() <= 1
    assert seed == read_settings("first-1.png")["seed"] + 1


def test_previews(run, tmp_path):
    code, (file,), _ = run("--steps", "3", "--num-images", "1", "--preview", str(tmp_path / "steps"))
    assert code == 0 and "callback_on_step_end" not in read_settings(file)
    assert sorted(os.listdir(tmp_path / "steps")) == ["step-001.png", "step-002.png", "step-003.png"]
    assert pixels(tmp_path / "steps" / "step-002.png").shape == (16, 16, 3)
    (tmp_path / "taken").write_text("x")
    assert run("--preview", str(tmp_path / "taken"))[0] == 2


def test_loras(run, tiny_checkpoint, tmp_path):
    pipe = ppsd3.StableDiffusion3Pipeline.from_pretrained(tiny_checkpoint)
    for name, seed in (("a", 0), ("b", 5)):
        pipe.load_lora_weights(loras.for_pipeline(pipe, seed), adapter_name=name)
        pipe.save_lora_weights(tmp_path / name, name)
    pipe.set_adapters(["a", "b"], [0.5, 1.0])
    pipe.set_progress_bar_config(disable=True)
    expected = pipe(PROMPT, num_inference_steps=1, generator=ppsd3.TorchGenerator(3)).images[0]
    options = ["--lora", f"{tmp_path / 'a'}:0.5", "--lora", str(tmp_path / "b")]
    code, (file,), _ = run("--seed", "3", *options)
    assert code == 0
    np.testing.assert_array_equal(np.asarray(Image.open(file)), np.asarray(expected))
    code, (again,), _ = run("--from-png", file, "--trust-png", "--output", "again.png", prompt=None)
    np.testing.assert_array_equal(np.asarray(Image.open(again)), np.asarray(expected))
    code, _, err = run("--lora", "nowhere.safetensors:0.5")
    assert code != 0 and "nowhere.safetensors" in err


def test_textual_inversion(run, tiny_checkpoint, tmp_path):
    pipe = ppsd3.StableDiffusion3Pipeline.from_pretrained(tiny_checkpoint)
    rows = pipe.text_encoder.get_input_embeddings().weight[5:7]
    pipe.load_textual_inversion(rows, token="<cat>")
    pipe.save_textual_inversion(tmp_path / "saved", "<cat>", weight_name="cat.safetensors")
    pipe.set_progress_bar_config(disable=True)
    expected = pipe("<cat> red", num_inference_steps=1, generator=ppsd3.TorchGenerator(3)).images[0]
    path = tmp_path / "saved" / "cat.safetensors"
    code, (file,), _ = run("--seed", "3", "--textual-inversion", str(path), prompt="<cat> red")
    assert code == 0
    np.testing.assert_array_equal(pixels(file), np.asarray(expected))
    code, (again,), _ = run("--from-png", file, "--trust-png", "--output", "again.png", prompt=None)
    np.testing.assert_array_equal(pixels(again), np.asarray(expected))
    settings = ["--textual-inversion", f"{path}:<dog>", "--textual-inversion", str(path), "--output", "two.png"]
    code, (two,), _ = run("--seed", "3", *settings, prompt="<dog> red")
    assert code == 0 and read_settings(two)["textual_inversion"] == [f"{path}:<dog>", str(path)]
    pipe.load_textual_inversion(rows, token="<dog>")
    image = pipe("<dog> red", num_inference_steps=1, generator=ppsd3.TorchGenerator(3)).images[0]
    np.testing.assert_array_equal(pixels(two), np.asarray(image))
    code, _, err = run("--textual-inversion", "nowhere.safetensors:<cat>")
    assert code != 0 and "nowhere.safetensors" in err


def test_words_of_files():
    assert split_word("cat.safetensors") == ("cat.safetensors", None)
    assert split_word("a:b.safetensors:<cat>") == ("a:b.safetensors", "<cat>")
    assert split_word("https://hub/a/b/resolve/main/x.safetensors") == (
        "https://hub/a/b/resolve/main/x.safetensors",
        None,
    )
    assert split_word("https://hub/x.safetensors:cat") == ("https://hub/x.safetensors", "cat")
    assert split_word("C:\\x.safetensors") == ("C:\\x.safetensors", None)


def test_prompt_weighting(run):
    def draw(prompt, *arguments):
        return run("--seed", "1", "--output", f"{len(os.listdir())}.png", *arguments, prompt=prompt)[1][0]

    plain, weighted = draw(PROMPT), draw("a (red:1.5) circle", "--prompt-weighting")
    np.testing.assert_array_equal(pixels(draw("a (red:1.0) circle", "--prompt-weighting")), pixels(plain))
    assert (pixels(weighted) != pixels(plain)).any()
    assert read_settings(weighted)["prompt_weighting"] is True


def test_a_single_file(run, tiny_checkpoint, tmp_path):
    original = ppsd3.convert(tiny_checkpoint, tmp_path / "sd3.safetensors")
    _, (expected,), _ = run("--seed", "1", "--output", "a.png")
    code, (file,), _ = run("--seed", "1", "--output", "b.png", "--model", original, "--config", str(tiny_checkpoint))
    assert code == 0
    np.testing.assert_array_equal(pixels(file), pixels(expected))
    assert read_settings(file)["config"] == str(tiny_checkpoint)
    on_demand = ["--on-demand", "--model", original, "--config", str(tiny_checkpoint)]
    code, (file,), _ = run("--seed", "1", "--output", "c.png", *on_demand)
    assert code == 0 and np.abs(pixels(file).astype(int) - pixels(expected)).max() < 20  # weights in 16 bits
    for arguments, message in (
        (["--variant", "fp16", "--model", original], "--variant"),
        (["--config", "x"], "--config"),
    ):
        code, _, error = run(*arguments)
        assert code == 2 and message in error


def test_names(run):
    assert run("--seed", "7")[1] == [os.path.join(".", "a-red-circle-7.png")]
    os.mkdir("album")
    assert run("--seed", "7", "--output", "album", "--num-images", "2")[1] == [
        os.path.join("album", f"a-red-circle-{seed}.png") for seed in (7, 8)
    ]
    assert run("--output", "x.png", "--num-images", "2")[1] == ["x-1.png", "x-2.png"]
    assert all(os.path.isfile(name) for name in ("a-red-circle-7.png", "album/a-red-circle-8.png", "x-2.png"))


def test_prompts_from_a_file(run):
    with open("prompts.txt", "w") as file:
        file.write("a red circle\n\n  a blue square  \na red circle\n")
    code, out, _ = run("--prompt-file", "prompts.txt", "--seed", "7", prompt=None)
    assert code == 0 and [os.path.basename(name) for name in out] == [
        "a-red-circle-1-7.png",
        "a-blue-square-7.png",
        "a-red-circle-3-7.png",
    ]
    assert np.array_equal(pixels(out[0]), pixels(out[2])) and not np.array_equal(pixels(out[0]), pixels(out[1]))
    assert read_settings(out[1])["prompt"] == "a blue square"
    assert run("--prompt-file", "prompts.txt")[0] == run(prompt=None)[0] == 2
    assert "missing.txt" in run("--prompt-file", "missing.txt", prompt=None)[2]


def test_settings_from_a_picture(run):
    run("--seed", "5", "--output", "first.png", "--negative-prompt", "blue", "--height", "32", "--without-t5")
    assert run("--from-png", "first.png", "--output", "again.png", prompt=None)[0] == 0
    assert np.array_equal(pixels("first.png"), pixels("again.png"))
    run("--from-png", "first.png", "--output", "other.png", "--seed", "6", prompt="a star")
    settings = read_settings("other.png")
    assert (settings["prompt"], settings["seed"], settings["height"]) == ("a star", 6, 32)
    code, _, err = run("--from-png", "missing.png", prompt=None)
    assert code == 2 and "missing.png" in err


def test_quiet(run):
    assert run("--quiet") == (0, [], "")


@pytest.mark.parametrize(
    "arguments",
    [
        ("--prompt-2", "blue"),
        ("--prompt-3", "blue"),
        ("--negative-prompt-2", "blue"),
        ("--negative-prompt-3", "blue"),
        ("--guidance-scale", "1"),
        ("--max-sequence-length", "77"),
        ("--clip-skip", "1"),
        ("--without-t5",),
        ("--skip-guidance-layers", "0", "1", "--skip-layer-guidance-start", "-1"),
        ("--seed", "1"),
    ],
    ids=str,
)
def test_option_changes_the_picture(run, arguments):
    options = ("--quiet", "--output")
    assert run("--seed", "0", *options, "plain.png")[0] == 0
    assert run("--seed", "0", *arguments, *options, "other.png")[0] == 0
    assert np.abs(pixels("plain.png").astype(int) - pixels("other.png")).max() > 2


def test_defaults_are_the_pipelines():
    parser = argparse.ArgumentParser()
    add_call_options(parser, ppsd3.StableDiffusion3Pipeline)
    parameters = inspect.signature(ppsd3.StableDiffusion3Pipeline.__call__).parameters
    given = call_arguments(parser.parse_args([]), ppsd3.StableDiffusion3Pipeline)
    left_to_checkpoints = {"num_inference_steps": None, "guidance_scale": None}
    assert given == {**{name: parameters[name].default for name in given}, **left_to_checkpoints}
    assert given["max_sequence_length"] == 256


def test_what_a_checkpoint_may_say_is_left_to_it(tmp_path):
    """`shapes` draws at guidance 3; the file says what it was drawn with."""
    for more, scale in ((), 3.0), (("--guidance-scale", "7"), 7.0):
        assert (
            main(["generate", "a red circle", "--steps", "1", "--quiet", "--output", f"{tmp_path}/x.png", *more]) == 0
        )
        assert read_settings(tmp_path / "x.png")["guidance_scale"] == scale


# ----------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("--output", "missing/x.png"), "missing does not exist"),
        (("--output", "x.jpg"), ".png"),
        (("--output", "x"), ".png"),
        (("--num-images", "0"), "--num-images is 0"),
        (("--device", "abacus"), "'abacus' is no device"),
        (("--dtype", "float16", "--device", "cpu"), "--dtype float16 needs a GPU"),
        (("--dtype", "bfloat16", "--device", "cpu"), "--dtype bfloat16 needs a GPU"),
    ],
    ids=str,
)
def test_refuses_before_loading(run, nothing_is_loaded, arguments, message):
    code, out, err = run(*arguments)
    assert code == 2 and out == [] and message in err and err.count("\n") == 1
    assert os.listdir() == []


def test_refuses_a_directory_without_permission(monkeypatch, tmp_path):
    monkeypatch.setattr(os, "access", lambda *arguments: False)
    with pytest.raises(InputError, match="no permission"):
        output_files(str(tmp_path / "x.png"), [PROMPT], [0])


@pytest.mark.parametrize("arguments", [("--height", "60"), ("--steps", "0"), ("--max-sequence-length", "600")], ids=str)
def test_refuses_before_drawing(run, arguments):
    code, out, err = run("--output", "x.png", *arguments)
    assert code == 2 and out == [] and err.splitlines()[-1].startswith("ppsd3: error: ") and not os.path.exists("x.png")


def test_missing_model(run):
    code, _, err = run("--model", "nowhere")
    assert code == 2 and "nowhere" in err


# ------------------------------------------------------------------------------------------------------------ the file


def test_failed_save_leaves_nothing(tmp_path, monkeypatch):
    image = Image.new("RGB", (8, 8))

    def fail(*arguments, **options):
        raise OSError("disk full")

    monkeypatch.setattr(image, "save", fail)
    with pytest.raises(OSError, match="disk full"):
        save_png(image, tmp_path / "x.png", {"prompt": PROMPT})
    assert os.listdir(tmp_path) == []


def test_read_settings_of_something_else(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "plain.png")
    (tmp_path / "text.png").write_text("no picture")
    for name, message in (("plain.png", "how it was drawn"), ("text.png", "no picture")):
        with pytest.raises(InputError, match=message):
            read_settings(tmp_path / name)


def test_describe():
    assert describe({"prompt": "x", "seed": 1, "num_inference_steps": 2}) == "x\nseed: 1, num inference steps: 2"
    assert json.dumps("x") not in describe({"prompt": "x"})


def test_slug():
    files = output_files(None, ["Ein  Bild: «日本» / " + "x" * 100], [3])
    assert os.path.basename(files[0]).startswith("ein-bild-日本-xxx") and files[0].endswith("-3.png")
    assert output_files(None, ["!?"], [3]) == [os.path.join(".", "picture-3.png")]


def test_bundled_model_is_the_default(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["generate", "a red circle to the left of a blue square", "--steps", "2"]) == 0
    (name,) = os.listdir(tmp_path)
    assert pixels(name).std() > 10
