"""Proof that a change keeps what mixbit computes: what the command line writes before it and after it, compared.

    python -m benchmarks.same_outputs record before.json            # some ten minutes on two cores
    python -m benchmarks.same_outputs compare before.json after.json
    python -m benchmarks.same_outputs verify-old before.folders     # folders written before still verify, tables load

`record` runs every case, two at a time, each command in a fresh process of one thread. It keeps the figures of all JSON
files (but times, paths and what names a machine or the package's source), the SHA-256 of all other files, exit codes
and errors; the folders of a few cases stay beside the recording. `compare` prints for each case whether all is equal
bit by bit, or the largest relative difference, and ends with 1 where one is above 1e-6 or a text or a file differs.
`--only NAME` takes the cases whose names begin so, in either; the others stay in a recording as they are.

Nothing of mixbit is used but its command line and what it writes, so that one file serves old checkouts and new ones;
to record an old one, copy this file into its benchmarks/. Run it from the folder that holds benchmarks/. The first
recording of a folder takes images, text and weights from `MIXBIT_CIFAR10`, `MIXBIT_RESNET20` and `MIXBIT_TEXT` (by
default from the folder `shared` beside the repository), trains a small language model, and leaves all that the cases
read in `same_inputs.safetensors` there.
"""

import argparse
import hashlib
import importlib
import importlib.util
import io
import json
import math
import multiprocessing
import os
import re
import shlex
import shutil
import sys
import time
import zipfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks import resnet20

SHARED = Path(__file__).resolve().parents[2] / "shared"
INPUTS = "MIXBIT_SAME_INPUTS"
PROCESSES = 2
#: Largest relative difference of two figures that `compare` accepts.
TOLERANCE = 1e-6
#: In the place of a figure that one recording lacks.
MISSING = "missing"
#: Parts of JSON files that differ from run to run, or that a change of source alone changes.
LEFT_OUT = {
    "seconds", "latency_ms", "default_latency_ms", "latency_ratio", "peak_mb", "environment", "files", "digest", "code",
}  # fmt: skip
#: What takes long to import: imported once, in the process that all others are forked from.
PRELOADED = (
    "torch._dynamo", "torch._functorch.aot_autograd", "torch.onnx._internal.exporter._core", "onnx", "onnxscript",
    "onnx_ir", "scipy.optimize", "scipy.stats", "pydantic", "typer", "rich",
)  # fmt: skip

HERE = "benchmarks/same_outputs.py"
DIGITS = f"examples/digits.py:model --data {HERE}:digits"
RESNET = f"{HERE}:resnet --data {HERE}:images --eval {HERE}:test_images"
LANGUAGE = f"{HERE}:language --data {HERE}:text --task language"
PIXELS = f"{HERE}:pixels --data {HERE}:fields --task segmentation"
ON_DIGITS, ON_TEXT = f"--eval {HERE}:test_digits", f"--eval {HERE}:test_text"
MIXED = "--choices w2a4,w3a8,w4a4,w4a8,w6a8,w8a8,w8a16"
METRICS = (
    "fisher,fit,fit_w,fit_a,fit_error,hawq:vectors=2,weight_error,weight_error_absolute,weight_error_relative,"
    "output_error,noise_to_signal,modelopt,autoround,measured,measured_loss"
)
RANGES = "mse min_max moving_average percentile percentile:share=0.99 entropy"
BUDGETS = (
    "weight_bytes=30000 weight_ratio=0.12 mean_bits=3.3 bit_ops=2.5e7 bit_ops_ratio=2 bit_complexity_ratio=1.5 "
    "activation_bytes=7000"
)
METHODS = "greedy uniform mixquant mixquant:criterion=absolute mixquant:criterion=budgeted mixquant:multiplier=1000"


def _each(words: str, command: str) -> str:
    """The command once a word, in the place of WORD; NUMBER counts them."""
    return "\n".join(command.replace("WORD", one).replace("NUMBER", str(i)) for i, one in enumerate(words.split()))


#: Case -> commands, one a line; OUT is a folder of the case, CONFIGS that of the configurations below.
CASES = {
    "digits-openvino": """
        quantize examples/digits.py:model --data examples/digits.py:calibration --eval examples/digits.py:test \
            --target openvino --budget mean_bits=3 --out OUT/a
        verify OUT/a --json
        bench OUT/a --batch 1 --json""",
    "digits-onnxruntime": f"""
        quantize {DIGITS} {ON_DIGITS} --target onnxruntime --budget weight_ratio=0.15 --budget bit_ops_ratio=1.5 \
            --pin conv.weight=w8a8 --pin 'block1.*=w4a8' --out OUT/a --json
        verify OUT/a --json
        bench OUT/a --batch 1 --json""",
    "digits-packed": f"""
        quantize {DIGITS} --target packed {MIXED} --budget activation_bytes=7000 --budget weight_bytes=25000 \
            --search greedy --bias-correction sequential --out OUT/a
        quantize {DIGITS} --target packed --choices w3t,w4z,w4g8,w8a16,float16,bfloat16 --budget mean_bits=5 \
            --metric noise_to_signal --bias-correction off --out OUT/b
        quantize {DIGITS} --target packed --nncf-config CONFIGS/manual.json --out OUT/manual""",
    "digits-roundings": f"""
        quantize {DIGITS} --target packed --choices w2a8,w3a8,w4a8 --budget mean_bits=2.5 \
            --rounding gptq:order=natural --out OUT/gptq
        quantize {DIGITS} --target packed --choices w2a8,w4a8 --budget mean_bits=3 --rounding adaround:iterations=20 \
            --seed 1 --out OUT/adaround
        quantize {DIGITS} --target packed {MIXED} --budget mean_bits=3 --budget activation_bytes=7000 \
            --rounding brecq:iterations=40 --out OUT/brecq""",
    "digits-sparse": f"""
        quantize {DIGITS} {ON_DIGITS} --target onnxruntime --choices w8a8@2:4,w4a8@50%,w4a8 --importance fisher \
            --budget weight_ratio=0.14 --pin conv.weight=w8a8 --out OUT/a
        quantize {DIGITS} --target packed --choices w8a8@2:4,w8a8 --budget weight_ratio=0.2 --rounding gptq \
            --out OUT/b""",
    "digits-qat": f"""
        quantize {DIGITS} {ON_DIGITS} --target onnxruntime --budget mean_bits=2.5 --flavour qat --epochs 1 \
            --train {HERE}:test_digits --lr 0.001 --out OUT/a
        verify OUT/a --json
        quantize {DIGITS} --target packed {MIXED} --budget mean_bits=3 --budget activation_bytes=7000 \
            --flavour qat --epochs 2 --out OUT/b""",
    "digits-trials": f"""
        quantize {DIGITS} {ON_DIGITS} --target packed --max-drop 1% --out OUT/drop
        quantize {DIGITS} --target packed --budget mean_bits=3.5 --search autoq:episodes=5,warmup=2 --warm-start \
            --score {HERE}:score --eval-subset-ratio 0.5 --seed 3 --out OUT/warm""",
    "digits-searches": f"""
        measure {DIGITS} --target packed {MIXED} --loss {HERE}:loss --out OUT/table.json
        measure {DIGITS} --target packed --choices w2a8,w4a8,w8a8 --metric hawq:vectors=2,rule=nncf --out OUT/hawq.json
        {_each(BUDGETS, "search OUT/table.json --budget WORD --out OUT/ilp-NUMBER.json")}
        {_each(METHODS, "search OUT/table.json --method WORD --budget mean_bits=4 --out OUT/table-NUMBER.json")}
        search OUT/hawq.json --method hawq --budget mean_bits=4 --out OUT/liberal.json
        search OUT/hawq.json --method hawq:assignment=strict --budget mean_bits=4 --out OUT/strict.json
        search OUT/table.json --budget mean_bits=4 --budget bit_ops_ratio=2.5 --out OUT/both.json
        search OUT/table.json --budget mean_bits=4 --pin 'block2.*=w4a8' --pin linear.weight=w8a8 --out OUT/pin.json
        front OUT/table.json --out OUT/front.json
        front OUT/table.json --resource bit_ops --pin conv.weight=w8a8 --out OUT/front-ops.json --json
        front OUT/hawq.json --resource mean_bits --points 10 --out OUT/front-bits.json
        search OUT/front.json --budget weight_bytes=30000 --out OUT/from-front.json""",
    "digits-study": f"""
        study {DIGITS} {ON_DIGITS} --target packed --choices w2a8,w4a4,w8a8 --plans 20 --near-budget mean_bits=4 \
            --metrics {METRICS} --processes 1 --out OUT/a""",
    "resnet-packed": f"""
        quantize {RESNET} --target packed --choices w3a8,w4a4,w8a8 --budget weight_bytes=140000 \
            --budget bit_ops_ratio=1.5 --out OUT/a
        verify OUT/a --json""",
    "resnet-onnxruntime": f"""
        quantize {RESNET} --target onnxruntime --choices w2a8,w4a8 --budget mean_bits=3 --rounding gptq --out OUT/a
        verify OUT/a --json""",
    "resnet-openvino": f"""
        quantize {RESNET} --target openvino --choices w2a8,w3a8,w8a8 --budget mean_bits=2.5 \
            --rounding brecq:iterations=10 --out OUT/a
        verify OUT/a --json""",
    "language-dynamic": f"""
        quantize {LANGUAGE} {ON_TEXT} --target onnxruntime --flavour dynamic --budget weight_ratio=0.28 --out OUT/onnx
        quantize {LANGUAGE} --target openvino --flavour dynamic --budget weight_ratio=0.28 --out OUT/openvino
        quantize {LANGUAGE} --target packed --flavour dynamic --choices w4a8dr,w8a8dr --budget mean_bits=6 \
            --out OUT/packed""",
    "language-groups": f"""
        quantize {LANGUAGE} {ON_TEXT} --target onnxruntime --choices w4g32,w8,float16 --budget mean_bits=5 \
            --out OUT/onnx
        quantize {LANGUAGE} --target openvino --choices w4g32z,w8,float16 --budget mean_bits=5 --out OUT/openvino
        quantize {LANGUAGE} {ON_TEXT} --target packed --choices w3g32,w4g16z,w8 --budget mean_bits=4 \
            --rounding gptq --out OUT/packed""",
    "language-static": f"""
        quantize {LANGUAGE} {ON_TEXT} --target onnxruntime --choices w3a8,w4a8,w8a8 --budget mean_bits=5 --metric fit \
            --rounding brecq:iterations=10,fisher=true --out OUT/a""",
    "language-study": f"""
        study {LANGUAGE} {ON_TEXT} --target packed --choices w3a8,w8a8 --plans 4 --processes 1 --out OUT/a \
            --metrics fisher,fit,modelopt,autoround,output_error,measured_loss""",
    "pixels": f"""
        quantize {PIXELS} --target openvino --budget mean_bits=4 --equalize --out OUT/equalized
        quantize {PIXELS} --target onnxruntime --budget mean_bits=4 --budget latency_ms=1000 --reestimate-bn \
            --bias-correction sequential --out OUT/sequential
        quantize {PIXELS} --target packed --choices w4a4,w8a8 --budget weight_ratio=0.4 --equalize --reestimate-bn \
            --search uniform --out OUT/packed
        measure {PIXELS} --target onnxruntime --task regression --out OUT/regression.json""",
    "pixels-pruned": f"""
        quantize {PIXELS} --target onnxruntime --budget mean_bits=5 --prune-channels 0.3 --flavour qat --epochs 1 \
            --out OUT/a""",
    "pixels-ranges": _each(
        RANGES, f"quantize {PIXELS} --target packed --choices w4a4 --budget mean_bits=4 --ranges WORD --out OUT/NUMBER"
    ),
    "pixels-trials": f"""
        quantize {PIXELS} --eval {HERE}:fields --target packed --max-drop 0.01 --score {HERE}:score --rounding gptq \
            --out OUT/drop
        quantize {PIXELS} --target packed --nncf-config CONFIGS/hawq.json --budget mean_bits=4 --out OUT/hawq
        quantize {PIXELS} --target packed --nncf-config CONFIGS/autoq.json --out OUT/autoq""",
    "refusals": f"""
        quantize {DIGITS} --target packed --budget weight_bytes=100 --out OUT/a
        quantize {DIGITS} --target openvino --choices w8a8@2:4 --budget mean_bits=8 --out OUT/a
        quantize {DIGITS} --target packed --budget mean_bits=4 --prune-channels 0.3 --out OUT/a
        measure {DIGITS} --target packed --metric nothing --out OUT/a.json
        verify OUT/nothing
        {_each("targets metrics searches ranges roundings", "list WORD --json")}""",
}
#: Cases whose folders stay, for `verify-old`.
KEPT = ("digits-openvino", "digits-onnxruntime", "digits-qat", "digits-searches", "resnet-packed", "resnet-openvino")
#: What begins first.
LONGEST = ("digits-roundings", "resnet-openvino", "digits-study", "digits-searches", "digits-trials")
#: Name -> what `initializer.precision` holds.
CONFIGS: dict[str, dict[str, Any]] = {
    "hawq": {"type": "hawq", "bits": [2, 4, 8], "iter_number": 3, "compression_ratio": 1.5},
    "autoq": {
        "type": "autoq", "bits": [2, 4, 8], "iter_number": 4, "compression_ratio": 0.15, "eval_subset_ratio": 0.5,
    },
    "manual": {"type": "manual", "bitwidth_per_scope": [[4, "DigitsNet/Block[block2]/NNCFConv2d[conv1]/conv2d_0"]]},
}  # fmt: skip


class Language(nn.Module):
    """Logits of the next character [N, T, C] from characters [N, T]: two blocks of causal attention, width 64."""

    def __init__(self, num_characters: int, context: int = 32, width: int = 64) -> None:
        super().__init__()
        self.characters, self.positions = nn.Embedding(num_characters, width), nn.Parameter(torch.zeros(context, width))
        self.blocks = nn.Sequential(Attention(width), Attention(width))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, num_characters)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map characters to logits."""
        return self.head(self.norm(self.blocks(self.characters(tokens) + self.positions)))


class Attention(nn.Module):
    """Causal attention with two heads, then two linear layers, each added to what it read [N, T, width]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map states to states."""
        q, k, v = (part.unflatten(2, (2, -1)).transpose(1, 2) for part in self.qkv(self.norm1(x)).chunk(3, dim=2))
        x = x + self.out(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


def digits() -> list[tuple[Tensor, Tensor]]:
    return _batches("digits.train", "digit_labels.train", 16)


def test_digits() -> list[tuple[Tensor, Tensor]]:
    return _batches("digits.test", "digit_labels.test", 50)


def resnet() -> nn.Module:
    """ResNet-20."""
    network = resnet20.ResNet20()
    network.load_state_dict(_part("resnet."))
    return network.eval()


def images() -> list[tuple[Tensor, Tensor]]:
    return _batches("images.train", "labels.train", 8)


def test_images() -> list[tuple[Tensor, Tensor]]:
    return _batches("images.test", "labels.test", 64)


def language() -> nn.Module:
    """A language model of characters, trained for a few seconds."""
    weights = _part("language.")
    network = Language(len(weights["characters.weight"]))
    network.load_state_dict(weights)
    return network.eval()


def text() -> list[dict[str, Tensor]]:
    return _windows("text.train")


def test_text() -> list[dict[str, Tensor]]:
    return _windows("text.test")


def pixels() -> nn.Module:
    """Four classes of every pixel, untrained: convolutions that are depthwise, pointwise and transposed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
            nn.Conv2d(16, 16, 3, padding=1, groups=16, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
            nn.Conv2d(16, 24, 1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(24, 24, 3, padding=1, bias=False), nn.BatchNorm2d(24), nn.ReLU(),
            nn.ConvTranspose2d(24, 12, 2, stride=2), nn.ReLU(), nn.Conv2d(12, 4, 1),
        ).eval()  # fmt: skip


def fields() -> list[tuple[Tensor, Tensor]]:
    drawn = torch.Generator().manual_seed(0)
    return [
        (torch.randn(8, 3, 12, 12, generator=drawn), torch.randint(4, (8, 12, 12), generator=drawn)) for _ in range(8)
    ]


def score(model: nn.Module, batches: Sequence[Any]) -> float:
    """Minus the cross entropy, for `--score`."""
    with torch.no_grad():
        return -sum(float(F.cross_entropy(model(inputs), labels)) for inputs, labels in batches) / len(batches)


def loss(output: Tensor, labels: Tensor) -> Tensor:
    """Smoothed cross entropy, for `--loss`."""
    return F.cross_entropy(output, labels, label_smoothing=0.1)


def _stored() -> dict[str, Tensor]:
    return safetensors.torch.load_file(os.environ[INPUTS])


def _part(prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in _stored().items() if name.startswith(prefix)}


def _batches(inputs: str, labels: str, size: int) -> list[tuple[Tensor, Tensor]]:
    found = _stored()
    return list(zip(found[inputs].split(size), found[labels].split(size), strict=True))


def _windows(name: str) -> list[dict[str, Tensor]]:
    return [
        {"tokens": part[:, :-1].contiguous(), "labels": part[:, 1:].contiguous()} for part in _stored()[name].split(8)
    ]


def make_inputs(path: Path) -> None:
    """Write the networks' weights and the data, where they are not there."""
    if path.exists():
        return
    found = {f"resnet.{name}": one for name, one in safetensors.torch.load_file(_place("MIXBIT_RESNET20")).items()}
    with zipfile.ZipFile(_place("MIXBIT_CIFAR10")) as archive:
        for split, count in (("train", 64), ("test", 64)):
            found |= _some_images(archive, split, count)
    digits_ = importlib.import_module("examples.digits")
    for split, batches, count in (("train", digits_.calibration(), 128), ("test", digits_.test(), 200)):
        for name, parts in zip(("digits", "digit_labels"), zip(*batches, strict=True), strict=True):
            found[f"{name}.{split}"] = torch.cat(parts)[:count].clone()
    safetensors.torch.save_file(found | _some_text(_place("MIXBIT_TEXT").read_text("utf-8")), path)


def _place(variable: str) -> Path:
    defaults = {
        "MIXBIT_RESNET20": "models/resnet20-cifar10.safetensors",
        "MIXBIT_CIFAR10": "data/cifar10-jpeg.zip",
        "MIXBIT_TEXT": "data/tinyshakespeare.txt",
    }
    return Path(os.environ.get(variable) or SHARED / defaults[variable])


def _some_images(archive: zipfile.ZipFile, split: str, count: int) -> dict[str, Tensor]:
    """The same number of normalised images of every class, and their labels, class after class in turn."""
    from PIL import Image  # noqa: PLC0415 only the first recording of a folder decodes images

    names = sorted(name for name in archive.namelist() if name.startswith(f"{split}/") and name.endswith(".jpg"))
    classes = sorted({name.split("/")[1] for name in names})
    by_class = [[name for name in names if name.split("/")[1] == one] for one in classes]
    drawn = [by_class[i % len(classes)][i // len(classes)] for i in range(count)]
    decoded = [Image.open(io.BytesIO(archive.read(name))).convert("RGB") for name in drawn]
    pixels_ = torch.stack([torch.frombuffer(bytearray(one.tobytes()), dtype=torch.uint8) for one in decoded])
    scaled = pixels_.reshape(-1, 32, 32, 3).permute(0, 3, 1, 2).to(torch.float32) / 255
    mean, std = (torch.tensor(one).reshape(3, 1, 1) for one in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    labels = torch.tensor([i % len(classes) for i in range(count)])
    return {f"images.{split}": ((scaled - mean) / std).contiguous(), f"labels.{split}": labels}


def _some_text(text_: str) -> dict[str, Tensor]:
    """A language model after 200 steps, and windows of text that it was trained on and not."""
    characters = sorted(set(text_))
    numbers = torch.tensor([characters.index(one) for one in text_])
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    network = Language(len(characters))
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3)
    cut, context = len(numbers) * 9 // 10, 32

    def windows(low: int, high: int, count: int) -> Tensor:
        starts = torch.randint(low, high - context, (count,), generator=generator)
        return torch.stack([numbers[start : start + context + 1] for start in starts.tolist()])

    for _ in range(200):
        rows = windows(0, cut, 16)
        F.cross_entropy(network(rows[:, :-1]).flatten(0, 1), rows[:, 1:].flatten()).backward()
        optimizer.step()
        optimizer.zero_grad()
    found = {"text.train": windows(0, cut, 64), "text.test": windows(cut, len(numbers), 64)}
    return found | {f"language.{name}": one.detach() for name, one in network.state_dict().items()}


def record(out: Path, inputs: Path, only: str) -> int:
    """Run the cases and write the recording; 0 where every command ended as it should."""
    make_inputs(inputs)
    folders = out.with_suffix(".folders")
    configs = folders / "configs"
    configs.mkdir(parents=True, exist_ok=True)
    for kind, precision in CONFIGS.items():
        quantization = {"algorithm": "quantization", "initializer": {"precision": precision}}
        (configs / f"{kind}.json").write_text(json.dumps({"compression": quantization}), "utf-8")
    names = sorted((name for name in CASES if name.startswith(only)), key=lambda name: name not in LONGEST)
    found: dict[str, Any] = json.loads(out.read_text("utf-8")) if only and out.exists() else {}
    found["inputs"] = {"figures": {}, "files": {inputs.name: _sha256(inputs.read_bytes())}}
    failed = 0
    with ThreadPoolExecutor(PROCESSES) as pool:
        for name, (case, seconds) in zip(names, pool.map(partial(_record, folders), names), strict=True):
            found[name] = case
            said = [text for key, text in case["figures"].items() if key.startswith("said") and name != "refusals"]
            print(f"{name}: {seconds:.0f} s of processor time", *said, sep="\n    ", flush=True)
            failed += len(said)
    out.write_text(json.dumps(found, indent=0), "utf-8")
    return int(failed > 0)


def _record(folders: Path, name: str) -> tuple[dict[str, Any], float]:
    """Figures and digests of one case, and seconds of processor time."""
    folder, logs = folders / name, folders / f"{name}.logs"
    for one in (folder, logs):
        shutil.rmtree(one, ignore_errors=True)
        one.mkdir(parents=True)
    figures: dict[str, Any] = {"exit codes": []}
    commands = [line.strip() for line in CASES[name].splitlines() if line.strip()]
    for number, command in enumerate(commands):
        words = command.replace("OUT", str(folder)).replace("CONFIGS", str(folders / "configs"))
        code, printed, said = run(words, logs / str(number))
        figures["exit codes"].append(code)
        if printed.startswith("{") and not command.startswith("list"):
            figures[f"printed by {number}"] = _kept(json.loads(printed))
        elif printed.startswith("{"):
            figures[f"printed by {number}"] = list(json.loads(printed))
        if code != 0:
            figures[f"said by {number}"] = (said.strip().splitlines() or [""])[-1].replace(str(folder), "OUT")
    files: dict[str, str] = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        place = path.relative_to(folder).as_posix()
        if path.suffix == ".json":
            figures[place] = _kept(json.loads(path.read_bytes()))
        elif path.suffix != ".png":
            files |= _digests(path, place)
    if name not in KEPT:
        shutil.rmtree(folder)
    return {"figures": figures, "files": files}, sum(float(path.read_text()) for path in logs.glob("*.seconds"))


def run(words: str, log: Path) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of `mixbit WORDS`, in a process forked from one that has torch."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(PRELOADED))
    process = context.Process(target=_mixbit, args=(shlex.split(words), log))
    process.start()
    process.join()
    return process.exitcode or 0, log.with_suffix(".out").read_text("utf-8"), log.with_suffix(".err").read_text("utf-8")


def _mixbit(words: list[str], log: Path) -> None:
    for number, suffix in ((1, ".out"), (2, ".err")):
        with log.with_suffix(suffix).open("wb") as file:
            os.dup2(file.fileno(), number)
    sys.argv = ["mixbit", *words]
    # Recordings of older checkouts are made with mixbit.cli, where the command line was.
    place = "mixbit.app.main" if importlib.util.find_spec("mixbit.app") else "mixbit.cli"
    try:
        importlib.import_module(place).main()
    finally:
        log.with_suffix(".seconds").write_text(str(time.process_time()), "utf-8")


def _kept(stored: Any) -> Any:
    """What a JSON file holds, without what is left out."""
    if isinstance(stored, list):
        return [_kept(one) for one in stored]
    if not isinstance(stored, dict):
        return stored
    is_path = isinstance(stored.get("model"), str) and "/" in stored["model"]
    return {key: _kept(one) for key, one in stored.items() if key not in LEFT_OUT and not (is_path and key == "model")}


def _digests(path: Path, place: str) -> dict[str, str]:
    """SHA-256 of the file, without what is drawn at random; of ONNX and safetensors also of the tensors, by name."""
    content = path.read_bytes()
    if path.suffix == ".xml":  # OpenVINO numbers operators in the order in which its threads come to them
        return {place: _sha256(re.sub(rb'( names?="[A-Za-z]+)_\d+"', rb'\1"', content))}
    if path.suffix == ".onnx":
        import onnx  # noqa: PLC0415 an extra

        stored = sorted(onnx.load_from_string(content).graph.initializer, key=lambda tensor: tensor.name)
        tensors = _sha256(b"".join(one.SerializeToString(deterministic=True) for one in stored))
        return {place: _sha256(content), f"{place}, tensors": tensors}
    if path.suffix == ".safetensors":  # whose metadata comes in an order of its own each time
        end = 8 + int.from_bytes(content[:8], "little")
        head = json.dumps(json.loads(content[8:end]), sort_keys=True).encode()
        named = sorted(safetensors.torch.load(content).items())
        parts = [f"{name}{one.dtype}{list(one.shape)}".encode() + _bytes(one) for name, one in named]
        return {place: _sha256(head + content[end:]), f"{place}, tensors": _sha256(b"".join(parts))}
    return {place: _sha256(content)}


def _bytes(tensor: Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def compare(before: Path, after: Path, only: str) -> int:
    """Print for every case whether both recordings are equal; 1 where they are not."""
    one, other = (json.loads(path.read_text("utf-8")) for path in (before, after))
    names = [name for name in {**one, **other} if name.startswith((only, "inputs"))]
    unlike = [name for name in names if not _compare(name, one.get(name), other.get(name))]
    print(f"{len(names) - len(unlike)} of {len(names)} cases are the same")
    return int(bool(unlike) or not names)


def _compare(name: str, one: Any, other: Any) -> bool:
    if one is None or other is None:
        print(f"{name}: only in the {'second' if one is None else 'first'} recording")
        return False
    left, right = (dict(_flat(case["figures"], "")) for case in (one, other))
    apart = sorted(
        ((_difference(left.get(key, MISSING), right.get(key, MISSING)), key) for key in left | right), reverse=True
    )
    apart = [(difference, key) for difference, key in apart if difference > 0]
    files = [key for key in one["files"] | other["files"] if one["files"].get(key) != other["files"].get(key)]
    if not apart and not files:
        print(f"{name}: equal bit by bit, {len(left):,} figures and {len(one['files'])} digests")
        return True
    beyond = [(difference, key) for difference, key in apart if difference > TOLERANCE]
    print(f"{name}: of {len(left):,} figures {len(apart)} differ, {len(beyond)} by more than {TOLERANCE:g}")
    for difference, key in apart[: 10 if beyond else 1]:
        print(f"    {difference:.3g} at {key}: {left.get(key, MISSING)!r:.80} was, {right.get(key, MISSING)!r:.80} is")
    for key in files:
        print(f"    another digest: {key}")
    return not beyond and not files


def _flat(stored: Any, place: str) -> Iterator[tuple[str, Any]]:
    """Every number and text of a tree with its place."""
    if not isinstance(stored, dict | list):
        yield place, stored
        return
    yield f"{place} length", len(stored)
    for key, one in stored.items() if isinstance(stored, dict) else enumerate(stored):
        yield from _flat(one, f"{place} / {key}" if place else str(key))


def _difference(one: Any, other: Any) -> float:
    """Relative to the larger; infinite for anything but two numbers."""
    if one == other and type(one) is type(other):
        return 0.0
    if any(isinstance(value, bool) or not isinstance(value, int | float) for value in (one, other)):
        return math.inf
    return abs(one - other) / max(abs(one), abs(other)) if one != other else 0.0


def verify_old(folders: Path) -> int:
    """Verify all folders with this checkout's mixbit, and search all tables and fronts; 1 where one cannot be."""
    logs = folders / "verify-old.logs"
    logs.mkdir(exist_ok=True)
    commands = [f"verify {path.parent}" for path in sorted(folders.rglob("result.json"))]
    for path in sorted({*folders.rglob("sensitivity.json"), *folders.glob("digits-searches/*.json")}):
        stored = json.loads(path.read_bytes())
        if {"points", "loss"} & stored.keys():
            limit = f"{stored.get('resource', 'weight_bytes')}=1e12"
            commands.append(f"search {path} --budget {limit} --force --out {logs / f'{len(commands)}.json'}")
    with ThreadPoolExecutor(PROCESSES) as pool:
        ended = list(pool.map(lambda job: run(job[1], logs / f"log{job[0]}"), enumerate(commands)))
    for command, (code, _, said) in zip(commands, ended, strict=True):
        print(f"{'done' if code == 0 else f'FAILED with {code}'}: {command}")
        if code:
            print(f"    {(said.strip().splitlines() or [''])[-1]}")
    return int(not commands or any(code for code, _, _ in ended))


def main() -> None:
    """Record, compare or verify, and exit with 1 where something differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("verb", choices=("record", "compare", "verify-old"))
    parser.add_argument("paths", type=Path, nargs="+")
    parser.add_argument("--only", default="", help="beginning of the names of cases")
    given = parser.parse_args()
    paths = [path.absolute() for path in given.paths]
    if len(paths) != (2 if given.verb == "compare" else 1):
        parser.error("compare takes two recordings, record one, verify-old a folder")
    if given.verb == "compare":
        sys.exit(compare(*paths, given.only))
    inputs = paths[0].with_name("same_inputs.safetensors")
    os.environ |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "COLUMNS": "200", INPUTS: str(inputs)}
    torch.set_num_threads(1)
    sys.exit(record(paths[0], inputs, given.only) if given.verb == "record" else verify_old(paths[0]))


if __name__ == "__main__":
    main()
