"""Weights that are copied ahead on a second stream, with stand-ins for what Paddle documents of streams."""

import contextlib

import numpy as np
import paddle
import pytest
from helpers import tiny

from ppsd3 import TorchGenerator
from ppsd3.loaders import loan as loans
from ppsd3.loaders.loan import Loan
from ppsd3.pipelines import residency
from ppsd3.pipelines.prefetching import Prefetcher
from ppsd3.pipelines.residency import SequentialOffload


class Stream:
    """Notes what is asked of it in ``log``, with the stream of the asker where copies are concerned."""

    log: list = []
    current = "main"

    def __init__(self, name):
        self.name = "side" if name == "gpu:0" else name

    def wait_stream(self, other):
        self.log.append((self.name, "waits for", other.name))


class Gpu:
    """A place that is a GPU's by what it says."""

    is_gpu_place, gpu_device_id, is_custom_place, is_xpu_place = (lambda self: True), (lambda self: 0), None, None


@pytest.fixture
def streams(monkeypatch):
    @contextlib.contextmanager
    def guard(stream):
        before, Stream.current = Stream.current, stream.name
        yield
        Stream.current = before

    def copy_to(tensor, place, blocking=True):
        if not blocking:
            Stream.log.append((Stream.current, "copies", int(tensor.size)))
        return tensor._copy_to(paddle.CPUPlace(), True)

    monkeypatch.setattr(paddle.device, "Stream", Stream)
    monkeypatch.setattr(paddle.device, "current_stream", lambda name: Stream(Stream.current))
    monkeypatch.setattr(paddle.device, "stream_guard", guard)
    monkeypatch.setattr(loans, "copy_to", copy_to)
    Stream.log.clear()
    return Stream.log


def test_the_next_part_is_copied_while_one_computes(streams):
    parts = {name: Loan([paddle.ones([size])], Gpu()) for size, name in enumerate("abc", 1)}
    homes = {name: loan.tensors[0].data_ptr() for name, loan in parts.items()}
    ahead = Prefetcher(Gpu())

    def run(names):
        for name in names:
            with ahead.having(name, [parts[name]]), ahead.having((name, "inner"), [parts[name]]):
                assert parts[name].tensors[0].data_ptr() != homes[name]
                streams.append(("main", "computes", name))
        ahead.forget()
        assert {name: loan.tensors[0].data_ptr() for name, loan in parts.items()} == homes

    run("abc")
    assert [entry for entry in streams if "copies" in entry] == [("main", "copies", size) for size in (1, 2, 3)]
    streams.clear()
    run("abc")
    main, side = ("main", "waits for", "side"), ("side", "waits for", "main")
    assert streams == [
        *(("main", "copies", 1), main, side, ("side", "copies", 2), ("main", "computes", "a")),
        *(main, side, ("side", "copies", 3), ("main", "computes", "b")),
        *(main, ("main", "computes", "c")),
        main,
    ]
    streams.clear()
    run("ac")  # what was foretold does not come: the first stream waits before that memory is dropped
    assert streams[-4:] == [("main", "copies", 3), main, ("main", "computes", "c"), main]


def test_errors_drop_what_was_copied_ahead(streams):
    parts = {name: Loan([paddle.ones([2])], Gpu()) for name in "ab"}
    homes = [loan.tensors[0].data_ptr() for loan in parts.values()]
    ahead = Prefetcher(Gpu())
    for name in "ab":
        with ahead.having(name, [parts[name]]):
            pass
    ahead.forget()

    def fail():
        with ahead.having("a", [parts["a"]]):
            assert parts["b"].users
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    ahead.forget()
    assert [loan.tensors[0].data_ptr() for loan in parts.values()] == homes
    assert not any(loan.users for loan in parts.values())


def test_a_whole_pipeline(streams, monkeypatch):
    def draw():
        options = {"height": 32, "width": 32, "num_inference_steps": 3, "output_type": "np"}
        return pipe("a red circle", generator=TorchGenerator(3), **options).images

    pipe, pinned = tiny.make_pipeline(), []
    expected = draw()
    monkeypatch.setattr(paddle.Tensor, "pin_memory", lambda self: pinned.append(1) or self.clone())
    monkeypatch.setattr(paddle.device.cuda, "empty_cache", lambda: streams.append("emptied"))
    SequentialOffload(pipe._networks(), Gpu())
    np.testing.assert_allclose(draw(), expected, atol=1e-5)
    assert len(pinned) == sum(len(network.parameters()) + len(network.buffers()) for network in pipe._networks())
    copies = [stream for stream, *rest in (entry for entry in streams if "copies" in entry) if rest]
    assert copies.count("side") > copies.count("main") / 2 and streams.count("emptied") >= 6
    assert all(p.place.is_cpu_place() for network in pipe._networks() for p in network.parameters())
    monkeypatch.setattr(residency, "available_memory", lambda: 1000)  # no memory to lock
    pinned.clear()
    pipe.remove_all_hooks()
    SequentialOffload(pipe._networks(), Gpu())
    assert not pinned
    np.testing.assert_allclose(draw(), expected, atol=1e-5)
