import json
import multiprocessing
import os
import signal
import subprocess
import sys

import pytest

from mixbit.app.main import main
from tests.searches.test_front import random_table


def test_standard_output_holds_json_alone(tmp_path):
    """HiGHS prints a debug line on this table."""
    random_table(20, 7, seed=5).save(tmp_path / "sensitivity.json")
    words = ["search", "sensitivity.json", "--budget", "mean_bits=4", "--budget", "bit_ops_ratio=2.1", "--json"]
    run = subprocess.run(
        [sys.executable, "-m", "mixbit.app.main", *words, "--out", "plan.json"],
        cwd=tmp_path, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "Highs" in run.stderr
    assert run.stdout == (tmp_path / "plan.json").read_text()
    assert json.loads(run.stdout)["target"] == "openvino"


NETWORK = """
import os, signal, time

def model():
    os.kill(os.getpid(), signal.Signals[os.environ["SIGNAL"]])
    time.sleep(60)
"""


def measured(folder, number):
    """`mixbit measure` of a network that gets the signal, in this process."""
    for each in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(each, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell turns off in its background
    os.chdir(folder)
    os.environ["SIGNAL"] = number.name
    sys.stderr = open("said", "w")  # noqa: SIM115
    sys.argv = [
        "mixbit",
        "measure",
        "net.py:model",
        "--data",
        "net.py:model",
        "--target",
        "packed",
        "--out",
        "new/table",
    ]
    main()


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_ends_a_run_with_its_exit_code_and_nothing_is_left(tmp_path, number, status):
    (tmp_path / "net.py").write_text(NETWORK)
    (tmp_path / "new").mkdir()
    process = multiprocessing.get_context("fork").Process(target=measured, args=(tmp_path, number))
    process.start()
    process.join(60)
    by = "" if number is signal.SIGINT else f" by {number.name}"
    assert (tmp_path / "said").read_text() == f"mixbit: interrupted{by}\n"
    assert process.exitcode == status
    assert list((tmp_path / "new").iterdir()) == []
