"""A laboratory for the durable core: runs of plain steps, workers by hand, answers on order; no asset and no Celery."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

from flowstone_celery.core import doctor, runs, steps
from flowstone_celery.core.executor import Executor
from flowstone_celery.core.interrupts import Interrupts
from flowstone_celery.core.keeper import Keeper
from flowstone_celery.core.model import (
    Answer,
    Call,
    Claim,
    Done,
    NewRun,
    NewStep,
    Place,
    WakeUp,
)
from flowstone_celery.core.pacer import Pacer
from flowstone_celery.core.retry_policy import RetryPolicy
from flowstone_celery.core.statements import SQL
from flowstone_celery.core.wake import back_in_line
from flowstone_celery.core.workers import Node, WorkerProcess, report_node
from flowstone_celery.db.database import Database
from flowstone_celery.db.statements import Statement
from flowstone_celery.testing.clock import VirtualClock

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from flowstone_celery.config import Settings
    from flowstone_celery.core.interrupts import Board
    from flowstone_celery.db.database import Row, Tx

QUEUE = "lab"
TASK = "lab.work"
LONG = 86_400.0
_TABLES = (
    "lineage",
    "asset_current",
    "asset_values",
    "audit",
    "history",
    "step_edges",
    "steps",
    "workers",
    "nodes",
    "requests",
    "partition_keys",
    "backfills",
    "barriers",
    "barrier_pages",
    "barrier_keys",
    "item_claims",
    "items",
)


def sql(text: str) -> Statement:
    """A statement of a test's own."""
    return Statement("lab", "ad hoc", frozenset(), text)


def step(name: str = "a", *needs: int, optional: Iterable[int] = (), **options: Any) -> NewStep:
    """One plain step; `needs` and `optional` are positions of earlier steps."""
    edges = {**dict.fromkeys(needs, False), **dict.fromkeys(optional, True)}
    return NewStep(**{"kind": "plain", "name": name, "task": TASK, "queue": QUEUE, "needs": edges, **options})


class Postbox:
    """A carrier that keeps what it was given."""

    def __init__(self) -> None:
        self.sent: list[WakeUp] = []
        self._lock = threading.Lock()

    def send(self, wakeups: Sequence[WakeUp]) -> None:
        with self._lock:
            self.sent.extend(wakeups)

    def take(self) -> list[WakeUp]:
        with self._lock:
            taken, self.sent = self.sent, []
        return taken


class Lab:
    """One database, wiped before each test, and short words for what tests do with it."""

    def __init__(self, database: Database, settings: Settings) -> None:
        self.database = database
        self.settings = settings
        self.clock = VirtualClock(database)
        self.postbox = Postbox()
        self.answers: dict[str, Callable[[Claim], Answer] | Answer] = {}

    def wipe(self) -> None:
        self.clock.reset()
        deletes = ", ".join(f"{name} AS (DELETE FROM flowstone.{name})" for name in _TABLES)
        self.sql(f"WITH {deletes} SELECT 1")
        self.sql("DELETE FROM flowstone.runs")
        self.sql(
            "UPDATE flowstone.pacer SET holder = NULL, held_until = NULL, beat_at = NULL, steady_since = NULL"
        )
        self.postbox.take()
        self.answers = {}

    def sql(self, text: str, **values: object) -> list[Row]:
        return self.database.once(sql(text), **values)

    def scalar(self, text: str, **values: object) -> Any:
        return next(iter(self.sql(text, **values)[0].values()))

    # --- runs -----------------------------------------------------------------------------------------------------------------

    def start(self, *plan: NewStep, promise: bool = True, **options: Any) -> UUID:
        """A run of these steps, its wake-ups sent to the postbox."""
        run = NewRun("plain", options.pop("name", "lab"), plan, **options)
        return runs.begin(self.database, self.postbox, run, settings=self.settings, promise=promise)

    def run(self, run: UUID) -> Row:
        return runs.read(self.database, run)

    def steps(self, run: UUID) -> dict[str, Row]:
        return {row["name"]: row for row in runs.steps(self.database, run)}

    def statuses(self, run: UUID) -> dict[str, str]:
        return {name: row["status"] for name, row in self.steps(run).items()}

    def id_of(self, run: UUID, name: str) -> int:
        return int(self.steps(run)[name]["id"])

    def events(self, run: UUID) -> list[str]:
        return [
            " ".join(filter(None, (row["event"], row["step"]))) for row in runs.events(self.database, run)
        ]

    def cancel(self, run: UUID, **options: Any) -> bool:
        return runs.cancel(self.database, run, actor="tester", **options)

    # --- workers --------------------------------------------------------------------------------------------------------------

    def node(
        self, *, queues: Sequence[str] = (QUEUE,), slots: int = 1, knows: Sequence[str] = (TASK,)
    ) -> Node:
        found = Node(uuid4(), "lab@here", Place.here().pid, "prefork", tuple(queues), tuple(knows), slots)
        report_node(self.database, found, keeper_pid=found.pid, lease=LONG)
        return found

    def worker(self, node: Node | None = None, *, lease: float = LONG, place: Place | None = None) -> int:
        """A worker process's row; by default it is this very process."""
        key, here = node.key if node else uuid4(), place or Place.here()
        row = self.database.first(
            SQL["register_worker"],
            node=key,
            name=node.name if node else "lab@here",
            place=here.place,
            pid=here.pid,
            pid_started=here.pid_started,
            lease=lease,
        )
        assert row is not None
        return int(row["id"])

    def executor(self, node: Node | None = None, **options: Any) -> Executor:
        worker = WorkerProcess(self.database, node.key if node else uuid4(), "lab@here", LONG)
        parts = {"carrier": self.postbox, "knows": lambda: (TASK,), "interrupts": Interrupts(), **options}
        settings = parts.pop("settings", self.settings)
        handlers = {"plain": self._handle, **parts.pop("handlers", {})}
        return Executor(self.database, settings, handlers, worker=worker, **parts)

    def _handle(self, claim: Claim, call: Call) -> Answer:
        found = self.answers.get(claim.name, Done())
        return found(claim) if callable(found) else found

    def keeper(self, board: Board, node: Node | None = None, *, may_kill: bool = False) -> Keeper:
        return Keeper(
            self.database, self.settings, self.postbox, node or self.node(), board, may_kill=may_kill
        )

    def pacer(self) -> Pacer:
        return Pacer(self.database, self.settings, self.postbox, uuid4())

    def steady(self) -> None:
        """The pacer has been steady for half an hour (on the virtual clock: the server itself has not been up for that long)."""
        self.clock.advance(hours=1)
        self.sql(
            "UPDATE flowstone.pacer SET steady_since = flowstone.now() - interval '30 minutes', beat_at = flowstone.now()"
        )

    # --- one transition -------------------------------------------------------------------------------------------------------

    def claim(self, worker: int, step_id: int, **options: Any) -> Claim | None:
        back_in_line(self.database)
        return self.database.attempt(
            lambda tx: steps.claim(tx, step_id, worker=worker, **{"knows": [TASK], **options})
        )

    def claim_next(self, worker: int, queue: str = QUEUE, **options: Any) -> Claim | None:
        back_in_line(self.database)
        return self.database.attempt(
            lambda tx: steps.claim_next(tx, queue, worker=worker, **{"knows": [TASK], **options})
        )

    def running(self, worker: int, **options: Any) -> Claim:
        """A run of one step which this worker holds."""
        run = self.start(step(**options))
        claim = self.claim(worker, self.id_of(run, options.get("name", "a")))
        assert claim is not None
        return claim

    def succeed(self, held: Mapping[str, int], output: Mapping[str, Any] | None = None) -> steps.Moved | None:
        return self.database.attempt(lambda tx: steps.succeed(tx, held, output))

    def drain(self, *, advance: bool = True) -> int:
        """Work until nothing is ready; pauses pass on the virtual clock."""
        executor, count = self.executor(), 0
        while True:
            back_in_line(self.database)
            done = executor.work(None, QUEUE)
            count += done
            if done:
                continue
            due = self.scalar(
                "SELECT extract(epoch FROM min(s.due_at) - flowstone.now())::float8 FROM flowstone.steps s "
                "JOIN flowstone.runs r ON r.id = s.run_id WHERE s.status = 'ready' AND r.status IN ('pending', 'running')"
            )
            if not advance or due is None or due <= 0:
                return count
            self.clock.advance(seconds=due + 0.001)

    def wait_until_one_waits_for_a_lock(self) -> None:
        """Return when another connection of this database waits for a lock."""
        text = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
        self.wait_until(lambda: bool(self.scalar(text)))

    def wait_until(self, condition: Callable[[], bool], *, within: float = 10.0) -> None:
        """Return when the condition holds."""
        ends = time.monotonic() + within
        while not condition():
            assert time.monotonic() < ends, "it did not happen"
            time.sleep(0.005)

    # --- look -----------------------------------------------------------------------------------------------------------------

    def findings(self) -> list[str]:
        return [f"{each.invariant}: {each.sentence}" for each in doctor.examine(self.database)]

    def reasons(self, run: UUID | None = None) -> dict[str, str]:
        return {row["name"]: row["reason"] for row in doctor.why_not_running(self.database, run)}


AT_ONCE = RetryPolicy("fixed", 0.0, 0.0, 0.0)


@contextmanager
def laboratory(databases: Any, **settings: Any) -> Iterator[Lab]:
    """A lab on a database of its own for the block."""
    with databases.fresh(**settings) as found:
        database = Database(found.database_url, pool_size=10)
        try:
            yield Lab(database, found)
        finally:
            database.dispose()


class _Undone(Exception):  # noqa: N818 - an event: rolls the block's transaction back
    pass


@contextmanager
def rolled_back(database: Database) -> Iterator[Tx]:
    """A transaction that never happened."""
    with suppress(_Undone), database.transaction() as tx:
        yield tx
        raise _Undone


def in_threads(*acts: Callable[[], Any], timeout: float = 30.0) -> list[Any]:
    """Do all at once, each in a thread; their answers in order. The first error is raised here."""
    answers: list[Any] = [None] * len(acts)
    errors: list[BaseException] = []
    barrier = threading.Barrier(len(acts))

    def do(position: int) -> None:
        try:
            barrier.wait()
            answers[position] = acts[position]()
        except BaseException as error:  # noqa: BLE001 - raised again in the thread that asked
            errors.append(error)

    threads = [threading.Thread(target=do, args=(n,)) for n in range(len(acts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout)
    assert not any(thread.is_alive() for thread in threads), "a thread did not end"
    if errors:
        raise errors[0]
    return answers


def package_sql(package: Path) -> dict[str, list[str]]:
    """The .sql files of each room, by package name."""
    found: dict[str, list[str]] = {}
    for path in sorted(package.rglob("*.sql")):
        if "_migrations" not in path.parts:
            room = ".".join((package.name, *path.parent.relative_to(package).parts))
            found.setdefault(room, []).append(path.name)
    return found
