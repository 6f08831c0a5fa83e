"""Where an artefact first differs from its simulation: tensors of both, one by one, in the order of the network."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import fx

from mixbit.core import Inputs, InvalidInput, Runner, Target
from mixbit.graph import Graph, Walker, seen
from mixbit.graph.recurrent import is_recurrent
from mixbit.quantization.quantizer import Quantizer

#: Numbers of each tensor that are compared, evenly spread over it, and samples that are run.
MOST_NUMBERS, MOST_SAMPLES = 1024, 4
#: Runs that a profile is taken of, and the share of them that took no longer than what it says: other processes only
#: ever add time.
PROFILED, QUIET = 50, 0.25
#: Before the name of a quantized tensor, in names of tensors; the others are named after the layer that makes them.
QUANTIZED = "quantized "


@dataclass(frozen=True)
class Watched:
    """A tensor of the simulation that the artefact holds too.

    Attributes:
        name: `quantized relu_3`, after the graph's node; or the layer whose only operator makes it.
        layer: The layer nearest before it; "" where there is none.
        biased: Whether the layer's operator adds a bias, which runtimes may do in an operator of its own.
        numbers: Some of its numbers in the simulation.
    """

    name: str
    layer: str
    biased: bool
    numbers: NDArray[np.float32]


def quiet_ms(times: Iterable[tuple[str, list[float]]]) -> list[tuple[str, float]]:
    """A profile, see `Runner.profile`, of the times of each operator in PROFILED runs."""
    return [(layer, float(np.quantile(values, QUIET))) for layer, values in times]


def first_rows(inputs: Inputs) -> Inputs:
    """The samples to compare on."""
    return inputs.rows(torch.arange(min(MOST_SAMPLES, inputs.batch_size)))


@torch.no_grad()
def watched(simulated: Graph, inputs: Inputs) -> list[Watched]:
    """The tensors to compare on these inputs, in execution order: those that are quantized, and what layers return."""
    nodes: dict[str, tuple[str, str, bool]] = {}
    for node in simulated.module.graph.nodes:
        layer = _layer_before(simulated, node)
        if node.op == "call_module":
            quantizer = simulated.module.get_submodule(str(node.target))
            if isinstance(quantizer, Quantizer) and quantizer.axis is None and not quantizer.format.dynamic:
                nodes[node.name] = QUANTIZED + quantizer.tensor, layer, False
        elif node.name in simulated.operations and not is_recurrent(node):
            owner, operation = simulated.operations[node.name]
            if len(owner.operations) == 1 and not _is_quantized(simulated, node):
                nodes[node.name] = owner.name, layer, simulated.bias(operation) is not None
    values: dict[str, NDArray[np.float32]] = {}

    def keep(name: str) -> Any:
        def see(value: Any, _: object) -> None:
            values[name] = some_of(value.cpu().numpy())

        return seen(see)

    Walker(simulated.module, {name: keep(name) for name in nodes}).returned(simulated.leaves(inputs))
    return [Watched(*names, values[node]) for node, names in nodes.items() if node in values]


def some_of(array: NDArray[Any]) -> NDArray[np.float32]:
    """At most MOST_NUMBERS of a tensor, evenly spread."""
    flat = array.reshape(-1)
    places = np.linspace(0, max(0, flat.size - 1), min(flat.size, MOST_NUMBERS)).astype(np.int64)
    return flat[places].astype(np.float32)


def _is_quantized(simulated: Graph, node: fx.Node) -> bool:
    """Whether something quantizes the tensor, itself or what clips it: then runtimes may never hold it as it is."""
    users = [user for first in node.users for user in (first, *first.users)]
    return any(
        user.op == "call_module" and isinstance(simulated.module.get_submodule(str(user.target)), Quantizer)
        for user in users
    )


def _layer_before(simulated: Graph, node: fx.Node) -> str:
    """The layer whose operator is the nearest before the node, itself included; "" where there is none."""
    level = [node]
    for _ in range(len(simulated.module.graph.nodes)):
        for each in level:
            if each.name in simulated.operations:
                return simulated.operations[each.name][0].name
        level = list(dict.fromkeys(before for each in level for before in each.all_input_nodes))
    return ""


@dataclass(frozen=True)
class FirstDifference:
    """The first tensor that the artefact does not hold as the simulation does.

    Attributes:
        tensor, layer: See `Watched`.
        relative_rms: Root mean square difference / standard deviation of the simulation's numbers.
        executed: The operator that the runtime chose for the layer.
        compared: Tensors compared up to it, itself included.
    """

    tensor: str
    layer: str
    relative_rms: float
    executed: str
    compared: int

    def __str__(self) -> str:
        where = f"{self.tensor}, of layer {self.layer}" if self.layer not in ("", self.tensor) else self.tensor
        return (
            f"the first of {self.compared} tensors that differs: {where}, by {self.relative_rms:.1%} of its spread; "
            f"the runtime runs {self.executed}"
        )


def first_difference(
    target: Target,
    folder: Path,
    runner: Runner,
    tensors: Sequence[Watched],
    arrays: list[NDArray[Any]],
    tolerance: float,
    *,
    one_by_one: bool,
) -> FirstDifference | None:
    """Run the artefact with these tensors as outputs; the first one beyond the tolerance, None where there is none.

    Outputs can keep a runtime from fusing what lies around them. So where all of them agree, and `one_by_one`, since
    the artefact's own outputs do not, each is made an output alone.
    """
    if target.load_tensors is None:
        raise InvalidInput(f"target {target.name}: nothing but PyTorch computes its layers; compare them there")
    names = [(tensor.name, tensor.biased) for tensor in tensors]
    for some in [names, *([name] for name in names if one_by_one)]:
        found = target.load_tensors(folder, some)(arrays)
        compared = [tensor for tensor in tensors if tensor.name in found]
        for number, tensor in enumerate(compared, 1):
            error = _relative_rms(found[tensor.name], tensor.numbers)
            if error > tolerance:
                executed = runner.executed().get(tensor.layer, "operators of no layer")
                place = number if some is names else names.index(some[0]) + 1
                return FirstDifference(tensor.name, tensor.layer, error, executed, place)
    return None


def _relative_rms(found: NDArray[Any], wanted: NDArray[np.float32]) -> float:
    given = some_of(found)
    if given.shape != wanted.shape:
        return float("inf")
    spread = float(wanted.astype(np.float64).std()) or 1.0
    return float(np.sqrt(np.mean((given.astype(np.float64) - wanted) ** 2))) / spread
