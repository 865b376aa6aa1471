"""A handle on a run, shaped like Celery's AsyncResult; it can be made again from the id alone."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from uuid import UUID

from flowstone_celery.assets.acting import Acting
from flowstone_celery.assets.making import is_making, refuse_circle
from flowstone_celery.assets.slices import Slice
from flowstone_celery.core import runs
from flowstone_celery.core.statements import SQL
from flowstone_celery.errors import (
    Cancelled,
    DependencyCycle,
    FlowStoneError,
    NoWorker,
    RunFailed,
    RunNotFound,
    ValueNotFound,
    WaitTimeout,
)
from flowstone_celery.states import RUN_TERMINAL, STEP_TERMINAL, RunStatus, StepStatus

if TYPE_CHECKING:
    from flowstone_celery.assets.scatter_handle import ScatterHandle
    from flowstone_celery.core.joining import Joiner
    from flowstone_celery.db.database import Database, Row
    from flowstone_celery.db.joining import Begun

_FIRST_PAUSE = 0.003
_LONGEST_PAUSE = 0.25
_PATIENCE = 0.06
"""Seconds of pause for each second that a wait has lasted."""
_STALLED_AFTER = 5.0

ReadValue = Callable[[str, str, UUID], Any]
"""Answers the value that a run made: asset, partition text, run id."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run is."""

    status: str
    total: int
    finished: int
    failed: int

    @property
    def percent(self) -> float:
        """0 to 100; 0 when there is nothing to do."""
        return 100.0 * self.finished / self.total if self.total else 0.0


class Run(Acting):
    """One run, read from its rows each time it is asked."""

    def __init__(
        self,
        run_id: UUID | str,
        database: Database,
        read_value: ReadValue,
        *,
        made: tuple[str, str] | None = None,
        begun: Begun | None = None,
        fresh: bool = False,
        joiner: Callable[[], Joiner] | None = None,
    ) -> None:
        """Point at a run; nothing is read yet.

        Args:
            run_id: its id.
            database: where its rows are.
            read_value: reads a value that it made.
            made: asset and partition text of a value that it is known to have made; `get` answers that one, and does not wait.
            begun: the caller's transaction in which it was started, if it was.
            fresh: it was started a moment ago.
            joiner: does acts on it; without one the handle reads and cancels.

        Raises:
            RunNotFound: the text is not the form of an id.
        """
        self._id = _as_id(run_id)
        self._database = database
        self._read_value = read_value
        self._made = made
        self._begun = begun
        self._fresh = fresh
        self._joiner = joiner

    def __repr__(self) -> str:
        """The id, as for an AsyncResult."""
        return f"<Run: {self.id}>"

    def __eq__(self, other: object) -> bool:
        """Two handles on the same run are equal."""
        return isinstance(other, Run) and other._id == self._id

    def __hash__(self) -> int:
        """By the run's id."""
        return hash(self._id)

    @property
    def id(self) -> str:
        """The run's id as text."""
        return str(self._id)

    @property
    def uuid(self) -> UUID:
        """The run's id."""
        return self._id

    @property
    def row(self) -> Row:
        """The run's row.

        Raises:
            NotCommitted: the caller's transaction in which it was started is open still.
            RunNotFound: no run has this id.
        """
        try:
            return runs.read(self._database, self._id)
        except RunNotFound:
            if self._begun is None:
                raise
            from flowstone_celery.core.joining import not_there

            raise not_there(self._id, self._begun) from None

    @property
    def state(self) -> str:
        """pending, running, waiting, succeeded, partial, failed, cancelling or cancelled."""
        return str(self.row["status"])

    status = state

    @property
    def round(self) -> int:
        """1, and one more with each retry."""
        return int(self.row["round"])

    @property
    def paused(self) -> bool:
        """Whether it begins nothing more until it is resumed."""
        return bool(self.row["paused"])

    def ready(self) -> bool:
        """Whether the run has ended, in whatever way."""
        return self.state in RUN_TERMINAL

    def successful(self) -> bool:
        """Whether the run has succeeded."""
        return self.state == RunStatus.SUCCEEDED

    def failed(self) -> bool:
        """Whether the run has failed."""
        return self.state == RunStatus.FAILED

    def progress(self) -> Progress:
        """How many of its steps have ended."""
        row = self._progress()
        return Progress(
            row["status"],
            row["total_steps"],
            row["total_steps"] - row["remaining_steps"],
            row["failed_steps"],
        )

    def steps(self) -> list[Row]:
        """Its steps in dependency order, with status, attempt, worker and error."""
        return runs.steps(self._database, self._id)

    def scatters(self) -> list[ScatterHandle]:
        """Its scatters, the newest first: how far each is, its items, and what can be done to it."""
        from flowstone_celery.assets.scatter_handle import of_run

        return of_run(self._id, self._database, lambda: self._acting)

    def events(self, after: int = 0) -> Iterator[Row]:
        """Its history after the given event id, oldest first; pass the last id seen to go on."""
        while page := runs.events(self._database, self._id, after=after):
            yield from page
            after = page[-1]["id"]

    def why(self) -> list[Row]:
        """For each unfinished step the reason why it is not running."""
        return self._database.once(SQL["why_not_running"], run=self._id, limit=100)

    def wait(
        self,
        timeout: float | None = None,
        *,
        on_progress: Callable[[Progress], None] | None = None,
        on_stall: Callable[[str], None] | None = None,
    ) -> Run:
        """Return when the run has ended.

        Args:
            timeout: seconds; None waits as long as it takes.
            on_progress: told whenever something changed.
            on_stall: told, once for each reason, why nothing has moved for some seconds.

        Raises:
            WaitTimeout: it had not ended in time; it goes on, and can be waited for again.
            RunNotFound: no run has this id.
            DependencyCycle: the code that waits is making what the run is to make.
        """
        self.refuse_circle()
        watch = _Watch(self, timeout, on_progress, on_stall)
        if self._fresh and timeout != 0:
            watch.pause()  # it was begun a moment ago: whoever makes it needs the machine more than a look does
        self._fresh = False
        while True:
            row = self._progress()
            watch.look(row)
            if row["status"] in RUN_TERMINAL:
                return self
            watch.pause()

    def refuse_circle(self, *, cancel: bool = False) -> None:
        """Return if the calling code may wait for this run: it is not making itself what the run is to make.

        Raises:
            DependencyCycle: it is; with `cancel`, the run is cancelled first.
        """
        if not is_making():
            return
        awaited = [each for each in self.steps() if each["sole"] and each["status"] not in STEP_TERMINAL]
        try:
            refuse_circle(Slice(each["name"], each["partition"]) for each in awaited)
        except DependencyCycle:
            if cancel:
                self.cancel(actor="flowstone", reason="it would wait for the code that waits for it")
            raise

    def get(self, timeout: float | None = None, **told: Any) -> Any:
        """The value that the run made of its target, when it has ended (waits as `wait` does).

        Raises:
            WaitTimeout: as for `wait`.
            RunFailed: it failed; the error names the first step that did.
            Cancelled: it was cancelled.
            ValueNotFound: it made no value (its target was skipped).
        """
        if self._made is not None:
            return self._read_value(*self._made, self._id)
        self.wait(timeout, **told)
        row = self.row
        if row["status"] == RunStatus.FAILED:
            raise self._failure(row)
        if row["status"] == RunStatus.CANCELLED:
            raise self._cancelled(row)
        try:
            return self._read_value(row["name"], row["partition"], self._id)
        except ValueNotFound as error:
            raise self._skipped(row["name"]) or error from None

    def _progress(self) -> Row:
        row = self._database.first(SQL["progress"], run=self._id)
        return row if row is not None else self.row

    def _cancelled(self, row: Row) -> Cancelled:
        errors = [row["error"], *(step["error"] for step in self.steps() if step["status"] == "cancelled")]
        reason = next((error["message"] for error in errors if error), "cancelled")
        return Cancelled(
            f"run {self.id} of {row['name']!r} was cancelled: {reason}",
            hint=f"`flowstone run show {self.id}` tells who did it; start it again with fs.run(…)",
            run_id=self.id,
            reason=reason,
        )

    def _skipped(self, name: str) -> ValueNotFound | None:
        """The error for a target that has no value because it was skipped, with the reason; None if it was not."""
        skipped = [
            step for step in self.steps() if step["name"] == name and step["status"] == StepStatus.SKIPPED
        ]
        if not skipped:
            return None
        reason = (skipped[0]["error"] or {}).get("message") or "skipped"
        return ValueNotFound(
            f"run {self.id} made no value of {name!r}, which was skipped: {reason}",
            hint="an asset that is skipped has no value; declare it in optional_deps where that is fine",
            run_id=self.id,
            asset=name,
        )

    def _failure(self, row: Row) -> RunFailed:
        error = row["error"] or {}
        cause = FlowStoneError.from_dict(error) if error else None
        failure = RunFailed(
            f"run {self.id} of {row['name']!r} failed: {error.get('message', 'no error was recorded')}",
            hint=f"`flowstone run show {self.id}` tells the whole story",
            run_id=self.id,
            error=error,
        )
        failure.__cause__ = cause
        return failure


def _as_id(run_id: UUID | str) -> UUID:
    try:
        return run_id if isinstance(run_id, UUID) else UUID(run_id)
    except (ValueError, AttributeError, TypeError):
        raise RunNotFound(
            f"{run_id!r:.80} is not the id of a run",
            hint="ids look like 019a…-…; `flowstone run ls` lists the newest",
        ) from None


class _Watch:
    """The patience of one `wait`: pauses that grow with its length, and a word when nothing has moved for long."""

    def __init__(
        self,
        run: Run,
        timeout: float | None,
        on_progress: Callable[[Progress], None] | None,
        on_stall: Callable[[str], None] | None,
    ) -> None:
        self._run = run
        self._begun = self._moved = time.monotonic()
        self._ends = None if timeout is None else self._begun + timeout
        self._on_progress = on_progress
        self._on_stall = on_stall
        self._seen: tuple[object, ...] = ()
        self._told: set[str] = set()

    def look(self, row: Row) -> None:
        """Tell what has changed."""
        seen = (row["status"], row["remaining_steps"], row["last_event"])
        if seen == self._seen:
            return
        self._seen, self._moved = seen, time.monotonic()
        if self._on_progress:
            total, left = row["total_steps"], row["remaining_steps"]
            self._on_progress(Progress(row["status"], total, total - left, row["failed_steps"]))

    def pause(self) -> None:
        """Wait a little: what is quick is seen at once, what is slow costs few reads."""
        now = time.monotonic()
        if self._ends is not None and now >= self._ends:
            raise WaitTimeout(
                f"run {self._run.id} is {self._seen[0] if self._seen else 'under way'} still; {'; '.join(_reasons(self._run)) or 'nothing is known of why'}",
                hint="it goes on by itself; wait again, or cancel it",
                run_id=self._run.id,
            )
        if now - self._moved > _STALLED_AFTER:
            self._tell_stall()
        pause = min(_FIRST_PAUSE + _PATIENCE * (now - self._begun), _LONGEST_PAUSE)
        time.sleep(pause if self._ends is None else max(0.0, min(pause, self._ends - now)))

    def _tell_stall(self) -> None:
        self._moved = time.monotonic()
        for reason in _reasons(self._run) if self._on_stall else ():
            if reason not in self._told and self._on_stall:
                self._told.add(reason)
                self._on_stall(reason)


def _reasons(run: Run) -> list[str]:
    return [stall_sentence(row) for row in run.why() if row["status"] in ("ready", "running")]


def stall_sentence(row: Row) -> str:
    """One line for people: why this step is not running, with the way out where it is known."""
    reason = f"{row['name']}: {row['reason']}"
    if "no worker listens" in row["reason"]:
        hint = f"start one: celery -A <your app> worker -Q {row['queue']}"
        return str(NoWorker(f"{row['name']} stands still: {row['reason']}", hint=hint))
    return reason
