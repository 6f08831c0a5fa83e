"""Which plan to deploy and why: searched or uniform, rounded and trained as asked where that is no worse."""

from dataclasses import replace

from mixbit.core import Budget, Plan
from mixbit.graph.evaluate import evaluate
from mixbit.graph.graph import Graph
from mixbit.pipeline.settings import Candidate, Data, Measured, Run
from mixbit.roundings import ROUNDINGS, Rounding
from mixbit.roundings.quantize import nearest, quantize
from mixbit.searches.search import uniform_plans
from mixbit.training.finetune import train
from mixbit.training.loop import Objective, Trained

#: Ending of the file that holds the unfinished training of the plan.
TRAINING = "training.safetensors"


def compared(run: Run, known: Measured, plan: Plan, limits: Budget) -> list[Candidate]:
    """The plan, then the uniform ones within the limits, with the nearest integers, on held-out data."""
    with run.clock("compare with uniform plans"):
        uniform = {other.made_by.removeprefix("uniform "): other for other in uniform_plans(known.table, limits)}
        same = next((name for name, other in uniform.items() if other.layers == plan.layers), None)
        plans = {same: plan} | {name: other for name, other in uniform.items() if other.layers != plan.layers}
        return [
            replace(_candidate(run, known, other, "nearest", other.made_by), uniform=name)
            for name, other in plans.items()
        ]


def best_of(candidates: list[Candidate], reason: str | None) -> Candidate:
    """The candidate of the least divergence; the first, the searched one, where there is a reason for it already."""
    if reason is not None:
        return replace(candidates[0], reasons=(reason,))
    best = min(candidates, key=lambda candidate: candidate.divergence)
    return replace(best, reasons=(_against_uniform(candidates, best),))


def rounded(run: Run, known: Measured, chosen: Candidate) -> Candidate:
    """With weights rounded as the settings say, unless the divergence on held-out data is worse.

    A rounding with which the plan was found to keep within a largest drop stays: the drop holds for that rounding.
    """
    name, method = ROUNDINGS.find(run.settings.rounding)
    if method is nearest:
        return chosen
    with run.clock("round weights"):
        other = _candidate(run, known, chosen.plan, run.settings.rounding, name)
    figures = f"{other.divergence:.4g} against {chosen.divergence:.4g} nats"
    if run.budget.max_drop is not None:
        reason = f"weights are rounded by {name}, as in every plan that was tried ({figures} with the nearest)"
        return _replaced(chosen, other.simulated, reason)
    if other.divergence <= chosen.divergence:  # NaN is no improvement
        return _replaced(chosen, other.simulated, f"weights are rounded by {name}, not to the nearest ({figures})")
    return _replaced(chosen, None, f"weights are rounded to the nearest: {name} was worse ({figures})")


def tuned(run: Run, known: Measured, chosen: Candidate) -> Candidate:
    """Fine-tuned where the flavour is qat, unless the loss on held-out data gets no less."""
    if run.settings.flavour != "qat":
        return chosen
    with run.clock("fine-tune"):
        training = trained(run, chosen.simulated, known.dense or known.graph, known.data, TRAINING)
    chosen = replace(chosen, untrained=chosen.simulated)
    losses = f"loss on held-out data {training.losses[0]:.4g} before, {min(training.losses[1:]):.4g} after"
    if training.best > 0:
        reason = f"fine-tuned, best after epoch {training.best} of {run.settings.epochs} ({losses})"
        return _replaced(chosen, training.graph, reason)
    return _replaced(chosen, None, f"fine-tuning made it no better and is left out ({losses})")


def quantized(run: Run, known: Measured, plan: Plan, rounding: str | Rounding) -> Graph:
    """The plan's simulation with its weights rounded so, and biases corrected as the settings say."""
    return quantize(
        known.graph,
        plan,
        known.calibration,
        rounding=rounding,
        bias_correction=run.settings.bias_correction,
        task=run.task,
        seed=run.settings.seed,
        folder=None if ROUNDINGS.find(rounding)[1] is nearest else run.place("rounding"),
    )


def trained(run: Run, graph: Graph, teacher: Graph, data: Data, ending: str) -> Trained:
    """The graph trained as the settings say, its checkpoint beside the results."""
    return train(
        graph,
        data.calibration if run.settings.train_batches is None else run.settings.train_batches,
        Objective(run.task, teacher, run.training.distil, run.training.temperature),
        epochs=run.settings.epochs,
        settings=run.training,
        eval_batches=data.held_out,
        path=run.place(ending),
        force=run.force,
    )


def _candidate(run: Run, known: Measured, plan: Plan, rounding: str | Rounding, label: str) -> Candidate:
    simulated = quantized(run, known, plan, rounding)
    outputs = evaluate(simulated, known.data.held_out, run.task, f"simulate {label}")
    return Candidate(plan, simulated, outputs.divergence(known.reference))


def _replaced(chosen: Candidate, simulated: Graph | None, reason: str) -> Candidate:
    """The candidate with another simulation, where one is given, and one more reason."""
    return replace(chosen, simulated=simulated or chosen.simulated, reasons=(*chosen.reasons, reason))


def _against_uniform(candidates: list[Candidate], best: Candidate) -> str:
    """One sentence: why this candidate is better than the others, the searched one first."""
    searched, uniform = candidates[0], [candidate for candidate in candidates if candidate.uniform]
    if not uniform:
        return "no uniform plan keeps within the budget; the searched plan is deployed"
    if best is searched and best.uniform:
        return f"the searched plan is uniform {best.uniform}, and is deployed"
    rival = min(uniform, key=lambda candidate: candidate.divergence)
    figures = f"{searched.divergence:.4g} against {rival.divergence:.4g} nats from the float network on held-out data"
    if best is searched:
        return (
            f"the searched plan is deployed: no worse than uniform {rival.uniform}, the best uniform plan ({figures})"
        )
    return f"uniform {rival.uniform} is deployed: the searched plan was worse ({figures})"
