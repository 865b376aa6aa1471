"""Processes as the Linux kernel sees them: who stems from whom, and the time that each has had on the processors."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

_TICKS = os.sysconf("SC_CLK_TCK")
_KEEPER = b"flowstone_celery.worker.keeper_process"
_PARENT, _USER, _SYSTEM = 1, 11, 12
"""Positions in /proc/PID/stat behind the name."""


def cpu_seconds(pids: Iterable[int]) -> float:
    """What they have used since they began, all together; those that are gone count nothing."""
    return sum((int(stat[_USER]) + int(stat[_SYSTEM])) / _TICKS for pid in pids if (stat := _stat(pid)))


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
