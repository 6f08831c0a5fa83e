"""onnxruntime's `quantize_static`: 8 bits in QDQ form, a scale per output channel, after `quant_pre_process`.

Activations in uint8 and weights in int8, as its documentation recommends for x86 processors with VNNI; ranges of
activations by the smallest and largest value (`minmax`), or by `entropy` or `percentile`.
"""

import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from benchmarks.contest_tools._tool import Job, Method, Quantized, Stored

REQUIREMENTS = ("onnxruntime==1.31.1", "onnxscript", "sympy")
METHODS = {"minmax": Method((8,)), "entropy": Method((8,)), "percentile": Method((8,))}


def quantize(job: Job, method: str) -> Quantized:
    """The network as an ONNX file, quantized, in a plain session."""
    import onnx
    import onnxruntime
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    prepared, small = job.folder / "prepared.onnx", job.folder / "small.onnx"
    quant_pre_process(job.export_onnx(), prepared)
    name = onnxruntime.InferenceSession(prepared).get_inputs()[0].name

    class Reader(quantization.CalibrationDataReader):
        def __init__(self) -> None:
            self.batches: Iterator[Tensor] = iter(job.inputs)

        def get_next(self) -> dict[str, np.ndarray] | None:
            batch = next(self.batches, None)
            return None if batch is None else {name: batch.numpy()}

    ranges = {"minmax": "MinMax", "entropy": "Entropy", "percentile": "Percentile"}[method]
    quantization.quantize_static(
        prepared,
        small,
        Reader(),
        per_channel=True,
        activation_type=quantization.QuantType.QUInt8,
        weight_type=quantization.QuantType.QInt8,
        calibrate_method=quantization.CalibrationMethod[ranges],
    )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(small, options)
    shapes = {each.name: tuple(each.dims) for each in onnx.load(small).graph.initializer}
    weights = [
        Stored(math.prod(shapes[node.input[0]]), 8, math.prod(shapes[node.input[1]]))
        for node in onnx.load(small).graph.node
        if node.op_type == "DequantizeLinear" and len(shapes.get(node.input[0], ())) > 1
    ]
    return Quantized(lambda batch: torch.from_numpy(session.run(None, {name: batch.numpy()})[0]), weights)
