"""The contest: how far each tool's network is from float at the same mean bits of its weights, on the same data.

    python -m benchmarks.contest efficientnet_lite0
    python -m benchmarks.contest resnet20 --rows nncf/default@8 mixbit/nearest@8 mixbit/nearest@4 --processes 2

A row is TOOL/METHOD@BITS; without `--rows` all that suit the network are run. Every tool of `benchmarks.contest_tools`
runs in a process and an environment of its own, made by pip in the cache (`MIXBIT_CACHE`), with one thread, the same
float network, calibration data and evaluation data. Rows are kept there too, and taken again with `--again`, or when
the tool has changed.

Activations take 8 bits; those of language models stay in float. Bytes are those of all weights at their bits, and 32
bits a scale. Divergence is the mean Kullback-Leibler divergence from the float network's answers, in nats. Both it and
the measure that the network's users use have standard errors over samples. At each budget the last column says how many
paired standard errors a row is behind the one with the least divergence. Exit code 1: mixbit's best is more than two
behind at some budget, in either.
"""

import argparse
import hashlib
import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional

import mixbit as mb
from benchmarks import contest_tools, networks, paths
from benchmarks.networks import Measure, MissingPackage, Network
from mixbit.core import run_jobs
from mixbit.core.batches import split_batch
from mixbit.core.errors import InvalidInput, MixbitError, pick
from mixbit.graph import fitted, try_data

#: What every environment holds beside its tool, to load the float networks.
COMMON = (f"torch=={torch.__version__.partition('+')[0]}", "gguf", "onnx", "pillow", "pydantic", "rich", "safetensors",
          "scipy", "tokenizers", "typer")  # fmt: skip
#: Mean bits by which a row may be over its budget and still count.
SLACK = 0.05
ERRORS_BEHIND = 2.0


@dataclass(frozen=True)
class Row:
    """A tool's result, or its message where it failed.

    Attributes:
        tool, method, budget: The row's name.
        seconds, megabytes: CPU seconds of quantizing, and what it adds to the peak of memory.
        bytes, mean_bits: Of the weights.
        divergences, values: Of every sample, in nats and of the measure.
        message: Why there is no result.
    """

    tool: str
    method: str
    budget: float
    seconds: float = math.nan
    megabytes: float = math.nan
    bytes: float = math.nan
    mean_bits: float = math.nan
    divergences: list[float] = field(default_factory=list)
    values: list[float] = field(default_factory=list)
    message: str = ""

    @property
    def name(self) -> str:
        """TOOL/METHOD@BITS."""
        return f"{self.tool}/{self.method}@{self.budget:g}"

    @property
    def counts(self) -> bool:
        """Whether it has a result within its budget."""
        return not self.message and self.mean_bits <= self.budget + SLACK


def divergences(task: str, floats: Tensor, outputs: Tensor) -> Tensor:
    """KL divergence [N] of each sample's answers from the float network's, in nats; the mean over tokens.

    Classification and language: sum_c p_c (log p_c - log q_c). Multilabel: the sum over answers of the same for yes and
    no. Regression: half the squared distance, as of Gaussians with variance 1.
    """
    a, b = floats.double(), outputs.double()
    if task == "regression":
        return (a - b).square().flatten(1).sum(1) / 2
    if task == "multilabel":
        yes = a.sigmoid() * (functional.logsigmoid(a) - functional.logsigmoid(b))
        no = (-a).sigmoid() * (functional.logsigmoid(-a) - functional.logsigmoid(-b))
        return (yes + no).flatten(1).sum(1)
    p, q = a.log_softmax(-1), b.log_softmax(-1)
    return (p.exp() * (p - q)).sum(-1).reshape(len(a), -1).mean(1)


def estimate(values: Sequence[float]) -> tuple[float, float]:
    """Mean, and its standard error: the deviation over the root of the number of samples."""
    sample = torch.tensor(values, dtype=torch.float64)
    return float(sample.mean()), float(sample.std() / math.sqrt(len(sample)))


def behind(first: Sequence[float], other: Sequence[float]) -> float:
    """By how many standard errors of the difference, sample by sample, the other's mean is larger; 0 where equal."""
    mean, error = estimate([b - a for a, b in zip(first, other, strict=True)])
    return mean / error if error > 0 else math.copysign(math.inf, mean) if mean else 0.0


def losses(row: Row, measure: Measure) -> tuple[list[float], list[float]]:
    """What a row should have little of: divergences, and values of the measure, negated where more is better."""
    return row.divergences, [-value for value in row.values] if measure.higher_is_better else row.values


def problems(rows: Sequence[Row], measure: Measure) -> list[str]:
    """Budgets at which every row of mixbit is more than two standard errors behind the first, in either."""
    said = []
    for budget in sorted({row.budget for row in rows}, reverse=True):
        at = [row for row in rows if row.budget == budget and row.counts]
        ours = [row for row in at if row.tool == "mixbit"]
        for number, what in enumerate(("divergence", measure.name) if ours else ()):
            first = min(at, key=lambda row: estimate(losses(row, measure)[number])[0])
            errors = min(behind(losses(first, measure)[number], losses(row, measure)[number]) for row in ours)
            if errors > ERRORS_BEHIND:
                said.append(f"{budget:g} bits, {what}: {errors:.1f} standard errors behind {first.name}")
    return said


def environment(tool: str) -> Path:
    """The Python of a tool's environment, which is made where it is not there whole.

    Raises:
        MissingPackage: pip does not install what the tool requires.
    """
    requirements = contest_tools.load(tool).REQUIREMENTS
    if not requirements:
        return Path(sys.executable)
    folder = paths.cache() / "contest" / "environments" / tool
    python, whole = folder / "bin" / "python", folder / "whole.txt"
    wanted = "\n".join((*COMMON, *requirements))
    if not whole.exists() or whole.read_text() != wanted:
        _call([sys.executable, "-m", "venv", str(folder)], f"tool {tool}: no environment")
        _call([str(python), "-m", "pip", "install", "-q", *COMMON, *requirements], f"tool {tool}: pip fails")
        whole.write_text(wanted)
    return python


def version(tool: str) -> str:
    """A digest of the tool's file, which says its release, and of mixbit's own source where the tool is mixbit."""
    module = contest_tools.load(tool)
    sources = [] if module.REQUIREMENTS else sorted(Path(mb.__file__).parent.rglob("*.py"))
    return _digest([path.read_bytes() for path in (Path(str(module.__file__)), *sources)])


def _digest(parts: Iterable[bytes]) -> str:
    return hashlib.sha256(b"".join(parts)).hexdigest()[:8]


def _call(command: list[str], problem: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise MissingPackage(f"{problem}: {_error(done.stderr)}")


def _error(text: str) -> str:
    """What a failing process says of its error: the last line that begins with the name of one, or else the last."""
    lines = [line.strip() for line in text.splitlines() if line.strip()] or ["without a message"]
    errors = [line for line in lines if re.match(r"[\w.]*(Error|Exception)\b", line)]
    return (errors or lines)[-1][:300]


class Contest:
    """A network, its data in files for the tools, in a folder, and the rows that are done.

    Raises InvalidInput where the network takes several inputs, or its labels do not fit.
    """

    def __init__(self, network: Network, folder: Path, count: int | None) -> None:
        self.network, self.folder = network, folder
        calibration, evaluation = (
            [split_batch(batch) for batch in part] for part in (network.calibration, network.evaluation)
        )
        if any(len(inputs.tensors) != 1 or inputs.kwargs for inputs, _ in calibration + evaluation):
            raise InvalidInput(f"network {network.name}: takes several inputs by name; the contest's tools take one")
        graph = mb.capture(network.model, calibration[0][0].args)
        for part in (calibration, evaluation):
            try_data(graph, fitted(network.task, graph, part), part)
        inputs, judged = (torch.cat([each.tensors[0] for each, _ in part]) for part in (calibration, evaluation))
        self.size = calibration[0][0].batch_size
        self.labels = None if evaluation[0][1] is None else torch.cat([labels for _, labels in evaluation])[:count]
        judged = judged[:count]
        with torch.no_grad():
            self.floats = torch.cat([network.model(batch) for batch in judged.split(self.size)])
            answers = [
                network.model(inputs.tensors[0]).argmax(-1) if labels is None else labels
                for inputs, labels in calibration
            ]
        save_file({"inputs": inputs, "labels": torch.cat(answers), "evaluation": judged}, folder / "data.safetensors")
        (folder / "facts.json").write_text(json.dumps({"task": network.task.name, "batch": self.size}))
        torch.save(network.model, folder / "model.pt")
        key = _digest([(folder / "data.safetensors").read_bytes(), self.floats.numpy().tobytes()])
        self.rows = paths.cache() / "contest" / "rows" / f"{network.name}-{key}"
        self.rows.mkdir(parents=True, exist_ok=True)

    def row(self, name: str, *, minutes: float, again: bool) -> Row:
        """The row of that name, which is run where it was not, or failed, or its tool is another one since."""
        tool, method, budget = parsed(name)
        kept = self.rows / f"{name.replace('/', '-')}-{version(tool)}.json"
        if kept.exists() and not again:
            return Row(**json.loads(kept.read_text()))
        row = self._run(tool, method, budget, minutes)
        if not row.message:
            kept.write_text(json.dumps(asdict(row)))
        return row

    def _run(self, tool: str, method: str, budget: float, minutes: float) -> Row:
        try:
            python = environment(tool)
        except MissingPackage as error:
            return Row(tool, method, budget, message=str(error))
        command = [str(python), "-m", "benchmarks.contest_tools._run", str(self.folder), tool, method, str(budget)]
        here = os.pathsep.join(map(str, (Path(mb.__file__).parents[1], Path(__file__).parents[1])))
        settings = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": here}
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, check=False, env=settings, timeout=60 * minutes
            )
        except subprocess.TimeoutExpired:
            return Row(tool, method, budget, message=f"not done in {minutes:g} minutes")
        if done.returncode:
            return Row(tool, method, budget, message=_error(done.stderr))
        outputs = load_file(self.folder / "outputs.safetensors")["outputs"]
        if outputs.shape != self.floats.shape:
            return Row(tool, method, budget, message=f"outputs {list(outputs.shape)}, not {list(self.floats.shape)}")
        task, measure = self.network.task.name, self.network.measure
        parts = zip(self.floats.split(self.size), outputs.split(self.size), strict=True)
        nats = torch.cat([divergences(task, floats, some) for floats, some in parts])
        values = measure.values(outputs, self.floats, self.labels)
        found = json.loads((self.folder / "row.json").read_text())
        return Row(tool, method, budget, **found, divergences=nats.tolist(), values=values.tolist())


def begin(network: str, folder: Path, count: int | None, **options: Any) -> Callable[[str], Row]:
    """What runs rows, in a process, which has a folder of its own."""
    own = folder / str(os.getpid())
    own.mkdir()
    return partial(Contest(networks.load(network), own, count).row, **options)


def parsed(name: str) -> tuple[str, str, float]:
    """Tool, method and mean bits of a row's name; raises InvalidInput for one that is unknown."""
    tool, _, rest = name.partition("/")
    method, _, budget = rest.partition("@")
    pick("tool", tool, contest_tools.NAMES)
    methods = contest_tools.load(tool).METHODS
    pick(f"method of {tool}", method, tuple(methods))
    budgets = [f"{each:g}" for each in methods[method].budgets]
    return tool, method, float(pick(f"mean bits of {tool}/{method}", budget, budgets))


def every_row(network: Network) -> list[str]:
    """The names of all rows that suit the network: of weights alone for language models."""
    rows = [
        f"{tool}/{name}@{budget:g}"
        for tool in contest_tools.NAMES
        for name, method in contest_tools.load(tool).METHODS.items()
        for budget in method.budgets
        if method.weights_only == (network.task.name == "language")
    ]
    return sorted(rows, key=lambda row: -parsed(row)[2])


def cells(row: Row, rows: Sequence[Row], measure: Measure) -> list[str]:
    """A row of the table."""
    if row.message:
        return [row.name, *[""] * 6, escape(row.message)]
    nats, value = estimate(row.divergences), estimate(row.values)
    if measure.exponential:
        value = math.exp(value[0]), math.exp(value[0]) * value[1]
    at = [each for each in rows if each.budget == row.budget and each.counts]
    first = min(at, key=lambda each: estimate(each.divergences)[0], default=row)
    note = f"{behind(first.divergences, row.divergences):.1f}" if row.counts else "over the budget"
    return [
        row.name, f"{row.mean_bits:.2f}", f"{row.bytes:,.0f}", f"{nats[0]:.4f} ± {nats[1]:.4f}",
        f"{value[0]:.4f} ± {value[1]:.4f}", f"{row.seconds:.0f}", f"{row.megabytes:.0f}", note,
    ]  # fmt: skip


@contextmanager
def telling(console: Console) -> Iterator[None]:
    """Print an error of the block, and end with its code."""
    try:
        yield
    except MixbitError as error:
        console.print(escape(str(error)))
        sys.exit(error.exit_code)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the rows, print each as it is done, then the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network")
    parser.add_argument("--rows", nargs="+", metavar="TOOL/METHOD@BITS")
    parser.add_argument("--count", type=int, help="judge on so many samples")
    parser.add_argument("--minutes", type=float, default=30.0, help="the longest time of a row")
    parser.add_argument("--again", action="store_true", help="run rows that were run before")
    parser.add_argument("--processes", type=int, default=1, help="rows that run at once")
    given, console = parser.parse_args(arguments), Console(width=160, highlight=False)
    with telling(console), TemporaryDirectory() as scratch:
        folder = Path(scratch)
        network = networks.load(given.network)
        names = given.rows or every_row(network)
        for name in names:
            parsed(name)
        for tool in dict.fromkeys(parsed(name)[0] for name in names):  # not by two rows at once
            with suppress(MissingPackage):  # which its rows say
                environment(tool)
        contest, done = Contest(network, folder, given.count), dict[str, Row]()
        engine, options = mb.Engine(processes=given.processes), {"minutes": given.minutes, "again": given.again}
        start = partial(partial, contest.row, **options)
        if not engine.is_this_process:
            start = partial(begin, given.network, folder, given.count, **options)
        for name, row in run_jobs(engine, start, names):
            done[name] = row
            console.print(" ".join(cells(row, [], network.measure)))
        rows = [done[name] for name in names]
        value = estimate(network.measure.values(contest.floats, contest.floats, contest.labels).tolist())[0]
    value = math.exp(value) if network.measure.exponential else value
    columns = "row", "mean bits", "bytes", "divergence", network.measure.name, "CPU seconds", "MB", "errors behind"
    table = Table(*columns, title=f"{network.name}, float {value:.4f}, {len(contest.floats)} samples")
    for row in rows:
        table.add_row(*cells(row, rows, network.measure))
    console.print(table)
    said = problems(rows, network.measure)
    for problem in said:
        console.print(f"mixbit is not first at {problem}")
    sys.exit(1 if said else 0)


if __name__ == "__main__":
    main()
