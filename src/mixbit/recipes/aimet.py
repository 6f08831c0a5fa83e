"""Precisions of AIMET's modules, in JSON: what `MixedPrecisionConfigurator.set_precision(module, **entry)` takes."""

import json
from typing import Any

from mixbit.core import Plan, Scheme, method
from mixbit.recipes._layers import STATIC, Tool

TOOL = Tool(
    name="AIMET",
    weight_bits=(4, 8),
    input_bits=(4, 8, 16),
    scales=("channel",),
    ranges=(STATIC,),
    floats=("float16",),
)
#: The only floating-point type there.
FLOAT = "fp16"


@method(rank=4)
def aimet(plan: Plan) -> str:
    """AIMET 2.42 (JSON, `MixedPrecisionConfigurator`): weights of 4 and 8 bits, inputs of 4, 8 and 16; float is fp16.

    A plan has no scales, so it is no file of encodings: `compute_encodings` makes them. Whether weights have a scale
    per channel is up to the configuration of the simulation; by default they have.
    """
    entries = {}
    for layer in TOOL.layers(plan):
        if not layer.module:
            reason = "it quantizes all that is not named, and this weight is not the parameter `weight` of a module"
            way_out = "write the network with modules for such weights, or take another tool"
            raise TOOL.refusal(layer.name, layer.scheme, reason, way_out)
        entries[layer.module] = _entry(layer.scheme)
    return json.dumps(entries, indent=2) + "\n"


def _entry(scheme: Scheme) -> dict[str, Any]:
    weight = FLOAT if scheme.weight is None or scheme.weight.floating else f"int{scheme.weight.bits}"
    return {"activation": FLOAT if scheme.input is None else f"int{scheme.input.bits}", "param": {"weight": weight}}
