"""LSTMs in integers: how far from float each runtime's own kernel is, and how fast.

    python -m benchmarks.int8_lstm --nncf ENVIRONMENT/bin/python

In OpenVINO: mixbit's w8a8; NNCF's file as it runs, and with the same rounding but the weights of its LSTMs as plain
numbers, so that they run in float; and float's file with its LSTMs in integers by scales that are right although the
kernel takes some for others, see `findings/openvino-int8-lstm-takes-scales-of-others.sh`. In onnxruntime: mixbit's
w8a8, and float's file with DynamicQuantizeLSTM, weights per channel. One sample, one thread. The distance is the root
mean square difference from float, by the standard deviation of float's outputs, over the samples.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

import mixbit as mb
from benchmarks.latency import SOUND, WideLSTM, by_nncf, convert, network, onnxruntime_run, openvino_run
from benchmarks.zoo import subject
from mixbit.core import find_target, split_batches
from mixbit.quantization import calibrate, uniform_plan
from mixbit.targets.latency import paired_times

WIDTHS = (128, 256, 512)
NETWORKS = ("lstm", *(f"lstm{width}" for width in WIDTHS))
SHARE_OF_TRAINING = 0.3
#: Files loaded, each in other places of memory.
LOADS = 3
FILES = {"openvino": "model.xml", "onnxruntime": "model.onnx"}
RUNS: dict[str, Callable[..., Any]] = {"openvino": openvino_run, "onnxruntime": onnxruntime_run}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", default=",".join(NETWORKS), help="networks, with commas between")
    parser.add_argument("--nncf", type=Path, help="interpreter with NNCF; without it its files are left out")
    given = parser.parse_args()
    subject.EFFORT = SHARE_OF_TRAINING
    print(f"{'network':10}{'runtime':13}{'file':33}distance  float's time x")
    for name in given.only.split(","):
        model, batches = chosen(name)
        for target in FILES:
            with TemporaryDirectory() as scratch:
                files, samples = written(model, batches, target, Path(scratch), given.nncf)
                for file, distance, times in measured(files, samples, target):
                    print(f"{name:10}{target:13}{file:33}{distance:8.4f}  {times:.2f}", flush=True)


def chosen(name: str) -> tuple[nn.Module, list[Any]]:
    """A network and batches."""
    width = name.removeprefix("lstm")
    if not width:
        return network(name)
    torch.manual_seed(0)
    samples = torch.randn(16, *SOUND, generator=torch.Generator().manual_seed(1))
    return WideLSTM(int(width)).eval(), list(samples.split(4))


def written(
    model: nn.Module, batches: list[Any], target: str, folder: Path, nncf: Path | None
) -> tuple[dict[str, Path], list[list[Any]]]:
    """Name -> file, float's first; and samples."""
    pairs = split_batches(model, batches)
    graph = mb.capture(model, pairs[0][0])
    plan = uniform_plan(graph, "w8a8", target=target)
    find_target(target).write(mb.quantize(graph, plan, calibrate(graph, pairs)), folder)
    rows = [inputs.rows([row]) for inputs, _ in pairs for row in range(inputs.batch_size)]
    samples = [[leaf.numpy() for leaf in graph.tensors(row)] for row in rows]
    converted = convert(model, rows[0], target, folder)
    files = {"float": converted, "mixbit, w8a8": folder / FILES[target]}
    if target == "onnxruntime":
        return files | {"DynamicQuantizeLSTM": with_dynamic_lstms(converted)}, samples
    for file in by_nncf(converted, samples, nncf).values():
        files |= {"NNCF": file, "its rounding, LSTMs in float": with_float_lstms(file)}
    return files | {"LSTMs in integers, its scales": with_integer_lstms(converted, samples)}, samples


def measured(files: dict[str, Path], samples: list[list[Any]], target: str) -> list[tuple[str, float, float]]:
    """File, its distance from float, and its time by float's."""
    outputs, ratios = dict[str, NDArray[Any]](), {name: list[float]() for name in files}
    for _ in range(LOADS):
        runs = {name: RUNS[target](file, samples[0], 1) for name, file in files.items()}
        times = paired_times(runs, samples[0], "time")
        for name, run in runs.items():
            ratios[name].append(times.ratio(name, "float").value)
            outputs[name] = np.stack([np.array(run(sample)[0]) for sample in samples])
    wanted = outputs["float"]
    return [
        (name, float(np.sqrt(np.mean((found - wanted) ** 2)) / wanted.std()), median(ratios[name]))
        for name, found in outputs.items()
    ]


def with_float_lstms(file: Path) -> Path:
    """A copy of the file in which weights of LSTMs are the numbers that their integers stand for."""
    openvino = _openvino()
    model = openvino.Core().read_model(file)
    for lstm in _lstms(model):
        for place in (4, 5):
            scaled = lstm.input_value(place).get_node()
            integers, scale = (scaled.input_value(number).get_node() for number in (0, 1))
            numbers = integers.input_value(0).get_node().data.astype(np.float32) * scale.data
            lstm.input(place).replace_source_output(openvino.opset15.constant(numbers).output(0))
    return _saved(model, file.with_name("float lstms.xml"))


def with_integer_lstms(file: Path, samples: list[list[Any]]) -> Path:
    """A copy of the file, for one sample, whose LSTMs run in integers with the scales that the kernel takes.

    The kernel has one scale for the input and the state, one for each row of both weights, and takes that of the input
    gate for the forget gate. So the input, rounded by its own step and zero point, enters as what the state's step and
    zero point make of these integers, and its weight and the bias make up for that.
    """
    openvino = _openvino()
    ops, core = openvino.opset15, openvino.Core()
    model = core.read_model(file)
    model.reshape({port: list(array.shape) for port, array in zip(model.inputs, samples[0], strict=True)})
    lstms = _lstms(model)
    tensors = [port for lstm in lstms for port in (lstm.input_value(0), lstm.output(0))]
    watching = core.compile_model(openvino.Model(tensors, model.get_parameters()), "CPU")
    seen = [np.stack(values) for values in zip(*(list(watching(sample).values()) for sample in samples), strict=True)]
    for lstm, x, states in zip(lstms, seen[::2], seen[1::2], strict=True):
        (step, zero), (state_step, state_zero) = _range(x), _range(states)
        port, levels = lstm.input(0), np.array([0, 255])
        read = [np.float32(end) for end in (*((levels - zero) * step), *((levels - state_zero) * state_step))]
        port.replace_source_output(ops.fake_quantize(port.get_source_output(), *read, 256).output(0))
        zeros = np.zeros(list(lstm.input(1).get_shape()), np.float32)
        lstm.input(1).replace_source_output(ops.constant(zeros).output(0))
        weights = [_values(lstm.input_value(place), core) for place in (4, 5)]
        weights[0] = weights[0] * (step / state_step)
        gates = np.split(np.max([np.abs(weight).max(2, keepdims=True) for weight in weights], 0), 4, 1)
        gates[:2] = [np.maximum(*gates[:2])] * 2
        scale = (np.concatenate(gates, 1) / 127).astype(np.float32)
        for place, weight in zip((4, 5), weights, strict=True):
            integers = ops.constant(np.rint(weight / scale).astype(np.int8))
            lstm.input(place).replace_source_output(ops.multiply(ops.convert(integers, "f32"), scale).output(0))
        shift = (np.rint(weights[0] / scale) * scale).sum(2) * (zero - state_zero) * state_step
        bias = (_values(lstm.input_value(6), core) - shift).astype(np.float32)
        lstm.input(6).replace_source_output(ops.constant(bias).output(0))
    return _saved(model, file.with_name("integer lstms.xml"))


def _range(values: NDArray[np.float32]) -> tuple[float, int]:
    """Step and zero point of 8 bits from the least to the largest number."""
    low, high = min(float(values.min()), 0), max(float(values.max()), 0)
    step = (high - low) / 255
    return step, round(-low / step)


def with_dynamic_lstms(file: Path) -> Path:
    """A copy of the ONNX file with onnxruntime's DynamicQuantizeLSTM, each row of its weights with a scale."""
    import onnx  # noqa: PLC0415 of the target's packages
    import onnxruntime  # noqa: PLC0415 mixbit has switched its telemetry off
    from onnx import helper, numpy_helper  # noqa: PLC0415

    options, out = onnxruntime.SessionOptions(), file.with_name("dynamic.onnx")
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC  # folds constants
    options.optimized_model_filepath = str(out)
    onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    model = onnx.load(out)
    values = {each.name: numpy_helper.to_array(each) for each in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type != "LSTM":
            continue
        names = list(node.input) + [""] * (8 - len(node.input))
        for place in (1, 2):
            weight, name = values[names[place]], f"{node.name}_{place}"
            scale = (np.abs(weight).max(2) / 127).astype(np.float32)
            integers = np.ascontiguousarray(np.rint(weight / scale[:, :, None]).astype(np.int8).swapaxes(1, 2))
            parts = {"": integers, "_scale": scale, "_zero": np.zeros(scale.shape, np.int8)}
            model.graph.initializer.extend(numpy_helper.from_array(part, name + end) for end, part in parts.items())
            names[place] = name
            names += [f"{name}_scale", f"{name}_zero"]
        del node.input[:]
        node.input.extend(names)
        kept = [given for given in node.attribute if given.name != "layout"]  # it has none, and samples are second
        del node.attribute[:]
        node.attribute.extend(kept)
        node.op_type, node.domain = "DynamicQuantizeLSTM", "com.microsoft"
    if all(each.domain != "com.microsoft" for each in model.opset_import):
        model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    onnx.save(model, out)
    return out


def _openvino() -> Any:
    import openvino  # noqa: PLC0415 mixbit has switched its telemetry off

    return openvino


def _lstms(model: Any) -> list[Any]:
    return [node for node in model.get_ordered_ops() if node.get_type_name() == "LSTMSequence"]


def _values(port: Any, core: Any) -> NDArray[np.float32]:
    """The numbers of a constant, or of what is made of constants."""
    return np.array(core.compile_model(_openvino().Model([port], []), "CPU")([])[0])


def _saved(model: Any, file: Path) -> Path:
    _openvino().save_model(model, file, compress_to_fp16=False)
    return file


if __name__ == "__main__":
    main()
