"""What must be true of every row of the tables that are written most: one function for each, called by one CHECK.

A CHECK of its own for each rule costs each statement its reading and compiling: thirteen of them took more than half of the time of
a step's update. The function is compiled once for each connection, and tells which rule a row breaks.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from flowstone_celery import states


def one_of(column: str, values: Iterable[str]) -> str:
    """The expression that allows exactly these texts."""
    listed = ", ".join(f"'{value}'" for value in values)
    return f"{column} IN ({listed})"


@dataclass(frozen=True, slots=True)
class Soundness:
    """The rules of one table."""

    table: str
    columns: Mapping[str, str]
    """The columns that rules look at, with their types."""
    rules: Mapping[str, str]
    """By name; as for a CHECK, what is unknown passes."""

    @property
    def check(self) -> str:
        """The expression of the table's CHECK."""
        return f"flowstone.{self.table}_are_sound({', '.join(self.columns)})"

    def sql(self, schema: str = "flowstone") -> str:
        """The function's definition."""
        given = ", ".join(f"{name} {kind}" for name, kind in self.columns.items())
        body = "\n".join(
            f"  IF NOT ({rule}) THEN\n"
            f"    RAISE check_violation USING CONSTRAINT = '{name}', TABLE = '{self.table}', MESSAGE = 'a row of {self.table} breaks {name}';\n"
            "  END IF;"
            for name, rule in self.rules.items()
        )
        return (
            f'CREATE OR REPLACE FUNCTION "{schema}".{self.table}_are_sound({given}) RETURNS boolean LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE '
            f"AS $$\nBEGIN\n{body}\n  RETURN true;\nEND $$"
        )


_RUN_ENDED = one_of("status", sorted(states.RUN_TERMINAL))
_STEP_ENDED = one_of("status", sorted(states.STEP_TERMINAL))
_MOMENT = "timestamptz"

RUNS = Soundness(
    "runs",
    {
        "status": "text",
        "ends_as": "text",
        "lane": "text",
        "lane_width": "integer",
        "admitted": "boolean",
        "total_steps": "integer",
        "remaining_steps": "integer",
        "failed_steps": "integer",
        "cancelled_steps": "integer",
        "started_at": _MOMENT,
        "cancelled_at": _MOMENT,
        "finished_at": _MOMENT,
    },
    {
        "runs_status": one_of("status", states.RunStatus),
        "runs_ends_as": one_of("ends_as", ("failed", "cancelled")),
        "runs_lane": "lane_width > 0 AND (lane IS NOT NULL OR admitted)",
        "runs_remaining": "remaining_steps BETWEEN 0 AND total_steps",
        "runs_failed": "failed_steps + cancelled_steps <= total_steps",
        "runs_finished": f"({_RUN_ENDED}) = (finished_at IS NOT NULL)",
        "runs_ended_have_no_steps_left": f"NOT ({_RUN_ENDED}) OR remaining_steps = 0",
        "runs_cancelling": "status <> 'cancelling' OR cancelled_at IS NOT NULL",
        "runs_started": "status NOT IN ('running', 'succeeded') OR started_at IS NOT NULL",
    },
)

STEPS = Soundness(
    "steps",
    {
        "status": "text",
        "phase": "text",
        "parked": "text",
        "remaining": "integer",
        "attempt": "integer",
        "failures": "integer",
        "crashes": "integer",
        "losses": "integer",
        "fence": "bigint",
        "worker_id": "bigint",
        "due_at": _MOMENT,
        "sent_at": _MOMENT,
        "started_at": _MOMENT,
        "finished_at": _MOMENT,
    },
    {
        "steps_status": one_of("status", states.StepStatus),
        "steps_phase": one_of("phase", states.Phase),
        "steps_parked": one_of("parked", states.Parked),
        "steps_parked_is_ready": "parked IS NULL OR status = 'ready'",
        "steps_remaining": "remaining >= 0",
        "steps_blocked_has_remaining": "status <> 'blocked' OR remaining > 0",
        "steps_started_has_none_remaining": "status NOT IN ('ready', 'running', 'succeeded') OR remaining = 0",
        "steps_running_has_worker": "(status = 'running') = (worker_id IS NOT NULL)",
        "steps_running_has_fence": "status <> 'running' OR (started_at IS NOT NULL AND fence > 0)",
        "steps_ready_is_due": "(status = 'ready') = (due_at IS NOT NULL)",
        "steps_sent_is_ready": "sent_at IS NULL OR (status = 'ready' AND parked IS NULL)",
        "steps_finished": f"({_STEP_ENDED}) = (finished_at IS NOT NULL)",
        "steps_counters": "attempt >= 0 AND failures >= 0 AND crashes >= 0 AND losses >= 0",
    },
)

BARRIER_PAGES = Soundness(
    "barrier_pages",
    {"size": "integer", "next": "integer", "done": "integer", "failed": "integer"},
    {
        "barrier_pages_size": "size BETWEEN 1 AND 500 AND next BETWEEN 0 AND size",
        "barrier_pages_counters": "done >= 0 AND failed >= 0 AND done + failed <= size",
    },
)

ITEM_CLAIMS = Soundness(
    "item_claims",
    {"status": "text", "lost_by": "text", "left_open": "integer", "width": "integer"},
    {
        "item_claims_status": one_of("status", states.ItemClaimStatus),
        "item_claims_counters": "left_open >= 0 AND width > 0",
        "item_claims_lost": "(status = 'lost') = (lost_by IS NOT NULL)",
    },
)

ITEMS = Soundness(
    "items",
    {"status": "text", "claim": "bigint", "due_at": _MOMENT, "ended_at": _MOMENT},
    {
        "items_status": one_of("status", states.ItemStatus),
        "items_ended": "(ended_at IS NULL) = (status IN ('retry', 'promoted'))",
        "items_claimed": "num_nonnulls(due_at, claim) = (status = 'retry')::int",
    },
)

ALL = (RUNS, STEPS, BARRIER_PAGES, ITEM_CLAIMS, ITEMS)
