"""Wake-ups: addressed but bounded, by priority and due time, sent again only into idle capacity."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import count
from typing import Any
from uuid import uuid4

import pytest
from corelab import QUEUE, Lab, in_threads, laboratory, step

from flowstone_celery.core import runs, steps
from flowstone_celery.core.model import Claim, Done, NewRun, WakeUp
from flowstone_celery.core.pacer import Pacer
from flowstone_celery.core.workers import Node

MANY = 2_000


def _promised(lab: Lab, queue: str = QUEUE) -> int:
    return int(
        lab.scalar(
            "SELECT count(*) FROM flowstone.steps WHERE sent_at IS NOT NULL AND queue = %(q)s", q=queue
        )
    )


def _promise(lab: Lab, queue: str = QUEUE) -> list[str]:
    """The names of the steps that are promised now."""
    found = lab.database.attempt(lambda tx: steps.promise(tx, queue, min_wakeups=lab.settings.min_wakeups))
    return [each.name for each in sorted(found, key=lambda each: each.step)]


# --- room -------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("slots", "room"), [(0, 8), (2, 8), (4, 8), (10, 20)])
def test_a_queue_has_twice_its_live_slots_of_wake_ups_under_way_and_eight_at_least(
    lab: Lab, slots: int, room: int
) -> None:
    if slots:
        lab.node(slots=slots)
    lab.node(queues=["another"], slots=50)
    lab.start(*[step(f"s{n}") for n in range(30)])
    assert _promised(lab) == len(lab.postbox.take()) == room
    lab.start(*[step(f"t{n}") for n in range(30)])
    assert _promise(lab) == []
    assert _promised(lab) == room
    lab.pacer().step()
    assert _promised(lab) == room


def test_slots_of_nodes_that_are_gone_make_no_room(lab: Lab) -> None:
    lab.node(slots=50)
    lab.sql("UPDATE flowstone.nodes SET alive_until = flowstone.now() - interval '1 second'")
    lab.start(*[step(f"s{n}") for n in range(30)])
    assert _promised(lab) == 8


def test_each_claim_makes_room_for_one_more(lab: Lab) -> None:
    lab.start(*[step(f"s{n}") for n in range(30)])
    worker = lab.worker()
    first = lab.postbox.take()[0]
    assert lab.claim(worker, first.step) is not None
    assert _promise(lab) == ["s8"]


def test_several_queues_have_each_their_own_room(lab: Lab) -> None:
    lab.start(*[step(f"s{n}", queue=f"q{n % 3}") for n in range(60)])
    assert Counter(each.queue for each in lab.postbox.take()) == {"q0": 8, "q1": 8, "q2": 8}


# --- order ------------------------------------------------------------------------------------------------------------------------


def test_wake_ups_and_claims_follow_priority_then_turn_then_id(lab: Lab) -> None:
    lab.start(
        *[step(f"p{priority}-{n}", priority=priority) for priority in (0, 9, 3) for n in range(2)],
        promise=False,
    )
    lab.sql("UPDATE flowstone.steps SET turn = turn - 9 WHERE name = 'p3-1'")
    order = ["p9-0", "p9-1", "p3-1", "p3-0", "p0-0", "p0-1"]
    worker = lab.worker()
    taken = [claim.name for _ in order if (claim := lab.claim_next(worker)) is not None]
    assert taken == order


def test_the_choice_of_wake_ups_follows_the_same_order(lab: Lab) -> None:
    lab.start(*[step(f"s{n:02}", priority=n // 10) for n in range(30)])
    assert {each.name for each in lab.postbox.take()} == {f"s{n}" for n in range(20, 28)}
    worker = lab.worker()
    for _ in range(8):
        assert lab.claim_next(worker) is not None
    assert _promise(lab) == [f"s{n}" for n in range(10, 16)], (
        "two of the eight were the unsent ones of the first level"
    )


def test_a_lower_level_is_reached_when_the_higher_one_may_not_run_here(lab: Lab) -> None:
    lab.start(
        step("strange", priority=9, task="mystery"), step("paused", priority=5), step("fine"), promise=False
    )
    lab.sql("UPDATE flowstone.steps SET due_at = flowstone.now() + interval '1 hour' WHERE name = 'paused'")
    claim = lab.claim_next(lab.worker())
    assert claim is not None
    assert claim.name == "fine"


def test_older_rows_of_a_level_are_not_overtaken(lab: Lab) -> None:
    for n in range(5):
        lab.start(step(f"r{n}"), promise=False)
    worker, taken = lab.worker(), []
    while claim := lab.claim_next(worker):
        taken.append(claim.name)
        if len(taken) == 2:
            lab.start(step("late"), promise=False)
    assert taken == ["r0", "r1", "r2", "r3", "r4", "late"]


# --- a long queue -----------------------------------------------------------------------------------------------------------------


class Broker:
    """One slow worker behind a first-in-first-out queue of messages."""

    def __init__(self, lab: Lab, node: Node, **options: Any) -> None:
        self.lab = lab
        self.executor = lab.executor(node, settings=replace(lab.settings, **options))
        self.messages: deque[Any] = deque()
        self.sent: Counter[int] = Counter()
        self.most = 0

    def receive(self) -> None:
        for each in self.lab.postbox.take():
            self.messages.append(each)
            self.sent[each.step] += 1
        self.most = max(self.most, len(self.messages))

    def deliver(self) -> int:
        """One message is worked; answers how many steps ran."""
        message = self.messages.popleft()
        ran = self.executor.work(message.step, message.queue)
        self.receive()
        return ran


def test_a_long_queue_is_not_a_lost_message(lab: Lab) -> None:
    """2,000 ready steps, one worker, slices of 60 steps: no wake-up is sent twice and few find nothing to do."""
    pacer, worked = lab.pacer(), count()

    def work(claim: Claim) -> Done:
        if next(worked) % 20 == 0:
            pacer.step()  # the ticker looks while the worker works
        return Done()

    lab.answers.update({f"s{n}": work for n in range(MANY)})
    broker = Broker(lab, lab.node(), slice_starts=60)
    run = lab.start(*[step(f"s{n}") for n in range(MANY)])
    broker.receive()
    vain = deliveries = 0
    while broker.messages:
        deliveries += 1
        vain += broker.deliver() == 0
        assert _promised(lab) <= 8
    assert lab.run(run)["status"] == "succeeded"
    assert sum(broker.sent.values()) - len(broker.sent) < MANY / 100
    assert broker.most <= 8 + 1
    assert vain <= MANY / 100
    assert deliveries < MANY / 10


@pytest.mark.parametrize("room", [True, False], ids=["with room for its wake-up", "with no room"])
def test_an_urgent_step_starts_before_almost_all_of_the_older_ones(lab: Lab, room: bool) -> None:
    node = lab.node()
    order: list[str] = []

    def seen(claim: Claim) -> Done:
        order.append(claim.name)
        if len(order) == 100:
            if not room:
                _promise(lab)
            lab.start(step("urgent", priority=5))
        return Done()

    lab.answers.update({f"s{n}": seen for n in range(600)}, urgent=seen)
    lab.start(*[step(f"s{n}") for n in range(600)])
    broker = Broker(lab, node, slice_starts=40)
    broker.receive()
    while "urgent" not in order:
        broker.deliver()
    assert order.index("urgent") <= 100 + 600 // 100


def test_an_urgent_step_that_may_not_run_here_holds_up_nobody(lab: Lab) -> None:
    lab.start(step("strange", priority=9, task="mystery"))
    paused = lab.start(step("paused", priority=9))
    lab.sql("UPDATE flowstone.runs SET paused = true WHERE id = %(run)s", run=paused)
    assert _promised(lab) == 2
    run = lab.start(*[step(f"s{n}") for n in range(20)])
    assert lab.executor().work(None, QUEUE) == 20
    assert lab.run(run)["status"] == "succeeded"


# --- promised in vain -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def quick_lab(flowstone_databases: Any) -> Iterator[Lab]:
    """A lease of one second, so that idleness is noticed within one."""
    with laboratory(flowstone_databases, lease_seconds=1.0) as found:
        yield found


def test_a_lost_wake_up_is_sent_again_into_an_idle_slot_with_growing_pauses(quick_lab: Lab) -> None:
    lab, sent = quick_lab, []
    lab.wipe()
    lab.node(slots=2)
    lab.start(*[step(f"s{n}") for n in range(6)])
    assert len(lab.postbox.take()) == 6
    pacer = lab.pacer()
    pacer.step()
    assert lab.postbox.take() == [], "nothing has been idle for long"

    def sent_again() -> bool:
        pacer.step()
        sent.extend(lab.postbox.take())
        return bool(sent)

    lab.wait_until(sent_again)
    assert len(sent) == 2, "as many as there are idle slots"
    assert lab.sql(
        "SELECT DISTINCT sends FROM flowstone.steps WHERE id = ANY (%(ids)s)",
        ids=[each.step for each in sent],
    ) == [{"sends": 1}]
    assert _promised(lab) == 6
    assert lab.findings() == []


def test_nothing_is_sent_again_while_every_slot_is_busy(quick_lab: Lab) -> None:
    lab = quick_lab
    lab.wipe()
    node = lab.node(slots=1)
    lab.start(*[step(f"s{n}") for n in range(3)])
    assert lab.claim_next(lab.worker(node)) is not None
    lab.postbox.take()
    pacer, clock = lab.pacer(), lab.clock
    for _ in range(3):
        clock.advance(seconds=60)
        pacer._capacity_again = 0.0
        pacer._idle_since = dict.fromkeys(pacer._idle_since, -1e9)
        pacer.step()
    assert lab.postbox.take() == []


class _Onlooker:
    """A carrier that looks, as a worker elsewhere would, whether what it is to call is there and ready."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.called: list[str] = []

    def send(self, wakeups: Sequence[WakeUp]) -> None:
        for each in wakeups:
            row = self.lab.sql("SELECT status, sent_at FROM flowstone.steps WHERE id = %(id)s", id=each.step)
            assert row, f"{each.name} is called, and nobody else can see it"
            assert row[0]["status"] == "ready", f"{each.name} is called while it is {row[0]['status']}"
            assert row[0]["sent_at"] is not None
            self.called.append(each.name)


def test_no_wake_up_leaves_before_its_row_is_there_for_others(lab: Lab) -> None:
    """By a start, by a settlement that opens several, and by the sweep."""
    onlooker = _Onlooker(lab)
    run = NewRun(
        "plain", "lab", [step("a"), *[step(f"b{n}", 0) for n in range(3)], step("late", 0, queue="q")]
    )
    run_id = runs.begin(lab.database, onlooker, run, settings=lab.settings)
    assert onlooker.called == ["a"]
    lab.executor(carrier=onlooker).work(lab.id_of(run_id, "a"), QUEUE, going_on=False)
    assert sorted(onlooker.called[1:]) == ["b0", "b1", "b2", "late"]
    lab.sql("UPDATE flowstone.steps SET sent_at = NULL")
    Pacer(lab.database, lab.settings, onlooker, uuid4()).step()
    assert sorted(onlooker.called[5:]) == ["b0", "b1", "b2", "late"]


def test_work_done_in_another_process_inline_is_nobody_s_message(lab: Lab) -> None:
    """No Celery worker listens on the inline queue: a message there would lie in the broker for ever."""
    from flowstone_celery.core.inline import QUEUE as INLINE

    lab.start(step("mine", queue=INLINE), step("other"), promise=False)
    lab.pacer().step()
    assert [each.name for each in lab.postbox.take()] == ["other"]


def test_promises_made_at_once_take_different_rows(lab: Lab) -> None:
    lab.start(*[step(f"s{n}") for n in range(100)], promise=False)
    found = in_threads(*[lambda: _promise(lab)] * 4)
    names = [name for each in found for name in each]
    assert len(names) == len(set(names))


def test_several_who_promise_at_once_do_not_fill_the_room_again_and_again(lab: Lab) -> None:
    lab.start(*[step(f"s{number}") for number in range(60)], promise=False)
    told = in_threads(*[lambda: _promise(lab)] * 6)
    # One of them holds the queue; a second that begins as it commits may not see what it promised.
    assert 8 <= sum(len(names) for names in told) <= 16
