"""Workers on RabbitMQ, on classic and on quorum queues: steps, lost connections, long steps, strangers, the user's own tasks."""

from __future__ import annotations

import time

import pytest
from brokers.conftest import House, Rabbit
from worker.conftest import until

from flowstone_celery.core.model import PROTOCOL, WakeUp
from flowstone_celery.worker.carrier import CeleryCarrier
from flowstone_celery.worker.house import HEADER

pytestmark = pytest.mark.worker


def test_a_chain_over_two_queues_runs_beside_the_users_own_tasks(house: House) -> None:
    worker = house.start(slots=2, queues=f"{house.prefix},{house.prefix}-other")
    app = house.fs.app
    runs = [house.fs.run("third") for _ in range(3)]
    for _ in range(5):
        app.send_task("shop.plain", queue=house.prefix)
    assert [run.get(timeout=20) for run in runs] == [3, 3, 3]
    until(lambda: len(house.notes("plain")) == 5, what="the user's own tasks")
    assert {row["attempt"] for run in runs for row in run.steps()} == {1}
    assert worker.said("Traceback") == 0


def test_what_became_ready_before_the_first_worker_came_runs_when_it_comes(house: House) -> None:
    """RabbitMQ knows a queue once somebody has declared it; until then wake-ups have nowhere to stand."""
    run = house.fs.run("quick", partition="early")
    begun = time.monotonic()
    house.start()
    assert run.get(timeout=10) == "early"
    assert time.monotonic() - begun < 15


def test_a_step_whose_connection_is_lost_and_comes_back_runs_once(house: House, rabbit: Rabbit) -> None:
    worker = house.start(slots=2)
    run = house.fs.run("slow", partition="a")
    until(lambda: house.notes("slow-a"), what="the step to begin")
    assert rabbit.wire.cut() >= 2
    until(lambda: worker.said("Connected to amqp") >= 2, 20, "the worker to come back")
    later = house.fs.run("quick", partition="later")
    assert later.get(timeout=15) == "later"
    house.go("a")
    assert run.get(timeout=15) == "a"
    until(lambda: rabbit.length(house.prefix) == 0, what="all messages to be taken")
    assert len(house.notes("slow-a")) == 1, "the message came again, the row forbade a second start"
    assert [row["attempt"] for row in run.steps()] == [1]
    after = house.fs.run("second")
    assert after.get(timeout=15) == 2
    assert worker.said("Traceback") == 0
    assert worker.said("its connection is gone") == 1


def test_a_broker_that_is_away_for_seconds_costs_no_step(house: House, rabbit: Rabbit) -> None:
    worker = house.start(slots=1)
    assert house.fs.run("quick", partition="before").get(timeout=15) == "before"
    rabbit.wire.refuses = True
    rabbit.wire.cut()
    begun = time.monotonic()
    run = house.fs.run("quick", partition="meanwhile")
    assert time.monotonic() - begun < 1.5, "the caller is not kept by a broker that is away"
    until(lambda: worker.said("consumer: Cannot connect") >= 1, 20, "the worker to notice")
    rabbit.wire.refuses = False
    assert run.get(timeout=30) == "meanwhile"
    assert house.notes("quick").count("meanwhile") == 1


def test_a_long_step_is_acknowledged_before_the_brokers_patience_ends(house: House, rabbit: Rabbit) -> None:
    """Its queue lets a message stand unacknowledged for four seconds; a quarter of that is waited for."""
    worker = house.start(queues=f"{house.prefix}-short")
    run = house.fs.run("short", partition="long")
    until(lambda: house.notes("slow-long"), what="the step to begin")
    received = worker.said("received")
    until(lambda: _seconds_of(house, run) > 5, 10, "the step to be older than the broker's patience")
    rabbit.wire.cut()
    until(lambda: worker.said("Connected to amqp") >= 2, 20, "the worker to come back")
    assert rabbit.length(f"{house.prefix}-short") == 0
    house.go("long")
    assert run.get(timeout=15) == "long"
    assert worker.said("received") == received, "what was acknowledged does not come again"
    assert len(house.notes("slow-long")) == 1


def _seconds_of(house: House, run: object) -> float:
    (row,) = house.rows(
        "SELECT extract(epoch FROM flowstone.now() - started_at)::float8 AS age FROM flowstone.steps WHERE run_id = %(run)s",
        run=run.uuid,  # type: ignore[attr-defined]
    )
    return float(row["age"])


def test_a_step_that_a_worker_does_not_know_waits_for_one_that_does(house: House) -> None:
    old = house.start(SHOP_KNOWS="few")
    run = house.fs.run("newest")
    until(lambda: "knows the task 'shop.newest'" in run.why()[0]["reason"], what="the row to say why")
    house.start()
    assert run.get(timeout=20) == "newest"
    assert [row["attempt"] for row in run.steps()] == [1]
    assert old.said("Traceback") == 0


def test_a_flood_of_unknown_messages_is_one_line_in_the_log(house: House, rabbit: Rabbit) -> None:
    old = house.start(SHOP_KNOWS="few")
    run = house.fs.run("newest")
    (step,) = run.steps()
    hint = WakeUp(step["id"], run.uuid, step["name"], "", "shop.newest", house.prefix)
    carrier = CeleryCarrier(house.fs.app, house.settings)
    carrier.send([hint] * 300)
    until(
        lambda: rabbit.length(house.prefix) == 0 and old.said("shop.newest"), what="all of them to be refused"
    )
    assert house.fs.run("quick", partition="x").get(timeout=15) == "x"
    carrier.close()
    assert old.said("a step came to this worker") == 1
    assert old.said("Traceback") == 0
    assert run.state == "pending"
    run.cancel()


def test_a_message_of_a_newer_protocol_is_refused_and_its_row_says_so(house: House, rabbit: Rabbit) -> None:
    old = house.start()
    run = house.fs.run("quick", partition="future", delay=3600)
    (step,) = run.steps()
    house.fs.app.send_task(
        "shop.quick", queue=house.prefix, headers={HEADER: {"step": step["id"], "v": PROTOCOL + 1}}
    )
    until(lambda: old.said("older version"), what="the refusal")
    until(lambda: "older version" in str(run.steps()[0]["note"]), what="the note")
    assert house.notes("quick") == []
    run.cancel()


def test_a_worker_that_the_database_has_outgrown_refuses_steps_and_runs_the_users_own_tasks(
    house: House, rabbit: Rabbit
) -> None:
    worker = house.start()
    house.rows("UPDATE flowstone.schema_version SET version = 1000, oldest_code = 1000 RETURNING id")
    until(lambda: worker.said("takes no steps any more"), 10, "the keeper to notice")
    run = house.fs.run("quick", partition="late")
    (step,) = run.steps()
    hint = WakeUp(step["id"], run.uuid, step["name"], "late", "shop.quick", house.prefix)
    carrier = CeleryCarrier(house.fs.app, house.settings)
    carrier.send([hint] * 50)
    house.fs.app.send_task("shop.plain", queue=house.prefix)
    until(lambda: house.notes("plain"), what="the user's own task")
    until(lambda: "is too old for the database" in str(run.steps()[0]["note"]), what="the note")
    carrier.close()
    assert rabbit.length(house.prefix) == 0
    assert worker.said("a step came to this worker") == 1
    assert worker.said("Traceback") == 0
    assert house.notes("quick") == []
    run.cancel()
