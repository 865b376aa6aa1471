"""A home for each test, and nothing of it left afterwards."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from flowstone_celery.embedded import binaries, servers

Run = Callable[..., "subprocess.Popen[str]"]

UP = "import sys; from pathlib import Path; from flowstone_celery.embedded import binaries, servers; print(servers.up(Path(sys.argv[1]), on_progress=print))"


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "project" / ".flowstone"
    yield path
    servers.down(path)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A home whose servers run: for tests that only look."""
    path = tmp_path_factory.mktemp("shared") / ".flowstone"
    servers.up(path)
    yield path
    servers.down(path)


@pytest.fixture
def start() -> Iterator[Run]:
    """Starts `up` in a process of its own; `prefix` runs it as somebody else. None of them outlives the test."""
    started: list[subprocess.Popen[str]] = []

    def run(
        home: Path, *prefix: str, code: str = UP, env: dict[str, str] | None = None
    ) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [*prefix, sys.executable, "-c", code, str(home)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=env,
            cwd=Path(__file__).parents[2],
            start_new_session=True,
        )
        started.append(process)
        return process

    yield run
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()


@pytest.fixture
def root_only() -> None:
    if os.geteuid() != 0 or shutil.which("setpriv") is None:
        pytest.skip("needs root and setpriv")


def outcome(process: subprocess.Popen[str]) -> str:
    """What a finished process printed; it must have ended well."""
    printed, _ = process.communicate(timeout=60)
    assert process.returncode == 0, printed
    return printed


def as_nobody() -> tuple[str, ...]:
    """Words before a command that run it as an ordinary user: for root by way of `nobody`, for others as they are.

    The interpreter keeps the right to pass through closed folders, for it may be installed under root's own; `ORDINARY` in front
    of the code takes that right from everything the code starts.
    """
    if os.geteuid() != 0:
        return ()
    uid = str(pwd.getpwnam("nobody").pw_uid)
    programs = subprocess.run(
        [
            "setpriv",
            "--reuid",
            uid,
            "--regid",
            uid,
            "--clear-groups",
            "test",
            "-x",
            str(binaries.postgres().path),
        ],
        check=False,
    )
    if programs.returncode:
        pytest.skip("the programs stand in a folder that only root may enter")
    right = ("--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search")
    return ("setpriv", "--reuid", uid, "--regid", uid, "--clear-groups", "--no-new-privs", *right)


CLEAR_AMBIENT_RIGHTS = (47, 4, 0, 0, 0)
ORDINARY = f"import ctypes; assert ctypes.CDLL(None).prctl(*{CLEAR_AMBIENT_RIGHTS}) in (0, -1)\n"
