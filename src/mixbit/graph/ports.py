"""The ports of a captured network."""

from typing import Any

from sympy import Symbol
from torch import SymInt, Tensor, fx
from torch.utils import _pytree as pytree

from mixbit.core import BATCH, ONLY, Port, Ports, named_leaves
from mixbit.graph.graph import Graph, sizes_of, tensor_of


def ports_of(graph: Graph) -> Ports:
    """The tensors that the graph takes and returns.

    An output that is alone is called `output`, those of a tuple `output_0`, `output_1`, entries of entries
    `hidden_states_2`. No two names are equal: an output of an input's name is called `x_output`.
    """
    nodes = graph.module.graph
    taken = [node for node in nodes.find_nodes(op="placeholder") if isinstance(node.meta["val"], Tensor)]
    returned = returned_nodes(graph)
    names = _apart([str(node.target) for node in taken], [_output_name(path) for path in returned])
    symbols = _names_of_sizes(taken, names)
    made = []
    for name, value in zip(names, (_value(graph, node) for node in (*taken, *returned.values())), strict=True):
        shape = tuple(_size(size, symbols) for size in value.shape)
        made.append(Port(name, str(value.dtype).removeprefix("torch."), shape))
    return Ports(tuple(made[: len(taken)]), tuple(made[len(taken) :]))


def returned_nodes(graph: Graph) -> dict[str, fx.Node]:
    """Name of each tensor that the graph returns, as in `mixbit.core.named_leaves` -> its node, in order."""
    (output,) = graph.module.graph.find_nodes(op="output")
    leaves = pytree.tree_leaves(output.args)
    structure = graph.module.graph._codegen.pytree_info.out_spec  # type: ignore[attr-defined] torch.export's
    named = named_leaves(pytree.tree_unflatten(range(len(leaves)), structure))
    return {
        name: leaf
        for name, place in named.items()
        if isinstance(leaf := leaves[place], fx.Node) and isinstance(_value(graph, leaf), Tensor)
    }


def _value(graph: Graph, node: fx.Node) -> Any:
    """What is known of the node's output; a quantizer returns what it reads."""
    if "val" in node.meta or node.op != "call_module":
        return node.meta["val"] if "val" in node.meta else tensor_of(graph.module, node)
    return _value(graph, node.all_input_nodes[0])


def _output_name(path: str) -> str:
    name = path.replace(".", "_")
    return name if name[:1].isalpha() else f"{ONLY}_{name}"


def _apart(inputs: list[str], outputs: list[str]) -> list[str]:
    """The names of all, made different."""
    names: list[str] = []
    for name, ending in [*((name, "_") for name in inputs), *((name, f"_{ONLY}") for name in outputs)]:
        free = name
        while free in names:
            free += ending
        names.append(free)
    return names


def _names_of_sizes(inputs: list[fx.Node], names: list[str]) -> dict[Any, Symbol]:
    """Symbol of a size that only a call knows -> what it is called: `batch`, else after the first input that has it."""
    symbols: dict[Any, Symbol] = {}
    for node, name in zip(inputs, names, strict=False):
        for axis, size in enumerate(sizes_of(node)):
            if isinstance(size, SymInt):
                for symbol in size.node.expr.free_symbols:
                    symbols.setdefault(symbol, Symbol(f"{name}_dim{axis}" if axis else BATCH))
    return symbols


def _size(size: Any, symbols: dict[Any, Symbol]) -> int | str:
    if isinstance(size, int):
        return size
    expression = size.node.expr.xreplace(symbols)
    return int(expression) if expression.is_Integer else str(expression)
