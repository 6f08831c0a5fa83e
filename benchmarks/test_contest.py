"""The contest's arithmetic against sums in plain Python, its names, and tools that fail; no tool is needed."""

import math
import statistics
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks import contest, contest_tools, networks
from benchmarks.contest import Row
from benchmarks.contest_tools._run import usage
from benchmarks.contest_tools._tool import Job, Method, Quantized, Stored
from benchmarks.networks._network import ACCURACY, AGREEMENT, PERPLEXITY, Network, batches
from mixbit.core.errors import InvalidInput
from mixbit.core.task import Task

GENERATOR = torch.Generator().manual_seed(0)


def kl(p: list[float], q: list[float]) -> float:
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def test_divergences_are_sums_over_answers() -> None:
    a, b = (torch.randn(3, 4, generator=GENERATOR) for _ in range(2))
    rows = list(zip(a.double(), b.double(), strict=True))
    expected = [kl(x.softmax(0).tolist(), y.softmax(0).tolist()) for x, y in rows]
    assert contest.divergences("classification", a, b).tolist() == pytest.approx(expected)
    yes = [
        [(float(1 / (1 + math.exp(-x))), float(1 / (1 + math.exp(-y)))) for x, y in zip(*row, strict=True)]
        for row in rows
    ]
    expected = [sum(kl([p, 1 - p], [q, 1 - q]) for p, q in row) for row in yes]
    assert contest.divergences("multilabel", a, b).tolist() == pytest.approx(expected)
    expected = [sum(float(x - y) ** 2 for x, y in zip(*row, strict=True)) / 2 for row in rows]
    assert contest.divergences("regression", a, b).tolist() == pytest.approx(expected)
    a, b = (torch.randn(2, 3, 4, generator=GENERATOR) for _ in range(2))
    expected = [
        sum(kl(a[n, t].double().softmax(0).tolist(), b[n, t].double().softmax(0).tolist()) for t in range(3)) / 3
        for n in range(2)
    ]
    assert contest.divergences("language", a, b).tolist() == pytest.approx(expected)


def test_standard_errors() -> None:
    values = [0.5, 1.25, 4.0, 2.0]
    mean, error = contest.estimate(values)
    assert mean == pytest.approx(statistics.mean(values))
    assert error == pytest.approx(statistics.stdev(values) / math.sqrt(4))
    others = [1.5, 2.0, 5.5, 2.0]
    apart = [1.0, 0.75, 1.5, 0.0]
    expected = statistics.mean(apart) / (statistics.stdev(apart) / 2)
    assert contest.behind(values, others) == pytest.approx(expected)
    assert contest.behind(others, values) == pytest.approx(-expected)
    assert contest.behind(values, values) == 0
    assert contest.behind(values, [value + 1 for value in values]) == math.inf


def row(tool: str, nats: list[float], values: list[float], *, bits: float = 4.0) -> Row:
    return Row(tool, "one", 4, mean_bits=bits, divergences=nats, values=values)


def test_mixbit_must_be_first_or_close() -> None:
    far, near = [0.1, 0.11, 0.1, 0.11], [0.3, 0.05, 0.2, 0.0]
    ours = row("mixbit", far, [1, 1, 0, 1])
    first = row("other", [0.01, 0.02, 0.01, 0.01], [1, 1, 0, 1])
    (said,) = contest.problems([ours, first], ACCURACY)
    assert said.startswith("4 bits, divergence: ")
    assert said.endswith("standard errors behind other/one@4")
    assert contest.problems([row("mixbit", near, [1, 1, 0, 1]), first], ACCURACY) == []
    assert contest.problems([ours, row("other", [0.01] * 4, [], bits=4.2)], ACCURACY) == [], "over the budget"
    failed = Row("other", "two", 4, message="an error")
    assert contest.problems([ours, failed], ACCURACY) == []
    assert contest.problems([first], ACCURACY) == [], "no row of mixbit"
    assert contest.problems([ours, first, row("mixbit", first.divergences, [1, 1, 0, 1])], ACCURACY) == []


def test_perplexity_is_better_when_it_is_less() -> None:
    low, high = [1.0, 1.1, 1.0, 1.1], [2.0, 2.0, 2.1, 2.1]
    same = [0.1] * 4
    assert contest.problems([row("mixbit", same, low), row("other", same, high)], PERPLEXITY) == []
    (said,) = contest.problems([row("mixbit", same, high), row("other", same, low)], PERPLEXITY)
    assert "4 bits, perplexity" in said
    cells = contest.cells(row("mixbit", same, low), [], PERPLEXITY)
    assert cells[4] == f"{math.exp(1.05):.4f} ± {math.exp(1.05) * statistics.stdev(low) / 2:.4f}"


def test_bytes_count_bits_scales_and_what_stays_in_float(tmp_path: Path) -> None:
    job = Job(nn.Sequential(nn.Linear(10, 6), nn.Linear(6, 5)), [], [], "classification", 4, tmp_path)
    quantized = Quantized(lambda batch: batch, [Stored(60, 3, 6)])
    assert usage(job, quantized) == {"bytes": 60 * 3 / 8 + 30 * 4 + 6 * 4, "mean_bits": (60 * 3 + 30 * 32) / 90}


@pytest.mark.parametrize("name", contest_tools.NAMES)
def test_every_tool_says_what_it_needs_and_can(name: str) -> None:
    tool = contest_tools.load(name)
    assert callable(tool.quantize)
    assert bool(tool.REQUIREMENTS) == (name != "mixbit")
    for method, facts in tool.METHODS.items():
        assert isinstance(facts, Method)
        assert contest.parsed(f"{name}/{method}@{facts.budgets[0]:g}") == (name, method, facts.budgets[0])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nncv/default@8", "tool 'nncv' is unknown .*nncf"),
        ("nncf/gptq@8", "method of nncf 'gptq' is unknown"),
        ("nncf/default@3", "mean bits of nncf/default '3' is unknown; known: 8"),
        ("nncf", "method of nncf '' is unknown"),
    ],
)
def test_unknown_rows_are_refused(name: str, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        contest.parsed(name)


def test_a_failing_tool_is_quoted_by_its_error() -> None:
    said = "Traceback:\n  File x\nlib.errors.TraceError: no such operator\n\nSet VERBOSE=1 to see more\n"
    assert contest._error(said) == "lib.errors.TraceError: no such operator"
    assert contest._error("warning\nERROR: no matching distribution\n") == "ERROR: no matching distribution"
    assert contest._error("") == "without a message"


def small(labels: torch.Tensor | None) -> Network:
    inputs = torch.randn(8, 6, generator=torch.Generator().manual_seed(1))
    data = batches(4, inputs) if labels is None else batches(4, inputs, labels)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3)).eval()
    return Network("small", model, data, data, Task.classification(), AGREEMENT if labels is None else ACCURACY)


def test_labels_that_do_not_fit_are_told_at_once(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MIXBIT_CACHE", str(tmp_path / "cache"))
    with pytest.raises(InvalidInput, match=r"batch 1: .*7"):
        contest.Contest(small(torch.tensor([0, 1, 2, 0, 1, 7, 0, 1])), tmp_path, None)


def test_rows_run_in_processes_and_are_kept(monkeypatch, tmp_path: Path, capsys) -> None:
    monkeypatch.setenv("MIXBIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(networks, "load", lambda name: small(None))

    def environment(tool: str) -> Path:
        if tool == "nncf":
            raise networks.MissingPackage("tool nncf: pip fails: no-such-tool")
        return Path(sys.executable)

    monkeypatch.setattr(contest, "environment", environment)
    with pytest.raises(SystemExit) as ended:
        contest.main(["small", "--rows", "nncf/default@8", "mixbit/nearest@8", "--count", "6"])
    printed = capsys.readouterr().out
    assert ended.value.code == 0
    assert "pip fails: no-such-tool" in printed
    assert "6 samples" in printed
    (kept,) = (tmp_path / "cache").rglob("mixbit-nearest@8-*.json")
    kept.write_text(kept.read_text().replace('"message": ""', '"message": "taken from here"'))
    with pytest.raises(SystemExit):
        contest.main(["small", "--rows", "mixbit/nearest@8", "--count", "6"])
    assert "taken from here" in capsys.readouterr().out
    assert not list((tmp_path / "cache").rglob("nncf*.json")), "what failed is tried again"
