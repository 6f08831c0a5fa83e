"""Standard output and error that are closed, full, or read no further."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

RUN = f"{sys.executable} -m mixbit.app.main"


def shell(line):
    return subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=False)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device that is always full")
def test_a_full_place_for_output_is_told():
    ended = shell(f"{RUN} --help > /dev/full")
    assert ended.returncode == 2
    assert ended.stderr == (
        "mixbit: standard output cannot be written (No space left on device); files that were to be made are there\n"
    )


def test_a_reader_that_stops_ends_the_program_without_words():
    ended = shell(f"{RUN} --help | true; exit ${{PIPESTATUS[0]}}")
    assert ended.returncode in (0, 1)
    assert ended.stderr == ""


@pytest.mark.slow
def test_closed_streams_are_no_error_and_mix_nothing():
    assert shell(f"{RUN} list targets >&-").returncode == 0
    ended = shell(f"{RUN} list targets --json 2>&-")
    assert ended.returncode == 0
    assert "openvino" in json.loads(ended.stdout)
    wrong = shell(f"{RUN} list nothing 2>&-")
    assert (wrong.returncode, wrong.stdout) == (2, "")
