"""What this process has set up of the declared resources: once, when the first step asks, and anew when it fails its check.

A process has its own, whatever it inherited: what a parent has set up is never used and never torn down by its child. Set-up, check
and teardown run on a thread of their own, so that one that hangs is given up after its timeout, and a step that waits for it still
hears that it is to end. What is replaced is torn down when the last step that uses it has ended.
"""

from __future__ import annotations

import atexit
import ctypes
import math
import os
import threading
import time
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from flowstone_celery.assets.resource import Opened, ResourceSpec
from flowstone_celery.assets.resource_book import ResourceBook
from flowstone_celery.assets.resource_state import (
    Attempt,
    Cell,
    Here,
    Instance,
    ResourceState,
    ResourceStatus,
    thread_for,
)
from flowstone_celery.assets.resource_tries import attempt_it, give_up
from flowstone_celery.errors import ResourceUnavailable

if TYPE_CHECKING:
    from flowstone_celery.core.model import Call

_LOOK_EVERY: Final = 0.05
"""Seconds after which a step that waits asks whether it is to end."""
_HANGING_AT_MOST: Final = 3
"""Threads of one resource that may hang at once; while so many do, no other try is made."""
_NOTHING: Final[Mapping[str, Any]] = MappingProxyType({})


class Resources:
    """The resources of one house in this process."""

    def __init__(self, book: ResourceBook) -> None:
        """Set up nothing yet."""
        self._book = book
        self._here = Here()
        self._overrides: Mapping[str, Instance] = {}
        _rooms.add(self)

    # --- use ------------------------------------------------------------------------------------------------------------------

    @contextmanager
    def lent(
        self, names: tuple[str, ...], *, asset: str, call: Call | None = None
    ) -> Iterator[Mapping[str, Any]]:
        """In the block, the values of exactly these resources (FS-9); what of them is not set up yet is set up first.

        Args:
            names: resources, in any order.
            asset: who asks, for the sentences of errors and events.
            call: the step that asks; it hears, while it waits, that it is to end.

        Raises:
            ResourceUnavailable: one of them, or one that it requires, could not be set up; says which, and why.
            UnknownResource: one of them is not declared.
        """
        if not names:
            yield _NOTHING
            return
        here, overrides = self._here, self._overrides
        held: dict[str, Instance] = {}
        try:
            for spec in self._book.order(names, known=overrides):
                _Asking(here, spec, asset, call).hold(held, overrides.get(spec.name))
            if here.live:
                self._remember_the_end()
            yield MappingProxyType({name: held[name].opened.value for name in names})
        finally:
            here.release(held)

    def _remember_the_end(self) -> None:
        """This process tears down what it has when it ends, unless it is told to do so before."""
        if not self._ends_by_itself:
            self._ends_by_itself = True
            atexit.register(self.close)

    _ends_by_itself = False

    def close(self) -> None:
        """All that this process has set up is torn down, the newest first; what a step asks for later is set up anew."""
        here = self._here
        with here.lock:
            for cell in here.cells.values():
                if (attempt := cell.attempt) is not None:
                    cell.give_up(attempt)
                    attempt.error = "this process lets its resources go"
                    attempt.over.set()
        while (instance := here.newest()) is not None:
            here.tear_down(instance)
        with here.lock:
            for cell in here.cells.values():
                cell.becomes(ResourceState.UNUSED)
        self._ends_by_itself = False
        atexit.unregister(self.close)

    # --- tests and status -----------------------------------------------------------------------------------------------------

    @contextmanager
    def override(self, values: Mapping[str, Any]) -> Iterator[None]:
        """In the block these values stand for the resources of these names; they are neither set up nor torn down.

        What was made from the real one of them is made anew from the other, and again afterwards.

        Raises:
            UnknownResource: a name is not declared; suggests the nearest.
        """
        fakes = {name: Instance(self._book.fetch(name), Opened(value)) for name, value in values.items()}
        before = self._overrides
        self._overrides = {**before, **fakes}
        try:
            yield
        finally:
            self._overrides = before
            with self._here.lock:
                for fake in fakes.values():
                    self._here.retire_made_from(fake)
            self._here.sweep()

    def time_passes(self, seconds: float) -> None:
        """So many seconds more have passed for pauses and checks: tests move their clock."""
        with self._here.lock:
            for cell in self._here.cells.values():
                cell.retry_at -= seconds
                if cell.instance is not None:
                    cell.instance.checked -= seconds

    def status(self) -> list[ResourceStatus]:
        """How each declared resource stands in this process, by name."""
        overridden, here = self._overrides.keys(), self._here
        with here.lock:
            cells = {spec.name: here.cells.get(spec.name) or Cell() for spec in self._book}
            return [cell.status(name, overridden=name in overridden) for name, cell in cells.items()]

    # --- fork -----------------------------------------------------------------------------------------------------------------

    def inherit(self) -> None:
        """This process, just forked, begins with nothing. What its parent has set up is kept for ever, so that nothing here ends it."""
        old, self._here = self._here, Here()
        if old.live:
            # A second set-up of one object puts other things into its attributes; the former ones must not be collected.
            attributes = [dict(getattr(each.opened.owner, "__dict__", {})) for each in old.live]
            # A reference that is never given back: not even the interpreter's end runs a generator's `finally` or a `__del__`.
            ctypes.pythonapi.Py_IncRef(ctypes.py_object((old, attributes)))


class _Asking:
    """One step that asks for one resource."""

    def __init__(self, here: Here, spec: ResourceSpec, asset: str, call: Call | None) -> None:
        self._here = here
        self._spec = spec
        self._asset = asset
        self._call = call
        self._begun = time.monotonic()

    def hold(self, held: dict[str, Instance], override: Instance | None) -> None:
        """A healthy instance is among those that are held, which hold all that it requires; or the one that stands for it."""
        upstream = {} if override is not None else {name: held[name] for name in self._spec.requires}
        while self._spec.name not in held:
            self._here.sweep()
            with self._here.lock:
                cell = self._here.cell(self._spec.name)
                found = override or self._here.fitting(cell, upstream)
                if found is not None and not found.wants_check(self._begun):
                    found.users += 1
                    held[self._spec.name] = found
                    return
                leaving = self._here.departing(self._spec.name) if found is None else None
                attempt, mine = cell.attempt, cell.attempt is None and leaving is None
                if mine:
                    attempt = self._begin(cell, found, upstream)
            if attempt is None:
                self._wait_a_moment(leaving)
                continue
            if mine:
                self._run(attempt)
            self._wait(attempt)

    def _begin(self, cell: Cell, found: Instance | None, upstream: Mapping[str, Instance]) -> Attempt:
        """A try that is about to run: a check of what was found, else a set-up (under the lock)."""
        spec, now = self._spec, time.monotonic()
        if len(cell.hanging) >= _HANGING_AT_MOST:
            names = ", ".join(each.thread.name for each in cell.hanging if each.thread)
            raise self._unavailable(f"{len(cell.hanging)} tries hang still, in the threads {names}")
        if found is None and cell.state is ResourceState.FAILED and now < cell.retry_at:
            raise self._unavailable(f"{cell.error}; it is tried again in {cell.retry_at - now:.1f} s")
        cell.attempt = attempt = Attempt(spec, self._asset, upstream, found, now + (spec.timeout or math.inf))
        for each in (*upstream.values(), *filter(None, [found])):
            each.users += 1
        return attempt

    def _run(self, attempt: Attempt) -> None:
        """The try runs: on a thread of its own, or without a timeout on this one."""

        def run() -> None:
            attempt.by = threading.get_ident()
            attempt_it(self._here, attempt)

        if not self._spec.timeout:
            attempt.by = threading.get_ident()
            attempt_it(self._here, attempt, self._call)
            return
        attempt.thread = thread_for(self._spec.name, run)
        try:
            attempt.thread.start()
        except RuntimeError:  # no more threads: at the end of the process, or of what it may have
            run()

    def _wait(self, attempt: Attempt) -> None:
        """Return when the try is over.

        Raises:
            ResourceUnavailable: it failed, or was given up after its timeout.
        """
        while not self._wait_a_moment(attempt.over):
            if attempt.by == threading.get_ident():
                raise self._unavailable("its own set-up asks for it")
            if time.monotonic() >= attempt.ends:
                give_up(self._here, attempt)
        if attempt.error is not None:
            raise self._unavailable(attempt.error) from attempt.cause

    def _wait_a_moment(self, event: threading.Event | None) -> bool:
        """Whether the event came; if not, and the step is to end, it ends here."""
        if event is None or event.wait(_LOOK_EVERY):
            return True
        if self._call is not None:
            self._call.check()
        return False

    def _unavailable(self, why: str) -> ResourceUnavailable:
        return ResourceUnavailable(
            f"{self._asset!r} requires the resource {self._spec.name!r}, which could not be set up: {why}",
            hint=f"a later attempt tries again; it is declared at {self._spec.place}",
            resource=self._spec.name,
            asset=self._asset,
            cause=why,
        )


_rooms: weakref.WeakSet[Resources] = weakref.WeakSet()


def _after_fork() -> None:
    for room in list(_rooms):
        room.inherit()


os.register_at_fork(after_in_child=_after_fork)
