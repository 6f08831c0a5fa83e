"""capture(): from the user's module to a functional graph, by torch.export."""

import inspect
import logging
import operator
import os
import sys
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import replace
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram
from torch.utils import _pytree as pytree

from mixbit.core import (
    Inputs,
    InvalidInput,
    Room,
    StoredTensor,
    UnsupportedModel,
    checked,
    did_you_mean,
    differing,
    num_bytes,
    reason_of,
    scratch_folder,
    unlabelled,
    unwrapped,
    users_code,
    with_pairs,
)
from mixbit.graph.explain import explain
from mixbit.graph.fold import fold_weights
from mixbit.graph.forms import InFourDimensions, join_what_there_is, multiply_sizes, reshape_views
from mixbit.graph.functional import functional_module
from mixbit.graph.graph import (
    GROUPS,
    Graph,
    argument,
    check_context,
    check_finite,
    copy_module,
    device_of,
    is_parameter,
    num_uses,
    packet,
    set_bias,
    sizes_of,
    split_name,
    tensor_of,
    without_torchs_warnings,
)
from mixbit.graph.layers import OPERATOR_KINDS, with_layers
from mixbit.graph.products import rewrite_products
from mixbit.graph.recurrent import InParts, tidy_recurrences
from mixbit.graph.room import check_room
from mixbit.graph.stored import hold, is_stand_in, read_beside_users, shapes_of, stand_in, without_stand_ins
from mixbit.graph.walk import Walker, seen

_aten = torch.ops.aten
_TRAINABLE = _aten.batch_norm.default
_BATCH_NORMS = (_aten._native_batch_norm_legit_no_training.default, _TRAINABLE)
_DROPOUTS = ("aten.dropout.default", "aten.alpha_dropout.default", "aten.feature_dropout.default")
#: Largest difference that capture's own check allows, relative to the largest output.
TOLERANCE = 1e-4
#: Where torch's compiler keeps what it compiled.
COMPILERS_FOLDER = "TORCHINDUCTOR_CACHE_DIR"
#: Batch sizes that torch.export takes for all others: it traces no smaller ones, and needs numbers of 32 bits.
SMALLEST_TRACED, LARGEST_TRACED = 2, 2**31 - 1


#: Name or position of an input -> its dimensions, beside the first, that may differ from call to call.
Dynamic = Mapping[str | int, Collection[int]]


@checked
def capture(
    model: nn.Module,
    example: Any,
    dynamic: Dynamic | None = None,
    *,
    weights: str | Path | None = None,
    memory: str | int = "4GB",
    scratch: str | Path | None = None,
) -> Graph:
    """Export the model as a functional graph with a dynamic batch and batch norms folded.

    Args:
        model: The trained network; it is left as it is, its training flags included.
        example: One batch of inputs: a tensor, a tuple, or a dict of keyword arguments. Labels, last or under
            `labels`, are left out.
        dynamic: Input -> further dimensions of any size, as `{"input_ids": [1], "attention_mask": [1]}` for sequences,
            or `{0: [2, 3]}` for images; of an input that is a tuple, those of each of its tensors.
        weights: A file of safetensors, or a folder of them, with the parameters of a model on `meta`, by name. They
            stay there, and are read in float32 whenever an operator needs one: for networks larger than memory.
        memory: With `weights`, the bytes that the process may take, as `4GB` or a number.
        scratch: With `weights`, a folder for activations and scales; that for temporary files where None.

    Raises:
        InvalidInput: the model is no module, holds NaN or inf, or fails on the example; `dynamic` names what the
            example does not have; the files lack a parameter, or `memory` is too little for the largest layer.
        UnsupportedModel: `torch.export` cannot follow the code; the message names the line and the way out.
    """
    places: dict[str, StoredTensor] | None = None
    if weights is not None:
        model, places = stand_in(model, weights)
    check_module(model)
    example = unlabelled(model, example)
    dynamic = _by_place(model, example, dynamic or {})
    module, inputs, expected = exported(model, example, dynamic)
    tidy_recurrences(module.graph)
    rewrite_products(module)
    fold_weights(module)
    for node in list(module.graph.nodes):
        if running_statistics(node) is not None and _foldable(node):
            if places is not None:
                raise UnsupportedModel(
                    f"{running_statistics(node)}: a batch norm, which capture computes into a weight that is not in "
                    "memory; fold batch norms before saving, or load the network whole"
                )
            _fold(module, node)
    module.graph.eliminate_dead_code()
    module.delete_all_unused_submodules()
    module.recompile()
    config = _config(model)
    room = None
    if places is not None:
        room = Room(num_bytes(str(memory), "memory"), None if scratch is None else Path(scratch))
        read_beside_users(module)
        leaves = pytree.tree_leaves((inputs.args, inputs.kwargs))
        graph = Graph(module, inputs, shapes_of(module, leaves), config=config, room=room)
    else:
        graph = Graph(module, inputs, _shapes(module, inputs), config=config)
    graph = with_layers(replace(graph, dynamic=free_dimensions(inputs, dynamic)))
    if places is not None:
        hold(module, places, room)
    modules = _modules(model)
    layers = tuple(replace(layer, modules=modules.get(layer.name, ())) for layer in graph.layers)
    graph = replace(graph, layers=layers)
    if places is None:
        _check_same(graph, inputs, expected)
    else:
        check_room(graph, Inputs.of(example).batch_size)
    return graph


def _shapes(module: fx.GraphModule, inputs: Inputs) -> dict[str, tuple[int, ...]]:
    """Node -> shape of its tensor for these inputs."""
    shapes: dict[str, tuple[int, ...]] = {}

    def note(name: str, value: Any, _: tuple[Any, ...]) -> None:
        if isinstance(value, Tensor):
            shapes[name] = tuple(value.shape)

    around = {node.name: seen(partial(note, node.name)) for node in module.graph.nodes if node.op != "output"}
    with torch.no_grad():
        try:
            Walker(module, around).returned(pytree.tree_leaves((inputs.args, inputs.kwargs)))
        except RuntimeError as error:
            raise UnsupportedModel(
                f"the captured graph fails where the model does not: {str(error).splitlines()[0]}; if the model has "
                "autocast inside, take that out and capture again"
            ) from error
    return shapes


def _config(model: nn.Module) -> dict[str, Any] | None:
    """The configuration of a model of Hugging Face's, which names its class; None for another."""
    held: Any = unwrapped(model)
    transformers = sys.modules.get("transformers")
    if transformers is None or not isinstance(held, transformers.PreTrainedModel):
        return None
    return {**held.config.to_dict(), "architectures": [type(held).__name__]}


def _modules(model: nn.Module) -> dict[str, tuple[str, ...]]:
    """Full name of a parameter, each that it has -> the classes of all modules that hold it."""
    holders: dict[int, list[tuple[str, str]]] = defaultdict(list)
    for prefix, module in unwrapped(model).named_modules():
        kind = f"{type(module).__module__}.{type(module).__qualname__}"
        for name, parameter in module.named_parameters(prefix, recurse=False):
            holders[id(parameter)].append((name, kind))
    return {name: tuple(kind for _, kind in held) for held in holders.values() for name, _ in held}


def capture_all(
    model: nn.Module,
    batches: Sequence[Inputs],
    dynamic: Dynamic | None = None,
    *,
    weights: Path | None = None,
    room: Room | None = None,
) -> Graph:
    """`capture` on the first batch, with the dimensions free in which the batches differ too.

    With `weights` and `room`, of a network whose parameters stay in files.
    """
    if weights is None:
        check_module(model)
    differ, dynamic = differing(batches), _by_place(model, batches[0], dynamic or {})
    free = {key: {*differ.get(key, ()), *dynamic.get(key, ())} for key in (*differ, *dynamic)}
    # torch takes sizes of 0 and 1 for constants
    large = (
        batch
        for batch in batches
        if all(
            leaf.shape[axis] > 1
            for leaf, axes in zip(batch.leaves, free_dimensions(batch, free), strict=True)
            for axis in axes
        )
    )
    with naming_the_batch(batches):
        example = next(large, batches[0]) if free else batches[0]
        if room is None:
            return capture(model, example, free)
        return capture(model, example, free, weights=weights, memory=room.memory, scratch=room.scratch)


@contextmanager
def naming_the_batch(batches: Sequence[Inputs]) -> Iterator[None]:
    """Raise InvalidInput, with the batch of another shape, where a model cannot be captured for all shapes of them."""
    try:
        yield
    except UnsupportedModel as error:
        for number, batch in enumerate(batches):
            for place, (leaf, wanted) in enumerate(zip(batch.leaves, batches[0].leaves, strict=False)):
                if isinstance(leaf, Tensor) and leaf.shape[1:] != wanted.shape[1:]:
                    shapes = f"has shape {tuple(leaf.shape)}, that of batch 0 {tuple(wanted.shape)}"
                    raise InvalidInput(
                        f"batch {number}: input {place} {shapes}, and the model cannot be captured for both:\n{error}"
                    ) from error
        raise


def _by_place(model: nn.Module, inputs: Inputs, dynamic: Dynamic) -> Dynamic:
    """The same with the positions of inputs that are given by position, in place of their names in forward."""
    names = [*inspect.signature(unwrapped(model).forward).parameters][: len(inputs.args)]
    placed: dict[str | int, tuple[int, ...]] = {}
    for key, axes in dynamic.items():
        place = names.index(str(key)) if key in names else key
        placed[place] = (*placed.get(place, ()), *axes)
    return placed


def free_dimensions(inputs: Inputs, dynamic: Dynamic) -> tuple[tuple[int, ...], ...]:
    """Of every leaf of the inputs, the dimensions that `dynamic` names; none where it names none.

    Raises InvalidInput for an input or a dimension that there is not.
    """
    keys: list[str | int] = [*range(len(inputs.args)), *inputs.kwargs]
    places: dict[str | int, int] = {key: place for place, key in enumerate(keys)} | {i: i for i in range(len(keys))}
    axes_of: dict[int, list[int]] = {}
    for key, axes in dynamic.items():
        if key not in places:
            near = did_you_mean(key, keys)
            raise InvalidInput(f"dynamic: no input {key!r}{near}; there are {', '.join(map(str, keys))}")
        axes_of[places[key]] = sorted({*axes, *axes_of.get(places[key], ())})
    free: list[tuple[int, ...]] = []
    for place, (key, value) in enumerate(zip(keys, (*inputs.args, *inputs.kwargs.values()), strict=True)):
        for leaf in pytree.tree_leaves(value):
            axes = axes_of.get(place, ()) if isinstance(leaf, Tensor) else ()
            wrong = [axis for axis in axes if not 0 < axis < leaf.ndim]
            if wrong:
                given = tuple(leaf.shape)
                raise InvalidInput(
                    f"dynamic: input {key} {given} has no dimension {wrong[0]} behind that of samples; "
                    f"give {f'one of 1 to {leaf.ndim - 1}' if leaf.ndim > 1 else 'none'}"
                )
            free.append(tuple(axes))
    return tuple(free) if axes_of else ()


def exported(model: nn.Module, example: Any, dynamic: Dynamic | None = None) -> tuple[fx.GraphModule, Inputs, Any]:
    """The functional graph with its batch norms, the example's inputs, and what the model returns for them."""
    check_module(model)
    model = unwrapped(model)
    _check_tensors(model)
    inputs = Inputs.of(example)
    if inputs.batch_size == 0:
        raise InvalidInput(f"example {inputs.describe()}: holds no sample; give at least one")
    stored = any(map(is_stand_in, model.parameters()))
    if stored:  # shapes alone are asked for
        inputs = inputs.rows(slice(2))
    if inputs.batch_size == 1:  # torch exports a batch of one as a constant
        inputs = inputs.map(lambda leaf: torch.cat([leaf, leaf]) if leaf.ndim > 0 else leaf)
    # of an input that is a view of another tensor, torch.export would trace that one's sizes too
    inputs = inputs.to(device_of(model)).map(lambda leaf: leaf.detach().clone(memory_format=torch.contiguous_format))
    for number, leaf in enumerate(inputs.tensors):
        check_finite(f"example: input {number}", leaf)
    with _evaluating(model):
        with users_code(partial(_failure, model, inputs)), torch.no_grad():
            expected = None if stored else inputs.map(torch.clone).call(model)
        with _plain_forward(model, inputs) as signature, InFourDimensions(), InParts():
            free = free_dimensions(inputs, dynamic or {})
            leaves, structure = pytree.tree_flatten((inputs.args, dict(inputs.kwargs)))
            args, kwargs = with_pairs(pytree.tree_unflatten(_marks(leaves, free), structure))
            shapes = dict(signature.bind(*args, **kwargs).arguments)
            with _exporting(model, inputs):
                program = torch.export.export(model, inputs.args, dict(inputs.kwargs), dynamic_shapes=shapes)
                module = functional_module(program)
    _check_range(program)
    without_stand_ins(module)
    module = copy_module(module)
    reshape_views(module.graph)
    join_what_there_is(module.graph)
    multiply_sizes(module.graph)
    for parameter in module.parameters():
        parameter.requires_grad_(parameter.is_floating_point() and not parameter.is_meta)
    _remove_bookkeeping(module)
    return module, inputs, expected


def _failure(model: nn.Module, inputs: Inputs, error: BaseException) -> InvalidInput:
    """Why the model fails on the inputs, with the way out where their types differ."""
    held = {each.dtype for each in model.parameters() if each.is_floating_point()} or {torch.float32}
    given = {leaf.dtype for leaf in inputs.tensors if leaf.dtype not in (torch.bool, torch.int64, torch.int32)}
    way_out = ""
    if not given <= held:
        types = " for a model of ".join(", ".join(sorted(map(str, some))) for some in (given, held))
        way_out = f"; inputs are {types}: give float32 to both, as x.float() and model.float() make it"
    return InvalidInput(f"the model fails on inputs {inputs.describe()}: {reason_of(error)}{way_out}")


def _check_range(program: ExportedProgram) -> None:
    """Raise UnsupportedModel where the model does something else for another number of samples."""
    for node in program.graph.find_nodes(op="placeholder"):
        for size in sizes_of(node)[:1]:
            limits = program.range_constraints.get(size.node.expr) if isinstance(size, torch.SymInt) else None
            if limits is not None and (limits.lower > SMALLEST_TRACED or limits.upper < LARGEST_TRACED):
                raise UnsupportedModel(
                    f"the model takes another path for batches of less than {limits.lower} or more than "
                    f"{limits.upper} samples; let the path not depend on the batch size"
                )


def check_module(model: Any) -> None:
    """Raise InvalidInput unless it is a module that can be captured."""
    if not isinstance(model, nn.Module):
        raise InvalidInput(f"model: a {type(model).__name__}, not an nn.Module; give the module itself")
    if isinstance(model, nn.DataParallel | torch.jit.ScriptModule):
        raise InvalidInput(f"model: a {type(model).__name__}; give the module that it was made of")
    if torch.is_inference_mode_enabled():
        raise InvalidInput("model: in inference mode there are no gradients; call from outside torch.inference_mode()")
    check_context()
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if nn.parameter.is_lazy(tensor) or tensor.is_meta:
            raise InvalidInput(f"{name}: not initialised; load or run the model before handing it over")


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """The model in eval mode and without fused attention; flags, tensors and random numbers are restored."""
    flags = {module: module.training for module in model.modules()}
    buffers = [
        (module, name, buffer, buffer.detach().clone())
        for module in flags
        for name, buffer in module.named_buffers(recurse=False)
    ]
    parameters = [(each, each.detach().clone()) for each in model.parameters() if not is_stand_in(each)]
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


def _check_tensors(model: nn.Module) -> None:
    """Raise InvalidInput for tensors that a graph cannot hold; a buffer may hold inf, as masks do."""
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_inference():
            raise InvalidInput(f"{name}: made in inference mode; make the model outside of torch.inference_mode()")
        if tensor.is_floating_point() and tensor.isnan().any():
            raise InvalidInput(f"{name}: holds NaN; train or load the model again")
        if name.encode(errors="ignore").decode() != name:
            raise InvalidInput(f"{name}: no valid Unicode, as files need; rename the module")
    for name, parameter in model.named_parameters():
        if parameter.numel() == 0:
            raise InvalidInput(f"{name}: shape {list(parameter.shape)} holds no number; leave the layer out")
        if parameter.is_floating_point() and parameter.isinf().any():
            raise InvalidInput(f"{name}: holds inf; train or load the model again")
        if parameter.is_floating_point() and parameter.dtype not in (torch.float32, torch.float64):
            raise InvalidInput(f"{name}: {parameter.dtype}; quantize the model in float32, as model.float() gives it")


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


def _check_same(graph: Graph, inputs: Inputs, expected: Any) -> None:
    """Raise unless the graph returns what the model did, and the same for the first sample alone."""
    single = inputs.rows(slice(1))
    with torch.no_grad():
        actual = graph(*inputs.args, **inputs.kwargs)
        try:
            alone = graph(*single.args, **single.kwargs)
        except (IndexError, RuntimeError) as error:
            raise UnsupportedModel(
                f"the model runs on {inputs.batch_size} samples and not on the first of them alone: "
                f"{str(error).splitlines()[0]}; let it take any number of samples"
            ) from error
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
                "deterministic in eval mode, or depends on its batch; remove that and capture again, or wrap a model "
                "that takes samples in another dimension: its forward(x) returns model(x.transpose(0, 1))"
            )


def _difference(a: Tensor, b: Tensor) -> float:
    """Largest difference; equal infinities do not differ."""
    return float(torch.where(a == b, 0, (a - b).abs()).max().detach()) if a.numel() else 0.0


def scaled(
    weight: Tensor, bias: Tensor | None, norm: tuple[Tensor, Tensor, Tensor, Tensor], epsilon: float, axis: int
) -> tuple[Tensor, Tensor]:
    """Weight and bias of `batch_norm(op(x, weight) + bias)` as one op: w' = w g / s, b' = (b - mean) g / s + beta.

    s = sqrt(variance + epsilon); `norm` is the norm's (g, beta, mean, variance), each [channels].
    """
    gamma, beta, mean, variance = norm
    factor = gamma / torch.sqrt(variance + epsilon)
    shape = [1] * weight.ndim
    shape[axis] = -1
    shifted = -mean if bias is None else bias - mean
    return weight * factor.reshape(shape), shifted * factor + beta


def running_statistics(node: fx.Node) -> tuple[str, str] | None:
    """Full names of mean and variance of a batch norm that normalises by its own; None for other nodes."""
    if node.target not in _BATCH_NORMS or (node.target is _TRAINABLE and argument(node, 5)):
        return None
    mean, variance = argument(node, 3), argument(node, 4)
    return (str(mean.target), str(variance.target)) if is_parameter(mean) and is_parameter(variance) else None


def _foldable(norm: fx.Node) -> bool:
    """Whether the norm is the only reader of an operator whose weight no other operator uses."""
    before = norm.args[0]
    if not isinstance(before, fx.Node) or len(before.users) != 1:
        return False
    kind = OPERATOR_KINDS.get(packet(before))
    if kind is None or not kind.name.startswith(("linear", "conv")):
        return False
    if kind.output_axis == 1 and argument(before, GROUPS, 1) != 1:
        return False  # groups share the output axis
    if kind.name == "linear" and before.meta["val"].ndim != 2:
        return False  # the norm's channels are not the last dimension
    if not all(node is None or is_parameter(node) for node in (*norm.args[1:3], argument(before, kind.bias))):
        return False
    weight = argument(before, kind.weight)
    return is_parameter(weight) and num_uses(weight) == 1


def _fold(module: fx.GraphModule, norm: fx.Node) -> None:
    def tensor(node: fx.Node | None, default: Any = None) -> Any:
        return default if node is None else tensor_of(module, node).detach()

    before: fx.Node = argument(norm, 0)
    mean, variance = (tensor(argument(norm, position)) for position in (3, 4))
    gamma, beta = tensor(argument(norm, 1), torch.ones_like(mean)), tensor(argument(norm, 2), torch.zeros_like(mean))
    epsilon, axis = argument(norm, 7 if norm.target is _TRAINABLE else 6), OPERATOR_KINDS[packet(before)].output_axis
    weight, bias = (tensor(argument(before, position)) for position in (1, 2))
    weight, bias = scaled(weight, bias, (gamma, beta, mean, variance), epsilon, axis)
    name = str(argument(before, 1).target)
    holder, attribute = split_name(module, name)
    setattr(holder, attribute, nn.Parameter(weight))
    set_bias(module, before, bias, name)
    output = norm
    if norm.target is not _TRAINABLE:
        output = next(user for user in norm.users if user.target is operator.getitem and user.args[1] == 0)
    output.replace_all_uses_with(before)


@contextmanager
def _exporting(model: nn.Module, inputs: Inputs) -> Iterator[None]:
    """Let torch export the model in silence; errors in its code become UnsupportedModel, with the line."""
    with (
        users_code(lambda error: UnsupportedModel(explain(error, model, inputs))),
        without_torchs_warnings(),
        without_logs(),
        redirect_stderr(StringIO()),  # torch prints what it traced
        without_compilers_folder(),
    ):
        yield


@contextmanager
def _plain_forward(model: nn.Module, inputs: Inputs) -> Iterator[inspect.Signature]:
    """For a while forward takes these inputs alone, and returns plain containers; yields its signature.

    torch.export follows neither arguments that a signature does not name, nor objects of the user's classes.
    """
    forward, own = model.forward, "forward" in vars(model)
    signature = inspect.signature(forward)
    rest = [name for name, each in signature.parameters.items() if each.kind is each.VAR_KEYWORD]
    bound = signature.bind(*inputs.args, **inputs.kwargs).arguments
    further = [inspect.Parameter(key, inspect.Parameter.KEYWORD_ONLY) for name in rest for key in bound.get(name, ())]
    named = [each for name, each in signature.parameters.items() if name in bound and name not in rest]

    def call(*args: Any, **kwargs: Any) -> Any:
        return Inputs(args, kwargs).call(forward)

    explicit = inspect.Signature([*named, *further])
    call.__signature__ = explicit  # type: ignore[attr-defined] as inspect reads it
    model.forward = call
    try:
        yield explicit
    finally:
        if own:
            model.forward = forward
        else:
            del model.forward


def _marks(leaves: Sequence[Any], free: Sequence[tuple[int, ...]]) -> list[dict[int, Any] | None]:
    """What torch.export is told of each leaf: that its first dimension, and those that are free, are of any size."""
    return [
        dict.fromkeys((0, *axes), Dim.DYNAMIC) if isinstance(leaf, Tensor) and leaf.ndim > 0 else None
        for leaf, axes in zip(leaves, free or ((),) * len(leaves), strict=True)
    ]


@contextmanager
def without_compilers_folder() -> Iterator[None]:
    """Leave no folder and no variable of the environment behind: torch's exporters ask its compiler for its cache."""
    before = os.environ.get(COMPILERS_FOLDER)
    with scratch_folder() as folder:
        os.environ[COMPILERS_FOLDER] = before or str(folder)
        try:
            yield
        finally:
            del os.environ[COMPILERS_FOLDER]
            if before is not None:
                os.environ[COMPILERS_FOLDER] = before


@contextmanager
def without_logs() -> Iterator[None]:
    """Silence the logs of torch's exporters: the errors that they raise say more."""
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(disabled)
