import os
import signal
import threading

import pytest

from mixbit.core.io.terminal import interrupts_later


def test_an_interrupt_waits_for_the_end_of_the_block():
    done = []
    before = signal.getsignal(signal.SIGINT)

    def work():
        with interrupts_later():
            os.kill(os.getpid(), signal.SIGINT)
            done.append("all of it")

    with pytest.raises(KeyboardInterrupt):
        work()
    assert done == ["all of it"]
    assert signal.getsignal(signal.SIGINT) is before


def test_without_an_interrupt_nothing_happens():
    before = signal.getsignal(signal.SIGINT)
    handlers = []

    def work():
        with interrupts_later():
            handlers.append(signal.getsignal(signal.SIGINT))

    work()
    thread = threading.Thread(target=work)  # only the main thread may set handlers
    thread.start()
    thread.join()
    assert handlers[0] is not before
    assert handlers[1] is signal.getsignal(signal.SIGINT) is before
