"""Seeded faults: what is broken, and the tests that name the rule and must then fail.

A fault is put into the loaded code of one test process, never into a file. Where the text that it replaces is gone, the fault itself
is an error: the table follows the code.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

CORE, RECORD = "flowstone_celery.core", "flowstone_celery.record"


@dataclass(frozen=True)
class InSql:
    """One text in named statements reads otherwise."""

    statements: Sequence[str]
    old: str
    new: str
    room: str = CORE


@dataclass(frozen=True)
class Seeded:
    """One fault and the tests that must see it."""

    name: str
    caught_by: Sequence[str]
    sql: Sequence[InSql] = ()
    code: Callable[[], None] | None = None
    """Puts other code in the place of what is loaded."""
    told_as: Sequence[str] = ("AssertionError",)
    """How a test may fail of it: these kinds of errors only. A statement that is no SQL any more proves nothing."""
    in_schema: bool = False
    """It is in the tables: they are made anew, with it."""
    long: bool = False
    """Only in the long form."""


FENCE = " AND fence = %(fence)s"
WORKER = " AND worker_id IS NOT DISTINCT FROM %(worker)s"
HELD = f"id = %(step)s AND status = 'running'{WORKER}{FENCE}"
CLAIMS = ("claim",)
SETTLEMENTS = ("succeed", "end_without_value", "retry", "give_back")
_OPEN = "status NOT IN ('succeeded', 'failed', 'skipped', 'cancelled')"
_COUNTED = f"(SELECT count(*) FROM flowstone.steps o WHERE o.run_id = r.id AND o.{_OPEN})"
_PARENTS = f"(SELECT count(*) FROM flowstone.step_edges x JOIN flowstone.steps o ON o.id = x.parent WHERE x.child = s.id AND o.{_OPEN})"


def _call(path: str, make: Callable[[Any], Any]) -> Callable[[], None]:
    """What stands at `module:name` (or `module:Class.name`) is replaced by what `make` makes of it."""

    def put_in() -> None:
        from importlib import import_module

        module, _, name = path.partition(":")
        owner: Any = import_module(module)
        *outer, last = name.split(".")
        for each in outer:
            owner = getattr(owner, each)
        setattr(owner, last, make(getattr(owner, last)))

    return put_in


def _at_once(real: Any) -> Any:
    return lambda tx, call: call()


def _on_its_own_connection(real: Any) -> Any:
    def settle(tx: Any, value: Any) -> Any:
        import psycopg

        from flowstone_celery.db.database import Tx

        with psycopg.connect(tx._connection.info.dsn, autocommit=True) as own:
            return real(Tx(own, tx._schema), value)

    return settle


STEPS, RUNS, LEASES = "tests/core/test_steps.py", "tests/core/test_runs.py", "tests/core/test_leases.py"
ROUNDS, WAKEUPS, MAKERS = (
    "tests/core/test_rounds.py",
    "tests/core/test_wakeups.py",
    "tests/core/test_makers.py",
)
LANES, TRANSITIONS = "tests/core/test_lanes.py", "tests/test_transitions.py"
VALUES, INTERLEAVED = "tests/record/test_values.py", "tests/core/test_interleavings.py"
BARRIERS, OF_SCATTERS = "tests/core/test_barriers.py", "tests/test_transitions_of_scatters.py"

FAULTS = (
    Seeded(
        "a transition without a guard",
        [f"{STEPS}::test_every_settlement_under_a_stale_fence_is_refused"],
        sql=[InSql(SETTLEMENTS, HELD, "id = %(step)s")],
    ),
    Seeded(
        "the fence is ignored when a step succeeds",
        [f"{STEPS}::test_a_worker_cannot_settle_under_its_own_former_fence_nor_another_under_the_same"],
        sql=[InSql(["succeed"], FENCE, "")],
    ),
    *(
        Seeded(
            f"the fence is ignored by {name}",
            [f"{TRANSITIONS}::test_a_settlement_under_another_worker_or_fence_moves_nothing"],
            sql=[InSql([name], FENCE, "")],
            long=name == "give_back",
        )
        for name in SETTLEMENTS[1:]
    ),
    Seeded(
        "the worker is ignored by a settlement",
        [f"{TRANSITIONS}::test_a_settlement_under_another_worker_or_fence_moves_nothing"],
        sql=[InSql(SETTLEMENTS, WORKER, "")],
        long=True,
    ),
    Seeded(
        "a claim does not raise the fence",
        [f"{STEPS}::test_a_worker_cannot_settle_under_its_own_former_fence_nor_another_under_the_same"],
        # The first one has to: a check of the table wants it.
        sql=[InSql(CLAIMS, "fence = s.fence + 1", "fence = greatest(s.fence, 1)")],
    ),
    Seeded(
        "a run counts its steps in its own transaction",
        [f"{STEPS}::test_two_last_steps_that_end_at_the_same_moment_close_their_run_once"],
        sql=[InSql(["succeed", "end_without_value"], "r.remaining_steps ", f"{_COUNTED} ")],
    ),
    Seeded(
        "a child counts its parents in its own transaction",
        [f"{STEPS}::test_two_parents_that_end_at_the_same_moment_open_their_child_once"],
        sql=[
            # Once the child is locked, a later statement of the function would count right.
            InSql(["succeed"], "ORDER BY s.id FOR NO KEY UPDATE OF s", "ORDER BY s.id"),
            InSql(["succeed"], "s.remaining - 1", _PARENTS),
            InSql(["succeed"], "s.remaining = 1", f"{_PARENTS} = 0"),
        ],
    ),
    Seeded(
        "children are locked in the order of whoever comes",
        [f"{STEPS}::test_parents_that_share_thirty_children_meet_without_a_deadlock[all succeed]"],
        sql=[
            InSql(
                ["succeed"],
                "ORDER BY s.id FOR NO KEY UPDATE OF s",
                "ORDER BY CASE WHEN %(step)s %% 2 = 0 THEN s.id ELSE -s.id END FOR NO KEY UPDATE OF s",
            )
        ],
    ),
    Seeded(
        "a wake-up leaves before the commit",
        [f"{WAKEUPS}::test_no_wake_up_leaves_before_its_row_is_there_for_others"],
        code=_call("flowstone_celery.db.database:Tx.after_commit", _at_once),
    ),
    Seeded(
        "a keeper extends no lease",
        [f"{LEASES}::test_a_living_process_keeps_its_lease_and_a_stopped_one_does_not"],
        code=_call("flowstone_celery.core.keeper:Keeper._beat", lambda real: lambda self, processes: None),
    ),
    Seeded(
        "leases run while the database is away",
        [f"{LEASES}::test_no_lease_is_lost_while_the_pacer_has_not_been_steady_for_a_lease"],
        sql=[
            InSql(
                ["release_lost"],
                "AND p.steady_since < flowstone.now() - make_interval(secs => %(lease)s)",
                "",
            )
        ],
    ),
    Seeded(
        "a gap between beats is no news",
        [f"{LEASES}::test_a_gap_between_beats_starts_the_steady_time_anew"],
        sql=[InSql(["pace"], "OR beat_at < flowstone.now() - make_interval(secs => %(gap)s)", "")],
    ),
    Seeded(
        "a round goes on with the counters of the one before",
        [f"{ROUNDS}::test_attempts_failures_and_idempotency_keys_begin_anew"],
        sql=[InSql(["reopen"], "attempt = 0, failures = 0, crashes = 0, losses = 0, ", "")],
    ),
    Seeded(
        "a retry does again what succeeded",
        [f"{ROUNDS}::test_what_succeeded_is_kept_and_not_called_again"],
        sql=[
            InSql(
                ["reopen"],
                "s.status IN ('failed', 'cancelled')",
                "s.status IN ('failed', 'cancelled', 'succeeded')",
            )
        ],
    ),
    Seeded(
        "two open one round",
        [f"{ROUNDS}::test_of_many_that_retry_at_once_one_opens_the_round"],
        sql=[
            InSql(
                ["reopen"],
                "AND r.round = seen.round AND r.status IN ('succeeded', 'failed', 'cancelled')",
                "",
            )
        ],
        long=True,
    ),
    Seeded(
        "runs are let into a lane without its lock",
        [f"{LANES}::test_two_who_let_runs_in_at_the_same_moment_let_in_no_more_than_the_lane_is_wide"],
        sql=[
            InSql(
                ["lane_lock"], "SELECT pg_advisory_xact_lock(hashtextextended(", "SELECT (hashtextextended("
            )
        ],
    ),
    Seeded(
        "nobody asks who makes the value",
        [f"{MAKERS}::test_a_wake_up_that_finds_the_maker_at_work_parks_its_step"],
        sql=[InSql(CLAIMS, "(NOT s.sole OR ", "(true OR NOT s.sole OR ")],
        told_as=("AssertionError", "UniqueViolation"),
    ),
    Seeded(
        "two may make one value",
        [f"{MAKERS}::test_of_many_claims_at_the_same_moment_one_succeeds"],
        code=_call(
            "flowstone_celery.db.migrate:migrate",
            lambda real: lambda database: (real(database), _drop(database, "steps_makers"))[0],
        ),
        in_schema=True,
    ),
    Seeded(
        "wake-ups are promised without regard to room",
        [f"{WAKEUPS}::test_a_queue_has_twice_its_live_slots_of_wake_ups_under_way_and_eight_at_least"],
        sql=[InSql(["promise"], "FROM room)", "FROM room) + 1000")],
    ),
    *(
        Seeded(
            f"a claim takes {what}",
            [f"{TRANSITIONS}::test_neither_door_claims_what_may_not_run_here"],
            sql=[InSql(CLAIMS, old, new)],
            long=long,
        )
        for what, old, new, long in (
            ("rows of paused runs", "AND NOT r.paused", "", False),
            ("rows of a higher protocol", "AND s.v <= %(protocol)s", "", False),
            ("rows that are not due", "s.due_at <= flowstone.now() AND", "", False),
            ("rows of an unknown task", "AND s.task = ANY (%(knows)s::text[])", "", True),
            ("rows of runs that are being cancelled", "r.status IN ('pending', 'running') AND", "", True),
            ("a row without a lease of its own", "AND w.alive_until > flowstone.now()", "", True),
        )
    ),
    Seeded(
        "a value is settled outside of the transaction",
        [f"{STEPS}::test_the_zombie_of_a_lost_claim_writes_nothing[in the row]"],
        code=_call("flowstone_celery.record.values:settle_later", _on_its_own_connection),
    ),
    Seeded(
        "a value leaves no lineage",
        [f"{VALUES}::test_lineage_names_exact_versions_level_by_level"],
        sql=[
            InSql(
                ["settle_value"],
                "AS u(asset, partition, value_id)",
                "AS u(asset, partition, value_id) WHERE false",
                RECORD,
            ),
        ],
        long=True,
    ),
    Seeded(
        "an idempotency key is ignored",
        [f"{RUNS}::test_the_same_request_with_the_same_key_answers_the_same_run"],
        sql=[InSql(["start"], "%(requested_by)s, %(idempotency_key)s,", "%(requested_by)s, NULL,")],
    ),
    Seeded(
        "a cancel ends what runs",
        [f"{RUNS}::test_a_running_step_keeps_its_run_cancelling_until_it_ends"],
        sql=[
            InSql(
                ["cancel_steps"],
                "s.status IN ('blocked', 'ready')",
                "s.status IN ('blocked', 'ready', 'running')",
            ),
            InSql(
                ["cancel_steps"],
                "due_at = NULL, sent_at",
                "due_at = NULL, worker_id = NULL, deadline_at = NULL, sent_at",
            ),
        ],
    ),
    Seeded(
        "a deadline reaches runs that have ended",
        [f"{TRANSITIONS}::test_a_row_moves_if_and_only_if_the_arrow_exists[core.expire]"],
        sql=[
            InSql(["expire"], "AND status IN ('pending', 'running')", ""),
            InSql(["expire"], "AND r.status IN ('pending', 'running')", ""),
        ],
        told_as=("AssertionError", "CheckViolation"),
    ),
    Seeded(
        "a crash counts as a failure",
        [f"{STEPS}::test_crashes_are_counted_apart_from_failures"],
        sql=[InSql(["release_dead"], "crashes = s.crashes + CASE", "failures = s.failures + CASE")],
        long=True,
    ),
    Seeded(
        "what crashes is released for ever",
        [f"{STEPS}::test_a_step_at_its_limit_is_not_released"],
        sql=[InSql(["release_dead"], "(c.several OR s.crashes + %(crash)s < %(crash_limit)s) AND ", "")],
        long=True,
    ),
    Seeded(
        "what can do without a parent ends with it",
        [f"{STEPS}::test_what_needs_a_step_without_value_ends_as_it_did"],
        sql=[InSql(["end_without_value"], "AND NOT e.optional", "")],
        long=True,
    ),
    Seeded(
        "a settlement leaves no history",
        [f"{RUNS}::test_the_history_of_a_run_is_complete_and_in_order"],
        sql=[
            InSql(
                ["succeed"],
                "VALUES (m.run_id, m.id, m.round, 'step.succeeded', m.attempt, m.fence, %(worker)s)",
                "SELECT m.run_id, m.id, m.round, 'step.succeeded', m.attempt, m.fence, %(worker)s WHERE false",
            )
        ],
        long=True,
    ),
    Seeded(
        "an act leaves no audit row",
        [f"{RUNS}::test_a_pending_run_is_cancelled_at_once_with_all_its_steps"],
        sql=[
            InSql(
                ["cancel"],
                "jsonb_build_object('reason', %(reason)s::text) FROM moved\n)\nSELECT",
                "jsonb_build_object('reason', %(reason)s::text) FROM moved WHERE false\n)\nSELECT",
            )
        ],
        told_as=("AssertionError", "ValueError"),
        long=True,
    ),
    Seeded(
        "a part of items ignores its fence",
        [f"{OF_SCATTERS}::test_under_another_worker_or_fence_nothing_moves"],
        sql=[InSql(["settle_part"], " AND o.fence = %(fence)s", "")],
    ),
    Seeded(
        "an item ends as often as it is sent",
        [f"{BARRIERS}::test_a_part_is_settled_once_however_often_it_is_sent"],
        sql=[InSql(["settle_part"], "WHERE items.status = 'retry' AND items.claim = %(step)s", "")],
        told_as=("AssertionError", "CheckViolation"),
    ),
    Seeded(
        "a page adds to its barrier twice",
        [f"{BARRIERS}::test_the_last_item_closes_the_barrier_and_hands_that_do_not_run_are_skipped"],
        sql=[InSql(["settle_part"], "o.done + complete", "o.done + 2 * complete")],
        told_as=("AssertionError", "CheckViolation"),
    ),
    Seeded(
        "a hand leaves its page",
        [f"{BARRIERS}::test_a_hand_stays_on_its_page_and_another_begins_one_of_its_own"],
        sql=[InSql(["claim_page"], "p.number = c.page AND ", "p.number = c.page + 1 AND ")],
        long=True,
    ),
    Seeded(
        "the fence is ignored (as the stories over several connections see it)",
        [f"{INTERLEAVED}::test_no_interleaving_of_transactions_breaks_a_rule"],
        sql=[InSql(SETTLEMENTS, HELD, "id = %(step)s AND status = 'running'")],
        told_as=("AssertionError",),
        long=True,
    ),
)


def _drop(database: Any, index: str) -> None:
    from flowstone_celery.db.statements import Statement

    database.once(Statement("guard", "drop", frozenset(), f"DROP INDEX flowstone.{index}"))
