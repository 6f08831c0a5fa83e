"""Recipes of llm-compressor, in YAML: what `oneshot(model=..., recipe=FILE)` takes."""

import re
from typing import Any, Literal

from mixbit.core import Format, Plan, Scheme, method
from mixbit.recipes._layers import GROUP, ROW, ROW_ZERO, STATIC, TENSOR, Tool
from mixbit.recipes._yaml import yaml_of

TOOL = Tool(
    name="llm-compressor",
    weight_bits=(2, 3, 4, 5, 6, 7, 8),
    input_bits=(2, 3, 4, 5, 6, 7, 8, 16),
    scales=("channel", "tensor", "group"),
    ranges=(STATIC, TENSOR, ROW, ROW_ZERO, GROUP),
    zero_points=True,
    choices="w4g32,w8",
)
#: Option -> the class of llm-compressor.
MODIFIERS = {"nearest": "QuantizationModifier", "gptq": "GPTQModifier"}
#: Classes that it quantizes.
CLASSES = TABLES, LINEAR = "Embedding", "Linear"
_STRATEGIES = {"row": "token"}


@method(rank=1)
def llmcompressor(plan: Plan, *, modifier: Literal["nearest", "gptq"] = "nearest") -> str:
    """llm-compressor 0.14 (YAML): linear layers and embeddings of any width; modifier=gptq rounds by GPTQ.

    Layers of one scheme are one group of `config_groups`, by the names of their modules; those in float are ignored.
    Embeddings have a modifier of their own, which needs no data and so no inputs: with data, and by GPTQ,
    llm-compressor leaves their scales unset. Other modules, as convolutions, stay in float there.
    """
    targets: dict[Scheme, list[str]] = {}
    ignored = []
    for layer in TOOL.named(plan):
        if layer.module in CLASSES:
            reason = "it takes the module's name for a class"
            raise TOOL.refusal(layer.name, layer.scheme, reason, "rename the module")
        named = _exactly(layer.module)
        if layer.scheme.weight is None:
            ignored.append(named)
        else:
            targets.setdefault(layer.scheme, []).append(named)
    tables = {"ignore": [*ignored, LINEAR], "config_groups": _groups(targets, inputs=False)}
    others = {"ignore": [*ignored, TABLES], "config_groups": _groups(targets, inputs=True)}
    stage = {
        "embeddings_modifiers": {MODIFIERS["nearest"]: tables},
        "linear_modifiers": {MODIFIERS[modifier]: others},
    }
    return yaml_of({"default_stage": stage})


def _exactly(module: str) -> str:
    """What matches that module alone: a text without a dot would match all modules of a class of that name too."""
    return module if "." in module else f"re:^{re.escape(module)}$"


def _groups(targets: dict[Scheme, list[str]], *, inputs: bool) -> dict[str, Any]:
    groups = {}
    for number, (scheme, names) in enumerate(targets.items()):
        group = {"targets": names, "weights": _arguments(scheme.weight)}
        read = {"input_activations": _arguments(scheme.input)} if inputs and scheme.input else {}
        groups[f"group_{number}"] = group | read
    return groups


def _arguments(fmt: Format | None) -> dict[str, Any]:
    """QuantizationArgs of compressed-tensors."""
    if fmt is None:
        return {}
    arguments = {
        "num_bits": fmt.bits,
        "type": "int",
        "symmetric": fmt.symmetric,
        "strategy": _STRATEGIES.get(fmt.granularity, fmt.granularity),
        "dynamic": fmt.dynamic,
    }
    return arguments if fmt.group is None else arguments | {"group_size": fmt.group}
