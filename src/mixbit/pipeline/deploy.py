"""From a decision to verified files."""

from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from mixbit.core import Plan, Runner, Sensitivity, sha256, whole_folder, write_text
from mixbit.core.io.environment import environment
from mixbit.graph.coverage import find_uncovered
from mixbit.graph.evaluate import evaluate
from mixbit.graph.graph import Graph
from mixbit.graph.layers import model_fingerprint
from mixbit.pipeline.decide import Decision
from mixbit.pipeline.folder import RESULT_FILE, Pruned, Result, check_set, deployed_figures, figures, layer_rows
from mixbit.pipeline.settings import Run
from mixbit.pruning.prune import Removal
from mixbit.quantization.assemble import assemble
from mixbit.targets.latency import paired_latency_ms
from mixbit.targets.verify import Comparison, artefact_runner, compare, predicted_bytes


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


def deploy(run: Run, decision: Decision) -> Deployed:
    """Write the chosen plan's files, run the artefact and compare."""
    graph, chosen = decision.graph, decision.chosen
    with whole_folder(run.out, force=run.force) as folder:
        with run.clock("export"):
            run.module.write(chosen.simulated, folder)
            runner = run.module.load(folder, graph)
        with run.clock("verify"):
            comparison = _compare(run, decision, folder, runner)
        with run.clock("time"):
            float_figures, latency_ms = _against_float(run, decision, folder)
        chosen.plan.save(folder / "plan.json")
        decision.table.save(folder / "sensitivity.json")
        check_set(graph, decision.batches, decision.outputs["chosen"].outputs).save(folder)
        result = Result(
            target=run.target.name,
            task=run.task.name,
            model=run.settings.model,
            chosen=decision.grounds,
            float_=float_figures,
            simulated=figures(accuracy=decision.outputs["chosen"].accuracy, divergence=_divergence(decision, "chosen")),
            untrained=_untrained_figures(decision),
            deployed=deployed_figures(comparison, latency_ms),
            uniform=_uniform_rows(decision),
            layers=layer_rows(
                chosen.plan.layers, decision.predicted_bytes, run.module.stored(folder), runner.executed()
            ),
            pruned=_pruned(decision),
            uncovered=[asdict(row) for row in find_uncovered(graph)],
            files={path.name: sha256(path) for path in sorted(folder.iterdir())},
            seconds={step: round(seconds, 3) for step, seconds in run.seconds.items()},
            environment=environment() | runner.environment,
        )
        write_text(folder / RESULT_FILE, result.to_json())
    run.clear()
    return Deployed(run.out, chosen.plan, decision.table, chosen.simulated, comparison, result)


def _compare(run: Run, decision: Decision, folder: Path, runner: Runner) -> Comparison:
    outputs_of = artefact_runner(runner, decision.graph)
    deployed = evaluate(outputs_of, decision.batches, run.task, "run the artefact")
    reference, predicted = decision.outputs["chosen"], decision.predicted_bytes
    return compare(folder, run.target.name, predicted, reference, deployed)


def _against_float(run: Run, decision: Decision, folder: Path) -> tuple[dict[str, float], float]:
    """Figures of the float network in the same runtime, and the artefact's latency, paired: one sample each."""
    graph, layers = decision.graph, decision.graph.layers
    sample = [leaf.numpy() for leaf in graph.tensors(decision.batches[0][0].rows([0]))]
    plan = Plan(
        target=run.target.name,
        fingerprint=model_fingerprint(layers),
        layers={layer.name: "float" for layer in layers},
        made_by="float",
    )
    with TemporaryDirectory() as scratch:
        run.module.write(assemble(graph, plan, [], {}), Path(scratch))
        folders = {"float": Path(scratch), "deployed": folder}
        runs = {name: run.module.load(one, graph, batch_size=1).run for name, one in folders.items()}
        latency = paired_latency_ms(runs, sample, "time the artefact")
        size = sum((Path(scratch) / name).stat().st_size for name in run.target.files)
    float_figures = figures(
        accuracy=decision.outputs["float"].accuracy,
        weight_bytes=sum(predicted_bytes(layers, plan).values()),
        file_bytes=size,
        latency_ms=latency["float"],
    )
    return float_figures, latency["deployed"]


def _pruned(decision: Decision) -> Pruned | None:
    if decision.dense is None:
        return None
    gone = Removal.between(decision.dense, decision.graph)
    dense, left = decision.outputs["dense"], decision.outputs["float"]
    return Pruned(
        layers=gone.layers,
        parameters=gone.parameters,
        macs=gone.macs,
        dense=figures(accuracy=dense.accuracy),
        pruned=figures(accuracy=left.accuracy, divergence=left.divergence(dense)),
    )


def _untrained_figures(decision: Decision) -> dict[str, float]:
    if "untrained" not in decision.outputs:
        return {}
    accuracy, divergence = decision.outputs["untrained"].accuracy, _divergence(decision, "untrained")
    return figures(accuracy=accuracy, divergence=divergence)


def _uniform_rows(decision: Decision) -> list[dict[str, float | str]]:
    rows = []
    for contender in decision.contenders:
        name = contender.uniform
        if name:
            found = figures(
                accuracy=decision.outputs[name].accuracy,
                divergence=_divergence(decision, name),
                held_out_divergence=contender.divergence,
                predicted_bytes=sum(predicted_bytes(decision.graph.layers, contender.plan).values()),
            )
            rows.append({"scheme": name, **found})
    return rows


def _divergence(decision: Decision, name: str) -> float:
    return decision.outputs[name].divergence(decision.outputs["float"])
