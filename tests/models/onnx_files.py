"""ONNX files made for tests: of one operator, and of a few layers."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import TensorProto, helper, numpy_helper

from mixbit.models.load import load_model

SEED = 0


def saved(
    path: Path,
    nodes: list[Any],
    inputs: dict[str, tuple[Any, ...] | list[Any]],
    outputs: list[str],
    constants: dict[str, Any],
    *,
    opset: int = 20,
    kinds: dict[str, int] | None = None,
    functions: list[Any] | None = None,
    domains: dict[str, int] | None = None,
) -> Path:
    """The file of those nodes; inputs are name -> shape, float32 where `kinds` does not say otherwise."""
    kinds = kinds or {}
    graph = helper.make_graph(
        nodes,
        "test",
        [
            helper.make_tensor_value_info(name, kinds.get(name, TensorProto.FLOAT), shape)
            for name, shape in inputs.items()
        ],
        [onnx.ValueInfoProto(name=name) for name in outputs],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    versions = [helper.make_opsetid("", opset)]
    versions += [helper.make_opsetid(domain, version) for domain, version in (domains or {}).items()]
    model = helper.make_model(
        graph, opset_imports=versions, functions=functions or [], ir_version=8 if opset < 21 else 10
    )
    model = onnx.shape_inference.infer_shapes(model) if not domains else model
    path.write_bytes(model.SerializeToString())
    return path


def normal(*shape: int, seed: int = SEED) -> np.ndarray[Any, Any]:
    """Seeded normal numbers, float32."""
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def small_network(path: Path, *, batch: int | str = "batch", opset: int = 13) -> Path:
    """Two convolutions with a batch norm between, pooled, and a classifier; ReLUs between."""
    constants = {
        "conv1.weight": normal(8, 3, 3, 3, seed=1) * 0.3,
        "bn.weight": np.abs(normal(8, seed=2)) + 0.5,
        "bn.bias": normal(8, seed=3),
        "bn.running_mean": normal(8, seed=4),
        "bn.running_var": np.abs(normal(8, seed=5)) + 0.5,
        "conv2.weight": normal(8, 8, 3, 3, seed=6) * 0.2,
        "conv2.bias": normal(8, seed=7),
        "fc.weight": normal(5, 8, seed=8),
        "fc.bias": normal(5, seed=9),
    }
    make = helper.make_node
    nodes = [
        make("Conv", ["image", "conv1.weight"], ["a"], "conv1", pads=[1, 1, 1, 1]),
        make("BatchNormalization", ["a", "bn.weight", "bn.bias", "bn.running_mean", "bn.running_var"], ["b"], "bn"),
        make("Relu", ["b"], ["c"], "relu1"),
        make("Conv", ["c", "conv2.weight", "conv2.bias"], ["d"], "conv2", pads=[1, 1, 1, 1], strides=[2, 2]),
        make("Relu", ["d"], ["e"], "relu2"),
        make("GlobalAveragePool", ["e"], ["f"], "pool"),
        make("Flatten", ["f"], ["g"], "flatten"),
        make("Gemm", ["g", "fc.weight", "fc.bias"], ["logits"], "fc", transB=1),
    ]
    return saved(path, nodes, {"image": [batch, 3, 8, 8]}, ["logits"], constants, opset=opset)


def ran(path: Path, inputs: dict[str, Any]) -> dict[str, Any]:
    """What onnxruntime returns, by name of the output."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return dict(zip([port.name for port in session.get_outputs()], session.run(None, inputs), strict=True))


def assert_same_for(path: Path, inputs: dict[str, Any], *, one_by_one: bool = False) -> Any:
    """The module returns what onnxruntime does; of a file of one sample, for each sample alone."""
    module = load_model(str(path)).module
    got = module(*map(torch.from_numpy, inputs.values()))
    count = len(next(iter(inputs.values())))
    rows = [slice(row, row + 1) for row in range(count)] if one_by_one else [slice(None)]
    parts = [ran(path, {name: value[row] for name, value in inputs.items()}) for row in rows]
    for name, value in got.items():
        want = np.concatenate([part[name] for part in parts])
        np.testing.assert_allclose(value.detach().numpy(), want, rtol=1e-4, atol=1e-5)
    return module
