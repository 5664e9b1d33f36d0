"""Several processes on one machine's gloo train what one process trains."""

import os
import socket
import subprocess
import sys

import numpy as np
import pytest

from ppsd3.training.checkpoints import Checkpoints, read_group
from ppsd3.training.log import read_log

PROGRAM = """
import sys
sys.path[:0] = [{root!r}, {tests!r}]
import numpy as np
import paddle
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
    return Batch(rng.standard_normal([2, 4, 16, 16]).astype("float32"), ["x", "y"])


paddle.seed(3 + 100 * int(__import__("os").environ.get("PADDLE_TRAINER_ID", 0)))  # the first rank's count
model = SD3Transformer2DModel(**tiny.TRANSFORMER)
model.enable_gradient_checkpointing()
options = TrainingOptions(
    max_steps={steps}, learning_rate=1e-3, warmup_steps=2, batches_per_step=4, log_every=1, save_every=2
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


def train(directory, ranks, steps=4, until=None):
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    program = PROGRAM.format(
        root=root, tests=os.path.join(root, "tests"), output=str(directory), steps=steps, until=until
    )
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
        processes.append(
            subprocess.Popen(
                [sys.executable, "-c", program], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
            )
        )
    for process in processes:
        output, _ = process.communicate(timeout=300)
        assert process.returncode == 0, output.decode()[-3000:]


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
