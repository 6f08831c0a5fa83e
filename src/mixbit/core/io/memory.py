"""The memory of this process, as the system counts it; only on Linux."""

import ctypes
from contextlib import suppress
from pathlib import Path

_STATUS = Path("/proc/self/status")


def release_memory() -> None:
    """Give memory that the process has freed back to the system."""
    with suppress(OSError, AttributeError):  # other systems, other allocators
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
