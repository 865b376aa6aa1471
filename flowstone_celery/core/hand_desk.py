"""The desk of a hand: the items of its range that are not begun, those that have ended, and the settling of parts.

Two threads stand at it. The one that does the items takes from the left of what is to do and lays down what has ended; both are
deques, whose ends are safe without a lock, for an item may cost a few microseconds. The other one watches, and settles while an item
takes long. Only the settling itself is done under a lock.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol, TypeVar

from flowstone_celery import faults
from flowstone_celery.core import barriers, steps
from flowstone_celery.core.hand_pace import SLOW_SECONDS, Parts
from flowstone_celery.core.items import shown
from flowstone_celery.core.statements import SQL
from flowstone_celery.core.tell import about_barrier, tell_closed
from flowstone_celery.errors import CommitUnknown, DatabaseUnavailable, ExecutionError
from flowstone_celery.states import BarrierStatus
from flowstone_celery.telemetry import emit

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from flowstone_celery.config import Settings
    from flowstone_celery.core.barrier_model import Barrier, Ended, ItemClaim, Part, Range
    from flowstone_celery.core.model import Claim, WakeUp
    from flowstone_celery.db.database import Database, Tx

T = TypeVar("T")


class Workplace(Protocol):
    """What hands need of the executor that they belong to."""

    @property
    def database(self) -> Database:
        """Where the rows are."""

    @property
    def settings(self) -> Settings:
        """This process's settings."""

    @property
    def is_leaving(self) -> bool:
        """Whether this process was told to stop."""

    def patiently(self, act: Callable[[], T]) -> T:
        """Do it as soon as the database is there."""

    def send(self, wakeups: Sequence[WakeUp]) -> None:
        """These were promised."""


class Desk:
    """One hand's, for one slice."""

    def __init__(self, place: Workplace, hand: Claim, barrier: Barrier) -> None:
        """Begin with no range."""
        self.todo: deque[ItemClaim] = deque()
        self.done: deque[Ended] = deque()
        self.parts = Parts()
        self.open = True
        """Whether the barrier was open when it was last heard of."""
        self.stale = False
        """Whether another holds the hand by now: nothing of it can be settled here."""
        self.last = 0
        """Items of the newest range that were begun."""
        self.keeps_last = False
        """Whether what has ended is settled with the hand itself, as `LastPart` says: its range is its last."""
        self.settled = 0
        self.failed = 0
        self._place = place
        self._hand = hand
        self._barrier = barrier
        self._range: Range | None = None
        self._ended: list[Ended] = []
        self._rest: list[int] = []
        self._held: set[int] = set()
        self._grows = False
        self._watched = False
        self._lock = threading.Lock()
        self._about = about_barrier(barrier)

    @property
    def is_of_use(self) -> bool:
        """Whether further items may be done."""
        return self.open and not self.stale

    def claim(self, wanted: int, width: int) -> Range | None:
        """The next range is held, and its items are to do; None: there is nothing to claim now."""
        found = self._place.patiently(lambda: self._claim(wanted, width))
        faults.point("range.after_commit")
        self._range = found
        self.last = 0
        self._held.clear()
        if found is not None:
            self._held.update(each.index for each in found.items)
            self._grows = not found.alone
            self.parts.restart(time.monotonic())
            self.todo.extend(found.items)
        return found

    def _claim(self, wanted: int, width: int) -> Range | None:
        def work(tx: Tx) -> Range | None:
            found = barriers.claim_range(tx, self._hand, wanted=wanted, width=width)
            self._promise_news(tx)
            return found

        if self._barrier.policy.timeout is None:
            found = self._place.database.by_statement(
                lambda tx: barriers.claim_at_once(tx, self._hand, wanted=wanted, width=width)
            )
            if found is not None:
                return found
        while True:
            try:
                return self._place.database.attempt(work)
            except CommitUnknown:
                # A range that was claimed and is not known to us is our own still: it is claimed again as lost.
                continue

    def grow(self, wanted: int, *, least: int, yields: bool) -> int:
        """Further items of the barrier are to do besides those that are; answers how many: none if that cannot be now."""
        with self._lock:
            if self._range is None or not self._grows or not self.is_of_use:
                return 0
            found = self._grow(wanted, least=least, yields=yields)
            if found:
                kept = [each for each in self._range.items if each.index in self._held]
                self._range = replace(self._range, items=[*kept, *found])
                self._held.update(each.index for each in found)
                self.todo.extend(found)
            return len(found)

    def _grow(self, wanted: int, *, least: int, yields: bool) -> list[ItemClaim]:
        def work(tx: Tx) -> list[ItemClaim]:
            found = barriers.grow_range(tx, self._hand, wanted=wanted, least=least, yields=yields)
            if found:
                self._promise_news(tx)
            return found

        try:
            found = self._place.database.attempt(work)
        except CommitUnknown:
            # What was claimed and is not known to us is our own still: the next claim answers it, once this range is done.
            self._grows = False
            return []
        except DatabaseUnavailable:
            return []
        faults.point("range.after_commit")
        return found

    def _promise_news(self, tx: Tx) -> None:
        """The keeper ends the process if nothing is heard until an item's time is over: its code may let no thread of it run."""
        timeout = self._barrier.policy.timeout
        if timeout is not None and self._watched:
            tx.run(SQL["hand_deadline"], **self._hand.held, seconds=timeout + SLOW_SECONDS)

    def watch(self) -> None:
        """What items need is there: from now on the keeper counts their time. Loading it is nobody's time."""
        if not self._watched and self._barrier.policy.timeout is not None:
            self._watched = True
            with suppress(CommitUnknown):  # if it did not happen, it does with the next part
                self._place.patiently(lambda: self._place.database.attempt(self._promise_news))

    def give_back(self, item: ItemClaim) -> None:
        """The item was begun and did not happen."""
        self._rest.append(item.index)

    # --- settle ---------------------------------------------------------------------------------------------------------------

    def settle(self, *, rest: bool = False) -> bool:
        """What has ended is settled, however long the database is away. `rest`: what is not begun goes back.

        Answers whether further items of this barrier may be done.
        """
        with self._lock:
            self._gather(rest=rest)
            if (self._ended and not self.keeps_last) or self._rest:
                self._place.patiently(self._settle)
        return self.is_of_use

    def later(self, tx: Tx) -> Callable[[], Part | None]:
        """What has ended and is kept is settled with what else is on its way, and told after the commit."""
        ended, began = tuple(self._ended), time.monotonic()
        assert self._range is not None, "nothing ends that was not claimed"
        asked = barriers.settle_part_later(tx, self._hand, self._range, ended)

        def answer() -> Part | None:
            part = asked()
            tx.after_commit(lambda: self._kept_no_more(ended, part, began))
            faults.point("part.before_commit")
            return part

        return answer

    def _kept_no_more(self, ended: Sequence[Ended], part: Part | None, began: float) -> None:
        faults.point("part.after_commit")
        self._ended.clear()
        self._tell(ended, part, time.monotonic() - began)

    @property
    def told(self) -> str:
        """What was done, for people."""
        failed = self.failed + sum(each.error is not None for each in self._ended)
        return f"{self.settled + len(self._ended)} items, {failed} failed"

    @property
    def keeps(self) -> int:
        """Items that have ended and are not settled."""
        return len(self._ended)

    def settle_all(self, *, rest: bool = False) -> bool:
        """As `settle`, of what was kept too."""
        self.keeps_last = False
        return self.settle(rest=rest)

    def settle_beside(self, *, rest: bool) -> bool:
        """The same from the watching thread, which waits for nobody: later if the hand settles just now, or the database is away."""
        if not self._lock.acquire(blocking=False):
            return self.is_of_use
        try:
            self._gather(rest=rest)
            if self._ended or self._rest:
                self._settle()
        except DatabaseUnavailable:
            pass  # what was gathered is settled with the next part
        finally:
            self._lock.release()
        return self.is_of_use

    def is_open_still(self) -> bool:
        """Whether the barrier is open now, as far as the rows can be asked."""
        if self.open:
            with suppress(DatabaseUnavailable):
                found = barriers.barrier(self._place.database, self._barrier.id)
                self.open = (
                    found is not None
                    and found.status == BarrierStatus.OPEN
                    and found.round == self._barrier.round
                )
        return self.open

    def _gather(self, *, rest: bool) -> None:
        while self.done:
            self._ended.append(self.done.popleft())
        while rest and self.todo:
            try:
                self._rest.append(self.todo.pop().index)
            except IndexError:  # the other thread has begun it
                break

    def _settle(self) -> None:
        ended, rest = tuple(self._ended), sorted(self._rest)
        try:
            self._write(ended, rest)
        except (DatabaseUnavailable, faults.FaultInjectedError):
            raise
        except Exception as error:  # noqa: BLE001 - a part that cannot be written would be tried for ever
            self._write_singly(ended, rest, error)
        self._ended.clear()
        self._rest.clear()
        self.parts.restart(time.monotonic())

    def _write_singly(self, ended: Sequence[Ended], rest: Sequence[int], error: Exception) -> None:
        """Item by item, so that the one that the rows refuse is found; it fails instead."""
        if not ended:
            raise error
        for each in ended:
            try:
                self._write((each,), ())
            except (DatabaseUnavailable, faults.FaultInjectedError):
                raise
            except Exception as refused:  # noqa: BLE001 - as above
                told = ExecutionError.of(refused, self._barrier.name, self._barrier.partition)
                self._write((replace(each, status="failed", result=None, error=told.to_dict()),), ())
        if rest:
            self._write((), rest)

    def _write(self, ended: Sequence[Ended], rest: Sequence[int]) -> None:
        if self.stale or self._range is None:
            return
        held, began = self._range, time.monotonic()

        def work(tx: Tx) -> Part | None:
            part = barriers.settle_part(tx, self._hand, held, ended, rest_open=rest or None)
            if part is not None:
                least = self._place.settings.min_wakeups
                wakeups = steps.promise_all(tx, part.opened, min_wakeups=least) if part.opened else []
                tx.after_commit(lambda: self._place.send(wakeups))
                self._promise_news(tx)
            faults.point("part.before_commit")
            return part

        while True:
            try:
                part = self._place.database.attempt(work)
                break
            except CommitUnknown:
                # Settled again: an item that has ended does not end twice.
                continue
        faults.point("part.after_commit")
        self._held.difference_update([each.index for each in ended], rest)
        self._tell(ended, part, time.monotonic() - began)

    # --- tell -----------------------------------------------------------------------------------------------------------------

    def _tell(self, ended: Sequence[Ended], part: Part | None, seconds: float) -> None:
        if part is None:
            self.stale = True
            return
        self.open = part.status == BarrierStatus.OPEN
        failed = [each for each in ended if each.error is not None]
        self.last += len(ended)
        self.settled += len(ended)
        self.failed += len(failed)
        if failed and self._range is not None:
            keys = {each.index: each.key for each in self._range.items}
            for each in failed:
                self._tell_failed(each, keys.get(each.index, b""))
        if ended:
            retried = sum(each.status == "retry" for each in ended)
            emit(
                "flowstone.scatter.part",
                **self._about,
                step_id=self._hand.id,
                items=len(ended),
                failed=len(failed) - retried,
                retried=retried,
                duration_ms=seconds * 1000,
            )
        if part.closed:
            tell_closed(self._place.database, self._barrier.id)

    def _tell_failed(self, ended: Ended, key: bytes) -> None:
        emit(
            "flowstone.scatter.instance_exception",
            **self._about,
            scatter_key=shown(key),
            index=ended.index,
            attempt=ended.attempt,
            error=str((ended.error or {}).get("message") or ""),
            retried=ended.status == "retry",
        )
