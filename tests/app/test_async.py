"""`async def` assets inline and in the test kit: those of one run await side by side."""

from __future__ import annotations

import asyncio
import contextvars
import threading
import time
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from flowstone_celery import All, Context, FlowStone, Skip, Static, Value
from flowstone_celery.assets.making import is_making
from flowstone_celery.core import doctor
from flowstone_celery.errors import ConfigError, RunFailed, StepTimeout

if TYPE_CHECKING:
    from collections.abc import Iterator

    from flowstone_celery.config import Settings
    from flowstone_celery.testing.kit import TestKit

PAGES = [f"p{number}" for number in range(60)]


class Meeting:
    """Lets nobody go on before so many are there."""

    def __init__(self, number: int) -> None:
        self._number = number
        self._here = 0
        self._all = asyncio.Event()

    async def join(self) -> None:
        self._here += 1
        if self._here == self._number:
            self._all.set()
        async with asyncio.timeout(20):
            await self._all.wait()


@pytest.fixture
def real(flowstone_settings: Settings) -> Iterator[FlowStone]:
    """An inline FlowStone in real time: without the test kit."""
    house = FlowStone(namespace="shop", mode="inline", settings=flowstone_settings)
    yield house
    assert doctor.examine(house.database) == []
    house.close()


def _many(fs: FlowStone, meeting: Meeting) -> None:
    @fs.asset(partitions=Static(PAGES))
    async def page(ctx: Context) -> str:
        await meeting.join()
        return str(ctx.partition)

    @fs.asset(mappings={"page": All()})
    def book(page: dict[str, str]) -> int:
        return len(set(page.values()))


def test_async_steps_of_one_inline_run_await_side_by_side(real: FlowStone) -> None:
    _many(real, Meeting(len(PAGES)))
    assert real.run("book").get() == len(PAGES)


def test_they_do_in_the_test_kit_too(fs_test: TestKit) -> None:
    _many(fs_test.fs, Meeting(len(PAGES)))
    assert fs_test.fs.run("book").get() == len(PAGES)


def test_they_do_beside_a_loop_that_runs_already(real: FlowStone) -> None:
    _many(real, Meeting(len(PAGES)))

    async def notebook() -> object:
        return real.run("book").get()

    assert asyncio.run(notebook()) == len(PAGES)


def test_each_has_its_own_context_outcome_and_attempts(fs: FlowStone) -> None:
    word: contextvars.ContextVar[str] = contextvars.ContextVar("word", default="none")
    met = Meeting(3)

    @fs.asset
    async def one() -> Value:
        word.set("one")
        await met.join()
        return Value(word.get(), metadata={"making": is_making()})

    @fs.asset(retries=1, retry_delay=0)
    async def two(ctx: Context) -> str:
        before = word.get()
        if ctx.attempt == 1:
            await met.join()
            raise ConnectionError("away")
        return before

    @fs.asset
    async def three() -> Skip:
        await met.join()
        return Skip("nothing new")

    @fs.asset(optional_deps=["three"])
    async def all_of_them(one: str, two: str, three: object) -> list[object]:
        return [one, two, three]

    run = fs.run("all_of_them")
    assert run.get() == ["one", "none", None]
    assert {step["name"]: step["attempt"] for step in run.steps()}["test.two"] == 2


def test_loading_and_storing_never_hold_the_loop(fs: FlowStone) -> None:
    threads: dict[str, int] = {}

    @fs.resource
    def client() -> Iterator[str]:
        threads["set-up"] = threading.get_ident()
        yield "client"

    @fs.asset(requires=["client"])
    async def fetched(client: str) -> str:
        threads["code"] = threading.get_ident()
        return client

    assert fs.run(fetched).get() == "client"
    assert threads["code"] == threading.get_ident()
    assert threads["set-up"] != threads["code"]


def test_a_resource_is_given_back_when_the_coroutine_ends_however_it_does(fs: FlowStone) -> None:
    ended: list[str] = []

    @fs.resource
    def good() -> Iterator[str]:
        yield "good"
        ended.append("good")

    @fs.resource
    def bad() -> str:
        raise ConnectionError("no route")

    @fs.asset(requires=["good"])
    async def fails(good: str) -> None:
        raise ValueError("boom")

    @fs.asset(requires=["bad"])
    async def never(bad: str) -> None:
        raise AssertionError("it has no resource")

    with pytest.raises(RunFailed, match="boom"):
        fs.run(fails).get()
    with pytest.raises(RunFailed, match="could not be set up"):
        fs.run(never).get()
    fs._room.close()
    assert ended == ["good"]


def test_a_timeout_ends_its_own_step_inline(real: FlowStone) -> None:
    met = Meeting(2)

    @real.asset(timeout=0.3)
    async def late() -> None:
        await met.join()
        await asyncio.sleep(60)

    @real.asset
    async def patient() -> str:
        await met.join()
        await asyncio.sleep(0.8)
        return "done"

    @real.asset(optional_deps=["late"])
    def both(late: object, patient: str) -> list[object]:
        return [late, patient]

    begun = time.monotonic()
    run = real.run(both)
    with pytest.raises(RunFailed) as failure:
        run.get()
    assert StepTimeout.code in str(failure.value.to_dict())
    assert real.get("both") == [None, "done"]
    assert time.monotonic() - begun < 20


def test_a_run_that_is_cancelled_inline_ends_all_that_await(real: FlowStone) -> None:
    met, ended = Meeting(4), []

    @real.asset(partitions=Static(["a", "b", "c"]))
    async def page(ctx: Context) -> None:
        try:
            await met.join()
            await asyncio.sleep(60)
        finally:
            ended.append(str(ctx.partition))

    @real.asset
    async def cancels(ctx: Context) -> None:
        await met.join()
        await asyncio.to_thread(real.handle(ctx.run_id).cancel)
        await asyncio.sleep(60)

    @real.asset(mappings={"page": All()})
    def book(page: dict[str, str], cancels: object) -> None:
        raise AssertionError("it was cancelled")

    assert real.run(book).status == "cancelled"
    assert sorted(ended) == ["a", "b", "c"]


def test_the_width_must_be_a_number_of_steps(flowstone_settings: Settings) -> None:
    with pytest.raises(ConfigError, match="ASYNC_WIDTH"):
        replace(flowstone_settings, async_width=0)


def test_every_step_begins_in_the_context_of_whoever_asked(fs: FlowStone) -> None:
    who: contextvars.ContextVar[str] = contextvars.ContextVar("who", default="nobody")

    @fs.asset(partitions=Static(PAGES))
    async def page() -> str:
        return who.get()

    @fs.asset(mappings={"page": All()})
    async def book(page: dict[str, str]) -> list[str]:
        return [who.get(), *sorted(set(page.values()))]

    who.set("me")
    assert fs.run("book").get() == ["me", "me"]
