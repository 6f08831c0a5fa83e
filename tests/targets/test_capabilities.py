"""Every row of the tables of capabilities, against what the runtime says that it executed and what its file holds."""

import functools
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from mixbit.core.errors import InvalidInput, UnsupportedModel
from mixbit.core.scheme import Scheme
from mixbit.core.target import TARGETS, find_target
from mixbit.graph.capture import capture
from mixbit.graph.graph import Graph
from mixbit.graph.layers import PRODUCTS
from mixbit.metrics.measure import measure
from mixbit.quantization.calibrate import calibrate
from mixbit.quantization.offers import uniform_plan, why_not
from mixbit.quantization.sizes import weight_bytes_of
from mixbit.roundings.quantize import quantize
from mixbit.targets._integers import plan_of as plan_of_graph
from mixbit.targets.capabilities import OPERATORS, SCHEMES, between_layers, capabilities, summary
from mixbit.targets.export import export
from tests.networks import OF_HUGGINGFACE, Net, overflows, plan_of

#: Operator -> how to make a layer of it, whose rows hold whole groups of 32, and the shape of one sample.
LAYERS = {
    "linear": (lambda: nn.Linear(32, 16), (32,)),
    "addmm": (lambda: Net(lambda net, x: torch.addmm(net.b, x, net.w), w=matrix(32, 16), b=matrix(16)), (32,)),
    "matmul": (lambda: Net(lambda net, x: x @ net.w, w=matrix(32, 16)), (32,)),
    "conv1d": (lambda: nn.Conv1d(32, 8, 1), (32, 1)),
    "conv2d": (lambda: nn.Conv2d(8, 8, 2), (8, 2, 2)),
    "conv3d": (lambda: nn.Conv3d(4, 8, 2), (4, 2, 2, 2)),
    "conv_transpose1d": (lambda: nn.ConvTranspose1d(8, 8, 4), (8, 4)),
    "conv_transpose2d": (lambda: nn.ConvTranspose2d(8, 8, 2), (8, 2, 2)),
    "conv_transpose3d": (lambda: nn.ConvTranspose3d(4, 4, 2), (4, 2, 2, 2)),
    "embedding": (lambda: nn.Embedding(7, 32), (32,)),
}
#: The schemes that are tried outside `make slow`: one of each form, since contract tests run every width.
FEW = ("w2a8", "w4a4", "w8a8", "w8ta8", "w8a8@2:4", "w8a8d", "w8a8dg32", "w4", "w4g32", "w8z", "float16", "float")
#: Targets that write no network of these, and where their rows are proved.
ELSEWHERE: tuple[str, ...] = OF_HUGGINGFACE


def matrix(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(shape) / 2)


class Branches(nn.Module):
    """A layer of each operator in each scheme; each reads a tensor of its own, so that it takes its own format."""

    def __init__(self, operators: list[str], count: int) -> None:
        super().__init__()
        self.operators = operators
        self.layers = nn.ModuleList(LAYERS[operator][0]() for operator in operators for _ in range(count))

    def forward(self, x: Tensor) -> list[Tensor]:
        outputs = []
        for number, layer in enumerate(self.layers):
            operator = self.operators[number * len(self.operators) // len(self.layers)]
            read = (x * (1 + number / 256)).reshape(-1, *LAYERS[operator][1])
            outputs.append(layer(read.abs().long().clamp(max=6) if operator == "embedding" else read))
        return outputs


def rows_of(target: str, schemes: tuple[str, ...] = SCHEMES) -> list:
    """Those of the target; `addmm` and `matmul` are promised what `linear` is."""
    rows = {(row.operator, row.scheme): row for row in capabilities(target)}
    return [
        (operator, row)
        for operator in LAYERS
        for scheme in schemes
        if (row := rows["linear" if operator in PRODUCTS else operator, scheme])
    ]


def kind_of_range(scheme: str) -> str:
    """Plans take all ranges at run time in one way, or none."""
    read = Scheme.parse(scheme).input
    return "static" if read is None or not read.dynamic else f"{read.granularity} {read.group} {read.symmetric}"


@functools.cache
def captured(operators: tuple[str, ...], schemes: tuple[str, ...]) -> tuple[Graph, list[tuple[str, str]]]:
    """A network of these operators, a layer for each scheme, and the operator and scheme of each layer.

    Targets share it, since its capture takes longest.
    """
    torch.manual_seed(0)
    graph = capture(Branches(list(operators), len(schemes)).eval(), torch.randn(4, 32))
    return graph, [(operator, scheme) for operator in operators for scheme in schemes]


def deployed(target: str, schemes: tuple[str, ...], folder: Path) -> dict:
    """(operator, scheme) -> what the runtime executed, bytes in the file, bytes predicted, for rows not refused.

    Layers whose own scheme is refused take one that is not.
    """
    found, one = {}, find_target(target)
    taken = [(operator, row.scheme) for operator, row in rows_of(target, schemes) if row.runs != "refused"]
    for number, kind in enumerate(dict.fromkeys(kind_of_range(scheme) for _, scheme in taken)):
        some = [(operator, scheme) for operator, scheme in taken if kind_of_range(scheme) == kind]
        graph, places = captured(
            tuple(dict.fromkeys(operator for operator, _ in some)),
            tuple(scheme for scheme in schemes if kind_of_range(scheme) == kind),
        )
        choice = {layer.name: places[int(layer.name.split(".")[1])] for layer in graph.layers}
        assert len(choice) == len(places)
        plan = {
            name: scheme if (operator, scheme) in some else some[0][1] for name, (operator, scheme) in choice.items()
        }
        data = [torch.randn(16, 32) * 3, torch.randn(16, 32) * 3]
        calibration = calibrate(graph, data, target=target) if kind == "static" else None
        simulated = quantize(graph, plan_of(graph.layers, plan, target), calibration)
        export(simulated, folder / str(number))
        predicted = weight_bytes_of(simulated, plan_of_graph(simulated), one)
        executed, stored = one.load(folder / str(number), graph).executed(), one.stored(folder / str(number))
        for layer in graph.layers:
            if choice[layer.name] in some:
                sizes = stored[layer.name].weight_bytes, predicted[layer.name]
                found[choice[layer.name]] = executed[layer.name], *sizes
    return found


@pytest.fixture(
    scope="module",
    params=[
        # Vela and ExecuTorch compile 200 layers, qonnx runs a session for each; others say what packed does
        pytest.param(name, marks=pytest.mark.slow if name not in ("openvino", "onnxruntime", "litert") else ())
        for name in TARGETS
        if name not in ELSEWHERE
    ],
)
def target(request):
    try:
        find_target(request.param).require()
    except InvalidInput as error:
        pytest.skip(str(error))
    return request.param


@pytest.mark.parametrize("schemes", [FEW, pytest.param(SCHEMES, marks=pytest.mark.slow)], ids=["few", "all"])
def test_what_runs_is_executed_and_stored_as_the_rows_say(target, schemes, tmp_path_factory):
    found = deployed(target, schemes, tmp_path_factory.mktemp(target))
    taken = [(operator, row) for operator, row in rows_of(target, schemes) if row.runs != "refused"]
    assert found.keys() == {(operator, row.scheme) for operator, row in taken}
    one = find_target(target)
    for operator, row in taken:
        executed, held, predicted = found[operator, row.scheme]
        unsure = target == "openvino" and (
            (overflows("openvino") and (operator.startswith("conv_t") or kind_of_range(row.scheme) != "static"))
            or operator in ("conv_transpose1d", "conv_transpose3d")  # seen on processors without VNNI alone
        )
        if not unsure:
            assert ("int8" in executed) == (row.runs == "integers"), f"{operator} {row.scheme}: {executed}"
        share, few = one.bytes_tolerance if one.name == "ethosu" else (0, 0)
        assert held == pytest.approx(predicted, rel=share, abs=few)


def test_what_is_refused_is_offered_to_no_layer(target):
    one = find_target(target)
    graph = capture(Branches(list(LAYERS), 1).eval(), torch.randn(4, 32))
    layers = dict(zip(LAYERS, graph.layers, strict=True))
    for operator, row in rows_of(target):
        offered = why_not(layers[operator], Scheme.parse(row.scheme), one) is None
        assert offered == (row.runs != "refused"), f"{operator} {row.scheme}"


def test_an_operator_that_a_target_lacks_is_named_before_any_work():
    graph = capture(nn.Sequential(nn.Conv3d(2, 3, 2)).eval(), torch.randn(2, 2, 3, 3, 3))
    with pytest.raises(InvalidInput, match=r"0.weight: target litert has no operator for conv3d; take another target"):
        uniform_plan(graph, "w8a8", target="litert")
    with pytest.raises(UnsupportedModel, match=r"^0.weight: target litert has no operator for conv3d"):
        measure(graph, [torch.randn(2, 2, 3, 3, 3)], target="litert", metric="weight_error")


@pytest.mark.parametrize("target", ["litert", "ethosu", "executorch"])
@pytest.mark.parametrize(("kind", "name"), [(nn.LSTM, "LSTM"), (nn.GRU, "GRU"), (nn.RNN, "simple RNN")])
def test_a_recurrence_is_named_where_a_target_has_no_operator_for_it(target, kind, name, tmp_path):
    try:
        find_target(target).require()
    except InvalidInput as error:
        pytest.skip(str(error))
    network = Net(lambda net, x: net.b(net.a(x)[0]), a=kind(8, 8, batch_first=True), b=nn.Linear(8, 4)).eval()
    graph = capture(network, torch.randn(3, 5, 8))
    simulated = quantize(graph, uniform_plan(graph, "w8", target=target), None)
    with pytest.raises(UnsupportedModel, match=rf"^a.weight_hh_l0: target {target} has no operator .*\({name}\)"):
        export(simulated, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("target", "reason"), [("openvino", "leaves out quantizers"), ("onnxruntime", "no integer kernels")]
)
def test_inputs_of_16_bits_are_refused_with_the_reason(target, reason):
    with pytest.raises(
        InvalidInput, match=rf"^choice w8a16: target {target} does not run it; .*no inputs of 16 bits .*{reason}"
    ):
        find_target(target).schemes(["w8a16"])


def test_operators_between_layers_are_told():
    """Tests of the targets prove them."""
    assert between_layers("litert") == "Operators between layers on inputs of 8 bits: add, average_pool, cat."
    assert between_layers("executorch").endswith(": add.")
    assert between_layers("packed").endswith(": none.")


def test_lines_of_the_table_hold_every_scheme_once_and_every_operator_in_one_column():
    for target in TARGETS:
        lines = summary(capabilities(target))
        schemes = [scheme for line in lines for scheme in line[0].split(", ")]
        assert sorted(schemes) == sorted(SCHEMES)
        for *_, integers, floats, refused in lines:
            named = [name for part in (integers, floats) for name in part.split(", ") if name]
            assert len(named) == len(set(named))
            assert set(named) <= {*OPERATORS, "all"}
            assert bool(refused) == (named != ["all"] and set(named) != set(OPERATORS))
