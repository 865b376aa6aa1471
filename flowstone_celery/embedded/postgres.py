"""The PostgreSQL of a home: a cluster made in one piece, a server on a private socket, the database `flowstone`."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlencode

from flowstone_celery.embedded import binaries, daemons
from flowstone_celery.embedded.account import Account, account
from flowstone_celery.embedded.home import OUTSIDE, Home, Options, Program
from flowstone_celery.errors import ServiceUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from flowstone_celery.embedded.binaries import Binary

USER = "flowstone"
DATABASE = "flowstone"
PORT = 5432  # only names the socket file: the server listens on no TCP port
MODES = {"smart": signal.SIGTERM, "fast": signal.SIGINT, "immediate": signal.SIGQUIT}
_SETTINGS = {
    "listen_addresses": "",
    "port": str(PORT),
    "unix_socket_permissions": "0700",
    "max_connections": "200",
    "shared_buffers": "128MB",
    "client_connection_check_interval": "500ms",
    "jit": "off",  # our statements are short: compiling one costs more than running it
    "timezone": "UTC",
    "log_timezone": "UTC",
    "logging_collector": "off",
    "log_line_prefix": "%m [%p] ",
}


def url(sockets: Path) -> str:
    """The database as SQLAlchemy wants it; the port is named, or a PGPORT of the user's would choose another socket."""
    return f"postgresql+psycopg://{USER}@/{DATABASE}?" + urlencode(
        {"host": str(sockets / "pg"), "port": PORT}, safe="/"
    )


def daemon(home: Home, sockets: Path) -> daemons.Daemon:
    """How the server of this home looks from outside."""
    return daemons.Daemon(
        name="PostgreSQL",
        commands=frozenset({"postgres"}),
        token=home.token,
        socket=sockets / "pg" / f".s.PGSQL.{PORT}",
        log=home.path / "postgres.log",
        answers=lambda: answers(sockets),
    )


def answers(sockets: Path) -> bool:
    """The server accepts connections (full house included); one that still replays its log does not."""
    from psycopg.pq import PGconn, Ping

    return PGconn.ping(_conninfo(sockets, "postgres").encode()) == Ping.OK


def ensure(home: Home, sockets: Path, options: Options, lock: int, say: Callable[[str], None]) -> Program:
    """The server answers and holds the database; the lock's descriptor keeps others out while a cluster is being made."""
    binary = binaries.postgres()

    def prepare() -> Sequence[str]:
        who = account()
        cluster = _cluster(home, binary, who, lock, say)
        _forget_the_dead(cluster, sockets)
        return [
            *who.prefix,
            str(binary.path),
            "-D",
            str(cluster),
            *_settings(home, who.own(sockets / "pg"), options),
        ]

    pid = daemons.ensure(daemon(home, sockets), prepare, say)
    _create_database(sockets)
    return Program(pid, binary.version, binary.origin)


def _settings(home: Home, socket_folder: Path, options: Options) -> list[str]:
    durable = "on" if options.durable else "off"
    settings = _SETTINGS | {
        "unix_socket_directories": str(socket_folder),
        "cluster_name": home.token,  # every child carries it in its title: by it they are recognized
        "fsync": durable,
        "synchronous_commit": durable,
        "full_page_writes": durable,
    }
    return [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]


def _cluster(home: Home, binary: Binary, who: Account, lock: int, say: Callable[[str], None]) -> Path:
    """A cluster of the program's version stands under its name; what a killed start left half-made is gone."""
    home.postgres.mkdir(mode=0o700, exist_ok=True)
    cluster = home.postgres / "data"
    for leftover in home.postgres.glob("new-*"):
        shutil.rmtree(leftover)
    if not cluster.exists():
        say("creating the database folder (only at the first start)")
        _make_cluster(cluster, binary, who, lock)
    _same_major(cluster, binary)
    return cluster


def _make_cluster(cluster: Path, binary: Binary, who: Account, lock: int) -> None:
    """initdb works under another name; the rename makes the cluster appear, complete and on disk."""
    fresh = Path(tempfile.mkdtemp(dir=cluster.parent, prefix="new-"))
    who.own(fresh)
    made = subprocess.run(  # noqa: S603 (a program that we found ourselves)
        [*who.prefix, binary.path.parent / "initdb", "-D", fresh, *_initdb_options(binary)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        env=daemons.environment(),
        cwd="/",
        start_new_session=True,
        pass_fds=(lock,),  # if we are killed, the kernel holds the lock until the orphaned initdb ends too
        check=False,
    )
    if made.returncode:
        shutil.rmtree(fresh, ignore_errors=True)
        raise _refused(cluster, made.stderr)
    fresh.rename(cluster)
    _sync(cluster.parent)


def _initdb_options(binary: Binary) -> list[str]:
    locale = ["--locale-provider=builtin", "--builtin-locale=C.UTF-8"] if binary.major >= 17 else []
    login = [f"--username={USER}", "--auth-local=trust", "--auth-host=reject"]
    return [*login, "--encoding=UTF8", "--locale=C", *locale, "--no-instructions"]


def _refused(cluster: Path, stderr: str) -> ServiceUnavailable:
    why = [line for line in stderr.splitlines() if line.strip()][-6:]
    full = any("No space left" in line or "File too large" in line or "quota" in line for line in why)
    remedy = (
        "Free some space (a new project needs about 100 MB)"
        if full
        else "Mend the cause that PostgreSQL names"
    )
    return ServiceUnavailable(
        f"The database folder {cluster} could not be created. PostgreSQL says:\n"
        + "\n".join(f"  {line}" for line in why),
        hint=f"{remedy}, choose another folder with FLOWSTONE_HOME, {OUTSIDE}.",
        folder=str(cluster),
    )


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _same_major(cluster: Path, binary: Binary) -> None:
    try:
        made_by = (cluster / "PG_VERSION").read_text(encoding="ascii").strip()
    except FileNotFoundError:
        made_by = "an unknown version"
    if made_by != str(binary.major):
        raise ServiceUnavailable(
            f"The database folder {cluster} was made by PostgreSQL {made_by}, and the program here is {binary.version}"
            " (one major version cannot read the folder of another).",
            hint=f"To keep the data: run `pg_dump` with a PostgreSQL {made_by} on it, move the folder away, start, restore with `psql`."
            f" To begin anew: remove {cluster}. Or install a PostgreSQL {made_by}, {OUTSIDE}.",
            folder=str(cluster),
            folder_version=made_by,
            program_version=binary.version,
        )


def _forget_the_dead(cluster: Path, sockets: Path) -> None:
    """No lock file of a dead server names a process that lives: the number was given to somebody else since.

    We hold the home's lock and no process carries our token, so that the file cannot be a living server's. If its process is
    gone, it stays: PostgreSQL then checks by its shared memory that no child of the dead is left.
    """
    shutil.rmtree(sockets / "pg", ignore_errors=True)
    note = cluster / "postmaster.pid"
    try:
        pid = int(note.read_text(encoding="utf-8", errors="replace").splitlines()[0])
    except (FileNotFoundError, IndexError, ValueError):
        note.unlink(missing_ok=True)  # a kill or a full disk left it empty, which PostgreSQL would refuse
        return
    if Path(f"/proc/{pid}").exists():
        note.unlink()


def _create_database(sockets: Path) -> None:
    import psycopg

    try:
        with psycopg.connect(_conninfo(sockets, "postgres"), autocommit=True) as connection:
            if (
                connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", [DATABASE]).fetchone()
                is None
            ):
                connection.execute(f"CREATE DATABASE {DATABASE}")
    except psycopg.Error as error:
        raise ServiceUnavailable(
            f"The embedded PostgreSQL started, but its database {DATABASE!r} could not be opened or created: {error}",
            hint=f"Mend the cause that PostgreSQL names and start again, {OUTSIDE}.",
        ) from error


def _conninfo(sockets: Path, database: str) -> str:
    return f"host={sockets / 'pg'} port={PORT} user={USER} dbname={database} connect_timeout=5"
