"""Runs that were started in somebody's transaction, on real workers: called by their commit, whoever dies around it."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import Engine, create_engine, text
from sqlalchemy.orm import Session

from worker import shop
from worker.conftest import TESTS, Site, Worker, until

pytestmark = pytest.mark.worker
LISTENING = (
    "SELECT count(*) AS n FROM pg_stat_activity WHERE datname = current_database() AND query LIKE 'LISTEN %%'"
)


@pytest.fixture(scope="module", autouse=True)
def worker(module_site: Site) -> Worker:
    """One worker, whose keeper has sent a wake-up before: it has loaded what it needs for that."""
    worker = module_site.start(slots=2, FLOWSTONE_PACER_POLL_SECONDS="2")
    engine = create_engine(str(module_site.settings.database_url))
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE public.orders (id text PRIMARY KEY)"))
        run = shop.fs.run("first", connection=connection)
    engine.dispose()
    run.get(20)
    return worker


@pytest.fixture
def engine(site: Site) -> Iterator[Engine]:
    found = create_engine(str(site.settings.database_url))
    yield found
    found.dispose()


def latency(site: Site, run: Any, committed: float) -> float:
    """Seconds from the commit to the first line of user code, as seen by this process."""
    until(lambda: site.notes(f"quick-{run.row['partition']}"), what="the step to begin")
    return time.monotonic() - committed


def one(site: Site, engine: Engine) -> float:
    key = uuid4().hex
    with engine.begin() as connection:
        connection.execute(text("INSERT INTO public.orders VALUES (:id)"), {"id": key})
        run = shop.fs.run("quick", partition=key, connection=connection)
    committed = time.monotonic()
    found = latency(site, run, committed)
    assert run.get(10) == key
    return found


def test_the_keeper_hears_of_a_connection_s_commit_and_calls_the_run_at_once(
    site: Site, engine: Engine
) -> None:
    assert until(lambda: site.rows(LISTENING)[0]["n"]) == 1
    # By its own looks alone, the keeper of this worker would take a quarter of a second on average.
    took = sorted(one(site, engine) for _ in range(9))
    assert took[4] < 0.15
    assert took[7] < 0.5


def test_a_keeper_whose_listening_connection_was_cut_listens_again(site: Site, engine: Engine) -> None:
    before = site.rows("SELECT pid FROM pg_stat_activity WHERE query LIKE 'LISTEN %%'")
    site.rows("SELECT pg_terminate_backend(%(pid)s::int)", pid=before[0]["pid"])
    assert one(site, engine) < 2.0
    until(lambda: site.rows(LISTENING)[0]["n"], what="the keeper to listen again")
    assert one(site, engine) < 0.5


def test_a_session_s_commit_calls_its_runs_and_a_rollback_none(site: Site, engine: Engine) -> None:
    kept, dropped = uuid4().hex, uuid4().hex
    with Session(engine) as session:
        shop.fs.run("quick", partition=dropped, connection=session)
        session.rollback()
        run = shop.fs.run("quick", partition=kept, connection=session)
        session.commit()
        committed = time.monotonic()
    assert latency(site, run, committed) < 0.5
    run.get(10)
    assert site.notes(f"quick-{dropped}") == []


CLIENT = textwrap.dedent(
    """
    import os, sys, time
    from sqlalchemy import create_engine, text
    from sqlalchemy.orm import Session
    from worker import shop
    door, key = sys.argv[1:3]
    engine = create_engine(os.environ["FLOWSTONE_DATABASE_URL"])
    with (Session(engine) if door == "session" else engine.connect()) as theirs:
        theirs.execute(text("INSERT INTO public.orders VALUES (:id)"), {"id": key})
        shop.fs.run("quick", partition=key, connection=theirs)
        print("asked", flush=True)
        if "uncommitted" in sys.argv:
            time.sleep(60)
        theirs.commit()
        print("committed", flush=True)
        time.sleep(60)
    """
)


@pytest.mark.parametrize(
    ("door", "when"),
    [
        ("session", "uncommitted"),
        ("session", "committed"),
        ("session", "in the hook"),
        ("connection", "uncommitted"),
        ("connection", "committed"),
    ],
)
def test_a_client_that_is_killed_leaves_a_run_exactly_where_it_leaves_its_row(
    site: Site, door: str, when: str
) -> None:
    key = uuid4().hex
    fault = {"FLOWSTONE_FAULT": "join.after_commit:1:kill9"} if when == "in the hook" else {}
    with subprocess.Popen(
        [sys.executable, "-c", CLIENT, door, key, when],
        cwd=TESTS,
        env={**os.environ, **site._env(), **fault},
        stdout=subprocess.PIPE,
        text=True,
    ) as client:
        assert client.stdout
        assert client.stdout.readline() == "asked\n"
        if when == "committed":
            assert client.stdout.readline() == "committed\n"
        if when != "in the hook":
            client.kill()
        assert client.wait(20) == -9
    until(
        lambda: (
            not site.rows(
                "SELECT 1 FROM pg_stat_activity WHERE state LIKE 'idle in transaction%%' AND datname = current_database()"
            )
        ),
        what="the server to see that the client has gone",
    )
    rows = site.rows("SELECT id FROM public.orders WHERE id = %(id)s", id=key)
    runs = site.rows("SELECT id FROM flowstone.runs WHERE partition = %(id)s", id=key)
    assert len(rows) == len(runs) == (when != "uncommitted")
    if runs:
        assert shop.fs.handle(runs[0]["id"]).get(15) == key


ASKER = textwrap.dedent(
    """
    import os, sys
    from sqlalchemy import create_engine
    from sqlalchemy.orm import Session
    from worker import shop
    with Session(create_engine(os.environ["FLOWSTONE_DATABASE_URL"])) as session:
        shop.fs.handle(sys.argv[1]).cancel(connection=session)
        session.commit()
    """
)


def test_a_cancel_that_was_asked_for_goes_on_when_the_one_who_does_it_dies(site: Site) -> None:
    run = shop.fs.run("quick", partition=uuid4().hex, delay=600)
    fault = {"FLOWSTONE_FAULT": "request.after_commit:1:kill9"}
    died = subprocess.run(
        [sys.executable, "-c", ASKER, run.id],
        cwd=TESTS,
        env={**os.environ, **site._env(), **fault},
        check=False,
    )
    assert died.returncode == -9
    run.wait(10)
    assert run.state == "cancelled"


def test_an_open_transaction_of_theirs_holds_no_worker_up(site: Site, engine: Engine) -> None:
    with engine.connect() as connection:
        shop.fs.run("quick", partition="never", connection=connection)
        stands = shop.fs.run("slow", partition="s")
        shop.fs.handle(stands.id).cancel(connection=connection)
        site.go("s")
        begun = time.monotonic()
        assert [shop.fs.run("quick", partition=uuid4().hex).get(20) for _ in range(10)]
        assert stands.get(20) == "s"
        assert time.monotonic() - begun < 10
        connection.rollback()
    assert site.notes("quick-never") == []


def test_behind_a_transaction_pooler_nobody_listens_and_the_poll_serves(
    site: Site, engine: Engine, worker: Worker
) -> None:
    site.close([worker])
    pooled = site.start(slots=2, FLOWSTONE_DATABASE_POOLER="transaction")
    assert one(site, engine) < 5.0  # the former pacer's time runs out, and Celery loads in the keeper
    assert site.rows(LISTENING)[0]["n"] == 0
    assert one(site, engine) < 0.5 + site.settings.pacer_poll_seconds
    assert pooled.process.poll() is None
