"""One worker with two children, in a process group of its own of which nothing is left."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.errors import BenchmarkError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

ROOT = Path(__file__).parents[1]
CHILDREN = 2
NO_CELERY = frozenset({"benchmarks.peers.dbos_peer"})

_STOP_SECONDS = 20.0
_LOG_LINES = 15


@contextmanager
def worker(
    python: Path, app: str, *, env: Mapping[str, str], events: bool, log: Path
) -> Iterator[subprocess.Popen[bytes]]:
    """The worker of this module for the block; who needs it ready asks `refuse_dead` until it answers a ping.

    The module of a side that is no Celery app is its own worker: `python -m module CHILDREN`.
    """
    words = ["-m", "celery", "-A", app, "worker", "-P", "prefork", "-c", str(CHILDREN), "-l", "WARNING"]
    words += ["-n", f"{app.rpartition('.')[2]}@%h", *(["-E"] if events else [])]
    if app in NO_CELERY:
        words = ["-m", app, str(CHILDREN)]
    with log.open("wb") as output:
        process = subprocess.Popen(
            [str(python), *words],
            cwd=ROOT,
            env=dict(env),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        _stop(process)


def refuse_dead(process: subprocess.Popen[bytes], log: Path) -> None:
    """Raise with the end of its log if the worker is not running any more."""
    if process.poll() is None:
        return
    end = "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-_LOG_LINES:])
    raise BenchmarkError(f"a worker ended with code {process.returncode}; its last words:\n{end}")


def _stop(process: subprocess.Popen[bytes]) -> None:
    """A warm shutdown, or a killed group: no process of it is left."""
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(_STOP_SECONDS)
    deadline = time.monotonic() + _STOP_SECONDS
    while _signal_group(process.pid, signal.SIGKILL) and time.monotonic() < deadline:
        # Killed children whose parent is gone are reaped by init, a moment later.
        process.poll()
        time.sleep(0.01)
    process.wait()


def _signal_group(group: int, number: int) -> bool:
    """Whether the group had a process to signal."""
    try:
        os.killpg(group, number)
    except ProcessLookupError:
        return False
    return True
