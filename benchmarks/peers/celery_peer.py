"""Bare Celery: the same work with a Redis broker and result backend, all settings at their defaults."""

from __future__ import annotations

import os
import time

import celery

TIMEOUT = 120.0

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


DEEDS = {"ping": ping, "about": about, "warm": warm, "chain": chain, "latency": latency}
