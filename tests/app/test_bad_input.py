"""Bad input, and what it gets: each time what, why and how to mend it, and nothing is lost."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from celery import Celery
from onedb import sql

from flowstone_celery import FlowStone
from flowstone_celery.errors import (
    ConfigError,
    CorruptRow,
    DatabaseUnavailable,
    DependencyCycle,
    DuplicateAsset,
    FlowStoneError,
    InvalidOption,
    InvalidPartition,
    InvalidValue,
    RunFailed,
    SchemaMismatch,
    ServiceUnavailable,
    UnknownAsset,
    UnknownDependency,
    UnknownOption,
    ValueTooLarge,
    WaitTimeout,
    WrongState,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from flowstone_celery.testing.kit import TestKit


def refusal(act: Callable[[], object], kind: type[FlowStoneError], *words: str) -> FlowStoneError:
    """The error of this kind, which says all these words and how to mend it, in one piece of text for people."""
    with pytest.raises(kind) as caught:
        act()
    error = caught.value
    text = str(error)
    assert text.startswith(f"{error.code} ")
    assert error.hint, "it says how to mend it"
    assert [word for word in words if word not in text] == []
    assert "Traceback" not in text
    return error


def cause_of_failure(fs: FlowStone, name: str, kind: type[FlowStoneError], *words: str) -> FlowStoneError:
    """The same for a run that fails: `get` raises RunFailed, whose cause it is."""
    failed = refusal(fs.run(name, force=True).get, RunFailed, *words)
    cause = failed.__cause__
    assert isinstance(cause, kind)
    assert cause.hint
    return cause


def test_unknown_dependency(fs: FlowStone, fs_test: TestKit) -> None:
    fs.asset(name="orders")(lambda: 1)
    fs.asset(name="revenue")(lambda order: order)
    refusal(lambda: fs.run("revenue"), UnknownDependency, "'revenue'", "'order'", "Did you mean 'orders'?")
    assert fs_test.unfinished() == []


def test_unknown_option_of_a_declaration(fs: FlowStone) -> None:
    refusal(
        lambda: fs.asset(name="orders", retris=3)(lambda: 1),
        UnknownOption,
        "'orders'",
        "'retris'",
        "Did you mean 'retries'?",
        "test_bad_input.py",
    )
    assert fs.catalog.names == ()


def test_an_option_with_a_wrong_value(fs: FlowStone) -> None:
    refusal(
        lambda: fs.asset(name="orders", timeout=-1)(lambda: 1), InvalidOption, "timeout", "-1", "timeout=60"
    )


def test_cycle(fs: FlowStone) -> None:
    fs.asset(name="a")(lambda c: 1)
    fs.asset(name="b")(lambda a: 1)
    fs.asset(name="c")(lambda b: 1)
    error = refusal(lambda: fs.run("a"), DependencyCycle, "test.a", "test.b", "test.c")
    assert len(error.facts["path"]) == 4


def test_duplicate_name(fs: FlowStone) -> None:
    fs.asset(name="orders")(lambda: 1)
    refusal(
        lambda: fs.asset(name="orders")(lambda: 2),
        DuplicateAsset,
        "'test.orders'",
        "twice",
        "test_bad_input.py",
    )
    assert fs.run("orders").get() == 1


def test_unknown_asset(fs: FlowStone) -> None:
    fs.asset(name="orders")(lambda: 1)
    refusal(lambda: fs.run("oders"), UnknownAsset, "'oders'", "Did you mean 'orders'?")


@pytest.mark.parametrize(
    "key",
    [1.5, ["a"], {"a": 1}, b"x", object(), "a\x00", "x" * 2000, (1, (2.5,))],
    ids=lambda key: type(key).__name__,
)
def test_bad_partition(fs: FlowStone, fs_test: TestKit, key: Any) -> None:
    orders = fs.asset(name="orders")(lambda: 1)
    verbs = (fs.run, fs.materialize, fs.materialize_all, fs.get, fs.exists, fs.status)
    for verb in verbs:
        refusal(lambda verb=verb: verb("orders", partition=key), InvalidPartition, "partition")  # type: ignore[misc] # mypy and lambda defaults
    refusal(lambda: orders.delay(partition=key), InvalidPartition, "partition")
    assert fs_test.unfinished() == []


def test_a_value_that_cannot_be_stored(fs: FlowStone) -> None:
    fs.asset(name="orders")(lambda: {"rows": [{1, 2}]})
    cause_of_failure(fs, "orders", InvalidValue, "'test.orders'", "$.rows[0]", "set")


def test_a_value_over_the_limit(fs: FlowStone, fs_test: TestKit) -> None:
    fs.asset(name="orders")(lambda: "x" * fs_test.settings.max_value_bytes)
    cause_of_failure(fs, "orders", ValueTooLarge, "'test.orders'", "the limit is")


@pytest.mark.parametrize(
    ("url", "word"),
    [("mysql://localhost/shop", "mysql"), ("sqlite:///shop.db", "sqlite"), ("not a url", "not a url")],
)
def test_wrong_url(url: str, word: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLOWSTONE_DATABASE_URL", url)
    fs = FlowStone(namespace="shop", mode="inline")
    fs.asset(name="orders")(lambda: 1)
    refusal(lambda: fs.run("orders"), ConfigError, word, "postgresql")


def test_server_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLOWSTONE_DATABASE_URL", "postgresql://ada:secret@127.0.0.1:1/shop")
    fs = FlowStone(namespace="shop", mode="inline")
    fs.asset(name="orders")(lambda: 1)
    error = refusal(
        lambda: fs.run("orders"), DatabaseUnavailable, "127.0.0.1", "does not answer", "flowstone doctor"
    )
    assert "secret" not in str(error)
    fs.close()


def test_no_server_at_all_names_both_ways_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("FLOWSTONE_DATABASE_URL", raising=False)
    monkeypatch.chdir(tmp_path)
    fs = FlowStone(namespace="shop", mode="inline")
    fs.asset(name="orders")(lambda: 1)
    refusal(lambda: fs.run("orders"), ServiceUnavailable, "flowstone up", "FLOWSTONE_DATABASE_URL")
    assert list(tmp_path.iterdir()) == [], "nothing was started"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("version = version - 1", ("the schema is older", "flowstone db migrate")),
        (
            "version = version + 9, oldest_code = version + 9",
            ("the schema is newer", "upgrade flowstone-celery"),
        ),
    ],
    ids=["older", "newer"],
)
def test_schema_that_does_not_fit(
    fs: FlowStone, fs_test: TestKit, change: str, words: tuple[str, ...]
) -> None:
    [before] = sql(fs.database, "SELECT version, oldest_code FROM flowstone.schema_version")
    sql(fs.database, f"UPDATE flowstone.schema_version SET {change}")
    stranger = FlowStone(namespace="test", mode="inline", settings=fs_test.settings)
    stranger.asset(name="orders")(lambda: 1)
    try:
        refusal(lambda: stranger.run("orders"), SchemaMismatch, *words)
    finally:
        sql(
            fs.database,
            "UPDATE flowstone.schema_version SET version = %(version)s, oldest_code = %(oldest_code)s",
            **before,
        )
        stranger.close()


def test_a_database_that_was_never_migrated(fs: FlowStone, fs_test: TestKit) -> None:
    from dataclasses import replace

    elsewhere = replace(fs_test.settings, db_schema="nobody_was_here")
    stranger = FlowStone(namespace="test", mode="inline", settings=elsewhere)
    stranger.asset(name="orders")(lambda: 1)
    refusal(lambda: stranger.run("orders"), SchemaMismatch, "'nobody_was_here'", "flowstone db migrate")
    stranger.close()


def test_no_worker_on_a_queue_is_told_while_waiting(fs: FlowStone, fs_test: TestKit) -> None:
    shop = FlowStone(Celery("shop", broker="memory://"), settings=fs_test.settings)
    run = shop.asset(name="orders", queue="etl")(lambda: 1).delay()
    refusal(
        lambda: run.wait(0.05), WaitTimeout, "no worker listens on queue 'etl'", "worker -Q etl", "FS-2101"
    )
    assert run.state == "pending", "it is kept"
    run.cancel()
    shop.close()


def test_a_stall_is_told_once_for_each_reason(
    fs: FlowStone, fs_test: TestKit, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flowstone_celery.assets import handle

    monkeypatch.setattr(handle, "_STALLED_AFTER", 0.05)
    shop = FlowStone(Celery("shop", broker="memory://"), settings=fs_test.settings)
    run = shop.asset(name="orders", queue="etl")(lambda: 1).delay()
    told: list[str] = []
    with pytest.raises(WaitTimeout):
        run.wait(0.5, on_stall=told.append)
    assert len(told) == 1
    assert "no worker listens on queue 'etl'" in told[0]
    run.cancel()
    shop.close()


def test_a_process_that_does_not_know_the_asset_keeps_its_step(fs: FlowStone, fs_test: TestKit) -> None:
    fs.asset(name="orders")(lambda: 1)
    run = fs_test.start("orders")
    stranger = FlowStone(namespace="test", mode="inline", settings=fs_test.settings)
    refusal(lambda: stranger.resume(run.id), WrongState, "'test.orders'", "unknown here", "fs.resume")
    stranger.close()
    fs_test.drain(run)
    assert run.get() == 1


def test_corrupt_value(fs: FlowStone) -> None:
    fs.asset(name="orders")(lambda: [1])
    fs.run("orders")
    sql(fs.database, "UPDATE flowstone.asset_values SET content = '\\xff'::bytea")
    refusal(lambda: fs.get("orders"), CorruptRow, "'test.orders'", "damaged", "materialize it again")
    assert fs.run("orders", force=True).get() == [1]
