"""``ppsd3 generate`` by several processes: shares of the prompts, and halves of the guidance."""

import os
import pathlib
import subprocess
import sys

import pytest
from helpers import tiny

from ppsd3.cli.main import main

ROOT = pathlib.Path(__file__).parents[2]
PROMPTS = "a red circle\na blue square\na red circle\n"


def generate(tmp_path, name, *more, prompts=PROMPTS, ranks=2, seed: "str | None" = "5"):
    """(files by name, exit code, output) of two launched processes, or of one."""
    (tmp_path / "prompts.txt").write_text(prompts, encoding="utf-8")
    command = [sys.executable, "-m", "paddle.distributed.launch", "--nproc_per_node", str(ranks)]
    command = [*command, "--log_dir", str(tmp_path / f"{name}-log")] if ranks > 1 else []
    command += [sys.executable, "-m", "ppsd3", "generate", "--prompt-file", str(tmp_path / "prompts.txt")]
    command += ["--steps", "3", "--output", f"{tmp_path / name}/", *(["--seed", seed] if seed else []), *more]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    environment.pop("CUDA_VISIBLE_DEVICES", None)
    done = subprocess.run(
        command, check=False, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=120, text=True
    )
    output = done.stdout + "".join(path.read_text() for path in tmp_path.glob(f"{name}-log/workerlog.*"))
    return {path.name: path.read_bytes() for path in sorted((tmp_path / name).glob("*"))}, done.returncode, output


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    return generate(tmp_path_factory.mktemp("alone"), "one", ranks=1)[0]


@pytest.mark.machine
def test_each_prompt_is_drawn_once_and_as_by_one_process(tmp_path, alone):
    files, code, output = generate(tmp_path, "two")
    assert code == 0, output
    assert files == alone and len(files) == 3
    assert sorted(files) == ["a-blue-square-5.png", "a-red-circle-1-5.png", "a-red-circle-3-5.png"]


@pytest.mark.machine
def test_a_seed_that_is_not_given_is_the_same_everywhere(tmp_path):
    files, code, output = generate(tmp_path, "two", seed=None)
    assert code == 0, output
    assert len({name.rpartition("-")[2] for name in files}) == 1 and len(files) == 3


@pytest.mark.machine
def test_an_error_of_one_rank_is_told_once(tmp_path):
    """The second one's preview cannot be written: a directory is in its place."""
    previews = tmp_path / "previews"
    (previews / "2-step-001.png").mkdir(parents=True)
    _, code, output = generate(tmp_path, "two", "--preview", str(previews), prompts="a red circle\na blue square\n")
    logs = [(tmp_path / "two-log" / f"workerlog.{rank}").read_text() for rank in range(2)]
    assert code != 0
    assert [log.count("ppsd3: error: [Errno 21] Is a directory") for log in logs] == [0, 1], output
    assert "blue" not in "".join(os.listdir(tmp_path / "two"))


@pytest.mark.machine
def test_halves_of_the_guidance(tmp_path, alone):
    files, code, output = generate(tmp_path, "halves", "--use-cfg-parallel")
    assert code == 0, output
    assert files == alone


@pytest.mark.parametrize(
    "more, says",
    [
        ([], "(enable_cfg_parallel, --use-cfg-parallel) is for 2 processes; here are 1"),
        (["--guidance-scale", "1"], "with --guidance-scale 1.0 there is none"),
        (["--cache", "first-block"], "--cache first-block does not go with --use-cfg-parallel"),
    ],
)
def test_what_cannot_be_divided(capsys, tmp_path, more, says):
    assert main(["generate", "a cat", "--use-cfg-parallel", "--output", str(tmp_path / "a.png"), *more]) == 2
    assert says in capsys.readouterr().err


def test_a_checkpoint_without_guidance_cannot_be_divided(capsys, tmp_path):
    pipe = tiny.make_pipeline()
    pipe.call_defaults = {"guidance_scale": 1.0}
    pipe.save_pretrained(tmp_path / "model")
    command = ["generate", "a cat", "--use-cfg-parallel", "--output", str(tmp_path / "a.png")]
    assert main([*command, "--model", str(tmp_path / "model")]) == 2
    assert "with --guidance-scale 1.0 there is none" in capsys.readouterr().err
