"""The app of `faultshop` with an asset that scatters: its items do as their run's metadata says, and write down that they began.

`metadata={"items": 500, "pauses": [0, 0.01], "slow": [200, 1.2], "bad": [7], "mended": path, "poison": 3}`: so many items for each
partition; how long each takes, in turn, and each 200th; which fail until the file is there; which one kills its process.
"""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flowstone_celery import Context, Gathered, Scatter

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


@fs.asset(scatter=Scatter(max_attempts=1, failure_threshold="20%"))
def items(item: int, ctx: Context) -> str:
    """Answer a token that no other start of any item has."""
    told, token = dict(ctx.metadata), f"{ctx.partition}/{item}/{os.urandom(6).hex()}"
    _append(STARTS, f"{ctx.run_id} {token} {ctx.attempt} {os.getpid()} {time.time():.6f}")
    if seconds := _seconds(item, told):
        time.sleep(seconds)
    if item == told.get("poison"):
        os.kill(os.getpid(), signal.SIGKILL)
    if item in (told.get("bad") or ()) and not Path(told["mended"]).exists():
        raise ValueError("not yet")
    return token


@items.keys
def _keys(ctx: Context) -> list[int]:
    return list(range(ctx.metadata["items"]))


@items.gather
def _gather(gathered: Gathered[str], ctx: Context) -> int:
    """How many there are; which ones is written down."""
    line = {"run": str(ctx.run_id), "partition": ctx.partition, "fence": ctx.fence, "tokens": list(gathered)}
    _append(GATHERS, json.dumps(line))
    return len(gathered)
