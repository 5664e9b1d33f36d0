"""Files that ppsd3 draws: their names, which are never taken from another; and what a stranger's may set."""

import argparse
import concurrent.futures
import importlib
import json
import os
import re
import zlib

import numpy as np
import pytest
from helpers import pictures
from helpers.process import run as run_python
from PIL import Image

from ppsd3.cli.from_png import SAFE, take_settings
from ppsd3.cli.main import COMMANDS, main
from ppsd3.cli.png import names_directory, output_files, read_settings, save_png
from ppsd3.utils import files
from ppsd3.utils.errors import InputError

PROMPT = "a red circle"


# --------------------------------------------------------------------------------------------------------------- names


@pytest.fixture
def run(tiny_checkpoint, tmp_path, monkeypatch, capsys):
    """Runs ``ppsd3 COMMAND ...`` in an empty directory -> (exit code, stdout lines, stderr)."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments, command="generate"):
        capsys.readouterr()
        code = main([command, *arguments, "--model", str(tiny_checkpoint), "--steps", "1"])
        out, err = capsys.readouterr()
        return code, out.splitlines(), err

    return call


def test_nothing_is_written_over(run):
    long = "a red circle to the left of a blue square and above a green triangle"
    assert run(f"{long} at night", "--seed", "7", "--output", "new/")[0] == 0
    code, (name,), _ = run(f"{long} at noon", "--seed", "7", "--output", "new/")
    assert code == 0 and name.endswith("-7-2.png")
    third = save_png(
        Image.new("RGB", (8, 8)), "new/" + os.path.basename(name)[:-6] + ".png", {"prompt": "x"}, replace=False
    )
    assert third.endswith("-7-3.png")
    assert sorted(read_settings(f"new/{file}")["prompt"][-5:] for file in os.listdir("new")) == [" noon", "night", "x"]


def test_a_named_file_is_replaced(run):
    Image.new("RGB", (8, 8)).save("x-1.png")
    assert run(PROMPT, "--output", "x.png", "--num-images", "2")[1] == ["x-1.png", "x-2.png"]
    assert Image.open("x-1.png").size == (64, 64) and sorted(os.listdir()) == ["x-1.png", "x-2.png"]


@pytest.mark.parametrize(
    "prompt",
    [
        "../../etc/passwd",
        "/absolute\\path",
        "..",
        ".hidden",
        "a\x00b\x1b[31m\n",
        "\u202egnp.exe",
        "🙂🙂",
        "𐂀" * 60,
        "日" * 60,
        "CON",
        "nul.txt",
        "",
        " ",
        "-",
        "\udcff",
        "x" * 10**5,
        " " * 10**5,
    ],
    ids=lambda prompt: ascii(prompt[:12]),
)
def test_names_of_strange_prompts(prompt, tmp_path):
    (file,) = output_files(f"{tmp_path}/", [prompt], [2**64 - 1])
    assert os.path.dirname(file) == str(tmp_path)
    name = os.path.basename(file)
    assert len(name.encode()) < 230 and re.fullmatch(r"[\w-]+-18446744073709551615\.png", name)
    assert name.split("-")[0].upper() not in ("CON", "NUL", "") or "-18446744073709551615" in name
    for _ in range(2):
        file = save_png(Image.new("RGB", (8, 8)), file, {"prompt": prompt}, replace=False)
        assert read_settings(file)["prompt"] == prompt or "\udcff" in prompt


def test_directories(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert [names_directory(name) for name in (None, ".", "a/b/", "a", "a.png")] == [True, True, True, False, False]
    assert output_files("a/b/", ["x"], [1]) == ["a/b/x-1.png"] and os.path.isdir("a/b")
    (tmp_path / "file").write_text("")
    for wrong, message in (("file/", "can be made"), ("c", "c/ with a slash"), ("c/x.png", "does not exist")):
        with pytest.raises(InputError, match=message):
            output_files(wrong, ["x"], [1])
    os.mkdir("x-1.png")  # a directory of that name is no file to lose
    assert save_png(Image.new("RGB", (8, 8)), "x-1.png", {"prompt": ""}, replace=False) == "x-1-2.png"
    with pytest.raises(InputError, match="is a directory"):
        output_files("x.png", ["a"], [1, 2])


@pytest.mark.parametrize("links", [True, False], ids=["links", "a disk without links"])
def test_writers_at_once_lose_nothing(tmp_path, monkeypatch, links):
    def refuse(*arguments):
        raise OSError(1, "no links here")

    def save(number):
        return save_png(Image.new("RGB", (8, 8)), str(tmp_path / "x.png"), {"prompt": str(number)}, replace=False)

    if not links:
        monkeypatch.setattr(os, "link", refuse)
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        names = list(pool.map(save, range(40)))
    assert len(set(names)) == 40 == len(os.listdir(tmp_path))
    assert {read_settings(name)["prompt"] for name in names} == set(map(str, range(40)))


@pytest.mark.machine
def test_processes_at_once_lose_nothing(tmp_path):
    code = (
        "import sys; from PIL import Image; from ppsd3.cli.png import save_png\n"
        "for i in range(25): save_png(Image.new('RGB', (8, 8)), sys.argv[1], {'prompt': f'{sys.argv[2]}{i}'}, False)"
    )
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda who: run_python(code, tmp_path / "x.png", who), "ab"))
    found = {read_settings(path)["prompt"] for path in tmp_path.iterdir()}
    assert found == {f"{who}{i}" for who in "ab" for i in range(25)}


def test_a_failed_save_leaves_nothing(tmp_path, monkeypatch):
    def fail(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(files, "_is_placed", fail)
    with pytest.raises(KeyboardInterrupt):
        save_png(Image.new("RGB", (8, 8)), str(tmp_path / "x.png"), {"prompt": ""}, replace=False)
    assert not os.listdir(tmp_path)


# ----------------------------------------------------------------------------------------------- what a picture may set

# Options that name files to read or to write, models, devices, or what is said: those that a picture may not set.
UNSAFE = {
    *("model", "config", "variant", "lora", "textual_inversion", "ip_adapter", "image_encoder", "controlnet", "device"),
    *("image", "mask_image", "control_image", "control_mask", "ip_adapter_image"),
    *("output", "preview", "prompt_file", "from_png", "trust_png", "quiet", "help", "num_images_per_prompt"),
    "use_cfg_parallel",
}


def test_only_the_commands_that_draw_read_pictures_settings():
    drawing = [command for command, _ in drawing_parsers()]
    for command in COMMANDS:
        parser = argparse.ArgumentParser()
        importlib.import_module(f"ppsd3.cli.{command}").add_arguments(parser)
        assert ("from_png" in {action.dest for action in parser._actions}) == (command in drawing)


def drawing_parsers():
    for command in COMMANDS:
        module = importlib.import_module(f"ppsd3.cli.{command}")
        if hasattr(module, "add_drawing_arguments"):
            parser = argparse.ArgumentParser()
            module.add_arguments(parser)
            yield command, parser


def test_every_option_is_known_to_be_safe_or_not():
    """A new option is unsafe until it is in the table; here it has to be named, so that somebody decides."""
    options = {action.dest: action for _, parser in drawing_parsers() for action in parser._actions}
    assert set(options) == set(SAFE) | UNSAFE and not set(SAFE) & UNSAFE
    for name in SAFE:
        action = options[name]
        assert action.metavar in (None, "TEXT", "N", "X", "PROMPT", "PIXELS", "NAME"), name
        assert action.metavar != "NAME" or action.choices
        if action.type in (int, float):
            least, most = SAFE[name]
            assert -(2**63) <= least < most <= 2**64
    assert not {action.dest for _, parser in drawing_parsers() for action in parser._actions if action.required}


def hostile(path, **settings):
    save_png(Image.new("RGB", (8, 8)), str(path), {"prompt": PROMPT, **settings})
    return str(path)


VALUES = {
    "lora": ["evil.safetensors"],
    "controlnet": ["evil"],
    "textual_inversion": ["evil"],
    "control_image": ["evil.png"],
}


@pytest.mark.parametrize("command", ["generate", "img2img", "inpaint", "control"])
def test_what_names_files_is_shown_and_not_used(command, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    parser = dict(drawing_parsers())[command]
    known = {action.dest for action in parser._actions}
    for name in sorted((UNSAFE & known) - {"from_png"}):
        value = VALUES.get(name, True if name in ("quiet", "help", "trust_png", "use_cfg_parallel") else "/tmp/evil")
        file = hostile(tmp_path / "x.png", command=command, **{name: value})
        assert main([command, "--from-png", file]) == 2
        error = capsys.readouterr().err
        assert "--trust-png" in error and f"{next(iter(VALUES.get(name, [value])))}" in error, name
        assert os.listdir(tmp_path) == ["x.png"]


def test_the_command_line_names_it_or_trusts(run, tiny_checkpoint):
    file = hostile("x.png", model="/nowhere", output="evil.png", seed=5, height=32)
    assert (
        main(["generate", "--from-png", file, "--model", str(tiny_checkpoint), "--output", "y.png", "--steps", "1"])
        == 0
    )
    assert sorted(os.listdir()) == ["x.png", "y.png"]
    settings = read_settings("y.png")
    assert (settings["seed"], settings["height"], settings["model"]) == (5, 32, str(tiny_checkpoint))
    assert (
        main(["generate", "--from-png", file, "--trust-png", "--steps", "1", "--output", "z.png"]) == 2
    )  # no such model
    file = hostile("x.png", model=str(tiny_checkpoint), output="named.png")
    assert main(["generate", "--from-pn", file, "--trust-png", "--steps", "1"]) == 0
    assert os.path.exists("named.png")


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"num_inference_steps": 10**9}, "--steps 1000000000, and a picture can set whole numbers from 1 to 1000[.]"),
        ({"height": 10**6, "width": 10**6}, "--height 1000000"),
        ({"num_inference_steps": 2.5}, "whole numbers"),
        ({"num_inference_steps": True}, "whole numbers"),
        ({"num_inference_steps": "3"}, "whole numbers"),
        ({"guidance_scale": float("nan")}, "--guidance-scale nan"),
        ({"guidance_scale": float("inf")}, "--guidance-scale inf"),
        ({"sigmas": [0.5] * 1000 + [0.1]}, "--sigmas"),
        ({"sigmas": []}, "--sigmas"),
        ({"prompt": 7}, "PROMPT 7, and a picture can set text"),
        ({"prompt": ["a", "b"]}, "PROMPT"),
        ({"negative_prompt": None}, "no number and no text"),
        ({"prompt": {"a": 1}}, "no number and no text"),
        ({"scheduler": "magic"}, "one of euler"),
        ({"without_t5": "yes"}, "--without-t5"),
        ({"num_images_per_prompt": 10**6}, "--trust-png"),
        ({"cuteness": 3}, "'cuteness'|cuteness"),
        ({"\x1b[31m": 3}, r"\\x1b\[31m"),
        ({"command": "\x1b]0;x\x07"}, r"\\x1b\]0;x\\x07"),
        ({"command": ["img2img"]}, "img2img"),
    ],
    ids=str,
)
def test_values_are_checked_as_options_are(settings, message, tmp_path, capsys):
    file = tmp_path / "x.png"
    file.write_bytes(with_text(json.dumps({"prompt": PROMPT, **settings}).encode()))
    assert main(["generate", "--from-png", str(file)]) == 2
    error = capsys.readouterr().err
    assert re.search(message, error) and str(file) in error and "\x1b" not in error


def with_text(content, kind=b"iTXt", start=b"\0\0\0\0"):
    """The bytes of a PNG whose settings are ``content``."""
    return pictures.png(1, 1, bytes(4), more=pictures.chunk(kind, b"ppsd3\0" + start + content))


@pytest.mark.parametrize(
    "content, message",
    [
        (with_text(b"[" * 10**5), "deeper"),
        (with_text(b'{"a":' * 10**5), "deeper"),
        (with_text(b"[1, 2]"), "not a JSON object"),
        (with_text(b"{"), "not valid JSON"),
        (with_text(b'{"seed": 1, "seed": 2}'), "twice"),
        (with_text(b'{"seed": ' + b"9" * 5000 + b"}"), "digits"),
        (with_text(b"\xff\xfe"), "UTF-8"),
        (with_text(b'{"prompt": "\\ud800"}'), "Unicode"),
        (with_text(b" " * (1 << 21)), "bytes"),
        (with_text(zlib.compress(b" " * (1 << 26)), b"zTXt", b"\0"), "more than"),
        (with_text(zlib.compress(b" " * (1 << 26)), b"iTXt", b"\1\0\0\0"), "more than"),
        (with_text(zlib.compress(b"{}")[:-3], b"zTXt", b"\0"), "cut off"),
        (with_text(b"no zlib", b"zTXt", b"\0"), "damaged"),
        (with_text(b"", b"iTXt", b""), "damaged"),
        (with_text(b"{}")[:-30].replace(b"{}", b"{ "), "checksum"),
        (pictures.png(1, 1, bytes(4), more=2 * pictures.chunk(b"tEXt", b"ppsd3\0{}")), "2 places"),
        (pictures.png(1, 1, bytes(4)), "how it was drawn"),
        (b"\x89PNG\r\n\x1a\n", "how it was drawn"),
        (b"", "no picture"),
    ],
)
def test_settings_that_are_refused(content, message, tmp_path):
    file = tmp_path / "x.png"
    file.write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        read_settings(str(file))
    assert str(file) in str(caught.value)


def test_texts_of_every_kind_and_no_pixels(tmp_path):
    settings = {"prompt": "é", "seed": 1}
    text = json.dumps(settings, ensure_ascii=False)
    file = tmp_path / "x.png"
    for content in (
        with_text(text.encode()),
        with_text(zlib.compress(text.encode()), b"iTXt", b"\1\0en\0\0"),
        with_text(text.encode("latin-1"), b"tEXt", b""),
        with_text(zlib.compress(text.encode("latin-1")), b"zTXt", b"\0"),
        pictures.png(2**31 - 1, 2**31 - 1, more=pictures.chunk(b"tEXt", b"ppsd3\0" + text.encode("latin-1"))),
    ):
        file.write_bytes(content)
        assert read_settings(str(file)) == settings


def test_mutations_are_read_or_refused(tmp_path, capsys):
    """Three hundred mutations of a PNG's bytes, and of its settings' JSON with right checksums."""
    rng = np.random.default_rng(0)
    settings = {"prompt": PROMPT, "seed": 7, "num_inference_steps": 2, "sigmas": [1.0, 0.5], "model": "shapes"}
    whole = with_text(json.dumps(settings).encode())
    parser = dict(drawing_parsers())["generate"]
    defaults = {action.dest: action.default for action in parser._actions}
    file, kept = str(tmp_path / "x.png"), 0
    bits = [b"{", b"}", b"[", b'"', b"null", b"true", b"1e999", b"-1", b"\\u0000", b"\x1b[2J", b"\xff", b"9" * 50, b""]
    values = [
        "",
        "x" * 10**4,
        0,
        -1,
        2**70,
        1e308,
        float("nan"),
        True,
        [],
        [[1]],
        {},
        None,
        ["x"],
        [1, "x"],
        "\x1b[2J\u202e",
    ]
    for number in range(300):
        changed = dict(settings)
        if number % 3 == 0:
            changed[[*SAFE, *UNSAFE, "\x1b"][rng.integers(len(SAFE) + len(UNSAFE) + 1)]] = values[
                rng.integers(len(values))
            ]
        content = bytearray(json.dumps(changed).encode() if number % 3 < 2 else whole)
        for place in rng.integers(0, len(content), rng.integers(1, 4) if number % 3 else 0):
            content[place : place + rng.integers(0, 6)] = bits[rng.integers(len(bits))]
        with open(file, "wb") as stream:
            stream.write(with_text(bytes(content)) if number % 3 < 2 else content)
        parser.set_defaults(**defaults)
        kept += outcome(lambda: take_settings(parser, ["--from-png", file], "generate"), file)
        assert main(["info", file]) in (0, 2)
        shown = "".join(capsys.readouterr())
        assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f\u202a-\u202e]", shown)
    assert 20 < kept < 280


def outcome(read, file):
    """Whether ``read()`` succeeds; else it refuses by the file's name."""
    try:
        read()
    except InputError as error:
        return file not in str(error) and pytest.fail(str(error))
    return True
