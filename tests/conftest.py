import gc

import pytest
import torch

from mixbit.core.target import TARGETS

torch.set_num_threads(1)  # tests are small, and threads cost them more than they gain
gc.set_threshold(200_000, 20, 100)  # torch.export leaves many small cycles; walking all of torch for them is slow


@pytest.fixture
def anything(monkeypatch):
    """Plans may be for the target `anything` of `tests.networks`."""
    monkeypatch.setitem(TARGETS, "anything", "tests.networks")
