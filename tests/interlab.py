"""Several connections to one database, each with its transaction held open as long as a test likes, and what must be true of the rows."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from corelab import Lab, sql

from flowstone_celery.core.statements import DOCTOR
from flowstone_celery.db.database import Database
from flowstone_celery.errors import DatabaseUnavailable
from flowstone_celery.record import values
from flowstone_celery.record.values import NewValue, Upstream
from flowstone_celery.states import RUN_TERMINAL, STEP_TERMINAL

if TYPE_CHECKING:
    from uuid import UUID

    from flowstone_celery.core.model import Claim
    from flowstone_celery.db.database import Row, Tx
    from flowstone_celery.errors import FlowStoneError

Learn = Callable[[], None]
"""What is known if, and only if, the transaction commits."""
Work = Callable[["Tx"], "Learn | None"]
"""What a transaction does; None: it did not happen, and the transaction is rolled back."""

_SETTLED = ("succeeded", "failed", "skipped", "cancelled", "retry", "released")
_ENDED = tuple(f"step.{status}" for status in STEP_TERMINAL)


# Who was given his lock a moment ago may still sleep: pg_stat_activity would name him, the locks do not.
_WAITING = """SELECT count(DISTINCT l.pid) FROM pg_locks l JOIN pg_stat_activity a ON a.pid = l.pid
  WHERE NOT l.granted AND a.datname = current_database()"""


class _Undone(Exception):  # noqa: N818 - an event: rolls the transaction back
    pass


class Actor:
    """Somebody who acts beside us, in a thread: what he does may have to wait for a lock."""

    def __init__(self) -> None:
        self.thread = ThreadPoolExecutor(1)
        self.doing: Future[Any] | None = None

    def begin(self, work: Callable[[], Any]) -> None:
        """He is at it; `settled` tells when he is done or waits."""
        assert self.doing is None
        self.doing = self.thread.submit(work)

    def take(self) -> Any:
        """What came of it. What it raised is raised here."""
        doing, self.doing = self.doing, None
        assert doing is not None
        return doing.result()

    @property
    def is_done(self) -> bool:
        return self.doing is not None and self.doing.done()

    def close(self) -> None:
        self.thread.shutdown()


class Session(Actor):
    """One connection, in a transaction from its first statement to `commit`, `roll_back` or the death of the connection."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self.database = Database(url, pool_size=1)
        self.block: AbstractContextManager[Tx] | None = None
        self.tx: Tx | None = None
        self.pid = 0
        self.then: list[Learn] = []
        self.worker: int | None = None
        self.touches: int | None = None
        self.settled = False

    @property
    def is_idle(self) -> bool:
        return self.tx is None and self.doing is None

    @property
    def is_open(self) -> bool:
        return self.tx is not None and self.doing is None

    def act(self, work: Work) -> None:
        """The work is under way in this connection's transaction, which begins with it."""

        def in_transaction() -> Learn | None:
            if self.block is None:
                self.block = self.database.transaction()
                self.tx = self.block.__enter__()
                self.pid = self.tx._connection.info.backend_pid
            assert self.tx is not None
            return work(self.tx)

        self.begin(in_transaction)

    def commit(self) -> None:
        """The transaction stands, and what it taught is known."""
        block, then = self.block, self.then
        self._forget()
        assert block is not None
        self.thread.submit(block.__exit__, None, None, None).result()
        for learn in then:
            learn()

    def roll_back(self) -> None:
        """The transaction never was."""
        block = self.block
        self._forget()
        if block is not None:
            undone = _Undone()
            done = self.thread.submit(block.__exit__, type(undone), undone, None)
            assert isinstance(done.exception(), DatabaseUnavailable | None), done.exception()

    def _forget(self) -> None:
        self.block = self.tx = self.worker = self.touches = None
        self.then, self.settled = [], False

    def close(self) -> None:
        super().close()
        self.database.dispose()


class Stage:
    """The connections of one story, and how far each has come."""

    def __init__(self, lab: Lab, number: int) -> None:
        self.lab = lab
        assert lab.settings.database_url
        self.sessions = [Session(lab.settings.database_url) for _ in range(number)]
        self.house = Actor()
        """Code that opens and ends its own transactions."""

    @property
    def _busy(self) -> list[Actor]:
        return [each for each in (*self.sessions, self.house) if each.doing is not None]

    def settle_down(self) -> list[Actor]:
        """Return when everybody is done or waits for a lock; answers those who wait."""
        ends = time.monotonic() + 20
        while True:
            wait([each.doing for each in self._busy if each.doing is not None], timeout=0.003)
            pending = [each for each in self._busy if not each.is_done]
            if not pending or self._waiting() >= len(pending):
                return [each for each in pending if not each.is_done]
            assert time.monotonic() < ends, "somebody is neither done nor waits for a lock"

    def _waiting(self) -> int:
        return int(self.lab.scalar(_WAITING))

    def kill(self, session: Session) -> None:
        """The server has ended this connection, and with it the transaction; the client has not noticed."""
        pid = session.pid
        self.lab.sql("SELECT pg_terminate_backend(%(pid)s::int)", pid=pid)
        gone = "SELECT count(*) = 0 FROM pg_stat_activity WHERE pid = %(pid)s"
        self.lab.wait_until(lambda: bool(self.lab.scalar(gone, pid=pid)))

    def close(self) -> None:
        """Whatever is open still is ended: the next story begins with a wiped database."""
        open_still = [session for session in self.sessions if not session.is_idle]
        for session in open_still:
            self.kill(session)  # all of them first: one may wait for what another holds
        for session in open_still:
            if session.doing is not None:
                session.doing.exception()
            session.roll_back()
        for each in (*self.sessions, self.house):
            each.close()


# --- values -------------------------------------------------------------------------------------------------------------------------


def new_value(claim: Claim, content: bytes = b"1") -> NewValue:
    """What this claim makes, from what it was given."""
    made_from = [
        Upstream(each.name, each.partition, each.output["value"])
        for each in claim.inputs
        if each.status == "succeeded" and each.output and "value" in each.output
    ]
    return NewValue(
        claim.name, claim.partition, claim.run_id, claim.id, claim.fence, "database", len(content), "digest", content, None,
        upstream=made_from,
    )  # fmt: skip


def writes(claim: Claim, prepared: int | None = None) -> Callable[[Tx], dict[str, Any]]:
    """The value, in the settling transaction, as a handler's answer has it written."""

    def write(tx: Tx) -> dict[str, Any]:
        version = values.settle(tx, new_value(claim), prepared=prepared)
        return {} if version is None else {"value": version}

    return write


# --- what must be true ---------------------------------------------------------------------------------------------------------------

_ALL_FINDINGS = sql(
    " UNION ALL ".join(
        f"SELECT '{name}: ' || finding AS finding FROM ({each.text}) AS {name}"
        for name, each in DOCTOR.items()
    )
)
_STEPS = """SELECT s.id, s.run_id, s.name, s.partition, s.status, s.round, s.fence, s.worker_id, s.sole, s.parked, s.remaining, s.output, s.finished_at,
  (SELECT array_agg(ARRAY[e.parent, e.optional::int::bigint]) FROM flowstone.step_edges e WHERE e.child = s.id) AS needs
  FROM flowstone.steps s ORDER BY s.id"""
_RUNS = "SELECT id, status, round, remaining_steps, failed_steps, cancelled_steps, lane, lane_width, admitted, paused, finished_at FROM flowstone.runs"
_VALUES = "SELECT id, step_id, fence FROM flowstone.asset_values WHERE settled_at IS NOT NULL"
_LINEAGE = "SELECT v.step_id, v.fence, count(l.upstream_value_id) AS links FROM flowstone.asset_values v JOIN flowstone.lineage l ON l.value_id = v.id GROUP BY 1, 2"
_HISTORY = "SELECT id, step_id, round, event, fence, worker_id FROM flowstone.history WHERE step_id IS NOT NULL ORDER BY id"


class Books:
    """What was committed, written down by those who did it, and compared with the rows."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.steps: dict[int, Row] = {}
        self.runs: dict[UUID, Row] = {}
        self.facts: dict[tuple[int, int], str] = {}
        """By step and fence: how this claim was settled."""
        self.claims: dict[tuple[int, int], Claim] = {}
        self.ends: Counter[tuple[int, int]] = Counter()
        self._read: set[int] = set()
        self._fences: dict[int, int] = {}

    def claimed(self, claim: Claim) -> None:
        """A claim that was committed."""
        self.claims[claim.id, claim.fence] = claim

    def settled(self, step: int, fence: int, event: str) -> None:
        """A settlement that was committed: the only one under this fence."""
        key = (step, fence)
        assert key not in self.facts, (
            f"step {step} was settled under fence {fence} as {self.facts[key]} and as {event}"
        )
        self.facts[key] = event

    # --- as an executor's observer ------------------------------------------------------------------------------------------------

    def started(self, claim: Claim) -> None:
        """A worker's claim is committed."""
        self.claimed(claim)

    def ended(self, claim: Claim, event: str, error: FlowStoneError | None, seconds: float) -> None:
        """How it was settled is read in the rows."""

    # --- against the rows -----------------------------------------------------------------------------------------------------------

    def compare(self) -> None:
        """The rows say what was written down, and break no rule."""
        found = self.lab.database.once(_ALL_FINDINGS, production=False)
        assert found == [], "\n".join(row["finding"] for row in found)
        steps = {row["id"]: row for row in self.lab.sql(_STEPS)}
        runs = {row["id"]: row for row in self.lab.sql(_RUNS)}
        self._what_ended_stays(self.steps, steps, "output")
        self._what_ended_stays(self.runs, runs, "lane")
        self._fences_grow(steps)
        self._runs_count_their_steps(runs, steps.values())
        for row in steps.values():
            _is_as_its_parents_say(row, steps)
        _no_two_make_one_value(steps.values())
        _lanes_hold_no_more_than_they_are_wide(runs.values())
        self._history_is_what_was_done()
        self._values_are_those_of_settlements(steps)
        self.steps, self.runs = steps, runs

    def _what_ended_stays(self, before: dict[Any, Row], now: dict[Any, Row], also: str) -> None:
        for key, was in before.items():
            row = now[key]
            assert row["round"] >= was["round"]
            if was["finished_at"] is not None and row["round"] == was["round"]:
                seen = ("status", "finished_at", also)
                assert [row[name] for name in seen] == [was[name] for name in seen], f"{was} became {row}"

    def _fences_grow(self, steps: dict[int, Row]) -> None:
        for key, was in self.steps.items():
            assert steps[key]["fence"] >= was["fence"]

    def _runs_count_their_steps(self, runs: dict[UUID, Row], steps: Iterable[Row]) -> None:
        counted = Counter((row["run_id"], row["status"]) for row in steps)
        for key, run in runs.items():
            mine = {status: number for (run_id, status), number in counted.items() if run_id == key}
            left = sum(number for status, number in mine.items() if status not in STEP_TERMINAL)
            told = (run["remaining_steps"], run["failed_steps"], run["cancelled_steps"])
            assert told == (left, mine.get("failed", 0), mine.get("cancelled", 0)), (run, mine)
            assert (left == 0) == (run["status"] in RUN_TERMINAL), (run, mine)

    def _history_is_what_was_done(self) -> None:
        # Ids are given before the commit: a row may appear behind one with a higher id.
        for row in [each for each in self.lab.sql(_HISTORY) if each["id"] not in self._read]:
            self._read.add(row["id"])
            step, fence, event = row["step_id"], row["fence"], row["event"].removeprefix("step.")
            if row["event"] in _ENDED:
                self.ends[step, row["round"]] += 1
                assert self.ends[step, row["round"]] == 1, f"step {step} ended twice in round {row['round']}"
            if event == "running":
                assert fence > self._fences.get(step, 0), f"fence {fence} of step {step} did not grow"
                self._fences[step] = fence
            elif row["worker_id"] is not None and event in _SETTLED:
                # Keepers and pacers release, and end what is past its limit, without telling us.
                assert self.facts.setdefault((step, fence), event) == event

    def _values_are_those_of_settlements(self, steps: dict[int, Row]) -> None:
        links = {(row["step_id"], row["fence"]): row["links"] for row in self.lab.sql(_LINEAGE)}
        made = {(row["step_id"], row["fence"]): row["id"] for row in self.lab.sql(_VALUES)}
        for key, version in made.items():
            assert self.facts.get(key) == "succeeded", f"value {version} of {key} was never settled"
            claim = self.claims.get(key)
            if claim is not None:
                assert links.get(key, 0) == len(new_value(claim).upstream), f"value {version} lacks lineage"
            row = steps[key[0]]
            if row["fence"] == key[1] and row["status"] == "succeeded":
                assert row["output"] == {"value": version}
        assert links.keys() <= made.keys(), "lineage of a value that was never settled"


def _is_as_its_parents_say(row: Row, steps: dict[int, Row]) -> None:
    parents = [(steps[parent], bool(optional)) for parent, optional in row["needs"] or ()]
    if row["status"] == "blocked":
        open_ones = [parent for parent, optional in parents if not _lets_on(parent, optional)]
        assert len(open_ones) == row["remaining"] > 0, f"{row} waits for {open_ones}"
    elif row["status"] in ("ready", "running", "succeeded"):
        for parent, optional in parents:
            assert _lets_on(parent, optional) or parent["round"] > row["round"], f"{row} stands on {parent}"


def _lets_on(parent: Row, optional: bool) -> bool:
    return bool(parent["status"] in STEP_TERMINAL if optional else parent["status"] == "succeeded")


def _no_two_make_one_value(steps: Iterable[Row]) -> None:
    making = Counter(
        (row["name"], row["partition"]) for row in steps if row["sole"] and row["status"] == "running"
    )
    assert all(number == 1 for number in making.values()), making


def _lanes_hold_no_more_than_they_are_wide(runs: Iterable[Row]) -> None:
    inside = Counter(
        (row["lane"], row["lane_width"])
        for row in runs
        if row["lane"] and row["admitted"] and row["finished_at"] is None
    )
    assert all(number <= width for (_, width), number in inside.items()), inside
