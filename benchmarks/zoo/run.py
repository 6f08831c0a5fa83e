"""One subject on one target, through `mixbit.auto_quantize`, and what becomes of it, judged apart from mixbit."""

import logging
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import mixbit as mb
from benchmarks.zoo.subject import Subject
from mixbit.core.batches import Inputs, split_batches
from mixbit.core.target import find_target
from mixbit.graph import Graph
from mixbit.pipeline import Settings
from mixbit.targets.openvino import FILE

#: Samples that the file is run with at a time; all of them, beside these.
ROWS = (1, 3)
#: Largest root mean square difference of an output, in units of its spread, from the simulation and from the model.
SIMULATION_TOLERANCE, MODEL_TOLERANCE = 0.03, 0.25
#: Spreads of channels below this share of the largest count as that share.
LEAST_SPREAD = 1e-3
#: Largest share of the weights that may stay in float without a word.
UNMENTIONED = 0.02

Run = Callable[[list[np.ndarray]], list[np.ndarray]]


@dataclass(frozen=True)
class Row:
    """What the command prints of one subject on one target.

    Attributes:
        error: Beginning of the error that ended the run; all else is then unknown.
        layers: Weights that mixbit quantizes.
        uncovered: Share of the weights, biases and norms left out, that stay in float.
        mentioned: Share of the weights that stay in float and are named in result.json or in a warning.
        file_bytes: Of the files, and of the float network's files in the same runtime.
        graph_bytes: Of them, what describes the graph: OpenVINO's XML.
        plain_graph_bytes: The same, as OpenVINO writes the model that it reads from the file.
        weight_bytes: Of the weights and scales in the file.
        latency_ms: Of the artefact and of the float network.
        from_simulation: Output -> largest difference from the simulation over ROWS and all, in units of its spread.
        from_model: The same from the model.
        simulated: The same between simulation and model, for all samples.
        matches: What mixbit says.
        problems: What it says against the artefact.
        seconds: Of the run, without training.
    """

    name: str
    target: str
    error: str = ""
    layers: int = 0
    uncovered: float = 0.0
    mentioned: float = 0.0
    file_bytes: tuple[int, int] = (0, 0)
    graph_bytes: int = 0
    plain_graph_bytes: int = 0
    weight_bytes: int = 0
    latency_ms: tuple[float, float] = (0.0, 0.0)
    from_simulation: dict[str, float] = field(default_factory=dict)
    from_model: dict[str, float] = field(default_factory=dict)
    simulated: dict[str, float] = field(default_factory=dict)
    matches: bool = False
    problems: tuple[str, ...] = ()
    seconds: float = 0.0

    @property
    def right(self) -> bool:
        """Whether every output of the file is the simulation's, and near the model's."""
        return bool(
            not self.error
            and self.from_simulation
            and max(self.from_simulation.values()) <= SIMULATION_TOLERANCE
            and max(self.from_model.values()) <= MODEL_TOLERANCE
        )

    @property
    def wrongly_matches(self) -> bool:
        """Whether mixbit calls a match what is none."""
        return self.matches and not self.right

    @property
    def unmentioned(self) -> bool:
        """Whether more weights stay in float than mixbit says."""
        return not self.error and self.uncovered - self.mentioned > UNMENTIONED

    def to_json(self) -> dict[str, Any]:
        """All fields."""
        return asdict(self)


@dataclass(frozen=True)
class Options:
    """What mixbit is asked for."""

    choices: tuple[str, ...] | None
    budget: tuple[str, ...]


def row_of(name: str, subject: Subject, target: str, options: Options) -> Row:
    """Quantize, export and judge; an error is a row too."""
    began = time.perf_counter()
    try:
        with TemporaryDirectory() as scratch:
            return _row(name, subject, target, options, Path(scratch) / "out", began)
    except Exception as error:  # noqa: BLE001 whatever ends a run is a row
        first = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        return Row(name, target, error=first, seconds=time.perf_counter() - began)


def _row(name: str, subject: Subject, target: str, options: Options, out: Path, began: float) -> Row:
    warnings = _Said()
    logging.getLogger("mixbit").addHandler(warnings)
    done = mb.auto_quantize(
        subject.model,
        subject.calibration,
        target=target,
        budget=mb.Budget.parse(list(options.budget)),
        out=out,
        eval_batches=subject.test,
        settings=Settings(task=mb.Task.named(subject.task), choices=options.choices),
    )
    inputs = [pair[0] for pair in split_batches(subject.model, subject.test)]
    graph = mb.capture(subject.model, inputs[0])
    run = RUNTIMES[target](out)
    from_simulation, from_model, simulated = _differences(subject.model, graph, done.simulated, run, inputs)
    result, files = done.result, {file: (out / file).stat().st_size for file in find_target(target).files}
    uncovered, mentioned = _uncovered(graph, done.plan, result.uncovered, warnings.text)
    return Row(
        name,
        target,
        layers=len(done.plan.layers),
        uncovered=uncovered,
        mentioned=mentioned,
        file_bytes=(sum(files.values()), int(result.float_["file_bytes"])),
        graph_bytes=files.get(FILE, 0),
        plain_graph_bytes=_plain_graph_bytes(out) if FILE in files else 0,
        weight_bytes=done.comparison.weight_bytes,
        latency_ms=(result.deployed["latency_ms"], result.float_["latency_ms"]),
        from_simulation=from_simulation,
        from_model=from_model,
        simulated=simulated,
        matches=not done.comparison.problems,
        problems=done.comparison.problems,
        seconds=time.perf_counter() - began,
    )


class _Said(logging.Handler):
    """Keeps what was warned of."""

    def __init__(self) -> None:
        super().__init__()
        self.text = ""

    def emit(self, record: logging.LogRecord) -> None:
        """Note a message."""
        self.text += record.getMessage() + "\n"


def _uncovered(graph: Graph, plan: mb.Plan, listed: list[dict[str, Any]], said: str) -> tuple[float, float]:
    """Shares of the weights that stay in float, and of those that are named too; vectors are no weights."""
    sizes = {name: parameter.numel() for name, parameter in graph.module.named_parameters() if parameter.ndim > 1}
    quantized = {name for name, scheme in plan.layers.items() if scheme != "float"}
    names = {row["name"] for row in listed}
    left = {name: size for name, size in sizes.items() if name not in quantized}
    known = {name: size for name, size in left.items() if name in names or name in plan.layers or name in said}
    total = sum(sizes.values())
    return sum(left.values()) / total, sum(known.values()) / total


def _differences(
    model: nn.Module, graph: Graph, simulated: Graph, run: Run, inputs: list[Inputs]
) -> tuple[dict[str, float], ...]:
    """Output -> difference of the file from the simulation and from the model, and of these from one another."""
    wanted, expected = (_joined([_outputs(one, part) for part in inputs]) for one in (model, simulated))

    def run_on(part: Inputs) -> dict[str, Tensor]:
        tensors = [torch.from_numpy(np.array(one)) for one in run([leaf.numpy() for leaf in graph.tensors(part)])]
        return dict(zip(wanted, [tensor for tensor in tensors if tensor.is_floating_point()], strict=True))

    runs = [(slice(None), _joined([run_on(part) for part in inputs]))]
    runs += [(slice(count), run_on(inputs[0].rows(slice(count)))) for count in ROWS]

    def largest(reference: dict[str, Tensor]) -> dict[str, float]:
        return {
            name: max(relative(outputs[name] - values[rows], values) for rows, outputs in runs)
            for name, values in reference.items()
        }

    return (
        largest(expected),
        largest(wanted),
        {name: relative(expected[name] - one, one) for name, one in wanted.items()},
    )


def relative(difference: Tensor, reference: Tensor) -> float:
    """Root mean square of the difference, each channel in units of its own spread in the reference [N, ...].

    Channels are the second dimension; where one is a single number, as a class, its spread is over the samples.
    """
    difference, reference = difference.double(), reference.double()
    rest = [axis for axis in range(reference.ndim) if axis != 1]
    spread = reference.std(rest, keepdim=True) if reference.ndim > 1 else reference.std()
    spread = spread.clamp(min=float(spread.max()) * LEAST_SPREAD)
    return float((difference / spread).square().mean().sqrt())


@torch.no_grad()
def _outputs(network: nn.Module | Graph, inputs: Inputs) -> dict[str, Tensor]:
    """Every floating-point tensor that is returned, by its place."""
    paths, _ = pytree.tree_flatten_with_path(network(*inputs.args, **inputs.kwargs))
    named = {pytree.keystr(path) or "output": leaf for path, leaf in paths if isinstance(leaf, Tensor)}
    return {name: leaf for name, leaf in named.items() if leaf.is_floating_point()}


def _joined(parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def _onnxruntime(folder: Path) -> Run:
    import onnxruntime  # noqa: PLC0415 a runtime is installed only where it is used

    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    names = [one.name for one in session.get_inputs()]
    return lambda arrays: session.run(None, dict(zip(names, arrays, strict=True)))


def _openvino(folder: Path) -> Run:
    import openvino  # noqa: PLC0415 a runtime is installed only where it is used

    compiled = openvino.Core().compile_model(folder / FILE, "CPU", {"EXECUTION_MODE_HINT": "ACCURACY"})
    return lambda arrays: [np.array(compiled(arrays)[port]) for port in compiled.outputs]


def _litert(folder: Path) -> Run:
    from ai_edge_litert.interpreter import Interpreter  # noqa: PLC0415 a runtime is installed only where it is used

    def run(arrays: list[np.ndarray]) -> list[np.ndarray]:
        interpreter = Interpreter(str(folder / "model.tflite"))
        places = [port["index"] for port in interpreter.get_input_details()]
        for place, array in zip(places, arrays, strict=True):
            interpreter.resize_tensor_input(place, array.shape)
        interpreter.allocate_tensors()
        for place, array in zip(places, arrays, strict=True):
            interpreter.set_tensor(place, array)
        interpreter.invoke()
        return [interpreter.get_tensor(port["index"]) for port in interpreter.get_output_details()]

    return run


def _plain_graph_bytes(folder: Path) -> int:
    import openvino  # noqa: PLC0415 a runtime is installed only where it is used

    with TemporaryDirectory() as scratch:
        openvino.save_model(openvino.Core().read_model(folder / FILE), Path(scratch) / FILE, False)
        return (Path(scratch) / FILE).stat().st_size


#: Target -> (folder of the artefact) -> a function that runs it.
RUNTIMES = {"onnxruntime": _onnxruntime, "openvino": _openvino, "litert": _litert}
