"""The module beside onnxruntime, which runs the file itself: inputs that the file takes, and whether both agree."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from mixbit.core import InvalidInput, UnsupportedModel, quoted, reason_of, users_code
from mixbit.models._onnx_elementwise import TYPES
from mixbit.models._onnx_file import OnnxFile, Port, needed

#: Largest difference from onnxruntime, in units of the largest number around, see `_scales`.
TOLERANCE = 1e-3
#: Smallest scale of a number, in units of the largest of the output.
FLOOR = 0.03
#: Smallest share of equal integers: ties may go another way.
EQUAL = 0.999
#: Samples of the example, and of the one that it is compared with.
FEW, MORE = 2, 3
#: Sizes that are tried for dimensions of any size.
_SIZES = (32, 64, 16, 224, 8, 128, 256, 3, 1)
_SEED = 0


@dataclass(frozen=True)
class Tried:
    """Inputs that onnxruntime takes.

    Attributes:
        inputs: By name.
        samples: How many they are.
        free: The size of their dimensions of any size.
        any_batch: Whether the file takes any number of samples.
    """

    inputs: Mapping[str, Tensor]
    samples: int
    free: int
    any_batch: bool


class Runtime:
    """onnxruntime on the file, on the CPU."""

    def __init__(self, file: OnnxFile) -> None:
        ort = needed("onnxruntime")
        options = ort.SessionOptions()
        options.log_severity_level = 4
        with users_code(lambda error: InvalidInput(f"MODEL {file.path}: onnxruntime refuses it: {_said(error)}")):
            self.session = ort.InferenceSession(file.runnable(), options, providers=["CPUExecutionProvider"])
        self.names = [each.name for each in self.session.get_outputs()]

    def __call__(self, inputs: Mapping[str, Tensor]) -> list[Any]:
        """What the file returns."""
        return self.session.run(None, {name: value.numpy() for name, value in inputs.items()})


def tried(file: OnnxFile, runtime: Runtime) -> Tried:
    """Inputs of the declared shapes that the file takes, for two samples where it can.

    Raises:
        InvalidInput: onnxruntime takes none; the message names the dimensions that have no name and no size.
    """
    fixed = {port.sizes[0] for port in file.inputs if port.sizes and isinstance(port.sizes[0], int)}
    counts = [(max(fixed), max(fixed))] if fixed else [(FEW, MORE), (1, 1)]  # it may say any, and hold one inside
    names = {size for port in file.inputs for size in port.sizes[1:] if not isinstance(size, int)}
    failure = None
    for few, more in counts:
        for free in _SIZES if names else _SIZES[:1]:
            inputs = drawn(file.inputs, few, free)
            failure = _failure(runtime, inputs) or _failure(runtime, drawn(file.inputs, more, free))
            if failure is None:
                return Tried(inputs, few, free, few != more)
    raise InvalidInput(f"MODEL {file.path}: onnxruntime runs it on no shape that was tried: {failure}{_unnamed(file)}")


def _failure(runtime: Runtime, inputs: Mapping[str, Tensor]) -> str | None:
    try:
        with users_code("onnxruntime fails"):
            runtime(inputs)
    except InvalidInput as error:
        return _said(error)
    return None


def _unnamed(file: OnnxFile) -> str:
    places = [
        f"{quoted(port.name)}:{axis}" for port in file.inputs for axis, size in enumerate(port.sizes) if size is None
    ]
    if not places:
        return ""
    return (
        f"; these dimensions have neither a size nor a name: {', '.join(places)}; name them or give their sizes, as "
        "onnx.tools.update_model_dims does"
    )


def drawn(ports: Sequence[Port], samples: int, free: int, *, positive: bool = False) -> dict[str, Tensor]:
    """Seeded inputs: normal numbers, or where `positive` those between 0 and 1; of integers zeros and ones.

    Of truth values and integers, the first of each row is true, or 1.
    """
    generator = torch.Generator().manual_seed(_SEED)
    made = {}
    for port in ports:
        sizes = [size if isinstance(size, int) else free for size in port.sizes]
        if port.sizes:
            sizes[0] = samples
        kind = TYPES.get(port.kind)
        if kind is None:
            raise UnsupportedModel(f"input {quoted(port.name)}: ONNX's type {port.kind} is not followed; give numbers")
        if kind.is_floating_point:
            draw = torch.rand if positive else torch.randn
            made[port.name] = draw(sizes, generator=generator, dtype=kind)
            continue
        value = torch.randint(0, 2, sizes, generator=generator)
        if value.ndim > 1:
            value.select(-1, 0).fill_(1)
        made[port.name] = value.to(kind)
    return made


def check(file: OnnxFile, runtime: Runtime, module: fx.GraphModule, found: Tried) -> None:
    """Raise UnsupportedModel, with figures and the first node that differs, unless module and file agree.

    They are compared for several numbers of samples, one among them, and for all sizes of free dimensions that the file
    takes: a branch of the file may go the other way there. A file of one batch size runs sample by sample.
    """
    unseen = set(runtime.names)
    for inputs, expected, is_tried in _compared(file, runtime, found):
        sizes = ", ".join(f"{quoted(name)} {list(value.shape)}" for name, value in inputs.items())
        try:
            with users_code(lambda error: _failing(file, error, found)), torch.no_grad():
                got = module(*inputs.values())
        except UnsupportedModel:
            if is_tried:
                raise
            continue  # a size that the network itself may not take
        for name, want in zip(runtime.names, expected, strict=True):
            difference = _difference(got[name], want)
            if difference is not None:
                where = _where(file, module, inputs, found)
                what = f"its output {quoted(name)} differs from onnxruntime's for {sizes}: {difference}{where}"
                raise UnsupportedModel(f"MODEL {file.path}: made into torch, {what}")
            if not np.size(want) or np.isfinite(want).any():
                unseen.discard(name)
    if unseen:
        raise UnsupportedModel(
            f"MODEL {file.path}: its output {quoted(min(unseen))} has no finite number on any input that was tried, so "
            "that it cannot be compared; give the network as a function in Python"
        )


_ONE_BATCH = "the file is for one batch size, and samples touch one another in it: export it with a batch of any size"


def _compared(
    file: OnnxFile, runtime: Runtime, found: Tried
) -> Iterator[tuple[Mapping[str, Tensor], Sequence[Any], bool]]:
    """Inputs, what the file returns for them, and whether they are of the sizes that were tried before."""
    count = found.samples
    yield found.inputs, runtime(found.inputs), True
    if not found.any_batch:
        if count > 1:
            whole = runtime(found.inputs)
            yield (
                _rows(found.inputs, 0, 1),
                [each[: len(each) // count] if np.ndim(each) else each for each in whole],
                True,
            )
        inputs = drawn(file.inputs, 2 * count, found.free, positive=True)
        parts = [runtime(_rows(inputs, start, count)) for start in (0, count)]
        yield inputs, [np.concatenate(pair) if np.ndim(pair[0]) else pair[0] for pair in zip(*parts, strict=True)], True
        return
    has_free = any(not isinstance(size, int) for port in file.inputs for size in port.sizes[1:])
    for rows, free in ((MORE, found.free), *((1, size) for size in (_SIZES if has_free else (found.free,)))):
        inputs = drawn(file.inputs, rows, free, positive=rows == MORE)
        if _failure(runtime, inputs) is None:
            yield inputs, runtime(inputs), free == found.free


def _where(file: OnnxFile, module: fx.GraphModule, inputs: Mapping[str, Tensor], found: Tried) -> str:
    """Where the difference comes from, as far as it can be told."""
    is_tried = inputs is found.inputs
    branches = [node.name or node.output[0] for node in file.proto.graph.node if node.op_type == "If"]
    if branches and not is_tried:
        return f"; which way {quoted(branches[0])} (If) goes may depend on sizes: export one of both ways"
    if not found.any_batch and not is_tried:
        return f"; {_ONE_BATCH}"
    try:
        return first_difference(file, module, inputs)
    except InvalidInput:  # the tensors inside cannot be read
        return ""


def _failing(file: OnnxFile, error: BaseException, found: Tried) -> UnsupportedModel:
    why = "" if found.any_batch else f"; {_ONE_BATCH}"
    return UnsupportedModel(f"MODEL {file.path}: made into torch, it fails on another batch: {reason_of(error)}{why}")


def _rows(inputs: Mapping[str, Tensor], start: int, count: int) -> dict[str, Tensor]:
    return {name: value[start : start + count] if value.ndim else value for name, value in inputs.items()}


def _difference(got: Any, want: Any) -> str | None:
    """How far the outputs are apart, in words; None where they agree."""
    want = torch.as_tensor(want)
    if not isinstance(got, Tensor) or got.shape != want.shape:
        return f"shape {tuple(got.shape) if isinstance(got, Tensor) else type(got).__name__} for {tuple(want.shape)}"
    if not want.numel():
        return None
    if not want.is_floating_point():
        share = float((got == want).double().mean())
        return None if share >= EQUAL else f"{1 - share:.1%} of its integers are others"
    same = (got == want) | (got.isnan() & want.isnan())
    apart = torch.where(same, 0.0, (got - want).abs().nan_to_num(float("inf")))
    far = apart - TOLERANCE * _scales(want)
    place = int(far.argmax())
    if far.flatten()[place] <= 0:
        return None
    return f"by {apart.flatten()[place]:.2g} where the largest number is {_scales(want).max():.2g}"


def _scales(x: Tensor) -> Tensor:
    """The largest number around each number: the least of those of its row, its column and so on.

    An output may hold places of hundreds of pixels beside scores of 0 to 1, and a mask of -1e9. What is less than a
    thirtieth of TOLERANCE of the largest number of all counts as rounding.
    """
    sizes = torch.where(x.isfinite(), x.abs(), 0.0)
    scales = largest = sizes.max()
    for axis in range(x.ndim if x.ndim > 1 else 0):
        others = [each for each in range(x.ndim) if each != axis]
        scales = torch.minimum(scales, sizes.amax(others, keepdim=True))
    return torch.clamp_min(scales, max(float(largest) * FLOOR, 1e-6)).expand(x.shape)


def first_difference(file: OnnxFile, module: fx.GraphModule, inputs: Mapping[str, Tensor]) -> str:
    """The first node of the file whose output differs, with figures; empty where none of them does.

    Raises InvalidInput where onnxruntime does not give what they make.
    """
    onnx, ort = needed("onnx"), needed("onnxruntime")
    own = {name for node in file.proto.graph.node for name in node.output}  # of branches and loops, none can be read
    names = {node.meta["output"]: node for node in module.graph.nodes if node.meta.get("output") in own}
    if not names:
        return ""
    proto = onnx.ModelProto()
    proto.CopyFrom(file.proto)
    have = {value.name for value in proto.graph.output}
    proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in have)
    with users_code("the tensors inside cannot be read"):
        options = ort.SessionOptions()
        options.log_severity_level = 4
        session = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
        wanted = [each.name for each in session.get_outputs() if each.name in names]
        made = session.run(wanted, {name: value.numpy() for name, value in inputs.items()})
    seen = dict(zip(wanted, made, strict=True))
    interpreter = _Kept(module)
    with torch.no_grad():
        interpreter.run(*inputs.values())
    for name, node in names.items():
        value = interpreter.kept.get(node.name)
        difference = _difference(value, seen[name]) if isinstance(value, Tensor) and name in seen else None
        if difference is not None:
            return f"; first at node {quoted(node.meta['node'])}: {difference}; please report it with the file"
    return ""


class _Kept(fx.Interpreter):
    """Keeps what each node makes."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.kept: dict[str, Any] = {}

    def run_node(self, n: fx.Node) -> Any:
        """As torch's, and note it."""
        made = self.kept[n.name] = super().run_node(n)
        return made


def _said(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
