"""An optimizer whose state is divided; by several processes in test_distributed.py."""

import numpy as np
import paddle
import pytest

from ppsd3.training.optimizers import make_optimizer
from ppsd3.training.sharding import ShardedOptimizer, divide
from ppsd3.training.trainer import TrainingOptions
from ppsd3.utils.errors import InputError
from ppsd3.utils.ranks import Ranks


def parameters():
    return {name: paddle.create_parameter([size, 2], "float32") for name, size in (("a", 5), ("b", 3), ("c", 2))}


def test_parts_are_of_about_one_size():
    assert [sorted(part) for part in divide(parameters(), 2)] == [["a"], ["b", "c"]]
    assert [sorted(part) for part in divide(parameters(), 4)] == [["a"], ["b"], ["c"], []]


class Second(Ranks):
    """The second of ``world`` ranks, alone."""

    def __init__(self, world):
        self.rank, self.world = 1, world


@pytest.mark.parametrize("world, moved", [(2, ["b", "c"]), (4, ["b"])])
def test_a_rank_moves_and_holds_its_own_part(world, moved):
    given = parameters()
    before = {name: parameter.numpy().copy() for name, parameter in given.items()}
    sharded = ShardedOptimizer(given, Second(world), lambda part: make_optimizer("adamw", part))
    sum((parameter**2).sum() for parameter in given.values()).backward()
    sharded.step(0.1)
    assert [name for name in given if not np.array_equal(before[name], given[name].numpy())] == moved
    assert sorted({key.split("|")[0] for key in sharded.state()}) == moved


class Loaded:
    """An optimizer that keeps what it is told to load."""

    def load_state(self, state):
        self.state = sorted(state)


def test_of_a_whole_state_a_rank_takes_its_part():
    sharded = ShardedOptimizer(parameters(), Second(2), lambda part: Loaded())
    sharded.load_state(dict.fromkeys(["a|moment1_0", "b|moment1_0", "c|moment1_0", "c|moment2_0"], paddle.zeros([1])))
    assert sharded.optimizer.state == ["b|moment1_0", "c|moment1_0", "c|moment2_0"]


def test_other_stages_are_refused():
    with pytest.raises(InputError, match=r"sharding='stage2' is not done: use 'stage1'"):
        TrainingOptions(max_steps=1, sharding="stage2")
