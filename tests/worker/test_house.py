"""Attaching to somebody's Celery app."""

from __future__ import annotations

import pytest
from celery import Celery

from flowstone_celery import FlowStone
from flowstone_celery.errors import InvalidOption
from flowstone_celery.worker.attach import attach, queue_of
from flowstone_celery.worker.task import StepTask


def test_attaching_changes_no_setting_and_does_not_finalize_the_app() -> None:
    plain, attached = (Celery("shop", broker="redis://localhost:1/0", set_as_current=False) for _ in range(2))
    FlowStone(attached).asset(_orders)
    assert not attached.finalized
    assert dict(attached.conf) == dict(plain.conf)


def test_an_asset_is_a_task_of_the_app_once_it_is_finalized() -> None:
    app = Celery("shop", broker="redis://localhost:1/0", set_as_current=False)
    FlowStone(app).asset(_orders)
    task = app.tasks["shop._orders"]
    assert isinstance(task, StepTask)
    assert (task.acks_late, task.reject_on_worker_lost, task.ignore_result, task.rate_limit) == (
        True,
        False,
        True,
        0,
    )
    assert "shop._orders" not in Celery("other", set_as_current=False).tasks


def test_the_apps_own_limits_and_defaults_do_not_reach_steps() -> None:
    app = Celery("shop", broker="redis://localhost:1/0", set_as_current=False)
    app.conf.update(task_default_rate_limit="1/m", task_reject_on_worker_lost=True, task_track_started=True)
    FlowStone(app).asset(_orders)
    task = app.tasks["shop._orders"]
    assert (task.rate_limit, task.reject_on_worker_lost, task.track_started) == (0, False, False)


def test_the_apps_own_router_chooses_the_queue() -> None:
    app = Celery("shop", broker="redis://localhost:1/0", set_as_current=False)
    app.conf.task_routes = {"shop.etl.*": {"queue": "etl"}}
    assert queue_of(app, "shop.etl.orders") == "etl"
    assert queue_of(app, "shop.etl.orders", "night") == "night"
    assert queue_of(app, "shop.orders") == "celery"
    assert not app.finalized


def test_a_queue_that_the_app_does_not_declare_is_refused() -> None:
    app = Celery("shop", broker="redis://localhost:1/0", set_as_current=False)
    app.conf.task_create_missing_queues = False
    with pytest.raises(InvalidOption, match="task_queues"):
        queue_of(app, "shop.orders", "nowhere")


def test_a_second_house_on_one_app_is_refused() -> None:
    app = Celery("shop", broker="redis://localhost:1/0", set_as_current=False)
    house = FlowStone(app)
    attach(app, house)
    with pytest.raises(InvalidOption, match="already"):
        FlowStone(app)


def _orders() -> int:
    return 1
