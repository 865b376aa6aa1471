"""The app whose workers the fault tests kill: assets that do as their run's metadata says and write down that they began and ended.

`metadata={"left": {"sleep": 2, "first": True}}` tells asset `left` what to do; `first` keeps it to the first attempt.
"""

from __future__ import annotations

import json
import os
import re
import signal
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from celery import Celery

from flowstone_celery import Context, FlowStone, faults
from flowstone_celery.db.statements import Statement

if TYPE_CHECKING:
    from collections.abc import Callable

_armed = ExitStack()

SINK = "FAULTSHOP_SINK"
OPTIONS = "FAULTSHOP_TRANSPORT"

app = Celery("faultshop")
app.conf.worker_prefetch_multiplier = 1
app.conf.broker_connection_retry_on_startup = True
app.conf.broker_transport_options = json.loads(os.environ.get(OPTIONS, "{}"))
fs = FlowStone(app)


_ENTER = Statement(
    "faultshop",
    "enter",
    frozenset(),
    "INSERT INTO ledger (key, fence, pid) VALUES (%(key)s, %(fence)s, %(pid)s)",
)


def note(event: str, ctx: Context) -> None:
    """One line in the sink: appended at once, so that no kill leaves half of it."""
    line = {
        "event": event,
        "asset": ctx.asset.rpartition(".")[2],
        "partition": ctx.partition,
        "run": str(ctx.run_id),
        "key": ctx.idempotency_key,
        "fence": ctx.fence,
        "attempt": ctx.attempt,
        "pid": os.getpid(),
        "at": time.time(),
    }
    sink = os.open(os.environ[SINK], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(sink, json.dumps(line).encode() + b"\n")
    finally:
        os.close(sink)


def _wait_for(path: str, ctx: Context) -> None:
    while not Path(path).exists():
        ctx.check()
        time.sleep(0.01)


def _hold_lock(seconds: float, _: Context) -> None:
    """Hold the interpreter's lock in one call of C code for at least so long."""
    length, begun = 22, time.monotonic()
    while time.monotonic() - begun < seconds:
        re.match(r"(a+)+$", "a" * length + "b")
        length += 1


def _raise(text: str, _: Context) -> None:
    raise ValueError(text)


def _arm(fault: list[str], _: Context) -> None:
    """From here on a fault lies at a crash point of this process, for the first of all that share the file."""
    point, action, once_file = fault
    _armed.enter_context(faults.arm(point, action, once_file=once_file))


def _die(_: Any, ctx: Context) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _deaf(seconds: float, _: Context) -> None:
    """Hear no interrupt for so long."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})
    time.sleep(seconds)


def _busy(seconds: float, _: Context) -> None:
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        sum(range(1000))


DEEDS: dict[str, Callable[[Any, Context], None]] = {
    "sleep": lambda seconds, _: time.sleep(seconds),
    "busy": _busy,
    "wait": _wait_for,
    "hold_lock": _hold_lock,
    "raise": _raise,
    "arm": _arm,
    "die": _die,
    "deaf": _deaf,
}


def do(ctx: Context) -> int:
    """What the run's metadata says for this asset; answers the pid, so that a value tells who made it."""
    note("start", ctx)
    deeds = dict(ctx.metadata.get(ctx.asset.rpartition(".")[2]) or {})
    if not (deeds.pop("first", False) and ctx.attempt > 1):
        for name, argument in deeds.items():
            DEEDS[name](argument, ctx)
    note("end", ctx)
    return os.getpid()


@fs.asset
def seed(ctx: Context) -> int:
    """Where the diamond begins."""
    return do(ctx)


@fs.asset
def left(seed: int, ctx: Context) -> int:
    """One side."""
    return do(ctx)


@fs.asset
def right(seed: int, ctx: Context) -> str:
    """The other side: a value so large that it is written before its settlement."""
    do(ctx)
    return os.urandom(100_000).hex()


@fs.asset
def join(left: int, right: str, ctx: Context) -> int:
    """Where the diamond ends."""
    do(ctx)
    return len(right)


@fs.asset
def work(ctx: Context) -> int:
    """A step of its own."""
    return do(ctx)


@fs.asset(retries=1, retry_delay=0.1, timeout=1.0)
def timed(ctx: Context) -> int:
    """A step that may take one second, twice."""
    return do(ctx)


@fs.asset(timeout=1.0)
def stubborn(ctx: Context) -> int:
    """A step that may take one second, once."""
    return do(ctx)


@fs.asset
def ledger(ctx: Context) -> int:
    """A step with an effect outside: a row that names the attempt, written before the step has ended."""
    note("start", ctx)
    time.sleep(float(ctx.metadata.get("pause", 0)))
    fs.database.once(_ENTER, key=ctx.idempotency_key, fence=ctx.fence, pid=os.getpid())
    note("end", ctx)
    return os.getpid()


@fs.asset
def brittle(ctx: Context) -> int:
    """A step that fails for the partitions that are named, until a file is there."""
    if ctx.partition in ctx.metadata["bad"] and not Path(ctx.metadata["mended"]).exists():
        raise ValueError("not yet")
    return ctx.attempt


@fs.asset
def tick(ctx: Context) -> int:
    """A step that writes nothing down and takes its time."""
    time.sleep(float((ctx.metadata or {}).get("pause", 0)))
    return ctx.attempt
