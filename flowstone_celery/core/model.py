"""The nouns of the core: what a door hands in, what a claim hands out, what a handler answers."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, runtime_checkable
from uuid import UUID

import orjson

from flowstone_celery.core.barrier_model import Scattered
from flowstone_celery.core.retry_policy import RetryPolicy
from flowstone_celery.outcomes import Cancel, Fail, Retry, Skip

if TYPE_CHECKING:
    from flowstone_celery.db.database import Row, Tx

T = TypeVar("T")

PROTOCOL = 1
"""Version of what steps and wake-ups mean; a worker claims no row of a higher one."""


INLINE_QUEUE = "flowstone.inline"
"""The queue of steps that are done inline; no Celery worker listens to it, and no wake-up is sent to it."""


def json_text(value: object) -> str | None:
    """Plain JSON text for a jsonb parameter; None stays NULL."""
    return None if value is None else orjson.dumps(value).decode()


def new_run_id() -> UUID:
    """A time-ordered id (UUID version 7, RFC 9562): runs sort by their start."""
    milliseconds = time.time_ns() // 1_000_000
    number = (
        (milliseconds & ((1 << 48) - 1)) << 80
        | 7 << 76
        | secrets.randbits(12) << 64
        | 2 << 62
        | secrets.randbits(62)
    )
    return UUID(int=number)


@dataclass(frozen=True, slots=True)
class WakeUp:
    """A hint that a step is ready: which one, under which task's name, on which queue."""

    step: int
    run: UUID
    name: str
    partition: str
    task: str
    queue: str

    @staticmethod
    def of(row: Row) -> WakeUp:
        """Read a row of `start`, `promise` or `promise_again`."""
        return WakeUp(row["id"], row["run_id"], row["name"], row["partition"], row["task"], row["queue"])


class Carrier(Protocol):
    """Carries wake-ups to workers. A hint that is lost is promised again by the sweep, so sending never raises."""

    def send(self, wakeups: Sequence[WakeUp]) -> None:
        """Send all of them, waiting no longer than the publish timeout for a broker that is away."""


class NoCarrier:
    """Carries nothing: for work that is done in this process."""

    def send(self, wakeups: Sequence[WakeUp]) -> None:
        """Do nothing; the rows stand."""


@dataclass(frozen=True, slots=True)
class NewStep:
    """One step of a run that is about to start. `needs` are positions of earlier steps; True marks an optional one."""

    kind: str
    name: str
    task: str
    queue: str
    partition: str = ""
    priority: int = 0
    needs: Mapping[int, bool] = field(default_factory=dict)
    max_failures: int = 1
    timeout: float | None = None
    retry: RetryPolicy = field(default_factory=RetryPolicy)
    code_digest: str | None = None
    input: Mapping[str, Any] | None = None
    due_in: float = 0.0
    sole: bool = False
    """Only one step of this name and partition runs at a time; the others wait for it."""


@dataclass(frozen=True, slots=True)
class NewRun:
    """A run that is about to start: its steps in topological order."""

    kind: str
    name: str
    steps: Sequence[NewStep]
    partition: str = ""
    id: UUID = field(default_factory=new_run_id)
    tenant: str = ""
    requested_by: str = ""
    idempotency_key: str | None = None
    request_digest: str | None = None
    priority: int = 0
    correlation_id: str | None = None
    input: Mapping[str, Any] | None = None
    code_version: str | None = None
    lane: str | None = None
    """Runs of one lane go one after the other, in the order of their start, `lane_width` at a time."""
    lane_width: int = 1
    deadline_in: float | None = None
    """Seconds from its start after which it ends as failed, whatever it has not done by then."""


@dataclass(frozen=True, slots=True)
class Input:
    """One dependency of a claimed step, as it ended."""

    name: str
    partition: str
    status: str
    output: Mapping[str, Any] | None
    optional: bool


@dataclass(frozen=True, slots=True)
class Claim:
    """A step that this worker runs now, under its fence."""

    id: int
    run_id: UUID
    kind: str
    name: str
    partition: str
    task: str
    queue: str
    round: int
    phase: str
    attempt: int
    failures: int
    max_failures: int
    crashes: int
    losses: int
    fence: int
    worker_id: int
    sole: bool
    awaited_at: datetime | None
    """When it began to wait for another step that made the same value; None if it did not."""
    stands: int | None
    """For a sole step: the version of its value that stands now, unless that is invalidated."""
    timeout_seconds: float | None
    retry: RetryPolicy
    input: Mapping[str, Any] | None
    run_name: str
    requested_by: str
    correlation_id: str | None
    tenant: str
    run_input: Mapping[str, Any] | None
    inputs: tuple[Input, ...]
    barrier_id: int | None = None
    """Of a hand: the barrier whose items it does."""

    @staticmethod
    def of(row: Row) -> Claim:
        """Read a row of `claim`."""
        values = {name: row[name] for name in Claim.__dataclass_fields__ if name not in ("retry", "inputs")}
        return Claim(
            **values,
            retry=RetryPolicy(**(row["retry"] or {})),
            inputs=tuple(
                Input(each["name"], each["partition"], each["status"], each["output"], each["optional"])
                for each in row["inputs"]
            ),
        )

    @property
    def idempotency_key(self) -> str:
        """The same in all attempts that a crash caused; another one after a failure or in another round."""
        return f"{self.run_id}/{self.id}/{self.round}/{self.failures}"

    @property
    def held(self) -> dict[str, int]:
        """The guard of every settlement."""
        return {"step": self.id, "worker": self.worker_id, "fence": self.fence}


@dataclass(frozen=True, slots=True)
class Done:
    """A handler's success: what the step's row keeps, and what is written in the settling transaction."""

    output: Mapping[str, Any] | None = None
    write: Callable[[Tx], Mapping[str, Any] | Callable[[], None]] | None = None
    """Runs first in the settling transaction; what it returns is merged into the output. A callable: what was asked for travels with
    the settlement and adds to the output by itself; it is called once that is answered."""


Answer = Done | Scattered | Skip | Retry | Fail | Cancel
"""What a handler may answer. An exception is a failure."""


class Handler(Protocol):
    """Does the work of one kind of step."""

    def __call__(self, claim: Claim, call: Call) -> Answer:
        """Load what the step needs, run the user's code inside `call.user_code()`, answer."""


class Awaited(Protocol):
    """The work of a step whose middle part is a coroutine, so that one thread can do many of them at a time."""

    def run(self) -> Coroutine[Any, Any, object]:
        """The user's code, in the loop: interrupts land in it."""

    def answer(self, result: Any) -> Answer:
        """What follows from what the coroutine returned; in a thread that may block."""

    def close(self) -> None:
        """What `begin` took is given back, however it ended; in a thread that may block."""


@runtime_checkable
class AsyncHandler(Protocol):
    """A handler that can also do steps side by side."""

    def awaiting(self) -> Sequence[str]:
        """The task names whose steps are done so."""

    def begin(self, claim: Claim, call: Call) -> Awaited | Answer:
        """Load what the step needs, in a thread that may block; or answer at once."""


class Call(Protocol):
    """What a handler may use while it runs."""

    def user_code(self) -> Any:
        """A context manager; interrupts land only inside it."""

    def check(self) -> None:
        """Raise if this call is to end: cancelled, timed out, or its lease is lost."""

    def patiently(self, act: Callable[[], T]) -> T:
        """Do it as soon as the database is there: its absence is no failure of the step."""


@dataclass(frozen=True, slots=True)
class Place:
    """One process, told apart from all others that ever had its pid."""

    place: str
    """The machine's boot and pid namespace: processes of one place can see each other."""
    pid: int
    pid_started: int
    """Start time in clock ticks since boot."""

    @staticmethod
    def here() -> Place:
        """This process."""
        pid = os.getpid()
        return Place(place_name(), pid, pid_started(pid) or 0)


def place_name() -> str:
    """The name of this machine's boot and pid namespace."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot}:{Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return f"{os.uname().nodename}:{os.uname().release}"


def pid_started(pid: int) -> int | None:
    """When the process began (clock ticks since boot), or None if there is none or it is a zombie."""
    state = proc_state(pid)
    return None if state is None or state[0] in "ZX" else state[1]


def proc_state(pid: int) -> tuple[str, int] | None:
    """The process's state letter (T: stopped, Z: zombie) and start time, or None if there is none."""
    try:
        fields = (
            Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        )
    except OSError:
        return None
    return fields[0], int(fields[19])
