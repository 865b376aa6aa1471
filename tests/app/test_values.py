"""Values on their way into rows and back: large, damaged, refused; and the versions they were made from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
from onedb import sql

from flowstone_celery import Context, FlowStone, Value
from flowstone_celery.errors import CorruptRow, InvalidValue, RunFailed, StorageError, ValueTooLarge
from flowstone_celery.io.manager import Slot, Stored
from flowstone_celery.io.memory import MemoryIO
from flowstone_celery.record import lineage, values

if TYPE_CHECKING:
    from flowstone_celery.testing.kit import TestKit


def stored(fs: FlowStone) -> int:
    return len(sql(fs.database, "SELECT id FROM flowstone.asset_values"))


def failure(fs: FlowStone, name: str, **options: Any) -> RunFailed:
    with pytest.raises(RunFailed) as caught:
        fs.run(name, force=True, **options).get()
    return caught.value


# --- large ----------------------------------------------------------------------------------------------------------------------


def test_a_large_value_comes_back_whole(fs: FlowStone, fs_test: TestKit) -> None:
    text = "".join(chr(33 + (number * 7919) % 90) for number in range(300_000))  # compresses badly
    fs.asset(name="page")(lambda: text)
    fs.asset(name="words")(lambda page: len(page))  # noqa: PLW0108 - the parameter's name is the dependency
    assert fs.run("words").get() == 300_000
    assert fs.get("page") == text
    row = fs_test.assert_materialized("page")
    assert row["size"] > fs_test.settings.inline_value_bytes


def test_a_value_over_the_limit_is_refused_with_its_size_and_nothing_is_stored(
    fs: FlowStone, fs_test: TestKit
) -> None:
    attempts: list[int] = []
    limit = fs_test.settings.max_value_bytes

    @fs.asset(retries=3)
    def page(ctx: Context) -> str:
        attempts.append(ctx.attempt)
        return "x" * limit

    error = failure(fs, "page", partition="home").__cause__
    assert isinstance(error, ValueTooLarge)
    assert f"takes {limit + 2:,} bytes, the limit is {limit:,}" in str(error)
    assert "FLOWSTONE_MAX_VALUE_BYTES" in str(error)
    assert attempts == [1]
    assert stored(fs) == 0


# --- refused --------------------------------------------------------------------------------------------------------------------


@dataclass
class Order:
    """What users like to return."""

    number: int


@pytest.mark.parametrize(
    ("value", "path", "kind", "way_out"),
    [
        ({"orders": [Order(1)]}, "$.orders[0]", "Order", "dataclasses.asdict"),
        ({"tags": {"a"}}, "$.tags", "set", "sorted(value)"),
        ([1, float("nan")], "$[1]", "float", "return None"),
        ({"a": {2: 1}}, "$.a", "int", "str(key)"),
        (object(), "$", "object", "io="),
        ("\ud800", "$", "str", "Clean it first"),
    ],
    ids=lambda case: str(type(case).__name__),
)
def test_a_value_that_cannot_be_stored_names_asset_partition_type_and_place(
    fs: FlowStone, value: object, path: str, kind: str, way_out: str
) -> None:
    attempts: list[int] = []

    @fs.asset(retries=3)
    def orders(ctx: Context) -> object:
        attempts.append(ctx.attempt)
        return value

    error = failure(fs, "orders", partition=7).__cause__
    assert isinstance(error, InvalidValue)
    text = str(error)
    assert "'test.orders'" in text
    assert "i:7" in text
    assert path in text
    assert kind in text or kind in str(error.facts.get("type"))
    assert way_out in text
    assert attempts == [1], "another attempt would return the same"
    assert stored(fs) == 0


@pytest.mark.parametrize(
    "metadata", [{"at": Order(1)}, {"note": "a\x00b"}, {"a": [{"b": float("inf")}]}, {"a": 2**64}], ids=str
)
def test_metadata_that_is_not_plain_json_fails_the_attempt_and_not_the_worker(
    fs: FlowStone, metadata: dict[str, Any]
) -> None:
    fs.asset(name="orders", retries=3)(lambda: Value(1, metadata=metadata))
    error = failure(fs, "orders", partition="eu").__cause__
    assert isinstance(error, InvalidValue)
    assert "metadata of asset 'test.orders', partition 'eu'" in str(error)
    assert "$.a" in str(error) or "$.note" in str(error)
    assert stored(fs) == 0


# --- damaged --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "damage",
    [
        "content = '\\x00'::bytea || content",
        "content = substring(content from 1 for 3)",
        "content = ''::bytea",
        "digest = repeat('0', 64)",
    ],
)
def test_a_damaged_row_is_told_and_never_returned(fs: FlowStone, fs_test: TestKit, damage: str) -> None:
    fs.asset(name="orders", code_version="1")(lambda: ["x" * 600])
    fs.asset(name="revenue", retries=2)(lambda orders: len(orders))  # noqa: PLW0108 - the parameter is the dependency
    fs.run("orders", partition=7)
    sql(fs.database, f"UPDATE flowstone.asset_values SET {damage}")
    with pytest.raises(CorruptRow, match=r"'test\.orders', partition 'i:7'.*materialize it again"):
        fs.get("orders", partition=7)
    reader = FlowStone(
        namespace="test", mode="inline", settings=fs_test.settings
    )  # has nothing in its memory
    reader.asset(name="orders", code_version="1")(lambda: [1])
    reader.asset(name="revenue", retries=2)(lambda orders: orders)
    try:
        assert isinstance(failure(reader, "revenue", partition=7).__cause__, CorruptRow)
        assert reader.run("orders", partition=7, force=True).get() == [1]
        assert reader.run("revenue", partition=7, force=True).get() == [1]
    finally:
        reader.close()


def test_a_value_that_somebody_deleted_never_arrives_as_none(fs: FlowStone, fs_test: TestKit) -> None:
    called: list[object] = []
    fs.asset(name="orders", io="memory")(lambda: [1])

    @fs.asset
    def revenue(orders: list[int]) -> int:
        called.append(orders)
        return 1

    run = fs_test.start(revenue)
    fs_test.step()
    sql(fs.database, "DELETE FROM flowstone.asset_current")
    sql(fs.database, "DELETE FROM flowstone.asset_values")
    fs_test.drain(run)
    with pytest.raises(RunFailed, match=r"the value of 'test\.orders'.*is gone"):
        run.get()
    assert called == []
    sql(
        fs.database, "DELETE FROM flowstone.steps"
    )  # the doctor would find the step without its value, rightly
    sql(fs.database, "DELETE FROM flowstone.runs")


# --- lineage --------------------------------------------------------------------------------------------------------------------


def test_lineage_names_the_exact_versions(fs: FlowStone, fs_test: TestKit) -> None:
    fs.asset(name="orders")(lambda ctx: ctx.run_id)
    fs.asset(name="prices")(lambda: 2)
    fs.asset(name="revenue")(lambda orders, prices: [orders, prices])
    fs.asset(name="report", deps=["revenue"])(lambda: "done")
    fs.run("report", partition=1)
    old = _current(fs, "orders")
    fs.run("orders", partition=1, force=True)
    new = _current(fs, "orders")
    assert new.id > old.id

    report = _current(fs, "report")
    up = lineage.upstream(fs.database, report)
    assert [(link.asset, link.depth) for link in up] == [
        ("test.revenue", 1),
        ("test.orders", 2),
        ("test.prices", 2),
    ]
    assert up[1].value_id == old.id, "the version that was consumed, not the newest"
    assert {link.partition for link in up} == {"i:1"}
    assert [link.asset for link in lineage.upstream(fs.database, report, depth=1)] == ["test.revenue"]

    assert [link.asset for link in lineage.downstream(fs.database, old)] == ["test.revenue", "test.report"]
    assert lineage.downstream(fs.database, new) == []
    fs.run("revenue", partition=1, force=True)
    assert [link.depth for link in lineage.downstream(fs.database, new)] == [1]


def test_an_optional_dependency_that_is_missing_leaves_no_lineage(fs: FlowStone) -> None:
    fs.asset(name="forecast")(lambda: 1)
    fs.asset(name="report", optional_deps=["forecast"])(lambda forecast: forecast)
    fs.materialize("report", partition=1)
    assert lineage.upstream(fs.database, _current(fs, "report")) == []


def _current(fs: FlowStone, name: str) -> values.AssetValue:
    found = values.current(fs.database, f"test.{name}", "i:1")
    assert found is not None
    return found


# --- IO managers ----------------------------------------------------------------------------------------------------------------


class Moody(MemoryIO):
    """A memory that fails in the way it is told to."""

    name = "moody"
    on_store: Exception | None = None
    on_load: Exception | None = None
    answer: Any = None

    def store(self, slot: Slot, value: object) -> Stored:
        if self.answer:
            return self.answer  # type: ignore[no-any-return] # the mistake under test
        error, self.on_store = self.on_store, None
        if error:
            raise error
        return super().store(slot, value)

    def load(self, slot: Slot, stored: Stored) -> object:
        if self.on_load:
            raise self.on_load
        return super().load(slot, stored)


@pytest.fixture
def moody() -> Moody:
    """The manager under test."""
    return Moody()


@pytest.fixture
def flowstone_app(moody: Moody) -> FlowStone:
    """Has the moody manager on its shelf."""
    return FlowStone(namespace="test", mode="inline", io=iter([moody]))


def test_a_manager_of_ones_own_serves_by_its_name(fs: FlowStone, fs_test: TestKit) -> None:
    unstorable = object()
    fs.asset(name="orders", io="moody")(lambda: unstorable)
    fs.asset(name="same")(lambda orders: orders is unstorable)
    assert fs.run("same").get() is True
    assert fs.get("orders") is unstorable
    assert fs_test.assert_materialized("orders")["io"] == "moody"


def test_a_place_that_is_away_costs_an_attempt_and_is_named(fs: FlowStone, moody: Moody) -> None:
    attempts: list[int] = []

    @fs.asset(io="moody", retries=1)
    def orders(ctx: Context) -> int:
        attempts.append(ctx.attempt)
        return 1

    moody.on_store = ConnectionError("the bucket is away")
    run = fs.run(orders)
    assert run.get() == 1
    assert attempts == [1, 2]
    [retry] = [event for event in run.events() if event["event"] == "step.retry"]
    assert retry["detail"]["error"]["code"] == StorageError.code
    assert (
        "IO manager 'moody' could not store the value of asset 'test.orders'"
        in retry["detail"]["error"]["message"]
    )


def test_a_type_that_a_manager_cannot_take_costs_no_retry(fs: FlowStone, moody: Moody) -> None:
    fs.asset(name="orders", io="moody", retries=3)(lambda: 1)
    moody.on_store = TypeError("cannot serialize int")
    error = failure(fs, "orders").__cause__
    assert isinstance(error, InvalidValue)
    assert "cannot serialize int" in str(error)


@pytest.mark.parametrize(
    "answer",
    [
        "a path",
        Stored(1, ""),
        Stored(1, "", content=b"x", pointer={"a": 1}),
        Stored(-1, "", content=b"x"),
        Stored(1, "", content="x"),  # type: ignore[arg-type] # the mistake under test
        Stored(1, "", pointer={"at": object()}),
    ],
    ids=["text", "neither", "both", "negative", "text content", "object in pointer"],
)
def test_an_answer_that_no_row_can_hold_fails_the_attempt_and_not_the_worker(
    fs: FlowStone, moody: Moody, answer: object
) -> None:
    fs.asset(name="orders", io="moody")(lambda: 1)
    moody.answer = answer
    error = failure(fs, "orders").__cause__
    assert isinstance(error, StorageError | InvalidValue)
    assert "'moody'" in str(error)
    assert stored(fs) == 0


def test_an_error_while_loading_is_the_managers_and_not_the_assets(fs: FlowStone, moody: Moody) -> None:
    fs.asset(name="orders", io="moody")(lambda: 1)
    fs.asset(name="revenue")(lambda orders: orders)
    fs.run("orders")
    moody.on_load = OSError("no such object")
    error = failure(fs, "revenue").__cause__
    assert isinstance(error, StorageError)
    assert "could not load the value of asset 'test.orders'" in str(error)


def test_a_manager_that_is_not_there_is_told_before_the_work_begins(fs: FlowStone) -> None:
    from flowstone_celery.errors import InvalidOption

    called: list[int] = []
    fs.asset(name="orders", io="moodi")(lambda: called.append(1))
    with pytest.raises(InvalidOption, match=r"asks for the IO manager 'moodi'.*Did you mean 'moody'"):
        fs.run("orders")
    assert called == []
