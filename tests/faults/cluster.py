"""Real workers, servers and clients that tests start, hurt and stop; and what must hold when the dust has settled."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias, TypeVar
from uuid import uuid4

import psutil
from faults import faultshop
from redis import Redis

from flowstone_celery import Run
from flowstone_celery.config import Settings
from flowstone_celery.core import doctor
from flowstone_celery.db.statements import Statement
from flowstone_celery.testing.databases import Databases

T = TypeVar("T")
Measured: TypeAlias = Callable[[str, object], None]
"""Notes a figure that a test measured; `pytest -rP` shows it."""

HERE = Path(__file__).parent
LEASE = 2.0
GRACE = 1.0
_MARK = "FAULT_CLUSTER"
_KEEPER = "flowstone_celery.worker.keeper_process"
_LOOK_EVERY = 0.02


class Worker:
    """One `celery worker`: the parent, its pool's children and its keeper."""

    def __init__(self, name: str, process: subprocess.Popen[bytes], log: Path) -> None:
        self.name = name
        self.process = process
        self.log = log

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def keeper(self) -> int | None:
        """The keeper's pid, if one lives."""
        return next((each.pid for each in self._below() if _is_keeper(each)), None)

    @property
    def children(self) -> list[int]:
        """The pids of the pool's processes."""
        return [each.pid for each in self._below() if not _is_keeper(each)]

    def _below(self) -> list[psutil.Process]:
        try:
            found = psutil.Process(self.pid).children()
            return [each for each in found if each.status() != psutil.STATUS_ZOMBIE]
        except psutil.NoSuchProcess:
            return []

    def text(self) -> str:
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def ended(self, within: float) -> float:
        """Seconds until the worker had ended by itself."""
        begun = time.monotonic()
        self.process.wait(within)
        return time.monotonic() - begun

    def fall(self) -> None:
        """kill -9 of everything at once: parent, children, keeper."""
        for pid in (self.pid, *(each.pid for each in self._below())):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait(10)


def _is_keeper(process: psutil.Process) -> bool:
    with suppress(psutil.Error):
        return _KEEPER in process.cmdline()
    return False


class Monitor:
    """Listens to all that Redis is told, and counts the wake-ups among it."""

    _WAKE_UP = re.compile(rb'"LPUSH".*?flowstone[^{]*{[^}]*?step[^0-9]*(\d+)')

    def __init__(self, broker_url: str) -> None:
        path = broker_url.partition("://")[2].partition("?")[0]
        self._counts: Counter[int] = Counter()
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(path)
        self._socket.sendall(b"MONITOR\r\n")
        self._lines = self._socket.makefile("rb")
        assert self._lines.readline().startswith(b"+OK")
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def _listen(self) -> None:
        for line in self._lines:
            if found := self._WAKE_UP.search(line):
                self._counts[int(found[1])] += 1

    def stop(self) -> Counter[int]:
        self._socket.shutdown(socket.SHUT_RD)
        self._thread.join(10)
        self._lines.close()
        self._socket.close()
        return self._counts


@dataclass
class Cluster:
    """A database and a Redis of one's own, a client in this process, and workers."""

    databases: Databases
    settings: Settings
    folder: Path
    workers: list[Worker] = field(default_factory=list)
    clients: list[subprocess.Popen[bytes]] = field(default_factory=list)
    mark: str = field(default_factory=lambda: uuid4().hex)
    server_crashes: bool = False
    """A claim is committed without waiting for the disk: a crash of the server may forget one, whose fence is then given again."""
    fs = faultshop.fs

    # --- processes ------------------------------------------------------------------------------------------------------------

    def worker(
        self,
        *options: str,
        module: str = "faultshop",
        pool: str = "prefork",
        slots: int = 2,
        queues: str = "celery",
        ready: bool = True,
        **environment: object,
    ) -> Worker:
        """A worker of the app; returns when it is ready to take work. Keywords in capitals are for its environment."""
        name = f"w{len(self.workers)}@{self.mark[:6]}"
        log = self.folder / f"{name}.log"
        command = [sys.executable, "-m", "celery", "-A", module, "worker", "-n", name, "-P", pool]
        command += [
            "-c",
            str(slots),
            "-Q",
            queues,
            "--loglevel",
            "INFO",
            "--without-gossip",
            "--without-mingle",
        ]
        with log.open("wb") as out:
            process = subprocess.Popen(
                [*command, *options],
                cwd=HERE,
                env=self.environment(**environment),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        worker = Worker(name, process, log)
        self.workers.append(worker)
        if ready:
            self.await_ready(worker)
        return worker

    def await_ready(self, worker: Worker, *, within: float = 20.0) -> None:
        """The worker consumes, and its node is reported."""

        def is_ready() -> bool:
            assert worker.process.poll() is None, f"{worker.name} ended with {worker.process.returncode}"
            return f"{worker.name} ready" in worker.text() and any(
                row["alive"] for row in self.sql(_NODE, name=worker.name)
            )

        self.until(is_ready, within=within, what=f"{worker.name} is ready")

    def client(self, code: str, **environment: object) -> subprocess.Popen[bytes]:
        """A process of a user who imports the app and does this."""
        with (self.folder / "client.log").open("ab") as out:
            process = subprocess.Popen(
                [sys.executable, "-c", f"from faultshop import *\n{code}"],
                cwd=HERE,
                env=self.environment(**environment),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.clients.append(process)
        return process

    def environment(self, **more: object) -> dict[str, str]:
        """What every process of this cluster is told."""
        assert self.settings.database_url
        assert self.settings.redis_url
        clean = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("FLOWSTONE_", "CELERY_"))
        }
        return {
            **clean,
            "FLOWSTONE_ENV": "test",
            "FLOWSTONE_DATABASE_URL": self.settings.database_url,
            "FLOWSTONE_REDIS_URL": self.settings.redis_url,
            "FLOWSTONE_LEASE_SECONDS": str(LEASE),
            "FLOWSTONE_GRACE_SECONDS": str(GRACE),
            faultshop.SINK: str(self.folder / "sink"),
            _MARK: self.mark,
            **{name: str(value) for name, value in more.items()},
        }

    def processes(self) -> list[psutil.Process]:
        """Everything that this cluster started, directly or not, and that still runs."""
        return [each for each in psutil.process_iter() if self._is_ours(each)]

    def _is_ours(self, process: psutil.Process) -> bool:
        with suppress(psutil.Error):
            return (
                process.status() != psutil.STATUS_ZOMBIE
                and process.pid != os.getpid()
                and process.environ().get(_MARK) == self.mark
            )
        return False

    # --- work -----------------------------------------------------------------------------------------------------------------

    def start(self, asset: str = "work", **options: Any) -> Run:
        """A run of the asset and of all it stands on, for a partition of its own if one is named."""
        return self.fs.begin([f"faultshop.{asset}"], options.pop("partition", ""), only=None, **options)

    def diamond(self, **metadata: Mapping[str, Any]) -> Run:
        """A run of four steps: seed, left and right, join."""
        return self.start("join", metadata=metadata)

    def finish(self, *runs: Run, within: float = 20.0) -> None:
        """All these runs succeed by themselves."""
        for run in runs:
            self.until(run.ready, within=within, run=run, what="the run ends")
            assert run.state == "succeeded", f"{run.state}: {run.row['error']}"

    def until(
        self,
        condition: Callable[[], T],
        *,
        within: float = 15.0,
        run: Run | None = None,
        what: str = "the condition holds",
    ) -> T:
        """Return what the condition answers as soon as it is true; fail with the reasons after so many seconds."""
        ends = time.monotonic() + within
        while not (found := condition()):
            if time.monotonic() > ends:
                why = [f"  {row['name']}: {row['reason']}" for row in run.why()] if run else []
                raise AssertionError("\n".join([f"not within {within:g} s: {what}", *why]))
            time.sleep(_LOOK_EVERY)
        return found

    def file(self, name: str = "") -> Path:
        """A path that does not exist yet."""
        return self.folder / f"{name}-{uuid4().hex[:8]}"

    def keep_commits(self) -> None:
        """A commit that was answered outlives a crash of the server, as it does by default in PostgreSQL."""
        self.sql(_KEEP)
        self.fs.close()

    def await_flushed(self) -> None:
        """What was written until now outlives a crash of the server, also what was committed without waiting for that."""
        written = self.sql("SELECT pg_current_wal_insert_lsn()::text AS lsn")[0]["lsn"]
        flushed = "SELECT pg_current_wal_flush_lsn() >= %(lsn)s::pg_lsn AS yes"
        self.until(lambda: self.sql(flushed, lsn=written)[0]["yes"], what="the log is flushed")

    # --- look -----------------------------------------------------------------------------------------------------------------

    def sql(self, text: str, **values: object) -> list[dict[str, Any]]:
        return self.fs.database.once(Statement("faults", "ad hoc", frozenset(), text), **values)

    @cached_property
    def redis(self) -> Redis:
        """The broker, as redis-py sees it."""
        url = self.databases.broker_url
        return Redis.from_url(url.replace("redis+socket:", "unix:").replace("virtual_host", "db"))

    def sink(
        self, *, event: str = "start", asset: str | None = None, run: Run | None = None
    ) -> list[dict[str, Any]]:
        """What user code wrote down, oldest first."""
        path = self.folder / "sink"
        # The last line may be under way still.
        whole = path.read_text().rpartition("\n")[0] if path.exists() else ""
        lines = [json.loads(line) for line in whole.splitlines()]
        return [
            line
            for line in lines
            if line["event"] == event
            and asset in (None, line["asset"])
            and (run is None or line["run"] == run.id)
        ]

    def step(self, run: Run, name: str) -> dict[str, Any]:
        """The step's row."""
        return next(row for row in run.steps() if row["name"] == f"faultshop.{name}")

    def running(self, run: Run, asset: str = "work", *, attempt: int = 1) -> dict[str, Any]:
        """What the asset's function wrote down as it began this attempt, once it has."""
        return self.until(
            lambda: next((s for s in self.sink(asset=asset, run=run) if s["attempt"] == attempt), None),
            run=run,
            what=f"attempt {attempt} of {asset} runs",
        )

    @contextmanager
    def traffic(self) -> Iterator[Counter[int]]:
        """How many wake-ups went to each step while the block ran, as the broker saw them."""
        monitor, counted = Monitor(self.databases.broker_url), Counter[int]()
        try:
            yield counted
        finally:
            counted.update(monitor.stop())

    # --- what must hold -------------------------------------------------------------------------------------------------------

    def check(self) -> None:
        """No breach of an invariant; each settled attempt wrote once, and no commit stands twice."""
        findings = doctor.examine(self.fs.database)
        assert not findings, "\n".join(f"{each.invariant}: {each.sentence}" for each in findings)
        keys = Counter((line["key"], line["fence"]) for line in self.sink())
        twice = {key: count for key, count in keys.items() if count > 1}
        assert self.server_crashes or not twice, f"user code began more than once under one fence: {twice}"
        ends = self.sql(_ENDS)
        assert all(row["ends"] == 1 for row in ends), f"steps ended more than once in a round: {ends}"

    def stop(self) -> None:
        """The parent of every worker is killed; its keeper, and the children with it, are gone soon after."""
        for worker in self.workers:
            worker.process.kill()
            for child in worker.children:
                with suppress(ProcessLookupError):
                    os.kill(child, signal.SIGCONT)
            worker.ended(5)

    def bury(self) -> None:
        """What still runs is killed, so that a failed test harms no other."""
        for process in self.processes():
            with suppress(psutil.Error):
                process.kill()
        for process in (*(worker.process for worker in self.workers), *self.clients):
            with suppress(subprocess.TimeoutExpired):
                process.wait(5)

    def story(self) -> str:
        """The ends of all logs."""
        logs = sorted(self.folder.glob("*.log"))
        return "\n".join(f"--- {log.name}\n{log.read_text(errors='replace')[-6000:]}" for log in logs)


_NODE = "SELECT alive_until > flowstone.now() AS alive FROM flowstone.nodes WHERE name = %(name)s AND status = 'live'"
_KEEP = """
DO $$ BEGIN EXECUTE format('ALTER DATABASE %%I SET synchronous_commit TO on', current_database()); END $$
"""
_ENDS = """
SELECT h.step_id, h.round, count(*) AS ends FROM flowstone.history h
 WHERE h.event IN ('step.succeeded', 'step.failed', 'step.skipped', 'step.cancelled') GROUP BY h.step_id, h.round
"""


@contextmanager
def cluster(databases: Databases, folder: Path, **settings: Any) -> Iterator[Cluster]:
    """A cluster on a database of its own, its Redis empty; afterwards its rows are sound and no process of it is left."""
    with databases.fresh(lease_seconds=LEASE, grace_seconds=GRACE, **settings) as found:
        made = Cluster(databases, found, folder)
        made.redis.flushall()
        faultshop.app.conf.broker_url = databases.broker_url
        before = made.fs.use(settings=found, mode="celery")
        made.keep_commits()
        try:
            yield made
            made.check()
            made.stop()
            made.until(lambda: not made.processes(), within=10, what="no process is left")
            made.check()
        finally:
            made.bury()
            made.redis.close()
            made.fs.close()
            made.fs.use(**before)
