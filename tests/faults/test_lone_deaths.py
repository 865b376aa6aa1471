"""kill -9 of keepers, and of those who asked for a cancel: what they had begun goes on without them."""

from __future__ import annotations

from pathlib import Path

import pytest
from faults.cluster import Cluster

from flowstone_celery.core import runs
from flowstone_celery.core.model import NewRun, NewStep, NoCarrier

pytestmark = pytest.mark.worker

KEEPER_POINTS = [
    "keeper.beat",
    "promise.before_commit",
    "promise.after_commit",
    "keeper.before_release",
    "release.before_commit",
    "release.after_commit",
]


@pytest.mark.parametrize(("point", "steps"), [("cancel.after_run_row", 3), ("cancel.between_batches", 5_001)])
def test_a_cancel_goes_on_when_the_one_who_asked_dies(fleet: Cluster, point: str, steps: int) -> None:
    plan = [NewStep("asset", "faultshop.tick", "faultshop.tick", "nobody") for _ in range(steps)]
    new = NewRun("asset", "faultshop.tick", plan)
    run = fleet.fs.handle(runs.begin(fleet.fs.database, NoCarrier(), new, settings=fleet.settings))
    client = fleet.client(f"fs.handle({run.id!r}).cancel()", FLOWSTONE_FAULT=f"{point}:1:kill9")
    assert client.wait(20) == -9
    assert (run.state, run.progress().finished) == ("cancelling", 5_000 if steps > 5_000 else 0)
    fleet.worker(slots=1)
    fleet.until(run.ready, run=run)
    assert run.state == "cancelled"
    assert {row["status"] for row in run.steps()} == {"cancelled"}


def _faults(folder: Path, points: list[str]) -> dict[str, object]:
    return {"FLOWSTONE_FAULT": ",".join(f"{point}:1:kill9:{folder / point}" for point in points)}


def _hurt_keeper(fleet: Cluster, points: list[str]) -> None:
    """Work of a kind that brings the keeper to each of its points."""
    fleet.worker(slots=1, **_faults(fleet.folder, points))
    later = fleet.start("work", delay=0.3)
    fleet.finish(later)
    fallen = fleet.start("work", metadata={"work": {"die": True, "first": True}})
    fleet.finish(fallen)
    for point in points:
        fleet.until((fleet.folder / point).exists, what=f"a process died at {point}")
    fleet.finish(fleet.diamond())


def test_the_keeper_dies_at_each_of_its_points(fleet: Cluster) -> None:
    _hurt_keeper(fleet, KEEPER_POINTS)


@pytest.mark.faults
@pytest.mark.parametrize("point", KEEPER_POINTS)
def test_the_keeper_dies_at_one_of_its_points(fleet: Cluster, point: str) -> None:
    _hurt_keeper(fleet, [point])
