"""What `ppsd3 doctor` finds, completes and removes."""

import contextlib
import dataclasses
import io
import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import paddle
import pytest
from PIL import Image

import ppsd3
from ppsd3.cli.doctor import gpus, installation, self_test
from ppsd3.cli.main import main
from ppsd3.ops import native
from ppsd3.ops.native import library
from ppsd3.utils import files, gpu, temporary
from ppsd3.utils.files import atomic_write, replacing
from ppsd3.utils.gpu import Card, GpuBuild

FROM_PYPI = GpuBuild("2.6.2", "11.8", "8.6.0", ((6, 1), (7, 0), (7, 5), (8, 0), (8, 6)))
T4 = Card(0, "Tesla T4", (7, 5), 16 * 10**9)
A100 = Card(0, "NVIDIA A100-SXM4-40GB", (8, 0), 40 * 10**9)
H100 = Card(1, "NVIDIA H100 80GB HBM3", (9, 0), 80 * 10**9)


@pytest.fixture
def saved(tmp_path, monkeypatch):
    """A directory with an interrupted save that can be completed, a leftover in it, and one beside it."""
    directory = tmp_path / "work" / "model"
    for content in (b"1", b"2"):
        with monkeypatch.context() as patch:
            patch.setattr(files, "_can_be_exchanged", lambda target: False)
            patch.setattr(files, "_complete", lambda target: None)
            with replacing(directory) as new, atomic_write(os.path.join(new, "a.json")) as file:
                file.write(content)
    for path, descriptor in (
        temporary.make_directory(str(directory)),
        temporary.make_directory(str(tmp_path / "work")),
    ):
        with open(os.path.join(path, "part"), "w") as file:
            file.write("x" * 1000)
        os.close(descriptor)  # as when its process has ended
    return directory


@pytest.fixture(scope="module")
def report():
    """(exit code, what `ppsd3 doctor --json` prints) on this machine."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        code = main(["doctor", "--json"])
    return code, json.loads(printed.getvalue())


def test_this_machine(report):
    code, said = report
    assert code == 0 and said["wrong"] is False and said["ppsd3"] == ppsd3.__version__
    found = {finding["key"]: finding for finding in said["findings"]}
    assert len(found) == len(said["findings"]) and all(finding["verdict"] != "wrong" for finding in found.values())
    assert {"paddle", "package.safetensors", "gpu", "process", "memory", "compiler", "cache", "kernels"} < set(found)
    assert found["paddle"]["value"] == paddle.__version__ and found["bundled.shapes"]["verdict"] == "ok"
    picture = found["self_test.float32"]
    assert picture["verdict"] == "ok" and picture["value"]["difference"] < 0.4, "see make_self_test.py in tests/golden"


def verdicts(findings):
    """{key: finding}; whatever is wrong has a remedy."""
    found = {finding.key: finding for finding in findings}
    assert all(finding.remedy for finding in found.values() if finding.verdict == "wrong"), found
    return found


def test_a_package_is_missing():
    finding = installation._package("no_such_package_anywhere")
    assert finding.verdict == "wrong" and "pip install" in finding.remedy


# ------------------------------------------------------------------------------------------------ Paddle and its GPUs

STUB = """
__version__ = full_version = "2.5.2"
class version:
    cuda = cudnn = staticmethod(lambda: "False")
is_compiled_with_cuda = lambda: False
Tensor = dtype = type("Tensor", (), {})
"""


def test_a_paddle_that_is_too_old_to_import_what_is_needed(tmp_path):
    (tmp_path / "paddle.py").write_text(STUB)  # 2.5 has no paddle.base
    path = os.pathsep.join([str(tmp_path), os.path.dirname(os.path.dirname(ppsd3.__file__))])

    command = [sys.executable, "-m", "ppsd3", "doctor"]
    environment = {**os.environ, "PYTHONPATH": path}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 1 and "wrong Paddle: 2.5.2, built for the CPU; ppsd3 needs 2.6.2" in result.stdout
    assert 'pip install "paddlepaddle>=2.6.2,<3.4"' in result.stdout and not result.stderr


@pytest.fixture
def machine(monkeypatch):
    """(build, cards, driver, cuDNN) -> what is then found of GPUs."""

    def pretend(build, cards=(), driver=(None, None), cudnn=None):
        for name, value in {"build": build, "cards": list(cards), "driver": driver, "loaded_cudnn": cudnn}.items():
            monkeypatch.setattr(gpu, name, lambda value=value: value)
        monkeypatch.setattr(gpu, "count", lambda: len(cards))
        return verdicts([installation._paddle(build), *gpus.look()])

    return pretend


def test_an_old_gpu_build_on_a_card_that_it_knows_and_on_newer_ones(machine):
    driver = ("550.54.14", (12, 4))
    found = machine(FROM_PYPI, [A100], driver, "8.6")
    assert not [finding for finding in found.values() if finding.verdict != "ok"]
    assert found["gpu.0"].value == {"name": A100.name, "capability": "8.0", "memory": A100.memory}
    assert "6.1, 7.0, 7.5, 8.0, 8.6" in found["gpu.code"].state
    found = machine(FROM_PYPI, [A100, H100], driver, "8.6")
    assert found["gpu.0"].verdict == "ok" and found["gpu.1"].verdict == "wrong"
    assert H100.name in found["gpu.1"].state and "cu126" in found["gpu.1"].remedy
    found = machine(FROM_PYPI, [T4], driver, "8.6")
    assert found["gpu.0"].verdict == "note" and "float16" in found["gpu.0"].remedy
    found = machine(GpuBuild("2.5.2", "11.8", "8.6"), [A100], driver, "8.6")
    assert found["paddle"].verdict == "wrong" and "Paddle's own index" in found["paddle"].remedy
    found = machine(GpuBuild("3.0.0", "12.6", "9.5.1"), [H100], driver, "9.5")
    assert found["gpu.code"].verdict == "note" and found["gpu.1"].verdict == "ok"


def test_no_gpu_on_a_gpu_build(machine, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    found = machine(FROM_PYPI, cudnn="8.6")
    assert found["gpu.driver"].verdict == found["gpu"].verdict == "wrong" and "--gpus" in found["gpu.driver"].remedy
    found = machine(FROM_PYPI, driver=("550.54.14", (12, 4)), cudnn="8.6")
    assert found["gpu.driver"].verdict == "ok" and "nvidia-smi" in found["gpu"].remedy
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    found = machine(FROM_PYPI, driver=("550.54.14", (12, 4)), cudnn="8.6")
    assert "CUDA_VISIBLE_DEVICES is ''" in found["gpu"].remedy


def test_drivers_and_cudnn_that_do_not_fit(machine):
    built = GpuBuild("3.3.1", "12.9", "9.9.0", ((8, 0), (9, 0)))
    found = machine(built, [H100], ("470.82", (11, 4)), "8.6")
    assert found["gpu.driver"].verdict == "wrong" and "CUDA 12.9" in found["gpu.driver"].state
    assert found["gpu.cudnn"].verdict == "wrong" and "LD_LIBRARY_PATH" in found["gpu.cudnn"].remedy
    assert machine(built, [H100], ("550.54.14", (12, 4)), None)["gpu.cudnn"].verdict == "wrong"
    assert machine(built, [H100], ("550.54.14", (12, 4)), "9.9")["gpu.driver"].verdict == "ok"


def test_a_gpu_that_the_cpu_build_leaves_alone(machine):
    assert machine(GpuBuild("3.3.1"))["gpu"].verdict == "ok"
    found = machine(GpuBuild("3.3.1"), driver=("550.54.14", (12, 4)))
    assert found["gpu"].verdict == "note" and gpu.INSTALL_GUIDE in found["gpu"].remedy


# ------------------------------------------------------------------------------------------------- kernels and caches


@pytest.fixture
def kernels(tmp_path, monkeypatch):
    """(cache, compiler or None) -> what is found of kernels by a process that has loaded none."""

    def look(cache, compiler=None):
        monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
        monkeypatch.setenv("CXX", str(compiler or "no-compiler-here"))
        monkeypatch.setenv("PATH", str(tmp_path / "empty"))
        monkeypatch.setattr(native, "_loaded", None)
        return verdicts(installation._kernels())

    return look


def test_no_compiler(kernels, tmp_path, monkeypatch):
    found = kernels(tmp_path / "cache")
    for key in ("compiler", "kernels"):
        assert found[key].verdict == "wrong" and "apt install g++" in found[key].remedy
    assert found["cache"].verdict == "ok"
    monkeypatch.setattr(gpu, "count", lambda: 1)
    assert {key: finding.verdict for key, finding in kernels(tmp_path / "cache").items()} == {
        "compiler": "note",
        "cache": "ok",
        "kernels": "note",
    }


def test_a_compiler_that_fails(kernels, tmp_path):
    script = tmp_path / "compiler"
    script.write_text("#!/bin/sh\necho this is no machine for me >&2\nexit 1\n")
    script.chmod(0o700)
    found = kernels(tmp_path / "cache", script)
    assert found["compiler"].verdict == "ok" and found["kernels"].verdict == "wrong"
    assert "no machine for me" in found["kernels"].state and "CXX" in found["kernels"].remedy


def test_a_cache_that_cannot_be_written(kernels, tmp_path):
    (tmp_path / "file").write_text("x")
    for broken in ("/proc/ppsd3-cache", tmp_path / "file"):
        found = kernels(broken)
        assert found["cache"].verdict == "wrong" and "XDG_CACHE_HOME" in found["cache"].remedy
        assert str(broken) in found["cache"].state


def test_a_file_in_place_of_the_cache_gives_way(kernels, tmp_path):
    (tmp_path / "ppsd3").write_text("x")
    found = kernels(tmp_path)
    assert found["cache"].verdict == "note" and (tmp_path / "ppsd3").is_dir()


def test_a_truncated_library(kernels, tmp_path, monkeypatch):
    kernels(tmp_path)  # as in the kernels of this machine, which have another name without CXX
    path = pathlib.Path(library.inspect()[1])
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"\x7fELF half of it")
    path.with_suffix(".sha256").write_text("0" * 64)
    found = kernels(tmp_path)
    assert found["kernels.library"].verdict == "wrong" and str(path) in found["kernels.library"].state
    assert "compiler" in found["kernels.library"].remedy and found["kernels"].verdict == "wrong"


# ---------------------------------------------------------------------------------------------------------- the picture


def test_a_wrong_picture_and_one_that_fails(monkeypatch, capsys):
    drawn = np.asarray(Image.open(self_test.GOLDEN), "float32") / 255
    for picture, expected in ((drawn, "ok"), (drawn + 0.02, "wrong"), (drawn * np.nan, "wrong")):
        monkeypatch.setattr(self_test, "picture_of", lambda dtype, picture=picture: picture)
        assert verdicts(self_test.draw("cpu"))["self_test.float32"].verdict == expected

    def fails(dtype):
        raise RuntimeError("no kernel\nimage")

    monkeypatch.setattr(self_test, "picture_of", fails)
    found = verdicts(self_test.draw("cpu"))["self_test.float32"]
    assert found.verdict == "wrong" and "no kernel image" in found.state


def test_devices_of_the_picture(monkeypatch):
    assert gpu.dtypes_of("cpu") == gpu.dtypes_of("xpu:0") == ("float32",)
    monkeypatch.setattr(gpu, "cards", lambda: [T4, dataclasses.replace(A100, index=1)])
    assert gpu.dtypes_of("gpu") == ("float32", "float16")
    assert gpu.dtypes_of("gpu:1") == ("float32", "float16", "bfloat16")
    monkeypatch.setattr(paddle, "get_device", lambda: "gpu:0")
    monkeypatch.setattr(gpu, "cards", lambda: [dataclasses.replace(H100, index=0)])
    monkeypatch.setattr(gpu, "build", lambda: FROM_PYPI)
    found = verdicts(self_test.draw(None))["self_test"]
    assert found.verdict == "wrong" and H100.name in found.remedy and "cu126" in found.remedy


# ---------------------------------------------------------------------------------------------------- interrupted saves


def test_interrupted_saves(saved, capsys):
    leftovers = [*saved.glob(".ppsd3-*.tmp"), *saved.parent.glob(".ppsd3-*.tmp")]
    assert len(leftovers) == 2
    assert main(["doctor", str(saved)]) == 1
    said = capsys.readouterr().out
    assert f"{saved}: an interrupted save is complete now" in said and (saved / "a.json").read_text() == "2"
    assert all(f"wrong {path}: left by" in said and path.exists() for path in leftovers)
    assert main(["doctor", "--clean", str(saved)]) == 0
    said = capsys.readouterr().out
    assert all(f"{path}: left by an interrupted save, removed" in said and not path.exists() for path in leftovers)
    assert main(["doctor", "--clean", str(saved)]) == 0 and os.listdir(saved) == ["a.json"]


def test_what_the_living_make_stays(saved):
    path, descriptor = temporary.make_directory(str(saved))
    assert main(["doctor", "--clean", str(saved)]) == 0 and os.path.isdir(path)
    os.close(descriptor)
    assert main(["doctor", "--clean", str(saved)]) == 0 and not os.path.exists(path)


def test_files_of_the_first_version_are_named_and_left(tmp_path, capsys):
    (tmp_path / "model.safetensors.ab12_xyz.tmp").touch()
    assert main(["doctor", "--clean", str(tmp_path)]) == 0
    assert "remove it yourself" in capsys.readouterr().out and os.listdir(tmp_path) == [
        "model.safetensors.ab12_xyz.tmp"
    ]


@pytest.mark.parametrize(
    "arguments, said", [(["--clean"], "Name"), (["nowhere"], "Name"), (["--device", "cpu", "."], "Leave one out")]
)
def test_refusals(arguments, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["doctor", *arguments]) == 2 and said in capsys.readouterr().err
