"""Each recipe's text, read by small readers of their own that match names as the tools do, against the plan."""

import fnmatch
import json
import re
import subprocess
import sys

import pytest
import yaml  # of transformers, which the extra huggingface holds
from hypothesis import given, settings, strategies as st

from mixbit.core import InvalidInput, Plan, Scheme
from mixbit.recipes import RECIPES
from mixbit.recipes.recipe import recipe

#: Tool -> schemes that it takes.
SCHEMES = {
    "llmcompressor": ("w4g32", "w3", "w8a8", "w5", "w4g64z", "w2a8dr", "w4a4dg32", "w8t", "w6a16d", "w7z", "float"),
    "autoround": ("w4g32", "w3", "w8a8", "w5", "w4g64z", "w2a8dr", "w4a4dg32", "w8t", "w6a8d", "w7z", "float"),
    "modelopt": ("w4g32", "w3", "w8a8", "w5", "w2a8dr", "w8t", "w6a16d", "w7a4", "float"),
    "aimet": ("w8a8", "w4a8", "w4a4", "w8a16", "w4", "float16", "float"),
    "ai_edge_quantizer": (
        "w8a8", "w4a8", "w8a16", "w4", "w8z", "w2a8dr", "w4a8dr", "w4g32a8dr", "w8ta8dr", "float16", "float",
    ),
}  # fmt: skip
#: Names that begin or end alike, of numbers, and of classes.
MODULES = (
    "fc", "fc1", "fc10", "my_fc1", "Module", "body.Linear", "body.fc1", "body.fc10", "body.0.fc1", "body.10.fc1",
    "blocks.0", "blocks.1", "blocks.10", "blocks.1.fc1", "x.blocks.1", "a[b]", "a+b.c", "lm_head",
)  # fmt: skip


def plan_of(layers, **facts):
    return Plan(target="openvino", fingerprint="0", layers=layers, **facts)


def bits(scheme):
    """Bits of weight and input; a type's name where they are floating-point."""
    scheme = Scheme.parse(scheme)
    weight = "float" if scheme.weight is None else scheme.weight.floating or scheme.weight.bits
    return weight, scheme.input.bits if scheme.input else "float"


def granularity(scheme):
    """What shares a scale of the weight, and its zero points; ranges of the input."""
    scheme = Scheme.parse(scheme)
    weight, read = scheme.weight, scheme.input
    shared = None if weight is None or weight.floating else (weight.group or weight.granularity, weight.symmetric)
    return shared, None if read is None else (read.group or read.granularity, read.dynamic)


def modifiers_of(text):
    """Those of all groups of modifiers, and their names."""
    groups = yaml.safe_load(text)["default_stage"]
    assert all(name.endswith("_modifiers") for name in groups)
    return [(name, modifier) for group in groups.values() for name, modifier in group.items()]


def read_llmcompressor(text, modules, kind="Linear"):
    """What modules of that class take."""

    def matches(target, module):
        by_class = target in {kind, "Module"}  # the class, or one above it
        return by_class or (re.match(target[3:], module) if target.startswith("re:") else target == module)

    layers = {}
    for module in modules:
        groups = [
            group
            for _, modifier in modifiers_of(text)
            for group in modifier["config_groups"].values()
            if any(matches(target, module) for target in group["targets"])
            and not any(matches(target, module) for target in modifier["ignore"])
        ]
        assert len(groups) <= 1, (module, groups)
        if not groups:
            layers[module] = ("float", "float"), (None, None)
            continue
        weight, read = groups[0]["weights"], groups[0].get("input_activations")
        shared = weight.get("group_size") or weight["strategy"], weight["symmetric"]
        ranges = None
        if read is not None:
            ranges = read.get("group_size") or read["strategy"].replace("token", "row"), read["dynamic"]
        layers[module] = (weight["num_bits"], read["num_bits"] if read else "float"), (shared, ranges)
    return layers


def read_autoround(text, modules):
    stored = json.loads(text)
    assert set(stored) == set(modules)
    layers, weights, inputs = {}, {0: "tensor", -1: "channel"}, {0: "tensor", -1: "row"}
    for module, entry in stored.items():
        shared = ranges = None
        if entry["bits"] < 16:
            shared = weights.get(entry["group_size"], entry["group_size"]), entry["sym"]
        if entry["act_bits"] < 16:
            ranges = inputs.get(entry["act_group_size"], entry["act_group_size"]), entry["act_dynamic"]
        widths = (entry[name] if entry[name] < 16 else "float" for name in ("bits", "act_bits"))
        layers[module] = tuple(widths), (shared, ranges)
    return layers


def read_modelopt(text, modules):
    rules = yaml.safe_load(text)["quantize"]["quant_cfg"]
    layers = {}
    for module in modules:
        found = []
        for quantizer in ("weight", "input"):
            chosen = None
            for rule in rules:
                if fnmatch.fnmatchcase(f"{module}.{quantizer}_quantizer", rule["quantizer_name"]):
                    chosen = rule.get("cfg")
                    assert ("cfg" in rule) != (rule.get("enable") is False)
            found.append(chosen)
        weight, read = found
        shared = ranges = None
        if weight is not None:
            shared = (
                weight["block_sizes"][-1] if "block_sizes" in weight else {0: "channel", None: "tensor"}[weight["axis"]]
            )
            shared = shared, True
        if read is not None:
            ranges = "row" if "block_sizes" in read else "tensor", read.get("type") == "dynamic"
        layers[module] = tuple("float" if each is None else each["num_bits"] for each in found), (shared, ranges)
    return layers


def read_aimet(text, modules):
    stored, layers = json.loads(text), {}
    assert set(stored) == set(modules)
    for module, entry in stored.items():
        layers[module] = tuple(
            "float" if each == "fp16" else int(each.removeprefix("int"))
            for each in (entry["param"]["weight"], entry["activation"])
        )
    return layers


def scope_of(module, *, lists=False, root="__main__.Net"):
    """The name that litert-torch gives what a module returns; with `lists`, those before numbers are not called."""
    parts = module.split(".")
    called = [part for part, after in zip(parts, [*parts[1:], ""], strict=True) if not (lists and after.isdecimal())]
    return (
        ";;".join(("other.Net/a.Other_first", "/".join([root, *(f"torch.nn.Kind_{part}" for part in called)]))) + ";2;"
    )


def rule_of(rules, scope, operation):
    """The last rule that matches: ai-edge-quantizer's order."""
    chosen = None
    for rule in rules:
        if re.search(rule["regex"], scope) and rule["operation"] in {"*", operation}:
            chosen = rule
    return chosen


def read_ai_edge_quantizer(text, modules):
    rules, layers = json.loads(text), {}
    for module in modules:
        rule = rule_of(rules, scope_of(module), "FULLY_CONNECTED")
        config = rule["op_config"]
        if rule["algorithm_key"] == "no_quantize":
            layers[module] = ("float", "float"), (None, None)
            continue
        weight, read = config["weight_tensor_config"], config.get("activation_tensor_config")
        dynamic = read is None and config["compute_precision"] == "INTEGER"
        assert config["explicit_dequantize"] == (config["compute_precision"] == "FLOAT")
        shared = {"CHANNELWISE": "channel", "TENSORWISE": "tensor"}.get(
            weight["granularity"], weight["granularity"][10:]
        )
        shared = int(shared) if str(shared).isdecimal() else shared, weight["symmetric"]
        width = weight["num_bits"] if weight["dtype"] == "INT" else f"float{weight['num_bits']}"
        ranges = ("row", True) if dynamic else None if read is None else ("tensor", False)
        taken = 8 if dynamic else read["num_bits"] if read else "float"
        layers[module] = (width, taken), (shared if weight["dtype"] == "INT" else None, ranges)
    return layers


READERS = {
    "llmcompressor": read_llmcompressor,
    "autoround": read_autoround,
    "modelopt": read_modelopt,
    "ai_edge_quantizer": read_ai_edge_quantizer,
}


def layers_for(tool):
    return st.dictionaries(st.sampled_from(MODULES), st.sampled_from(SCHEMES[tool]), min_size=1)


@pytest.mark.parametrize("tool", READERS)
@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_what_is_read_from_the_text_is_the_plan(tool, data):
    layers = data.draw(layers_for(tool))
    text = recipe(plan_of({f"{module}.weight": scheme for module, scheme in layers.items()}), tool)
    expected = {module: (bits(scheme), granularity(scheme)) for module, scheme in layers.items()}
    assert READERS[tool](text, list(layers)) == expected


@given(layers=layers_for("aimet"))
@settings(max_examples=40, deadline=None)
def test_aimet_has_fp16_for_all_that_is_floating_point(layers):
    text = recipe(plan_of({f"{module}.weight": scheme for module, scheme in layers.items()}), "aimet")
    expected = {
        module: tuple("float" if isinstance(each, str) else each for each in bits(scheme))
        for module, scheme in layers.items()
    }
    assert read_aimet(text, list(layers)) == expected


def test_every_tool_has_readers_and_a_line_in_the_list():
    assert set(RECIPES) == set(SCHEMES) == {*READERS, "aimet"}
    assert all((write.__doc__ or "").splitlines()[0] for write in RECIPES.values())


def test_a_rule_of_modelopt_does_not_match_modules_that_the_plan_does_not_name():
    text = recipe(plan_of({"fc1.weight": "w4a8", "body.0.weight": "w8a8"}), "modelopt")
    others = ("fc10", "my_fc1", "body.fc1", "body.00", "body", "fc1.fc1")
    assert set(read_modelopt(text, others).values()) == {(("float", "float"), (None, None))}


@pytest.mark.parametrize(("kind", "symmetric"), [("a8", False), ("a8d", False), ("a8dr", True), ("a8dg32", True)])
def test_ranges_of_inputs_have_zero_points_where_the_plans_have(kind, symmetric):
    plan = plan_of({"body.fc.weight": f"w8{kind}"})
    _, (_, options) = modifiers_of(recipe(plan, "llmcompressor"))
    assert options["config_groups"]["group_0"]["input_activations"]["symmetric"] is symmetric
    assert json.loads(recipe(plan, "autoround"))["body.fc"]["act_sym"] is symmetric


def test_ai_edge_quantizers_inputs_have_zero_points_beside_8_bits_alone():
    for scheme, symmetric in (("w8a8", False), ("w8a16", True)):
        rule = json.loads(recipe(plan_of({"fc.weight": scheme}), "ai_edge_quantizer"))[0]
        assert rule["op_config"]["activation_tensor_config"]["symmetric"] is symmetric


def test_gptq_is_a_modifier_of_llmcompressor_for_linear_layers():
    plan = plan_of({"fc.weight": "w4g32", "fc.float.weight": "float"})
    (_, tables), (name, others) = modifiers_of(recipe(plan, "llmcompressor:modifier=gptq"))
    nearest = modifiers_of(recipe(plan, "llmcompressor"))
    assert nearest == [("QuantizationModifier", tables), ("QuantizationModifier", others)]
    assert (name, "Embedding" in others["ignore"]) == ("GPTQModifier", True)


@given(layers=layers_for("llmcompressor"))
@settings(max_examples=40, deadline=None)
def test_embeddings_of_llmcompressor_are_weights_alone(layers):
    text = recipe(plan_of({f"{module}.weight": scheme for module, scheme in layers.items()}), "llmcompressor")
    read = read_llmcompressor(text, list(layers), "Embedding")
    for module, scheme in layers.items():
        assert read[module] == ((bits(scheme)[0], "float"), (granularity(scheme)[0], None))


@pytest.mark.parametrize("name", ["Linear", "Embedding"])
def test_modules_called_as_the_classes_that_llmcompressor_ignores_are_refused(name):
    with pytest.raises(InvalidInput, match=f"layer {name}.weight: .* takes the module's name for a class; rename"):
        recipe(plan_of({f"{name}.weight": "w8"}), "llmcompressor")


def test_layers_of_one_scheme_are_one_group_of_llmcompressor():
    layers = {"a.0.weight": "w4g32", "a.1.weight": "w8", "a.2.weight": "w4g32", "a.3.weight": "float"}
    for _, options in modifiers_of(recipe(plan_of(layers), "llmcompressor")):
        assert [group["targets"] for group in options["config_groups"].values()] == [["a.0", "a.2"], ["a.1"]]
        assert options["ignore"][:-1] == ["a.3"]


def test_a_list_of_modules_may_be_missing_from_litert_torchs_names():
    rules = json.loads(recipe(plan_of({"x.blocks.0.fc.weight": "w4a8", "head.weight": "w8a8"}), "ai_edge_quantizer"))
    for lists in (False, True):
        rule = rule_of(rules, scope_of("x.blocks.0.fc", lists=lists), "FULLY_CONNECTED")
        assert rule["op_config"]["weight_tensor_config"]["num_bits"] == 4
    assert rule_of(rules, scope_of("blocks.0.fc"), "FULLY_CONNECTED") is None


def test_two_lists_whose_layers_have_one_name_there_never_take_each_others_widths():
    layers = {"encoder.0.fc.weight": "w4a8", "decoder.0.fc.weight": "w8a8", "head.weight": "w8a8"}
    rules = json.loads(recipe(plan_of(layers), "ai_edge_quantizer"))
    for module, width in (("encoder.0.fc", 4), ("decoder.0.fc", 8)):
        rule = rule_of(rules, scope_of(module), "FULLY_CONNECTED")
        assert rule["op_config"]["weight_tensor_config"]["num_bits"] == width
        assert rule_of(rules, scope_of(module, lists=True), "FULLY_CONNECTED") is None
    same = json.loads(recipe(plan_of(dict.fromkeys(layers, "w4a8")), "ai_edge_quantizer"))
    assert rule_of(same, scope_of("decoder.0.fc", lists=True), "FULLY_CONNECTED") is not None


def test_the_last_layer_computes_the_output_in_litert_torchs_file():
    layers = {"fc.weight": "w8a8", "head.weight": "w4a8"}
    rules = json.loads(recipe(plan_of(layers), "ai_edge_quantizer"))
    rule = rule_of(rules, "serving_default_output_0_output;", "FULLY_CONNECTED")
    assert rule["op_config"]["weight_tensor_config"]["num_bits"] == 4
    assert rule_of(rules, "serving_default_output_0_output;", "SOFTMAX") is None
    assert rule_of(rules, "serving_default_output_0_output;", "DEPTHWISE_CONV_2D") is None  # it takes no 4 bits there
    rules = json.loads(recipe(plan_of(layers | {"lstm.weight_ih_l0": "float"}), "ai_edge_quantizer"))
    assert rule_of(rules, "serving_default_output_0_output;", "FULLY_CONNECTED") is None


def test_tables_are_read_by_numbers_that_nothing_rounds_in_ai_edge_quantizer():
    rules = json.loads(recipe(plan_of({"table.weight": "w4a8", "head.weight": "w8a8"}), "ai_edge_quantizer"))
    config = rule_of(rules, scope_of("table"), "EMBEDDING_LOOKUP")["op_config"]
    assert config["weight_tensor_config"]["num_bits"] == 4
    assert "activation_tensor_config" not in config
    assert (config["compute_precision"], config["explicit_dequantize"]) == ("INTEGER", False)


def test_layers_that_compute_several_outputs_are_named():
    plan = plan_of({"boxes.weight": "w8a8", "fc.weight": "w8a16", "classes.weight": "w4a8"})
    rules = json.loads(recipe(plan, "ai_edge_quantizer:outputs=boxes.weight+classes.weight"))
    for number, width in ((0, 8), (1, 4)):
        rule = rule_of(rules, f"serving_default_output_{number}_output;", "CONV_2D")
        assert rule["op_config"]["weight_tensor_config"]["num_bits"] == width
    assert rule_of(rules, "serving_default_output_10_output;", "CONV_2D") is None
    with pytest.raises(InvalidInput, match=r"outputs: layer 'box.weight' is unknown \(did you mean boxes.weight\?\)"):
        recipe(plan, "ai_edge_quantizer:outputs=box.weight")


REFUSED = [
    ("aimet", "w3a8", "layer fc.weight: AIMET does not take w3a8: weights have 4 or 8 bits there"),
    ("aimet", "w4ta8", "a scale there is for an output channel; search again with --choices w4a8,w8a8, or edit"),
    ("aimet", "w4g32", "a scale there is for an output channel"),
    ("aimet", "w8a6", "inputs have 4, 8 or 16 bits there"),
    ("aimet", "w8a8d", "ranges of inputs there come from calibration data"),
    ("aimet", "w8za8", "weights have no zero points there"),
    ("aimet", "bfloat16", "weights in bfloat16 are not among its types"),
    ("modelopt", "w4za8", "ModelOpt does not take w4za8: weights have no zero points there"),
    ("modelopt", "w4g32a8dg32", "ranges of inputs there come from calibration data or at run time (d)"),
    ("modelopt", "float16", "weights in float16 are not among its types"),
    ("modelopt", "w8a8@2:4", "zeros at fixed places (@2:4) are not among what it asks for"),
    ("llmcompressor", "w8a8@50%", "llm-compressor does not take w8a8@50%: zeros at fixed places"),
    ("llmcompressor", "float16", "weights in float16"),
    ("autoround", "w8z", "AutoRound does not take w8z: its own format has no zero points beside 8 bits"),
    ("autoround", "w8a16", "inputs have 2, 3, 4, 5, 6, 7 or 8 bits there; search again with --choices w4g32,w8"),
    ("ai_edge_quantizer", "w3a8", "weights have 2, 4 or 8 bits there"),
    ("ai_edge_quantizer", "w2a8", "2 bits there go with ranges of inputs a row alone (w2a8dr)"),
    ("ai_edge_quantizer", "w2", "2 bits there go with ranges of inputs a row alone"),
    ("ai_edge_quantizer", "w4g48a8dr", "groups have 32, 64, 128, 256 weights there"),
    ("ai_edge_quantizer", "w4g32", "groups there have 2 or 4 bits and ranges a row (w4g32a8dr)"),
    ("ai_edge_quantizer", "w8g32a8dr", "groups there have 2 or 4 bits"),
    ("ai_edge_quantizer", "w8a8d", "ranges of inputs there come from calibration data or at run time for each row"),
    ("ai_edge_quantizer", "w8a16dr", "ranges a row there have 8 bits"),
    ("ai_edge_quantizer", "w8za8", "zero points of weights there go with inputs in float alone"),
]


@pytest.mark.parametrize(("tool", "scheme", "message"), REFUSED)
def test_what_a_tool_cannot_say_is_refused_by_layer_and_scheme(tool, scheme, message):
    with pytest.raises(InvalidInput, match=re.escape(message)) as caught:
        recipe(plan_of({"first.weight": "float", "fc.weight": scheme}), tool)
    assert str(caught.value).startswith("layer fc.weight: ")
    assert "; search again with --choices " in str(caught.value)


@pytest.mark.parametrize("tool", SCHEMES)
def test_a_weight_that_is_no_modules_weight_stays_in_float(tool):
    layers = {"attn.in_proj_weight": "float", "attn.out_proj.weight": SCHEMES[tool][0]}
    if tool == "aimet":
        with pytest.raises(InvalidInput, match="it quantizes all that is not named"):
            recipe(plan_of(layers), tool)
    else:
        assert "in_proj" not in recipe(plan_of(layers), tool)
    with pytest.raises(InvalidInput, match=r"names modules.*--pin 'attn.in_proj_weight=float'"):
        recipe(plan_of({"attn.in_proj_weight": "w8a8"}), tool)
    with pytest.raises(InvalidInput, match="names modules"):
        recipe(plan_of({"weight": "w8a8"}), tool)


@pytest.mark.parametrize("tool", SCHEMES)
def test_names_that_files_cannot_hold_are_refused(tool):
    with pytest.raises(InvalidInput, match=r"'a\\x85b\.weight': the name has characters"):
        recipe(plan_of({"a\x85b.weight": "float"}), tool)


def test_texts_of_a_plan_do_not_become_yaml():
    text = recipe(plan_of({"ä: {b}.weight": "w8"}, made_by='by "hand": #1'), "modelopt")
    stored = yaml.safe_load(text)
    assert stored["metadata"]["description"] == 'Plan of mixbit for openvino, made by by "hand": #1'
    assert stored["quantize"]["quant_cfg"][1]["quantizer_name"] == "ä: {b}.weight_quantizer"


def test_a_function_of_the_plan_is_a_tool_too():
    assert recipe(plan_of({"fc.weight": "w8"}), lambda plan: str(dict(plan.layers))) == "{'fc.weight': 'w8'}"
    with pytest.raises(InvalidInput, match="returns a dict; return the text"):
        recipe(plan_of({"fc.weight": "w8"}), lambda plan: dict(plan.layers))


@pytest.mark.parametrize(
    ("tool", "message"),
    [
        ("llmcompresor", r"tool 'llmcompresor' is unknown \(did you mean llmcompressor\?\); known: llmcompressor, "),
        ("llmcompressor:modifier=awq", "'awq' is unknown; known: nearest, gptq"),
        ("aimet:bits=4", "tool aimet: option 'bits=4' is not understood; it has none"),
    ],
)
def test_unknown_tools_and_options_are_named(tool, message):
    with pytest.raises(InvalidInput, match=message):
        recipe(plan_of({"fc.weight": "w8a8"}), tool)


def test_recipes_never_load_torch():
    code = "import sys; from mixbit.recipes.recipe import RECIPES; list(RECIPES); print('torch' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "False\n"
