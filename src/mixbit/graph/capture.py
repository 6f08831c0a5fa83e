"""capture(): from the user's module to a functional graph that keeps the names of its parameters."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from mixbit.core import InvalidInput, UnsupportedModel
from mixbit.core.batches import Inputs
from mixbit.core.io.user_code import users_code
from mixbit.graph.fold import fold_batch_norms
from mixbit.graph.graph import Graph, _check_finite, _dynamic_batch, device_of
from mixbit.graph.layers import with_layers
from mixbit.graph.torch_export import copy_module, export_program
from mixbit.graph.walk import Walker, seen

_DROPOUTS = ("aten.dropout.default", "aten.alpha_dropout.default", "aten.feature_dropout.default")
#: Largest difference that capture's own check allows, relative to the largest output.
TOLERANCE = 1e-4


def capture(model: nn.Module, example: Any) -> Graph:
    """Export the model as a functional graph with a dynamic batch and batch norms folded.

    Args:
        model: The trained network; it is left as it is, its training flags included.
        example: One batch of inputs without labels: a tensor, a tuple, or a dict of keyword arguments.

    Raises:
        InvalidInput: the model is no module, holds NaN or inf, or fails on the example.
        UnsupportedModel: `torch.export` cannot follow the code; the message names the line and the way out.
    """
    module, inputs, expected = exported(model, example)
    fold_batch_norms(module)
    graph = with_layers(Graph(module, inputs, _shapes(module, inputs)))
    _check_same(graph, inputs, expected)
    return graph


def exported(model: nn.Module, example: Any) -> tuple[fx.GraphModule, Inputs, Any]:
    """The functional graph with its batch norms, the example's inputs, and what the model returns for them.

    Raises as `capture` does.
    """
    check_module(model)
    _check_tensors(model)
    inputs = _at_least_two(Inputs.of(example)).to(device_of(model))
    for number, leaf in enumerate(inputs.tensors):
        _check_finite(f"example: input {number}", leaf)
    with _evaluating(model):
        with users_code(f"the model fails on inputs {inputs.describe()}"), torch.no_grad():
            copies = inputs.map(torch.clone)
            expected = model(*copies.args, **copies.kwargs)
        program = export_program(model, inputs.args, dict(inputs.kwargs), _dynamic_shapes(inputs))
    module = copy_module(program.module(check_guards=False))
    for parameter in module.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    _remove_bookkeeping(module)
    return module, inputs, expected


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


def _at_least_two(inputs: Inputs) -> Inputs:
    """The example with its sample doubled where there is only one: a batch of one is exported as a constant."""
    if inputs.batch_size == 0:
        raise InvalidInput(f"example {inputs.describe()}: holds no sample; give at least one")
    if inputs.batch_size >= 2:
        return inputs
    return inputs.map(lambda leaf: torch.cat([leaf, leaf]) if leaf.ndim > 0 else leaf)


def _remove_bookkeeping(module: fx.GraphModule) -> None:
    """Drop guards, assertions, updates of buffers and inputs, dropouts that do nothing, and what no node reads."""
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

    def note(name: str, value: Any, _: tuple[Any, ...]) -> None:
        if isinstance(value, Tensor):
            shapes[name] = tuple(value.shape)

    around = {node.name: seen(partial(note, node.name)) for node in module.graph.nodes if node.op != "output"}
    with torch.no_grad():
        Walker(module, around).returned(pytree.tree_leaves((inputs.args, inputs.kwargs)))
    return shapes


def _check_same(graph: Graph, inputs: Inputs, expected: Any) -> None:
    """Raise unless the graph returns what the model did, and for the first sample alone what it did in the batch."""
    single = inputs.rows(slice(1))
    with torch.no_grad():
        actual = graph(*inputs.args, **inputs.kwargs)
        alone = graph(*single.args, **single.kwargs)
    for got, want, first in zip(*(pytree.tree_leaves(tree) for tree in (actual, expected, alone)), strict=True):
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
