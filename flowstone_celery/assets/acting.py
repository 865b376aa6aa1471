"""What can be done to a run that stands: cancel, the next round, pause and resume."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Self
from uuid import UUID

from flowstone_celery.assets.deadline import Deadline, seconds_until
from flowstone_celery.core import acts, runs
from flowstone_celery.core.model import INLINE_QUEUE
from flowstone_celery.errors import InvalidOption, WrongState, did_you_mean
from flowstone_celery.states import RUN_TERMINAL, Act, RunStatus

if TYPE_CHECKING:
    from flowstone_celery.core.joining import Joiner
    from flowstone_celery.db.database import Database, Row

_ACTOR = "python"


class Acting:
    """The acts of a handle."""

    _id: UUID
    _database: Database
    _joiner: Callable[[], Joiner] | None
    _made: tuple[str, str] | None

    def cancel(self, *, actor: str = "", reason: str = "", connection: Any = None) -> bool:
        """What has not begun is cancelled, running code is interrupted; False if the run had ended before.

        With `connection` (as of `FlowStone.run`) it is asked for: done if, and soon after, that transaction commits. The answer is
        then True whatever the run will have come to.
        """
        if connection is not None:
            return self._ask(connection, Act.CANCEL, actor, reason=reason)
        return runs.cancel(self._database, self._id, actor=actor or _ACTOR, reason=reason)

    def retry(
        self,
        *,
        begin_at: Any = (),
        force: bool = False,
        deadline: Deadline | None = None,
        drain: bool = True,
        actor: str = "",
        connection: Any = None,
    ) -> Self:
        """The next round of a run that has ended: what failed or was cancelled is done again, what succeeded is kept (FS-22).

        Args:
            begin_at: names of its steps (assets), or one, that are done again, too, with all that stands on them.
            force: all steps are done again.
            deadline: how long the new round may take: seconds or a timedelta, or an aware moment. The first round's is not kept.
            drain: a run that was begun inline is done in this process now, as at its start; False leaves it to `FlowStone.resume`.
            actor: who asks for it, for the audit log.
            connection: the caller's transaction, as of `FlowStone.run`: done if, and soon after, it commits, and if the run has ended then.

        Returns:
            This handle; its `round` is the new one (with `connection` only after the commit).

        Raises:
            RunNotFound: no run has this id.
            WrongState: it has not ended, or it has succeeded and neither `begin_at` nor `force` was given.
            InvalidOption: the deadline is none or has passed, or a name in `begin_at` is no step of the run.
        """
        asked: dict[str, Any] = {
            "begin_at": self._steps_named(_listed(begin_at)),
            "everything": bool(force),
            "deadline_in": None if deadline is None else seconds_until(deadline),
        }
        if connection is not None:
            self._ask(connection, Act.RETRY, actor, **asked)
            return self
        found = acts.retry(self._acting.doer, self._id, actor=actor or _ACTOR, **asked)
        if found is None:
            raise _no_next_round(runs.read(self._database, self._id))
        self._made = None
        if drain and INLINE_QUEUE in found.queues:
            self._acting.drain(self._id)
        return self

    def pause(self, *, actor: str = "", connection: Any = None) -> bool:
        """It begins nothing more, and what runs goes on to its end; False if it has ended or is paused. `connection` as of `cancel`."""
        if connection is not None:
            return self._ask(connection, Act.PAUSE, actor)
        return acts.pause(self._acting.doer, self._id, actor=actor or _ACTOR)

    def resume(self, *, actor: str = "", connection: Any = None) -> bool:
        """A paused run goes on; False if it is not paused. `connection` as of `cancel`."""
        if connection is not None:
            return self._ask(connection, Act.RESUME, actor)
        return acts.resume(self._acting.doer, self._id, actor=actor or _ACTOR)

    def _ask(self, connection: Any, act: Act, actor: str, **detail: Any) -> bool:
        self._acting.ask(connection, self._id, act, actor=actor or _ACTOR, detail=detail)
        return True

    @property
    def _acting(self) -> Joiner:
        if self._joiner is None:
            raise WrongState(
                f"this handle on run {self._id} only reads", hint="take one of fs.handle(run_id)"
            )
        return self._joiner()

    def _steps_named(self, asked: Sequence[str]) -> list[str]:
        """The run's names of these steps; a short name stands for the one that ends in it."""
        if not asked:
            return []
        names = {row["name"] for row in runs.steps(self._database, self._id)}
        return [each for name in asked for each in _meant(name, names, self._id)]


def _listed(begin_at: Any) -> list[str]:
    alone = isinstance(begin_at, str) or not isinstance(begin_at, Iterable)
    return [str(getattr(each, "name", each)) for each in ([begin_at] if alone else begin_at)]


def _meant(name: str, names: Iterable[str], run_id: UUID) -> list[str]:
    found = [each for each in names if each == name] or [each for each in names if each.endswith(f".{name}")]
    if found:
        return found
    short = {each.rpartition(".")[2] for each in names}
    listed = ", ".join(sorted(names)[:10])
    near = did_you_mean(name, names) or did_you_mean(name, short)
    raise InvalidOption(
        f"run {run_id} has no step {name!r}", hint=near or f"its steps are: {listed}", option="begin_at"
    )


def _no_next_round(row: Row) -> WrongState:
    status, named = row["status"], f"run {row['id']} of {row['name']!r}"
    if status not in RUN_TERMINAL:
        return WrongState(
            f"{named} is {status} (round {row['round']}): only a run that has ended has a next round",
            hint="wait for its end (run.wait()), or cancel it first (run.cancel())",
            run_id=str(row["id"]),
            status=status,
        )
    why = (
        "has succeeded" if status == RunStatus.SUCCEEDED else f"is {status}, but all its steps have succeeded"
    )
    return WrongState(
        f"{named} {why}: nothing of it is left to do again",
        hint="say what to do again: run.retry(begin_at=[…]) with names of its steps, or run.retry(force=True) for all of it",
        run_id=str(row["id"]),
        status=status,
    )
