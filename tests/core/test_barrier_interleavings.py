"""Scatters over several connections: ranges, parts, deaths, rounds and seals in any order, held open as long as they like."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any, ClassVar, TypeVar

import pytest
from actlab import doer
from barrierlab import HAND, new, release
from corelab import LONG, TASK, Lab, step
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)
from interlab import _ALL_FINDINGS, Learn, Session, Stage

from flowstone_celery.core import acts, barrier_sweep, barriers, runs, steps
from flowstone_celery.core.barrier_model import Ended, Part, Range, Scattered
from flowstone_celery.core.model import Claim
from flowstone_celery.core.statements import SQL
from flowstone_celery.core.wake import back_in_line
from flowstone_celery.states import BARRIER, ITEM, StepStatus

T = TypeVar("T")
WEIGHTS = {
    "scatter": 3, "claim_hand": 6, "claim_range": 10, "settle": 14, "settle_again": 5, "settle_late": 3, "leave": 7, "commit": 10,
    "undo": 2, "die": 3, "stop": 1, "read": 8, "cancel": 1, "next_round": 3, "accept": 1, "gather": 3, "advance": 2, "sweep": 2,
}  # fmt: skip
# What is drawn are numbers, whatever the rows are like: a story must not hang on what a database answered.
LIKELY_ACTS = [act for act, weight in WEIGHTS.items() for _ in range(weight)]
KINDS: dict[str, dict[str, Any]] = {
    "whole": {"count": 6},
    "partial": {"count": 7, "failure_mode": "partial", "failure_threshold": 0.3, "crash_limit": 2},
    "batch": {"count": 8, "failure_mode": "partial", "failure_threshold": 0.9, "retry_strategy": "batch"},
    "narrow": {"count": 6, "failure_mode": "partial", "failure_threshold": 0.9, "max_concurrent": 2},
    "read": {"count": 4, "failure_mode": "partial", "failure_threshold": 0.5},
}
REACHED: dict[str, str] = {
    "scattered": "a step scatters",
    "nothing": "a scatter has no keys",
    "read": "a reader adds a page",
    "sealed": "a reader's barrier is sealed",
    "read on": "a page is added while hands are at work",
    "range": "a hand claims a range",
    "retries": "a hand claims items again",
    "alone": "a hand claims an item that a process may have died of",
    "no range": "a hand finds nothing",
    "growth": "a claim grows while items of it are open",
    "part": "a part is settled",
    "rest": "items are given back",
    "closed by a part": "a part closes its barrier",
    "again": "a part is sent twice and happens once",
    "two at once": "a part is sent from two connections at once",
    "stale": "a part comes too late",
    "aside": "a hand stands aside",
    "back": "a hand goes back to the line",
    "finished": "a hand finds its barrier closed",
    "waited": "somebody waits for a lock",
    "died": "a process dies while its hand holds items",
    "died amid a part": "a process dies while its part is open",
    "undone": "a transaction is rolled back",
    "cut": "the connection of an open transaction dies",
    "cancelled": "a run is cancelled while items are open",
    "failed": "a barrier fails",
    "completed": "a barrier is complete",
    "partial_failure": "a barrier ends with failures that may be",
    "next round": "what failed is done again",
    "accepted": "what succeeded is taken as it is",
    "gathered": "a step gathers",
}


@dataclass
class Held:
    """A hand that was claimed, and what it holds as far as we know."""

    claim: Claim
    range: Range | None = None
    sent: tuple[Ended, ...] = ()
    sent_of: Range | None = None


class ScattersInterleaved(RuleBasedStateMachine):
    """Three connections held open by hand, and a house that acts at once."""

    lab: Lab
    seen: ClassVar[Counter[str]]

    @initialize(kinds=st.sampled_from(list(combinations(KINDS, 2))))
    def begin(self, kinds: tuple[str, str]) -> None:
        self.lab.wipe()
        self.lab.sql("UPDATE flowstone.pacer SET steady_since = flowstone.now(), beat_at = flowstone.now()")
        self.stage = Stage(self.lab, 3)
        self.node = self.lab.node(slots=2, knows=(TASK, HAND))
        self.doer = doer(self.lab)
        self.hands: list[Held] = []
        self.readers: dict[int, tuple[Claim, int]] = {}
        self.items: dict[tuple[int, int], dict[str, Any]] = {}
        self.barriers: dict[int, dict[str, Any]] = {}
        self.number = 0
        for kind in kinds:
            self.lab.start(
                step("pages", input={"kind": kind}, max_failures=9), step("after", 0), promise=False
            )

    # --- who is there ---------------------------------------------------------------------------------------------------------

    def mark(self, what: str) -> None:
        assert what in REACHED
        self.seen[what] += 1

    def free(self) -> Session:
        """A connection without a transaction: where all have one, the first that can commits it."""
        while not (idle := [each for each in self.stage.sessions if each.is_idle]):
            self.open()[0].commit()
            self.settle_down()
        return idle[0]

    def open(self) -> list[Session]:
        return [each for each in self.stage.sessions if each.is_open]

    def act(self, work: Callable[[Any], Learn | None], *, hold: bool = True, of: Held | None = None) -> None:
        """The work is done in a transaction of its own, which is held open, or committed; or it waits. `of`: of this hand."""
        session = self.free()
        session.act(work)
        session.touches = of.claim.id if of else None
        self.settle_down()
        if not hold and session.is_open:
            session.commit()
            self.settle_down()

    def at_once(self, work: Callable[[], T]) -> T:
        """The house does it: whoever is in its way commits first."""
        self.stage.house.begin(work)
        while self.settle_down_house():
            self.open()[0].commit()
            self.settle_down()
        answer: T = self.stage.house.take()
        return answer

    def settle_down_house(self) -> bool:
        """Whether the house waits for an open transaction."""
        waiting = self.stage.settle_down()
        self.take_done()
        if self.stage.house in waiting:
            self.mark("waited")
            return True
        return False

    def settle_down(self) -> None:
        if any(each is not self.stage.house for each in self.stage.settle_down()):
            self.mark("waited")
        self.take_done()

    def take_done(self) -> None:
        for session in self.stage.sessions:
            if session.is_done:
                learn = session.take()
                if learn is None:
                    session.roll_back()
                else:
                    session.then.append(learn)

    def worker(self) -> int:
        return self.lab.worker(self.node, lease=LONG)

    # --- one act after the other --------------------------------------------------------------------------------------------------

    @rule(what=st.sampled_from(LIKELY_ACTS), pick=st.integers(0, 1_000), hold=st.booleans())
    def goes_on(self, what: str, pick: int, hold: bool) -> None:
        getattr(self, what)(random.Random(pick), hold)

    def scatter(self, chance: random.Random, hold: bool) -> None:
        """A step that scatters is claimed and answers: with new keys, with those of a reader, or with what failed."""
        claim = self.at_once(lambda: self.lab.claim_next(self.worker(), knows=[TASK]))
        if claim is None:
            return
        if claim.name != "pages" or claim.phase == "gather":
            self.at_once(lambda: self.lab.succeed(claim.held))
            self.mark("gathered")
            return
        assert claim.input is not None
        policy = dict(KINDS[claim.input["kind"]])
        drawn = policy.pop("count")
        count = drawn if chance.random() < 0.9 else 0
        before = barriers.of_step(self.lab.database, claim.id)
        if claim.input["kind"] == "read" and (before is None or not before.sealed):
            barrier = self.at_once(
                lambda: self.lab.database.attempt(lambda tx: barriers.open_barrier(tx, claim, new(**policy)))
            )
            assert barrier is not None
            self.readers[claim.id] = (claim, barrier)
            return
        answer = Scattered(new(**policy), [b"%d" % n for n in range(count)])
        if before is not None and (before.round < claim.round or before.status != "open"):
            answer = Scattered(again=before.id)

        def work(tx: Any) -> Learn | None:
            moved = barriers.scatter_later(tx, claim, answer)()
            if moved is None:
                return None
            what = "next round" if answer.again else "scattered" if count else "nothing"
            return lambda: self.mark(what)

        self.act(work, hold=hold)

    def read(self, chance: random.Random, hold: bool) -> None:
        """A reader adds a page, or is done."""
        if not self.readers:
            return
        claim, barrier = chosen(list(self.readers.values()), chance)
        last = chance.random() < 0.35
        self.number += 3
        page = [b"%d" % n for n in range(self.number, self.number + 4)]

        def add(tx: Any) -> Learn | None:
            added = barriers.add_page(tx, claim, barrier, page, {"at": self.number})
            if added is None:
                return lambda: None
            held = any(each.claim.barrier_id == barrier for each in self.hands)
            return lambda: (self.mark("read"), self.mark("read on") if held else None)[0]

        def seal(tx: Any) -> Learn | None:
            moved = barriers.scatter_later(tx, claim, Scattered(barrier=barrier))()
            return (
                None if moved is None else lambda: (self.readers.pop(claim.id, None), self.mark("sealed"))[1]
            )

        self.act(seal if last else add, hold=hold)

    def claim_hand(self, chance: random.Random, hold: bool) -> None:
        del chance, hold
        claim = self.at_once(lambda: self.lab.claim_next(self.worker(), knows=[HAND]))
        if claim is not None:
            self.hands.append(Held(claim))

    def claim_range(self, chance: random.Random, hold: bool) -> None:
        free = [each for each in self.hands if each.range is None and not self.is_busy(each)]
        if not free:
            self.grow(chance, hold)
            return
        held = chosen(free, chance)

        def work(tx: Any) -> Learn | None:
            found = barriers.claim_range(tx, held.claim, wanted=chance.choice((1, 3, 8)), width=1)
            if found is None:
                # What it did on its way stands: items that were lost may be due again.
                return lambda: self.mark("no range")
            assert len({each.index for each in found.items}) == len(found.items) > 0

            def learn() -> None:
                held.range = found
                what = "alone" if found.alone else "retries" if found.items[0].attempt > 1 else "range"
                self.mark(what)

            return learn

        self.act(work, hold=hold, of=held)

    def grow(self, chance: random.Random, hold: bool) -> None:
        """No hand is free: one claims more than it has."""
        able = [
            each
            for each in self.hands
            if each.range is not None and not each.range.alone and not self.is_busy(each)
        ]
        if not able:
            return
        held = chosen(able, chance)
        claimed = held.range
        assert claimed is not None
        wanted, yields = chance.choice((1, 3)), chance.random() < 0.5

        def work(tx: Any) -> Learn | None:
            found = barriers.grow_range(tx, held.claim, wanted=wanted, least=1, yields=yields)
            if not found:
                return None
            known = {each.index for each in claimed.items}
            assert not known & {each.index for each in found}

            def learn() -> None:
                if held.range is claimed:
                    held.range = replace(claimed, items=[*claimed.items, *found])
                self.mark("growth")

            return learn

        self.act(work, hold=hold, of=held)

    def is_busy(self, held: Held) -> bool:
        """Whether an open transaction acts for this hand: its process waits for the answer."""
        return any(each.touches == held.claim.id for each in self.stage.sessions if not each.is_idle)

    def settle(self, chance: random.Random, hold: bool) -> None:
        busy = [each for each in self.hands if each.range is not None and not self.is_busy(each)]
        if busy:
            self.send(chosen(busy, chance), chance, hold=hold)

    def send(self, held: Held, chance: random.Random, *, hold: bool, again: bool = False) -> None:
        """A part of what the hand holds is settled; perhaps the same as before."""
        claimed = held.sent_of if again and held.sent_of else held.range
        assert claimed is not None
        open_ones = list(claimed.items)
        some = (
            open_ones
            if chance.random() < 0.6
            else chance.sample(open_ones, chance.randint(1, len(open_ones)))
        )
        ended = held.sent if again else tuple(self.outcome(each, held, chance) for each in some)
        given = (
            [each.index for each in open_ones if each not in some]
            if not again and chance.random() < 0.5
            else []
        )

        held.sent, held.sent_of = ended, claimed

        def work(tx: Any) -> Learn | None:
            part = barriers.settle_part(tx, held.claim, claimed, ended, rest_open=given or None)
            return self.learned(held, claimed, ended, given, part, again=again)

        self.act(work, hold=hold, of=held)

    def learned(
        self,
        held: Held,
        claimed: Range,
        ended: Sequence[Ended],
        given: Sequence[int],
        part: Part | None,
        *,
        again: bool,
    ) -> Learn | None:
        if part is None:
            self.mark("stale")
            return None

        def learn() -> None:
            gone = {each.index for each in ended} | set(given)
            left = [each for each in claimed.items if each.index not in gone]
            if held.range is claimed and not again:
                held.range = Range(claimed.barrier, claimed.round, left, claimed.alone) if left else None
            self.mark("again" if again else "part")
            if given:
                self.mark("rest")
            if part.closed:
                self.mark("closed by a part")

        return learn

    def outcome(self, item: Any, held: Held, chance: random.Random) -> Ended:
        self.number += 1
        told = b'"%d of %d"' % (self.number, held.claim.fence)
        drawn = chance.random()
        if drawn < 0.65:
            return Ended(item.index, "succeeded", item.attempt, told)
        if drawn < 0.88:
            return Ended(
                item.index, "retry", item.attempt, error={"message": "no"}, delay=chance.choice((0.0, 5.0))
            )
        return Ended(item.index, "failed", item.attempt, error={"message": "never"})

    def settle_again(self, chance: random.Random, hold: bool) -> None:
        """The answer to a commit was lost: the same part is sent again, perhaps while the first is open still."""
        known = [each for each in self.hands if each.sent_of is not None]
        if known:
            held = chosen(known, chance)
            if self.is_busy(held):
                self.mark("two at once")
            self.send(held, chance, hold=hold, again=True)

    def settle_late(self, chance: random.Random, hold: bool) -> None:
        """A process that was believed dead settles: nothing of it may be written."""
        del hold
        late = [each for each in self.hands if each.range is not None and not self.still_holds(each)]
        if not late:
            return
        held = chosen(late, chance)
        assert held.range is not None
        claimed = held.range
        ended = [Ended(each.index, "succeeded", each.attempt, b'"late"') for each in claimed.items]
        part = self.at_once(
            lambda: self.lab.database.attempt(lambda tx: barriers.settle_part(tx, held.claim, claimed, ended))
        )
        assert part is None, "a stale fence has written"
        self.mark("stale")
        self.hands.remove(held)

    def still_holds(self, held: Held) -> bool:
        text = "SELECT fence = %(fence)s AND status = 'running' FROM flowstone.steps WHERE id = %(id)s"
        return bool(self.lab.scalar(text, fence=held.claim.fence, id=held.claim.id))

    def leave(self, chance: random.Random, hold: bool) -> None:
        """A hand that holds nothing stands aside, or goes back, or ends."""
        free = [each for each in self.hands if each.range is None and not self.is_busy(each)]
        if not free:
            return
        held = chosen(free, chance)
        how = chance.choice(
            (barriers.stand_aside, barriers.stand_aside, barriers.go_back, barriers.finish_hand)
        )

        def work(tx: Any) -> Learn | None:
            moved = how(tx, held.claim)
            if moved is None:
                return None

            def learn() -> None:
                if held in self.hands:
                    self.hands.remove(held)
                ended = moved.event == "succeeded"
                self.mark("finished" if ended else "aside" if how is barriers.stand_aside else "back")

            return learn

        self.act(work, hold=hold, of=held)

    # --- transactions, deaths, acts ---------------------------------------------------------------------------------------------

    def commit(self, chance: random.Random, hold: bool) -> None:
        del hold
        if self.open():
            chosen(self.open(), chance).commit()
            self.settle_down()

    def undo(self, chance: random.Random, hold: bool) -> None:
        if not self.open():
            return
        session = chosen(self.open(), chance)
        if hold:
            self.stage.kill(session)
            self.mark("cut")
        else:
            self.mark("undone")
        session.roll_back()
        self.settle_down()

    def die(self, chance: random.Random, hold: bool) -> None:
        del hold
        self.release(chance, crash=True)

    def stop(self, chance: random.Random, hold: bool) -> None:
        del hold
        self.release(chance, crash=False)

    def release(self, chance: random.Random, *, crash: bool) -> None:
        claims = [each.claim for each in self.hands] + [claim for claim, _ in self.readers.values()]
        if not claims:
            return
        claim = chosen(claims, chance)
        mine = [each for each in self.hands if each.claim is claim]
        if mine and mine[0].range is not None:
            self.mark("died amid a part" if self.is_busy(mine[0]) else "died")
        self.at_once(lambda: self.released(claim.worker_id, crash=crash))
        self.readers.pop(claim.id, None)

    def released(self, worker: int, *, crash: bool) -> None:
        release(self.lab, worker, crash=crash)

    def cancel(self, chance: random.Random, hold: bool) -> None:
        rows = self.lab.sql("SELECT id, run_id FROM flowstone.barriers WHERE status = 'open' ORDER BY id")
        if not rows:
            return
        row = chosen(rows, chance)
        if hold:
            self.at_once(lambda: runs.cancel(self.lab.database, row["run_id"], actor="t"))
            self.mark("cancelled")
            return

        def work(tx: Any) -> Learn | None:
            part = barriers.cancel(tx, row["id"], "t", "no need")
            return None if part is None else lambda: self.mark("cancelled")

        self.act(work, hold=True)

    def next_round(self, chance: random.Random, hold: bool) -> None:
        del hold
        rows = self.lab.sql(
            "SELECT id FROM flowstone.runs WHERE status IN ('failed', 'cancelled') ORDER BY id"
        )
        if rows:
            run = chosen(rows, chance)["id"]
            self.at_once(lambda: acts.retry(self.doer, run, actor="t"))

    def accept(self, chance: random.Random, hold: bool) -> None:
        rows = self.lab.sql(
            "SELECT id FROM flowstone.barriers WHERE status IN ('failed', 'cancelled') ORDER BY id"
        )
        if not rows:
            return
        barrier = chosen(rows, chance)["id"]

        def work(tx: Any) -> Learn | None:
            part = barriers.accept(tx, barrier, "t", "good enough")
            return None if part is None else lambda: self.mark("accepted")

        self.act(work, hold=hold)

    def gather(self, chance: random.Random, hold: bool) -> None:
        """Whatever plain step is next is done: one that gathers, or one that needs it."""
        del hold
        text = "SELECT s.id FROM flowstone.steps s WHERE s.status = 'ready' AND s.barrier_id IS NULL AND (s.phase = 'gather' OR s.name = 'after')"
        rows = self.lab.sql(text)
        if not rows:
            return
        claim = self.at_once(lambda: self.lab.claim(self.worker(), chosen(rows, chance)["id"]))
        if claim is None:
            return
        failing = claim.phase == "gather" and chance.random() < 0.2
        if failing:
            self.at_once(lambda: self.lab.database.attempt(lambda tx: _failed(tx, claim)))
        else:
            self.at_once(lambda: self.lab.succeed(claim.held))
        if claim.phase == "gather":
            self.mark("gathered")

    def advance(self, chance: random.Random, hold: bool) -> None:
        del hold
        self.at_once(lambda: self.lab.clock.advance(seconds=chance.choice((1, 6, 4_000))))

    def sweep(self, chance: random.Random, hold: bool) -> None:
        del chance, hold
        self.at_once(lambda: back_in_line(self.lab.database))
        self.at_once(lambda: barrier_sweep.sweep(self.lab.database))
        for row in self.lab.database.once(SQL["cancelling"], limit=100):
            self.at_once(lambda run=row["id"]: runs.cancel_steps(self.lab.database, run))  # type: ignore[misc]

    # --- what must be true ------------------------------------------------------------------------------------------------------

    @invariant()
    def rows_break_no_rule(self) -> None:
        found = self.lab.database.once(_ALL_FINDINGS, production=False)
        assert found == [], "\n".join(row["finding"] for row in found)
        now = {row["id"]: row for row in self.lab.sql(_BARRIERS)}
        for key, was in self.barriers.items():
            row = now[key]
            assert row["round"] >= was["round"]
            if was["status"] in BARRIER.terminal and row["round"] == was["round"]:
                assert row == was, "a barrier closes once in a round"
        items = {(row["barrier_id"], row["index"]): row for row in self.lab.sql(_ITEMS)}
        for place, item in self.items.items():
            if item["status"] in ITEM.terminal and now[place[0]]["round"] == self.barriers[place[0]]["round"]:
                assert items[place] == item, "an item ends once in a round"
            if item["status"] == "succeeded":
                assert items[place]["result"] == item["result"], "what succeeded is kept over all rounds"
        for row in now.values():
            was_open = self.barriers.get(row["id"], {}).get("status") == "open"
            if was_open and row["status"] in ("completed", "partial_failure", "failed"):
                self.mark(row["status"])
        self.barriers, self.items = now, items

    def teardown(self) -> None:
        if not hasattr(self, "stage"):
            return
        try:
            self.all_runs_end()
        finally:
            self.stage.close()

    def all_runs_end(self) -> None:
        """Whatever happened, workers that do their work bring all to its end."""
        while self.open():
            self.open()[0].commit()
            self.settle_down()
        for row in self.lab.sql(
            "SELECT DISTINCT worker_id AS id FROM flowstone.steps WHERE status = 'running'"
        ):
            self.released(row["id"], crash=False)
        for _ in range(400):
            barrier_sweep.sweep(self.lab.database)
            for row in self.lab.database.once(SQL["cancelling"], limit=100):
                runs.cancel_steps(self.lab.database, row["id"])
            while (claim := self.lab.claim_next(self.worker(), knows=[TASK, HAND])) is not None:
                self.do(claim)
            if self.lab.scalar("SELECT count(*) FROM flowstone.runs WHERE finished_at IS NULL") == 0:
                self.rows_break_no_rule()
                return
            self.lab.clock.advance(seconds=61)
        raise AssertionError(f"these did not end: {self.lab.reasons()}")

    def do(self, claim: Claim) -> None:
        """The claim's work is done, with success."""
        if claim.phase == "item":
            self.do_items(claim)
        elif claim.name == "pages" and claim.phase == "call":
            before = barriers.of_step(self.lab.database, claim.id)
            answer = Scattered(new(), [b"1"])
            if before is not None:
                answer = Scattered(again=before.id) if before.sealed else Scattered(barrier=before.id)
            if before is not None and not before.sealed:
                self.lab.database.attempt(lambda tx: barriers.open_barrier(tx, claim, new()))
            assert (
                self.lab.database.attempt(lambda tx: barriers.scatter_later(tx, claim, answer)()) is not None
            )
        else:
            assert self.lab.succeed(claim.held) is not None

    def do_items(self, hand: Claim) -> None:
        database = self.lab.database
        while True:
            found = database.attempt(lambda tx: barriers.claim_range(tx, hand, wanted=5, width=1))
            if found is None:
                if database.attempt(lambda tx: barriers.stand_aside(tx, hand)) is not None:
                    return
                assert database.attempt(lambda tx: barriers.holds(tx, hand))
                continue
            ended = [Ended(each.index, "succeeded", each.attempt, b"0") for each in found.items]
            assert (
                database.attempt(
                    lambda tx, part=ended, held=found: barriers.settle_part(tx, hand, held, part)
                )
                is not None
            )  # type: ignore[misc]


def _failed(tx: Any, claim: Claim) -> Any:
    return steps.end(tx, claim.held, StepStatus.FAILED, {"message": "no"}, name=claim.name)


def chosen(options: Sequence[T], chance: random.Random) -> T:
    """One of them."""
    return options[chance.randrange(len(options))]


_BARRIERS = "SELECT id, round, status, closed_at FROM flowstone.barriers"
_ITEMS = "SELECT barrier_id, index, status, round, attempt, ended_at, result FROM flowstone.items"


@dataclass(frozen=True)
class Explored:
    """What the stories of one profile came to."""

    seen: Counter[str]
    breach: BaseException | None


def explore(lab_: Lab, *, examples: int, lengths: Sequence[int], derandomize: bool) -> Explored:
    """Tell so many stories of the first length, and of the others for as long as something was not reached."""

    class Bound(ScattersInterleaved):
        lab = lab_
        seen: ClassVar[Counter[str]] = Counter()

    for length in lengths:
        told = settings(
            max_examples=examples,
            stateful_step_count=length,
            deadline=None,
            derandomize=derandomize,
            database=None,
            # Shrinking over real connections takes minutes; the story is printed as it was.
            phases=(Phase.generate,),
            suppress_health_check=list(HealthCheck),
            print_blob=True,
        )
        try:
            run_state_machine_as_test(Bound, settings=told)
        except Exception as breach:  # noqa: BLE001 - raised by the test that asks for it
            return Explored(Bound.seen, breach)
        if Bound.seen.keys() == REACHED.keys():
            break
    return Explored(Bound.seen, None)


@pytest.fixture(scope="module")
def explored(module_lab: Lab) -> Explored:
    """The same short stories each time."""
    return explore(module_lab, examples=20, lengths=(80, 110, 140, 170), derandomize=True)


@pytest.mark.timeout(300)
def test_no_interleaving_of_parts_ranges_and_rounds_breaks_a_rule(explored: Explored) -> None:
    if explored.breach is not None:
        raise explored.breach


@pytest.mark.timeout(300)
@pytest.mark.parametrize("what", sorted(REACHED))
def test_the_stories_reach(explored: Explored, what: str) -> None:
    assert explored.seen[what], f"no story in which {REACHED[what]}"


@pytest.mark.faults
@pytest.mark.timeout(3600)
def test_no_interleaving_breaks_a_rule_in_the_long_form(module_lab: Lab) -> None:
    found = explore(module_lab, examples=150, lengths=(150,), derandomize=False)
    if found.breach is not None:
        raise found.breach
