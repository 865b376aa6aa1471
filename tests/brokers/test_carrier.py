"""The carrier on RabbitMQ: a wake-up has left when the broker says so, and a broker that says nothing is not waited for."""

from __future__ import annotations

import time
from collections.abc import Iterator
from uuid import uuid4

import pytest
from brokers.conftest import Rabbit
from celery import Celery
from worker.conftest import until

from flowstone_celery.config import Settings, load_settings
from flowstone_celery.core.model import WakeUp
from flowstone_celery.telemetry import Event, recorded
from flowstone_celery.worker.carrier import CeleryCarrier

pytestmark = pytest.mark.worker
SETTINGS: Settings = load_settings(env_file=None)
BOUND = SETTINGS.publish_timeout_seconds


@pytest.fixture(params=["classic", "quorum"])
def queue(request: pytest.FixtureRequest, rabbit: Rabbit) -> str:
    return rabbit.declare("q", request.param)


@pytest.fixture
def carrier(rabbit: Rabbit) -> Iterator[CeleryCarrier]:
    """A carrier on a bare app, as the keeper has it, through the wire."""
    made = CeleryCarrier(Celery(broker=rabbit.wired, set_as_current=False), SETTINGS)
    yield made
    made.close()


def hints(queue: str, count: int) -> list[WakeUp]:
    return [WakeUp(step, uuid4(), "shop.quick", "p", "shop.quick", queue) for step in range(count)]


def told(events: list[Event]) -> dict[str, int]:
    """How many wake-ups left and how many did not, by the events."""
    found: dict[str, int] = {}
    for each in events:
        word = each.name.rpartition(".")[2]
        found[word] = found.get(word, 0) + each.fields["count"]
    return found


def test_many_leave_in_one_batch_and_each_is_confirmed(
    rabbit: Rabbit, carrier: CeleryCarrier, queue: str
) -> None:
    with recorded() as events:
        carrier.send(hints(queue, 1_500))
    assert told(events) == {"sent": 1_500}
    assert rabbit.length(queue) == 1_500, "what was told to have left is in the queue at that moment"


def test_a_queue_that_does_not_exist_takes_nothing_and_keeps_nobody_from_the_others(
    rabbit: Rabbit, carrier: CeleryCarrier, queue: str
) -> None:
    nowhere = f"{rabbit.prefix}-nowhere"
    with recorded() as events:
        carrier.send([*hints(nowhere, 3), *hints(queue, 2)])
        carrier.send(hints(queue, 1))
    assert [(e.name, e.fields["queue"], e.fields["count"]) for e in events] == [
        ("flowstone.wakeup.failed", nowhere, 3),
        ("flowstone.wakeup.sent", queue, 2),
        ("flowstone.wakeup.sent", queue, 1),
    ]
    assert rabbit.length(queue) == 3


def test_a_full_queue_that_rejects_counts_as_failed(rabbit: Rabbit, carrier: CeleryCarrier) -> None:
    full = rabbit.declare("q", "classic", **{"x-max-length": 2, "x-overflow": "reject-publish"})
    with recorded() as events:
        carrier.send(hints(full, 1))
        carrier.send(hints(full, 1))
        carrier.send(hints(full, 1))
    assert told(events) == {"sent": 2, "failed": 1}
    assert rabbit.wire.accepted == 1, "a broker that refuses a message is there: the line stays"


def test_a_connection_that_was_cut_costs_no_message(
    rabbit: Rabbit, carrier: CeleryCarrier, queue: str
) -> None:
    carrier.send(hints(queue, 1))
    assert rabbit.wire.cut() == 1
    with recorded() as events:
        carrier.send(hints(queue, 1))
    assert told(events) == {"sent": 1}
    assert rabbit.length(queue) == 2


def test_a_channel_that_the_broker_closed_is_replaced_within_a_second(
    rabbit: Rabbit, carrier: CeleryCarrier, queue: str
) -> None:
    carrier.send(hints(queue, 1))

    def offend(producer: object) -> None:
        producer.publish("", exchange=f"{rabbit.prefix}-no-such-exchange", routing_key="any")  # type: ignore[attr-defined]

    error = carrier._line.use(offend)
    assert error is not None
    assert "NOT_FOUND" in str(error)
    with recorded() as events:
        until(
            lambda: carrier.send(hints(queue, 1)) or told(events).get("sent"), 3, "the line to be tried again"
        )
    assert rabbit.length(queue) == 2


def test_an_unconfirmed_publish_counts_as_failed_and_is_waited_for_once_in_a_second(
    rabbit: Rabbit, carrier: CeleryCarrier, queue: str
) -> None:
    carrier.send(hints(queue, 1))
    rabbit.wire.freeze()
    with recorded() as events:
        begun = time.monotonic()
        carrier.send(hints(queue, 300))
        carrier.send(hints(queue, 200))
        took = time.monotonic() - begun
    assert BOUND <= took < 3 * BOUND
    assert told(events) == {"failed": 300}, "the others are told with the next try"
    rabbit.wire.thaw()


@pytest.mark.parametrize("kind", ["refuses", "is silent"])
def test_a_broker_that_is_away_costs_its_timeout_once_in_a_second(
    rabbit: Rabbit, carrier: CeleryCarrier, kind: str
) -> None:
    if kind == "refuses":
        rabbit.wire.refuses = True
    else:
        rabbit.wire.freeze()
    begun = time.monotonic()
    with recorded() as events:
        for hint in hints("anywhere", 500):
            carrier.send([hint])
    assert time.monotonic() - begun < 3 * BOUND
    assert told(events) == {"failed": 1}
