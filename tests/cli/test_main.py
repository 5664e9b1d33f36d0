"""The program as a whole: help, version, and how errors look."""

import os
import re
import signal
import subprocess
import sys
import threading

import pytest

import ppsd3
from ppsd3.cli import main as program
from ppsd3.cli.main import main


@pytest.mark.parametrize("command", ["generate", "info"])
def test_help(command, capsys):
    for arguments in (["--help"], [command, "--help"]):
        with pytest.raises(SystemExit) as exit_:
            main(arguments)
        assert exit_.value.code == 0 and command in capsys.readouterr().out


def test_every_command_has_a_module_and_a_summary(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    shown = capsys.readouterr().out
    assert all(f"{name} " in shown and summary in shown for name, summary in program.COMMANDS.items())


def test_alone_it_says_what_to_begin_with(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["ppsd3"])
    for arguments in ([], None):
        assert main(arguments) == 0
        shown = capsys.readouterr().out
        named = set(re.findall(r"^  ppsd3 (\w+)", shown, re.MULTILINE))
        assert {"generate", "doctor"} <= named <= program.COMMANDS.keys()


def test_unknown_command(capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["paint"])
    assert exit_.value.code == 2 and "generate" in capsys.readouterr().err


def test_module_and_version():
    run = subprocess.run([sys.executable, "-m", "ppsd3", "--version"], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == f"ppsd3 {ppsd3.__version__}"
    assert not run.stderr  # no warning of Paddle's either


def test_one_line_for_an_error(capsys, tmp_path):
    assert main(["info", str(tmp_path / "nowhere")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("ppsd3: error: ") and error.count("\n") == 1 and "nowhere" in error


def test_debug_shows_the_traceback(tmp_path):
    with pytest.raises(ppsd3.utils.errors.CheckpointNotFoundError, match="nowhere"):
        main(["info", str(tmp_path / "nowhere"), "--debug"])


def test_a_defect_says_so(monkeypatch, capsys):
    from ppsd3.cli import info

    def fail(*arguments, **options):
        raise KeyError("lost")

    monkeypatch.setattr(info, "resolve_checkpoint", fail)
    assert main(["info", "x"]) == 1
    assert "KeyError" in (error := capsys.readouterr().err) and "--debug" in error and error.count("\n") == 1


def test_interrupt(monkeypatch):
    from ppsd3.cli import info

    def interrupt(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(info, "resolve_checkpoint", interrupt)
    assert main(["info", "x"]) == 130


def test_sigterm_leaves_nothing_of_what_was_being_written(tiny_checkpoint, tmp_path, monkeypatch):
    """It ends a command as Ctrl-C does, with the code that shells give to it."""
    from ppsd3.serialization.writers import StoredTensor

    def end(tensor):
        os.kill(os.getpid(), signal.SIGTERM)
        threading.Event().wait(1)

    monkeypatch.setattr(StoredTensor, "numpy", end)
    before = signal.getsignal(signal.SIGTERM)
    for target in ("directory", "one.safetensors"):
        assert main(["convert", str(tiny_checkpoint), str(tmp_path / target)]) == 143
    assert os.listdir(tmp_path) == [] and signal.getsignal(signal.SIGTERM) is before
