"""Resources as users see them, in one process."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest
from celery import Celery

from flowstone_celery import Context, FlowStone, Pipeline
from flowstone_celery.errors import DuplicateResource, ResourceUnavailable, RunFailed, UnknownResource
from flowstone_celery.telemetry import recorded

if TYPE_CHECKING:
    from flowstone_celery.config import Settings
    from flowstone_celery.testing.kit import TestKit


@pytest.fixture
def told(fs: FlowStone) -> list[str]:
    """A warehouse that needs secrets, and mail; what happens to them."""
    happened: list[str] = []

    @fs.resource
    def secrets() -> str:
        return "s3cret"

    @fs.resource
    def warehouse(secrets: str) -> Iterator[dict[str, str]]:
        happened.append("+warehouse")
        yield {"opened with": secrets}
        happened.append("-warehouse")

    @fs.resource
    class Mail:
        def setup(self) -> None:
            happened.append("+mail")

    return happened


def test_the_context_has_exactly_what_the_asset_requires(fs: FlowStone, told: list[str]) -> None:
    seen: list[Any] = []

    @fs.asset(requires=["warehouse"])
    def orders(warehouse: dict[str, str], ctx: Context) -> int:
        seen.append((warehouse, dict(ctx.resources)))
        return 1

    @fs.asset
    def revenue(orders: int, ctx: Context) -> int:
        seen.append(dict(ctx.resources))
        return orders

    fs.check()
    assert fs.run("revenue").get() == 1
    opened = {"opened with": "s3cret"}
    assert seen == [(opened, {"warehouse": opened}), {}]
    assert told == ["+warehouse"]
    assert {each.name: each.state for each in fs.resources()} == {
        "mail": "unused",
        "secrets": "ready",
        "warehouse": "ready",
    }
    fs.close_resources()
    assert told == ["+warehouse", "-warehouse"]


def test_closing_a_flowstone_tears_down_what_it_set_up_in_this_process(flowstone_settings: Settings) -> None:
    house, told = FlowStone(namespace="test", mode="inline", settings=flowstone_settings), []

    @house.resource
    def warehouse() -> Iterator[int]:
        yield 1
        told.append("-")

    @house.asset(requires=["warehouse"])
    def orders(warehouse: int) -> int:
        return warehouse

    assert house.run(orders).get() == 1
    house.close()
    assert told == ["-"]


def test_an_async_asset_takes_resources_too(fs: FlowStone, told: list[str]) -> None:
    @fs.asset(requires=["warehouse"])
    async def orders(warehouse: dict[str, str]) -> str:
        return warehouse["opened with"]

    assert fs.run("orders").get() == "s3cret"


def test_a_resource_that_stays_on_its_thread_is_declared_with_timeout_0(fs: FlowStone) -> None:
    @fs.resource(timeout=0)
    def ledger() -> Iterator[sqlite3.Connection]:
        with sqlite3.connect(":memory:") as connection:
            yield connection

    @fs.asset(requires=["ledger"])
    def orders(ledger: sqlite3.Connection) -> int:
        return int(ledger.execute("SELECT 41 + 1").fetchone()[0])

    assert fs.run("orders").get() == 42


def test_a_step_fails_while_its_resource_is_away_and_the_retry_finds_it(
    fs: FlowStone, fs_test: TestKit
) -> None:
    outcomes: Iterator[Any] = iter([ConnectionError("no route"), "there"])

    @fs.resource(retry_after=50)
    def warehouse() -> str:
        found = next(outcomes)
        if isinstance(found, Exception):
            raise found
        return str(found)

    calls: list[int] = []

    @fs.asset(requires=["warehouse"], retries=1, retry_delay=60)
    def orders(warehouse: str, ctx: Context) -> str:
        calls.append(ctx.attempt)
        return warehouse

    run = fs_test.start(orders)
    fs_test.step()
    assert [each.name for each in fs.resources(failed=True)] == ["warehouse"]
    fs_test.drain(run)
    assert run.get() == "there"
    assert calls == [2], "a function whose resource is away is not called"
    assert fs_test.events(run).count("step.retry test.orders") == 1
    assert fs.resources(failed=True) == []


def test_checks_come_due_on_the_clock_of_the_test(fs: FlowStone, fs_test: TestKit) -> None:
    checked: list[int] = []

    @fs.resource(health=checked.append, health_every=3600)
    def warehouse() -> int:
        return 1

    @fs.asset(requires=["warehouse"])
    def orders(warehouse: int) -> int:
        return warehouse

    fs_test.run(orders)
    fs_test.run(orders)
    assert checked == []
    fs_test.clock.advance(hours=1)
    fs_test.run(orders)
    assert checked == [1]


def test_without_retries_the_run_says_which_resource_and_why(fs: FlowStone) -> None:
    @fs.resource
    def warehouse() -> str:
        raise ConnectionError("no route to host")

    @fs.asset(requires=["warehouse"])
    def orders() -> int:
        return 1

    run = fs.run("orders")
    with pytest.raises((ResourceUnavailable, RunFailed)) as caught:
        run.get()
    for part in ("test.orders", "warehouse", "no route to host"):
        assert part in str(caught.value)


def test_an_interrupt_reaches_a_step_that_waits_for_its_resource(fs: FlowStone) -> None:
    import threading

    gate = threading.Event()

    @fs.resource
    def warehouse() -> bool:
        return gate.wait(30)

    @fs.asset(requires=["warehouse"], timeout=0.3)
    def orders() -> int:
        return 1

    run = fs.run("orders")
    gate.set()
    assert run.state == "failed"
    assert "FS-2005" in str(run.steps()[0]["error"])


def test_fakes_stand_for_resources_in_tests(fs: FlowStone, fs_test: TestKit, told: list[str]) -> None:
    @fs.asset(requires=["warehouse", "mail"])
    def orders(ctx: Context) -> list[str]:
        return [str(ctx.resources["warehouse"]), str(ctx.resources["mail"])]

    with fs_test.override(warehouse="fake"), fs.override(mail="post"):
        assert fs_test.run(orders).get() == ["fake", "post"]
    assert told == []


def test_a_wrong_override_is_told(fs: FlowStone, told: list[str]) -> None:
    with pytest.raises(UnknownResource, match="Did you mean 'warehouse'"), fs.override(warhouse=1):
        pass


def test_a_run_whose_resource_is_not_declared_does_not_begin(fs: FlowStone, told: list[str]) -> None:
    @fs.asset(requires=["warehous"])
    def orders() -> int:
        return 1

    with pytest.raises(UnknownResource, match="Did you mean 'warehouse'"):
        fs.check()
    with pytest.raises(UnknownResource):
        fs.run("orders")
    with pytest.raises(UnknownResource):
        fs.run("orders", force=True)


def test_what_is_declared_stays_what_it_is(fs: FlowStone) -> None:
    def made() -> int:
        return 1

    class Warehouse:
        def setup(self) -> None: ...

    assert fs.resource(made) is made
    assert fs.resource(name="other")(made) is made
    assert fs.resource(Warehouse) is Warehouse


def test_a_pipelines_resources_belong_to_every_flowstone(own_process: None) -> None:
    sales = Pipeline("sales")

    @sales.resource
    def warehouse() -> int:
        return 1

    before, stock = FlowStone(mode="inline", namespace="a"), Pipeline("stock")

    @stock.resource(name="mail")
    def _mail() -> int:
        return 2

    after = FlowStone(mode="inline", namespace="b")
    for house in (before, after):
        assert [each.name for each in house.resources()] == ["mail", "warehouse"]
    with pytest.raises(DuplicateResource, match="declared twice"):
        stock.resource(warehouse)
    with pytest.raises(DuplicateResource, match="declared twice"):
        before.resource(warehouse)


def test_attaching_and_declaring_sets_nothing_up() -> None:
    house = FlowStone(Celery("shop", broker="redis://localhost:1/0", set_as_current=False))

    @house.resource
    def warehouse() -> int:
        raise AssertionError

    house.check()
    assert house.resources()[0].state == "unused"
    house.close()


def test_every_turn_of_a_resource_is_an_event(fs: FlowStone) -> None:
    answers = iter([False, True])

    @fs.resource(health=lambda _: next(answers), health_every=0)
    def warehouse() -> int:
        return 1

    @fs.asset(requires=["warehouse"])
    def orders() -> int:
        return 1

    with recorded() as events:
        fs.run("orders", force=True)
        fs.run("orders", force=True)
        fs.close_resources()
    turns = [each.name.rpartition(".")[2] for each in events if ".resource." in each.name]
    assert turns == ["setup", "unhealthy", "teardown", "setup", "teardown"]
