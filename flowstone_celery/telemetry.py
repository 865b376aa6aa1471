"""What happens is told once, by name: to sinks, to Celery-style signals and to the log.

``EVENTS`` is the one registry: every event with its fields and a sentence. ``emit`` checks a name and its fields against
it, hands one frozen ``Event`` to every sink, and sends the signal that belongs to it. Nothing that a sink or a receiver
does can hurt the core: it is logged, once for each of them, and forgotten.

    from flowstone_celery.telemetry import signals

    @signals.step_failed.connect(sender="shop.orders")
    def page_someone(sender, run_id, error, **_):
        ...
"""

from __future__ import annotations

import contextlib
import json
import logging
import sys
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any, Final, Literal

from flowstone_celery.events import GROUPS, REGISTRY

LOGGER: Final = logging.getLogger("flowstone")

Sink = Callable[["Event"], object]
"""Anything that takes one event."""


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened: its registered name, when (aware UTC), and its fields."""

    name: str
    at: datetime
    fields: Mapping[str, object]


# -- signals -----------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Receiver:
    key: object
    sender: object
    reference: Callable[[], Callable[..., object] | None]
    complained: bool = False

    def wants(self, sender: object) -> bool:
        return self.sender is None or self.sender == sender


class Signal:
    """A list of receivers, with the shape of ``celery.utils.dispatch.Signal``."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.receivers: tuple[_Receiver, ...] = ()  # replaced, never changed: sending needs no lock
        self._lock = threading.Lock()

    def connect(
        self,
        receiver: Callable[..., Any] | None = None,
        *,
        sender: object = None,
        weak: bool = True,
        dispatch_uid: object = None,
    ) -> Callable[..., Any]:
        """``receiver`` is called with ``signal``, ``sender`` and the event's fields from now on; also a decorator.

        ``sender`` narrows it to one asset or run name. A weak receiver goes away with its last reference.
        """
        if receiver is None:
            return lambda function: self.connect(
                function, sender=sender, weak=weak, dispatch_uid=dispatch_uid
            )
        key = _key(receiver, sender, dispatch_uid)
        new = _Receiver(key, sender, _reference(receiver, weak))
        with self._lock:
            self.receivers = (*(each for each in self.receivers if each.key != key), new)
        return receiver

    def disconnect(
        self,
        receiver: Callable[..., Any] | None = None,
        *,
        sender: object = None,
        dispatch_uid: object = None,
    ) -> bool:
        """The receiver is called no more. True if it was connected in this way."""
        key = _key(receiver, sender, dispatch_uid)
        with self._lock:
            kept = tuple(each for each in self.receivers if each.key != key)
            found = len(kept) < len(self.receivers)
            self.receivers = kept
        return found

    def send(self, sender: object = None, /, **named: object) -> list[tuple[Callable[..., object], object]]:
        """Each receiver was called; pairs of receiver and answer, an exception standing for the answer it was."""
        answers: list[tuple[Callable[..., object], object]] = []
        for each in self.receivers:
            function = each.reference()
            if function is None:
                self._forget(each)
            elif each.wants(sender):
                answers.append((function, self._call(each, function, sender, named)))
        return answers

    def _call(
        self, each: _Receiver, function: Callable[..., object], sender: object, named: dict[str, object]
    ) -> object:
        try:
            return function(signal=self, sender=sender, **named)
        except Exception as error:  # whatever a user's receiver does, the work it looks at goes on
            if not each.complained:
                each.complained = True
                LOGGER.exception("a receiver of signal %s failed; it is not reported again", self.name)
            return error

    def _forget(self, gone: _Receiver) -> None:
        with self._lock:
            self.receivers = tuple(each for each in self.receivers if each is not gone)


def _key(receiver: Callable[..., Any] | None, sender: object, dispatch_uid: object) -> object:
    if dispatch_uid is not None:
        return (dispatch_uid, sender)
    owner, function = getattr(receiver, "__self__", None), getattr(receiver, "__func__", receiver)
    return (id(owner), id(function), sender)


def _reference(receiver: Callable[..., Any], weak: bool) -> Callable[[], Callable[..., object] | None]:
    if not weak:
        return lambda: receiver
    return weakref.WeakMethod(receiver) if hasattr(receiver, "__self__") else weakref.ref(receiver)


class Signals:
    """The signals that users connect to; the sender is the name of the run, step or asset, the queue, or the node."""

    def __init__(self) -> None:
        self.run_started = Signal("run_started")
        self.run_finished = Signal("run_finished")
        self.step_started = Signal("step_started")
        self.step_succeeded = Signal("step_succeeded")
        self.step_failed = Signal("step_failed")
        self.step_retried = Signal("step_retried")
        self.step_skipped = Signal("step_skipped")
        self.step_cancelled = Signal("step_cancelled")
        self.step_released = Signal("step_released")
        self.step_timed_out = Signal("step_timed_out")
        self.asset_materialized = Signal("asset_materialized")
        self.scatter_started = Signal("scatter_started")
        self.scatter_completed = Signal("scatter_completed")
        self.scatter_failed = Signal("scatter_failed")
        self.wakeup_sent = Signal("wakeup_sent")
        self.keeper_started = Signal("keeper_started")
        self.worker_draining = Signal("worker_draining")


signals: Final = Signals()


# -- the registry ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class EventType:
    """An event: the fields that it always has, all that it may have, what it says, and the signal that tells it."""

    name: str
    fields: frozenset[str]
    allowed: frozenset[str]
    sentence: str
    level: int
    signal: Signal | None
    sender: str

    def misfit(self, given: Mapping[str, object]) -> str:
        """What is wrong with these fields, or the empty text."""
        missing = sorted(self.fields - given.keys())
        unknown = sorted(given.keys() - self.allowed)
        parts = [("lacks", missing), ("does not know", unknown)]
        return "; ".join(f"{verb} {', '.join(names)}" for verb, names in parts if names)


def _read_registry() -> Iterator[EventType]:
    """Two lines for each event: name, level, signal/sender and fields (optional ones after `|`); what it says."""
    lines = REGISTRY.strip().splitlines()
    for head, sentence in zip(lines[::2], lines[1::2], strict=True):
        short, level, told, *names = head.split()
        required, _, optional = " ".join(names).partition("|")
        signal_name, _, sender = told.partition("/")
        signal: Signal | None = getattr(signals, signal_name, None)
        if signal is not None:
            signal.__doc__ = sentence.strip()
        yield EventType(
            name=f"flowstone.{short}",
            fields=_field_names(required),
            allowed=_field_names(f"{required} {optional}"),
            sentence=sentence.strip(),
            level=logging.getLevelNamesMapping()[level],
            signal=signal,
            sender=sender,
        )


def _field_names(text: str) -> frozenset[str]:
    words = {word for each in text.split() for word in GROUPS.get(each, each).split()}
    return frozenset(words)


EVENTS: Final[dict[str, EventType]] = {each.name: each for each in _read_registry()}
"""Every event there is, by name."""


# -- emitting ------------------------------------------------------------------------------------------------------

_sinks: tuple[Sink, ...] = ()
_complained: list[object] = []
_strict = True


def emit(name: str, /, **given: object) -> None:
    """The event was told to every sink and to its signal.

    Raises ``TypeError`` for a name or fields that the registry does not have (in production: logged and dropped).
    """
    kind = EVENTS.get(name)
    if kind is None or not kind.fields <= given.keys() <= kind.allowed:
        _misused(name, kind, given)
        return
    if _sinks:
        _pour(Event(name, datetime.now(UTC), MappingProxyType(given)))
    if kind.signal is not None and kind.signal.receivers:
        kind.signal.send(given.get(kind.sender), **given)


def add_sink(sink: Sink) -> None:
    """``sink`` gets every event from now on."""
    global _sinks  # noqa: PLW0603 - one list of sinks for each process, replaced and never changed
    _sinks = (*(each for each in _sinks if each is not sink), sink)


def remove_sink(sink: Sink) -> None:
    """``sink`` gets no event any more."""
    global _sinks  # noqa: PLW0603 - as in add_sink
    _sinks = tuple(each for each in _sinks if each is not sink)


@contextlib.contextmanager
def recorded() -> Iterator[list[Event]]:
    """A list that fills with the events of this process until the block ends."""
    events: list[Event] = []
    sink = events.append
    add_sink(sink)
    try:
        yield events
    finally:
        remove_sink(sink)


def set_strict(strict: bool) -> None:
    """Whether a misused event raises (tests, development) or is logged once and dropped (production)."""
    global _strict  # noqa: PLW0603 - one switch for each process
    _strict = strict


def _pour(event: Event) -> None:
    for sink in _sinks:
        try:
            sink(event)
        except Exception:  # whatever a sink does, the work it looks at goes on
            if sink not in _complained:
                _complained.append(sink)
                LOGGER.exception("a telemetry sink failed; it is not reported again")


def _misused(name: str, kind: EventType | None, given: Mapping[str, object]) -> None:
    wrong = kind.misfit(given) if kind else "is not in telemetry.EVENTS"
    if _strict:
        raise TypeError(f"event {name!r} {wrong}")
    if name not in _complained:
        _complained.append(name)
        LOGGER.error("event %r %s; it was dropped", name, wrong)


# -- the log -------------------------------------------------------------------------------------------------------


def logging_sink(event: Event) -> None:
    """The event is one record of the logger ``flowstone``, at its level, with the event attached."""
    level = EVENTS[event.name].level
    if LOGGER.isEnabledFor(level):
        LOGGER.log(level, event.name, extra={"flowstone_event": event})


class ConsoleFormatter(logging.Formatter):
    """``12:00:01 INFO flowstone.run.start name=orders``: one line for people."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(message)s", "%H:%M:%S")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - the name that logging calls
        """The line, with the event's fields behind it."""
        pairs = (f" {name}={value}" for name, value in _told(record).items() if value not in (None, ""))
        return super().formatMessage(record) + "".join(pairs)


class JsonFormatter(logging.Formatter):
    """One JSON object for each line: at, level, logger, message (an event's name), and the event's fields."""

    def format(self, record: logging.LogRecord) -> str:
        """The line as one JSON object."""
        at = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        head = {
            "at": at,
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        trace = {"traceback": self.formatException(record.exc_info)} if record.exc_info else {}
        return json.dumps({**_told(record), **head, **trace}, default=str)


def configure_logging(
    form: Literal["console", "json"] = "console", *, level: int = logging.INFO
) -> logging.Handler:
    """Events and messages of FlowStone go to standard error in this form, once however often this is called."""
    for handler in [each for each in LOGGER.handlers if getattr(each, "flowstone", False)]:
        LOGGER.removeHandler(handler)
    handler = logging.StreamHandler(sys.stderr)
    handler.flowstone = True  # type: ignore[attr-defined]  # marks the handler as ours, for the next call
    handler.setFormatter(JsonFormatter() if form == "json" else ConsoleFormatter())
    LOGGER.addHandler(handler)
    LOGGER.setLevel(level)
    LOGGER.propagate = False  # the root's handlers would say everything twice
    add_sink(logging_sink)
    return handler


def _told(record: logging.LogRecord) -> Mapping[str, object]:
    event: Event | None = getattr(record, "flowstone_event", None)
    return event.fields if event else {}
