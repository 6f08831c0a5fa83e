import os
import signal
import threading

import pytest

from mixbit.core.io.interrupts import interrupts_later


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
    with interrupts_later():
        pass
    thread = threading.Thread(target=lambda: interrupts_later().__enter__())  # only the main thread has signals
    thread.start()
    thread.join()
