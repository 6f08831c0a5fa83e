"""What a newcomer does: install the wheel, run the demo, quantize a network, run its file without mixbit."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mixbit.demo import data
from mixbit.demo.network import trained

ROOT = Path(__file__).parents[1]
PICTURES = 240
#: Reads pictures as the README of the folder says, runs its lines on them, and prints the share of right answers.
PROGRAM = """
import pathlib
import numpy as np
from PIL import Image
paths = sorted(pathlib.Path("../pictures").glob("*/*.png"))
pictures = np.stack([np.array(Image.open(path), "float32")[None] for path in paths])
pictures = (pictures / 255 - {mean}) / {std}
{lines}
labels = [int(path.parent.name) for path in paths]
print((outputs["logits"].argmax(1) == labels).mean())
"""


def run(folder: Path, *words: object) -> str:
    """What a program prints; a failure shows what it said."""
    done = subprocess.run(list(map(str, words)), cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def write_pictures(folder: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    images, labels = data.images_and_labels()
    for number in range(PICTURES):
        place = folder / str(int(labels[number]))
        place.mkdir(parents=True, exist_ok=True)
        pixels = (images[number].float() * (255 / 16)).round().to(torch.uint8)
        image.fromarray(pixels.numpy()).save(place / f"{number:03}.png")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_from_the_wheel_to_a_file_in_a_program_of_ones_own(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    run(tmp_path, sys.executable, "-m", "venv", "venv")
    python, mixbit = tmp_path / "venv/bin/python", tmp_path / "venv/bin/mixbit"
    run(ROOT, python, "-m", "pip", "wheel", "-q", "--no-deps", "-w", tmp_path / "dist", ".")
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    run(ROOT, python, "-m", "pip", "install", "-q", "-c", "constraints.txt", f"{wheel}[onnxruntime,images]")
    assert "onnxruntime" in run(tmp_path, mixbit, "demo")
    write_pictures(tmp_path / "pictures")
    torch.onnx.export(
        trained(),
        (torch.zeros(2, 1, 8, 8),),
        tmp_path / "net.onnx",
        input_names=["pixels"],
        output_names=["logits"],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
    )
    normalise = ("--mean", data.MEAN, "--std", data.STD)
    words = ("net.onnx", "--data", "pictures", *normalise, "--target", "onnxruntime", "--budget", "mean_bits=4")
    assert "QLinearConv int8" in run(tmp_path, mixbit, "quantize", *words, "--out", "small")
    readme = (tmp_path / "small/README.md").read_text(encoding="utf-8")
    assert f"minus {data.MEAN:.6g}, divided by {data.STD:.6g}" in readme
    (lines,) = re.findall(r"```python\n(.*?)```", readme, flags=re.DOTALL)
    lines, count = re.subn(r"np\.zeros\(.*?'float32'\)", "pictures.astype('float32')", lines)
    assert count == 1
    assert len(lines.strip().splitlines()) <= 10
    program = PROGRAM.format(mean=data.MEAN, std=data.STD, lines=lines)
    assert float(run(tmp_path / "small", python, "-c", program)) >= 0.97
