"""A side of a benchmark: its worker, and its client process that does what it is asked."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.errors import BenchmarkError
from benchmarks.servers import Services, serving
from benchmarks.workers import ROOT, refuse_dead, worker

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Iterator, Mapping, Sequence

PEERS_PYTHON = ROOT / ".bench-venv" / "bin" / "python"

_OURS = "benchmarks.apps.ours"
_PEERS = {"celery": "benchmarks.peers.celery_peer", "dbos": "benchmarks.peers.dbos_peer"}
"""The module of each peer, which bears the peer's own name in its environment."""
_READY_SECONDS = 60.0


class Side:
    """One side while it runs."""

    def __init__(self, client: subprocess.Popen[str], worker_pid: int | None = None) -> None:
        """Talk to this client process. `worker_pid`: the parent of the side's worker, if it has one."""
        self._client = client
        self.client_pid = client.pid
        self.worker_pid = worker_pid

    def ask(self, deed: str, **options: object) -> Any:
        """What the deed answers, in the client's process.

        Raises:
            BenchmarkError: it failed there; the message holds its traceback.
        """
        assert self._client.stdin is not None
        assert self._client.stdout is not None
        self._client.stdin.write(json.dumps({"deed": deed, "options": options}) + "\n")
        self._client.stdin.flush()
        said = json.loads(self._client.stdout.readline() or '{"error": "the client process ended"}')
        if "error" in said:
            raise BenchmarkError(f"{deed!r} failed:\n{said['error']}")
        return said["answer"]


@dataclass(frozen=True, slots=True)
class Sides:
    """All sides, warm."""

    ours: Side
    peers: Mapping[str, Side]
    machine: dict[str, str]
    database_url: str
    absent: Mapping[str, str] = field(default_factory=dict)
    """Peers that were asked for and are not installed, and the way out."""


@contextmanager
def sides(
    options: Namespace,
    *,
    peers: Sequence[str] = ("celery",),
    absent_is_told: bool = False,
    **environment: str,
) -> Iterator[Sides]:
    """Servers, workers and clients for the block. The variables are for all sides' processes.

    `absent_is_told`: a peer that is not installed is no error, but stands in `Sides.absent`.

    Raises:
        BenchmarkError: a peer is not there, or a worker does not come up.
    """
    python: Path = options.peer_python
    absent = {peer: told for peer in peers if (told := _absence(python, peer)) is not None}
    if absent and not absent_is_told:
        raise BenchmarkError(next(iter(absent.values())))
    with ExitStack() as stack:
        services = stack.enter_context(serving())
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="flowstone-benchmark-logs-")))
        env = {**_environment(services, folder), **environment}
        ours = stack.enter_context(
            _side(Path(sys.executable), _OURS, _with_broker(env, services.broker(0)), options.events, folder)
        )
        theirs = {
            peer: stack.enter_context(
                _side(
                    python, _PEERS[peer], _with_broker(env, services.broker(number)), options.events, folder
                )
            )
            for number, peer in enumerate(peers, 1)
            if peer not in absent
        }
        versions: dict[str, str] = {}
        for side in (ours, *theirs.values()):
            versions.update(side.ask("about"))
        yield Sides(ours, theirs, {**services.versions, **versions}, services.database_url, absent)


@dataclass(frozen=True, slots=True)
class Alone:
    """Servers, and clients of ours as they are asked for; no worker."""

    module: str
    env: Mapping[str, str]
    versions: Mapping[str, str]

    def client(self) -> AbstractContextManager[Side]:
        """A client process for the block."""
        return _client(Path(sys.executable), self.module, self.env)


@contextmanager
def alone(module: str, **environment: str) -> Iterator[Alone]:
    """Servers for the block, of which clients make use that run this module. The variables are for the clients."""
    with serving() as services, tempfile.TemporaryDirectory(prefix="flowstone-benchmark-logs-") as folder:
        env = {**_environment(services, Path(folder)), **environment}
        yield Alone(module, _with_broker(env, services.broker(0)), services.versions)


@contextmanager
def _side(python: Path, module: str, env: Mapping[str, str], events: bool, folder: Path) -> Iterator[Side]:
    """The worker answers and both of its children have worked."""
    log = folder / f"{module}.log"
    with (
        worker(python, module, env=env, events=events, log=log) as process,
        _client(python, module, env, process.pid) as side,
    ):
        deadline = time.monotonic() + _READY_SECONDS
        while not side.ask("ping"):
            refuse_dead(process, log)
            if time.monotonic() > deadline:
                raise BenchmarkError(f"the worker of {module} does not answer within {_READY_SECONDS:.0f} s")
        side.ask("warm")
        yield side


@contextmanager
def _client(
    python: Path, module: str, env: Mapping[str, str], worker_pid: int | None = None
) -> Iterator[Side]:
    process = subprocess.Popen(
        [str(python), "-m", "benchmarks.client", module],
        cwd=ROOT,
        env=dict(env),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        yield Side(process, worker_pid)
    finally:
        process.kill()
        process.communicate()


def _environment(services: Services, folder: Path) -> dict[str, str]:
    """The caller's variables without settings of ours, which would make figures that cannot be compared."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("FLOWSTONE_")}
    return {
        **kept,
        "FLOWSTONE_DATABASE_URL": services.database_url,
        "FLOWSTONE_REDIS_URL": services.redis_url,
        "FLOWSTONE_HOME": str(folder),
    }


def _with_broker(env: Mapping[str, str], url: str) -> dict[str, str]:
    return {**env, "BENCHMARK_BROKER_URL": url}


def _absence(python: Path, peer: str) -> str | None:
    """Why this peer cannot take part, and the way out; None: it can."""
    other = "or name another interpreter that has it with --peer-python"
    if not python.exists():
        return f"{peer} lives in an environment of its own, and {python} is not there: run `make bench-venv`, {other}"
    found = subprocess.run([str(python), "-c", f"import {peer}"], cwd="/", capture_output=True, check=False)
    if found.returncode:
        return f"{python} does not have {peer}: run `{python} -m pip install {peer}`, {other}"
    return None
