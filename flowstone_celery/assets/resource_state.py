"""What one process knows of its resources: instances and who uses them, tries that are under way, and their end."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import Final

from flowstone_celery.assets.resource import Opened, ResourceSpec
from flowstone_celery.telemetry import emit


class ResourceState(StrEnum):
    """How a resource stands in this process."""

    UNUSED = "unused"
    READY = "ready"
    FAILED = "failed"
    UNHEALTHY = "unhealthy"


@dataclass(frozen=True, slots=True)
class ResourceStatus:
    """One resource as this process knows it (FS-61)."""

    name: str
    state: ResourceState
    since: datetime | None
    """Aware UTC; None for one that was never asked for."""
    error: str | None
    """Why it could not be set up, or was found unhealthy."""
    hanging: tuple[str, ...] = ()
    """The names of threads in which a set-up or a check of it hangs."""
    overridden: bool = False


@dataclass(slots=True, eq=False)
class Instance:
    """One resource that was set up. Its users are steps, tries, and instances that were made from it."""

    spec: ResourceSpec
    opened: Opened
    upstream: Mapping[str, Instance] = field(default_factory=dict)
    users: int = 0
    retired: bool = False
    """Whether it serves nobody new."""
    checked: float = field(default_factory=time.monotonic)
    gone: threading.Event = field(default_factory=threading.Event)
    """Set once it is torn down."""

    def wants_check(self, begun: float) -> bool:
        """Whether this use comes so long after the last check, and none was made since the asker began."""
        if self.opened.health is None or self.checked >= begun:
            return False
        return time.monotonic() - self.checked >= self.spec.health_every


@dataclass(slots=True, eq=False)
class Attempt:
    """One set-up or check that is under way, whoever waits for it."""

    spec: ResourceSpec
    asset: str
    """Who asked first."""
    upstream: Mapping[str, Instance]
    instance: Instance | None
    """The one that is checked; None for a set-up."""
    ends: float
    """The monotonic moment at which it is given up."""
    thread: threading.Thread | None = None
    """The thread of its own, if it has one."""
    by: int = 0
    """The thread that runs it."""
    over: threading.Event = field(default_factory=threading.Event)
    """Set once its outcome is noted and told, or when it was given up."""
    ended: bool = False
    abandoned: bool = False
    error: str | None = None
    cause: BaseException | None = None


@dataclass(slots=True, eq=False)
class Cell:
    """One resource in this process."""

    state: ResourceState = ResourceState.UNUSED
    since: datetime | None = None
    error: str | None = None
    instance: Instance | None = None
    attempt: Attempt | None = None
    hanging: list[Attempt] = field(default_factory=list)
    """Tries that were given up and have not ended."""
    leaving: list[threading.Event] = field(default_factory=list)
    """One for each teardown that is under way."""
    retry_at: float = 0.0

    def becomes(self, state: ResourceState, error: str | None = None) -> None:
        """The resource is in this state from now on."""
        self.state, self.error, self.since = state, error, datetime.now(UTC)

    def fails(self, reason: str, pause: float) -> None:
        """The resource could not be set up, and is left alone for so many seconds."""
        self.becomes(ResourceState.FAILED, reason)
        self.retry_at = time.monotonic() + pause

    def give_up(self, attempt: Attempt) -> None:
        """Nobody waits for this try any more, whatever comes of it."""
        attempt.abandoned, self.attempt = True, None
        self.hanging.append(attempt)

    def ended(self, attempt: Attempt) -> None:
        """The try has ended, in time or not."""
        attempt.ended = True
        if attempt.abandoned:
            self.hanging.remove(attempt)
        else:
            self.attempt = None

    def status(self, name: str, *, overridden: bool) -> ResourceStatus:
        """What users see of it."""
        hanging = tuple(each.thread.name for each in self.hanging if each.thread is not None)
        return ResourceStatus(name, self.state, self.since, self.error, hanging, overridden)


_NOW: Final = threading.Event()
_NOW.set()


class Here:
    """All that one process has set up. What is marked so is called under the lock; none of it waits for anything."""

    def __init__(self) -> None:
        """Nothing yet."""
        self.lock = threading.Lock()
        self.cells: dict[str, Cell] = {}
        self.live: list[Instance] = []
        """In the order of their set-up."""

    def cell(self, name: str) -> Cell:
        """The resource's cell (under the lock)."""
        return self.cells.setdefault(name, Cell())

    def fitting(self, cell: Cell, upstream: Mapping[str, Instance]) -> Instance | None:
        """The instance that was made from these; one that was made from others is on its way out (under the lock)."""
        found = cell.instance
        if found is not None and found.upstream != upstream:
            self.retire(found)
            return None
        return found

    def retire(self, instance: Instance) -> None:
        """It, and whatever was made from it, serves nobody new (under the lock)."""
        instance.retired = True
        cell = self.cell(instance.spec.name)
        if cell.instance is instance:
            cell.instance = None
        self.retire_made_from(instance)

    def retire_made_from(self, source: Instance) -> None:
        """Whatever was made from it serves nobody new (under the lock)."""
        for each in self.live:
            if not each.retired and source in each.upstream.values():
                self.retire(each)

    def release(self, instances: Mapping[str, Instance]) -> None:
        """One user of each of these is gone; what serves nobody any more is torn down."""
        with self.lock:
            for each in instances.values():
                each.users -= 1
        self.sweep()

    def sweep(self) -> None:
        """What is on its way out and serves nobody any more is torn down."""
        while (instance := self._next_free()) is not None:
            self.tear_down(instance)

    def departing(self, name: str) -> threading.Event | None:
        """A teardown of this resource that is to end before it is set up anew: under way, or due by `sweep` (under the lock)."""
        for each in self.cell(name).leaving:
            return each
        due = any(each.retired and not each.users for each in self.live if each.spec.name == name)
        return _NOW if due else None

    def _next_free(self) -> Instance | None:
        """The newest such instance; it is the caller's from now on."""
        with self.lock:
            for each in reversed(self.live):
                if each.retired and not each.users:
                    self.live.remove(each)
                    return self._leaving(each)
        return None

    def _leaving(self, instance: Instance) -> Instance:
        self.cell(instance.spec.name).leaving.append(instance.gone)
        return instance

    def newest(self) -> Instance | None:
        """The newest instance of all, whoever uses it; it is the caller's from now on."""
        with self.lock:
            if not self.live:
                return None
            instance = self.live.pop()
            self.retire(instance)
            return self._leaving(instance)

    def tear_down(self, instance: Instance) -> None:
        """It is torn down, for no longer than its timeout; what goes wrong is told and hurts nobody."""
        begun, close = time.monotonic(), instance.opened.close
        try:
            error = None if close is None else _bounded(instance.spec, close)
        finally:
            with self.lock:
                for each in instance.upstream.values():
                    each.users -= 1
                self.cell(instance.spec.name).leaving.remove(instance.gone)
        told = {} if error is None else {"error": error}
        emit("flowstone.resource.teardown", resource=instance.spec.name, duration_ms=took(begun), **told)
        instance.gone.set()


_numbers: Final = itertools.count(1)


def thread_for(name: str, work: Callable[[], None]) -> threading.Thread:
    """A thread of that resource's, not begun, that holds up no end of the process."""
    return threading.Thread(target=work, name=f"flowstone-resource-{name}-{next(_numbers)}", daemon=True)


def _bounded(spec: ResourceSpec, close: Callable[[], object]) -> str | None:
    """Tear down, for no longer than the resource's timeout. Answers what went wrong, or None."""
    wrong: list[str] = []

    def run() -> None:
        try:
            close()
        except BaseException as error:  # noqa: BLE001 - a teardown that fails is told and hurts nobody
            wrong.append(text_of(error))

    thread = thread_for(spec.name, run)
    try:
        if not spec.timeout:
            run()
        else:
            thread.start()
            thread.join(spec.timeout)
    except RuntimeError:  # at the very end of a process no thread begins
        run()
    if thread.is_alive():
        return f"no end within {spec.timeout:g} s (thread {thread.name} hangs)"
    return wrong[0] if wrong else None


def text_of(error: BaseException) -> str:
    """What it is and says, at bounded length."""
    try:
        return f"{type(error).__qualname__}: {error}"[:2_000]
    except Exception:  # noqa: BLE001 - a user's __str__ may raise anything
        return type(error).__qualname__


def took(begun: float) -> float:
    """Milliseconds since this monotonic moment."""
    return (time.monotonic() - begun) * 1000
