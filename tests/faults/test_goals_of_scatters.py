"""Goals G4 and G5: how fast a large fan-out closes, and what it costs to open one.

Rules are asserted; times are figures (`figures.py`), and fail a test only far beyond their bar.
"""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from faults.cluster import Cluster, Measured
from faults.figures import Noted, p99
from faults.storm import Ledger, told

from benchmarks.memory import forget_peak, peak_mb
from benchmarks.sides import Side, alone
from flowstone_celery import Run

pytestmark = pytest.mark.goals

FAR_BEYOND = 4
LONG = pytest.mark.faults
_ITEM = "[item]"


# --- G4: closing ------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("items", "connections"),
    [
        (1_200, 8),
        pytest.param(10_000, 8, marks=[LONG, pytest.mark.timeout(600)]),
        pytest.param(10_000, 24, marks=[LONG, pytest.mark.timeout(600)]),
    ],
)
def test_a_fan_out_closes_as_fast_as_its_items_end(
    items: int, connections: int, figure: Noted, measured: Measured
) -> None:
    """Over so many connections at once, durably. No code of items runs: what is timed is the settling."""
    ways = {"one by one": {"ranged": 8}, "in parts of 100": {"ranged": 100, "parts": True}}
    with alone("benchmarks.apps.settlers") as servers, servers.client() as client:
        for way, options in ways.items():
            _close(client, connections, 20 * connections, **options)  # warm
            per_second, slowest = _close(client, connections, items, **options)
            what = f"{items:,} items that end {way}, {connections} connections"
            figure("G4", f"completions in a second, {what}", per_second, 5_000, at_least=True)
            figure("G4", f"p99 ms of a settlement, {what}", slowest, _BARS[connections])
            measured(what, (round(per_second), round(slowest, 1)))
    assert per_second > 5_000 / FAR_BEYOND**2, "items that end in parts, as hands settle them"


_BARS = {8: 5.0, 24: 15.0}


def _close(client: Side, connections: int, items: int, **options: Any) -> tuple[float, float]:
    """Completions in a second, and the 99th percentile of a settlement in milliseconds; the barrier has closed with all items."""
    each = -(-items // connections)
    answer = client.ask("settled", settlers=connections, items=each, processes=2, **options)
    return each * connections / answer["seconds"], 1_000 * p99(answer["times"])


# --- G5: opening ------------------------------------------------------------------------------------------------------------------------


@pytest.mark.worker
@pytest.mark.parametrize("items", [10_000, pytest.param(100_000, marks=[LONG, pytest.mark.timeout(600)])])
def test_a_large_scatter_opens_fast_and_in_little_memory(
    fleet: Cluster, items: int, figure: Noted, measured: Measured
) -> None:
    worker = fleet.worker(module="itemshop", slots=2)
    warm = fleet.start("items", partition="warm", metadata={"items": 100})
    fleet.finish(warm)
    for pid in worker.children:
        forget_peak(pid)
    before = max(peak_mb(pid) for pid in worker.children)
    called = time.time()
    run = fleet.start("items", metadata={"items": items})
    waiting = fleet.until(
        lambda: _waiting(fleet, run), within=60, run=run, what="the step waits for its items"
    )
    seen, peak = time.time(), max(peak_mb(pid) for pid in worker.children)
    messages = _messages(fleet, run)
    first = min(start.at for start in Ledger(fleet).starts(run))
    found = told(fleet, run, items)
    figure("G5", f"seconds from the call until all of {items:,} items stand", seen - called, 10)
    figure("G5", f"seconds from then to the first item's code, {items:,} items", first - waiting["at"], 1)
    figure("G5", f"MB of the process that made {items:,} items", peak, 150)
    figure("G5", "bytes of the longest message that calls a hand", max(messages), 1_200)
    measured("MB of it before", round(before))
    measured("seconds until all had ended", round(time.time() - called, 1))
    assert (found.lost, found.strange, found.starts, found.gathers) == (0, 0, items, 1)
    assert seen - called < 10 * FAR_BEYOND
    assert first - waiting["at"] < FAR_BEYOND
    assert max(messages) < 1_200


def _waiting(fleet: Cluster, run: Run) -> dict[str, Any] | None:
    return next(iter(fleet.sql(_WAITING, run=run.uuid)), None)


_WAITING = """
SELECT extract(epoch FROM at)::float8 AS at FROM flowstone.history WHERE run_id = %(run)s AND event = 'step.waiting'
"""


def _messages(fleet: Cluster, run: Run) -> set[int]:
    """The sizes of the messages that call hands, as they lie in Redis until the run has ended."""
    sizes = set()
    while not run.ready():
        waiting = [*fleet.redis.lrange("celery", 0, -1)]
        taken = [json.dumps(json.loads(each)[0]).encode() for each in fleet.redis.hvals("unacked")]
        sizes |= {len(each) for each in (*waiting, *taken) if _ITEM in json.loads(each)["headers"]["task"]}
        time.sleep(0.01)
    fleet.finish(run)
    return sizes
