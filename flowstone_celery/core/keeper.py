"""The keeper of one node: leases, deaths, interrupts, and the ticker. It runs in a process of its own, beside the work.

User code may hold its process's interpreter lock for minutes, so no thread of that process could keep its lease; and a parent that
forks children must hold neither threads nor connections. The keeper stands outside: it looks at the processes through the kernel
and at the rows through its own connection.

- A process that lives and is not stopped keeps its lease.
- A process that is gone loses its claims at once: counted as a crash if its node lives, as a loss if the whole node fell, as
  neither after an announced stop.
- Work that must end is interrupted; what does not end within the grace is settled from here, and its process killed if that is safe.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from flowstone_celery import faults
from flowstone_celery.core import steps
from flowstone_celery.core.interrupts import SIGNAL, TIMEOUT, Board
from flowstone_celery.core.model import Place, proc_state
from flowstone_celery.core.pacer import Pacer, end_at_limit
from flowstone_celery.core.retry_policy import RetryPolicy
from flowstone_celery.core.settle import timeout_error
from flowstone_celery.core.statements import SQL
from flowstone_celery.core.tell import tell_released
from flowstone_celery.core.workers import Node, report_node
from flowstone_celery.db.versions import refuse_mismatch
from flowstone_celery.errors import Cancelled, DatabaseUnavailable, SchemaMismatch
from flowstone_celery.states import Phase, StepStatus
from flowstone_celery.telemetry import emit

if TYPE_CHECKING:
    from flowstone_celery.config import Settings
    from flowstone_celery.core.model import Carrier
    from flowstone_celery.core.steps import Moved
    from flowstone_celery.db.database import Database, Row, Tx

_LOOK_EVERY = 0.5
_STOPPED = "T"
_AWAY_PAUSE = 0.25


class Keeper:
    """`step()` does what is to be done now and answers when to look again; a loop around it is the keeper process."""

    def __init__(
        self,
        database: Database,
        settings: Settings,
        carrier: Carrier,
        node: Node,
        board: Board,
        *,
        may_kill: bool,
    ) -> None:
        """Keep this node. `may_kill`: each process does one thing at a time, so that killing it harms nothing else."""
        self._database = database
        self._settings = settings
        self._carrier = carrier
        self._board = board
        self._may_kill = may_kill
        self._place = Place.here().place
        self._look_again = 0.0
        self._beat_again = 0.0
        self._pace_again = 0.0
        self._signaled: set[tuple[int, int]] = set()
        self._posted: set[int] = set()
        self._killed: set[int] = set()
        self.node = node
        self.pacer = Pacer(database, settings, carrier, node.key)
        self.parent_gone = False
        self.stop_announced = False
        self.retired = False

    def step(self) -> float:
        """Answers the seconds until the next look. A database that is away is waited for."""
        now = time.monotonic()
        try:
            if now >= self._look_again:
                self._look_again = now + min(_LOOK_EVERY, self._settings.lease_seconds / 4)
                self._look()
            # A look at the processes is no reason for the pacer to look before it meant to.
            if time.monotonic() >= self._pace_again:
                pause = _LOOK_EVERY if self.retired else self.pacer.step()
                self._pace_again = time.monotonic() + pause
            return max(0.0, min(self._look_again, self._pace_again) - time.monotonic())
        except DatabaseUnavailable:
            return _AWAY_PAUSE

    def hear(self) -> None:
        """Somebody's transaction that concerns us has committed: the next step looks at all that may follow."""
        self._pace_again = 0.0
        self.pacer.hear()

    def report(self, node: Node | None = None) -> None:
        """The node's row says what it listens to and knows now."""
        self.node = node or self.node
        report_node(self._database, self.node, keeper_pid=os.getpid(), lease=self._settings.lease_seconds)

    def announce_stop(self) -> None:
        """The node takes no new work; what its processes leave behind is nobody's fault."""
        self.stop_announced = True
        self._board.drain()
        self._database.first(SQL["drain_node"], node=self.node.key)
        emit("flowstone.worker.drain", node=self.node.name, pid=self.node.pid)

    def leave(self) -> None:
        """The node is gone; whatever its processes still held is released."""
        self._look()
        self._database.first(SQL["leave_node"], node=self.node.key)

    def own_processes(self) -> list[int]:
        """The pids of this node's worker processes that live."""
        rows = self._database.once(SQL["workers_of_place"], place=self._place)
        return [row["pid"] for row in rows if row["node_key"] == self.node.key and _lives(row)]

    # --- leases and deaths ----------------------------------------------------------------------------------------------------

    def _look(self) -> None:
        processes = self._database.once(SQL["workers_of_place"], place=self._place)
        dead = [row for row in processes if not _lives(row)]
        mine = [row["id"] for row in dead if row["node_key"] == self.node.key]
        self._release([each for each in mine if each not in self._killed], own=True)
        self._release([each for each in mine if each in self._killed], own=True, killed=True)
        # A neighbor's dead are its own keeper's, who knows whether they crashed; without one they are lost.
        orphans = [row for row in dead if row["node_key"] != self.node.key and not _is_kept(row)]
        self._release([row["id"] for row in orphans], own=False)
        if time.monotonic() >= self._beat_again:
            self._beat(processes)
        self._watch()

    def _beat(self, processes: Sequence[Row]) -> None:
        faults.point("keeper.beat")
        alive = [row["id"] for row in processes if row["node_key"] == self.node.key and _works(row)]
        self._read_schema()
        self._database.once(SQL["beat"], node=self.node.key, alive=alive, lease=self._settings.lease_seconds)
        # After the beat, so that a beat that failed is repeated at the next look.
        self._beat_again = time.monotonic() + self._settings.beat_seconds

    def _read_schema(self) -> None:
        """With each beat: the database may have been restored from before this node, or migrated beyond its code."""
        row = self._database.first(SQL["node_and_schema"], node=self.node.key)
        try:
            found = (row["version"], row["oldest_code"]) if row else None
            refuse_mismatch(found, schema=self._database.schema)
        except SchemaMismatch as error:
            self.retire(error)
            return
        if row and not row["known"]:
            self.report()

    def retire(self, error: SchemaMismatch) -> None:
        """No step begins on this node any more, and it paces nobody; what runs may end. Said once."""
        if self.retired:
            return
        self._database.first(SQL["drain_node"], node=self.node.key)
        self.retired = True
        self._board.retire(f"is too old for the database: {error.message}")
        emit(
            "flowstone.error",
            type=type(error).__name__,
            code=error.code,
            message=f"{self.node.name} takes no steps any more: {error.message}",
            retryable=False,
            count=1,
        )
        emit(
            "flowstone.worker.drain",
            node=self.node.name,
            pid=self.node.pid,
            reason="the database has outgrown it",
        )

    def _release(self, workers: list[int], *, own: bool, killed: bool = False) -> None:
        """What these dead processes held is ready again, and they are buried, in one transaction.

        `killed`: from here, for a step that would not end: the others of those processes did not bring them down.
        """
        if not workers:
            return
        faults.point("keeper.before_release")
        crash = own and not killed and not self.parent_gone and not self.stop_announced
        loss = not crash and not (own and self.stop_announced)
        fallen = "a step beside it would not end" if killed else "its worker node fell"
        reason = "its process died" if crash else fallen if loss else "its worker stopped"

        def work(tx: Tx) -> list[Row]:
            released = tx.rows(
                SQL["release_dead"],
                workers=workers,
                crash=int(crash),
                loss=int(loss),
                reason=reason,
                crash_limit=self._settings.crash_limit,
                loss_limit=self._settings.loss_limit,
            )
            steps.lose_claims(tx, released)
            faults.point("release.before_commit")
            return released

        released = self._database.attempt(work)
        end_at_limit(self._database, self._settings, workers=workers, crash=crash)
        # Buried last: until then the next look, of this keeper or another, begins again.
        self._database.once(SQL["bury"], workers=workers)
        faults.point("release.after_commit")
        for row in released:
            tell_released(row, "crash" if crash else "lost" if loss else "stop")
        self.pacer.wake(sorted({row["queue"] for row in released}))

    # --- interrupts -----------------------------------------------------------------------------------------------------------

    def _watch(self) -> None:
        """Interrupt what must end; settle from here what does not."""
        rows = self._database.once(SQL["watch"], node=self.node.key)
        stubborn = [
            row for row in rows if row["overdue"] > self._settings.grace_seconds and self._may_end(row)
        ]
        for row in stubborn:
            if _is_late_hand(row):
                self._kill_hand(row)
            else:
                self._settle_for(row)
        self._interrupt([row for row in rows if row not in stubborn])

    def _may_end(self, row: Row) -> bool:
        """Whether it can be settled from here. A hand goes on after an item that was late, so only its process's end ends it."""
        return self._may_kill or not _is_late_hand(row)

    def _kill_hand(self, row: Row) -> None:
        """One of its items lets nothing in its process run: the process has died of it, as of any other crash."""
        emit("flowstone.step.timeout", **_about(row), timeout_seconds=row["timeout_seconds"], hard=True)
        _signal(row["pid"], signal.SIGKILL)

    def _interrupt(self, rows: Iterable[Row]) -> None:
        pages: dict[int, dict[str, str]] = {pid: {} for pid in self._posted}
        for row in rows:
            pages.setdefault(row["pid"], {})[f"{row['id']}:{row['fence']}"] = row["reason"]
        for pid, demands in pages.items():
            self._board.post(pid, demands)
        self._posted = {pid for pid, demands in pages.items() if demands}
        fresh = {(row["id"], row["fence"]): row for row in rows} if self._may_kill else {}
        for key in fresh.keys() - self._signaled:
            _signal(fresh[key]["pid"], SIGNAL)
        self._signaled = set(fresh)

    def _settle_for(self, row: Row) -> None:
        """The grace is over: the step is settled under its holder's fence, then the process may be killed."""
        moved = self._database.attempt(lambda tx: self._end(tx, row))
        if moved is None:
            return
        emit(
            "flowstone.step.timeout" if row["reason"] == TIMEOUT else "flowstone.step.cancel",
            **_about(row),
            **({"timeout_seconds": row["timeout_seconds"], "hard": True} if row["reason"] == TIMEOUT else {}),
        )
        if self._may_kill:
            self._killed.add(row["worker_id"])
            _signal(row["pid"], signal.SIGKILL)
        self.pacer.wake(sorted(set(moved.opened)))

    def _end(self, tx: Tx, row: Row) -> Moved | None:
        held = {"step": row["id"], "worker": row["worker_id"], "fence": row["fence"]}
        if row["reason"] != TIMEOUT:
            error = Cancelled("the run was cancelled").to_dict()
            return steps.end(tx, held, StepStatus.CANCELLED, error, name=row["name"])
        return steps.fail_or_retry(
            tx,
            held,
            timeout_error(row["name"], row["partition"], row["timeout_seconds"]),
            name=row["name"],
            failures=row["failures"],
            max_failures=row["max_failures"],
            policy=RetryPolicy(**(row["retry"] or {})),
        )


def _is_late_hand(row: Row) -> bool:
    return bool(row["phase"] == Phase.ITEM and row["reason"] == TIMEOUT)


def _about(row: Row) -> dict[str, Any]:
    return {
        "run_id": str(row["run_id"]),
        "step_id": row["id"],
        "name": row["name"],
        "partition": row["partition"],
        "attempt": row["fence"],
    }


def _lives(row: Row) -> bool:
    """The very process that registered is there (its pid was not given to another) and is no zombie."""
    state = proc_state(row["pid"])
    return state is not None and state[0] not in "ZX" and state[1] == row["pid_started"]


def _is_kept(row: Row) -> bool:
    """Whether a keeper stands by this process. One whose pid was given to another seems to; the lease then ends by itself."""
    state = proc_state(row["keeper_pid"]) if row["keeper_pid"] else None
    return state is not None and state[0] not in "ZX"


def _works(row: Row) -> bool:
    state = proc_state(row["pid"])
    return _lives(row) and state is not None and state[0] != _STOPPED


def _signal(pid: int, number: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)
