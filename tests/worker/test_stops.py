"""Every pool runs steps, and stops in time with nothing lost and no process left behind."""

from __future__ import annotations

import itertools
import signal
import threading

import pytest

from flowstone_celery.errors import UnsupportedPool
from flowstone_celery.worker.bootstep import supported_pool
from worker import shop
from worker.conftest import Site, Worker, until

pytestmark = pytest.mark.worker


def assert_gone(site: Site, worker: Worker) -> None:
    """Nothing of the worker is left: no process, no node, no lease, no folder."""
    until(lambda: not worker.processes(), seconds=2, what="its processes to end")
    assert site.node(worker) is None
    assert worker.said("was killed; leases") == 0
    assert worker.said("Traceback") == 0


@pytest.mark.parametrize("pool", ["threads", "solo"])
def test_a_pool_runs_a_step_and_stops_on_sigterm_leaving_nothing(site: Site, pool: str) -> None:
    worker = site.start(pool=pool)
    assert site.fs.run("quick", partition=pool).get(timeout=10) == pool
    assert worker.stop() < 5
    assert_gone(site, worker)


def test_a_warm_stop_of_prefork_lets_the_running_step_end_and_starts_no_other(site: Site) -> None:
    worker = site.start()
    running, waiting = site.fs.run("slow", partition="warm"), None
    until(lambda: site.notes("slow-warm"))
    waiting = site.fs.run("quick", partition="after")
    worker.process.send_signal(signal.SIGTERM)
    until(
        lambda: site.rows(
            "SELECT 1 FROM flowstone.nodes WHERE name = %(n)s AND status = 'draining'", n=worker.name
        )
    )
    site.go("warm")
    worker.process.wait(10)
    assert running.status == "succeeded"
    assert waiting.status == "pending"
    assert_gone(site, worker)
    waiting.cancel()


def test_a_cold_stop_gives_the_running_step_back_at_no_cost(site: Site) -> None:
    worker = site.start()
    run = site.fs.run("slow", partition="cold")
    until(lambda: site.notes("slow-cold"))
    assert worker.stop(signal.SIGQUIT) < 8
    (step,) = site.steps(run)
    assert (step["status"], step["failures"], step["crashes"], step["losses"]) == ("ready", 0, 0, 0)
    assert_gone(site, worker)
    run.cancel()


def test_a_cold_stop_ends_a_long_step_too_whose_message_is_acknowledged(site: Site) -> None:
    worker = site.start(SHOP_VISIBILITY="2")
    run = site.fs.run("slow", partition="coldlong")
    until(lambda: site.notes("slow-coldlong") and site.broker.hlen("unacked") == 0)
    assert worker.stop(signal.SIGQUIT) < 8
    (step,) = site.steps(run)
    assert (step["status"], step["failures"], step["crashes"], step["losses"]) == ("ready", 0, 0, 0)
    assert_gone(site, worker)
    run.cancel()


def test_a_worker_with_a_wrong_declaration_ends_with_one_sentence(site: Site) -> None:
    worker = site.start(wait=False, SHOP_BROKEN="1")
    assert worker.process.wait(15) == 1
    assert worker.said("FS-1003") == 1
    assert worker.said("Traceback") == 0
    assert worker.processes() == []


def test_a_busy_worker_stops_in_time(site: Site) -> None:
    """Without `let_children_go` four of five such stops take more than 30 s."""
    worker = site.start(slots=2)
    stop = threading.Event()

    def feed() -> None:
        for number in itertools.count():
            if stop.wait(0.001):
                return
            shop.plain.apply_async(ignore_result=True)
            if number % 4 == 0:
                site.fs.run("quick", partition=f"busy{number}")

    feeder = threading.Thread(target=feed)
    feeder.start()
    until(lambda: worker.said("succeeded in") > 100)
    try:
        assert worker.stop(seconds=40) < 10
    finally:
        stop.set()
        feeder.join()
    assert_gone(site, worker)
    assert site.rows("SELECT 1 FROM flowstone.steps WHERE status = 'running'") == []


def test_green_pools_are_refused_with_a_sentence(site: Site) -> None:
    for module in ("celery.concurrency.gevent", "celery.concurrency.eventlet", "gevent"):
        with pytest.raises(UnsupportedPool, match="-P prefork, -P threads or -P solo"):
            supported_pool(module)
