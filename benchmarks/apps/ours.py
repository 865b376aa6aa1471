"""FlowStone on an ordinary Celery app: the same work as durable runs of assets."""

from __future__ import annotations

import asyncio
import inspect
import json
import os
import random
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import celery

from flowstone_celery import FlowStone, Gathered, Scatter
from flowstone_celery.assets.partition import encode
from flowstone_celery.assets.plan import Request, plan
from flowstone_celery.assets.slices import Slice
from flowstone_celery.core import runs

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from flowstone_celery import Asset, Context, Run

TIMEOUT = 120.0
FAR = 3600.0
"""Seconds until the first of the timers that only wait."""
_BATCH = 500
_LEAD = 1.0

app = celery.Celery("ours", broker=os.environ["BENCHMARK_BROKER_URL"])
fs = FlowStone(app)
partitions = iter(range(10**9))


@fs.asset
def stamp() -> float:
    """Answer when the first line of user code ran."""
    return time.time()


def ping() -> int:
    """How many workers answer."""
    return len(app.control.ping(timeout=0.5))


def about() -> dict[str, str]:
    """The version of Celery that carries us."""
    return {"celery": celery.__version__}


def warm() -> None:
    """Both children have run something."""
    for run in [stamp.delay(next(partitions)) for _ in range(16)]:
        run.get(timeout=TIMEOUT)


@fs.asset
def after(stamp: float) -> float:
    """Stand on another."""
    return stamp


# --- chain ----------------------------------------------------------------------------------------------------------------------


def chain(steps: int) -> float:
    """Seconds from the call to the last value in the client's hands."""
    partition = next(partitions)
    begun = time.perf_counter()
    fs.materialize_all(f"step_{steps - 1}", partition=partition).get(timeout=TIMEOUT)
    return time.perf_counter() - begun


def _declare_chain(steps: int) -> None:
    """Assets of which each takes the value of the one before."""
    for number in range(steps):
        fs.asset(name=f"step_{number}")(_no_op([f"step_{number - 1}"] if number else []))


def _no_op(takes: list[str]) -> Callable[..., Any]:
    def no_op(**values: int) -> int:
        """Do nothing."""
        return next(iter(values.values()), 0)

    return _taking(takes, no_op)


def _taking(takes: list[str], function: Callable[..., Any]) -> Callable[..., Any]:
    function.__signature__ = inspect.Signature(  # type: ignore[attr-defined] # read by inspect.signature
        [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY) for name in takes]
    )
    return function


_declare_chain(int(os.environ.get("BENCHMARK_STEPS", "0")))


# --- scatter --------------------------------------------------------------------------------------------------------------------

_SCATTER: dict[str, Any] = json.loads(os.environ.get("BENCHMARK_SCATTER", "{}"))
"""Options of `Scatter`, and `async`: whether items are awaited."""
_ITEM_SECONDS = float(os.environ.get("BENCHMARK_ITEM_MS", "0")) / 1000
SLOWEST = 100.0
"""Items of a scatter in a second at least, on any machine: what takes longer has stopped."""
LISTED = 100_000
"""Keys that are told as a list; more than these are told one after the other."""


def _item(item: int) -> int:
    """Wait for as long as an item of this benchmark lasts."""
    if _ITEM_SECONDS:
        time.sleep(_ITEM_SECONDS)
    return item


async def _awaited(item: int) -> int:
    """The same, awaited."""
    await asyncio.sleep(_ITEM_SECONDS)
    return item


def _keys(ctx: Context) -> Sequence[int]:
    """As many items as its partition says."""
    items = int(str(ctx.partition).partition("-")[0])
    return list(range(items)) if items <= LISTED else range(items)


def _declare_scatter(options: dict[str, Any]) -> None:
    function = _awaited if options.pop("async", False) else _item
    fs.asset(name="items", scatter=Scatter(unique=False, **options))(function).keys(_keys)


if _SCATTER:
    _declare_scatter(_SCATTER)


def scatter(items: int) -> float:
    """Seconds from the call to the end of a run that scatters over so many keys, as its client sees it."""
    partition = f"{items}-{next(partitions)}"
    begun = time.perf_counter()
    fs.run("items", partition=partition).wait(timeout=TIMEOUT + items * (1 / SLOWEST + _ITEM_SECONDS))
    seconds = time.perf_counter() - begun
    gathered = fs.get("items", partition=partition)
    assert isinstance(gathered, Gathered)
    assert gathered.counts.succeeded == items, gathered.counts
    return seconds


# --- 1, many, 1 -----------------------------------------------------------------------------------------------------------------


def dag(width: int) -> float:
    """Seconds from the call to the last value in the client's hands."""
    partition = next(partitions)
    begun = time.perf_counter()
    gathered = fs.materialize_all("dag_last", partition=partition).get(timeout=TIMEOUT)
    seconds = time.perf_counter() - begun
    assert gathered == width, f"{gathered} of {width} assets"
    return seconds


def _declare_dag(width: int) -> None:
    """One asset, as many as this that take its value, and one that takes all of theirs."""
    fs.asset(name="dag_first")(_no_op([]))
    names = [f"dag_{number}" for number in range(width)]
    for name in names:
        fs.asset(name=name)(_no_op(["dag_first"]))
    fs.asset(name="dag_last")(_taking(names, lambda **values: len(values)))


if "BENCHMARK_WIDTH" in os.environ:
    _declare_dag(int(os.environ["BENCHMARK_WIDTH"]))


# --- latency --------------------------------------------------------------------------------------------------------------------


def latency(samples: int) -> list[float]:
    """Seconds from each call to the first line of user code, one at a time."""
    return [_one_latency() for _ in range(samples)]


def _one_latency() -> float:
    partition = next(partitions)
    called = time.time()
    started: float = stamp.delay(partition).get(timeout=TIMEOUT)
    return started - called


# --- side by side ---------------------------------------------------------------------------------------------------------------


@fs.asset
async def waiting() -> None:
    """Wait, and nothing else."""
    await asyncio.sleep(float(os.environ["BENCHMARK_WAIT"]))


def side_by_side(steps: int) -> float:
    """Seconds from the call to the end of a run of so many steps that wait."""
    slices = [Slice(waiting.name, encode(next(partitions))) for _ in range(steps)]
    begun = time.perf_counter()
    fs.begin(slices, only=None).wait(timeout=TIMEOUT)
    return time.perf_counter() - begun


# --- timers ---------------------------------------------------------------------------------------------------------------------


def wait_far(count: int) -> int:
    """As many runs stand ready, each due at a moment of its own, an hour from now and later. Answers how many."""
    for begin in range(0, count, _BATCH):
        batch = range(begin, min(begin + _BATCH, count))
        with fs.database.transaction() as tx:
            for number in batch:
                runs.start(tx, _due_in(stamp, FAR + number), settings=fs.settings)
    return count


def wait_blocked(count: int) -> int:
    """As many steps wait: half are due at a moment of their own, an hour from now and later, and each of the others waits for one of them."""
    for begin in range(0, count // 2, _BATCH):
        with fs.database.transaction() as tx:
            for number in range(begin, min(begin + _BATCH, count // 2)):
                runs.start(tx, _due_in(after, FAR + number), settings=fs.settings)
    return count // 2 * 2


def _due_in(asset: Asset[..., Any], seconds: float) -> Any:
    """The run that `asset.apply_async(countdown=seconds)` starts, to be started with many others in one transaction."""
    request = Request([Slice(asset.name, encode(next(partitions)))], due_in=seconds)
    return plan(fs.catalog, request, lambda _: app.conf.task_default_queue)


def timers(samples: int, seconds: float) -> list[float]:
    """Seconds from each due time to the first line of user code; the due times are spread at random over so many seconds."""
    waiting = [_timer(_LEAD + random.uniform(0, seconds)) for _ in range(samples)]
    return [run.get(timeout=TIMEOUT) - due.timestamp() for run, due in waiting]


def _timer(countdown: float) -> tuple[Run, datetime]:
    run = stamp.apply_async(args=(next(partitions),), countdown=countdown)
    due: datetime = run.steps()[0]["due_at"]
    return run, due.astimezone(UTC)


DEEDS = {
    "ping": ping,
    "about": about,
    "warm": warm,
    "chain": chain,
    "latency": latency,
    "wait_far": wait_far,
    "wait_blocked": wait_blocked,
    "timers": timers,
    "side_by_side": side_by_side,
    "scatter": scatter,
    "dag": dag,
}
