"""Processes that answer jobs: every job once, errors as they are, and no process left behind."""

import functools
import os
import signal
import time
from contextlib import closing

import pytest

from mixbit.errors import InfeasibleBudget, MixbitError
from mixbit.workers import in_processes
from tests.jobs import answering, failing


@pytest.fixture
def start(tmp_path):
    return functools.partial(answering, str(tmp_path / "started"))


def assert_all_ended(tmp_path):
    for number in map(int, (tmp_path / "started").read_text().split()):
        with pytest.raises(ProcessLookupError):
            os.kill(number, 0)


def test_every_job_is_answered_once_and_each_process_starts_once(start, tmp_path):
    found = list(in_processes(start, range(40), 2))
    assert sorted(job for job, _ in found) == list(range(40))
    assert all(answer == job**2 for job, (answer, _) in found)
    ours = (tmp_path / "started").read_text().split()
    assert len(ours) == 2
    assert {str(process) for _, (_, process) in found} <= set(ours)
    assert_all_ended(tmp_path)


def test_no_job_starts_no_process(start, tmp_path):
    assert list(in_processes(start, [], 2)) == []
    assert not (tmp_path / "started").exists()


def test_our_errors_arrive_as_they_are(start, tmp_path):
    with pytest.raises(InfeasibleBudget, match="no plan") as error:
        list(in_processes(start, [-1], 2))
    assert error.value.binding == (2,)
    assert_all_ended(tmp_path)


@pytest.mark.parametrize(
    ("job", "message"),
    [
        (-2, r"ZeroDivisionError: the user's own error \(.*jobs\.py:\d+\)"),
        (-3, "killed by signal 9.*the same call continues"),
    ],
)
def test_what_goes_wrong_ends_all_processes(start, tmp_path, job, message):
    with pytest.raises(MixbitError, match=message):
        list(in_processes(start, [-4, job], 2))
    assert_all_ended(tmp_path)


def test_a_failing_start_is_told():
    with pytest.raises(MixbitError, match="ZeroDivisionError: at the start"):
        list(in_processes(failing, [1], 2))


def test_closing_ends_the_processes_amid_their_work(start, tmp_path):
    began = time.perf_counter()
    with closing(in_processes(start, [-4, 3], 2)) as answers:
        assert next(answers)[0] == 3
    assert time.perf_counter() - began < 60
    assert_all_ended(tmp_path)


def test_an_interrupt_reaches_this_process_and_not_the_others(start, tmp_path):
    answers = in_processes(start, [1, -4], 1)
    next(answers)
    os.kill(int((tmp_path / "started").read_text()), signal.SIGINT)  # as Ctrl-C does to all in the terminal
    time.sleep(0.2)
    os.kill(int((tmp_path / "started").read_text()), 0)
    with closing(answers):
        signal.signal(signal.SIGALRM, signal.default_int_handler)
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        with pytest.raises(KeyboardInterrupt):
            next(answers)
    assert_all_ended(tmp_path)
