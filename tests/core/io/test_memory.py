"""The memory of a process, against what the system says of it."""

import sys

import pytest
import torch

from mixbit.core.io.memory import forget_peak, release_memory, resident_bytes
from mixbit.core.io.stored import Room

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="other systems do not say")
#: Tensors that the allocator takes from its heap, and their bytes.
COUNT, SIZE = 2000, 2**16


def scattered():
    """A few tensors that stay, all over the heap, where many were between them."""
    tensors = [torch.ones(SIZE // 4) for _ in range(COUNT)]
    return tensors[::8]


def test_freed_memory_between_tensors_that_stay_goes_back_to_the_system():
    kept = scattered()
    before = resident_bytes()
    release_memory()
    assert before - resident_bytes() > COUNT * SIZE / 2
    assert all(bool((tensor == 1).all()) for tensor in kept)


def test_a_room_lets_go_only_where_the_process_has_more_than_half_of_it():
    kept = scattered()
    before = resident_bytes()
    Room(4 * before).let_go()
    assert before - resident_bytes() < COUNT * SIZE / 8
    Room(before).let_go()
    assert before - resident_bytes() > COUNT * SIZE / 2
    del kept


def test_the_peak_begins_again_once_it_is_forgotten():
    numbers = torch.ones(2**25)  # 128 MiB
    high = resident_bytes(peak=True)
    del numbers
    release_memory()
    forget_peak()
    assert resident_bytes() <= resident_bytes(peak=True) < high - 2**26
