"""Migrations: equal to the schema page, safe at once, under any schema name, and as plain SQL."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from corelab import QUEUE, TASK, Lab, sql, step
from sqlalchemy import create_engine
from sqlalchemy.engine import make_url
from sqlalchemy.pool import NullPool

from flowstone_celery.core.statements import SQL as CORE
from flowstone_celery.db import migrate, schema
from flowstone_celery.db.database import Database
from flowstone_celery.errors import ConfigError, DatabaseUnavailable, SchemaMismatch
from flowstone_celery.record.values import SQL as VALUES
from flowstone_celery.testing.databases import Databases

CATALOGUE = {
    "columns": "SELECT table_name, column_name, data_type, udt_name, column_default, is_nullable, is_identity, identity_generation "
    "FROM information_schema.columns WHERE table_schema = %(schema)s",
    "constraints": "SELECT conrelid::regclass::text, conname, pg_get_constraintdef(oid) FROM pg_constraint "
    "WHERE connamespace = %(schema)s::regnamespace AND contype <> 'n'",
    "indexes": "SELECT tablename, indexname, indexdef FROM pg_indexes WHERE schemaname = %(schema)s",
    "functions": "SELECT proname, pg_get_functiondef(oid) FROM pg_proc WHERE pronamespace = %(schema)s::regnamespace",
    "storage": "SELECT relname, relkind::text, reloptions::text FROM pg_class WHERE relnamespace = %(schema)s::regnamespace",
    "sequences": "SELECT sequencename, data_type::text, start_value FROM pg_sequences WHERE schemaname = %(schema)s",
    "version": "SELECT version, oldest_code FROM {schema}.schema_version",
    "pacer": "SELECT id, holder FROM {schema}.pacer",
}


@contextmanager
def blank(databases: Databases) -> Iterator[str]:
    """The URL of an empty database for the block."""
    name = f"flowstone_blank_{uuid4().hex[:12]}"
    url = make_url(databases.admin_url).set(drivername="postgresql+psycopg")
    engine = create_engine(url, poolclass=NullPool, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.exec_driver_sql(f"CREATE DATABASE {name}")
        try:
            yield url.set(database=name).render_as_string(hide_password=False)
        finally:
            connection.exec_driver_sql(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def blank_url(flowstone_databases: Databases) -> Iterator[str]:
    with blank(flowstone_databases) as url:
        yield url


@contextmanager
def using(url: str, **options: Any) -> Iterator[Database]:
    """The database for the block; its connections are closed afterwards."""
    database = Database(url, **options)
    try:
        yield database
    finally:
        database.dispose()


def _migrated(url: str) -> bool:
    with using(url) as database:
        return migrate.migrate(database).up_to_date


def plain(url: str) -> str:
    return make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)


def catalogue(url: str, name: str = "flowstone") -> dict[str, set[tuple[Any, ...]]]:
    """Everything that makes two schemas the same, with the version table of Alembic left out."""
    with psycopg.connect(plain(url)) as connection:
        found = {
            part: set(connection.execute(text.replace("{schema}", name), {"schema": name}).fetchall())
            for part, text in CATALOGUE.items()
        }
    return {
        part: {
            tuple(
                str(cell).replace(f'"{name}".', f"{name}.").replace(f"{name}.", "flowstone.") for cell in row
            )
            for row in rows
            if "alembic" not in str(row)
        }
        for part, rows in found.items()
    }


def functions_of_rooms() -> list[str]:
    """What makes the functions that statements call."""
    return [each.definition for each in (*CORE.values(), *VALUES.values()) if each.definition]


def test_migrations_build_what_the_schema_page_says(flowstone_databases: Databases, blank_url: str) -> None:
    engine = create_engine(blank_url, poolclass=NullPool)
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE SCHEMA flowstone")
        for text in schema.functions_sql():
            connection.exec_driver_sql(text.replace("%", "%%"))
        schema.metadata.create_all(connection)
        for text in functions_of_rooms():
            connection.exec_driver_sql(text)
        for text in schema.seed_sql():
            connection.exec_driver_sql(text)
    with blank(flowstone_databases) as migrated:
        _migrated(migrated)
        by_migrations, by_page = catalogue(migrated), catalogue(blank_url)
    assert by_migrations["columns"], "the comparison compares something"
    for part in CATALOGUE:
        assert by_migrations[part] == by_page[part], part


def test_every_code_version_finds_its_own_version_in_a_migrated_database(blank_url: str) -> None:
    with using(blank_url) as database:
        before = migrate.current(database)
        after = migrate.migrate(database)
        assert (before.revision, before.up_to_date, after.up_to_date) == (None, False, True)
        assert migrate.migrate(database) == after


def _migrate_in_child(url: str, answers: Any) -> None:
    try:
        answers.put(_migrated(url))
    except Exception as error:  # noqa: BLE001 - told to the test, which fails by it
        answers.put(repr(error))


def test_hosts_that_migrate_at_once_wait_for_each_other(blank_url: str) -> None:
    spawn = multiprocessing.get_context("spawn")
    answers = spawn.Queue()
    hosts = [spawn.Process(target=_migrate_in_child, args=(blank_url, answers)) for _ in range(3)]
    for host in hosts:
        host.start()
    assert [answers.get(timeout=60) for _ in hosts] == [True, True, True]
    for host in hosts:
        host.join(30)
        assert host.exitcode == 0


def test_the_migration_as_text_gives_the_same_database(
    flowstone_databases: Databases, blank_url: str
) -> None:
    with psycopg.connect(plain(blank_url), autocommit=True) as connection:
        connection.execute(migrate.as_sql())
    with blank(flowstone_databases) as migrated:
        _migrated(migrated)
        assert catalogue(migrated) == catalogue(blank_url)
    with using(blank_url) as database:
        assert migrate.current(database).up_to_date


@pytest.mark.parametrize("name", ["team_a", "order", "user"])
def test_the_migration_as_text_serves_another_schema(blank_url: str, name: str) -> None:
    with psycopg.connect(plain(blank_url), autocommit=True) as connection:
        connection.execute(migrate.as_sql(name))
    with using(blank_url, schema=name) as database:
        assert migrate.current(database).up_to_date


@pytest.mark.parametrize("name", ["team_a", "order"])
def test_a_chain_runs_in_a_schema_of_another_name(flowstone_databases: Databases, name: str) -> None:
    """`order` is a word of SQL: whoever forgets to quote it is found out."""
    from flowstone_celery import FlowStone
    from flowstone_celery.config import load_settings
    from flowstone_celery.testing.kit import TestKit

    with blank(flowstone_databases) as url:
        with using(url, schema=name) as database:
            migrate.migrate(database)
        fs = FlowStone(namespace="team", mode="inline")

        @fs.asset
        def orders() -> int:
            return 20

        @fs.asset(retries=1)
        def report(orders: int) -> int:
            return orders + 1

        kit = TestKit(fs, load_settings(env_file=None, env="test", database_url=url, db_schema=name))
        try:
            assert kit.run(report).get() == 21
            kit.sweep()
            kit.assert_healthy()
        finally:
            kit.close()
        with psycopg.connect(plain(url)) as connection:
            schemas = connection.execute(
                "SELECT DISTINCT schemaname FROM pg_tables WHERE tablename = 'steps'"
            ).fetchall()
    assert schemas == [(name,)]


# --- schemas that do not fit ------------------------------------------------------------------------------------------------------


def test_tables_that_are_missing_are_told_with_the_way_out(blank_url: str) -> None:
    with using(blank_url) as database, pytest.raises(SchemaMismatch, match="lacks a table") as caught:
        _look(database)
    assert "flowstone db migrate" in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("version", "oldest", "sentence", "way_out"),
    [
        (schema.VERSION - 1, 0, "the schema is older", "flowstone db migrate"),
        (schema.VERSION + 1, schema.VERSION + 1, "the schema is newer", "upgrade flowstone-celery"),
    ],
)
def test_a_schema_of_another_time_is_refused(
    lab: Lab, version: int, oldest: int, sentence: str, way_out: str
) -> None:
    with _version(lab, version, oldest) as fresh, pytest.raises(SchemaMismatch, match=sentence) as caught:
        _look(fresh)
    assert way_out in (caught.value.hint or "")


def test_a_newer_schema_that_still_allows_this_code_serves_it(lab: Lab) -> None:
    with _version(lab, schema.VERSION + 1, schema.OLDEST_CODE) as fresh:
        assert _look(fresh) == 1


@contextmanager
def _version(lab: Lab, version: int, oldest: int) -> Iterator[Database]:
    """The schema says that it is of this version, for the block; the database is one that has not looked yet."""
    change = "UPDATE flowstone.schema_version SET version = %(version)s, oldest_code = %(oldest)s"
    lab.sql(change, version=version, oldest=oldest)
    try:
        with using(lab.database.url) as fresh:
            yield fresh
    finally:
        lab.sql(change, version=schema.VERSION, oldest=schema.OLDEST_CODE)


def test_a_version_that_is_missing_is_told(lab: Lab) -> None:
    lab.sql("DELETE FROM flowstone.schema_version")
    try:
        with using(lab.database.url) as fresh, pytest.raises(SchemaMismatch, match="names no version"):
            _look(fresh)
    finally:
        lab.sql(schema.seed_sql()[1])


def test_a_mended_schema_serves_the_same_object(blank_url: str) -> None:
    with using(blank_url) as database:
        with pytest.raises(SchemaMismatch):
            _look(database)
        migrate.migrate(database)
        assert _look(database) == 1


def _look(database: Database) -> int:
    with database.connection() as connection:
        row = connection.execute("SELECT 1").fetchone()
    assert row is not None
    return int(row[0])


# --- addresses --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("not a url", "cannot be read"),
        ("sqlite:///shop.db", "'sqlite'"),
        ("mysql://root@localhost/shop", "PostgreSQL 15"),
    ],
)
def test_an_address_of_something_else_is_refused(url: str, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence) as caught:
        Database(url)
    assert "postgresql+psycopg://" in (caught.value.hint or "")


@pytest.mark.parametrize("name", ["Team", "a-b", "x; DROP TABLE", "", "1st", "a" * 64])
def test_a_schema_name_that_would_need_care_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="schema"):
        Database("postgresql://localhost/x", schema=name)


def test_a_server_that_is_away_is_told_without_its_password() -> None:
    url = "postgresql://joe:secret-word@127.0.0.1:1/shop"
    for act in (lambda: _look(Database(url)), lambda: migrate.migrate(Database(url))):
        with pytest.raises(DatabaseUnavailable, match=r"127\.0\.0\.1:1") as caught:
            act()
        assert "secret-word" not in f"{caught.value} {caught.value.hint}"
        assert caught.value.retryable
        assert "FLOWSTONE_DATABASE_URL" in (caught.value.hint or "")


def test_the_rows_of_two_schemas_are_apart(flowstone_databases: Databases, blank_url: str) -> None:
    with using(blank_url, schema="team_a") as first, using(blank_url, schema="team_b") as second:
        for database in (first, second):
            migrate.migrate(database)
        with flowstone_databases.fresh() as settings:
            lab = Lab(first, settings)
            assert lab.statuses(lab.start(step(task=TASK, queue=QUEUE))) == {"a": "ready"}
        assert [len(each.once(sql("SELECT id FROM flowstone.steps"))) for each in (first, second)] == [1, 0]
