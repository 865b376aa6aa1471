"""Real Celery workers as processes of this command: started, watched, one of them killed, all of them ended."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from flowstone_celery.core.model import proc_state
from flowstone_celery.core.statements import SQL
from flowstone_celery.errors import FlowStoneError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from flowstone_celery.db.database import Database

CHILDREN: Final = 2
"""Processes of each worker's pool: the worker that survives keeps two cores busy."""
_READY_SECONDS: Final = 30.0
_STOP_SECONDS: Final = 10.0
_LOOK_EVERY: Final = 0.05
_TAIL: Final = 12


class DemoFailed(FlowStoneError):  # noqa: N818 - named as RunFailed is
    """The demo could not show what it promises."""

    code = "FS-2090"


@dataclass(frozen=True, slots=True)
class Worker:
    """One Celery worker: the parent of a pool, in a session of its own."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path

    @property
    def pid(self) -> int:
        """The parent's process id."""
        return self.process.pid

    @property
    def tail(self) -> str:
        """The last lines of its log."""
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()
        return "\n".join(f"  {line}" for line in lines[-_TAIL:])


class Crew:
    """The workers of one demo."""

    def __init__(self, app: str, queue: str, folder: Path, variables: Mapping[str, str]) -> None:
        """Start nothing yet.

        Args:
            app: the Celery app, as for `celery -A`.
            queue: what the workers listen to.
            folder: where logs and temporary files go.
            variables: what the workers' environment says beyond ours.
        """
        self._command = (
            sys.executable, "-m", "celery", "-A", app, "worker", "--pool", "prefork", "--concurrency", str(CHILDREN),
            "--queues", queue, "--prefetch-multiplier", "1", "--loglevel", "INFO", "--without-mingle", "--without-gossip",
        )  # fmt: skip
        self._folder = folder
        # A killed worker cannot clean up after itself: its temporary files are where we can.
        self._temporary = folder / "tmp"
        self._temporary.mkdir(exist_ok=True)
        self._environment = {**os.environ, **variables, "TMPDIR": str(self._temporary)}
        self.workers: list[Worker] = []
        """Those that are to be alive."""
        self._all: list[Worker] = []

    def start(self, name: str) -> Worker:
        """This worker is on its way; what it says goes to its log."""
        log = self._folder / f"{name}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(  # noqa: S603 - our own interpreter and Celery
                (*self._command, "--hostname", f"{name}@%h"),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=self._environment,
                # Ctrl-C in the terminal is for the demo, which ends its workers itself.
                start_new_session=True,
            )
        worker = Worker(name, process, log)
        self.workers.append(worker)
        self._all.append(worker)
        return worker

    def wait_until_ready(self, database: Database) -> None:
        """Every worker has reported its node.

        Raises:
            DemoFailed: one of them ended, or did not report in time; with the end of its log.
        """
        wanted = {worker.pid for worker in self.workers}

        def ready() -> bool:
            self.check()
            return wanted <= {row["pid"] for row in database.once(SQL["nodes"]) if row["alive"]}

        if not until(ready, _READY_SECONDS):
            raise self.failed(f"the workers were not ready within {_READY_SECONDS:g} s")

    def check(self) -> None:
        """Every worker that was not killed here lives.

        Raises:
            DemoFailed: one ended; with the end of its log.
        """
        for worker in self.workers:
            if worker.process.poll() is not None:
                raise self.failed(f"{worker.name} ended with exit code {worker.process.returncode}")

    def kill(self, worker: Worker) -> list[int]:
        """The whole worker is gone at once, by SIGKILL: its parent, the pool's processes, its keeper. Answers their ids."""
        killed = family(worker.pid)
        for pid in killed:
            _send_kill(pid)
        worker.process.wait()
        self.workers.remove(worker)
        until(lambda: not any(map(_lives, killed)), _STOP_SECONDS)
        return killed

    def stop(self) -> None:
        """No process of any worker is left: they are asked to go, and killed if they do not."""
        workers, self.workers = self.workers, []
        families = [_Members(worker.pid) for worker in workers]
        for worker in workers:
            worker.process.terminate()
        # A parent whose pool has gone waits a second or two for threads of its own. Its keeper needs no parent to say goodbye.
        until(lambda: not any(each.in_session() for each in families), _STOP_SECONDS)
        for worker in workers:
            worker.process.kill()
            worker.process.wait()
        until(lambda: not any(each.alive() for each in families), _STOP_SECONDS)
        for pid in (pid for each in families for pid in each.alive()):
            _send_kill(pid)
        shutil.rmtree(self._temporary, ignore_errors=True)

    def failed(self, what: str) -> DemoFailed:
        """The error for what went wrong, with the end of every log."""
        tails = "\n".join(f"The end of {worker.log}:\n{worker.tail}" for worker in self._all)
        return DemoFailed(f"{what}\n{tails}", hint="Mend what the logs name, and run the demo again.")


class _Members:
    """The processes below a worker's parent, with their start times: the id of one that ended may belong to a stranger soon."""

    def __init__(self, parent: int) -> None:
        self._session = parent
        self._found = {pid: proc_state(pid) for pid in family(parent)[1:]}

    def alive(self) -> list[int]:
        return [pid for pid, state in self._found.items() if state and _lives(pid, state[1])]

    def in_session(self) -> list[int]:
        """Those of the pool; the keeper has a session of its own."""
        return [pid for pid in self.alive() if _session(pid) == self._session]


def _session(pid: int) -> int | None:
    try:
        return os.getsid(pid)
    except ProcessLookupError:
        return None


def family(pid: int) -> list[int]:
    """The process and all that descend from it, elders first."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):
                stat = (entry / "stat").read_text(encoding="utf-8", errors="replace")
                parents.setdefault(int(stat.rpartition(")")[2].split()[1]), []).append(int(entry.name))
    found = [pid]
    for each in found:
        found.extend(parents.get(each, ()))
    return found


def until(condition: Callable[[], bool], seconds: float) -> bool:
    """True as soon as the condition holds, False if it does not within the time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(_LOOK_EVERY)
    return True


def _send_kill(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def _lives(pid: int, started: int | None = None) -> bool:
    state = proc_state(pid)
    return state is not None and state[0] not in "ZX" and started in (None, state[1])
