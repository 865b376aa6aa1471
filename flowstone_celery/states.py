"""Every status that can be true and every arrow between two of them, as data.

Nothing else in the package invents a status or an arrow. The named SQL statements carry their arrows in their headers, the tables
carry the statuses in CHECK constraints; tests hold both against this page, and walk the cross product of every status and every
statement on a real database.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class RunStatus(StrEnum):
    """Where a run stands. Paused is a flag beside it that claims respect."""

    PENDING = "pending"
    RUNNING = "running"
    WAITING = "waiting"
    SUCCEEDED = "succeeded"
    PARTIAL = "partial"
    FAILED = "failed"
    CANCELLING = "cancelling"
    CANCELLED = "cancelled"


class StepStatus(StrEnum):
    """Where a step stands; its phase says what the next call is for."""

    BLOCKED = "blocked"
    READY = "ready"
    RUNNING = "running"
    WAITING = "waiting"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    SKIPPED = "skipped"
    CANCELLED = "cancelled"


class Act(StrEnum):
    """What can be asked of a run from within somebody else's transaction; it is done when that has committed."""

    CANCEL = "cancel"
    RETRY = "retry"
    PAUSE = "pause"
    RESUME = "resume"


class BackfillMode(StrEnum):
    """Which of the partitions that were asked for a backfill makes."""

    MISSING = "missing"
    """Those without a value."""
    FAILED = "failed"
    """Those whose newest attempt failed, whatever value they have."""
    STALE = "stale"
    """Those that a run would make: missing or stale."""
    ALL = "all"
    """All of them, whatever is there."""


class BackfillStatus(StrEnum):
    """Where a backfill stands; it follows from its row and its runs, and is stored nowhere."""

    ACTIVE = "active"
    PAUSED = "paused"
    COMPLETED = "completed"
    FAILED = "failed"
    """All has ended, and some of it failed or was cancelled by itself."""
    CANCELLED = "cancelled"


class Parked(StrEnum):
    """Why a ready step may not be claimed for now."""

    DUE = "due"
    """Its moment has not come: a delay, or the pause before a retry."""
    PAUSED = "paused"
    """Its run is paused."""
    LANE = "lane"
    """Earlier runs of its run's lane have not ended."""
    MAKER = "maker"
    """Another step makes the same value."""
    IDLE = "idle"
    """A hand that finds no item to do; its due moment is that of the next retry."""


class Phase(StrEnum):
    """What a step's next call is for."""

    CALL = "call"
    GATHER = "gather"
    SIGNAL = "signal"
    TIMEOUT = "timeout"
    DECIDE = "decide"
    JOIN = "join"
    ITEM = "item"
    """The step is a hand: it does items of a barrier."""


class BarrierStatus(StrEnum):
    """Where the items of a scatter stand together."""

    OPEN = "open"
    COMPLETED = "completed"
    """All items have succeeded."""
    PARTIAL_FAILURE = "partial_failure"
    """All items have ended, and no more failed than may."""
    FAILED = "failed"
    CANCELLED = "cancelled"


class ItemStatus(StrEnum):
    """Where an item stands that there has been news of; others are pending, or cancelled if their barrier has closed."""

    RETRY = "retry"
    """It is done again: its attempt failed, or was lost, or it was given back."""
    PROMOTED = "promoted"
    """A step of its own does the rest of it."""
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


class ItemClaimStatus(StrEnum):
    """What became of the items that a hand claimed last."""

    HELD = "held"
    SETTLED = "settled"
    LOST = "lost"
    """The process that held them is gone; its hand goes on with them."""


class NodeStatus(StrEnum):
    """A worker node: it takes work, it finishes what it has, it is gone."""

    LIVE = "live"
    DRAINING = "draining"
    GONE = "gone"


class WorkerStatus(StrEnum):
    """A worker process: it may hold leases, or it is known to be dead."""

    LIVE = "live"
    DEAD = "dead"


class Materialization(StrEnum):
    """What users see of a step that makes an asset. Derived, never stored."""

    PENDING = "pending"
    RUNNING = "running"
    SUCCESS = "success"
    FAILED = "failed"
    WAITING_APPROVAL = "waiting_approval"
    WAITING_SIGNAL = "waiting_signal"
    SKIPPED = "skipped"
    CANCELLED = "cancelled"


RUN_TERMINAL = frozenset({RunStatus.SUCCEEDED, RunStatus.PARTIAL, RunStatus.FAILED, RunStatus.CANCELLED})
STEP_TERMINAL = frozenset({StepStatus.SUCCEEDED, StepStatus.FAILED, StepStatus.SKIPPED, StepStatus.CANCELLED})


@dataclass(frozen=True, slots=True)
class Machine:
    """One noun's statuses and arrows; an arrow from the empty text is a birth."""

    noun: str
    statuses: tuple[str, ...]
    terminal: frozenset[str]
    arrows: frozenset[tuple[str, str]]

    def allows(self, source: str, target: str) -> bool:
        """Tell whether the arrow exists."""
        return (source, target) in self.arrows


def _arrows(**by_source: str) -> frozenset[tuple[str, str]]:
    return frozenset(
        ("" if source == "birth" else source, target)
        for source, targets in by_source.items()
        for target in targets.split()
    )


RUN = Machine(
    "run",
    tuple(RunStatus),
    frozenset(RUN_TERMINAL),
    _arrows(
        birth="pending",
        pending="running cancelling",
        running="succeeded failed cancelled cancelling",
        cancelling="cancelled failed",
        # The next round: what ended is begun again, without what succeeded.
        succeeded="pending",
        failed="pending",
        cancelled="pending",
    ),
)

STEP = Machine(
    "step",
    tuple(StepStatus),
    frozenset(STEP_TERMINAL),
    _arrows(
        birth="blocked ready",
        blocked="ready skipped cancelled failed",
        # A hand that has not begun is skipped when its barrier closes.
        ready="running cancelled skipped",
        running="succeeded failed skipped cancelled ready waiting",
        waiting="ready failed cancelled",
        # The next round.
        succeeded="ready blocked",
        failed="ready blocked",
        skipped="ready blocked",
        cancelled="ready blocked",
    ),
)

NODE = Machine(
    "node",
    tuple(NodeStatus),
    frozenset({NodeStatus.GONE}),
    _arrows(birth="live", live="draining gone", draining="gone"),
)

WORKER = Machine(
    "worker",
    tuple(WorkerStatus),
    frozenset({WorkerStatus.DEAD}),
    _arrows(birth="live", live="dead"),
)

_OPEN_ENDS = "completed partial_failure failed cancelled"

BARRIER = Machine(
    "barrier",
    tuple(BarrierStatus),
    frozenset(BarrierStatus) - {BarrierStatus.OPEN},
    _arrows(
        birth="open",
        open=_OPEN_ENDS,
        # The next round.
        completed="open",
        partial_failure="open",
        failed="open",
        cancelled="open",
    ),
)

ITEM = Machine(
    "item",
    tuple(ItemStatus),
    frozenset({ItemStatus.SUCCEEDED, ItemStatus.FAILED, ItemStatus.CANCELLED}),
    _arrows(
        birth="retry succeeded failed cancelled",
        retry="succeeded failed cancelled",
        # The next round.
        failed="retry",
        cancelled="retry",
    ),
)

ITEM_CLAIM = Machine(
    "item_claim",
    tuple(ItemClaimStatus),
    frozenset(),
    _arrows(birth="held", held="settled lost", settled="held", lost="held settled"),
)

MACHINES: dict[str, Machine] = {
    machine.noun: machine for machine in (RUN, STEP, NODE, WORKER, BARRIER, ITEM, ITEM_CLAIM)
}

_AS_MATERIALIZATION = {
    StepStatus.BLOCKED: Materialization.PENDING,
    StepStatus.READY: Materialization.PENDING,
    StepStatus.RUNNING: Materialization.RUNNING,
    StepStatus.SUCCEEDED: Materialization.SUCCESS,
    StepStatus.FAILED: Materialization.FAILED,
    StepStatus.SKIPPED: Materialization.SKIPPED,
    StepStatus.CANCELLED: Materialization.CANCELLED,
}

_WAITING: dict[str, Materialization] = {
    Phase.DECIDE: Materialization.WAITING_APPROVAL,
    Phase.GATHER: Materialization.RUNNING,
}
"""What users see of a step that waits, by what comes next; it is at work while its items are."""


def materialization(status: str, phase: str = Phase.CALL) -> Materialization:
    """Answer the users' word for a step's status (FS-40)."""
    step = StepStatus(status)
    if step is StepStatus.WAITING:
        return _WAITING.get(phase, Materialization.WAITING_SIGNAL)
    return _AS_MATERIALIZATION[step]
