"""Configuration files as NNCF 2's documentation and examples have them."""

import json
import time

import pytest

from mixbit.app.nncf import read_nncf_config
from mixbit.core.budget import Budget
from mixbit.core.errors import InvalidInput
from mixbit.core.target import find_target

PACKED = find_target("packed")


def hawq(**changes):
    precision = {"type": "hawq", "bits": [4, 8], "iter_number": 40, "compression_ratio": 1.5, "tolerance": 1e-3}
    return {
        "model": "resnet50",
        "target_device": "TRIAL",
        "compression": {
            "algorithm": "quantization",
            "weights": {"mode": "asymmetric", "per_channel": True, "bits": 8},
            "initializer": {"precision": precision | changes, "range": {"num_init_samples": 1500}},
            "ignored_scopes": ["ResNet/NNCFLinear[fc]/linear_0"],
        },
    }


def autoq(**changes):
    precision = {"type": "autoq", "bits": [2, 4, 8], "iter_number": 300, "compression_ratio": 0.15}
    precision |= {"eval_subset_ratio": 0.2, "dump_init_precision_data": True}
    return {"compression": [{"algorithm": "quantization", "initializer": {"precision": precision | changes}}]}


def manual(scopes):
    precision = {"type": "manual", "bitwidth_per_scope": scopes}
    return {"compression": {"algorithm": "quantization", "initializer": {"precision": precision}}}


def read(tmp_path, config, target=PACKED, budget=None):
    (tmp_path / "nncf.json").write_text(json.dumps(config))
    return read_nncf_config(tmp_path / "nncf.json", target, budget)


def test_hawq(tmp_path):
    found = read(tmp_path, hawq())
    assert found.metric == "hawq:vectors=40,rule=nncf,tolerance=0.001"
    assert found.search == "hawq:assignment=liberal"
    assert found.budget.limits == Budget(bit_complexity_ratio=1.5).limits
    assert found.choices == ("w4a4", "w4a8", "w8a4", "w8a8")
    assert found.pins == {"fc.weight": "float"}
    assert found.notes["precision.compression_ratio"] == "mapped: bit_complexity_ratio=1.5, at least"
    assert found.notes["target_device"].startswith("not needed")
    assert found.notes["model"] == "not needed: no part of quantization"
    assert found.notes["weights.mode"] == "not needed: weights are symmetric"
    assert found.notes["weights.bits"] == "not needed: the precision decides"
    assert found.notes["initializer.range"].startswith("not needed")


def test_autoq_has_another_meaning_of_the_ratio(tmp_path):
    found = read(tmp_path, autoq(warmup_iter_number=5))
    assert found.search == "autoq:episodes=300,warmup=5"
    assert found.budget.limits == Budget(weight_ratio=0.15).limits
    assert found.eval_subset_ratio == 0.2
    assert found.notes["precision.compression_ratio"] == "mapped: weight_ratio=0.15, at most, scales included"


def test_defaults_are_those_of_nncf(tmp_path):
    config = hawq()
    config["compression"]["initializer"]["precision"] = {"type": "hawq"}
    found = read(tmp_path, config)
    assert found.metric == "hawq:vectors=200,rule=nncf,tolerance=0.0001"
    assert found.budget.limits == {"bit_complexity_ratio": 1.5}
    assert len(found.choices) == 9


def test_what_the_target_does_not_store_or_run_is_left_out_and_said(tmp_path):
    found = read(tmp_path, hawq(bits=[4, 8, 16]), find_target("openvino"), Budget(weight_ratio=0.2))
    assert found.budget.limits == {"weight_ratio": 0.2}
    assert found.choices == ("w4a8", "w8a8")
    assert "[16] are not stored by openvino" in found.notes["precision.bits"]


def test_manual_precisions_are_pins(tmp_path):
    found = read(
        tmp_path,
        manual(
            [[4, "Net/Block[layer1]/NNCFConv2d[conv]/conv2d_0|WEIGHT"], [8, "Net/NNCFConv2d[first]/conv2d_0|INPUT0"]]
        ),
    )
    assert found.pins == {"layer1.conv.weight": "w4a8"}
    assert found.budget.limits == {"weight_ratio": 1}
    assert found.notes["Net/NNCFConv2d[first]/conv2d_0|INPUT0"].startswith("refused: inputs take 8 bits where")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ([], "the file is"),
        ({}, r"compression: algorithms \[None\]; expected one, quantization"),
        ({"compression": [{"algorithm": "magnitude_sparsity"}]}, "magnitude_sparsity.*expected one, quantization"),
        ({"compression": {"algorithm": "quantization"}}, "initializer is None"),
        (hawq(type="magic"), "precision.type is 'magic'; known: hawq, autoq, manual"),
        (hawq(type=["hawq"]), "precision.type is .'hawq'.; known"),
        (manual(5), "bitwidth_per_scope is 5; expected a list"),
        ({"compression": hawq()["compression"] | {"ignored_scopes": "fc"}}, "scope 'fc' is not understood"),
        ({"compression": hawq()["compression"] | {"ignored_scopes": None}}, "ignored_scopes is None; expected a list"),
        ({"compression": hawq()["compression"] | {"ignored_scopes": ["{re}.*fc.*"]}}, "scope '{re}.*fc.*' is not"),
        (hawq() | {"target_scopes": ["Net/NNCFConv2d[c]/conv2d_0"]}, "target_scopes: not read"),
        (hawq(iter_number=float("inf")), "Infinity.* is no finite number"),
        (manual([[4.0, "Net/NNCFConv2d[conv1]/conv2d_0|WEIGHT"]]), "4.0 bits; target packed stores"),
        ({"compression": hawq()["compression"] | {"weights": 4}}, "weights is 4; expected an object"),
        (hawq(speed=1), "precision.speed is no key of hawq; known: bits, bitwidth_assignment_mode"),
        (autoq(tolerance=1), "precision.tolerance is no key of autoq"),
        (hawq(traces_per_layer_path="t.pth"), "traces_per_layer_path: a pickle, which is never read"),
        (hawq(iter_number=0), "precision.iter_number is 0; give a positive whole number"),
        (hawq(iter_number=1.5), "give a positive whole number"),
        (hawq(compression_ratio="x"), "precision.compression_ratio is 'x'"),
        (hawq(compression_ratio=True), "precision.compression_ratio is True"),
        (hawq(bits=[]), "precision.bits is"),
        (hawq(bits=[16]), "target packed stores weights of"),
        (hawq(bitwidth_assignment_mode="loose"), "give liberal or strict"),
        (manual([[4]]), "each is .bits, scope."),
        (manual([[4, "conv1"]]), "scope 'conv1' is not understood"),
        (manual([[16, "Net/NNCFConv2d[conv1]/conv2d_0|WEIGHT"]]), "16 bits; target packed stores"),
    ],
)
def test_bad_files_are_refused_by_key(config, message, tmp_path):
    with pytest.raises(InvalidInput, match=f"nncf.json: .*{message}"):
        read(tmp_path, config)


def test_scopes_ignored_for_weights_alone_stay_in_float_too(tmp_path):
    config = hawq()
    config["compression"]["weights"] = {"ignored_scopes": ["Net/NNCFConv2d[first]/conv2d_0"], "quantize_outputs": True}
    found = read(tmp_path, config)
    assert found.pins == {"fc.weight": "float", "first.weight": "float"}
    assert found.notes["weights.quantize_outputs"].startswith("refused")


def test_a_ratio_that_no_plan_reaches_is_refused(tmp_path):
    with pytest.raises(InvalidInput, match="target openvino runs inputs in 8 bits alone: no plan reaches more than 1"):
        read(tmp_path, hawq(), find_target("openvino"))


def test_comments_and_operators_without_a_name(tmp_path):
    config = hawq() | {"ignored_scopes": ["Net/relu_0", "Net/NNCFConv2d[c2]/conv2d_0"]}
    text = json.dumps(config, indent=2).replace("{", "{ // NNCF's files have comments", 1)
    (tmp_path / "nncf.json").write_text(text.replace("resnet50", "https://resnet50"))
    found = read_nncf_config(tmp_path / "nncf.json", PACKED)
    assert found.pins == {"fc.weight": "float", "c2.weight": "float"}
    assert found.notes["Net/relu_0"] == "not needed: no layer with a weight"
    found = read(tmp_path, manual([[8, "Net/relu_0|OUTPUT"]]))
    assert found.notes["Net/relu_0|OUTPUT"].startswith("refused: inputs take 8 bits")


def test_a_text_without_end_is_refused_at_once(tmp_path):
    """It is read once, not once from each of its characters."""
    (tmp_path / "nncf.json").write_text('"' + '\\"' * 50_000)
    began = time.process_time()
    with pytest.raises(InvalidInput, match=r"nncf\.json"):
        read_nncf_config(tmp_path / "nncf.json", PACKED)
    assert time.process_time() - began < 5
