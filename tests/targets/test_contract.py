"""What every target promises: each scheme that it offers is written, loaded, run, and does what the simulation does.

Layers are named for how a runtime executes them, so that a failure names the operator. Known limits stand in FLOAT.
"""

import dataclasses
import functools
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils import _pytree as pytree

from mixbit.core import Plan, Scheme
from mixbit.core.batches import Inputs
from mixbit.core.errors import InvalidInput, TargetMismatch
from mixbit.core.target import TARGETS, Runner, StoredWeight, find_target
from mixbit.core.task import Task
from mixbit.graph.capture import capture
from mixbit.graph.graph import Graph, Layer
from mixbit.quantization.calibrate import Calibration, calibrate
from mixbit.quantization.offers import uniform_plan, why_not
from mixbit.roundings.quantize import quantize
from mixbit.targets.export import export
from mixbit.targets.verify import predicted_bytes, verify
from tests.networks import FOR_ANY_NETWORK, assert_state_is, overflows, plan_of, skip_if_sums_overflow, state_of

#: Layers, by the beginning of their names, that a runtime computes in float although their input is quantized.
FLOAT = {
    "onnxruntime": ("up",),  # it has no integer kernel for ConvTranspose
    "openvino": (),
    "litert": ("up",),  # its integer kernel takes sizes that are known beforehand alone
    "ethosu": ("up",),  # as litert
    "executorch": ("up",),  # XNNPACK's takes a scale for each input channel alone
    "packed": ("",),  # PyTorch computes in float on rounded values
    "qonnx": ("",),  # as packed, by qonnx's executor
}
#: Targets whose runtime computes as the simulation does by default, and whose runtime tells no times of operators.
WITHOUT_SETTINGS = WITHOUT_PROFILE = ("packed", "litert", "ethosu", "executorch", "qonnx")
#: Largest root mean square difference from the simulation, relative to the spread of its outputs. In float only the
#: order of sums differs; under a8 that moves a few values across a rounding boundary, one step of 255 each.
ROUNDING, SUMS = 0.03, 1e-5
#: The same where a runtime's default settings compute in bfloat16 what is not quantized.
BFLOAT16 = 0.05
BATCH_SIZES = (1, 2, 7)


class Kinds(nn.Module):
    """Branches of one layer of each kind; an output for each branch."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = branches(lambda: nn.Conv2d(3, 9, 3))
        self.depthwise = branches(lambda: nn.Conv2d(9, 9, 3, groups=9))
        self.up = branches(lambda: nn.ConvTranspose2d(9, 8, 2, stride=2))
        self.table = branches(lambda: nn.Embedding(11, 8))
        self.tokens = branches(lambda: nn.Linear(8, 7))
        self.head = branches(lambda: nn.Linear(15, 5))

    def forward(self, image: Tensor, ids: Tensor) -> list[Tensor]:
        outputs = []
        for conv, depthwise, up, table, tokens, head in zip(*self.children(), strict=True):
            x = F.relu(up(F.relu(depthwise(F.relu(conv(image)))))).mean((2, 3))
            outputs.append(head(torch.cat([x, F.gelu(tokens(table(ids))).mean(1)], 1)))
        return outputs


def branches(make: Callable[[], nn.Module]) -> nn.ModuleList:
    """One for each width of the target with the most, and one more."""
    return nn.ModuleList(make() for _ in range(8))


class Everything(nn.Module):
    """Residual additions, functions that clip and that do not, groups, concatenation, poolings, text beside images."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        self.same = nn.Conv2d(16, 16, 3, padding=1)
        self.wide = nn.Conv2d(16, 32, 1)
        self.depthwise = nn.Conv2d(32, 32, 3, stride=2, padding=1, groups=32)
        self.narrow = nn.Conv2d(32, 24, 1)
        self.short = nn.Conv2d(16, 24, 1, stride=2)
        self.grouped = nn.Conv2d(24, 24, 3, padding=1, groups=4)
        self.up = nn.ConvTranspose2d(24, 16, 2, stride=2)
        self.smooth = nn.Conv2d(32, 16, 3)
        self.table = nn.Embedding(11, 12)
        self.line = nn.Conv1d(12, 16, 3, padding=1)
        self.tokens, self.back = nn.Linear(16, 20), nn.Linear(20, 16)
        self.head = nn.Linear(32, 5)

    def forward(self, image: Tensor, ids: Tensor) -> Tensor:
        x = F.relu(self.norm(self.first(image)))
        x = F.relu(self.same(x) + x)
        y = self.narrow(F.relu6(self.depthwise(F.relu6(self.wide(x)))))
        y = F.relu(self.grouped(F.relu(y + self.short(x))))
        y = F.avg_pool2d(torch.cat([F.relu(self.up(y)), x], 1), 2)
        y = F.adaptive_avg_pool2d(F.silu(self.smooth(y)), 1).flatten(1)
        z = F.relu(self.line(self.table(ids).transpose(1, 2))).transpose(1, 2)
        z = z + self.back(F.gelu(self.tokens(z)))
        return self.head(torch.cat([y, z.mean(1)], 1))


class Shared(nn.Module):
    """A table that is the head too, a layer that runs twice, and two outputs; inputs by keyword, one of them unused."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(9, 12)
        self.twice = nn.Linear(12, 12)
        self.head = nn.Linear(12, 9, bias=False)
        self.head.weight = self.table.weight

    def forward(self, ids: Tensor, scale: Tensor, unused: Tensor) -> dict[str, Tensor]:
        x = self.table(ids) * scale[:, None, None]
        x = F.relu(self.twice(x))
        x = F.relu(self.twice(x))
        return {"logits": self.head(x.mean(1)), "states": x}


def images_and_ids(count: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(count, 3, 8, 8, generator=generator), torch.randint(0, 11, (count, 6), generator=generator)


def keywords(count: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, 9, (count, 4), generator=generator)
    return {"scale": torch.rand(count, generator=generator) + 0.5, "unused": torch.zeros(count, 2), "ids": ids}


class Tokens(nn.Module):
    """Layers that read one tensor, a matrix with the channels in columns, a table that is the head too."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(9, 64)
        self.q, self.k = nn.Linear(64, 64), nn.Linear(64, 64)
        self.wide, self.narrow = nn.Linear(64, 96), nn.Linear(96, 64)
        self.line = nn.Conv1d(64, 64, 3, padding=1, groups=2)
        self.matrix = nn.Parameter(torch.randn(64, 32) / 8)
        self.pool = nn.Linear(32, 32)
        self.head = nn.Linear(64, 9, bias=False)
        self.head.weight = self.table.weight

    def forward(self, ids: Tensor, scale: Tensor, unused: Tensor) -> dict[str, Tensor]:
        x = self.table(ids) * scale[:, None, None]
        x = x + self.q(x).sigmoid() * self.k(x)
        x = x + self.narrow(F.gelu(self.wide(x)))
        x = x + self.line(x.transpose(1, 2)).transpose(1, 2)
        return {"states": self.head(x.mean(1)), "pooled": self.pool(x @ self.matrix).tanh()}


NETWORKS: dict[str, tuple[Callable[[], nn.Module], Callable[[int], Any]]] = {
    "kinds": (Kinds, images_and_ids),
    "everything": (Everything, images_and_ids),
    "shared": (Shared, keywords),
    "tokens": (Tokens, keywords),
}
#: Weights in groups, with zero points and in small floats, for layers to take in turn where they fit.
FORMATS = ("w4g32", "w3g16z", "float16", "w8z", "w8g32", "bfloat16", "w4g9z", "w2g4", "w8t", "w4z", "w6g12z", "float")
#: Network and scheme. `widths` gives the branches of `kinds` the target's widths in turn, and the last one scale for a
#: whole weight, all with a8; `mixed` does so layer by layer; `formats` gives the layers those of FORMATS that fit,
#: `dynamic` the schemes with ranges taken at run time, and `w8` where there are none.
CASES = [
    (name, network, scheme)
    for name in FOR_ANY_NETWORK
    for network, scheme in (
        ("kinds", "widths"),
        *[("kinds", f"w4a{bits}") for bits in find_target(name).input_bits if bits != 8],
        *[("everything", scheme) for scheme in ("mixed", "w4", "formats", "dynamic")],
        *[("shared", scheme) for scheme in ("w4a8", "w3", "float")],
        *[("tokens", scheme) for scheme in ("formats", "dynamic")],
        *[
            case
            for case in (
                ("kinds", "sparse widths"),
                *[("everything", scheme) for scheme in ("w8a8@2:4", "w4@1:2", "w8a8@99%")],
                ("shared", "w3@2:4"),
            )
            if find_target(name).refuses(Scheme.parse("w8@50%")) is None
        ],
    )
]
#: Those that take long and have most in common with others.
SLOW = [
    ("onnxruntime", "kinds", "sparse widths"),
    *[("onnxruntime", "everything", scheme) for scheme in ("w8a8@2:4", "w4@1:2", "w8a8@99%")],
    ("onnxruntime", "tokens", "formats"),
    # its executor is slow
    *[case for case in CASES if case[0] == "qonnx" and case[1:] not in {("everything", "mixed"), ("shared", "w4a8")}],
    # Vela and ExecuTorch compile each
    *[case for case in CASES if case[0] in ("ethosu", "executorch") and case[1] != "shared"],
]
#: Those that are also loaded for a fixed batch size and with a runtime's default settings.
LOADED_IN_EVERY_WAY = [("everything", "mixed"), ("everything", "w4"), ("everything", "dynamic"), ("shared", "w4a8")]
#: Those that are also verified; the first is what damaged files are made of.
VERIFIED = [("everything", "mixed"), ("everything", "formats"), ("shared", "w4a8")]


@dataclass(frozen=True)
class Written:
    """One artefact, loaded, and what it was made of."""

    target: str
    folder: Path
    graph: Graph
    simulated: Graph
    runner: Runner
    inputs: Any

    @property
    def plan(self) -> Plan:
        assert self.simulated.plan is not None
        return self.simulated.plan

    @property
    def stored(self) -> dict[str, StoredWeight]:
        return find_target(self.target).stored(self.folder)


@functools.cache
def captured(network: str) -> Graph:
    torch.manual_seed(0)
    model, inputs = NETWORKS[network]
    return capture(model().eval(), inputs(4))


def requires(target: str) -> Any:
    module = find_target(target)
    try:
        module.require()
    except InvalidInput as error:
        pytest.skip(str(error))
    return module


@functools.cache
def calibrated(network: str) -> Calibration:
    """On two batches of eight."""
    inputs = NETWORKS[network][1](16)
    batches = [pytree.tree_map(itemgetter(part), inputs) for part in (slice(8), slice(8, 16))]
    return calibrate(captured(network), [Inputs.of(batch) for batch in batches])


def simulate(target: str, network: str, scheme: str) -> Graph:
    graph = captured(network)
    return quantize(graph, plan_of(graph.layers, schemes_of(graph.layers, target, scheme), target), calibrated(network))


def schemes_of(layers: tuple[Layer, ...], target: str, scheme: str) -> str | dict[str, str]:
    """Layer -> scheme; layers that the blocks of a sparse scheme do not fit take it without zeros."""
    widths = find_target(target).weight_bits
    if scheme == "widths":
        return by_branch(layers, [*(f"w{bits}a8" for bits in widths), "w8ta8"])
    if scheme == "sparse widths":
        return by_branch(layers, [f"w{bits}a8@{bits}0%" for bits in widths])
    if scheme == "mixed":
        return {layer.name: f"w{widths[index % len(widths)]}a8" for index, layer in enumerate(layers)}
    if scheme == "formats":
        return fitting(layers, FORMATS, target)
    if scheme == "dynamic":
        return fitting(layers, run_time_schemes(target), target)
    dense = scheme.partition("@")[0]
    return {layer.name: scheme if why_not(layer, Scheme.parse(scheme)) is None else dense for layer in layers}


def by_branch(layers: tuple[Layer, ...], schemes: list[str]) -> dict[str, str]:
    """The schemes for the branches of `Kinds` in turn: the second part of a layer's name is the branch's number."""
    return {layer.name: schemes[int(layer.name.split(".")[1]) % len(schemes)] for layer in layers}


def run_time_schemes(target: str) -> tuple[str, ...]:
    """The default ones, others that the target takes beside them, and weights whose input stays in float."""
    one = find_target(target)
    further = [
        choice.replace("a8", f"{kind}a8") for choice in one.dynamic_choices for kind in ("g32", "t", "z", "g64z")
    ]
    return (
        *one.dynamic_choices,
        *(text for text in further if one.refuses(Scheme.parse(text)) is None),
        "w4",
        "float16",
        "w8",
    )


def fitting(layers: tuple[Layer, ...], schemes: tuple[str, ...], target: str) -> dict[str, str]:
    """Layer -> the next of the schemes, going round, that the layer and the target take."""
    offered = [text for text in schemes if find_target(target).refuses(Scheme.parse(text)) is None]
    chosen, number = {}, 0
    for layer in layers:
        while why_not(layer, Scheme.parse(offered[number % len(offered)])) is not None:
            number += 1
        chosen[layer.name] = offered[number % len(offered)]
        number += 1
    return chosen


@pytest.fixture(scope="module")
def write(tmp_path_factory) -> Callable[[str, str, str], Written]:
    """Write and load the artefact of a case, once."""

    @functools.cache
    def once(target: str, network: str, scheme: str) -> Written:
        module, folder = requires(target), tmp_path_factory.mktemp("written") / "out"
        simulated = simulate(target, network, scheme)
        export(simulated, folder)
        graph = captured(network)
        runner = module.load(folder, graph)
        return Written(target, folder, graph, simulated, runner, NETWORKS[network][1](max(BATCH_SIZES)))

    return once


@pytest.fixture(
    params=[pytest.param(case, id="-".join(case), marks=pytest.mark.slow if case in SLOW else ()) for case in CASES]
)
def written(request, write) -> Written:
    return write(*request.param)


def only(cases: list[tuple[str, str]]) -> Any:
    """These networks and schemes, for every target."""
    every = [(target, *case) for target in FOR_ANY_NETWORK for case in cases]
    marked = [pytest.param(case, id="-".join(case), marks=pytest.mark.slow if case in SLOW else ()) for case in every]
    return pytest.mark.parametrize("written", marked, indirect=True)


def assert_runs_as_simulated(written: Written, runner: Runner, count: int, tolerance: float | None = None) -> None:
    inputs = pytree.tree_map(lambda leaf: leaf[:count], written.inputs)
    with torch.no_grad():
        wanted = written.simulated(**inputs) if isinstance(inputs, dict) else written.simulated(*inputs)
    got = runner.run([leaf.numpy() for leaf in written.graph.leaves(Inputs.of(inputs))])
    leaves = pytree.tree_leaves(wanted)
    assert [output.shape for output in got] == [tuple(leaf.shape) for leaf in leaves]
    if tolerance is None:
        under_a8 = any(written.plan.scheme(name).input for name in written.plan.layers)
        tolerance = 0 if written.target == "packed" else ROUNDING if under_a8 else SUMS
    for output, leaf in zip(got, leaves, strict=True):
        difference = float(np.sqrt(np.mean((output - leaf.numpy()) ** 2)) / leaf.numpy().std())
        assert difference <= tolerance


def test_runs_as_simulated_at_every_batch_size(written):
    skip_if_sums_overflow(written.target, written.plan)
    for count in BATCH_SIZES:
        assert_runs_as_simulated(written, written.runner, count)


@only(LOADED_IN_EVERY_WAY)
def test_runs_as_simulated_at_a_fixed_batch_size(written):
    skip_if_sums_overflow(written.target, written.plan)
    runner = find_target(written.target).load(written.folder, written.graph, batch_size=2)
    assert_runs_as_simulated(written, runner, 2)


@only(LOADED_IN_EVERY_WAY)
def test_runs_nearly_as_simulated_under_the_runtimes_default_settings(written):
    runner = find_target(written.target).load(written.folder, written.graph, default_settings=True)
    assert_runs_as_simulated(written, runner, 2, BFLOAT16)
    assert (runner.environment == written.runner.environment) == (written.target in WITHOUT_SETTINGS)


def test_holds_exactly_the_bytes_that_were_predicted(written):
    held = {name: weight.weight_bytes for name, weight in written.stored.items()}
    predicted = predicted_bytes(written.simulated, written.plan)
    if written.target == "ethosu":  # what its coder makes of the integers is predicted closely, and in sum
        assert held.keys() == predicted.keys()
        assert sum(held.values()) == pytest.approx(sum(predicted.values()), rel=0.02, abs=96)
    else:
        assert held == predicted


def test_files_hold_little_else(written):
    """Operators, biases and quantizers: at most two kilobytes for each node of the graph, most of it OpenVINO's XML."""
    files = [written.folder / name for name in find_target(written.target).files]
    assert {path.name for path in written.folder.iterdir()} == {"plan.json", *(path.name for path in files)}
    held = sum(weight.weight_bytes for weight in written.stored.values())
    if written.target == "qonnx":  # numbers in float32 stand for integers of a design
        held = sum(4 * layer.numel for layer in written.graph.layers)
    size = sum(path.stat().st_size for path in files)
    assert held < size < held + 2000 * len(written.simulated.module.graph.nodes)


def test_layers_run_in_integers_where_their_input_is_quantized(written):
    executed = written.runner.executed()
    assert sorted(executed) == sorted(written.plan.layers)
    for layer in written.graph.layers:
        scheme = written.plan.scheme(layer.name)
        in_float = FLOAT[written.target]
        if written.target == "openvino" and overflows("openvino"):  # such processors have no kernel for some of these
            in_float = (*in_float, "up.")
            if scheme.input is not None and scheme.input.dynamic:
                continue
        integer = layer.inputs and scheme.input is not None and not layer.name.startswith(in_float)
        assert ("int8" in executed[layer.name]) == bool(integer), f"{layer.name}: {executed[layer.name]}"


@only(LOADED_IN_EVERY_WAY)
def test_a_profile_holds_every_layer(written):
    if written.target in WITHOUT_PROFILE:
        assert written.runner.profile is None
        return
    arrays = [leaf.numpy() for leaf in written.graph.leaves(Inputs.of(written.inputs))]
    profile = written.runner.profile(arrays)
    named = {layer for layer, _ in profile if layer}
    assert {layer.name for layer in written.graph.layers if layer.inputs} <= named <= written.plan.layers.keys()
    assert all(ms >= 0 for _, ms in profile)


@pytest.mark.parametrize("target", ["onnxruntime", "openvino"])
def test_a_profile_takes_as_long_as_a_run_whose_time_is_spent_in_operators(target):
    """A call of a small network is mostly overhead, which no operator's time holds."""
    pytest.importorskip(target)
    parts = [nn.Conv2d(8, 64, 3), nn.ReLU(), nn.Conv2d(64, 64, 3), nn.ReLU(), nn.Conv2d(64, 8, 3)]
    x = torch.randn(1, 8, 96, 96)
    graph = capture(nn.Sequential(*parts).eval(), x)
    simulated = quantize(graph, uniform_plan(graph, "float", target=target), [x])
    with find_target(target).written(simulated, graph, 1) as runner:
        total, took = sum(ms for _, ms in runner.profile([x.numpy()])), []
        for _ in range(20):
            began = time.perf_counter()
            runner.run([x.numpy()])
            took.append(1000 * (time.perf_counter() - began))
    assert 0.3 * min(took) < total < 3 * max(took)


@only(VERIFIED)
def test_verification_finds_nothing(written):
    skip_if_sums_overflow(written.target, written.plan)
    first = written.inputs if isinstance(written.inputs, dict) else (*written.inputs, torch.zeros(max(BATCH_SIZES)))
    comparison = verify(written.folder, written.graph, written.simulated, [first], task=Task.regression())
    assert comparison.problems == ()


@only([("everything", "mixed")])
@pytest.mark.usefixtures("apart")
def test_runs_in_a_process_of_the_runtime_alone(written, tmp_path):
    target, arrays = (
        find_target(written.target),
        [leaf.numpy() for leaf in written.graph.tensors(written.graph.example)],
    )
    target.try_apart(written.folder, arrays)
    if target.program:  # errors would be left to `load`; here there are none
        np.savez(tmp_path / "inputs.npz", *arrays)
        words = [sys.executable, "-c", target.program, str(written.folder), str(tmp_path / "inputs.npz")]
        subprocess.run(words, check=True)


@pytest.mark.usefixtures("apart")
@pytest.mark.parametrize("target", TARGETS)
def test_a_runtime_that_dies_of_a_file_is_an_error(target, tmp_path):
    dying = dataclasses.replace(
        find_target(target),
        program="import os; os.abort()",
        check_files=lambda _: None,  # there are none
    )
    with pytest.raises(TargetMismatch, match=f"{target} dies of it .*take other choices or another target"):
        dying.try_apart(tmp_path, [np.zeros(3)])
    dataclasses.replace(dying, program="raise ValueError").try_apart(tmp_path, [])  # for `load` to say


@pytest.mark.parametrize("target", FOR_ANY_NETWORK)
def test_writing_leaves_the_graph_as_it_is(target, tmp_path):
    module, simulated = requires(target), simulate(target, "shared", "w3a8")
    before, code = state_of(simulated.module), simulated.module.code
    module.write(simulated, tmp_path)
    assert_state_is(simulated.module, before)
    assert simulated.module.code == code


@pytest.mark.parametrize(
    ("target", "package"),
    [
        ("openvino", "openvino"),
        ("onnxruntime", "onnxruntime"),
        ("litert", "ai_edge_litert.interpreter"),
        ("ethosu", "ethosu.vela"),
        ("executorch", "executorch.extension.pybindings._C"),
        ("qonnx", "qonnx.core.onnx_exec"),
    ],
)
def test_a_missing_runtime_is_named(target, package, tmp_path, monkeypatch):
    module, simulated = requires(target), simulate(target, "shared", "w8a8")
    monkeypatch.setitem(sys.modules, package, None)
    for use in (module.require, lambda: export(simulated, tmp_path), lambda: module.load(tmp_path)):
        with pytest.raises(InvalidInput, match=rf"pip install 'mixbit\[{target}\]'"):
            use()


def test_export_refuses_a_graph_in_float(tmp_path):
    with pytest.raises(InvalidInput, match="not quantized"):
        export(captured("shared"), tmp_path)


@pytest.fixture(params=FOR_ANY_NETWORK)
def intact(request, write) -> tuple[Written, Path]:
    """An artefact, and the folder of another network's."""
    return write(request.param, "everything", "mixed"), write(request.param, "shared", "w3").folder


def middle(data: bytes) -> bytes:
    """Random bytes over the middle half."""
    quarter = len(data) // 4
    noise = np.random.default_rng(0).bytes(len(data) - 2 * quarter)
    return data[:quarter] + noise + data[-quarter:]


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda data: b"",
    "one byte": lambda data: data[:1],
    "first half": lambda data: data[: len(data) // 2],
    "without its end": lambda data: data[:-40],
    "random": lambda data: np.random.default_rng(0).bytes(len(data)),
    "random in the middle": middle,
    "zeros": lambda data: bytes(len(data)),
    "text": lambda data: b"<net/>{}" * 20,
}


def assert_refused(written: Written, folder: Path) -> None:
    with pytest.raises((TargetMismatch, InvalidInput)) as caught:
        verify(
            folder, written.graph, written.simulated, [(*written.inputs, torch.zeros(7))], task=Task.regression()
        ).check()
    assert str(caught.value).strip()


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_files_are_refused(intact, damage, tmp_path):
    written, _ = intact
    for name in find_target(written.target).files:
        folder = tmp_path / name
        shutil.copytree(written.folder, folder)
        (folder / name).write_bytes(DAMAGES[damage]((folder / name).read_bytes()))
        assert_refused(written, folder)


def test_missing_files_are_refused(intact, tmp_path):
    written, _ = intact
    assert_refused(written, tmp_path)
    for name in find_target(written.target).files:
        folder = tmp_path / name
        shutil.copytree(written.folder, folder)
        (folder / name).unlink()
        assert_refused(written, folder)
        (folder / name).mkdir()
        assert_refused(written, folder)


def test_files_of_another_network_are_refused(intact, tmp_path):
    written, other = intact
    assert_refused(written, other)
    files = find_target(written.target).files
    for name in files if len(files) > 1 else ():
        folder = tmp_path / name
        shutil.copytree(written.folder, folder)
        shutil.copy(other / name, folder / name)
        assert_refused(written, folder)
