"""kill -9 at every crash point: whatever dies, and wherever, the run ends as it should, by itself."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from faults.cluster import Cluster, cluster
from faults.test_lone_deaths import KEEPER_POINTS

from flowstone_celery import faults
from flowstone_celery.testing.databases import Databases

pytestmark = pytest.mark.worker

WORKER_POINTS = [
    "worker.received",
    "claim.after_commit",
    "user.start",
    "user.end",
    "settle.value_written",
    "settle.before_commit",
    "settle.after_commit",
    "continue.after_commit",
    "promise.after_commit",
    "publish.before_flush",
    "publish.after_flush",
]
CLIENT_POINTS = [
    "run.create.before_commit",
    "run.create.after_commit",
    "publish.before_flush",
    "publish.after_flush",
]
ELSEWHERE = {
    "sweep.before_commit": "test_the_sweep_of_a_lost_lease_survives_its_own_death",
    "cancel.after_run_row": "test_a_cancel_goes_on_when_the_one_who_asked_dies",
    "cancel.between_batches": "test_a_cancel_goes_on_when_the_one_who_asked_dies",
    "join.after_commit": "test_a_client_that_is_killed_leaves_a_run_exactly_where_it_leaves_its_row",
    "request.after_commit": "test_a_cancel_that_was_asked_for_goes_on_when_the_one_who_does_it_dies",
    "retention.between_batches": "the tests of `flowstone db prune`",
    "scatter.page_added": "test_a_killed_process_is_followed_by_one_that_goes_on",
    "range.after_commit": "test_a_hand_that_dies_between_two_items_costs_nobody_anything",
    "part.before_commit": "test_a_hand_that_dies_between_two_items_costs_nobody_anything",
    "part.after_commit": "test_a_hand_that_dies_between_two_items_costs_nobody_anything",
    # No process is at work at these but the one who asked: crashed without Celery, in tests/core/test_crash_matrix.py.
    "lane.after_admit": "test_what_crashes_outside_a_run_is_done_by_the_next",
    "retry.after_commit": "test_what_crashes_outside_a_run_is_done_by_the_next",
    "pause.after_run_row": "test_what_crashes_outside_a_run_is_done_by_the_next",
    "resume.after_run_row": "test_what_crashes_outside_a_run_is_done_by_the_next",
    "deadline.after_run_row": "test_what_crashes_outside_a_run_is_done_by_the_next",
}


def test_every_crash_point_has_its_test() -> None:
    assert {*WORKER_POINTS, *KEEPER_POINTS, *CLIENT_POINTS, *ELSEWHERE} == set(faults.POINTS)


@pytest.fixture(scope="module")
def shared(servers_of_module: Databases, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """One worker of one slot for all points: it is hurt again and again. Nobody else may use its servers meanwhile."""
    with cluster(servers_of_module, tmp_path_factory.mktemp("shared")) as found:
        found.worker(slots=1)
        yield found


@pytest.fixture
def hurt(shared: Cluster) -> Iterator[Cluster]:
    yield shared
    shared.check()


@pytest.mark.parametrize("point", WORKER_POINTS)
def test_a_process_of_the_pool_dies(hurt: Cluster, point: str) -> None:
    once = hurt.file(point)
    armed = hurt.start("work", metadata={"work": {"arm": [point, "kill9", str(once)]}})
    run = hurt.diamond()
    hurt.finish(armed, run)
    hurt.until(once.exists, what=f"a process died at {point}")


def test_a_connection_that_breaks_inside_a_settlement_costs_no_attempt(hurt: Cluster) -> None:
    once = hurt.file("settle")
    armed = hurt.start("work", metadata={"work": {"arm": ["settle.before_commit", "drop_conn", str(once)]}})
    run = hurt.diamond()
    hurt.finish(armed, run)
    assert once.exists()
    assert [row["attempt"] for row in (*armed.steps(), *run.steps())] == [1] * 5


@pytest.mark.parametrize("point", CLIENT_POINTS)
def test_a_client_dies_while_it_starts_a_run(hurt: Cluster, point: str) -> None:
    client = hurt.client(
        f"fs.begin(['faultshop.join'], '', only=None, key={point!r})", FLOWSTONE_FAULT=f"{point}:1:kill9"
    )
    assert client.wait(20) == -9
    found = hurt.sql("SELECT id FROM flowstone.runs WHERE idempotency_key = %(key)s", key=point)
    assert len(found) == (point != "run.create.before_commit")
    hurt.finish(*(hurt.fs.handle(row["id"]) for row in found))
