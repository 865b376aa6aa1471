"""Named crash points: places at which a test can kill, raise, wait or cut the database connection.

``point(name)`` stands beside every commit edge and costs one call and one comparison unless a fault is armed. Faults
are armed for one process tree by the environment, or inside a process by ``arm``:

    FLOWSTONE_FAULT=settle.after_commit:1:kill9                 the first settle of each process dies
    FLOWSTONE_FAULT=claim.after_commit:3:sleep=5:/tmp/once      the third claim waits, in one process only

Several faults are separated by commas. Nothing can be armed in production.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from flowstone_celery.errors import ConfigError, did_you_mean

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

VARIABLE: Final = "FLOWSTONE_FAULT"
ACTIONS: Final = ("kill9", "raise", "sleep=SECONDS", "drop_conn")

POINTS: Final[dict[str, str]] = {
    "run.create.before_commit": "A run and its steps are written, not committed: afterwards there is no run.",
    "run.create.after_commit": "The run is committed, no wake-up is sent: the sweep sends it.",
    "promise.before_commit": "Wake-ups are marked as promised, not committed: they are promised again.",
    "promise.after_commit": "Wake-ups are promised, none is sent: the sweep sends them into idle capacity.",
    "publish.before_flush": "Messages are built, none has left: the sweep sends them.",
    "publish.after_flush": "Messages have left, the sender dies: nothing is missing.",
    "worker.received": "A message has arrived, nothing is claimed: a redelivery or the sweep starts the step.",
    "claim.after_commit": "The step is running under this worker: its lease ends and it is started again.",
    "user.start": "The next instruction is the user's: the step is started again.",
    "user.end": "User code has answered, nothing is stored: the answer is lost, the step is started again.",
    "scatter.page_added": "A page of keys is committed with the reader's checkpoint: the next attempt reads on from there.",
    "settle.value_written": "A large value is stored out of sight, the step is not settled: the value is discarded.",
    "settle.before_commit": "Value, state, history and lineage are written, not committed: none of them exists.",
    "settle.after_commit": "The step is settled, its message is not acknowledged: the redelivery finds no work.",
    "continue.after_commit": "The next step was claimed in the same transaction: it is released or its lease ends.",
    "range.after_commit": "A hand holds items, none is begun: they are done by the next hand, one by one.",
    "part.before_commit": "Items that have ended are written, not committed: they are done again, one by one.",
    "part.after_commit": "Items are settled, the rest of the range is not begun: it is done by the next hand.",
    "release.before_commit": "Claims of a dead process are given back, not committed: they are given back again.",
    "release.after_commit": "Claims are given back, no wake-up is sent: the sweep sends it.",
    "cancel.after_run_row": "The run is marked as cancelling, its steps are not: the sweep goes on.",
    "cancel.between_batches": "Some steps are cancelled: the sweep cancels the rest.",
    "lane.after_admit": "Runs are let into their lane, their steps not called: the sweep calls them.",
    "retry.after_commit": "A round is opened, no wake-up is sent: the sweep sends it.",
    "pause.after_run_row": "The run is paused, its rows are in the line still: no claim takes them.",
    "resume.after_run_row": "The run is resumed, its rows stand aside still: the sweep calls them.",
    "deadline.after_run_row": "The run is marked as past its deadline, its steps are not: the sweep goes on.",
    "join.after_commit": "Another's transaction that started or asked is committed, nothing is called: the pacer does it.",
    "request.after_commit": "An act that was asked for is done, its steps are not called: the sweep goes on.",
    "keeper.beat": "The keeper is about to extend leases: it is restarted before they end.",
    "keeper.before_release": "The keeper has seen a death, released nothing: the next keeper releases.",
    "sweep.before_commit": "The sweep has written, not committed: the next sweep does it again.",
    "retention.between_batches": "Some old rows are gone: the next pruning removes the rest, live rows are untouched.",
}
"""Every crash point, with where it is and what must follow."""


class FaultInjectedError(Exception):
    """Raised at a crash point that was armed with ``raise``."""

    def __init__(self, point: str) -> None:
        super().__init__(f"fault injected at {point}")
        self.point = point


@dataclass(slots=True)
class Fault:
    """One armed fault: at the ``nth`` hit of ``point`` in a process, do ``action``."""

    point: str
    action: str
    nth: int = 1
    once_file: Path | None = None
    hits: int = field(default=0, compare=False)

    def __post_init__(self) -> None:
        _check_point(self.point)
        _check_action(self.action)
        if self.nth < 1:
            raise ConfigError(f"fault at {self.point}: the hit is counted from 1, not {self.nth}")


def point(name: str) -> None:
    """Nothing happens, unless a fault is armed here."""
    if _watch is not None:
        _watch(name)


@contextlib.contextmanager
def arm(
    point: str, action: str = "raise", *, nth: int = 1, once_file: str | Path | None = None
) -> Iterator[Fault]:
    """A fault is armed in this process (and in children forked meanwhile) until the block ends.

    Raises ``ConfigError`` for an unknown point or action, and in production.
    """
    refuse_in_production()
    fault = Fault(point, action, nth, Path(once_file) if once_file else None)
    _set([*_read_once(), fault])
    try:
        yield fault
    finally:
        _set([each for each in _faults if each is not fault])


def disarm() -> None:
    """No fault is armed in this process any more, whoever armed it."""
    _set([])


def armed() -> tuple[Fault, ...]:
    """The faults that are armed in this process."""
    return tuple(_read_once())


def parse(text: str) -> list[Fault]:
    """Faults of ``point:nth:action[:once-file]``, separated by commas. Raises ``ConfigError`` with what is wrong."""
    return [_parse_one(part.strip()) for part in text.split(",") if part.strip()]


def on_drop_connection(callback: Callable[[], None]) -> None:
    """``drop_conn`` calls this from now on; the db room says how the current connection is cut."""
    global _cut  # noqa: PLW0603 - one hook for each process is the point
    _cut = callback


def refuse_in_production() -> None:
    """Raises ``ConfigError`` if ``FLOWSTONE_ENV`` is production."""
    if os.environ.get("FLOWSTONE_ENV", "").strip().lower() == "production":
        raise ConfigError(
            "crash points cannot be armed in production",
            hint=f"Unset {VARIABLE}, or use FLOWSTONE_ENV=test.",
        )


# -- armed state: `_watch` is None exactly when nothing is armed, which keeps `point` cheap ----------------------

_lock = threading.Lock()
_faults: list[Fault] = []
_cut: Callable[[], None] | None = None


def _read_environment_first(name: str) -> None:
    """The first hit of a process reads the environment, so that importing this module never fails."""
    _read_once()
    point(name)


_watch: Callable[[str], None] | None = _read_environment_first


def _read_once() -> list[Fault]:
    if _watch is _read_environment_first:
        text = os.environ.get(VARIABLE, "")
        if text.strip():
            refuse_in_production()
        _set(parse(text))
    return _faults


def _set(faults: list[Fault]) -> None:
    global _faults, _watch  # noqa: PLW0603 - the armed faults of this process
    _faults = faults
    _watch = _hit if faults else None


def _hit(name: str) -> None:
    if name not in POINTS:
        _check_point(name)
    for fault in _faults:
        if fault.point == name and _is_turn(fault) and _is_first_in_cluster(fault):
            _act(fault)


def _is_turn(fault: Fault) -> bool:
    with _lock:
        fault.hits += 1
        return fault.hits == fault.nth


def _is_first_in_cluster(fault: Fault) -> bool:
    """Of all processes that share the file, one gets True, once."""
    if fault.once_file is None:
        return True
    try:
        os.close(os.open(fault.once_file, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    except FileExistsError:
        return False
    return True


def _act(fault: Fault) -> None:
    kind, _, argument = fault.action.partition("=")
    match kind:
        case "kill9":
            os.kill(os.getpid(), signal.SIGKILL)
        case "sleep":
            time.sleep(float(argument))
        case "drop_conn":
            _drop_connection(fault.point)
        case _:
            raise FaultInjectedError(fault.point)


def _drop_connection(name: str) -> None:
    if _cut is None:
        raise ConfigError(f"fault at {name}: drop_conn, but this process has opened no database yet")
    _cut()


def _forget_hits_of_parent() -> None:
    global _lock  # noqa: PLW0603 - the parent's lock may have been held by a thread that does not exist here
    _lock = threading.Lock()
    for fault in _faults:
        fault.hits = 0


os.register_at_fork(after_in_child=_forget_hits_of_parent)


# -- reading -----------------------------------------------------------------------------------------------------


def _parse_one(text: str) -> Fault:
    name, nth, action, once_file = (*text.split(":", 3), "", "", "")[:4]
    _check_point(name)
    if not nth.isdecimal() or not action:
        raise ConfigError(
            f"{VARIABLE}: {text!r} is not a fault",
            hint=f"Write point:nth:action[:once-file], as in {name}:1:kill9.",
        )
    return Fault(name, action, int(nth), Path(once_file) if once_file else None)


def _check_point(name: str) -> None:
    if name not in POINTS:
        raise ConfigError(
            f"there is no crash point {name!r}",
            hint=did_you_mean(name, POINTS) or f"Known: {', '.join(POINTS)}.",
            point=name,
        )


def _check_action(action: str) -> None:
    kind, _, argument = action.partition("=")
    if action in ("kill9", "raise", "drop_conn") or (kind == "sleep" and _is_duration(argument)):
        return
    raise ConfigError(f"a crash point cannot do {action!r}", hint=f"Known actions: {', '.join(ACTIONS)}.")


def _is_duration(text: str) -> bool:
    return text.replace(".", "", 1).isdecimal()
