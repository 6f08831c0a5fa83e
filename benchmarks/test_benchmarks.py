"""The networks and the data of the benchmarks, and the script that trains the demo's network: `pytest benchmarks`.

`make test` leaves them out, as no user runs the scripts. Tests that need data or weights skip where `paths` finds none.
"""

from pathlib import Path
from zipfile import ZipFile

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import mixbit as mb
from benchmarks import cifar, paths, qat_resnet20, resnet20, resnet20_table, resnet50, train_digits
from mixbit.core.batches import split_batch
from mixbit.core.errors import InvalidInput
from mixbit.demo import data as digits
from mixbit.demo.network import DigitsNet, trained
from mixbit.graph import Graph
from mixbit.graph.evaluate import Evaluation, Reference, evaluate
from mixbit.quantization.calibrate import calibrate


def found(variable: str) -> Path:
    path = paths.find(variable)
    if path is None:
        pytest.skip(f"{variable} is not set and {paths.DEFAULTS[variable]} does not exist")
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Ten grey JPEG images, one a class, the shade 20 x the class."""
    for label, name in enumerate(cifar.CLASSES):
        place = tmp_path / "images" / "test" / name
        place.mkdir(parents=True)
        Image.fromarray(np.full((32, 32, 3), 20 * label, dtype=np.uint8)).save(place / "0000.jpg")
    return tmp_path / "images"


def test_load_images_reads_a_folder_and_a_zip_alike(folder: Path) -> None:
    with ZipFile(folder.parent / "images.zip", "w") as archive:
        for path in sorted(folder.rglob("*.jpg"), reverse=True):
            archive.write(path, path.relative_to(folder))
    images, labels = cifar.load_images(folder, "test")
    assert (images.shape, images.dtype, labels.dtype) == ((10, 3, 32, 32), torch.uint8, torch.int64)
    assert labels.tolist() == list(range(10)), "classes in alphabetical order"
    assert (images.float().mean((1, 2, 3)) - 20 * labels).abs().max() < 2
    again, same = cifar.load_images(folder.parent / "images.zip", "test")
    assert torch.equal(images, again)
    assert torch.equal(labels, same)


def test_limit_draws_by_the_seed(folder: Path) -> None:
    draws = [cifar.load_images(folder, "test", limit, seed)[1].tolist() for limit, seed in ((8, 0), (8, 0), (5, 0))]
    assert draws[0] == draws[1]
    assert draws[0][:5] == draws[2]
    assert len(set(draws[0])) == 8
    assert draws[0] != cifar.load_images(folder, "test", 8, 1)[1].tolist()


def test_load_images_refuses_what_is_not_there(folder: Path) -> None:
    with pytest.raises(InvalidInput, match="train/<class>"):
        cifar.load_images(folder, "train")
    with pytest.raises(InvalidInput, match=r"limit 11: .* 1\.\.10"):
        cifar.load_images(folder, "test", 11)


def test_batches_are_normalised_by_channel() -> None:
    images = torch.randint(256, (5, 3, 32, 32), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    parts = cifar.batches(images, torch.arange(5), 2)
    assert [labels.tolist() for _, labels in parts] == [[0, 1], [2, 3], [4]]
    for channel in range(3):
        expected = (images[4, channel].double() / 255 - cifar.MEAN[channel]) / cifar.STD[channel]
        torch.testing.assert_close(parts[2][0][0, channel].double(), expected, atol=1e-5, rtol=0)


def test_augmented_images_are_shifted_flipped_and_keep_their_labels() -> None:
    values = torch.arange(1.0, 101)
    data = qat_resnet20.Augmented(values.reshape(-1, 1, 1, 1) * torch.linspace(1, 2, 32).expand(100, 3, 32, 32), values)
    assert len(data) == len(list(data)) == 2
    torch.manual_seed(0)
    images, labels = (torch.cat(parts) for parts in zip(*data, strict=True))
    assert sorted(labels.tolist()) == values.tolist()
    assert images.shape == (100, 3, 32, 32)
    assert not torch.equal(labels, values)
    brightest = images.amax((1, 2, 3)) / labels
    assert ((brightest > 1.8) & (brightest <= 2)).all()  # at most four columns are cut off
    left_to_right = images[:, 0, 16, 4] < images[:, 0, 16, 27]
    assert 30 < left_to_right.sum() < 70


def test_paths_prefer_the_environment(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MIXBIT_CIFAR10", str(tmp_path))
    assert paths.find("MIXBIT_CIFAR10") == tmp_path
    monkeypatch.setenv("MIXBIT_CIFAR10", str(tmp_path / "none"))
    with pytest.raises(InvalidInput, match="MIXBIT_CIFAR10"):
        paths.find("MIXBIT_CIFAR10")


def test_paths_without_environment_or_default(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.delenv("MIXBIT_RESNET20", raising=False)
    monkeypatch.setitem(paths.DEFAULTS, "MIXBIT_RESNET20", tmp_path / "none")
    assert paths.find("MIXBIT_RESNET20") is None
    with pytest.raises(InvalidInput, match="set MIXBIT_RESNET20"):
        paths.require("MIXBIT_RESNET20")


def test_resnet20_loads_its_weights() -> None:
    network = resnet20.load(found("MIXBIT_RESNET20"))
    assert not network.training
    assert sum(parameter.numel() for parameter in network.parameters()) == 269_722
    assert network(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


@torch.no_grad()
def test_resnet20_is_accurate() -> None:
    network = resnet20.load(found("MIXBIT_RESNET20"))
    images, labels = cifar.load_images(found("MIXBIT_CIFAR10"), "test", 500, 0)
    correct = [network(part).argmax(1) == classes for part, classes in cifar.batches(images, labels, 100)]
    assert torch.cat(correct).double().mean() > 0.85


def test_resnet20_keeps_its_accuracy_and_the_search_beats_uniform_widths() -> None:
    network, source = resnet20.load(found("MIXBIT_RESNET20")), found("MIXBIT_CIFAR10")
    pairs = [split_batch(batch) for batch in cifar.batches(*cifar.load_images(source, "train", 128, 0), 64)]
    test = [split_batch(batch) for batch in cifar.batches(*cifar.load_images(source, "test", 4000, 0), 250)]
    graph = mb.capture(network, pairs[0][0].args)
    calibration = calibrate(graph, [inputs for inputs, _ in pairs])
    data, task = resnet20_table.Data(graph, pairs, test, calibration), resnet20_table.TASK

    in_float = Reference.recorded(graph, task)

    def run(graph: Graph) -> Evaluation:
        return evaluate(graph, test, task, "evaluate", diverging_from=in_float)

    int8, searched = (resnet20_table.plan_for(data, "packed", mean_bits) for mean_bits in (None, 3))
    assert set(int8.layers.values()) == {"w8a8"}
    assert searched.predicted["mean_bits"] <= 3
    uniform = int8.model_copy(update={"layers": dict.fromkeys(int8.layers, "w3a8")})
    reference = run(graph)
    with_8, with_3, with_3_each = (run(mb.quantize(graph, plan, calibration)) for plan in (int8, searched, uniform))
    assert with_8.accuracy >= reference.accuracy - 0.01
    assert with_3.accuracy >= reference.accuracy - 0.05
    assert with_3.accuracy > with_3_each.accuracy
    assert with_3.divergence < 0.75 * with_3_each.divergence


@torch.no_grad()
def test_random_resnet50_is_sane_and_seeded() -> None:
    state = torch.random.get_rng_state()
    network = resnet50.random_resnet50(0)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert not network.training
    assert sum(parameter.numel() for parameter in network.parameters()) == 25_557_032
    images = torch.randn(2, 3, 128, 128, generator=torch.Generator().manual_seed(1))
    logits = network(images)
    assert logits.shape == (2, 1000)
    assert 0.1 < logits.std() < 10
    assert torch.equal(logits, resnet50.random_resnet50(0)(images))
    assert not torch.equal(logits, resnet50.random_resnet50(1)(images))


def assert_equal_weights(a: DigitsNet, b: DigitsNet) -> None:
    assert all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def test_training_twice_gives_equal_weights() -> None:
    num_threads, state = torch.get_num_threads(), torch.random.get_rng_state()
    first = train_digits.train(num_epochs=1)
    assert torch.get_num_threads() == num_threads
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.rand(1)
    assert_equal_weights(first, train_digits.train(num_epochs=1))
    assert not torch.equal(first.linear.weight, train_digits.train(num_epochs=1, seed=1).linear.weight)


def test_script_writes_what_train_returns(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr("sys.argv", ["train", "--out", str(tmp_path / "new"), "--epochs", "1"])
    train_digits.main()
    network = DigitsNet()
    network.load_state_dict(load_file(tmp_path / "new" / "digits_net.safetensors"))
    assert_equal_weights(network, train_digits.train(num_epochs=1))
    assert "test accuracy" in capsys.readouterr().out


def test_shift_moves_by_at_most_one_pixel_and_fills_with_background() -> None:
    images = digits.images_and_labels()[0][:200]
    moved = train_digits.shift(images, torch.Generator().manual_seed(0))
    seen = set()
    for image, result in zip(images.numpy(), moved.numpy(), strict=True):
        padded = np.pad(image, 1)
        matches = [(i, j) for i in range(3) for j in range(3) if (padded[i : i + 8, j : j + 8] == result).all()]
        assert matches
        seen.update(matches)
    assert len(seen) == 9


def test_accuracy_is_the_share_of_right_answers() -> None:
    network = trained()
    correct = [network(images).argmax(1) == labels for images, labels in digits.test_batches()]
    assert train_digits.accuracy(network, digits.test_batches()) == pytest.approx(
        torch.cat(correct).double().mean().item()
    )
