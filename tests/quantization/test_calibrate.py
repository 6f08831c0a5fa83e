import pytest
import torch
from torch import nn

from mixbit.core.batches import Inputs
from mixbit.core.errors import InvalidInput
from mixbit.core.scheme import Format
from mixbit.core.target import find_target
from mixbit.graph.capture import capture
from mixbit.graph.graph import Graph
from mixbit.graph.layers import with_layers
from mixbit.quantization.calibrate import FEWEST_SAMPLES, MOST_SAMPLES, Calibration, _Reservoir, calibrate, mean_output
from mixbit.quantization.ranges import Histogram
from mixbit.quantization.simulate import activation_formats, simulate
from tests.networks import (
    FOR_ANY_NETWORK,
    OPERATORS,
    Attention,
    Net,
    Residual,
    assert_state_is,
    batches_of,
    captured_operator,
    plan_of,
    state_of,
)  # fmt: skip


class Values(torch.fx.Interpreter):
    """What every node of a graph returns for some inputs."""

    def __init__(self, graph, *inputs):
        super().__init__(graph.module, garbage_collect_values=False)
        with torch.no_grad():
            self.run(*inputs, enable_io_processing=False)
        self.of = {node.name: value for node, value in self.env.items()}


def plain_mean(graph, operation, weight, batches):
    """The mean over all data of the operator's output, position by position, from its outputs themselves."""
    node, rows = graph.node(operation.node), []
    for batch in batches:
        x = Values(graph, *batch.args).of[node.args[operation.data].name]
        output = graph.run(operation, x, weight)
        rows.append(output.movedim(-1 if operation.channels_last else 1, -1).flatten(0, -2))
    return torch.cat(rows).mean(0)


@pytest.mark.parametrize("network", ["convolutions", "attention"])
@pytest.mark.parametrize("target", FOR_ANY_NETWORK)
def test_a_calibration_for_a_target_simulates_its_plans_as_one_for_all(target, network):
    torch.manual_seed(0)
    net, x = (
        (Residual(), torch.randn(8, 2, 6, 6))
        if network == "convolutions"
        else (Attention(), torch.randint(0, 6, (8, 5)))
    )
    graph = capture(net.eval(), x)
    plan = plan_of(graph.layers, "w8a8", target)
    own, whole = calibrate(graph, [x], target=target), calibrate(graph, [x])
    assert (
        activation_formats(graph, plan, find_target(target)).keys() <= own.histograms.keys() <= whole.histograms.keys()
    )
    with torch.no_grad():
        torch.testing.assert_close(simulate(graph, plan, own)(x), simulate(graph, plan, whole)(x), rtol=0, atol=0)


def test_a_calibration_for_another_target_is_refused():
    torch.manual_seed(0)
    x = torch.randint(0, 6, (8, 5))
    graph = capture(Attention().eval(), x)
    calibration = calibrate(graph, [x], target="openvino")
    assert len(calibration.histograms) < len(calibrate(graph, [x]).histograms)
    with pytest.raises(InvalidInput, match=r"calibration: for another target, without \w+; call calibrate\(\) with"):
        simulate(graph, plan_of(graph.layers, "w8a8", "litert"), calibration)
    with pytest.raises(InvalidInput, match="opnvino"):
        calibrate(graph, [x], target="opnvino")


@pytest.mark.parametrize("kind", OPERATORS)
def test_the_mean_output_is_the_plain_mean_over_the_data(kind):
    _, x, graph = captured_operator(kind)
    torch.manual_seed(1)
    batches = batches_of(torch.randn(8, *x.shape[1:], dtype=torch.float64) + 1, 3)
    layers = graph.layers
    calibration = calibrate(graph, batches)
    (operation,) = layers[0].operations
    if not operation.takes_bias:
        assert operation.node not in calibration.mean_inputs
        return
    weight = torch.randn(layers[0].shape, dtype=torch.float64)
    got = mean_output(graph, operation, calibration, weight)
    torch.testing.assert_close(got, plain_mean(graph, operation, weight, batches))


def test_one_weight_at_two_resolutions_has_a_mean_for_each():
    net = Net(
        lambda net, x: net.a(x).mean((2, 3)) + net.a(x[:, :, ::2, ::2]).mean((2, 3)), a=nn.Conv2d(2, 3, 3)
    ).double()
    graph = capture(net, torch.randn(2, 2, 12, 12, dtype=torch.float64))
    (layer,) = graph.layers
    batches = batches_of(torch.randn(5, 2, 12, 12, dtype=torch.float64), 2)
    calibration = calibrate(graph, batches)
    weight = torch.randn(layer.shape, dtype=torch.float64)
    for operation in layer.operations:
        got = mean_output(graph, operation, calibration, weight)
        torch.testing.assert_close(got, plain_mean(graph, operation, weight, batches))


def test_inputs_of_two_shapes_count_by_their_outputs():
    _, _, graph = captured_operator("conv2d")
    (layer,) = graph.layers
    (operation,) = layer.operations
    small, large = torch.randn(2, 3, 6, 6, dtype=torch.float64), torch.randn(5, 3, 9, 8, dtype=torch.float64)
    means = {tuple(x.shape[1:]): (x.mean(0, keepdim=True), len(x)) for x in (small, large)}
    weight = torch.randn(layer.shape, dtype=torch.float64)
    got = mean_output(graph, operation, Calibration({}, {operation.node: means}, {}, 7), weight)
    outputs = [graph.run(operation, x, weight).movedim(1, -1).flatten(0, -2) for x in (small, large)]
    torch.testing.assert_close(got, torch.cat(outputs).mean(0))


def numbered(count, *shape):
    """Samples that tell their number: sample n holds n all over."""
    return torch.arange(float(count)).view(-1, *[1] * len(shape)).expand(count, *shape).clone()


def kept_samples(graph, x, batch_size):
    samples = calibrate(graph, batches_of(x, batch_size)).samples
    return {name: tensor for name, (tensor,) in samples.items()}


@pytest.mark.parametrize(("count", "batch_size"), [(200, 16), (200, 1), (40, 7)])
def test_samples_are_drawn_from_all_of_the_data(count, batch_size):
    _, _, graph = captured_operator("linear")
    data = numbered(count, 5).double()
    (samples,) = kept_samples(graph, data, batch_size).values()
    numbers = samples[:, 0].tolist()
    assert len(set(numbers)) == len(numbers) == min(count, MOST_SAMPLES)
    if count > 2 * MOST_SAMPLES:
        assert max(numbers) > 0.9 * count
        assert any(number < count / 2 for number in numbers)
    (again,) = kept_samples(graph, data, batch_size).values()
    assert torch.equal(samples, again)


def test_every_sample_has_the_same_chance():
    size, count, trials = 3, 12, 3000
    times = torch.zeros(count)
    for trial in range(trials):
        reservoir, kept = _Reservoir(size), {}
        reservoir.generator.manual_seed(trial)
        for start in range(0, count, 5):
            reservoir.choose(min(5, count - start))
            kept |= {slot: start + index for slot, index in reservoir.replacements}
        assert sorted(kept) == list(range(size))
        for index in kept.values():
            times[index] += 1
    expected = trials * size / count
    assert ((times - expected).square() / expected).sum() < 31  # chi square, 11 degrees of freedom: 1 in 1000


def test_few_samples_of_many_positions_and_many_of_few():
    net = Net(lambda net, x: net.b(net.a(x).mean((2, 3))), a=nn.Conv2d(1, 2, 1), b=nn.Linear(2, 2))
    first, second = kept_samples(capture(net, numbered(3, 1, 32, 32)), numbered(100, 1, 32, 32), 10).values()
    assert (len(first), len(second)) == (FEWEST_SAMPLES, MOST_SAMPLES)
    assert len(first[:, 0, 0, 0].unique()) == FEWEST_SAMPLES


@pytest.mark.parametrize(
    "run",
    [
        lambda net, x: net.a(x.transpose(0, 1)),
        lambda net, x: net.a(x.reshape(-1, 2)),
        lambda net, x: net.a(x.transpose(0, 1).reshape(-1, 2)).view(4, -1, 2),
    ],
    ids=["second", "together", "apart"],
)
def test_a_sample_is_all_rows_of_one_sample(run):
    graph = capture(Net(run, a=nn.Linear(2, 2)), numbered(3, 4, 2))
    (samples,) = kept_samples(graph, numbered(10, 4, 2), 5).values()
    assert samples.numel() == 10 * 4 * 2
    assert sorted(samples.reshape(-1, 4, 2).mean((1, 2)).tolist()) == list(range(10))


@pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning")  # torch says it of its own trees
def test_samples_that_cannot_be_told_apart_are_kept_as_they_are():
    net = Net(lambda net, x: net.a(x.sum(0, keepdim=True)) + x, a=nn.Linear(2, 2))
    program = torch.export.export(net, (torch.randn(3, 2),), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
    inputs = Inputs.of(torch.randn(3, 2))
    shapes = {node.name: tuple(node.meta["val"].shape) for node in program.graph.nodes if node.op == "call_function"}
    graph = Graph(program.run_decompositions({}).module(check_guards=False), inputs, shapes)
    graph = with_layers(graph)
    ((samples,),) = calibrate(graph, [inputs]).samples.values()
    torch.testing.assert_close(samples, inputs.args[0].sum(0, keepdim=True))


def test_the_histograms_are_of_every_tensor_that_may_be_quantized():
    torch.manual_seed(0)
    graph = capture(Residual().eval(), torch.randn(2, 2, 6, 6))
    state = state_of(graph.module)
    batches = batches_of(torch.randn(7, 2, 6, 6), 3)
    calibration = calibrate(graph, iter(batches))
    assert calibration.num_samples == 7
    assert_state_is(graph.module, state)
    values = [Values(graph, *batch.args).of for batch in batches]
    assert len(calibration.histograms) == 6
    for name, histogram in calibration.histograms.items():
        seen = torch.cat([of[name].flatten() for of in values])
        assert (histogram.low, histogram.high) == (float(seen.min()), float(seen.max()))
        assert histogram.counts.sum() + histogram.zeros == seen.numel()
    fmt = Format(8, "tensor", symmetric=False)
    quantizer = calibration.quantizer("x", fmt, torch.device("cpu"))
    assert (quantizer.tensor, quantizer.format, quantizer.axis) == ("x", fmt, None)


def test_the_range_of_an_activation_is_the_methods():
    _, _, graph = captured_operator("linear")
    fmt, x = Format(8, "tensor", symmetric=False), torch.randn(50, 5, dtype=torch.float64)

    def ends(ranges):
        found = calibrate(graph, batches_of(x, 10), ranges=ranges).quantizer("x", fmt, x.device)
        return float(-found.zero_point * found.scale), float((255 - found.zero_point) * found.scale)

    assert ends("min_max") == pytest.approx((float(x.min()), float(x.max())), abs=0.02)
    assert ends("percentile:share=0.8") == pytest.approx(
        x.quantile(torch.tensor([0.2, 0.8]).double()).tolist(), abs=0.1
    )
    assert ends(lambda histogram, fmt: (0.5, 7)) == (-3.5, 124)
    with pytest.raises(InvalidInput, match="ranges 'nonsense' is unknown"):
        calibrate(graph, batches_of(x, 10), ranges="nonsense")


def test_without_zero_points_integers_are_signed_where_there_are_numbers_below_zero():
    calibration = Calibration({}, {}, {}, num_samples=1)
    for name, values in (("low", [-1.0, 3.0]), ("high", [0.5, 3.0])):
        calibration.histograms[name] = Histogram()
        calibration.histograms[name].update(torch.tensor(values))
    fmt, cpu = Format(5, "tensor", symmetric=False), torch.device("cpu")
    low, high = (calibration.quantizer(name, fmt, cpu, zero_points=False) for name in ("low", "high"))
    assert (low.format.integer_range, high.format.integer_range) == ((-16, 15), (0, 31))
    assert (float(low.zero_point), float(high.zero_point)) == (0, 0)
    x = torch.tensor([-1.0, 0.0, 0.5, 3.0])
    for quantizer in (low, high):
        inside = x if quantizer is low else x.clamp(min=0)
        assert (quantizer(x) - inside).abs().max() <= float(quantizer.scale)
    assert calibration.quantizer("low", fmt, cpu).format.integer_range == (0, 31)
    assert float(calibration.quantizer("low", fmt, cpu).zero_point) > 0


def test_no_batch_at_all_is_refused():
    _, _, graph = captured_operator("linear")
    with pytest.raises(InvalidInput, match="holds no batch: an empty loader, or an iterator that was used up"):
        calibrate(graph, [])


def test_a_batch_that_does_not_fit_is_refused():
    _, x, graph = captured_operator("linear")
    with pytest.raises(InvalidInput, match="input 0 has shape"):
        calibrate(graph, [Inputs.of(x[:, :2])])


def test_a_layer_that_reads_what_is_not_finite_is_refused():
    graph = capture(Net(lambda net, x: net.a(x.log()), a=nn.Linear(3, 2)), torch.ones(2, 3))
    with pytest.raises(InvalidInput, match=r"a\.weight: its input log holds NaN or inf on the calibration data"):
        calibrate(graph, [Inputs.of(torch.tensor([[1.0, 0.0, 1.0]]))])


def test_a_calibration_of_another_graph_is_refused():
    _, x, graph = captured_operator("linear")
    calibration = calibrate(graph, batches_of(x, 2))
    other = capture(Residual().eval(), torch.randn(2, 2, 6, 6)).layers
    with pytest.raises(InvalidInput, match=r"of another graph, without relu, which second\.weight reads"):
        calibration.check_layers(other)
