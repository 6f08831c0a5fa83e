"""Learning block by block what the float network returns."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

from mixbit.core import Store, track
from mixbit.graph.blocks import Block, Stretch, needed_later, stretches
from mixbit.graph.graph import Case, Graph, SampleAxis, sample_axis
from mixbit.graph.walk import ActivationCache, Walker, seen

#: Put before a node's name in the cache: the network of its tensor.
_FLOAT, _LEARNING = "float: ", "learning: "


@dataclass(frozen=True)
class TensorSlice:
    """The part of a float tensor that the learning network also has: these indices of a dimension."""

    dim: int
    indices: Tensor


class Passes:
    """What both networks hold between two blocks, of every batch; `slices` as in `learn_blocks`.

    Attributes:
        sizes: Samples of each batch.
        weights: (batch, node) -> weights of the errors of its tensor; 1 where there are none.
    """

    def __init__(self, case: Case, cache_gib: float, slices: Mapping[str, TensorSlice]) -> None:
        self.case, self.slices = case, slices
        self.sizes = [inputs.batch_size for inputs, _ in case.batches]
        self.cache = ActivationCache(cache_gib * 2**30, case.graph.device)
        self.weights: dict[tuple[int, str], Tensor] = {}
        names = [node.name for node in case.graph.module.graph.find_nodes(op="placeholder")]
        self.leaves = [dict(zip(names, case.graph.leaves(inputs), strict=True)) for inputs, _ in case.batches]

    @torch.no_grad()
    def advance(self, which: str, part: Stretch, wanted: set[str]) -> None:
        """Run the next stretch of one of the networks and store what is wanted of it."""
        names = wanted & part.made
        for batch in range(len(self.sizes)):
            read = {name: self._get(which, batch, name) for name in part.inputs}
            for name, tensor in part.run(read, names).items():
                self.cache.put(batch, which + name, tensor)

    def draw(self, batch_size: int, generator: torch.Generator, *, by_rows: bool) -> tuple[int, Tensor | None]:
        """A batch, drawn by its size, and some of its samples; all (None) where they cannot be told apart."""
        batch = int(torch.multinomial(torch.tensor(self.sizes).float(), 1, generator=generator))
        if not by_rows or self.sizes[batch] <= batch_size:
            return batch, None
        return batch, torch.randperm(self.sizes[batch], generator=generator)[:batch_size]

    def inputs(self, part: Stretch, batch: int, rows: Tensor | None = None) -> dict[str, Tensor]:
        """What a stretch of the learning network reads."""
        return {name: _some(self._get(_LEARNING, batch, name), rows) for name in part.inputs}

    def float_inputs(self, part: Stretch, batch: int, rows: Tensor | None = None) -> dict[str, Tensor]:
        """What the same stretch of the float network reads, for the tensors that it has too."""
        names = (name for name in part.inputs if (batch, _FLOAT + name) in self.cache.values)
        return {name: self._of_float(name, self.cache.get(batch, _FLOAT + name), rows) for name in names}

    def error(self, outputs: Mapping[str, Tensor], batch: int, rows: Tensor | None = None) -> Tensor:
        """Mean square of the outputs' distance from the float network's, weighted by `weights`."""
        total = torch.zeros((), device=self.case.graph.device)
        for name, output in outputs.items():
            square = (output - self._of_float(name, self.cache.get(batch, _FLOAT + name), rows)).square()
            weight = self.weights.get((batch, name))
            total = total + (square if weight is None else square * self._of_float(name, weight, rows)).mean()
        return total

    @torch.no_grad()
    def mean_error(self, part: Stretch, outputs: tuple[str, ...]) -> float:
        """The error over all batches, of the learning network as it is."""
        errors = [float(self.error(part.run(self.inputs(part, b), outputs), b)) * n for b, n in enumerate(self.sizes)]
        return sum(errors) / sum(self.sizes)

    def parts_by_rows(self, part: Stretch, outputs: tuple[str, ...]) -> bool:
        """Whether the first dimension of all that the stretch reads and returns is the batch."""
        return all(sample_axis(part.graph.node(name)) == SampleAxis(0) for name in (*part.inputs, *outputs))

    def _get(self, which: str, batch: int, name: str) -> Tensor:
        leaves = self.leaves[batch]
        return leaves[name] if name in leaves else self.cache.get(batch, which + name)

    def _of_float(self, name: str, tensor: Tensor, rows: Tensor | None) -> Tensor:
        """The rows of a tensor of the float network, the part that the learning network has."""
        some, part = _some(tensor, rows), self.slices.get(name)
        return some if part is None else some.index_select(part.dim, part.indices)


def _some(tensor: Tensor, rows: Tensor | None) -> Tensor:
    return tensor if rows is None or not isinstance(tensor, Tensor) else tensor[rows]


def squared_gradients(case: Case, names: tuple[str, ...]) -> dict[tuple[int, str], Tensor]:
    """(batch, node) -> g^2, over its mean, with g the gradient of the network's information by the node's tensor.

    E[g^2] is the diagonal of the Fisher information, which weighs a small error's square in the KL divergence of the
    float network's output (Li et al. 2021, BRECQ, equation 10); one draw for each sample.
    """
    generator = torch.Generator().manual_seed(case.seed)
    squares = {}
    for number, (inputs, _) in enumerate(track(case.batches, "weigh errors")):
        tensors: dict[str, Tensor] = {}
        with torch.enable_grad():
            around = {name: seen(partial(_record, tensors, name)) for name in names}
            returned = Walker(case.graph.module, around).returned(case.graph.leaves(inputs))
            value = case.task.draw(case.task.outputs(returned), generator)
            gradients = torch.autograd.grad(value, [*tensors.values()], allow_unused=True, materialize_grads=True)
        squares |= {(number, name): slope.square() for name, slope in zip(tensors, gradients, strict=True)}
    for name in names:
        mean = torch.stack([square.mean() for (_, other), square in squares.items() if other == name]).mean()
        if mean > 0:
            squares |= {key: square / mean for key, square in squares.items() if key[1] == name}
    return squares


def _record(tensors: dict[str, Tensor], name: str, value: Tensor, _: tuple[Any, ...]) -> None:
    tensors[name] = value if value.requires_grad else value.requires_grad_()


class Learner(Protocol):
    """What is learned of one block of the learning network."""

    def tensors(self) -> dict[str, Tensor]:
        """Full name -> copy of each tensor that learning changes; empty if there is nothing to learn."""
        ...

    def put(self, tensors: Mapping[str, Tensor]) -> None:
        """Set the tensors, which then take no gradients."""
        ...

    def begin(self, error: float) -> list[dict[str, Any]]:
        """Make the tensors learnable; groups of parameters for Adam, by the root mean square error of the block."""
        ...

    def rate(self, progress: float, /) -> float:
        """The factor of all rates once that share of the steps is done."""
        ...

    def outputs(
        self, passes: Passes, batch: int, rows: Tensor | None, generator: torch.Generator, /
    ) -> Mapping[str, Tensor]:
        """What the block returns while it learns, for these samples of the batch."""
        ...

    def penalty(self, progress: float, /) -> Tensor | float:
        """What is added to the error, which is relative to that at the beginning."""
        ...

    def settle(self) -> None:
        """End learning."""
        ...


@dataclass(frozen=True)
class Schedule:
    """How each block is learned.

    Attributes:
        iterations: Steps of Adam.
        batch_size: Samples of a step, at most those of a calibration batch.
        cache_gib: GiB of activations held in memory.
        fisher: Whether errors are weighted by the Fisher information of the block's outputs.
    """

    iterations: int
    batch_size: int
    cache_gib: float
    fisher: bool = False


@dataclass(frozen=True)
class Parts:
    """Where finished blocks are stored: the beginning of their files' names, and a digest of what they depend on."""

    store: Store
    name: str
    question: str


def learn_blocks(
    case: Case,
    graph: Graph,
    blocks: tuple[Block, ...],
    learner_of: Callable[[Graph, Block, Stretch], Learner],
    schedule: Schedule,
    *,
    label: str,
    parts: Parts,
    slices: Mapping[str, TensorSlice] | None = None,
) -> Graph:
    """A copy of the graph that has learned to return what the float network does, one block after the other.

    For each block, min mean (z - z')^2, with z the float network's output of the block and z' that of the copy, which
    reads what the learned blocks before it return. A block stays as it was unless learning makes it better.

    The graph has the nodes of the float one, and quantizers. `slices` holds, by node, the part of a tensor that it has,
    where that is less than the float one's. `learner_of` takes the copy, a block, and its stretch of the copy.
    """
    learning = graph.copy()
    trainable = [parameter for parameter in learning.module.parameters() if parameter.requires_grad]
    for parameter in trainable:
        parameter.requires_grad_(False)
    both = stretches(case.graph, blocks), stretches(learning, blocks)
    later = [set.union(*needed) for needed in zip(*map(needed_later, both), strict=True)]
    bar, passes = track(range(len(blocks) * schedule.iterations), label), Passes(case, schedule.cache_gib, slices or {})
    with closing(bar), closing(passes.cache):
        for number, (block, in_float, part) in enumerate(zip(blocks, *both, strict=True)):
            passes.advance(_FLOAT, in_float, later[number] | set(block.outputs))
            if schedule.fisher:
                passes.weights = squared_gradients(case, block.outputs)
            learner, steps = learner_of(learning, block, part), _steps(bar, schedule.iterations)
            finished = parts.store.get(f"{parts.name}-{number}", parts.question)
            if finished is not None:
                learner.put(finished.tensors)
            else:
                generator = torch.Generator().manual_seed(case.seed + number)
                _learn(learner, block, part, passes, schedule, steps=steps, generator=generator)
                parts.store.put(f"{parts.name}-{number}", parts.question, learner.tensors())
            for _ in steps:  # none is left where the block has learned
                pass
            passes.advance(_LEARNING, part, later[number])  # so later blocks read what the block has learned
            passes.cache.keep_only({which + name for which in (_FLOAT, _LEARNING) for name in later[number]})
    for parameter in trainable:
        parameter.requires_grad_(True)
    return learning


def _steps(bar: Iterator[int], iterations: int) -> Iterator[float]:
    """Before each iteration, the share of them that is done."""
    for step in range(iterations):
        next(bar)
        yield step / iterations


@torch.enable_grad()
def _learn(
    learner: Learner,
    block: Block,
    part: Stretch,
    passes: Passes,
    schedule: Schedule,
    *,
    steps: Iterator[float],
    generator: torch.Generator,
) -> None:
    """Learn one block, unless it is better as it is."""
    error, before = passes.mean_error(part, block.outputs), learner.tensors()
    if not before or error == 0:
        return
    optimizer = torch.optim.Adam(learner.begin(error**0.5))
    largest = [group["lr"] for group in optimizer.param_groups]
    by_rows = passes.parts_by_rows(part, block.outputs)
    for progress in steps:
        for group, rate in zip(optimizer.param_groups, largest, strict=True):
            group["lr"] = rate * learner.rate(progress)
        batch, rows = passes.draw(schedule.batch_size, generator, by_rows=by_rows)
        outputs = learner.outputs(passes, batch, rows, generator)
        loss = passes.error(outputs, batch, rows) / error + learner.penalty(progress)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    learner.settle()
    if not passes.mean_error(part, block.outputs) <= error:  # NaN is no improvement
        learner.put(before)
