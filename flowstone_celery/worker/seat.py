"""Where steps run in a worker process: its executor, and how the process is told to end what it does.

The worker's parent says through the environment which node it is, before its pool starts: children that are forked, spawned anew
or run as threads all find it there.
"""

from __future__ import annotations

import json
import os
import signal
import threading
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

from flowstone_celery.core.interrupts import STOP, Board, Interrupts
from flowstone_celery.core.workers import WorkerProcess
from flowstone_celery.errors import WrongState
from flowstone_celery.worker.line import Line

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from types import FrameType

    from celery import Celery

    from flowstone_celery.core.interrupts import AwaitingCall, LiveCall, Patience
    from flowstone_celery.core.model import Claim
    from flowstone_celery.worker.house import House

_VARIABLE: Final = "_FLOWSTONE_NODE"
_SEAT: Final = "_flowstone_seat"
_EVENTS: Final = "events"

PREFORK: Final = "prefork"


@dataclass(frozen=True, slots=True)
class Place:
    """The node that a process belongs to."""

    key: UUID
    name: str
    pool: str
    board: Board

    def announce(self) -> None:
        """Every process that this one starts from now on belongs to this node."""
        os.environ[_VARIABLE] = json.dumps([str(self.key), self.name, self.pool, str(self.board.folder)])

    @staticmethod
    def announced() -> Place:
        """The node that a parent has announced.

        Raises:
            WrongState: this process is no Celery worker's.
        """
        text = os.environ.get(_VARIABLE)
        if text is None:
            raise WrongState(
                "a step was handed to a process that belongs to no worker node",
                hint="steps run in `celery worker` processes of an app that FlowStone is attached to",
            )
        key, name, pool, folder = json.loads(text)
        return Place(UUID(key), name, pool, Board(Path(folder)))

    @property
    def sends_events(self) -> bool:
        """Whether the worker sends task events now."""
        return (self.board.folder / _EVENTS).exists()

    def set_events(self, on: bool) -> None:
        """Every process of the node sends task events from now on, or none."""
        page = self.board.folder / _EVENTS
        if on:
            page.touch()
        else:
            page.unlink(missing_ok=True)


class PoolInterrupts(Interrupts):
    """Interrupts of a pool's process, which the pool itself may also tell to go."""

    def __init__(self, board: Board) -> None:
        """Read this board."""
        super().__init__(board)
        self._leaving = False

    def call(self, claim: Claim, patience: Patience) -> LiveCall:
        """The call of this claim; it ends at once if the process was told to go before."""
        live = super().call(claim, patience)
        if self._leaving:
            live.demand(STOP)
        return live

    def call_beside(self, claim: Claim, patience: Patience) -> AwaitingCall:
        """The same for one of several calls."""
        live = super().call_beside(claim, patience)
        if self._leaving:
            live.demand(STOP)
        return live

    def reasons(self, claims: Iterable[Claim]) -> Mapping[tuple[int, int], str]:
        """Why these claims must end: what the board says, or that the process was told to go."""
        claims = list(claims)
        leaving = {(each.id, each.fence): STOP for each in claims} if self._leaving else {}
        return {**leaving, **super().reasons(claims)}

    @property
    def draining(self) -> bool:
        """Whether the process or its node was told to stop."""
        return self._leaving or super().draining

    def leave(self) -> None:
        """The process was told to go: user code is interrupted, a settlement is not."""
        self._leaving = True
        for live in self.hearing():
            live.demand(STOP)


class Seat:
    """One process's place at the work."""

    def __init__(self, app: Celery, house: House, place: Place) -> None:
        """Prepare the executor; nothing is connected before the first step."""
        worker = WorkerProcess(house.database, place.key, place.name, house.settings.lease_seconds)
        self.place = place
        self.interrupts = PoolInterrupts(place.board)
        self.executor = house.executor_for(worker, self.interrupts)
        self.line = Line(app, house.settings.publish_timeout_seconds)
        _part_with(house)

    @contextmanager
    def taken(self) -> Iterator[None]:
        """Meanwhile signals mean what they should for steps; afterwards a pool that told the process to go is obeyed."""
        if self.place.pool != PREFORK or threading.current_thread() is not threading.main_thread():
            yield
            return
        # Anew for each message: libraries, and billiard itself after a child's start, set handlers of their own.
        self.interrupts.listen()
        farewell = _Farewell(self.interrupts.leave)
        farewell.wait_for(signal.SIGTERM)
        try:
            yield
        finally:
            farewell.obey()


def _part_with(house: House) -> None:
    """At its end this process tears down what its steps required: a child of a pool, or, with threads and solo, the worker itself."""
    from celery import signals

    def on_end(**_: Any) -> None:
        house.close_resources()

    for each in (signals.worker_process_shutdown, signals.worker_shutdown):
        each.connect(on_end, weak=False, dispatch_uid=f"flowstone.resources.{id(house)}")


class _Farewell:
    """SIGTERM asks a pool's child to go: between two steps, not inside a commit. A second one is not put off."""

    def __init__(self, leave: Callable[[], None]) -> None:
        self._leave = leave
        self._asked: tuple[int, FrameType | None] | None = None
        self._number = signal.SIGTERM
        self._former: object = None

    def wait_for(self, number: signal.Signals) -> None:
        self._number = number
        self._former = signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self._asked is not None:
            self._answer(number, frame)
        self._asked = number, frame
        self._leave()

    def _answer(self, number: int, frame: FrameType | None) -> None:
        if callable(self._former):
            self._former(number, frame)
            return
        signal.signal(self._number, signal.SIG_DFL)
        os.kill(os.getpid(), number)

    def obey(self) -> None:
        """The former handler is back, and hears what came meanwhile."""
        signal.signal(self._number, self._former)  # type: ignore[arg-type]  # what signal.signal gave is what it takes
        if self._asked is not None:
            self._answer(*self._asked)


_making = threading.Lock()


def seat_of(app: Celery, house: House) -> Seat:
    """This process's seat, made on first use."""
    pid, seat = getattr(app, _SEAT, (0, None))
    if pid == os.getpid() and seat is not None:
        return seat  # type: ignore[no-any-return]  # Celery's classes are untyped
    with _making:
        pid, seat = getattr(app, _SEAT, (0, None))
        if pid != os.getpid() or seat is None:
            seat = Seat(app, house, Place.announced())
            setattr(app, _SEAT, (os.getpid(), seat))
    return seat
