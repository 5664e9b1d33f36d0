"""Processes that wait for one another over a store of counters, and notice that one is gone."""

import signal
import threading

import pytest

from ppsd3.utils import rendezvous
from ppsd3.utils.errors import RankLostError
from ppsd3.utils.ranks import Ranks


class Store:
    """Paddle's store, within a process."""

    def __init__(self):
        self.counters, self.lock, self.is_gone = {}, threading.Lock(), False

    def add(self, key, number):
        if self.is_gone:
            raise ValueError("TCP send error. Details: Broken pipe.")
        with self.lock:
            self.counters[key] = self.counters.get(key, 0) + number
            return self.counters[key]


@pytest.fixture
def two(monkeypatch):
    """(rendezvous of two processes, their store, signals that were sent)"""
    store, sent = Store(), []
    monkeypatch.setattr(rendezvous, "connect_store", lambda: store)
    monkeypatch.setattr(rendezvous.os, "kill", lambda _, number: sent.append(number))
    for name, seconds in {"_PULSE": 0.02, "_PATIENCE": 0.3, "_GRACE": 0.2, "_FAREWELL": 0.1}.items():
        monkeypatch.setattr(rendezvous, name, seconds)
    both = [rendezvous.Rendezvous(rank, 2) for rank in range(2)]
    yield both, store, sent
    for one in reversed(both):
        one.leave()


def test_both_wait_for_the_slower(two):
    (first, second), _, sent = two
    passed = []
    thread = threading.Thread(target=lambda: [passed.append(first.meet()) for _ in range(2)])
    thread.start()
    second.meet()
    thread.join(0.2)
    assert len(passed) == 1
    second.meet()
    thread.join()
    assert len(passed) == 2 and not sent


def test_one_that_has_left_is_not_waited_for(two):
    (first, second), _, _ = two
    second.leave()
    with pytest.raises(RankLostError, match=r"Another process has ended before .* This is rank 0 of 2; .* start again"):
        first.meet()


def test_one_that_came_and_left_at_once_has_come(two):
    """The last work of both is done; the slower finds the other gone already."""
    (first, second), store, _ = two
    add = store.add

    def add_late(key, number):
        if key.endswith("left") and first._meetings:  # between its two questions
            store.add = add
            second.meet()
            second.leave()
        return add(key, number)

    store.add = add_late
    first.meet()
    assert store.counters["ppsd3/left"] == 1


def test_one_that_shows_no_sign_of_life_is_lost(two):
    (first, second), _, sent = two
    second._leaving.set()  # its thread ends, as if it were killed
    with pytest.raises(RankLostError, match="The process of rank 1 has not answered for 0 seconds"):
        first.meet()
    first._thread.join()
    assert sent == [signal.SIGTERM]  # for a main thread that is long at work


def test_the_first_has_ended(two):
    (_, second), store, _ = two
    store.is_gone = True
    with pytest.raises(RankLostError, match="The first process, which the others ask, has ended"):
        second.meet()


def test_one_process_has_all_of_the_work():
    alone = Ranks()
    assert list(alone.share(3)) == list(alone.deal(3)) == [0, 1, 2]
    assert (alone.agree(7), alone.sum([1.5]), alone.gather("tensor")) == (7, [1.5], ["tensor"])
