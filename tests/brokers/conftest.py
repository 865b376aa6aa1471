"""A RabbitMQ given by URL, with queues of each test's own, a wire that can be cut, and workers that listen through it."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import amqp
import psutil
import pytest
from amqp.exceptions import AMQPError
from brokers import rabbitshop
from brokers.proxy import Proxy
from kombu.utils.url import parse_url
from worker.conftest import Worker, until

from flowstone_celery.app import FlowStone
from flowstone_celery.config import Settings
from flowstone_celery.core import doctor
from flowstone_celery.db.database import Row
from flowstone_celery.db.statements import Statement
from flowstone_celery.testing.databases import Databases

TESTS = Path(__file__).parents[1]
VARIABLE = "FLOWSTONE_TEST_AMQP_URL"
_names = itertools.count(1)


@pytest.fixture(scope="session")
def rabbit_url() -> str:
    """The broker to test on."""
    url = os.environ.get(VARIABLE)
    if not url:
        pytest.skip(f"{VARIABLE} names no RabbitMQ, and none comes as a wheel")
    return url


@dataclass
class Rabbit:
    """The broker, as one who stands beside it sees it."""

    url: str
    wire: Proxy
    prefix: str
    channel: amqp.Channel

    @property
    def wired(self) -> str:
        """The broker's URL through the wire."""
        parts = parse_url(self.url)
        return (
            f"amqp://{parts['userid']}:{parts['password']}@127.0.0.1:{self.wire.port}/{parts['virtual_host']}"
        )

    def declare(self, name: str, kind: str, **arguments: Any) -> str:
        """A queue that nobody listens to."""
        full = f"{self.prefix}-{name}"
        self.channel.queue_declare(
            full, durable=True, auto_delete=False, arguments={"x-queue-type": kind, **arguments}
        )
        return full

    def length(self, queue: str) -> int:
        """How many messages stand ready in the queue."""
        return int(self.channel.queue_declare(queue, passive=True).message_count)


@contextmanager
def standing_beside(url: str) -> Iterator[Rabbit]:
    """The broker and a wire to it; the queues of this block go with it."""
    parts = parse_url(url)
    host, port = parts["hostname"] or "127.0.0.1", parts["port"] or 5672
    connection = amqp.Connection(
        f"{host}:{port}", parts["userid"], parts["password"], virtual_host=parts["virtual_host"] or "/"
    )
    connection.connect()
    found = Rabbit(url, Proxy(host, port), f"flowstone-test-{uuid4().hex[:8]}", connection.channel())
    try:
        yield found
    finally:
        for name in ("", "-other", "-short", "-q"):
            with suppress(AMQPError):
                connection.channel().queue_delete(found.prefix + name)
            with suppress(AMQPError):
                connection.channel().exchange_delete(found.prefix + name)
        found.wire.close()
        connection.close()


@pytest.fixture
def rabbit(rabbit_url: str) -> Iterator[Rabbit]:
    """The broker and a wire to it."""
    with standing_beside(rabbit_url) as found:
        yield found


@dataclass
class House:
    """A database, an app on some broker, a client in this process, and workers."""

    settings: Settings
    scratch: Path
    fs: FlowStone
    prefix: str
    kind: str
    broker: str
    workers: list[Worker] = field(default_factory=list)

    def start(self, *, pool: str = "prefork", slots: int = 1, queues: str = "", **env: str) -> Worker:
        """A worker that has reported itself."""
        mark, name = uuid4().hex, f"w{next(_names)}@{self.prefix}"
        log = self.scratch / f"{name}.log"
        command = [
            sys.executable,
            "-m",
            "celery",
            "-A",
            "brokers.rabbitshop",
            "worker",
            "-n",
            name,
            "-P",
            pool,
        ]
        command += ["-c", str(slots), "-Q", queues or self.prefix, "-l", "INFO"]
        with log.open("wb") as page:
            process = subprocess.Popen(
                [*command, "--without-mingle", "--without-gossip"],
                stdin=subprocess.DEVNULL,
                stdout=page,
                stderr=subprocess.STDOUT,
                cwd=TESTS,
                env={**os.environ, **self._env(), "SHOP_MARK": mark, **env},
                start_new_session=True,
            )
        worker = Worker(process, mark, name, log)
        self.workers.append(worker)
        until(lambda: self._is_up(worker), seconds=25, what=f"{name} to start")
        return worker

    def _is_up(self, worker: Worker) -> bool:
        assert worker.process.poll() is None, worker.log.read_text()
        return bool(worker.said("ready.")) and bool(
            self.rows("SELECT 1 FROM flowstone.nodes WHERE name = %(name)s", name=worker.name)
        )

    def _env(self) -> dict[str, str]:
        return {
            "FLOWSTONE_ENV": "test",
            "FLOWSTONE_DATABASE_URL": str(self.settings.database_url),
            "FLOWSTONE_LEASE_SECONDS": str(self.settings.lease_seconds),
            "FLOWSTONE_GRACE_SECONDS": str(self.settings.grace_seconds),
            "SHOP_SCRATCH": str(self.scratch),
            "SHOP_BROKER": self.broker,
            "SHOP_PREFIX": self.prefix,
            "SHOP_KIND": self.kind,
        }

    def rows(self, sql: str, **values: Any) -> list[Row]:
        """Rows of a query of the test's own."""
        return self.fs.database.once(Statement("test", "ad hoc", frozenset(), sql), **values)

    def notes(self, name: str) -> list[str]:
        """What workers noted under this name."""
        page = self.scratch / name
        return page.read_text().split() if page.exists() else []

    def go(self, name: str) -> None:
        """Let a slow asset end."""
        (self.scratch / f"go-{name}").touch()

    def close(self) -> None:
        """No process of these workers is left."""
        for worker in self.workers:
            left = worker.processes()
            for each in left:
                each.kill()
            psutil.wait_procs(left, 5)
            worker.process.wait(5)


@contextmanager
def housed(databases: Databases, scratch: Path, *, broker: str, prefix: str, kind: str) -> Iterator[House]:
    """A house for the block; afterwards its rows are sound and its workers gone."""
    with databases.fresh() as settings:
        fs = rabbitshop.shop(broker, prefix, kind)
        fs.use(settings=settings, mode="celery")
        house = House(settings, scratch, fs, prefix, kind, broker)
        try:
            yield house
            assert doctor.examine(fs.database) == []
        finally:
            house.close()
            fs.close()


@pytest.fixture(params=["classic", "quorum"])
def house(
    request: pytest.FixtureRequest, rabbit: Rabbit, flowstone_databases: Databases, tmp_path: Path
) -> Iterator[House]:
    """Workers and a client that reach RabbitMQ through the wire, once on classic and once on quorum queues."""
    with housed(
        flowstone_databases, tmp_path, broker=rabbit.wired, prefix=rabbit.prefix, kind=request.param
    ) as made:
        yield made
