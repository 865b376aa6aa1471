"""The Redis of a home: on a private socket only, everything it was told appended to a file."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

from flowstone_celery.embedded import binaries, daemons
from flowstone_celery.embedded.home import Home, Options, Program

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path


def broker_url(sockets: Path) -> str:
    """As Celery and kombu want it, for the broker and for a result backend."""
    return f"redis+socket://{sockets / 'redis.sock'}?virtual_host=0"


def url(sockets: Path) -> str:
    """As redis-py wants it."""
    return f"unix://{sockets / 'redis.sock'}?db=0"


def daemon(home: Home, sockets: Path) -> daemons.Daemon:
    """How the server of this home looks from outside."""
    return daemons.Daemon(
        name="Redis",
        commands=frozenset({"redis-server", "valkey-server"}),
        token=home.token,
        socket=sockets / "redis.sock",
        log=home.path / "redis.log",
        answers=lambda: answers(sockets),
    )


def answers(sockets: Path) -> bool:
    """The server takes commands; one that still loads its file answers something else."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(5)
        try:
            connection.connect(str(sockets / "redis.sock"))
            connection.sendall(b"PING\r\n")
            return connection.recv(64).startswith(b"+PONG")
        except OSError:
            return False


def ensure(home: Home, sockets: Path, options: Options, say: Callable[[str], None]) -> Program:
    """The server answers."""
    binary = binaries.redis()

    def prepare() -> Sequence[str]:
        home.redis.mkdir(mode=0o700, exist_ok=True)
        return [str(binary.path), *_settings(home, sockets, options)]

    pid = daemons.ensure(daemon(home, sockets), prepare, say)
    return Program(pid, binary.version, binary.origin)


def _settings(home: Home, sockets: Path, options: Options) -> list[str]:
    settings = {
        "port": "0",
        "unixsocket": str(sockets / "redis.sock"),
        "unixsocketperm": "700",
        "dir": str(home.redis),
        "appendonly": "yes" if options.appendonly else "no",
        "save": "",  # the appended file holds everything; snapshots would only double it
        "maxmemory-policy": "noeviction",
        "protected-mode": "yes",
        "daemonize": "no",
    }
    return [word for name, value in settings.items() for word in (f"--{name}", value)]
