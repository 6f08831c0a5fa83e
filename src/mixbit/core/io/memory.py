"""The memory of this process, as the system counts it; only on Linux."""

import ctypes
from contextlib import suppress
from pathlib import Path

_STATUS = Path("/proc/self/status")
#: glibc's names of two settings (mallopt(3)), and how much freed memory is kept: more than the tensors of a batch.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
KEPT = 2**28


def keep_freed_memory() -> None:
    """Let this process keep what it frees, up to KEPT bytes, for what it allocates next.

    Otherwise the system takes large tensors back and clears every page of the next ones, and processes that compute
    side by side wait for one another there. Each setting by itself makes it worse, since it ends what glibc adapts.
    """
    with suppress(OSError, AttributeError, TypeError):  # other systems, other allocators
        libc = ctypes.CDLL(None)
        for setting in (_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD):
            libc.mallopt(setting, KEPT)


def release_memory() -> None:
    """Give memory that the process has freed back to the system."""
    with suppress(OSError, AttributeError, TypeError):  # other systems, other allocators
        ctypes.CDLL(None).malloc_trim(0)


def resident_bytes(*, peak: bool = False) -> int | None:
    """Memory of the process that is resident, or the most that was; None where the system does not say.

    `getrusage` does not serve: a process begins with the peak of the one that started it.
    """
    wanted = "VmHWM:" if peak else "VmRSS:"
    try:
        lines = _STATUS.read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(wanted)), None)


def forget_peak() -> None:
    """Let the peak begin again with what is resident."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
