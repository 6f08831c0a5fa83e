"""Blocks, as residual blocks are, and learning one after the other what the float network returns."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx
from torch.nn import functional

from mixbit.core import Store, track
from mixbit.graph import (
    NONLINEARITIES,
    ActivationCache,
    Case,
    Graph,
    SampleAxis,
    Waiting,
    Walker,
    activations,
    after,
    fitted,
    is_float,
    packet,
    sample_axis,
    seen,
)


@dataclass(frozen=True)
class Block:
    """Consecutive nodes of a graph.

    Attributes:
        nodes: Their names, in execution order.
        outputs: Names of its nodes whose tensors depend on its layers and are read by later nodes.
        layers: Names of the layers whose weight is first read in it.
    """

    nodes: tuple[str, ...]
    outputs: tuple[str, ...]
    layers: tuple[str, ...]


def find_blocks(graph: Graph) -> tuple[Block, ...]:
    """The shortest stretches with a layer that end in a single tensor, through which all that follows goes.

    Tensors that depend on no layer, such as masks, may pass by. An elementwise function (ReLU, GELU) right behind a
    block belongs to it. Where no single tensor ends the last block, it has several outputs.
    """
    nodes, data = _calls(graph), activations(graph)
    places = {node: place for place, node in enumerate(nodes)}
    later = after(graph, {graph.node(name) for name in graph.operations})
    ends, reach = set(), 0  # reach: the last place that reads a tensor made before
    for place, node in enumerate(nodes):
        if node in later and (node in data or not is_float(node)):
            last = max((places.get(user, len(nodes)) for user in node.users), default=0)
            if is_float(node) and reach <= place < last:
                ends.add(node)
            reach = max(reach, last)
    return _cut(graph, ends)


def single_layers(graph: Graph) -> tuple[Block, ...]:
    """A stretch for each operator of a layer, up to it or to a function of each number right behind it."""
    return _cut(graph, {graph.node(name) for name in graph.operations} & activations(graph))


def _cut(graph: Graph, ends: set[fx.Node]) -> tuple[Block, ...]:
    """The nodes cut behind these, so that each part holds a layer."""
    first = {graph.node(layer.operations[0].node): layer.name for layer in graph.layers}
    parts: list[list[fx.Node]] = [[]]
    for node in _calls(graph):
        if not parts[-1] and len(parts) > 1 and packet(node) in NONLINEARITIES:
            before = parts[-2][-1]
            if node.all_input_nodes == [before] and len(before.users) == 1:
                parts[-2].append(node)
                continue
        parts[-1].append(node)
        if node in ends and not first.keys().isdisjoint(parts[-1]):
            parts.append([])
    if first.keys().isdisjoint(parts[-1]) and len(parts) > 1:
        parts.pop()  # what follows the last layer, to the outputs
    data, blocks = activations(graph), []
    for part in parts:
        later = data & after(graph, set(part) & first.keys())
        outputs = tuple(node.name for node in part if node in later and not node.users.keys() <= set(part))
        layers = tuple(first[node] for node in part if node in first)
        blocks.append(Block(tuple(node.name for node in part), outputs, layers))
    return tuple(blocks)


def _calls(graph: Graph) -> list[fx.Node]:
    return [node for node in graph.module.graph.nodes if node.op not in ("placeholder", "get_attr", "output")]


class Stretch:
    """One block of a float or simulated graph.

    Attributes:
        inputs: Names of nodes outside that it reads and whose tensors depend on the data.
        nodes: The nodes to run, including parameters, constants and sizes.
        made: Names of the nodes whose tensors it makes.
    """

    def __init__(self, graph: Graph, own: frozenset[fx.Node], carried: frozenset[fx.Node]) -> None:
        self.graph = graph
        inputs: set[fx.Node] = set()
        needed: set[fx.Node] = set()
        waiting = list(own)
        while waiting:
            node = waiting.pop()
            if node in carried and node not in own:
                inputs.add(node)
            elif node not in needed:
                needed.add(node)
                waiting += node.all_input_nodes
        self.nodes = [node for node in graph.module.graph.nodes if node in needed]
        self.own, self.carried = own, carried
        self.made = frozenset(node.name for node in own)
        self.walker = Walker(graph.module)
        self.inputs = tuple(node.name for node in graph.module.graph.nodes if node in inputs)

    def run(
        self,
        tensors: Mapping[str, Tensor],
        outputs: Iterable[str],
        replaced: Mapping[str, Callable[[Tensor], Tensor]] | None = None,
    ) -> dict[str, Tensor]:
        """Name -> tensor for the outputs: nodes or inputs; `replaced` holds what to call by the path of a module."""
        calls = {
            node.name: lambda _, args, call=replaced[str(node.target)]: call(*args)
            for node in self.nodes
            if replaced and node.op == "call_module" and str(node.target) in replaced
        }
        self.walker.around = calls
        env = self.walker.env = {self.graph.node(name): tensors[name] for name in self.inputs}
        for node in self.nodes:
            env[node] = self.walker.run_node(node)
        self.walker.env = {}
        return {name: env[self.graph.node(name)] for name in outputs}

    def divided(self, varies: Callable[[fx.Node], bool], outputs: Iterable[str]) -> tuple["Stretch", "Stretch"]:
        """What depends on no node that varies, and the rest with the outputs, which reads it; all where none varies."""
        changed = self.own & after(self.graph, {node for node in self.nodes if varies(node)}) or self.own
        rest = changed | (self.own & set(map(self.graph.node, outputs)))
        return Stretch(self.graph, self.own - changed, self.carried), Stretch(self.graph, rest, self.carried)


def stretches(graph: Graph, blocks: tuple[Block, ...]) -> list[Stretch]:
    """The blocks as stretches of the graph they were found in, or of its simulation.

    Quantizers of activations run in the block that first reads what they return.
    """
    places = {name: number for number, block in enumerate(blocks) for name in block.nodes}
    own: list[set[fx.Node]] = [set() for _ in blocks]
    for node in reversed(graph.module.graph.nodes):
        if node.op == "call_module":
            places[node.name] = min((places[user.name] for user in node.users if user.name in places), default=-1)
        if places.get(node.name, -1) >= 0:
            own[places[node.name]].add(node)
    carried = after(graph, graph.module.graph.find_nodes(op="placeholder"))
    return [Stretch(graph, frozenset(nodes & carried), carried) for nodes in own]


def needed_later(parts: list[Stretch]) -> list[set[str]]:
    """For each stretch, the tensors that those after it read."""
    return [set().union(*(part.inputs for part in parts[number:])) for number in range(1, len(parts) + 1)]


#: Put before a node's name in the cache: the network of its tensor.
FLOAT, LEARNING = "float: ", "learning: "


#: Node -> the part of its float tensor that the learning network also has: (dimension, indices of it).
Slices = Mapping[str, tuple[int, Tensor]]


class Passes:
    """What both networks hold between two blocks, of every batch.

    Attributes:
        sizes: Samples of each batch.
        weights: (batch, node) -> weights of the errors of its tensor; 1 where there are none.
    """

    def __init__(self, case: Case, cache_gib: float, slices: Slices) -> None:
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
        return {name: _some(self._get(LEARNING, batch, name), rows) for name in part.inputs}

    def float_inputs(self, part: Stretch, batch: int, rows: Tensor | None = None) -> dict[str, Tensor]:
        """What the same stretch of the float network reads, for the tensors that it has too."""
        names = (name for name in part.inputs if (batch, FLOAT + name) in self.cache.values)
        return {name: self._of_float(name, self.cache.get(batch, FLOAT + name), rows) for name in names}

    def error(self, outputs: Mapping[str, Tensor], batch: int, rows: Tensor | None = None) -> Tensor:
        """Mean square of the outputs' distance from the float network's, weighted by `weights`."""
        total = torch.zeros((), device=self.case.graph.device)
        for name, output in outputs.items():
            wanted = self._of_float(name, self.cache.get(batch, FLOAT + name), rows)
            weight = self.weights.get((batch, name))
            if weight is None:
                total = total + functional.mse_loss(output, wanted)
            else:
                total = total + ((output - wanted).square() * self._of_float(name, weight, rows)).mean()
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
        """What a network holds; of what the learning network does not, as where blocks learn apart, the float one's."""
        leaves = self.leaves[batch]
        if name in leaves:
            return leaves[name]
        return self.cache.get(batch, which + name if (batch, which + name) in self.cache.values else FLOAT + name)

    def _of_float(self, name: str, tensor: Tensor, rows: Tensor | None) -> Tensor:
        """The rows of a tensor of the float network, the part that the learning network has."""
        some, part = _some(tensor, rows), self.slices.get(name)
        return some if part is None else some.index_select(*part)


def _some(tensor: Tensor, rows: Tensor | None) -> Tensor:
    return tensor if rows is None or not isinstance(tensor, Tensor) else tensor.index_select(0, rows.to(tensor.device))


def gradients(case: Case, names: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """For each batch, node -> gradient of the network's information by the node's tensor; one draw for each sample."""
    generator, task = torch.Generator().manual_seed(case.seed), fitted(case.task, case.graph, case.batches)
    for inputs, _ in track(case.batches, "weigh errors"):
        tensors: dict[str, Tensor] = {}
        with torch.enable_grad(), Waiting(case.graph.room).forward():
            around = {name: seen(partial(_record, tensors, name)) for name in names}
            returned = Walker(case.graph.module, around).returned(case.graph.leaves(inputs))
            value = task.information(returned, None, generator)
            found = torch.autograd.grad(value, [*tensors.values()], allow_unused=True, materialize_grads=True)
        yield dict(zip(tensors, found, strict=True))


def squared_gradients(case: Case, names: tuple[str, ...]) -> dict[tuple[int, str], Tensor]:
    """(batch, node) -> g^2, over its mean, with g the gradient of the network's information by the node's tensor.

    E[g^2] is the diagonal of the Fisher information, which weighs a small error's square in the KL divergence of the
    float network's output (Li et al. 2021, BRECQ, equation 10).
    """
    squares = {
        (number, name): slope.square()
        for number, slopes in enumerate(gradients(case, names))
        for name, slope in slopes.items()
    }
    for name in names:
        mean = torch.stack([square.mean() for (_, other), square in squares.items() if other == name]).mean()
        if mean > 0:
            squares |= {key: square / mean for key, square in squares.items() if key[1] == name}
    return squares


def _record(tensors: dict[str, Tensor], name: str, value: Tensor, _: tuple[Any, ...]) -> None:
    tensors[name] = value.requires_grad_()


class Learner:
    """What is learned of one block of the learning network.

    Attributes:
        names: Full names of the tensors that learning changes; empty if there is nothing to learn.
        part: The stretch of the block that depends on these; what it reads is computed once.
    """

    names: Sequence[str]

    def __init__(self, learning: Graph, block: Block, part: Stretch) -> None:
        self.learning, self.block, self.part = learning, block, part

    def tensors(self) -> dict[str, Tensor]:
        """Full name -> copy of each tensor that learning changes."""
        return {name: self.learning.parameter(name).detach().clone() for name in self.names}

    @torch.no_grad()
    def put(self, tensors: Mapping[str, Tensor]) -> None:
        """Set the tensors, which then take no gradients."""
        for name, tensor in tensors.items():
            self.learning.parameter(name).requires_grad_(False).copy_(tensor)

    def varies(self, node: fx.Node) -> bool:
        """Whether the node itself returns something else from step to step."""
        return any(name == node.target or name.startswith(f"{node.target}.") for name in self.names)

    def begin(self, error: float) -> list[dict[str, Any]]:
        """Make the tensors learnable; groups of parameters for Adam, by the root mean square error of the block."""
        raise NotImplementedError

    def rate(self, _: float, /) -> float:
        """The factor of all rates once that share of the steps is done."""
        return 1.0

    def outputs(self, passes: Passes, batch: int, rows: Tensor | None, _: torch.Generator, /) -> Mapping[str, Tensor]:
        """What the block returns while it learns, for these samples of the batch."""
        return self.part.run(passes.inputs(self.part, batch, rows), self.block.outputs)

    def penalty(self, _: float, /) -> Tensor | float:
        """What is added, at that share of the steps, to the error relative to that at the beginning."""
        return 0.0

    def settle(self) -> None:
        """End learning."""
        self.put(self.tensors())


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


def learn_blocks(
    case: Case,
    graph: Graph,
    blocks: tuple[Block, ...],
    learner_of: Callable[[Graph, Block, Stretch], Learner],
    schedule: Schedule,
    *,
    label: str,
    stored: tuple[Store, str, str],
    slices: Slices | None = None,
) -> Graph:
    """A copy of the graph that has learned to return what the float network does, one block after the other.

    For each block, min mean (z - z')^2, with z the float network's output of the block and z' that of the copy, which
    reads what the learned blocks before it return. A block stays as it was unless learning makes it better.

    The graph has the nodes of the float one, and quantizers. `learner_of` takes the copy, a block, and its stretch of
    the copy. `stored`: where finished blocks are stored, how their names begin, and a digest of what they depend on.
    """
    learning, (store, prefix, question) = graph.copy(), stored
    trainable = [parameter for parameter in learning.module.parameters() if parameter.requires_grad]
    for parameter in trainable:
        parameter.requires_grad_(False)
    both = stretches(case.graph, blocks), stretches(learning, blocks)
    later = [set.union(*needed) for needed in zip(*map(needed_later, both), strict=True)]
    bar, passes = track(range(len(blocks) * schedule.iterations), label), Passes(case, schedule.cache_gib, slices or {})
    with closing(bar), closing(passes.cache):
        for number, (block, in_float, part) in enumerate(zip(blocks, *both, strict=True)):
            passes.advance(FLOAT, in_float, later[number] | set(block.outputs))
            if schedule.fisher:
                passes.weights = squared_gradients(case, block.outputs)
            learner, steps = learner_of(learning, block, part), _steps(bar, schedule.iterations)
            fixed, learner.part = part.divided(learner.varies, block.outputs)
            passes.advance(LEARNING, fixed, later[number] | set(learner.part.inputs))
            finished = store.get(f"{prefix}-{number}", question)
            if finished is not None:
                learner.put(finished.tensors)
            else:
                generator = torch.Generator().manual_seed(case.seed + number)
                learn_block(learner, block, passes, schedule, steps=steps, generator=generator)
                store.put(f"{prefix}-{number}", question, learner.tensors())
            for _ in steps:  # none is left where the block has learned
                pass
            passes.advance(LEARNING, learner.part, later[number])  # so later blocks read what the block has learned
            passes.cache.keep_only({which + name for which in (FLOAT, LEARNING) for name in later[number]})
    for parameter in trainable:
        parameter.requires_grad_(True)
    return learning


def _steps(bar: Iterator[int], iterations: int) -> Iterator[float]:
    """Before each iteration, the share of them that is done."""
    for step in range(iterations):
        next(bar)
        yield step / iterations


@torch.enable_grad()
def learn_block(
    learner: Learner,
    block: Block,
    passes: Passes,
    schedule: Schedule,
    *,
    steps: Iterator[float],
    generator: torch.Generator,
) -> None:
    """Learn one block, unless it is better as it is."""
    part = learner.part
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
