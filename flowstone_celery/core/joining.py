"""Acts in somebody else's transaction: they happen if, and only if, it commits, and what follows comes after that commit.

Only inserts are written there: a run with its steps, or a request for an act. No row that others use is touched and nothing is
waited for, however long the transaction stays open. After a session's commit this process promises wake-ups and does what was asked
for; after a connection's, the pacer does, told by Postgres. Whatever is missed is found by the pacer's next look.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from uuid import UUID

from flowstone_celery import faults
from flowstone_celery.core import acts, lanes, runs
from flowstone_celery.core.statements import SQL
from flowstone_celery.core.wake import wake
from flowstone_celery.db.address import masked
from flowstone_celery.db.joining import Begun, Joined, join
from flowstone_celery.db.listening import channel
from flowstone_celery.errors import CannotJoin, NotCommitted, RunNotFound

if TYPE_CHECKING:
    from flowstone_celery.config import Settings
    from flowstone_celery.core.model import Carrier, NewRun
    from flowstone_celery.db.database import Database, Row, Tx
    from flowstone_celery.states import Act


@dataclass(frozen=True, slots=True)
class News:
    """What one act leaves to be done after the commit."""

    queues: frozenset[str] = frozenset()
    lane: tuple[str, str] | None = None
    """Tenant and lane."""
    asked: int = 0
    inline: UUID | None = None
    """A run to be done in this process."""


class Later:
    """Stands for a connection that is elsewhere: keeps what is to be started through it, for whoever can reach it."""

    def __init__(self) -> None:
        """Nothing is to be started yet."""
        self.start: Callable[[object], tuple[UUID, Begun]] | None = None

    def keep(self, start: Callable[[object], tuple[UUID, Begun]], run: NewRun) -> tuple[UUID, Begun]:
        """It is to be started; answers in advance the run's id, which an idempotency key may change."""
        self.start = start
        return run.id, Begun.unknown()


class Joiner:
    """Acts of one house in transactions of others."""

    def __init__(
        self,
        database: Database,
        settings: Settings,
        carrier: Callable[[], Carrier],
        drain: Callable[[UUID], object],
    ) -> None:
        """`carrier` and `drain` (does a run in this process) are asked for after a commit, not before."""
        self._database = database
        self._settings = settings
        self._carrier = carrier
        self._drain = drain
        self._ours: Row | None = None
        self._known: weakref.WeakSet[Any] = weakref.WeakSet()
        self._lock = threading.Lock()

    @property
    def doer(self) -> acts.Doer:
        """For acts in a transaction of our own."""
        return acts.Doer(self._database, self._carrier(), self._settings)

    def drain(self, run_id: UUID) -> None:
        """The run is done in this process, to its end."""
        self._drain(run_id)

    def prepare(self) -> None:
        """Our side of the question whose database it is has been read: what follows reads only through their connection."""
        if self._ours is None:
            self._ours = self._database.first(SQL["identity"])

    def start(
        self, target: object, run: NewRun, *, inline: bool = False, drain: bool = True
    ) -> tuple[UUID, Begun]:
        """The run will stand, with its steps, if their transaction commits; answers its id.

        An idempotency key that another open transaction has used is waited for until that one ends; nothing else is.

        Raises:
            CannotJoin: nothing of ours can be written in that transaction.
            IdempotencyConflict, InvalidOption: as `runs.start`.
        """
        if isinstance(target, Later):
            self.prepare()
            return target.keep(lambda theirs: self.start(theirs, run, inline=inline, drain=drain), run)
        tx = self._joined(target)
        run_id, _ = runs.start(tx, run, settings=self._settings, promise=False)
        faults.point("run.create.before_commit")
        first = frozenset(step.queue for step in run.steps if not step.needs)
        lane = None if run.lane is None else (run.tenant, run.lane)
        self._announce(tx, News(first, lane, inline=run_id if inline and drain else None))
        return run_id, tx.begun

    def ask(
        self, target: object, run_id: UUID, act: Act, *, actor: str, detail: Mapping[str, Any] | None = None
    ) -> None:
        """The act will be done if, and soon after, their transaction commits.

        Raises:
            CannotJoin: nothing of ours can be written in that transaction.
            RunNotFound: no run has this id, as far as that transaction sees.
        """
        tx = self._joined(target)
        if tx.row(SQL["run"], run=run_id) is None:
            raise RunNotFound(
                f"no run has the id {run_id}", hint="`flowstone run ls` lists the newest", run_id=str(run_id)
            )
        acts.ask(tx, run_id, act, actor=actor, detail=detail)
        self._announce(tx, News(asked=1))

    def _announce(self, tx: Joined, news: News) -> None:
        if tx.tells:
            tx.follow(self.deliver, news)
        elif tx.may_notify:
            tx.rows(SQL["notify"], channel=channel(self._database.schema))

    def deliver(self, news: list[News]) -> None:
        """Their transaction has committed: what was asked for in it is done, and what is ready is called."""
        faults.point("join.after_commit")
        doer = self.doer
        if asked := sum(each.asked for each in news):
            acts.do_asked(doer, most=asked)
        for tenant, lane in sorted({each.lane for each in news if each.lane is not None}):
            lanes.admit(doer.database, doer.carrier, doer.settings, tenant, lane)
        wake(doer.database, doer.carrier, doer.settings, {queue for each in news for queue in each.queues})
        for each in news:
            if each.inline is not None:
                self._drain(each.inline)

    # --- whose database -------------------------------------------------------------------------------------------------------

    def _joined(self, target: object) -> Joined:
        tx = join(target, self._database.schema)
        if tx.home not in self._known:
            self._compare(tx)
            with self._lock:
                self._known.add(tx.home)
        return tx

    def _compare(self, tx: Joined) -> None:
        """Refuse another database, and a role that may not write here. A server that restarted meanwhile is asked again."""
        theirs = _identity(tx)
        self.prepare()
        if theirs != self._ours:
            self._ours = None
            self.prepare()
        ours = self._ours or {}
        if theirs != ours:
            raise CannotJoin(
                f"connection= leads to another database: it is in {theirs['database']!r} ({tx.url}), "
                f"FlowStone's rows are in {ours.get('database')!r} ({masked(self._database.url)}, schema {self._database.schema!r})",
                hint="one transaction spans one database: put FlowStone's schema beside your tables "
                "(`flowstone db migrate` on that URL), or start the run after your commit",
            )
        if not (tx.row(SQL["may_insert"], schema=self._database.schema) or {}).get("allowed"):
            raise CannotJoin(
                f"the role of connection= ({tx.url}) may not write in FlowStone's schema {self._database.schema!r}",
                hint="grant it USAGE on the schema, and SELECT and INSERT on its tables",
            )


def _identity(tx: Tx) -> Row:
    found = tx.row(SQL["identity"])
    assert found is not None
    return found


def not_there(run_id: UUID, begun: Begun) -> RunNotFound:
    """Why a run that was started in this transaction of somebody cannot be read."""
    if begun.is_open:
        return NotCommitted(
            f"run {run_id} is not committed yet: the transaction in which it was started is open",
            hint="read it after the commit; its id can be stored at once",
            run_id=str(run_id),
        )
    return RunNotFound(
        f"run {run_id} does not exist: the transaction or savepoint in which it was started was rolled back",
        hint="start it again, in a transaction that commits",
        run_id=str(run_id),
    )
