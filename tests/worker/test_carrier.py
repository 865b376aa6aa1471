"""The carrier: messages leave, or are left to the sweep at a bounded price."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator
from uuid import uuid4

import pytest
from celery import Celery

from flowstone_celery.core.model import WakeUp
from flowstone_celery.telemetry import recorded
from flowstone_celery.worker.carrier import CeleryCarrier
from worker.conftest import Site


@pytest.fixture
def queue() -> str:
    return f"q{uuid4().hex[:8]}"


@pytest.fixture
def carrier(site: Site) -> Iterator[CeleryCarrier]:
    """A carrier on a bare app, as the keeper has it."""
    made = CeleryCarrier(Celery(broker=site.settings.redis_url, set_as_current=False), site.settings)
    yield made
    made.close()


def hints(queue: str, count: int) -> list[WakeUp]:
    return [WakeUp(step, uuid4(), "shop.quick", "p", "shop.quick", queue) for step in range(count)]


def test_many_leave_in_one_batch_and_are_told_once(site: Site, carrier: CeleryCarrier, queue: str) -> None:
    with recorded() as events:
        carrier.send(hints(queue, 2_500))
    assert site.broker.llen(queue) == 2_500
    (sent,) = [each for each in events if each.name == "flowstone.wakeup.sent"]
    assert (sent.fields["queue"], sent.fields["count"]) == (queue, 2_500)


def test_threads_share_one_carrier(site: Site, carrier: CeleryCarrier, queue: str) -> None:
    def work() -> None:
        for hint in hints(queue, 50):
            carrier.send([hint])

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert site.broker.llen(queue) == 400


def test_a_forked_child_has_a_connection_of_its_own(site: Site, carrier: CeleryCarrier, queue: str) -> None:
    carrier.send(hints(queue, 1))
    pid = os.fork()
    if pid == 0:
        carrier.send(hints(queue, 1))
        os._exit(0)
    carrier.send(hints(queue, 1))
    assert os.waitpid(pid, 0)[1] == 0
    carrier.send(hints(queue, 1))
    assert site.broker.llen(queue) == 4


def test_a_connection_that_went_stale_costs_no_message(
    site: Site, carrier: CeleryCarrier, queue: str
) -> None:
    carrier.send(hints(queue, 1))
    site.broker.client_kill_filter(_type="normal", skipme=True)
    carrier.send(hints(queue, 1))
    assert site.broker.llen(queue) == 2


@pytest.mark.parametrize("kind", ["refuses", "is silent"])
def test_a_broker_that_is_away_costs_its_timeout_once_in_a_second(site: Site, queue: str, kind: str) -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    if kind == "refuses":
        listener.close()
    carrier = CeleryCarrier(Celery(broker=f"redis://127.0.0.1:{port}/0", set_as_current=False), site.settings)
    begun = time.monotonic()
    with recorded() as events:
        for hint in hints(queue, 500):
            carrier.send([hint])
    assert time.monotonic() - begun < 3 * site.settings.publish_timeout_seconds
    (failed,) = [each for each in events if each.name == "flowstone.wakeup.failed"]
    assert failed.fields["count"] == 1, "the others are told with the next try"
    carrier.close()
    listener.close()


def test_what_was_not_tried_is_told_with_the_next_try(site: Site, carrier: CeleryCarrier, queue: str) -> None:
    app = Celery(broker="redis://127.0.0.1:1/0", set_as_current=False)
    carrier = CeleryCarrier(app, site.settings)
    with recorded() as events:
        for hint in hints(queue, 5):
            carrier.send([hint])
        carrier.close()  # a closed line forgets that it was down
        carrier.send(hints(queue, 1))
    counts = [each.fields["count"] for each in events if each.name == "flowstone.wakeup.failed"]
    assert counts == [1, 5]
