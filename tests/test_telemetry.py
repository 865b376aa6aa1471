"""Events, sinks, signals, and the log."""

from __future__ import annotations

import ast
import gc
import io
import json
import logging
import subprocess
import sys
import timeit
from datetime import UTC
from pathlib import Path

import pytest

from flowstone_celery import telemetry
from flowstone_celery.telemetry import (
    EVENTS,
    Signal,
    add_sink,
    configure_logging,
    emit,
    logging_sink,
    recorded,
    remove_sink,
    signals,
)

STEP = {"run_id": "r1", "step_id": 7, "name": "shop.orders", "partition": "2026-11-20", "attempt": 1}


@pytest.fixture(autouse=True)
def _own_state(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(telemetry, "_sinks", ())
    monkeypatch.setattr(telemetry, "_complained", [])
    kept = {name: signal.receivers for name, signal in vars(signals).items()}
    handlers, level, propagate = (
        telemetry.LOGGER.handlers[:],
        telemetry.LOGGER.level,
        telemetry.LOGGER.propagate,
    )
    yield
    for name, receivers in kept.items():
        getattr(signals, name).receivers = receivers
    telemetry.LOGGER.handlers[:], telemetry.LOGGER.propagate = handlers, propagate
    telemetry.LOGGER.setLevel(level)


def test_a_sink_gets_one_frozen_event_with_an_aware_time() -> None:
    with recorded() as events:
        emit("flowstone.step.start", **STEP)
    emit("flowstone.step.start", **STEP)
    (event,) = events
    assert (event.name, dict(event.fields), event.at.tzinfo) == ("flowstone.step.start", STEP, UTC)
    with pytest.raises(TypeError):
        event.fields["name"] = "other"  # type: ignore[index]  # the test is that this is refused


@pytest.mark.parametrize(
    ("name", "fields", "sentence"),
    [
        ("flowstone.step.begin", STEP, "is not in telemetry.EVENTS"),
        ("flowstone.step.start", {**STEP, "colour": 1}, "does not know colour"),
        ("flowstone.step.fail", STEP, "lacks error"),
    ],
)
def test_a_misused_event_raises_here_and_is_dropped_and_logged_once_in_production(
    name: str, fields: dict[str, object], sentence: str, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(TypeError, match=sentence):
        emit(name, **fields)
    telemetry.set_strict(False)
    try:
        with recorded() as events:
            emit(name, **fields)
            emit(name, **fields)
    finally:
        telemetry.set_strict(True)
    assert events == []
    assert [record for record in caplog.records if sentence in record.getMessage()] == caplog.records[:1]


def test_optional_fields_may_come_or_stay_away() -> None:
    with recorded() as events:
        emit("flowstone.step.skip", **STEP)
        emit("flowstone.step.skip", **STEP, reason="empty")
    assert [event.fields.get("reason") for event in events] == [None, "empty"]


def test_every_event_has_a_sentence_and_its_sender_among_its_fields() -> None:
    for event in EVENTS.values():
        assert event.sentence.endswith(".")
        assert event.fields <= event.allowed
        assert event.signal is None or event.sender in event.allowed
    told = {id(event.signal) for event in EVENTS.values() if event.signal}
    assert told == {id(signal) for signal in vars(signals).values()}


def test_an_event_sends_its_signal_to_the_sender_that_was_asked_for() -> None:
    heard = []

    @signals.step_failed.connect(sender="shop.orders")
    def orders_only(sender, error, **_):
        heard.append((sender, error))

    emit("flowstone.step.fail", **STEP, error="boom")
    emit("flowstone.step.fail", **{**STEP, "name": "shop.other"}, error="boom")
    assert heard == [("shop.orders", "boom")]


def test_a_receiver_that_raises_hurts_nobody_and_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    heard = []

    def broken(**_):
        raise RuntimeError("no")

    def sound(**named):
        heard.append(named["signal"])

    signal = Signal("trial")
    signal.connect(broken)
    signal.connect(sound)
    answers = signal.send("me")
    signal.send("me")
    assert isinstance(answers[0][1], RuntimeError)
    assert heard == [signal, signal]
    assert len(caplog.records) == 1


def test_a_sink_that_raises_hurts_nobody_and_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    def broken(event: object) -> None:
        raise RuntimeError("no")

    add_sink(broken)
    with recorded() as events:
        emit("flowstone.step.start", **STEP)
        emit("flowstone.step.start", **STEP)
    remove_sink(broken)
    assert len(events) == 2
    assert len(caplog.records) == 1


def test_a_weak_receiver_goes_with_its_last_reference_and_a_strong_one_stays() -> None:
    class Listener:
        def hear(self, **_):
            return "heard"

    weak, strong = Signal("weak"), Signal("strong")
    listener = Listener()
    weak.connect(listener.hear)
    strong.connect(Listener().hear, weak=False)
    assert [answer for _, answer in weak.send()] == ["heard"]
    del listener
    gc.collect()
    assert weak.send() == []
    assert weak.receivers == ()
    assert [answer for _, answer in strong.send()] == ["heard"]


def test_a_receiver_connected_twice_is_called_once_and_can_be_disconnected() -> None:
    def hear(**_):
        return "heard"

    signal = Signal("trial")
    signal.connect(hear)
    signal.connect(hear)
    signal.connect(lambda **_: "by id", weak=False, dispatch_uid="one")
    signal.connect(lambda **_: "by id, again", weak=False, dispatch_uid="one")
    assert [answer for _, answer in signal.send()] == ["heard", "by id, again"]
    assert signal.disconnect(hear)
    assert signal.disconnect(dispatch_uid="one")
    assert not signal.disconnect(hear)
    assert signal.send() == []


def test_the_sender_stands_beside_a_field_called_name() -> None:
    signal = Signal("trial")
    signal.connect(lambda sender, **named: (sender, named["name"]), weak=False)
    assert signal.send("queue", name="x")[0][1] == ("queue", "x")


def test_json_log_lines_are_objects_with_time_level_event_and_fields() -> None:
    handler = configure_logging("json")
    handler.setStream(stream := io.StringIO())  # type: ignore[attr-defined]  # a StreamHandler
    emit("flowstone.step.fail", **STEP, error="boom")
    emit("flowstone.step.start", **STEP)  # DEBUG: below the level
    line = json.loads(stream.getvalue())
    assert (line["message"], line["level"], line["error"]) == ("flowstone.step.fail", "error", "boom")
    assert line["at"].endswith("+00:00")


def test_console_log_lines_are_for_people_and_configuring_twice_says_nothing_twice() -> None:
    configure_logging("console")
    handler = configure_logging("console", level=logging.DEBUG)
    handler.setStream(stream := io.StringIO())  # type: ignore[attr-defined]  # a StreamHandler
    emit("flowstone.step.start", **{**STEP, "partition": ""})
    assert telemetry.LOGGER.handlers == [handler]
    assert telemetry._sinks == (logging_sink,)
    assert stream.getvalue().endswith(
        "DEBUG flowstone.step.start run_id=r1 step_id=7 name=shop.orders attempt=1\n"
    )


def test_emitting_to_nobody_costs_less_than_two_microseconds() -> None:
    best = min(timeit.repeat(lambda: emit("flowstone.step.start", **STEP), number=10_000, repeat=7)) / 10_000
    assert best < 2e-6


def test_telemetry_is_light_to_import() -> None:
    code = "import sys, flowstone_celery.telemetry; print({'celery', 'pydantic', 'sqlalchemy'} & set(sys.modules))"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "set()"


def test_every_emit_in_the_code_names_a_registered_event_and_its_fields() -> None:
    package = Path(telemetry.__file__).parent
    calls = [
        call
        for path in package.rglob("*.py")
        for call in ast.walk(ast.parse(path.read_text()))
        if isinstance(call, ast.Call) and ast.unparse(call.func) in ("emit", "telemetry.emit")
    ]
    wrong = [ast.unparse(call) for call in calls if not _fits(call)]
    assert calls
    assert wrong == []


def _fits(call: ast.Call) -> bool:
    names = [node.value for node in ast.walk(call.args[0]) if isinstance(node, ast.Constant)]
    events = [EVENTS[name] for name in names if str(name).startswith("flowstone.") and name in EVENTS]
    given = {keyword.arg for keyword in call.keywords if keyword.arg}
    spread = any(keyword.arg is None for keyword in call.keywords)
    return bool(events) and all(given <= e.allowed and (spread or e.fields <= given) for e in events)
