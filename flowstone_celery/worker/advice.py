"""What FlowStone would like an app to set, and why: said once at worker start, done only where FlowStone may manage the app."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from flowstone_celery.worker.task import EARLY_ACK_SECONDS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from celery import Celery
    from celery.worker import WorkController

_REDIS_OPTIONS = {
    "socket_timeout": 5,
    "socket_connect_timeout": 3,
    "health_check_interval": 5,
    "socket_keepalive": True,
}
_WHY_REDIS = {
    "socket_timeout": "a Redis that hangs is waited for without end",
    "health_check_interval": "a connection that broke in silence is noticed late",
}
_SHORTEST_VISIBILITY = 4 * EARLY_ACK_SECONDS


@dataclass(frozen=True, slots=True)
class Advice:
    """One setting that should be otherwise."""

    setting: str
    value: Any
    why: str
    option: str | None = None
    """The key inside a setting that is a dictionary."""

    @property
    def sentence(self) -> str:
        """For the log."""
        name = f"{self.setting}[{self.option!r}]" if self.option else self.setting
        return f"{name} = {self.value!r}: {self.why}"

    def apply(self, app: Celery, worker: WorkController) -> None:
        """The setting is as advised, for this worker too."""
        if self.option:
            app.conf[self.setting] = {**(app.conf[self.setting] or {}), self.option: self.value}
        else:
            app.conf[self.setting] = self.value
        if self.setting == "worker_prefetch_multiplier":
            worker.prefetch_multiplier = self.value


def advice(app: Celery, worker: WorkController, *, redis: bool) -> list[Advice]:
    """What this app and worker have otherwise than is good for steps."""
    return [*_of_any_broker(app, worker), *(_of_redis(app) if redis else ())]


def _of_any_broker(app: Celery, worker: WorkController) -> Iterator[Advice]:
    if worker.prefetch_multiplier != 1:
        yield Advice(
            "worker_prefetch_multiplier",
            1,
            f"it is {worker.prefetch_multiplier}, so wake-ups wait behind busy slots here while other workers are idle",
        )
    if app.conf.broker_connection_retry_on_startup is not True:
        yield Advice(
            "broker_connection_retry_on_startup",
            True,
            "a worker that starts before its broker should wait for it",
        )


def _of_redis(app: Celery) -> Iterator[Advice]:
    options = app.conf.broker_transport_options or {}
    for name, why in _WHY_REDIS.items():
        if not options.get(name):
            yield Advice("broker_transport_options", _REDIS_OPTIONS[name], why, option=name)
    visibility = options.get("visibility_timeout")
    if visibility is not None and visibility < _SHORTEST_VISIBILITY:
        yield Advice(
            "broker_transport_options",
            3600,
            f"it is {visibility} s: steps may run longer, their rows forbid a second start, but other tasks would run twice",
            option="visibility_timeout",
        )
