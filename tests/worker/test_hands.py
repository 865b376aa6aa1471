"""Hands on real workers: what monitors see of them, and what a timeout, a death, a stop or a neighbour's failure means for items."""

from __future__ import annotations

import os
import signal
from typing import Any

import psutil
import pytest

from flowstone_celery.errors import RunFailed
from worker import shop
from worker.conftest import Site, until
from worker.monitor import Monitor

pytestmark = pytest.mark.worker


@pytest.fixture(autouse=True)
def clean_notes(site: Site) -> None:
    """Nothing is noted yet, and what waits for a word waits."""
    for note in (*site.scratch.glob("chore-*"), *site.scratch.glob("go-chores")):
        note.unlink()


def start(site: Site, name: str, *items: str) -> Any:
    return site.fs.materialize(name, metadata={"items": items})


def numbers(count: int) -> list[str]:
    return [f"do-{number}" for number in range(count)]


def statuses(run: Any) -> dict[str, str]:
    """Of all items, by key."""
    [scatter] = run.scatters()
    return {each.key: each.status for each in scatter.items()}


def test_hands_show_under_the_name_of_the_assets_items_and_say_which(site: Site) -> None:
    site.start("-E", slots=1)
    with Monitor() as monitor:
        run = start(site, "shown_chores", "do-1", "do-2", "do-3")
        run.wait(timeout=20)
        until(lambda: len(monitor.of("task-succeeded", "shop.shown_chores[item]")) >= 3, what="three hands")
    shown = {each["kwargs"] for each in monitor.of("task-received", "shop.shown_chores[item]")}
    for index, key in enumerate(("do-1", "do-2", "do-3")):
        text = repr(f'item {index}: "{key}"')
        assert f"{{'run': '{run.id}', 'items': {text}}}" in shown
    results = [each["result"] for each in monitor.of("task-succeeded", "shop.shown_chores[item]")]
    assert sum("1 items, 0 failed" in each for each in results) == 3


def test_a_range_shows_from_where_to_where_it_goes(site: Site) -> None:
    site.start("-E", slots=1)
    with Monitor() as monitor:
        run = start(site, "chores", *numbers(300))
        run.wait(timeout=20)
        until(lambda: monitor.of("task-succeeded", "shop.chores[item]"), what="a hand")
    shown = [each["kwargs"] for each in monitor.of("task-received", "shop.chores[item]")]
    assert f"{{'run': '{run.id}', 'items': 'items 0 to 7'}}" in shown


def test_a_message_for_items_starts_nothing_by_itself(site: Site) -> None:
    worker = site.start()
    shop.app.send_task("shop.chores[item]")
    until(lambda: worker.said("does the items of a scatter"), what="the refusal")


def test_an_item_that_sleeps_too_long_is_interrupted_and_its_process_goes_on(site: Site) -> None:
    site.start()
    run = start(site, "chores", "sleep-1", *numbers(20))
    run.wait(timeout=30)
    assert run.status == "succeeded"
    assert statuses(run) == {"sleep-1": "failed", **dict.fromkeys(numbers(20), "succeeded")}
    [scatter] = run.scatters()
    [failed] = scatter.items("failed")
    assert failed.error["code"] == "FS-2005"
    assert failed.attempt == 2
    assert len(set(site.notes("chore-sleep-1"))) == 1


def test_an_item_that_kills_its_process_every_time_fails_alone(site: Site) -> None:
    site.start(slots=2)
    run = start(site, "chores", *numbers(30), "die-1", "do-31")
    run.wait(timeout=60)
    assert run.status == "succeeded"
    found = statuses(run)
    assert found.pop("die-1") == "failed"
    assert set(found.values()) == {"succeeded"}
    assert len(set(site.notes("chore-die-1"))) == 1 + site.settings.crash_limit
    [scatter] = run.scatters()
    [failed] = scatter.items("failed")
    assert failed.error["type"] == "TooManyCrashes"


def test_a_process_that_is_killed_loses_nothing_and_is_nobodys_failure(site: Site) -> None:
    site.start(slots=1)
    run = start(site, "chores", *numbers(5), "wait-5", *[f"do-{number}" for number in range(6, 40)])
    (pid, *_) = until(lambda: site.notes("chore-wait-5"), what="the one that waits")
    os.kill(int(pid), signal.SIGKILL)
    until(lambda: not psutil.pid_exists(int(pid)) or _is_zombie(int(pid)), what="its death")
    site.go("chores")
    run.wait(timeout=40)
    assert set(statuses(run).values()) == {"succeeded"}
    steps = site.rows("SELECT status, crashes FROM flowstone.steps WHERE run_id = %(run)s", run=run.uuid)
    assert {row["status"] for row in steps} <= {"succeeded", "skipped"}


def _is_zombie(pid: int) -> bool:
    return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def test_the_first_failure_ends_neighbours_that_run(site: Site) -> None:
    site.start(slots=2)
    run = start(site, "strict_chores", "sleep-1", "fail-2")
    with pytest.raises(RunFailed, match="fail-2"):
        run.get(timeout=20)
    until(lambda: _hands(site, run) <= {"succeeded", "skipped", "cancelled"}, what="no hand to run")
    assert statuses(run) == {"sleep-1": "cancelled", "fail-2": "failed"}


def _hands(site: Site, run: Any) -> set[str]:
    rows = site.rows(
        "SELECT status FROM flowstone.steps WHERE run_id = %(run)s AND phase = 'item'", run=run.uuid
    )
    return {row["status"] for row in rows}


def test_cancelling_a_run_ends_an_item_that_sleeps(site: Site) -> None:
    site.start()
    run = start(site, "strict_chores", "sleep-1", "sleep-2")
    until(lambda: site.notes("chore-sleep-1"), what="the sleeper")
    run.cancel()
    until(lambda: run.status == "cancelled", what="its end")
    [scatter] = run.scatters()
    assert scatter.status == "cancelled"


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_a_worker_that_stops_ends_its_item_and_leaves_the_rest_to_others(site: Site, pool: str) -> None:
    first = site.start(pool=pool)
    run = start(site, "strict_chores", "wait-0", *[f"do-{number}" for number in range(1, 50)])
    until(lambda: site.notes("chore-wait-0"), what="the one that waits")
    first.process.send_signal(signal.SIGTERM)
    site.go("chores")
    first.process.wait(20)
    assert run.status == "running"
    site.start(pool=pool)
    run.wait(timeout=30)
    assert set(statuses(run).values()) == {"succeeded"}
    assert all(len(site.notes(f"chore-do-{number}")) == 1 for number in range(1, 50))
    [scatter] = run.scatters()
    assert {each.attempt for each in scatter.items()} == {1}
