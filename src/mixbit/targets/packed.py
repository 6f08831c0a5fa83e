"""Target packed: safetensors with weights bit-packed at any width, loadable back into a running module.

The file holds the state of the quantized graph under its own names, a weight as bit planes `NAME::0`, `NAME::1`, ...
of `mixbit.quantization.affine.pack`, and the plan as JSON in its metadata. Of a sparse weight it holds the integers
that stay, and one bit a weight, `NAME::mask`. It has no code: the graph comes from the user's model.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from torch import Tensor
from torch.utils import _pytree as pytree

from mixbit.core import (
    Format,
    InvalidInput,
    Plan,
    Ports,
    Runner,
    StoredWeight,
    Target,
    TargetMismatch,
    TensorFile,
    find_target,
    read_tensors,
)
from mixbit.graph import Graph, Layer
from mixbit.quantization import affine
from mixbit.quantization.biases import biases_of
from mixbit.quantization.quantizer import Quantizer, quantizer_path, run_time_quantizer, weight_quantizers
from mixbit.quantization.simulate import activation_formats, assemble, check_plan
from mixbit.targets._integers import (
    MASK,
    SEPARATOR,
    IntegerWeight,
    each_stored_weight,
    num_stored,
    plan_of,
    weight_bytes,
)

FILE = "model.safetensors"
FORMAT = "mixbit packed 1"


def write(simulated: Graph, folder: Path) -> None:
    """Write model.safetensors, one weight after the other."""
    rounded = weight_quantizers(simulated)
    biases = {operation.node: bias for layer, operation, bias in biases_of(simulated) if layer.name in rounded}
    with TensorFile(folder / FILE) as file:
        for name in simulated.module.state_dict():
            if name not in rounded:
                file.add(name, simulated.parameter(name).detach().cpu().numpy())
        for name, weight in each_stored_weight(simulated):
            if isinstance(weight, Tensor):  # numpy has no bfloat16
                file.add(f"{name}{SEPARATOR}0", weight.view(torch.int16).numpy())
            else:
                _add(file, weight)
        file.finish({"format": FORMAT, "plan": plan_of(simulated).model_dump_json(), "biases": json.dumps(biases)})


def _add(file: TensorFile, weight: IntegerWeight) -> None:
    """Write one layer's integers; its scale is part of the graph's state."""
    for index, plane in enumerate(affine.pack(weight.unsigned, weight.bits)):
        file.add(f"{weight.name}{SEPARATOR}{index}", plane)
    if weight.mask is not None:
        file.add(f"{weight.name}{SEPARATOR}{MASK}", weight.packed_mask)
    if weight.zero_point is not None:
        file.add(f"{weight.quantizer}.zero_point", weight.zero_point)


def load(folder: Path, graph: Graph | None = None, /, **_: Any) -> Runner:
    """The module in the file, as a runner; the graph is the captured one of the user's model."""
    if graph is None:
        raise InvalidInput("target packed: the file holds no code; give the captured graph of the model it was made of")
    restored = _restored(folder, graph)

    def run(inputs: list[NDArray[Any]]) -> list[NDArray[Any]]:
        with torch.no_grad():
            tensors = iter([torch.from_numpy(array).to(graph.device) for array in inputs])
            call = graph.example.map(lambda _: next(tensors))
            outputs = pytree.tree_leaves(restored(*call.args, **call.kwargs))
        return [output.detach().cpu().numpy() for output in outputs if isinstance(output, torch.Tensor)]

    executed = {layer.name: "float32 on rounded values" for layer in graph.layers}
    return Runner(run, lambda: executed, {"runtime": f"torch {torch.__version__}"})


def usage(_: Ports, _environment: Mapping[str, str]) -> dict[str, str]:
    """Programs that read the tensors, and that put them into the network again."""
    read = [
        "from safetensors.numpy import load_file",
        "",
        f'tensors = load_file("{FILE}")  # a weight as bit planes NAME::0, NAME::1, ...: lowest bits first',
    ]
    run = [
        "from pathlib import Path",
        "import mixbit",
        "from mixbit.core import find_target",
        "",
        "graph = mixbit.capture(model, batch)  # your network, and one batch of its inputs",
        'runner = find_target("packed").load(Path("."), graph)',
        "outputs = runner.run([tensor.numpy() for tensor in graph.tensors(graph.example)])",
    ]
    return {"Python, the tensors": "\n".join(read), "Python, the network": "\n".join(run)}


def _restored(folder: Path, graph: Graph) -> Graph:
    """The quantized graph in the file, put onto the captured graph; raises TargetMismatch if they do not fit."""
    path = folder / FILE
    tensors, plan, metadata = _read(path)
    formats = {layer: plan.scheme(layer.name).weight for layer in check_plan(graph, plan)}
    try:
        biases = {node: tensors[name] for node, name in json.loads(metadata["biases"]).items()}
        weights = {layer: _of_weight(tensors, layer, fmt) for layer, fmt in formats.items() if fmt is not None}
        activations = [
            run_time_quantizer(name, fmt, torch.device("cpu"))
            if fmt.dynamic
            else Quantizer(name, fmt, None, *_factors(tensors, name, of_weight=False))
            for name, fmt in activation_formats(graph, plan, find_target(plan.target)).items()
        ]
        restored = assemble(graph, plan, [*weights.values(), *activations], biases)
        state = {name: value for name, value in tensors.items() if SEPARATOR not in name}
        state |= {layer.name: _unpacked(tensors, layer, quantizer) for layer, quantizer in weights.items()}
        restored.module.load_state_dict(state)
    except (AttributeError, KeyError, RuntimeError, StopIteration, TypeError, ValueError) as error:
        raise TargetMismatch(f"{path}: does not hold this model's tensors: {error}") from error
    restored.module.to(graph.device)
    return restored


def stored(folder: Path) -> dict[str, StoredWeight]:
    """Layer -> bytes and types of its weight and scales, read from the file."""
    (tensors, plan, _), rows = _read(folder / FILE), {}
    for name in plan.layers:
        fmt, types = plan.scheme(name).weight, "float32"
        parts = [key for key in tensors if key.partition(SEPARATOR)[0] == name and key != name] or [name]
        if fmt is not None and fmt.floating is not None:
            types = fmt.floating
        elif fmt is not None:
            path = quantizer_path(name, of_weight=True)
            parts += [f"{path}.scale"] if fmt.symmetric else [f"{path}.scale", f"{path}.zero_point"]
            mask, zero_point = ", 1-bit mask" if fmt.sparsity else "", "" if fmt.symmetric else ", uint8 zero_point"
            types = f"{fmt.bits}-bit planes{mask}, float32 scale{zero_point}"
        missing = [part for part in parts if part not in tensors]
        if missing:
            raise TargetMismatch(f"{folder / FILE}: {missing[0]} is missing; export again")
        rows[name] = StoredWeight(sum(tensors[part].numel() * tensors[part].element_size() for part in parts), types)
    return rows


def _read(path: Path) -> tuple[dict[str, Tensor], Plan, dict[str, str]]:
    try:
        tensors, metadata = read_tensors(path)
    except OSError as error:
        raise InvalidInput(f"{path}: cannot be read ({error}); export again") from error
    except SafetensorError as error:
        raise TargetMismatch(f"{path}: not a safetensors file ({error}); export again") from error
    if metadata.get("format") != FORMAT or not {"plan", "biases"} <= metadata.keys():
        raise TargetMismatch(f"{path}: not written by target packed; export again")
    return tensors, Plan.of_text(metadata["plan"], path), metadata


def _of_weight(tensors: dict[str, Tensor], layer: Layer, fmt: Format) -> Quantizer:
    if fmt.floating is not None:
        return Quantizer(layer.name, fmt, layer.axis, torch.ones(1), torch.zeros(1))
    mask = None
    if fmt.sparsity is not None:
        bits = affine.unpack([tensors[f"{layer.name}{SEPARATOR}{MASK}"].numpy()], 1, layer.numel)
        mask = torch.from_numpy(bits).bool().reshape(layer.shape)
    return Quantizer(layer.name, fmt, layer.axis, *_factors(tensors, layer.name, of_weight=True), mask)


def _factors(tensors: dict[str, Tensor], name: str, *, of_weight: bool) -> tuple[Tensor, Tensor]:
    path = quantizer_path(name, of_weight=of_weight)
    scale = tensors[f"{path}.scale"]
    return scale, tensors.get(f"{path}.zero_point", torch.zeros_like(scale)).to(scale)


def _unpacked(tensors: dict[str, Tensor], layer: Layer, quantizer: Quantizer) -> Tensor:
    fmt, bits = quantizer.format, quantizer.format.bits
    if fmt.floating is not None:
        return tensors[f"{layer.name}{SEPARATOR}0"].view(getattr(torch, fmt.floating)).float()
    planes = [tensors[f"{layer.name}{SEPARATOR}{index}"].numpy() for index in range(len(affine.PLANES[bits]))]
    unsigned = affine.unpack(planes, bits, num_stored(layer.numel, fmt.sparsity)).astype(np.float32)
    stored_integers = torch.from_numpy(unsigned + fmt.integer_range[0])
    if quantizer.mask is not None:
        integers = torch.zeros(layer.shape)
        integers[quantizer.mask] = stored_integers
    elif fmt.group is None:
        integers = stored_integers.reshape(layer.shape)
    else:  # in channels and groups
        rest = [size for axis, size in enumerate(layer.shape) if axis != layer.axis]
        integers = stored_integers.reshape(-1, *rest).movedim(0, layer.axis)
    return affine.dequantize(integers, quantizer.scale, quantizer.zero_point, layer.axis)


TARGET = Target(
    name="packed",
    files=(FILE,),
    weight_bits=(2, 3, 4, 5, 6, 7, 8),
    input_bits=(2, 3, 4, 5, 6, 7, 8, 16),
    dynamic_choices=("w4a8d", "w6a8d", "w8a8d"),
    needs_graph=True,
    writes_by_layer=True,
    note="weights stored at their width, zeros as bits of a mask; a PyTorch module computes in float32 on the rounded "
    "values; also bfloat16, dynamic, dynamic groups, dynamic rows, float16, group, one scale, sparsity, zero point",
    lacks=lambda scheme: None,  # noqa: ARG005
    weight_bytes=weight_bytes,
    require=lambda: None,
    write=write,
    load=load,
    stored=stored,
    usage=usage,
)
