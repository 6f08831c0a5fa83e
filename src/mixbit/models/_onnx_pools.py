"""What ONNX's poolings and resizings are in torch.

Each function has the name and the attributes of its operator; an input that is left out is None.
"""
# ruff: noqa: ARG001, N802, PLR0913, PLR0917 names and arguments are ONNX's, and so is what they mean

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from mixbit.models._onnx_layers import padded, paddings
from mixbit.models._onnx_numbers import Number, listed, tensor

_MAX = {1: functional.max_pool1d, 2: functional.max_pool2d, 3: functional.max_pool3d}
_MEAN = {1: functional.avg_pool1d, 2: functional.avg_pool2d, 3: functional.avg_pool3d}
_ALL_MEAN = {1: functional.adaptive_avg_pool1d, 2: functional.adaptive_avg_pool2d, 3: functional.adaptive_avg_pool3d}


def MaxPool(
    x: Tensor,
    *,
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    dilations: list[int] | None = None,
    kernel_shape: list[int],
    pads: list[int] | None = None,
    storage_order: int = 0,
    strides: list[int] | None = None,
) -> Tensor:
    dims = len(kernel_shape)
    strides, dilations = strides or [1] * dims, dilations or [1] * dims
    around = paddings(x, kernel_shape, strides, dilations, auto_pad, pads)
    wide, padding = _with_room(x, around, kernel_shape, -math.inf)
    y = _MAX[dims](wide, kernel_shape, strides, padding, dilations, bool(ceil_mode))
    return _within(y, x, around, strides) if ceil_mode and wide is not x else y


def _within(y: Tensor, x: Tensor, around: list[Any], strides: list[int]) -> Tensor:
    """What a pool made of a tensor that was padded before, without windows that begin behind all of its numbers."""
    for axis, ((before, _), stride) in enumerate(zip(around, strides, strict=True), 2):
        first: Any = -(-(x.shape[axis] + before) // stride)
        y = y[(slice(None),) * axis + (slice(None, first),)]
    return y


def _with_room(x: Tensor, around: list[Any], kernel: list[int], fill: float) -> tuple[Tensor, list[Any]]:
    """As `padded`; torch's pools pad by half of their kernel at most."""
    if any(before is behind and before > width // 2 for (before, behind), width in zip(around, kernel, strict=True)):
        return functional.pad(x, [size for pair in reversed(around) for size in pair], value=fill), [0] * len(kernel)
    return padded(x, around, fill)


def AveragePool(
    x: Tensor,
    *,
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    count_include_pad: int = 0,
    dilations: list[int] | None = None,
    kernel_shape: list[int],
    pads: list[int] | None = None,
    strides: list[int] | None = None,
) -> Tensor:
    dims = len(kernel_shape)
    if dilations and any(size != 1 for size in dilations):
        raise ValueError(f"dilations {dilations} of a mean are not followed; write it as a convolution")
    strides = strides or [1] * dims
    around = paddings(x, kernel_shape, strides, [1] * dims, auto_pad, pads)
    wide, padding = _with_room(x, around, kernel_shape, 0.0)
    if wide is x:
        return _MEAN[dims](x, kernel_shape, strides, padding, bool(ceil_mode), bool(count_include_pad))
    y = _MEAN[dims](wide, kernel_shape, strides, padding, bool(ceil_mode))
    if not count_include_pad:
        ones, _ = _with_room(x.new_ones((1, 1, *x.shape[2:])), around, kernel_shape, 0.0)
        y = y / _MEAN[dims](ones, kernel_shape, strides, padding, bool(ceil_mode))
    return _within(y, x, around, strides) if ceil_mode else y


def LpPool(
    x: Tensor,
    *,
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    dilations: list[int] | None = None,
    kernel_shape: list[int],
    p: int = 2,
    pads: list[int] | None = None,
    strides: list[int] | None = None,
) -> Tensor:
    if ceil_mode:
        raise ValueError("ceil_mode is not followed; pad the input instead")
    mean = AveragePool(
        x.abs() ** p,
        auto_pad=auto_pad,
        count_include_pad=1,
        dilations=dilations,
        kernel_shape=kernel_shape,
        pads=pads,
        strides=strides,
    )
    return (mean * math.prod(kernel_shape)) ** (1 / p)


def GlobalAveragePool(x: Tensor) -> Tensor:
    return _ALL_MEAN[x.ndim - 2](x, 1)


def GlobalMaxPool(x: Tensor) -> Tensor:
    return torch.amax(x, tuple(range(2, x.ndim)), keepdim=True)


def GlobalLpPool(x: Tensor, *, p: int = 2) -> Tensor:
    return (x.abs() ** p).sum(tuple(range(2, x.ndim)), keepdim=True) ** (1 / p)


def Upsample(x: Tensor, given: Number = None, *, mode: str = "nearest", scales: list[float] | None = None) -> Tensor:
    scales = given if scales is None else scales
    return Resize(
        x, None, scales, mode=mode, coordinate_transformation_mode="asymmetric", nearest_mode="floor", opset=9
    )


def Resize(
    x: Tensor,
    roi: Number = None,
    scales: Number = None,
    sizes: Number = None,
    *,
    antialias: int = 0,
    axes: list[int] | None = None,
    coordinate_transformation_mode: str | None = None,
    cubic_coeff_a: float = -0.75,
    exclude_outside: int = 0,
    extrapolation_value: float = 0.0,
    keep_aspect_ratio_policy: str = "stretch",
    mode: str = "nearest",
    nearest_mode: str = "round_prefer_floor",
    opset: int,
) -> Tensor:
    if opset < 11:  # there the second input are the scales, and coordinates are those of Upsample
        scales, coordinate_transformation_mode, nearest_mode = scales or roi, "asymmetric", "floor"
    coordinates = coordinate_transformation_mode or "half_pixel"
    if keep_aspect_ratio_policy != "stretch" or exclude_outside or coordinates == "tf_crop_and_resize":
        raise ValueError("crops, kept aspect ratios and exclude_outside are not followed; resize to a size instead")
    places = list(range(x.ndim)) if axes is None else [axis % x.ndim for axis in axes]
    new: list[Any] = list(x.shape)
    ratio = [1.0] * x.ndim
    if sizes:
        for axis, size in zip(places, listed(sizes), strict=True):
            if axis > 1 or axes is not None or (isinstance(size, int) and isinstance(x.shape[axis], int)):
                new[axis], ratio[axis] = size, size / x.shape[axis]
    else:
        for axis, scale in zip(places, listed(scales), strict=True):
            new[axis], ratio[axis] = (x.shape[axis], 1.0) if scale == 1 else (None, float(scale))
    changed = [axis for axis in range(x.ndim) if not (isinstance(ratio[axis], float) and ratio[axis] == 1)]
    if not changed:
        return x
    ends = [math.floor(x.shape[axis] * ratio[axis]) if new[axis] is None else new[axis] for axis in changed]
    if coordinates == "pytorch_half_pixel" and 1 not in ends:
        coordinates = "half_pixel"
    plain = _interpolated(x, mode, coordinates, nearest_mode, bool(antialias), cubic_coeff_a)
    if plain is not None and min(changed) > 1 and x.ndim in (3, 4, 5):
        name, aligned = plain
        # by the ratio, where places depend on it: a size that is not a whole multiple is rounded
        size, scale, fixed = (new[2:], None, None) if sizes else (None, ratio[2:], False)
        return functional.interpolate(x, size, scale, name, aligned, fixed, bool(antialias))
    for axis, size in zip(changed, ends, strict=True):
        x = _resized(x, axis, int(size), ratio[axis], mode, coordinates, nearest_mode)
    return x


def _interpolated(
    x: Tensor, mode: str, coordinates: str, nearest_mode: str, antialias: bool, coefficient: float
) -> tuple[str, bool | None] | None:
    """Name and `align_corners` of torch's own interpolation that does the same; None where there is none."""
    if mode == "nearest":
        if coordinates == "asymmetric" and nearest_mode == "floor":
            return "nearest", None
        is_exact = coordinates == "half_pixel" and nearest_mode == "round_prefer_ceil"
        return ("nearest-exact", None) if is_exact else None
    if coordinates not in ("half_pixel", "align_corners"):
        return None
    aligned = coordinates == "align_corners"
    if mode == "linear":
        return ({3: "linear", 4: "bilinear", 5: "trilinear"}.get(x.ndim, ""), aligned) if x.ndim in (3, 4, 5) else None
    return ("bicubic", aligned) if x.ndim == 4 and coefficient == -0.75 else None


def _resized(x: Tensor, axis: int, size: int, ratio: float, mode: str, coordinates: str, nearest_mode: str) -> Tensor:
    """One dimension resized by look-ups; places and shares are constants."""
    have = int(x.shape[axis])
    at = [_source(place, size, have, ratio, coordinates) for place in range(size)]
    if mode == "nearest":
        round_to = {
            "floor": math.floor,
            "ceil": math.ceil,
            "round_prefer_floor": lambda place: math.ceil(place - 0.5),
            "round_prefer_ceil": lambda place: math.floor(place + 0.5),
        }[nearest_mode]
        return x.index_select(axis, tensor([min(max(round_to(place), 0), have - 1) for place in at], x))
    if mode != "linear":
        raise ValueError(f"mode {mode} at {coordinates} is not followed; export with half_pixel or align_corners")
    at = [min(max(place, 0.0), have - 1.0) for place in at]
    low = [math.floor(place) for place in at]
    shares = tensor([place - below for place, below in zip(at, low, strict=True)], x, x.dtype)
    shares = shares.reshape([-1] + [1] * (x.ndim - 1 - axis))
    below, above = (x.index_select(axis, tensor([min(place + more, have - 1) for place in low], x)) for more in (0, 1))
    return below + (above - below) * shares


def _source(place: int, size: int, have: int, exact: float, coordinates: str) -> Any:
    """Where the place of the output lies in the input, in float32 as runtimes compute it: roundings may hang on it."""
    ratio = np.float32(exact)
    match coordinates:
        case "asymmetric":
            return np.float32(place) / ratio
        case "align_corners":
            return 0.0 if size == 1 else np.float32(place * (have - 1)) / np.float32(size - 1)
        case "pytorch_half_pixel" if size == 1:
            return 0.0
        case "half_pixel_symmetric":
            shift = np.float32(have / 2) * (1 - np.float32(size) / (ratio * np.float32(have)))
            return shift + np.float32(place + 0.5) / ratio - np.float32(0.5)
        case "half_pixel" | "pytorch_half_pixel":
            return np.float32(place + 0.5) / ratio - np.float32(0.5)
    raise ValueError(f"coordinates {coordinates} are not followed; export with half_pixel or align_corners")


def GridSample(
    x: Tensor, grid: Tensor, *, align_corners: int = 0, mode: str = "linear", padding_mode: str = "zeros"
) -> Tensor:
    name = {"linear": "bilinear", "cubic": "bicubic"}.get(mode, mode)
    return functional.grid_sample(x, grid, name, padding_mode, bool(align_corners))
