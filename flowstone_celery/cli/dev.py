"""`flowstone dev`: all that a project needs while it is written, in one terminal; everything stops with it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import threading
import time
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from flowstone_celery.cli.celery import app_name, celery_command, has_flower, shown
from flowstone_celery.cli.desk import desk
from flowstone_celery.cli.servers import migrate_database, refuse_in_production
from flowstone_celery.cli.verbs import Verb
from flowstone_celery.cli.watch import Watcher

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_LOOK_EVERY: Final = 0.5
_PATIENCE: Final = 10.0
"""Seconds for a process to end by itself: what it leaves behind is taken over."""
_ENDINGS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@click.command(cls=Verb)
@click.option(
    "--reload/--no-reload",
    "reloads",
    default=True,
    show_default=True,
    help="Restart the worker when a *.py is saved.",
)
@click.option("--beat/--no-beat", "with_beat", default=True, show_default=True, help="Run Celery's beat.")
@click.option(
    "--flower/--no-flower",
    "with_flower",
    default=True,
    show_default=True,
    help="Run Flower, if it is installed.",
)
@click.option(
    "--flower-port",
    type=int,
    default=5555,
    show_default=True,
    help="Flower's port; if it is taken, a free one.",
)
@click.option(
    "-c",
    "--concurrency",
    type=click.IntRange(1),
    default=2,
    show_default=True,
    help="Processes of the worker.",
)
def dev(*, reloads: bool, with_beat: bool, with_flower: bool, flower_port: int, concurrency: int) -> None:
    """Run servers, worker, beat and Flower for the app until Ctrl-C. Not for production."""
    refuse_in_production()
    name, over = app_name(), _Endings()
    with ExitStack() as stack:
        urls = stack.enter_context(serving())
        stack.enter_context(over)
        crew = [_Member("worker", celery_command(name, "worker", "-E", "-l", "info", "-c", str(concurrency)))]
        if with_beat:
            crew.append(
                _Member("beat", celery_command(name, "beat", "-s", str(_schedule_file()), "--pidfile="))
            )
        if with_flower and has_flower():
            port = _free_port(flower_port)
            urls["flower"] = f"http://127.0.0.1:{port}"
            crew.append(
                _Member("flower", celery_command(name, "flower", "--address=127.0.0.1", f"--port={port}"))
            )
        stack.callback(_stop_all, crew, over)
        for member in crew:
            member.start()
        _tell(urls, name)
        _watch(crew, over, Watcher(Path.cwd()) if reloads else None)


def _tell(urls: dict[str, str], name: str) -> None:
    for what, url in urls.items():
        click.echo(f"  {what:9} {url}")
    click.echo(f"Try: flowstone -A {name} asset ls.  Ctrl-C stops everything that this command started.")


# --- servers ----------------------------------------------------------------------------------------------------------------------


@contextmanager
def serving() -> Iterator[dict[str, str]]:
    """A database with this code's schema and a broker answer: those of the settings, else embedded ones.

    Embedded servers that were up before stay up afterwards.
    """
    from flowstone_celery.config import mask_password
    from flowstone_celery.embedded import servers

    settings = desk().own_settings
    if settings.database_url and settings.redis_url:
        migrate_database(settings.database_url)
        yield {"database": mask_password(settings.database_url), "broker": mask_password(settings.redis_url)}
        return
    were_up = servers.find(settings.home) is not None
    found = servers.up(settings.home, on_progress=lambda text: click.echo(f"  {text}", err=True))
    try:
        migrate_database(settings.database_url or found.database_url)
        yield {"database": found.database_url, "broker": found.broker_url}
    finally:
        if not were_up:
            servers.down(settings.home)


def _schedule_file() -> Path:
    """Where beat remembers what it sent: beside the servers' data, not among the sources."""
    folder = desk().own_settings.home
    folder.mkdir(parents=True, exist_ok=True)
    return folder / "celerybeat-schedule"


def _free_port(wanted: int) -> int:
    for port in (wanted, 0):
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return int(probe.getsockname()[1])
    return wanted


# --- processes --------------------------------------------------------------------------------------------------------------------


class _Member:
    """One child process, in a session of its own: a Ctrl-C of the terminal reaches this command alone."""

    def __init__(self, name: str, command: Sequence[str]) -> None:
        self.name = name
        self._command = list(command)
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        click.echo(f"$ {shown(self._command)}", err=True)
        self._process = subprocess.Popen(self._command, start_new_session=True)  # noqa: S603 - our own interpreter and celery

    def ended(self) -> int | None:
        """Its exit code, once: afterwards it counts as not started."""
        code = self._process.poll() if self._process else None
        if code is not None:
            self._process = None
        return code

    def ask_to_stop(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()

    def stop(self, until: float, over: _Endings | None = None) -> None:
        """It runs no more: it was asked to, and after the given moment (or a second Ctrl-C) killed with all its children."""
        self.ask_to_stop()
        process, self._process = self._process, None
        if process is None:
            return
        while process.poll() is None and time.monotonic() < until and not (over and over.impatient):
            with suppress(subprocess.TimeoutExpired):
                process.wait(0.1)
        if process.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _stop_all(crew: Sequence[_Member], over: _Endings) -> None:
    click.echo("Stopping.", err=True)
    for member in crew:
        member.ask_to_stop()
    until = time.monotonic() + _PATIENCE
    for member in crew:
        member.stop(until, over)


class _Endings:
    """Remembers that the user, the terminal or a supervisor wants this command to end; twice means at once."""

    def __init__(self) -> None:
        self._asked = threading.Event()
        self.impatient = False
        self._before: dict[int, object] = {}

    def __enter__(self) -> _Endings:
        self._before = {number: signal.signal(number, self._hear) for number in _ENDINGS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type] # what signal.signal answered itself

    def _hear(self, *_: object) -> None:
        self.impatient = self._asked.is_set()
        self._asked.set()

    def wait(self, seconds: float) -> bool:
        """Whether the end was asked for, after at most so many seconds."""
        return self._asked.wait(seconds)


def _watch(crew: Sequence[_Member], over: _Endings, watcher: Watcher | None) -> None:
    """Until the end is asked for: a saved file restarts what runs the user's code, and who ends by itself is told."""
    while not over.wait(_LOOK_EVERY):
        for member in crew:
            if (code := member.ended()) is not None:
                click.echo(
                    f"! {member.name} ended with code {code}; it starts again when a file is saved", err=True
                )
        if watcher and (changed := watcher.changed()):
            click.echo(f"~ {', '.join(path.name for path in changed[:3])} changed", err=True)
            _restart([member for member in crew if member.name != "flower"])


def _restart(members: Sequence[_Member]) -> None:
    for member in members:
        member.ask_to_stop()
    until = time.monotonic() + _PATIENCE
    for member in members:
        member.stop(until)
        member.start()
