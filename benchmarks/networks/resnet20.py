"""ResNet-20 on CIFAR-10, 0.27 million parameters: `benchmarks.resnet20` and `benchmarks.cifar`.

Weights and images are the user's, `MIXBIT_RESNET20` and `MIXBIT_CIFAR10`; their licences are those of their sources.
"""

from benchmarks import cifar, paths, resnet20
from benchmarks.networks._network import ACCURACY, SEED, Network
from mixbit.core.task import Task

NUM_CALIBRATION = 512


def load() -> Network:
    """The network, 512 training images to calibrate on, and the 10,000 test images."""
    source = paths.require("MIXBIT_CIFAR10")
    calibration = cifar.batches(*cifar.load_images(source, "train", NUM_CALIBRATION, SEED), 64)
    evaluation = cifar.batches(*cifar.load_images(source, "test"), 500)
    model = resnet20.load(paths.require("MIXBIT_RESNET20"))
    return Network("resnet20", model, calibration, evaluation, Task.classification(), ACCURACY)
