"""Each service of docker-compose.yml, started as a process by its own command, becomes ready and stops again."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import pytest
from faults.cluster import Cluster
from test_compose import ROOT, Service, services

pytestmark = pytest.mark.worker

APP = ROOT / "examples" / "shop"
SERVICES = {each.name: each for each in services()}
OURS = sorted(name for name in SERVICES if name not in ("postgres", "redis", "migrate"))


@contextmanager
def started(
    fleet: Cluster, service: Service
) -> Iterator[tuple[subprocess.Popen[bytes], Callable[[], str], int]]:
    """The service's command with its environment, the servers' names exchanged for ours; its port, if it has one, is free."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    words = [word.replace("0.0.0.0", "127.0.0.1").replace("5555", str(port)) for word in service.command]
    words = [word.replace("/tmp/", f"{fleet.folder}/") for word in words]
    program = Path(sys.executable).with_name(words[0])
    log = fleet.folder / f"{service.name}.log"
    urls = ("FLOWSTONE_DATABASE_URL", "FLOWSTONE_REDIS_URL")
    ours = fleet.environment()
    given = {**service.environment, **{name: ours[name] for name in urls}, "PYTHONPATH": _python_path()}
    with log.open("wb") as out:
        process = subprocess.Popen(
            [str(program), *words[1:]],
            cwd=APP,
            env={**ours, **given},
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    fleet.clients.append(process)
    yield process, lambda: log.read_text(errors="replace"), port


def _python_path() -> str:
    return os.pathsep.join(filter(None, (str(APP), os.environ.get("PYTHONPATH"))))


def _answers(port: int) -> bool:
    try:
        with urlopen(f"http://127.0.0.1:{port}/healthcheck", timeout=2) as answer:
            return bool(answer.status == 200)
    except (URLError, OSError):
        return False


def _is_ready(name: str, text: str, port: int) -> bool:
    if name.startswith("worker"):
        return re.search(r"celery@\S+ ready", text) is not None
    if name.startswith("beat"):
        return "beat: Starting" in text
    assert name == "flower", f"nobody has said how {name} shows that it is ready"
    return _answers(port)


@pytest.mark.parametrize("name", OURS)
def test_a_service_becomes_ready_and_stops(fleet: Cluster, name: str) -> None:
    with started(fleet, SERVICES[name]) as (process, text, port):

        def is_ready() -> bool:
            assert process.poll() is None, text()
            return _is_ready(name, text(), port)

        fleet.until(is_ready, within=40, what=f"{name} is ready")
        process.send_signal(signal.SIGTERM)
        process.wait(15)


def test_the_migration_prepares_an_empty_database(fleet: Cluster) -> None:
    fleet.sql("DROP SCHEMA flowstone CASCADE")
    with started(fleet, SERVICES["migrate"]) as (process, text, _):
        assert process.wait(40) == 0, text()
    fleet.fs.close()
    assert fleet.sql("SELECT count(*) AS n FROM flowstone.runs") == [{"n": 0}]
