"""An interruption is one, whatever the code that it reached has made of it."""

import os
import signal
import threading

import pytest

from ppsd3.utils.interruption import Terminated, interruptible, terminable


def interrupt(number=signal.SIGINT):
    os.kill(os.getpid(), number)
    threading.Event().wait(0.1)  # a handler runs between two instructions


def swallowing():
    try:
        interrupt()
    except KeyboardInterrupt:
        return


def turning_it_into_an_error():
    swallowing()
    raise SystemError("returned a result with an exception set")


@pytest.fixture(autouse=True)
def python_handles_sigint():
    """In the background of a shell a process starts with the signal ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("work", [interrupt, swallowing, turning_it_into_an_error])
def test_it_ends_the_block(work):
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), interruptible():
        work()
    assert signal.getsignal(signal.SIGINT) is before


def test_sigterm_interrupts_too():
    before = signal.getsignal(signal.SIGTERM)
    for inner in (terminable, interruptible):  # which stays what it is within another block
        with pytest.raises(Terminated), terminable(), inner():
            interrupt(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is before


def test_who_ignores_sigterm_goes_on():
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with terminable():
            interrupt(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)


def test_other_errors_stay_what_they_are():
    with pytest.raises(ZeroDivisionError), interruptible():
        divmod(1, 0)


def test_another_thread_may_use_it():
    done = []

    def run():
        with interruptible():
            done.append(True)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert done
