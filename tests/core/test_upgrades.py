"""A database that moves on: the keeper notices with its next beat, and a node whose code is too old begins nothing more."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from corelab import QUEUE, TASK, Lab, step

from flowstone_celery.core.interrupts import Board, Interrupts
from flowstone_celery.core.model import PROTOCOL
from flowstone_celery.core.statements import SQL
from flowstone_celery.db import schema
from flowstone_celery.db.database import Database
from flowstone_celery.errors import SchemaMismatch
from flowstone_celery.telemetry import recorded

SAYS = "UPDATE flowstone.schema_version SET version = %(version)s, oldest_code = %(oldest)s"


@pytest.fixture
def board(tmp_path: Path) -> Board:
    return Board(tmp_path)


@pytest.fixture
def migrated(lab: Lab) -> Iterator[Lab]:
    """A laboratory whose schema a test moves on; afterwards it is this code's again."""
    yield lab
    lab.sql(SAYS, version=schema.VERSION, oldest=schema.OLDEST_CODE)


def move_on(lab: Lab, *, oldest: int) -> None:
    lab.sql(SAYS, version=schema.VERSION + 1, oldest=oldest)


def test_an_outgrown_node_drains_within_a_beat_and_begins_nothing(migrated: Lab, board: Board) -> None:
    lab, node = migrated, migrated.node()
    keeper, executor = lab.keeper(board, node), lab.executor(node, interrupts=Interrupts(board))
    keeper.step()
    assert not board.retired
    run = lab.start(step())
    move_on(lab, oldest=schema.VERSION + 1)
    keeper._look_again = keeper._beat_again = 0.0
    with recorded() as events:
        keeper.step()
        keeper._look_again = keeper._beat_again = 0.0
        keeper.step()
    assert [each.name for each in events] == ["flowstone.error", "flowstone.worker.drain"], "said once"
    assert lab.scalar("SELECT status FROM flowstone.nodes") == "draining"
    assert executor.work(lab.id_of(run, "a"), QUEUE) == 0
    assert executor.work(None, QUEUE) == 0
    assert lab.statuses(run) == {"a": "ready"}
    (row,) = lab.database.once(SQL["why_not_running"], run=run, limit=10)
    assert "is too old for the database" in row["reason"]


def test_a_node_goes_on_while_the_schema_still_allows_its_code(migrated: Lab, board: Board) -> None:
    lab, node = migrated, migrated.node()
    keeper, executor = lab.keeper(board, node), lab.executor(node, interrupts=Interrupts(board))
    run = lab.start(step())
    move_on(lab, oldest=schema.VERSION)
    keeper.step()
    assert executor.work(None, QUEUE) == 1
    assert lab.statuses(run) == {"a": "succeeded"}


def test_what_runs_when_the_schema_moves_on_keeps_its_lease_and_may_settle(
    migrated: Lab, board: Board
) -> None:
    lab, node = migrated, migrated.node()
    keeper, worker = lab.keeper(board, node), migrated.worker(node)
    claim = lab.running(worker)
    move_on(lab, oldest=schema.VERSION + 1)
    keeper.step()
    assert board.retired
    lab.sql("UPDATE flowstone.workers SET alive_until = flowstone.now() WHERE id = %(id)s", id=worker)
    keeper._look_again = keeper._beat_again = 0.0
    keeper.step()
    assert lab.scalar(
        "SELECT alive_until > flowstone.now() FROM flowstone.workers WHERE id = %(id)s", id=worker
    )
    assert lab.succeed(claim.held)


def test_a_process_that_is_forked_after_the_migration_looks_at_the_schema_itself(migrated: Lab) -> None:
    """Also where no keeper lives to say so: a new process's first look at the database is at its version."""
    database = Database(migrated.database.url)
    assert database.once(SQL["nodes"]) == []
    database.dispose()
    move_on(migrated, oldest=schema.VERSION + 1)
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            database.once(SQL["nodes"])
        except SchemaMismatch:
            code = 0
        finally:
            os._exit(code)
    assert os.waitpid(pid, 0)[1] == 0


def test_no_message_is_sent_for_a_step_that_every_listening_node_is_too_old_for(lab: Lab) -> None:
    lab.node()
    run = lab.start(step("now"), step("newer"), promise=False)
    newer, now = lab.id_of(run, "newer"), lab.id_of(run, "now")
    lab.sql("UPDATE flowstone.steps SET v = %(v)s WHERE id = %(id)s", v=PROTOCOL + 1, id=newer)
    promise = {"queue": QUEUE, "min_wakeups": 8}
    assert [row["id"] for row in lab.database.once(SQL["promise"], **promise)] == [now]
    lab.sql("UPDATE flowstone.nodes SET protocol = %(v)s", v=PROTOCOL + 1)
    assert [row["id"] for row in lab.database.once(SQL["promise"], **promise)] == [newer]
    assert lab.claim(lab.worker(), newer, knows=[TASK]) is None, "the claim itself refuses what is newer"
