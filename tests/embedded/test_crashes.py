"""After any crash, `up` works: nothing on the disk needs to be true."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from flowstone_celery.embedded import daemons, servers
from flowstone_celery.embedded import home as homes

from .conftest import Run, outcome
from .test_servers import execute, pids

pytestmark = pytest.mark.faults


def kill_all(home: Path) -> None:
    victims = pids(home)
    for pid in victims:
        os.kill(pid, signal.SIGKILL)
    assert daemons.until(lambda: not pids(home), 10)


def test_up_after_kill_9_of_everything_keeps_what_was_committed(home: Path) -> None:
    found = servers.up(home)
    execute(found, "CREATE TABLE kept AS SELECT 42 AS answer")
    kill_all(home)
    assert (home / "postgres/data/postmaster.pid").exists()
    assert (home / "servers.json").exists()
    assert servers.find(home) is None
    assert servers.up(home) == found
    assert execute(found, "SELECT answer FROM kept") == [(42,)]


def test_up_after_kill_9_of_the_postmaster_alone_waits_for_its_children(home: Path) -> None:
    found = servers.up(home)
    leader = json.loads((home / "servers.json").read_text())["postgres"]["pid"]
    os.kill(leader, signal.SIGKILL)
    assert servers.up(home) == found
    assert execute(found, "SELECT 1") == [(1,)]


def test_down_after_kill_9_of_the_postmaster_leaves_no_process(home: Path) -> None:
    servers.up(home)
    leader = json.loads((home / "servers.json").read_text())["postgres"]["pid"]
    os.kill(leader, signal.SIGKILL)
    assert servers.down(home) is True
    assert pids(home) == []


def test_a_stopped_server_is_ended_by_down(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    servers.up(home)
    monkeypatch.setattr(daemons, "STOP_SECONDS", 0.5)
    os.kill(json.loads((home / "servers.json").read_text())["postgres"]["pid"], signal.SIGSTOP)
    assert servers.down(home) is True
    assert pids(home) == []


@pytest.mark.parametrize("content", ["{pid}\n", "", "nonsense\n"])
def test_a_lock_file_whose_process_number_was_given_to_somebody_else_is_no_obstacle(
    home: Path, content: str
) -> None:
    found = servers.up(home)
    kill_all(home)
    note = home / "postgres/data/postmaster.pid"
    lines = note.read_text().splitlines()[1:]
    with subprocess.Popen(["sleep", "60"]) as somebody_else:
        rest = "\n".join(lines) if "pid" in content else ""
        note.write_text(content.format(pid=somebody_else.pid) + rest)
        assert servers.up(home) == found
        assert somebody_else.poll() is None
        somebody_else.kill()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"token": "x"}'])
def test_a_broken_state_file_is_no_obstacle(home: Path, text: str) -> None:
    found = servers.up(home)
    before = set(pids(home))
    (home / "servers.json").write_text(text)
    assert servers.find(home) is None
    assert servers.up(home) == found
    assert {pid for pid in before if daemons._alive(pid)} >= set(pids(home)) & before
    assert servers.find(home) == found


def test_a_state_file_cannot_lead_down_to_a_folder_of_somebody_elses(home: Path, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.mkdir(mode=0o700)
    servers.up(home)
    state = json.loads((home / "servers.json").read_text())
    (home / "servers.json").write_text(json.dumps(state | {"sockets": str(precious)}))
    assert servers.down(home) is True
    assert precious.is_dir()


def test_a_killed_initdb_leaves_nothing_that_disturbs_the_next_start(home: Path, start: Run) -> None:
    killed = start(home)
    assert daemons.until(lambda: bool(list(home.glob("postgres/new-*/base"))), 10)
    fresh = next(home.glob("postgres/new-*"))
    killed.kill()
    killed.wait()
    for proc in Path("/proc").iterdir():
        if proc.name.isdigit() and os.fsencode(fresh) in _cmdline(proc):
            os.kill(int(proc.name), signal.SIGKILL)
    found = servers.up(home)
    assert execute(found, "SELECT 1") == [(1,)]
    assert [path.name for path in (home / "postgres").iterdir()] == ["data"]


def test_the_next_starter_waits_for_an_initdb_that_outlived_its_killed_starter(
    home: Path, start: Run
) -> None:
    killed = start(home)
    assert daemons.until(lambda: bool(list(home.glob("postgres/new-*/base"))), 10)
    killed.kill()
    killed.wait()
    said: list[str] = []
    found = servers.up(home, on_progress=said.append)
    assert "waiting" in said[0]
    assert execute(found, "SELECT 1") == [(1,)]
    assert [path.name for path in (home / "postgres").iterdir()] == ["data"]


def test_a_killed_starter_leaves_servers_that_the_next_one_adopts(home: Path, start: Run) -> None:
    killed = start(home)
    assert daemons.until((home / "postgres/data/postmaster.pid").exists, 10)
    killed.kill()
    killed.wait()
    found = servers.up(home)
    assert execute(found, "SELECT 1") == [(1,)]
    assert len([pid for pid in pids(home) if _cmdline(Path(f"/proc/{pid}")).startswith(b"/")]) == 2


def test_servers_that_lost_their_sockets_are_started_anew(home: Path) -> None:
    found = servers.up(home)
    before = pids(home)
    place = homes.known(home)
    assert place is not None
    shutil.rmtree(homes.sockets(place))
    assert servers.find(home) is None
    assert servers.up(home) == found
    assert not set(before) & set(pids(home))


def test_servers_of_a_home_that_was_removed_end_when_the_path_is_used_again(home: Path) -> None:
    servers.up(home)
    before = pids(home)
    aside = home.with_name("keeps the inode number from being used again")
    home.rename(aside)
    home.mkdir()
    assert servers.find(home) is None
    servers.up(home)
    assert daemons.until(lambda: not [pid for pid in before if daemons._alive(pid)], 5)
    shutil.rmtree(aside)


def test_down_ends_the_servers_of_a_removed_home(home: Path) -> None:
    servers.up(home)
    before = pids(home)
    shutil.rmtree(home)
    assert servers.down(home) is True
    assert not [pid for pid in before if daemons._alive(pid)]
    assert not home.exists()


def test_a_moved_home_takes_its_servers_along_and_a_copy_does_not(home: Path) -> None:
    found = servers.up(home)
    execute(found, "CREATE TABLE whose AS SELECT 'the first' AS owner")
    moved = home.rename(home.with_name("moved"))
    again = servers.find(moved)
    assert again is not None
    assert again.database_url == found.database_url
    servers.stop_postgres(moved)
    servers.start_postgres(moved)

    shutil.copytree(moved, home, ignore=shutil.ignore_patterns("lock"))
    _same_owners(moved, home)
    assert servers.find(home) is None
    try:
        copy = servers.up(home)
        assert copy.database_url != found.database_url
        execute(copy, "UPDATE whose SET owner = 'the copy'")
        assert execute(found, "SELECT owner FROM whose") == [("the first",)]
    finally:
        assert servers.down(moved) is True


def test_two_starters_at_once_get_the_same_servers(home: Path, start: Run) -> None:
    said = [outcome(process) for process in (start(home), start(home))]
    assert said[0].splitlines()[-1] == said[1].splitlines()[-1]
    assert sum("creating the database folder" in text for text in said) == 1
    assert len([pid for pid in pids(home) if _cmdline(Path(f"/proc/{pid}")).startswith(b"/")]) == 2


def test_the_second_starter_waits_for_the_first(home: Path, start: Run) -> None:
    place = homes.prepared(home)
    with homes.locked(place, print):
        second = start(home)
        assert second.stdout is not None
        assert "waiting for another process" in second.stdout.readline()
        assert second.poll() is None
        assert pids(home) == []
    outcome(second)
    assert servers.find(home) is not None


def test_a_lock_on_a_removed_lock_file_locks_nobody_out(home: Path) -> None:
    place = homes.prepared(home)
    with homes.locked(place, print):
        (home / "lock").unlink()
        with homes.locked(place, print) as second:
            assert os.path.samestat(os.fstat(second), (home / "lock").stat())


def test_the_servers_outlive_the_session_of_their_starter(home: Path, start: Run) -> None:
    code = (
        "import sys, time; from pathlib import Path; from flowstone_celery.embedded import servers\n"
        "servers.up(Path(sys.argv[1])); print('up', flush=True); time.sleep(600)"
    )
    starter = start(home, code=code)
    assert starter.stdout is not None
    assert starter.stdout.readline() == "up\n"
    for what in (signal.SIGHUP, signal.SIGKILL):
        os.killpg(starter.pid, what)
    starter.wait()
    assert servers.find(home) is not None


def _cmdline(proc: Path) -> bytes:
    try:
        return (proc / "cmdline").read_bytes()
    except OSError:
        return b""


def _same_owners(original: Path, copy: Path) -> None:
    for path in original.rglob("*"):
        twin = copy / path.relative_to(original)
        if twin.exists():
            os.chown(twin, path.stat().st_uid, path.stat().st_gid)
