"""Predicted bytes of all files, beside those of the files."""

import dataclasses
from itertools import product

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import mixbit as mb
from mixbit.core import InfeasibleBudget, Inputs, InvalidInput, find_target
from mixbit.pipeline import Settings
from mixbit.quantization.calibrate import calibrate
from mixbit.targets import size
from mixbit.targets.size import file_bytes, sized
from tests.networks import Net
from tests.searches.fixtures import small_table

CHOICES = ["w3a8", "w8a8", "float"]


@pytest.fixture(scope="module")
def measured():
    torch.manual_seed(0)

    def forward(net, x):
        x = F.relu(net.a(x))
        x = torch.cat([F.relu(net.b(x)), net.c(x)], 1)
        return net.e(F.hardswish(net.d(x)).mean((2, 3)))

    layers = {"a": nn.Conv2d(3, 8, 3), "b": nn.Conv2d(8, 16, 1), "c": nn.Conv2d(8, 8, 3, padding=1, groups=8)}
    network = Net(forward, **layers, d=nn.Conv2d(24, 16, 3), e=nn.Linear(16, 5)).eval()
    batches = [torch.randn(16, 3, 12, 12) for _ in range(2)]
    graph = mb.capture(network, batches[0])
    return network, batches, graph, calibrate(graph, [Inputs.of(batch) for batch in batches])


@pytest.mark.parametrize("target", ["openvino", "onnxruntime", "packed", "litert"])
def test_predicted_bytes_are_those_of_the_files(measured, target, tmp_path):
    _, _, graph, calibration = measured
    table = mb.measure(graph, calibration, target=target, choices=CHOICES, metric="weight_error")
    with pytest.raises(InvalidInput, match="file_bytes: the table holds no sizes of its choices; measure with --size"):
        table.limits(mb.Budget(file_bytes=1e6))

    def simulate(plan):
        return mb.quantize(graph, plan, calibration)

    table = sized(table, simulate)
    drawn = np.random.default_rng(0).integers(CHOICES.index("float"), size=(1, len(table.layers)))
    uniform = np.full((1, len(table.layers)), CHOICES.index("w3a8"))
    for number, choice in enumerate([*uniform, *drawn]):
        plan = table.plan(choice, "drawn")
        mb.export(simulate(plan), tmp_path / str(number))
        real = file_bytes(find_target(target), tmp_path / str(number))
        assert plan.predicted["file_bytes"] == pytest.approx(real, rel=0.005 if number == 0 else 0.02)


def test_a_budget_of_file_bytes_is_kept(measured, tmp_path):
    network, batches, _, _ = measured
    settings = Settings(task=mb.Task.regression(), metric="weight_error", choices=["w4a8", "w8a8"])

    def run(limit, folder):
        budget = mb.Budget(file_bytes=limit)
        return mb.auto_quantize(network, batches, target="packed", budget=budget, out=folder, settings=settings)

    widest = run(1e6, tmp_path / "widest")
    assert set(widest.plan.layers.values()) == {"w8a8"}
    limit = widest.comparison.file_bytes - 300
    done = run(limit, tmp_path / "kept")
    assert done.plan.predicted["file_bytes"] <= limit
    assert done.comparison.file_bytes == pytest.approx(done.plan.predicted["file_bytes"], rel=0.002)


def test_a_plan_that_is_larger_than_predicted_gives_way(monkeypatch):
    usage = np.array([[100.0, 200.0, 300.0]] * 3)
    table = dataclasses.replace(small_table(), usage=small_table().usage | {"file_bytes": usage})
    monkeypatch.setattr(
        size,
        "_written",
        lambda target, plan: {"file_bytes": 30 + int(usage[range(3), table.columns(plan.layers)].sum())},
    )

    def find(table):
        choices = [np.array(choice) for choice in product(range(3), repeat=3)]
        fitting = [choice for choice in choices if table.usage["file_bytes"][range(3), choice].sum() <= 700]
        return table.plan(max(fitting, key=lambda choice: choice.sum()), "found")

    plan = size.plan_within(mb.Budget(file_bytes=700), find, table, lambda plan: plan)
    assert plan.predicted["file_bytes"] == 630, "the first plan, of 700 bytes by the table, takes 730"
    with pytest.raises(InfeasibleBudget, match="file_bytes=300"):
        size.plan_within(
            mb.Budget(file_bytes=300), lambda table: table.plan([0, 0, 0], "found"), table, lambda plan: plan
        )


@pytest.mark.slow
def test_an_npus_flash_sram_and_cycles_are_budgets(measured, tmp_path):
    find_target("ethosu").require()
    network, batches, _, _ = measured
    settings = Settings(task=mb.Task.regression(), metric="weight_error", choices=["w4a8", "w8a8"])

    def run(folder, **limits):
        budget = mb.Budget(**limits)
        return mb.auto_quantize(
            network, batches, target="ethosu", budget=budget, out=tmp_path / folder, settings=settings
        )

    widest = run("widest", flash_bytes=1e6)
    told = {
        name: int(widest.result.environment[name].replace(",", "")) for name in ("flash_bytes", "sram_bytes", "cycles")
    }
    assert {name: widest.plan.predicted[name] for name in told} == told
    kept = run("kept", flash_bytes=told["flash_bytes"] - 200, cycles=told["cycles"], sram_bytes=told["sram_bytes"])
    assert int(kept.result.environment["flash_bytes"].replace(",", "")) <= told["flash_bytes"] - 200
    with pytest.raises(InfeasibleBudget, match="cycles"):
        run("none", cycles=told["cycles"] / 100)


def test_cycles_are_shared_out_by_weights_and_kept(monkeypatch):
    table, target = small_table(), dataclasses.replace(find_target("packed"), file_figures=("cycles",))
    monkeypatch.setattr(size, "find_target", lambda name: target)
    cycles = {choice: 1000.0 * (number + 1) for number, choice in enumerate(table.choices)}

    def written(target, plan):
        shares = zip(plan.layers.values(), table.numel, strict=True)
        return {
            "file_bytes": 10_000,
            "cycles": round(sum(cycles[choice] * numel for choice, numel in shares) / table.numel.sum()),
        }

    monkeypatch.setattr(size, "_written", written)
    table = sized(table, lambda plan: plan)
    for column, choice in enumerate(table.choices[:2]):  # the third is not offered to the last layer
        np.testing.assert_allclose(table.usage["cycles"][:, column], cycles[choice] * table.numel / table.numel.sum())
    budget = mb.Budget(cycles=1500)
    plan = size.plan_within(budget, lambda table: mb.search(table, budget), table, lambda plan: plan)
    assert plan.predicted["cycles"] == written(target, plan)["cycles"] <= 1500
    with pytest.raises(InfeasibleBudget, match="cycles"):
        mb.search(table, mb.Budget(cycles=999))


def test_what_a_targets_files_do_not_tell_is_no_budget_there(measured, tmp_path):
    network, batches, _, _ = measured
    with pytest.raises(InvalidInput, match="budget cycles: files of target packed do not tell it"):
        mb.auto_quantize(network, batches, target="packed", budget=mb.Budget(cycles=1e6), out=tmp_path / "out")
