"""Processes that answer jobs: every job once, errors as they are, and no process left behind."""

import functools
import os
import signal
import subprocess
import sys
import time
from contextlib import closing, contextmanager, suppress

import pytest

from mixbit.core.errors import InfeasibleBudget, MixbitError
from mixbit.metric_study.processes import in_processes
from tests.metric_study.jobs import NeverArrives, answering, failing, refusing

#: Bytes that no pipe takes in without somebody who reads them.
MUCH = 4 << 20


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


def test_what_cannot_be_received_is_told():
    with pytest.raises(MixbitError, match="LookupError: cannot be made again"):
        list(in_processes(NeverArrives(b"0" * MUCH), [1], 2))


SCRIPT = f"""
from functools import partial
from mixbit.workers import in_processes
from tests.metric_study.jobs import answering

if GUARD:
    print(*in_processes(partial(answering, STARTED, b"0" * {MUCH}), [JOB], 1))
"""


@contextmanager
def started(tmp_path, job, guard="__name__ == '__main__'"):
    """A script that shares out work, in a process of its own; its worker leaves its id in the file `started`."""
    script = tmp_path / "script.py"
    text = SCRIPT.replace("GUARD", guard).replace("STARTED", repr(str(tmp_path / "started")))
    script.write_text(text.replace("JOB", str(job)))
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with subprocess.Popen([sys.executable, script], env=environment, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def worker_of(tmp_path):
    """The id of the one worker, once it is there."""
    deadline = time.monotonic() + 60
    while not (tmp_path / "started").exists() or not (tmp_path / "started").read_text().endswith("\n"):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return int((tmp_path / "started").read_text())


def assert_ends(process):
    """A process that is nobody's child here."""
    deadline = time.monotonic() + 20
    with suppress(ProcessLookupError):
        while True:
            os.kill(process, 0)
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_a_script_without_a_guard_is_told_and_does_not_wait_for_ever(tmp_path):
    with started(tmp_path, 1, guard="True") as process:
        _, said = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "needs `if __name__ == '__main__':`" in said.splitlines()[-1]


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_a_worker_ends_with_whoever_started_it(tmp_path, how):
    with started(tmp_path, -4) as process:
        worker = worker_of(tmp_path)
        process.send_signal(how)
        assert process.wait(10) == -how
        assert_ends(worker)
        assert process.stderr.read() == ""


def test_the_first_worker_of_a_process_never_sees_an_interrupt(tmp_path):
    with started(tmp_path, -5) as process:
        os.kill(worker_of(tmp_path), signal.SIGINT)
        _, said = process.communicate(timeout=60)
    assert (process.returncode, said) == (0, "")


def test_a_worker_that_is_ended_while_it_ends_says_nothing(capfd):
    with pytest.raises(InfeasibleBudget):
        list(in_processes(refusing, [1], 1))
    assert capfd.readouterr().err == ""


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
