"""`connection=`: a run, or an act on one, that happens if, and only if, the caller's transaction commits."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from sqlalchemy import Engine, create_engine, text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.orm import Session

from flowstone_celery import FlowStone
from flowstone_celery.errors import (
    CannotJoin,
    InvalidOption,
    NotCommitted,
    RunFailed,
    RunNotFound,
    WrongState,
)
from flowstone_celery.testing.kit import TestKit


@pytest.fixture
def url(fs_test: TestKit) -> str:
    assert fs_test.settings.database_url
    return fs_test.settings.database_url


@pytest.fixture
def engine(url: str) -> Iterator[Engine]:
    found = create_engine(url)
    yield found
    found.dispose()


@pytest.fixture
def shop(fs: FlowStone) -> Any:
    """Two assets, the second made from the first."""

    @fs.asset
    def orders() -> list[int]:
        return [1, 2, 3]

    @fs.asset
    def report(orders: list[int]) -> int:
        return len(orders)

    return report


WAYS: dict[str, Callable[[FlowStone, Any, Any], Any]] = {
    "run": lambda fs, asset, tx: fs.run(asset, connection=tx),
    "materialize": lambda fs, asset, tx: fs.materialize("orders", connection=tx),
    "materialize_all": lambda fs, asset, tx: fs.materialize_all(asset, connection=tx),
    "delay": lambda fs, asset, tx: asset.delay(connection=tx),
    "apply_async": lambda fs, asset, tx: asset.apply_async(connection=tx),
}


@pytest.mark.parametrize("way", WAYS)
def test_every_way_to_start_a_run_follows_their_commit(
    fs: FlowStone, shop: Any, engine: Engine, way: str
) -> None:
    with Session(engine) as session:
        dropped = WAYS[way](fs, shop, session)
        session.rollback()
        run = WAYS[way](fs, shop, session)
        with pytest.raises(NotCommitted):
            _ = run.state
        session.commit()
        assert run.state == "succeeded"  # inline: done by the time that commit() returns
    with pytest.raises(RunNotFound):
        fs.handle(dropped.id).ready()


def test_a_handle_says_why_its_run_cannot_be_read(fs: FlowStone, shop: Any, engine: Engine) -> None:
    with engine.connect() as connection:
        run = fs.run(shop, connection=connection)
        assert len(run.id) == 36
        for read in (run.ready, run.get, run.wait, run.progress):
            with pytest.raises(NotCommitted, match="not committed yet"):
                read()
        connection.rollback()
    with pytest.raises(RunNotFound, match="was rolled back"):
        run.wait(1)


def test_inline_on_a_connection_the_run_is_started_and_resume_does_it(
    fs: FlowStone, shop: Any, engine: Engine
) -> None:
    with engine.begin() as connection:
        run = fs.run(shop, connection=connection)
    assert run.state == "pending"
    assert fs.resume(run.id).get() == 3


def test_a_run_that_is_done_inline_may_use_the_session_that_committed(fs: FlowStone, engine: Engine) -> None:
    session = Session(engine)

    @fs.asset
    def stock() -> int:
        found: int = session.execute(text("SELECT 7")).scalar_one()
        return found

    run = fs.run(stock, connection=session)
    session.commit()
    assert run.get(1) == 7
    session.close()


def test_what_is_missing_is_decided_by_what_was_committed_before(
    fs: FlowStone, shop: Any, engine: Engine
) -> None:
    made = fs.run("orders")
    with Session(engine) as session, session.begin():
        assert fs.run("orders", connection=session) == made
        first = fs.run(shop, connection=session)
        second = fs.run(shop, connection=session)
    assert first != second
    assert [step["name"] for step in first.steps()] == ["test.report"]


def test_an_idempotency_key_holds_in_one_transaction_and_between_them(
    fs: FlowStone, shop: Any, engine: Engine
) -> None:
    with Session(engine) as session, session.begin():
        run = fs.materialize_all(shop, key="order-1", connection=session)
        assert fs.materialize_all(shop, key="order-1", connection=session) == run
    with Session(engine) as session, session.begin():
        assert fs.materialize_all(shop, key="order-1", connection=session) == run


def test_acts_on_a_run_follow_their_commit(
    fs: FlowStone, fs_test: TestKit, shop: Any, engine: Engine
) -> None:
    run = fs_test.start(shop)
    with Session(engine) as session:
        assert run.pause(connection=session)
        session.rollback()
        assert not run.row["paused"]
        assert run.pause(connection=session)
        session.commit()
        assert run.row["paused"]
        assert run.resume(connection=session, actor="ann")
        session.commit()
        assert not run.row["paused"]
        assert run.cancel(connection=session, reason="no stock")
        session.commit()
        assert run.state == "cancelled"
        assert run.retry(connection=session) is run
        session.commit()
    assert (run.state, run.row["round"]) == ("pending", 2)
    fs_test.assert_audit("run.resume", run, actor="ann")
    with Session(engine) as session, pytest.raises(InvalidOption, match="deadline"):
        run.retry(deadline=-1, connection=session)


def test_acts_of_a_handle_without_a_connection(fs: FlowStone, fs_test: TestKit) -> None:
    fails = [True]

    @fs.asset
    def shaky() -> int:
        if fails[0]:
            raise ValueError("not yet")
        return 1

    run = fs_test.start(shaky)
    assert run.pause()
    assert not run.pause()
    assert run.resume()
    assert not run.resume()
    fs_test.drain()
    with pytest.raises(RunFailed):
        run.get(1)
    fails.clear()
    fails.append(False)
    assert run.retry(drain=False).round == 2
    with pytest.raises(WrongState, match="pending"):
        run.retry()
    fs_test.drain()
    assert run.get(1) == 1
    assert run.retry(begin_at="test.shaky", drain=False).round == 3
    assert run.cancel()


# --- event loops ----------------------------------------------------------------------------------------------------------------


def looped(url: str, work: Callable[[AsyncEngine], Any]) -> Any:
    """What the work answers, in a loop of its own with an engine of its own."""

    async def main() -> Any:
        engine = create_async_engine(url)
        try:
            return await work(engine)
        finally:
            await engine.dispose()

    return asyncio.run(main())  # returns when what it handed to threads has ended


def test_an_async_session_carries_runs_and_acts(fs: FlowStone, shop: Any, url: str) -> None:
    async def work(engine: AsyncEngine) -> list[Any]:
        async with AsyncSession(engine) as session:
            dropped = await fs.aio.run(shop, connection=session)
            await session.rollback()
            kept = await fs.aio.run(shop, connection=session)
            with pytest.raises(NotCommitted):
                await asyncio.to_thread(kept.ready)
            async with session.begin_nested() as savepoint:
                inner = await fs.aio.materialize("orders", connection=session)
                await savepoint.rollback()
            all_of_it = await fs.aio.materialize_all(shop, key="k", connection=session)
            assert await fs.aio.materialize_all(shop, key="k", connection=session) == all_of_it
            assert await fs.aio.cancel(all_of_it, connection=session)
            await session.commit()
        return [dropped, inner, kept, all_of_it]

    dropped, inner, kept, cancelled = looped(url, work)
    assert kept.state == "succeeded"  # inline: done in a thread beside the loop
    assert cancelled.state == "cancelled"
    for run in (dropped, inner):
        with pytest.raises(RunNotFound):
            _ = run.state


def test_an_async_connection_carries_runs_and_acts(
    fs: FlowStone, fs_test: TestKit, shop: Any, url: str
) -> None:
    async def work(engine: AsyncEngine) -> list[Any]:
        async with engine.begin() as connection:
            kept = await fs.aio.run(shop, connection=connection)
            inside = await connection.run_sync(lambda theirs: fs.run(shop, connection=theirs))
        async with engine.connect() as connection:
            dropped = await fs.aio.run(shop, connection=connection)
            assert await fs.aio.pause(kept, connection=connection)
            await connection.rollback()
            assert await fs.aio.cancel(inside, connection=connection)
            await connection.commit()
        return [kept, inside, dropped]

    kept, inside, dropped = looped(url, work)
    fs_test.sweep()
    assert (kept.state, kept.row["paused"]) == ("pending", False)
    assert inside.state == "cancelled"
    with pytest.raises(RunNotFound):
        fs.handle(dropped.id).ready()


def test_without_a_connection_the_async_verbs_do_it_at_once(fs: FlowStone, shop: Any) -> None:
    async def work() -> None:
        run = await fs.aio.run(shop)
        assert run.state == "succeeded"
        assert (await fs.aio.retry(run, force=True, drain=False)).round == 2
        assert await fs.aio.pause(run)
        assert await fs.aio.resume(run)
        assert await fs.aio.cancel(run)

    asyncio.run(work())


def test_a_value_that_is_there_starts_nothing_in_their_transaction(
    fs: FlowStone, shop: Any, url: str
) -> None:
    made = fs.run(shop)

    async def work(engine: AsyncEngine) -> Any:
        async with engine.begin() as connection:
            return await fs.aio.run(shop, connection=connection)

    assert looped(url, work) == made


def test_each_door_refuses_the_other_s_connection(fs: FlowStone, shop: Any, url: str, engine: Engine) -> None:
    async def work(loop_engine: AsyncEngine) -> None:
        async with loop_engine.connect() as connection:
            with pytest.raises(CannotJoin, match=r"asynchronous.*fs\.aio\.run"):
                fs.run(shop, connection=connection)
        async with AsyncSession(loop_engine) as session:
            with pytest.raises(CannotJoin, match=r"asynchronous.*fs\.aio\.run"):
                fs.run(shop, connection=session)
        with engine.connect() as connection, pytest.raises(CannotJoin, match=r"fs\.run"):
            await fs.aio.run(shop, connection=connection)

    looped(url, work)
