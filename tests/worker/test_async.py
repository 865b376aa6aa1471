"""`async def` assets in real workers: many in one process, and what a death or a kill means for each of them."""

from __future__ import annotations

import os
import signal
from typing import Any

import pytest

from flowstone_celery.errors import RunFailed, StepTimeout
from worker.conftest import Site, Worker, until
from worker.shop import PAGES

pytestmark = pytest.mark.worker


@pytest.fixture(autouse=True)
def closed_gate(site: Site) -> None:
    """Nothing is noted, and what waits for a word waits."""
    for name in ("fetched", "go-fetched", "poison", "sleepy", "stubborn", "swallowed"):
        (site.scratch / name).unlink(missing_ok=True)


def counts(site: Site, run: Any, column: str) -> dict[int, int]:
    rows = site.rows(
        f"SELECT {column} AS n, count(*) AS steps FROM flowstone.steps WHERE run_id = %(run)s GROUP BY 1",
        run=run.uuid,
    )
    return {row["n"]: row["steps"] for row in rows}


def all_begun(site: Site, number: int) -> list[str]:
    return until(
        lambda: len(notes := site.notes("fetched")) >= number and notes, what=f"{number} to begin", seconds=30
    )


@pytest.mark.parametrize("pool", ["prefork", "threads", "solo"])
def test_as_many_as_the_window_is_wide_await_in_one_process(site: Site, pool: str) -> None:
    site.start(pool=pool, FLOWSTONE_ASYNC_WIDTH="150")
    run = site.fs.materialize_all("folded")
    notes = all_begun(site, 150)
    assert len(notes) == 150
    assert len(set(notes)) == 1
    site.go("fetched")
    assert run.get(timeout=30) == len(PAGES)
    assert counts(site, run, "attempt") == {1: len(PAGES) + 1}


def test_when_the_process_is_killed_all_come_back_and_none_is_to_blame(site: Site) -> None:
    site.start()
    run = site.fs.begin([site.fs.slice("fetched", page) for page in PAGES[:60]], only=None)
    (pid,) = set(all_begun(site, 60))
    os.kill(int(pid), signal.SIGKILL)
    until(lambda: counts(site, run, "losses").get(1) == 60, what="the release")
    site.go("fetched")
    until(lambda: run.status == "succeeded", seconds=40, what="all of them")
    assert counts(site, run, "crashes") == {0: 60}
    assert counts(site, run, "attempt") == {2: 60}


def test_a_poison_step_ends_as_failed_and_its_neighbors_succeed(site: Site) -> None:
    site.start()
    neighbors = site.fs.begin([site.fs.slice("fetched", page) for page in PAGES[:20]], only=None)
    all_begun(site, 20)
    deadly = site.fs.run("poison")
    until(lambda: site.notes("poison"), what="the poison")
    site.go("fetched")
    until(lambda: deadly.status == "failed" and neighbors.status == "succeeded", seconds=60, what="both ends")
    assert counts(site, deadly, "crashes") == {3: 1}
    assert counts(site, deadly, "losses") == {1: 1}
    assert counts(site, neighbors, "crashes") == {0: 20}


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_a_timeout_and_a_cancel_reach_their_own_steps_only(site: Site, pool: str) -> None:
    site.start(pool=pool)
    neighbors = site.fs.begin([site.fs.slice("fetched", page) for page in PAGES[:10]], only=None)
    cancelled = site.fs.begin([site.fs.slice("fetched", page) for page in PAGES[10:20]], only=None)
    late = site.fs.run("sleepy")
    all_begun(site, 20)
    cancelled.cancel()
    with pytest.raises(RunFailed) as failure:
        late.get(timeout=20)
    assert StepTimeout.code in str(failure.value.to_dict())
    until(lambda: cancelled.status == "cancelled", what="the cancel")
    site.go("fetched")
    until(lambda: neighbors.status == "succeeded", what="the neighbors")
    assert counts(site, neighbors, "attempt") == {1: 10}


def test_one_that_holds_the_loop_is_killed_and_its_only_neighbor_is_not_to_blame(site: Site) -> None:
    site.start()
    neighbor = site.fs.run("fetched", partition="p0", force=True)
    all_begun(site, 1)
    stubborn = site.fs.run("stubborn")
    until(lambda: stubborn.status == "failed", seconds=20, what="the kill")
    site.go("fetched")
    until(lambda: neighbor.status == "succeeded", seconds=20, what="the neighbor")
    assert site.notes("swallowed")
    assert counts(site, neighbor, "crashes") == {0: 1}
    assert counts(site, neighbor, "losses") == {1: 1}


def test_a_cold_stop_gives_all_back_at_no_cost(site: Site) -> None:
    worker: Worker = site.start()
    run = site.fs.begin([site.fs.slice("fetched", page) for page in PAGES[:30]], only=None)
    all_begun(site, 30)
    assert worker.stop(signal.SIGQUIT) < 10
    assert counts(site, run, "status") == {"ready": 30}
    assert [counts(site, run, name) for name in ("failures", "crashes", "losses")] == [{0: 30}] * 3
    run.cancel()
