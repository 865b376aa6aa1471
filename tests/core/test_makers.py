"""One maker: of the steps that make the same, one runs at a time; the others stand aside and come back when it has ended, however it did."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest
from corelab import AT_ONCE, QUEUE, TASK, Lab, in_threads, step

from flowstone_celery.core import barriers, steps
from flowstone_celery.core.barrier_model import Ended, NewBarrier, Policy, Scattered
from flowstone_celery.core.model import Claim, Done
from flowstone_celery.outcomes import Cancel, Fail, Retry, Skip
from flowstone_celery.record import values
from flowstone_celery.record.values import NewValue
from flowstone_celery.states import StepStatus

if TYPE_CHECKING:
    from uuid import UUID


def two_runs(lab: Lab, **options: object) -> tuple[UUID, UUID]:
    """Two runs that are to make the same."""
    return lab.start(step("a", sole=True, **options)), lab.start(step("a", sole=True, **options))


def claimed(lab: Lab, run: UUID, worker: int) -> Claim | None:
    return lab.claim(worker, lab.id_of(run, "a"))


def test_a_wake_up_that_finds_the_maker_at_work_parks_its_step(lab: Lab) -> None:
    one, two = two_runs(lab)
    worker = lab.worker()
    assert claimed(lab, one, worker) is not None
    assert claimed(lab, two, worker) is None
    row = lab.steps(two)["a"]
    assert (row["status"], row["parked"], row["sent_at"]) == ("ready", "maker", None)
    assert row["awaited_at"] is not None
    assert lab.reasons(two) == {"a": f"run {one} makes the same value now"}


def test_a_query_passes_over_what_somebody_makes(lab: Lab) -> None:
    one, two = two_runs(lab)
    other = lab.start(step("b", sole=True))
    worker = lab.worker()
    assert claimed(lab, one, worker) is not None
    found = lab.claim_next(worker)
    assert found is not None
    assert (found.run_id, found.name) == (other, "b")
    assert lab.claim_next(worker) is None
    assert lab.statuses(two) == {"a": "ready"}


@pytest.mark.parametrize("other", [{"partition": "p"}, {"name": "b"}, {"sole": False}])
def test_other_slices_and_steps_that_are_not_sole_run_beside_it(lab: Lab, other: dict[str, object]) -> None:
    one = lab.start(step("a", sole=True))
    two = lab.start(step(**{"name": "a", "sole": True, **other}))
    worker = lab.worker()
    assert claimed(lab, one, worker) is not None
    assert lab.claim(worker, lab.id_of(two, str(other.get("name", "a")))) is not None


ENDS: dict[str, object] = {
    "succeeded": Done(),
    "failed": Fail("no"),
    "skipped": Skip("no"),
    "cancelled": Cancel("no"),
    "retry": Retry(after=3600.0),
}


@pytest.mark.parametrize("end", ENDS)
def test_whoever_waits_is_called_when_the_maker_ends_or_waits_itself(lab: Lab, end: str) -> None:
    one, two = two_runs(lab, max_failures=2)
    order: list[UUID] = []

    def make(claim: Claim) -> object:
        order.append(claim.run_id)
        if claim.run_id == one:
            assert claimed(lab, two, claim.worker_id) is None  # its wake-up comes while the maker is at work
            return ENDS[end]
        return Done()

    lab.answers["a"] = make  # type: ignore[assignment]
    lab.executor().work(lab.id_of(one, "a"), QUEUE)
    lab.drain(advance=False)
    assert order == [one, two]
    assert lab.statuses(two) == {"a": "succeeded"}
    assert lab.steps(one)["a"]["status"] == ("ready" if end == "retry" else end)


def test_who_waits_gets_a_wake_up_of_its_own_when_the_maker_settles(lab: Lab) -> None:
    one, two = two_runs(lab)
    waiting = lab.id_of(two, "a")

    def make(claim: Claim) -> Done:
        if claim.run_id == one:
            lab.claim(claim.worker_id, waiting)
            lab.postbox.take()
        return Done()

    lab.answers["a"] = make
    lab.executor().work(lab.id_of(one, "a"), QUEUE, going_on=False)
    assert [wakeup.step for wakeup in lab.postbox.take()] == [waiting]


def test_a_maker_whose_worker_died_is_succeeded(lab: Lab) -> None:
    one, two = two_runs(lab)
    dead, heir = lab.worker(), lab.worker()
    assert claimed(lab, one, dead) is not None
    assert claimed(lab, two, heir) is None
    from flowstone_celery.core.statements import SQL

    lab.database.once(
        SQL["release_dead"],
        workers=[dead],
        crash=1,
        loss=0,
        reason="its process died",
        crash_limit=3,
        loss_limit=20,
    )
    lab.pacer().step()
    assert claimed(lab, two, heir) is not None
    assert claimed(lab, one, heir) is None, "the one that was released waits now for its successor"


def test_of_many_claims_at_the_same_moment_one_succeeds(lab: Lab) -> None:
    for _ in range(10):
        runs = [lab.start(step("a", sole=True), promise=False) for _ in range(6)]
        workers = [lab.worker() for _ in runs]
        by_door: list[Callable[[], Claim | None]] = [
            (lambda run=run, worker=worker: claimed(lab, run, worker))  # type: ignore[misc]
            if number % 2
            else (lambda worker=worker: lab.claim_next(worker))  # type: ignore[misc]
            for number, (run, worker) in enumerate(zip(runs, workers, strict=True))
        ]
        held = [found for found in in_threads(*by_door) if found is not None]
        assert len(held) <= 1
        running = lab.scalar("SELECT count(*) FROM flowstone.steps WHERE status = 'running' AND sole")
        assert running == len(held)
        for claim in held:
            lab.database.attempt(
                lambda tx, claim=claim: steps.end(tx, claim.held, StepStatus.SKIPPED, None, name="a")  # type: ignore[misc]
            )
        lab.drain()
        assert all(lab.run(run)["status"] == "succeeded" for run in runs)


def test_the_failures_of_a_maker_are_its_own(lab: Lab) -> None:
    one, two = two_runs(lab, retry=AT_ONCE)
    lab.answers["a"] = lambda claim: Fail("no") if claim.run_id == one else Done()
    lab.drain()
    assert (lab.run(one)["status"], lab.run(two)["status"]) == ("failed", "succeeded")


def test_a_claim_tells_the_version_that_stands_unless_it_is_invalidated(lab: Lab) -> None:
    lab.sql("INSERT INTO flowstone.asset_current (asset, partition, value_id) VALUES ('a', '', 77)")
    try:
        worker = lab.worker()
        sole, free = lab.start(step("a", sole=True)), lab.start(step("a"))
        first, second = claimed(lab, sole, worker), claimed(lab, free, worker)
        assert first is not None
        assert second is not None
        assert (first.stands, second.stands) == (77, None)
        lab.database.attempt(lambda tx: steps.give_back(tx, first.held, "again"))
        lab.sql("UPDATE flowstone.asset_current SET invalidated_at = flowstone.now()")
        again = claimed(lab, sole, worker)
        assert again is not None
        assert again.stands is None
    finally:
        lab.sql("DELETE FROM flowstone.asset_current")


def test_a_claim_sees_the_value_of_a_maker_that_settled_while_it_was_under_way(lab: Lab) -> None:
    """Between its first look and its row another made the value: it is not made once more."""
    late, maker = two_runs(lab)
    worker, other = lab.worker(), lab.worker()
    lab.sql(
        "CREATE FUNCTION flowstone.hold_on() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN PERFORM pg_advisory_xact_lock(7); RETURN NEW; END $$"
    )
    lab.sql(
        "CREATE TRIGGER hold_on BEFORE UPDATE ON flowstone.steps FOR EACH ROW "
        f"WHEN (NEW.id = {lab.id_of(late, 'a')}) EXECUTE FUNCTION flowstone.hold_on()"
    )
    with ThreadPoolExecutor(1) as thread, lab.database.connection() as connection:
        connection.execute("SELECT pg_advisory_xact_lock(7)")
        under_way = thread.submit(claimed, lab, late, worker)
        waits = "SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
        while not connection.execute(waits).fetchone():
            assert not under_way.done()
        made = settled_value(lab, claimed(lab, maker, other))
        connection.commit()
        claim = under_way.result(timeout=30)
    assert claim is not None
    assert claim.stands == made


def settled_value(lab: Lab, claim: Claim | None) -> int:
    assert claim is not None
    value = NewValue(
        asset=claim.name,
        partition=claim.partition,
        run_id=claim.run_id,
        step_id=claim.id,
        fence=claim.fence,
        io="postgres",
        size=1,
        digest="d",
        content=b"1",
        pointer=None,
    )
    with lab.database.transaction() as tx:
        version = values.settle(tx, value)
        assert steps.succeed(tx, claim.held, None) is not None
    assert version is not None
    assert lab.steps(claim.run_id)["a"]["output"] == {"value": version}, "the output names it by itself"
    return version


def test_a_scatter_that_waits_for_its_items_is_the_maker_still(lab: Lab) -> None:
    """Nobody else spreads into the same items meanwhile; whoever waits is called when it has gathered."""
    one, two = two_runs(lab)
    worker = lab.worker()
    scattering = claimed(lab, one, worker)
    assert scattering is not None
    new = NewBarrier("a", TASK, QUEUE, 0, Policy())
    with lab.database.transaction() as tx:
        assert barriers.scatter_later(tx, scattering, Scattered(new, [b"1"]))() is not None
    assert lab.statuses(one)["a"] == "waiting"
    assert claimed(lab, two, worker) is None
    assert lab.reasons(two) == {"a": f"run {one} makes the same value now"}
    hand = lab.claim_next(worker)
    assert hand is not None
    with lab.database.transaction() as tx:
        held = barriers.claim_range(tx, hand, wanted=8, width=1)
        assert held is not None
        part = barriers.settle_part(tx, hand, held, [Ended(0, "succeeded", 1, b"1")], rest_open=None)
        assert part is not None
        assert part.closed
    assert lab.steps(one)["a"]["phase"] == "gather"
    assert claimed(lab, two, worker) is None
    gathering = claimed(lab, one, worker)
    assert gathering is not None
    made = settled_value(lab, gathering)
    with lab.database.transaction() as tx:
        assert steps.free_awaiting(tx, "a", "") == [QUEUE]
    late = claimed(lab, two, worker)
    assert late is not None
    assert late.stands == made
