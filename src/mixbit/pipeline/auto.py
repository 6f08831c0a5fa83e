"""auto_quantize(): from a trained network to a verified artefact; the only file that knows the order of the steps."""

import logging
import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from mixbit.core import Budget, InvalidInput, MaxDrop, Plan, Scheme, Sensitivity
from mixbit.core.batches import Batch, hold_out, split_batches
from mixbit.core.io.digest import source_digest, tensors_digest
from mixbit.core.io.store import Checkpoint, Journal
from mixbit.graph.capture import capture, check_module
from mixbit.graph.case import Case
from mixbit.graph.evaluate import Evaluation, evaluate
from mixbit.graph.graph import Graph
from mixbit.metrics.measure import measure
from mixbit.pipeline.decide import Contender, Decision, said, warning
from mixbit.pipeline.deploy import Deployed, deploy
from mixbit.pipeline.settings import Run, Settings
from mixbit.pipeline.trials import Scoring, cheapest_enough, searched
from mixbit.pruning.prune import prune_channels
from mixbit.quantization.batchnorm import reestimated
from mixbit.quantization.calibrate import Calibration, calibrate
from mixbit.quantization.equalize import equalized
from mixbit.quantization.masks import choose_masks
from mixbit.quantization.offers import check_pin, note_on_run_time_ranges
from mixbit.quantization.ranges import RANGES
from mixbit.roundings import ROUNDINGS, Rounding
from mixbit.roundings.nearest import nearest
from mixbit.roundings.quantize import quantize
from mixbit.searches.search import uniform_plans
from mixbit.targets.export import check_exportable
from mixbit.targets.latency import timed
from mixbit.training.finetune import check_first, settings_of, train
from mixbit.training.loop import Objective, Trained, Training

#: Endings of the files in which trainings are kept: in float after channels were removed, and of the plan.
PRUNED, TRAINING = "pruned.safetensors", "training.safetensors"

_log = logging.getLogger("mixbit")


def auto_quantize(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    target: str,
    budget: Budget | MaxDrop,
    out: str | Path,
    eval_batches: Iterable[Any] | None = None,
    settings: Settings | None = None,
    force: bool = False,
) -> Deployed:
    """Measure, search, quantize, export, run the artefact and compare; write everything into one folder.

    The plan is never worse than the best uniform plan within the budget, by mean KL divergence from the float network
    on calibration data held out of calibration; where the searched plan would be, the uniform one is deployed. With
    a largest drop for a budget, it is the cheapest plan on the front of bytes whose artefact drops no more on the
    evaluation data; or a uniform one that is cheaper still. There each plan is tried with its weights rounded as the
    settings say, and the one that is deployed keeps that rounding, with which it was found to keep within the drop.
    Otherwise plans are compared with the nearest integers, and the rounding is kept where it is no worse.

    With the flavour `qat` the chosen plan is then fine-tuned, the float network its teacher, and kept as it was where
    the loss on held-out data gets no less. What searches try is kept in `<out>.trials.jsonl`, what a rounding has
    learned in `<out>.rounding`, what a network without some channels has in `<out>.channels`, and the training in
    `<out>.training.safetensors`, until the results are written:
    interrupted, the same call goes on.

    Args:
        model: The trained network; it is left as it is.
        batches: Calibration data; labels are allowed and not needed.
        target: Name of the target.
        budget: Limits that the plan keeps, or the largest drop of accuracy.
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
    run = Run(target, Path(out), settings or Settings(), force=force)
    return deploy(run, _Steps(run).decide(model, batches, eval_batches, budget))


@dataclass(frozen=True)
class _Data:
    """Batches to calibrate and measure on, to compare plans on, and to report on."""

    kept: list[Batch]
    held_out: list[Batch]
    evaluated: list[Batch]


@dataclass(frozen=True)
class _Measured:
    """What a search starts from; the reference is what the graph does on the held-out data."""

    graph: Graph
    data: _Data
    calibration: Calibration
    table: Sensitivity
    reference: Evaluation


class _Steps:
    """The steps up to the decision."""

    def __init__(self, run: Run) -> None:
        self.run, self.settings, self.task = run, run.settings, run.task

    def decide(
        self, model: nn.Module, batches: Iterable[Any], eval_batches: Iterable[Any] | None, budget: Budget | MaxDrop
    ) -> Decision:
        """Measure, search and simulate; nothing is written but the journal of what was tried."""
        self._check_drop(budget)
        graph, data = self._captured(model, batches, eval_batches)
        note = note_on_run_time_ranges(graph.layers, self.run.choices)
        graph, dense = self._prune(graph, data, budget)
        known = self._measured(graph, data, budget)
        plan, limits, grounds = self._searched(known, budget)
        contenders = self._contenders(known, plan, limits)
        chosen = contenders[0] if grounds else min(contenders, key=lambda contender: contender.divergence)
        told = [grounds or said(contenders, chosen)]
        if ROUNDINGS.find(self.settings.rounding)[1] is not nearest:
            with self.run.clock("round weights"):
                chosen, more = self._rounded(known, chosen)
            told.append(more)
        if self.settings.flavour == "qat":
            with self.run.clock("fine-tune"):
                chosen, more = self._tuned(known, dense or graph, chosen)
            told.append(more)
        with self.run.clock("evaluate"):
            outputs = self._evaluate_all(known, dense, contenders, chosen)
        broken = warning(outputs, self.task)
        if broken:
            _log.warning("%s", broken)
        grounds = "; ".join(text for text in (*told, note, broken) if text)
        return Decision(graph, known.table, contenders, chosen, grounds, data.evaluated, outputs, dense)

    def _check_drop(self, budget: Budget | MaxDrop) -> None:
        """A largest drop is kept by the files that are tried, which no training may change afterwards."""
        if isinstance(budget, MaxDrop) and self.settings.flavour == "qat":
            raise InvalidInput(
                "flavour qat: to keep within a largest drop, every plan tried would have to be trained; give a budget "
                "instead, say the weight_bytes of the plan that --max-drop finds, or a --rounding in place of training"
            )

    def _captured(
        self, model: nn.Module, batches: Iterable[Any], eval_batches: Iterable[Any] | None
    ) -> tuple[Graph, _Data]:
        """The float graph, and the data, which fits it."""
        check_module(model)
        pairs = split_batches(model, batches)
        held_out, kept = hold_out(pairs)
        with self.run.clock("capture"):
            if self.settings.reestimate_batch_norms:
                model = reestimated(model, kept)
            graph = capture(model, pairs[0][0])
            check_exportable(graph)
            graph = equalized(graph) if self.settings.equalize else graph
        evaluated = held_out if eval_batches is None else split_batches(model, eval_batches)
        for what, part in (("", pairs), (" to evaluate on", evaluated)):
            for number, (inputs, _) in enumerate(part):
                graph.check(inputs, f"batch {number}{what}")
        if self.settings.train_batches is not None:
            check_first(graph, self.settings.train_batches)
        if self.settings.flavour == "qat":
            for ending in (PRUNED, TRAINING) if self.settings.prune_channels else (TRAINING,):
                about = settings_of(self.settings.epochs, self._training)
                Checkpoint(self.run.keep(ending), about).check(force=self.run.force)
        self._check_pins(graph)
        return graph, _Data(kept, held_out, evaluated)

    def _check_pins(self, graph: Graph) -> None:
        for pattern, scheme in self.settings.pins.items():
            check_pin(graph.layers, pattern, Scheme.parse(scheme))

    def _measured(self, graph: Graph, data: _Data, budget: Budget | MaxDrop) -> _Measured:
        with self.run.clock("calibrate"):
            inputs = [inputs for inputs, _ in data.kept]
            calibration = calibrate(graph, inputs, ranges=self.settings.ranges)
            calibration = replace(calibration, batches=inputs)  # for roundings, and sequential correction
        with self.run.clock("measure"):
            table = self._table(graph, data.kept, calibration)
        if isinstance(budget, Budget) and "latency_ms" in budget.limits:
            with self.run.clock("time choices"):
                table = timed(table, graph, calibration)
        reference = evaluate(graph, data.held_out, self.task, "float on held-out data")
        return _Measured(graph, data, calibration, table, reference)

    def _table(self, graph: Graph, kept: list[Batch], calibration: Calibration) -> Sensitivity:
        choices = self.run.choices
        only_pinned = [scheme for scheme in dict.fromkeys(self.settings.pins.values()) if scheme not in choices]
        schemes = tuple(Scheme.parse(choice) for choice in (*choices, *only_pinned))
        formats = [scheme.weight for scheme in schemes if scheme.weight]
        case = Case(graph, kept, self.task, self.settings.seed)
        choose_masks(
            case, calibration, graph.layers, formats, self.settings.importance
        )  # kept in the calibration, for measure() and quantize()
        table = measure(
            graph,
            kept,
            target=self.run.target,
            task=self.task,
            metric=self.settings.metric,
            choices=[*choices, *only_pinned],
            calibration=calibration,
            seed=self.settings.seed,
        )
        return table.pinned(self.settings.pins, only_pinned) if self.settings.pins else table

    def _prune(self, graph: Graph, data: _Data, budget: Budget | MaxDrop) -> tuple[Graph, Graph | None]:
        """The graph that is quantized, fine-tuned in float first by `qat`; the one with all channels, where another."""
        share = self.settings.prune_channels
        if share == 0:
            return graph, None
        if isinstance(budget, MaxDrop):
            raise InvalidInput(
                f"prune_channels={share}: a largest drop would be counted from the pruned network; give a budget"
            )
        with self.run.clock("prune channels"):
            folder, seed = self.run.keep("channels"), self.settings.seed
            smaller = prune_channels(graph, data.kept, share=share, task=self.task, seed=seed, folder=folder)
        try:
            self._check_pins(smaller)
        except InvalidInput as error:
            raise InvalidInput(f"with prune_channels={share}, which changes sizes: {error}") from None
        if self.settings.flavour == "qat":
            with self.run.clock("fine-tune in float"):
                smaller = self._trained(smaller, graph, data, self.run.keep(PRUNED)).graph
        return smaller, graph

    def _searched(self, known: _Measured, budget: Budget | MaxDrop) -> tuple[Plan, Budget, str | None]:
        """The plan, the limits that it keeps, and, where it alone keeps within a largest drop, the grounds for it."""
        kept = known.data.kept
        with self.run.clock("search"):
            if isinstance(budget, MaxDrop):
                scoring = self._scoring(known, known.data.evaluated, self.settings.rounding)
                plan, grounds = cheapest_enough(known.table, scoring, budget)
                return plan, Budget(weight_bytes=plan.predicted["weight_bytes"]), grounds
            count = math.ceil(self.settings.eval_subset_ratio * len(kept))
            some = [kept[index * len(kept) // count] for index in range(count)]  # from all over the data
            plan = searched(known.table, lambda: self._scoring(known, some, "nearest"), budget, self.settings.search)
            return plan, budget, None

    def _scoring(self, known: _Measured, batches: list[Batch], rounding: str | Rounding) -> Scoring:
        """How plans are tried on the batches; the journal notes what scores depend on, calibration data among it."""
        about = {
            "target": self.run.target.name,
            "task": self.task.name,
            "rounding": source_digest(ROUNDINGS.find(rounding)[1]),
            "seed": self.settings.seed,
            "bias_correction": self.settings.bias_correction,
            "ranges": source_digest(RANGES.find(self.settings.ranges)[1]),
            "importance": self.settings.importance,
            "score": None if self.settings.score is None else source_digest(self.settings.score),
            "network": tensors_digest(known.graph.module.state_dict().values()),
        }
        for name, part in (("calibration", known.data.kept), ("evaluation", batches)):
            leaves = (leaf for inputs, labels in part for leaf in (*inputs.tensors, labels) if leaf is not None)
            about[name] = tensors_digest(leaves)
        return Scoring(
            known.graph,
            known.calibration,
            batches,
            self.task,
            self.settings.score,
            self.settings.eval_timeout_s,
            Journal(self.run.keep("trials.jsonl"), about, force=self.run.force),
            partial(self._simulated, rounding=rounding),
        )

    def _contenders(self, known: _Measured, plan: Plan, limits: Budget) -> list[Contender]:
        """The plan and the uniform ones within the limits, simulated with the nearest integers on held-out data."""
        with self.run.clock("compare with uniform plans"):
            uniform = {one.made_by.removeprefix("uniform "): one for one in uniform_plans(known.table, limits)}
            same = next((name for name, one in uniform.items() if one.layers == plan.layers), None)
            plans = {same: plan} | {name: one for name, one in uniform.items() if one.layers != plan.layers}
            return [
                replace(
                    self._contender(known, one, self._simulated(known.graph, one, known.calibration), one.made_by),
                    uniform=name,
                )
                for name, one in plans.items()
            ]

    def _contender(self, known: _Measured, plan: Plan, simulated: Graph, label: str) -> Contender:
        outputs = evaluate(simulated, known.data.held_out, self.task, f"simulate {label}")
        return Contender(plan, simulated, outputs.divergence(known.reference))

    def _simulated(
        self, graph: Graph, plan: Plan, calibration: Calibration, *, rounding: str | Rounding = "nearest"
    ) -> Graph:
        """A plan with its weights rounded so, and biases corrected as the settings say."""
        return quantize(
            graph,
            plan,
            calibration,
            rounding=rounding,
            bias_correction=self.settings.bias_correction,
            task=self.task,
            seed=self.settings.seed,
            folder=None if ROUNDINGS.find(rounding)[1] is nearest else self.run.keep("rounding"),
        )

    def _rounded(self, known: _Measured, chosen: Contender) -> tuple[Contender, str]:
        """The plan with its weights rounded as the settings say, and a sentence about it.

        Where that is worse on held-out data it keeps the nearest integers, but not where it was found to keep within a
        largest drop: that holds for its rounding.
        """
        (name, _), plan = ROUNDINGS.find(self.settings.rounding), chosen.plan
        simulated = self._simulated(known.graph, plan, known.calibration, rounding=self.settings.rounding)
        rounded = replace(self._contender(known, plan, simulated, name), uniform=chosen.uniform)
        figures_ = f"{rounded.divergence:.4g} against {chosen.divergence:.4g} nats"
        if "max_drop" in plan.budget:
            return (
                rounded,
                f"weights are rounded by {name}, as in every plan that was tried ({figures_} with the nearest)",
            )
        if not rounded.divergence <= chosen.divergence:  # NaN is no improvement
            return chosen, f"weights are rounded to the nearest: {name} was worse ({figures_})"
        return rounded, f"weights are rounded by {name}, not to the nearest ({figures_})"

    def _tuned(self, known: _Measured, teacher: Graph, chosen: Contender) -> tuple[Contender, str]:
        """The contender fine-tuned, where that makes the loss on held-out data less, and a sentence about it."""
        found = self._trained(chosen.simulated, teacher, known.data, self.run.keep(TRAINING))
        losses = f"loss on held-out data {found.losses[0]:.4g} before, {min(found.losses[1:]):.4g} after"
        if found.best == 0:
            as_it_was = replace(chosen, untrained=chosen.simulated)
            return as_it_was, f"fine-tuning made it no better and is left out ({losses})"
        trained = self._contender(known, chosen.plan, found.graph, "fine-tuned")
        trained = replace(trained, uniform=chosen.uniform, untrained=chosen.simulated)
        return trained, f"fine-tuned, best after epoch {found.best} of {self.settings.epochs} ({losses})"

    @property
    def _training(self) -> Training:
        return replace(self.settings.training, seed=self.settings.seed)

    def _trained(self, graph: Graph, teacher: Graph, data: _Data, path: Path) -> Trained:
        """The graph trained as the settings say, its checkpoint at the path."""
        settings = self._training
        return train(
            graph,
            data.kept if self.settings.train_batches is None else self.settings.train_batches,
            Objective(self.task, teacher, settings.distil, settings.temperature),
            epochs=self.settings.epochs,
            settings=settings,
            eval_batches=data.held_out,
            path=path,
            force=self.run.force,
        )

    def _evaluate_all(
        self, known: _Measured, dense: Graph | None, contenders: list[Contender], chosen: Contender
    ) -> dict[str, Evaluation]:
        """Outputs on the evaluation data by name, see `Decision.outputs`."""
        runs = {"float": known.graph, "chosen": chosen.simulated}
        runs |= {} if chosen.untrained is None else {"untrained": chosen.untrained}
        runs |= {} if dense is None else {"dense": dense}
        runs |= {one.uniform: one.simulated for one in contenders if one.uniform}
        return {name: evaluate(one, known.data.evaluated, self.task, f"evaluate {name}") for name, one in runs.items()}
