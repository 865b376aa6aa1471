"""A graph of many assets, and what it costs to plan, judge and start it. No worker: nothing here is run.

The assets stand in layers of `WIDTH`; each needs one to three of the layer before. Beside them stands a chain of assets with as many
partitions as asked for, and a pair of assets for runs of any size.
"""

from __future__ import annotations

import inspect
import os
import random
import time
from typing import TYPE_CHECKING, Any

import celery

from benchmarks.memory import forget_peak, peak_mb
from flowstone_celery import FlowStone, Static
from flowstone_celery.assets.partition import encode
from flowstone_celery.assets.plan import Request, plan
from flowstone_celery.assets.recipe import recipe
from flowstone_celery.assets.slices import Slice
from flowstone_celery.codec import digest
from flowstone_celery.db.statements import Statement

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

WIDTH = 50
CHAIN = 10
"""Assets that the partitioned one stands on, one on the other."""

_ASSETS = int(os.environ["BENCHMARK_ASSETS"])
_PARTITIONS = int(os.environ["BENCHMARK_PARTITIONS"])
_KEYS = [f"k{number:06}" for number in range(_PARTITIONS)]
_VALUE = b"1"
_BATCH = 5_000

app = celery.Celery("graph", broker=os.environ["BENCHMARK_BROKER_URL"])
fs = FlowStone(app)


def _function(takes: Iterable[str]) -> Callable[..., Any]:
    def made(**values: int) -> int:
        """Never called."""
        return len(values)

    made.__signature__ = inspect.Signature(  # type: ignore[attr-defined] # read by inspect.signature
        [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY) for name in takes]
    )
    return made


def _declare() -> float:
    """All assets stand; answers the seconds that the layers took."""
    chance = random.Random(7)
    begun = time.perf_counter()
    for number in range(_ASSETS):
        first = number // WIDTH * WIDTH
        before = range(first - WIDTH, first) if first else range(0)
        takes = sorted(chance.sample(before, chance.randint(1, 3))) if before else []
        fs.asset(name=f"layer_{number}", code_version="1")(_function(f"layer_{each}" for each in takes))
    declared = time.perf_counter() - begun
    keys = Static(_KEYS)
    for number in range(CHAIN + 1):
        takes = [f"link_{number - 1}"] if number else []
        fs.asset(name=f"link_{number}", code_version="1", partitions=keys)(_function(takes))
    fs.asset(name="raw", code_version="1")(_function([]))
    fs.asset(name="cooked", code_version="1")(_function(["raw"]))
    return declared


DECLARED = _declare()


def _full(name: str) -> str:
    return fs.catalog.fetch(name).qualified


def _layers() -> list[Slice]:
    return [Slice(_full(f"layer_{number}"), "") for number in range(_ASSETS)]


def _links(number: int = CHAIN) -> list[Slice]:
    return [Slice(_full(f"link_{number}"), encode(key)) for key in _KEYS]


# --- values -----------------------------------------------------------------------------------------------------------------------


def fill() -> int:
    """Every slice has the fresh value that a run would have left, written in bulk; answers how many."""
    wanted = [*_layers(), *(each for number in range(CHAIN + 1) for each in _links(number))]
    for begin in range(0, len(wanted), _BATCH):
        _write(wanted[begin : begin + _BATCH])
    fs.database.once(_sql("ANALYZE"))
    return len(wanted)


def _write(slices: list[Slice]) -> None:
    content = digest(1)
    needs = fs.slices().needs
    recipes = [
        recipe(
            fs.catalog.fetch(each.asset),
            ((one.asset, one.partition, content) for _, listed in needs(each) for one in listed),
        )
        for each in slices
    ]
    fs.database.once(
        _WRITE,
        assets=[each.asset for each in slices],
        partitions=[each.partition for each in slices],
        recipes=recipes,
        digest=content,
        content=_VALUE,
    )


def _sql(text: str) -> Statement:
    return Statement("benchmarks", "ad hoc", frozenset(), text)


_WRITE = _sql(
    """
WITH made AS (
    INSERT INTO flowstone.asset_values (asset, partition, run_id, step_id, fence, io, content, size, digest, code_version, recipe, settled_at)
    SELECT w.asset, w.partition, gen_random_uuid(), nextval('flowstone.steps_id_seq'), 1, 'database', %(content)s, length(%(content)s), %(digest)s,
           '1', w.recipe, flowstone.now()
      FROM unnest(%(assets)s::text[], %(partitions)s::text[], %(recipes)s::text[]) AS w(asset, partition, recipe)
    RETURNING id, asset, partition
)
INSERT INTO flowstone.asset_current (asset, partition, value_id) SELECT asset, partition, id FROM made
"""
)


# --- what is timed ----------------------------------------------------------------------------------------------------------------


def ping() -> int:
    """The client is there, and its connection open."""
    fs.database.once(_sql("SELECT 1"))
    return 1


def declared() -> float:
    """Seconds that the declarations of the layers took as this process began."""
    return DECLARED


def planned() -> float:
    """Seconds to plan a run of all layers, in a process that has planned nothing."""
    begun = time.perf_counter()
    found = plan(fs.catalog, Request(_layers()), lambda _: "celery")
    assert len(found.steps) == _ASSETS
    return time.perf_counter() - begun


def fresh_layers() -> float:
    """Seconds to say of all layers that they are fresh."""
    return _all_fresh(_layers())


def fresh_partitions() -> float:
    """Seconds to say of all partitions of the chain's last asset that they are fresh, with all that they stand on."""
    return _all_fresh(_links())


def _all_fresh(wanted: list[Slice]) -> float:
    begun = time.perf_counter()
    found = fs.freshness_of(wanted)
    seconds = time.perf_counter() - begun
    unlike = [each for each in found.values() if each.state.value != "fresh"]
    assert len(found) == len(wanted)
    assert not unlike, unlike[0]
    return seconds


def started_layers() -> float:
    """Seconds to start a run of all layers, from the call to the handle."""
    return _started(_layers(), _ASSETS)[0]


def started_many(steps: int) -> tuple[float, float]:
    """Seconds to start a run of so many steps, half of which need one of the other half; the greatest memory of the process meanwhile, in MB."""
    cooked = _full("cooked")
    return _started([Slice(cooked, encode(number)) for number in range(steps // 2)], steps // 2 * 2)


def _started(targets: list[Slice], steps: int) -> tuple[float, float]:
    forget_peak()
    begun = time.perf_counter()
    run = fs.begin(targets, only=None)
    seconds = time.perf_counter() - begun
    peak = peak_mb()
    assert run.row["total_steps"] == steps
    fs.database.once(
        _sql("TRUNCATE flowstone.runs, flowstone.steps, flowstone.step_edges, flowstone.history")
    )
    return seconds, peak


DEEDS = {
    "about": lambda: {"celery": celery.__version__},
    "ping": ping,
    "fill": fill,
    "declared": declared,
    "planned": planned,
    "fresh_layers": fresh_layers,
    "fresh_partitions": fresh_partitions,
    "started_layers": started_layers,
    "started_many": started_many,
}
