"""What `up`, `find` and `down` promise on a quiet day."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import psycopg
import redis as redis_py
import sqlalchemy
from celery import Celery

from flowstone_celery.embedded import daemons, postgres, redis, servers
from flowstone_celery.embedded import home as homes

from .conftest import Run, outcome


def settings(found: servers.Servers) -> dict[str, str]:
    engine = sqlalchemy.create_engine(found.database_url, poolclass=sqlalchemy.NullPool)
    with engine.connect() as connection:
        return {name: value for name, value, *_ in connection.exec_driver_sql("SHOW ALL")}


def execute(found: servers.Servers, statement: str) -> list[tuple[object, ...]]:
    engine = sqlalchemy.create_engine(found.database_url, poolclass=sqlalchemy.NullPool)
    with engine.begin() as connection:
        result = connection.exec_driver_sql(statement)
        return [tuple(row) for row in result] if result.returns_rows else []


def pids(home: Path) -> list[int]:
    place = homes.known(home)
    assert place is not None
    sockets = homes.sockets(place)
    return [pid for each in (postgres, redis) for pid in daemons.members(each.daemon(place, sockets))]


def test_up_returns_urls_that_sqlalchemy_celery_and_redis_accept(running: Path) -> None:
    found = servers.up(running)
    assert execute(found, "SELECT current_database()") == [("flowstone",)]
    with redis_py.Redis.from_url(found.redis_url) as client:
        client.set("who", "redis-py")
    app = Celery(broker=found.broker_url, backend=found.broker_url)
    with app.connection_for_write() as connection:
        connection.ensure_connection(max_retries=1)
        assert connection.default_channel.client.get("who") == b"redis-py"
    assert app.backend.client.get("who") == b"redis-py"
    app.backend.client.close()


def test_the_port_in_the_environment_does_not_lead_elsewhere(running: Path, monkeypatch) -> None:
    monkeypatch.setenv("PGPORT", "6000")
    monkeypatch.setenv("PGHOST", "/nowhere")
    assert execute(servers.up(running), "SELECT 1") == [(1,)]


def test_postgres_is_durable_private_and_plain(running: Path) -> None:
    found = servers.up(running)
    shown = settings(found)
    assert shown["fsync"] == shown["synchronous_commit"] == shown["full_page_writes"] == "on"
    assert shown["listen_addresses"] == ""
    assert shown["max_connections"] == "200"
    assert shown["client_connection_check_interval"] == "500ms"
    assert shown["server_encoding"] == "UTF8"
    assert execute(found, "SELECT extname FROM pg_extension") == [("plpgsql",)]
    assert execute(found, "SELECT 'B' < 'a' AND upper('é') = 'É'") == [(True,)]


def test_redis_appends_refuses_eviction_and_has_no_port(running: Path) -> None:
    with redis_py.Redis.from_url(servers.up(running).redis_url) as client:
        shown = {
            name: client.config_get(name)[name]
            for name in ("appendonly", "port", "maxmemory-policy", "save", "dir")
        }
    assert shown == {
        "appendonly": "yes",
        "port": "0",
        "maxmemory-policy": "noeviction",
        "save": "",
        "dir": str(running / "redis"),
    }


def test_no_server_listens_on_tcp(running: Path) -> None:
    ours = set(pids(running))
    listening = {
        line.split()[9]
        for table in ("tcp", "tcp6")
        if Path(f"/proc/net/{table}").exists()
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]
        if line.split()[3] == "0A"
    }
    held = {str(fd.readlink()) for pid in ours for fd in Path(f"/proc/{pid}/fd").iterdir()}
    assert ours
    assert not held & {f"socket:[{inode}]" for inode in listening}


def test_the_sockets_stand_in_a_folder_that_only_the_owner_enters(running: Path) -> None:
    place = homes.known(running)
    assert place is not None
    sockets = homes.sockets(place)
    assert (sockets.stat().st_mode & 0o777, sockets.stat().st_uid) == (0o700, os.geteuid())
    assert (sockets / "pg").stat().st_mode & 0o077 == 0


def test_a_second_up_starts_nothing(running: Path) -> None:
    before = pids(running)
    said: list[str] = []
    first, second = servers.up(running), servers.up(running, on_progress=said.append)
    assert first == second == servers.find(running)
    assert said == []
    assert set(before) <= set(pids(running))


def test_find_creates_nothing(tmp_path: Path) -> None:
    assert servers.find(tmp_path / "absent") is None
    assert servers.down(tmp_path / "absent") is False
    (tmp_path / "empty").mkdir()
    assert servers.find(tmp_path / "empty") is None
    assert list(tmp_path.rglob("*")) == [tmp_path / "empty"]


def test_the_state_file_names_processes_urls_sockets_and_wheels(running: Path) -> None:
    state = json.loads((running / "servers.json").read_text())
    found = servers.up(running)
    assert state["urls"] == {
        "database": found.database_url,
        "broker": found.broker_url,
        "redis": found.redis_url,
    }
    assert Path(state["sockets"]).is_dir()
    assert {state["postgres"]["pid"], state["redis"]["pid"]} <= set(pids(running))
    assert state["postgres"]["version"].split(".")[0].isdigit()
    assert state["postgres"]["origin"]
    assert state["redis"]["origin"]


def test_the_home_keeps_itself_out_of_version_control(running: Path) -> None:
    assert (running / ".gitignore").read_text() == "*\n"


def test_down_leaves_the_data_and_nothing_else(home: Path) -> None:
    found = servers.up(home)
    execute(found, "CREATE TABLE kept AS SELECT 42 AS answer")
    with redis_py.Redis.from_url(found.redis_url) as client:
        client.set("kept", "yes")
    sockets = Path(json.loads((home / "servers.json").read_text())["sockets"])
    before = pids(home)

    assert servers.down(home) is True
    assert not [pid for pid in before if daemons._alive(pid)]
    assert not sockets.exists()
    assert not (home / "servers.json").exists()
    assert servers.find(home) is None
    assert servers.down(home) is False

    again = servers.up(home)
    assert execute(again, "SELECT answer FROM kept") == [(42,)]
    with redis_py.Redis.from_url(again.redis_url) as client:
        assert client.get("kept") == b"yes"


def test_up_starts_only_what_is_missing(home: Path) -> None:
    servers.up(home)
    kept = json.loads((home / "servers.json").read_text())["postgres"]["pid"]
    servers.stop_redis(home)
    assert servers.find(home) is None
    servers.up(home)
    assert json.loads((home / "servers.json").read_text())["postgres"]["pid"] == kept


def test_a_start_with_existing_data_takes_less_than_three_seconds(home: Path) -> None:
    servers.up(home)
    servers.down(home)
    began = time.monotonic()
    servers.up(home)
    assert time.monotonic() - began < 3


def test_tests_may_trade_durability_for_speed_and_a_restart_keeps_the_choice(home: Path) -> None:
    found = servers.up(home, durable=False, appendonly=False)
    servers.restart_postgres(home, mode="fast")
    servers.stop_redis(home)
    servers.start_redis(home)
    assert settings(found)["fsync"] == settings(found)["synchronous_commit"] == "off"
    with redis_py.Redis.from_url(found.redis_url) as client:
        assert client.config_get("appendonly") == {"appendonly": "no"}


def test_paths_may_be_long_and_hold_spaces_and_quotes(tmp_path: Path) -> None:
    home = (
        tmp_path
        / "a project with spaces, 'quotes' and ünïcode"
        / ("long " * 30)
        / ("deep" * 20)
        / ".flowstone"
    )
    try:
        found = servers.up(home)
        assert execute(found, "SELECT 1") == [(1,)]
        assert len(found.database_url) < 120
        assert servers.restart_postgres(home) is None
        assert servers.find(home) == found
    finally:
        assert servers.down(home) is True


def test_no_variable_of_the_session_is_needed(home: Path, start: Run) -> None:
    outcome(start(home, env={}))
    assert servers.find(home) is not None


def test_the_servers_are_daemons_that_hold_nothing_of_their_starter(
    home: Path, start: Run, tmp_path: Path
) -> None:
    marker = tmp_path / "held"
    code = (
        "import os, sys; from pathlib import Path; from flowstone_celery.embedded import servers\n"
        f"os.set_inheritable(os.open({str(marker)!r}, os.O_CREAT | os.O_RDWR), True)\n"
        "servers.up(Path(sys.argv[1]))"
    )
    starter = start(home, code=code, env={**os.environ, "A_SECRET": "shibboleth"})
    outcome(starter)
    assert pids(home)
    for pid in pids(home):
        held = {str(fd.readlink()) for fd in Path(f"/proc/{pid}/fd").iterdir()}
        assert str(marker) not in held
        assert str(home / "lock") not in held
        assert os.getsid(pid) != starter.pid
        assert Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[4] == "0"  # no terminal
        assert str(Path(f"/proc/{pid}/fd/0").readlink()) == "/dev/null"
        assert b"shibboleth" not in Path(f"/proc/{pid}/environ").read_bytes()


def test_the_end_of_a_crashed_session_loses_no_commit(home: Path) -> None:
    found = servers.up(home)
    execute(found, "CREATE TABLE kept AS SELECT 7 AS answer")
    servers.stop_postgres(home, mode="immediate")
    assert servers.find(home) is None
    assert servers.stop_postgres(home) is False
    servers.start_postgres(home)
    assert servers.find(home) == found
    assert execute(found, "SELECT answer FROM kept") == [(7,)]


def test_two_homes_do_not_know_of_each_other(running: Path, home: Path) -> None:
    one, two = servers.up(running), servers.up(home)
    assert one.database_url != two.database_url
    execute(two, "CREATE TABLE only_here ()")
    assert execute(one, "SELECT to_regclass('only_here')") == [(None,)]
    assert servers.down(home) is True
    assert servers.find(running) == one


def test_a_client_that_names_the_sockets_is_not_taken_for_a_server(home: Path) -> None:
    found = servers.up(home)
    with psycopg.connect(found.database_url.replace("+psycopg", "")) as connection:
        backend = connection.info.backend_pid
        assert backend in pids(home)
        assert os.getpid() not in pids(home)
