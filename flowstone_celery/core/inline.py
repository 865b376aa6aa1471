"""The same core in this very process: no Celery, no keeper, the run's steps one after the other.

With no keeper beside it nothing can interrupt code from outside. A timeout or a cancellation ends what asks: `async def` code at an
await, other code at `ctx.check()`. Code that never asks runs to its end.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING
from uuid import UUID, uuid4

from flowstone_celery.core import lanes, runs
from flowstone_celery.core.executor import Executor
from flowstone_celery.core.interrupts import CANCELLED, TIMEOUT, Interrupts
from flowstone_celery.core.model import INLINE_QUEUE, NoCarrier, Place, proc_state
from flowstone_celery.core.statements import SQL
from flowstone_celery.core.wake import back_in_line
from flowstone_celery.core.workers import WorkerProcess
from flowstone_celery.errors import WaitTimeout, WrongState
from flowstone_celery.states import RUN_TERMINAL, RunStatus

if TYPE_CHECKING:
    from flowstone_celery.config import Settings
    from flowstone_celery.core.interrupts import AwaitingCall, LiveCall, Patience
    from flowstone_celery.core.model import Claim, Handler
    from flowstone_celery.db.database import Database, Row

QUEUE = INLINE_QUEUE

_LEASE = 7 * 86_400.0
_LOOK_EVERY = 0.1
_ASK_EVERY = 0.25
_CALLS_AT_ONCE = 20_000


class InlineInterrupts(Interrupts):
    """What a keeper would demand, found out by the code's own asking: the attempt's timeout, and a cancelled run."""

    def __init__(self, database: Database) -> None:
        """Ask these rows, now and then."""
        super().__init__()
        self._database = database
        self._ends: dict[tuple[int, int], float] = {}
        self._asked = 0.0

    def call(self, claim: Claim, patience: Patience) -> LiveCall:
        """The call of this claim; its time runs from here."""
        self._begin(claim)
        return super().call(claim, patience)

    def call_beside(self, claim: Claim, patience: Patience) -> AwaitingCall:
        """The same for one of several calls."""
        self._begin(claim)
        return super().call_beside(claim, patience)

    def _begin(self, claim: Claim) -> None:
        if claim.timeout_seconds is not None:
            if len(self._ends) >= _CALLS_AT_ONCE:
                self._ends.pop(next(iter(self._ends)), None)
            self._ends[claim.id, claim.fence] = time.monotonic() + claim.timeout_seconds

    def reasons(self, claims: Iterable[Claim]) -> Mapping[tuple[int, int], str]:
        """Why these claims must end, by step and fence; asks the rows once for each run."""
        claims, now = list(claims), time.monotonic()
        ending = {
            run
            for run in {each.run_id for each in claims}
            if (row := self._database.first(SQL["run"], run=run)) and row["status"] == RunStatus.CANCELLING
        }
        late = {key for each in claims if now >= self._ends.get(key := (each.id, each.fence), math.inf)}
        cancelled = {(each.id, each.fence): CANCELLED for each in claims if each.run_id in ending}
        return {**cancelled, **dict.fromkeys(late, TIMEOUT)}

    def reason(self, claim: Claim) -> str | None:
        """Why this claim must end, or None."""
        now = time.monotonic()
        if now >= self._ends.get((claim.id, claim.fence), math.inf):
            return TIMEOUT
        if now < self._asked + _ASK_EVERY:
            return None
        self._asked = now
        run = self._database.first(SQL["run"], run=claim.run_id)
        return CANCELLED if run is not None and run["status"] == RunStatus.CANCELLING else None


class InlineWorker:
    """This process as a worker, for runs that it was asked to do itself."""

    def __init__(
        self,
        database: Database,
        settings: Settings,
        handlers: Mapping[str, Handler],
        knows: Callable[[], Sequence[str]],
    ) -> None:
        """Work with these handlers.

        The process registers with a long lease: nobody else does inline work, and one that dies is told by its pid.
        """
        self._database = database
        self._settings = settings
        self._idle = threading.Event()
        self._node = uuid4()
        self._worker = worker = WorkerProcess(database, self._node, "inline", _LEASE)
        self._knows = knows
        self._executor = Executor(
            database, settings, handlers, NoCarrier(), worker, knows, InlineInterrupts(database)
        )

    def drain(self, run_id: UUID, *, queue: str = QUEUE, timeout: float | None = None) -> Row:
        """Do the run's steps until it has ended, waiting for retries that are due later. Answers the run's row.

        Raises:
            WaitTimeout: it had not ended in time.
            WrongState: a step of it is ready and cannot be done here: another queue, or a task that this process does not know.
        """
        ends = None if timeout is None else time.monotonic() + timeout
        self._bury_dead()
        self._database.once(SQL["beat"], node=self._node, alive=[self._worker.id], lease=_LEASE)
        while True:
            self._call_parked(run_id)
            done = self._executor.work(None, queue, only_run=run_id)
            row = runs.read(self._database, run_id)
            if row["status"] in RUN_TERMINAL:
                return row
            if row["status"] == RunStatus.CANCELLING:
                runs.cancel_steps(self._database, run_id)
            if ends is not None and time.monotonic() >= ends:
                raise WaitTimeout(
                    f"run {run_id} is {row['status']} still",
                    hint="drain it again to go on",
                    run_id=str(run_id),
                )
            if not done:
                self._refuse_if_stuck(run_id, queue)
                self._bury_dead()  # whose process it waits for may have died meanwhile
                self._idle.wait(self._pause(run_id))

    def _refuse_if_stuck(self, run_id: UUID, queue: str) -> None:
        """Nothing of the run is at work anywhere, and what is ready is not for this process: waiting would never end."""
        open_ = [row for row in runs.steps(self._database, run_id) if row["status"] in ("ready", "running")]
        knows = set(self._knows())
        foreign = [row for row in open_ if row["queue"] != queue or row["task"] not in knows]
        if not foreign or len(foreign) < len(open_) or any(row["status"] == "running" for row in open_):
            return
        step = foreign[0]
        away = step["queue"] != queue
        raise WrongState(
            f"run {run_id} cannot go on in this process: step {step['name']!r} "
            + (
                f"stands on queue {step['queue']!r}"
                if away
                else f"is the task {step['task']!r}, unknown here"
            ),
            hint="it is for Celery workers: start one that listens there"
            if away
            else "the step is kept; import the module that declares it, then fs.resume(run_id)",
            run_id=str(run_id),
        )

    def _call_parked(self, run_id: UUID) -> None:
        """What a sweep does where one runs: rows of this run whose moment has come are back in the line."""
        back_in_line(self._database, only_run=run_id)
        row = runs.read(self._database, run_id)
        if not row["admitted"]:
            lanes.admit(self._database, NoCarrier(), self._settings, row["tenant"], row["lane"])

    def _pause(self, run_id: UUID) -> float:
        row = self._database.first(SQL["next_due_of_run"], run=run_id)
        due_in = row["due_in"] if row else None
        return _LOOK_EVERY if due_in is None else max(0.0, min(due_in, _LOOK_EVERY))

    def _bury_dead(self) -> None:
        """What earlier inline processes of this machine held when they died is ready again."""
        place = Place.here().place
        rows = self._database.once(SQL["workers_of_place"], place=place)
        dead = [row["id"] for row in rows if row["node_name"] == "inline" and _is_gone(row)]
        if dead:
            self._database.once(
                SQL["release_dead"],
                workers=dead,
                crash=0,
                loss=1,
                reason="its process died",
                crash_limit=2**31 - 1,
                loss_limit=2**31 - 1,
            )
            self._database.once(SQL["bury"], workers=dead)


def _is_gone(row: Row) -> bool:
    state = proc_state(row["pid"])
    return state is None or state[0] in "ZX" or state[1] != row["pid_started"]
