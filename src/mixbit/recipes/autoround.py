"""Layer configurations of AutoRound, in JSON: what `AutoRound(model, ..., layer_config=json.load(file))` takes."""

import json
from typing import Any

from mixbit.core import Plan, Scheme, method
from mixbit.recipes._layers import GROUP, ROW, ROW_ZERO, STATIC, TENSOR, Tool

TOOL = Tool(
    name="AutoRound",
    weight_bits=(2, 3, 4, 5, 6, 7, 8),
    input_bits=(2, 3, 4, 5, 6, 7, 8),
    scales=("channel", "tensor", "group"),
    ranges=(STATIC, TENSOR, ROW, ROW_ZERO, GROUP),
    zero_points=True,
    choices="w4g32,w8",
)
#: What shares a scale -> a size of groups.
SIZES = {"tensor": 0, "channel": -1, "row": -1}
FLOAT = {"bits": 16, "data_type": "float", "act_bits": 16, "act_data_type": "float"}


@method(rank=2)
def autoround(plan: Plan) -> str:
    """AutoRound 0.16 (JSON, `layer_config`): linear layers of language models, of any width.

    Every layer of the plan has an entry, those in float one of 16 bits: layers without one take the default scheme.
    """
    return json.dumps({layer.module: _entry(layer.name, layer.scheme) for layer in TOOL.named(plan)}, indent=2) + "\n"


def _entry(name: str, scheme: Scheme) -> dict[str, Any]:
    weight, read = scheme.weight, scheme.input
    if weight is None:
        return FLOAT
    if weight.bits == 8 and not weight.symmetric:
        raise TOOL.refusal(name, scheme, "its own format has no zero points beside 8 bits")
    entry = {
        "bits": weight.bits,
        "group_size": weight.group or SIZES[weight.granularity],
        "sym": weight.symmetric,
        "data_type": "int",
    }
    if read is None:
        return entry | {"act_bits": 16, "act_data_type": "float"}
    return entry | {
        "act_bits": read.bits,
        "act_group_size": read.group or SIZES[read.granularity],
        "act_sym": read.symmetric,
        "act_dynamic": read.dynamic,
        "act_data_type": "int",
    }
