"""A whole study on a small network: figures, going on after an interrupt, other processes, and what goes wrong."""

import dataclasses
import functools
import json
import math
import re
import shutil
import sys

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from mixbit.app import main as cli
from mixbit.app.commands.steps import print_study
from mixbit.core import Plan
from mixbit.core.budget import Budget
from mixbit.core.engine import Engine
from mixbit.core.errors import InvalidInput
from mixbit.core.task import Task
from mixbit.graph.capture import capture
from mixbit.graph.evaluate import returned_by
from mixbit.metric_study.study import StudyFile, study
from mixbit.metric_study.subject import Subject
from mixbit.metrics.measure import measure
from mixbit.roundings.quantize import quantize
from tests.core.io.jobs import NeverArrives
from tests.networks import plan_of
from tests.subjects import (
    constant,
    few_bits,
    needs_labels,
    small_subject,
)

CHOICES = ("w2a8", "w3a8", "w8a8")
METRICS = ("fisher", few_bits, constant, needs_labels)
FEW = {"num_plans": 5, "near_budget": None}


def run(out, setup=small_subject, **options):
    defaults = {"target": "packed", "choices": CHOICES, "metrics": METRICS, "engine": Engine()}
    plans = {"num_plans": 30, "near_budget": Budget(mean_bits=4), "seed": 3}
    return study(setup, out=out, **(defaults | plans | options))


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A finished study of this process, its folder, and its JSON."""
    out = tmp_path_factory.mktemp("study") / "out"
    found = run(out)
    return found, out, json.loads((out / "study.json").read_text(), parse_constant=pytest.fail)


def test_the_file_holds_all_figures(done):
    found, out, stored = done
    assert json.loads(found.to_json()) == stored
    StudyFile.model_validate_json((out / "study.json").read_text())
    assert stored["truth"] == "accuracy"
    assert set(stored["metrics"]) == {"fisher", "few_bits", "constant", "needs_labels"}
    row = stored["metrics"]["few_bits"]
    for prefix in ("", "kl_", "near_", "near_kl_"):
        for name in ("spearman", "kendall"):
            assert -1 <= row[f"{prefix}{name}"] <= 1
    low, high = row["spearman_interval"]
    assert -1 <= low < row["spearman"] < high <= 1
    assert row["spearman"] > 0.5, "narrow weights cost more"
    assert row["seconds"] > 0
    assert row["peak_mb"] is None, "is not told apart in one process"
    assert row["regret"].keys() == {"mean_bits=3.5", "mean_bits=5", "mean_bits=6.5", "mean_bits=4"}
    assert stored["ceiling"] == pytest.approx(stored["reliability"] ** 0.5)
    low, high = stored["ceiling_interval"]
    assert 0 <= low < stored["ceiling"] < high <= 1
    assert 0 <= stored["near_ceiling"] <= 1
    assert {"python", "torch", "cores"} <= stored["environment"].keys()
    assert (out / "study.png").read_bytes().startswith(b"\x89PNG")


def test_plans_are_of_their_sets(done):
    plans = done[2]["plans"]
    sets = [plan["set"] for plan in plans]
    assert (sets.count("random"), sets.count("near")) == (30, 30)
    numel = {layer.name: layer.numel for layer in small_subject()[0].layers}
    for plan in plans:
        assert set(plan["layers"].values()) <= set(CHOICES)
        assert 0 <= plan["accuracy"] <= 1
        assert plan["kl"] > 0
        bits = sum(int(scheme[1]) * numel[name] for name, scheme in plan["layers"].items()) / sum(numel.values())
        assert plan["set"] != "near" or bits == pytest.approx(4, rel=0.05)


def test_regret_is_what_the_best_known_plan_gains(done):
    stored = done[2]
    regrets = [value for row in stored["metrics"].values() for value in row.get("regret", {}).values()]
    assert len(regrets) == 12
    assert all(0 <= value <= 1 for value in regrets)
    numel = {layer.name: layer.numel for layer in small_subject()[0].layers}
    for budget in (3.5, 4):
        accuracies = []
        for plan in stored["plans"]:
            bits = sum(int(scheme[1]) * numel[name] for name, scheme in plan["layers"].items()) / sum(numel.values())
            if bits <= budget + 1e-9:
                accuracies.append(plan["accuracy"])
        chosen = max(accuracies) - np.array(
            [row["regret"][f"mean_bits={budget:g}"] for row in stored["metrics"].values() if "regret" in row]
        )
        assert set(np.round(chosen, 12)) <= set(np.round(accuracies, 12))


def test_a_metric_that_cannot_rank_or_answer_says_so(done):
    metrics = done[2]["metrics"]
    assert metrics["constant"]["spearman"] is None
    assert metrics["constant"]["kl_kendall_interval"] is None
    assert "cannot rank" in metrics["constant"]["reason"]
    assert metrics["needs_labels"] == {"reason": "this metric needs labels: give batches that end with them"}
    assert "reason" not in metrics["few_bits"]


def test_truth_is_that_of_the_simulated_network():
    graph, _, evaluation, _ = small_subject()
    plan = plan_of(graph.layers, "w3a8", "packed")
    subject = Subject.of(small_subject())
    found = subject.truth(plan)
    x, labels = (torch.cat(parts) for parts in zip(*evaluation, strict=True))
    with torch.no_grad():
        reference, outputs = graph(x).double(), quantize(graph, plan, subject.calibration)(x).double()
    right = (outputs.argmax(1) == labels).double()
    kl = functional.kl_div(outputs.log_softmax(1), reference.log_softmax(1), log_target=True, reduction="none").sum(1)
    assert found.accuracy == pytest.approx(right.mean().item())
    assert found.halves == pytest.approx((right[::2].mean().item(), right[1::2].mean().item()))
    assert found.kl == pytest.approx(kl.mean().item())
    assert found.loss == pytest.approx(functional.cross_entropy(outputs, labels).item(), rel=1e-6)
    assert (found.judged_by, found.cost) == ("accuracy", -found.accuracy)
    unlabelled = Subject.of(small_subject(labelled=False)).truth(plan)
    assert (unlabelled.judged_by, unlabelled.cost) == ("kl", unlabelled.kl)
    assert unlabelled.halves == pytest.approx((kl[::2].mean().item(), kl[1::2].mean().item()))


def test_the_float_network_runs_once_for_its_losses_and_its_outputs(monkeypatch):
    subject, ran = Subject.of(small_subject()), []
    monkeypatch.setattr(
        sys.modules["mixbit.graph.evaluate"],  # the function hides it
        "returned_by",
        lambda graph, inputs: (ran.append(graph), returned_by(graph, inputs))[1],
    )
    plans = [plan_of(subject.case.graph.layers, scheme, "packed") for scheme in ("w3a8", "w4a8")]
    found = [subject.truth(plan) for plan in plans]
    assert found[0].kl > found[1].kl > 0
    assert sum(graph is subject.case.graph for graph in ran) == len(subject.case.evaluation)
    assert len(ran) == 3 * len(subject.case.evaluation)
    ran.clear()
    other = Subject(subject.case, subject.calibration, subject.found())  # as in another process
    assert [other.truth(plan) for plan in plans] == found
    assert len(ran) == 2 * len(subject.case.evaluation)
    monkeypatch.setattr("mixbit.metric_study.subject.MOST_SENT", 100)
    assert subject.found() is None


def hinge(output, labels):
    return (1 - output.gather(1, labels[:, None])).clamp(min=0).mean()


def test_with_a_loss_of_the_users_own_plans_are_judged_by_it():
    graph, _, evaluation, _ = small_subject()
    subject = Subject.of(small_subject(loss=hinge))
    plan = plan_of(graph.layers, "w2a8", "packed")
    found = subject.truth(plan)
    simulated = quantize(graph, plan, subject.calibration)
    x, labels = (torch.cat(parts) for parts in zip(*evaluation, strict=True))
    assert (found.judged_by, found.cost) == ("loss", pytest.approx(hinge(simulated(x), labels).item(), rel=1e-5))


def test_a_language_model_is_judged_by_its_loss():
    torch.manual_seed(0)
    graph = capture(nn.Sequential(nn.Embedding(9, 12), nn.Linear(12, 9)).eval(), torch.zeros(2, 4, dtype=torch.int64))
    batches = [(torch.randint(0, 9, (6, 4)), torch.randint(0, 9, (6, 4))) for _ in range(4)]
    subject = Subject.of((graph, batches, batches, Task.language()))
    plan = plan_of(graph.layers, "w3a8", "packed")
    found, simulated = subject.truth(plan), quantize(graph, plan, subject.calibration)
    losses = [functional.cross_entropy(simulated(x).flatten(0, 1), labels.flatten()).item() for x, labels in batches]
    assert (found.judged_by, found.cost) == ("loss", pytest.approx(np.mean(losses), rel=1e-6))
    assert found.halves == pytest.approx((np.mean(losses[::2]), np.mean(losses[1::2])), rel=1e-6)


def test_without_labels_kl_is_the_truth(tmp_path, capsys):
    found = run(tmp_path, functools.partial(small_subject, labelled=False), metrics=[few_bits], **FEW)
    assert found.truth == "kl"
    assert {plan["accuracy"] for plan in found.plans} == {plan["loss"] for plan in found.plans} == {None}
    row = found.metrics["few_bits"]
    assert row["spearman"] == row["kl_spearman"]
    assert all(value >= 0 for value in row["regret"].values())
    print_study(found)
    assert "kl_" not in capsys.readouterr().out, "the same figures twice"


@pytest.fixture
def counted(monkeypatch):
    """The plans and metrics that were evaluated, in this process."""
    found = []
    evaluate = Subject.truth
    monkeypatch.setattr(Subject, "truth", lambda self, plan: found.append(plan) or evaluate(self, plan))
    monkeypatch.setattr(
        "mixbit.metric_study.answers.measure",
        lambda *args, **more: found.append(more["metric"]) or measure(*args, **more),
    )
    return found


def test_an_interrupted_study_goes_on_and_repeats_nothing(done, tmp_path, counted, monkeypatch):
    evaluate = Subject.truth

    def interrupt(self, plan):
        if len(counted) == 10:
            raise KeyboardInterrupt
        return evaluate(self, plan)

    with monkeypatch.context() as patch:
        patch.setattr(Subject, "truth", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, metrics=["fisher", few_bits])
    assert (
        len({json.dumps(json.loads(path.read_text())["found"]["layers"]) for path in (tmp_path / "plans").iterdir()})
        == 8
    )
    assert len(list((tmp_path / "metrics").iterdir())) == 2
    first = len(counted)
    found = run(tmp_path, metrics=["fisher", few_bits])
    evaluated = [one for one in counted if isinstance(one, Plan)]
    assert not [one for one in counted[first:] if not isinstance(one, Plan)]
    assert len(evaluated) == len({str(plan["layers"]) for plan in found.plans})
    assert found.metrics["few_bits"]["spearman"] == done[0].metrics["few_bits"]["spearman"]
    before = len(counted)
    again = run(tmp_path, metrics=["fisher", few_bits])
    assert len(counted) == before
    assert again.to_json() == found.to_json()


def test_more_plans_and_metrics_add_to_what_is_there(done, tmp_path, counted):
    out = shutil.copytree(done[1], tmp_path / "out")
    found = run(out, metrics=[few_bits], num_plans=31)
    assert len([one for one in counted if isinstance(one, Plan)]) == 2
    assert [one for one in counted if not isinstance(one, Plan)] == []
    assert len([plan for plan in found.plans if plan["set"] == "random"]) == 31
    assert set(found.metrics) == {"few_bits", "fisher"}, "finished, and mixbit's own"
    assert found.metrics["fisher"].keys() == done[0].metrics["fisher"].keys()


class Noisy:
    """A metric whose values count; its name holds what no file's name can."""

    def __init__(self, weight):
        self.weight = weight
        self.__name__ = "mine/../x:weight=1,y"

    def __call__(self, inputs):
        answer = few_bits(inputs)
        noise = np.random.default_rng(0).normal(size=answer.loss.shape)
        return dataclasses.replace(answer, loss=answer.loss + self.weight * noise)


def test_an_own_metric_runs_again_once_it_is_another(tmp_path):
    (name,) = run(tmp_path, metrics=[Noisy(0)], **FEW).metrics
    found = [run(tmp_path, metrics=[Noisy(weight)], **FEW).metrics[name]["spearman"] for weight in (0, 1e4, 0)]
    assert name == "mine/../x:weight=1,y"
    assert len([*(tmp_path / "metrics").iterdir()]) == 1
    assert found[0] == found[2] != found[1]


def test_a_metric_of_mixbits_runs_again_once_its_source_is_another(tmp_path, counted, monkeypatch):
    for source, times in (("a", 1), ("a", 1), ("b", 2)):
        monkeypatch.setattr("mixbit.metric_study.answers._own_source", lambda source=source: source)
        run(tmp_path, metrics=["fisher"], **FEW)
        assert len([one for one in counted if one == "fisher"]) == times


def test_an_own_metric_with_the_name_of_one_of_mixbits_is_refused(tmp_path):
    def fisher(inputs):
        return few_bits(inputs)

    with pytest.raises(InvalidInput, match="metrics: fisher is the name of one of mixbit's"):
        run(tmp_path, metrics=[fisher])
    assert list(tmp_path.iterdir()) == []


def raising(inputs):
    raise LookupError("a bug of the user's")


def answering_none(inputs):
    return None


def test_a_metric_that_fails_does_not_end_the_study(tmp_path):
    found = run(tmp_path, metrics=[raising, few_bits, answering_none], **FEW).metrics
    assert re.fullmatch(
        r"metric raising fails: LookupError: a bug of the user's \(.*test_study\.py:\d+\)", found["raising"]["reason"]
    )
    assert found["answering_none"] == {
        "reason": "metric answering_none: returned a NoneType; return mixbit.metrics.Estimate(loss, ...)"
    }
    assert found["few_bits"]["spearman"] is not None


def once(moved=0.0):
    """The small subject, whose data can be gone through once."""
    graph, calibration, evaluation, _ = small_subject()
    return graph, (x + moved for x in calibration), iter(evaluation)


def test_data_that_can_be_gone_through_once(tmp_path):
    first = run(tmp_path, once, metrics=[few_bits], **FEW)
    assert first.settings["num_calibration"] == 64
    assert run(tmp_path, once, metrics=[few_bits], **FEW).to_json() == first.to_json()
    with pytest.raises(InvalidInput, match="another calibration"):
        run(tmp_path, functools.partial(once, 0.1), metrics=[few_bits], **FEW)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x, labels: (x, labels + 4), "labels: .* found, but the model has classes 0..3"),
        (lambda x, labels: (x, labels.float()), "whole class numbers"),
        (lambda x, labels: (x, torch.full_like(labels, -100)), "none but -100"),
        (lambda x, labels: (x, labels[:-1]), "for a batch of 33 samples"),
        (lambda x, labels: (x[:, :5], labels), "input 0 has shape"),
        (lambda x, labels: (x * torch.nan, labels), "NaN"),
    ],
)
def test_evaluation_data_is_checked_before_any_metric_runs(tmp_path, counted, change, message):
    def setup():
        graph, calibration, (first, second, third), _ = small_subject()
        return graph, calibration, [first, change(*second), third]

    with pytest.raises(InvalidInput, match=f"evaluation batch 1: .*{message}"):
        run(tmp_path, setup)
    assert [one for one in counted if one == "fisher"] == []
    assert list(tmp_path.iterdir()) == []


def test_a_regression_beside_labels_of_another_kind_is_judged_by_kl(tmp_path):
    graph, calibration, batches, _ = small_subject()
    for labels, told in ((lambda old: old, False), (lambda old: torch.zeros(len(old), 4), True)):
        evaluation = [(x, labels(old)) for x, old in batches]
        subject = Subject.of((graph, calibration, evaluation, Task.regression()))
        found = subject.truth(plan_of(graph.layers, "w3a8", "packed"))
        assert found.judged_by == "kl"
        assert (found.loss is not None) == told


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seed": 4}, r"another seed \(3, here 4\)"),
        ({"near_budget": None}, r"another near_budget \(mean_bits=4, here None\)"),
        ({"choices": ("w2a8", "w4a8")}, "another choices"),
        ({"target": "onnxruntime"}, r"another target \(packed, here onnxruntime\)"),
        ({"setup": functools.partial(small_subject, seed=1)}, "another weights"),
        ({"setup": functools.partial(small_subject, labelled=False)}, "another evaluation"),
    ],
)
def test_other_settings_are_refused(done, options, message):
    before = sorted(path.name for path in done[1].rglob("*"))
    with pytest.raises(InvalidInput, match=message) as error:
        run(done[1], **options)
    assert "--force" in str(error.value)
    assert sorted(path.name for path in done[1].rglob("*")) == before


def test_force_clears_a_study_and_nothing_else(done, tmp_path):
    out = shutil.copytree(done[1], tmp_path / "out")
    (out / "mine.txt").write_text("keep")
    found = run(out, metrics=[few_bits], num_plans=3, near_budget=None, force=True)
    assert (out / "mine.txt").read_text() == "keep"
    assert len(list((out / "plans").iterdir())) == len(found.plans)


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(InvalidInput, match="not empty"):
        run(tmp_path)


@pytest.mark.parametrize("content", ["{}", "[]", '{"layers": {}}', "{"])
@pytest.mark.parametrize("part", ["plans/random-2.json", "metrics/few_bits.json"])
def test_edited_parts_are_refused(done, tmp_path, part, content):
    out = shutil.copytree(done[1], tmp_path / "out")
    (out / part).write_text(content)
    with pytest.raises(InvalidInput, match=rf"{re.escape(part)}: .*; delete it, and the study finds it again"):
        run(out)


@pytest.mark.parametrize(
    ("part", "change"),
    [
        ("plans/random-2.json", {"kl": math.nan}),
        ("plans/random-2.json", {"kl": "x"}),
        ("plans/random-2.json", {"accuracy": 1.5}),
        ("plans/random-2.json", {"accuracy": None}),
        ("plans/random-2.json", {"judged_by": "foo"}),
        ("plans/random-2.json", {"halves": [1]}),
        ("plans/random-2.json", {"more": 1}),
        ("metrics/fisher.json", {"seconds": "x"}),
        ("metrics/fisher.json", {"peak_mb": "x"}),
        ("metrics/fisher.json", {"num_samples": 0}),
        ("metrics/fisher.json", {"loss": [[1], [1, 2]]}),
    ],
)
def test_damaged_figures_are_refused(done, tmp_path, part, change):
    out = shutil.copytree(done[1], tmp_path / "out")
    stored = json.loads((out / part).read_text())
    (out / part).write_text(json.dumps(stored | {"found": stored["found"] | change}))
    with pytest.raises(InvalidInput, match=rf"{re.escape(part)}: not what a study wrote.*; delete it"):
        run(out)


@pytest.mark.parametrize(("part", "name"), [("plans/random-2.json", "kl"), ("metrics/fisher.json", "seconds")])
def test_a_part_whose_value_changed_is_refused(done, tmp_path, part, name):
    out = shutil.copytree(done[1], tmp_path / "out")
    stored = json.loads((out / part).read_text())
    stored["found"][name] += 1e-9
    (out / part).write_text(json.dumps(stored))
    with pytest.raises(InvalidInput, match=rf"{re.escape(part)}: .* changed since, or is of another study; delete it"):
        run(out)


@pytest.mark.parametrize("content", ['{"mine": 1}', "[]", "{"])
@pytest.mark.parametrize("force", [False, True])
def test_settings_of_something_else_stay(tmp_path, content, force):
    (tmp_path / "settings.json").write_text(content)
    with pytest.raises(InvalidInput, match=r"settings\.json: not .*; delete it, or choose another --out"):
        run(tmp_path, force=force)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("settings.json", content)]


@pytest.mark.slow
def test_two_processes_find_what_one_does(done, tmp_path):
    found = run(tmp_path, metrics=[few_bits], engine=Engine(processes=2))
    expected = {str(plan["layers"]): plan for plan in done[0].plans}
    for plan in found.plans:
        assert plan["accuracy"] == expected[str(plan["layers"])]["accuracy"]
        assert plan["kl"] == pytest.approx(expected[str(plan["layers"])]["kl"], rel=1e-4)
    assert found.metrics["few_bits"]["spearman"] == pytest.approx(done[0].metrics["few_bits"]["spearman"])
    assert found.metrics["few_bits"]["peak_mb"] >= 0


def test_wrong_arguments(tmp_path):
    with pytest.raises(InvalidInput, match="or engine=Engine"):
        run(tmp_path, lambda: None, engine=Engine(processes=2))
    with pytest.raises(InvalidInput, match=r"LookupError: cannot be made again.*or engine=Engine"):
        run(tmp_path, NeverArrives(), engine=Engine(processes=2))
    with pytest.raises(InvalidInput, match="setup: a tuple; give a function"):
        run(tmp_path, small_subject(), engine=Engine(processes=2))
    with pytest.raises(InvalidInput, match="processes=0"):
        Engine(processes=0)
    with pytest.raises(InvalidInput, match="metric 'x' is unknown"):
        run(tmp_path, metrics=["x"])
    with pytest.raises(InvalidInput, match="two are called few_bits"):
        run(tmp_path, metrics=[few_bits, few_bits])
    with pytest.raises(InvalidInput, match="none given"):
        run(tmp_path, metrics=[])
    with pytest.raises(InvalidInput, match="reach 2 to 8"):
        run(tmp_path, num_plans=3, near_budget=Budget(mean_bits=20))
    assert list(tmp_path.iterdir()) == []


def test_evaluation_data_that_cannot_be_used():
    graph, calibration, ((x, labels), *_), _ = small_subject()
    with pytest.raises(InvalidInput, match="all or none"):
        Subject.of((graph, calibration, [(x, labels), x]))
    with pytest.raises(InvalidInput, match="two samples"):
        Subject.of((graph, calibration, [(x[:1], labels[:1])]))
    with pytest.raises(InvalidInput, match="evaluation data: a Tensor, not an iterable of batches"):
        Subject.of((graph, calibration, x))
    with pytest.raises(InvalidInput, match="evaluation data holds no batch"):
        Subject.of((graph, calibration, []))
    with pytest.raises(InvalidInput, match="setup: a Graph; give"):
        Subject.of(graph)


def test_what_is_printed(done, capsys):
    found = dataclasses.replace(done[0], metrics=done[0].metrics | {"other": done[0].metrics["needs_labels"]})
    print_study(found)
    out, err = capsys.readouterr()
    assert "needs_labels" not in out, "has no figures"
    assert re.search(r"^needs_labels, other: need labels", err, re.MULTILINE)
    assert err.count("needs_labels") == err.count("other") == 1
    assert re.search(
        r"^random plans: .* a perfect metric would correlate by about 0\.\d+ \(0\.\d+ to", err, re.MULTILINE
    )
    row = next(line for line in out.splitlines() if "few_bits" in line)
    assert re.search(rf"{found.metrics['few_bits']['spearman']:.3f} \(\S+ to", row)


CODE = """
from tests.subjects import small_subject

def model():
    return small_subject()[0].module

def data():
    return small_subject()[1]

def test():
    return small_subject()[2]
"""


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    """Run `mixbit study` on the small subject; return exit code, standard output and standard error."""
    code = tmp_path / "user.py"
    code.write_text(CODE)

    def call(*words):
        spec = ["study", f"{code}:model", "--data", f"{code}:data", "--eval", f"{code}:test", "--target", "packed"]
        monkeypatch.setattr("sys.argv", ["mixbit", *spec, "--out", str(tmp_path / "out"), *words])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        printed = capsys.readouterr()
        return stopped.value.code or 0, printed.out, printed.err

    return call


@pytest.mark.slow
def test_command(command, tmp_path):
    words = ("--plans", "4", "--processes", "1", "--metrics", "fisher", "--near-budget", "mean_bits=4")
    status, out, err = command(*words, "--json")
    assert status == 0, err
    assert out == (tmp_path / "out" / "study.json").read_text()
    status, out, err = command(*words)
    assert status == 0
    assert "fisher" in out
    assert "near_spearman" in out
    assert "reliability" in err
    assert not re.search(r"\d \(", out + err), "an interval from 4 plans"
    assert command(*words, "--seed", "1")[0] == 2
    assert command(*words, "--seed", "1", "--force")[0] == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--metrics", "x"), "metric 'x' is unknown"),
        (("--near-budget", "mean_bits"), "name=value"),
        (("--near-budget", "bits=4"), "unknown"),
        (("--plans", "2"), "plans"),
        (("--processes", "0"), "processes"),
        (("--target", "x"), "target 'x' is unknown"),
        (("--choices", "w9a8"), "w9a8"),
        (("--task", "x"), "task 'x' is unknown"),
    ],
)
def test_command_with_wrong_input_leaves_nothing(command, tmp_path, words, message):
    status, out, err = command(*words)
    assert (status, out) == (2, "")
    assert message in err
    assert "Traceback" not in err
    assert not (tmp_path / "out").exists()


def test_command_interrupted_is_exit_130(command, monkeypatch):
    def interrupt(self, plan):
        raise KeyboardInterrupt

    monkeypatch.setattr(Subject, "truth", interrupt)
    assert command("--plans", "3", "--processes", "1", "--metrics", "fisher")[0] == 130


def test_the_weight_of_an_output_is_another_study(tmp_path):
    def weighted(weight):
        graph, calibration, evaluation, task = small_subject()
        return graph, calibration, evaluation, task.weighted({"output": weight})

    run(tmp_path, lambda: weighted(1.0), metrics=[few_bits], **FEW)
    with pytest.raises(InvalidInput, match="another loss"):
        run(tmp_path, lambda: weighted(2.0), metrics=[few_bits], **FEW)


def test_parts_without_their_settings_are_not_taken_up(done, tmp_path):
    """Also not with force, which starts over."""
    out = shutil.copytree(done[1], tmp_path / "out")
    (out / "settings.json").unlink()
    found = run(out, lambda: small_subject(seed=1), force=True, metrics=[few_bits], **FEW)
    fresh = run(tmp_path / "fresh", lambda: small_subject(seed=1), metrics=[few_bits], **FEW)
    assert found.plans == fresh.plans
    (out / "settings.json").write_text((done[1] / "settings.json").read_text())
    with pytest.raises(InvalidInput, match="is of another study"):
        run(out, metrics=[few_bits], num_plans=5)


@pytest.mark.parametrize(("name", "is_folder"), [("metrics", False), ("study.png", True)])
def test_what_is_in_the_way_is_told_before_the_work(tmp_path, name, is_folder):
    (tmp_path / "settings.json").write_text(
        json.dumps(dict.fromkeys(("weights", "calibration", "evaluation", "choices")))
    )
    (tmp_path / name).mkdir() if is_folder else (tmp_path / name).write_text("mine")
    with pytest.raises(InvalidInput, match=f"{name}: a .* is in the way"):
        run(tmp_path, lambda: pytest.fail("told late"))
