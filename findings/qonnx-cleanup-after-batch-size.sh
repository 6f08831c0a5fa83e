#!/usr/bin/env bash
# qonnx 1.0.0: where cleanup is given the size of the batch, the cleanup behind the conversion to channels last fails with
# "Found multiple get_by_name matches, undefined behavior". Without the size, both work.
#
# The two cleanups with the conversion between them are what hls4ml's documentation tells to do. Changing the batch size
# (cleanup_model(..., override_inpsize=1)) drops what the model says of the shape of every tensor, and shape inference,
# which hides Quant nodes, finds none for their scales, zero points and bit widths. GiveReadableTensorNames renames only
# tensors with a shape: where nodes have changed their order since, a new name may be that of another tensor.
#
# A Quant node before a convolution with another one for its weight.
#
# Seen:
#   without a batch size: works
#   with a batch size: Found multiple get_by_name matches, undefined behavior
# Fails when this changes.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q numpy==2.4.6 onnx==1.23.2 onnxruntime==1.32.0 qonnx==1.0.0
"$work/venv/bin/python" - <<'PYTHON'
import warnings

import numpy as np
from onnx import TensorProto, helper, numpy_helper
from qonnx.core.modelwrapper import ModelWrapper
from qonnx.transformation.channels_last import ConvertToChannelsLastAndClean
from qonnx.util.cleanup import cleanup_model

warnings.simplefilter("ignore")
DOMAIN = "qonnx.custom_op.general"


def model():
    arrays = {
        "w": np.ones((2, 1, 3, 3), np.float32),
        **{f"{of} {part}": np.array(value, np.float32) for of in ("x", "w") for part, value in PARTS.items()},
    }
    said = dict(domain=DOMAIN, signed=1, narrow=0, rounding_mode="ROUND")
    nodes = [
        *(helper.make_node("Quant", [of, *(f"{of} {part}" for part in PARTS)], [f"{of}q"], **said) for of in ("x", "w")),
        helper.make_node(
            "Conv", ["xq", "wq"], ["y"], kernel_shape=[3, 3], strides=[1, 1], pads=[0] * 4, dilations=[1, 1], group=1
        ),
    ]
    graph = helper.make_graph(
        nodes,
        "convolution",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, (1, 1, 8, 8))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, (1, 2, 6, 6))],
        [numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )
    versions = [helper.make_opsetid("", 21), helper.make_opsetid(DOMAIN, 1)]
    return helper.make_model(graph, opset_imports=versions, ir_version=10)


PARTS = {"scale": 0.5, "zero point": 0, "bits": 4}


def cleaned(size):
    try:
        first = cleanup_model(ModelWrapper(model()), override_inpsize=size)
        cleanup_model(first.transform(ConvertToChannelsLastAndClean()))
    except Exception as error:
        return str(error)
    return "works"


seen = {"without a batch size": cleaned(None), "with a batch size": cleaned(1)}
for name, what in seen.items():
    print(f"{name}: {what}")
assert seen == {
    "without a batch size": "works",
    "with a batch size": "Found multiple get_by_name matches, undefined behavior",
}, seen
print("as described")
PYTHON
