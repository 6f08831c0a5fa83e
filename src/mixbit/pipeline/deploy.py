"""From the chosen plan to verified files, and every figure of them."""

import logging
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from mixbit.core import (
    Batch,
    Batches,
    MixbitError,
    Plan,
    Runner,
    Sensitivity,
    environment,
    sha256,
    whole_folder,
    write_text,
)
from mixbit.graph import Evaluation, Graph, Reference, evaluate, ports_of
from mixbit.graph.resources import find_uncovered
from mixbit.pipeline.network import Network
from mixbit.pipeline.settings import Run
from mixbit.pipeline.trials import Scoring
from mixbit.quantization import Calibration, uniform_plan
from mixbit.quantization.simulate import assemble
from mixbit.report.report import write_report
from mixbit.results.changed import changed_samples
from mixbit.results.check_set import save_check_set
from mixbit.results.readme import write_readme
from mixbit.results.result import RESULT_FILE, Pruned, Result, figures, files_of_a_result, layer_rows
from mixbit.targets import first_rows, watched
from mixbit.targets.export import check_fits
from mixbit.targets.latency import Times, paired_times
from mixbit.targets.size import file_bytes
from mixbit.targets.verify import (
    Comparison,
    amplification,
    artefact_runner,
    at_default_settings,
    compare,
    groups_of,
    predicted_bytes,
    problems_of_sizes,
    simulated_at_sizes,
)

#: Figures of the comparison that result.json holds.
COMPARED = (
    "num_samples", "accuracy", "agreement", "max_abs_diff", "relative_rms", "at_default_settings", "amplification",
    "weight_bytes", "predicted_bytes", "file_bytes",
)  # fmt: skip

_log = logging.getLogger("mixbit")


@dataclass(frozen=True)
class Calibrated(Network):
    """A network and what the data says of it; `reference` is what it returns on the held-out data."""

    calibration: Calibration
    reference: Reference


@dataclass(frozen=True)
class Candidate:
    """One plan, simulated.

    Attributes:
        divergence: From the float network on the held-out data (nats), with weights rounded to the nearest integers.
        uniform: What the same uniform plan is called, as `w4a8`, or `w8a8d (w8 elsewhere)`; None where it is none.
        untrained: The simulation before training, where it was trained.
        reasons: Why it is deployed, one sentence a step.
    """

    plan: Plan
    simulated: Graph
    divergence: float
    uniform: str | None = None
    untrained: Graph | None = None
    reasons: tuple[str, ...] = ()


@dataclass(frozen=True)
class Deployed:
    """What auto_quantize returns.

    Attributes:
        folder: Holds plan.json, sensitivity.json, result.json, report.html, README.md, check.safetensors and the
            artefact.
        plan: The plan that was deployed.
        table: The sensitivities behind it; None, and no file, where the plan was given.
        simulated: The quantized graph: evaluates and trains.
        comparison: The artefact against the simulation.
        result: Every figure, as in result.json.
    """

    folder: Path
    plan: Plan
    table: Sensitivity | None
    simulated: Graph
    comparison: Comparison
    result: Result


def deploy(
    run: Run, known: Calibrated, table: Sensitivity | None, candidates: list[Candidate], chosen: Candidate
) -> Deployed:
    """Write the chosen plan's files, run the artefact, compare it, and report all figures beside the candidates'."""
    graph, batches = known.graph, known.evaluation
    with run.clock("evaluate") as tell:
        reference = Reference.recorded(chosen.simulated, run.task)
        in_float = Reference.recorded(graph, run.task)
        outputs = _evaluated(run, known, candidates, chosen, reference, in_float)
        tell(f"{outputs['chosen'].divergence:.4g} nats from the float network on {_count(batches):,} samples")
    destroyed = warning(outputs["chosen"])
    if destroyed:
        _log.warning("%s", destroyed)
    predicted = predicted_bytes(chosen.simulated, chosen.plan)
    old = [*files_of_a_result(run.out), *run.target.more_files]
    with whole_folder(run.out, last=RESULT_FILE, force=run.force, also=old) as folder:
        with run.clock("export") as tell:
            run.target.write(chosen.simulated, folder)
            run.target.try_apart(folder, [leaf.numpy() for leaf in graph.tensors(graph.example)])
            runner = run.target.load(folder, graph)
            names = run.target.files_of(os.listdir(folder))
            tell(f"{', '.join(names)}: {file_bytes(run.target, folder):,} bytes")
        if runner.note:
            _log.warning("%s", runner.note)
        with run.clock("verify") as tell:
            artefact = artefact_runner(runner, graph)
            returned = Reference.recorded(artefact, run.task)
            deployed = evaluate(
                returned, batches, run.task, "run the artefact", diverging_from=in_float, differing_from=reference
            )
            sizes = simulated_at_sizes(chosen.simulated, batches[0][0], run.task)
            comparison = compare(
                folder,
                run.target,
                predicted,
                deployed,
                environment=runner.environment,
                default=at_default_settings(folder, run.target, runner, graph, batches[0], reference),
                amplify=lambda: amplification(chosen.simulated, batches, reference),
                more=problems_of_sizes(artefact, sizes, deployed),
            )
            scores = _scores(run, known, chosen, runner)
            tell("; ".join(comparison.problems) or "the file does what the simulation does")
        with run.clock("time") as tell:
            float_figures, times = _beside_float(run, known, folder)
            tell(f"{times.medians['deployed']:.3g} ms a sample, {times.medians['float']:.3g} ms in float")
        chosen.plan.save(folder / "plan.json")
        if table is not None:
            table.save(folder / "sensitivity.json")
        inside = watched(chosen.simulated, first_rows(batches[0][0])) if run.target.load_tensors is not None else []
        checked = save_check_set(folder, graph, batches, reference, inside, comparison.num_samples)
        result = Result(
            target=run.target.name,
            task=str(run.task),
            model=run.settings.model,
            chosen="; ".join(filter(None, (*chosen.reasons, destroyed, runner.note))),
            float_=figures(accuracy=outputs["float"].accuracy, score=scores.get("float"), **float_figures),
            simulated=_of_outputs(outputs, "chosen") | figures(score=scores.get("simulated")),
            untrained=_of_outputs(outputs, "untrained") if chosen.untrained else {},
            deployed=figures(
                **{name: getattr(comparison, name) for name in COMPARED},
                divergence=deployed.divergence,
                score=scores.get("deployed"),
                latency_ms=times.medians["deployed"],
            ),
            problems=[*comparison.problems],
            latency_ratio=times.ratio("deployed", of="float"),
            outputs=comparison.outputs,
            divergences={
                name: figures(simulated=part, deployed=deployed.divergence_of[name])
                for name, part in outputs["chosen"].divergence_of.items()
            },
            changed=changed_samples(batches, checked, run.task, in_float, returned),
            uniform=[
                {
                    "scheme": uniform,
                    **_of_outputs(outputs, uniform),
                    **figures(
                        held_out_divergence=candidate.divergence,
                        predicted_bytes=_bytes(candidate.simulated, candidate.plan),
                    ),
                }
                for candidate in candidates
                if (uniform := candidate.uniform)
            ],
            layers=layer_rows(
                chosen.plan.layers,
                predicted,
                run.target.name,
                folder,
                runner.executed(),
                tables=[layer.name for layer in graph.layers if not layer.inputs],
            ),
            pruned=None
            if known.dense is None
            else Pruned.between(
                known.dense,
                graph,
                dense=figures(accuracy=outputs["dense"].accuracy),
                pruned=_of_outputs(outputs, "float"),
            ),
            uncovered=[asdict(row) for row in find_uncovered(graph)],
            files={path.name: sha256(path) for path in sorted(folder.iterdir())},
            seconds={step: round(seconds, 3) for step, seconds in run.seconds.items()},
            environment=environment() | runner.environment,
            ports=run.target.in_file(ports_of(chosen.simulated)),
            preprocessing=run.settings.preprocessing,
            classes=[*run.settings.classes],
            command=[*run.settings.command],
            settings=run.settings.noted(),
        )
        result = write_readme(folder, result, [tuple(leaf.shape) for leaf in graph.tensors(graph.example)], chosen.plan)
        result = write_report(folder, result)
        write_text(folder / RESULT_FILE, result.to_json())
    run.clear()
    return Deployed(run.out, chosen.plan, table, chosen.simulated, comparison, result)


def warning(deployed: Evaluation) -> str | None:
    """One sentence where the deployed plan differs too much from the float network, its reference; else None.

    That is where, of some output, less than half of the top answers are the float network's; or, where it has none,
    its numbers are further from the float network's, in root mean square, than those spread.
    """
    texts = []
    for name, difference in deployed.differences.items():
        which = "its" if len(deployed.differences) == 1 else f"output {name}: its"
        if difference.head.answers is not None:
            if difference.agreement < 0.5:
                texts.append(f"only {difference.agreement:.1%} of {which} top answers are the float network's")
        elif (apart := max(group.relative_rms for group in groups_of(difference))) > 1:
            texts.append(f"{which} numbers are {apart:.3g} times their spread from the float network's")
    if not texts:
        return None
    what = "; ".join(texts)
    return (
        f"the deployed plan does not do what the network does: {what}; leave outliers out of the calibration data, "
        "take --ranges percentile and --bias-correction off, or give a larger budget"
    )


def _evaluated(
    run: Run,
    known: Calibrated,
    candidates: list[Candidate],
    chosen: Candidate,
    simulated: Reference,
    in_float: Reference,
) -> dict[str, Evaluation]:
    """What each network does on the evaluation data, beside the float network, and that beside the one it was cut from.

    `untrained` is before training, `dense` with all channels.
    """
    dense = in_float if known.dense is None else Reference.recorded(known.dense, run.task)
    networks: dict[str, Reference | Graph | None] = {"dense": dense, "float": in_float, "chosen": simulated}
    networks |= {candidate.uniform: candidate.simulated for candidate in candidates if candidate.uniform}
    return {
        name: evaluate(
            network,
            known.evaluation,
            run.task,
            f"evaluate {name}",
            diverging_from=dense if name == "float" else in_float,
            differing_from=in_float if name == "chosen" else None,
        )
        for name, network in (networks | {"untrained": chosen.untrained}).items()
        if network is not None
    }


def _scores(run: Run, known: Calibrated, chosen: Candidate, runner: Runner) -> dict[str, float]:
    """What the user's own function says of the float network, the simulation and the artefact; nothing without one.

    Where it fails, which is no reason to lose the run, a warning says so.
    """
    if run.settings.score is None:
        return {}
    scoring = Scoring(
        known.graph,
        known.evaluation,
        run.task,
        lambda _: chosen.simulated.copy(),
        score=run.settings.score,
        timeout_s=run.settings.eval_timeout_s,
    )
    try:
        return {
            "float": scoring.float_score,
            "simulated": scoring.simulated(chosen.plan),
            "deployed": scoring.timed("the artefact", lambda: scoring.of_artefact(runner)),
        }
    except MixbitError as error:
        _log.warning("no score is reported: %s", error)
        return {}


def write_in_float(run: Run, graph: Graph) -> None:
    """Write the network in float as the target's files; raises UnsupportedModel where the target cannot express it."""
    plan = uniform_plan(graph, "float", target=run.target.name)
    check_fits(graph, plan, "the weights in float, which a run is compared with,")
    run.target.write(assemble(graph, plan, [], {}), run.scratch)


def _beside_float(run: Run, known: Calibrated, folder: Path) -> tuple[dict[str, float], Times]:
    """Figures of the float network in the same runtime, and the times of both on one sample, in turn."""
    graph = known.graph
    sample = [leaf.numpy() for leaf in graph.tensors(known.evaluation[0][0].rows([0]))]
    plan = uniform_plan(graph, "float", target=run.target.name)
    folders = {"float": run.scratch, "deployed": folder}
    runs = {name: run.target.load(place, graph, batch_size=1).run for name, place in folders.items()}
    times = paired_times(runs, sample, "time the artefact")
    size = file_bytes(run.target, run.scratch)
    return {"weight_bytes": _bytes(graph, plan), "file_bytes": size, "latency_ms": times.medians["float"]}, times


def _of_outputs(outputs: dict[str, Evaluation], name: str) -> dict[str, float]:
    return figures(accuracy=outputs[name].accuracy, divergence=outputs[name].divergence)


def _count(batches: Sequence[Batch]) -> int:
    return sum(Batches.of(batches).sizes)


def _bytes(graph: Graph, plan: Plan) -> int:
    return sum(predicted_bytes(graph, plan).values())
