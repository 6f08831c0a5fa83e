"""The whole loop on a small network with target packed, which needs no runtime; other targets have contract tests."""

import copy
import json

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import mixbit as mb
from mixbit.pipeline import Settings, uniform_scheme
from mixbit.result import Result
from mixbit.task import Task


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.second = nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.first(x)).relu()
        return self.head((self.second(x) + x).relu().mean((2, 3)))


@pytest.fixture(scope="module")
def net() -> nn.Module:
    torch.manual_seed(0)
    return Net().eval()


@pytest.fixture(scope="module")
def batches() -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randn(16, 1, 6, 6, generator=generator), torch.randint(0, 3, (16,), generator=generator))
        for _ in range(5)
    ]


@pytest.fixture(scope="module")
def deployed(net, batches, tmp_path_factory):
    out = tmp_path_factory.mktemp("pipeline") / "out"
    return mb.auto_quantize(net, batches, target="packed", budget=mb.Budget(mean_bits=4), out=out)


def test_folder_holds_everything_and_nothing_else(deployed):
    names = {path.name for path in deployed.folder.iterdir()}
    assert names == {"plan.json", "sensitivity.json", "result.json", "check.safetensors", "model.safetensors"}


def test_result_has_every_part_of_the_contract(deployed):
    result = json.loads((deployed.folder / "result.json").read_text())
    assert {"float", "simulated", "deployed", "uniform", "seconds", "environment"} <= result.keys()
    assert {"accuracy", "latency_ms", "file_bytes", "weight_bytes"} <= result["float"].keys()
    wanted = {"accuracy", "agreement", "max_abs_diff", "file_bytes", "weight_bytes", "predicted_bytes", "latency_ms"}
    assert wanted <= result["deployed"].keys()
    assert result["deployed"]["weight_bytes"] == result["deployed"]["predicted_bytes"]
    assert result["deployed"]["file_bytes"] == (deployed.folder / "model.safetensors").stat().st_size


def test_plan_keeps_the_budget_and_the_artefact_is_the_simulation(deployed):
    assert deployed.plan.predicted["mean_bits"] <= 4
    assert deployed.comparison.problems == ()
    assert deployed.comparison.max_abs_diff < 1e-5


def test_uniform_plans_within_the_budget_are_reported(deployed):
    assert {row["scheme"] for row in deployed.result.uniform} == {"w2a8", "w3a8", "w4a8"}


def test_never_worse_than_the_best_uniform_plan_even_with_a_metric_that_lies(net, batches, tmp_path):
    from mixbit.estimate import Estimate

    def liar(question):
        """Says that the fewest bits are the best, so that the search takes the worst plan there is."""
        columns = torch.tensor([float(scheme.weight_bits) for scheme in question.schemes]).double()
        loss = columns.expand(len(question.layers), -1).numpy().copy()
        return Estimate(loss, loss * 0, 2)

    settings = Settings(metric=liar)
    found = mb.auto_quantize(
        net, batches, target="packed", budget=mb.Budget(mean_bits=6), out=tmp_path / "o", settings=settings
    )
    divergences = {row["scheme"]: row["held_out_divergence"] for row in found.result.uniform}
    assert uniform_scheme(found.plan) == min(divergences, key=divergences.get) == "w6a8"
    assert "uniform w6a8 is deployed" in found.result.chosen


def test_user_model_is_bit_identical_after(batches, tmp_path):
    model = Net().train()
    model.second.weight.requires_grad_(False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    mb.auto_quantize(model, batches, target="packed", budget=mb.Budget(mean_bits=4), out=tmp_path / "out")
    assert model.training
    assert model.norm.training
    assert not model.second.weight.requires_grad
    assert model.first.weight.requires_grad
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_same_seed_same_plan_and_table(net, batches, deployed, tmp_path):
    again = mb.auto_quantize(net, batches, target="packed", budget=mb.Budget(mean_bits=4), out=tmp_path / "out")
    assert again.plan == deployed.plan
    assert (again.table.loss == deployed.table.loss).all()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch has no CUDA here")
def test_the_loop_runs_on_cuda(net, batches, deployed, tmp_path):
    model = copy.deepcopy(net).cuda()
    found = mb.auto_quantize(model, batches, target="packed", budget=mb.Budget(mean_bits=4), out=tmp_path / "out")
    for module in (model, found.simulated.module):
        assert {tensor.device.type for tensor in module.state_dict().values()} == {"cuda"}
    assert found.plan.predicted["mean_bits"] <= 4
    assert found.comparison.problems == ()
    np.testing.assert_allclose(found.table.loss, deployed.table.loss, rtol=0.1, atol=1e-6)
    on_cpu = mb.capture(net, batches[0][0])
    assert mb.verify(found.folder, on_cpu, found.simulated, batches).problems == (), "what CUDA wrote, the CPU runs"


def test_verify_compares_with_the_simulation(net, batches, deployed):
    graph = mb.capture(net, batches[0][0])
    assert mb.verify(deployed.folder, graph, deployed.simulated, batches).problems == ()
    other = mb.quantize(
        graph, deployed.plan.model_copy(update={"layers": dict.fromkeys(deployed.plan.layers, "w2a8")}), batches
    )
    comparison = mb.verify(deployed.folder, graph, other, batches)
    assert any("bytes" in problem for problem in comparison.problems)
    with pytest.raises(mb.TargetMismatch, match="does not match"):
        comparison.check()


def test_regression_needs_no_labels(net, batches, tmp_path):
    settings = Settings(task=Task.regression())
    data = [images for images, _ in batches]
    found = mb.auto_quantize(
        net, data, target="packed", budget=mb.Budget(weight_ratio=0.3), out=tmp_path / "o", settings=settings
    )
    assert found.comparison.agreement is None
    assert "accuracy" not in found.result.deployed
    assert found.comparison.problems == ()


def test_nothing_is_left_where_the_run_fails(net, batches, tmp_path, monkeypatch):
    from mixbit.targets import packed

    def fail(*_):
        raise mb.TargetMismatch("broken on purpose")

    monkeypatch.setattr(packed, "load", fail)
    with pytest.raises(mb.TargetMismatch, match="on purpose"):
        mb.auto_quantize(net, batches, target="packed", budget=mb.Budget(mean_bits=4), out=tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda images, labels: (images[:, :, :5], labels), "shape"),
        (lambda images, labels: (images.double(), labels), "float64"),
        (lambda images, labels: (images * float("nan"), labels), "NaN"),
        (lambda images, labels: (images, labels + 3), "classes 0..2"),
        (lambda images, labels: (images, labels.float()), "labels"),
    ],
)
def test_bad_batches_are_refused_and_leave_nothing(net, batches, tmp_path, change, message):
    bad = [*batches[:3], change(*batches[3]), batches[4]]
    with pytest.raises(mb.InvalidInput, match=message):
        mb.auto_quantize(net, bad, target="packed", budget=mb.Budget(mean_bits=4), out=tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_empty_data(net, tmp_path):
    with pytest.raises(mb.InvalidInput, match="no batch"):
        mb.auto_quantize(net, [], target="packed", budget=mb.Budget(mean_bits=4), out=tmp_path / "out")


def test_infeasible_budget_says_what_is_reachable(net, batches, tmp_path):
    with pytest.raises(mb.InfeasibleBudget, match=r"mean_bits.*2.*8"):
        mb.auto_quantize(net, batches, target="packed", budget=mb.Budget(mean_bits=1.5), out=tmp_path / "out")


def test_a_constant_channel_is_fine(batches, tmp_path):
    model = Net().eval()
    with torch.no_grad():
        model.first.weight[2] = 0
        model.second.weight[:, 3] = 0
    found = mb.auto_quantize(model, batches, target="packed", budget=mb.Budget(mean_bits=4), out=tmp_path / "out")
    assert found.comparison.problems == ()


def test_result_round_trip(deployed):
    assert Result.load(deployed.folder) == deployed.result
