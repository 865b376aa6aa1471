"""Goals G21 and G22: the doctor knows of every row that is not finished why it is not running, and who waits costs next to nothing."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from corelab import Lab, step
from faults.figures import Noted

from flowstone_celery.core import acts, doctor
from flowstone_celery.core.interrupts import Board
from flowstone_celery.core.retry_policy import RetryPolicy
from flowstone_celery.db import database as databases
from flowstone_celery.outcomes import Retry

pytestmark = pytest.mark.goals

ROOT = Path(__file__).parents[2]


# --- G21: a reason for each row ---------------------------------------------------------------------------------------------------------


def a_zoo(lab: Lab) -> dict[str, str]:
    """One step, or more, in each state that a step can stay in; by name, some words of the reason that it must be given."""
    alive, late = lab.worker(), lab.worker(lease=-1.0)

    def put(name: str, change: str = "", *, queue: str = "known", **options: object) -> None:
        named = {key: options.pop(key) for key in ("lane",) if key in options}
        run = lab.start(step(name, queue=queue, **options), **named)
        if change:
            lab.sql(f"UPDATE flowstone.{change} = %(run)s", run=run)

    lab.node(queues=["known", "strange", "old"])
    running = lab.start(step("runs"), step("blocked", 0), step("half", 0, optional=[1]))
    lab.claim(alive, lab.id_of(running, "runs"))
    lost = lab.start(step("lost"))
    lab.claim(alive, lab.id_of(lost, "lost"))
    lab.sql("UPDATE flowstone.steps SET worker_id = %(late)s WHERE run_id = %(run)s", late=late, run=lost)
    put("later", due_in=60.0)
    put("nobody", queue="empty")
    put("unknown", queue="strange", task="mystery")
    put("newer", "steps SET v = 9 WHERE run_id", queue="old")
    put("woken")
    for name in ("first", "second", "third"):
        put(name, lane="one by one")
    resting = lab.start(step("paused", queue="known"))
    acts.pause(acts.Doer(lab.database, lab.postbox, lab.settings), resting, actor="tester")
    maker = lab.start(step("slice", partition="s", sole=True))
    lab.claim(alive, lab.id_of(maker, "slice"))
    waiter = lab.start(step("slice", partition="s", sole=True))
    assert lab.claim(alive, lab.id_of(waiter, "slice")) is None
    cancelling = lab.start(step("interrupted"), step("after", 0))
    lab.claim(alive, lab.id_of(cancelling, "interrupted"))
    lab.cancel(cancelling)
    lab.answers["again"] = Retry(after=3_600)
    lab.start(step("again", queue="trying", max_failures=3, retry=RetryPolicy()))
    lab.executor().work(None, "trying")
    # Last: every start fills its queue up.
    put("line", "steps SET sent_at = NULL WHERE run_id")
    put("noted", "steps SET sent_at = NULL, note = 'lease lost' WHERE run_id")
    lab.sql("UPDATE flowstone.steps SET sent_at = NULL WHERE name = 'line'")
    return {
        "runs": "it runs on",
        "blocked": "it waits for 1 of its dependencies",
        "half": "it waits for 2 of its dependencies",
        "lost": "lost its lease",
        "later": "it is due at",
        "nobody": "no worker listens on queue 'empty'",
        "unknown": "knows the task 'mystery'",
        "newer": "is older than the step",
        "woken": "has been woken",
        "line": "it stands in line",
        "noted": "lease lost; it is next in line",
        "first": "has been woken",
        "second": "earlier runs of lane 'one by one' have not ended",
        "third": "earlier runs of lane 'one by one' have not ended",
        "paused": "its run is paused",
        "slice": "makes the same value now",
        "interrupted": "it runs on",
        "again": "(retry 1)",
    }


def test_the_doctor_names_a_reason_for_every_row_that_is_not_finished(lab: Lab, figure: Noted) -> None:
    expected = a_zoo(lab)
    open_rows = lab.sql(
        "SELECT id, name FROM flowstone.steps WHERE status NOT IN ('succeeded', 'failed', 'skipped', 'cancelled')"
    )
    told = {row["id"]: row["reason"] for row in doctor.why_not_running(lab.database)}
    named = [row["id"] for row in open_rows if told.get(row["id"])]
    reasons = [(row["name"], told.get(row["id"]) or "") for row in open_rows]
    assert {name for name, _ in reasons} == expected.keys()
    for name, words in expected.items():
        assert any(words in reason for each, reason in reasons if each == name), (name, reasons)
    assert len(named) == len(open_rows)
    figure(
        "G21",
        "rows that are not finished and have a named reason, %",
        100 * len(named) / len(open_rows),
        100,
        at_least=True,
    )


# --- G22: what waiting costs ------------------------------------------------------------------------------------------------------------


def test_a_keeper_with_nothing_to_do_asks_little(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, figure: Noted
) -> None:
    for number in range(50):
        lab.start(step("due", due_in=3_600.0 + number), step("blocked", 0))
    node = lab.node()
    keeper = lab.keeper(Board(tmp_path / "board"), node)
    lab.worker(node)
    asked, rows = [0], databases.Tx.rows

    def counted(*arguments: object, **values: object) -> object:
        asked[0] += 1
        return rows(*arguments, **values)  # type: ignore[arg-type]

    monkeypatch.setattr(databases.Tx, "rows", counted)
    keeper.step()
    asked[0], begun = 0, time.monotonic()
    while time.monotonic() - begun < 4:
        time.sleep(keeper.step())
    per_second = asked[0] / (time.monotonic() - begun)
    figure("G22", "queries in a second of a keeper while 100 steps wait", per_second, 20)
    assert per_second <= 20


@pytest.mark.faults
@pytest.mark.worker
@pytest.mark.timeout(300)
def test_ten_thousand_steps_that_wait_cost_next_to_nothing(figure: Noted) -> None:
    said = subprocess.run(
        [sys.executable, "-m", "benchmarks", "idle", "--rounds", "3", "--json"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        timeout=280,
    )
    found = json.loads(said.stdout)["ours"]
    figure("G22", "queries in a second while 10,000 steps wait", found["queries_per_second"], 20)
    figure(
        "G22",
        "processor time of keeper and backends, % of a core",
        found["keeper_cpu_percent"] + found["postgres_cpu_percent"],
        3,
    )
    figure("G22", "processor time with the Celery worker itself, % of a core", found["cpu_percent"], 3)
    assert found["queries_per_second"] <= 20
    assert found["cpu_percent"] < 3 * 10
