"""Backfills with real workers: a client that is killed halfway, and how many partitions are made at a time."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

from .conftest import TESTS, until

if TYPE_CHECKING:
    from .conftest import Site

CLIENT = """
import sys
from worker import shop


def told(begun, total):
    print(begun, flush=True)
    sys.stdin.read()


shop.fs.backfill("quick", [f"b{n}" for n in range(250)], key="nightly", max_concurrent=3, on_begun=told)
"""


def most_at_once(site: Site, lane: str) -> int:
    """How many runs of the lane were at work at the same time, at most: from being let in to their end."""
    [row] = site.rows(
        "SELECT max(open) AS most FROM (SELECT sum(CASE h.event WHEN 'run.admitted' THEN 1 ELSE -1 END) OVER (ORDER BY h.id) AS open "
        "FROM flowstone.history h JOIN flowstone.runs r ON r.id = h.run_id WHERE r.lane = %(lane)s "
        "AND h.event IN ('run.admitted', 'run.succeeded', 'run.failed', 'run.cancelled')) o",
        lane=lane,
    )
    return int(row["most"])


def test_a_client_that_is_killed_halfway_leaves_what_has_begun_to_the_workers_and_the_rest_to_the_next(
    site: Site,
) -> None:
    site.start(slots=2)
    environment = {**os.environ, **site._env()}
    client = subprocess.Popen(
        [sys.executable, "-c", CLIENT],
        cwd=TESTS,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert client.stdout is not None
    assert client.stdout.readline() == b"100\n"
    client.send_signal(signal.SIGKILL)
    client.wait(10)
    client.communicate()
    [left] = site.fs.backfill.ls("quick")
    until(lambda: left.progress().succeeded == 100, 60, "what had begun to end")
    assert (left.status, left.progress().unbegun) == ("active", 150)
    again = site.fs.backfill("quick", [f"b{n}" for n in range(250)], key="nightly", max_concurrent=3)
    assert again == left
    ended = again.wait(90)
    assert (ended.status, ended.succeeded, ended.total) == ("completed", 250, 250)
    assert {len(site.notes(f"quick-b{n}")) for n in range(250)} == {1}
    assert most_at_once(site, again.lane) == 3


def test_two_backfills_go_side_by_side_and_a_pause_holds_only_one(site: Site) -> None:
    site.start(slots=3, pool="threads")
    one = site.fs.backfill("slow", [f"one{n}" for n in range(4)], max_concurrent=1)
    two = site.fs.backfill("quick", [f"two{n}" for n in range(40)], max_concurrent=2, reverse=True)
    until(lambda: site.notes("slow-one0"), what="the first to begin")
    assert one.pause()
    assert two.wait(60).succeeded == 40
    site.go("one0")
    until(lambda: one.progress().succeeded == 1, what="what ran to go on to its end")
    assert (one.status, one.progress().waiting) == ("paused", 3)
    assert not site.notes("slow-one1")
    for n in range(1, 4):
        site.go(f"one{n}")
    assert one.resume()
    assert one.wait(60).status == "completed"
    assert (most_at_once(site, one.lane), most_at_once(site, two.lane)) == (1, 2)
    assert two.progress().percent == 100.0


def test_cancel_interrupts_what_runs_and_begins_nothing_more(site: Site) -> None:
    site.start(slots=2)
    found = site.fs.backfill("slow", [f"c{n}" for n in range(30)], max_concurrent=2)
    until(lambda: site.notes("slow-c0") and site.notes("slow-c1"), what="two to begin")
    assert found.cancel(reason="wrong prices")
    ended = found.wait(30)
    assert (ended.status, ended.cancelled, ended.succeeded) == ("cancelled", 30, 0)
    assert not site.notes("slow-c2")
    assert "wrong prices" in str(next(found.results()).error)
