"""Flavours, and plans whose ranges are taken at run time, through the whole loop with target packed."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import mixbit as mb
from mixbit.core import Scheme
from mixbit.core.errors import InvalidInput
from mixbit.core.target import find_target
from mixbit.graph.capture import capture
from mixbit.graph.graph import argument
from mixbit.pipeline.settings import Settings
from mixbit.quantization.offers import choices_of, note_on_run_time_ranges
from mixbit.quantization.quantizer import Quantizer
from mixbit.roundings.quantize import quantize
from tests.networks import Net, Residual, plan_of


@pytest.fixture(scope="module")
def net():
    """A layer norm that reads what three products read too."""
    torch.manual_seed(0)
    parts = {"q": nn.Linear(12, 12), "k": nn.Linear(12, 12), "n": nn.LayerNorm(12), "head": nn.Linear(12, 4)}
    return Net(lambda net, x: net.head((net.n(x) + F.gelu(net.q(x)) * net.k(x)).mean(1)), **parts).eval()


@pytest.fixture(scope="module")
def graph(net):
    return capture(net, tokens(2))


def tokens(count):
    return torch.randn(count, 5, 12, generator=torch.Generator().manual_seed(1))


def test_only_products_read_the_quantized_tensor_and_nothing_between_them_is_quantized(graph):
    simulated = quantize(graph, plan_of(graph.layers, "w8a8d", "packed"), None)
    formats = {part.tensor: part.format for part in simulated.module.modules() if isinstance(part, Quantizer)}
    assert [name for name, fmt in formats.items() if fmt.dynamic] == ["x", "mean"]
    readers = [
        str(node.target).rpartition(".")[0]
        for node in simulated.module.graph.nodes
        if node.op == "call_function" and getattr(argument(node, 0), "op", "") == "call_module"
    ]
    assert readers == ["aten.linear"] * 3


def test_without_data_weights_are_min_max_and_biases_stay(graph):
    layers = graph.layers
    simulated = quantize(graph, plan_of(layers, "w8a8dr", "packed"), None)
    x = tokens(3)

    def rows(x):
        scale = x.abs().amax(-1, keepdim=True) / 127
        return (x / scale).round() * scale

    def linear(layer, x):
        scale = torch.maximum(layer.weight.amax(1) / 127, layer.weight.amin(1) / -128)[:, None]
        return rows(x) @ ((layer.weight / scale).round() * scale).T + layer.bias

    net = graph.module
    parts = {name: net.get_submodule(name) for name in ("q", "k", "n", "head")}
    normed = F.layer_norm(x, (12,), parts["n"].weight, parts["n"].bias)
    inside = (normed + F.gelu(linear(parts["q"], x)) * linear(parts["k"], x)).mean(1)
    torch.testing.assert_close(simulated(x), linear(parts["head"], inside), atol=1e-5, rtol=1e-5)


def test_without_data_a_static_range_or_another_rounding_is_refused(graph):
    layers = graph.layers
    with pytest.raises(InvalidInput, match=r"batches: None, but q.weight \(w8a8\) has an input of static range"):
        quantize(graph, plan_of(layers, "w8a8", "packed"), None)
    with pytest.raises(InvalidInput, match="no data is not enough; give the batches"):
        quantize(graph, plan_of(layers, "w8a8d", "packed"), None, rounding=lambda given: given.simulated)


def test_the_loop_takes_ranges_at_run_time(net, tmp_path):
    batches = [tokens(32)[i : i + 8] for i in range(0, 32, 8)]
    settings = Settings(flavour="dynamic", task=mb.Task.regression())
    found = mb.auto_quantize(
        net, batches, target="packed", budget=mb.Budget(mean_bits=6), out=tmp_path / "out", settings=settings
    )
    assert set(found.plan.layers.values()) <= set(find_target("packed").dynamic_choices)
    assert found.comparison.problems == ()
    assert "gain nothing" not in found.result.chosen


def test_fisher_sees_the_error_of_ranges_at_run_time(graph):
    def loss(scheme):
        task = mb.Task.regression()
        return mb.measure(graph, [tokens(32)], target="packed", choices=[scheme], task=task).loss.sum()

    assert loss("w8a4dr") > 10 * loss("w8a8dr") > 10 * loss("w8")


def test_a_target_without_ranges_at_run_time_says_so():
    with pytest.raises(InvalidInput, match="target litert takes no ranges at run time; take --flavour static"):
        choices_of("dynamic", find_target("litert"), None)


def test_choices_are_of_the_flavour():
    target = find_target("onnxruntime")
    assert choices_of("static", target, None) == target.default_choices
    assert choices_of("dynamic", target, None) == ("w4a8d", "w6a8d", "w8a8d")
    assert choices_of("dynamic", target, ["w8a8d", "w4", "float16"]) == ("w8a8d", "w4", "float16")
    with pytest.raises(InvalidInput, match="choice w8a8: is of the flavour static; give that flavour"):
        choices_of("dynamic", target, ["w8a8"])
    with pytest.raises(InvalidInput, match="choice w8a8d: is of the flavour dynamic; give that flavour"):
        choices_of("static", target, ["w8a8d"])
    with pytest.raises(InvalidInput, match="a plan takes all ranges at run time, in one way, or none"):
        find_target("packed").schemes(["w8a8d", "w8a8dr"])


def test_a_network_of_convolutions_is_told_that_it_gains_nothing():
    layers = capture(Residual().eval(), torch.randn(4, 2, 6, 6)).layers
    share = 1 - layers[-1].macs / sum(layer.macs for layer in layers)
    assert share > 0.9
    note = note_on_run_time_ranges(layers, ("w8a8d",))
    assert note.startswith(f"convolutions do {share:.1%} of the multiply-accumulates and gain nothing")
    assert note.endswith("--flavour static does better")
    assert note_on_run_time_ranges(layers, ("w8a8",)) is None
    with pytest.raises(InvalidInput, match=r"no layer can take .* at run time: first\.weight: .*--flavour static"):
        note_on_run_time_ranges(layers[:2], ("w8a8d",))
    recurrent = capture(nn.GRU(3, 4, batch_first=True).eval(), torch.randn(2, 5, 3)).layers
    with pytest.raises(InvalidInput, match="at run time: none reads what is ever rounded"):
        note_on_run_time_ranges(recurrent, ("w8a8d",))


@pytest.mark.parametrize("target", ["onnxruntime", "openvino", "packed"])
def test_default_choices_are_offered(target):
    one = find_target(target)
    assert one.schemes(one.dynamic_choices)
    assert math.prod(scheme.input.dynamic for scheme in one.schemes(one.dynamic_choices))


@pytest.mark.parametrize(
    ("target", "scheme", "reason"),
    [
        ("onnxruntime", "w8a8dr", "no dynamic rows, but groups as in w4g32a8dg32"),
        ("onnxruntime", "w4g64a8dg32", "dynamic groups only as in w4g32a8dg32"),
        ("onnxruntime", "w2g16a8dg16", "dynamic groups only as in w4g32a8dg32"),
        ("onnxruntime", "w2g256a8dg256", "groups of 16 or 256 (not with 2 bits)"),
        ("onnxruntime", "w3g32a8dg32", "dynamic groups only as in w4g32a8dg32"),
        ("onnxruntime", "w4g32a8", "group not beside inputs of static range"),
        ("onnxruntime", "w8za8d", "zero point not beside inputs ranged at run time"),
        ("onnxruntime", "w4a4", "inputs a8 or float"),
        ("openvino", "w5", "weights w2, w3, w4, w6, w8"),
        ("openvino", "w8a8d", "inputs ranged at run time in groups of 32"),
        ("openvino", "w8a8dg64", "inputs ranged at run time in groups of 32"),
        ("openvino", "w4g32a8", "group not beside inputs of static range"),
        ("openvino", "w8@2:4", "no sparsity"),
        ("packed", "w4g32@2:4", "group not beside zeros"),
        ("packed", "w4z@50%", "zero point not beside zeros"),
        ("onnxruntime", "w4g32", None),
        ("onnxruntime", "w4g32a8dg32", None),
        ("onnxruntime", "w8ta8d", None),
        ("openvino", "w4g64za8dg32", None),
        ("openvino", "bfloat16", None),
        ("packed", "w5g32za16dr", None),
    ],
)
def test_a_target_says_why_it_does_not_run_a_scheme(target, scheme, reason):
    refusal = find_target(target).refuses(Scheme.parse(scheme))
    assert refusal is None if reason is None else reason in refusal


def test_a_network_with_convolutions_is_compared_with_uniform_plans(tmp_path):
    """Those whose convolutions take the same weight beside an input in float."""
    torch.manual_seed(0)
    x, model = torch.randn(32, 2, 6, 6), Residual().eval()
    found = mb.auto_quantize(
        model, x.split(8), target="packed", budget=mb.Budget(mean_bits=6), out=tmp_path / "out",
        settings=Settings(flavour="dynamic"),
    )  # fmt: skip
    rows = {row["scheme"]: row["held_out_divergence"] for row in found.result.uniform}
    assert set(rows) == {"w4a8d (w4 elsewhere)", "w6a8d (w6 elsewhere)"}
    assert "uniform w6a8d (w6 elsewhere)" in found.result.chosen
    assert found.result.simulated["divergence"] <= min(rows.values()) + 1e-9


def test_pinned_layers_leave_uniform_plans(tmp_path):
    torch.manual_seed(0)
    x, model = torch.randn(32, 2, 6, 6), Residual().eval()
    settings = Settings(pins={capture(model, x[:2]).layers[0].name: "float"})
    found = mb.auto_quantize(
        model, x.split(8), target="packed", budget=mb.Budget(mean_bits=20), out=tmp_path / "out", settings=settings
    )
    assert "w4a8 (float elsewhere)" in {row["scheme"] for row in found.result.uniform}
