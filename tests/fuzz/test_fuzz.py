"""Hostile input of every kind is used as it is or refused by name: no crash, no hang, no raw error, no memory without
need, nothing that is read wrongly.

``PPSD3_FUZZ=full`` tries 20,000 inputs in place of 300 of each kind, ``PPSD3_FUZZ_SEED=WORD`` others than usual. The
message of a failure has the command that runs one input alone.
"""

import concurrent.futures
import os
import random

import pytest

import ppsd3
from fuzz import runner
from fuzz.case import KINDS
from fuzz.kinds import arguments
from fuzz.kinds.faults import FAULTS

FULL = 20_000  # of all kinds
CASES = -(-FULL // len(KINDS)) if os.environ.get("PPSD3_FUZZ") == "full" else 300
SEED = os.environ.get("PPSD3_FUZZ_SEED", "0")

# (kind, seed, case): inputs beyond the usual ones in which a fault was found once.
REGRESSIONS = (
    ("lora", "b", 102),  # a pattern with signs of regular expressions
    ("single_files", "b", 377),  # lists in the metadata where objects belong
    ("command_lines", "b", 362),  # --steps 1000000000
    ("json", "g", 1231),  # an epsilon that Paddle does not take
    ("arguments", "0", 334),  # an unknown argument of a method that overrides another
    ("arguments", "0", 1809),  # a variant that no file can have in its name
)


@pytest.fixture(scope="module")
def verdicts():
    """dict: kind -> future of its counts and faults, from as many workers as there are processors for."""
    with concurrent.futures.ThreadPoolExecutor(min(2, os.cpu_count() or 1)) as pool:
        yield {kind: pool.submit(runner.fuzz, kind, SEED, CASES) for kind in KINDS}
        pool.shutdown(wait=True, cancel_futures=True)


@pytest.mark.parametrize("kind", KINDS)
def test_every_input_is_used_or_refused_by_name(kind, verdicts):
    counts, faults = verdicts[kind].result()
    print(kind, dict(counts))
    assert not faults, runner.describe(faults)
    assert sum(counts.values()) == CASES
    assert min(counts["accepted"], counts["refused"]) >= CASES / 50  # or the inputs are all alike


def test_what_a_full_run_found_stays_mended():
    worker = runner.Worker()
    try:
        faults = [fault for kind, seed, case in REGRESSIONS for fault in runner.fuzz(kind, seed, 1, case, worker)[1]]
    finally:
        worker.close()
    assert not faults, runner.describe(faults)


def test_every_public_name_is_tried(tmp_path):
    tried = {label.partition(".")[0] for label, *_ in arguments.Kind(tmp_path).calls}
    objects = [getattr(ppsd3, name, None) for name in tried]
    missing = {name for name in ppsd3.__all__ if getattr(ppsd3, name) not in objects} - {*arguments.NOT_TRIED}
    assert missing == {"__version__"}
    assert not {*arguments.NOT_TRIED} & tried


@pytest.fixture(scope="module")
def worker():
    worker = runner.Worker(cpu_seconds=0.5)
    yield worker
    worker.close()


@pytest.mark.parametrize("name", FAULTS)
def test_faults_are_found(name, worker):
    number = next(n for n in range(1000) if random.Random(f"faults 0 {n}").choice(sorted(FAULTS)) == name)
    (verdict,) = worker.run("faults", "0", number, number + 1)
    assert verdict["verdict"] == ("raw error" if name == "too much memory" else name)
    if name == "too much memory":
        assert "Unable to allocate" in verdict["message"]
