"""Start a server so that it outlives us, recognize it later by its command line alone, and end it for certain."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from flowstone_celery.embedded.home import OUTSIDE
from flowstone_celery.errors import ServiceUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

ANSWER_SECONDS = 60.0  # replaying the log after a crash may take a while
SOCKET_SECONDS = 2.0  # a live server without its socket file lost it: nobody can reach it any more
STOP_SECONDS = 30.0
FULL_BYTES = 20_000_000
LOG_BYTES = 10_000_000
_INHERITED = ("PATH", "LD_LIBRARY_PATH")
_DETACH = '"$@" >&2 & echo $!'  # the shell ends at once, so that the server is nobody's child; its own output is the log


@dataclass(frozen=True, slots=True)
class Daemon:
    """One server of one home: how its processes look, where it listens and logs, and how to ask it."""

    name: str
    commands: frozenset[str]  # as the kernel names the program, at most 15 characters
    token: str
    socket: Path
    log: Path
    answers: Callable[[], bool]


def ensure(daemon: Daemon, prepare: Callable[[], Sequence[str]], say: Callable[[str], None]) -> int:
    """The server answers; returns its process id. `prepare` makes its folder ready and gives the command, if it must be started.

    Raises ServiceUnavailable with the end of the server's log if it does not come up.
    """
    if not daemon.answers() and not _comes_round(daemon):
        kill(daemon)
        command = prepare()
        say(f"starting {daemon.name}")
        _await_answer(daemon, launch(command, daemon.log))
    return leader(daemon) or 0


def _comes_round(daemon: Daemon) -> bool:
    """A server that somebody else started just now, or that replays its log, is given its time."""
    if leader(daemon) is None:
        return False
    if not until(daemon.socket.exists, SOCKET_SECONDS):
        return False
    return until(lambda: daemon.answers() or leader(daemon) is None, ANSWER_SECONDS) and daemon.answers()


def _await_answer(daemon: Daemon, pid: int) -> None:
    if until(lambda: daemon.answers() or not _alive(pid), ANSWER_SECONDS) and daemon.answers():
        return
    what = "does not answer" if _alive(pid) else "ended while starting"
    kill(daemon)
    raise ServiceUnavailable(
        f"{daemon.name} {what}. The end of {daemon.log}:\n{tail(daemon.log)}",
        hint=f"{_remedy(daemon.log)}, {OUTSIDE}.",
        log=str(daemon.log),
    )


def _remedy(log: Path) -> str:
    """A full disk is told even where there was no room left to log it."""
    if shutil.disk_usage(log.parent).free < FULL_BYTES:
        return "Free some space: the disk is full; then start again"
    return f"The whole story is in {log}; mend its cause and start again"


def launch(command: Sequence[str], log: Path) -> int:
    """The command runs in a session of its own, without our terminal, descriptors or environment; returns its process id."""
    if log.exists() and log.stat().st_size > LOG_BYTES:
        log.replace(log.with_name(log.name + ".old"))
    with log.open("ab") as output:
        shell = subprocess.run(  # noqa: S603 (our own command; the shell's text is a constant)
            ["/bin/sh", "-c", _DETACH, "flowstone", *command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=output,
            env=environment(),
            cwd="/",
            start_new_session=True,
            check=True,
        )
    return int(shell.stdout)


def environment() -> dict[str, str]:
    """What a server needs of ours: no secret, no PG* variable, no language of messages."""
    return {name: os.environ[name] for name in _INHERITED if name in os.environ} | {"LC_ALL": "C"}


def leader(daemon: Daemon) -> int | None:
    """The process that directs the server; children rename themselves, the leader keeps the absolute path it was started by."""
    return next((pid for pid, title in _processes(daemon) if title.startswith(b"/")), None)


def members(daemon: Daemon) -> list[int]:
    """Every live process of the server, also children that outlived their leader."""
    return [pid for pid, _ in _processes(daemon)]


def stop(daemon: Daemon, polite: signal.Signals) -> bool:
    """No process of the server is left; True if there was one. What does not follow the signal in time is killed."""
    if not members(daemon):
        return False
    pid = leader(daemon)
    if pid is not None:
        _send(pid, polite)
        until(lambda: not members(daemon), STOP_SECONDS)
    kill(daemon)
    return True


def kill(daemon: Daemon) -> None:
    """No process of the server is left. Children of a dead leader go by themselves: they get a moment before the blow."""
    if leader(daemon) is None:
        until(lambda: not members(daemon), 2.0)
    for pid in members(daemon):
        _send(pid, signal.SIGKILL)
    until(lambda: not members(daemon), STOP_SECONDS)


def until(condition: Callable[[], bool], seconds: float) -> bool:
    """True as soon as the condition holds, False if it does not within the time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def tail(log: Path, lines: int = 6) -> str:
    """The last lines of a log, for the message of an error."""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - 4096))
        return "\n".join("  " + line for line in file.read().decode(errors="replace").splitlines()[-lines:])


def _processes(daemon: Daemon) -> Iterator[tuple[int, bytes]]:
    """Process ids and titles. The token alone is not enough: a client's command line may hold it as well."""
    token = daemon.token.encode()
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            command = (entry / "comm").read_text(encoding="utf-8", errors="replace").strip()
            title = (entry / "cmdline").read_bytes() if command in daemon.commands else b""
        except OSError:  # it ended while we looked
            continue
        if token in title:
            yield int(entry.name), title


def _alive(pid: int) -> bool:
    """A process that has ended but was not collected by its parent is not alive."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"


def _send(pid: int, what: signal.Signals) -> None:
    try:
        os.kill(pid, what)
    except ProcessLookupError:
        return  # it ended by itself: what we wanted
