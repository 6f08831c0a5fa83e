"""The whole loop on a small network with target packed, which needs no runtime; other targets have contract tests."""

import copy
import dataclasses
import functools
import json
import multiprocessing
import os
import re
import shutil
import signal

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import mixbit as mb
from mixbit.core.errors import InfeasibleBudget, InvalidInput, TargetMismatch, UnsupportedModel
from mixbit.core.io.store import Journal
from mixbit.core.task import Task
from mixbit.metrics import Estimate
from mixbit.pipeline import auto, network
from mixbit.pipeline.settings import Run, Settings
from mixbit.results import recheck as rechecks
from mixbit.results.recheck import recheck
from mixbit.results.result import Result
from mixbit.targets import latency, packed
from mixbit.training import Training
from tests.networks import crude_scales

BUDGET = mb.Budget(mean_bits=4)
#: What result.json names.
FILES = {"README.md", "plan.json", "sensitivity.json", "report.html", "check.safetensors", "model.safetensors"}


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


@pytest.fixture(scope="module", autouse=True)
def _quick():
    """The tests capture each model once between them, and take latencies from few rounds."""
    capture, graphs = rechecks.capture, {}

    def capture_once(model, example):
        if model not in graphs:
            graphs[model] = capture(model, example)
        return graphs[model]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(network, "capture_all", lambda model, batches, _: capture_once(model, batches[0]))
        patch.setattr(rechecks, "capture", capture_once)
        patch.setattr(latency, "ROUNDS", 5)
        yield


@pytest.fixture
def run(net, batches, tmp_path):
    """Run auto_quantize with target packed into the folder `name`; further arguments are settings."""

    def call(name="out", model=net, data=batches, *, budget=BUDGET, eval_batches=None, **settings):
        out, settings = tmp_path / name, Settings(**settings)
        return mb.auto_quantize(
            model, data, target="packed", budget=budget, out=out, eval_batches=eval_batches, settings=settings
        )

    return call


@pytest.fixture(scope="module")
def deployed(net, batches, tmp_path_factory):
    return mb.auto_quantize(
        net, batches, target="packed", budget=BUDGET, out=tmp_path_factory.mktemp("pipeline") / "out"
    )


def test_folder_holds_everything_and_nothing_else(deployed):
    names = {path.name for path in deployed.folder.iterdir()}
    assert names == {*FILES, "result.json"}


def test_result_has_every_part_of_the_contract(deployed):
    result = json.loads((deployed.folder / "result.json").read_text())
    assert {"float", "simulated", "deployed", "uniform", "seconds", "environment"} <= result.keys()
    assert {"accuracy", "latency_ms", "file_bytes", "weight_bytes"} <= result["float"].keys()
    wanted = {"accuracy", "agreement", "max_abs_diff", "file_bytes", "weight_bytes", "predicted_bytes", "latency_ms"}
    assert wanted <= result["deployed"].keys()
    assert result["deployed"]["weight_bytes"] == result["deployed"]["predicted_bytes"]
    assert result["deployed"]["file_bytes"] == (deployed.folder / "model.safetensors").stat().st_size


def test_the_result_says_in_words_how_fast_the_artefact_is_beside_float(deployed):
    slow = deployed.result.model_copy(update={"latency_ratio": latency.Ratio(1.31, 1.28, 1.34)})
    assert slow.speed == "slower than float: 1.31 (1.28 to 1.34) times its latency in packed"
    ratio = Result.load(deployed.folder).latency_ratio
    assert ratio.low <= ratio.value <= ratio.high
    assert str(ratio) in deployed.result.speed


def test_a_target_that_computes_in_float_alone_refuses_to_be_fast(run):
    with pytest.raises(InvalidInput, match="fast: target packed computes in float whatever the plan; leave it out"):
        run(fast=True)


def test_a_budget_that_fast_makes_impossible_says_so(net, batches, tmp_path, monkeypatch):
    """Where nothing gets faster, all stays in float, which no budget of half the bytes holds."""

    def nothing_gains(table, *_):
        return dataclasses.replace(
            table, loss=np.where([name == "float" for name in table.choices], table.loss, np.inf)
        )

    monkeypatch.setattr(auto, "timed", lambda table, *_: (table, ""))
    monkeypatch.setattr(auto, "faster", nothing_gains)
    with pytest.raises(InfeasibleBudget, match=r"--fast .* left out what makes nothing faster: leave it away"):
        mb.auto_quantize(
            net, batches, target="openvino", budget=mb.Budget(weight_ratio=0.5), out=tmp_path / "out",
            settings=Settings(choices=("w8a8", "float"), fast=True),
        )  # fmt: skip


def test_fast_also_offers_each_weight_beside_an_input_in_float(tmp_path):
    pytest.importorskip("onnxruntime")
    settings = Settings(choices=("w4a8", "w8a8"), fast=True)
    assert Run("onnxruntime", BUDGET, tmp_path / "out", settings, force=False).choices == (
        "w4a8", "w8a8", "w4", "w8", "float",
    )  # fmt: skip


def test_plan_keeps_the_budget_and_the_artefact_is_the_simulation(deployed):
    assert deployed.plan.predicted["mean_bits"] <= 4
    assert deployed.comparison.problems == ()
    assert deployed.comparison.max_abs_diff < 1e-5


def test_uniform_plans_within_the_budget_are_reported(deployed):
    assert {row["scheme"] for row in deployed.result.uniform} == {"w2a8", "w3a8", "w4a8"}


def test_never_worse_than_the_best_uniform_plan_even_with_a_metric_that_lies(run):
    def liar(question):
        """Says that the fewest bits are the best, so that the search takes the worst plan there is."""
        columns = torch.tensor([float(scheme.weight_bits) for scheme in question.schemes]).double()
        loss = columns.expand(len(question.layers), -1).numpy().copy()
        return Estimate(loss, loss * 0, 2)

    found = run(budget=mb.Budget(mean_bits=6), metric=liar)
    divergences = {row["scheme"]: row["held_out_divergence"] for row in found.result.uniform}
    assert set(found.plan.layers.values()) == {min(divergences, key=divergences.get)} == {"w6a8"}
    assert "uniform w6a8 is deployed" in found.result.chosen


def test_user_model_is_bit_identical_after(run):
    model = Net().train()
    model.second.weight.requires_grad_(False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    run(model=model)
    assert model.training
    assert model.norm.training
    assert not model.second.weight.requires_grad
    assert model.first.weight.requires_grad
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_same_seed_same_plan_and_table(run, net, deployed):
    again = run(model=copy.deepcopy(net))
    assert again.plan == deployed.plan
    assert (again.table.loss == deployed.table.loss).all()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch has no CUDA here")
def test_the_loop_runs_on_cuda(run, net, batches, deployed):
    model = copy.deepcopy(net).cuda()
    found = run(model=model)
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
    with pytest.raises(TargetMismatch, match="does not match"):
        comparison.check()


def test_regression_needs_no_labels(run, batches):
    data = [images for images, _ in batches]
    found = run(data=data, budget=mb.Budget(weight_ratio=0.3), task=Task.regression())
    assert found.comparison.agreement is None
    assert "accuracy" not in found.result.deployed
    assert found.comparison.problems == ()


def broken(*_):
    raise TargetMismatch("broken on purpose")


@pytest.mark.parametrize(
    ("change", "message"),
    [({"load": broken}, "on purpose"), ({"program": "import os; os.abort()"}, "packed dies of it")],
)
@pytest.mark.usefixtures("apart")
def test_nothing_is_left_where_the_run_fails(run, tmp_path, monkeypatch, change, message):
    monkeypatch.setattr(packed, "TARGET", dataclasses.replace(packed.TARGET, **change))
    with pytest.raises(TargetMismatch, match=message):
        run()
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
def test_bad_batches_are_refused_and_leave_nothing(run, batches, tmp_path, change, message):
    with pytest.raises(InvalidInput, match=message):
        run(data=[*batches[:3], change(*batches[3]), batches[4]])
    assert list(tmp_path.iterdir()) == []


def test_empty_data(run):
    with pytest.raises(InvalidInput, match="no batch"):
        run(data=[])


def test_the_ranges_of_activations_are_chosen_as_asked(run, batches):
    def outputs(name, **ranges):
        return run(name, choices=["w4a4"], **ranges).simulated(batches[0][0])

    plain, same, other = outputs("a"), outputs("b", ranges="mse"), outputs("c", ranges="percentile:share=0.9")
    assert torch.equal(plain, same)
    assert not torch.allclose(plain, other)
    with pytest.raises(InvalidInput, match="percentile: share=2"):
        run("d", ranges="percentile:share=2")


@pytest.fixture(scope="module")
def normed() -> nn.Module:
    torch.manual_seed(0)
    parts = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(16, 3)
    return nn.Sequential(*parts).eval()


@pytest.mark.parametrize(
    "options",
    [
        {"bias_correction": "sequential"},
        {"bias_correction": "off"},
        {"reestimate_batch_norms": True},
        {"equalize": True},
    ],
    ids=lambda options: next(iter(options)),
)
def test_every_option_of_static_quantization_reaches_the_artefact(run, normed, batches, options):
    plain = run("plain", normed, choices=["w4a4"])
    other = run("other", normed, choices=["w4a4"], **options)
    assert not torch.allclose(plain.simulated(batches[0][0]), other.simulated(batches[0][0]))
    assert other.comparison.problems == ()
    assert other.comparison.max_abs_diff < 1e-5


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"bias_correction": "twice"}, "bias correction 'twice' is unknown; known: at_once, sequential, off"),
        ({"flavour": "dynamo"}, "flavour 'dynamo' is unknown .did you mean dynamic..; known: static, dynamic, qat"),
        ({"importance": "size"}, "importance 'size' is unknown"),
    ],
)
def test_unknown_names_are_refused(run, setting, message):
    with pytest.raises(InvalidInput, match=message):
        run(**setting)


def test_infeasible_budget_says_what_is_reachable(run):
    with pytest.raises(InfeasibleBudget, match=r"mean_bits.*2.*8"):
        run(budget=mb.Budget(mean_bits=1.5))


def test_a_constant_channel_is_fine(run):
    model = Net().eval()
    with torch.no_grad():
        model.first.weight[2] = 0
        model.second.weight[:, 3] = 0
    assert run(model=model).comparison.problems == ()


def test_result_round_trip(deployed):
    assert Result.load(deployed.folder) == deployed.result


class Keywords(nn.Module):
    """Two inputs by keyword and two outputs of one shape, the second of which is the answer."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 3), nn.Linear(6, 3)

    def forward(self, left: Tensor, right: Tensor) -> dict[str, Tensor]:
        return {"aside": self.b(right), "logits": self.a(left) - self.b(right)}


class Many(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ModuleList(nn.Linear(1, 3) for _ in range(12))

    def forward(self, *inputs: Tensor) -> Tensor:
        raise NotImplementedError


@functools.cache
def many_inputs() -> nn.Module:
    """Twelve inputs, each of which counts differently."""
    names = [f"x{index}" for index in range(12)]
    source = f"def forward(self, {', '.join(names)}):\n    return " + " + ".join(
        f"{index + 1} * self.parts[{index}]({name})" for index, name in enumerate(names)
    )
    namespace = {}
    exec(source, namespace)
    torch.manual_seed(0)
    return type("Twelve", (Many,), {"forward": namespace["forward"]})().eval()


def keywords() -> nn.Module:
    torch.manual_seed(0)
    return Keywords().eval()


def test_inputs_by_keyword_may_come_in_any_order(run, tmp_path):
    rows = [
        {"right": torch.randn(8, 6), "labels": torch.zeros(8, dtype=torch.int64), "left": torch.randn(8, 4)}
        for _ in range(4)
    ]
    turned = [{"left": row["left"], "right": row["right"], "labels": row["labels"]} for row in rows]
    found = run(
        "out",
        keywords(),
        rows,
        eval_batches=turned,
        budget=mb.Budget(mean_bits=8),
        choices=["w8a8"],
    )
    assert found.comparison.problems == ()
    assert found.comparison.max_abs_diff < 1e-5
    again = recheck(tmp_path / "out", model=keywords())
    assert again.problems == ()
    assert again.max_abs_diff < 1e-5
    assert again.num_samples == 32


def segments():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 3, 1)).eval()


def test_a_folder_with_an_answer_per_pixel_is_verified(run, tmp_path):
    model = segments()
    images = [torch.randn(8, 1, 4, 5) for _ in range(4)]
    pairs = [(x, model(x).argmax(1)) for x in images]
    found = run("out", model, pairs, budget=mb.Budget(mean_bits=8), task=Task.segmentation())
    again = recheck(tmp_path / "out", model=model)
    assert again.problems == ()
    assert again.num_samples == 8
    assert again.accuracy == found.comparison.accuracy > 0.9


def test_twelve_inputs_keep_their_order(run, tmp_path):
    rows = [tuple(torch.randn(8, 1) for _ in range(12)) for _ in range(4)]
    run("out", many_inputs(), rows, budget=mb.Budget(mean_bits=8), choices=["w8a8"])
    assert recheck(tmp_path / "out", model=many_inputs()).max_abs_diff < 1e-5


def test_outputs_that_are_no_numbers_are_refused(run, tmp_path):
    class Root(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(2, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.a(x) + (1 - x[:, :1]).sqrt()

    batches = [torch.rand(8, 2) for _ in range(4)]
    batches[3] = batches[3] + 1  # the one that is held out
    with pytest.raises(InvalidInput, match="returns NaN or inf"):
        run(model=Root(), data=batches)
    assert list(tmp_path.iterdir()) == []


def test_models_in_float64_are_refused(run, batches):
    doubled = [(images.double(), labels) for images, labels in batches]
    with pytest.raises(UnsupportedModel, match=r"float64.*model\.float\(\)"):
        run(model=Net().double().eval(), data=doubled)


def test_files_that_were_changed_are_noticed(net, deployed, tmp_path):
    for name in deployed.result.files:
        folder = shutil.copytree(deployed.folder, tmp_path / name)
        with (folder / name).open("ab") as file:
            file.write(b" ")
        with pytest.raises(TargetMismatch, match=f"{name} (is not the file|takes .* bytes, more than)"):
            recheck(folder, model=net)
    assert deployed.result.files.keys() == FILES


def test_files_have_the_permissions_of_any_new_file(deployed, tmp_path):
    (tmp_path / "new").touch()
    assert {path.stat().st_mode for path in deployed.folder.iterdir()} == {(tmp_path / "new").stat().st_mode}


class Kill:
    """A score that ends its process at one call; counts and number stand outside of it, as a run notes its score."""

    calls = 0
    last: int | None = None

    @staticmethod
    def score(model, batches):
        Kill.calls += 1
        if Kill.calls == Kill.last:
            os.kill(os.getpid(), signal.SIGKILL)
        return -sum(float(model(x).square().mean()) for x, _ in batches)


@pytest.mark.slow
def test_autoq_killed_three_times_ends_with_the_same_plan(run, tmp_path, monkeypatch):
    pytest.importorskip("stable_baselines3")

    def searched(name):
        monkeypatch.setattr(Kill, "calls", 0)
        found = run(name, search="autoq:episodes=14", score=Kill.score)
        return found.plan.layers, found.plan.predicted["loss"], Kill.calls

    *whole, num_calls = searched("whole")
    for last in (4, 5, 3):
        monkeypatch.setattr(Kill, "last", last)
        process = multiprocessing.get_context("fork").Process(target=searched, args=("killed",))
        process.start()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        assert (tmp_path / "killed.trials.jsonl").exists()
    monkeypatch.setattr(Kill, "last", None)
    *resumed, num_more = searched("killed")
    assert resumed == whole
    assert num_more < num_calls
    assert not (tmp_path / "killed.trials.jsonl").exists()


@pytest.fixture
def fine_tuned(run):
    def call(name="out", **settings):
        return run(name, budget=mb.Budget(mean_bits=3), flavour="qat", **settings)

    return call


def test_qat_fine_tunes_the_chosen_plan_and_says_what_it_was_before(fine_tuned, deployed, tmp_path):
    with crude_scales():
        found = fine_tuned(epochs=4, training=Training(lr=3e-4))
    assert "; fine-tuned, best after epoch " in found.result.chosen
    assert found.result.simulated["divergence"] < 0.8 * found.result.untrained["divergence"]
    assert set(found.result.untrained) == {"accuracy", "divergence"}
    assert found.comparison.problems == ()
    assert found.comparison.max_abs_diff < 1e-5
    assert [path.name for path in tmp_path.iterdir()] == ["out"]  # the checkpoint is gone
    assert deployed.result.untrained == {}


def test_qat_is_left_out_where_it_makes_nothing_better(fine_tuned):
    found = fine_tuned(epochs=1, training=Training(lr=1.0, max_norm=1e9))
    assert "fine-tuning made it no better and is left out" in found.result.chosen
    assert found.result.simulated == found.result.untrained


def test_qat_trains_on_other_data_and_goes_on_where_it_stopped(fine_tuned, tmp_path, monkeypatch):
    more = [(torch.randn(8, 1, 6, 6), torch.randint(0, 3, (8,))) for _ in range(6)]
    whole = fine_tuned("whole", epochs=2, train_batches=more)
    with monkeypatch.context() as patched:
        patched.setattr(auto, "deploy", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            fine_tuned(epochs=2, train_batches=more)
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["out.training.safetensors"]
    monkeypatch.setattr("mixbit.training.loop.rate", None)  # nothing is left to train
    found = fine_tuned(epochs=2, train_batches=more)
    assert found.result.simulated == whole.result.simulated
    assert not (tmp_path / "out.training.safetensors").exists()


def test_sparse_choices_go_the_whole_way(run):
    """Pinned and searched for; the layer that blocks do not fit keeps its zeros out, and the file is smaller."""
    dense, sparse = (
        run(
            name,
            budget=mb.Budget(weight_bytes=size),
            choices=choices,
            pins={"head.weight": "w8a8"},
            importance="fisher",
        )
        for name, size, choices in (("dense", 900, ["w8a8"]), ("sparse", 560, ["w8a8", "w8a8@2:4", "w4a8@50%"]))
    )
    sparse.comparison.check()
    assert sparse.plan.layers["head.weight"] == "w8a8"
    assert "2:4" not in sparse.plan.layers["first.weight"]
    assert any("@" in scheme for scheme in sparse.plan.layers.values())
    assert sparse.comparison.weight_bytes == sparse.comparison.predicted_bytes <= 560
    assert sparse.comparison.weight_bytes < dense.comparison.weight_bytes
    assert sparse.comparison.file_bytes < dense.comparison.file_bytes


def test_a_target_that_stores_zeros_offers_no_sparse_choice(net, batches):
    with pytest.raises(InvalidInput, match=r"no sparsity \(its file would hold the zeros too and be no smaller\)"):
        mb.measure(mb.capture(net, batches[0][0]), batches, target="openvino", choices=["w8a8@2:4"])


def test_plans_within_a_largest_drop_are_tried_and_deployed_with_their_rounding(run, net, batches, monkeypatch):
    """Also where the held-out data likes the nearest integers better."""
    labelled = [(images, net(images).argmax(1)) for images, _ in batches]
    journals, rounded = [], []

    def journal(path, about, *, force):
        journals.append(about)
        return Journal(path, about, force=force)

    def spoils(asked):
        rounded.append(asked.simulated.plan)
        simulated = asked.simulated.copy()
        with torch.no_grad():
            simulated.module.get_parameter("second.weight").mul_(0.98)
        return simulated

    def within(name, rounding, flavour="static"):
        return run(name, net, labelled, budget=mb.Budget(max_drop=0.1), rounding=rounding, flavour=flavour)

    monkeypatch.setattr(auto, "Journal", journal)
    plain, found = within("plain", "nearest"), within("found", spoils)
    assert len(rounded) >= 3
    assert rounded[-1].layers == found.plan.layers
    pattern = (
        r"weights are rounded by spoils, as in every plan that was tried \((.*) against (.*) nats with the nearest"
    )
    with_it, with_nearest = re.search(pattern, found.result.chosen).groups()
    assert float(with_it) > float(with_nearest)
    assert journals[0]["rounding"] != journals[-1]["rounding"]
    assert found.comparison.problems == ()
    assert found.result.deployed["accuracy"] >= 0.9
    again = mb.quantize(mb.capture(net, batches[0][0]), found.plan, [images for images, _ in batches])
    assert not torch.allclose(found.simulated(batches[0][0]), again(batches[0][0]), atol=1e-3)
    assert "rounded" not in plain.result.chosen
    with pytest.raises(InvalidInput, match="flavour qat: to keep within a largest drop, every plan tried would"):
        within("trained", "nearest", "qat")


def test_a_plan_that_destroys_the_network_is_said_to(run, caplog):
    """One pixel of a million in the calibration data leaves one level to all others, where the range is to hold it."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(36, 16), nn.ReLU(), nn.Linear(16, 3, bias=False)).eval()
    clean = [torch.randn(16, 1, 6, 6) for _ in range(5)]
    spoilt = [clean[0].clone(), *clean[1:]]
    spoilt[0][0, 0, 0, 0] = 1e6

    def chosen(name, batches, **settings):
        caplog.clear()
        budget = mb.Budget(mean_bits=8)
        return run(name, net, batches, budget=budget, eval_batches=clean, choices=["w8a8"], **settings).result.chosen

    said = "the deployed plan does not do what the network does: only "
    assert said in chosen("spoilt", spoilt, ranges="min_max")
    assert [record.levelname for record in caplog.records if said in record.message] == ["WARNING"]
    assert "--ranges percentile" in caplog.text
    clipped = {"ranges": "percentile:share=0.95", "bias_correction": "off"}  # the mean of that pixel is far off too
    for name, batches, options in (("clean", clean, {}), ("clipped", spoilt, clipped)):
        assert said not in chosen(name, batches, **options)
        assert said not in caplog.text
    reason = chosen("regression", spoilt, ranges="min_max", task=Task.regression())
    assert "its numbers are" in reason
    assert "times their spread from the float network's" in reason
    assert said[:30] not in chosen("good", clean, task=Task.regression())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"flavour": "qat", "train_batches": [torch.randn(4, 1, 5, 6)]},
            "batch 0 to train on: input 0 has shape",
        ),
        ({"pins": {"head.*": "w4g3"}}, r"pin head\.\*=w4g3: head.weight: group 3 does not divide 8 inputs; use one of"),
    ],
    ids=["train", "pins"],
)
def test_what_does_not_fit_is_refused_before_anything_is_measured(run, monkeypatch, settings, message):
    monkeypatch.setattr(auto, "measure", None)
    with pytest.raises(InvalidInput, match=message):
        run(**settings)


def test_what_another_run_left_is_refused_early_or_left_alone(run, fine_tuned, tmp_path, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(auto, "deploy", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            fine_tuned(epochs=1)
    left = tmp_path / "out.training.safetensors"
    content = left.read_bytes()
    with monkeypatch.context() as patched:
        patched.setattr(auto, "measure", None)  # refused before
        with pytest.raises(InvalidInput, match=r"the checkpoint of another training .* or give --force"):
            fine_tuned(epochs=2)
    run()
    assert left.read_bytes() == content
