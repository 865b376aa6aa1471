"""The verbs that start something, as real processes in a folder of their own; none is left afterwards."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import click
import psutil
import pytest

from flowstone_celery.cli.desk import Desk
from flowstone_celery.cli.dev import serving
from flowstone_celery.cli.main import group
from flowstone_celery.embedded import servers

# One project for the module, made by its first test.
pytestmark = pytest.mark.worker

Flowstone = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A project made by `flowstone init`, in a path with a space; its servers are down at the end."""
    place = tmp_path_factory.mktemp("my shop")
    yield place
    servers.down(place / ".flowstone")


@pytest.fixture(scope="module")
def flowstone(folder: Path) -> Flowstone:
    """Run `flowstone …` in the project as a process."""

    def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "flowstone_celery.cli.main", *arguments],
            cwd=folder,
            env=plain_environment() | environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )

    return run


def plain_environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("FLOWSTONE_")}


def until(condition: Callable[[], object], *, within: float = 30.0) -> None:
    """Return when the condition holds."""
    ends = time.monotonic() + within
    while not condition():
        assert time.monotonic() < ends, "it did not come about in time"
        time.sleep(0.05)


def test_init_writes_a_project_once(folder: Path, flowstone: Flowstone) -> None:
    assert flowstone("init").returncode == 0
    (folder / "shop.py").write_text((folder / "shop.py").read_text() + "# mine\n")
    again = flowstone("init")
    assert again.returncode == 4
    assert "FS-2011" in again.stderr
    assert (folder / "shop.py").read_text().endswith("# mine\n")


def test_project_of_init_passes_its_own_tests(folder: Path, flowstone: Flowstone) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"],
        cwd=folder,
        env=plain_environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert "2 passed" in result.stdout


def test_up_works_once_and_again_and_down_too(folder: Path, flowstone: Flowstone) -> None:
    first = flowstone("up")
    assert first.returncode == 0, first.stderr
    assert flowstone("up", "--json").returncode == 0
    assert flowstone("-A", "shop", "asset", "run", "report", "--inline").returncode == 0
    assert "Would stop" in flowstone("down", "--dry-run").stdout
    assert flowstone("down").stdout == "Stopped. The data stay.\n"
    assert flowstone("down").stdout == "Nothing was up here.\n"
    assert flowstone("-A", "shop", "asset", "get", "report").returncode == 69


def test_up_is_refused_in_production(flowstone: Flowstone) -> None:
    result = flowstone("up", FLOWSTONE_ENV="production")
    assert result.returncode == 2
    assert "FS-5005" in result.stderr


def test_wrapper_prints_the_celery_command_and_becomes_it(flowstone: Flowstone) -> None:
    result = flowstone("-A", "shop", "worker", "--help")
    assert result.stderr.startswith("$ celery -A shop worker --help\n")
    assert "Start worker instance" in result.stdout
    assert flowstone("worker").returncode == 2


@contextmanager
def development(folder: Path, log: Path, *options: str) -> Iterator[subprocess.Popen[bytes]]:
    """`flowstone dev` in the project; killed at the end with all its children if it did not end by itself."""
    command = [sys.executable, "-m", "flowstone_celery.cli.main", "-A", "shop", "dev", *options]
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, cwd=folder, env=plain_environment(), stdout=output, stderr=subprocess.STDOUT
        )
    try:
        yield process
    finally:
        if process.poll() is None:
            for child in psutil.Process(process.pid).children(recursive=True):
                child.kill()
            process.kill()
            process.wait()


@pytest.mark.worker
def test_dev_runs_the_app_reloads_on_save_and_takes_everything_with_it(
    folder: Path, flowstone: Flowstone, tmp_path: Path
) -> None:
    log = tmp_path / "dev.log"
    with socket.socket() as taken, development(folder, log, "--flower-port", _port_of(taken)) as process:
        until(lambda: b"ready." in log.read_bytes())
        assert flowstone("-A", "shop", "asset", "run", "report", "--timeout", "20s").returncode == 0
        page = folder / "shop.py"
        page.write_text(page.read_text().replace("in all", "altogether"))
        until(lambda: log.read_bytes().count(b"ready.") == 2)
        again = flowstone("-A", "shop", "asset", "run", "report", "--force", "--timeout", "20s")
        assert again.returncode == 0, again.stderr
        assert flowstone("-A", "shop", "asset", "get", "report").stdout.endswith("altogether\n")
        family = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=30) == 0
    assert [each for each in family if each.is_running()] == []
    assert servers.find(folder / ".flowstone") is None
    told = log.read_text()
    assert "http://127.0.0.1:" in told
    assert "shop.py changed" in told


def _port_of(holder: socket.socket) -> str:
    """A port of this machine that is taken as long as the socket is open."""
    holder.bind(("127.0.0.1", 0))
    holder.listen()
    return str(holder.getsockname()[1])


@pytest.mark.parametrize("up_before", [True, False])
def test_servers_of_dev_stay_up_only_if_they_were_up_before(
    folder: Path, monkeypatch: pytest.MonkeyPatch, up_before: bool
) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.delenv("FLOWSTONE_DATABASE_URL", raising=False)
    if up_before:
        servers.up(folder / ".flowstone")
    with click.Context(group) as ctx:
        Desk.of(ctx, None, verbose=False)
        with serving() as urls:
            assert set(urls) == {"database", "broker"}
            assert servers.find(folder / ".flowstone") is not None
    assert (servers.find(folder / ".flowstone") is not None) is up_before
    servers.down(folder / ".flowstone")
