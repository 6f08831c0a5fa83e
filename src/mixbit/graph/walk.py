"""Running a graph: whole, backward, or operator after operator, and watching what its nodes read and return."""

import logging
import os
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from functools import partial, reduce
from tempfile import NamedTemporaryFile, gettempdir
from typing import Any, TypeVar

import torch
from torch import Tensor, fx

from mixbit.core import Inputs, InvalidInput, track
from mixbit.graph.graph import (
    FEW_ELEMENTS,
    Graph,
    Layer,
    Operation,
    SampleAxis,
    group_samples,
    packet,
    sample_axis,
    sizes_of,
)
from mixbit.graph.layers import ARITHMETIC
from mixbit.graph.stored import Waiting
from mixbit.graph.windows import convolution_gradients

#: Called instead of a node, as around(run, args): run(*args) is what the node does, args what it reads.
Around = Callable[[Callable[..., Any], tuple[Any, ...]], Any]
Key = TypeVar("Key")
_log = logging.getLogger("mixbit")
#: Bytes of tensors between two levels of operators that stay in memory; the rest lies in files.
MOST_BYTES = 2**30


class Walker(fx.Interpreter):
    """Runs a graph or some of its nodes, and calls what `around` holds for a node's name instead of the node.

    Parameters of a frozen graph take no gradients. With `hold`, `env` holds every tensor after a run.
    """

    def __init__(
        self,
        module: fx.GraphModule,
        around: Mapping[str, Around] | None = None,
        *,
        frozen: bool = False,
        hold: bool = False,
    ) -> None:
        super().__init__(module, garbage_collect_values=not hold)
        self.around, self.frozen = around or {}, frozen

    def returned(self, leaves: Sequence[Any], known: dict[fx.Node, Any] | None = None) -> Any:
        """What the model returns, for the graph's inputs in the order of its placeholders, or the known values."""
        value = self.run(*leaves, initial_env=known, enable_io_processing=False)
        graph: Any = self.graph
        return graph.process_outputs(value)

    def run_node(self, n: fx.Node) -> Any:
        """What the node returns, or what `around` holds for it."""
        around = self.around.get(n.name)
        return super().run_node(n) if around is None else around(*self.call_of(n))

    def call_of(self, node: fx.Node) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        """What the node does, as a function of what it reads, and what it reads in `env`."""
        args, kwargs = self.fetch_args_kwargs_from_env(node)
        run = getattr(self, node.op)
        return lambda *values: run(node.target, values, kwargs), args

    def get_attr(self, target: Any, args: Any, kwargs: Any) -> Any:
        """A parameter or buffer."""
        value = super().get_attr(target, args, kwargs)
        return value.detach() if self.frozen else value


def seen(see: Callable[[Any, tuple[Any, ...]], None]) -> Around:
    """Call see(value, args) once the node has run, with what it returns and what it reads."""

    def around(run: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        value = run(*args)
        see(value, args)
        return value

    return around


#: (layer, operation, what it reads, gradient by its output) and (tensor's name, its value, gradient by it).
AtOperation = Callable[[Layer, Operation, Tensor, Tensor], None]
AtInput = Callable[[str, Tensor, Tensor], None]


def run_backward(graph: Graph, inputs: Inputs, around: Mapping[str, Around], loss: Callable[[Any], Tensor]) -> None:
    """Run the graph, take the loss of what it returns, run backward to its tensors but not to its parameters."""
    leaves = [
        leaf.detach().requires_grad_(leaf.is_floating_point()) if isinstance(leaf, Tensor) else leaf
        for leaf in graph.leaves(inputs)
    ]
    with torch.enable_grad():
        value = loss(Walker(graph.module, around, frozen=True).returned(leaves))
        if value.requires_grad:  # it depends on something that is watched
            value.backward()


def spread_to(node: fx.Node) -> int | None:
    """Dimensions of the tensors of samples beside which arithmetic reads what all samples share; None for other nodes.

    Arithmetic alone reads it, and repeats it along the first of these dimensions: so do copies for each sample.
    """
    if sample_axis(node) is not None or not all(packet(user) in ARITHMETIC for user in node.users):
        return None
    sizes, (number, *others) = sizes_of(node), {len(sizes_of(user)) for user in node.users} or {0}
    apart = all(sample_axis(user) == SampleAxis(0) for user in node.users)
    repeated = len(sizes) < number or (len(sizes) == number and sizes[0] == 1)
    return number if apart and repeated and not others else None


class Backward:
    """Runs the float graph forward and backward, and passes on the gradients at operations and at inputs of layers.

    Of what the loss depends on, `at_operation` gets every operation, and `at_input` every tensor that layers read and
    every other one among the `tensors`, once. What an operation reads, and the gradient by its output, have the samples
    of the batch even where all share the output, if sums, differences, products and quotients with tensors of samples
    alone read it, without a view in between: see `by_sample`.
    """

    def __init__(
        self,
        graph: Graph,
        layers: Sequence[Layer],
        at_operation: AtOperation | None = None,
        at_input: AtInput | None = None,
        tensors: Collection[str] = (),
    ) -> None:
        self.graph = graph
        pairs = [(layer, operation) for layer in layers for operation in layer.operations]
        self.operations = {operation.node: (layer, operation) for layer, operation in pairs} if at_operation else {}
        self.inputs = {*tensors, *(name for layer in layers for name in layer.inputs)} if at_input else set()
        self.at_operation, self.at_input = at_operation, at_input
        #: Operation whose output all samples share -> dimensions of the tensors to which arithmetic adds it.
        self.spread = {name: num for name in {*self.operations} - self.inputs if (num := spread_to(graph.node(name)))}
        self.around: dict[str, Around] = {
            name: partial(self._spread_and_watch, name) if name in self.spread else seen(partial(self._watch, name))
            for name in {*self.operations, *self.inputs}
        }
        self.count, self.waiting = 0, Waiting(None)

    def by_sample(self, name: str, x: Tensor) -> Tensor:
        """[N, rows, ...] what an operation reads, or the gradient by its output; [1, rows, ...] if not known."""
        axis = SampleAxis(0) if name in self.spread else sample_axis(self.graph.node(name))
        return group_samples(axis, x, self.count)

    def run_batch(self, inputs: Inputs, labels: Tensor | None, loss: Callable[[Any, Tensor | None], Tensor]) -> None:
        """Run forward, take the loss of what the model returns and the labels, run backward."""
        self.count, self.waiting = inputs.batch_size, Waiting(self.graph.room)
        with self.waiting.forward():
            run_backward(self.graph, inputs, self.around, lambda returned: loss(returned, labels))

    def _spread_and_watch(self, name: str, run: Callable[..., Any], args: tuple[Any, ...]) -> Tensor:
        """A copy of the output for each sample, for arithmetic that would make it anyhow: each has its own gradient."""
        value, place = run(*args), self.operations[name][1].data
        new = (None,) * (self.spread[name] - value.ndim)
        copies, x = (
            whole.expand(self.count, *whole.shape[1:]) for whole in (value[new or ...], args[place][new or ...])
        )
        self._watch(name, copies, (*args[:place], x, *args[place + 1 :]))
        return copies

    def _watch(self, name: str, value: Tensor, args: tuple[Any, ...]) -> None:
        value.requires_grad_()
        if name in self.operations:
            layer, operation = self.operations[name]
            x = self.waiting.hold(args[operation.data])
            value.register_hook(torch.no_grad()(lambda gradient: self.at_operation(layer, operation, x(), gradient)))  # type: ignore[misc] watched only where it is given
        if name in self.inputs:
            held = self.waiting.hold(value)
            value.register_hook(torch.no_grad()(lambda gradient: self.at_input(name, held(), gradient)))  # type: ignore[misc] as above


#: (layer, its samples' gradients [N, *weight], a few samples at a time; one for the batch where none can be told apart)
AtWeight = Callable[[Layer, Iterator[Tensor]], None]
#: (operator, weight) -> [channels] what is taken off its output, linear in the weight; None where nothing is.
Means = Callable[[Operation, Tensor], Tensor | None]


class SampleGradients(Backward):
    """As `Backward`, but waits for every operator of a weight, and then gives the weight's gradients of all samples.

    A weight that several operators use takes the sum of their gradients. Where the samples of some operator cannot be
    told apart, the batch's gradient stands for them. `at_weight` is called once a layer and batch. With `means`, which
    bias correction takes off, gradients are those of the corrected network.
    """

    def __init__(
        self,
        graph: Graph,
        layers: Sequence[Layer],
        at_weight: AtWeight | None,
        at_input: AtInput | None = None,
        tensors: Collection[str] = (),
        means: Means | None = None,
    ) -> None:
        super().__init__(graph, layers, self._add_use if at_weight else None, at_input, tensors)
        self.at_weight, self.means = at_weight, means
        #: What a layer's operators read, and the gradients by their outputs, until all of them have called.
        self.uses: dict[Layer, list[tuple[Operation, Tensor, Tensor]]] = {}

    def run_batch(self, inputs: Inputs, labels: Tensor | None, loss: Callable[[Any, Tensor | None], Tensor]) -> None:
        """As `Backward.run_batch`."""
        super().run_batch(inputs, labels, loss)
        for layer in list(self.uses):  # the loss does not depend on all of its operators
            self._hand_over(layer)

    def _add_use(self, layer: Layer, operation: Operation, x: Tensor, gradient: Tensor) -> None:
        self.uses.setdefault(layer, []).append((operation, x, gradient))
        if len(self.uses[layer]) == len(layer.operations):
            self._hand_over(layer)

    @torch.no_grad()
    def _hand_over(self, layer: Layer) -> None:
        if self.at_weight is not None:
            self.at_weight(layer, self._gradients(layer, self.uses.pop(layer)))

    def _gradients(self, layer: Layer, uses: list[tuple[Operation, Tensor, Tensor]]) -> Iterator[Tensor]:
        weight = self.graph.parameter(layer.name).detach()
        grouped = [
            (operation, self.by_sample(operation.node, x), self.by_sample(operation.node, gradient))
            for operation, x, gradient in uses
        ]
        if any(len(gradient) != self.count for _, _, gradient in grouped):
            grouped = [(operation, x.unsqueeze(0), gradient.unsqueeze(0)) for operation, x, gradient in uses]
        size = max(1, FEW_ELEMENTS // weight.numel())
        for start in range(0, len(grouped[0][2]), size):
            some = slice(start, start + size)
            parts = (self._sample_gradients(each, weight, x[some], gradient[some]) for each, x, gradient in grouped)
            yield reduce(torch.add, parts)

    def _sample_gradients(self, operation: Operation, weight: Tensor, x: Tensor, gradient: Tensor) -> Tensor:
        """[N, *weight] of each sample's gradient, for x and the gradient by the output, both [N, rows, ...]."""

        def dot(weight: Tensor, x: Tensor, gradient: Tensor) -> Tensor:
            return (self.graph.run(operation, x, weight) * gradient).sum()

        if operation.channels_last:
            slopes = torch.func.vmap(torch.func.grad(dot), (None, 0, 0))(weight, x, gradient)
        else:
            slopes = torch.cat([*convolution_gradients(self.graph.node(operation.node), weight, x, gradient)])
        slope = None if self.means is None else self._mean_slope(operation, weight)
        return slopes if slope is None else slopes.sub_(slope * _of_entries(operation, gradient, weight))

    def _mean_slope(self, operation: Operation, weight: Tensor) -> Tensor | None:
        """[*weight] by how much each number moves the mean of its channel; every number adds to one channel alone."""
        with torch.enable_grad():
            weight = weight.detach().requires_grad_()
            mean = None if self.means is None else self.means(operation, weight)
            return None if mean is None else torch.autograd.grad(mean.sum(), weight)[0]


def _of_entries(operation: Operation, gradient: Tensor, weight: Tensor) -> Tensor:
    """[N, *weight], or ones in places, for [N, rows, ...]: the sum over the channel that each number adds to."""
    sums = gradient.movedim(-1 if operation.channels_last else 2, 1).flatten(2).sum(2)
    if operation.axis == 1 and operation.groups > 1:  # transposed: a number's group is that of the channel it reads
        sums = sums.unflatten(1, (operation.groups, -1)).repeat_interleave(len(weight) // operation.groups, 1)
        return sums.reshape(*sums.shape, *[1] * (weight.ndim - 2))
    return sums.reshape(len(sums), *(-1 if axis == operation.axis else 1 for axis in range(weight.ndim)))


def in_order(
    graph: Graph,
    operators: Collection[str],
    groups: Mapping[Key, Sequence[str]],
    batches: Iterable[Inputs],
    see: Callable[[int, fx.Node, Callable[..., Any], tuple[Any, ...]], None],
    label: str,
) -> Iterator[list[Key]]:
    """Keys of groups of operators, in the order of the network, once `see` got all that they read.

    A group comes after all operators before its first one. By then `see` was called for each of its operators and each
    batch, on what they read in the network as it is. Parameters that the caller changes meanwhile count for all that
    runs later. All groups cost one run of the network, which runs ahead for a group at several depths, and `see`.

    Args:
        graph: Its parameters may change between two turns.
        operators: Names of the nodes that wait for those before them.
        groups: Names of operators, and those that are looked at.
        batches: Inputs of the network. Tensors still to be read are held: MOST_BYTES in memory, the rest in files.
        see: Gets the number of the batch, the node, and its call: run(*args) is what it does.
        label: Of the progress bar.
    """
    run, turns = _Levels(graph, operators, batches), defaultdict[int, list[Key]](list)
    with closing(run.cache):
        for key, names in groups.items():
            turns[min(run.levels[node] for node in map(graph.node, names) if node in run.levels)].append(key)
        levels = range(1, max(turns, default=0) + 1)
        steps = [(level, batch) for level in levels for batch in range(run.num_batches)]
        for level, batch in track(steps, label):
            values = run.advance(batch, level - 1)
            nodes = dict.fromkeys(graph.node(name) for key in turns[level] for name in groups[key])
            for now in range(level, 1 + max((run.levels.get(node, 0) for node in nodes), default=level)):
                if now > level:
                    values = run.from_values(now - 1, values)
                for node in nodes:
                    if run.levels.get(node) == now:
                        see(batch, node, *run.call_of(node, values))
            if batch == run.num_batches - 1 and turns[level]:
                yield turns[level]
                run.constants.clear()  # some parameters have changed


def depths(graph: fx.Graph, operators: Collection[str]) -> dict[fx.Node, int]:
    """Node -> how many of the operators there are before it, itself included; for all that depend on the inputs."""
    depth: dict[fx.Node, int] = {}
    for node in graph.nodes:
        before = [depth[other] for other in node.all_input_nodes if other in depth]
        if node.op == "placeholder" or (before and node.op != "output"):
            depth[node] = max(before, default=0) + (node.name in operators)
    return depth


class _Levels:
    """Every batch, run up to a level.

    A node's level is the number of operators before it, itself included, on the longest way from the inputs. Operators
    of one level do not depend on one another, and what they read exists once the levels below have run.
    """

    def __init__(self, graph: Graph, operators: Collection[str], batches: Iterable[Inputs]) -> None:
        self.graph, self.levels = graph, depths(graph.module.graph, operators)
        self.walker = Walker(graph.module)
        #: Nodes that depend on no input: weights, and what is made of them; and the level of the last that read them.
        self.constants: dict[fx.Node, Any] = {}
        self.read_at: dict[fx.Node, int] = {}
        self.cache = ActivationCache(MOST_BYTES, graph.device)
        self.num_batches = 0
        placeholders = graph.module.graph.find_nodes(op="placeholder")
        for number, inputs in enumerate(batches):
            for node, leaf in zip(placeholders, graph.leaves(inputs, f"batch {number}"), strict=True):
                self.cache.put(number, node.name, leaf)
            self.num_batches += 1

    def advance(self, batch: int, level: int) -> dict[fx.Node, Any]:
        """Run that level of the batch, the ones below having run; returns the tensors that higher levels read."""
        held = {self.graph.node(name): value for name, value in self.cache.take(batch).items()}
        values = self.from_values(level, held)
        for node, value in values.items():
            self.cache.put(batch, node.name, value)
        return values

    def from_values(self, level: int, values: Mapping[fx.Node, Any]) -> dict[fx.Node, Any]:
        """Like `advance`, from the given tensors and without the cache."""
        if self.graph.room is not None:  # weights in files are in memory for two levels at a time
            near = (level, level + 1)
            self.constants = {node: each for node, each in self.constants.items() if self.read_at[node] in near}
        reached = dict(values)
        for node, its_level in self.levels.items():
            if its_level == level and node.op != "placeholder":
                self.walker.env = reached | self._constants_of(node)
                reached[node] = self.walker.run_node(node)
        return {
            node: value
            for node, value in reached.items()
            if node in self.levels and any(self.levels.get(user, 0) > level for user in node.users)
        }

    def call_of(self, node: fx.Node, values: Mapping[fx.Node, Any]) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        """What the node does, and what it reads among the values."""
        self.walker.env = dict(values) | self._constants_of(node)
        return self.walker.call_of(node)

    def _constants_of(self, node: fx.Node) -> dict[fx.Node, Any]:
        """The constants that the node reads."""
        read = [before for before in node.all_input_nodes if before not in self.levels]
        for constant in read:
            if constant not in self.constants:
                self.walker.env = self._constants_of(constant)
                self.constants[constant] = self.walker.run_node(constant)
            self.read_at[constant] = self.levels.get(node, 0)
        return {constant: self.constants[constant] for constant in read}


class ActivationCache:
    """(batch, name) -> tensor without its gradients' history, or another value that a node returns.

    Beyond the limit, or where memory ends, tensors go to temporary files, which is logged once.
    """

    def __init__(self, limit_bytes: float, device: torch.device) -> None:
        self.limit_bytes, self.device = limit_bytes, device
        self.in_memory = 0
        self.values: dict[tuple[int, str], Any] = {}
        self.in_files: set[tuple[int, str]] = set()
        self.is_told = False

    def put(self, batch: int, name: str, value: Any) -> None:
        """Hold a copy of a value."""
        if isinstance(value, Tensor):
            value = value.detach()
            if self.in_memory + value.nbytes > self.limit_bytes:
                value = self._to_disk(batch, name, value, f"more than {self.limit_bytes / 2**30:g} GiB")
            else:
                try:
                    value = value.clone()
                    self.in_memory += value.nbytes
                except (MemoryError, RuntimeError) as error:  # torch raises RuntimeError where an allocator fails
                    value = self._to_disk(batch, name, value, str(error).splitlines()[0])
        self.values[batch, name] = value

    def get(self, batch: int, name: str) -> Any:
        """What was put."""
        value = self.values[batch, name]
        return value.to(self.device) if (batch, name) in self.in_files else value

    def take(self, batch: int) -> dict[str, Any]:
        """Name -> value of all that was put for a batch, which is dropped here."""
        taken = {name: self.get(number, name) for number, name in self.values if number == batch}
        for name in taken:
            self._drop(batch, name)
        return taken

    def keep_only(self, names: Collection[str]) -> None:
        """Drop the values of other names."""
        for batch, name in list(self.values):
            if name not in names:
                self._drop(batch, name)

    def close(self) -> None:
        """Drop everything."""
        self.keep_only(())

    def _drop(self, batch: int, name: str) -> None:
        value = self.values.pop((batch, name))
        if (batch, name) in self.in_files:
            self.in_files.remove((batch, name))
        elif isinstance(value, Tensor):
            self.in_memory -= value.nbytes

    def _to_disk(self, batch: int, name: str, tensor: Tensor, why: str) -> Tensor:
        size = max(1, tensor.numel())
        try:
            with NamedTemporaryFile(prefix="mixbit-") as file:  # whose name goes at once: no kill leaves it behind
                # a write to a page without room would end the process
                os.posix_fallocate(file.fileno(), 0, size * tensor.element_size())
                mapped = torch.from_file(file.name, shared=True, size=size, dtype=tensor.dtype)
        except (OSError, RuntimeError) as error:
            raise InvalidInput(
                f"activations cannot be kept ({str(error).splitlines()[0]}); set TMPDIR to a place with room, or give "
                "fewer batches"
            ) from error
        if not self.is_told:
            _log.warning("activations are kept in files in %s: %s", gettempdir(), why)
            self.is_told = True
        self.in_files.add((batch, name))
        return mapped[: tensor.numel()].reshape(tensor.shape).copy_(tensor)
