"""Which layer takes which scheme."""

import numpy as np
import pytest
import torch
from torch import nn

import mixbit as mb
from mixbit.core.errors import InvalidInput
from mixbit.core.scheme import Scheme
from mixbit.core.target import find_target
from mixbit.graph.capture import capture
from mixbit.metrics.measure import measure
from mixbit.quantization import uniform_plan
from mixbit.quantization.offers import why_not, with_fallbacks
from mixbit.roundings.quantize import quantize
from mixbit.searches.search import uniform_plans
from tests.networks import Net, plan_of

PACKED = find_target("packed")
PARTS = {
    "table": lambda: nn.Embedding(7, 12),
    "conv": lambda: nn.Conv1d(12, 8, 3, padding=1),
    "fc": lambda: nn.Linear(8, 6),
}


@pytest.fixture(scope="module")
def graph():
    torch.manual_seed(0)
    net = Net(lambda net, x: net.fc(net.conv(net.table(x).transpose(1, 2)).relu().transpose(1, 2)).mean(1), **{
        name: make() for name, make in PARTS.items()
    }).eval()  # fmt: skip
    return capture(net, ids(2))


def ids(count):
    return torch.randint(0, 7, (count, 5), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("layer", "scheme", "message"),
    [
        (0, "w4g12", None),
        (0, "w4g8", "table.weight: group 8 does not divide 12 inputs; use one of 1, 2, 3, ... 12"),
        (1, "w4g9", None),
        (1, "w4g5", "conv.weight: group 5 does not divide 36 inputs; use one of 1, 2, 3, ... 36"),
        (2, "w4g3", "fc.weight: group 3 does not divide 8 inputs; use one of 1, 2, 4, 8"),
        (0, "w8a8d", None),
        (2, "w4g4a8d", None),
        (2, "w4g4a8dr", None),
        (1, "w8a8d", "conv.weight: ranges are taken at run time for linear layers .* not for conv1d; give it w8"),
        (2, "w8a8dg4", None),
        (2, "w8a8dg3", "fc.weight: groups of 3 do not divide its 8 inputs; give it w8"),
        (2, "w8g2a8dg4", "fc.weight: weights in groups of 2, inputs in groups of 4: .* give it w8g2, or w8g4"),
        (1, "w8a8", None),
        (2, "float", None),
    ],
)  # fmt: skip
def test_a_misfit_says_why_and_what_to_do(graph, layer, scheme, message):
    found = why_not(graph.layers[layer], Scheme.parse(scheme))
    if message is None:
        assert found is None
    else:
        with pytest.raises(AssertionError, match=message):
            raise AssertionError(found)


def test_layers_that_cannot_take_a_run_time_range_are_offered_its_weight_alone(graph):
    schemes, offered = with_fallbacks(
        graph.layers, [Scheme.parse(text) for text in ("w8a8d", "w4g8a8d", "float")], PACKED
    )
    assert [str(scheme) for scheme in schemes] == ["w8a8d", "w4g8a8d", "float", "w4", "w8"]
    np.testing.assert_array_equal(offered, [[1, 0, 1, 1, 0], [0, 0, 1, 1, 1], [1, 1, 1, 0, 0]])


def test_the_table_offers_what_fits_and_the_plan_is_refused_where_it_does_not(graph):
    batches = [ids(8)]
    table = measure(graph, batches, target="packed", choices=["w4g9", "w4g12", "w8"])
    np.testing.assert_array_equal(np.isfinite(table.loss), [[0, 1, 1], [1, 1, 1], [0, 0, 1]])
    with pytest.raises(InvalidInput, match=r"choices: none fits a layer; table.weight: group 9 .*, as w4g9,w4$"):
        measure(graph, batches, target="packed", choices=["w4g9"])
    with pytest.raises(InvalidInput, match=r"plan: table.weight: group 9 does not divide 12 inputs"):
        quantize(graph, plan_of(graph.layers, "w4g9", "packed"), batches)


def test_ranges_at_run_time_tie_no_layers_and_leave_a_uniform_plan(graph):
    table = measure(graph, [ids(8)], target="packed", choices=["w8a8d", "w4a8d"])
    assert table.choices == ("w8a8d", "w4a8d", "w8", "w4")
    assert table.input_ties == ()
    uniform = {plan.made_by: list(plan.layers.values()) for plan in uniform_plans(table, mb.Budget(weight_ratio=0.5))}
    assert uniform == {
        "uniform w8a8d (w8 elsewhere)": ["w8a8d", "w8", "w8a8d"],
        "uniform w4a8d (w4 elsewhere)": ["w4a8d", "w4", "w4a8d"],
    }
    assert mb.search(table, mb.Budget(weight_ratio=0.5), method="uniform").layers["conv.weight"] == "w8"
    plan = mb.search(table, mb.Budget(weight_ratio=0.5))
    assert plan.layers["conv.weight"] == "w8"


def test_zeros_that_fit_no_block_of_a_layer_are_not_offered_beside_an_input_in_float():
    """A convolution's 27 weights of a row are no whole number of blocks of four."""
    layers = capture(nn.Conv2d(3, 4, 3).eval(), torch.randn(2, 3, 5, 5)).layers
    schemes, offered = with_fallbacks(layers, [Scheme.parse("w8a8d@2:4"), Scheme.parse("w8")], PACKED)
    assert [str(scheme) for scheme in schemes] == ["w8a8d@2:4", "w8"]
    np.testing.assert_array_equal(offered, [[0, 1]])


def test_a_pin_of_what_takes_the_place_of_a_run_time_range_leaves_it_to_others(graph):
    table = measure(graph, [ids(8)], target="packed", choices=["w8a8d", "w8"])
    pinned = table.pinned({"fc.weight": "w8"}, ["w8"])
    np.testing.assert_array_equal(np.isfinite(pinned.loss), [[1, 0], [0, 1], [0, 1]])


@pytest.mark.parametrize("metric", ["measured", "fit_error", "output_error", "hawq", "modelopt", "weight_error"])
def test_every_metric_skips_what_does_not_fit(graph, metric):
    batches = [(ids(8), torch.zeros(8, dtype=torch.long))]
    table = measure(graph, batches, target="packed", choices=["w4g9", "w8ta8dr", "bfloat16"], metric=metric)
    assert np.isfinite(table.loss).sum() == 1 + 3 + 3 - 1 + 1


def test_a_uniform_plan_gives_layers_what_they_can_take(graph):
    plan = uniform_plan(graph, "w8a8d", target="onnxruntime")
    assert plan.layers == {"table.weight": "w8a8d", "conv.weight": "w8", "fc.weight": "w8a8d"}
    assert plan.made_by == "uniform w8a8d"
    mb.quantize(graph, plan, None)
    assert set(uniform_plan(graph, "w4a8", target="packed").layers.values()) == {"w4a8"}


@pytest.mark.parametrize(
    ("scheme", "target", "message"),
    [
        ("w8a8", "abacus", "abacus"),
        ("w5a4", "openvino", "target openvino does not run it"),
        ("w4g5", "packed", r"uniform w4g5: .*group 5 does not divide"),
        ("w4?", "packed", "w4"),
    ],
)
def test_a_uniform_plan_that_cannot_be_is_refused(graph, scheme, target, message):
    with pytest.raises(InvalidInput, match=message):
        uniform_plan(graph, scheme, target=target)
