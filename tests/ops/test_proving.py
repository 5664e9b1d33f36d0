"""Fast ways that prove themselves: stand-ins that are right, wrong, slow or raise, and what is remembered of them."""

import json
import logging
import subprocess
import sys
import textwrap
import threading
import time

import paddle
import pytest
from helpers import gpus

from ppsd3.ops import dispatch, features, proving
from ppsd3.ops.dispatch import TABLE, Implementation, operation
from ppsd3.utils import gpu

X = paddle.arange(12, dtype="float32").reshape([3, 4]) / 12


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(gpu, "cards", lambda: [gpu.Card(0, "Stand-in 40GB", (8, 0), 40 * 2**30)])
    monkeypatch.setattr(gpu, "driver", lambda: ("535.104.05", (12, 2)))
    gpus.StandInGPU.forget()
    yield tmp_path / "ppsd3"
    gpus.StandInGPU.forget()


class Way:
    """A way to double numbers; ``calls`` has the shapes that it was called with."""

    def __init__(self, function=lambda x: 2 * x):
        self.function, self.calls = function, []

    def __call__(self, x):
        self.calls.append(tuple(x.shape))
        return self.function(x)

    @property
    def trials(self):
        return self.calls.count((5, 4))


@pytest.fixture
def doubled():
    """Makes an operation ``doubled`` with a first entry that must prove itself."""

    def make(way, timed=True, **more):
        proof = proving.Proof(lambda x: f"width {x.shape[1]}", lambda tensor, x: [tensor(5, x.shape[1])], timed)

        @operation(Implementation("quick", "paddle", way, proof=proof, **more))
        def doubled(x):
            return _doubled(x)

        return doubled

    yield make
    TABLE.pop("doubled", None)


def _doubled(x):
    time.sleep(1e-3)
    return x + x


def is_used():
    return dispatch.choose("doubled", X).name == "quick"


def found():
    return proving.told("doubled", "quick")


def test_what_is_right_and_quick_is_used_after_one_trial(doubled, cache):
    way = Way()
    function = doubled(way)
    assert found() == "not tried yet"
    for _ in range(3):
        assert (function(X) == 2 * X).all()
    tried = way.trials
    assert way.calls.count((3, 4)) == 3 and tried > 0
    assert (function(X[:, :2]) == 2 * X[:, :2]).all()  # another kind, another trial
    assert way.trials == tried and found() == "float32, width 2: used; float32, width 4: used"


def _raising(error):
    def function(x):
        raise error

    return function


WRONG = {
    "wrong by": lambda x: 2.1 * x,
    "wrong by nan": lambda x: x * float("nan"),
    "wrong: ": lambda x: 2 * x.t(),
    "of the definition's time": lambda x: time.sleep(4e-3) or 2 * x,
    "AttributeError: no fused_doubled": _raising(AttributeError("no fused_doubled")),
    "ImportError": _raising(ImportError("no kernel")),
    "RuntimeError: (NotFound) The kernel is not registered.": _raising(
        RuntimeError("\n---\nC++ Traceback\n---\n(NotFound) The kernel is not registered.\n  [Hint: Expected it]")
    ),
    "OSError": _raising(OSError("(External) CUDA error(209), no kernel image")),
}


@pytest.mark.parametrize("reason", WRONG)
def test_what_is_wrong_slow_or_raises_is_not_and_the_log_says_why_once(doubled, caplog, reason):
    way = Way(WRONG[reason])
    function = doubled(way)
    with caplog.at_level(logging.INFO, "ppsd3"):
        for _ in range(3):
            assert (function(X) == 2 * X).all()
    assert way.calls.count((3, 4)) == 0
    assert len(caplog.records) == 1 and reason in caplog.text and "doubled | quick | float32, width 4" in caplog.text
    assert reason in found()


def test_what_saves_memory_may_be_slow(doubled):
    doubled(Way(WRONG["of the definition's time"]), timed=False)
    assert is_used()


def test_what_was_found_is_remembered_by_other_processes(doubled):
    for function in (lambda x: 2 * x, lambda x: 3 * x):
        gpus.StandInGPU.forget()
        TABLE.pop("doubled", None)
        doubled(Way(function))
        assert is_used()  # the second is another process's, which trusts the first
    assert found() == "float32, width 4: used"


@pytest.mark.parametrize(
    "change",
    [
        lambda patch: patch.setattr(gpu, "driver", lambda: ("550.54", (12, 4))),
        lambda patch: patch.setattr(gpu, "cards", lambda: [gpu.Card(0, "Stand-in 80GB", (8, 0), 80 * 2**30)]),
        lambda patch: patch.setattr(paddle, "__version__", "9.9.9"),
        lambda patch: patch.setattr("ppsd3.__version__", "9.9.9"),
    ],
    ids=["driver", "card", "Paddle", "ppsd3"],
)
def test_another_machine_is_tried_anew(doubled, monkeypatch, change):
    doubled(way := Way())
    assert is_used()
    tried = way.trials
    change(monkeypatch)
    gpus.StandInGPU.forget()
    assert is_used() and way.trials == 2 * tried


@pytest.mark.parametrize(
    "content",
    [b"", b"\x00\xff", b"[1]", b'{"machine": 1}', b'{"verdicts": {}}', b"{" * 10_000, None],
    ids=["empty", "bytes", "list", "other", "no machine", "deep", "values"],
)
def test_a_broken_cache_is_ignored_and_replaced(doubled, cache, content):
    doubled(way := Way())
    assert is_used()
    (file,) = cache.glob("fast-ways-*.json")
    if content is None:
        whole = json.loads(file.read_bytes())
        content = json.dumps({**whole, "verdicts": dict.fromkeys(whole["verdicts"], 7)}).encode()
    file.write_bytes(content)
    gpus.StandInGPU.forget()
    tried = way.trials
    assert is_used() and way.trials == 2 * tried
    assert json.loads(file.read_bytes())["verdicts"] == {"doubled | quick | float32, width 4": None}


def test_without_a_cache_it_is_found_anew(doubled, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file" / "below"))
    doubled(Way())
    assert is_used()


def test_a_full_card_says_nothing_of_the_next_process(doubled, cache):
    doubled(Way(_raising(RuntimeError("ResourceExhaustedError: Out of memory error on GPU 0"))))
    assert not is_used() and not list(cache.glob("fast-ways-*.json"))


def test_random_numbers_and_settings_stay(doubled):
    doubled(Way())
    paddle.seed(3)
    expected = paddle.rand([4])
    paddle.seed(3)
    with paddle.no_grad():
        assert is_used() and not paddle.is_grad_enabled()
    assert (paddle.rand([4]) == expected).all() and paddle.is_grad_enabled()


class _WrongGradient(paddle.autograd.PyLayer):
    @staticmethod
    def forward(ctx, x):
        return 2 * x

    @staticmethod
    def backward(ctx, dy):
        return dy


def test_gradients_are_tried_where_they_are_recorded(doubled):
    doubled(Way(_WrongGradient.apply), timed=False)
    x = X.clone()
    x.stop_gradient = False
    assert dispatch.choose("doubled", x).name == "reference" and is_used()
    assert "width 4, gradients: wrong by" in found()
    with paddle.no_grad():
        assert dispatch.choose("doubled", x).name == "quick"


def test_threads_wait_for_one_trial(doubled):
    way = Way(lambda x: time.sleep(2e-3) or 2 * x)
    function, results = doubled(way, timed=False), []
    threads = [threading.Thread(target=lambda: results.append(function(X))) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 6 and all((y == 2 * X).all() for y in results)
    assert way.trials == 1 and way.calls.count((3, 4)) == 6


@pytest.mark.machine
def test_two_processes_at_once_leave_a_whole_file(cache):
    code = """
        import sys, paddle
        from ppsd3.ops import proving
        from ppsd3.ops.dispatch import Implementation, operation
        proof = proving.Proof(lambda x: f"width {x.shape[1]}", lambda tensor, x: [tensor(5, x.shape[1])], timed=False)
        @operation(Implementation("quick", "paddle", lambda x: 2 * x, proof=proof))
        def doubled(x):
            return x + x
        for width in range(1, 30):
            doubled(paddle.ones([2, width * int(sys.argv[1])]))
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    running = [subprocess.Popen([*command, str(n)], stderr=subprocess.PIPE) for n in (1, 100)]
    assert [process.communicate() and process.returncode for process in running] == [0, 0]
    (file,) = cache.glob("fast-ways-*.json")
    kept = json.loads(file.read_bytes())["verdicts"]
    assert len(kept) >= 29 and set(kept.values()) == {None}


def test_nothing_is_tried_on_a_cpu(monkeypatch):
    """There the choice is as long as without proofs: no entry that can be taken has one."""
    monkeypatch.setattr(features, "missing", lambda feature: None)
    proving_entries = {(name, e.name) for name, row in TABLE.items() for e in row.implementations if e.proof}
    assert {name for name, _ in proving_entries} >= {"attention", "linear", "linear_gelu", "rms_norm"}
    for row in TABLE.values():
        for dtype in ("float32", "float16", dispatch.OPEN, dispatch.GRAPH):
            candidates = row._candidates_for(dispatch.settings.current(), "cpu", dtype)
            assert all(chosen.proof is None for chosen in candidates)
