"""Scatters by hand: a step that scatters, its hands, and short words for what they do."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar
from uuid import UUID

from corelab import QUEUE, TASK, Lab, step

from flowstone_celery.core import barriers, steps
from flowstone_celery.core.barrier_model import Ended, NewBarrier, Part, Policy, Progress, Range, Scattered
from flowstone_celery.core.model import NewStep
from flowstone_celery.core.statements import SQL

if TYPE_CHECKING:
    from flowstone_celery.core.model import Claim
    from flowstone_celery.core.steps import Moved
    from flowstone_celery.db.database import Tx

T = TypeVar("T")
HAND = f"{TASK}[item]"


def keys(count: int, *, first: int = 0) -> list[bytes]:
    """So many keys as canonical JSON."""
    return [b'{"n":%d}' % number for number in range(first, first + count)]


def new(**policy: Any) -> NewBarrier:
    """A barrier of step `pages`, whose hands work on the lab's queue."""
    return NewBarrier("pages", HAND, QUEUE, 0, Policy(**policy))


def succeeded(items: Range | Iterable[int], result: bytes = b"1") -> list[Ended]:
    """First attempts that succeeded, of a range or of these indexes."""
    if isinstance(items, Range):
        return [Ended(each.index, "succeeded", each.attempt, result) for each in items.items]
    return [Ended(index, "succeeded", 1, result) for index in items]


def failed(index: int, attempt: int = 1) -> Ended:
    """An item that has failed for good."""
    return Ended(index, "failed", attempt, error={"code": "FS-2004", "message": f"no {index}"})


def retried(index: int, attempt: int = 1, delay: float = 0.0) -> Ended:
    """An attempt that failed, with others left."""
    return Ended(index, "retry", attempt, error={"message": "not yet"}, delay=delay)


@dataclass
class Scattering:
    """One run with a step that scatters, and one that needs it."""

    lab: Lab
    run: UUID
    worker: int
    claim: Claim
    barrier: int = 0

    def tx(self, work: Callable[[Tx], T]) -> T:
        return self.lab.database.attempt(work)

    # --- the step -----------------------------------------------------------------------------------------------------------

    def scatter(self, scattered: Scattered) -> Moved | None:
        moved = self.tx(lambda tx: barriers.scatter_later(tx, self.claim, scattered)())
        found = barriers.of_step(self.lab.database, self.claim.id)
        self.barrier = found.id if found else 0
        return moved

    @property
    def status(self) -> str:
        found = barriers.barrier(self.lab.database, self.barrier)
        assert found is not None
        return found.status

    @property
    def step(self) -> tuple[str, str]:
        """Status and phase of the scattering step."""
        row = self.lab.sql("SELECT status, phase FROM flowstone.steps WHERE id = %(id)s", id=self.claim.id)[0]
        return row["status"], row["phase"]

    @property
    def progress(self) -> Progress:
        found = barriers.progress(self.lab.database, self.barrier)
        assert found is not None
        return found

    # --- hands --------------------------------------------------------------------------------------------------------------

    def hands(self, status: str | None = None) -> list[dict[str, Any]]:
        text = (
            "SELECT id, status, parked, due_at, losses, crashes, worker_id, fence FROM flowstone.steps WHERE barrier_id = %(barrier)s "
            "AND (%(status)s::text IS NULL OR status = %(status)s) ORDER BY id"
        )
        return self.lab.sql(text, barrier=self.barrier, status=status)

    def hand(self, worker: int | None = None) -> Claim:
        """The next hand in line, claimed."""
        found = self.lab.claim_next(worker or self.worker, knows=[HAND])
        assert found is not None
        assert found.barrier_id == self.barrier
        return found

    def range(self, hand: Claim, wanted: int = 500, width: int = 1) -> Range | None:
        return self.tx(lambda tx: barriers.claim_range(tx, hand, wanted=wanted, width=width))

    def held(self, hand: Claim, wanted: int = 500) -> Range:
        found = self.range(hand, wanted)
        assert found is not None
        return found

    def settle(
        self, hand: Claim, held: Range, ended: Sequence[Ended], rest: Sequence[int] | None = None
    ) -> Part | None:
        return self.tx(lambda tx: barriers.settle_part(tx, hand, held, ended, rest_open=rest))

    def aside(self, hand: Claim) -> Moved | None:
        return self.tx(lambda tx: barriers.stand_aside(tx, hand))

    def back(self, hand: Claim) -> Moved | None:
        return self.tx(lambda tx: barriers.go_back(tx, hand))

    def finish(self, hand: Claim) -> Moved | None:
        return self.tx(lambda tx: barriers.finish_hand(tx, hand))

    def work(self, hand: Claim, wanted: int = 500) -> int:
        """The hand does all that it finds, with success; answers how many items."""
        done = 0
        while (held := self.range(hand, wanted)) is not None:
            assert self.settle(hand, held, succeeded(held)) is not None
            done += len(held.items)
        return done

    def die(self, hand: Claim, *, crash: bool = True) -> None:
        """The process that runs this hand dies; its keeper sees it."""
        release(self.lab, hand.worker_id, crash=crash)

    def items(self, status: str | None = None, **options: Any) -> list[int]:
        return [
            each.index
            for each in barriers.items(
                self.lab.database, self.barrier, status=status, **{"limit": 100_000, **options}
            )
        ]


def release(lab: Lab, worker: int, *, crash: bool = True, reason: str = "its process died") -> None:
    """What a dead process held is released."""

    def work(tx: Tx) -> None:
        limits = {"crash_limit": 1_000, "loss_limit": 1_000}
        rows = tx.rows(
            SQL["release_dead"], workers=[worker], crash=int(crash), loss=0, reason=reason, **limits
        )
        steps.lose_claims(tx, rows)

    lab.database.attempt(work)


def begin(lab: Lab, **options: Any) -> Scattering:
    """A run whose first step is claimed and about to scatter; `after` needs it."""
    plan: list[NewStep] = [step("pages", **options), step("after", 0)]
    run = lab.start(*plan, promise=False)
    worker = lab.worker()
    claim = lab.claim(worker, lab.id_of(run, "pages"))
    assert claim is not None
    return Scattering(lab, run, worker, claim)


def scattered(lab: Lab, count: int, *, collapsed: int = 0, **policy: Any) -> Scattering:
    """The same, scattered into so many items."""
    found = begin(lab)
    assert found.scatter(Scattered(new(**policy), keys(count), collapsed)) is not None
    return found
