"""Priority lives in the row: on Redis and on RabbitMQ alike an urgent step overtakes older ones, whatever the broker's own order."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from brokers.conftest import House, housed, standing_beside
from worker.conftest import until

from flowstone_celery.testing.databases import Databases

pytestmark = pytest.mark.worker


@pytest.fixture(params=["redis", "rabbitmq"])
def either(request: pytest.FixtureRequest, flowstone_databases: Databases, tmp_path: Path) -> Iterator[House]:
    """A house on each of the two brokers."""
    if request.param == "redis":
        url = flowstone_databases.broker_url
        redis.Redis.from_url(url.replace("redis+socket://", "unix://").split("?")[0]).flushdb()
        with housed(flowstone_databases, tmp_path, broker=url, prefix="steps", kind="none") as made:
            yield made
        return
    with (
        standing_beside(request.getfixturevalue("rabbit_url")) as rabbit,
        housed(
            flowstone_databases, tmp_path, broker=rabbit.url, prefix=rabbit.prefix, kind="classic"
        ) as made,
    ):
        yield made


def test_an_urgent_step_overtakes_older_ones_on_its_queue(either: House) -> None:
    either.start(slots=1)
    blocker = either.fs.run("slow", partition="block")
    until(lambda: either.notes("slow-block"), what="the slot to be taken")
    older = [either.fs.run("quick", partition=f"old-{n:02}") for n in range(30)]
    lazy = either.fs.run("quick", partition="lazy", priority=-5)
    urgent = either.fs.run("quick", partition="urgent", priority=9)
    either.go("block")
    for run in (blocker, urgent, *older, lazy):
        run.get(timeout=30)
    done = either.notes("quick")
    assert done.index("urgent") <= 1, "at most the one step overtakes it whose own message came first"
    assert done[-1] == "lazy"
    assert sorted(done[:-1]) == sorted(["urgent", *(f"old-{n:02}" for n in range(30))])


def test_each_queue_of_a_worker_has_its_own_order_and_none_starves(either: House) -> None:
    """What is urgent on one queue says nothing about another: that is what several queues are for."""
    worker = either.start(slots=1, queues=f"{either.prefix},{either.prefix}-other")
    blocker = either.fs.run("slow", partition="block")
    until(lambda: either.notes("slow-block"), what="the slot to be taken")
    runs = [
        either.fs.run(
            "quick",
            partition=f"{queue or '-main'}{priority}-{n}",
            priority=priority,
            queue=either.prefix + queue,
        )
        for priority in (0, 5)
        for n in range(6)
        for queue in ("", "-other")
    ]
    either.go("block")
    for run in (blocker, *runs):
        run.get(timeout=30)
    done = either.notes("quick")
    assert len(done) == 24
    for queue in ("-main", "-other"):
        own = [name for name in done if name.startswith(queue)]
        before = own[: max(n for n, name in enumerate(own) if name.startswith(f"{queue}5"))]
        late = [name for name in before if name.startswith(f"{queue}0")]
        assert len(late) <= 2, "only what a message named that came first"
    assert worker.said("Traceback") == 0


def test_messages_carry_no_priority_of_the_brokers(either: House) -> None:
    either.start(slots=1)
    blocker = either.fs.run("slow", partition="block")
    until(lambda: either.notes("slow-block"), what="the slot to be taken")
    urgent = either.fs.run("quick", partition="urgent", priority=9)
    # One message is with the worker already, or still stands in the queue: each broker shows it in its own way.
    with either.fs.app.connection_for_read() as connection, connection.channel() as channel:
        if connection.transport.driver_type == "redis":
            held = channel.client.hvals("unacked") + channel.client.lrange(either.prefix, 0, -1)
            assert held
            assert not [each for each in held if b'"priority": 9' in each]
        else:
            message = until(lambda: channel.basic_get(either.prefix), what="the message")
            assert not message.properties.get("priority")
            channel.basic_reject(message.delivery_tag, requeue=True)
    either.go("block")
    assert urgent.get(timeout=15) == "urgent"
    assert blocker.get(timeout=15) == "block"
