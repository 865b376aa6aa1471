"""One worker is killed while it does items of a scatter, and the rows tell what became of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from flowstone_celery.states import Phase, StepStatus

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from flowstone_celery.cli.showcase.crew import Crew, Worker

_FRESH_SECONDS: Final = 0.5
"""A hand works for a second before it goes back to the line: one that began so lately is still at work when the blow falls."""
_FROM: Final = 20.0
_UPTO: Final = 80.0
"""Percent of the items that have ended: enough is done that people see it move, enough is open that the hands are missed."""

Row = dict[str, Any]


@dataclass(slots=True)
class Loss:
    """One hand that the killed worker held, and when which worker had it again."""

    step: int
    name: str
    fence: int
    released_at: datetime | None = None
    reason: str = ""
    taken_at: datetime | None = None
    taken_by: str = ""


@dataclass(slots=True)
class Accident:
    """The kill, as it is prepared, done and survived."""

    crew: Crew
    say: Callable[[str], None]
    name: str
    """The asset that scatters."""
    victim: str = ""
    killed: list[int] = field(default_factory=list)
    at: datetime | None = None
    losses: dict[int, Loss] = field(default_factory=dict)
    places: dict[int, tuple[str, int]] = field(default_factory=dict)
    """By the id under which it claims: each process's worker and pid."""

    @property
    def recovery_seconds(self) -> float | None:
        """From the kill until the last lost hand was at work again; None while one is not."""
        if self.at is None or not self.losses or not all(loss.taken_at for loss in self.losses.values()):
            return None
        return max(
            (loss.taken_at - self.at).total_seconds() for loss in self.losses.values() if loss.taken_at
        )

    def look(self, steps: Sequence[Row], percent: float, news: Iterable[Row]) -> None:
        """Kill as soon as the rows say that it will hurt; afterwards tell what happens to what was lost.

        Args:
            steps: of the run, hands among them.
            percent: of the items that have ended.
            news: events since the last look, those of hands among them.
        """
        running = [step for step in steps if step["worker_id"] is not None]
        self.places |= {step["worker_id"]: (_worker(step), step["pid"]) for step in running}
        if self.at is None:
            self._strike_if_it_hurts(steps, percent)
        for event in news:
            self._hear(event)

    # --- the blow ---------------------------------------------------------------------------------------------------------------

    def _strike_if_it_hurts(self, steps: Sequence[Row], percent: float) -> None:
        """Items are being done and more are to come, and somebody has just begun a turn."""
        hands = [step for step in steps if step["phase"] == Phase.ITEM and step["name"] == self.name]
        fresh = [
            step for step in hands if step["status"] == StepStatus.RUNNING and _age(step) < _FRESH_SECONDS
        ]
        if not fresh or not _FROM <= percent <= _UPTO:
            return
        victim = next((each for each in self.crew.workers if _holds(each, fresh[0])), None)
        if victim is not None:
            self._strike(victim, steps, percent)

    def _strike(self, victim: Worker, steps: Sequence[Row], percent: float) -> None:
        self.at = datetime.now(UTC)
        self.killed = self.crew.kill(victim)
        self.victim = victim.name
        held = [step for step in steps if step["status"] == StepStatus.RUNNING and _holds(victim, step)]
        self.losses = {step["id"]: Loss(step["id"], _called(step), step["fence"]) for step in held}
        names = ", ".join(loss.name for loss in self.losses.values())
        self.say(
            f"kill -9 {victim.name}: {len(self.killed)} processes (parent, pool, keeper) at {percent:.0f}%, while it held {names}"
        )

    # --- the rescue -------------------------------------------------------------------------------------------------------------

    def _hear(self, event: Mapping[str, Any]) -> None:
        loss = self.losses.get(event["step_id"])
        if loss is None:
            return
        if event["event"] == "step.released" and event["fence"] == loss.fence:
            loss.released_at = event["at"]
            loss.reason = (event["detail"] or {}).get("reason", "")
            self.say(
                f"lease lost: {loss.name} was held by {self.victim} ({loss.reason}); what it had not done is open again"
            )
        elif event["event"] == "step.running" and event["fence"] > loss.fence and loss.taken_at is None:
            loss.taken_at = event["at"]
            loss.taken_by = self.places.get(event["worker_id"], ("the other worker", 0))[0]
            after = f"{self._after(loss.taken_at)} after the kill"
            self.say(f"taken over: {loss.name} by {loss.taken_by}, {after}")
        elif event["event"] == "step.skipped" and loss.taken_at is None:
            del self.losses[loss.step]  # it held no item: the others were through before it was missed

    def _after(self, moment: datetime) -> str:
        assert self.at is not None
        return f"{(moment - self.at).total_seconds():.1f} s"


def _called(step: Mapping[str, Any]) -> str:
    return f"hand {step['id']} of {step['name']}"


def _age(step: Mapping[str, Any]) -> float:
    began: datetime = step["started_at"]
    return (datetime.now(UTC) - began).total_seconds()


def _holds(worker: Worker, step: Mapping[str, Any]) -> bool:
    return _worker(step) == worker.name


def _worker(step: Mapping[str, Any]) -> str:
    return str(step["node_name"] or "").partition("@")[0]
