"""Which metric ranks plans best on ResNet-20: 150 random plans, the 10,000 test images of CIFAR-10.

    python -m benchmarks.study_cifar out            # weights of 3, 4, 6 and 8 bits, inputs of 8
    python -m benchmarks.study_cifar out --both     # weights and inputs of 3, 4, 6 and 8 bits each

Calibrated on 512 training images. About 20 minutes on two cores, the slow metrics included; goes on where it stopped.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

import mixbit as mb
from benchmarks import cifar, paths, resnet20
from mixbit.app.commands.steps import print_study

BITS = (3, 4, 6, 8)


def setup() -> tuple[Any, ...]:
    """The network, 512 training images in batches of 64, and the test images."""
    source = paths.require("MIXBIT_CIFAR10")
    calibration = cifar.batches(*cifar.load_images(source, "train", limit=512, seed=0), 64)
    test = [  # small batches with channels last are the fastest here
        (images.contiguous(memory_format=torch.channels_last), labels)
        for images, labels in cifar.batches(*cifar.load_images(source, "test"), 125)
    ]
    graph = mb.capture(resnet20.load(paths.require("MIXBIT_RESNET20")), calibration[0][:1])
    return graph, calibration, test


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the study and print its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--both", action="store_true", help="inputs of 3, 4, 6 and 8 bits too")
    parser.add_argument("--plans", type=int, default=150)
    parser.add_argument("--metrics", nargs="+")
    given = parser.parse_args(arguments)
    choices = [f"w{weight}a{input_}" for weight in BITS for input_ in (BITS if given.both else (8,))]
    found = mb.study(
        setup, target="packed", out=given.out, choices=choices, metrics=given.metrics, num_plans=given.plans
    )
    print_study(found)


if __name__ == "__main__":
    main()
