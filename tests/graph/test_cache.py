import errno
import logging
import os

import pytest
import torch

from mixbit.core.errors import InvalidInput
from mixbit.graph.walk import ActivationCache

CPU = torch.device("cpu")


def test_it_returns_what_was_put_and_drops_what_is_not_kept():
    cache = ActivationCache(10**6, CPU)
    tensors = {(batch, name): torch.randn(3, 4) for batch in (0, 1) for name in "ab"}
    for key, tensor in tensors.items():
        cache.put(*key, tensor)
    assert all(torch.equal(cache.get(*key), tensor) for key, tensor in tensors.items())
    held = cache.in_memory
    cache.keep_only({"b"})
    assert (0, "a") not in cache.values
    assert (1, "b") in cache.values
    assert cache.in_memory == held // 2


def test_what_is_put_later_changed_does_not_change_it():
    cache, x = ActivationCache(10**6, CPU), torch.zeros(3)
    cache.put(0, "x", x)
    x += 1
    assert cache.get(0, "x").tolist() == [0, 0, 0]


def test_beyond_the_limit_tensors_go_to_files_which_is_said_once(caplog, monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    cache, tensors = ActivationCache(100, CPU), [torch.randn(5, 5), torch.randn(0, 5), torch.randint(9, (40,))]
    with caplog.at_level(logging.WARNING, "mixbit"):
        for number, tensor in enumerate(tensors):
            cache.put(number, "x", tensor)
    assert len(caplog.records) == 1
    assert "kept in files" in caplog.text
    assert all(torch.equal(cache.get(number, "x"), tensor) for number, tensor in enumerate(tensors))
    assert cache.in_files == {(2, "x")}  # the first is just within the limit, the second takes nothing
    assert list(tmp_path.iterdir()) == []  # a file without a name ends with the process, however that ends
    cache.close()


def test_a_failing_allocation_goes_to_files(caplog, monkeypatch):
    def fail(self):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    cache, tensor = ActivationCache(10**9, CPU), torch.randn(4, 4)
    with monkeypatch.context() as patched, caplog.at_level(logging.WARNING, "mixbit"):
        patched.setattr(torch.Tensor, "clone", fail)
        cache.put(0, "x", tensor)
    assert "can't allocate" in caplog.text
    assert cache.in_files == {(0, "x")}
    assert torch.equal(cache.get(0, "x"), tensor)
    cache.close()


def test_take_returns_all_of_a_batch_and_drops_it():
    cache, tensor = ActivationCache(10, CPU), torch.randn(4, 4)
    cache.put(0, "x", tensor)
    cache.put(0, "size", 4)
    cache.put(1, "size", 3)
    found = cache.take(0)
    assert torch.equal(found.pop("x"), tensor)
    assert found == {"size": 4}
    assert (0, "x") not in cache.values
    assert cache.take(0) == {}
    assert cache.take(1) == {"size": 3}
    cache.close()


def test_where_nothing_can_be_kept_the_way_out_is_told(monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "missing"))
    cache = ActivationCache(0, torch.device("cpu"))
    with pytest.raises(InvalidInput, match=r"cannot be kept \(.*; set TMPDIR to a place with room"):
        cache.put(0, "x", torch.ones(3))


def test_where_a_file_has_no_room_it_is_told(monkeypatch):
    """And does not end the process, as writing to a mapped page without room does."""

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    cache = ActivationCache(0, torch.device("cpu"))
    with pytest.raises(InvalidInput, match=r"cannot be kept \(.*No space left on device\); set TMPDIR to a place with"):
        cache.put(0, "x", torch.ones(3))
