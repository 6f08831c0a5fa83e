"""Processes that answer jobs: every job once, errors as they are, and no process left behind."""

import functools
import os
import platform
import resource
import signal
import subprocess
import sys
import time
from contextlib import closing, suppress

import pytest

from mixbit.core.errors import InfeasibleBudget, MixbitError
from mixbit.core.io.processes import in_processes
from tests.core.io.jobs import NeverArrives, answering, check_kept, dying, failing, faulting, prepared


@pytest.fixture
def start(tmp_path):
    return functools.partial(answering, str(tmp_path / "started"))


def answered(start, jobs, most):
    with in_processes(most) as processes:
        yield from processes.answers(start, jobs)


def workers_of(tmp_path, count=1):
    """The ids of the workers, once there are so many."""
    deadline = time.monotonic() + 100
    while not (tmp_path / "started").exists() or (tmp_path / "started").read_text().count("\n") < count:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return [int(line) for line in (tmp_path / "started").read_text().split()]


def assert_all_ended(tmp_path):
    deadline = time.monotonic() + 20
    for worker in workers_of(tmp_path):
        with suppress(ProcessLookupError):
            while True:
                os.kill(worker, 0)
                assert time.monotonic() < deadline
                time.sleep(0.05)


def test_every_job_is_answered_once_and_each_process_starts_once(start, tmp_path):
    answers = list(answered(start, range(40), 2))
    assert sorted(job for job, _ in answers) == list(range(40))
    assert all(answer == job**2 for job, (answer, _) in answers)
    assert {process for _, (_, process) in answers} == set(workers_of(tmp_path))
    assert len(workers_of(tmp_path)) <= 2
    assert_all_ended(tmp_path)


def test_no_job_starts_no_process(start, tmp_path):
    assert list(answered(start, [], 2)) == []
    assert not (tmp_path / "started").exists()


def test_our_errors_arrive_as_they_are_and_end_all_processes(start, tmp_path):
    with pytest.raises(InfeasibleBudget, match="no plan") as error:
        list(answered(start, [-3, -1], 2))
    assert error.value.binding == (2,)
    assert_all_ended(tmp_path)


def test_a_killed_worker_ends_all_processes(start, tmp_path):
    with pytest.raises(MixbitError, match=r"memory was short .*the same call continues"):
        list(answered(start, [-3, -2], 2))
    assert_all_ended(tmp_path)


def test_a_failing_start_is_told():
    with pytest.raises(ZeroDivisionError, match="at the start"):
        list(answered(failing, [1], 2))
    with pytest.raises(LookupError, match="cannot be made again"):
        list(answered(NeverArrives(), [1], 2))


def test_closing_ends_the_processes_amid_their_work(start, tmp_path):
    began = time.perf_counter()
    with closing(answered(start, [-3, 3], 2)) as answers:
        assert next(answers)[0] == 3
    assert time.perf_counter() - began < 100
    assert_all_ended(tmp_path)


def test_processes_are_kept_from_their_preparation_on(tmp_path):
    with in_processes(2) as processes:
        check_kept(processes, tmp_path)
    assert_all_ended(tmp_path)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other allocators keep freed memory in their own ways")
def test_a_process_keeps_what_it_frees_for_its_next_tensors():
    pages = 2**26 // resource.getpagesize()
    assert faulting()(4) > 3 * pages
    assert dict(answered(faulting, [4], 1))[4] < pages


def test_those_that_end_as_they_prepare_are_replaced(start, tmp_path):
    with in_processes(2) as processes:
        processes.begin(functools.partial(dying, str(tmp_path / "died")))
        assert dict(processes.answers(start, [2, 3])).keys() == {2, 3}
    assert_all_ended(tmp_path)


def test_processes_that_only_prepare_end_with_the_block(tmp_path):
    began = time.perf_counter()
    with in_processes(2) as processes:
        processes.begin(functools.partial(prepared, str(tmp_path / "started"), 600))
        workers_of(tmp_path, 2)
    assert time.perf_counter() - began < 100
    assert_all_ended(tmp_path)


SCRIPT = """
import signal
from functools import partial
from mixbit.core.io.processes import in_processes
from tests.core.io.jobs import answering

if GUARD:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # who runs tests in the background ignores it
    with in_processes(1) as processes:
        print(*processes.answers(partial(answering, STARTED, bytes(4 << 20)), [-3]))
"""


def script(tmp_path, guard="__name__ == '__main__'"):
    """A script that shares out work, in a process group of its own."""
    file = tmp_path / "script.py"
    file.write_text(SCRIPT.replace("GUARD", guard).replace("STARTED", repr(str(tmp_path / "started"))))
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    return subprocess.Popen(
        [sys.executable, file], env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def test_a_script_without_a_guard_is_told_and_does_not_wait_for_ever(tmp_path):
    with script(tmp_path, guard="True") as process:
        _, printed = process.communicate(timeout=100)
    assert process.returncode == 1
    assert "lacks `if __name__ == '__main__':`" in printed.splitlines()[-1]


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_workers_end_with_whoever_started_them(tmp_path, how):
    with script(tmp_path) as process:
        workers_of(tmp_path)
        process.send_signal(how)
        assert process.wait(20) == -how
        assert_all_ended(tmp_path)


def test_an_interrupt_of_all_processes_ends_them_at_once(tmp_path):
    with script(tmp_path) as process:
        workers_of(tmp_path)
        os.killpg(process.pid, signal.SIGINT)  # as Ctrl-C does to all in the terminal
        try:
            _, printed = process.communicate(timeout=60)
        finally:
            process.kill()  # else the test would wait for ever
    assert process.returncode == -signal.SIGINT
    assert printed.splitlines()[-1] == "KeyboardInterrupt"
    assert printed.count("Traceback") == 1, "of the script alone"
    assert_all_ended(tmp_path)
