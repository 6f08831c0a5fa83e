import gc
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
import torch
from torch.utils import _pytree as pytree

from mixbit.core.errors import InvalidInput
from mixbit.core.io.spill import Spill

TREES = [
    (torch.randn(3, 4, 5, 6).to(memory_format=torch.channels_last), {"a": torch.arange(5), "b": None}),
    [torch.tensor(3.0), torch.randn(4, 6)[:, ::2], torch.randn(0, 3), torch.randn(3).bfloat16(), "text", 7],
    (torch.tensor([True, False]), torch.randn(2, dtype=torch.complex64).conj(), torch.randn(4, 3).T),
]


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_trees_come_back_as_they_were_in_any_order(order):
    spill = Spill()
    for tree in TREES:
        spill.put(tree)
    for number in order:
        wanted, structure = pytree.tree_flatten(TREES[number])
        given, its_structure = pytree.tree_flatten(spill[number])
        assert structure == its_structure
        for one, other in zip(wanted, given, strict=True):
            assert type(one) is type(other)
            if isinstance(one, torch.Tensor):
                assert one.dtype == other.dtype
                assert torch.equal(one, other)
            else:
                assert one == other
    assert spill[0][0].is_contiguous(memory_format=torch.channels_last)  # kernels differ in the last place by it


def test_the_file_has_no_name_and_ends_with_the_object(tmp_path):
    spill = Spill(tmp_path)
    spill.put(torch.ones(1000))
    assert list(tmp_path.iterdir()) == []
    file = spill._file
    del spill
    gc.collect()
    assert file.closed


def test_half_of_the_free_space_is_left(tmp_path, monkeypatch):
    free = 10_000
    spill = Spill(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free - spill.size))
    for _ in range(5):
        spill.put(torch.ones(250))
    with pytest.raises(InvalidInput, match="--samples N"):
        spill.put(torch.ones(250))


def test_a_folder_that_is_not_there_is_told(tmp_path):
    with pytest.raises(InvalidInput, match="TMPDIR"):
        Spill(tmp_path / "none")


def test_threads_read_at_once_what_was_put():
    """Forked workers of a loader too: nobody moves a position that all share."""
    spill = Spill()
    for number in range(20):
        spill.put(torch.full((1000,), number))
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda number: spill[number % 20], range(800)))
    assert all(torch.equal(tensor, torch.full((1000,), number % 20)) for number, tensor in enumerate(found))


def test_a_file_that_is_cut_short_is_told():
    spill = Spill()
    spill.put(torch.ones(1000))
    os.ftruncate(spill._file.fileno(), 100)
    with pytest.raises(InvalidInput, match="was cut short"):
        spill[0]
