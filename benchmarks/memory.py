"""The greatest memory that a process had since it was last made to forget (Linux; elsewhere this process, since it began)."""

from __future__ import annotations

import resource
from contextlib import suppress
from pathlib import Path


def forget_peak(pid: int | str = "self") -> None:
    """From here on."""
    with suppress(OSError):
        Path(f"/proc/{pid}/clear_refs").write_text("5", encoding="ascii")


def peak_mb(pid: int | str = "self") -> float:
    """In megabytes of 2**20 bytes."""
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
