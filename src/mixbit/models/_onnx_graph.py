"""From an ONNX file to a module: a graph of calls of torch, operator by operator, with the parameters of the file."""

import inspect
import operator
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_arg

from mixbit.core import UnsupportedModel, quoted
from mixbit.models._onnx_batch import Batch, lifted, size
from mixbit.models._onnx_file import OnnxFile, needed
from mixbit.models._onnx_layers import GRU, LSTM, RNN, Linear
from mixbit.models._onnx_names import free_name, identifier, parameter_name, scope_of
from mixbit.models._onnx_numbers import MOST_NUMBERS, is_number, one, tensor as as_tensor
from mixbit.models._onnx_operators import ARITHMETIC, NUMBERS, OPERATORS, RECURRENT
from mixbit.models._onnx_patterns import join_functions

#: Most rounds of a Loop.
MOST_ROUNDS = 128


@dataclass(frozen=True)
class Stored:
    """A tensor of the file, or made of those, as a value.

    Attributes:
        name: In the file.
        is_weight: Whether it is one that training changes.
        transposed: Whether its two dimensions change places when it is read.
    """

    name: str
    is_weight: bool
    transposed: bool = False


@dataclass(frozen=True)
class _Held:
    """A tensor that the module holds: its name in the file, the operator that reads it first, and where."""

    tensor: Tensor
    name: str
    reader: Any
    place: int
    is_weight: bool


def module_of(file: OnnxFile, examples: Sequence[Mapping[str, Tensor]]) -> fx.GraphModule:
    """The file as a module, whose forward takes its inputs in order and returns a dict of its outputs.

    Args:
        file: Of operators that can be followed.
        examples: Inputs by name; a second one, with more samples, is there for a file of one batch size.

    Raises:
        UnsupportedModel: an operator fails on its inputs, or cannot be followed in this form.
    """
    builder = _Builder(file, examples)
    with torch.no_grad():
        return builder.module()


@dataclass
class _Builder:
    """What is known while the file is gone through.

    Attributes:
        values: Name -> a node, numbers, a stored tensor, or a tuple of these.
        known: Node -> what it makes of each example.
        constant: Nodes that depend on no input.
        readers: Name -> the operators that read it, and where.
    """

    file: OnnxFile
    examples: Sequence[Mapping[str, Tensor]]
    graph: fx.Graph = field(default_factory=fx.Graph)
    values: dict[str, Any] = field(default_factory=dict)
    known: dict[fx.Node, list[Any]] = field(default_factory=dict)
    constant: set[fx.Node] = field(default_factory=set)
    tensors: dict[str, Tensor] = field(default_factory=dict)
    held: dict[str, _Held] = field(default_factory=dict)
    layers: Counter[str] = field(default_factory=Counter)
    readers: dict[str, list[tuple[Any, int]]] = field(default_factory=lambda: defaultdict(list))
    first: Any = None

    def module(self) -> fx.GraphModule:
        """The whole of it."""
        graph, names = self.file.proto.graph, set[str]()
        for port in self.file.inputs:
            node = self.graph.placeholder(identifier(port.name, names))
            names.add(str(node.target))
            self.values[port.name], self.known[node] = node, [example[port.name] for example in self.examples]
            self.first = self.first or node
        self._note_readers(graph)
        self._statistics = {n.input[i] for n in graph.node if n.op_type == "BatchNormalization" for i in (3, 4)}
        self._run(graph)
        self.graph.output({value.name: self._node(value.name) for value in graph.output})
        self.graph.eliminate_dead_code()
        join_functions(self.graph)
        return fx.GraphModule(self._name_tensors(), self.graph)

    def _note_readers(self, graph: Any) -> None:
        for node in graph.node:
            for place, name in enumerate(node.input):
                self.readers[name].append((node, place))
            for attribute in node.attribute:
                if attribute.HasField("g"):
                    self._note_readers(attribute.g)
        for value in graph.output:
            self.readers[value.name].append((None, 0))

    def _run(self, graph: Any) -> list[Any]:
        """Go through the operators; the values that the graph returns."""
        to_array = needed("onnx.numpy_helper").to_array
        for each in graph.initializer:
            self.values[each.name] = self._constant(each.name, _tensor(to_array(each)), stored=True)
        ends = _last_reads(graph)
        for number, node in enumerate(graph.node):
            where = f"MODEL {self.file.path}: node {quoted(node.name or node.output[0])} ({node.op_type})"
            try:
                self._operator(node)
            except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
                raise UnsupportedModel(f"{where} cannot be followed: {_reason(error)}{self._way_out()}") from error
            for name in ends[number]:
                self._forget(name)
        return [self.values[value.name] for value in graph.output]

    def _way_out(self) -> str:
        if len(self.examples) == 1:
            return ""
        return "; the file is for one batch size, which here cannot be any other: export it with a batch of any size"

    def _forget(self, name: str) -> None:
        """Drop what a node makes of the examples once nothing reads it."""
        value = self.values.get(name)
        if isinstance(value, fx.Node) and value.op == "call_function":
            self._names_of[value] -= 1
            if self._names_of[value] <= 0:
                self.known.pop(value, None)

    def __post_init__(self) -> None:
        self._names_of: Counter[fx.Node] = Counter()
        self._statistics: set[str] = set()
        self._fused: set[str] = set()

    # values

    def _constant(self, name: str, tensor: Tensor, *, stored: bool = False) -> Any:
        """Few integers, and what operators take as numbers, as numbers; others as a stored tensor."""
        readers = self.readers[name]
        few = tensor.numel() <= MOST_NUMBERS and not tensor.is_floating_point()
        as_number = bool(readers) and all(
            node is not None and place in NUMBERS.get(node.op_type, ()) for node, place in readers
        )
        single = tensor.numel() == 1 and all(node is not None and node.op_type in ARITHMETIC for node, _ in readers)
        if few or as_number or tensor.ndim == 0 or single:
            return tensor.tolist()
        is_weight = stored and tensor.is_floating_point() and bool(tensor.isfinite().all())
        self.tensors[name] = tensor
        return Stored(name, is_weight and name not in self._statistics)

    def _read(self, name: str, node: Any, place: int) -> Any:
        """The value as an argument: numbers where the operator takes numbers, else a node."""
        value = self.values[name] if name else None
        if isinstance(value, Stored) and place in NUMBERS.get(node.op_type, ()):
            return self.tensors[value.name].tolist()
        return self._stored(value, node, place) if isinstance(value, Stored) else value

    def _node(self, name: str) -> Any:
        value = self.values[name]
        if is_number(value):
            tensor = torch.tensor(value)
            self.tensors[name] = tensor
            value = Stored(name, False)
        if isinstance(value, Stored):
            return self._stored(value, None, 0)
        return value if isinstance(self.known[value][0], Tensor) else self._call(as_tensor, [value, self.first], {})

    def _stored(self, value: Stored, reader: Any, place: int) -> fx.Node:
        """The node that reads the tensor."""
        tensor = self.tensors[value.name]
        node = self._held(value.name, _Held(tensor, value.name, reader, place, value.is_weight))
        return self._call(torch.t, [node], {}) if value.transposed else node

    def _held(self, key: str, held: "_Held") -> fx.Node:
        """A node that reads the tensor; it gets its name once it is known which tensors are read."""
        self.held.setdefault(key, held)
        node = self.graph.get_attr(key)
        self.known[node] = [held.tensor] * len(self.examples)
        self.constant.add(node)
        return node

    def _name_tensors(self) -> nn.Module:
        """A module of the tensors that are read, and their names in the place of keys."""
        root, targets, inside = nn.Module(), dict[str, str](), set[str]()
        for node in self.graph.nodes:
            if node.op == "get_attr" and node.target not in targets:
                held = self.held[node.target]
                name = free_name(parameter_name(held.name, held.reader, held.place), set(targets.values()), inside)
                targets[node.target] = name
                owner, _, attribute = name.rpartition(".")
                holder = root
                for part in filter(None, owner.split(".")):
                    if part not in dict(holder.named_children()):
                        holder.add_module(part, nn.Module())
                    holder = holder.get_submodule(part)
                parts = name.split(".")
                inside.update(".".join(parts[:end]) for end in range(1, len(parts)))
                if held.is_weight:
                    holder.register_parameter(attribute, nn.Parameter(held.tensor))
                else:
                    holder.register_buffer(attribute, held.tensor)
        for node in self.graph.nodes:
            if node.op == "get_attr":
                node.target = targets[node.target]
        return root

    def _call(self, function: Callable[..., Any], args: Sequence[Any], options: Mapping[str, Any]) -> fx.Node:
        """A node that calls the function, and what it makes of the examples."""
        node = self.graph.call_function(function, tuple(args), dict(options))
        made = []
        for number in range(len(self.examples)):
            given: Any = map_arg((tuple(args), dict(options)), lambda each, at=number: self.known[each][at])
            made.append(function(*given[0], **given[1]))
        self.known[node] = made
        if all(each in self.constant for each in node.all_input_nodes):
            self.constant.add(node)
        return node

    # operators

    def _operator(self, node: Any) -> None:
        attributes = {each.name: _attribute(each) for each in node.attribute}
        name = node.op_type
        if name == "Constant":
            made = self._constant(node.output[0], _constant_tensor(attributes), stored=True)
            self.values[node.output[0]] = made
        elif name in RECURRENT:
            self._name_outputs(node, self._recurrent(node, attributes))
        elif name == "If":
            self._branch(node, attributes)
        elif name == "Loop":
            self._loop(node, attributes["body"])
        elif not (self._is_alias(node, attributes) or self._product(node, attributes)):
            self._plain(node, attributes)

    def _is_alias(self, node: Any, attributes: dict[str, Any]) -> bool:
        """Whether it only gives a stored tensor another name, or turns a stored matrix."""
        value = self.values.get(node.input[0]) if node.input else None
        if node.op_type == "Identity":
            made = value
        elif isinstance(value, Stored) and value.is_weight and node.op_type == "Transpose":
            if self.tensors[value.name].ndim != 2 or attributes.get("perm", [1, 0]) != [1, 0]:
                return False
            made = Stored(value.name, value.is_weight, not value.transposed)
        elif isinstance(value, Stored) and node.op_type == "Cast" and self.tensors[value.name].dtype is torch.float32:
            if attributes["to"] != 1:
                return False
            made = value
        else:
            return False
        self.values[node.output[0]] = made
        if isinstance(made, fx.Node):
            self._names_of[made] += 1
        return True

    def _product(self, node: Any, attributes: dict[str, Any]) -> bool:
        """A product by a stored matrix, as a linear operator with the bias behind it."""
        if node.output[0] in self._fused:  # the addition of a bias
            self._fused.remove(node.output[0])
            return True
        if node.op_type not in ("MatMul", "Gemm"):
            return False
        x, weight = self.values[node.input[0]], self.values[node.input[1]]
        matrix = isinstance(weight, Stored) and weight.is_weight and self.tensors[weight.name].ndim == 2
        if not matrix or not isinstance(x, fx.Node | Stored) or attributes.get("transA"):
            return False
        if not isinstance(x, fx.Node) or any(attributes.get(name, 1.0) != 1 for name in ("alpha", "beta")):
            return False
        rows_first = weight.transposed != bool(attributes.get("transB"))
        matrix_node = self._matrix(weight, node, rows_first=rows_first)
        outputs = self.known[matrix_node][0].shape[0]
        bias, last = self._bias(node, outputs)
        if node.op_type == "Gemm" and len(node.input) > 2 and node.input[2] and bias is None:
            made = self._call(Linear, [x, matrix_node], {})
            made = self._call(OPERATORS["Add"], [made, self._read(node.input[2], node, 2)], {})
        else:
            made = self._call(Linear, [x, matrix_node, bias], {})
        self.values[node.output[0]] = self.values[last] = made
        self._names_of[made] += 1
        if last != node.output[0]:
            self._names_of[made] += 1
            self._fused.add(last)
        return True

    def _matrix(self, weight: Stored, node: Any, *, rows_first: bool) -> fx.Node:
        """[outputs, inputs] of the matrix: as it is stored, or turned where nothing reads it otherwise."""
        if rows_first:
            return self._stored(Stored(weight.name, weight.is_weight), node, 1)
        readers = self.readers[weight.name]
        products = ("MatMul", "Gemm")
        if all(each is not None and each.op_type in products and place == 1 for each, place in readers) and not any(
            attribute.name == "transB" and attribute.i for each, _ in readers for attribute in each.attribute
        ):
            turned = self.tensors[weight.name].t().contiguous()
            return self._held(f"{weight.name} turned", _Held(turned, weight.name, node, 1, True))
        return self._call(torch.t, [self._stored(Stored(weight.name, weight.is_weight), node, 1)], {})

    def _bias(self, node: Any, outputs: int) -> tuple[fx.Node | None, str]:
        """The bias of the product, where it is a vector, and the name of the value behind it."""
        if node.op_type == "Gemm":
            name, reader, last = (node.input[2] if len(node.input) > 2 else ""), node, node.output[0]
        else:
            readers = self.readers[node.output[0]]
            if len(readers) != 1 or readers[0][0] is None or readers[0][0].op_type != "Add":
                return None, node.output[0]
            reader, place = readers[0]
            name, last = reader.input[1 - place], reader.output[0]
        value = self.values.get(name)
        if not isinstance(value, Stored) or not value.is_weight or self.tensors[value.name].shape != (outputs,):
            return None, node.output[0]
        return self._stored(value, node if reader is node else reader, 2), last

    def _plain(self, node: Any, attributes: dict[str, Any]) -> None:
        """An operator of the table; of constants alone, which are no weights, it is computed."""
        function = OPERATORS[node.op_type]
        known = [self.values[name] if name else None for name in node.input]
        options = self._options(function, node, attributes)
        if all(value is None or is_number(value) or _is_plain(value) for value in known):
            args = [self.tensors[value.name] if isinstance(value, Stored) else value for value in known]
            like = {"like": torch.zeros(())} if "like" in options else {}
            made = function(*args, **(options | like))
            parts = made if options.get("outputs", 1) > 1 else [made]
            for name, part in zip(node.output, parts, strict=False):
                self.values[name] = part if is_number(part) or isinstance(part, tuple) else self._constant(name, part)
            return
        args = [self._read(name, node, place) for place, name in enumerate(node.input)]
        if node.op_type == "Slice" and "starts" in options:
            args += [options.pop("starts"), options.pop("ends"), *filter(None, [options.pop("axes", None)])]
        self._name_outputs(node, self._called(node.op_type, function, args, options))

    def _called(self, name: str, function: Callable[..., Any], args: list[Any], options: dict[str, Any]) -> fx.Node:
        """A node of the operator; in a file of one batch size, with the size that there is in the place of that."""
        if len(self.examples) > 1:
            declared, larger = (
                [map_arg(arg, lambda each, at=at: self.known[each][at]) for arg in args]
                for at in (0, 1)  # type: ignore[misc]
            )
            at_first: Any = map_arg(options, lambda each: self.known[each][0])
            made = function(*declared, **at_first)
            args = lifted(name, args, declared, larger, made, self._batch())
        return self._call(function, args, options)

    def _batch(self) -> Batch:
        sized = next(node for node in self.known if node.op == "placeholder" and self.known[node][0].ndim)
        count = self.known[sized][0].shape[0]
        return Batch(count, lambda function, *args: self._call(function, args, {}), self._call(size, [sized, 0], {}))

    def _options(self, function: Callable[..., Any], node: Any, attributes: dict[str, Any]) -> dict[str, Any]:
        """The attributes that the function takes, and what else it asks for."""
        parameters = inspect.signature(function).parameters
        options = {name: value for name, value in attributes.items() if name in parameters}
        if node.op_type == "ConstantOfShape" and "value" in options:
            options["value"] = options["value"].item()
        extra = {"opset": self.file.opset, "outputs": len(node.output), "like": self.first}
        return options | {name: value for name, value in extra.items() if name in parameters}

    def _name_outputs(self, node: Any, made: fx.Node) -> None:
        if node.op_type not in RECURRENT and "outputs" not in made.kwargs:
            values: list[Any] = [made, *[None] * (len(node.output) - 1)]
        elif len(node.output) == 1:
            values = [made]
        else:
            values = [
                self._call(operator.getitem, [made, place], {}) if name else None
                for place, name in enumerate(node.output)
            ]
            self.known.pop(made)
        for name, value in zip(node.output, values, strict=True):
            if name and value is not None:
                value.meta |= {"output": name, "node": node.name or name}
                self.values[name] = value
                self._names_of[value] += 1

    # structure

    def _branch(self, node: Any, attributes: dict[str, Any]) -> None:
        """The branch that the condition, which is no data, takes."""
        condition = self.values[node.input[0]]
        if isinstance(condition, Stored):
            condition = self.tensors[condition.name].tolist()
        taken = self.known[condition] if isinstance(condition, fx.Node) else [condition]
        if any(isinstance(each, Tensor) for each in taken):
            raise ValueError("values of the data decide which way it goes; export one of both ways")
        if len({bool(one(each)) for each in taken}) != 1:
            raise ValueError("which way it goes depends on the number of samples; export one of both ways")
        made = self._run(attributes["then_branch" if one(taken[0]) else "else_branch"])
        self._keep(node, made)

    def _loop(self, node: Any, body: Any) -> None:
        """The rounds one after the other."""
        rounds, condition = (self.values[name] if name else None for name in (*node.input[:2], "")[:2])
        carried = [self.values[name] for name in node.input[2:]]
        if rounds is None or not is_number(rounds) or not (condition is None or is_number(condition)):
            raise ValueError("how often it runs depends on a size or on data; export it for a fixed number of rounds")
        if one(rounds) > MOST_ROUNDS:
            raise ValueError(f"{one(rounds)} rounds would be that many copies of what is inside; at most {MOST_ROUNDS}")
        scanned: list[list[Any]] = []
        for number in range(one(rounds) if condition is None or one(condition) else 0):
            names = [value.name for value in body.input]
            self.values.update(zip(names, [number, True, *carried], strict=True))
            goes_on, *made = self._run(body)
            if not is_number(goes_on) or not one(goes_on):
                raise ValueError(
                    "whether it goes on depends on data, or it stops early; export a fixed number of rounds"
                )
            carried = made[: len(carried)]
            scanned.append([self._argument(value) for value in made[len(carried) :]])
        stacked = [self._call(_stacked, parts, {}) for parts in zip(*scanned, strict=True)]
        self._keep(node, [*carried, *stacked])

    def _argument(self, value: Any) -> Any:
        return self._stored(value, None, 0) if isinstance(value, Stored) else value

    def _keep(self, node: Any, made: Sequence[Any]) -> None:
        for name, value in zip(node.output, made, strict=True):
            self.values[name] = value
            if isinstance(value, fx.Node):
                self._names_of[value] += 1

    def _recurrent(self, node: Any, attributes: dict[str, Any]) -> fx.Node:
        """An LSTM, GRU or RNN as torch's own, with torch's order of gates and names of weights."""
        kind, names = node.op_type, [*node.input, *[""] * 8]
        x = self._read(names[0], node, 0)
        if names[4]:
            self._check_lengths(self._read(names[4], node, 4), x, attributes)
        parts = [self._fixed(name) for name in names[1:4]]
        weights = self._gates(node, *parts)
        states = [self._read(name, node, 5) if name else None for name in names[5 : 7 if kind == "LSTM" else 6]]
        options = {
            "both_ways": attributes.get("direction") == "bidirectional",
            "with_biases": parts[2] is not None,
            "layout": attributes.get("layout", 0),
        }
        if kind == "RNN":
            options["kind"] = attributes.get("activations", ["Tanh"])[0].lower()
        made = self._call({"LSTM": LSTM, "GRU": GRU, "RNN": RNN}[kind], [x, *states, *weights], options)
        return made if len(node.output) > 1 else self._call(operator.getitem, [made, 0], {})

    def _check_lengths(self, lengths: Any, x: fx.Node, attributes: dict[str, Any]) -> None:
        steps = self.known[x][0].shape[1 if attributes.get("layout") else 0]
        if not is_number(lengths) or set(lengths) != {steps}:
            raise ValueError("sequences of lengths of their own are not followed; pad them to one length")

    def _fixed(self, name: str) -> Tensor | None:
        """The constant of that name."""
        value = self.values[name] if name else None
        if value is None or isinstance(value, Stored):
            return None if value is None else self.tensors[value.name]
        if isinstance(value, fx.Node) and value in self.constant:
            return self.known[value][0]
        raise ValueError(f"the weights {quoted(name)} depend on the data; store them in the file")

    def _gates(self, node: Any, of_input: Any, of_state: Any, biases: Any) -> list[fx.Node]:
        """Torch's weights: of input and state, and two biases, for each direction."""
        order = {"LSTM": [0, 2, 3, 1], "GRU": [1, 0, 2], "RNN": [0]}[node.op_type]  # iofc -> ifgo, zrh -> rzn
        scope = scope_of(node) or identifier(node.name or node.output[0], ())
        layer = self.layers[scope]
        self.layers[scope] += 1
        nodes = []
        for back in range(len(of_input)):
            parts = {"weight_ih": of_input[back], "weight_hh": of_state[back]}
            if biases is not None:
                parts |= dict(zip(("bias_ih", "bias_hh"), biases[back].chunk(2), strict=True))
            for what, part in parts.items():
                gates = part.chunk(len(order))
                turned = torch.cat([gates[place] for place in order])
                name = f"{scope}.{what}_l{layer}{'_reverse' if back else ''}"
                nodes.append(self._held(f"{node.output[0]} {name}", _Held(turned, name, None, 0, True)))
        return nodes


def _stacked(*parts: Any) -> Tensor:
    return torch.stack([torch.as_tensor(part) for part in parts])


def _is_plain(value: Any) -> bool:
    """Whether it is a stored tensor that training leaves as it is."""
    return isinstance(value, Stored) and not value.is_weight


def _tensor(array: Any) -> Tensor:
    return torch.from_numpy(array.copy())


def _constant_tensor(attributes: dict[str, Any]) -> Tensor:
    for name, value in attributes.items():
        if name == "value":
            return value
        if name.startswith(("value_float", "value_int")):
            return torch.tensor(value, dtype=torch.float32 if "float" in name else torch.int64)
    raise ValueError(f"a constant of {', '.join(attributes) or 'nothing'} is not followed; store a tensor of numbers")


def _attribute(attribute: Any) -> Any:
    """The value of the attribute, texts decoded, tensors as torch's."""
    onnx = needed("onnx")
    value = onnx.helper.get_attribute_value(attribute)
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, onnx.TensorProto):
        return _tensor(onnx.numpy_helper.to_array(value))
    if isinstance(value, onnx.GraphProto | int | float):
        return value
    return [each.decode() if isinstance(each, bytes) else each for each in value]


def _last_reads(graph: Any) -> dict[int, list[str]]:
    """Number of an operator -> the names that it is the last to read, with what is inside of it."""
    last, own = dict[str, int](), {name for node in graph.node for name in node.output}

    def note(inner: Any, number: int | None) -> None:
        for place, node in enumerate(inner.node):
            at = place if number is None else number
            last.update(dict.fromkeys((*node.input, *node.output), at))
            for attribute in node.attribute:
                if attribute.HasField("g"):
                    note(attribute.g, at)
        last.update(dict.fromkeys((value.name for value in inner.output), len(graph.node)))

    note(graph, None)
    ends: dict[int, list[str]] = defaultdict(list)
    for name in own & last.keys():
        ends[last[name]].append(name)
    return ends


def _reason(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__) or type(error).__name__
