"""The database over forks, lost connections and lost answers to a commit."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from corelab import QUEUE, Lab, in_threads, sql, step

from flowstone_celery import faults
from flowstone_celery.core import runs
from flowstone_celery.core.model import Claim, Done
from flowstone_celery.db.address import masked
from flowstone_celery.db.database import Database, Tx, cut_connection
from flowstone_celery.db.wire import Wire
from flowstone_celery.errors import CommitUnknown, DatabaseUnavailable

BACKEND = sql("SELECT pg_backend_pid() AS pid")
SHOOT = "SELECT count(pg_terminate_backend(pid, 5000)) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"


def _backend(database: Database) -> int:
    return int(database.once(BACKEND)[0]["pid"])


# --- fork -------------------------------------------------------------------------------------------------------------------------


def _in_child(act: Callable[[], str]) -> str:
    """What the act answers in a forked child, which leaves without cleaning up."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.write(write, act().encode())
        except BaseException as error:  # noqa: BLE001 - told to the parent
            os.write(write, repr(error).encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read, encoding="utf-8") as answer:
        text = answer.read()
    os.waitpid(pid, 0)
    return text


def test_a_forked_child_uses_a_connection_of_its_own_and_the_parent_keeps_its_own(lab: Lab) -> None:
    parent = _backend(lab.database)
    child = _in_child(lambda: str(_backend(lab.database)))
    assert child.isdigit(), child
    assert int(child) != parent
    assert _backend(lab.database) == parent


def test_a_child_that_closes_its_connections_leaves_the_parent_s_alone(lab: Lab) -> None:
    parent = _backend(lab.database)

    def close() -> str:
        lab.database.dispose()
        return str(_backend(lab.database))

    assert _in_child(close).isdigit()
    assert _backend(lab.database) == parent


def test_a_fork_in_the_middle_of_a_transaction_disturbs_it_in_nothing(lab: Lab) -> None:
    with lab.database.transaction() as tx:
        tx.run(sql("UPDATE flowstone.pacer SET holder = gen_random_uuid()"))
        seen = _in_child(lambda: str(lab.scalar("SELECT holder FROM flowstone.pacer")))
    assert seen == "None"
    assert lab.scalar("SELECT holder FROM flowstone.pacer") is not None


# --- lost connections -------------------------------------------------------------------------------------------------------------


def _shoot_all(lab: Lab) -> None:
    """Every connection of this database but the one that shoots is ended by the server."""
    url = lab.database.url.replace("+psycopg", "")
    with psycopg.connect(url, autocommit=True) as shooter:
        shooter.execute(SHOOT)


def test_idle_connections_that_the_server_ended_are_not_handed_out(lab: Lab) -> None:
    in_threads(*[lambda: _backend(lab.database)] * 4)
    _shoot_all(lab)
    for _ in range(5):
        assert _backend(lab.database) > 0


def test_a_connection_that_breaks_in_a_transaction_is_told_and_the_next_one_works(lab: Lab) -> None:
    def broken() -> None:
        with lab.database.transaction() as tx:
            tx.rows(BACKEND)
            _shoot_all(lab)
            tx.rows(BACKEND)

    with pytest.raises(DatabaseUnavailable):
        broken()
    assert _backend(lab.database) > 0


@pytest.mark.parametrize(
    ("first", "then", "refusal"),
    [
        ("SELECT 1", "SELECT array_fill(1, ARRAY[100000, 100000])", psycopg.errors.ProgramLimitExceeded),
        ("SET LOCAL statement_timeout = 1", "SELECT pg_sleep(5)", psycopg.errors.QueryCanceled),
    ],
)
def test_what_the_server_refuses_is_not_told_as_its_absence(
    lab: Lab, first: str, then: str, refusal: type[Exception]
) -> None:
    """Who waits for the database to come back would wait for ever."""

    def refused(tx: Tx) -> None:
        tx.rows(sql(first))
        tx.rows(sql(then))

    with pytest.raises(refusal):
        lab.database.attempt(refused)
    assert lab.scalar("SELECT 1") == 1


def test_a_connection_that_breaks_at_the_commit_leaves_the_answer_unknown(lab: Lab) -> None:
    done: list[str] = []

    def broken() -> None:
        with lab.database.transaction() as tx:
            tx.run(sql("UPDATE flowstone.pacer SET holder = gen_random_uuid()"))
            tx.after_commit(lambda: done.append("told"))
            _shoot_all(lab)

    with pytest.raises(CommitUnknown) as caught:
        broken()
    assert caught.value.code == "FS-5012"
    assert done == []
    assert lab.scalar("SELECT holder FROM flowstone.pacer") is None


def test_what_waits_for_a_commit_is_done_after_it_and_never_without_it(lab: Lab) -> None:
    done: list[str] = []
    with lab.database.transaction() as tx:
        tx.after_commit(lambda: done.append("first"))
        tx.after_commit(lambda: 1 // 0)
        tx.after_commit(lambda: done.append("last"))
        assert done == []
    assert done == ["first", "last"]

    def failing() -> None:
        with lab.database.transaction() as tx:
            tx.after_commit(lambda: done.append("never"))
            raise LookupError

    with pytest.raises(LookupError):
        failing()
    assert done == ["first", "last"]


def test_a_deadlock_is_tried_again_and_both_get_through(lab: Lab) -> None:
    for table in ("pacer", "schema_version"):
        assert lab.scalar(f"SELECT count(*) FROM flowstone.{table}") == 1
    both_hold = threading.Barrier(2, timeout=10)
    tries: list[str] = []

    def work(first: str, second: str) -> Callable[[Tx], str]:
        def do(tx: Tx) -> str:
            tries.append(first)
            tx.run(sql(f"UPDATE flowstone.{first} SET id = id"))
            if len(tries) <= 2:
                both_hold.wait()
            tx.run(sql(f"UPDATE flowstone.{second} SET id = id"))
            return first

        return do

    found = in_threads(
        lambda: lab.database.attempt(work("pacer", "schema_version")),
        lambda: lab.database.attempt(work("schema_version", "pacer")),
    )
    assert found == ["pacer", "schema_version"]
    assert len(tries) == 3


def test_the_password_is_masked() -> None:
    assert masked("postgresql+psycopg://joe:secret@host/shop") == "postgresql+psycopg://joe:***@host/shop"


# --- the answer to a commit is lost -----------------------------------------------------------------------------------------------


def _settle_one(lab: Lab) -> tuple[Any, list[int]]:
    """One step through the executor; answers its run and the fences under which its value was written."""
    written: list[int] = []

    def answer(claim: Claim) -> Done:
        def write(tx: Tx) -> dict[str, Any]:
            written.append(claim.fence)
            tx.run(
                sql(
                    "INSERT INTO flowstone.audit (actor, actor_type, action, resource_type, resource_id) VALUES ('t', 't', 'wrote', 'step', %(id)s)"
                ),
                id=str(claim.id),
            )
            return {"wrote": claim.id}

        return Done(write=write)

    lab.answers["a"] = answer
    run = lab.start(step("a"), step("b", 0))
    lab.executor().work(None, QUEUE)
    return run, written


def _settled_exactly_once(lab: Lab, run: Any) -> None:
    assert lab.run(run)["status"] == "succeeded"
    assert lab.events(run).count("step.succeeded a") == 1
    assert lab.scalar("SELECT count(*) FROM flowstone.audit WHERE action = 'wrote'") == 1


def test_a_connection_cut_before_the_commit_settles_again(lab: Lab) -> None:
    with faults.arm("settle.before_commit", "drop_conn") as fault:
        run, written = _settle_one(lab)
    assert fault.hits >= 2
    assert written == [1, 1]
    _settled_exactly_once(lab, run)


def test_a_backend_that_dies_before_the_commit_settles_again(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    shots = iter([True])

    def shoot(name: str) -> None:
        if name == "settle.before_commit" and next(shots, False):
            _shoot_all(lab)

    monkeypatch.setattr(faults, "_watch", shoot)
    run, written = _settle_one(lab)
    assert written == [1, 1]
    _settled_exactly_once(lab, run)


def test_a_commit_whose_answer_is_lost_is_found_in_the_rows(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server has committed; its answer never arrives."""
    commit, losses = Wire.commit, iter([True])
    armed = threading.Event()

    def lossy(wire: Wire) -> None:
        commit(wire)
        if armed.is_set() and next(losses, False):
            cut_connection()
            raise psycopg.OperationalError("server closed the connection unexpectedly")

    monkeypatch.setattr(Wire, "commit", lossy)
    monkeypatch.setattr(
        faults, "_watch", lambda name: armed.set() if name == "settle.before_commit" else None
    )
    run, written = _settle_one(lab)
    assert next(losses, None) is None, "an answer was lost"
    assert written == [1]
    _settled_exactly_once(lab, run)


def test_wake_ups_promised_in_a_commit_whose_answer_is_lost_are_sent_all_the_same(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit, armed = Wire.commit, threading.Event()

    def lossy(wire: Wire) -> None:
        commit(wire)
        if armed.is_set():
            armed.clear()
            cut_connection()
            raise psycopg.OperationalError("server closed the connection unexpectedly")

    monkeypatch.setattr(Wire, "commit", lossy)
    monkeypatch.setattr(
        faults, "_watch", lambda name: armed.set() if name == "settle.before_commit" else None
    )
    run = lab.start(step("a"), step("b", 0, queue="elsewhere"))
    lab.postbox.take()
    lab.executor().work(lab.id_of(run, "a"), QUEUE, going_on=False)
    assert (
        lab.scalar("SELECT count(*) FROM flowstone.steps WHERE queue = 'elsewhere' AND sent_at IS NOT NULL")
        == 1
    )
    assert [each.queue for each in lab.postbox.take()] == ["elsewhere"]


def test_a_start_whose_answer_is_lost_with_a_key_is_started_once(lab: Lab) -> None:
    def ask() -> Any:
        return lab.start(step(), idempotency_key="order 7", request_digest="d")

    with faults.arm("run.create.before_commit", "drop_conn"), pytest.raises(CommitUnknown):
        ask()
    assert ask() == ask()
    assert len(runs.page(lab.database)) == 1
