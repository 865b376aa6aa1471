"""A window: pieces of work side by side in one event loop, as many at a time as it is wide.

Each piece has three parts. What it needs is loaded and what it made is stored in helper threads, which may block; only its code, a
coroutine, runs in the loop. A piece is settled as soon as it has ended, and its place is taken by the next one. The window knows
neither steps nor items: where pieces come from, and how long new ones may begin, is its source's affair.

Claims and settlements have helpers of their own, so that slow loading keeps nobody's end from being written. All helpers together
are as many as the connections that the process keeps.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from contextvars import Context, copy_context
from functools import partial
from typing import Any, Final, Protocol, TypeVar

from flowstone_celery import faults

T = TypeVar("T")

_PULSE: Final = 0.2
"""Seconds between two looks for what is to end."""
_SOONEST: Final = 0.05
_LATEST: Final = 0.5
"""Seconds after which a window with free places looks for more work: soon at first, then seldom."""
_ROWS_THREADS: Final = 2


class Unit(Protocol):
    """One piece of work."""

    @property
    def context(self) -> Context:
        """The context variables of its code."""

    def load(self) -> bool:
        """In a helper: what its code needs is there; False if there is none to run."""

    def run(self) -> Coroutine[Any, Any, object]:
        """In the loop: its code. What it raises is its own affair."""

    def runs(self, cancel: Callable[[], None]) -> None:
        """Its code runs in the loop; `cancel`, from any thread, makes it hear that it is to end."""

    def is_cancelled_now(self) -> bool:
        """In the loop, after such a `cancel`: whether its code is to be cancelled at the await where it stands."""

    def store(self, error: BaseException | None) -> None:
        """In a helper: what its code made is stored. `error` is what ended it from outside its own frames."""

    def settle(self, *, last: bool) -> tuple[Unit | None, bool]:
        """In a helper: it has ended, and what takes its place has begun, if there is any.

        `last`: nothing else is in the window. Answers what follows, and whether more than that may be ready now.
        """


class Source(Protocol):
    """Where a window's work comes from."""

    def may_take(self) -> bool:
        """Whether another piece may begin."""

    def take(self) -> Unit | None:
        """In a helper: the next piece, or None if none is ready."""

    def pulse(self) -> None:
        """In a thread, now and then: what is to end hears of it."""

    def close(self) -> None:
        """Nothing begins any more."""

    def leave(self) -> None:
        """The process is asked to go: what runs is interrupted."""


class Window:
    """Runs pieces of work side by side until none is left."""

    def __init__(self, source: Source, *, width: int, helpers: int) -> None:
        """Open nothing yet.

        Args:
            source: where further pieces come from.
            width: how many run at a time.
            helpers: threads for what blocks, the two of claims and settlements included.
        """
        self._source = source
        self._width = width
        self._loaders = max(1, helpers - _ROWS_THREADS)
        self._most_loading = 2 * self._loaders
        self._places: set[asyncio.Task[None]] = set()
        self._taking = False
        self._closing = False
        self._loading = 0
        self._error: BaseException | None = None

    def run(self, first: Unit) -> None:
        """This piece, and all that were taken beside and after it, have ended.

        Raises:
            BaseException: what one of them could not be settled for, once all have ended; an injected fault at once.
        """
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            self._run(first)
        else:  # inline work in a notebook or a server: their loop goes on when this thread does
            with ThreadPoolExecutor(1, "flowstone-window") as thread:
                thread.submit(copy_context().run, self._run, first).result()
        if self._error is not None:
            raise self._error

    def _run(self, first: Unit) -> None:
        self._rows = ThreadPoolExecutor(min(_ROWS_THREADS, self._width), "flowstone-rows")
        self._loads = ThreadPoolExecutor(self._loaders, "flowstone-loads")
        self._eyes = ThreadPoolExecutor(1, "flowstone-pulse")
        try:
            with asyncio.Runner() as runner:
                self._drive(runner.get_loop(), first)
        finally:
            for each in (self._rows, self._loads, self._eyes):
                each.shutdown(cancel_futures=True)

    def _drive(self, loop: asyncio.AbstractEventLoop, first: Unit) -> None:
        """Run the loop to the window's end. What a signal raises between two pieces of code asks the process to go."""
        self._loop, self._news = loop, asyncio.Event()
        watch = loop.create_task(self._watch())
        self._open(first)
        while True:
            try:
                loop.run_until_complete(self._fill())
            except (KeyboardInterrupt, SystemExit) as asked:
                self._failed(asked)
            else:
                break
        watch.cancel()

    # --- in the loop ----------------------------------------------------------------------------------------------------------

    async def _fill(self) -> None:
        """Return when no place is taken; until then free ones are filled as soon as there is work for them."""
        pause = _SOONEST
        while self._places and not self._is_aborted():
            self._news.clear()
            if self._has_room() and await self._take():
                pause = _SOONEST
                continue
            pause = _SOONEST if await self._heard(pause) else min(pause * 2, _LATEST)

    def _has_room(self) -> bool:
        return (
            len(self._places) < self._width
            # What cannot be loaded soon would only wait here, and its timeout run; another process may have room for it.
            and self._loading < self._most_loading
            and not self._closing
            and self._error is None
            and self._source.may_take()
        )

    async def _take(self) -> bool:
        self._taking = True
        try:
            unit = await self._in(self._rows, self._source.take)
        except Exception as error:  # noqa: BLE001 - raised again by `run` when all have ended
            self._failed(error)
            return False
        finally:
            self._taking = False
        if unit is not None:
            self._open(unit)
        return unit is not None

    async def _heard(self, seconds: float) -> bool:
        """Whether something happened within so many seconds that makes another look worth while."""
        try:
            await asyncio.wait_for(self._news.wait(), seconds)
        except TimeoutError:
            return False
        return True

    def _open(self, unit: Unit) -> None:
        place = self._loop.create_task(self._place(unit))
        self._places.add(place)

    async def _place(self, unit: Unit | None) -> None:
        """One place: this piece of work, and those that follow it."""
        try:
            while unit is not None:
                unit = await self._one(unit)
        except asyncio.CancelledError:
            raise
        except BaseException as error:  # noqa: BLE001 - raised again by `run` when all have ended
            self._failed(error)
        finally:
            self._places.discard(asyncio.current_task())
            if not self._places or self._is_aborted():
                self._news.set()

    async def _one(self, unit: Unit) -> Unit | None:
        if await self._loaded(unit):
            await self._in(self._loads, partial(unit.store, await self._code(unit)))
        last = len(self._places) == 1 and not self._taking
        self._closing = last
        try:
            following, more = await self._in(self._rows, partial(unit.settle, last=last))
        finally:
            self._closing = False
        if more:
            self._news.set()
        return following

    async def _loaded(self, unit: Unit) -> bool:
        self._loading += 1
        try:
            return await self._in(self._loads, unit.load)
        finally:
            if self._loading == self._most_loading:
                self._news.set()
            self._loading -= 1

    async def _code(self, unit: Unit) -> BaseException | None:
        """Its code has ended; answers what ended it from outside its own frames."""
        task = self._loop.create_task(unit.run(), context=unit.context)
        unit.runs(lambda: self._cancel(task, unit))
        found: BaseException | None = None
        try:
            await task
        except BaseException as error:  # noqa: BLE001 - judged by the piece of work
            found = error
        place = asyncio.current_task()
        if (
            place is None or place.cancelling()
        ):  # not its code alone, whatever that made of it: the window is aborted
            raise asyncio.CancelledError
        return found

    def _cancel(self, task: asyncio.Task[object], unit: Unit) -> None:
        def cancel() -> None:
            if not task.done() and unit.is_cancelled_now():
                task.cancel()

        with suppress(RuntimeError):  # the loop is closed: the code has ended
            self._loop.call_soon_threadsafe(cancel)

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(_PULSE)
            await self._in(self._eyes, self._source.pulse)

    async def _in(self, threads: ThreadPoolExecutor, act: Callable[[], T]) -> T:
        return await self._loop.run_in_executor(threads, act)

    # --- its end --------------------------------------------------------------------------------------------------------------

    def _failed(self, error: BaseException) -> None:
        """Nothing new begins; `run` raises the first of these errors."""
        self._error = self._error or error
        self._source.close()
        if not isinstance(error, Exception):
            self._source.leave()

    def _is_aborted(self) -> bool:
        """An injected fault stands for the process's death: nothing that runs is waited for."""
        return isinstance(self._error, faults.FaultInjectedError)
