"""report.html: of a small run with target packed, of folders from anyone, and of large networks."""

import dataclasses
import json
import re
import shutil
import time

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import mixbit as mb
from mixbit.core import InvalidInput, Plan, Sensitivity, TargetMismatch, Task, sha256
from mixbit.pipeline.settings import Settings
from mixbit.report.report import page_of, rewrite_report
from mixbit.report.samples import SampleLine
from mixbit.results.recheck import recheck
from mixbit.results.result import ChangedSample, Result
from mixbit.targets import latency
from tests.report.folders import table_of as random_table, write_folder
from tests.report.pages import number_of, read_page, table_of

HOSTILE = "</script><script>alert(1)</script>"
NAMES = (
    HOSTILE,
    "<img src=x onerror=alert(2)>",
    "\"'><b onclick=x>&amp;",
    "{{ 7 * 7 }}{% raw %}",
    "a\x1b[31m\x00b\u202e",
)


class Net(nn.Module):
    """Images to classes and, beside them, numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.second = nn.Conv2d(8, 8, 3, padding=1)
        self.classes, self.boxes = nn.Linear(8, 5), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.first(x).relu()
        pooled = (self.second(x) + x).relu().mean((2, 3))
        return {"logits": self.classes(pooled), "boxes": self.boxes(pooled)}


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    return Net().eval()


@pytest.fixture(scope="module")
def run(net, tmp_path_factory):
    """A run with two outputs, with labels for one of them."""
    generator = torch.Generator().manual_seed(1)
    batches = [
        (torch.randn(16, 3, 8, 8, generator=generator), torch.randint(0, 5, (16,), generator=generator))
        for _ in range(6)
    ]
    settings = Settings(seed=3, command=("mixbit", "quantize", "my net.py:model", "--seed", "3"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(latency, "ROUNDS", 5)
        out = tmp_path_factory.mktemp("report") / "out"
        return mb.auto_quantize(
            net, batches, target="packed", budget=mb.Budget(mean_bits=4), out=out, settings=settings
        )


@pytest.fixture(scope="module")
def page(run):
    return read_page((run.folder / "report.html").read_text())


@pytest.fixture
def copy(run, tmp_path):
    return shutil.copytree(run.folder, tmp_path / "copy")


def edit(folder, change):
    content = json.loads((folder / "result.json").read_text())
    change(content)
    (folder / "result.json").write_text(json.dumps(content))


def data_of(page):
    return json.loads(page.one("script", type="application/json").text)


def test_the_page_is_a_file_of_the_result(run, net):
    assert run.result.files["report.html"] == sha256(run.folder / "report.html")
    assert Result.load(run.folder) == run.result
    recheck(run.folder, model=net).check()


def test_the_page_needs_no_other_file_and_runs_no_script_but_its_own(run, page):
    text = (run.folder / "report.html").read_text()
    assert not re.search(r"https?:|//[a-z]|@import|url\(", text)
    addresses = [
        value
        for tag in ("img", "a", "link", "script", "iframe", "use")
        for element in page.all(tag)
        for name, value in element.attributes.items()
        if name in ("src", "href")
    ]
    assert addresses
    assert all(address.startswith("data:image/png;base64,") for address in addresses)
    policy = page.one("meta", **{"http-equiv": "Content-Security-Policy"}).attributes["content"]
    assert policy.startswith("default-src 'none'; img-src data:;")
    assert len(page.all("script")) == 2
    assert not [name for tag in page.all("body") for name in tag.attributes if name.startswith("on")]


def test_figures_of_the_networks_are_those_of_the_result(run, page):
    rows = {row[0]: row[1:] for row in table_of(page, "Figures of the networks")}
    result = run.result
    for part, cell in zip((result.float_, result.simulated, result.deployed), rows["accuracy"], strict=True):
        assert cell == f"{part['accuracy']:.2%}".replace("%", " %")
    wanted = [result.float_["weight_bytes"], result.deployed["predicted_bytes"], result.deployed["weight_bytes"]]
    assert [int(cell.replace(",", "")) for cell in rows["bytes of weights in layers"]] == wanted
    assert int(rows["bytes of the files"][2].replace(",", "")) == result.deployed["file_bytes"]
    assert rows["latency of one sample"][0] == f"{result.float_['latency_ms']:.3f} ms"
    assert number_of(rows["divergence from float, nats"][2]) == pytest.approx(result.deployed["divergence"], rel=5e-3)
    assert result.divergences.keys() == {"logits", "boxes"}
    for name, parts in result.divergences.items():
        first = next(row for row in table_of(page, "Figures of the networks") if row[0] == f"of output {name}")
        assert [number_of(cell) for cell in first[2:]] == pytest.approx([*parts.values()], rel=5e-3)
    assert sum(parts["deployed"] for parts in result.divergences.values()) == pytest.approx(
        result.deployed["divergence"]
    )


def test_layers_are_those_of_the_result_and_of_the_table(run, page):
    rows = table_of(page, "Layers")
    assert [row[1] for row in rows] == list(run.plan.layers)
    unit = {"thousandths": 1e-3, "millionths": 1e-6, "billionths": 1e-9}[
        re.search(r"Predicted losses are in (\w+)", page.text)[1]
    ]
    columns = run.table.columns(run.plan.layers)
    for index, (row, (name, layer)) in enumerate(zip(rows, run.result.layers.items(), strict=True)):
        scheme = run.plan.scheme(name)
        assert row[0] == str(index + 1)
        assert (row[2], row[3]) == (str(scheme.weight_bits), str(scheme.input.bits if scheme.input else "float"))
        assert int(row[4].replace(",", "")) == layer.weight_bytes
        loss, error = (float(part.replace(",", "")) * unit for part in row[5].split("±"))
        assert loss == pytest.approx(run.table.loss[index, columns[index]], rel=5e-3, abs=1e-3 * unit)
        assert error == pytest.approx(run.table.standard_error[index, columns[index]], rel=5e-3, abs=1e-3 * unit)
        assert row[7] == "float", "packed computes in float"


def test_every_point_of_the_slider_is_a_plan_of_that_price(run, page):
    data, table = data_of(page), run.table
    assert data["schemes"] == list(table.choices)
    assert [data["schemes"][choice] for choice in data["deployed"]] == list(run.plan.layers.values())
    choices = list(data["first"])
    for point, change in enumerate(data["changes"]):
        for layer, choice in zip(change[::2], change[1::2], strict=True):
            assert choices[layer] != choice
            choices[layer] = choice
        loss = sum(table.loss[layer, choice] for layer, choice in enumerate(choices))
        size = sum(table.usage["weight_bytes"][layer, choice] for layer, choice in enumerate(choices))
        away = 1.96 * sum(table.standard_error[layer, choice] ** 2 for layer, choice in enumerate(choices)) ** 0.5
        assert data["figures"]["loss"][point] == pytest.approx(loss, rel=1e-5)
        assert data["figures"]["weight_bytes"][point] == size
        assert data["figures"]["low"][point] == pytest.approx(loss - away, rel=1e-4, abs=1e-5 * loss)
        assert data["figures"]["high"][point] == pytest.approx(loss + away, rel=1e-5)
    assert point == len(data["x"]) - 1
    assert sorted(data["x"]) == data["x"]
    assert sorted(data["y"]) == data["y"]


def test_measured_plans_are_marked(run, page):
    names = [each.text for each in page.all("span") if each.attributes.get("class", "").split()[:1] == ["name"]]
    assert sorted(names) == sorted([*(row["scheme"] for row in run.result.uniform), "deployed"])


def test_samples_that_changed_are_shown_with_both_answers(run, page):
    assert run.result.changed
    items = [each for each in page.one("ol", **{"class": "samples"}).parts if not isinstance(each, str)]
    assert len(items) == len(run.result.changed)
    for item, sample in zip(items, run.result.changed, strict=True):
        assert f"Sample {sample.sample}, class {sample.label}" in item.text
        answers = [line.text.split()[0] for line in item.all("li")]
        change = sample.outputs["logits"]
        flips = change.float_[0].number != change.deployed[0].number
        assert (" nats, changed" in item.text) == flips
        assert answers == [str(guess.number) for guess in (*change.float_, *change.deployed)]


def test_classes_are_called_by_their_names(copy, run):
    names = [f"<{number}>" for number in range(10)]
    content = json.loads((copy / "result.json").read_text()) | {"classes": names}
    (copy / "result.json").write_text(json.dumps(content))
    page = read_page(rewrite_report(copy).read_text())
    items = [each for each in page.one("ol", **{"class": "samples named"}).parts if not isinstance(each, str)]
    for item, sample in zip(items, run.result.changed, strict=True):
        assert f"Sample {sample.sample}, {names[sample.label]}" in item.text
        answers = [line.text.split()[0] for line in item.all("li")]
        change = sample.outputs["logits"]
        assert answers == [names[guess.number] for guess in (*change.float_, *change.deployed)]


def test_the_page_says_how_to_make_the_run_again(run, page):
    code = [block.text for block in page.all("pre")]
    assert code[0] == "mixbit quantize 'my net.py:model' --seed 3"
    assert "budget=mb.Budget(mean_bits=4)," in code[1]
    assert "settings=Settings(seed=3)," in code[1]
    compile(code[1], "page", "exec")
    for name, digest in run.result.files.items():
        assert (digest in page.text) == (name != "report.html")
    for value in run.result.environment.values():
        assert value in page.text


def test_the_folder_alone_gives_the_same_page_again(copy, net, run):
    page = (copy / "report.html").read_text()
    (copy / "report.html").unlink()
    assert rewrite_report(copy) == copy / "report.html"
    assert (copy / "report.html").read_text() == page
    assert Result.load(copy) == run.result
    recheck(copy, model=net).check()


def test_an_older_folder_gets_a_page_too(copy, net):
    def make_older(result):
        for part in ("problems", "changed", "divergences", "command", "settings"):
            del result[part]
        del result["deployed"]["divergence"], result["files"]["report.html"]

    edit(copy, make_older)
    (copy / "report.html").unlink()
    rewrite_report(copy)
    page = read_page((copy / "report.html").read_text())
    assert "Whether it computes what was predicted, mixbit verify tells." in page.one("h1").text
    assert "Samples that changed most" not in page.text
    recheck(copy, model=net).check()


@pytest.mark.parametrize("name", ["result.json", "plan.json", "sensitivity.json"])
def test_a_newer_folder_is_refused_by_name_and_version(copy, name):
    content = json.loads((copy / name).read_text())
    (copy / name).write_text(json.dumps(content | {"version": 99}))
    if name != "result.json":
        edit(copy, lambda result: result["files"].update({name: sha256(copy / name)}))
    before = (copy / "report.html").read_text()
    with pytest.raises(InvalidInput, match=rf"{name}: .*version.*99"):
        rewrite_report(copy)
    assert (copy / "report.html").read_text() == before


@pytest.mark.parametrize("name", ["plan.json", "sensitivity.json", "check.safetensors", "model.safetensors"])
def test_a_file_that_has_changed_is_refused(copy, name):
    (copy / name).write_bytes((copy / name).read_bytes() + b" ")
    with pytest.raises((TargetMismatch, InvalidInput), match=name):
        rewrite_report(copy)


def test_files_of_different_runs_are_refused(tmp_path):
    write_folder(tmp_path / "out", random_table(["a", "b"]))
    Plan.load(tmp_path / "out" / "plan.json").model_copy(update={"layers": {"a": "w2a8", "b": "w4a8"}}).save(
        tmp_path / "out" / "plan.json"
    )
    edit(tmp_path / "out", lambda result: result["files"].update({"plan.json": sha256(tmp_path / "out" / "plan.json")}))
    with pytest.raises(InvalidInput, match=r"plan\.json is not the plan of result\.json"):
        rewrite_report(tmp_path / "out")
    with pytest.raises(InvalidInput, match=r"result\.json: cannot be read"):
        rewrite_report(tmp_path / "nothing")


def test_classes_are_named_where_they_have_names():
    changed = ChangedSample(sample=0, label=-1, divergence=1.0, outputs={})
    line = SampleLine(changed, "", ["cat", "</li>"])
    assert [line.name_of(number) for number in (-1, 0, 1, 2)] == ["-1", "cat", "</li>", "2"]


@pytest.mark.parametrize(("times", "told"), [(2.9, False), (32.4, True)])
def test_a_loss_far_beyond_the_predicted_one_is_told(tmp_path, times, told):
    table = random_table(["a", "b"])
    predicted = table.loss[:, 1].sum()
    write_folder(tmp_path / "out", table, simulated={"accuracy": 0.5, "divergence": times * predicted})
    text = read_page(rewrite_report(tmp_path / "out").read_text()).text
    assert ("loses 32 times what was predicted" in text) == told
    assert ("predictions rank plans" in text) == told


def test_a_plan_that_was_not_searched_for_has_no_front(tmp_path):
    write_folder(tmp_path / "out", random_table(["a", "b"]), with_table=False)
    page = read_page(rewrite_report(tmp_path / "out").read_text())
    assert "there is no front" in page.text
    assert len(page.all("script")) == 1
    assert [row[:3] for row in table_of(page, "Layers")] == [["1", "a", "4"], ["2", "b", "4"]]


def test_a_file_that_does_not_match_is_said_first(tmp_path):
    problem = "outputs differ by 18.4% of their spread (allowed 3%)"
    write_folder(tmp_path / "out", random_table(["a"]), problems=[problem])
    page = read_page(rewrite_report(tmp_path / "out").read_text())
    assert page.one("h1").text.endswith("but it does not compute what was predicted: do not use it.")
    assert problem in page.one("header").text
    assert "does not match" in page.one("dl", **{"class": "keys"}).text


def test_no_text_of_a_folder_becomes_markup_or_code(tmp_path):
    table = dataclasses.replace(random_table(NAMES), verdict=HOSTILE)
    changed = [
        {"sample": 0, "label": None, "divergence": 1.0, "outputs": {HOSTILE: {"differing": 0.5}, "b": {"distance": 2}}}
    ]
    result = write_folder(
        tmp_path / "out",
        table,
        model=HOSTILE,
        chosen=HOSTILE,
        task=HOSTILE,
        problems=[HOSTILE],
        outputs={HOSTILE: 1.0, "b": 2.0},
        divergences={HOSTILE: {"simulated": 1.0}, "b": {}},
        changed=changed,
        uniform=[{"scheme": HOSTILE, "predicted_bytes": 3.0, "divergence": 1.0}],
        uncovered=[
            dict.fromkeys(("name", "kind", "reason"), HOSTILE)
            | {"weight_bytes": 1, "weight_share": 0.5, "macs": None, "macs_share": None, "num_weights": 0}
        ],
        seconds={HOSTILE: 1.0},
        environment={HOSTILE: HOSTILE},
        command=["mixbit", HOSTILE, "; rm -rf x"],
        settings={HOSTILE: 1, "x); import os; (": 2, "pins": {HOSTILE: HOSTILE}},
    )
    text = page_of(tmp_path / "out", result)
    page = read_page(text)
    assert len(page.all("script")) == 2
    assert page.all("img") == []
    names = {name for tag in ("b", "th", "p", "li", "span") for each in page.all(tag) for name in each.attributes}
    assert not [name for name in names if name.startswith("on")]
    assert data_of(page)["layers"] == list(NAMES)
    assert not re.search("[\x00-\x08\x0b-\x1f\u202e]", text)
    assert [row[1] for row in table_of(page, "Layers")][:4] == list(NAMES[:4])
    command, python = (block.text for block in page.all("pre"))
    assert command == f"mixbit '{HOSTILE}' '; rm -rf x'"
    assert "import os" not in python
    compile(python, "page", "exec")


def test_a_large_network_has_a_small_page_in_little_time(tmp_path):
    table = random_table([f"encoder.layers.{index}.attention.output.weight" for index in range(1000)])
    table.save(tmp_path / "table.json")
    result = write_folder(tmp_path / "out", table)
    began = time.process_time()
    text = page_of(tmp_path / "out", result)
    assert time.process_time() - began < 20
    assert len(text) < 1_500_000
    page = read_page(text)
    assert 100 < len(data_of(page)["x"]) <= 240
    assert len(table_of(page, "Layers")) == 1000


def test_a_single_plan_has_no_slider(tmp_path):
    table = random_table(["a", "b"])
    loss = np.where(np.arange(3) == 1, table.loss, np.inf)
    table = dataclasses.replace(table, loss=loss)
    page = read_page(page_of(tmp_path / "out", write_folder(tmp_path / "out", table)))
    assert "so this is the only plan" in page.text
    assert len(table_of(page, "Layers")) == 2


def test_weights_that_stay_in_float_count_in_the_first_words_as_in_the_slider(tmp_path):
    table = random_table(["a", "b"])
    table = dataclasses.replace(table, uncovered=1000)
    left = [{"name": "codes", "kind": "parameter", "reason": "read by sub", "num_weights": 1000, "weight_bytes": 4000}]
    result = write_folder(tmp_path / "out", table, uncovered=left)
    page = read_page(page_of(tmp_path / "out", result))
    share = (table.usage["weight_bytes"][:, 1].sum() + 4000) / (4 * table.numel.sum() + 4000)
    figures = data_of(page)["figures"]
    assert figures["weight_ratio"][data_of(page)["start"]] == pytest.approx(share, rel=1e-5)
    assert f"the weights in {100 * share:.3g} % of their size" in page.text
    assert f"{100 * share:.2f} % of float; 4.00 kB stay in float" in page.text


def test_losses_in_another_unit_are_not_beside_measured_nats(tmp_path):
    table = dataclasses.replace(random_table(["a", "b"]), metric="output_error")
    uniform = [{"scheme": "w4a8", "predicted_bytes": 3.0, "divergence": 1.0}]
    page = read_page(page_of(tmp_path / "out", write_folder(tmp_path / "out", table, uniform=uniform)))
    assert "in the unit of output_error" in page.text
    assert not [each for each in page.all("span") if each.attributes.get("class", "").startswith("mark")]


def test_losses_below_zero_and_single_samples_are_drawn(tmp_path):
    table = random_table(["a", "b", "c"])
    loss = np.where(table.loss < 1e-4, -table.loss, table.loss) - 1e-3
    table = dataclasses.replace(table, loss=loss, standard_error=np.full_like(loss, np.inf), num_samples=1)
    page = read_page(page_of(tmp_path / "out", write_folder(tmp_path / "out", table)))
    data = data_of(page)
    assert "low" not in data["figures"]
    assert all(0 <= value <= 100 for value in (*data["x"], *data["y"]))
    assert Sensitivity.load(tmp_path / "out" / "sensitivity.json").num_samples == 1


def test_settings_are_noted_as_json_has_them():
    def score(*_):
        return 0.0

    noted = Settings(rounding="gptq", pins={"a": "w8a8"}, choices=("w4a8",), score=score, model="m").noted()
    assert noted == {"choices": ["w4a8"], "rounding": "gptq", "pins": {"a": "w8a8"}, "score": None, "seed": 0}
    data = [(torch.ones(2), torch.ones(2)), (torch.ones(2), torch.ones(2))]
    assert Settings(train_batches=data, pins={}).noted() == {"train_batches": None, "seed": 0}
    assert Settings(task=Task.regression()).noted() == {"task": "regression", "seed": 0}
    assert Settings(task=Task.regression().weighted({"output": 2.0})).noted() == {"task": None, "seed": 0}
