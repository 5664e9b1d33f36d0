"""Several processes on one machine's gloo train what one process trains."""

import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from ppsd3.training.checkpoints import Checkpoints, read_group
from ppsd3.training.log import read_log

PROGRAM = """
import os, sys, time
sys.path[:0] = [{root!r}, {tests!r}]
import numpy as np
import paddle
rank = os.environ.get("PADDLE_TRAINER_ID", "0")
open({output!r} + ".pid" + rank, "w").write(str(os.getpid()))
paddle.set_device("cpu")
from helpers import tiny
from ppsd3.models import SD3Transformer2DModel
from ppsd3.pipelines.stable_diffusion_3.prompt_encoding import TextCondition
from ppsd3.training.text_to_image import Batch, TextToImageTask
from ppsd3.training.trainer import Trainer, TrainingOptions


class Text:
    configuration = {{}}

    def condition(self, prompts, rng, clip_length, t5_length):
        draw = lambda *shape: paddle.to_tensor(rng.standard_normal(shape).astype("float32"))
        return TextCondition(draw(len(prompts), 9, 40), draw(len(prompts), 28))


def batches(rng, number):
    time.sleep({pause} * (number >= 8))  # from the third step on
    return Batch(rng.standard_normal([2, 4, 16, 16]).astype("float32"), ["x", "y"])


paddle.seed(3 + 100 * int(rank))  # the first rank's count
model = SD3Transformer2DModel(**tiny.TRANSFORMER)
model.enable_gradient_checkpointing()
options = TrainingOptions(
    max_steps={steps}, learning_rate=1e-3, warmup_steps=2, batches_per_step=4, log_every=1, save_every=2,
    sharding={sharding!r},
)
Trainer(TextToImageTask(model, Text(), batches), {output!r}, options).run({until})
"""


def free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def program(directory, **given):
    given = {"steps": 4, "until": None, "pause": 0, "sharding": None, **given}
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    return PROGRAM.format(root=root, tests=os.path.join(root, "tests"), output=str(directory), **given)


def start(command, ranks):
    """The processes of ``ranks`` ranks, without a launcher."""
    endpoints = [f"127.0.0.1:{port}" for port in free_ports(ranks)]
    processes = []
    for rank in range(ranks):
        environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
        if ranks > 1:
            environment |= {
                "PADDLE_DISTRI_BACKEND": "gloo",
                "PADDLE_TRAINER_ID": str(rank),
                "PADDLE_TRAINERS_NUM": str(ranks),
                "PADDLE_TRAINER_ENDPOINTS": ",".join(endpoints),
                "PADDLE_CURRENT_ENDPOINT": endpoints[rank],
                "PADDLE_MASTER": endpoints[0],
            }
        processes.append(subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT))
    return processes


def train(directory, ranks, **given):
    for process in start([sys.executable, "-c", program(directory, **given)], ranks):
        output, _ = process.communicate(timeout=300)
        assert process.returncode == 0, output.decode()[-3000:]


def launch(directory, script, **given):
    """The launcher of two ranks."""
    script.write_text(program(directory, **given))
    command = [sys.executable, "-m", "paddle.distributed.launch", "--nproc_per_node", "2"]
    return subprocess.Popen(
        [*command, "--log_dir", str(directory) + "-log", str(script)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def wait_for_second_step(directory):
    """Returns the ids of the two processes once they work on the third step."""
    end = time.monotonic() + 60
    while not (directory / "checkpoints" / "step-00000002").exists():
        assert time.monotonic() < end
        time.sleep(0.05)
    time.sleep(0.5)
    return [int(pathlib.Path(f"{directory}.pid{rank}").read_text()) for rank in range(2)]


def assert_gone(pids, seconds=60):
    end = time.monotonic() + seconds
    while any(os.path.exists(f"/proc/{pid}") for pid in pids):
        assert time.monotonic() < end, pids
        time.sleep(0.1)


def result(directory):
    """(losses, parameters) of a run."""
    losses = [entry["loss"] for entry in read_log(str(directory / "log.jsonl"))]
    path = Checkpoints(str(directory / "checkpoints")).find("latest")
    return losses, {name: tensor.numpy() for name, tensor in read_group(path, "parameters").items()}


def assert_same(one, other):
    np.testing.assert_allclose(one[0], other[0], rtol=1e-5)
    for name, value in one[1].items():
        np.testing.assert_allclose(value, other[1][name], atol=1e-5, rtol=0, err_msg=name)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    directory = tmp_path_factory.mktemp("alone")
    train(directory, ranks=1)
    return result(directory)


@pytest.mark.machine
@pytest.mark.parametrize("ranks", [2, 4])
def test_ranks_train_what_one_process_trains(tmp_path, alone, ranks):
    """At the same global batch of four batches, with gradient checkpointing and accumulation."""
    train(tmp_path, ranks)
    assert_same(alone, result(tmp_path))


@pytest.mark.machine
@pytest.mark.parametrize("ranks", [1, 4])
def test_a_run_of_two_ranks_goes_on_with_another_number(tmp_path, alone, ranks):
    train(tmp_path, ranks=2, until=2)
    train(tmp_path, ranks)
    losses, parameters = result(tmp_path)
    assert len(losses) == 4
    assert_same(alone, (losses, parameters))


@pytest.mark.machine
def test_a_number_of_ranks_that_does_not_divide_the_batches_is_refused(tmp_path):
    with pytest.raises(AssertionError, match=r"batches_per_step is 4, which 3 ranks cannot share"):
        train(tmp_path, ranks=3)


@pytest.mark.machine
def test_a_killed_rank_ends_the_others_and_leaves_a_good_state(tmp_path, alone):
    directory = tmp_path / "run"
    command = [sys.executable, "-c", program(directory, pause=1)]
    survivor, doomed = start(command, ranks=2)
    _, pid = wait_for_second_step(directory)
    os.kill(pid, signal.SIGKILL)
    output, _ = survivor.communicate(timeout=60)
    doomed.communicate()
    assert survivor.returncode > 0
    assert "RankLostError: Another process has ended" in output.decode() and "start again" in output.decode()
    train(directory, ranks=4)
    assert_same(alone, result(directory))


@pytest.mark.machine
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_under_the_launcher(tmp_path, alone, how):
    """The first rank is killed, or the launcher is told to end."""
    directory = tmp_path / "run"
    launcher = launch(directory, tmp_path / "script.py", pause=1)
    pids = wait_for_second_step(directory)
    os.kill(pids[0] if how == signal.SIGKILL else launcher.pid, how)
    launcher.communicate(timeout=60)
    assert launcher.returncode != 0
    assert_gone(pids)
    train(directory, ranks=1)
    assert_same(alone, result(directory))


@pytest.mark.machine
def test_a_sharded_optimizer_trains_what_a_whole_one_trains(tmp_path, alone):
    """Its state is whole: one process goes on from that of four."""
    train(tmp_path, ranks=4, until=2, sharding="stage1")
    train(tmp_path, ranks=1)
    losses, parameters = result(tmp_path)
    np.testing.assert_allclose(losses, alone[0], rtol=1e-6)
    for name, value in alone[1].items():
        np.testing.assert_allclose(parameters[name], value, atol=1e-6, rtol=0, err_msg=name)
