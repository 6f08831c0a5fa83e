import os
import signal
import threading
import time

import pytest

from mixbit.core.errors import InvalidInput
from mixbit.core.io.terminal import ENDING, end_like_interrupts, interrupts_later, time_limit


@pytest.fixture
def handlers():
    """The handlers of Python and of the command line, whoever runs the tests; yields the signals that came."""
    before = {number: signal.getsignal(number) for number in ENDING}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    yield end_like_interrupts()
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
