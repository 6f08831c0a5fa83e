import os
import signal
import sys
import threading
import time
import weakref

import pytest

from mixbit.core.errors import InvalidInput
from mixbit.core.io.terminal import ENDING, end_like_interrupts, interrupts_later, time_limit


@pytest.fixture
def handlers():
    """The handlers of Python and of the command line, whoever runs the tests; yields the signals that came."""
    before, hook = {number: signal.getsignal(number) for number in ENDING}, sys.unraisablehook
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    yield end_like_interrupts()
    sys.unraisablehook = hook
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", ENDING)
def test_a_signal_waits_for_the_end_of_the_block(handlers, number):
    done = []
    before = [signal.getsignal(number) for number in ENDING]

    def work():
        with interrupts_later():
            os.kill(os.getpid(), number)
            done.append("all of it")

    with pytest.raises(KeyboardInterrupt):
        work()
    assert done == ["all of it"]
    assert handlers == ([] if number is signal.SIGINT else [number])
    assert [signal.getsignal(number) for number in ENDING] == before


def test_what_is_ignored_stays_ignored(handlers):
    """As in the background of a script, and under nohup."""
    for number in ENDING:
        signal.signal(number, signal.SIG_IGN)
    assert end_like_interrupts() == []
    with interrupts_later():
        for number in ENDING:
            os.kill(os.getpid(), number)
    assert [signal.getsignal(number) for number in ENDING] == [signal.SIG_IGN] * 3


def test_without_an_interrupt_nothing_happens(handlers):
    before = signal.getsignal(signal.SIGINT)
    within = []

    def work():
        with interrupts_later():
            within.append(signal.getsignal(signal.SIGINT))

    work()
    thread = threading.Thread(target=work)  # only the main thread may set handlers
    thread.start()
    thread.join()
    assert within[0] is not before
    assert within[1] is signal.getsignal(signal.SIGINT) is before


def test_a_time_limit_that_is_over_at_once_raises_its_error():
    with pytest.raises(InvalidInput, match="too slow"), time_limit(1e-6, InvalidInput("too slow")):
        time.sleep(60)
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)


class Gone:
    """Something that is collected."""


def in_a_callback(function):
    """Call it where Python drops what is raised, in the callback of a weak reference, and go on for a while."""
    gone = Gone()
    reference = weakref.ref(gone, lambda _: function())
    del gone
    assert reference() is None
    time.sleep(5)


@pytest.mark.parametrize("number", ENDING)
def test_a_signal_in_a_callback_of_the_garbage_collector_is_not_lost(handlers, number, capfd):
    with pytest.raises(KeyboardInterrupt):
        in_a_callback(lambda: os.kill(os.getpid(), number))
    assert handlers == ([] if number is signal.SIGINT else [number])
    assert capfd.readouterr().err == ""


def test_a_time_limit_in_a_callback_of_the_garbage_collector_holds(capfd):
    before = sys.unraisablehook
    with pytest.raises(InvalidInput, match="late"), time_limit(0.1, InvalidInput("late")):
        in_a_callback(lambda: time.sleep(0.5))
    assert capfd.readouterr().err == ""
    assert sys.unraisablehook is before
