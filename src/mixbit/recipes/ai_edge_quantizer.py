"""Recipes of ai-edge-quantizer, in JSON, for a float `.tflite` of litert-torch: what `Quantizer(file, FILE)` takes."""

import json
import re
from collections import Counter
from collections.abc import Iterable
from typing import Any

from mixbit.core import Plan, Scheme, method, pick
from mixbit.recipes._layers import ROW, STATIC, Layer, Tool

TOOL = Tool(
    name="ai-edge-quantizer",
    weight_bits=(2, 4, 8),
    input_bits=(8, 16),
    scales=("channel", "tensor", "group"),
    ranges=(STATIC, ROW),
    zero_points=True,
    floats=("float16",),
)
GROUPS = (32, 64, 128, 256)
FULLY_CONNECTED, CONV_2D, EMBEDDING = "FULLY_CONNECTED", "CONV_2D", "EMBEDDING_LOOKUP"
#: Operators that hold a weight of 8 bits, with inputs of any kind.
EVERY = (FULLY_CONNECTED, CONV_2D, "DEPTHWISE_CONV_2D", "CONV_2D_TRANSPOSE")


@method(rank=5)
def ai_edge_quantizer(plan: Plan, *, outputs: str = "") -> str:
    """ai-edge-quantizer 0.10 (JSON), for the float .tflite of litert-torch: 4 and 8 bits, 2 with ranges a row.

    A rule names what an operator computes as litert-torch does: by classes and names of the modules that are called.
    Outputs of the network have names of their own: `outputs` names the layers that compute them, as
    `outputs=boxes.weight+classes.weight`. By default there is one output, of the plan's last layer.
    """
    layers = TOOL.layers(plan)
    named = [layer for layer in layers if layer.module]
    shortened = _lists_may_be_left_out(named)
    rules = [rule for layer in named for rule in _rules(_scope(layer.module, shortened[layer.module]), layer)]
    by_name = {layer.name: layer for layer in layers}
    last = outputs.split("+") if outputs else [layers[-1].name]
    for number, name in enumerate(last):
        layer = by_name[pick(f"{TOOL.name}: outputs: layer", name, by_name)]
        if layer.module:
            rules += _rules(f"^serving_default_output_{number}_output;", layer)
    return json.dumps(rules, indent=2) + "\n"


def _lists_may_be_left_out(layers: list[Layer]) -> dict[str, bool]:
    """Module -> whether no layer of another scheme has its name once names before numbers are left out."""
    schemes = {(tuple(_without_lists(layer.module)), layer.scheme) for layer in layers}
    counts = Counter(path for path, _ in schemes)
    return {layer.module: counts[tuple(_without_lists(layer.module))] == 1 for layer in layers}


def _without_lists(module: str) -> list[str]:
    parts = module.split(".")
    return [part for part, after in zip(parts, [*parts[1:], ""], strict=True) if not after.isdecimal()]


def _scope(module: str, lists_may_be_left_out: bool) -> str:
    """What matches the name of the tensor that the module returns, `Net/a.B_layers/c.D_0/torch.nn.Linear_fc;`.

    A module that is never called, as a ModuleList, is not among the names: one before a number may be missing, unless
    that would match another layer.
    """
    parts = module.split(".")
    pattern = "(^|;)[^/;]+"
    for part, after in zip(parts, [*parts[1:], ""], strict=True):
        piece = rf"/([^/;]*\.)?_*[^./;_]+_{re.escape(part)}"
        pattern += f"({piece})?" if lists_may_be_left_out and after.isdecimal() else piece
    return f"{pattern};"


def _rules(scope: str, layer: Layer) -> list[dict[str, Any]]:
    if layer.scheme.weight is None:
        return [{"regex": scope, "operation": "*", "algorithm_key": "no_quantize", "op_config": {}}]
    algorithm = "float_casting" if layer.scheme.weight.floating else "min_max_uniform_quantize"
    config = _config(layer.scheme)
    configs = dict.fromkeys(_operations(layer), config)
    if "activation_tensor_config" in config:  # what a table is read by are numbers of rows
        configs[EMBEDDING] = {name: part for name, part in config.items() if name != "activation_tensor_config"}
    return [
        {"regex": scope, "operation": operation, "algorithm_key": algorithm, "op_config": each}
        for operation, each in configs.items()
    ]


def _config(scheme: Scheme) -> dict[str, Any]:
    """OpQuantizationConfig of ai-edge-quantizer."""
    weight, read = scheme.weight, scheme.input
    if weight is None:
        return {}
    scales = {"channel": "CHANNELWISE", "tensor": "TENSORWISE"}.get(weight.granularity, f"BLOCKWISE_{weight.group}")
    stored = {
        "num_bits": weight.bits,
        "symmetric": weight.symmetric,
        "granularity": "TENSORWISE" if weight.floating else scales,
        "dtype": "FLOAT" if weight.floating else "INT",
    }
    config: dict[str, Any] = {"weight_tensor_config": stored}
    if read is not None and not read.dynamic:
        # Its integers of 16 bits have no zero point, as the kernels have none.
        config["activation_tensor_config"] = {"num_bits": read.bits, "symmetric": read.bits == 16} | {
            "granularity": "TENSORWISE", "dtype": "INT",
        }  # fmt: skip
    return config | {
        "compute_precision": "FLOAT" if read is None else "INTEGER",
        "explicit_dequantize": read is None,
    }


def _operations(layer: Layer) -> Iterable[str]:
    """Operators that take the layer's scheme; raises InvalidInput where none does."""
    weight, read = layer.scheme.weight, layer.scheme.input
    if weight is None or weight.floating:
        return (*EVERY, EMBEDDING)
    if weight.group is not None:
        if weight.group not in GROUPS:
            sizes = ", ".join(map(str, GROUPS))
            raise TOOL.refusal(layer.name, layer.scheme, f"groups have {sizes} weights there")
        if weight.bits == 8 or read is None or not read.dynamic:
            raise TOOL.refusal(layer.name, layer.scheme, "groups there have 2 or 4 bits and ranges a row (w4g32a8dr)")
        return (FULLY_CONNECTED,) if weight.bits == 2 else (FULLY_CONNECTED, EMBEDDING)
    if not weight.symmetric and read is not None:
        raise TOOL.refusal(layer.name, layer.scheme, "zero points of weights there go with inputs in float alone")
    if weight.bits == 2 and (read is None or not read.dynamic):
        raise TOOL.refusal(layer.name, layer.scheme, "2 bits there go with ranges of inputs a row alone (w2a8dr)")
    if read is not None and read.dynamic and read.bits != 8:
        raise TOOL.refusal(layer.name, layer.scheme, "ranges a row there have 8 bits")
    if read is not None and not read.dynamic:
        return EVERY if weight.bits == 8 else (FULLY_CONNECTED, CONV_2D)
    return (*EVERY, EMBEDDING) if weight.bits == 8 else (FULLY_CONNECTED, CONV_2D, EMBEDDING)
