"""Scatters for the laboratory: a kind of step whose items call a function of the test, and executors that know their hands."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import orjson
from corelab import AT_ONCE, QUEUE, TASK, Lab, step

from flowstone_celery.core import barriers
from flowstone_celery.core.barrier_model import Barrier, ItemClaim, NewBarrier, Policy, Scattered
from flowstone_celery.core.executor import Executor
from flowstone_celery.core.model import Answer, Call, Claim, Done
from flowstone_celery.core.wake import back_in_line
from flowstone_celery.states import RUN_TERMINAL

if TYPE_CHECKING:
    from uuid import UUID

    from flowstone_celery.core.barrier_model import Item, Progress
    from flowstone_celery.core.model import NewStep

ITEM_TASK = "lab.work[item]"
KNOWS = (TASK, ITEM_TASK)
Code = Callable[[ItemClaim], Any]


@dataclass
class Calls:
    """One slice's items."""

    kind: Scatters
    barrier: Barrier
    to_end: Call

    @property
    def awaiting(self) -> bool:
        return self.kind.awaiting

    def call(self, item: ItemClaim) -> object:
        with self.to_end.user_code():
            return self.kind.do(item)

    async def run(self, item: ItemClaim) -> object:
        return await self.kind.do(item)

    def ended(self, item: ItemClaim, value: object) -> bytes:
        return orjson.dumps(value)

    def close(self) -> None:
        self.kind.closed += 1


@dataclass
class Scatters:
    """Steps of a kind that scatters: `keys` are the items, `code` does one. Everything is counted."""

    keys: Sequence[Any]
    code: Code = lambda item: orjson.loads(item.key)
    awaiting: bool = False
    policy: dict[str, Any] = field(default_factory=dict)
    queue: str = QUEUE
    called: list[tuple[int, int]] = field(default_factory=list)
    """Index and attempt of each call."""
    calls: list[Call] = field(default_factory=list)
    closed: int = 0
    gathered: list[str] = field(default_factory=list)
    """What the barrier said when its step was called to gather."""
    broken: Exception | None = None
    """What making the items' surroundings raises."""

    def __call__(self, claim: Claim, call: Call) -> Answer:
        if claim.phase == "gather":
            self.gathered.append(claim.name)
            return Done({"gathered": True})
        new = NewBarrier(claim.name, ITEM_TASK, self.queue, 0, Policy(**{"retry": AT_ONCE, **self.policy}))
        return Scattered(new, [orjson.dumps(each) for each in self.keys])

    def items(self, hand: Claim, barrier: Barrier, call: Call) -> Calls:
        if self.broken is not None:
            raise self.broken
        self.calls.append(call)
        return Calls(self, barrier, call)

    def do(self, item: ItemClaim) -> Any:
        self.called.append((item.index, item.attempt))
        return self.code(item)

    @property
    def times(self) -> dict[int, int]:
        """How often each item was called."""
        found: dict[int, int] = {}
        for index, _ in list(self.called):
            found[index] = found.get(index, 0) + 1
        return found


class HandLab:
    """Short words for what tests do with scatters."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab

    def step(self, name: str = "s", *needs: int, **options: Any) -> NewStep:
        return step(name, *needs, **{"kind": "scatters", **options})

    def start(self, *plan: NewStep, **options: Any) -> UUID:
        return self.lab.start(*(plan or (self.step(),)), **options)

    def executor(self, kind: Scatters, node: Any = None, **options: Any) -> Executor:
        options = {"knows": lambda: KNOWS, "handlers": {"scatters": kind}, **options}
        return self.lab.executor(node, **options)

    def scatter(self, kind: Scatters, executor: Executor | None = None) -> UUID:
        """A run whose step has scattered: its hands are ready, none has begun."""
        run = self.start()
        executor = executor or self.executor(kind)
        executor.work(self.lab.id_of(run, "s"), QUEUE, going_on=False)
        return run

    def work(self, run: UUID, *executors: Executor, within: float = 60.0, advance: bool = False) -> str:
        """These executors work, each in a thread (one alone: in this), until the run has ended; answers its status."""
        errors: list[BaseException] = []
        ends = time.monotonic() + within

        def go(executor: Executor) -> None:
            try:
                while time.monotonic() < ends and not errors:
                    back_in_line(self.lab.database)
                    if executor.work(None, QUEUE):
                        continue
                    if self.status(run) in RUN_TERMINAL:
                        return
                    if advance:
                        self.lab.clock.advance(seconds=1)
                    threading.Event().wait(0.01)
            except BaseException as error:  # noqa: BLE001 - raised again by the test's own thread
                errors.append(error)

        threads = [threading.Thread(target=go, args=(each,)) for each in executors[1:]]
        for thread in threads:
            thread.start()
        go(executors[0])
        for thread in threads:
            thread.join(within)
        if errors:
            raise errors[0]
        assert self.status(run) in RUN_TERMINAL, f"not ended: {self.rows(run)}"
        return self.status(run)

    # --- look -----------------------------------------------------------------------------------------------------------------

    def status(self, run: UUID) -> str:
        return str(self.lab.run(run)["status"])

    def barrier(self, run: UUID) -> Barrier:
        return barriers.of_run(self.lab.database, run)[0]

    def progress(self, run: UUID) -> Progress:
        found = barriers.progress(self.lab.database, self.barrier(run).id)
        assert found is not None
        return found

    def items(self, run: UUID, **which: Any) -> dict[int, Item]:
        found = barriers.items(self.lab.database, self.barrier(run).id, **{"limit": 10_000, **which})
        return {each.index: each for each in found}

    def results(self, run: UUID) -> dict[Any, Any]:
        rows = barriers.results(self.lab.database, self.barrier(run).id, limit=10_000)
        return {row["index"]: orjson.loads(row["result"]) for row in rows if row["status"] == "succeeded"}

    def rows(self, run: UUID) -> list[dict[str, Any]]:
        text = "SELECT id, name, phase, status, parked, crashes, losses FROM flowstone.steps WHERE run_id = %(run)s ORDER BY id"
        return [dict(row) for row in self.lab.sql(text, run=run)]
