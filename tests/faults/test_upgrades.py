"""Old and new workers side by side: each claims only what its code and its schema can run, says so, and nothing is left behind."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from faults.cluster import HERE, Cluster, Worker

from flowstone_celery.assets.handle import Run
from flowstone_celery.core.model import PROTOCOL
from flowstone_celery.db import schema

pytestmark = pytest.mark.worker

NEXT = PROTOCOL + 1
LATER = schema.VERSION + 1
ELSEWHEN = str(HERE / "othertime")


def of_next_protocol(fleet: Cluster, **options: object) -> Worker:
    """A worker, with its keeper, whose code speaks the next protocol."""
    return fleet.worker(slots=1, PYTHONPATH=ELSEWHEN, OTHERTIME_PROTOCOL=NEXT, **options)  # type: ignore[arg-type]


def of_next_schema(fleet: Cluster, *, ready: bool = True) -> Worker:
    """A worker, with its keeper, whose code needs the next schema."""
    return fleet.worker(slots=1, PYTHONPATH=ELSEWHEN, OTHERTIME_SCHEMA=LATER, ready=ready)


@contextmanager
def client_of_next_protocol(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Steps that are made in this block are of the next protocol, and so are the messages about them."""
    with monkeypatch.context() as patch:
        patch.setattr("flowstone_celery.core.runs.PROTOCOL", NEXT)
        patch.setattr("flowstone_celery.worker.carrier.PROTOCOL", NEXT)
        yield


def makers(fleet: Cluster, run: Run) -> set[int]:
    """The protocols of the nodes on which the run's steps succeeded."""
    rows = fleet.sql(
        "SELECT DISTINCT n.protocol FROM flowstone.history h JOIN flowstone.workers w ON w.id = h.worker_id "
        "JOIN flowstone.nodes n ON n.key = w.node_key WHERE h.run_id = %(run)s AND h.event = 'step.succeeded'",
        run=run.uuid,
    )
    return {row["protocol"] for row in rows}


def migrate_to(fleet: Cluster, version: int, oldest: int) -> None:
    """As a migration of the next release would leave the database."""
    fleet.sql(
        "UPDATE flowstone.schema_version SET version = %(version)s, oldest_code = %(oldest)s RETURNING id",
        version=version,
        oldest=oldest,
    )


def is_calm(worker: Worker) -> None:
    """The log tells what happened, and not again and again."""
    assert "Traceback" not in worker.text()
    refusals = worker.text().count("a step came to this worker")
    assert refusals <= 5, "one line for each task"


# --- protocols --------------------------------------------------------------------------------------------------------------------


def test_a_step_of_a_newer_protocol_waits_for_a_worker_that_speaks_it(
    fleet: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = fleet.worker(slots=1)
    with client_of_next_protocol(monkeypatch):
        new = fleet.diamond()
    fleet.until(
        lambda: any("is older than the step (protocol" in row["reason"] for row in new.why()),
        what="the row says why it waits",
    )
    with fleet.traffic() as sent:
        plain = [fleet.diamond() for _ in range(3)]
        fleet.finish(*plain)
    assert sum(sent[row["id"]] for row in new.steps()) <= 1, "no message goes round in vain"
    assert fleet.step(new, "seed")["status"] == "ready"
    of_next_protocol(fleet)
    fleet.finish(new)
    assert makers(fleet, new) == {NEXT}
    is_calm(old)


def test_during_a_rolling_replacement_every_step_ends_where_it_can_run(
    fleet: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two old workers are replaced one by one while old and new clients start runs, then one is rolled back for a while."""
    old = [fleet.worker(slots=1) for _ in range(2)]
    earlier, later = [fleet.diamond() for _ in range(4)], []
    workers = list(old)
    for leaving in old:
        workers.append(of_next_protocol(fleet))
        earlier += [fleet.diamond() for _ in range(4)]
        with client_of_next_protocol(monkeypatch):
            later += [fleet.diamond() for _ in range(4)]
        leaving.signal(signal.SIGTERM)
        leaving.ended(20)
    workers.append(fleet.worker(slots=1))
    with client_of_next_protocol(monkeypatch):
        later += [fleet.diamond() for _ in range(4)]
    earlier += [fleet.diamond() for _ in range(4)]
    fleet.finish(*earlier, *later, within=60)
    assert {protocol for run in later for protocol in makers(fleet, run)} == {NEXT}
    assert {row["attempt"] for run in (*earlier, *later) for row in run.steps()} == {1}
    for worker in workers:
        is_calm(worker)


def test_workers_of_different_code_take_what_they_know_and_the_doctor_shows_them(fleet: Cluster) -> None:
    before, after = fleet.worker(module="oldshop", slots=1), fleet.worker(slots=1)
    runs = [fleet.diamond() for _ in range(5)] + [fleet.start("tick") for _ in range(5)]
    fleet.finish(*runs, within=30)
    said = _doctor(fleet)
    assert "2 versions of the code are at work" in said
    assert before.name in said
    assert after.name in said
    is_calm(before)
    is_calm(after)


# --- schemas ----------------------------------------------------------------------------------------------------------------------


def test_a_worker_goes_on_when_the_schema_moves_one_version_ahead(fleet: Cluster) -> None:
    worker = fleet.worker(slots=1)
    fleet.finish(fleet.diamond())
    migrate_to(fleet, LATER, schema.VERSION)
    newer = of_next_schema(fleet)
    fleet.finish(*(fleet.diamond() for _ in range(5)))
    another = fleet.worker(slots=1)
    fleet.finish(*(fleet.diamond() for _ in range(5)))
    assert "takes no steps" not in "".join(each.text() for each in (worker, newer, another))


def test_a_worker_that_the_database_has_outgrown_ends_what_it_has_and_begins_nothing(fleet: Cluster) -> None:
    worker = fleet.worker(slots=1)
    hold = fleet.file()
    held = fleet.start("work", metadata={"work": {"wait": str(hold)}})
    fleet.running(held)
    migrate_to(fleet, LATER, LATER)
    fleet.until(lambda: "takes no steps any more" in worker.text(), within=10, what="the log says so")
    assert [row["status"] for row in fleet.sql("SELECT status FROM flowstone.nodes")] == ["draining"]
    waiting = fleet.start("tick")
    hold.touch()
    fleet.finish(held)
    fleet.until(
        lambda: any("too old for the database" in row["reason"] for row in waiting.why()),
        what="the row says why it waits",
    )
    assert "takes no steps: its code is of schema" in _doctor(fleet, OTHERTIME_SCHEMA=LATER)
    newer = of_next_schema(fleet)
    more = [fleet.diamond() for _ in range(5)]
    fleet.finish(waiting, *more, within=40)
    rows = fleet.sql("SELECT name, status FROM flowstone.nodes")
    assert {row["name"]: row["status"] for row in rows} == {worker.name: "draining", newer.name: "live"}
    assert {row["attempt"] for run in more for row in run.steps()} == {1}
    assert "Traceback" not in worker.text()


def test_a_worker_on_a_schema_that_it_cannot_use_does_not_start_and_says_why(fleet: Cluster) -> None:
    newer = of_next_schema(fleet, ready=False)
    newer.ended(20)
    assert newer.process.returncode not in (0, None)
    assert "the schema is older" in newer.text()
    assert "flowstone db migrate" in newer.text()
    migrate_to(fleet, LATER, LATER)
    older = fleet.worker(slots=1, ready=False)
    older.ended(20)
    assert "the schema is newer" in older.text()
    assert "Traceback" not in newer.text() + older.text()


def _doctor(fleet: Cluster, **environment: object) -> str:
    """What `flowstone doctor` says, on one line."""
    found = subprocess.run(
        [str(Path(sys.executable).with_name("flowstone")), "-A", "faultshop", "doctor"],
        cwd=HERE,
        env=fleet.environment(PYTHONPATH=ELSEWHEN, COLUMNS=1000, **environment),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return " ".join((found.stdout + found.stderr).split())
