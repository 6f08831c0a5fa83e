"""Roundings learned block by block (AdaRound, BRECQ): each weight goes down or up to an integer, softly at first."""

from collections.abc import Callable, Mapping
from contextlib import closing
from functools import partial
from typing import Any, Literal

import safetensors.torch
import torch
from torch import Tensor, fx

from mixbit.core import InvalidInput, track
from mixbit.graph import Graph
from mixbit.quantization.affine import along
from mixbit.quantization.biases import biases_of, settle_biases
from mixbit.quantization.quantizer import Quantizer, quantizer_path, weight_quantizers
from mixbit.roundings._input import RoundingInput
from mixbit.training.blockwise import (
    Block,
    Learner,
    Passes,
    Schedule,
    Stretch,
    find_blocks,
    learn_blocks,
    single_layers,
)
from mixbit.training.side_by_side import SideBySide, joined

#: Activations of fewer bits have their steps learned, and are left in float at random (QDrop).
FINE_BITS = 8
#: Steps of Adam: of the roundings; of biases, in root mean square errors of the block; of scales, relative to them.
RATE, BIAS_RATE, STEP_RATE = 0.1, 0.05, 1e-3
#: Weight of the penalty on undecided roundings, where the error of the nearest rounding is 1. Most weights then decide
#: early, and the rest make up for it: with 1, ResNet-20's blocks end at twice the error.
PENALTY = 300.0
#: Share of the iterations without it; its exponent then, and at the end.
WARM_UP, FIRST_BETA, LAST_BETA = 0.1, 20.0, 2.0
#: The sigmoid is stretched to [GAMMA, ZETA] and cut off at 0 and 1, so that its ends are reached.
ZETA, GAMMA = 1.1, -0.1


#: What each block reads while it learns: what the rounded blocks before it return, or what the float network's do.
Reads = Literal["quantized", "float"]
By = Literal["layers", "blocks"]


def learned_roundings(inputs: RoundingInput, by: By, schedule: Schedule, *, drop: float, reads: Reads) -> Graph:
    """The simulated graph with weights, biases and steps learned for each block, or layer.

    For each block, min mean (z - z')^2 over roundings h of its weights, with z the float network's output of the block
    and z' that of the rounded one, which reads what the rounded blocks before it return, or the float network's.
    Roundings start where the weight is itself and are driven to 0 or 1 by the penalty. A block that the nearest
    rounding serves better keeps it.

    Raises:
        InvalidInput: there is no batch, or errors are to be weighted by draws from a loss of the user's own.
    """
    if schedule.fisher and inputs.task.own_loss is not None:
        raise InvalidInput("rounding: fisher=true draws labels from the model, and knows no loss of your own")
    if not inputs.batches:
        raise InvalidInput("rounding: no batch to learn on; give at least one")
    label = f"learn roundings by {by}"
    if reads == "float":
        learned = _side_by_side(inputs, by, schedule, drop, label)
    else:
        learned = learn_blocks(
            inputs.case,
            inputs.simulated,
            _blocks(inputs, by),
            partial(_Rounding, inputs, drop, reads),
            schedule,
            label=label,
            stored=(inputs.store, "block", inputs.question(label, schedule=schedule, drop=drop)),
        )
    settle_biases(learned)  # steps of what they read may be others now
    return learned


def _blocks(inputs: RoundingInput, by: By) -> tuple[Block, ...]:
    return single_layers(inputs.graph) if by == "layers" else find_blocks(inputs.graph)


def _side_by_side(inputs: RoundingInput, by: By, schedule: Schedule, drop: float, label: str) -> Graph:
    """Blocks that read the float network's activations, learned in any order, and stored as they are finished."""
    store, question = inputs.store, inputs.question(f"{label} on float inputs", schedule=schedule, drop=drop)
    count = len(_blocks(inputs, by))
    stored = {number: store.get(f"block-{number}", question) for number in range(count)}
    learned = {number: block.tensors for number, block in stored.items() if block is not None}
    left = [number for number in range(count) if number not in learned]
    with closing(inputs.answers(partial(_learner, by, schedule, drop), left)) as answers:
        for number, answer in track(answers, label, total=len(left)):
            learned[number] = safetensors.torch.load(answer)
            store.put(f"block-{number}", question, learned[number])
    return joined(inputs.simulated, [learned[number] for number in range(count)])


def _learner(by: By, schedule: Schedule, drop: float, inputs: RoundingInput) -> Callable[[int], bytes]:
    """In a process, what learns the block of a number and returns its tensors, which travel as safetensors."""
    learn = SideBySide(
        inputs.case, inputs.simulated, _blocks(inputs, by), partial(_Rounding, inputs, drop, "float"), schedule
    )
    return lambda number: safetensors.torch.save(learn(number))


class _SoftWeight:
    """A weight between the integers, called like its quantizer; its masked part is zero."""

    def __init__(self, quantizer: Quantizer, weight: Tensor) -> None:
        self.quantizer, self.axis = quantizer, quantizer.axis or 0
        self.weight = weight.detach().clone() if quantizer.mask is None else weight.detach() * quantizer.mask
        self.v = start(self.weight, quantizer.scale, self.axis).requires_grad_()

    def __call__(self, _: Tensor | None = None, *, hard: bool = False) -> Tensor:
        """With soft roundings, differentiable, or with every rounding decided."""
        quantizer = self.quantizer
        factors, limits = (quantizer.scale, quantizer.zero_point), quantizer.format.integer_range
        weight = rounded_weight(self.weight, self.v, factors, self.axis, limits, hard=hard)
        return weight if quantizer.mask is None else weight * quantizer.mask


class _Rounding(Learner):
    """The roundings of one block of the simulated graph, its biases, and steps of activations.

    Attributes:
        weights: Path of a quantizer -> its weight.
        biases: Name -> bias in the float network, from which it starts.
        steps: Quantizers of coarse activations.
        mixes: Whether a random part of what the block reads is in float.
    """

    def __init__(
        self, inputs: RoundingInput, drop: float, reads: Reads, simulated: Graph, block: Block, part: Stretch
    ) -> None:
        super().__init__(simulated, block, part)
        quantizers = weight_quantizers(simulated)
        self.weights = {
            quantizer_path(layer.name, of_weight=True): _SoftWeight(quantizer, simulated.parameter(layer.name))
            for layer in inputs.graph.layers
            if layer.name in block.layers and all(operation.kind.input is not None for operation in layer.operations)
            if (quantizer := quantizers.get(layer.name)) is not None and quantizer.format.floating is None
        }
        rounded = [weight.quantizer.tensor for weight in self.weights.values()]
        self.biases: dict[str, Tensor] = {}
        for layer, operation, name in biases_of(simulated) if inputs.bias_correction else ():
            if layer.name in rounded and operation.node in block.nodes:
                bias = inputs.graph.bias(operation)
                self.biases[name] = torch.zeros(()) if bias is None else inputs.graph.parameter(bias).detach()
        modules = [simulated.module.get_submodule(str(node.target)) for node in part.nodes if node.op == "call_module"]
        self.steps = [
            module
            for module in modules
            if isinstance(module, Quantizer) and module.axis is None and module.format.bits < FINE_BITS
            if not module.format.dynamic
        ]
        self.drop = drop if self.steps else 0.0
        self.mixes = self.drop > 0 and reads == "quantized"  # else all that the block reads is in float
        scales = [f"{quantizer_path(step.tensor, of_weight=False)}.scale" for step in self.steps]
        self.names = [*rounded, *self.biases, *scales] if rounded else []

    def put(self, tensors: Mapping[str, Tensor]) -> None:
        """Set weights, biases and steps."""
        for quantizer in self.steps:
            quantizer.settle_scale()
        super().put(tensors)

    def varies(self, node: fx.Node) -> bool:
        """All does where a random part of what the block reads is in float."""
        return self.mixes or super().varies(node)

    def begin(self, error: float) -> list[dict[str, Any]]:
        """Start from the float network's biases; roundings, biases and steps learn at rates of their own."""
        biases = [self.learning.module.get_parameter(name) for name in self.biases]
        for parameter, bias in zip(biases, self.biases.values(), strict=True):
            with torch.no_grad():
                parameter.copy_(bias)
            parameter.requires_grad_(True)
        for quantizer in self.steps:
            quantizer.learn_scale()
        groups: list[dict[str, Any]] = [{"params": [weight.v for weight in self.weights.values()], "lr": RATE}]
        if biases:
            groups.append({"params": biases, "lr": BIAS_RATE * error})
        groups += [{"params": [step.scale], "lr": STEP_RATE * float(step.scale.detach())} for step in self.steps]
        return groups

    def outputs(
        self, passes: Passes, batch: int, rows: Tensor | None, generator: torch.Generator
    ) -> Mapping[str, Tensor]:
        """With soft roundings, and a random part of what the block reads and of coarse activations in float."""
        calls: dict[str, Callable[[Tensor], Tensor]] = dict(self.weights)
        read = passes.inputs(self.part, batch, rows)
        if self.mixes:
            others = passes.float_inputs(self.part, batch, rows)
            read |= {name: mixed(read[name], other, self.drop, generator) for name, other in others.items()}
        if self.drop > 0:
            for step in self.steps:
                path = quantizer_path(step.tensor, of_weight=False)
                calls[path] = lambda x, step=step: mixed(step(x), x, self.drop, generator)
        return self.part.run(read, self.block.outputs, calls)

    def penalty(self, progress: float) -> Tensor | float:
        """PENALTY times the mean over all weights of the block of how far their roundings are undecided."""
        beta = beta_at(progress)
        if beta is None:
            return 0.0
        vs = [weight.v for weight in self.weights.values()]
        count = sum(v.numel() for v in vs)
        return PENALTY * torch.stack([penalty(v, beta) * (v.numel() / count) for v in vs]).sum()

    @torch.no_grad()
    def settle(self) -> None:
        """Put the hard weights, the steps, and the biases rounded to them."""
        self.put(self.tensors() | {weight.quantizer.tensor: weight(hard=True) for weight in self.weights.values()})
        settle_biases(self.learning, list(self.biases))


def mixed(rounded: Tensor, other: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """The first tensor, with that share of its numbers, drawn at random, from the other."""
    return torch.where((torch.rand(rounded.shape, generator=generator) < share).to(rounded.device), other, rounded)


def rise(v: Tensor) -> Tensor:
    """h(v) = clip(sigmoid(v) (ZETA - GAMMA) + GAMMA, 0, 1): how far a weight goes towards the integer above."""
    return (torch.sigmoid(v) * (ZETA - GAMMA) + GAMMA).clamp(0, 1)


def start(weight: Tensor, scale: Tensor, axis: int) -> Tensor:
    """The v at which the soft weight is the weight itself: h(v) = w / s - floor(w / s)."""
    position = weight / along(scale, axis, weight.shape)
    share = (position - position.floor()).clamp(0.01, 0.99)
    return -torch.log((ZETA - GAMMA) / (share - GAMMA) - 1)


def rounded_weight(
    weight: Tensor, v: Tensor, factors: tuple[Tensor, Tensor], axis: int, limits: tuple[int, int], *, hard: bool
) -> Tensor:
    """The weight w as s (clip(floor(w / s) + h(v) + z, low, high) - z), for factors (s, z) of its format.

    Where it is hard, h(v) is rounded to 0 or 1, and the result a whole multiple of the scale.
    """
    scale, zero_point = (along(factor, axis, weight.shape) for factor in factors)
    rises = (v >= 0).to(weight) if hard else rise(v)
    return ((weight / scale).floor() + rises + zero_point).clamp(*limits).sub(zero_point).mul(scale)


def penalty(v: Tensor, beta: float) -> Tensor:
    """Mean of 1 - |2 h(v) - 1|^beta: 0 where every weight has decided, 1 where none has."""
    return (1 - (2 * rise(v) - 1).abs().pow(beta)).mean()


def beta_at(progress: float) -> float | None:
    """The penalty's exponent at a share of all iterations: none while warming up, then linearly from first to last."""
    if progress < WARM_UP:
        return None
    return FIRST_BETA + (LAST_BETA - FIRST_BETA) * (progress - WARM_UP) / (1 - WARM_UP)
