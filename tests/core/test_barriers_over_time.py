"""Barriers over time: readers, crashes, cancel, rounds, acceptance, sweeps, retention, and what whoever looks is told."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from barrierlab import HAND, Scattering, begin, failed, keys, new, release, retried, scattered, succeeded
from corelab import QUEUE, TASK, Lab, step

from flowstone_celery.core import acts, barrier_sweep, barriers, retention, runs, steps
from flowstone_celery.core.barrier_model import Ended, Scattered
from flowstone_celery.core.statements import DOCTOR, SQL
from flowstone_celery.states import StepStatus

if TYPE_CHECKING:
    from flowstone_celery.core.model import Claim


# --- readers --------------------------------------------------------------------------------------------------------------------


def reading(lab: Lab, **policy: Any) -> Scattering:
    """A step that reads its keys page by page."""
    begun = begin(lab, max_failures=3)
    found = begun.tx(lambda tx: barriers.open_barrier(tx, begun.claim, new(**policy)))
    assert found is not None
    begun.barrier = found
    return begun


def add(
    begun: Scattering, page: list[bytes], checkpoint: Any = None, **options: Any
) -> barriers.Added | None:
    return begun.tx(lambda tx: barriers.add_page(tx, begun.claim, begun.barrier, page, checkpoint, **options))


def seal(begun: Scattering) -> None:
    assert begun.scatter(Scattered(barrier=begun.barrier)) is not None


def test_items_are_done_while_keys_are_read_and_nothing_closes_before_the_seal(lab: Lab) -> None:
    begun = reading(lab)
    added = add(begun, keys(3), {"page": 1})
    assert added is not None
    assert (added.added, added.collapsed, added.opened) == (3, 0, (QUEUE,) * 3)
    hand = begun.hand()
    assert begun.work(hand) == 3
    assert begun.status == "open"
    assert begun.aside(hand) is not None
    added = add(begun, keys(3, first=3), {"page": 2})
    assert added is not None
    assert added.opened.count(QUEUE) >= 1, "who stands aside is called"
    found = barriers.barrier(lab.database, begun.barrier)
    assert found is not None
    assert (found.checkpoint, found.total, found.sealed) == ({"page": 2}, 6, False)
    while begun.progress.pending:
        begun.work(begun.hand())
    assert begun.status == "open"
    seal(begun)
    assert (begun.status, begun.step) == ("completed", ("ready", "gather"))


def test_equal_keys_collapse_over_all_pages_unless_the_reader_vouches(lab: Lab) -> None:
    begun = reading(lab)
    first = add(begun, [b"1", b"2", b"1"])
    second = add(begun, [b"2", b"3"])
    third = add(begun, [b"3"], unique=False)
    assert [(each.added, each.collapsed) for each in (first, second, third) if each] == [
        (2, 1),
        (1, 1),
        (1, 0),
    ]
    seal(begun)
    assert [each.key for each in barriers.items(lab.database, begun.barrier)] == [1, 2, 3, 3]
    assert begun.progress.collapsed == 2


def test_a_later_attempt_of_the_reader_goes_on_with_the_barrier_there_is(lab: Lab) -> None:
    begun = reading(lab)
    add(begun, keys(2), {"at": 2})
    stale = begun.claim
    release(lab, begun.worker)
    assert add(begun, keys(2, first=2)) is None, "its fence is stale"
    claim = lab.claim(begun.worker, stale.id)
    assert claim is not None
    begun.claim = claim
    assert begun.tx(lambda tx: barriers.open_barrier(tx, claim, new())) == begun.barrier
    assert begun.tx(lambda tx: barriers.open_barrier(tx, stale, new())) is None
    assert add(begun, keys(3), {"at": 3}) is not None
    assert begun.progress.total == 3


def test_a_reader_stops_when_its_barrier_has_closed_and_its_step_ends_with_the_seal(lab: Lab) -> None:
    begun = reading(lab)
    add(begun, keys(5))
    hand = begun.hand()
    held = begun.held(hand)
    part = begun.settle(hand, held, [failed(0)])
    assert part is not None
    assert (part.status, part.closed) == ("failed", True)
    assert begun.step == ("running", "call")
    assert add(begun, keys(5, first=5)) is None
    seal(begun)
    assert begun.step[0] == "failed"
    assert lab.statuses(begun.run)["after"] == "failed"
    begun.finish(hand)
    found = barriers.barrier(lab.database, begun.barrier)
    assert found is not None
    assert not found.sealed, "what was not read is read in the next round"


def test_a_reader_that_fails_for_good_takes_its_barrier_with_it(lab: Lab) -> None:
    begun = reading(lab)
    add(begun, keys(5))
    moved = begun.tx(
        lambda tx: steps.end(tx, begun.claim.held, StepStatus.FAILED, {"message": "no"}, name="pages")
    )
    assert moved is not None
    assert moved.run_status == "failed", "no hand was at work"
    assert begun.status == "cancelled"
    assert {each["status"] for each in begun.hands()} == {"skipped"}


def test_partial_decides_when_the_total_is_final(lab: Lab) -> None:
    begun = reading(lab, failure_mode="partial", failure_threshold=0.5)
    add(begun, keys(1))
    hand = begun.hand()
    begun.settle(hand, begun.held(hand), [failed(0)])
    assert begun.status == "open", "one of one has failed, but others may come"
    add(begun, keys(1, first=1))
    begun.work(hand)
    seal(begun)
    assert begun.status == "partial_failure"


def test_failed_items_that_wait_for_all_others_go_when_the_reader_is_done(lab: Lab) -> None:
    begun = reading(lab, retry_strategy="batch")
    add(begun, keys(1))
    hand = begun.hand()
    begun.settle(hand, begun.held(hand), [retried(0)])
    assert begun.range(hand) is None
    assert begun.aside(hand) is not None
    seal(begun)
    again = begun.hand()
    assert [each.attempt for each in begun.held(again).items] == [2]


def test_digests_go_when_the_barrier_has_closed(lab: Lab) -> None:
    begun = reading(lab)
    add(begun, keys(5))
    assert barrier_sweep.sweep(lab.database) == []
    assert lab.scalar("SELECT count(*) FROM flowstone.barrier_keys") == 5
    begun.work(begun.hand())
    seal(begun)
    barrier_sweep.sweep(lab.database)
    assert lab.scalar("SELECT count(*) FROM flowstone.barrier_keys") == 0
    assert not lab.scalar("SELECT keyed FROM flowstone.barriers")


# --- crashes --------------------------------------------------------------------------------------------------------------------


def crash(begun: Scattering, hand: Claim) -> Claim:
    """The hand's process dies; the same hand, claimed anew by another process."""
    begun.die(hand)
    found = begun.lab.claim(begun.lab.worker(), hand.id, knows=[HAND])
    assert found is not None
    return found


def test_a_range_that_a_crash_took_is_done_item_by_item_and_none_is_blamed(lab: Lab) -> None:
    begun = scattered(lab, 10)
    hand = begun.hand()
    held = begun.held(hand, 5)
    begun.settle(hand, held, succeeded([0, 1]))
    again = crash(begun, hand)
    assert (again.crashes, again.losses) == (0, 1), "it shares its process with nobody from now on"
    singles = []
    for _ in range(3):
        held = begun.held(again)
        assert held.alone
        singles += [(each.index, each.attempt, each.crashes) for each in held.items]
        begun.settle(again, held, [Ended(each.index, "succeeded", each.attempt, b"1") for each in held.items])
    assert singles == [(2, 1, 0), (3, 1, 0), (4, 1, 0)]
    assert not begun.held(again).alone
    assert begun.settle(hand, held, succeeded([2])) is None


def test_other_hands_take_part_in_what_a_crash_left(lab: Lab) -> None:
    begun = scattered(lab, 10)
    hand, other = begun.hand(), begun.hand(lab.worker())
    begun.held(hand, 10)
    assert begun.range(other) is None
    begun.aside(other)
    again = crash(begun, hand)
    begun.held(again)
    assert [each["parked"] for each in begun.hands("ready")] == [None, None, None]
    called = lab.claim(begun.worker, other.id, knows=[HAND])
    assert called is not None
    assert begun.held(called).alone


def test_an_item_that_kills_its_process_while_alone_fails_at_its_limit(lab: Lab) -> None:
    begun = scattered(lab, 3, failure_mode="partial", failure_threshold=0.5, crash_limit=2)
    hand = begun.hand()
    begun.held(hand, 3)
    hand = crash(begun, hand)
    assert [each.index for each in begun.held(hand).items] == [0]
    hand = crash(begun, hand)
    held = {each.index: each.crashes for _ in range(3) for each in _next(begun, hand)}
    assert held == {1: 0, 2: 0, 0: 1}, "the one that was lost comes behind those that were not"
    hand = crash(begun, hand)
    assert begun.range(hand) is None
    assert (begun.status, begun.items("failed")) == ("partial_failure", [0])
    [item] = barriers.items(lab.database, begun.barrier, status="failed")
    assert item.error is not None
    assert item.error["code"] == "FS-2010"
    assert lab.run(begun.run)["status"] == "running", "a hand that dies harms no run"


def _next(begun: Scattering, hand: Claim) -> list[Any]:
    """The next item alone; settled, unless it is the one with index 0."""
    held = begun.held(hand)
    [item] = held.items
    if item.index:
        begun.settle(hand, held, [Ended(item.index, "succeeded", item.attempt, b"1")])
    return [item]


def test_of_several_in_one_process_no_item_is_blamed(lab: Lab) -> None:
    begun = scattered(lab, 2)
    one, two = begun.hand(), begun.hand()
    begun.held(one, 1), begun.held(two, 1)
    release(lab, begun.worker)
    for _ in range(3):
        hands = [lab.claim(begun.worker, each.id, knows=[HAND]) for each in (one, two)]
        for hand in hands:
            assert hand is not None
            assert [each.crashes for each in begun.held(hand).items] == [0]
        release(lab, begun.worker)
    assert begun.status == "open"


def test_an_announced_stop_suspects_nobody(lab: Lab) -> None:
    begun = scattered(lab, 5)
    hand = begun.hand()
    begun.held(hand)
    begun.die(hand, crash=False)
    again = lab.claim(begun.worker, hand.id, knows=[HAND])
    assert again is not None
    held = begun.held(again)
    assert (len(held.items), held.alone, again.losses) == (5, False, 0)


def test_hands_that_lost_their_node_come_again_without_a_limit(lab: Lab) -> None:
    begun = scattered(lab, 2)
    hand = begun.hand(lab.worker(lease=1.0))
    begun.held(hand)
    lab.steady()
    lab.sql("UPDATE flowstone.steps SET losses = 50 WHERE id = %(id)s", id=hand.id)
    assert lab.database.once(SQL["release_lost"], lease=2.0, loss_limit=20, limit=10)
    assert (
        lab.database.once(
            SQL["at_limit"],
            workers=[hand.worker_id],
            lost=True,
            crash=1,
            loss=0,
            crash_limit=1,
            loss_limit=1,
            lease=2.0,
        )
        == []
    )
    lab.clock.advance(seconds=61)
    again = lab.claim(begun.worker, hand.id, knows=[HAND])
    assert again is not None
    assert begun.held(again).alone


# --- cancel ---------------------------------------------------------------------------------------------------------------------


def test_a_run_that_is_cancelled_cancels_its_scatter_at_once_and_pending_items_with_it(lab: Lab) -> None:
    begun = scattered(lab, 600)
    hand = begun.hand()
    held = begun.held(hand, 10)
    begun.settle(hand, held, succeeded([0]))
    assert lab.cancel(begun.run)
    assert (begun.status, begun.step[0]) == ("cancelled", "cancelled")
    assert {each["status"] for each in begun.hands()} == {"running", "skipped"}
    late = begun.settle(hand, held, succeeded([1]))
    assert late is not None
    assert late.status == "cancelled"
    assert begun.items("cancelled") == list(range(1, 600)), "none is failed, and nobody wrote them down"
    assert begun.progress.failed == 0
    begun.finish(hand)
    assert lab.run(begun.run)["status"] == "cancelled"


def test_a_barrier_can_be_cancelled_alone_once(lab: Lab) -> None:
    begun = scattered(lab, 5)
    part = begun.tx(lambda tx: barriers.cancel(tx, begun.barrier, "tester", "no need"))
    assert part is not None
    assert (part.status, part.closed) == ("cancelled", True)
    assert begun.tx(lambda tx: barriers.cancel(tx, begun.barrier, "tester", "no need")) is None
    assert lab.statuses(begun.run) == {"pages": "cancelled", "after": "cancelled"}
    assert lab.run(begun.run)["status"] == "cancelled"
    assert (
        lab.scalar("SELECT action FROM flowstone.audit WHERE resource_type = 'barrier'") == "barrier.cancel"
    )


def test_what_can_do_without_the_scatter_goes_on(lab: Lab) -> None:
    run = lab.start(step("pages"), step("after", optional=[0]), promise=False)
    claim = lab.claim(worker := lab.worker(), lab.id_of(run, "pages"))
    assert claim is not None
    begun = Scattering(lab, run, worker, claim)
    begun.scatter(Scattered(new(), keys(5)))
    part = begun.tx(lambda tx: barriers.cancel(tx, begun.barrier, "tester", "no need"))
    assert part is not None
    assert part.opened == (QUEUE,)
    assert lab.statuses(run)["after"] == "ready"


# --- rounds ---------------------------------------------------------------------------------------------------------------------


def next_round(begun: Scattering, **options: Any) -> None:
    """The run is retried, and its step claimed in the next round."""
    lab = begun.lab
    doer = acts.Doer(lab.database, lab.postbox, lab.settings)
    assert acts.retry(doer, begun.run, actor="tester", **options) is not None
    claim = lab.claim(begun.worker, begun.claim.id)
    assert claim is not None
    begun.claim = claim


def ended(begun: Scattering, *failures: int) -> None:
    """All is done, these items have failed, and the hands have ended."""
    hand = begun.hand()
    while (held := begun.range(hand)) is not None:
        begun.settle(
            hand,
            held,
            [
                failed(each.index, each.attempt)
                if each.index in failures
                else Ended(each.index, "succeeded", each.attempt, b"1")
                for each in held.items
            ],
        )
    assert begun.finish(hand) is not None


def test_the_next_round_does_what_failed_and_keeps_the_rest(lab: Lab) -> None:
    begun = scattered(lab, 600, failure_mode="partial", failure_threshold=0.002)
    ended(begun, 3, 599)
    assert (begun.status, lab.run(begun.run)["status"]) == ("failed", "failed")
    next_round(begun)
    assert begun.scatter(Scattered(again=begun.barrier)) is not None
    assert begun.step == ("waiting", "gather")
    assert (begun.progress.round, begun.progress.succeeded, begun.progress.failed, begun.progress.total) == (
        2,
        598,
        0,
        600,
    )
    hand = begun.hand()
    held = begun.held(hand)
    assert [(each.index, each.attempt, each.failures) for each in held.items] == [(3, 1, 0), (599, 1, 0)]
    begun.settle(hand, held, succeeded(held))
    assert (begun.status, begun.step) == ("completed", ("ready", "gather"))
    begun.finish(hand)


def test_items_that_nobody_came_to_are_done_in_the_next_round(lab: Lab) -> None:
    begun = scattered(lab, 1_200)
    hand, other = begun.hand(), begun.hand(lab.worker())
    one, two = begun.held(hand, 100), begun.held(other, 50)
    begun.settle(other, two, succeeded(range(100, 120)))
    begun.settle(hand, one, [*succeeded(range(50)), failed(50), retried(51, delay=100)])
    begun.finish(hand)
    begun.finish(other)
    next_round(begun)
    begun.scatter(Scattered(again=begun.barrier))
    assert begun.settle(other, two, succeeded([120])) is None, "of an earlier round"
    hand = begun.hand()
    done: list[int] = []
    while (held := begun.range(hand)) is not None:
        done += [each.index for each in held.items]
        begun.settle(hand, held, [Ended(each.index, "succeeded", each.attempt, b"1") for each in held.items])
    assert sorted(done) == sorted({*range(1_200)} - {*range(50)} - {*range(100, 120)})
    assert begun.status == "completed"
    begun.finish(hand)


def test_a_round_with_nothing_to_do_again_gathers_at_once(lab: Lab) -> None:
    begun = scattered(lab, 5)
    ended(begun)
    gathering = lab.claim(begun.worker, begun.claim.id)
    assert gathering is not None
    assert (gathering.phase, gathering.attempt) == ("gather", 2)
    begun.tx(lambda tx: steps.end(tx, gathering.held, StepStatus.FAILED, {"message": "no"}, name="pages"))
    next_round(begun)
    assert begun.claim.phase == "call"
    begun.scatter(Scattered(again=begun.barrier))
    assert (begun.status, begun.step) == ("completed", ("ready", "gather"))


def test_an_open_barrier_is_not_opened_again(lab: Lab) -> None:
    begun = scattered(lab, 5)
    other = begin(lab)
    assert (
        other.tx(lambda tx: barriers.scatter_later(tx, other.claim, Scattered(again=begun.barrier))()) is None
    )
    assert begun.tx(lambda tx: barriers.retry(lab.database, begun.barrier, "tester")) is None


def test_a_reader_that_failed_goes_on_in_the_next_round(lab: Lab) -> None:
    begun = reading(lab)
    add(begun, keys(4), {"at": 4})
    hand = begun.hand()
    begun.settle(hand, begun.held(hand, 2), succeeded([0, 1]))
    begun.tx(lambda tx: steps.end(tx, begun.claim.held, StepStatus.FAILED, {"message": "no"}, name="pages"))
    begun.finish(hand)
    next_round(begun)
    assert begun.tx(lambda tx: barriers.open_barrier(tx, begun.claim, new())) == begun.barrier
    found = barriers.barrier(lab.database, begun.barrier)
    assert found is not None
    assert (found.status, found.round, found.checkpoint) == ("open", 2, {"at": 4})
    add(begun, keys(2, first=4))
    seal(begun)
    hand = begun.hand()
    assert begun.work(hand) == 4
    assert begun.status == "completed"


def test_what_succeeded_can_be_taken_as_it_is(lab: Lab) -> None:
    begun = scattered(lab, 10, failure_mode="partial", failure_threshold=0.1)
    ended(begun, 1, 2)
    assert begun.status == "failed"
    part = begun.tx(lambda tx: barriers.accept(tx, begun.barrier, "tester", "good enough"))
    assert part is not None
    assert (part.status, part.opened) == ("partial_failure", (QUEUE,))
    assert (begun.status, begun.step, begun.progress.round) == ("partial_failure", ("ready", "call"), 2)
    claim = lab.claim(begun.worker, begun.claim.id)
    assert claim is not None
    moved = begun.tx(lambda tx: barriers.scatter_later(tx, claim, Scattered(again=begun.barrier))())
    assert (moved.event, begun.step) == ("waiting", ("ready", "gather"))
    assert (begun.progress.succeeded, begun.progress.failed) == (8, 2)
    assert begun.tx(lambda tx: barriers.accept(tx, begun.barrier, "tester", "twice")) is None
    assert begun.items("failed") == [1, 2]


def test_a_barrier_whose_run_goes_on_cannot_be_accepted_yet(lab: Lab) -> None:
    begun = scattered(lab, 10)
    hand = begun.hand()
    begun.settle(hand, begun.held(hand), [failed(0)])
    assert begun.tx(lambda tx: barriers.accept(tx, begun.barrier, "tester", "now")) is None
    begun.finish(hand)
    assert begun.tx(lambda tx: barriers.accept(tx, begun.barrier, "tester", "now")) is not None


def test_a_partial_result_can_be_retried_after_all(lab: Lab) -> None:
    begun = scattered(lab, 4, failure_mode="partial", failure_threshold=0.5)
    ended(begun, 1)
    for name in ("pages", "after"):
        claim = lab.claim(begun.worker, lab.id_of(begun.run, name))
        assert claim is not None
        lab.succeed(claim.held)
    assert lab.run(begun.run)["status"] == "succeeded"
    row = barriers.retry(lab.database, begun.barrier, "tester")
    assert row is not None
    assert (row["round"], row["opened"]) == (2, [QUEUE])
    assert lab.statuses(begun.run) == {"pages": "ready", "after": "blocked"}


# --- sweeps and looks -----------------------------------------------------------------------------------------------------------


def test_a_barrier_has_more_hands_when_there_are_more_slots(lab: Lab) -> None:
    begun = scattered(lab, 1_000)
    assert barrier_sweep.sweep(lab.database) == []
    lab.node(slots=5)
    assert barrier_sweep.sweep(lab.database) == [QUEUE]
    assert len(begun.hands()) == 10


def test_hands_that_all_stand_aside_although_there_is_work_are_called(lab: Lab) -> None:
    begun = scattered(lab, 1)
    hand = begun.hand()
    held = begun.held(hand)
    begun.settle(hand, held, [retried(0, delay=60)])
    begun.aside(hand)
    assert barrier_sweep.sweep(lab.database) == []
    lab.sql("UPDATE flowstone.items SET due_at = flowstone.now()")
    assert barrier_sweep.sweep(lab.database) == [QUEUE]
    assert begun.hands()[0]["parked"] is None


def test_the_pacer_sweeps_open_barriers(lab: Lab) -> None:
    begun = scattered(lab, 1_000)
    lab.node(slots=5, knows=[HAND])
    lab.pacer().step()
    assert len(begun.hands()) == 10
    assert {each.task for each in lab.postbox.take()} == {HAND}


def test_hands_of_a_paused_run_stand_aside_until_it_goes_on(lab: Lab) -> None:
    begun = scattered(lab, 100)
    hand = begun.hand()
    doer = acts.Doer(lab.database, lab.postbox, lab.settings)
    acts.pause(doer, begun.run, actor="tester")
    held = begun.held(hand, 10)
    begun.settle(hand, held, succeeded(held))
    moved = begun.back(hand)
    assert moved is not None
    assert moved.opened == ()
    assert {each["parked"] for each in begun.hands()} == {"paused"}
    acts.resume(doer, begun.run, actor="tester")
    assert begun.hand() is not None


def test_whoever_asks_why_is_told_of_items_and_of_missing_workers(lab: Lab) -> None:
    begun = scattered(lab, 10)
    hand = begun.hand()
    begun.settle(hand, begun.held(hand, 4), succeeded(range(3)))
    reasons = lab.reasons(begun.run)
    assert (
        reasons["pages"] == "it waits for its items: 3 of 10 have ended, and no worker listens on queue 'lab'"
    )
    lab.node(knows=[TASK])
    assert lab.reasons(begun.run)["pages"].endswith(f"and no worker on queue 'lab' knows the task '{HAND}'")
    lab.node(knows=[HAND])
    assert lab.reasons(begun.run)["pages"] == "it waits for its items: 3 of 10 have ended"
    assert set(reasons) == {"pages", "after"}, "hands are left out"


def test_lists_of_steps_leave_hands_out_unless_asked(lab: Lab) -> None:
    begun = scattered(lab, 100)
    assert [row["name"] for row in runs.steps(lab.database, begun.run)] == ["pages", "after"]
    assert len(runs.steps(lab.database, begun.run, hands=True)) == 6
    [shown] = runs.page(lab.database)
    assert (shown["total_steps"], shown["remaining_steps"]) == (2, 2)
    row = lab.database.first(SQL["progress"], run=begun.run)
    assert row is not None
    assert (row["total_steps"], row["remaining_steps"]) == (2, 2)
    latest = lab.database.first(SQL["latest_of_name"], name="pages", partition="")
    assert latest is not None
    assert latest["id"] == begun.claim.id


def test_the_items_of_a_run_that_is_gone_go_in_batches(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "_ITEMS", 7)
    begun = scattered(lab, 20)
    ended(begun)
    lab.cancel(begun.run)
    lab.clock.advance(days=2)
    policy = retention.Policy(keep=retention.DAY)
    first = retention.batch(lab.database, policy, actor="tester")
    assert (first.runs, first.items) == (1, 7)
    gone = [retention.batch(lab.database, policy, actor="tester") for _ in range(3)]
    assert [(each.items, each.barriers) for each in gone] == [(7, 0), (6, 1), (0, 0)]
    for table in ("barriers", "barrier_pages", "items", "item_claims", "steps"):
        assert lab.scalar(f"SELECT count(*) FROM flowstone.{table}") == 0, table


def test_results_that_a_standing_value_may_name_stay(lab: Lab) -> None:
    begun = scattered(lab, 3)
    ended(begun)
    lab.sql(
        "INSERT INTO flowstone.asset_values (asset, run_id, step_id, fence, io, content, size, digest, settled_at) "
        "VALUES ('pages', %(run)s, %(step)s, 1, 'database', 'x', 1, 'd', flowstone.now())",
        run=begun.run,
        step=begun.claim.id,
    )
    lab.sql(
        "INSERT INTO flowstone.asset_current (asset, partition, value_id) SELECT asset, partition, id FROM flowstone.asset_values"
    )
    lab.cancel(begun.run)
    lab.clock.advance(days=2)
    policy = retention.Policy(keep=retention.DAY)
    retention.prune(lab.database, policy, actor="tester")
    assert lab.scalar("SELECT count(*) FROM flowstone.items") == 3
    lab.sql("WITH c AS (DELETE FROM flowstone.asset_current) DELETE FROM flowstone.asset_values")
    retention.prune(lab.database, policy, actor="tester")
    assert lab.scalar("SELECT count(*) FROM flowstone.items") == 0


def test_the_doctor_sees_counters_that_are_wrong_and_barriers_that_nobody_closes(lab: Lab) -> None:
    begun = scattered(lab, 5)
    hand = begun.hand()
    held = begun.held(hand, 3)
    begun.settle(hand, held, succeeded([0]))
    wrong = {
        "counters_of_pages": "UPDATE flowstone.barrier_pages SET done = 0",
        "counters_of_barriers": "UPDATE flowstone.barriers SET failed = 1",
        "barriers_close": "UPDATE flowstone.barriers SET status = 'completed', closed_at = flowstone.now()",
        "claims_of_items": "UPDATE flowstone.item_claims SET left_open = 3",
    }
    for invariant, change in wrong.items():
        with lab.database.connection() as connection:
            connection.execute(change)
            found = connection.execute(_DOCTOR[invariant]).fetchall()
            connection.rollback()
        assert found, invariant


_DOCTOR = {name: each.sql("flowstone") for name, each in DOCTOR.items()}
