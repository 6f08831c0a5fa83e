"""MODEL and DATA in the forms that people have, through the command line."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from mixbit.targets import latency

CODE = """
import torch
from torch import nn

def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)).eval()
"""


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    """Latencies are taken from few rounds."""
    monkeypatch.setattr(latency, "ROUNDS", 5)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A network, and folders of pictures of two classes: red ones and green ones."""
    folder = tmp_path_factory.mktemp("user")
    (folder / "net.py").write_text(CODE)
    for part, classes in (("data", ("cat", "dog")), ("test", ("dog",))):
        for number in range(16 * len(classes)):
            name = classes[number // 16]
            pixels = np.random.default_rng(number).integers(0, 60, (8, 10, 3), dtype=np.uint8)
            pixels[..., name == "dog"] += 150
            (folder / part / name).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(folder / part / name / f"{number:02}.png")
    return folder


def pixels_of(folder):
    """Pictures in the order of their paths, and the classes of both sets by name."""
    paths = sorted(folder.rglob("*.png"))
    images = np.stack([np.asarray(Image.open(path)) for path in paths]).transpose(0, 3, 1, 2)
    return images, np.array([path.parent.name for path in paths])


def test_pictures_arrays_and_a_function_give_the_same_figures(place, run, tmp_path):
    """The evaluation data holds one class alone, whose number is that in the calibration data."""
    for part in ("data", "test"):
        images, names = pixels_of(place / part)
        np.savez(tmp_path / f"{part}.npz", input=images, labels=np.array(names))
    code = tmp_path / "batches.py"
    code.write_text(
        "import numpy, torch\n"
        f"def test():\n    held = numpy.load({str(tmp_path / 'test.npz')!r})\n"
        "    yield torch.from_numpy(held['input']) / 255, torch.ones(len(held['input']), dtype=torch.long)\n"
    )
    ways = {
        "pictures": (place / "data", place / "test"),
        "arrays and a function": (tmp_path / "data.npz", f"{code}:test"),
    }
    results = {}
    for name, (data, test) in ways.items():
        words = ["quantize", f"{place}/net.py:model", "--data", data, "--eval", test, "--target", "packed"]
        words += ["--budget", "mean_bits=5", "--out", tmp_path / name.replace(" ", "-"), "--mean", "0", "--std", "1"]
        status, out, err = run(*words, "--batch-size", 8, "--samples", 24, "--seed", 3, "--json")
        assert status == 0, err
        results[name] = json.loads(out)
        assert ("--batch-size, --mean, --std: not used for file.py:function" in err) == ("function" in name)
        size = len(pixels_of(place / "data")[0])
        assert f"--data {data}: {size} samples in {len(set(pixels_of(place / 'data')[1]))} classes (" in err
        assert ", divided by 255, minus 0, divided by 1\n" in err
    wanted = results["pictures"]
    assert wanted["float"]["accuracy"] in (0.0, 1.0), "all are of one class"
    names = sorted(set(pixels_of(place / "data")[1]))
    for name, result in results.items():
        assert result["classes"] == names, name
        readme = (tmp_path / name.replace(" ", "-") / "README.md").read_text(encoding="utf-8")
        assert "The 2 classes, from 0 on: `cat`, `dog`." in readme
        page = (tmp_path / name.replace(" ", "-") / "report.html").read_text(encoding="utf-8")
        for sample in result["changed"]:
            assert f"Sample {sample['sample']}, {result['classes'][sample['label']]} " in page
        assert result["changed"]
        assert result["layers"] == wanted["layers"], name
        assert result["float"]["accuracy"] == wanted["float"]["accuracy"], name


def test_measure_and_study_take_them_too(place, run, tmp_path):
    words = [f"{place}/net.py:model", "--data", place / "data", "--target", "packed", "--choices", "w8a8,w2a8"]
    status, out, err = run("measure", *words, "--batch-size", 8, "--out", tmp_path / "table.json", "--json")
    assert status == 0, err
    assert json.loads(out)["num_samples"] == 32
    words += ["--eval", place / "data", "--plans", 3, "--metrics", "weight_error", "--processes", 1]
    status, _, err = run("study", *words, "--batch-size", 8, "--out", tmp_path / "study", "--json")
    assert status == 0, err


def test_training_on_pictures(place, run, tmp_path):
    words = ["quantize", f"{place}/net.py:model", "--data", place / "data", "--target", "packed", "--choices", "w4a8"]
    words += ["--budget", "mean_bits=8", "--flavour", "qat", "--epochs", 1, "--train", place / "data"]
    status, _, err = run(*words, "--out", tmp_path / "out")
    assert status == 0, err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--image-size", "32"], "--image-size 32: is not understood; write HxW, as 224x224"),
        (["--image-size", "0x4"], "--image-size (0, 4): give a height and a width from 1"),
        (["--mean", "a,b"], "--mean a,b: is not understood; write numbers, as 0.485,0.456,0.406"),
        (["--std", "nan"], "--std nan: is not understood"),
        (["--std", "0"], "give finite numbers above 0"),
        (["--mean", "0,0"], "--mean or --std is of pictures of 2 channels; pictures have 1, 3 or 4"),
    ],
)
def test_options_that_are_not_understood(words, message, place, run, tmp_path):
    known = ["measure", f"{place}/net.py:model", "--data", place / "data", "--target", "packed"]
    status, _, err = run(*known, *words, "--out", tmp_path / "table.json")
    assert status == 2
    assert message in err


def test_a_folder_of_hugging_face_tells_its_task_and_is_remembered(run, tmp_path, monkeypatch):
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=32, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    torch.manual_seed(0)
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path / "net")
    ids = np.random.default_rng(0).integers(0, 32, (12, 6))
    np.savez(tmp_path / "data.npz", input_ids=ids, labels=ids)
    monkeypatch.chdir(tmp_path)
    words = ["quantize", "net", "--data", "data.npz", "--target", "packed", "--budget", "mean_bits=8", "--out", "out"]
    status, out, err = run(*words, "--batch-size", 3, "--json")
    assert status == 0, err
    result = json.loads(out)
    assert (result["task"], result["model"]) == ("language", str(tmp_path / "net"))
    status, _, err = run("verify", "out", "--model", "net")
    assert status == 0, err
