"""Processes as the Linux kernel sees them: who stems from whom, and the time that each has had on the processors."""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

_SCHEDULED = 2
"""The kind of clock, in the low bits of its number: see `man 3 clock_getcpuclockid`."""
_KEEPER = b"flowstone_celery.worker.keeper_process"
_PARENT = 1
"""Its position in /proc/PID/stat behind the name."""


def cpu_seconds(pids: Iterable[int]) -> float:
    """What they have used since they began, all together; those that are gone count nothing."""
    return sum(map(_cpu_seconds, pids))


def _cpu_seconds(pid: int) -> float:
    """By the process's own clock, which counts its threads of the past too; /proc/PID/stat knows hundredths of a second only."""
    with suppress(OSError):
        return time.clock_gettime((~pid << 3) | _SCHEDULED)
    return 0.0


def family(pid: int) -> list[int]:
    """The process and all that stem from it."""
    parents = {
        int(each.name): int(stat[_PARENT])
        for each in Path("/proc").iterdir()
        if each.name.isdigit() and (stat := _stat(int(each.name)))
    }
    found = [pid]
    for member in found:  # grows as it is read
        found.extend(child for child, parent in parents.items() if parent == member)
    return found


def is_keeper(pid: int) -> bool:
    """Whether this is the keeper of a worker of ours."""
    with suppress(OSError):
        return _KEEPER in Path(f"/proc/{pid}/cmdline").read_bytes()
    return False


def _stat(pid: int) -> list[str]:
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return []
