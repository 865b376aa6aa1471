"""Workers as processes of their own, and nothing of them left afterwards."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from uuid import uuid4

import psutil
import pytest
import redis

from flowstone_celery.core import doctor
from flowstone_celery.db.statements import Statement
from worker import shop

if TYPE_CHECKING:
    from flowstone_celery.config import Settings
    from flowstone_celery.db.database import Row
    from flowstone_celery.testing.databases import Databases

T = TypeVar("T")
COMMAND = [
    "-m",
    "celery",
    "-A",
    "worker.shop",
    "worker",
    "--without-mingle",
    "--without-gossip",
    "-l",
    "INFO",
]
_numbers = itertools.count(1)
TESTS = Path(__file__).parents[1]


def until(found: Callable[[], T], seconds: float = 15.0, what: str = "") -> T:
    """The first answer that is true, looked for often."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        answer = found()
        if answer:
            return answer
        time.sleep(0.02)
    pytest.fail(f"waited {seconds:g} s in vain for {what or found}")


@dataclass
class Worker:
    """One worker under test: its parent process, and the mark that all its processes carry in their environment."""

    process: subprocess.Popen[bytes]
    mark: str
    name: str
    log: Path

    def processes(self) -> list[psutil.Process]:
        """Every process that descends from this worker, whoever is its parent now."""
        return [each for each in psutil.process_iter() if _marked(each, self.mark)]

    def keeper(self) -> psutil.Process:
        """The keeper's process."""
        return next(
            each for each in self.processes() if "flowstone_celery.worker.keeper_process" in each.cmdline()
        )

    def said(self, text: str) -> int:
        """How often the log says this."""
        return self.log.read_text().count(text)

    def stop(self, number: int = signal.SIGTERM, seconds: float = 20.0) -> float:
        """The seconds from the signal to the end of the parent process."""
        begun = time.monotonic()
        self.process.send_signal(number)
        self.process.wait(seconds)
        return time.monotonic() - begun


def _marked(process: psutil.Process, mark: str) -> bool:
    try:
        return process.environ().get("SHOP_MARK") == mark and process.status() != psutil.STATUS_ZOMBIE
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return False


@dataclass
class Site:
    """A database, a broker, a client, and the workers that a test starts."""

    settings: Settings
    scratch: Path
    broker: redis.Redis
    workers: list[Worker] = field(default_factory=list)

    @property
    def fs(self) -> Any:
        """The client."""
        return shop.fs

    def start(
        self, *arguments: str, pool: str = "prefork", slots: int = 1, wait: bool = True, **env: str
    ) -> Worker:
        """A worker that has reported itself."""
        mark, name = uuid4().hex, f"w{next(_numbers)}@test"
        log = self.scratch / f"{name}.log"
        with log.open("wb") as page:
            process = subprocess.Popen(
                [sys.executable, *COMMAND, "-n", name, "-P", pool, "-c", str(slots), *arguments],
                stdin=subprocess.DEVNULL,
                stdout=page,
                stderr=subprocess.STDOUT,
                cwd=TESTS,
                env={**os.environ, **self._env(), "SHOP_MARK": mark, **env},
                start_new_session=True,
            )
        worker = Worker(process, mark, name, log)
        self.workers.append(worker)
        if wait:
            until(lambda: self._is_up(worker), what=f"{name} to start")
        return worker

    def _is_up(self, worker: Worker) -> bool:
        assert worker.process.poll() is None, worker.log.read_text()
        return bool(worker.said("ready.") and self.node(worker))

    def _env(self) -> dict[str, str]:
        settings = self.settings
        return {
            "FLOWSTONE_ENV": "test",
            "FLOWSTONE_DATABASE_URL": str(settings.database_url),
            "FLOWSTONE_REDIS_URL": str(settings.redis_url),
            "FLOWSTONE_LEASE_SECONDS": str(settings.lease_seconds),
            "FLOWSTONE_GRACE_SECONDS": str(settings.grace_seconds),
            "SHOP_SCRATCH": str(self.scratch),
        }

    def rows(self, sql: str, **values: Any) -> list[Row]:
        """Rows of a query of the test's own."""
        return self.fs.database.once(Statement("test", "ad hoc", frozenset(), sql), **values)

    def node(self, worker: Worker) -> Row | None:
        """The worker's row, if it lives."""
        rows = self.rows(
            "SELECT * FROM flowstone.nodes WHERE name = %(name)s AND status <> 'gone'", name=worker.name
        )
        return rows[0] if rows else None

    def steps(self, run: Any) -> list[Row]:
        """The run's steps in order."""
        return self.rows(
            "SELECT * FROM flowstone.steps WHERE run_id = %(run)s ORDER BY ordinal", run=run.uuid
        )

    def events(self, run: Any) -> list[str]:
        """The names of the run's history."""
        rows = self.rows(
            "SELECT event FROM flowstone.history WHERE run_id = %(run)s ORDER BY id", run=run.uuid
        )
        return [row["event"] for row in rows]

    def notes(self, name: str) -> list[str]:
        """What workers noted under this name."""
        return shop.notes(name, self.scratch)

    def go(self, name: str) -> None:
        """Let a slow asset end."""
        (self.scratch / f"go-{name}").touch()

    def close(self, workers: list[Worker] | None = None) -> None:
        """Kill what still runs of these workers, or of all."""
        ending = list(self.workers) if workers is None else workers
        for worker in ending:
            left = worker.processes()
            for each in left:
                each.kill()
            psutil.wait_procs(left, 5)
            worker.process.wait(5)
            self.workers.remove(worker)


@pytest.fixture(scope="module")
def module_site(flowstone_databases: Databases, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """One database and an empty broker for a module's tests."""
    with flowstone_databases.fresh() as settings:
        broker = redis.Redis.from_url(
            str(settings.redis_url).replace("redis+socket://", "unix://").split("?")[0]
        )
        broker.flushall()
        shop.app.conf.broker_url = settings.redis_url
        before = shop.fs.use(settings=settings, mode="celery")
        site = Site(settings, tmp_path_factory.mktemp("scratch"), broker)
        yield site
        site.close()
        shop.fs.close()
        shop.fs.use(**before)
        broker.close()


@pytest.fixture
def site(module_site: Site) -> Iterator[Site]:
    """The module's site; a test's own workers end with it, and the doctor finds nothing then."""
    before = list(module_site.workers)
    if not before:
        module_site.broker.flushall()
    yield module_site
    module_site.close([worker for worker in module_site.workers if worker not in before])
    assert doctor.examine(module_site.fs.database) == []
