"""One value, one maker, on real workers: runs that meet at a slice make it once, also when its maker is killed."""

from __future__ import annotations

import os
import signal
from typing import Any

import pytest

from worker import shop
from worker.conftest import Site, Worker, until

pytestmark = pytest.mark.worker


@pytest.fixture(scope="module", autouse=True)
def workers(module_site: Site) -> list[Worker]:
    """Two workers of two slots each, for the whole module."""
    return [module_site.start(slots=2), module_site.start(slots=2)]


def _all_wait(site: Site, runs: list[Any]) -> bool:
    """Whether one of these runs makes the value and no other has begun."""
    states = [step["status"] for run in runs for step in run.steps()]
    return sorted(states) == ["ready"] * (len(runs) - 1) + ["running"]


def test_twenty_runs_at_once_are_one_call(site: Site) -> None:
    runs = [site.fs.run(shop.slow, partition="met") for _ in range(20)]
    until(lambda: _all_wait(site, runs))
    other = site.fs.run(shop.quick, partition="beside the waiting ones")
    assert other.get(timeout=15) == "beside the waiting ones"
    (site.scratch / "go-met").touch()
    assert [run.get(timeout=15) for run in runs] == ["met"] * 20
    assert len(shop.notes("slow-met", site.scratch)) == 1


def test_a_maker_that_is_killed_is_succeeded_at_once(site: Site) -> None:
    runs = [site.fs.run(shop.slow, partition="killed") for _ in range(5)]
    until(lambda: _all_wait(site, runs))
    until(lambda: shop.notes("slow-killed", site.scratch))
    os.kill(int(shop.notes("slow-killed", site.scratch)[0]), signal.SIGKILL)
    until(lambda: len(shop.notes("slow-killed", site.scratch)) == 2, what="a successor")
    (site.scratch / "go-killed").touch()
    assert [run.get(timeout=15) for run in runs] == ["killed"] * 5
    assert len(shop.notes("slow-killed", site.scratch)) == 2


def test_forced_runs_make_their_own_one_after_the_other(site: Site) -> None:
    runs = [site.fs.run(shop.slow, partition="forced", force=True) for _ in range(3)]
    until(lambda: _all_wait(site, runs))
    (site.scratch / "go-forced").touch()
    assert [run.get(timeout=15) for run in runs] == ["forced"] * 3
    assert len(shop.notes("slow-forced", site.scratch)) == 3
