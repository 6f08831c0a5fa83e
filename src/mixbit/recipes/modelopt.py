"""Recipes of NVIDIA's ModelOpt, in YAML: what `modelopt.recipe.load_recipe(FILE).quantize` makes a `quant_cfg` of."""

from glob import escape
from typing import Any

from mixbit.core import Format, Plan, Scheme, method
from mixbit.recipes._layers import ROW, STATIC, TENSOR, Tool, range_of
from mixbit.recipes._yaml import yaml_of

TOOL = Tool(
    name="ModelOpt",
    weight_bits=(2, 3, 4, 5, 6, 7, 8),
    input_bits=(2, 3, 4, 5, 6, 7, 8, 16),
    scales=("channel", "tensor", "group"),
    ranges=(STATIC, TENSOR, ROW),
)


@method(rank=3)
def modelopt(plan: Plan) -> str:
    """ModelOpt 0.47 (YAML, `load_recipe`): linear layers, convolutions and embeddings of any width, symmetric.

    All quantizers are off but those of the plan's layers, and layers in float are named once more. Output channels are
    the first axis of a weight, and groups lie along the last: a plan does not tell what kind a layer is.
    """
    rules: list[dict[str, Any]] = [{"quantizer_name": "*", "enable": False}]
    for layer in TOOL.named(plan):
        weight, read = (f"{escape(layer.module)}.{each}_quantizer" for each in ("weight", "input"))
        rules.append(_rule(weight, None if layer.scheme.weight is None else _of_weight(layer.scheme.weight)))
        rules.append(_rule(read, None if layer.scheme.input is None else _of_input(layer.scheme)))
    about = {"recipe_type": "ptq", "description": f"Plan of mixbit for {plan.target}, made by {plan.made_by}"}
    return yaml_of({"metadata": about, "quantize": {"algorithm": "max", "quant_cfg": rules}})


def _rule(name: str, attributes: dict[str, Any] | None) -> dict[str, Any]:
    return {"quantizer_name": name} | ({"enable": False} if attributes is None else {"cfg": attributes})


def _of_weight(fmt: Format) -> dict[str, Any]:
    if fmt.group is not None:
        return {"num_bits": fmt.bits, "block_sizes": {-1: fmt.group}}
    return {"num_bits": fmt.bits, "axis": 0 if fmt.granularity == "channel" else None}


def _of_input(scheme: Scheme) -> dict[str, Any]:
    bits = {"num_bits": scheme.input_bits}
    if range_of(scheme) == ROW:
        return bits | {"type": "dynamic", "block_sizes": {-1: None, "type": "dynamic"}}
    return bits | {"axis": None} | ({"type": "dynamic"} if range_of(scheme) == TENSOR else {})
