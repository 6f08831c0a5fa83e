"""Weights that are computed from parameters alone, made parameters: weight norm, parametrizations, merged branches."""

import re

import torch
from torch import Tensor, fx, nn

from mixbit.graph.graph import argument, is_parameter, packet, split_name, tensor_of
from mixbit.graph.layers import OPERATOR_KINDS, PRODUCTS, parameter_behind

#: A result of more numbers than this times those that it is computed from stays computed, as a filter that is repeated
#: for every channel does: a file that holds it would be larger.
MOST_GROWTH = 16
#: What torch calls a tensor behind `weight`, and the vectors beside it in the older weight norm and spectral norm.
_PARAMETRIZED = re.compile(r"(?P<owner>.*?)parametrizations\.(?P<name>\w+)\..*")
_OLDER = re.compile(r"(?P<name>.*)_(?P<part>v|orig)")
_BESIDE = {"v": "_g", "orig": "_u"}


@torch.no_grad()
def fold_weights(module: fx.GraphModule) -> None:
    """Make parameters, in place, of the weights and biases that operators of layers read and no input has a part in.

    What `parameter_behind` understands stays as it is. Equal results of the same tensors become one parameter. It is
    named after the largest of them: `pre.weight` for `pre.parametrizations.weight.original1` and, of older norms, for
    `pre.weight_v`; with a number where another tensor has that name. Tensors that nothing reads any more are removed.
    """
    graph, constant = module.graph, constants(module.graph)
    computed = [node for node in graph.nodes if node in constant and not constant.issuperset(_readers(node))]
    values = _values(module, computed)
    folded: dict[fx.Node, tuple[list[str], Tensor]] = {}
    for node in computed:
        value, sources = values[node], _sources(module, node)
        if (
            value.is_meta
            or not value.isfinite().all()
            or value.numel() > MOST_GROWTH * sum(map(Tensor.numel, sources.values()))
        ):
            continue
        known = [(new, other) for new, (names, other) in folded.items() if names == [*sources]]
        if len(sources) == 1:  # it may be a copy
            known += [(read, tensor_of(module, read)) for read in _before([node]) if is_parameter(read)]
        same = next((new for new, other in known if other.dtype == value.dtype and torch.equal(other, value)), None)
        if same is None:
            value = value.clone(memory_format=torch.contiguous_format)
            with graph.inserting_before(node):
                same = graph.get_attr(_store(module, "folded", value))  # until the names of its sources are free
            same.meta["val"] = node.meta["val"]
            folded[same] = [*sources], value
        for user in set(node.users) - constant:
            user.replace_input_with(node, same)
    graph.eliminate_dead_code()
    read = {str(node.target) for node in graph.find_nodes(op="get_attr")}
    for name in {name for names, _ in folded.values() for name in names} - read:
        holder, attribute = split_name(module, name)
        delattr(holder, attribute)
    for node, (names, value) in folded.items():
        delattr(module, str(node.target))
        node.target = _store(module, _wanted(names), value)
    graph.lint()
    module.recompile()


def _readers(node: fx.Node) -> set[fx.Node]:
    """The operators of layers that read the node, which is no parameter, as their weight or bias."""
    readers = set()
    for user in () if is_parameter(node) else node.users:
        kind = OPERATOR_KINDS.get(packet(user))
        if kind is not None:
            is_weight = argument(user, kind.weight) is node
            as_it_is = kind.name in PRODUCTS and parameter_behind(node)[0] is not None
            if argument(user, kind.bias) is node or (is_weight and not as_it_is):
                readers.add(user)
    return readers


def constants(graph: fx.Graph) -> frozenset[fx.Node]:
    """The nodes that depend on no input, not on its shape either, and on no random number."""
    constant: set[fx.Node] = set()
    for node in graph.nodes:
        drawn = torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())
        if is_parameter(node) or (
            node.op == "call_function" and not drawn and all(before in constant for before in node.all_input_nodes)
        ):
            constant.add(node)
    return frozenset(constant)


def _before(nodes: list[fx.Node]) -> set[fx.Node]:
    """The nodes and all that they depend on."""
    reached, left = set(nodes), list(nodes)
    while left:
        new = set(left.pop().all_input_nodes) - reached
        reached |= new
        left += new
    return reached


def _values(module: fx.GraphModule, computed: list[fx.Node]) -> dict[fx.Node, Tensor]:
    """What the nodes return."""
    wanted, runner = _before(computed), fx.Interpreter(module)
    for node in module.graph.nodes:
        if node in wanted:
            runner.env[node] = runner.run_node(node)
    return {node: runner.env[node].detach() for node in computed}


def _sources(module: fx.GraphModule, node: fx.Node) -> dict[str, Tensor]:
    """The parameters and buffers that the node is computed from, the largest first."""
    before = _before([node])
    read = [source for source in module.graph.find_nodes(op="get_attr") if source in before]
    tensors = {str(source.target): tensor_of(module, source) for source in read}
    return dict(sorted(tensors.items(), key=lambda item: -item[1].numel()))


def _wanted(names: list[str]) -> str:
    """What the result of those tensors is called, the largest of which stands first."""
    largest = names[0]
    if match := _PARAMETRIZED.fullmatch(largest):
        return match["owner"] + match["name"]
    match = _OLDER.fullmatch(largest)
    return match["name"] if match and match["name"] + _BESIDE[match["part"]] in names else largest


def _store(module: fx.GraphModule, wanted: str, value: Tensor) -> str:
    """Make the tensor a parameter of the module; returns its name, with a number where there is one of that name."""
    holder, attribute = split_name(module, wanted)
    name, number = attribute, 0
    while hasattr(holder, name):
        number += 1
        name = f"{attribute}_{number}"
    holder.register_parameter(name, nn.Parameter(value))
    return wanted.removesuffix(attribute) + name
