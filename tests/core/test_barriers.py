"""Barriers as rows: how a scatter begins, how its items are claimed and settled, when it closes, and as what."""

from __future__ import annotations

import zlib

import pytest
from barrierlab import HAND, begin, failed, keys, new, release, retried, scattered, succeeded
from corelab import QUEUE, Lab, in_threads, sql

from flowstone_celery.core import barriers
from flowstone_celery.core.barrier_model import Ended, ItemClaim, Range, Scattered

# --- the scattering step --------------------------------------------------------------------------------------------------------


def test_a_step_that_scatters_waits_for_its_items_and_hands_are_in_line(lab: Lab) -> None:
    begun = begin(lab)
    moved = begun.scatter(Scattered(new(), keys(8_200), collapsed=3))
    assert moved is not None
    assert (moved.event, moved.opened) == ("waiting", (QUEUE,) * 4)
    assert begun.step == ("waiting", "gather")
    assert (begun.progress.total, begun.progress.collapsed, begun.progress.pending) == (8_200, 3, 8_200)
    pages = lab.sql("SELECT number, first, size FROM flowstone.barrier_pages ORDER BY number")
    firsts = range(0, 8_200, 500)
    assert [tuple(page.values()) for page in pages] == [
        (number, first, min(500, 8_200 - first)) for number, first in enumerate(firsts, 1)
    ]
    assert [hand["status"] for hand in begun.hands()] == ["ready"] * 4
    assert lab.run(begun.run)["remaining_steps"] == 2, "hands count in their run, and are not shown"
    assert lab.scalar("SELECT remaining_steps FROM flowstone.runs") == 6


def test_a_scatter_under_a_stale_fence_leaves_nothing(lab: Lab) -> None:
    begun = begin(lab)
    release(lab, begun.worker)
    assert begun.scatter(Scattered(new(), keys(5))) is None
    assert lab.scalar("SELECT count(*) FROM flowstone.barriers") == 0
    assert lab.scalar("SELECT count(*) FROM flowstone.barrier_pages") == 0


def test_no_keys_close_at_once_and_the_step_gathers_nothing(lab: Lab) -> None:
    begun = scattered(lab, 0)
    assert begun.status == "completed"
    assert begun.step == ("ready", "gather")
    assert begun.hands() == []
    assert barriers.results(lab.database, begun.barrier) == []


@pytest.mark.parametrize(
    ("count", "policy", "slots", "hands"),
    [
        (3, {}, 1, 3),
        (1_000, {}, 1, 4),
        (1_000, {}, 8, 16),
        (1_000, {"max_concurrent": 2}, 8, 2),
        (1_000, {"max_concurrent": 100, "width": 50}, 2, 2),
        (1_000, {"max_concurrent": 100, "width": 50}, 8, 8),
        (120, {"width": 50}, 8, 3),
    ],
)
def test_there_are_as_many_hands_as_can_be_of_use(
    lab: Lab, count: int, policy: dict[str, int], slots: int, hands: int
) -> None:
    lab.node(slots=slots)
    assert len(scattered(lab, count, **policy).hands()) == hands


@pytest.mark.parametrize(
    ("count", "policy", "slots", "size"),
    [
        (90, {}, 1, 90),
        (1_000, {}, 1, 100),
        (3_200, {}, 1, 200),
        (3_200, {}, 8, 100),
        (3_200, {"max_concurrent": 2}, 8, 400),
        (3_200, {"max_concurrent": 1}, 8, 500),
        (3_200, {"width": 50}, 8, 200),
        (3_200, {"width": 500}, 8, 500),
        (100_000, {}, 8, 500),
    ],
)
def test_each_hand_finds_several_pages_to_begin_where_there_are_keys_for_them(
    lab: Lab, count: int, policy: dict[str, int], slots: int, size: int
) -> None:
    lab.node(slots=slots)
    scattered(lab, count, **policy)
    assert lab.scalar("SELECT max(size) FROM flowstone.barrier_pages") == size


# --- ranges and parts -----------------------------------------------------------------------------------------------------------


def test_a_hand_stays_on_its_page_and_another_begins_one_of_its_own(lab: Lab) -> None:
    begun = scattered(lab, 1_100)
    first, second = begun.hand(), begun.hand(lab.worker())
    one, two = begun.held(first, 8), begun.held(second, 32)
    assert [each.index for each in one.items] == list(range(8))
    assert [each.index for each in two.items] == list(range(100, 132))
    assert one.items[3] == ItemClaim(3, b'{"n":3}', 1)
    assert begun.settle(first, one, succeeded(one)) is not None
    assert [each.index for each in begun.held(first, 500).items] == list(range(8, 100)), (
        "a range ends with its page"
    )


def test_a_page_is_shared_once_none_is_left_to_begin_and_no_item_is_claimed_twice(lab: Lab) -> None:
    begun = scattered(lab, 150)
    hands = [begun.hand(lab.worker()) for _ in range(3)]
    held = [[each.index for each in begun.held(hand, 10).items] for hand in hands]
    assert held == [list(range(10)), list(range(100, 110)), list(range(10, 20))]


def test_single_arrivals_of_two_hands_do_not_wait_for_each_other(lab: Lab) -> None:
    begun = scattered(lab, 200)
    first, second = begun.hand(), begun.hand(lab.worker())
    one, two = begun.held(first, 8), begun.held(second, 8)
    with lab.database.transaction() as tx:
        assert barriers.settle_part(tx, first, one, succeeded(one)[:1]) is not None
        assert begun.settle(second, two, succeeded(two)[:1]) is not None, "it would wait for ever"
    assert begun.progress.succeeded == 2


def test_a_range_that_is_not_settled_is_answered_again(lab: Lab) -> None:
    begun = scattered(lab, 20)
    hand = begun.hand()
    held = begun.held(hand, 5)
    assert begun.range(hand, 5) == held
    begun.settle(hand, held, succeeded([0, 1]))
    assert [each.index for each in begun.held(hand, 5).items] == [2, 3, 4]


def test_the_last_item_closes_the_barrier_and_hands_that_do_not_run_are_skipped(lab: Lab) -> None:
    begun = scattered(lab, 1_000)
    hand = begun.hand()
    assert begun.work(hand) == 1_000
    assert begun.status == "completed"
    assert begun.step == ("ready", "gather")
    assert sorted(each["status"] for each in begun.hands()) == ["running", "skipped", "skipped", "skipped"]
    moved = begun.finish(hand)
    assert moved is not None
    assert moved.event == "succeeded"
    assert (begun.progress.succeeded, begun.progress.percent) == (1_000, 100.0)


def test_the_part_that_closes_says_so_once(lab: Lab) -> None:
    begun = scattered(lab, 10)
    hand = begun.hand()
    held = begun.held(hand)
    part = begun.settle(hand, held, succeeded(range(9)))
    assert part is not None
    assert (part.status, part.closed) == ("open", False)
    part = begun.settle(hand, held, succeeded([9]))
    assert part is not None
    assert (part.status, part.closed, part.opened) == ("completed", True, (QUEUE,))
    again = begun.settle(hand, held, succeeded([9]))
    assert again is not None
    assert (again.status, again.closed) == ("completed", False)


def test_progress_counts_the_items_of_open_pages(lab: Lab) -> None:
    begun = scattered(lab, 800)
    hand = begun.hand()
    held = begun.held(hand, 100)
    begun.settle(hand, held, succeeded(range(30)))
    assert (begun.progress.succeeded, begun.progress.running, begun.progress.pending) == (30, 1, 770)


def test_a_part_is_settled_once_however_often_it_is_sent(lab: Lab) -> None:
    begun = scattered(lab, 10, failure_mode="partial", failure_threshold=1.0)
    hand = begun.hand()
    held = begun.held(hand)
    for _ in range(3):
        assert begun.settle(hand, held, [*succeeded(range(3)), failed(3), retried(4)]) is not None
    assert (begun.progress.succeeded, begun.progress.failed, begun.progress.retrying) == (3, 1, 1)


def test_a_stale_fence_settles_nothing(lab: Lab) -> None:
    begun = scattered(lab, 10)
    hand = begun.hand()
    held = begun.held(hand)
    release(lab, hand.worker_id)
    assert begun.settle(hand, held, succeeded(held)) is None
    assert begun.range(hand) is None
    assert begun.aside(hand) is None
    assert begun.back(hand) is None
    assert begun.finish(hand) is None
    assert not begun.tx(lambda tx: barriers.holds(tx, hand))
    assert begun.items("succeeded") == []


def test_what_was_never_claimed_cannot_be_settled(lab: Lab) -> None:
    begun = scattered(lab, 100)
    hand = begun.hand()
    held = begun.held(hand, 5)
    part = begun.settle(hand, held, succeeded(range(50, 60)))
    assert part is not None
    assert begun.progress.succeeded == 0
    other = Range(begun.barrier, 7, held.items)
    assert begun.settle(hand, other, succeeded([0])) is None, "of a round that is not"


def test_items_that_were_not_begun_go_to_hands_that_stand_aside(lab: Lab) -> None:
    begun = scattered(lab, 20)
    slow, idle = begun.hand(), begun.hand(lab.worker())
    held = begun.held(slow)
    assert begun.range(idle) is None
    assert begun.aside(idle) is not None
    assert [each["parked"] for each in begun.hands()].count("idle") == 1
    part = begun.settle(slow, held, succeeded([0]), rest=range(2, 20))
    assert part is not None
    assert part.opened == (QUEUE,)
    again = begun.hand()
    while again.id != idle.id:
        again = begun.hand()
    given = begun.held(again)
    assert [(each.index, each.attempt, each.failures) for each in given.items] == [
        (n, 1, 0) for n in range(2, 20)
    ]
    begun.settle(again, given, succeeded(given))
    part = begun.settle(slow, held, succeeded([1]))
    assert part is not None
    assert part.closed


# --- failures and rules ---------------------------------------------------------------------------------------------------------


def test_all_or_nothing_closes_with_the_first_item_that_has_failed_for_good(lab: Lab) -> None:
    begun = scattered(lab, 100)
    hand, other = begun.hand(), begun.hand(lab.worker())
    held, late = begun.held(hand, 10), begun.held(other, 10)
    part = begun.settle(hand, held, [*succeeded([0]), failed(1)])
    assert part is not None
    assert (part.status, part.closed) == ("failed", True)
    assert begun.step[0] == "failed"
    assert lab.statuses(begun.run)["after"] == "failed"
    late_part = begun.settle(other, late, succeeded(late))
    assert late_part is not None
    assert (late_part.status, late_part.closed) == ("failed", False), (
        "a late completion never revives a barrier"
    )
    assert begun.progress.succeeded == 1
    assert begun.items("cancelled") == [n for n in range(100) if n not in (0, 1)], "nobody wrote them down"
    begun.finish(hand)
    begun.finish(other)
    run = lab.run(begun.run)
    assert run["status"] == "failed"
    assert run["error"]["code"] == "FS-2016"


def test_a_retry_is_no_failure_until_attempts_are_used_up(lab: Lab) -> None:
    begun = scattered(lab, 2)
    hand = begun.hand()
    held = begun.held(hand)
    begun.settle(hand, held, [*succeeded([0]), retried(1)])
    assert (begun.progress.failed, begun.progress.retrying, begun.status) == (0, 1, "open")
    again = begun.held(hand)
    assert again.items == [ItemClaim(1, b'{"n":1}', 2, failures=1)]
    part = begun.settle(hand, again, [Ended(1, "succeeded", 2, b"2")])
    assert part is not None
    assert part.status == "completed"
    assert begun.progress.failed == 0


@pytest.mark.parametrize(("failures", "status"), [(0, "completed"), (2, "partial_failure"), (3, "failed")])
def test_a_part_may_fail_up_to_the_threshold(lab: Lab, failures: int, status: str) -> None:
    begun = scattered(lab, 100, failure_mode="partial", failure_threshold=0.02)
    hand = begun.hand()
    held = begun.held(hand)
    begun.settle(hand, held, [failed(n) for n in range(failures)])
    begun.settle(hand, held, succeeded(range(failures, 100)))
    assert begun.status == status
    assert begun.step == (("failed", "gather") if status == "failed" else ("ready", "gather"))
    assert begun.items("failed") == list(range(failures))


def test_partial_closes_early_only_when_the_rate_cannot_come_back(lab: Lab) -> None:
    begun = scattered(lab, 100, failure_mode="partial", failure_threshold=0.29)
    hand = begun.hand()
    held = begun.held(hand)
    begun.settle(hand, held, [failed(n) for n in range(29)])
    assert begun.status == "open", "29 of 100 is not above 0.29, however the first thirty went"
    part = begun.settle(hand, held, [failed(29)])
    assert part is not None
    assert (part.status, part.closed) == ("failed", True)


def test_an_item_that_asks_for_it_cancels_the_barrier(lab: Lab) -> None:
    begun = scattered(lab, 10)
    hand = begun.hand()
    held = begun.held(hand)
    part = begun.settle(hand, held, [*succeeded([0]), Ended(1, "cancelled", 1, error={"message": "enough"})])
    assert part is not None
    assert (part.status, part.closed) == ("cancelled", True)
    assert begun.step[0] == "cancelled"
    begun.finish(hand)
    assert lab.run(begun.run)["status"] == "cancelled"


# --- retries --------------------------------------------------------------------------------------------------------------------


def test_an_item_waits_for_its_own_backoff_and_its_hand_with_it(lab: Lab) -> None:
    begun = scattered(lab, 2)
    hand = begun.hand()
    held = begun.held(hand)
    begun.settle(hand, held, [*succeeded([0]), retried(1, delay=30)])
    assert begun.range(hand) is None
    moved = begun.aside(hand)
    assert moved is not None
    assert moved.event == "released"
    idle = [each for each in begun.hands() if each["parked"] == "idle"]
    assert (
        29
        < lab.scalar(
            "SELECT extract(epoch FROM due_at - flowstone.now())::float8 FROM flowstone.steps WHERE id = %(id)s",
            id=idle[0]["id"],
        )
        <= 30
    )
    lab.clock.advance(seconds=31)
    again = begun.hand()
    while again.id != hand.id:
        again = begun.hand()
    assert [each.attempt for each in begun.held(again).items] == [2]
    held = begun.held(again)
    begun.settle(again, held, [Ended(1, "succeeded", 2, b"1")])
    assert begun.status == "completed"


def test_batch_holds_failed_items_until_nothing_else_is_open_then_all_go_together(lab: Lab) -> None:
    begun = scattered(lab, 20, retry_strategy="batch")
    hand, other = begun.hand(), begun.hand(lab.worker())
    one, two = begun.held(hand, 10), begun.held(other, 10)
    begun.settle(hand, one, [*succeeded(range(8)), retried(8), retried(9)])
    assert begun.range(hand) is None, "the other hand has open items"
    begun.settle(other, two, [*succeeded(range(10, 19)), retried(19)])
    held = begun.held(other)
    assert [(each.index, each.attempt) for each in held.items] == [(8, 2), (9, 2), (19, 2)]
    begun.settle(other, held, [Ended(n, "succeeded", 2, b"1") for n in (8, 9, 19)])
    assert begun.status == "completed"


# --- hands ----------------------------------------------------------------------------------------------------------------------


def test_a_hand_does_not_stand_aside_while_there_is_work(lab: Lab) -> None:
    begun = scattered(lab, 20)
    hand = begun.hand()
    assert begun.aside(hand) is None, "a page is open"
    held = begun.held(hand)
    begun.settle(hand, held, [retried(0)], rest=[1])
    assert begun.aside(hand) is None, "a retry is due"


def test_who_makes_work_and_who_stands_aside_meet_at_the_barrier(lab: Lab) -> None:
    for _ in range(10):
        lab.wipe()
        called, stood_aside = _give_back_while_one_stands_aside(lab)
        assert called or not stood_aside, "it is called, or never went"


def _give_back_while_one_stands_aside(lab: Lab) -> tuple[bool, bool]:
    begun = scattered(lab, 20)
    slow, idle = begun.hand(), begun.hand(lab.worker())
    held = begun.held(slow)
    part, moved = in_threads(
        lambda: begun.settle(slow, held, (), rest=range(1, 20)), lambda: begun.aside(idle)
    )
    return part.opened == (QUEUE,), moved is not None


def test_a_hand_whose_slice_is_over_stands_behind_what_is_first_in_line(lab: Lab) -> None:
    begun = scattered(lab, 1_000)
    hand = begun.hand()
    begun.held(hand, 10)
    moved = begun.back(hand)
    assert moved is not None
    assert moved.opened == (QUEUE,)
    claimed = [begun.hand() for _ in range(4)]
    assert claimed[0].id != hand.id
    mine = next(each for each in claimed if each.id == hand.id)
    assert [each.index for each in begun.held(mine).items] == list(range(10)), "what it held is its own"
    assert not begun.held(mine).alone, "nobody has died"


def test_a_hand_ends_when_its_barrier_has_closed_not_before(lab: Lab) -> None:
    begun = scattered(lab, 5)
    hand, other = begun.hand(), begun.hand(lab.worker())
    assert begun.finish(hand) is None
    begun.work(hand)
    assert begun.range(other) is None
    moved = begun.aside(other)
    assert moved is not None
    assert moved.event == "succeeded"
    moved = begun.back(hand)
    assert moved is not None
    assert moved.event == "succeeded"


def test_no_more_items_are_at_work_than_max_concurrent(lab: Lab) -> None:
    lab.node(slots=2)
    begun = scattered(lab, 100, max_concurrent=5, width=2)
    assert len(begun.hands()) == 3
    hands = [begun.hand(lab.worker()) for _ in range(3)]
    held = [begun.range(hand, 10, width=2) for hand in hands]
    assert [each.width if each else 0 for each in held] == [2, 2, 1]
    assert begun.progress.running == 5


def test_a_hand_that_is_denied_waits_without_a_turn(lab: Lab) -> None:
    begun = scattered(lab, 100, max_concurrent=2, width=1)
    first, second = begun.hand(), begun.hand(lab.worker())
    assert begun.range(first, 10, width=2) is not None
    assert begun.range(second, 10) is None
    assert begun.aside(second) is not None


def test_pages_that_somebody_has_locked_are_passed_over(lab: Lab) -> None:
    begun = scattered(lab, 1_000)
    hand = begun.hand()
    with lab.database.transaction() as tx:
        tx.rows(sql("SELECT 1 FROM flowstone.barrier_pages WHERE number = 1 FOR UPDATE"))
        assert [each.index for each in begun.held(hand, 5).items] == list(range(100, 105))


# --- what is kept ---------------------------------------------------------------------------------------------------------------


def test_results_come_in_index_order_by_keyset_and_large_ones_are_compressed(lab: Lab) -> None:
    begun = scattered(lab, 1_100, failure_mode="partial", failure_threshold=0.5)
    hand = begun.hand()
    large = b'"' + b"x" * 5_000 + b'"'
    while (held := begun.range(hand)) is not None:
        ended = [
            failed(each.index)
            if each.index == 7
            else Ended(each.index, "succeeded", 1, large if each.index == 3 else b"%d" % each.index)
            for each in held.items
        ]
        begun.settle(hand, held, ended)
    stored = bytes(lab.scalar("SELECT result FROM flowstone.items WHERE index = 3"))
    assert zlib.decompress(stored) == large
    found: list[dict[str, object]] = []
    while page := barriers.results(
        lab.database, begun.barrier, after=int(str(found[-1]["index"])) if found else -1, limit=300
    ):
        found += page
    assert [row["index"] for row in found] == list(range(1_100))
    assert (found[3]["result"], found[4]["result"], found[4]["key"]) == (large, b"4", b'{"n":4}')
    assert (found[7]["status"], found[7]["result"]) == ("failed", None)


def test_items_are_listed_with_those_that_nobody_has_done(lab: Lab) -> None:
    begun = scattered(lab, 600, failure_mode="partial", failure_threshold=1.0)
    hand = begun.hand()
    held = begun.held(hand)
    begun.settle(hand, held, [*succeeded(range(3)), failed(3), retried(4, delay=60)])
    listed = barriers.items(lab.database, begun.barrier, limit=6)
    assert [each.status for each in listed] == ["succeeded"] * 3 + ["failed", "retry", "pending"]
    assert listed[3].key == {"n": 3}
    assert listed[3].error is not None
    assert listed[3].error["message"] == "no 3"
    assert begun.items("failed") == [3]
    assert len(begun.items("pending")) == 595
    assert begun.items(after=597) == [598, 599]


def test_barriers_are_listed_newest_first(lab: Lab) -> None:
    first, second = scattered(lab, 1), scattered(lab, 1)
    assert [each.id for each in barriers.page_of(lab.database, name="pages")] == [
        second.barrier,
        first.barrier,
    ]
    assert [each.id for each in barriers.page_of(lab.database, before=second.barrier)] == [first.barrier]
    assert barriers.page_of(lab.database, status="failed") == []
    assert [each.id for each in barriers.of_run(lab.database, first.run)] == [first.barrier]
    begun = lab.claim_next(first.worker, knows=[HAND])
    assert begun is not None
    assert begun.task == HAND
