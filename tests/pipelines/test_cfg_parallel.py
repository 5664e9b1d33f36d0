"""The halves of the guidance, worked out by two ranks: here threads, by processes in tests/cli/test_ranks.py."""

import threading

import numpy as np
import pytest
from helpers import tiny

from ppsd3 import (
    EasyCache,
    FirstBlockCache,
    GuidanceInterval,
    GuidanceRescale,
    PerturbedAttentionGuidance,
    StableDiffusion3Pipeline,
    TorchGenerator,
)
from ppsd3.pipelines.stable_diffusion_3.cfg_parallel import CFGParallel
from ppsd3.utils.errors import InputError
from ppsd3.utils.ranks import Ranks


class Pair:
    """What two threads exchange."""

    def __init__(self):
        self.barrier, self.tensors, self.exchanges = threading.Barrier(2, timeout=60), [None, None], 0


class ThreadRanks(Ranks):
    world = 2

    def __init__(self, rank, pair):
        self.rank, self.pair = rank, pair

    def gather(self, tensor):
        self.pair.tensors[self.rank] = tensor
        self.pair.barrier.wait()
        both = list(self.pair.tensors)
        self.pair.exchanges += self.is_first
        self.pair.barrier.wait()
        return both


@pytest.fixture(scope="module")
def pipe():
    return tiny.make_pipeline()


def draw(pipe, **settings):
    settings = {"prompt": "a star", "num_inference_steps": 3, "output_type": "np", **settings}
    return pipe(generator=TorchGenerator(3), **settings).images


def draw_by_two(pipe, monkeypatch, cache=None, **settings):
    """([picture of each rank], number of exchanges)"""
    pair, results, errors = Pair(), [None, None], []

    def work(rank, own):
        try:
            results[rank] = draw(own, **settings)
        except InputError as error:
            errors.append(error)
            pair.barrier.abort()

    threads = []
    for rank in range(2):
        own = StableDiffusion3Pipeline.from_pipe(pipe)
        own.set_progress_bar_config(disable=True)
        own.disable_cache()
        if cache is not None:
            own.enable_cache(cache())
        monkeypatch.setattr(
            "ppsd3.pipelines.stable_diffusion_3.cfg_parallel.current_ranks", lambda rank=rank: ThreadRanks(rank, pair)
        )
        own.enable_cfg_parallel()
        threads.append(threading.Thread(target=work, args=(rank, own)))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return results, pair.exchanges


@pytest.mark.parametrize(
    "settings, exchanges",
    [
        ({"skip_guidance_layers": [1], "skip_layer_guidance_stop": 0.9}, 3),
        ({"guidance": PerturbedAttentionGuidance(GuidanceRescale(5.0), layers=[1])}, 3),
        ({"guidance": GuidanceInterval(5.0, 0.4, 1.0)}, 2),
        ({"guidance_scale": 1.0}, 0),
    ],
)
def test_the_picture_is_that_of_one_process(pipe, monkeypatch, caplog, settings, exchanges):
    pipe.disable_cache()
    results, counted = draw_by_two(pipe, monkeypatch, **settings)
    alone = draw(pipe, **settings)
    assert all(np.array_equal(result, alone) for result in results)
    assert counted == exchanges
    warnings = [record for record in caplog.records if "CFG parallel has nothing to divide" in record.message]
    assert len(warnings) == (0 if exchanges == 3 else 2)  # each of the two says it once a call


def test_a_cache_sees_whole_answers(pipe, monkeypatch):
    settings = {"num_inference_steps": 5}
    results, counted = draw_by_two(pipe, monkeypatch, lambda: EasyCache(threshold=5.0, warmup=2), **settings)
    pipe.enable_cache(EasyCache(threshold=5.0, warmup=2))
    alone = draw(pipe, **settings)
    assert all(np.array_equal(result, alone) for result in results)
    assert counted == pipe._cache.evaluations < 5


def test_a_cache_inside_of_the_transformer_is_refused(pipe, monkeypatch):
    with pytest.raises(InputError, match="FirstBlockCache does not go with CFG parallel"):
        draw_by_two(pipe, monkeypatch, FirstBlockCache)


def test_it_is_off_again(pipe, monkeypatch):
    monkeypatch.setattr("ppsd3.pipelines.stable_diffusion_3.cfg_parallel.current_ranks", lambda: ThreadRanks(0, Pair()))
    cache = EasyCache()
    pipe.enable_cfg_parallel()
    pipe.enable_cache(cache)
    assert isinstance(pipe._cache, CFGParallel) and pipe._cache.cache is cache
    pipe.disable_cfg_parallel()
    assert pipe._cache is cache
    pipe.disable_cache()


def test_two_processes_are_needed(pipe):
    with pytest.raises(InputError, match=r"\(enable_cfg_parallel, --use-cfg-parallel\) is for 2 processes; here are 1"):
        pipe.enable_cfg_parallel()
