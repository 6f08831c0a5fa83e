"""What is learned of one block: roundings of weights, biases, and steps of coarse activations."""

from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, fx

from mixbit.core import InvalidInput, track
from mixbit.core.io.store import Store
from mixbit.graph.blocks import Block
from mixbit.graph.graph import Graph, argument, tensor_of
from mixbit.graph.walk import Stretch
from mixbit.quantization.assemble import quantizer_path
from mixbit.quantization.biases import biases_of, settle_biases
from mixbit.quantization.quantizer import Quantizer
from mixbit.roundings._input import Reconstruction, question_digest
from mixbit.roundings._soft import beta_at, hard_weight, penalty, soft_weight, start
from mixbit.training.blockwise import Pace, Passes, side_by_side

#: Activations of fewer bits have their steps learned, and are left in float at random (QDrop).
FINE_BITS = 8


class SoftWeight:
    """A weight between the integers; its masked part is zero."""

    def __init__(self, quantizer: Quantizer, weight: Tensor) -> None:
        self.quantizer, self.axis = quantizer, quantizer.axis or 0
        self.weight = weight.detach().clone() if quantizer.mask is None else weight.detach() * quantizer.mask
        self.v = start(self.weight, quantizer.scale, self.axis).requires_grad_()

    def soft(self, weight: Tensor) -> Tensor:  # noqa: ARG002 called in place of the quantizer
        """For learning."""
        return self._of(soft_weight)

    def hard(self) -> Tensor:
        """At the end."""
        return self._of(hard_weight).detach()

    def _of(self, form: Callable[..., Tensor]) -> Tensor:
        one = self.quantizer
        found = form(self.weight, self.v, (one.scale, one.zero_point), self.axis, one.format.integer_range)
        return found if one.mask is None else found * one.mask


class Learned:
    """The learned tensors of one block of the simulated graph.

    Attributes:
        weights: Path of a quantizer -> its weight.
        biases: Names of biases.
        steps: Quantizers of coarse activations.
    """

    def __init__(self, asked: Reconstruction, simulated: Graph, block: Block, part: Stretch) -> None:
        graph = asked.graph
        self.simulated, self.module = simulated, simulated.module
        layers = {layer.name: layer for layer in graph.layers}
        self.weights: dict[str, SoftWeight] = {}
        for name in block.layers:
            quantizer = _weight_quantizer(simulated, name)
            operations = layers[name].operations
            looked_up = any(one.input is None for one in operations)  # by indices: it has no output but itself
            if quantizer is not None and not looked_up:
                weight = SoftWeight(quantizer, self.simulated.parameter(name))
                self.weights[quantizer_path(name, of_weight=True)] = weight
        rounded = {one.quantizer.tensor for one in self.weights.values()}
        self.biases = {
            name: _float_bias(graph, graph.node(operation.node), operation.kind.bias)
            for layer, operation, name in biases_of(simulated)
            if layer.name in rounded and operation.node in block.nodes and asked.bias_correction
        }
        found = [self.module.get_submodule(str(node.target)) for node in part.nodes if node.op == "call_module"]
        self.steps = [
            one
            for one in found
            if isinstance(one, Quantizer) and one.axis is None and one.format.bits < FINE_BITS
            if not one.format.dynamic
        ]

    def begin(self) -> None:
        """Put biases as they are in the float network, and make the steps parameters."""
        for name, bias in self.biases.items():
            parameter = self.simulated.parameter(name)
            with torch.no_grad():
                parameter.copy_(bias)
            parameter.requires_grad_(True)
        for quantizer in self.steps:
            quantizer.learn_scale()

    def state(self) -> dict[str, Tensor]:
        """Full name -> copy of each tensor that learning changes."""
        names = [*(one.quantizer.tensor for one in self.weights.values()), *self.biases]
        names += [f"{quantizer_path(one.tensor, of_weight=False)}.scale" for one in self.steps]
        return {name: self.simulated.parameter(name).detach().clone() for name in names}

    @torch.no_grad()
    def restore(self, state: dict[str, Tensor]) -> None:
        """Put the tensors of a state."""
        for quantizer in self.steps:
            quantizer.settle_scale()
        for name, tensor in state.items():
            held = self.simulated.parameter(name)
            held.requires_grad_(False)
            held.copy_(tensor)

    @torch.no_grad()
    def settle(self) -> None:
        """Put the hard weights, the steps, and the biases rounded to them."""
        self.restore(self.state() | {one.quantizer.tensor: one.hard() for one in self.weights.values()})
        settle_biases(self.simulated, list(self.biases))

    def undecided(self, beta: float) -> Tensor:
        """The penalty, a mean over all weights of the block."""
        count = sum(one.v.numel() for one in self.weights.values())
        return torch.stack([penalty(one.v, beta) * (one.v.numel() / count) for one in self.weights.values()]).sum()

    def replaced(self, drop: float, generator: torch.Generator) -> dict[str, Callable[[Tensor], Tensor]]:
        """Path of a quantizer -> what to call in its place while learning."""
        calls: dict[str, Callable[[Tensor], Tensor]] = {path: one.soft for path, one in self.weights.items()}
        if drop > 0:
            for quantizer in self.steps:
                calls[quantizer_path(quantizer.tensor, of_weight=False)] = _dropping(quantizer, drop, generator)
        return calls


def mixed(rounded: Tensor, other: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """The first tensor, with that share of its numbers, drawn at random, from the other."""
    return torch.where((torch.rand(rounded.shape, generator=generator) < share).to(rounded.device), other, rounded)


def _dropping(quantizer: Quantizer, drop: float, generator: torch.Generator) -> Callable[[Tensor], Tensor]:
    return lambda x: mixed(quantizer(x), x, drop, generator)


def _weight_quantizer(simulated: Graph, name: str) -> Quantizer | None:
    """The quantizer of a weight that is rounded to integers."""
    try:
        found = simulated.module.get_submodule(quantizer_path(name, of_weight=True))
    except AttributeError:
        return None
    return found if isinstance(found, Quantizer) and found.format.floating is None else None


def _float_bias(graph: Graph, node: fx.Node, position: int | None) -> Tensor:
    bias = argument(node, position)
    return torch.zeros(()) if bias is None else tensor_of(graph.module, bias).detach()


#: Steps of Adam: of the roundings; of biases, in root mean square errors of the block; of scales, relative to them.
RATE, BIAS_RATE, STEP_RATE = 0.1, 0.05, 1e-3
#: Weight of the penalty on undecided roundings, where the error of the nearest rounding is 1. It is large, so that most
#: weights decide early and the rest of them make up for it: with 1, ResNet-20's blocks end at twice the error.
PENALTY = 300.0
#: Share of the iterations without it; its exponent then, and at the end.
WARM_UP, FIRST_BETA, LAST_BETA = 0.1, 20.0, 2.0


@dataclass(frozen=True)
class Schedule:
    """How each block is learned.

    Attributes:
        iterations: Steps of Adam.
        batch_size: Samples of a step, at most those of a calibration batch.
        drop: Chance that a number of a coarse activation stays in float.
        fisher: Whether errors are weighted by the Fisher information of the block's outputs.
        cache_gib: GiB of activations held in memory.
    """

    iterations: int
    batch_size: int
    drop: float
    fisher: bool
    cache_gib: float

    def check(self, asked: Reconstruction) -> None:
        """Raise InvalidInput where there is no batch, or `fisher` does not go with the task."""
        if self.fisher and asked.task.own_loss is not None:
            raise InvalidInput("rounding: fisher=true draws labels from the model, and knows no loss of your own")
        if not asked.batches:
            raise InvalidInput("rounding: no batch to learn on; give at least one")


def reconstruct(asked: Reconstruction, blocks: tuple[Block, ...], schedule: Schedule, label: str) -> Graph:
    """The simulated graph with weights, biases and steps learned, one block after the other.

    For each block, min mean (z - z')^2 over roundings h of its weights, with z the float network's output of the block
    and z' that of the rounded one, which reads what the rounded blocks before it return. Roundings start where the
    weight is itself and are driven to 0 or 1 by the penalty. A block that the nearest rounding serves better keeps it.
    """
    schedule.check(asked)
    store, question = Store(asked.folder), question_digest(asked, label, **asdict(schedule))
    simulated = asked.simulated.copy()
    trained = [one for one in simulated.module.parameters() if one.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    bar = track(range(len(blocks) * schedule.iterations), label)
    passing = side_by_side(asked.case, simulated, blocks, cache_gib=schedule.cache_gib, fisher=schedule.fisher)
    with closing(bar), closing(passing):
        for number, block, part, passes in passing:
            learned = Learned(asked, simulated, block, part)
            pace = Pace(schedule.iterations, bar, torch.Generator().manual_seed(asked.seed + number))
            known = store.get(f"block-{number}", question)
            if known is not None:
                learned.restore(known.tensors)
                pace.skip()
            else:
                _learn(learned, block, part, passes, schedule, pace)
                store.put(f"block-{number}", question, learned.state())
    settle_biases(simulated)  # steps of what they read may be others now
    for parameter in trained:
        parameter.requires_grad_(True)
    return simulated


@torch.enable_grad()
def _learn(learned: Learned, block: Block, part: Stretch, passes: Passes, schedule: Schedule, pace: Pace) -> None:
    """Learn one block, unless the nearest rounding is better in the end."""
    nearest = passes.mean_error(part, block.outputs)
    if not learned.weights or nearest == 0:
        pace.skip()
        return
    before = learned.state()
    learned.begin()
    optimizer = _optimizer(learned, nearest**0.5)
    drop = schedule.drop if learned.steps else 0.0
    by_rows = passes.parts_by_rows(part, block.outputs)
    for progress in pace.steps():
        batch, rows = passes.draw(schedule.batch_size, pace.generator, by_rows=by_rows)
        read = passes.inputs(part, batch, rows)
        if drop > 0:
            others = passes.float_inputs(part, batch, rows)
            read |= {name: mixed(read[name], other, drop, pace.generator) for name, other in others.items()}
        outputs = part.run(read, block.outputs, learned.replaced(drop, pace.generator))
        loss = passes.error(outputs, batch, rows) / nearest
        beta = beta_at(progress, WARM_UP, FIRST_BETA, LAST_BETA)
        if beta is not None:
            loss = loss + PENALTY * learned.undecided(beta)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    learned.settle()
    if not passes.mean_error(part, block.outputs) <= nearest:  # NaN is no improvement
        learned.restore(before)


def _optimizer(learned: Learned, error: float) -> torch.optim.Optimizer:
    groups = [{"params": [one.v for one in learned.weights.values()], "lr": RATE}]
    biases = [learned.module.get_parameter(name) for name in learned.biases]
    if biases:
        groups.append({"params": biases, "lr": BIAS_RATE * error})
    groups += [{"params": [one.scale], "lr": STEP_RATE * float(one.scale.detach())} for one in learned.steps]
    return torch.optim.Adam(groups)
