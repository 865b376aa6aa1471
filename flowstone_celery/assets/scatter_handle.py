"""A handle on one scatter of a run: how far it is, its items, and what can be done to it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any
from uuid import UUID

from flowstone_celery.assets.gathered import Counts, Gathered, plain_key, pointer_to
from flowstone_celery.core import barriers, runs
from flowstone_celery.core.model import INLINE_QUEUE
from flowstone_celery.core.wake import wake
from flowstone_celery.errors import InvalidOption, ScatterNotFound, WrongState, did_you_mean
from flowstone_celery.states import BarrierStatus, ItemStatus

if TYPE_CHECKING:
    from flowstone_celery.core.barrier_model import Barrier, Item, Part, Progress
    from flowstone_celery.core.joining import Joiner
    from flowstone_celery.db.database import Database

_ACTOR = "python"
_PAGE = 500
_STATUSES = ("pending", *ItemStatus)


class ScatterHandle:
    """One scatter, read from its rows each time it is asked."""

    def __init__(self, barrier_id: int, database: Database, joiner: Callable[[], Joiner]) -> None:
        """Point at the barrier of this id; nothing is read yet."""
        self.id = barrier_id
        self._database = database
        self._joiner = joiner

    def __repr__(self) -> str:
        """The id."""
        return f"<Scatter: {self.id}>"

    def __eq__(self, other: object) -> bool:
        """Two handles on the same scatter are equal."""
        return isinstance(other, ScatterHandle) and other.id == self.id

    def __hash__(self) -> int:
        """By the id."""
        return hash(self.id)

    @property
    def row(self) -> Barrier:
        """Its row.

        Raises:
            ScatterNotFound: no scatter has this id.
        """
        found = barriers.barrier(self._database, self.id)
        if found is None:
            raise _missing(self.id)
        return found

    @property
    def asset(self) -> str:
        """The qualified name of the asset that scatters."""
        return self.row.name

    @property
    def status(self) -> str:
        """open, completed, partial_failure, failed or cancelled."""
        return self.row.status

    def progress(self) -> Progress:
        """How many of its items have succeeded, failed, wait for a retry, and run.

        Raises:
            ScatterNotFound: no scatter has this id.
        """
        found = barriers.progress(self._database, self.id)
        if found is None:
            raise _missing(self.id)
        return found

    def items(self, status: str | None = None) -> Iterator[Item]:
        """Its items in index order, read page by page; with a status, those of it.

        Raises:
            InvalidOption: items have no such status.
        """
        if status is not None and status not in _STATUSES:
            raise InvalidOption(
                f"an item is never {status!r:.80}",
                hint=did_you_mean(str(status), _STATUSES) or f"It is one of {', '.join(_STATUSES)}.",
                option="status",
            )
        return self._items(status)

    def _items(self, status: str | None) -> Iterator[Item]:
        after = -1
        while page := barriers.items(self._database, self.id, status=status, after=after, limit=_PAGE):
            yield from (replace(each, key=plain_key(each)) for each in page)
            after = page[-1].index

    def gathered(self) -> Gathered[Any]:
        """The results that are there now, in index order; those of a scatter that goes on may be fewer than they will be."""
        row, progress = self.row, self.progress()
        counts = Counts(row.total, progress.succeeded, progress.failed, row.collapsed)
        batch = row.policy.batch
        each = bool(batch and batch.get("each"))
        pointer = pointer_to(row.id, row.round, counts, batched=batch is not None, each=each)
        return Gathered.at(self._database, pointer)

    # --- acts ---------------------------------------------------------------------------------------------------------------------

    def cancel(self, *, reason: str = "", actor: str = "") -> bool:
        """Items that have not begun are cancelled, those at work interrupted, its step cancelled; False if it had closed before."""
        return self._done(barriers.cancel, reason, actor) is not None

    def accept(self, *, reason: str = "", actor: str = "", drain: bool = True) -> ScatterHandle:
        """What succeeded is taken as it is, though too many items failed: the run's next round begins with the gathering.

        Args:
            reason: why, for the audit log.
            actor: who asks for it.
            drain: a run that was begun inline is done in this process now; False leaves it to `FlowStone.resume`.

        Raises:
            WrongState: it has not failed, or its run has not ended.
        """
        done = self._done(barriers.accept, reason, actor)
        if done is None:
            raise self._not_now(
                "nothing of it is there to be accepted: a scatter that failed, of a run that has ended, is"
            )
        self._follow(done.opened, drain)
        return self

    def retry(self, *, actor: str = "", drain: bool = True) -> ScatterHandle:
        """Its failed items are done again in the run's next round, then gathered again; what succeeded is kept.

        Args:
            actor: who asks for it, for the audit log.
            drain: as of `accept`.

        Raises:
            WrongState: its run has not ended, or no item of it failed.
        """
        if self.status not in (BarrierStatus.FAILED, BarrierStatus.CANCELLED, BarrierStatus.PARTIAL_FAILURE):
            raise self._not_now("no item of it is there to be done again")
        row = barriers.retry(self._database, self.id, actor or _ACTOR)
        if row is None:
            raise self._not_now("its run has not ended: wait for its end, or cancel it first")
        self._follow(tuple(row["opened"] or ()), drain)
        return self

    def _done(self, act: Callable[..., Part | None], reason: str, actor: str) -> Part | None:
        found = self._database.attempt(lambda tx: act(tx, self.id, actor or _ACTOR, reason))
        if found is None:
            _ = self.row  # one that is not there is told as such
            return None
        doer = self._joiner().doer
        wake(doer.database, doer.carrier, doer.settings, found.opened)
        return found

    def _follow(self, queues: tuple[str, ...], drain: bool) -> None:
        doer = self._joiner().doer
        wake(doer.database, doer.carrier, doer.settings, queues)
        if drain and INLINE_QUEUE in queues:
            self._joiner().drain(self.row.run_id)

    def _not_now(self, why: str) -> WrongState:
        row = self.row
        run = runs.read(self._database, row.run_id)
        return WrongState(
            f"scatter {self.id} of {row.name!r} is {row.status}, its run {run['status']}: {why}",
            hint=f"`flowstone run show {row.run_id}` tells the whole story",
            status=row.status,
        )


def of_run(run_id: UUID, database: Database, joiner: Callable[[], Joiner]) -> list[ScatterHandle]:
    """The scatters of a run, the newest first."""
    return [ScatterHandle(each.id, database, joiner) for each in barriers.of_run(database, run_id)]


def _missing(barrier_id: int) -> ScatterNotFound:
    return ScatterNotFound(
        f"no scatter has the id {barrier_id}",
        hint="run.scatters() lists those of a run; those of runs that retention removed are gone",
    )
