"""What compressed-tensors calls mixbit's formats, and the tensors that its compressors make of a layer."""

import math
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from mixbit.core import Format, Scheme
from mixbit.graph import Layer
from mixbit.quantization.affine import factor_bytes
from mixbit.quantization.quantizer import Quantizer

#: How weights are laid out: in words of 32 bits without gaps, or a byte each.
PACKED, IN_BYTES = "pack-quantized", "int-quantized"
#: Bits that take a byte.
WHOLE = 8
#: Of a file with layers in both.
MIXED = "mixed-precision"
#: Classes of modules that the library compresses.
LINEAR, EMBEDDING = "torch.nn.modules.linear.Linear", "torch.nn.modules.sparse.Embedding"
#: Bytes of `weight_shape`, two numbers of 64 bits, and of one word.
SHAPE_BYTES, WORD_BYTES = 16, 4


@dataclass(frozen=True)
class Compressed:
    """One layer: the library's QuantizationScheme of it, without targets, and the tensors of its module by name."""

    scheme: Any
    tensors: dict[str, Tensor]


def lacks(scheme: Scheme) -> str | None:
    """What the library, or transformers that loads its files, lacks for the scheme, for people; None where nothing."""
    weight, read = scheme.weight, scheme.input
    if read is not None and read.granularity != "tensor":
        reason = "divides the range of a row or group by 127.5 steps, not by 127"
        if not read.symmetric:
            reason = "takes one range for all rows of inputs of two dimensions"
        return f"inputs ranged at run time as a whole alone: compressed-tensors {reason}"
    if weight is None or weight.floating is not None:
        return None
    if weight.sparsity is not None:
        return "no zeros left out"
    if not weight.symmetric and weight.bits < WHOLE:
        return f"zero points beside {WHOLE} bits alone: transformers does not load those of packed weights"
    return None


def lacks_for(layer: Layer, scheme: Scheme) -> str | None:
    """What they lack for the layer in that scheme."""
    weight, read = scheme.weight, scheme.input
    if weight is None or weight.floating is not None:
        return None
    if len(layer.modules) > 1:
        return f"{len(layer.modules)} modules hold the weight, and compressed-tensors stores that of each apart"
    if layer.modules not in {(LINEAR,), (EMBEDDING,)}:
        own = [name.rpartition(".")[2] for name in layer.modules if not name.startswith("torch.nn.")]
        return f"compressed-tensors stores weights of torch's Linear and Embedding{', not of '.join(['', *own])}"
    if layer.modules == (EMBEDDING,) and weight.bits < WHOLE:
        return f"an Embedding is stored in {WHOLE} bits or in float: transformers does not load one that is packed"
    if read is not None and not read.dynamic and len(layer.inputs) > 1:
        return f"its module reads {len(layer.inputs)} tensors, and holds one static range"
    return None


def layout(layer: Layer, scheme: Scheme) -> str:
    """How the layer's integers are laid out in that scheme."""
    if scheme.weight is None or scheme.weight.bits != WHOLE:
        return PACKED
    unpacked = not scheme.weight.symmetric or layer.modules == (EMBEDDING,) or _reads(layer, scheme)
    return IN_BYTES if unpacked else PACKED


def _reads(layer: Layer, scheme: Scheme) -> bool:
    """Whether the layer's input is rounded; the indices that an Embedding reads never are."""
    return scheme.input is not None and bool(layer.inputs)


def weight_bytes(shape: tuple[int, ...], axis: int, fmt: Format | None) -> int:
    """Bytes of a weight and its scales where its integers are packed, if they are any."""
    return _bytes(shape, axis, fmt, PACKED)


def layer_bytes(layer: Layer, scheme: Scheme) -> int:
    """Bytes of the layer's weight and scales."""
    return _bytes(layer.shape, layer.axis, scheme.weight, layout(layer, scheme))


def _bytes(shape: tuple[int, ...], axis: int, fmt: Format | None, laid_out: str) -> int:
    rows, numel = shape[axis], math.prod(shape)
    if fmt is None or fmt.floating is not None:
        return (4 if fmt is None else 2) * numel
    if laid_out == IN_BYTES:
        return numel + factor_bytes(shape, axis, fmt)
    words = rows * math.ceil(numel // rows * fmt.bits / 32)
    return WORD_BYTES * words + factor_bytes(shape, axis, fmt) + SHAPE_BYTES


def compressed(layer: Layer, scheme: Scheme, weight: tuple[Quantizer, Tensor], read: Quantizer | None) -> Compressed:
    """A layer in the library's form.

    Args:
        layer: With a weight in integers.
        scheme: Of the layer.
        weight: Its quantizer, and its numbers.
        read: The quantizer of its input, if there is one.
    """
    library: Any = import_module("compressed_tensors.quantization")
    quantizer, numbers = weight
    fmt = quantizer.format
    strategy = "tensor" if fmt.granularity == "tensor" else "group" if fmt.group is not None else "channel"
    inputs = None
    if scheme.input is not None and _reads(layer, scheme):
        bits, dynamic = scheme.input.bits, scheme.input.dynamic
        inputs = library.QuantizationArgs(num_bits=bits, symmetric=False, strategy="tensor", dynamic=dynamic)
    described = library.QuantizationScheme(
        targets=[],
        weights=library.QuantizationArgs(
            num_bits=fmt.bits, symmetric=fmt.symmetric, strategy=strategy, group_size=fmt.group
        ),
        input_activations=inputs,
        format=layout(layer, scheme),
    )
    shape = (-1,) if fmt.granularity == "tensor" else (layer.shape[layer.axis], -1)
    state = {"weight": quantizer(numbers), "weight_scale": quantizer.scale.float().reshape(shape)}
    if not fmt.symmetric:
        state["weight_zero_point"] = _signed(quantizer).reshape(shape)
    compressors: Any = import_module("compressed_tensors.compressors")
    tensors = compressors.BaseCompressor.get_value_from_registry(described.format).compress(state, described)
    if read is not None and not read.format.dynamic:
        scale = read.scale.float().reshape(1).clone()  # files hold no memory twice, and layers may share a quantizer
        tensors |= {"input_scale": scale, "input_zero_point": _signed(read).reshape(1)}
    return Compressed(described, {name: value.detach().cpu().contiguous() for name, value in tensors.items()})


def _signed(quantizer: Quantizer) -> Tensor:
    """The zero points of an asymmetric format, for integers that are signed."""
    return (quantizer.zero_point - 2 ** (quantizer.format.bits - 1)).to(torch.int8)
