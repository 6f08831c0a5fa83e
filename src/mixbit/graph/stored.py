"""Networks larger than memory: their weights stay in files, and are read each time that an operator needs one."""

import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from mixbit.core import InvalidInput, Room, Spill, StoredTensor, UnsupportedModel, did_you_mean, stored_tensors
from mixbit.graph.graph import split_name, tensor_of

#: Reads a tensor from where it is.
Read = Callable[[], Tensor]
#: Bytes of a tensor from which on it waits for the backward pass in a file.
SMALL = 2**16


@contextmanager
def parameters_on_meta() -> Iterator[None]:
    """Modules that are made in the block get parameters without numbers, on `meta`; buffers are computed."""
    register = nn.Module.register_parameter

    def register_on_meta(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        if parameter is not None and not parameter.is_meta:  # one that is tied stays the same
            parameter = nn.Parameter(parameter.to("meta"), parameter.requires_grad)
        register(module, name, parameter)

    nn.Module.register_parameter = register_on_meta  # type: ignore[method-assign] there is no hook for this
    try:
        yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign] as above


class _Holder(nn.Module):
    """A module whose parameters of these names are read from where they are whenever they are asked for."""

    stored: dict[str, Read]

    def __getattr__(self, name: str) -> Any:
        return attribute_of(self, name, super().__getattr__)

    def __setattr__(self, name: str, value: Any) -> None:
        self.__dict__.get("stored", {}).pop(name, None)  # a new bias takes the place of the one in the file
        super().__setattr__(name, value)


def attribute_of(module: nn.Module, name: str, otherwise: Callable[[str], Any]) -> Any:
    """What a module's `__getattr__` returns whose dict `stored` says how some tensors are read."""
    read = module.__dict__.get("stored", {}).get(name)
    if read is None:
        return otherwise(name)
    tensor = read()
    tensor.untyped_storage().mixbit_read = read  # views of it share its storage
    return tensor


def stand_in(model: nn.Module, weights: str | Path) -> tuple[nn.Module, dict[str, StoredTensor]]:
    """A copy of a model on `meta` that torch can export, and where each of its parameters is, by all its names.

    Parameters become one number that is repeated. Buffers that are in the files are read.

    Raises InvalidInput for a parameter that is not in the files, or in another shape, and for a buffer without numbers.
    """
    place, model = Path(weights), copy.deepcopy(model)
    files = stored_tensors(place)
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    found: dict[str, StoredTensor] = {}
    made: dict[int, nn.Parameter] = {}
    for name, parameter in list(model.named_parameters(remove_duplicate=False)):
        aliases = names[id(parameter)]
        found[name] = _found(files, aliases, tuple(parameter.shape), place)
        if id(parameter) not in made:
            number = torch.zeros((), dtype=found[name].read_as)
            made[id(parameter)] = nn.Parameter(number.expand(parameter.shape), requires_grad=False)
        holder, attribute = split_name(model, name)
        setattr(holder, attribute, made[id(parameter)])
    for name, buffer in list(model.named_buffers(remove_duplicate=False)):
        if buffer.is_meta:
            holder, attribute = split_name(model, name)
            setattr(holder, attribute, _found(files, [name], tuple(buffer.shape), place).read())
    return model, found


def _found(
    files: Mapping[str, StoredTensor], names: Sequence[str], shape: tuple[int, ...], place: Path
) -> StoredTensor:
    tensor = next((files[name] for name in names if name in files), None)
    if tensor is None:
        raise InvalidInput(
            f"{place}: holds no {names[0]}{did_you_mean(names[0], list(files))}; save the whole trained network by "
            "save_pretrained; buffers that a constructor computes are there where it is called inside "
            "mixbit.graph.parameters_on_meta()"
        )
    if tensor.shape != shape:
        raise InvalidInput(f"{tensor.path}: {tensor.name} has shape {list(tensor.shape)}, the model {list(shape)}")
    return tensor


def is_stand_in(parameter: Tensor) -> bool:
    """Whether it is one number that stands for many."""
    return parameter.numel() > 1 and not any(parameter.stride())


def without_stand_ins(module: fx.GraphModule) -> None:
    """Put parameters on `meta` in the place of stand-ins."""
    made: dict[int, nn.Parameter] = {}
    for holder in module.modules():
        for name, parameter in list(holder._parameters.items()):
            if parameter is not None and is_stand_in(parameter):
                if id(parameter) not in made:
                    empty = torch.empty(parameter.shape, dtype=parameter.dtype, device="meta")
                    made[id(parameter)] = nn.Parameter(empty, requires_grad=False)
                holder._parameters[name] = made[id(parameter)]


def read_beside_users(module: fx.GraphModule) -> None:
    """Read each parameter right before each of its users, so that it is in memory for one operator at a time."""
    for node in module.graph.find_nodes(op="get_attr"):
        if tensor_of(module, node).is_meta:
            users = list(node.users)
            for user in users:
                with module.graph.inserting_before(user):
                    own = module.graph.get_attr(str(node.target))
                own.meta = dict(node.meta)
                user.replace_input_with(node, own)
            module.graph.erase_node(node)
    module.recompile()


def shapes_of(module: fx.GraphModule, leaves: Sequence[Any]) -> dict[str, tuple[int, ...]]:
    """Node -> shape of its tensor for these inputs, found without numbers."""
    shapes: dict[str, tuple[int, ...]] = {}
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        known: dict[fx.Node, Any] = {
            node: torch.empty(tensor.shape, dtype=tensor.dtype)
            for node in module.graph.find_nodes(op="get_attr")
            if (tensor := tensor_of(module, node)).is_meta
        }
        placed = [mode.from_tensor(leaf) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        runner = fx.Interpreter(module, garbage_collect_values=False)
        runner.run(*placed, initial_env=known, enable_io_processing=False)
    for node, value in runner.env.items():
        if isinstance(value, Tensor):
            shapes[node.name] = tuple(value.shape)
    return shapes


def hold(module: fx.GraphModule, places: Mapping[str, StoredTensor], room: Room | None) -> None:
    """Let the module read its parameters on `meta` from the files; raises UnsupportedModel for one that is in none.

    Those of the module itself, whose names have no dot, are read at once. Memory is kept within the room.
    """
    wanted = [name for name, each in module.named_parameters(remove_duplicate=False) if each.is_meta]
    for name in wanted:
        if name not in places:
            raise UnsupportedModel(
                f"{name}: capture computes it from other weights, which are not in memory; save the network with that "
                "computed, or load it without --memory"
            )
        owner, _, attribute = name.rpartition(".")
        if owner:
            put(module, name, dataclasses.replace(places[name], room=room).read)
        else:
            module._parameters[attribute] = nn.Parameter(places[name].read(), requires_grad=False)


def put(module: nn.Module, name: str, read: Read) -> None:
    """Let the module read that tensor so from now on."""
    owner, _, attribute = name.rpartition(".")
    holder = module.get_submodule(owner)
    if "stored" not in holder.__dict__:
        lazy = _Holder.__new__(_Holder)
        lazy.__dict__.update(holder.__dict__, stored={})
        module.set_submodule(owner, lazy)
        holder = lazy
    leave(holder, attribute, read)


def leave(holder: Any, name: str, read: Read) -> None:
    """Let a module that has a dict `stored` read one of its own parameters or buffers so, and keep no numbers of it."""
    holder.stored[name] = read
    if (buffer := holder._buffers.get(name)) is not None:
        holder._buffers[name] = buffer.to("meta")


def read_of(module: nn.Module, node: fx.Node) -> Read | None:
    """What reads the node's tensor from its file; None for one that is in memory."""
    holder, name = split_name(module, str(node.target))
    return holder.__dict__.get("stored", {}).get(name)


def stored_weights_of(module: nn.Module) -> list[tuple[str, str, int, int]]:
    """Name, file, place in it and time of its last change, of each weight that is in a file."""
    rows = []
    for prefix, holder in module.named_modules():
        for name, read in holder.__dict__.get("stored", {}).items():
            tensor = getattr(read, "__self__", None)
            if isinstance(tensor, StoredTensor):
                changed = tensor.path.stat().st_mtime_ns
                rows.append((f"{prefix}.{name}", str(tensor.path), tensor.offset, changed))
    return rows


class _View(NamedTuple):
    """A part of a stored tensor, or another order of its numbers."""

    read: Read
    shape: torch.Size
    stride: tuple[int, ...]
    offset: int


class Waiting:
    """What a backward pass needs: in memory, or, for a network that does not fit there, in a file without a name."""

    def __init__(self, room: Room | None) -> None:
        self.spill = None if room is None else scratch(room)

    @contextmanager
    def forward(self) -> Iterator[None]:
        """While the block runs, what torch keeps for the backward pass goes to the file; weights are read again."""
        if self.spill is None:
            yield
        else:
            with torch.autograd.graph.saved_tensors_hooks(self._pack, self._unpack):
                yield

    def hold(self, tensor: Tensor) -> Read:
        """A function that returns the tensor."""
        tensor = tensor.detach()
        if self.spill is None or tensor.nbytes < SMALL:
            return lambda: tensor
        return self.spill.held(tensor)

    def _pack(self, tensor: Tensor) -> Any:
        read = getattr(tensor.untyped_storage(), "mixbit_read", None)
        if read is None:
            return self.hold(tensor)
        return _View(read, tensor.shape, tensor.stride(), int(tensor.storage_offset()))

    @staticmethod
    def _unpack(held: Any) -> Tensor:
        if isinstance(held, _View):
            return held.read().as_strided(held.shape, held.stride, held.offset)
        return held()


def scratch(room: Room) -> Spill:
    """A new file in the room's folder for what does not fit into memory."""
    return Spill(room.scratch, "scratch", "give a folder with more room by --scratch (scratch= in Python)")
