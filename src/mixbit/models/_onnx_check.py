"""The module beside onnxruntime, which runs the file itself: inputs that the file takes, and whether both agree."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from mixbit.core import InvalidInput, UnsupportedModel, quoted, reason_of, users_code
from mixbit.models._onnx_elementwise import TYPES
from mixbit.models._onnx_file import OnnxFile, Port, needed

#: Largest difference from onnxruntime, in units of the largest number of the output.
TOLERANCE = 1e-3
#: Smallest share of equal integers: ties may go another way.
EQUAL = 0.99
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
            inputs = example(file.inputs, few, free)
            failure = _failure(runtime, inputs) or _failure(runtime, example(file.inputs, more, free))
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


def example(ports: Sequence[Port], samples: int, free: int) -> dict[str, Tensor]:
    """Seeded inputs: normal numbers; of integers zeros and ones, of truth values either, the first of them true."""
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
            made[port.name] = torch.randn(sizes, generator=generator, dtype=kind)
            continue
        value = torch.randint(0, 2, sizes, generator=generator)
        if value.ndim > 1:
            value.select(-1, 0).fill_(1)
        made[port.name] = value.to(kind)
    return made


def check(file: OnnxFile, runtime: Runtime, module: fx.GraphModule, found: Tried) -> None:
    """Raise UnsupportedModel, with figures and the first node that differs, unless module and file agree.

    They are compared on the example and on another number of samples; a file of one batch size runs sample by sample.
    """
    count = found.samples
    for rows in (count, MORE if found.any_batch else 2 * count):
        inputs = example(file.inputs, rows, found.free)
        with users_code(lambda error: _fixed(file, error)), torch.no_grad():
            got = module(*inputs.values())
        whole = found.any_batch or rows == count
        parts = [inputs] if whole else [_rows(inputs, start, count) for start in range(0, rows, count)]
        expected = [_joined(values) for values in zip(*map(runtime, parts), strict=True)]
        for name, want in zip(runtime.names, expected, strict=True):
            difference = _difference(got[name], want)
            if difference is not None:
                where = first_difference(file, module, inputs) if whole else f"; {_ONE_BATCH}"
                what = f"its output {quoted(name)} differs from onnxruntime's for {rows} samples: {difference}{where}"
                raise UnsupportedModel(f"MODEL {file.path}: made into torch, {what}")


_ONE_BATCH = "the file is for one batch size, and samples touch one another in it: export it with a batch of any size"


def _fixed(file: OnnxFile, error: BaseException) -> UnsupportedModel:
    return UnsupportedModel(
        f"MODEL {file.path}: made into torch, it fails on another batch: {reason_of(error)}; {_ONE_BATCH}"
    )


def _rows(inputs: Mapping[str, Tensor], start: int, count: int) -> dict[str, Tensor]:
    return {name: value[start : start + count] if value.ndim else value for name, value in inputs.items()}


def _joined(values: Sequence[Any]) -> Any:
    return np.concatenate(values) if len(values) > 1 and np.ndim(values[0]) else values[0]


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
    finite = want[want.isfinite()].abs()
    largest = float(finite.max()) if finite.numel() else 1.0
    worst = float(torch.where(same, 0.0, (got - want).abs().nan_to_num(float("inf"))).max())
    return (
        None if worst <= TOLERANCE * max(largest, 1e-6) else f"by {worst:.2g} where the largest number is {largest:.2g}"
    )


def first_difference(file: OnnxFile, module: fx.GraphModule, inputs: Mapping[str, Tensor]) -> str:
    """The first node of the file whose output differs, with figures; empty where its values cannot be had."""
    onnx, ort = needed("onnx"), needed("onnxruntime")
    names = {node.meta["output"]: node for node in module.graph.nodes if "output" in node.meta}
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
