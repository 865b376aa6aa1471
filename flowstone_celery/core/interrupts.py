"""How running code is told to end: a board between the keeper and the worker process, and calls that read it.

The keeper writes what must end on the board (one small file for each process, replaced atomically) and then signals the process.
Only a call whose step and fence stand there is touched, and only inside its user-code section: an interrupt that arrives anywhere
else is remembered for the next such section, so it never lands inside a commit. Where signals do not reach (threads, solo), the
code asks by `ctx.check()`.
"""

from __future__ import annotations

import json
import os
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import FrameType, TracebackType
from typing import Final, Protocol, TypeVar

from flowstone_celery.core.model import Claim

T = TypeVar("T")


class Patience(Protocol):
    """Does something as soon as the database is there."""

    def __call__(self, act: Callable[[], T]) -> T:
        """What the act answers, once it can."""


SIGNAL: Final = signal.SIGUSR2

TIMEOUT: Final = "timeout"
CANCELLED: Final = "cancelled"
STOP: Final = "stop"

_LOOK_EVERY: Final = 0.05
"""Seconds between two looks whether the node was told to stop."""
_INSIST_EVERY: Final = 1.0
"""Seconds after which a coroutine that was cancelled and goes on is cancelled again."""


class Interrupted(BaseException):
    """Raised inside user code that must end. Not an `Exception`, so that `except Exception` lets it pass."""

    def __init__(self, reason: str) -> None:
        """Carry the reason: timeout, cancelled or stop."""
        super().__init__(reason)
        self.reason = reason


class Board:
    """A private folder with one page for each worker process of a node."""

    def __init__(self, folder: Path) -> None:
        """Use this folder, which both sides can reach."""
        self.folder = folder

    @staticmethod
    def new() -> Board:
        """A board in a fresh private folder."""
        return Board(Path(tempfile.mkdtemp(prefix="flowstone-")))

    def post(self, pid: int, demands: dict[str, str]) -> None:
        """This process's page says exactly this from now on: `step:fence` → reason."""
        page = self.folder / f"{pid}.json"
        if not demands and not page.exists():
            return
        draft = page.with_suffix(".new")
        draft.write_text(json.dumps(demands), encoding="ascii")
        draft.replace(page)

    def demands(self, pid: int) -> dict[str, str]:
        """What this process's page says."""
        try:
            found: dict[str, str] = json.loads((self.folder / f"{pid}.json").read_text(encoding="ascii"))
        except FileNotFoundError:
            return {}
        return found

    def drain(self) -> None:
        """No process of this node begins a further step in its slice."""
        (self.folder / "drain").touch()

    @property
    def draining(self) -> bool:
        """Whether the node was told to stop."""
        return (self.folder / "drain").exists()

    def retire(self, why: str) -> None:
        """No process of this node begins any step again: the database has outgrown its code."""
        self.drain()
        (self.folder / "retired").write_text(why, encoding="utf-8")

    @property
    def retired(self) -> str:
        """Why this node begins no step any more; the empty text while it does."""
        page = self.folder / "retired"
        return page.read_text(encoding="utf-8") if page.exists() else ""

    def remove(self) -> None:
        """The folder and its pages are gone."""
        for page in self.folder.glob("*"):
            page.unlink(missing_ok=True)
        self.folder.rmdir()


class Interrupts:
    """This process's side of the board."""

    def __init__(self, board: Board | None = None) -> None:
        """Read the board; without one nothing is ever interrupted."""
        self.board = board
        self._drains = False
        self._look_at = 0.0
        self._main: LiveCall | None = None
        self._beside: dict[tuple[int, int], AwaitingCall] = {}

    def call(self, claim: Claim, patience: Patience) -> LiveCall:
        """The call of this claim, on this thread."""
        live = LiveCall(claim, self, patience)
        if threading.current_thread() is threading.main_thread():
            self._main = live
        return live

    def hears(self, live: LiveCall) -> None:
        """Demands reach this call, of this thread, as they would one made by `call`."""
        if threading.current_thread() is threading.main_thread():
            self._main = live

    def hears_beside(self, live: AwaitingCall) -> None:
        """Demands reach this call, in a loop, until it is `over`."""
        self._beside[live.claim.id, live.claim.fence] = live

    def nudge(self) -> None:
        """From any thread: code that runs in the main thread hears what is demanded of it, if signals reach it at all."""
        if signal.getsignal(SIGNAL) == self._on_signal:
            signal.pthread_kill(threading.main_thread().ident or 0, SIGNAL)

    def call_beside(self, claim: Claim, patience: Patience) -> AwaitingCall:
        """The call of this claim, one of several in a loop; it hears until it is `over`."""
        live = self._beside[claim.id, claim.fence] = AwaitingCall(claim, self, patience)
        return live

    def over(self, live: AwaitingCall) -> None:
        """Nothing reaches this call any more."""
        self._beside.pop((live.claim.id, live.claim.fence), None)

    def hearing(self) -> list[LiveCall]:
        """The calls that a demand reaches from outside. Whose code runs in this very thread comes last: it is left by an exception."""
        calls = [*self._beside.copy().values(), *filter(None, [self._main])]
        return sorted(calls, key=lambda live: live.is_here)

    def tell(self, calls: Iterable[LiveCall]) -> None:
        """Those of these calls that must end hear why."""
        calls = list(calls)
        reasons = self.reasons([live.claim for live in calls]) if calls else {}
        for live in calls:
            reason = reasons.get((live.claim.id, live.claim.fence)) or live.overdue()
            if reason:
                live.demand(reason)

    def reasons(self, claims: Iterable[Claim]) -> Mapping[tuple[int, int], str]:
        """Why these claims must end, by step and fence: those of them that must."""
        page = self.board.demands(os.getpid()) if self.board is not None else {}
        return {
            (each.id, each.fence): page[f"{each.id}:{each.fence}"]
            for each in (claims if page else ())
            if f"{each.id}:{each.fence}" in page
        }

    def reason(self, claim: Claim) -> str | None:
        """Why this claim must end, or None."""
        return self.reasons([claim]).get((claim.id, claim.fence))

    @property
    def draining(self) -> bool:
        """Whether the node was told to stop; heard a moment later, for items ask after every microsecond."""
        now = time.monotonic()
        if now >= self._look_at and not self._drains and self.board is not None:
            self._look_at, self._drains = now + _LOOK_EVERY, self.board.draining
        return self._drains

    @property
    def retired(self) -> bool:
        """Whether no step may begin here any more."""
        return self.board is not None and bool(self.board.retired)

    def listen(self) -> None:
        """The keeper's signal interrupts the main thread's user code from now on."""
        signal.signal(SIGNAL, self._on_signal)

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        self.tell(self.hearing())


class LiveCall:
    """One claim's call while it runs."""

    def __init__(self, claim: Claim, interrupts: Interrupts, patience: Patience) -> None:
        """Begin outside user code, with nothing demanded."""
        self.claim = claim
        self.patiently = patience
        self._interrupts = interrupts
        self._inside = False
        self._remembered: str | None = None
        self._delivered = False

    def user_code(self) -> UserCode:
        """The section in which interrupts land."""
        return UserCode(self)

    @property
    def is_here(self) -> bool:
        """Whether a demand would raise in this very thread."""
        return self._inside

    def overdue(self) -> str | None:
        """Why it must end by its own clock, or None: a step's is the keeper's affair."""
        return None

    def check(self) -> None:
        """Raise `Interrupted` if this call is to end."""
        reason = self._interrupts.reason(self.claim)
        if reason and not self._delivered:
            self._delivered = True
            raise Interrupted(reason)

    def demand(self, reason: str) -> None:
        """End the user code: at once if it runs, else when it is about to."""
        if self._delivered:
            return
        if self._inside:
            self._delivered = True
            raise Interrupted(reason)
        self._remembered = reason

    def _enter(self) -> None:
        self._inside = True
        if self._remembered and not self._delivered:
            self._delivered = True
            raise Interrupted(self._remembered)

    def _leave(self) -> None:
        self._inside = False


class AwaitingCall(LiveCall):
    """One claim's call among several whose coroutines share a loop: what ends it never lands in another's."""

    def __init__(self, claim: Claim, interrupts: Interrupts, patience: Patience) -> None:
        """Begin with nothing to cancel."""
        super().__init__(claim, interrupts, patience)
        self._thread = 0
        self._cancel: Callable[[], None] | None = None
        self._insist_at = 0.0

    @property
    def is_here(self) -> bool:
        """Whether its code runs in this very thread now."""
        return self._inside and self._thread == threading.get_ident()

    @property
    def interrupted(self) -> Interrupted | None:
        """What ended its code, if something did."""
        return Interrupted(self._remembered) if self._delivered and self._remembered else None

    def cancelled_by(self, cancel: Callable[[], None]) -> None:
        """From now on its code is in the loop; this cancels it there, from any thread."""
        self._cancel = cancel
        if self._remembered:
            cancel()

    def ended(self) -> None:
        """Its code is in the loop no more; what it cancelled, and all that hangs on that, is free."""
        self._cancel = None

    def enter(self) -> None:
        """Its code is about to begin: raise `Interrupted` if it is not to."""
        if self._remembered and not self._delivered:
            self._delivered = True
            raise Interrupted(self._remembered)

    def deliver(self) -> bool:
        """In the loop: whether the coroutine is to be cancelled now."""
        now = time.monotonic()
        if now < self._insist_at:
            return False
        self._insist_at = now + _INSIST_EVERY
        self._delivered = True
        return True

    def check(self) -> None:
        """Raise `Interrupted` if this call is to end."""
        reason = self._interrupts.reason(self.claim)
        if reason and not self._delivered:
            self._remembered, self._delivered = reason, True
            raise Interrupted(reason)

    def demand(self, reason: str) -> None:
        """End its code: at once if it runs in this thread now, else at its next await."""
        self._remembered = self._remembered or reason
        if self.is_here and not self._delivered:
            self._delivered = True
            raise Interrupted(reason)
        if self._cancel is not None:
            self._cancel()

    def step_in(self) -> None:
        """The next piece of its code, up to an await, runs in this thread."""
        self._thread, self._inside = threading.get_ident(), True

    def step_out(self) -> None:
        """It awaits something, or has ended."""
        self._inside = False


class UserCode:
    """A section in which interrupts land."""

    __slots__ = ("_live",)

    def __init__(self, live: LiveCall) -> None:
        """Belong to this call."""
        self._live = live

    def __enter__(self) -> None:
        """What is demanded lands from now on; what was demanded before, now."""
        try:
            self._live._enter()
        except Interrupted:
            self._live._leave()
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """What is demanded is remembered."""
        self._live._leave()
