"""Acts on all runs that a filter names."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any
from uuid import UUID

from flowstone_celery.assets import partition as partitions
from flowstone_celery.assets.deadline import Deadline, seconds_until
from flowstone_celery.core import acts
from flowstone_celery.core.acts import RunFilter
from flowstone_celery.errors import InvalidOption, WrongState, did_you_mean
from flowstone_celery.states import RunStatus

if TYPE_CHECKING:
    from flowstone_celery.assets.handle import Run
    from flowstone_celery.assets.partition import PartitionKey
    from flowstone_celery.db.database import Database

_OPEN = (RunStatus.PENDING, RunStatus.RUNNING)
_ENDED = (RunStatus.FAILED, RunStatus.CANCELLED)


@dataclass(frozen=True, slots=True)
class Runs:
    """The runs that a filter names: a question, asked anew each time. Acts leave out those that they cannot be done to."""

    which: RunFilter
    _database: Database
    _handle: Callable[[UUID], Run]

    def count(self) -> int:
        """How many there are now."""
        return acts.count(self._database, self.which)

    def __iter__(self) -> Iterator[Run]:
        """A handle on each, newest first, read in pages as they are asked for."""
        return map(self._handle, acts.matching(self._database, self.which))

    def cancel(self, *, actor: str = "", reason: str = "") -> int:
        """Those that have not ended are cancelled; answers how many were."""
        return sum(run.cancel(actor=actor, reason=reason) for run in self._those(_OPEN))

    def retry(self, *, deadline: Deadline | None = None, actor: str = "") -> int:
        """Those that failed or were cancelled have their next round (FS-22); answers how many. Inline ones are left to `FlowStone.resume`.

        Raises:
            InvalidOption: the deadline is none or has passed.
        """
        if deadline is not None:
            seconds_until(deadline)
        return sum(_is_retried(run, deadline, actor) for run in self._those(_ENDED))

    def pause(self, *, actor: str = "") -> int:
        """Those that have not ended begin nothing more; answers how many are paused now and were not before."""
        return sum(run.pause(actor=actor) for run in self._those(_OPEN, paused=False))

    def resume(self, *, actor: str = "") -> int:
        """Those that are paused go on; answers how many."""
        return sum(run.resume(actor=actor) for run in self._those(_OPEN, paused=True))

    def _those(self, statuses: Sequence[RunStatus], *, paused: bool | None = None) -> Iterator[Run]:
        asked = self.which.statuses
        narrowed = [each for each in statuses if asked is None or each in asked]
        which = replace(self.which, statuses=narrowed, paused=self.which.paused if paused is None else paused)
        return map(self._handle, acts.matching(self._database, which))


def _is_retried(run: Run, deadline: Deadline | None, actor: str) -> bool:
    """Whether it has its next round now; one that somebody else retried meanwhile has not by this act."""
    try:
        run.retry(deadline=deadline, actor=actor, drain=False)
    except WrongState:
        return False
    return True


def filtered(
    *,
    status: Any = None,
    name: str | None = None,
    partition: PartitionKey = None,
    lane: str | None = None,
    since: datetime | None = None,
    until: datetime | None = None,
    paused: bool | None = None,
) -> RunFilter:
    """The filter of these words.

    Raises:
        InvalidOption: a status that is none, or a moment without a time zone.
    """
    given = [status] if isinstance(status, str) else list(status or ())
    for each in given:
        if each not in tuple(RunStatus):
            near = did_you_mean(str(each), tuple(RunStatus)) or f"Statuses: {', '.join(RunStatus)}."
            raise InvalidOption(f"no run has the status {each!r:.80}", hint=near, option="status")
    for word, moment in (("since", since), ("until", until)):
        if moment is not None and (not isinstance(moment, datetime) or moment.tzinfo is None):
            hint = "give an aware datetime: datetime.now(UTC) - timedelta(hours=1)"
            raise InvalidOption(
                f"{word} is a moment with a time zone, not {moment!r:.80}", hint=hint, option=word
            )
    text = None if partition is None else partitions.encode(partition)
    return RunFilter(None if status is None else given, name, text, lane, since, until, paused)
