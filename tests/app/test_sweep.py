"""Sweeps of the demo's network, from a file to verified cells: what is shared, resumed, refused, and told."""

import dataclasses
import json
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from urllib.parse import unquote

import pytest

import mixbit as mb
from mixbit.app import main as cli
from mixbit.app.schemas import schema_text
from mixbit.core import InvalidInput, digest
from mixbit.demo.data import calibration_batches, test_batches as evaluation_batches
from mixbit.demo.network import trained
from mixbit.pipeline import auto, cells, deploy, network, sweep as sweeping
from mixbit.pipeline.settings import Settings
from mixbit.results.result import Result
from mixbit.results.sweep import Sweep
from mixbit.targets import latency
from tests.report.pages import read_page

TARGETS, BUDGETS, ROUNDINGS = ("packed", "onnxruntime"), ("mean_bits=5", "weight_ratio=0.12"), ("nearest", "gptq")
DIGITS = """
[[models]]
name = "digits"
model = "mixbit.demo.network:trained"
data = "tests.app.test_sweep:some_for_calibration"
eval = "tests.app.test_sweep:some_for_evaluation"
"""
SWEEP = f"""
out = "out"
targets = {[*TARGETS]}
budgets = {[*BUDGETS]}
roundings = {[*ROUNDINGS]}
{DIGITS}"""
#: One small cell, for what needs no more.
ONE = f"""
targets = ["packed"]
budgets = ["mean_bits=4"]
metric = "weight_error"
{DIGITS}samples = 128
"""


def some_for_calibration():
    return calibration_batches()[:4]


def some_for_evaluation():
    return evaluation_batches()[:2]


#: Steps that are counted.
STEPS = ("capture_all", "calibrate", "measure", "deployed_within")


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    """Latencies are taken from few rounds."""
    monkeypatch.setattr(latency, "ROUNDS", 5)


#: Digest of a network -> its graph: the tests capture each once between them.
GRAPHS = {}


def counted(monkeypatch):
    """Count from now on how often each of STEPS is called."""
    capture_all = network.capture_all

    def capture_once(model, batches, dynamic):
        key = digest(model.state_dict())
        if key not in GRAPHS:
            GRAPHS[key] = capture_all(model, batches, dynamic)
        return GRAPHS[key]

    monkeypatch.setattr(network, "capture_all", capture_once)
    calls = Counter()

    def counting(name, function):
        def call(*args, **options):
            calls[name] += 1
            return function(*args, **options)

        return call

    for name in STEPS:
        place = {"deployed_within": cells, "capture_all": network}.get(name, auto)
        monkeypatch.setattr(place, name, counting(name, getattr(place, name)))
    return calls


def in_process(folder, monkeypatch, *words):
    """Run `mixbit sweep` in the folder; return exit code and the steps that were called."""
    with monkeypatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "argv", ["mixbit", "sweep", *map(str, words)])
        patch.setattr(latency, "ROUNDS", 5)
        calls = counted(patch)
        with pytest.raises(SystemExit) as stopped:
            cli.main()
    return stopped.value.code or 0, calls


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """The whole sweep: its folder, exit code, and steps."""
    folder = tmp_path_factory.mktemp("sweep")
    (folder / "sweep.toml").write_text(SWEEP)
    with pytest.MonkeyPatch.context() as patch:
        code, calls = in_process(folder, patch, "sweep.toml")
    return folder, code, calls


@pytest.fixture
def again(swept, tmp_path, monkeypatch):
    """A copy of the finished sweep, to be run again: the folder, and the function that does."""
    shutil.copytree(swept[0], tmp_path / "again")
    return tmp_path / "again", lambda *words: in_process(tmp_path / "again", monkeypatch, "sweep.toml", *words)


@pytest.fixture
def one(tmp_path, monkeypatch):
    """Write the file of a sweep, and run it; returns exit code and steps."""
    monkeypatch.chdir(tmp_path)

    def call(text=ONE, *words):
        (tmp_path / "sweep.toml").write_text(text)
        return in_process(tmp_path, monkeypatch, "sweep.toml", "--out", "out", *words)

    return call


def load(folder):
    return Sweep.load(folder / "out")


def test_network_and_tables_are_worked_out_once(swept):
    folder, code, calls = swept
    assert code == 0
    assert calls == {"capture_all": 1, "calibrate": 1, "measure": len(TARGETS), "deployed_within": 8}
    found = load(folder).cells
    assert [(cell.target, cell.budget, cell.rounding) for cell in found] == [
        (target, budget, rounding) for target in TARGETS for budget in BUDGETS for rounding in ROUNDINGS
    ]
    assert {cell.state for cell in found} == {"done"}


def test_every_cell_is_what_auto_quantize_makes(swept, tmp_path):
    """To the bit: sharing changes nothing."""
    sweep = load(swept[0])
    for number in (1, 6):
        cell = sweep.cells[number]
        alone = mb.auto_quantize(
            trained(),
            some_for_calibration(),
            target=cell.target,
            budget=cells.budget_of(cell.budget),
            out=tmp_path / str(number),
            eval_batches=some_for_evaluation(),
            settings=Settings(rounding=cell.rounding),
        )
        folder = swept[0] / "out" / cell.folder
        names = {path.name for path in alone.folder.iterdir()}
        assert {path.name for path in folder.iterdir()} == names
        for name in names - {"result.json", "README.md", "report.html"}:
            assert (folder / name).read_bytes() == (alone.folder / name).read_bytes(), name
        result = alone.result
        assert cell.accuracy == result.deployed["accuracy"]
        assert cell.weight_bytes == result.deployed["weight_bytes"] + result.float_bytes
        assert cell.weight_ratio == pytest.approx(result.weight_share)
        assert cell.schemes == Counter(alone.plan.layers.values())


def test_cells_keep_their_budgets_and_verify(swept, run):
    sweep = load(swept[0])
    assert all(cell.weight_ratio <= 0.12 for cell in sweep.cells if cell.budget == "weight_ratio=0.12")
    code, out, _ = run("verify", swept[0] / "out" / sweep.cells[-1].folder, "--json")
    assert code == 0
    assert json.loads(out)["problems"] == []


def test_json_has_the_keys_of_its_schema(swept):
    stored, schema = json.loads((swept[0] / "out/sweep.json").read_text()), json.loads(schema_text("sweep"))
    assert stored.keys() == schema["properties"].keys()
    assert stored["cells"][0].keys() == schema["$defs"]["SweepCell"]["properties"].keys()
    assert stored["settings"]["metric"] == "fisher"
    assert stored["models"]["digits"]["eval"] == "tests.app.test_sweep:some_for_evaluation"


def test_the_page_shows_every_cell_and_leads_to_its_report(swept):
    folder, sweep = swept[0] / "out", load(swept[0])
    page = read_page((folder / "sweep.html").read_text())
    rows = page.one("tbody").all("tr")
    assert len(rows) == 8
    for row, cell in zip(rows, sweep.cells, strict=True):
        texts = [each.own_text for each in row.all("td")]
        figures = f"{cell.weight_bytes:,.0f}", f"{100 * cell.accuracy:.2f} %"
        assert {cell.target, cell.budget, cell.rounding, *figures} <= set(texts)
        (link,) = row.all("a")
        assert (folder / unquote(link.attributes["href"])).is_file()
    marks = [each for each in page.all("span") if "cell" in each.attributes.get("class", "").split()]
    assert sorted(int(mark.text) for mark in marks) == [*range(1, 9)]
    lefts = [float(re.search(r"left:([\d.]+)%", mark.attributes["style"])[1]) for mark in marks]
    sizes = [sweep.cells[int(mark.text) - 1].weight_bytes for mark in marks]
    for place, size in zip(lefts, sizes, strict=True):
        for other, more in zip(lefts, sizes, strict=True):
            assert (place < other) == (size < more)


def test_the_same_call_takes_up_what_is_finished(again, capsys):
    folder, call = again
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("result.json")}
    code, steps = call()
    assert code == 0
    assert steps == {"capture_all": 1}  # to see whether the network is the same
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("result.json")} == before
    assert capsys.readouterr().err.count("finished by an earlier call") == 8
    assert [cell.state for cell in load(folder).cells] == ["done"] * 8


def test_what_is_missing_runs_again_with_the_stored_table(again):
    folder, call = again
    shutil.rmtree(folder / "out" / load(folder).cells[3].folder)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("result.json")}
    code, steps = call()
    assert (code, steps) == (0, {"capture_all": 1, "calibrate": 1, "deployed_within": 1})
    after = {path: path.stat().st_mtime_ns for path in folder.rglob("result.json")}
    assert len(after) == 8
    assert before.items() <= after.items()


@pytest.mark.slow
def test_force_starts_over(again):
    folder, call = again
    (folder / "out/digits/packed/notes.txt").write_text("mine")
    text = SWEEP.replace("['nearest', 'gptq']", "['nearest']").replace("out =", "metric = 'weight_error'\nout =")
    (folder / "sweep.toml").write_text(text)
    code, steps = call("--force")
    assert (code, steps) == (0, {"capture_all": 1, "calibrate": 1, "measure": 2, "deployed_within": 4})
    assert Result.load(folder / "out" / load(folder).cells[0].folder).settings["metric"] == "weight_error"
    assert (folder / "out/digits/packed/notes.txt").read_text() == "mine"


def test_other_settings_are_refused_before_any_work(again, capsys):
    folder, call = again
    before = (folder / "out/sweep.json").read_bytes()
    for old, new, message in (
        ("out =", "metric = 'weight_error'\nout =", "another setting: metric was 'fisher', and is 'weight_error' here"),
        ("some_for_calibration", "some_for_evaluation", "model digits: data was"),
    ):
        (folder / "sweep.toml").write_text(SWEEP.replace(old, new))
        code, steps = call()
        assert (code, steps) == (2, {})
        assert message in capsys.readouterr().err
    assert (folder / "out/sweep.json").read_bytes() == before


def test_a_changed_file_fails_alone(again):
    folder, call = again
    path = folder / "out" / load(folder).cells[2].folder / "plan.json"
    path.write_text(path.read_text() + " ")
    code, _ = call()
    assert code == 4
    found = load(folder).cells
    assert [cell.state for cell in found] == ["done", "done", "failed", *["done"] * 5]
    assert "plan.json" in found[2].reason


NETWORK = """
import torch
from torch import nn

def model():
    torch.manual_seed({seed})
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)).eval()

def data():
    torch.manual_seed(1)
    return [(torch.randn(8, 1, 8, 8), torch.arange(8) % 3) for _ in range(4)]

def broken():
    raise OSError("no disk")
"""
SMALL = """
targets = ["packed"]
budgets = ["mean_bits=4", "mean_bits=3"]
choices = ["w4a8", "w8a8"]
metric = "weight_error"
[[models]]
name = "small"
model = "net.py:model"
data = "net.py:data"
"""


@pytest.fixture
def small(one, tmp_path):
    """Run the sweep SMALL, or another, of a network whose weights are drawn from a seed."""

    def call(text=SMALL, *words, seed=0):
        (tmp_path / "net.py").write_text(NETWORK.format(seed=seed))
        return one(text, *words)

    return call


def test_a_budget_out_of_reach_fails_alone_with_its_own_code(small, tmp_path, capsys):
    code, steps = small()
    done, failed = load(tmp_path).cells
    assert (code, steps["measure"], steps["deployed_within"]) == (3, 1, 1)
    assert (done.state, done.exit_code) == ("done", 0)
    assert (failed.state, failed.exit_code) == ("failed", 3)
    assert "mean_bits=3" in failed.reason
    assert "\n" not in failed.reason
    printed = capsys.readouterr()
    assert "failed: " in printed.out
    assert "1 of 2 cells are verified" in printed.err
    assert "failed" in read_page((tmp_path / "out/sweep.html").read_text()).one("tbody").text


def test_more_budgets_add_cells_without_measuring_again(small, tmp_path):
    small(SMALL.replace(', "mean_bits=3"', ""))
    code, steps = small(SMALL.replace("mean_bits=3", "mean_bits=6"))
    assert (code, steps) == (0, {"capture_all": 1, "calibrate": 1, "deployed_within": 1})
    assert [cell.budget for cell in load(tmp_path).cells] == ["mean_bits=4", "mean_bits=6"]


def test_a_model_that_fails_leaves_the_others_alone(small, tmp_path):
    second = SMALL[SMALL.index("[[models]]") :].replace('"small"', '"broken"').replace("net.py:model", "net.py:broken")
    code, steps = small(SMALL.replace("[[models]]", second + "[[models]]"))
    found = load(tmp_path).cells
    assert code == 2  # before 3: the file needs a change
    assert [cell.state for cell in found] == ["failed", "failed", "done", "failed"]
    assert all("OSError: no disk" in cell.reason and "net.py" in cell.reason for cell in found[:2])
    assert steps["deployed_within"] == 1


def test_another_network_under_the_same_name_is_told_and_its_results_stay(small, tmp_path):
    small()
    folder = tmp_path / "out" / load(tmp_path).cells[0].folder
    before = (folder / "result.json").read_bytes()
    code, _ = small(seed=1)
    cell = load(tmp_path).cells[0]
    assert code == 2
    assert "holds results of another network, data or settings" in cell.reason
    assert (folder / "result.json").read_bytes() == before
    code, steps = small(SMALL, "--force", seed=1)
    assert (code, steps["measure"]) == (3, 1)
    assert (folder / "result.json").read_bytes() != before


def test_files_of_others_in_the_place_of_a_cell_are_left_alone(small, tmp_path, capsys):
    place = tmp_path / "out/small/packed/mean_bits=4-nearest"
    place.mkdir(parents=True)
    (place / "README.md").write_text("mine")
    code, steps = small()
    assert (code, steps) == (2, {})
    assert "not empty" in capsys.readouterr().err
    assert (place / "README.md").read_text() == "mine"


def test_a_file_that_differs_is_told_and_kept(small, tmp_path, monkeypatch):
    real = deploy.compare

    def differing(*args, **options):
        return dataclasses.replace(real(*args, **options), problems=["outputs differ"])

    monkeypatch.setattr(deploy, "compare", differing)
    code, _ = small()
    cell = load(tmp_path).cells[0]
    assert (code, cell.state, cell.reason) == (4, "differs", "outputs differ")
    assert (tmp_path / "out" / cell.folder / "result.json").exists()
    code, steps = small()
    assert (code, steps["deployed_within"]) == (4, 0)


@pytest.mark.slow
def test_training_and_a_largest_drop_are_taken_up_too(one, small, tmp_path):
    text = SMALL.replace("mean_bits=3", "mean_bits=6") + 'train = "net.py:data"\n'
    text = text.replace("metric =", "flavour = 'qat'\nepochs = 1\nmetric =")
    assert small(text)[0] == 0
    assert all("fine-tun" in cell.chosen for cell in load(tmp_path).cells)
    assert small(text) == (0, {"capture_all": 1})
    shutil.rmtree(tmp_path / "out")
    text = ONE.replace('"mean_bits=4"', '"max_drop=40%", "mean_bits=8"').replace(
        "[[models]]", 'roundings = ["gptq"]\n[[models]]'
    )
    assert one(text)[0] == 0
    drop, wide = load(tmp_path).cells
    assert drop.folder.endswith("max_drop=40pct-gptq")
    assert drop.weight_bytes < wide.weight_bytes
    assert drop.accuracy >= drop.float_accuracy - 0.4
    assert one(text) == (0, {"capture_all": 1})


@pytest.mark.slow
def test_several_processes_give_the_same_cells(small, tmp_path):
    text = SMALL.replace('["packed"]', '["packed", "onnxruntime"]').replace("mean_bits=3", "mean_bits=6")
    code, _ = small(text)
    alone = load(tmp_path)
    shutil.rmtree(tmp_path / "out")
    assert small(text, "--processes", "2")[0] == code == 0
    apart = {"latency_ms", "latency_ratio", "seconds"}
    for cell, other in zip(alone.cells, load(tmp_path).cells, strict=True):
        assert cell.model_dump(exclude=apart) == other.model_dump(exclude=apart)
    assert len(list(tmp_path.glob("out/.work/small/*/table.safetensors"))) == 2
    assert not [path for path in (tmp_path / "out").rglob("*") if "mixbit-" in path.name]


WORKER = """
import os, pickle, sys
from pathlib import Path
from mixbit.core.io.ray_worker import begin
os.chdir("/")
answer = begin(Path(sys.argv[1]).read_bytes())(pickle.loads(Path(sys.argv[2]).read_bytes()))
sys.stdout.buffer.write(pickle.dumps(answer))
"""


@pytest.mark.slow
def test_workers_of_a_cluster_begin_elsewhere_and_may_be_given_the_same_cell(small, tmp_path, monkeypatch):
    """As Ray does with what takes long: both answer, and one of them alone works."""
    answers = []

    def given_twice(engine, start, jobs):
        (tmp_path / "start").write_bytes(pickle.dumps(start))
        for job in jobs:
            (tmp_path / "job").write_bytes(pickle.dumps(job))
            words = [sys.executable, "-c", WORKER, tmp_path / "start", tmp_path / "job"]
            workers = [subprocess.Popen(words, stdout=subprocess.PIPE) for _ in range(2)]
            answers.append([pickle.loads(worker.communicate(timeout=600)[0]) for worker in workers])
            yield job, answers[-1][0]

    monkeypatch.setattr(sweeping, "run_jobs", given_twice)
    assert small(SMALL.replace(', "mean_bits=3"', ""), "--processes", "2")[0] == 0
    ((one, other),) = answers
    assert {one.taken_up, other.taken_up} == {False, True}
    assert one.cell == other.cell
    assert one.cell.state == "done"
    shutil.copytree(tmp_path / "out", tmp_path / "unshared")
    (tmp_path / "unshared/.work/call").unlink()
    with pytest.raises(InvalidInput, match="is not the folder that the sweep writes to"):
        pickle.loads((tmp_path / "start").read_bytes()).func(
            *[{}, tmp_path / "unshared", "another call", False]  # what a node sees that does not share it
        )


def test_an_interrupted_sweep_goes_on(small, tmp_path, monkeypatch):
    text = SMALL.replace("mean_bits=3", "mean_bits=5")
    done, left = cells.deployed_within, iter([False, True])

    def interrupted(*args):
        if next(left):
            raise KeyboardInterrupt
        return done(*args)

    with monkeypatch.context() as patch:
        patch.setattr(cells, "deployed_within", interrupted)
        assert small(text)[0] == 130
    assert [cell.state for cell in load(tmp_path).cells] == ["done", "waiting"]
    assert small(text) == (0, {"capture_all": 1, "calibrate": 1, "deployed_within": 1})
    assert [cell.state for cell in load(tmp_path).cells] == ["done", "done"]


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_a_killed_sweep_goes_on(small, tmp_path, number, code):
    budgets = [f"mean_bits={bits}" for bits in (4, 5, 6, 7)]
    text = SMALL.replace('["mean_bits=4", "mean_bits=3"]', str(budgets))
    (tmp_path / "net.py").write_text(NETWORK.format(seed=0))
    (tmp_path / "sweep.toml").write_text(text)
    words = [sys.executable, "-m", "mixbit.app.main", "sweep", "sweep.toml", "--out", "out"]
    process = subprocess.Popen(words, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    first = tmp_path / "out/small/packed/mean_bits=4-nearest/result.json"
    until = time.monotonic() + 600
    while not first.exists() and time.monotonic() < until:
        time.sleep(0.01)
    os.kill(process.pid, number)
    assert process.wait(120) == code
    finished = {path: path.stat().st_mtime_ns for path in tmp_path.glob("out/small/packed/*/result.json")}
    assert 1 <= len(finished) < 4
    ended, steps = small(text)
    assert ended == 0
    assert steps["deployed_within"] == 4 - len(finished)
    assert steps["measure"] == 0
    assert all(path.stat().st_mtime_ns == before for path, before in finished.items())
    assert [cell.state for cell in load(tmp_path).cells] == ["done"] * 4
    assert not [path for path in (tmp_path / "out").rglob("*") if "mixbit-" in path.name]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("metric =", "metrc ="), r"sweep.toml: key 'metrc' is unknown \(did you mean metric\?\); known: .*budgets"),
        (("samples =", "sample ="), r"key of a model 'sample' is unknown \(did you mean samples\?\)"),
        (("samples = 128", "samples = 'many'"), r"models.0.samples: .*integer \(found 'many'\)"),
        (('metric = "weight_error"', 'metric = "fishy"'), r"model digits: .*'fishy' is unknown"),
        (('["packed"]', "[]"), "targets: .*at least 1 item"),
        (('["packed"]', '["packd"]'), r"'packd' is unknown \(did you mean packed\?\)"),
        (('["packed"]', '["packed", "packed"]'), "targets: 'packed' stands twice"),
        (('metric = "weight_error"', 'roundings = ["gptq", "gptq"]'), "roundings: 'gptq' stands twice"),
        (('["mean_bits=4"]', '["mean_bits=4", "mean_bits=4.0"]'), "packed, mean_bits=4, nearest: stands twice"),
        (('["mean_bits=4"]', '["mean_bits<=4"]'), "'mean_bits<' is unknown|is not understood"),
        (('["mean_bits=4"]', '["cycles=4"]'), "digits, packed, cycles=4, nearest: budget cycles"),
        (('["mean_bits=4"]', '["max_drop=1%"]\nflavour = "qat"'), "max_drop=1%, nearest: flavour qat"),
        (('metric = "weight_error"', 'roundings = ["nearest", "up"]'), "'up' is unknown"),
        (('metric = "weight_error"', 'roundings = ["gptq:dampin=1"]'), "dampin"),
        (('metric = "weight_error"', "epochs = 3"), "epochs = 3: only flavour = 'qat' trains"),
        (('metric = "weight_error"', 'importance = "fisher"'), "no scheme that is offered is sparse"),
        (('"digits"', '"a/b"'), "models.0.name"),
        (('"mixbit.demo.network:trained"', '"mixbit.demo.network:trainde"'), r"did you mean trained\?"),
        (('"mixbit.demo.network:trained"', '"net.onx"'), "MODEL 'net.onx': no such file"),
        (("[[models]]", DIGITS + "[[models]]"), "names of models: 'digits' stands twice"),
        (("[[models]]", "[[models]"), "not valid TOML"),
        ((DIGITS + "samples = 128", ""), "models: Field required"),
    ],
)
def test_a_wrong_file_is_refused_before_any_work(one, tmp_path, capsys, change, message):
    assert change[0] in ONE
    code, steps = one(ONE.replace(*change))
    assert (code, steps) == (2, {})
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "out").exists()


def test_folders_that_differ_in_case_alone_are_refused(one, capsys):
    code, _ = one(ONE + DIGITS.replace('"digits"', '"Digits"'))
    assert code == 2
    assert "has the folder of digits, packed" in capsys.readouterr().err


def test_without_a_folder_it_says_so(tmp_path, run):
    (tmp_path / "sweep.toml").write_text(ONE)
    code, _, err = run("sweep", tmp_path / "sweep.toml")
    assert code == 2
    assert "give --out DIR" in err
    code, _, err = run("sweep", tmp_path / "none.toml")
    assert code == 2
    assert "none.toml: cannot be read" in err


def test_a_folder_of_something_else_is_refused(one, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine.txt").write_text("mine")
    assert one()[0] == 2
    assert "not empty" in capsys.readouterr().err
    (tmp_path / "out/sweep.json").write_text("{}")
    assert one()[0] == 2
    assert "not a sweep" in capsys.readouterr().err


def test_json_on_standard_output_is_the_file(small, tmp_path, capsys):
    small(SMALL, "--json")
    assert capsys.readouterr().out == (tmp_path / "out/sweep.json").read_text()


@pytest.mark.parametrize(("codes", "exit_code"), [((0, 0), 0), ((0, 3), 3), ((3, 2), 2), ((3, 2, 4, 0), 4)])
def test_the_exit_code_is_that_of_the_worst(swept, codes, exit_code):
    sweep = load(swept[0])
    some = [cell.model_copy(update={"exit_code": code}) for cell, code in zip(sweep.cells, codes, strict=False)]
    assert sweep.model_copy(update={"cells": some}).exit_code == exit_code
