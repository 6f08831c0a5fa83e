"""capture(): from the user's module to a functional graph that keeps the names of its parameters."""

import dataclasses
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram
from torch.fx.graph import CodeGen
from torch.utils import _pytree as pytree

from mixbit.errors import InvalidInput, UnsupportedModel
from mixbit.exporting import copy_module, export_program
from mixbit.fold import fold_batch_norms
from mixbit.plan import Plan
from mixbit.task import Inputs

_DROPOUTS = ("aten.dropout.default", "aten.alpha_dropout.default", "aten.feature_dropout.default")
#: Largest difference that capture's own check allows, relative to the largest output.
TOLERANCE = 1e-4


@dataclass(frozen=True)
class Graph:
    """A functional graph with its own copy of the parameters, called like the model it came from.

    Attributes:
        module: The graph as a module: evaluates and trains.
        example: The inputs it was captured with, at least two samples.
        shapes: Node name -> shape of its tensor on the example.
        plan: The plan whose quantizers it holds; None for a graph in float.
    """

    module: fx.GraphModule
    example: Inputs
    shapes: Mapping[str, tuple[int, ...]]
    plan: Plan | None = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the graph; same signature and output structure as the user's model."""
        return self.module(*args, **kwargs)

    @property
    def batch_size(self) -> int:
        """Samples in the example."""
        return self.example.batch_size

    @property
    def device(self) -> torch.device:
        """Where the parameters are; the CPU for a graph without any."""
        return next((parameter.device for parameter in self.module.parameters()), torch.device("cpu"))

    def node(self, name: str) -> fx.Node:
        """The node of that name."""
        return self._nodes[name]

    @cached_property
    def _nodes(self) -> dict[str, fx.Node]:
        return {node.name: node for node in self.module.graph.nodes}

    def __getstate__(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}  # a copy has its own nodes

    def check(self, inputs: Inputs, place: str) -> None:
        """Raise InvalidInput, which begins with the place, where the inputs do not fit the example.

        Their names, number, shapes, types and values are looked at.
        """
        kwargs = self.example.kwargs
        if inputs.kwargs.keys() != kwargs.keys() or len(inputs.args) != len(self.example.args):
            wanted = self.example.describe()
            raise InvalidInput(f"{place}: inputs {inputs.describe()} do not fit the example's {wanted}")
        if inputs.batch_size == 0:
            raise InvalidInput(f"{place}: holds no sample; leave it out")
        given, wanted = self._ordered(inputs), self._ordered(self.example)
        if len(given) != len(wanted):
            raise InvalidInput(f"{place}: {len(given)} values, the example has {len(wanted)}")
        for number, (leaf, model) in enumerate(zip(given, wanted, strict=True)):
            _check_leaf(f"{place}: input {number}", leaf, model)

    def leaves(self, inputs: Inputs, place: str = "batch") -> list[Any]:
        """The inputs in the order of the graph's placeholders, on its device; raises as `check` does."""
        self.check(inputs, place)
        return [leaf.to(self.device) if isinstance(leaf, Tensor) else leaf for leaf in self._ordered(inputs)]

    def tensors(self, inputs: Inputs) -> list[Tensor]:
        """The tensors among the leaves, on the CPU: what an artefact takes."""
        return [leaf.cpu() for leaf in self.leaves(inputs) if isinstance(leaf, Tensor)]

    def _ordered(self, inputs: Inputs) -> list[Any]:
        return pytree.tree_leaves((inputs.args, {name: inputs.kwargs[name] for name in self.example.kwargs}))

    def export(self, lifted: Mapping[str, Tensor] | None = None) -> ExportedProgram:
        """The graph, quantizers included, as an exported program of flat inputs with a dynamic batch.

        Args:
            lifted: Name of a node -> its value, to be handed in as one more input, in that order, in place of it.
        """
        module = copy_module(self.module).eval()
        module.graph.set_codegen(CodeGen())
        for name in lifted or ():
            replaced = next(node for node in module.graph.nodes if node.name == name)
            with module.graph.inserting_after(module.graph.find_nodes(op="placeholder")[-1]):
                replaced.replace_all_uses_with(module.graph.placeholder(f"lifted_{name}"))
            module.graph.erase_node(replaced)
        module.graph.eliminate_dead_code()
        module.recompile()
        leaves = tuple(self._ordered(self.example))
        shapes = (*(_dynamic_batch(leaf) for leaf in leaves), *[None] * len(lifted or ()))
        return export_program(module, (*leaves, *(lifted or {}).values()), {}, shapes)


def capture(model: nn.Module, example: Any) -> Graph:
    """Export the model as a functional graph with a dynamic batch and batch norms folded.

    Args:
        model: The trained network; it is left as it is, its training flags included.
        example: One batch of inputs without labels: a tensor, a tuple, or a dict of keyword arguments.

    Raises:
        InvalidInput: the model is no module, holds NaN or inf, or fails on the example.
        UnsupportedModel: `torch.export` cannot follow the code; the message names the line and the way out.
    """
    check_module(model)
    _check_tensors(model)
    inputs = _at_least_two(Inputs.of(example)).to(_device_of(model))
    for number, leaf in enumerate(inputs.tensors):
        _check_finite(f"example: input {number}", leaf)
    with _evaluating(model):
        expected = _run_eagerly(model, inputs.map(torch.clone))
        program = export_program(model, inputs.args, dict(inputs.kwargs), _dynamic_shapes(inputs))
    module = copy_module(program.module(check_guards=False))
    for parameter in module.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    _remove_bookkeeping(module)
    fold_batch_norms(module)
    graph = Graph(module, inputs, _shapes(module, inputs))
    _check_same(graph, inputs, expected)
    return graph


def check_module(model: Any) -> None:
    """Raise InvalidInput unless it is a module that can be captured."""
    if not isinstance(model, nn.Module):
        raise InvalidInput(f"model: a {type(model).__name__}, not an nn.Module; give the module itself")
    if isinstance(model, nn.DataParallel | torch.jit.ScriptModule):
        raise InvalidInput(f"model: a {type(model).__name__}; give the module that it was made of")
    if torch.is_inference_mode_enabled():
        raise InvalidInput("model: in inference mode there are no gradients; call from outside torch.inference_mode()")


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """The model in eval mode and without fused attention; flags, tensors and random numbers come back as they were."""
    flags = {module: module.training for module in model.modules()}
    buffers = [
        (module, name, buffer, buffer.detach().clone())
        for module in flags
        for name, buffer in module.named_buffers(recurse=False)
    ]
    parameters = [(parameter, parameter.detach().clone()) for parameter in model.parameters()]
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    model.eval()
    try:
        with torch.random.fork_rng(), torch.backends.cudnn.flags(allow_tf32=False):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
        for module, training in flags.items():
            module.training = training
        for module, name, buffer, value in buffers:
            setattr(module, name, buffer)
            if not torch.equal(buffer, value):
                buffer.detach().copy_(value)
        for parameter, value in parameters:  # some layers renormalise their own
            if not torch.equal(parameter, value):
                parameter.detach().copy_(value)


def _dynamic_batch(leaf: Any) -> dict[int, Any] | None:
    return {0: Dim.DYNAMIC} if isinstance(leaf, Tensor) and leaf.ndim > 0 else None


def _dynamic_shapes(inputs: Inputs) -> Any:
    """Dynamic shapes as torch.export wants them: a tuple for positional inputs, a dict for keywords."""
    return pytree.tree_map(_dynamic_batch, dict(inputs.kwargs) if inputs.kwargs else inputs.args)


def _check_tensors(model: nn.Module) -> None:
    """Raise InvalidInput for tensors that no graph can start from; a buffer may hold inf, as masks do."""
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if nn.parameter.is_lazy(tensor) or tensor.is_meta:
            raise InvalidInput(f"{name}: not initialised; load or run the model before handing it over")
        if tensor.is_inference():
            raise InvalidInput(f"{name}: made in inference mode; make the model outside of torch.inference_mode()")
        if tensor.is_floating_point() and tensor.isnan().any():
            raise InvalidInput(f"{name}: holds NaN; train or load the model again")
    for name, parameter in model.named_parameters():
        if parameter.numel() == 0:
            raise InvalidInput(f"{name}: shape {list(parameter.shape)} holds no number; leave the layer out")
        if parameter.is_floating_point() and parameter.isinf().any():
            raise InvalidInput(f"{name}: holds inf; train or load the model again")
        if parameter.is_floating_point() and parameter.dtype not in (torch.float32, torch.float64):
            raise InvalidInput(f"{name}: {parameter.dtype}; quantize the model in float32, as model.float() gives it")


def _device_of(model: nn.Module) -> torch.device:
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))


def _at_least_two(inputs: Inputs) -> Inputs:
    """The example with its sample doubled where there is only one: a batch of one is exported as a constant."""
    if inputs.batch_size == 0:
        raise InvalidInput(f"example {inputs.describe()}: holds no sample; give at least one")
    if inputs.batch_size >= 2:
        return inputs
    return inputs.map(lambda leaf: torch.cat([leaf, leaf]) if leaf.ndim > 0 else leaf)


def _run_eagerly(model: nn.Module, inputs: Inputs) -> Any:
    try:
        with torch.no_grad():
            return model(*inputs.args, **inputs.kwargs)
    except Exception as error:  # whatever the user's code raises is the answer
        raise InvalidInput(f"the model fails on inputs {inputs.describe()}: {type(error).__name__}: {error}") from error


def _remove_bookkeeping(module: fx.GraphModule) -> None:
    """Drop guards, assertions, updates of buffers and inputs, dropouts that do nothing, and what nobody reads."""
    for node in list(module.graph.nodes):
        name = str(node.target)
        if node.op == "call_module" or name.startswith(("aten._assert", "aten.sym_constrain")):
            module.graph.erase_node(node)
        elif name == "aten.copy_.default":
            node.replace_all_uses_with(node.args[1])
            module.graph.erase_node(node)
        elif name in _DROPOUTS and node.args[2] is False:
            node.replace_all_uses_with(node.args[0])
            module.graph.erase_node(node)
    module.graph.eliminate_dead_code()
    module.recompile()


def _shapes(module: fx.GraphModule, inputs: Inputs) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}

    class Recorder(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            value = super().run_node(n)
            if isinstance(value, Tensor):
                shapes[n.name] = tuple(value.shape)
            return value

    with torch.no_grad():
        leaves = pytree.tree_leaves((inputs.args, inputs.kwargs))
        Recorder(module).run(*leaves, enable_io_processing=False)
    return shapes


def _check_same(graph: Graph, inputs: Inputs, expected: Any) -> None:
    """Raise unless the graph returns what the model did, and for the first sample alone what it did in the batch."""
    single = inputs.map(lambda leaf: leaf[:1] if leaf.ndim > 0 else leaf)
    with torch.no_grad():
        actual = graph(*inputs.args, **inputs.kwargs)
        one = graph(*single.args, **single.kwargs)
    for got, want, first in zip(*(pytree.tree_leaves(tree) for tree in (actual, expected, one)), strict=True):
        if not isinstance(want, Tensor) or not want.is_floating_point():
            continue
        if want.isnan().any():
            raise InvalidInput("the model returns NaN on the example; give an example that it can handle")
        worst = _difference(got, want)
        if want.ndim > 0 and first.shape == want[:1].shape:
            worst = max(worst, _difference(first, want[:1]))
        finite = want[want.isfinite()]
        allowed = TOLERANCE * max(1.0, float(finite.abs().max().detach())) if finite.numel() else TOLERANCE
        if not worst <= allowed:
            raise UnsupportedModel(
                f"the captured graph differs from the model by {worst:.2g} (allowed {allowed:.2g}): the model is not "
                "deterministic in eval mode, or depends on its batch; remove that and capture again"
            )


def _difference(a: Tensor, b: Tensor) -> float:
    """Largest difference; equal infinities do not differ."""
    return float(torch.where(a == b, 0, (a - b).abs()).max().detach()) if a.numel() else 0.0


def _check_leaf(place: str, leaf: Any, model: Any) -> None:
    if not isinstance(model, Tensor):  # it was captured as a constant
        if isinstance(leaf, Tensor) or type(leaf) is not type(model) or leaf != model:
            raise InvalidInput(f"{place} is {leaf!r:.50}, the example {model!r:.50}; what is no tensor may not change")
        return
    if not isinstance(leaf, Tensor):
        raise InvalidInput(f"{place} is a {type(leaf).__name__}, not a tensor")
    if leaf.dtype != model.dtype:
        raise InvalidInput(f"{place} is {leaf.dtype}, the example {model.dtype}; convert it")
    if leaf.shape[1:] != model.shape[1:] or leaf.ndim != model.ndim:
        raise InvalidInput(
            f"{place} has shape {tuple(leaf.shape)}, the example {tuple(model.shape)}; "
            "only the first dimension may differ"
        )
    _check_finite(place, leaf)


def _check_finite(place: str, leaf: Tensor) -> None:
    if leaf.is_floating_point() and not torch.isfinite(leaf).all():
        raise InvalidInput(f"{place} holds NaN or inf; clean the data")
