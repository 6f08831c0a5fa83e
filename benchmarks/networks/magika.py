"""Magika, which tells the type of a file from 2,048 of its bytes: 0.78 million parameters, 214 types.

Weights: the ONNX file of package magika 1.0.3 (Apache-2.0), read by `onnx`. Data: files of this machine, labelled by
their suffix, so figures of two machines differ by their files. Those that calibrate and those that judge are drawn by a
seed from each type alike.
"""

import json
import random
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import onnx
import torch
from onnx import numpy_helper
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.networks._network import ACCURACY, SEED, Network, batches, shuffled
from benchmarks.networks._packages import file_in, pip
from mixbit.core.errors import InvalidInput
from mixbit.core.task import Task

NUM_CALIBRATION, BATCH = 256, 32
#: Files of each type at most, the shortest in bytes, and bytes read of each end.
EACH, SHORTEST, READ = 40, 200, 1024
ROOTS = ("/usr/share", "/usr/lib", "/usr/include", sysconfig.get_paths()["purelib"])
PAD = 256
#: Suffix -> type.
TYPES = {
    "py": "python", "pyc": "pythonbytecode", "h": "c", "c": "c", "hpp": "cpp", "cpp": "cpp", "js": "javascript",
    "html": "html", "json": "json", "xml": "xml", "css": "css", "md": "markdown", "png": "png", "gz": "gzip",
    "so": "elf", "sh": "shell", "yaml": "yaml", "svg": "svg", "csv": "csv", "toml": "toml", "ttf": "ttf", "pl": "perl",
    "pm": "perl", "ts": "typescript", "wav": "wav", "ogg": "ogg", "zip": "zip", "rs": "rust", "java": "java",
    "rst": "rst", "jpg": "jpeg", "npy": "npy", "npz": "npz", "whl": "zip", "onnx": "onnx", "diff": "diff", "po": "po",
    "tex": "latex", "bib": "bib", "ipynb": "ipynb", "wasm": "wasm", "cmake": "cmake", "go": "go", "rb": "ruby",
    "php": "php", "lua": "lua",
}  # fmt: skip
_PART = "jax2tf_get_logits_/pjit_get_logits_/MagikaV2/"
#: Parameter -> its name in the file.
NAMES = {
    "embed.weight": "jax2tf_get_logits_/Const:0",
    "embed_bias": f"{_PART}Dense_0/Reshape:0",
    "norm0_weight": f"{_PART}LayerNorm_0/Reshape_2:0",
    "norm0_bias": f"{_PART}LayerNorm_0/Reshape_3:0",
    "conv.weight": f"{_PART}Conv_0/transpose_3:0",
    "conv.bias": "const_fold_opt__209",
    "norm1.weight": f"{_PART}LayerNorm_1/Reshape_2:0",
    "norm1.bias": f"{_PART}LayerNorm_1/Reshape_3:0",
    "fc.weight": "jax2tf_get_logits_/Const_24:0",
    "fc.bias": f"{_PART}Dense_1/Reshape:0",
}


class Magika(nn.Module):
    """Logits [N, 214] of tokens [N, 2048]: a norm over positions, a convolution, the largest of all places."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.embed_bias = nn.Embedding(257, 64), nn.Parameter(torch.zeros(64))
        self.norm0_weight, self.norm0_bias = nn.Parameter(torch.ones(1, 512, 1)), nn.Parameter(torch.zeros(1, 512, 1))
        self.conv, self.norm1, self.fc = nn.Conv1d(256, 512, 5), nn.LayerNorm(512, eps=1e-6), nn.Linear(512, 214)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map bytes, 256 where there are none, to logits."""
        x = functional.gelu(self.embed(tokens) + self.embed_bias, approximate="tanh").reshape(-1, 512, 256)
        x = x - x.mean(1, keepdim=True)
        x = x * torch.rsqrt(x.square().mean(1, keepdim=True) + 1e-6) * self.norm0_weight + self.norm0_bias
        x = functional.gelu(self.conv(x.transpose(1, 2)), approximate="tanh").amax(2)
        return self.fc(self.norm1(x))


def network() -> tuple[Magika, list[str]]:
    """The network with its weights, and the names of the types."""
    folder = pip("magika==1.0.3")
    file = file_in(folder, "standard_v3_3") / "model.onnx"
    stored = {each.name: numpy_helper.to_array(each) for each in onnx.load(file).graph.initializer}
    model, state = Magika(), {}
    for name, parameter in model.state_dict().items():
        value = torch.tensor(stored[NAMES[name]])
        state[name] = value.T if name == "fc.weight" else value.reshape(parameter.shape)
    model.load_state_dict(state)
    return model.eval(), json.loads((file.parent / "config.min.json").read_text())["target_labels_space"]


def tokens(content: bytes) -> Tensor:
    """The first and the last READ bytes, without white space around them, padded."""
    begin, end = content[: 4 * READ].lstrip()[:READ], content[-4 * READ :].rstrip()[-READ:]
    return torch.tensor([*begin, *[PAD] * (READ - len(begin)), *[PAD] * (READ - len(end)), *end])


def files() -> Iterator[tuple[Tensor, str]]:
    """Tokens and type of up to EACH files of each type, drawn by a seed."""
    paths: dict[str, list[Path]] = {}
    for root in ROOTS:
        for path in sorted(Path(root).rglob("*")):
            kind = TYPES.get(path.suffix[1:])
            if kind is not None and path.is_file() and not path.is_symlink():
                paths.setdefault(kind, []).append(path)
    draw = random.Random(SEED)
    for kind, every in sorted(paths.items()):
        some = (path for path in draw.sample(every, len(every)) if path.stat().st_size >= SHORTEST)
        for _, path in zip(range(EACH), some, strict=False):
            yield tokens(path.read_bytes()), kind


def load() -> Network:
    """The network, 256 files to calibrate on, and the others.

    Raises:
        InvalidInput: this machine holds too few files.
    """
    model, types = network()
    pairs = list(files())
    if len(pairs) < 2 * NUM_CALIBRATION:
        raise InvalidInput(f"magika: {len(pairs)} files in {', '.join(ROOTS)}; {2 * NUM_CALIBRATION} are needed")
    order = shuffled(len(pairs))
    inputs = torch.stack([content for content, _ in pairs])[order]
    labels = torch.tensor([types.index(kind) for _, kind in pairs])[order]
    calibration, evaluation = (
        batches(BATCH, inputs[part], labels[part]) for part in (slice(NUM_CALIBRATION), slice(NUM_CALIBRATION, None))
    )
    return Network("magika", model, calibration, evaluation, Task.classification(), ACCURACY)
