"""The shop's assets that scatter."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from flowstone_celery import Context, FlowStone, Gathered, Reader, Scatter

LINKS = [f"/{number}" for number in range(60)]
TOLD = 2_000


class Numbers(Reader):
    """Tells numbers; before the last page it waits until an item was made, and where it is told to, it kills its process."""

    def __init__(self, scratch: Path, note: Callable[[str, object], None], name: str, deadly: bool) -> None:
        self.scratch, self.note, self.name, self.deadly = scratch, note, name, deadly
        self.next = 0

    def read(self, limit: int) -> Sequence[int]:
        """The next 400."""
        first, self.next = self.next, min(self.next + 400, TOLD)
        if self.deadly and first == 800 and not (self.scratch / f"{self.name}-died").exists():
            self.note(f"{self.name}-died", os.getpid())
            os.kill(os.getpid(), signal.SIGKILL)
        while self.next == TOLD and not (self.scratch / f"{self.name}-made").exists():
            time.sleep(0.02)
        return list(range(first, self.next))

    def checkpoint(self) -> Mapping[str, Any]:
        """The next number."""
        return {"next": self.next}

    def restore(self, checkpoint: Mapping[str, Any]) -> None:
        """From there on."""
        self.next = checkpoint["next"]
        self.note(f"{self.name}-restored", self.next)


def declare_scatters(fs: FlowStone, note: Callable[[str, object], None], scratch: Path) -> None:
    """The shop has these assets."""
    fs.asset(name="links")(lambda: LINKS)

    @fs.asset(scatter=Scatter(over="links", failure_threshold="5%", retry_delay=0.05, jitter=0))
    def parsed(item: str, ctx: Context) -> str:
        note("parsed", os.getpid())
        if item in (LINKS[3], LINKS[7]):
            raise ConnectionError(f"{item} is away")
        return f"{item}!"

    @fs.asset
    def parsed_well(parsed: Gathered[str]) -> list[Any]:
        return [len(parsed), [each.key for each in parsed.failed]]

    @fs.asset(scatter=Scatter(over="links", width=30))
    async def awaited(item: str) -> str:
        await asyncio.sleep(0.01)
        return f"{item}!"

    @awaited.gather
    def counted(gathered: Gathered[str]) -> int:
        return len(gathered)

    for name, deadly in (("told", False), ("told_by_the_dead", True)):
        told = fs.asset(name=name, scatter=Scatter())(_noting(note, name))
        told.keys(_numbers(scratch, note, name, deadly))
        told.gather(lambda gathered: sorted(gathered) == list(range(TOLD)))


def _noting(note: Callable[[str, object], None], name: str) -> Callable[[int], int]:
    def number(item: int) -> int:
        if item == 0:
            note(f"{name}-made", item)
        return item

    return number


def _numbers(
    scratch: Path, note: Callable[[str, object], None], name: str, deadly: bool
) -> Callable[[], Numbers]:
    return lambda: Numbers(scratch, note, name, deadly)
