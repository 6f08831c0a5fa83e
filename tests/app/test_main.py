import json
import subprocess
import sys

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
