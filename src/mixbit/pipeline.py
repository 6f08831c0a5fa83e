"""auto_quantize(): from a trained network to a verified artefact; the only file that knows the order of the steps."""

import inspect
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from torch import Tensor, nn

from mixbit.budget import Budget
from mixbit.calibrate import Calibration, calibrate
from mixbit.check import check_set
from mixbit.errors import InvalidInput
from mixbit.evaluation import Batch, Evaluation, artefact_runner, evaluate, graph_runner
from mixbit.files import check_writable_folder, whole_folder, write_text
from mixbit.graph import Graph, capture
from mixbit.latency import paired_latency_ms
from mixbit.layers import Layer, find_layers, find_uncovered, model_fingerprint
from mixbit.measurement import measure
from mixbit.plan import Plan
from mixbit.result import FILE_NAME, Result, deployed_figures, environment, figures, layer_rows
from mixbit.search import search, uniform_plans
from mixbit.sensitivity import Sensitivity
from mixbit.simulate import assemble, quantize
from mixbit.target import Target, find_target, target_module
from mixbit.task import Inputs, Task, split_batch
from mixbit.verification import Comparison, compare, predicted_bytes

FLAVOURS = ("static",)
ROUNDINGS = ("nearest",)
#: One batch (or sample, of a single batch) in so many is held out of calibration, to compare plans on.
HELD_OUT = 4


@dataclass(frozen=True)
class Settings:
    """How a plan is made.

    Attributes:
        task: What the model's outputs mean.
        choices: Schemes to choose from; the target's default ones where None.
        metric: Name of the metric.
        search: Name of the search.
        seed: Of every draw.
        model: Where the model came from, to be noted in result.json.
    """

    task: Task = field(default_factory=Task.classification)
    choices: Sequence[str] | None = None
    metric: str = "fisher"
    search: str = "ilp"
    seed: int = 0
    model: str | None = None


@dataclass(frozen=True)
class Deployed:
    """What auto_quantize returns.

    Attributes:
        folder: With plan.json, sensitivity.json, result.json, check.safetensors and the artefact.
        plan: The plan that was deployed.
        table: The sensitivities behind it.
        simulated: The quantized graph: evaluates and trains.
        comparison: The artefact against the simulation.
        result: Every figure, as in result.json.
    """

    folder: Path
    plan: Plan
    table: Sensitivity
    simulated: Graph
    comparison: Comparison
    result: Result


@dataclass(frozen=True)
class Trial:
    """One plan, simulated, with its outputs on the held-out calibration data."""

    plan: Plan
    simulated: Graph
    divergence: float


def auto_quantize(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    target: str,
    budget: Budget,
    out: str | Path,
    eval_batches: Iterable[Any] | None = None,
    settings: Settings | None = None,
    force: bool = False,
) -> Deployed:
    """Measure, search, quantize, export, run the artefact and compare; write everything into one folder.

    The plan is never worse than the best uniform plan within the budget, by mean KL divergence from the float network
    on calibration data held out of calibration; where the searched plan would be, the uniform one is deployed.

    Args:
        model: The trained network; it is left as it is.
        batches: Calibration data; labels are allowed and not needed.
        target: Name of the target.
        budget: Limits that the plan keeps.
        out: Folder for the results; it appears whole or not at all.
        eval_batches: Data to report on; the held-out calibration data where None.
        settings: How the plan is made.
        force: Whether files of the same names may be replaced in a folder that is not empty.

    Returns:
        Everything; `comparison.check()` raises TargetMismatch where the artefact is not as promised.

    Raises:
        InvalidInput: data, names or the folder cannot be used.
        UnsupportedModel: the model cannot be captured or expressed by the target.
        InfeasibleBudget: no plan keeps within the budget.
    """
    return _Run(target, Path(out), settings or Settings(), force).deploy(model, batches, eval_batches, budget)


class _Run:
    """The steps share the target, the settings and the clock."""

    def __init__(self, target: str, out: Path, settings: Settings, force: bool) -> None:
        self.target: Target = find_target(target)
        self.module = target_module(target)
        self.module.require()
        self.target.schemes(settings.choices)
        check_writable_folder(out, force=force)
        self.out, self.settings, self.force = out, settings, force
        self.task = settings.task
        self.seconds: dict[str, float] = {}

    def deploy(
        self, model: nn.Module, batches: Iterable[Any], eval_batches: Iterable[Any] | None, budget: Budget
    ) -> Deployed:
        pairs = split_batches(model, batches)
        held_out, kept = hold_out(pairs)
        with self._clock("capture"):
            graph = capture(model, pairs[0][0].args or pairs[0][0].kwargs)
        layers = find_layers(graph)
        with self._clock("calibrate"):
            calibration = calibrate(graph, layers, [inputs for inputs, _ in kept])
        with self._clock("measure"):
            table = self._measure(graph, kept, calibration)
        with self._clock("search"):
            plan = search(table, budget, self.settings.search)
        with self._clock("compare with uniform plans"):
            reference = evaluate(graph_runner(graph, self.task), held_out, self.task, "float on held-out data")
            plans = [plan, *(one for one in uniform_plans(table, budget) if one.layers != plan.layers)]
            trials = [self._try(graph, one, calibration, held_out, reference) for one in plans]
        chosen = min(trials, key=lambda trial: trial.divergence)
        evaluated = held_out if eval_batches is None else split_batches(model, eval_batches)
        with self._clock("evaluate"):
            outputs = self._evaluate_all(graph, trials, chosen, evaluated)
        return self._write(graph, table, trials, chosen, evaluated, outputs)

    @contextmanager
    def _clock(self, step: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self.seconds[step] = self.seconds.get(step, 0.0) + time.perf_counter() - began

    def _measure(self, graph: Graph, kept: list[Batch], calibration: Calibration) -> Sensitivity:
        return measure(
            graph,
            [inputs.args or dict(inputs.kwargs) for inputs, _ in kept],
            target=self.target,
            task=self.task,
            metric=self.settings.metric,
            choices=self.settings.choices,
            calibration=calibration,
            seed=self.settings.seed,
        )

    def _try(
        self, graph: Graph, plan: Plan, calibration: Calibration, held_out: list[Batch], reference: Evaluation
    ) -> Trial:
        simulated = quantize(graph, plan, calibration)
        outputs = evaluate(graph_runner(simulated, self.task), held_out, self.task, f"simulate {plan.made_by}")
        return Trial(plan, simulated, outputs.divergence(reference, self.task))

    def _evaluate_all(
        self, graph: Graph, trials: list[Trial], chosen: Trial, batches: list[Batch]
    ) -> dict[str, Evaluation]:
        """Outputs on the evaluation data by name: `float`, `chosen`, and each uniform plan's scheme."""
        runs = {"float": graph, "chosen": chosen.simulated}
        runs |= {scheme: trial.simulated for trial in trials if (scheme := uniform_scheme(trial.plan))}
        return {
            name: evaluate(graph_runner(one, self.task), batches, self.task, f"evaluate {name}")
            for name, one in runs.items()
        }

    def _write(
        self,
        graph: Graph,
        table: Sensitivity,
        trials: list[Trial],
        chosen: Trial,
        batches: list[Batch],
        outputs: dict[str, Evaluation],
    ) -> Deployed:
        layers = find_layers(graph)
        predicted = predicted_bytes(layers, chosen.plan)
        with whole_folder(self.out, force=self.force) as folder:
            with self._clock("export"):
                self.module.write(chosen.simulated, folder)
                runner = self.module.load(folder, graph)
            with self._clock("verify"):
                run = artefact_runner(runner, graph, self.task)
                deployed = evaluate(run, batches, self.task, "run the artefact")
                comparison = compare(folder, self.target.name, predicted, outputs["chosen"], deployed, self.task)
            with self._clock("time"):
                latency, float_bytes = self._time_against_float(graph, layers, folder, batches)
            result = Result(
                target=self.target.name,
                task=self.task.name,
                model=self.settings.model,
                chosen=_said(trials, chosen),
                float_=figures(
                    accuracy=outputs["float"].accuracy,
                    weight_bytes=4 * sum(layer.numel for layer in layers),
                    file_bytes=float_bytes,
                    latency_ms=latency["float"],
                ),
                simulated=figures(
                    accuracy=outputs["chosen"].accuracy,
                    divergence=outputs["chosen"].divergence(outputs["float"], self.task),
                ),
                deployed=deployed_figures(comparison, latency["deployed"]),
                uniform=self._uniform_rows(layers, trials, outputs),
                layers=layer_rows(chosen.plan.layers, predicted, self.module.stored(folder), runner.executed()),
                uncovered=[asdict(row) for row in find_uncovered(graph)],
                seconds={step: round(seconds, 3) for step, seconds in self.seconds.items()},
                environment=environment() | runner.environment,
            )
            chosen.plan.save(folder / "plan.json")
            table.save(folder / "sensitivity.json")
            check_set(batches, outputs["chosen"].outputs).save(folder)
            write_text(folder / FILE_NAME, result.to_json())
        return Deployed(self.out, chosen.plan, table, chosen.simulated, comparison, result)

    def _time_against_float(
        self, graph: Graph, layers: tuple[Layer, ...], folder: Path, batches: list[Batch]
    ) -> tuple[dict[str, float], int]:
        """Paired latencies of one sample for the artefact and the float network, and the float network's bytes."""
        sample = [leaf[:1].cpu().numpy() for leaf in batches[0][0].tensors]
        plan = Plan(
            target=self.target.name,
            fingerprint=model_fingerprint(layers),
            layers={layer.name: "float" for layer in layers},
            made_by="float",
        )
        with TemporaryDirectory() as scratch:
            self.module.write(assemble(graph, plan, [], {}), Path(scratch))
            runners = {
                "float": self.module.load(Path(scratch), graph, batch_size=1),
                "deployed": self.module.load(folder, graph, batch_size=1),
            }
            size = sum((Path(scratch) / name).stat().st_size for name in self.target.files)
            runs = {name: runner.run for name, runner in runners.items()}
            return paired_latency_ms(runs, sample, "time the artefact"), size

    def _uniform_rows(
        self, layers: tuple[Layer, ...], trials: list[Trial], outputs: dict[str, Evaluation]
    ) -> list[dict[str, float | str]]:
        rows = []
        for trial in trials:
            scheme = uniform_scheme(trial.plan)
            if scheme:
                predicted = float(sum(predicted_bytes(layers, trial.plan).values()))
                divergence = outputs[scheme].divergence(outputs["float"], self.task)
                found = figures(
                    accuracy=outputs[scheme].accuracy, divergence=divergence, predicted_bytes=predicted,
                    held_out_divergence=trial.divergence,
                )  # fmt: skip
                rows.append({"scheme": scheme, **found})
        return rows


def uniform_scheme(plan: Plan) -> str | None:
    """The scheme that every layer takes, None where they differ."""
    schemes = set(plan.layers.values())
    return schemes.pop() if len(schemes) == 1 else None


def split_batches(model: nn.Module, batches: Iterable[Any]) -> list[Batch]:
    """Inputs and labels of every batch, as the model's forward takes them.

    A tuple ends with labels where it holds more than forward takes, or where forward can do without its last entry
    and that is a vector of whole numbers.
    """
    pairs = []
    num_inputs: int | None = None
    for batch in batches:
        if isinstance(batch, tuple | list) and num_inputs is None:
            num_inputs = _num_inputs(model, batch)
        pairs.append(split_batch(batch, num_inputs))
    if not pairs:
        raise InvalidInput("the data holds no batch: an empty loader, or an iterator that was used up before")
    return pairs


def _num_inputs(model: nn.Module, batch: Sequence[Any]) -> int:
    parameters = list(inspect.signature(model.forward).parameters.values())
    positional = [one for one in parameters if one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD)]
    required = sum(one.default is one.empty for one in positional)
    takes_any = any(one.kind is one.VAR_POSITIONAL for one in parameters)
    last, others = batch[-1], len(batch) - 1
    looks_like_labels = isinstance(last, Tensor) and last.ndim == 1 and not last.is_floating_point()
    if (not takes_any and len(batch) > len(positional)) or (others >= max(1, required) and looks_like_labels):
        return others
    return len(batch)


def hold_out(pairs: list[Batch]) -> tuple[list[Batch], list[Batch]]:
    """Held-out and kept data: every HELD_OUT-th batch, or of a single batch every HELD_OUT-th sample.

    One sample alone serves as both.
    """
    if len(pairs) > 1:
        held_out = pairs[HELD_OUT - 1 :: HELD_OUT] or pairs[-1:]
        return held_out, [pair for pair in pairs if not any(pair is one for one in held_out)]
    inputs, labels = pairs[0]
    count = inputs.batch_size
    if count == 1:
        return pairs, pairs
    every = min(HELD_OUT, count)
    out = [index for index in range(count) if index % every == every - 1]
    kept = [index for index in range(count) if index % every != every - 1]
    return [_rows(inputs, labels, out)], [_rows(inputs, labels, kept)]


def _rows(inputs: Inputs, labels: Tensor | None, rows: list[int]) -> Batch:
    return inputs.map(lambda leaf: leaf[rows] if leaf.ndim else leaf), None if labels is None else labels[rows]


def _said(trials: list[Trial], chosen: Trial) -> str:
    uniform = [trial for trial in trials if uniform_scheme(trial.plan)]
    if not uniform:
        return "no uniform plan keeps within the budget; the searched plan is deployed"
    best = min(uniform, key=lambda trial: trial.divergence)
    name, searched = uniform_scheme(best.plan), trials[0]
    figures_ = f"{searched.divergence:.4g} against {best.divergence:.4g} nats from the float network on held-out data"
    if chosen is searched:
        return f"the searched plan is deployed: no worse than uniform {name}, the best uniform plan ({figures_})"
    return f"uniform {name} is deployed: the searched plan was worse ({figures_})"
