"""What a run's folder holds beside plan, table and artefact, and how to verify and time it again.

It holds every figure in result.json, and check.safetensors. A folder may come from anyone: nothing that it names is
run or read outside of it, and each of its figures that can be measured again is. Only target packed needs the network.
"""

import dataclasses
import json
import math
import os
import re
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
from numpy.typing import NDArray
from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from torch import Tensor, nn

from mixbit.core import (
    MOST_JSON,
    Batch,
    Inputs,
    InvalidInput,
    Plan,
    Runner,
    Scheme,
    StoredWeight,
    TargetMismatch,
    Task,
    find_target,
    json_of,
    outputs_of,
    quoted,
    read_model,
    read_tensors,
    safetensors_bytes,
    save_arrays,
    sha256,
)
from mixbit.graph import Evaluation, Graph, Reference, evaluate, returned_by
from mixbit.graph.capture import capture
from mixbit.pipeline.promises import broken_promises
from mixbit.pruning.prune import Removal
from mixbit.targets import Watched, first_rows
from mixbit.targets.latency import Ratio, paired_times
from mixbit.targets.verify import (
    Comparison,
    compare,
    few_rows,
    own_difference,
    predicted_bytes,
    problems_of_sizes,
    with_layers,
)

RESULT_FILE, CHECK_FILE = "result.json", "check.safetensors"
#: How a table of rows was executed that the runtime computed when it loaded the file.
FOLDED = "folded when loaded"
#: A product or convolution, by the names of runtimes, in another type.
_FLOAT_OPERATOR = re.compile(r"\w*(?:Conv|conv|Gemm|MatMul|FullyConnected)\w* (?!int8)")
#: Types of tensors in a check set: those that torch computes with.
TYPES = (
    torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8,
    torch.uint8, torch.bool,
)  # fmt: skip
#: Figures of a network, and the least and largest that each can be; rounding may take a divergence below 0.
FIGURES = (
    dict.fromkeys(("accuracy", "agreement"), (0.0, 1.0))
    | dict.fromkeys(("score", "divergence"), (-math.inf, math.inf))
    | dict.fromkeys(("num_samples", "weight_bytes", "predicted_bytes", "file_bytes", "latency_ms"), (0.0, math.inf))
    | dict.fromkeys(("max_abs_diff", "relative_rms", "at_default_settings", "amplification"), (0.0, math.inf))
)
#: Of a check set, in samples and in bytes of inputs.
MOST_SAMPLES, MOST_BYTES = 512, 16 * 2**20


class LayerRow(BaseModel):
    """One layer: its scheme, its bytes as predicted and in the file, how it is stored and how it was executed."""

    model_config = ConfigDict(extra="forbid")

    scheme: str
    predicted_bytes: Annotated[int, Field(ge=0)]
    weight_bytes: Annotated[int, Field(ge=0)]
    stored: str
    executed: str


@dataclass(frozen=True)
class Pruned(Removal):
    """What was removed before quantization, and what that alone did on the evaluation data.

    Attributes:
        dense: `accuracy` of the network with all channels.
        pruned: `accuracy` of the network without them, in float, and `divergence` from the other (nats).
    """

    __pydantic_config__ = ConfigDict(extra="forbid", allow_inf_nan=False)

    dense: dict[str, float]
    pruned: dict[str, float]

    def __str__(self) -> str:
        cost = f"{self.pruned['divergence']:.3g} nats from the network with all channels"
        if "accuracy" in self.dense and "accuracy" in self.pruned:
            accuracies = f"{self.dense['accuracy']:.2%} -> {self.pruned['accuracy']:.2%}"
            cost = f"accuracy in float {accuracies}, {cost}"
        return f"channels removed: {super().__str__()}; {cost}"


def _beside(name: str) -> str:
    if name in ("", ".", "..") or re.search(r"[/\\\\:\x00-\x1f]", name):
        raise ValueError("not the name of a file beside result.json")
    return name


def _possible(figures: dict[str, float]) -> dict[str, float]:
    for name, value in figures.items():
        if name not in FIGURES:
            raise ValueError(f"{name} is unknown; known: {', '.join(FIGURES)}")
        low, high = FIGURES[name]
        if not low <= value <= high:
            raise ValueError(f"{name} is {value:g}, and must be between {low:g} and {high:g}")
    return figures


Figures = Annotated[dict[str, float], AfterValidator(_possible)]
Amounts = dict[str, Annotated[float, Field(ge=0)]]


class Result(BaseModel):
    """The file result.json. Parts are plain dictionaries, without the figures that do not apply.

    Attributes:
        model: MODEL of the command line, its file as an absolute path; None where a module was handed over.
        chosen: Why this plan was deployed, in a sentence.
        float_: `accuracy`, `score` by the user's own function, `weight_bytes`, `file_bytes`, `latency_ms` of the float
            network in the same runtime.
        simulated: `accuracy`, `score`, `divergence` (nats) of the simulation.
        untrained: The same before fine-tuning; empty where there was none.
        deployed: `num_samples`, those of the evaluation data, `accuracy`, `score`, `agreement`, `max_abs_diff`,
            `relative_rms`, `at_default_settings`, `amplification`, `weight_bytes`, `predicted_bytes`, `file_bytes`,
            `latency_ms` of the artefact, see `Comparison`.
        latency_ratio: The artefact's latency by the float network's, timed in turn; None where it was not.
        outputs: Name of each output -> `relative_rms` of the artefact's from the simulation's.
        uniform: The uniform plans within the budget: `scheme`, as `w4a8` or `w8a8d (w8 elsewhere)`, `accuracy`,
            `divergence`, `held_out_divergence`, `predicted_bytes`.
        pruned: What was removed before quantization; None where nothing was. `float` is the network without it.
        uncovered: What no layer covers, with their shares of work and storage.
        files: Name of each file beside this one -> its SHA-256.
        environment: Versions, machine and settings.
    """

    model_config = ConfigDict(extra="forbid", populate_by_name=True, allow_inf_nan=False)

    version: Annotated[int, Field(ge=1, le=1)] = 1
    target: str
    task: str
    model: str | None
    chosen: str
    float_: Annotated[Figures, Field(alias="float")]
    simulated: Figures
    untrained: Figures = {}
    deployed: Figures
    latency_ratio: Ratio | None = None
    outputs: Amounts = {}
    uniform: list[dict[str, float | str]]
    layers: dict[str, LayerRow]
    pruned: Pruned | None = None
    uncovered: list[dict[str, int | float | str | None]]
    files: dict[Annotated[str, AfterValidator(_beside)], Annotated[str, Field(pattern="^[0-9a-f]{64}$")]]
    seconds: Amounts
    environment: dict[str, str]

    @classmethod
    def load(cls, folder: Path) -> "Result":
        """Read result.json of a folder; raise InvalidInput for anything else."""
        return read_model(_inside(folder, RESULT_FILE), cls, "a result")

    def to_json(self) -> str:
        """The file's text."""
        return self.model_dump_json(by_alias=True, indent=2) + "\n"

    @property
    def speed(self) -> str:
        """Whether the artefact is slower or faster than the float network in the same runtime, in words."""
        ratio = self.latency_ratio
        if ratio is None:
            return "not timed beside float"
        return f"{ratio.in_words} float: {ratio} times its latency in {self.target}"

    @property
    def schemes(self) -> dict[str, str]:
        """Layer -> its scheme."""
        return {name: row.scheme for name, row in self.layers.items()}

    @property
    def predicted_bytes(self) -> dict[str, int]:
        """Layer -> bytes of its weight and scales, as predicted."""
        return {name: row.predicted_bytes for name, row in self.layers.items()}


def figures(**values: float | None) -> dict[str, float]:
    """The figures that apply: those that are finite numbers."""
    return {name: value for name, value in values.items() if value is not None and math.isfinite(value)}


def layer_rows(
    schemes: dict[str, str],
    predicted: dict[str, int],
    target: str,
    folder: Path,
    executed: dict[str, str],
    *,
    tables: Collection[str],
) -> dict[str, LayerRow]:
    """The part `layers`, with what the target's file in the folder holds.

    Runtimes fold `tables`, layers that only look rows up, where the numbers of the rows are constants.
    """
    weights, missing = find_target(target).stored(folder), StoredWeight(0, "not found")
    return {
        name: LayerRow(
            scheme=scheme,
            predicted_bytes=predicted[name],
            weight_bytes=weights.get(name, missing).weight_bytes,
            stored=weights.get(name, missing).types,
            executed=executed.get(name, FOLDED if name in tables else "not reported"),
        )
        for name, scheme in schemes.items()
    }


def in_float(layers: dict[str, LayerRow]) -> list[str]:
    """Layers with a quantized input of which the runtime executed an operator in float; look-ups compute nothing."""
    return [
        name
        for name, row in layers.items()
        if Scheme.parse(row.scheme).input is not None
        and (
            _FLOAT_OPERATOR.search(row.executed) or not any(text in row.executed for text in ("int8", "Gather", FOLDED))
        )
    ]


@dataclass(frozen=True)
class CheckSet:
    """The first samples of the data that a run was verified on, in check.safetensors.

    Attributes:
        inputs: As the model takes them.
        outputs: Name -> output of the simulation in the form of its head [N, ..., C].
        returned: Name of each tensor that the artefact returns.
        batch_axes: Name of an output -> its dimension of samples where that is not the first.
        labels: Of the samples; None where there are none, or they are no tensor.
        watched, watched_samples: Tensors inside the simulation, of the first samples, and how many these are.
        evaluated: How many samples the run was verified on.
    """

    inputs: Inputs
    outputs: dict[str, Tensor]
    returned: list[str]
    batch_axes: dict[str, int | None]
    labels: Tensor | None
    watched: list[Watched]
    watched_samples: int
    evaluated: int

    def outputs_of(self, rows: list[int]) -> dict[str, Tensor]:
        """The outputs of those samples; one without samples stays as it is."""
        return {
            name: value if self.batch_axes.get(name, 0) is None else value[rows] for name, value in self.outputs.items()
        }

    @classmethod
    def load(cls, folder: Path) -> "CheckSet":
        """Read check.safetensors of a folder; raise InvalidInput for anything else."""
        path = _inside(folder, CHECK_FILE)
        tensors, metadata = read_tensors(path)
        try:
            noted = {name: json_of(text, name) for name, text in metadata.items()}
            names, returned, axes = (noted[name] for name in ("names", "returned", "axes"))
            values = [tensors[f"input.{index}"] for index in range(sum(name.startswith("input.") for name in tensors))]
            inputs = Inputs((), dict(zip(names, values, strict=True))) if names else Inputs(tuple(values), {})
            outputs = {name: tensors[f"output.{name}"] for name in returned if f"output.{name}" in tensors}
            inside = [
                Watched(inner, layer, biased, tensors[f"inside.{number}"].numpy())
                for number, (inner, layer, biased) in enumerate(noted["watched"])
            ]
            check = cls(
                inputs, outputs, returned, axes, tensors.get("labels"), inside, noted["samples"], noted["evaluated"]
            )
            check.check()
        except (AttributeError, KeyError, RuntimeError, TypeError, ValueError, InvalidInput) as error:
            raise InvalidInput(f"{path}: cannot be read ({error}); quantize again") from error
        return check

    def check(self) -> None:
        """Raise InvalidInput or ValueError unless the parts fit one another."""
        count = self.inputs.batch_size
        names = [*self.returned, *self.inputs.kwargs]
        if (
            count < 1
            or not self.outputs
            or len({*self.returned}) < len(self.returned)
            or not all(isinstance(name, str) for name in names)
        ):
            raise ValueError(f"{count} samples, outputs {self.returned}")
        if not (isinstance(self.evaluated, int) and 0 <= self.watched_samples <= count):
            raise ValueError(f"evaluated {quoted(self.evaluated)}, tensors inside of {self.watched_samples} of {count}")
        tensors = (
            dict(enumerate(self.inputs.tensors))
            | self.outputs
            | ({} if self.labels is None else {"labels": self.labels})
        )
        for name, tensor in tensors.items():
            axis = self.batch_axes.get(str(name), 0) if name in self.outputs else 0
            of_samples = tensor.ndim > 0 and axis is not None
            if tensor.dtype not in TYPES or tensor.numel() == 0 or (of_samples and len(tensor) != count):
                raise ValueError(f"{name}: {tensor.dtype} {list(tensor.shape)} for {count} samples")


def save_check_set(
    folder: Path, graph: Graph, batches: Sequence[Batch], simulated: Reference, inside: list[Watched], evaluated: int
) -> None:
    """Write check.safetensors: the first samples, up to MOST_SAMPLES and MOST_BYTES, their outputs, tensors inside.

    Where dimensions are free, those of the sizes of the first batch. `evaluated` is how many samples there are in all.
    """
    chosen, outputs_of_chosen, count = [], [], 0
    first, _ = batches[0]
    sizes = [leaf.shape[1:] for leaf in first.tensors]
    for number, (inputs, labels) in enumerate(batches):
        if [leaf.shape[1:] for leaf in inputs.tensors] == sizes:
            chosen.append((graph.tensors(inputs), labels))
            outputs_of_chosen.append(simulated.of(number, inputs))
            count += inputs.batch_size
        if count >= MOST_SAMPLES:
            break
    columns = zip(*(tensors for tensors, _ in chosen), strict=True)
    tensors = [torch.cat(parts) if parts[0].ndim > 0 else parts[0] for parts in columns]
    per_sample = sum(tensor[:1].numel() * tensor.element_size() for tensor in tensors if tensor.ndim > 0)
    size = max(1, min(count, MOST_SAMPLES, MOST_BYTES // max(1, per_sample)))
    stored = {f"input.{i}": tensor[:size] if tensor.ndim > 0 else tensor for i, tensor in enumerate(tensors)}
    for name in outputs_of_chosen[0]:
        stored[f"output.{name}"] = torch.cat([outputs[name] for outputs in outputs_of_chosen])[:size]
    labels = [labels.cpu() for _, labels in chosen if isinstance(labels, Tensor)]
    if len(labels) == len(chosen):
        stored["labels"] = torch.cat(labels)[:size]
    samples = first_rows(first).batch_size
    inside = inside if samples <= size else []  # large samples, of which fewer are stored
    notes = {
        "names": list(graph.example.kwargs) if len(graph.example.kwargs) == len(tensors) else [],
        "returned": list(outputs_of(returned_by(graph, graph.example))),
        "axes": dict(simulated.task.batch_axes),
        "samples": samples,
        "evaluated": evaluated,
        "watched": [(tensor.name, tensor.layer, tensor.biased) for tensor in inside],
    }
    arrays = {name: tensor.detach().cpu().contiguous().numpy() for name, tensor in stored.items()}
    arrays |= {f"inside.{number}": tensor.numbers for number, tensor in enumerate(inside)}
    save_arrays(folder / CHECK_FILE, arrays, {name: json.dumps(value) for name, value in notes.items()})


def recheck(folder: Path, *, model: nn.Module | None = None, layers: bool = False) -> Comparison:
    """Run the artefact on the folder's check set; compare with the simulation stored there, and with result.json.

    `model` is the network, for target packed. With `layers`, look for the first tensor inside that differs.

    Raises InvalidInput where a file of the folder is missing or not what mixbit writes, and TargetMismatch where the
    runtime cannot load the artefact. Differences are in the result's `problems`.
    """
    result, check, graph = _open(folder, model)
    target, task = find_target(result.target), dataclasses.replace(Task.named(result.task), batch_axes=check.batch_axes)
    target.try_apart(folder, [tensor.numpy() for tensor in check.inputs.tensors])
    runner = target.load(folder, graph)
    reference = Reference(task, lambda *_: check.outputs)

    def run_by(runner: Runner, inputs: Inputs) -> dict[str, Tensor]:
        return _outputs(runner.run([tensor.numpy() for tensor in inputs.tensors]), check, inputs.batch_size)

    def ran(runner: Runner) -> Evaluation:
        run, batches = partial(run_by, runner), [(check.inputs, check.labels)]
        return evaluate(run, batches, task, "run the artefact", differing_from=reference)

    sizes = {
        name: (check.inputs.rows(rows), Reference(task, lambda *_, rows=rows: check.outputs_of(rows)))
        for name, rows in few_rows(check.inputs.batch_size).items()
    }
    deployed = ran(runner)
    comparison = compare(
        folder,
        target,
        result.predicted_bytes,
        deployed,
        default=own_difference(partial(target.load, folder, graph), runner, ran),
        amplify=lambda: result.deployed.get("amplification"),
        more=problems_of_sizes(partial(run_by, runner), sizes, deployed),
    )
    simulated = evaluate(reference, [(check.inputs, check.labels)], task, "read the simulation")
    broken = broken_promises(result, comparison, check.evaluated, target.stored(folder), simulated, deployed)
    comparison = dataclasses.replace(comparison, problems=(*comparison.problems, *broken))
    if not layers:
        return comparison
    if not check.watched:
        raise InvalidInput(f"{folder / CHECK_FILE}: holds no tensors inside the simulation; use mixbit.verify()")
    rows = check.watched_samples
    arrays = [tensor.numpy() for tensor in check.inputs.rows(torch.arange(rows)).tensors]
    return with_layers(comparison, target, folder, runner, check.watched, arrays)


def bench(folder: Path, batch_sizes: tuple[int, ...], *, model: nn.Module | None = None) -> dict[str, Any]:
    """Median latency at each batch size, and how every layer is stored and was executed.

    `latency_ms` is that of the settings under which the runtime computes as the simulation does, `default_latency_ms`,
    paired with it, that of the runtime's own. Samples repeat where there are too few. Raises as `recheck` does.
    """
    result, check, graph = _open(folder, model)
    target = find_target(result.target)
    target.try_apart(folder, [tensor.numpy() for tensor in check.inputs.tensors])
    runner = target.load(folder, graph)
    latency, default_latency = {}, {}
    for size in batch_sizes:
        rows = check.inputs.rows(torch.arange(size) % check.inputs.batch_size)
        exact = target.load(folder, graph, batch_size=size)
        runs = {"artefact": exact.run}
        with suppress(TargetMismatch):  # some runtimes fail under their own settings
            default = target.load(folder, graph, batch_size=size, default_settings=True)
            runs |= {"default": default.run} if default.environment != exact.environment else {}
        medians = paired_times(runs, [tensor.numpy() for tensor in rows.tensors], f"time batch {size}").medians
        latency[str(size)] = medians["artefact"]
        default_latency[str(size)] = medians.get("default", medians["artefact"])
    tables = {name for name, row in result.layers.items() if row.executed == FOLDED}
    rows = layer_rows(result.schemes, result.predicted_bytes, target.name, folder, runner.executed(), tables=tables)
    return {
        "target": result.target,
        "latency_ms": latency,
        "default_latency_ms": default_latency,
        "layers": {name: row.model_dump() for name, row in rows.items()},
        "in_float": in_float(rows),
        "environment": runner.environment,
    }


def _open(folder: Path, model: nn.Module | None) -> tuple[Result, CheckSet, Graph | None]:
    """What the folder holds, unchanged since it was written; and the model's graph for a target that needs it."""
    if not folder.is_dir():
        raise InvalidInput(f"{folder}: no such folder; give the --out of mixbit quantize")
    result, plan = Result.load(folder), Plan.load(_inside(folder, "plan.json"))
    if plan.target != result.target or plan.layers != result.schemes:
        raise InvalidInput(f"{folder}: plan.json is not the plan of result.json; quantize again")
    target = find_target(result.target)
    if target.needs_graph and model is None:
        hint = "" if result.model is None else f" (the run used {quoted(result.model)})"
        raise InvalidInput(
            f"target {target.name} needs the network: pass --model FILE.py:function (model=...){hint}; a folder's own "
            "word for it is not run"
        )
    if model is not None and not target.needs_graph:
        raise InvalidInput(f"target {target.name} runs its file alone: leave out --model (model=...)")
    if missing := {*target.files, "plan.json", CHECK_FILE} - result.files.keys():
        raise TargetMismatch(f"{folder / RESULT_FILE}: files lacks {', '.join(sorted(missing))}; quantize again")
    for name, digest in result.files.items():
        path = _inside(folder, name)
        most = result.deployed.get("file_bytes", 0) if name in target.files else MOST_JSON
        most = safetensors_bytes(path) if name == CHECK_FILE else most
        if path.is_file() and (size := path.stat().st_size) > most:  # a digest reads all of it
            of = "its header" if name == CHECK_FILE else "deployed.file_bytes, or any JSON"
            what = f"{name} takes {size:,} bytes, more than {most:,.0f} ({of})"
            raise TargetMismatch(f"the artefact does not match: {what}; quantize again")
        if sha256(path) != digest:
            raise TargetMismatch(f"the artefact does not match: {name} is not the file verified then; quantize again")
    target.require()
    check = CheckSet.load(folder)
    if model is None:
        return result, check, None
    graph = capture(model, check.inputs)
    if predicted_bytes(graph.layers, plan) != result.predicted_bytes:
        raise TargetMismatch(f"{folder / RESULT_FILE}: predicted_bytes are not those of the plan; quantize again")
    return result, check, graph


def files_of_a_result(folder: Path) -> list[str]:
    """Names of the files there that are to the bit those of the result in the folder; none where it holds no result."""
    try:
        named = Result.load(folder).files
    except InvalidInput:
        return []
    return [name for name, digest in named.items() if (folder / name).is_file() and sha256(folder / name) == digest]


def _inside(folder: Path, name: str) -> Path:
    """The path of a file; raises InvalidInput where it is a link that leads out of the folder."""
    path = folder / name
    if not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder)):
        raise InvalidInput(f"{path}: a link out of the folder; put the file itself there")
    return path


def _outputs(returned: list[NDArray[Any]], check: CheckSet, count: int) -> dict[str, Tensor]:
    """Name -> output that the check set holds, as the artefact returns it for that many samples."""
    if len(returned) < len(check.returned):
        raise TargetMismatch(f"the artefact returns {len(returned)} tensors; {len(check.returned)} are expected")
    tensors = {name: torch.from_numpy(array.copy()) for name, array in zip(check.returned, returned, strict=False)}
    for name, wanted in check.outputs.items():
        has_samples = check.batch_axes.get(name, 0) is not None
        expected = [count, *wanted.shape[1:]] if has_samples else list(wanted.shape)
        if tensors[name].numel() != math.prod(expected):
            shapes = f"{list(tensors[name].shape)}; output {name} should be {expected}"
            raise TargetMismatch(f"the artefact returns {shapes}")
        if wanted.is_floating_point() and tensors[name].isnan().any() and not wanted.isnan().any():
            raise TargetMismatch("the artefact does not match: it returns NaN or inf where the simulation does not")
    return {name: tensors[name] for name in check.returned if name in check.outputs}
