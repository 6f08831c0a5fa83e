"""What torch.export traced, in the operators that `run_decompositions({})` leaves, without tracing it once more.

That would take longer than torch.export itself, and most operators stay as they are in it: all but those that write
into what they read, and composites whose result may be a view.
"""

import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, fx
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.export import ExportedProgram
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.node import map_arg

from mixbit.graph.forms import reshape_views
from mixbit.graph.graph import argument, is_parameter, packet, sizes_of, tensor_of

_aten = torch.ops.aten
_COMPOSITE = torch._C.DispatchKey.CompositeImplicitAutograd
_NORM, _NORM_OF_INFERENCE = _aten.batch_norm.default, _aten._native_batch_norm_legit_no_training.default
#: Functions of Python on numbers, as on sizes, and on what returns several tensors.
_OF_PYTHON = ("_operator", "math", "builtins")


def functional_module(program: ExportedProgram) -> fx.GraphModule:
    """The program as a module of functional operators, which holds the parameters of the model themselves."""
    module = program.module(check_guards=False)
    graph = functional_graph(module.graph)
    if graph is None:
        reshape_views(program.graph)
        return program.run_decompositions({}).module(check_guards=False)
    module.graph = graph
    return module


@torch.no_grad()
def functional_graph(graph: fx.Graph) -> fx.Graph | None:
    """A copy in functional operators, with the names that tracing gives; None where only tracing can tell.

    Composites are traced together, on what the nodes have in their `meta`. An operator that writes becomes its like
    that does not, where nothing else shares the memory. A batch norm becomes that of inference.
    """
    norms = {node for node in graph.find_nodes(op="call_function", target=_NORM) if _is_inference(node)}
    composites = {node for node in graph.nodes if _is_composite(node.target)} - norms
    composites |= {user for node in composites for user in node.users if user.target is operator.getitem}
    written = _written(graph)
    if not all(_stays(node) for node in graph.nodes if node not in composites | norms | written.keys()):
        return None
    copy = _Copy(graph, [node for node in graph.nodes if node in composites])
    for node in graph.nodes:
        if node in composites:
            copy.take(node)
        elif node in norms:
            copy.add_norm(node)
        elif node in written:
            into, like = written[node]
            made = copy.add(node, like)
            same = {other for other, (base, _) in written.items() if base is into} & copy.held.keys()
            copy.held |= dict.fromkeys((into, *same), made)
        else:
            copy.add(node)
    return copy.graph


@torch.no_grad()
def decomposed(graph: fx.Graph, decompositions: Mapping[Any, Callable[..., Any]]) -> fx.Graph:
    """A copy with what they are made of in the place of the table's operators and of composites that return views."""
    nodes = [node for node in graph.nodes if node.op == "call_function"]
    composites = {node for node in nodes if node.target in decompositions or _is_composite(node.target)}
    composites |= {user for node in composites for user in node.users if user.target is operator.getitem}
    with keeping_symbols(graph):
        copy = _Copy(graph, [node for node in graph.nodes if node in composites], decompositions)
        for node in graph.nodes:
            if node in composites:
                copy.take(node)
            else:
                copy.add(node)
    return copy.graph


@contextmanager
def keeping_symbols(graph: fx.Graph) -> Iterator[None]:
    """Let no comparison of sizes in the block decide what their symbols stand for.

    A graph shares them with all its copies: `aten.pad`, for one, asks for its input's sizes as numbers, and they would
    be those of the example from then on.
    """
    environment = fake_mode(graph).shape_env
    with nullcontext() if environment is None else environment.suppress_guards():
        yield


def fake_mode(graph: fx.Graph) -> FakeTensorMode:
    """In which the graph was traced: makes tensors without numbers, with its symbols for sizes."""
    values = (node.meta.get("val") for node in graph.nodes)
    return next(value.fake_mode for value in values if isinstance(value, FakeTensor))


def value_of(node: fx.Node) -> Any:
    """What the node has in its `meta`; where it is missing, computed from what the node reads."""
    if "val" not in node.meta:
        module: Any = node.graph.owning_module
        with fake_mode(node.graph) as mode:
            if is_parameter(node):
                node.meta["val"] = mode.from_tensor(tensor_of(module, node).detach(), static_shapes=True)
            else:
                target: Any = node.target
                args, kwargs = map_arg(node.args, value_of), map_arg(node.kwargs, value_of)
                node.meta["val"] = target(*args, **kwargs)
    return node.meta["val"]


class _Copy:
    """A graph, filled node by node with those of another one.

    Attributes:
        graph: What was copied so far.
        held: Node of the other graph, or of the trace of its composites -> what stands for it, a node or several.
    """

    def __init__(
        self,
        graph: fx.Graph,
        composites: Sequence[fx.Node],
        decompositions: Mapping[Any, Callable[..., Any]] | None = None,
    ) -> None:
        self.graph = fx.Graph()
        self.graph.set_codegen(graph._codegen)
        self.held: dict[fx.Node, Any] = {}
        #: Expression of sizes -> the node that holds it; and where the sizes of inputs are read, by their symbols.
        self._sizes: dict[Any, fx.Node] = {}
        self._places = {
            size.node.expr: (node, axis)
            for node in reversed(graph.find_nodes(op="placeholder"))
            for axis, size in enumerate(sizes_of(node))
            if isinstance(size, torch.SymInt)
        }
        #: Composite -> what it returns, in nodes of the trace; what the trace reads -> the node of the other graph.
        self._results, self._read = _traced(graph, composites, decompositions) if composites else ({}, {})

    def add(self, node: fx.Node, target: Any = None) -> fx.Node:
        """Copy the node, or call the target on what it reads; a size that was held or is an input's is not new."""
        value = node.meta.get("val")
        args: Any = node.args
        kwargs: Any = node.kwargs
        size = value.node.expr if isinstance(value, torch.SymInt) else None
        if size in self._places:
            target, args = _aten.sym_size.int, self._places[size]
        made = self._sizes.get(size)
        if made is None:
            args, kwargs = map_arg(args, self._held), map_arg(kwargs, self._held)
            name = getattr(packet(node), "__name__", None) if node.op == "call_function" else node.name
            made = self.graph.create_node(node.op, target or node.target, args, kwargs, name, node.type)
            made.meta = dict(node.meta)
        if size is not None:
            self._sizes[size] = made
        self.held[node] = made
        return made

    def add_norm(self, node: fx.Node) -> None:
        """Copy a batch norm as that of inference, which returns what it used in training too."""
        held, value = map_arg(node.args, self._held), node.meta["val"]
        norm = self.graph.call_function(_NORM_OF_INFERENCE, (*held[:5], *held[6:8]))
        norm.meta = dict(node.meta, val=(value, value.new_empty(0), value.new_empty(0)))
        output = self.held[node] = self.graph.call_function(operator.getitem, (norm, 0))
        output.meta = dict(node.meta)

    def take(self, composite: fx.Node) -> None:
        """Copy what a composite was traced to."""
        self.held[composite] = map_arg(self._results[composite], self._taken)

    def _taken(self, node: fx.Node) -> Any:
        node = self._read.get(node, node)
        if node not in self.held:
            for before in node.all_input_nodes:
                self._taken(before)
            self.add(node)
        return self.held[node]

    def _held(self, node: fx.Node) -> Any:
        return self.held[self._read.get(node, node)]


def _traced(
    graph: fx.Graph, composites: Sequence[fx.Node], decompositions: Mapping[Any, Callable[..., Any]] | None
) -> tuple[dict[fx.Node, Any], dict[fx.Node, fx.Node]]:
    """Composite -> what it returns, in nodes of a new graph; input of that graph -> the node that it stands for.

    Inputs of the graph come first, so that sizes are read from them.
    """
    inputs = [node for node in graph.find_nodes(op="placeholder") if isinstance(node.meta["val"], Tensor)]
    before = [node for composite in composites for node in composite.all_input_nodes]
    own = set(composites)
    read = list(dict.fromkeys(node for node in (*inputs, *before) if node not in own))

    def run(*values: Any) -> list[Any]:
        known = dict(zip(read, values, strict=True))
        for node in composites:
            target: Any = node.target
            args, kwargs = map_arg((node.args, node.kwargs), known.__getitem__)
            known[node] = target(*args, **kwargs)
        return [known[node] for node in composites]

    with fake_mode(graph):
        traced = make_fx(run, decompositions)(*map(value_of, read)).graph
    results: Any = traced.output_node().args[0]
    names = traced.find_nodes(op="placeholder")
    return dict(zip(composites, results, strict=True)), dict(zip(names, read, strict=True))


def _written(graph: fx.Graph) -> dict[fx.Node, tuple[fx.Node, OpOverload]]:
    """Operator that writes into its first argument alone -> the node that made that tensor, and its like that does not.

    Nothing else shares the memory by then: no input, parameter or view.
    """
    written: dict[fx.Node, tuple[fx.Node, OpOverload]] = {}
    shared: set[fx.Node] = set()
    for node in graph.nodes:
        read = [written[before][0] if before in written else before for before in node.all_input_nodes]
        like = _like(node)
        if like is not None and read[0] not in shared:
            written[node] = read[0], like
        elif node.op != "call_function" or _may_return_views(node.target):
            shared |= {node, *read}
    return written


def _like(node: fx.Node) -> OpOverload | None:
    """The operator that returns what this one writes into its first argument alone; None for other nodes."""
    target = node.target
    if not isinstance(target, OpOverload) or not target._schema.is_mutable:
        return None
    name, writes = target._schema.name, [each.is_write for each in target._schema.arguments]
    like = getattr(getattr(_aten, name.removeprefix("aten::")[:-1], None), target._overloadname, None)
    is_plain = name.endswith("_") and writes[0] and not any(writes[1:]) and not _has_parts(target)
    if not is_plain or not isinstance(like, OpOverload) or like._schema.is_mutable or _may_return_views(like):
        return None
    args, kwargs = map_arg((node.args, node.kwargs), lambda read: read.meta["val"])
    value, wanted = like(*args, **kwargs), node.meta["val"]
    return like if (value.dtype, value.shape) == (wanted.dtype, wanted.shape) else None


def _is_inference(norm: fx.Node) -> bool:
    """Whether a batch norm takes its running statistics as they are."""
    return argument(norm, 5) is False and argument(norm, 3) is not None and not norm.kwargs


def _is_composite(target: Any) -> bool:
    """Whether torch makes it of others, and may return what it reads; it writes nowhere."""
    if not isinstance(target, OpOverload) or target._schema.is_mutable:
        return False
    return _has_parts(target) and _may_return_views(target)


def _has_parts(target: OpOverload) -> bool:
    """Whether torch makes it of others."""
    return target.has_kernel_for_dispatch_key(_COMPOSITE)


def _may_return_views(target: Any) -> bool:
    if not isinstance(target, OpOverload):
        return True
    tagged = torch.Tag.maybe_aliasing_or_mutating in target.tags
    return tagged or any(each.alias_info is not None for each in target._schema.arguments)


def _stays(node: fx.Node) -> bool:
    """Whether a new trace would show the operator as it is."""
    if node.op != "call_function":
        return node.op in ("placeholder", "get_attr", "output")
    target = node.target
    if not isinstance(target, OpOverload):
        return target.__module__ in _OF_PYTHON
    return not (target._schema.is_mutable or torch.Tag.maybe_aliasing_or_mutating in target.tags)
