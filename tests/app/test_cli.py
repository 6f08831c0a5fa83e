"""The command line: exit codes, files, messages, JSON; run in this process on a small network of the test's own."""

import hashlib
import io
import json
import math
import os
import pickle
import re
import shutil
import sys
from contextlib import redirect_stdout

import pytest
import safetensors.torch
import torch

from mixbit.app import main as cli
from mixbit.app.commands.verify import _in_json
from mixbit.core import Engine, batches, digest, pickled
from mixbit.core.budget import MaxDrop
from mixbit.core.errors import InvalidInput
from mixbit.core.target import TARGETS
from mixbit.datasets.load import load_data
from mixbit.graph import capture as graph_capture
from mixbit.metrics import METRICS
from mixbit.models.load import load_model
from mixbit.pipeline import auto
from mixbit.quantization.ranges import RANGES
from mixbit.roundings import ROUNDINGS
from mixbit.searches.search import SEARCHES
from mixbit.targets import latency

USER_CODE = """
import sys
import torch
from torch import nn

def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)).eval()

def data():
    generator = torch.Generator().manual_seed(1)
    for _ in range(4):
        yield torch.randn(8, 1, 6, 6, generator=generator), torch.randint(0, 3, (8,), generator=generator)

def endless():
    while True:
        yield from data()

def empty():
    return []

def number():
    return 3

def broken():
    raise ValueError("the user's own error")

def wrong_labels():
    return [(images, labels + 7) for images, labels in data()]

def exits():
    sys.exit(0)

def prints():
    net = model()
    net.register_forward_hook(lambda *_: print("forward"))
    return net

def loss(output, labels):
    print("loss")
    return torch.nn.functional.cross_entropy(output, labels)

def range_metric(question):
    import mixbit, numpy
    loss = numpy.array([[2.0 ** -s.weight_bits for s in question.schemes]] * len(question.layers))
    return mixbit.metrics.Estimate(loss, loss / 10, 32)

def narrowest(problem):
    return problem.usage[0].argmin(axis=1)

def score(model, batches):
    return -sum(float(model(x).abs().sum()) for x, _ in batches)

def fidelity(net, batches):
    return -sum(float((net(x) - model()(x)).square().sum()) for x, _ in batches)

def nan_score(model, batches):
    return float("nan")

def failing_score(model, batches):
    raise RuntimeError("no such GPU")

def slow_score(model, batches):
    import time
    time.sleep(60)

def unlabelled():
    return [images for images, _ in data()]

def dictionary():
    return {"x": torch.zeros(2)}

def no_layers():
    return nn.ReLU()

def branching():
    return Branching()

class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(6, 3)

    def forward(self, x):
        if x.sum() > 0:
            return self.linear(x).mean((1, 2))
        return self.linear(-x).mean((1, 2))
"""


@pytest.fixture(scope="module")
def code(tmp_path_factory):
    path = tmp_path_factory.mktemp("user") / "net.py"
    path.write_text(USER_CODE)
    return path


@pytest.fixture(scope="module", autouse=True)
def _quick(code):
    """The user's `model()` is captured once for all tests, and latencies are taken from few rounds."""
    original, network = graph_capture.capture, load_model(f"{code}:model")
    model, batches = network.module, load_data(f"{code}:data", network).batches
    graph = original(model, next(iter(batches))[0])

    def capture(other, example, dynamic=None):
        same = repr(other) == repr(model) and not other._forward_hooks and not dynamic
        return graph if same else original(other, example, dynamic)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(graph_capture, "capture", capture)
        patch.setattr(latency, "ROUNDS", 5)
        yield


@pytest.fixture(scope="module")
def written(code, tmp_path_factory):
    """What `mixbit quantize` prints as JSON, and the folder that it writes; it is told the model's file from beside."""
    out, printed = tmp_path_factory.mktemp("cli") / "out", io.StringIO()
    words = (*quantize_words(code.name, out, data="data"), "--json")
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(printed):
        patch.chdir(code.parent)
        patch.setattr(sys, "argv", ["mixbit", *map(str, words)])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
    assert not stopped.value.code
    return out, printed.getvalue()


@pytest.fixture(scope="module")
def done(written):
    return written[0]


@pytest.fixture
def again(code, run):
    """Verify a folder with the network that it was made of, or run another command on it."""
    return lambda folder, command="verify", *words: run(command, folder, "--model", f"{code}:model", *words)


@pytest.fixture
def asked(run, monkeypatch):
    """Run `mixbit WORDS` as far as auto_quantize; return the arguments that it is called with."""

    def call(*words):
        calls = []

        def stop(*arguments, **options):
            calls.append(options)
            raise InvalidInput("stopped here")

        with monkeypatch.context() as patch:
            patch.setattr(auto, "auto_quantize", stop)
            status, _, err = run(*words)
        assert (status, err) == (2, "mixbit: stopped here\n")
        return calls[0]

    return call


def quantize_words(code, out, *, model="model", data="data", target="packed", budget="mean_bits=4"):
    return (
        "quantize",
        f"{code}:{model}",
        "--data",
        f"{code}:{data}",
        "--target",
        target,
        "--budget",
        budget,
        "--out",
        out,
    )


def copy_of(done, tmp_path):
    return shutil.copytree(done, tmp_path / "copy")


def test_quantize_then_verify_and_bench(done, again):
    status, out, _ = again(done)
    assert status == 0
    assert "times its latency in packed" in out
    status, out, _ = again(done, "bench", "--batch", "2", "--json")
    report = json.loads(out)
    assert status == 0
    assert report["latency_ms"]["2"] > 0
    assert report["default_latency_ms"] == report["latency_ms"], "packed has no settings of its own"
    assert report["in_float"] == ["0.weight", "3.weight"]
    assert set(report["layers"]) == {"0.weight", "3.weight"}


def test_report_writes_the_page_again(done, run, again, tmp_path):
    folder = copy_of(done, tmp_path)
    page = (folder / "report.html").read_text()
    assert "mixbit quantize net.py:model --data" in page
    (folder / "report.html").write_text("something else")
    status, _, err = again(folder)
    assert (status, "report.html is not the file verified then" in err) == (4, True)
    status, out, _ = run("report", folder, "--json")
    assert status == 0
    assert json.loads(out) == {"report": str(folder / "report.html"), "bytes": len(page.encode())}
    assert (folder / "report.html").read_text() == page
    assert again(folder)[0] == 0
    status, out, _ = run("report", folder)
    assert (status, out) == (0, f"written to {folder / 'report.html'}\n")
    edit(folder / "result.json", lambda result: result.update(version=3))
    status, _, err = run("report", folder)
    assert status == 2
    assert re.search(r"result\.json: a result of version 3; .* reads versions up to 2", err), err
    assert run("report", tmp_path / "nothing")[0] == 2


def test_quantize_json_is_the_result_file(written):
    folder, printed = written
    assert json.loads(printed) == json.loads((folder / "result.json").read_text())


def test_the_folder_remembers_the_models_file_from_anywhere(done, code):
    assert json.loads((done / "result.json").read_text())["model"] == f"{code}:model"


def test_quantize_takes_sparse_choices(code, asked, tmp_path):
    words = "--choices", "w8a8,w8a8@2:4,w4a8@50%", "--pin", "3.weight=w8a8@2:4", "--importance", "fisher"
    settings = asked(*quantize_words(code, tmp_path / "out"), *words)["settings"]
    assert settings.choices == ["w8a8", "w8a8@2:4", "w4a8@50%"]
    assert settings.pins == {"3.weight": "w8a8@2:4"}
    assert settings.importance == "fisher"


def test_a_loss_of_ones_own_is_what_metrics_measure(code, run, tmp_path):
    loss = tmp_path / "loss.py"
    loss.write_text(
        "from torch.nn import functional\n"
        "def twice(output, labels):\n    return 2 * functional.cross_entropy(output, labels)\n"
        "def rows(output, labels):\n    return output.sum(1)\n"
    )
    tables = {}
    for name in ("", "twice"):
        words = [
            "measure",
            f"{code}:model",
            "--data",
            f"{code}:data",
            "--target",
            "packed",
            "--metric",
            "fit",
            "--json",
        ]
        words += ["--loss", f"{loss}:{name}"] if name else []
        status, out, err = run(*words, "--out", tmp_path / f"{name}.json")
        assert status == 0, err
        tables[name] = json.loads(out)["loss"]
    assert tables["twice"][0][0] == pytest.approx(4 * tables[""][0][0])
    status, _, err = run(*words[:-1], f"{loss}:rows", "--out", tmp_path / "rows.json")
    assert status == 2
    assert "one finite number" in err


def test_measure_takes_ranges(code, run, tmp_path):
    words = ["measure", f"{code}:model", "--data", f"{code}:data", "--target", "packed", "--choices", "w8a4", "--json"]
    tables = []
    for number, ranges in enumerate((["--ranges", "mse"], [], ["--ranges", "percentile:share=0.8"])):
        status, out, err = run(*words, *ranges, "--out", tmp_path / f"{number}.json")
        assert status == 0, err
        tables.append(json.loads(out)["loss"])
    assert tables[0] == tables[1] != tables[2]


def test_the_first_samples_of_endless_data_are_taken_and_it_is_told_without(code, run, tmp_path, monkeypatch):
    words = ["measure", f"{code}:model", "--target", "packed", "--choices", "w8a4", "--json"]
    tables = []
    for number, source in enumerate((["endless", "--samples", 30], ["data", "--samples", 30], ["data"])):
        status, out, err = run(
            *words, "--data", f"{code}:{source[0]}", *source[1:], "--out", tmp_path / f"{number}.json"
        )
        assert status == 0, err
        tables.append(json.loads(out))
    assert tables[0] == tables[1]
    assert [table["num_samples"] for table in tables] == [30, 30, 32]
    monkeypatch.setattr(batches, "MOST_SAMPLES", 64)
    status, _, err = run(*words, "--data", f"{code}:endless", "--out", tmp_path / "none.json")
    assert status == 2
    assert "--samples N" in err


def test_quantize_takes_the_options_of_static_quantization(code, asked, tmp_path):
    words = quantize_words(code, tmp_path / "out")
    options = ["--ranges", "percentile:share=0.99", "--bias-correction", "sequential", "--reestimate-bn", "--equalize"]
    plain, other = asked(*words)["settings"], asked(*words, *options)["settings"]
    assert other.ranges == "percentile:share=0.99"
    assert (plain.bias_correction, other.bias_correction) == ("at_once", "sequential")
    assert (plain.reestimate_batch_norms, other.reestimate_batch_norms) == (False, True)
    assert (plain.equalize, other.equalize) == (False, True)


def test_training_mode_is_said_once(code, run, tmp_path):
    net = tmp_path / "trained.py"
    net.write_text(
        f"import sys; sys.path.insert(0, {str(code.parent)!r})\nimport net\ndef model(): return net.model().train()\n"
    )
    words = ["measure", f"{net}:model", "--data", f"{code}:data", "--target", "packed", "--out", tmp_path / "s.json"]
    status, _, err = run(*words)
    assert status == 0, err
    assert err.count("training mode") == 1


def test_measure_then_search(code, run, tmp_path):
    table, plan = tmp_path / "s.json", tmp_path / "plan.json"
    status, out, _ = run(
        "measure", f"{code}:model", "--data", f"{code}:data", "--target", "packed", "--out", table, "--json",
        "--choices", "w4a8,w8a8",
    )  # fmt: skip
    assert status == 0
    assert json.loads(out)["choices"] == ["w4a8", "w8a8"]
    status, out, _ = run(
        "search", table, "--budget", "weight_ratio=0.2", "--budget", "mean_bits=6", "--out", plan, "--json"
    )
    assert status == 0
    assert json.loads(out)["layers"] == json.loads(plan.read_text())["layers"]
    assert run("search", table, "--budget", "mean_bits=6", "--out", plan)[0] == 2, "not overwritten without --force"
    assert run("search", table, "--budget", "mean_bits=6", "--out", plan, "--force")[0] == 0
    status, _, err = run("search", table, "--budget", "mean_bits=3", "--out", tmp_path / "p2.json")
    assert status == 3
    assert "mean_bits" in err
    assert not (tmp_path / "p2.json").exists()


@pytest.mark.parametrize(
    ("what", "names", "accepted"),
    [
        (
            "targets",
            {"compressed_tensors", "ethosu", "executorch", "litert", "openvino", "onnxruntime", "packed", "qonnx"},
            TARGETS,
        ),
        ("metrics", {"fisher"}, METRICS),
        ("searches", {"ilp"}, SEARCHES),
        ("roundings", {"nearest", "adaround", "brecq", "gptq"}, ROUNDINGS),
        ("ranges", {"mse", "percentile"}, RANGES),
    ],
)
def test_list(run, what, names, accepted):
    status, out, _ = run("list", what, "--json")
    found = json.loads(out)
    assert status == 0
    assert names <= found.keys()
    assert found.keys() == set(accepted)
    assert all(found.values()), "each says what it does"
    status, out, _ = run("list", what)
    assert status == 0
    assert all(re.search(rf"\b{name}\b", out) for name in names), out


@pytest.fixture(scope="module")
def table(code, tmp_path_factory):
    """A table that `mixbit measure` wrote."""
    out = tmp_path_factory.mktemp("table") / "s.json"
    words = ["mixbit", "measure", f"{code}:model", "--data", f"{code}:data", "--target", "packed", "--out", out]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [*map(str, words)])
        with pytest.raises(SystemExit):
            cli.main()
    return out


def test_front_then_search_in_it(table, run, tmp_path):
    pytest.importorskip("matplotlib")
    front, picture, plan = tmp_path / "front.json", tmp_path / "front.png", tmp_path / "plan.json"
    status, out, err = run("front", table, "--out", front, "--json", "--picture", picture)
    assert status == 0, err
    points = json.loads(out)["points"]
    assert json.loads(front.read_text()) == json.loads(out)
    assert [point["weight_bytes"] for point in points] == sorted({point["weight_bytes"] for point in points})
    assert picture.read_bytes().startswith(b"\x89PNG")
    budget = f"weight_bytes={points[1]['weight_bytes']}"
    for source in (front, table):
        status, out, err = run("search", source, "--budget", budget, "--out", plan, "--json", "--force")
        assert status == 0, err
        assert json.loads(out)["layers"] == points[1]["layers"]
    assert run("search", front, "--budget", "weight_bytes=1", "--out", plan, "--force")[0] == 3
    status, _, err = run("search", front, "--budget", budget, "--out", plan, "--force", "--method", "greedy")
    assert status == 2
    assert "--method and --pin need the table" in err
    status, out, _ = run("front", table, "--out", front, "--force", "--points", "2", "--json")
    assert [point["loss"] for point in json.loads(out)["points"]] == [points[0]["loss"], points[-1]["loss"]]


def test_search_says_what_a_little_more_would_buy(table, run, tmp_path):
    status, out, err = run("search", table, "--budget", "mean_bits=4", "--out", tmp_path / "plan.json")
    assert status == 0
    assert "optimality_gap" in out
    assert re.search(r"mean_bits=4 \(used [\d.]+\): (4.2 would lower|looser by 5 %)", err), err
    stored = json.loads((tmp_path / "plan.json").read_text())
    assert stored["prices"]["mean_bits"].keys() == {"used", "price", "looser", "gain", "widens"}


def test_pins(code, table, run, tmp_path):
    words = ["search", table, "--budget", "mean_bits=7", "--out", tmp_path / "plan.json", "--json"]
    status, out, _ = run(*words, "--pin", "0.*=w2a8")
    assert status == 0
    assert json.loads(out)["layers"]["0.weight"] == "w2a8"
    for pin, message in {
        "conv9=w8a8": "pin conv9=w8a8: no layer has such a name; there are",
        "0.weight=w5a8": "the table holds w2a8",
        "0.weight": "write NAME=SCHEME",
        "0.weight=w9a8": "weights have 2 to 8 bits",
    }.items():
        status, _, err = run(*words, "--force", "--pin", pin)
        assert status == 2
        assert message in err, err
    out = tmp_path / "pinned"
    status, _, err = run(*quantize_words(code, out, budget="mean_bits=28"), "--pin", "3.weight=float", "--json")
    assert status == 0, err
    plan = json.loads((out / "plan.json").read_text())["layers"]
    assert plan["3.weight"] == "float"
    assert plan["0.weight"] != "float", "offered to pinned layers only"


def test_a_largest_drop_in_place_of_a_budget(code, run, asked, tmp_path):
    words = ["quantize", f"{code}:model", "--data", f"{code}:unlabelled", "--target", "packed"]
    words += ["--out", tmp_path / "out", "--max-drop"]
    assert asked(*words, "30%")["budget"].max_drop == MaxDrop(0.3, True)
    status, out, err = run(*words, "0.01", "--json")
    assert status == 0, err
    result = json.loads(out)
    assert result["chosen"].startswith("the smallest plan ")
    assert result["simulated"]["divergence"] <= 0.0101
    assert not list(tmp_path.glob("*.jsonl"))


def test_processes_make_what_the_command_was_given(code, asked, tmp_path):
    words = ["quantize", f"{code}:model", "--data", f"{code}:data", "--target", "packed", "--out", tmp_path / "out"]
    more = ["--max-drop", "1", "--eval", f"{code}:data", "--score", f"{code}:score", "--loss", f"{code}:loss"]
    given = asked(*words, *more, "--processes", "2")
    assert given["shared"].engine == Engine(processes=2)
    setup, score = pickle.loads(pickled((given["shared"].setup, given["settings"].score)))
    model, batches, evaluation, task = setup()
    assert digest(model.state_dict()) == digest(load_model(f"{code}:model").module.state_dict())
    assert digest([*batches]) == digest([*evaluation]) == digest([*given["eval_batches"]])
    assert digest(task) == digest(given["settings"].task)
    assert score.__qualname__ == "score"
    assert asked(*words, "--max-drop", "1")["shared"] is None


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "give --budget, as in --budget mean_bits=4, or --max-drop"),
        (["--budget", "mean_bits=4", "--max-drop", "1%"], "one of the two"),
        (["--max-drop", "x"], "max drop 'x' is not understood; write it as 1% or 0.01"),
        (["--max-drop", "-1%"], "max drop -1%: give a positive finite number"),
        (["--max-drop", "nan"], "give a positive finite number"),
        (["--max-drop", "100%"], "give less than 100%"),
        (["--budget", "mean_bits=4", "--search", "nonsense"], "search 'nonsense' is unknown; known: ilp, greedy"),
        (["--budget", "mean_bits=4", "--search", "mixquant:speed=1"], "its options are criterion, multiplier"),
        (["--budget", "mean_bits=4", "--warm-start"], "--warm-start is for the search autoq, not ilp"),
        (["--budget", "mean_bits=4", "--eval-subset-ratio", "0"], "give a share between 0 and 1"),
        (["--budget", "mean_bits=4", "--eval-timeout", "0"], "give a positive number of seconds"),
        (["--max-drop", "1%", "--search", "greedy"], "--search greedy: --max-drop looks along the front, on --eval"),
        (
            ["--budget", "mean_bits=4", "--search", "autoq", "--score", "{code}:nan_score"],
            "evaluation of float returns nan",
        ),
        (["--max-drop", "1", "--score", "{code}:nan_score"], "the evaluation of .* returns nan"),
        (["--max-drop", "1", "--score", "{code}:failing_score"], "fails on a plan: RuntimeError: no such GPU"),
        (["--max-drop", "1", "--score", "{code}:slow_score", "--eval-timeout", "0.2"], r"took more than 0.2 s"),
        (["--max-drop", "1%", "--score", "{code}:score"], "a percentage is of right answers"),
        (
            ["--budget", "mean_bits=4", "--metric", "hawq", "--processes", "2"],
            "nothing can be shared out; take a metric that is a mean over samples, as fisher, or leave shared out",
        ),
        (
            ["--max-drop", "1%", "--ray-address", "auto"],
            "--ray-address auto: is of --engine ray, and the engine is local",
        ),
        (["--max-drop", "1e-9", "--score", "{code}:fidelity"], "the dearest plan scores less than"),
    ],
)
def test_wrong_budgets_searches_and_scores(code, run, tmp_path, words, message):
    plain = ["quantize", f"{code}:model", "--data", f"{code}:data", "--target", "packed", "--out", tmp_path / "out"]
    status, out, err = run(*plain, *(word.format(code=code) for word in words))
    assert status in (2, 3)
    assert out == ""
    assert re.search(message, err), err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", ["quantize", "measure", "study"])
def test_a_cluster_that_does_not_answer_is_told_before_the_model_is_loaded(code, run, tmp_path, command):
    pytest.importorskip("ray")
    words = [command, f"{code}:no_such_model", "--data", f"{code}:data", "--out", tmp_path / "out"]
    words += {"quantize": ["--max-drop", "1%"], "study": ["--eval", f"{code}:data"]}.get(command, [])
    status, _, err = run(*words, "--target", "packed", "--engine", "ray", "--ray-address", "127.0.0.1:1")
    assert status == 2, err
    assert "--ray-address 127.0.0.1:1: no Ray cluster answers there" in err


def nncf_file(tmp_path, **precision):
    path = tmp_path / "nncf.json"
    path.write_text(json.dumps({"compression": {"algorithm": "quantization", "initializer": {"precision": precision}}}))
    return path


def test_a_configuration_of_nncf(code, run, tmp_path):
    plain = ["quantize", f"{code}:model", "--data", f"{code}:data", "--out", tmp_path / "out", "--nncf-config"]
    path = nncf_file(tmp_path, type="hawq", bits=[4, 8], iter_number=3, compression_ratio=1.2)
    status, _, err = run(*plain, path, "--target", "packed", "--json")
    assert status == 0, err
    assert "nncf.json: precision.compression_ratio: mapped: bit_complexity_ratio=1.2, at least" in err
    plan = json.loads((tmp_path / "out" / "plan.json").read_text())
    assert plan["budget"] == {"bit_complexity_ratio": 1.2}
    assert set(plan["layers"].values()) <= {"w4a4", "w4a8", "w8a4", "w8a8"}
    status, _, err = run(*plain, path, "--target", "openvino", "--force")
    assert status == 2
    assert "target openvino runs inputs in 8 bits alone: no plan reaches more than 1; give --budget" in err
    status, _, err = run(*plain, path, "--target", "packed", "--force", "--max-drop", "1%")
    assert status == 2
    assert "--max-drop 1%: the configuration of --nncf-config has its own; leave it out" in err
    scope = "Sequential/NNCFConv2d[0]/conv2d_0|WEIGHT"
    path = nncf_file(tmp_path, type="manual", bitwidth_per_scope=[[3, scope]])
    status, _, err = run(*plain, path, "--target", "packed", "--force")
    assert status == 0, err
    assert json.loads((tmp_path / "out" / "plan.json").read_text())["layers"] == {
        "0.weight": "w3a8",
        "3.weight": "w8a8",
    }


def test_functions_of_the_users_own(code, table, run, tmp_path):
    words = ["measure", f"{code}:model", "--data", f"{code}:data", "--target", "packed", "--out", tmp_path / "s.json"]
    status, out, err = run(*words, "--json", "--metric", f"{code}:range_metric")
    assert status == 0, err
    assert json.loads(out)["metric"] == "range_metric"
    words = ["search", table, "--budget", "mean_bits=4", "--out", tmp_path / "plan.json", "--json"]
    status, out, err = run(*words, "--method", f"{code}:narrowest")
    assert status == 0, err
    assert set(json.loads(out)["layers"].values()) == {"w2a8"}


def test_standard_output_is_for_results_whatever_the_users_code_prints(code, run, tmp_path):
    words = ["measure", f"{code}:prints", "--data", f"{code}:data", "--target", "packed", "--out", tmp_path / "s.json"]
    status, out, err = run(*words, "--json", "--loss", f"{code}:loss")
    assert status == 0, err
    assert json.loads(out)["metric"] == "fisher"
    assert "loss" in err


def test_a_loss_that_the_metric_does_not_look_at(code, run, tmp_path):
    words = ["measure", f"{code}:model", "--data", f"{code}:data", "--target", "packed", "--out", tmp_path / "s.json"]
    status, _, err = run(*words, "--metric", "weight_error", "--loss", f"{code}:loss")
    assert status == 0
    assert "the metric weight_error looks at no loss" in err


def test_list_of_something_else_names_the_lists(run):
    status, out, err = run("list", "nonsense")
    assert (status, out) == (2, "")
    assert "list 'nonsense' is unknown; known: targets, metrics, searches, ranges, roundings" in err


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"model": "nothing"}, "no function 'nothing'.*model"),
        ({"model": "broken"}, "the user's own error"),
        ({"model": "number"}, "int, not an nn.Module"),
        ({"model": "exits"}, "SystemExit: 0"),
        ({"data": "exits"}, "SystemExit: 0"),
        ({"data": "dictionary"}, "a dict, not an iterable of batches"),
        ({"model": "no_layers"}, "no layer"),
        ({"model": "branching"}, r"net\.py:\d+: if x\.sum\(\) > 0"),
        ({"data": "empty"}, "no batch"),
        ({"data": "number"}, "not an iterable"),
        ({"data": "wrong_labels"}, "classes 0..2"),
        (
            {"target": "tflite"},
            "known: compressed_tensors, ethosu, executorch, litert, onnxruntime, openvino, packed, qonnx",
        ),
        ({"budget": "bits=4"}, "did you mean bit_ops"),
        ({"budget": "mean_bits"}, "name=value"),
        ({"budget": "mean_bits=nan"}, "positive finite"),
        ({"budget": "mean_bits=-1"}, "positive finite"),
        ({"budget": "weight_ratio=15%"}, "percentage"),
    ],
)
def test_wrong_input_is_exit_2_and_leaves_nothing(code, run, tmp_path, changed, message):
    status, out, err = run(*quantize_words(code, tmp_path / "out", **changed))
    assert status == 2
    assert out == ""
    assert re.search(message, err), err
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


def test_infeasible_is_exit_3(code, run, tmp_path):
    status, _, err = run(*quantize_words(code, tmp_path / "out", budget="mean_bits=1"))
    assert status == 3
    assert "mean_bits" in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("spec", ["net", "missing.py:model", "no.such.package:model", ":model", "net.py:"])
def test_specs_that_do_not_import(run, tmp_path, spec):
    status, _, err = run("measure", spec, "--data", spec, "--target", "packed", "--out", tmp_path / "s.json")
    assert status == 2
    assert "MODEL" in err
    assert "Traceback" not in err


def test_import_error_shows_the_users_own_line(run, tmp_path):
    broken = tmp_path / "bad.py"
    broken.write_text("import torch\nimport no_such_module\n")
    status, _, err = run("measure", f"{broken}:model", "--data", "x:y", "--target", "packed", "--out", tmp_path / "s")
    assert status == 2
    assert "No module named 'no_such_module'" in err
    assert "bad.py:2" in err


def test_usage_errors_are_exit_2(run):
    assert run("quantize")[0] == 2
    assert run("quantize", "--no-such-option")[0] == 2


@pytest.mark.parametrize(
    ("option", "value", "known"),
    [
        (
            "target",
            "x",
            ["compressed_tensors", "ethosu", "executorch", "litert", "onnxruntime", "openvino", "packed", "qonnx"],
        ),
        ("rounding", "x", ["nearest"]),
        ("flavour", "x", ["static", "qat"]),
        ("metric", "x", ["fisher"]),
        ("search", "x", ["ilp"]),
        ("task", "x", ["classification", "regression"]),
        ("budget", "x=1", ["weight_bytes", "weight_ratio", "mean_bits", "bit_ops", "bit_ops_ratio"]),
    ],
)
def test_unknown_names_list_the_known(code, run, tmp_path, option, value, known):
    status, _, err = run(*quantize_words(code, tmp_path / "out"), f"--{option}", value)
    assert status == 2
    said, _, listed = err.partition("; known: ")
    assert said == f"mixbit: {option} {value.partition('=')[0]!r} is unknown"
    assert set(known) <= set(re.findall(r"\w+", listed)), err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("choices", "w9a8", "scheme 'w9a8': weights have 2 to 8 bits, not 9"),
        ("choices", "w4a8,x", "scheme 'x' is not understood; write float, float16, w4 or w4a8"),
        ("choices", "w4a8,w4a8", r"choices \['w4a8', 'w4a8'\]: give one scheme or more, each once"),
        ("device", "nonsense", "device 'nonsense': .*cpu.*cuda"),
    ],
)
def test_values_that_cannot_be_used_say_what_can(code, run, tmp_path, option, value, message):
    status, _, err = run(*quantize_words(code, tmp_path / "out"), f"--{option}", value)
    assert status == 2
    assert re.match(f"mixbit: {message}", err), err
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="torch has CUDA here")
@pytest.mark.parametrize("command", ["quantize", "measure"])
def test_a_device_that_is_not_there_is_exit_2(code, run, tmp_path, command):
    _, model, *rest = quantize_words(code, tmp_path / "out")
    if command == "measure":
        rest = [word for word in rest if word not in {"--budget", "mean_bits=4"}]
    status, out, err = run(command, model, *rest, "--device", "cuda")
    assert (status, out) == (2, "")
    assert re.match(r"mixbit: device 'cuda': .*(CUDA|NVIDIA)", err), err
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


def test_out_is_not_overwritten_without_force(code, run, asked, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("keep")
    status, _, err = run(*quantize_words(code, out))
    assert status == 2
    assert "--force" in err
    assert [path.name for path in out.iterdir()] == ["mine.txt"]
    assert asked(*quantize_words(code, out), "--force")["force"]


def test_interrupt_is_exit_130_and_leaves_nothing(code, run, tmp_path, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(auto, "measure", interrupt)
    status, _, _ = run(*quantize_words(code, tmp_path / "out"))
    assert status == 130
    assert list(tmp_path.iterdir()) == []


def edit(path, change):
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("plan.json", lambda plan: plan["layers"].update({"no.such.weight": "w4a8"}), "plan.json is not the plan"),
        ("plan.json", lambda plan: plan["layers"].update({"0.weight": "w9a8"}), "2 to 8 bits"),
        ("plan.json", lambda plan: plan.update({"colour": "red"}), "colour"),
        ("result.json", lambda result: result.pop("layers"), "layers"),
        ("result.json", lambda result: result.update({"target": "nonsense"}), "plan.json is not|unknown"),
    ],
)
def test_edited_folders_are_refused(done, again, tmp_path, name, change, message):
    folder = copy_of(done, tmp_path)
    edit(folder / name, change)
    status, _, err = again(folder)
    assert status == 2
    assert re.search(message, err), err


@pytest.mark.parametrize("name", ["plan.json", "result.json", "check.safetensors", "model.safetensors"])
def test_missing_and_truncated_files_are_refused(done, again, tmp_path, name):
    folder = copy_of(done, tmp_path)
    whole = (folder / name).read_bytes()
    for content in (whole[: len(whole) // 2], b"", b"\xff" * 100):
        (folder / name).write_bytes(content)
        status, _, err = again(folder)
        assert status in {2, 4}
        assert "Traceback" not in err, err
    (folder / name).unlink()
    for command in ("verify", "bench"):
        status, _, err = again(folder, command)
        assert status == 2
        assert name in err


def test_an_artefact_that_computes_something_else_is_exit_4(done, again, tmp_path):
    folder = copy_of(done, tmp_path)
    path = folder / "model.safetensors"
    with safetensors.safe_open(path, "pt") as file:
        metadata = file.metadata()
    tensors = safetensors.torch.load_file(path)
    tensors["3.bias"] = tensors["3.bias"] + torch.tensor([5.0, -5.0, 0.0])
    safetensors.torch.save_file(tensors, path, metadata)
    status, _, err = again(folder)
    assert status == 4
    assert "model.safetensors is not the file verified then" in err
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    edit(folder / "result.json", lambda result: result["files"].update({path.name: digest}))
    status, _, err = again(folder)
    assert status == 4
    assert "outputs differ" in err


def test_verify_names_the_first_tensor_inside_that_differs(code, done, run, again, tmp_path):
    onnx = pytest.importorskip("onnx")
    assert run(*quantize_words(code, tmp_path / "out", target="onnxruntime"))[0] == 0
    status, out, _ = run("verify", tmp_path / "out", "--layers")
    assert status == 0
    assert "no tensor inside differs" in out
    path = tmp_path / "out" / "model.onnx"
    model = onnx.load(path)
    (bias,) = [tensor for tensor in model.graph.initializer if tensor.name == "0.bias"]
    bias.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(bias) + 1, bias.name))
    onnx.save(model, path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    edit(tmp_path / "out" / "result.json", lambda result: result["files"].update({path.name: digest}))
    status, out, _ = run("verify", tmp_path / "out", "--layers", "--json")
    assert status == 4
    assert json.loads(out)["first_difference"]["layer"] == "0.weight"
    assert again(done, "verify", "--layers")[0] == 2  # packed: nothing but PyTorch runs it
    for command in ("verify", "bench"):
        status, _, err = again(tmp_path / "out", command)
        assert status == 2
        assert "target onnxruntime runs its file alone: leave out --model" in err


def test_no_code_is_run_that_a_folder_names(done, run, tmp_path):
    folder, trap = copy_of(done, tmp_path), tmp_path / "trap.py"
    trap.write_text(f"open({str(tmp_path / 'sprung')!r}, 'w')\ndef model(): raise SystemExit(0)\n")
    edit(folder / "result.json", lambda result: result.update(model=f"{trap}:model\x1b[31m"))
    for command in ("verify", "bench"):
        status, _, err = run(command, folder)
        assert status == 2
        assert "pass --model FILE.py:function (model=...) (the run used '" in err
        assert "trap.py:model\\x1b[31m')" in err
        assert "\x1b" not in err
    assert not (tmp_path / "sprung").exists()


def set_to(*path):
    """A change of result.json: the value at the end of the path is the last of it."""

    def change(result):
        *keys, last, value = path
        for key in keys:
            result = result[key]
        result[last] = value

    return change


@pytest.mark.parametrize(
    ("change", "status", "message"),
    [
        (set_to("files", {}), 4, "files lacks check.safetensors, model.safetensors, plan.json"),
        (lambda result: result["files"].pop("plan.json"), 4, "files lacks plan.json"),
        (set_to("files", "../secret", "0" * 64), 2, "files.*secret.*not the name of a file beside"),
        (set_to("files", "/dev/zero", "0" * 64), 2, "not the name of a file beside"),
        (set_to("files", "plan.json", "0"), 2, "files.plan.json"),
        (set_to("deployed", "weight_bytes", 1), 4, "deployed.weight_bytes is 1.0, and"),
        (set_to("deployed", "predicted_bytes", 1), 4, "deployed.predicted_bytes"),
        (set_to("deployed", "file_bytes", 1), 4, "deployed.file_bytes"),
        (set_to("deployed", "accuracy", 1.0), 4, "deployed.accuracy is 1.0, of"),
        (set_to("deployed", "accuracy", 1.5), 2, "accuracy is 1.5, and must be between 0 and 1"),
        (lambda result: result["deployed"].pop("accuracy"), 4, "deployed.accuracy is None"),
        (set_to("deployed", "agreement", 0.5), 4, "deployed.agreement is 0.5"),
        (set_to("deployed", "relative_rms", 0.5), 4, "deployed.relative_rms is 0.5"),
        (set_to("deployed", "num_samples", 3), 4, "deployed.num_samples is 3"),
        (set_to("deployed", "latency_mw", 3), 2, "deployed: latency_mw is unknown; known: accuracy"),
        (set_to("deployed", "relative_rms", "high"), 2, "deployed.relative_rms"),
        (set_to("simulated", "accuracy", 1.0), 4, "simulated.accuracy is 1.0"),
        (set_to("float", "latency_ms", float("nan")), 2, "float.latency_ms.*finite number"),
        (set_to("layers", "0.weight", "weight_bytes", 1), 4, "layers.0.weight is 1 bytes"),
        (set_to("layers", "0.weight", "predicted_bytes", 1), 4, "predicted_bytes are not those of the plan"),
        (set_to("layers", "0.weight", "stored", "8-bit planes, float32 scale"), 4, "layers.0.weight is"),
        (set_to("outputs", {"other": 0.0}), 4, "outputs are"),
        (set_to("deployed", "amplification", 1e9), 0, ""),  # explains no difference, as there is none
    ],
)
def test_figures_that_are_not_what_is_measured_are_named(done, again, tmp_path, change, status, message):
    folder = copy_of(done, tmp_path)
    edit(folder / "result.json", change)
    found, _, err = again(folder)
    assert found == status, err
    assert re.search(message, err), err


def test_a_key_that_stands_twice_is_refused(done, again, tmp_path):
    folder = copy_of(done, tmp_path)
    text = (folder / "result.json").read_text()
    (folder / "result.json").write_text(text.replace('"accuracy": ', '"accuracy": 1.0, "accuracy": '))
    status, _, err = again(folder)
    assert status == 2
    assert "key 'accuracy' stands twice" in err


@pytest.mark.parametrize("name", ["plan.json", "result.json", "check.safetensors", "model.safetensors"])
def test_what_is_no_file_of_the_folder_is_not_read(done, again, tmp_path, name):
    folder = copy_of(done, tmp_path)
    aside = shutil.move(folder / name, tmp_path / name)
    for make, message in (
        (lambda path: path.symlink_to(aside), "a link out of the folder"),
        (lambda path: path.symlink_to("/dev/zero"), "a link out of the folder"),
        (lambda path: path.symlink_to(path), "cannot be read"),
        (os.mkfifo, "not a regular file"),
        (os.mkdir, "cannot be read"),
    ):
        make(folder / name)
        for command in ("verify", "bench"):
            status, _, err = again(folder, command)
            assert status == 2
            assert message in err
            assert name in err
        (folder / name).rmdir() if (folder / name).is_dir() else (folder / name).unlink()


def test_a_folder_that_is_none(run, tmp_path):
    assert run("verify", tmp_path / "nothing")[0] == 2
    assert run("verify", tmp_path)[0] == 2


def test_qat_on_other_data_prints_what_it_was_before(code, run, again, tmp_path):
    words = quantize_words(code, tmp_path / "out", budget="mean_bits=3")
    training = ("--flavour", "qat", "--epochs", 2, "--lr", "0.001", "--train", f"{code}:unlabelled")
    status, out, err = run(*words, *training)
    assert status == 0
    assert "before fine-tuning, simulated" in out
    assert "fine-tun" in err
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert set(result["untrained"]) == {"accuracy", "divergence"}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert again(tmp_path / "out")[0] == 0


def test_an_importance_that_nothing_asks_for_is_refused(code, run, tmp_path):
    status, _, err = run(*quantize_words(code, tmp_path / "out"), "--importance", "fisher")
    assert status == 2
    assert "--importance fisher: no scheme that is offered is sparse" in err


def test_what_only_qat_takes_is_refused_elsewhere(code, run, tmp_path):
    status, _, err = run(*quantize_words(code, tmp_path / "out"), "--lr", "0.1")
    assert (status, err) == (2, "mixbit: --lr 0.1: only --flavour qat trains; leave it out\n")
    status, _, err = run(*quantize_words(code, tmp_path / "out"), "--flavour", "qat", "--lr", "-1")
    assert status == 2
    assert "lr=-1.0: give a positive number" in err


def test_numbers_that_json_does_not_have_are_none():
    found = _in_json({"relative_rms": math.nan, "outputs": {"0": math.inf, "1": 0.5}, "agreement": None})
    assert found == {"relative_rms": None, "outputs": {"0": None, "1": 0.5}, "agreement": None}


def test_a_model_that_changes_the_working_folder_changes_no_place(run, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "here" / "net.py").write_text(
        "import os, torch\n"
        f"def model():\n    os.chdir({str(tmp_path / 'elsewhere')!r})\n    return torch.nn.Linear(4, 2).eval()\n"
        "def data():\n    return [torch.ones(4, 4)]\n"
    )
    monkeypatch.chdir(tmp_path / "here")
    data = tmp_path / "here" / "net.py"
    words = ["measure", "net.py:model", "--data", f"{data}:data", "--target", "packed", "--metric", "weight_error"]
    assert run(*words, "--out", "table.json")[0] == 0
    assert (tmp_path / "here" / "table.json").exists()
    assert list((tmp_path / "elsewhere").iterdir()) == []
    words = [word.replace("net.py:model", f"{tmp_path / 'here' / 'net.py'}:model") for word in words]
    assert run(*words, "--out", tmp_path / "here" / "table.json")[0] == 2
    assert run(*words, "--out", tmp_path / "here" / "table.json", "--force")[0] == 0


def test_a_run_says_what_came_out_of_each_step_unless_it_is_quiet(code, tmp_path, run):
    words = ("quantize", f"{code}:model", "--data", f"{code}:data", "--target", "packed", "--budget", "mean_bits=4")
    status, out, err = run(*words, "--out", tmp_path / "told")
    assert status == 0
    steps = [line.partition(":")[0] for line in err.splitlines()]
    assert steps[:4] == ["capture", "calibrate", "measure", "search"]
    assert {"evaluate", "export", "verify", "time"} <= set(steps)
    assert "capture: 2 layers, 228 weights, " in err
    assert "calibrate: 24 samples; 8 more are held out (" in err
    status, quiet_out, err = run(*words, "--out", tmp_path / "quiet", "--quiet")
    assert (status, err) == (0, "")
    assert [line[:12] for line in quiet_out.splitlines()] == [line[:12] for line in out.splitlines()]
    status, _, err = run(*words, "--out", tmp_path / "quiet", "--quiet")
    assert status == 2
    assert "the folder is not empty" in err
