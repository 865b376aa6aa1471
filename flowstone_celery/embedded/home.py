"""One `.flowstone` folder: its lock, its state file, and the short private folder where its sockets stand."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import tempfile
import time
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from flowstone_celery.errors import ServiceUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

LOCK_SECONDS = 120.0
LONGEST_SOCKET_PATH = 100  # bytes; the kernel takes 107, other systems a few less
OUTSIDE = "or set FLOWSTONE_DATABASE_URL and FLOWSTONE_REDIS_URL to servers of your own"
_PLAIN_PATH = re.compile(r"[A-Za-z0-9/._-]+")
_REMEDIES = {
    errno.ENOSPC: "Free some space (a new project needs about 100 MB)",
    errno.EDQUOT: "Raise the disk quota or free some space (a new project needs about 100 MB)",
    errno.EFBIG: "Raise the limit on file sizes (ulimit -f); PostgreSQL writes files of 16 MB",
    errno.ENOTDIR: "Remove the file that stands where the folder belongs",
    errno.EEXIST: "Remove the file that stands where the folder belongs",
}


@dataclass(frozen=True, slots=True)
class Options:
    """How the servers of a home were started; a restart keeps it."""

    durable: bool = True
    appendonly: bool = True


@dataclass(frozen=True, slots=True)
class Program:
    """One running server, as the state file tells it."""

    pid: int
    version: str
    origin: str  # the wheel with its version, or the path of the program


@dataclass(frozen=True, slots=True)
class State:
    """What was up when the file was written. A hint for people and for `find`, never believed without an answer."""

    token: str
    sockets: Path
    options: Options
    urls: dict[str, str]
    postgres: Program
    redis: Program


@dataclass(frozen=True, slots=True)
class Home:
    """The folder of one project and the token that names its processes and its sockets."""

    path: Path
    token: str

    @property
    def postgres(self) -> Path:
        """Our folder around the cluster; the cluster itself belongs to the account that runs it."""
        return self.path / "postgres"

    @property
    def redis(self) -> Path:
        """Where Redis keeps its data and its log."""
        return self.path / "redis"

    @property
    def state_file(self) -> Path:
        """What is up: pids, ports or sockets, and URLs."""
        return self.path / "servers.json"


def known(path: Path) -> Home | None:
    """The home at this path if there is a folder; nothing is created."""
    path = path.expanduser().resolve()
    return Home(path, _token(path)) if path.is_dir() else None


def prepared(path: Path) -> Home:
    """The home exists, belongs to us and is kept out of version control."""
    path = path.expanduser().resolve()
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    home = Home(path, _token(path))
    _refuse_a_stranger(home)
    ignore = path / ".gitignore"
    if not ignore.exists():
        ignore.write_text("*\n", encoding="utf-8")
    return home


def _token(path: Path) -> str:
    """The same for a folder that was moved, another for its copy: the inode says which folder it is."""
    stat = path.stat()
    identity = f"{os.geteuid()}:{stat.st_dev}:{stat.st_ino}"
    return f"flowstone-{hashlib.sha256(identity.encode()).hexdigest()[:12]}"


def _refuse_a_stranger(home: Home) -> None:
    owner = home.path.stat().st_uid
    if owner != os.geteuid():
        raise ServiceUnavailable(
            f"The folder {home.path} belongs to user {owner}, and this process runs as user {os.geteuid()}:"
            " two users cannot take turns on one database folder.",
            hint=f"Run the command as user {owner}, choose another folder with FLOWSTONE_HOME, {OUTSIDE}.",
            home=str(home.path),
            owner=owner,
        )


@contextmanager
def locked(home: Home, say: Callable[[str], None]) -> Iterator[int]:
    """Nobody else starts or stops the servers of this home meanwhile; yields the descriptor that holds the lock."""
    descriptor = _lock(home, say)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _lock(home: Home, say: Callable[[str], None]) -> int:
    deadline = time.monotonic() + LOCK_SECONDS
    told = False
    while True:
        descriptor = os.open(home.path / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        if _taken(descriptor) and _still_in_place(descriptor, home.path / "lock"):
            return descriptor
        os.close(descriptor)
        if not told:
            say("waiting for another process that starts or stops the servers")
            told = True
        if time.monotonic() > deadline:
            raise ServiceUnavailable(
                f"Another process has been starting or stopping the servers of {home.path} for {LOCK_SECONDS:.0f} s.",
                hint=f"See who holds the file with `fuser {home.path}/lock`, end that process and try again.",
                home=str(home.path),
            )
        time.sleep(0.02)


def _taken(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _still_in_place(descriptor: int, path: Path) -> bool:
    """The lock file was not deleted between opening and locking: a lock on a file without a name locks nobody out."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def read_state(home: Home) -> State | None:
    """The state file of this very folder, or None if there is none, it is unreadable, or it came with a copy."""
    try:
        raw = json.loads(home.state_file.read_text(encoding="utf-8"))
        state = State(
            token=raw["token"],
            sockets=Path(raw["sockets"]),
            options=Options(**raw["options"]),
            urls=raw["urls"],
            postgres=Program(**raw["postgres"]),
            redis=Program(**raw["redis"]),
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return state if state.token == home.token == state.sockets.name else None


def write_state(home: Home, state: State) -> None:
    """The state file holds this state, whole, also if we are killed while writing it."""
    text = json.dumps(asdict(state) | {"sockets": str(state.sockets)}, indent=2)
    descriptor, name = tempfile.mkstemp(dir=home.path, prefix="servers.json.")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text + "\n")
        Path(name).replace(home.state_file)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def sockets(home: Home) -> Path:
    """A short private folder for the sockets exists: under the temporary folder, never in the home, which may be long.

    It names its home, so that servers whose home was removed under them are found again by `predecessors`.
    """
    recorded = read_state(home)
    places = [recorded.sockets] if recorded else []
    places += [parent / home.token for parent in _parents()]
    for place in places:
        if _short_and_plain(place) and _made_private(place):
            (place / "home").write_bytes(os.fsencode(home.path))
            return place
    raise ServiceUnavailable(
        "There is no place for the servers' sockets: none of "
        + ", ".join(str(place.parent) for place in places)
        + " serves.",
        hint=f"Make /tmp writable, set TMPDIR to a short writable folder, {OUTSIDE}.",
        home=str(home.path),
    )


def predecessors(path: Path) -> list[tuple[Home, Path]]:
    """Homes that stood at this path before, with the folders of their sockets: somebody removed a home, its servers may still run.

    The folders are listed before the home is looked at: a starter at work makes its home first, so that its folder of sockets
    cannot be mistaken for one whose home is gone.
    """
    path = path.expanduser().resolve()
    places = [place for parent in _parents() for place in parent.glob("flowstone-*") if is_private(place)]
    named = [place for place in places if _named_in(place) == os.fsencode(path)]
    now = known(path)
    return [(Home(path, place.name), place) for place in named if now is None or place.name != now.token]


def _named_in(place: Path) -> bytes | None:
    try:
        return (place / "home").read_bytes()
    except OSError:
        return None


def _parents() -> tuple[Path, ...]:
    """Where socket folders may stand; each is used only if it is ours and closed to others."""
    return (Path("/tmp"), Path("/var/tmp"), Path(tempfile.gettempdir()))  # noqa: S108 (checked by is_private)


def is_private(folder: Path) -> bool:
    """The folder is a real one, ours, and closed to everybody else: nobody can have put a server of his own there."""
    try:
        stat = folder.lstat()
    except OSError:
        return False
    return (
        folder.is_dir()
        and not folder.is_symlink()
        and stat.st_uid == os.geteuid()
        and stat.st_mode & 0o077 == 0
    )


def _made_private(folder: Path) -> bool:
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
    except OSError:
        return False
    return is_private(folder)


def _short_and_plain(folder: Path) -> bool:
    longest = folder / "pg" / ".s.PGSQL.5432.lock"
    return len(os.fsencode(longest)) <= LONGEST_SOCKET_PATH and _PLAIN_PATH.fullmatch(str(folder)) is not None


def forget(home: Home) -> None:
    """The state file is gone."""
    home.state_file.unlink(missing_ok=True)


def drop(sockets: Path) -> None:
    """The folder of the sockets is gone, if it was ours."""
    if is_private(sockets):
        shutil.rmtree(sockets, ignore_errors=True)


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """What the operating system refuses inside comes out as one sentence with a way out."""
    try:
        yield
    except OSError as error:
        where = error.filename or path
        remedy = _REMEDIES.get(
            error.errno or 0, "Make it writable, choose another folder with FLOWSTONE_HOME"
        )
        raise ServiceUnavailable(
            f"The embedded servers cannot use the folder {path}: {error.strerror or error} ({where}).",
            hint=f"{remedy}, {OUTSIDE}.",
            home=str(path),
            errno=error.errno,
        ) from error
