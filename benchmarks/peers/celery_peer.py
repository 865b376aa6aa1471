"""Bare Celery: the same work with a Redis broker and result backend, all settings at their defaults."""

from __future__ import annotations

import os
import time

import celery

TIMEOUT = 120.0
SLOWEST = 20.0
"""Items of a chord in a second at least, on any machine: what takes longer has stopped."""
ITEM_SECONDS = float(os.environ.get("BENCHMARK_ITEM_MS", "0")) / 1000

url = os.environ["BENCHMARK_BROKER_URL"]
app = celery.Celery("peer", broker=url, backend=url)


@app.task  # type: ignore[untyped-decorator, unused-ignore] # celery has no types
def step(value: int) -> int:
    """Do nothing."""
    return value


@app.task  # type: ignore[untyped-decorator, unused-ignore] # celery has no types
def stamp() -> float:
    """Answer when the first line of user code ran."""
    return time.time()


@app.task  # type: ignore[untyped-decorator, unused-ignore] # celery has no types
def item(value: int) -> int:
    """Wait for as long as an item of this benchmark lasts."""
    if ITEM_SECONDS:
        time.sleep(ITEM_SECONDS)
    return value


@app.task  # type: ignore[untyped-decorator, unused-ignore] # celery has no types
def count(values: list[int]) -> int:
    """Gather."""
    return len(values)


def ping() -> int:
    """How many workers answer."""
    return len(app.control.ping(timeout=0.5))


def about() -> dict[str, str]:
    """The peer's version."""
    return {"celery": celery.__version__}


def warm() -> None:
    """Both children have run something."""
    for pending in [stamp.delay() for _ in range(16)]:
        pending.get(timeout=TIMEOUT)


def chain(steps: int) -> float:
    """Seconds from the call to the last value in the client's hands."""
    begun = time.perf_counter()
    celery.chain(step.s(0), *[step.s() for _ in range(steps - 1)]).apply_async().get(timeout=TIMEOUT)
    return time.perf_counter() - begun


def latency(samples: int) -> list[float]:
    """Seconds from each call to the first line of user code, one at a time."""
    return [_one_latency() for _ in range(samples)]


def _one_latency() -> float:
    called = time.time()
    started: float = stamp.delay().get(timeout=TIMEOUT)
    return started - called


def scatter(items: int) -> float:
    """Seconds from the call to what the body of a chord of so many tasks made of their results."""
    begun = time.perf_counter()
    pending = celery.chord([item.s(number) for number in range(items)])(count.s())
    gathered = pending.get(timeout=TIMEOUT + items * (1 / SLOWEST + ITEM_SECONDS))
    seconds = time.perf_counter() - begun
    assert gathered == items, f"{gathered} of {items} items"
    return seconds


def dag(width: int) -> float:
    """Seconds from the call of one task, as many as this beside each other, and one of all their results, to the last value."""
    begun = time.perf_counter()
    middle = celery.group([step.s() for _ in range(width)])
    gathered = celery.chain(step.s(0), middle, count.s()).apply_async().get(timeout=TIMEOUT)
    seconds = time.perf_counter() - begun
    assert gathered == width, f"{gathered} of {width} tasks"
    return seconds


DEEDS = {
    "ping": ping,
    "about": about,
    "warm": warm,
    "chain": chain,
    "latency": latency,
    "scatter": scatter,
    "dag": dag,
}
