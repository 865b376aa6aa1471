"""One worker is killed while it holds steps, and the rows tell what became of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from flowstone_celery.states import StepStatus

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from flowstone_celery.cli.showcase.crew import Crew, Worker

_FRESH_SECONDS: Final = 0.3
"""A shard takes longer than this on any machine: a step that began so lately is still in flight when the blow falls."""

Row = dict[str, Any]


@dataclass(slots=True)
class Loss:
    """One step that the killed worker held, and when which worker had it again."""

    step: int
    name: str
    fence: int
    released_at: datetime | None = None
    reason: str = ""
    taken_at: datetime | None = None
    taken_by: str = ""
    attempt: int = 0


@dataclass(slots=True)
class Accident:
    """The kill, as it is prepared, done and survived."""

    crew: Crew
    say: Callable[[str], None]
    prefix: str
    """Steps whose names begin so take long enough to be caught."""
    victim: str = ""
    killed: list[int] = field(default_factory=list)
    at: datetime | None = None
    losses: dict[int, Loss] = field(default_factory=dict)
    places: dict[int, tuple[str, int]] = field(default_factory=dict)
    """By the id under which it claims: each process's worker and pid."""

    @property
    def recovery_seconds(self) -> float | None:
        """From the kill until the last lost step was running again; None while one is not."""
        if self.at is None or not self.losses or not all(loss.taken_at for loss in self.losses.values()):
            return None
        return max(
            (loss.taken_at - self.at).total_seconds() for loss in self.losses.values() if loss.taken_at
        )

    def look(self, steps: Sequence[Row], news: Iterable[Row]) -> None:
        """Kill as soon as the rows say that it will hurt; afterwards tell what happens to what was lost."""
        running = [step for step in steps if step["worker_id"] is not None]
        self.places |= {step["worker_id"]: (_worker(step), step["pid"]) for step in running}
        if self.at is None:
            self._strike_if_it_hurts(steps)
        for event in news:
            self._hear(event)

    # --- the blow ---------------------------------------------------------------------------------------------------------------

    def _strike_if_it_hurts(self, steps: Sequence[Row]) -> None:
        """Every shard is done or on its way, and somebody has just begun one: the other worker takes it over before anything else."""
        shards = [step for step in steps if step["name"].startswith(self.prefix)]
        fresh = [
            step for step in shards if step["status"] == StepStatus.RUNNING and _age(step) < _FRESH_SECONDS
        ]
        if not fresh or any(step["status"] in (StepStatus.BLOCKED, StepStatus.READY) for step in shards):
            return
        victim = next((each for each in self.crew.workers if _holds(each, fresh[0])), None)
        if victim is not None:
            self._strike(victim, steps)

    def _strike(self, victim: Worker, steps: Sequence[Row]) -> None:
        self.at = datetime.now(UTC)
        self.killed = self.crew.kill(victim)
        self.victim = victim.name
        held = [step for step in steps if step["status"] == StepStatus.RUNNING and _holds(victim, step)]
        self.losses = {step["id"]: Loss(step["id"], step["name"], step["fence"]) for step in held}
        names = ", ".join(step["name"] for step in held)
        self.say(
            f"kill -9 {victim.name}: {len(self.killed)} processes (parent, pool, keeper) while it held {names}"
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
                f"lease lost: {loss.name} was held by {self.victim} ({loss.reason}); the step is ready again"
            )
        elif event["event"] == "step.running" and event["fence"] > loss.fence and loss.taken_at is None:
            loss.taken_at, loss.attempt = event["at"], event["attempt"]
            loss.taken_by = self.places.get(event["worker_id"], ("the other worker", 0))[0]
            after = f"{self._after(loss.taken_at)} after the kill"
            self.say(f"taken over: {loss.name} by {loss.taken_by}, attempt {loss.attempt}, {after}")

    def _after(self, moment: datetime) -> str:
        assert self.at is not None
        return f"{(moment - self.at).total_seconds():.1f} s"


def _age(step: Mapping[str, Any]) -> float:
    began: datetime = step["started_at"]
    return (datetime.now(UTC) - began).total_seconds()


def _holds(worker: Worker, step: Mapping[str, Any]) -> bool:
    return _worker(step) == worker.name


def _worker(step: Mapping[str, Any]) -> str:
    return str(step["node_name"] or "").partition("@")[0]
