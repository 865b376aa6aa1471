"""The ticker: what is due is woken, what is lost is taken back, what was promised in vain is promised again.

Any number of pacers may run. One at a time holds the pacer's row and looks often; the others look whether it lives. Nothing rests on
that for correctness: every act is a guarded statement, so two at once are merely busier.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING
from uuid import UUID

from flowstone_celery import faults
from flowstone_celery.core import acts, barrier_sweep, lanes, retention, runs, steps
from flowstone_celery.core.model import WakeUp
from flowstone_celery.core.statements import SQL
from flowstone_celery.core.tell import tell_released
from flowstone_celery.core.wake import Promise, back_in_line, send_promised, wake
from flowstone_celery.errors import TooManyCrashes
from flowstone_celery.states import StepStatus
from flowstone_celery.telemetry import emit

if TYPE_CHECKING:
    from flowstone_celery.config import Settings
    from flowstone_celery.core.model import Carrier
    from flowstone_celery.db.database import Database, Row, Tx

_LOST_BATCH = 500
_CAPACITY_EVERY = 1.0
_IDLE_BEFORE_AGAIN = 2.0
_FORGET_EVERY = 60.0
_LANES_EVERY = 1.0
_PRUNE_EVERY = 60.0
_PRUNE_ON = 1.0
_FORGOTTEN_AFTER = 3_600.0
"""Seconds without a beat after which a node is history."""


class Pacer:
    """`step()` does all that is due now and answers when to look again."""

    def __init__(self, database: Database, settings: Settings, carrier: Carrier, holder: UUID) -> None:
        """Pace under this holder's key."""
        self._database = database
        self._settings = settings
        self._carrier = carrier
        self._holder = holder
        self._holding = False
        self._pace_again = 0.0
        self._capacity_again = 0.0
        self._forget_again = 0.0
        self._prune_again = 0.0
        self._pruned = retention.Pruned()
        self._lanes_again = 0.0
        self._doer = acts.Doer(database, carrier, settings)
        self._idle_since: dict[str, float] = {}

    @property
    def _hold(self) -> float:
        return min(3.0, self._settings.lease_seconds)

    @property
    def _renewal(self) -> float:
        """Two renewals may fail before another paces; and three before the steady time begins anew."""
        return min(self._hold / 3, self._settings.lease_seconds / 6)

    def step(self) -> float:
        """Answers the seconds until the next look.

        Raises:
            DatabaseUnavailable: the database is away; look again later.
        """
        now = time.monotonic()
        if now >= self._pace_again:
            self._holding = self._pace()
            self._pace_again = now + (self._renewal if self._holding else self._hold * 2 / 3)
        if not self._holding:
            return self._pace_again - now
        return self._sweep()

    def hear(self) -> None:
        """The next step looks at lanes too, whether or not it is their turn."""
        self._lanes_again = 0.0

    def _pace(self) -> bool:
        row = self._database.first(
            SQL["pace"],
            node=self._holder,
            hold=self._hold,
            gap=max(self._settings.lease_seconds / 2, self._hold / 3),
        )
        return row is not None

    def _sweep(self) -> float:
        begun = time.monotonic()
        agenda = self._database.once(SQL["agenda"])[0]
        due = self.wake(self._is_due(agenda))
        self._do_acts(agenda, begun)
        if agenda["cancelling"]:
            self._finish_cancelling()
        lost = self._take_back() if agenda["lost"] else 0
        again = self._wake_again(begun) if begun >= self._capacity_again else 0
        if begun >= self._forget_again:
            self._forget(begun)
        if begun >= self._prune_again:
            self._prune(begun)
        if due or lost or again:
            emit(
                "flowstone.pacer.sweep",
                duration_ms=(time.monotonic() - begun) * 1000,
                due=due,
                released=lost,
                sent=due + again,
            )
        poll = self._settings.pacer_poll_seconds
        return poll if agenda["next_due_in"] is None else min(poll, max(0.001, agenda["next_due_in"]))

    def wake(self, queues: Sequence[str]) -> int:
        """Promise and send wake-ups on these queues, as far as each has room."""
        return wake(self._database, self._carrier, self._settings, queues)

    def _is_due(self, agenda: Row) -> list[str]:
        """The queues on which something is to be woken, with what becomes due now."""
        moved = agenda["awaiting"] or (agenda["next_due_in"] is not None and agenda["next_due_in"] <= 0)
        return [*(agenda["due"] or ()), *(back_in_line(self._database) if moved else ())]

    def _do_acts(self, agenda: Row, now: float) -> None:
        """Deadlines, requests of other transactions, and lanes that nobody serves."""
        if agenda["late"]:
            acts.expire(self._doer)
        if agenda["asked"]:
            acts.do_asked(self._doer)
        if now >= self._lanes_again:
            self._lanes_again = now + _LANES_EVERY
            lanes.sweep(self._database, self._carrier, self._settings)
            if agenda["scatters"]:
                self.wake(barrier_sweep.sweep(self._database))

    def _finish_cancelling(self) -> None:
        for row in self._database.once(SQL["cancelling"], limit=100):
            runs.cancel_steps(self._database, row["id"])

    def _forget(self, now: float) -> None:
        """Nodes and processes that have long gone silent no longer count as alive."""
        self._forget_again = now + _FORGET_EVERY
        after = max(_FORGOTTEN_AFTER, 10 * self._settings.lease_seconds)
        self._database.once(SQL["forget_nodes"], after=after)
        self._database.once(SQL["forget_workers"], after=after)

    def _prune(self, now: float) -> None:
        """One batch of what is older than the settings keep: the next one soon while there is more, else in a minute."""
        policy = retention.Policy.of(self._settings)
        if policy is None:
            self._prune_again = math.inf
            return
        self._pruned = retention.batch(self._database, policy, actor="retention", after=self._pruned.reached)
        self._prune_again = now + (_PRUNE_ON if self._pruned.any else _PRUNE_EVERY)

    # --- lost leases ----------------------------------------------------------------------------------------------------------

    def _take_back(self) -> int:
        """Steps of workers that no longer beat are ready again, or failed at their limit."""

        def work(tx: Tx) -> list[Row]:
            rows = tx.rows(
                SQL["release_lost"],
                lease=self._settings.lease_seconds,
                loss_limit=self._settings.loss_limit,
                limit=_LOST_BATCH,
            )
            steps.lose_claims(tx, rows)
            faults.point("sweep.before_commit")
            return rows

        released = self._database.attempt(work)
        for row in released:
            tell_released(row, "lost")
        self.wake(sorted({row["queue"] for row in released}))
        return len(released) + end_at_limit(self._database, self._settings, lost=True, crash=False)

    # --- promised in vain -----------------------------------------------------------------------------------------------------

    def _wake_again(self, now: float) -> int:
        """Into slots that have been idle for a while, send again what was promised and never came."""
        self._capacity_again = now + min(_CAPACITY_EVERY, self._settings.lease_seconds / 4)
        rows = {row["queue"]: row for row in self._database.once(SQL["capacity"])}
        idle = {queue for queue, row in rows.items() if row["slots"] > row["busy"]}
        self._idle_since = {queue: self._idle_since.get(queue, now) for queue in idle}
        pause = min(_IDLE_BEFORE_AGAIN, self._settings.lease_seconds)
        long_idle = [queue for queue, since in self._idle_since.items() if now - since >= pause]
        return sum(
            send_promised(self._database, self._carrier, self._promised_again(rows[queue], pause))
            for queue in long_idle
        )

    def _promised_again(self, row: Row, pause: float) -> Promise:
        def work(tx: Tx) -> list[WakeUp]:
            places = row["slots"] - row["busy"]
            found = tx.rows(
                SQL["promise_again"], queue=row["queue"], knows=row["knows"], pause=pause, places=places
            )
            return [WakeUp.of(each) for each in found]

        return work


def end_at_limit(
    database: Database,
    settings: Settings,
    *,
    workers: Sequence[int] = (),
    lost: bool = False,
    crash: bool = True,
) -> int:
    """Steps that have crashed, or lost their worker, too often end as failed; answers how many."""
    rows = database.once(
        SQL["at_limit"],
        workers=list(workers),
        lost=lost,
        crash=int(crash),
        loss=int(not crash),
        crash_limit=settings.crash_limit,
        loss_limit=settings.loss_limit,
        lease=settings.lease_seconds,
    )
    return sum(database.attempt(partial(_end_poison, row=row, crash=crash)) for row in rows)


def _end_poison(tx: Tx, *, row: Row, crash: bool) -> bool:
    error = TooManyCrashes(
        f"{row['name']!r} took its worker process down {row['crashes'] + 1} times, the last on {row['node_name']} (pid {row['pid']})"
        if crash
        else f"{row['name']!r} lost its worker {row['losses'] + 1} times, the last {row['node_name']} (pid {row['pid']})",
        hint="look for memory or native crashes in it; raise FLOWSTONE_CRASH_LIMIT if the machines are to blame",
        asset=row["name"],
        partition=row["partition"],
    )
    held = {"step": row["step"], "worker": row["worker"], "fence": row["fence"]}
    moved = steps.end(
        tx,
        held,
        StepStatus.FAILED,
        error.to_dict(),
        name=row["name"],
        crashed=int(crash),
        lost=int(not crash),
    )
    if moved is None:
        return False
    about = {key: row[key] for key in ("name", "partition", "attempt")}
    tx.after_commit(
        lambda: emit(
            "flowstone.step.fail",
            run_id=str(row["run_id"]),
            step_id=row["step"],
            **about,
            error=str(error),
            code=error.code,
        )
    )
    return True
