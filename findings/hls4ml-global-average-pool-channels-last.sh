#!/usr/bin/env bash
# hls4ml 1.3.0 with qonnx 1.0.0: a GlobalAveragePool behind the conversion to channels last, which hls4ml asks for, is read
# with its dimensions mixed up; an AveragePool is refused. A depthwise convolution by 1 / positions is exact.
#
# qonnx turns Conv, MaxPool and BatchNormalization to channels last, and puts a Transpose back to channels first before
# the pool. hls4ml takes sizes from that shape, and the data as channels last all the same; nothing is said. AveragePool
# stays in ONNX's own domain, for which hls4ml asks to run the conversion that was run.
#
# Whole numbers x [1, 4, 2, 2] through an identity of 1x1, a ReLU and the pool, in fixed<32,16>, by hls4ml's C++ (g++).
#
# Seen (x86-64), largest difference from the means, which are 2.5, 6.5, 10.5 and 14.5:
#   GlobalAveragePool: 4.5
#   AveragePool of the whole: Please convert the model to channels-last format with qonnx-to-channels-last
#   depthwise convolution: 0
# Fails when this changes.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q numpy==2.4.6 onnx==1.23.2 onnxruntime==1.32.0 qonnx==1.0.0 hls4ml==1.3.0
cd "$work"
"$work/venv/bin/python" - <<'PYTHON'
import contextlib
import io
import warnings

import hls4ml
import numpy as np
from onnx import TensorProto, helper, numpy_helper
from qonnx.core.modelwrapper import ModelWrapper
from qonnx.core.onnx_exec import execute_onnx
from qonnx.transformation.channels_last import ConvertToChannelsLastAndClean
from qonnx.util.cleanup import cleanup_model

warnings.simplefilter("ignore")
CHANNELS, SIZE = 4, 2
X = np.arange(1, 1 + CHANNELS * SIZE * SIZE, dtype=np.float32).reshape(1, CHANNELS, SIZE, SIZE)
MEANS = X.mean((2, 3))
WINDOW = dict(kernel_shape=[SIZE, SIZE], strides=[SIZE, SIZE], pads=[0, 0, 0, 0])
ONE = dict(kernel_shape=[1, 1], strides=[1, 1], pads=[0, 0, 0, 0], dilations=[1, 1], group=1)
POOLS = {
    "GlobalAveragePool": helper.make_node("GlobalAveragePool", ["r"], ["p"]),
    "AveragePool of the whole": helper.make_node("AveragePool", ["r"], ["p"], **WINDOW),
    "depthwise convolution": helper.make_node("Conv", ["r", "share"], ["p"], **WINDOW, dilations=[1, 1], group=CHANNELS),
}


def model_of(pool):
    arrays = {
        "w": np.eye(CHANNELS, dtype=np.float32).reshape(CHANNELS, CHANNELS, 1, 1),
        "share": np.full((CHANNELS, 1, SIZE, SIZE), 1 / SIZE**2, np.float32),
        "shape": np.array([1, CHANNELS]),
    }
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], **ONE),
        helper.make_node("Relu", ["c"], ["r"]),
        pool,
        helper.make_node("Reshape", ["p", "shape"], ["y"]),
    ]
    read = {name for node in nodes for name in node.input}
    graph = helper.make_graph(
        nodes,
        "pool",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, X.shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, MEANS.shape)],
        [numpy_helper.from_array(array, name) for name, array in arrays.items() if name in read],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def designed(name, pool):
    """The largest difference from the means, or what hls4ml says."""
    model = cleanup_model(ModelWrapper(model_of(pool)))
    model = cleanup_model(model.transform(ConvertToChannelsLastAndClean()))
    (kept,) = execute_onnx(model, {model.graph.input[0].name: X}).values()
    assert np.array_equal(kept, MEANS), "qonnx's conversion changes nothing"
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            config = hls4ml.utils.config_from_onnx_model(model, granularity="name", default_precision="fixed<32,16>")
            design = hls4ml.converters.convert_from_onnx_model(
                model, hls_config=config, output_dir=f"design {name}".replace(" ", "_"), backend="Vitis"
            )
            design.compile()
    except RuntimeError as error:
        return str(error)
    return float(abs(design.predict(X).reshape(MEANS.shape) - MEANS).max())


print("means", MEANS.tolist())
seen = {name: designed(name, pool) for name, pool in POOLS.items()}
for name, what in seen.items():
    print(f"{name}: {what}")
assert isinstance(seen["GlobalAveragePool"], float) and seen["GlobalAveragePool"] > 1, seen
assert "channels-last" in str(seen["AveragePool of the whole"]), seen
assert seen["depthwise convolution"] == 0, seen
print("as described")
PYTHON
