"""Steps on a prefork worker: by wake-up, once, inline, and as monitors see them."""

from __future__ import annotations

import json

import pytest

from flowstone_celery.core.model import WakeUp
from flowstone_celery.errors import RunFailed
from flowstone_celery.worker.carrier import CeleryCarrier
from worker import shop
from worker.conftest import Site, Worker, until
from worker.monitor import Monitor

pytestmark = pytest.mark.worker


@pytest.fixture(scope="module", autouse=True)
def worker(module_site: Site) -> Worker:
    """One worker that sends task events, for the whole module."""
    return module_site.start("-E", slots=2)


def test_a_step_runs_by_its_wakeup(site: Site) -> None:
    run = site.fs.run("quick", partition="one")
    assert run.get(timeout=10) == "one"
    assert len(site.notes("quick-one")) == 1


def test_doubled_messages_change_nothing(site: Site) -> None:
    run = site.fs.run("quick", partition="twice")
    (step,) = site.steps(run)
    hint = WakeUp(step["id"], run.uuid, step["name"], step["partition"], step["task"], step["queue"])
    carrier = CeleryCarrier(shop.app, site.settings)
    carrier.send([hint] * 40)
    assert run.get(timeout=10) == "twice"
    until(
        lambda: site.broker.llen("celery") == 0 and site.broker.hlen("unacked") == 0,
        what="all of them to be consumed",
    )
    carrier.close()
    assert len(site.notes("quick-twice")) == 1
    assert site.events(run).count("step.running") == 1


def test_a_wakeup_shows_partition_and_run_and_stays_small(site: Site, worker: Worker) -> None:
    with site.broker.monitor() as monitor:
        run = site.fs.run("quick", partition="shown")
        pushed = next(each["command"] for each in monitor.listen() if "shop.quick" in each["command"])
    message = json.loads(pushed[pushed.index("{") :].encode().decode("unicode_escape"))
    headers = message["headers"]
    assert headers["argsrepr"] == "('shown',)"
    assert headers["kwargsrepr"] == f"{{'run': '{run.id}'}}"
    assert headers["flowstone"] == {"step": site.steps(run)[0]["id"], "v": 1}
    assert len(pushed) < 1_500
    run.get(timeout=10)


def test_a_chain_goes_on_inline_and_shows_each_step_under_its_own_name(site: Site, worker: Worker) -> None:
    before = worker.said("received")
    with Monitor() as monitor:
        run = site.fs.materialize_all("third")
        assert run.get(timeout=10) == 3
        names = ("shop.first", "shop.second", "shop.third")
        until(lambda: all(monitor.of("task-succeeded", each) for each in names), what="three successes")
    assert worker.said("received") - before == 1
    for name in names:
        kinds = [monitor.of(kind, name) for kind in ("task-received", "task-started", "task-succeeded")]
        assert [len(each) for each in kinds] == [1, 1, 1], name
    (third,) = monitor.of("task-received", "shop.third")
    assert third["kwargs"] == f"{{'run': '{run.id}'}}"
    assert len({each["uuid"] for name in names for each in monitor.of("task-received", name)}) == 3


def test_steps_side_by_side_show_under_their_own_names_while_others_run(site: Site, worker: Worker) -> None:
    pages = shop.PAGES[:12]
    with Monitor() as monitor:
        run = site.fs.begin([site.fs.slice("fetched", page) for page in pages], only=None)
        until(lambda: len(monitor.of("task-started", "shop.fetched")) == 12, what="twelve starts")
        assert monitor.of("task-succeeded", "shop.fetched") == []
        site.go("fetched")
        until(lambda: run.status == "succeeded")
        until(lambda: len(monitor.of("task-succeeded", "shop.fetched")) >= 12, what="twelve successes")
    shown = [each["args"] for each in monitor.of("task-received", "shop.fetched")]
    assert set(shown) >= {f"('{page}',)" for page in pages}


def test_a_failed_step_shows_as_failure_and_its_message_is_acknowledged(site: Site) -> None:
    with Monitor() as monitor:
        run = site.fs.run("broken")
        with pytest.raises(RunFailed, match="boom"):
            run.get(timeout=10)
        (failed,) = until(lambda: monitor.of("task-failed", "shop.broken"), what="the failure")
    assert "boom" in failed["exception"]
    until(lambda: site.broker.hlen("unacked") == 0, what="the acknowledgement")


def test_a_step_that_will_be_tried_again_shows_as_retry_and_nothing_is_republished(
    site: Site, worker: Worker
) -> None:
    before = worker.said("Task shop.fickle")
    with Monitor() as monitor:
        run = site.fs.run("fickle")
        (retried,) = until(lambda: monitor.of("task-retried", "shop.fickle"), what="the retry")
    assert "not yet" in retried["exception"]
    (step,) = site.steps(run)
    assert (step["status"], step["failures"]) == ("ready", 1)
    assert site.broker.llen("celery") == 0
    assert worker.said("Task shop.fickle") - before == 2  # received, retry
    run.cancel()


def test_a_plain_celery_call_starts_one_run_for_one_task_id(site: Site) -> None:
    for _ in range(2):
        shop.app.send_task("shop.quick", kwargs={"partition": "plain"}, task_id="order-7")
    until(lambda: site.notes("quick-plain"), what="the run")
    until(lambda: site.broker.llen("celery") == 0 and site.broker.hlen("unacked") == 0)
    rows = site.rows("SELECT * FROM flowstone.runs WHERE partition = 'plain'")
    assert [row["idempotency_key"] for row in rows] == ["order-7"]
    assert len(site.notes("quick-plain")) == 1


def test_the_users_own_tasks_go_on_as_before(site: Site, worker: Worker) -> None:
    shop.plain.delay()
    until(lambda: worker.said("Task worker.shop.plain") == 2, what="the task")
