"""What `ppsd3 doctor` finds, completes and removes."""

import os

import pytest

from ppsd3.cli import doctor
from ppsd3.cli.main import main
from ppsd3.utils import files, temporary
from ppsd3.utils.files import atomic_write, replacing


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


def test_the_installation(capsys):
    assert main(["doctor"]) == 0
    said = capsys.readouterr().out
    for what in ("Paddle", "native CPU kernels", "cache of the kernels", "safetensors", "bundled model shapes"):
        assert what in said
    assert not [line for line in said.splitlines() if not line.startswith(("ok ", "note "))]


def test_a_package_is_missing():
    finding = doctor._package("no_such_package_anywhere")
    assert finding.verdict == "wrong" and "pip install" in finding.state


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


@pytest.mark.parametrize("arguments", [["--clean"], ["nowhere"]])
def test_refusals(arguments, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["doctor", *arguments]) == 2 and "Name" in capsys.readouterr().err
