"""The demo's network and data, as the command line takes them."""

import mixbit.demo.data
from mixbit.demo.network import trained


def model():
    return trained()


def calibration():
    return mixbit.demo.data.calibration_batches()


def test():
    return mixbit.demo.data.test_batches()
