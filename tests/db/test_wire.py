"""Named statements straight through libpq: what goes in comes out, errors are psycopg's, prepared statements outlive migrations."""

from __future__ import annotations

import signal
from collections.abc import Callable
from datetime import UTC, timedelta
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from corelab import Lab, sql
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flowstone_celery.db.database import Database, Row, Tx
from flowstone_celery.db.statements import Statement

TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\x00"))
INT8 = st.integers(-(2**63), 2**63 - 1)
FLOAT = st.floats(allow_nan=False)
MOMENT = st.datetimes(timezones=st.just(UTC)).filter(lambda each: 1 < each.year < 9999)
KINDS: dict[str, st.SearchStrategy[Any]] = {
    "text": TEXT,
    "bigint": INT8,
    "boolean": st.booleans(),
    "float8": FLOAT,
    "uuid": st.uuids(),
    "bytea": st.binary(),
    "timestamptz": MOMENT,
    "text[]": st.lists(TEXT | st.none()),
    "bigint[]": st.lists(INT8 | st.none()),
    "boolean[]": st.lists(st.booleans()),
    "float8[]": st.lists(FLOAT | st.none()),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_value_comes_back_as_it_went_in(lab: Lab, kind: str) -> None:
    statement = sql(f"SELECT %(value)s::{kind} AS value")

    @settings(max_examples=80, suppress_health_check=list(HealthCheck), deadline=None)
    @given(st.none() | KINDS[kind])
    def round_trip(value: Any) -> None:
        assert lab.database.once(statement, value=value) == [{"value": value}]

    round_trip()


def test_a_parameter_may_stand_in_several_places_and_percent_signs_are_themselves(lab: Lab) -> None:
    statement = sql(
        "SELECT %(a)s::int + %(b)s::int * %(a)s::int AS sum, 7 %% 4 AS rest, 'a_b' LIKE 'a%%' AS alike"
    )
    assert lab.database.once(statement, b=5, a=2) == [{"sum": 12, "rest": 3, "alike": True}]


def test_the_same_statement_takes_values_of_other_types(lab: Lab) -> None:
    statement = sql("SELECT make_interval(secs => %(seconds)s) AS pause")
    for seconds in (2, 0.5, 3, 1.25):
        assert lab.database.once(statement, seconds=seconds) == [{"pause": timedelta(seconds=seconds)}]


@pytest.mark.parametrize(
    ("value", "error"),
    [("a\x00b", psycopg.DataError), (object(), psycopg.ProgrammingError), ([b"1"], psycopg.ProgrammingError)],
)
def test_what_cannot_be_sent_is_refused_before_it_is_sent(
    lab: Lab, value: object, error: type[Exception]
) -> None:
    with pytest.raises(error):
        lab.database.once(sql("SELECT %(value)s AS value"), value=value)
    assert lab.scalar("SELECT 1") == 1


def test_errors_of_the_server_are_psycopgs_with_their_details(lab: Lab) -> None:
    statement = sql("INSERT INTO flowstone.partition_keys (definition, key) VALUES ('d', 'k'), ('d', 'k')")
    with pytest.raises(psycopg.errors.UniqueViolation) as caught:
        lab.database.attempt(lambda tx: tx.run(statement))
    assert caught.value.diag.constraint_name == "partition_keys_pkey"
    assert lab.scalar("SELECT count(*) FROM flowstone.partition_keys") == 0


def _in_a_flight(statement: Statement) -> Callable[[Tx], list[Row]]:
    def work(tx: Tx) -> list[Row]:
        asked, _ = tx.later(statement), tx.later(statement)
        return asked()

    return work


def test_a_statement_prepared_before_a_migration_serves_after_it(lab: Lab) -> None:
    table = f"flowstone.t{uuid4().hex[:8]}"
    lab.sql(f"CREATE TABLE {table} (a int)")
    statement = sql(f"SELECT * FROM {table}")
    try:
        assert lab.database.once(statement) == []
        lab.sql(f"ALTER TABLE {table} ADD COLUMN b int DEFAULT 2")
        lab.sql(f"INSERT INTO {table} (a) VALUES (1)")
        assert lab.database.once(statement) == [{"a": 1, "b": 2}]
        lab.database.attempt(lambda tx: tx.rows(statement))
        lab.sql(f"ALTER TABLE {table} ADD COLUMN c int DEFAULT 3")
        assert lab.database.attempt(lambda tx: tx.rows(statement)) == [{"a": 1, "b": 2, "c": 3}]
        lab.database.attempt(_in_a_flight(statement))
        lab.sql(f"ALTER TABLE {table} ADD COLUMN d int DEFAULT 4")
        assert lab.database.attempt(_in_a_flight(statement)) == [{"a": 1, "b": 2, "c": 3, "d": 4}]
    finally:
        lab.sql(f"DROP TABLE {table}")


def test_a_transaction_that_fails_leaves_nothing_and_its_connection_serves_on(lab: Lab) -> None:
    def work(tx: Tx) -> float:
        return tx.run(sql("INSERT INTO flowstone.partition_keys (definition, key) VALUES ('d', 'k')")) / 0

    with pytest.raises(ZeroDivisionError):
        lab.database.attempt(work)
    assert lab.database.first(sql("SELECT count(*) AS n FROM flowstone.partition_keys")) == {"n": 0}


@pytest.mark.parametrize("in_transaction", [False, True])
def test_an_exit_in_the_middle_of_a_statement_leaves_no_answer_for_the_next(
    lab: Lab, in_transaction: bool
) -> None:
    """A signal's exception may come while the answer is waited for; the pool must not hand that connection out again."""

    def leave(number: int, frame: object) -> None:
        raise SystemExit

    statement = sql("SELECT 'late' AS said, pg_sleep(20)")

    def ask(where: Tx | Database) -> object:
        return where.rows(statement) if isinstance(where, Tx) else where.once(statement)

    former = signal.signal(signal.SIGALRM, leave)
    signal.setitimer(signal.ITIMER_REAL, 0.3)
    try:
        with pytest.raises(SystemExit):
            lab.database.attempt(ask) if in_transaction else ask(lab.database)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, former)
    for number in range(30):
        assert lab.database.once(sql("SELECT %(n)s::int AS n"), n=number) == [{"n": number}]


def test_statements_in_one_flight_run_in_their_order_and_end_with_the_first_that_fails(lab: Lab) -> None:
    add = sql("INSERT INTO flowstone.partition_keys (definition, key) VALUES (%(d)s, %(k)s) RETURNING key")

    def work(tx: Tx) -> list[str]:
        asked = [tx.later(add, d="flight", k=key) for key in ("a", "b", "c")]
        counted = tx.rows(
            sql("SELECT count(*) AS n FROM flowstone.partition_keys WHERE definition = 'flight'")
        )
        return [*(row["key"] for each in asked for row in each()), str(counted[0]["n"])]

    assert lab.database.attempt(work) == ["a", "b", "c", "3"]

    def failing(tx: Tx) -> None:
        tx.later(add, d="flight", k="d")
        tx.later(add, d="flight", k="a")
        tx.later(add, d="flight", k="e")

    with pytest.raises(psycopg.errors.UniqueViolation):
        lab.database.attempt(failing)
    keys = lab.sql("SELECT key FROM flowstone.partition_keys WHERE definition = 'flight' ORDER BY key")
    assert [row["key"] for row in keys] == ["a", "b", "c"]


def test_ids_go_in_as_ids_and_as_their_texts(lab: Lab) -> None:
    some = uuid4()
    assert lab.database.once(sql("SELECT %(a)s::uuid = %(b)s::uuid AS same"), a=some, b=str(some)) == [
        {"same": True}
    ]
    assert lab.scalar("SELECT %(some)s::uuid", some=some) == UUID(str(some))
