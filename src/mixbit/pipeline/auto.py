"""auto_quantize(): from a trained network to a verified artefact; the only file that knows the order of the steps."""

import logging
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

from torch import nn

from mixbit.core import (
    MEASURED,
    OF_FILES,
    Batch,
    Batches,
    Budget,
    InfeasibleBudget,
    InvalidInput,
    Journal,
    Plan,
    Scheme,
    Sensitivity,
    Store,
    check_engine,
    checked,
    digest,
    reserved,
    scratch_folder,
)
from mixbit.graph import Case, Graph, Reference, evaluate, try_data
from mixbit.graph.resources import note_on_uncovered
from mixbit.metrics.measure import blank_table, measure, takes_loss
from mixbit.pipeline.deploy import Calibrated, Candidate, Deployed, deploy, write_in_float
from mixbit.pipeline.network import Network, Preparation, in_others
from mixbit.pipeline.others import Others
from mixbit.pipeline.progress import LONG_S, expected, note_on_classes, predicted_of, size_of
from mixbit.pipeline.settings import CHANNELS, PRUNED, ROUNDING, TRAINING, TRIALS, Run, Settings, goal_of
from mixbit.pipeline.trials import Scoring, Trying, batches_to_try, cheapest_plan, check_drop, searched_plan, try_score
from mixbit.pruning.prune import prune_channels
from mixbit.quantization import calibrate
from mixbit.quantization.masks import choose_masks
from mixbit.quantization.offers import check_pins, note_on_run_time_ranges
from mixbit.quantization.ranges import RANGES
from mixbit.quantization.shared import Shared
from mixbit.quantization.simulate import activation_formats, check_plan
from mixbit.roundings import ROUNDINGS, Rounding, is_shared_out
from mixbit.roundings.quantize import quantize
from mixbit.searches.search import search, uniform_plans
from mixbit.targets.faster import faster, note_on_speed
from mixbit.targets.size import plan_within, sized
from mixbit.targets.timed import timed
from mixbit.training.finetune import check_first, settings_of, train
from mixbit.training.loop import Objective, Trained

_log = logging.getLogger("mixbit")


@checked
def auto_quantize(  # noqa: PLR0913
    model: nn.Module,
    batches: Iterable[Any],
    *,
    target: str,
    budget: Budget | None = None,
    plan: Plan | None = None,
    out: str | Path,
    eval_batches: Iterable[Any] | None = None,
    settings: Settings | None = None,
    shared: Shared | None = None,
    force: bool = False,
) -> Deployed:
    """Measure, search, quantize, export, run the artefact and compare; write everything into one folder.

    Where a plan is given instead of a budget, nothing is measured or searched: that plan is deployed.

    The plan is never worse than the best uniform plan within the budget, by mean KL divergence from the float network
    on data that is held out of calibration: where the searched plan is worse, the uniform one is deployed. Plans are
    compared with the nearest integers; the rounding of the settings stays where it is no worse. With the flavour `qat`
    the chosen plan is then fine-tuned, the float network its teacher, unless the loss on held-out data gets no less.

    If the budget is a largest drop, the plan is the cheapest one on the front of bytes whose artefact drops no more on
    the evaluation data, or a uniform one that is cheaper still. Each plan is tried with its weights rounded as the
    settings say, and the deployed plan keeps that rounding.

    Until the results are written, unfinished work stays beside the folder, and the same call, interrupted, resumes:
    the scores of tried plans in `<out>.trials.jsonl`, learned roundings in `<out>.rounding`, a network without some
    channels in `<out>.channels`, and trainings in `<out>.pruned.safetensors` and `<out>.training.safetensors`.

    Args:
        model: The trained network; it is left as it is.
        batches: Calibration data; labels are allowed and not needed.
        target: Name of the target.
        budget: Limits that the plan keeps, or the largest drop of accuracy.
        plan: Instead of a budget: the plan, for this network and target.
        out: Folder for the results; it appears whole or not at all.
        eval_batches: Data to report on; the held-out calibration data where None.
        settings: How the plan is made.
        shared: Where shards of the table are measured, plans tried for a largest drop or by a search, and blocks
            learned by `brecq:inputs=float` and `adaround:inputs=float`, in one thread each, so that the plan and its
            integers are the same for every number of processes. Its setup returns (model, calibration batches, batches
            to report on or None), as they are given here, and last the task where it is not classification.
        force: Whether files of the same names may be replaced in a folder that is not empty.

    Returns:
        Everything; `comparison.check()` raises TargetMismatch where the artefact is not as promised.

    Raises:
        InvalidInput: data, names or the folder cannot be used, or another process writes there.
        UnsupportedModel: the model cannot be captured or expressed by the target.
        InfeasibleBudget: no plan keeps within the budget.
    """
    run = Run(target, goal_of(budget, plan), Path(out), settings or Settings(), force=force, shared=shared)
    if shared is not None:
        check_engine(shared.engine)
    with reserved(run.out), scratch_folder() as run.scratch, in_others(run):
        network = captured(run, model, batches, eval_batches)
        tried(run, network)
        say_cost(run, network)
        if isinstance(run.goal, Plan):
            known = calibrated(run, network, sorted(set(run.goal.layers.values())), target=run.target.name)
            return deploy(run, known, None, [], tuned(run, known, rounded(run, known, as_given(run, known, run.goal))))
        network = pruned(run, network)
        check_reachable(run, network.graph, run.goal)
        known = calibrated(run, network, offered(run), target=run.target.name)
        return deployed_within(run, known, measured(run, known), run.goal)


def deployed_within(run: Run, known: Calibrated, table: Sensitivity, budget: Budget) -> Deployed:
    """Search a plan within the budget, compare it with uniform ones, and deploy the best."""
    notes = [note_on_run_time_ranges(known.graph.layers, run.choices)]
    table = completed(run, known, table, budget)
    try:
        plan, limits, reason = planned(run, known, table, budget)
    except InfeasibleBudget as error:
        if not run.settings.fast:
            raise
        left_out = "--fast (fast=True) left out what makes nothing faster: leave it away, or loosen the limit"
        raise InfeasibleBudget(f"{error}; {left_out}", reachable=error.reachable, binding=error.binding) from error
    candidates = compared(run, known, table, plan, limits)
    chosen = tuned(run, known, rounded(run, known, best_of(candidates, reason)))
    if run.settings.fast:
        notes.append(note_on_speed(table))
    return deploy(run, known, table, candidates, replace(chosen, reasons=(*chosen.reasons, *filter(None, notes))))


def captured(run: Run, model: nn.Module, batches: Iterable[Any], eval_batches: Iterable[Any] | None) -> Network:
    """The float graph, data that fits it, and the task, fitted to both; for any target and budget."""
    with run.clock("capture") as tell, run.threads():
        preparation = Preparation.of(run.settings)
        network = preparation.network(model, batches, eval_batches, run.task, run.out)
        if isinstance(run.goal, Plan):
            check_plan(network.graph, run.goal)
            activation_formats(network.graph, run.goal, run.target)
        tell(size_of(network.graph))
    notes = note_on_uncovered(network.graph), note_on_classes(network.graph, network.task, run.settings.classes)
    for note in filter(None, notes):
        _log.warning("%s", note)
    return network


def tried(run: Run, network: Network) -> None:
    """Raise MixbitError for all that can be refused of this target and goal before minutes of work; takes seconds."""
    settings, graph = run.settings, network.graph
    if settings.flavour == "qat" and not run.force:
        for ending in (PRUNED, TRAINING) if settings.prune_channels else (TRAINING,):
            place = run.place(ending)
            Store(place.parent).check(place.stem, settings_of(settings.epochs, run.training))
    check_pins(graph.layers, settings.pins, run.target)
    run.task = network.task
    with run.clock("try"):
        _try(run, network)


def say_cost(run: Run, network: Network) -> None:
    """Say how much time and memory the run will take, where that is long."""
    metric = run.settings.metric if isinstance(run.goal, Budget) else None
    parts = network.graph, network.batches, network.held_out, network.evaluation
    cost = expected(*parts, metric, len(run.choices))
    if cost.seconds > LONG_S:
        _log.info("this will take %s", cost)


def _try(run: Run, network: Network) -> None:
    """Raise MixbitError where labels, loss, score or drop do not fit, or the target cannot express the network."""
    settings, graph, evaluation, drop = run.settings, network.graph, network.evaluation, run.drop
    with_loss = isinstance(run.goal, Budget) and takes_loss(settings.metric, run.task)
    try_data(graph, run.task, network.pairs, with_loss=with_loss)
    if evaluation is not network.held_out:
        try_data(graph, run.task, evaluation, " to evaluate on")
    if settings.train_batches is not None:
        check_first(graph, settings.train_batches, run.task)
    if drop is not None:
        labelled = run.task.has_accuracy and any(labels is not None for _, labels in evaluation)
        check_drop(drop, in_accuracy=settings.score is None and labelled, has_score=settings.score is not None)
        journal_of(run, network, evaluation, settings.rounding)  # told before the work, not after
    if settings.score is not None:
        batches = network.batches if drop is None else evaluation
        try_score(Scoring(graph, batches, run.task, lambda _: graph, settings.score, timeout_s=settings.eval_timeout_s))
    write_in_float(run, graph)


def pruned(run: Run, network: Network) -> Network:
    """The network without a share of its channels, if the settings ask for that; `qat` trains it in float first."""
    share, seed = run.settings.prune_channels, run.settings.seed
    if share == 0:
        return network
    with run.clock("prune channels") as tell:
        place = run.place(CHANNELS)
        smaller = prune_channels(network.graph, network.batches, share=share, task=run.task, seed=seed, folder=place)
        tell(size_of(smaller))
    try:
        check_pins(smaller.layers, run.settings.pins, run.target)
    except InvalidInput as error:
        raise InvalidInput(f"with prune_channels={share}, which changes sizes: {error}") from None
    if run.settings.flavour == "qat":
        with run.clock("fine-tune in float"):
            smaller = trained(run, smaller, network, PRUNED).graph
    write_in_float(run, smaller)
    return replace(network, graph=smaller, dense=network.graph)


def offered(run: Run) -> list[str]:
    """The schemes of the table: the choices, then those of pins alone."""
    return [*run.choices, *_only_pinned(run)]


def _only_pinned(run: Run) -> list[str]:
    return [scheme for scheme in dict.fromkeys(run.settings.pins.values()) if scheme not in run.choices]


def calibrated(run: Run, network: Network, choices: Sequence[str], *, target: str | None) -> Calibrated:
    """What the data says of the graph's activations, for a target or for all, and of weights that sparsity makes 0."""
    settings, graph, batches = run.settings, network.graph, network.batches
    with run.clock("calibrate") as tell:
        calibration = calibrate(graph, batches, target=target, ranges=settings.ranges)
        held_out = 0 if network.held_out is batches else sum(Batches.of(network.held_out).sizes)
        tell(f"{sum(Batches.of(batches).sizes):,} samples; {held_out:,} more are held out")
        known = Calibrated(**vars(network), calibration=calibration, reference=Reference.recorded(graph, network.task))
        weigh(run, known, choices)
    return known


def weigh(run: Run, known: Calibrated, choices: Sequence[str]) -> None:
    """Choose the masks of sparse choices, which measure() and quantize() look up in the calibration."""
    formats = [weight for choice in choices if (weight := Scheme.parse(choice).weight)]
    case = Case(known.graph, known.batches, known.task, run.settings.seed)
    choose_masks(case, known.calibration, known.graph.layers, formats, run.settings.importance)


def as_given(run: Run, known: Calibrated, plan: Plan) -> Candidate:
    """The plan that the user gave, its layers in the order in which they run, which pages and tables show."""
    layers = {layer.name: plan.layers[layer.name] for layer in known.graph.layers}
    candidate = _candidate(run, known, plan.model_copy(update={"layers": layers}), "nearest", "the plan")
    return replace(candidate, reasons=(f"the plan that was given is deployed (made by {plan.made_by})",))


def check_reachable(run: Run, graph: Graph, budget: Budget) -> None:
    """Raise InfeasibleBudget for limits that no plan keeps, as far as that is known before anything is measured."""
    frame = blank_table(graph, target=run.target, choices=offered(run)).pinned(run.settings.pins, _only_pinned(run))
    limits = {name: limit for name, limit in budget.limits.items() if name not in MEASURED}
    if limits:
        search(frame, Budget(**limits))
    if (bound := budget.limits.get("file_bytes")) is not None:
        try:
            search(frame, Budget(weight_bytes=bound))
        except InfeasibleBudget as error:
            raise InfeasibleBudget(
                f"file_bytes={bound:.0f}: more than the weights alone: {error}",
                reachable=error.reachable,
                binding=error.binding,
            ) from None


def measured(run: Run, known: Calibrated) -> Sensitivity:
    """The table of what each choice of each layer is predicted to cost; the budget has no part in it."""
    settings = run.settings
    with run.clock("measure") as tell:
        table = measure(
            known.graph,
            known.calibration,
            target=run.target.name,
            task=run.task,
            metric=settings.metric,
            choices=offered(run),
            seed=settings.seed,
            shared=run.others,
        ).pinned(settings.pins, _only_pinned(run))
        shape = f"{len(table.layers)} layers x {len(table.choices)} choices"
        tell(f"{shape} by {table.metric}, {table.num_samples:,} samples")
    return table


def completed(run: Run, known: Calibrated, table: Sensitivity, budget: Budget) -> Sensitivity:
    """The table with the times and sizes of choices that the settings and the budget ask for."""
    graph, fast = known.graph, run.settings.fast

    def simulate(plan: Plan) -> Graph:
        return quantize(graph, plan, known.calibration)

    if fast or "latency_ms" in budget.limits:
        with run.clock("time choices") as tell:
            table, note = timed(table, graph, simulate)
            tell(note)
            table = faster(table, graph, simulate) if fast else table
    if budget.limits.keys() & OF_FILES:
        with run.clock("size choices"):
            table = sized(table, simulate)
    return table


def planned(run: Run, known: Calibrated, table: Sensitivity, budget: Budget) -> tuple[Plan, Budget, str | None]:
    """The searched plan, the limits that it keeps, and the reason for it where only it keeps within a largest drop."""
    settings = run.settings
    with run.clock("search") as tell, ExitStack() as ending:
        if budget.max_drop is not None:
            scoring = scored(run, known, None, settings.rounding, ending)
            plan, reason = cheapest_plan(table, scoring, budget.max_drop)
            tell(predicted_of(plan))
            return plan, Budget(weight_bytes=plan.predicted["weight_bytes"]), reason
        scoring = cache(lambda: scored(run, known, settings.eval_subset_ratio, "nearest", ending))

        def found(table: Sensitivity) -> Plan:
            return searched_plan(table, scoring, budget, settings.search)

        # sizes follow the shapes alone, but for targets that code the integers
        rounding = "nearest" if run.target.coded_bytes is None else settings.rounding
        simulate = partial(quantized, run, known, rounding=rounding)
        plan = plan_within(budget, found, table, simulate) if budget.limits.keys() & OF_FILES else found(table)
        tell(predicted_of(plan))
        return plan, budget, None


def scored(run: Run, known: Calibrated, share: float | None, rounding: str | Rounding, ending: ExitStack) -> Scoring:
    """How plans are tried: on a share of the calibration batches, or where None on the data to report on.

    Where work is shared out other processes try them, until `ending` does.
    """
    settings = run.settings
    evaluation = known.evaluation if share is None else ()
    case = Case(known.graph, known.batches, run.task, settings.seed, evaluation)
    batches = batches_to_try(case, share)
    journal, others = journal_of(run, known, batches, rounding), None
    if (shared := run.others) is not None:
        work = Trying(share, rounding, settings.bias_correction, settings.score, settings.eval_timeout_s)
        others = Others(partial(shared.answers, work, case, known.calibration), journal, shared.engine.processes)
        ending.callback(others.close)
    return Scoring(
        known.graph,
        batches,
        run.task,
        partial(quantized, run, known, rounding=rounding),
        score=settings.score,
        timeout_s=settings.eval_timeout_s,
        journal=journal,
        others=others,
    )


def journal_of(run: Run, known: Network, batches: Sequence[Batch], rounding: str | Rounding) -> Journal:
    """Scores of earlier runs with all that they depend on; raises InvalidInput where they are of other ones."""
    settings = run.settings
    about = {
        "target": run.target.name,
        "task": digest(run.task.unfitted),
        "rounding": digest(ROUNDINGS.find(rounding)[1]),
        "seed": settings.seed,
        "bias_correction": settings.bias_correction,
        "ranges": digest(RANGES.find(settings.ranges)[1]),
        "importance": settings.importance,
        "score": None if settings.score is None else digest(settings.score),
        "network": digest(known.graph.module),
        "calibration": digest(known.batches),
        "evaluation": digest(batches),
    }
    return Journal(run.place(TRIALS), about, force=run.force)


def compared(run: Run, known: Calibrated, table: Sensitivity, plan: Plan, limits: Budget) -> list[Candidate]:
    """The plan, then the uniform ones within the limits, with the nearest integers, on held-out data."""
    with run.clock("compare with uniform plans") as tell:
        uniform = {other.made_by.removeprefix("uniform "): other for other in uniform_plans(table, limits)}
        same = next((name for name, other in uniform.items() if other.layers == plan.layers), None)
        plans = {same: plan} | {name: other for name, other in uniform.items() if other.layers != plan.layers}
        candidates = [_candidate(run, known, other, "nearest", other.made_by, name) for name, other in plans.items()]
        tell(f"{len(candidates)} plans on held-out data")
        return candidates


def best_of(candidates: list[Candidate], reason: str | None) -> Candidate:
    """The candidate of the least divergence, and why; the first, the searched one, where a reason is given for it."""
    searched, uniform = candidates[0], [candidate for candidate in candidates if candidate.uniform]
    if reason is not None:
        return replace(searched, reasons=(reason,))
    best = min(candidates, key=lambda candidate: candidate.divergence)
    rival = min(uniform, key=lambda candidate: candidate.divergence, default=searched)
    figures = f"{searched.divergence:.4g} against {rival.divergence:.4g} nats from the float network on held-out data"
    if not uniform:
        reason = "no uniform plan keeps within the budget; the searched plan is deployed"
    elif best is not searched:
        reason = f"uniform {rival.uniform} is deployed: the searched plan was worse ({figures})"
    elif best.uniform:
        reason = f"the searched plan is uniform {best.uniform}, and is deployed"
    else:
        reason = f"the searched plan is deployed: no worse than the best uniform plan, {rival.uniform} ({figures})"
    return replace(best, reasons=(reason,))


def rounded(run: Run, known: Calibrated, chosen: Candidate) -> Candidate:
    """The candidate with weights rounded as the settings say, unless the divergence on held-out data is worse.

    The rounding stays if the budget is a largest drop: the plan keeps within the drop with that rounding.
    """
    name, method = ROUNDINGS.find(run.settings.rounding)
    if method is ROUNDINGS["nearest"]:
        return chosen
    with run.clock("round weights") as tell:
        other = _candidate(run, known, chosen.plan, run.settings.rounding, name)
        tell(f"{name}: {other.divergence:.4g} nats from the float network, nearest {chosen.divergence:.4g}")
    figures = f"{other.divergence:.4g} against {chosen.divergence:.4g} nats"
    if run.drop is not None:
        reason = f"weights are rounded by {name}, as in every plan that was tried ({figures} with the nearest)"
    elif other.divergence <= chosen.divergence:  # NaN is no improvement
        reason = f"weights are rounded by {name}, not to the nearest ({figures})"
    else:
        reason, other = f"weights are rounded to the nearest: {name} was worse ({figures})", chosen
    return replace(chosen, simulated=other.simulated, reasons=(*chosen.reasons, reason))


def tuned(run: Run, known: Calibrated, chosen: Candidate) -> Candidate:
    """The candidate, fine-tuned where the flavour is qat, unless the loss on held-out data gets no less."""
    if run.settings.flavour != "qat":
        return chosen
    with run.clock("fine-tune") as tell:
        training = trained(run, chosen.simulated, known, TRAINING)
        tell(f"loss {training.losses[0]:.4g} before, {min(training.losses[1:]):.4g} after")
    simulated = chosen.simulated
    losses = f"loss on held-out data {training.losses[0]:.4g} before, {min(training.losses[1:]):.4g} after"
    reason = f"fine-tuning made it no better and is left out ({losses})"
    if training.best > 0:
        simulated = training.graph
        reason = f"fine-tuned, best after epoch {training.best} of {run.settings.epochs} ({losses})"
    return replace(chosen, simulated=simulated, untrained=chosen.simulated, reasons=(*chosen.reasons, reason))


def quantized(run: Run, known: Calibrated, plan: Plan, rounding: str | Rounding) -> Graph:
    """The plan's simulation with this rounding, and biases corrected as the settings say."""
    shared = run.others if is_shared_out(rounding) else None
    with run.threads():
        return quantize(
            known.graph,
            plan,
            known.calibration,
            rounding=rounding,
            bias_correction=run.settings.bias_correction,
            task=run.task,
            seed=run.settings.seed,
            folder=None if ROUNDINGS.find(rounding)[1] is ROUNDINGS["nearest"] else run.place(ROUNDING),
            shared=shared,
        )


def trained(run: Run, graph: Graph, network: Network, ending: str) -> Trained:
    """The graph trained as the settings say, the whole network its teacher; its checkpoint is beside the results."""
    return train(
        graph,
        network.batches if run.settings.train_batches is None else run.settings.train_batches,
        Objective(run.task, network.dense or network.graph, run.training.distil, run.training.temperature),
        epochs=run.settings.epochs,
        settings=run.training,
        eval_batches=network.held_out,
        path=run.place(ending),
        force=run.force,
    )


def _candidate(
    run: Run, known: Calibrated, plan: Plan, rounding: str | Rounding, label: str, uniform: str | None = None
) -> Candidate:
    simulated = quantized(run, known, plan, rounding)
    outputs = evaluate(simulated, known.held_out, run.task, f"simulate {label}", diverging_from=known.reference)
    return Candidate(plan, simulated, outputs.divergence, uniform)
