"""A perceptron for Fashion-MNIST, trained here: 0.30 million parameters, as detectors of anomalies on microcontrollers.

Data: images of Debian's dataset-fashion-mnist (MIT), and training, as in `fashion_mnist`. A run reads each weight once,
so that on an NPU the reading of weights takes the time.
"""

from torch import nn

from benchmarks.networks._network import ACCURACY, Network
from benchmarks.networks.fashion_mnist import trained
from mixbit.core.task import Task


def untrained() -> nn.Sequential:
    """Logits [N, 10] of images [N, 1, 28, 28]."""
    return nn.Sequential(
        nn.Flatten(), nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 128), nn.ReLU(),
        nn.Linear(128, 10),
    )  # fmt: skip


def load() -> Network:
    """The network, 512 training images to calibrate on, and the 10,000 test images."""
    return Network("fashion_mlp", *trained("fashion_mlp", untrained), Task.classification(), ACCURACY)
