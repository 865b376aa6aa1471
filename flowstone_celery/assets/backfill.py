"""A handle on a backfill: how far it is, what failed, and acts on all of it. It can be made again from the id alone."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol
from uuid import UUID

from flowstone_celery.assets import partition as partitions
from flowstone_celery.assets.partition_runs import PartitionRuns
from flowstone_celery.core import acts, backfills
from flowstone_celery.errors import (
    BackfillNotFound,
    WaitTimeout,
)
from flowstone_celery.states import BackfillStatus, RunStatus

if TYPE_CHECKING:
    from flowstone_celery.assets.asset import AssetSpec
    from flowstone_celery.assets.catalog import Catalog
    from flowstone_celery.assets.freshness import Assessor
    from flowstone_celery.assets.handle import Run
    from flowstone_celery.assets.keyring import Partitions
    from flowstone_celery.assets.partition import PartitionKey
    from flowstone_celery.assets.slices import Slices
    from flowstone_celery.config import Settings
    from flowstone_celery.core.model import Carrier
    from flowstone_celery.db.database import Database, Row

_PART = 100
_LOOK_AHEAD = 2_000
_LONGEST_PAUSE = 0.5
_PATIENCE = 0.05
_ACTOR = "python"


class House(Protocol):
    """What backfills ask of the FlowStone that they belong to."""

    catalog: Catalog
    mode: str
    parts: Any

    @property
    def database(self) -> Database:
        """The database."""

    @property
    def settings(self) -> Settings:
        """The settings."""

    @property
    def carrier(self) -> Carrier:
        """What sends wake-ups."""

    @property
    def partitions(self) -> Partitions:
        """Which partitions there are."""

    def slices(self) -> Slices:
        """What slices need."""

    def handle(self, run_id: UUID | str) -> Run:
        """A handle on a run."""

    def _spec(self, asset: Any) -> AssetSpec: ...

    def _assessor(self) -> Assessor: ...

    def _queue_of(self, spec: AssetSpec) -> str: ...

    def _check_io(self, names: Iterable[str]) -> None: ...


@dataclass(frozen=True, slots=True)
class BackfillProgress:
    """How far a backfill is, counted in partitions."""

    status: str
    total: int
    """How many are to be made; those that were skipped are none of them."""
    succeeded: int
    failed: int
    cancelled: int
    running: int
    waiting: int
    """Those that wait for their turn, or for a run."""
    skipped: int
    """Those that were asked for and need not be made."""
    unbegun: int
    """Of the waiting ones, those without a run: a client is beginning them, or died before it had."""
    pruned: int
    """Those whose run ended and was deleted since."""

    @property
    def finished(self) -> int:
        """How many have ended."""
        return self.succeeded + self.failed + self.cancelled + self.pruned

    @property
    def percent(self) -> float:
        """0 to 100; 100 when there is nothing to make."""
        return 100.0 * self.finished / self.total if self.total else 100.0

    @staticmethod
    def of(row: Row) -> BackfillProgress:
        """Read a row of `backfill_progress`."""
        unbegun = row["total"] - row["begun"]
        waiting = row["open"] - row["running"] + (0 if row["cancelled_at"] else unbegun)
        dropped = unbegun if row["cancelled_at"] else 0
        return BackfillProgress(
            status=_status(row, unbegun).value,
            total=row["total"],
            succeeded=row["succeeded"],
            failed=row["failed"],
            cancelled=row["cancelled"] + dropped,
            running=row["running"],
            waiting=waiting,
            skipped=row["skipped"],
            unbegun=unbegun - dropped,
            pruned=max(0, row["begun"] - row["runs"]),
        )


def _status(row: Row, unbegun: int) -> BackfillStatus:
    if row["cancelled_at"] is not None:
        return BackfillStatus.CANCELLED
    if row["open"] or unbegun:
        return BackfillStatus.PAUSED if row["paused"] else BackfillStatus.ACTIVE
    return BackfillStatus.FAILED if row["failed"] or row["cancelled"] else BackfillStatus.COMPLETED


@dataclass(frozen=True, slots=True)
class PartitionResult:
    """What has become of one partition of a backfill."""

    key: PartitionKey
    status: str
    """That of its run."""
    run_id: UUID
    error: Mapping[str, Any] | None

    @property
    def text(self) -> str:
        """The partition's text."""
        return partitions.encode(self.key)


class Backfill:
    """One backfill, read from its rows each time it is asked."""

    def __init__(self, backfill_id: UUID | str, house: House) -> None:
        """Point at a backfill; nothing is read yet.

        Raises:
            BackfillNotFound: the text is not the form of an id.
        """
        self._id = _as_id(backfill_id)
        self._house = house

    def __repr__(self) -> str:
        """The id."""
        return f"<Backfill: {self._id}>"

    def __eq__(self, other: object) -> bool:
        """Two handles on the same backfill are equal."""
        return isinstance(other, Backfill) and other._id == self._id

    def __hash__(self) -> int:
        """By the id."""
        return hash(self._id)

    @property
    def id(self) -> str:
        """Its id as text."""
        return str(self._id)

    @property
    def uuid(self) -> UUID:
        """Its id."""
        return self._id

    @property
    def lane(self) -> str:
        """The lane of its runs: `fs.runs(lane=…)` names them all."""
        return backfills.lane_of(self._id)

    @property
    def row(self) -> Row:
        """Its row.

        Raises:
            BackfillNotFound: no backfill has this id.
        """
        return backfills.read(self._house.database, self._id)

    # --- how it stands --------------------------------------------------------------------------------------------------------

    @property
    def status(self) -> str:
        """active, paused, completed, failed (all has ended, not all succeeded) or cancelled."""
        return self.progress().status

    def progress(self) -> BackfillProgress:
        """How many partitions stand how."""
        return BackfillProgress.of(backfills.progress(self._house.database, self._id))

    @property
    def skipped(self) -> list[PartitionKey]:
        """The partitions that were asked for and need not be made."""
        return [partitions.decode(text) for text in backfills.skipped(self._house.database, self._id)]

    def results(self) -> Iterator[PartitionResult]:
        """What has become of each partition that has a run, in the order of their start; read in pages."""
        for row in backfills.runs_of(self._house.database, self._id):
            key = partitions.decode(row["partition"])
            yield PartitionResult(key, row["status"], row["id"], row["error"])

    def failures(self) -> list[PartitionResult]:
        """The partitions that failed, with their errors."""
        return [each for each in self.results() if each.status == RunStatus.FAILED]

    def runs(self) -> Iterator[Run]:
        """A handle on the run of each partition, in the order of their start."""
        return (self._house.handle(each.run_id) for each in self.results())

    def wait(
        self,
        timeout: float | None = None,
        *,
        on_progress: Callable[[BackfillProgress], None] | None = None,
    ) -> BackfillProgress:
        """Return when all has ended, and how; what a client that died left without a run is begun first.

        Args:
            timeout: seconds; None waits as long as it takes.
            on_progress: told whenever something changed.

        Raises:
            WaitTimeout: not all had ended in time; it goes on, and can be waited for again.
            BackfillNotFound: no backfill has this id.
        """
        begun = time.monotonic()
        seen: BackfillProgress | None = None
        self.go_on(drain=False)
        while True:
            found = self.progress()
            if found != seen and on_progress:
                on_progress(found)
            seen = found
            if not found.running and not found.waiting:
                return found
            passed = time.monotonic() - begun
            if timeout is not None and passed >= timeout:
                raise self._late(found)
            pause = min(0.01 + _PATIENCE * passed, _LONGEST_PAUSE)
            time.sleep(pause if timeout is None else max(0.0, min(pause, timeout - passed)))

    def _late(self, found: BackfillProgress) -> WaitTimeout:
        return WaitTimeout(
            f"backfill {self._id} is {found.status} still: {found.finished} of {found.total} partitions have ended, "
            f"{found.running} are running",
            hint="it goes on by itself; wait again, or cancel it",
            backfill_id=self.id,
        )

    # --- acts -----------------------------------------------------------------------------------------------------------------

    def pause(self, *, actor: str = "") -> bool:
        """It begins nothing more, and what runs goes on to its end; False if it is paused or cancelled."""
        return backfills.pause(self._doer, self._found, actor=actor or _ACTOR)

    def resume(self, *, actor: str = "", on_begun: Callable[[int, int], None] | None = None) -> bool:
        """It goes on: after a pause, or where a client that began it has died. False if it was not paused.

        One that is done in a process of its own is done in this one, to its end.
        """
        resumed = backfills.resume(self._doer, self._found, actor=actor or _ACTOR)
        self.go_on(on_begun=on_begun)
        return resumed

    def cancel(
        self, *, actor: str = "", reason: str = "", on_run: Callable[[int], None] = lambda _: None
    ) -> bool:
        """Nothing more of it begins, and what runs is interrupted; False if it had been cancelled, or all had ended.

        Args:
            actor: who does it, for the audit log.
            reason: why.
            on_run: told how many runs have been cancelled so far.
        """
        if self.status in (BackfillStatus.COMPLETED, BackfillStatus.FAILED):
            return False
        return backfills.cancel(self._doer, self._id, actor=actor or _ACTOR, reason=reason, on_run=on_run)

    def retry(self, *, actor: str = "", drain: bool = True) -> int:
        """What failed or was cancelled has its next round, in the order of the partitions; answers how many have.

        What of a cancelled backfill was never begun begins now.
        """
        backfills.reopen(self._house.database, self._found, actor=actor or _ACTOR)
        done = 0
        for row in backfills.runs_of(self._house.database, self._id):
            if row["status"] in (RunStatus.FAILED, RunStatus.CANCELLED):
                done += acts.retry(self._doer, row["id"], actor=actor or _ACTOR) is not None
        self.go_on(drain=drain)
        return done

    def go_on(
        self,
        *,
        drain: bool = True,
        on_begun: Callable[[int, int], None] | None = None,
        on_ended: Callable[[int], None] = lambda _: None,
    ) -> None:
        """Each partition has its run, unless it is paused or cancelled; with `drain`, what is to be done in this process is done.

        Args:
            drain: whether it is.
            on_begun: told how many partitions have a run, and how many will.
            on_ended: told how many have ended, of those that are done in this process.
        """
        row = self.row
        if row["begun"] < row["total"] and not row["paused"] and row["cancelled_at"] is None:
            self._begin(row, on_begun)
        elif on_begun:
            on_begun(row["begun"], row["total"])
        if drain and (row["request"] or {}).get("inline"):
            self._drain(on_ended)

    # --- inside ---------------------------------------------------------------------------------------------------------------

    @property
    def _doer(self) -> acts.Doer:
        return acts.Doer(self._house.database, self._house.carrier, self._house.settings)

    @property
    def _found(self) -> UUID:
        """The id of a backfill that there is."""
        found: UUID = self.row["id"]
        return found

    def _begin(self, row: Row, on_begun: Callable[[int, int], None] | None) -> None:
        """Part by part; the first is let in at once, so that workers begin while the rest is being written."""
        database, doer = self._house.database, self._doer
        here = bool((row["request"] or {}).get("inline"))
        before = backfills.partitions(database, self._id, after=0, limit=row["begun"])[1]
        planner, place, known, first = PartitionRuns(self._house, row, before), row["begun"], 0, True
        while place < row["total"]:
            if place >= known:
                ahead = backfills.partitions(database, self._id, after=place, limit=_LOOK_AHEAD)[1]
                planner.look(ahead)
                start, known = place, place + len(ahead)
            texts = ahead[place - start : place - start + _PART]
            if not backfills.begin(doer, self._id, place, planner.of(texts), promise=not here):
                moved = backfills.read(database, self._id)
                if moved["begun"] == place:
                    break  # paused or cancelled meanwhile
                place = known = moved["begun"]  # another client is at it, too
                continue
            place += len(texts)
            if first:
                backfills.let_in(doer, self._id, row["tenant"])
                first = False
            if on_begun:
                on_begun(place, row["total"])
        backfills.let_in(doer, self._id, row["tenant"])

    def _drain(self, on_ended: Callable[[int], None]) -> None:
        for count, row in enumerate(backfills.runs_of(self._house.database, self._id), 1):
            if row["status"] in (RunStatus.PENDING, RunStatus.RUNNING):
                if backfills.read(self._house.database, self._id)["paused"]:
                    return
                self._house.parts.inline.drain(row["id"])
            on_ended(count)


def _as_id(given: UUID | str) -> UUID:
    try:
        return given if isinstance(given, UUID) else UUID(given)
    except (ValueError, AttributeError, TypeError):
        raise BackfillNotFound(
            f"{given!r:.80} is not the id of a backfill",
            hint="`flowstone backfill ls` lists the newest",
        ) from None
