"""The app of `faultshop` with assets that scatter: their items do as their run's metadata says, and write down that they began.

`metadata={"items": 500, "pauses": [0, 0.01], "slow": [200, 1.2], "bad": [7], "mended": path, "shaky": 10, "poison": 3}`: so many items
for each partition; how long each takes, in turn, and each 200th; which fail until the file is there; that each tenth fails at its first
attempt; which one kills its process.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flowstone_celery import Context, Gathered, Reader, Scatter

if TYPE_CHECKING:
    import faultshop
elif __package__:
    from faults import faultshop
else:
    import faultshop  # the worker's own import path begins in this folder

app, fs = faultshop.app, faultshop.fs

STARTS, GATHERS = "-starts", "-gathers"
"""What the names of both ledgers add to that of the sink."""


def _append(ledger: str, line: str) -> None:
    """At once, so that no kill leaves half of it."""
    file = os.open(os.environ[faultshop.SINK] + ledger, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(file, line.encode() + b"\n")
    finally:
        os.close(file)


def _seconds(item: int, told: dict[str, Any]) -> float:
    every, slow = told.get("slow") or (0, 0.0)
    pauses = told.get("pauses") or [0]
    return float(slow if every and item % every == every // 2 else pauses[item % len(pauses)])


def _begin(item: int, ctx: Context) -> tuple[str, float]:
    """A token that no other start of any item has, and for how long the item takes."""
    token = f"{ctx.partition}/{item}/{os.urandom(6).hex()}"
    _append(STARTS, f"{ctx.run_id} {token} {ctx.attempt} {os.getpid()} {time.time():.6f}")
    return token, _seconds(item, dict(ctx.metadata))


def _end(item: int, ctx: Context) -> None:
    told = ctx.metadata
    if item == told.get("poison"):
        os.kill(os.getpid(), signal.SIGKILL)
    if item in (told.get("bad") or ()) and not Path(told["mended"]).exists():
        raise ValueError("not yet")
    shaky = told.get("shaky")
    if shaky and ctx.attempt == 1 and item % shaky == 1:
        raise ValueError("not the first time")


def _item(item: int, ctx: Context) -> str:
    """Answer its token."""
    token, seconds = _begin(item, ctx)
    if seconds:
        time.sleep(seconds)
    _end(item, ctx)
    return token


async def _awaited(item: int, ctx: Context) -> str:
    """The same, awaited."""
    token, seconds = _begin(item, ctx)
    await asyncio.sleep(seconds)
    _end(item, ctx)
    return token


def _keys(ctx: Context) -> list[int]:
    return list(range(ctx.metadata["items"]))


def _told(ctx: Context) -> Iterator[int]:
    """One after the other, each twice and slowly enough that items begin meanwhile."""
    for item in range(ctx.metadata["items"]):
        if item % 100 == 0:
            time.sleep(0.1)
        yield item
        yield item // 2


class _Numbers(Reader):
    """Reads 100 numbers at a time, and goes on from there when its process has died."""

    def __init__(self, items: int) -> None:
        self.items, self.next = items, 0

    def read(self, limit: int) -> Sequence[int]:
        time.sleep(0.1)
        first, self.next = self.next, min(self.next + min(limit, 100), self.items)
        return list(range(first, self.next))

    def checkpoint(self) -> Mapping[str, Any]:
        return {"next": self.next}

    def restore(self, checkpoint: Mapping[str, Any]) -> None:
        self.next = checkpoint["next"]


def _gather(gathered: Gathered[str], ctx: Context) -> int:
    """How many there are; which ones is written down."""
    line = {"run": str(ctx.run_id), "partition": ctx.partition, "fence": ctx.fence, "tokens": list(gathered)}
    _append(GATHERS, json.dumps(line))
    return len(gathered)


def _declare(
    name: str, scatter: Scatter, code: Callable[..., Any] = _item, keys: Callable[..., Any] = _keys
) -> None:
    asset = fs.asset(name=name, scatter=scatter)(code)
    asset.keys(keys)
    asset.gather(_gather)


_declare("items", Scatter(max_attempts=1, failure_threshold="20%"))
_declare("awaited", Scatter(width=20), _awaited)
_declare("singly", Scatter(dispatch="item"))
_declare("few", Scatter(max_concurrent=2))
_declare("shaky", Scatter(retry_delay=0.05))
_declare("together", Scatter(retry_delay=0.05, retry_strategy="batch"))
_declare("told", Scatter(), keys=_told)
_declare("read", Scatter(), keys=lambda ctx: _Numbers(ctx.metadata["items"]))
