"""What files of targets hold of a quantized graph: integers and small floats, their names and their bytes."""

import dataclasses
import importlib
import math
import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx

from mixbit.core import Format, InvalidInput, Plan, Scheme, Sparsity, StoredWeight, TargetMismatch, UnsupportedModel
from mixbit.graph import Graph, Layer, argument, packet
from mixbit.graph.recurrent import recurrence_of
from mixbit.quantization.affine import factor_bytes, num_zeros, pack, packed_bytes
from mixbit.quantization.quantizer import Quantizer, quantizer_path, weight_quantizers

#: Widths and lengths of groups of onnxruntime's MatMulNBits, and those of them with which it rounds no inputs.
BLOCK_BITS, BLOCK_SIZES, UNROUNDED_BLOCKS = (2, 4, 8), (16, 32, 64, 128, 256), ((2, 16), (2, 256))
#: Its accuracy_level at which each group of the input becomes x / scale in int8, with scale = max |x| / 127.
ROUNDS_INPUTS = 4
#: Between a layer's name and the part of its weight, in names of tensors.
SEPARATOR = "::"
#: Between a layer's name and the number of a further operator that reads its weight, in names of operators.
FURTHER = "#"
#: Before the name of a tensor, in names of the operators that quantize it in OpenVINO.
QUANTIZER = f"quantize{SEPARATOR}"
#: What the stored mask is called, behind the weight's name.
MASK = "mask"

_NO_TELEMETRY, _TELEMETRY = "ORT_DISABLE_TELEMETRY", "openvino_telemetry"
_POOLS = {torch.ops.aten.avg_pool1d: 1, torch.ops.aten.avg_pool2d: 2, torch.ops.aten.avg_pool3d: 3}


@dataclass(frozen=True)
class CountedPool:
    """An average pool that counts the padding in its windows.

    Attributes:
        node: The pool.
        channels, sizes: Of the tensor that it reads; sizes that are dynamic are no numbers.
        kernel, stride, padding: Of each dimension of the windows.
        rounded_up: `ceil_mode`: whether the last windows may reach beyond the padding, which is not counted.
        shares: What the pool makes of ones, which is the part of each window that is inside: [1, *sizes]; None where
            sizes are dynamic.
    """

    node: fx.Node
    channels: int
    sizes: list[Any]
    kernel: list[int]
    stride: list[int]
    padding: list[int]
    rounded_up: bool
    shares: Tensor | None


def counted_pools(graph: Graph) -> list[CountedPool]:
    """The average pools of the graph that count their padding, as torch's do by default."""
    pools = []
    for node in graph.module.graph.nodes:
        number = _POOLS.get(packet(node))
        if number is None or not argument(node, 5, True) or argument(node, 6) is not None:
            continue
        read = argument(node, 0).meta["val"]
        channels, *sizes = read.shape[-number - 1 :]
        if isinstance(channels, int):  # else it pools over samples
            kernel = argument(node, 1)
            given = (kernel, argument(node, 2) or kernel, argument(node, 3, 0))
            kernel, stride, padding = (np.broadcast_to(sizes, number).tolist() for sizes in given)
            known = all(isinstance(size, int) for size in sizes)
            shares = node.target(torch.ones(1, *sizes, device=read.device), *node.args[1:]) if known else None
            rounded_up = argument(node, 4, False)
            pools.append(CountedPool(node, channels, sizes, kernel, stride, padding, rounded_up, shares))
    return pools


@dataclass(frozen=True)
class IntegerWeight:
    """One layer's weight in integers: weight = (integers - zero_point) x scale.

    Attributes:
        name: Full name of the parameter.
        integers: int8, between -2^(bits-1) and 2^(bits-1)-1; or, with zero points, uint8, between 0 and 2^bits-1.
        scale: float32: [channels], [1] for the tensor, or [channels, groups].
        axis: The channels' axis.
        bits: Width in the file.
        read: Format of the layer's input; None where that stays in float.
        zero_point: uint8, shaped like the scale; None where the format is symmetric.
        mask: Where the integers of a sparse format stay, in their shape; the others are 0. None elsewhere.
    """

    name: str
    integers: NDArray[Any]
    scale: NDArray[np.float32]
    axis: int
    bits: int
    read: Format | None
    zero_point: NDArray[np.uint8] | None
    mask: NDArray[np.bool_] | None

    @property
    def quantizer(self) -> str:
        """Full name of its quantizer in the graph, before the names of the scale and zero points."""
        return quantizer_path(self.name, of_weight=True)

    @property
    def unsigned(self) -> NDArray[np.uint8]:
        """The integers plus `offset`: 0 .. 2^bits-1, as they are `laid_out`."""
        return (self.laid_out.astype(np.int16) + self.offset).astype(np.uint8)

    @property
    def offset(self) -> int:
        """2^(bits-1), or 0 with zero points."""
        return 2 ** (self.bits - 1) if self.zero_point is None else 0

    @property
    def grouped(self) -> bool:
        """Whether there is a scale for each group of a channel's weights."""
        return self.scale.ndim > 1

    @property
    def laid_out(self) -> NDArray[Any]:
        """The integers as files hold them: in their shape, [channels, groups, weights], or in a row those that stay."""
        if self.mask is not None:
            return self.integers[self.mask]
        if not self.grouped:
            return self.integers
        return np.moveaxis(self.integers, self.axis, 0).reshape(*self.scale.shape, -1)

    @property
    def packed_mask(self) -> NDArray[np.uint8]:
        """The mask in bits, in the order of `mixbit.quantization.affine.pack`; only of a sparse format."""
        (bits,) = pack(np.asarray(self.mask, dtype=np.uint8), 1)
        return bits

    @property
    def channels_first(self) -> tuple[int, ...]:
        """The weight's shape with the channels in front."""
        return tuple(np.moveaxis(self.integers, self.axis, 0).shape)

    @property
    def from_channels_first(self) -> list[int]:
        """The permutation of dimensions that puts the channels back where they belong."""
        return [*range(1, self.axis + 1), 0, *range(self.axis + 1, self.integers.ndim)]

    def column(self, factors: NDArray[Any]) -> NDArray[Any]:
        """The scale or zero points, shaped to act on the integers, in groups as they are `laid_out`."""
        if self.grouped:
            return factors.reshape(*factors.shape, 1)
        return factors.reshape([-1 if dimension == self.axis else 1 for dimension in range(self.integers.ndim)])


def stored_weights(simulated: Graph) -> tuple[dict[str, IntegerWeight], dict[str, Tensor]]:
    """Layer -> its integers, and layer -> its weight in float16 or bfloat16; all other layers stay in float32."""
    integers, floats = {}, {}
    for name, weight in each_stored_weight(simulated):
        if isinstance(weight, IntegerWeight):
            integers[name] = weight
        else:
            floats[name] = weight
    return integers, floats


def each_stored_weight(simulated: Graph) -> Iterator[tuple[str, IntegerWeight | Tensor]]:
    """Layer and its integers, or its weight in float16 or bfloat16, one after the other; without those in float32."""
    plan_of(simulated)
    quantizers = weight_quantizers(simulated)
    for layer in simulated.layers:
        if layer.name in quantizers:
            yield layer.name, stored_weight(simulated, layer, quantizers[layer.name])


def stored_weight(simulated: Graph, layer: Layer, quantizer: Quantizer) -> IntegerWeight | Tensor:
    """The layer's integers, or its weight in float16 or bfloat16, as its quantizer rounds it."""
    weight, fmt = simulated.parameter(layer.name).detach(), quantizer.format
    if fmt.floating is not None:
        return quantizer(weight).cpu().to(getattr(torch, fmt.floating))
    return IntegerWeight(
        layer.name,
        _array(quantizer.integers(weight)).astype(np.int8 if fmt.symmetric else np.uint8),
        _array(quantizer.scale.float()),
        layer.axis,
        fmt.bits,
        plan_of(simulated).scheme(layer.name).input,
        None if fmt.symmetric else _array(quantizer.zero_point).astype(np.uint8),
        None if quantizer.mask is None else _array(quantizer.mask),
    )


def plan_of(simulated: Graph) -> Plan:
    """The plan of a quantized graph; raises InvalidInput for another."""
    if simulated.plan is None:
        raise InvalidInput("graph: not quantized, but in float; give what quantize() returned")
    return simulated.plan


def check_no_recurrence(simulated: Graph) -> None:
    """Raise UnsupportedModel, which names the layer, where there is a recurrence: the target has no operator for it."""
    if (found := recurrence_of(simulated.module)) is not None:
        product, kind = found
        layer, _ = simulated.operations[product]
        raise UnsupportedModel(
            f"{layer.name}: target {plan_of(simulated).target} has no operator for it ({kind}); take onnxruntime or "
            "openvino, which run recurrences whole"
        )


def _array(tensor: Tensor) -> NDArray[Any]:
    return tensor.detach().cpu().numpy()


def in_bytes(fmt: Format | None) -> Format | None:
    """The format with integers of a byte; floats stay."""
    return fmt if fmt is None or fmt.floating is not None else dataclasses.replace(fmt, bits=8)


def num_stored(numel: int, sparsity: Sparsity | None) -> int:
    """How many integers the file holds of a weight of `numel`."""
    return numel if sparsity is None else numel - num_zeros(numel, sparsity)


def weight_bytes(shape: tuple[int, ...], axis: int, fmt: Format | None) -> int:
    """Integers packed per plane with float32 scales, zero points of a byte and the mask; or numbers of 2 bytes."""
    numel = math.prod(shape)
    if fmt is None or fmt.floating is not None:
        return (4 if fmt is None else 2) * numel
    mask = 0 if fmt.sparsity is None else packed_bytes(numel, 1)
    return packed_bytes(num_stored(numel, fmt.sparsity), fmt.bits) + mask + factor_bytes(shape, axis, fmt)


def runtime(target: str, *modules: str, extra: str = "") -> Any:
    """The first of the modules, which sends nothing; raises InvalidInput unless all are installed.

    The extra that installs them is called as the target, unless it is given.
    """
    try:
        with _without_telemetry():
            loaded = [importlib.import_module(module) for module in modules]
    except ImportError as error:
        raise InvalidInput(f"target {target} needs its runtime: pip install 'mixbit[{extra or target}]'") from error
    return loaded[0]


@contextmanager
def _without_telemetry() -> Iterator[None]:
    """Import runtimes so that they send nothing; environment and modules are as before when the block ends.

    onnxruntime looks at the variable once, when it is imported. OpenVINO does without its telemetry where that is
    missing.
    """
    before = os.environ.get(_NO_TELEMETRY)
    os.environ[_NO_TELEMETRY] = "1"
    hidden = "openvino" not in sys.modules and _TELEMETRY not in sys.modules
    if hidden:
        sys.modules[_TELEMETRY] = None  # type: ignore[reportArgumentType] Python's way to say that there is none
    try:
        yield
    finally:
        if hidden:
            del sys.modules[_TELEMETRY]
        if before is None:
            del os.environ[_NO_TELEMETRY]
        else:
            os.environ[_NO_TELEMETRY] = before


@contextmanager
def silent() -> Iterator[None]:
    """Nothing is written to the process's standard error, whoever writes."""
    kept = os.dup(2)
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def operator_name(layer: str, number: int) -> str:
    """Name of the operator of that number that reads the layer's weight; runtimes keep names of operators."""
    return layer if number == 0 else f"{layer}{FURTHER}{number}"


def stored_rows(parts: Iterable[tuple[str, int, str]]) -> dict[str, StoredWeight]:
    """Layer -> its bytes and types, from layer, bytes and type of each part; types once each, that of scales last."""
    sizes, texts = Counter[str](), dict[str, list[str]]()
    for layer, size, text in parts:
        sizes[layer] += size
        texts.setdefault(layer, []).append(text)
    return {
        layer: StoredWeight(
            sizes[layer], ", ".join(sorted(dict.fromkeys(kinds), key=lambda text: text.endswith("scale")))
        )
        for layer, kinds in texts.items()
    }


@contextmanager
def mismatch(failure: str, *errors: type[Exception], line: int = -1) -> Iterator[None]:
    """Raise TargetMismatch for one of the errors: `model.xml: OpenVINO cannot read it: REASON`, a line of its text."""
    try:
        yield
    except errors as error:
        raise TargetMismatch(f"{failure}: {reason_line(error, line)}") from error


def reason_line(error: BaseException, line: int = -1) -> str:
    """The line of that number in the error's text; its type where there is no text."""
    return (str(error).strip().splitlines() or [type(error).__name__])[line]


def only_beside_float(scheme: Scheme) -> str | None:
    """What int8 arithmetic beside a quantized input does not support of the weight's format, for people; else None."""
    weight, read = scheme.weight, scheme.input
    if weight is None or read is None or (weight.group is None and weight.symmetric):
        return None
    kind = "ranged at run time" if read.dynamic else "of static range"
    return f"{'zero point' if weight.group is None else 'group'} not beside inputs {kind}"
