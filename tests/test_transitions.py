"""The chain of statuses: states.py = statement headers = CHECK constraints = what really moves on the real schema."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

import psycopg
import pytest
from corelab import QUEUE, TASK, Lab, package_sql, rolled_back, sql, step

import flowstone_celery
from flowstone_celery import states
from flowstone_celery.db.statements import Statement, load
from flowstone_celery.states import MACHINES, RUN, STEP, Machine

if TYPE_CHECKING:
    from flowstone_celery.db.database import Tx

PACKAGE = Path(flowstone_celery.__file__).parent
STATEMENTS = {
    f"{room.rpartition('.')[2]}.{name}": statement
    for room, files in package_sql(PACKAGE).items()
    for name, statement in load(room, *files).items()
}
TRANSITIONS = {name: each for name, each in STATEMENTS.items() if each.arrows}
Arrow = tuple[str, str, str]


# --- headers against states.py ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("machine", MACHINES.values(), ids=MACHINES)
def test_the_headers_together_make_exactly_the_arrows_of_the_machine(machine: Machine) -> None:
    made = {
        (source, target)
        for statement in TRANSITIONS.values()
        for noun, source, target in statement.arrows
        if noun == machine.noun
    }
    assert made == machine.arrows


def test_no_header_names_a_noun_or_a_status_that_is_not_in_the_states() -> None:
    for name, statement in TRANSITIONS.items():
        for noun, source, target in statement.arrows:
            assert noun in MACHINES, name
            assert {source, target} <= {"", *MACHINES[noun].statuses}, name


@pytest.mark.parametrize("machine", MACHINES.values(), ids=MACHINES)
def test_only_the_next_round_leaves_a_terminal_status(machine: Machine) -> None:
    births = {target for source, target in machine.arrows if source == ""}
    left = {(source, target) for source, target in machine.arrows if source in machine.terminal}
    assert {target for _, target in left} <= births
    makers = {
        name
        for name, each in STATEMENTS.items()
        for noun, *arrow in each.arrows
        if noun == machine.noun and tuple(arrow) in left
    }
    assert makers <= {"core.reopen", "core.reopen_barrier", "core.reopen_items"}


CHECKS = {
    ("runs", "status"): tuple(states.RunStatus),
    ("steps", "status"): tuple(states.StepStatus),
    ("steps", "phase"): tuple(states.Phase),
    ("steps", "parked"): tuple(states.Parked),
    ("requests", "act"): tuple(states.Act),
    ("nodes", "status"): tuple(states.NodeStatus),
    ("workers", "status"): tuple(states.WorkerStatus),
    ("barriers", "status"): tuple(states.BarrierStatus),
    ("items", "status"): tuple(states.ItemStatus),
    ("item_claims", "status"): tuple(states.ItemClaimStatus),
}


@pytest.mark.parametrize(("table", "column"), CHECKS, ids=[".".join(key) for key in CHECKS])
def test_check_constraints_allow_exactly_the_statuses(lab: Lab, table: str, column: str) -> None:
    definition = lab.scalar(
        "SELECT pg_get_constraintdef(oid) FROM pg_constraint WHERE conrelid = %(table)s::regclass AND conname IN (%(name)s, %(sound)s)",
        name=f"{table}_{column}",
        sound=f"{table}_are_sound",
        table=f"flowstone.{table}",
    )
    if f"{table}_are_sound" in definition:
        function = (
            "SELECT prosrc FROM pg_proc WHERE proname = %(name)s AND pronamespace = 'flowstone'::regnamespace"
        )
        rules = lab.scalar(function, name=f"{table}_are_sound")
        definition = next(line for line in rules.splitlines() if f"IF NOT ({column} IN (" in line)
    assert set(re.findall(r"'(\w+)'", definition)) == set(CHECKS[table, column])


def test_every_status_column_is_held_by_such_a_constraint(lab: Lab) -> None:
    columns = lab.sql(
        "SELECT table_name AS t, column_name AS c FROM information_schema.columns "
        "WHERE table_schema = 'flowstone' AND column_name IN ('status', 'phase', 'parked', 'act')"
    )
    assert {(row["t"], row["c"]) for row in columns} == set(CHECKS)


def _refused(lab: Lab, run: UUID, change: str) -> str | None:
    """The rule by which the database refuses the change of a step of this run."""
    with pytest.raises(psycopg.errors.CheckViolation) as caught:
        lab.sql(f"UPDATE flowstone.steps SET {change} WHERE run_id = %(run)s", run=run)
    return caught.value.diag.constraint_name


def test_a_row_that_cannot_be_true_is_refused_by_the_name_of_the_rule(lab: Lab) -> None:
    run = lab.start(step("a"))
    assert _refused(lab, run, "status = 'lost'") == "steps_status"
    assert _refused(lab, run, "due_at = NULL") == "steps_ready_is_due"
    assert _refused(lab, run, "parked = 'bored', sent_at = NULL") == "steps_parked"
    assert _refused(lab, run, "failures = -1") == "steps_counters"
    assert (
        _refused(lab, run, "status = 'running', due_at = NULL, sent_at = NULL") == "steps_running_has_worker"
    )
    with pytest.raises(psycopg.errors.CheckViolation) as caught:
        lab.sql("UPDATE flowstone.runs SET remaining_steps = 7 WHERE id = %(run)s", run=run)
    assert caught.value.diag.constraint_name == "runs_remaining"


# --- every status and every statement on the real schema ----------------------------------------------------------------------------


@dataclass(frozen=True)
class World:
    """A run in one status with a step in one status, and what stands around it."""

    run: str
    step: str
    kind: str
    """alone: the run's last open step; hurt: the same after another failed; spoiled: after another was cancelled; kin: with children;
    heir: behind one that failed."""
    ids: dict[str, Any] = field(default_factory=dict, compare=False)

    def __str__(self) -> str:
        return f"run {self.run}, step {self.step}, {self.kind}"


ENDED_RUN = tuple(states.RUN_TERMINAL)
ENDED_STEP = tuple(states.STEP_TERMINAL)


def _put_run(tx: Tx, world: World, open_steps: int) -> UUID:
    run = uuid4()
    tx.rows(
        sql(
            "INSERT INTO flowstone.runs (id, kind, name, status, total_steps, remaining_steps, failed_steps, cancelled_steps, "
            "started_at, cancelled_at, finished_at) VALUES (%(id)s, 'plain', 'world', %(status)s, 9, %(open)s, %(failed)s, %(cancelled)s, "
            "CASE WHEN %(begun)s THEN flowstone.now() END, CASE WHEN %(status)s = 'cancelling' THEN flowstone.now() END, "
            "CASE WHEN %(ended)s THEN flowstone.now() END)"
        ),
        id=run,
        status=world.run,
        open=0 if world.run in ENDED_RUN else open_steps,
        failed=int(world.kind == "hurt"),
        cancelled=int(world.kind == "spoiled"),
        begun=world.run != "pending",
        ended=world.run in ENDED_RUN,
    )
    return run


def _put_step(
    tx: Tx, run: UUID, ordinal: int, status: str, *, worker: int, name: str = "x", sent: bool = False
) -> int:
    waits = status in ("blocked", "waiting", "skipped", "failed", "cancelled")
    row = tx.row(
        sql(
            "INSERT INTO flowstone.steps (run_id, ordinal, kind, name, task, queue, status, remaining, attempt, fence, worker_id, due_at, "
            "sent_at, started_at, deadline_at, finished_at) VALUES (%(run)s, %(ordinal)s, 'plain', %(name)s, %(task)s, %(queue)s, "
            "%(status)s, %(remaining)s, 1, 1, CASE WHEN %(status)s = 'running' THEN %(worker)s::bigint END, "
            "CASE WHEN %(status)s = 'ready' THEN flowstone.now() - interval '1 hour' END, "
            "CASE WHEN %(status)s = 'ready' AND %(sent)s THEN flowstone.now() END, flowstone.now(), NULL, "
            "CASE WHEN %(ended)s THEN flowstone.now() END) RETURNING id"
        ),
        run=run,
        ordinal=ordinal,
        name=name,
        task=TASK,
        queue=QUEUE,
        status=status,
        sent=sent,
        remaining=int(waits),
        worker=worker,
        ended=status in ENDED_STEP,
    )
    assert row is not None
    return int(row["id"])


def _put(tx: Tx, world: World, *, sent: bool, lost: bool, late: bool = False) -> None:
    """The world's rows, valid by every constraint."""
    worker = _worker(tx, lease=-5.0 if lost else 60.0)
    run = _put_run(tx, world, 3 if world.kind == "kin" else 1)
    if late:
        text = "UPDATE flowstone.runs SET deadline_at = flowstone.now() - interval '1 second', ends_as = 'failed' WHERE id = %(run)s"
        tx.run(sql(text), run=run)
    parent = _put_step(tx, run, 9, "failed", worker=worker, name="parent") if world.kind == "heir" else None
    step_id = _put_step(tx, run, 1, world.step, worker=worker, sent=sent)
    if parent is not None:
        edge = "INSERT INTO flowstone.step_edges VALUES (%(child)s, %(parent)s, false)"
        tx.run(sql(edge), child=step_id, parent=parent)
    if world.kind == "kin":
        for ordinal, optional in ((2, False), (3, True)):
            child = _put_step(tx, run, ordinal, "blocked", worker=worker, name=f"child {ordinal}")
            edge = "INSERT INTO flowstone.step_edges VALUES (%(child)s, %(parent)s, %(optional)s)"
            tx.run(sql(edge), child=child, parent=step_id, optional=optional)
    world.ids.update(run=run, step=step_id, worker=worker)


def _worlds() -> Iterator[World]:
    for run, status in product(RUN.statuses, STEP.statuses):
        for kind in ("alone", "kin") if status in ("running", "blocked", "ready") else ("alone",):
            yield World(run, status, kind)
    for run, status in product(ENDED_RUN, ENDED_STEP):
        yield World(run, status, "heir")
    for run, kind in product(("running", "cancelling"), ("hurt", "spoiled")):
        yield World(run, "running", kind)


PARAMETERS: dict[str, Any] = {
    "fence": 1, "output": None, "error": '{"code": "FS-2004", "message": "no"}', "dependents_error": "{}", "failed_attempts": 1,
    "crashed": 0, "lost": 0, "delay": 5.0, "reason": "because", "crash": 1, "loss": 0, "crash_limit": 3, "loss_limit": 20,
    "lease": 2.0, "limit": 100, "knows": [TASK], "protocol": 1, "only_run": None, "relaxed": False, "min_wakeups": 8,
    "actor": "tester", "actor_type": "user", "pause": 1.0, "places": 5, "note": "a note", "hold": 3.0, "gap": 1.0, "grace": 1e9,
    "keep": 1e9, "after": 0, "production": False, "name": "world", "partition": "", "before": None, "before_id": None, "tenant": "",
    "key": "k", "place": "here", "pid": 1, "pid_started": 1, "keeper_pid": 1, "pool": "prefork", "queues": ["q"], "slots": 1,
    "code_version": None, "asset": "a", "assets": ["a"], "depth": 9, "value": 1, "ids": [1], "up_assets": [], "up_partitions": [],
    "up_values": [], "io": "database", "content": b"1", "pointer": None, "size": 1, "digest": "d", "metadata": None,
    "code_digest": None, "action": "act", "resource_type": "r", "resource_id": "1", "correlation_id": None, "details": None,
    "kind": "plain", "requested_by": "", "idempotency_key": None, "request_digest": None, "priority": 0, "input": None,
    "promise": True, "everything": False, "begin_at": [], "deadline_in": None, "lane": None, "lane_width": 1, "sole": [False, True],
    "act": "pause", "detail": None, "statuses": None, "since": None, "until": None, "paused": None,
    "low": UUID(int=0), "high": UUID(int=1), "runs": [UUID(int=0)], "reached": None, "key_life": 1e9, "most_steps": 9, "beside": False,
    "packed": 120, "least": 8, "yields": True, "backfill": UUID(int=0), "mode": "all", "skipped": [], "max_concurrent": 1, "request": None,
    "schema_version": 2, "schema": "flowstone", "channel": "flowstone", "definition": "d", "keys": ["k"], "cascade": False, "versions": [1], "recipe": None,
    "kinds": ["plain", "plain"], "names": ["a", "b"], "partitions": ["", ""], "tasks": [TASK, TASK], "priorities": [0, 0],
    "code_digests": [None, None], "remaining": [0, 1], "max_failures": [1, 1], "timeouts": [None, None], "retries": ["{}", "{}"],
    "inputs": [None, None], "due_in": [0.0, 0.0], "edge_children": [2], "edge_parents": [1], "edge_optional": [False],
    "barrier": 10**9, "round": 1, "number": 1, "index": 0, "first": 0, "end": 9, "total": 0, "collapsed": 0, "checkpoint": None,
    "keyed": False, "firsts": [], "sizes": [], "digests": "{}", "wanted": 5, "width": 1, "uncounted": 0, "keep_failed": False,
    "items": [], "hands": False, "indexes": [], "policy": "{}", "seconds": 1.0,
}  # fmt: skip

VARIANTS: dict[str, list[dict[str, Any]]] = {
    "core.end_without_value": [
        {"status": each, "dependents": each} for each in ("failed", "skipped", "cancelled")
    ],
    "core.release_lost": [{"lease_ended": True}],
    "core.claim": [{"queue": None}, {"step": None}, {"step": None, "sent": True}],
    "core.start": [{"queues": ["q", "q"]}],
    "core.expire": [{"late": True}],
    "core.cancel_steps": [{}, {"late": True}],
    "core.reopen": [{}, {"everything": True}, {"begin_at": ["x"]}],
}


def _parameters(name: str, world: World, variant: dict[str, Any]) -> dict[str, Any]:
    ids = world.ids
    mine = {
        "run": ids["run"],
        "step": ids["step"],
        "worker": ids["worker"],
        "workers": [ids["worker"]],
        "queue": QUEUE,
    }
    births = {"run": uuid4()} if name == "core.start" else {}
    status = {"status": None, "lost": False} if name in ("core.runs_page", "core.at_limit") else {}
    if name == "core.lose_claims":
        status = {"hands": []}
    if name in ("core.add_pages", "core.barriers_page"):
        status = {"keys": "{}", "status": None}
    return {**PARAMETERS, **mine, "node": uuid4(), "alive": [], **status, **variant, **births}


def _snapshot(tx: Tx) -> dict[tuple[str, Any], str]:
    rows = tx.rows(
        sql(
            "SELECT 'run' AS noun, id::text, status FROM flowstone.runs UNION ALL SELECT 'step', id::text, status FROM flowstone.steps "
            "UNION ALL SELECT 'node', id::text, status FROM flowstone.nodes UNION ALL SELECT 'worker', id::text, status FROM flowstone.workers"
        )
    )
    return {(row["noun"], row["id"]): row["status"] for row in rows}


def _moves(
    before: dict[tuple[str, Any], str], after: dict[tuple[str, Any], str]
) -> dict[tuple[str, Any], Arrow]:
    assert before.keys() <= after.keys(), "a row is gone"
    return {
        key: (key[0], before.get(key, ""), status)
        for key, status in after.items()
        if before.get(key, "") != status
    }


def _try(
    lab: Lab, statement: Statement, name: str, world: World, variant: dict[str, Any]
) -> dict[Any, Arrow]:
    """What the statement moves in this world; everything is rolled back."""
    with rolled_back(lab.database) as tx:
        _put(tx, world, sent="sent" in variant, lost="lease_ended" in variant, late="late" in variant)
        before = _snapshot(tx)
        tx.rows(statement, **_parameters(name, world, variant))
        return _moves(before, _snapshot(tx))


def _worker(tx: Tx, *, lease: float) -> int:
    text = (
        "INSERT INTO flowstone.workers (node_key, node_name, place, pid, pid_started, status, alive_until) VALUES "
        "(%(key)s, 'n', 'p', 1, 1, 'live', flowstone.now() + make_interval(secs => %(lease)s)) RETURNING id"
    )
    row = tx.row(sql(text), key=uuid4(), lease=lease)
    assert row is not None
    return int(row["id"])


def _own_step_moves(name: str, world: World, variant: dict[str, Any]) -> bool:
    """Whether the world's own step must move, by the guard that the statement promises."""
    match name.partition(".")[2]:
        case "claim":
            return world.step == "ready" and world.run in ("pending", "running")
        case "succeed" | "end_without_value" | "retry" | "give_back" | "release_dead" | "release_lost":
            return world.step == "running"
        case "cancel_steps":
            return world.step in ("blocked", "ready") and world.run == "cancelling"
        case "reopen":
            return _reopens(world, variant)
    return False


def _reopens(world: World, variant: dict[str, Any]) -> bool:
    """What ended is begun again: the failed and cancelled of a run that ended so, and whatever was asked for by name."""
    asked = bool(variant)
    kept = world.step in ("succeeded", "skipped") and not asked
    return (
        world.run in ("failed", "cancelled", *(["succeeded"] if asked else []))
        and world.step in ENDED_STEP
        and not kept
    )


def _own_run_moves(name: str, world: World, variant: dict[str, Any]) -> bool:
    match name.partition(".")[2]:
        case "claim":
            return world.step == "ready" and world.run == "pending"
        case "cancel" | "expire":
            return world.run in ("pending", "running")
        case "reopen":
            return _reopens(world, variant) or (
                _reopens(replace(world, step="failed"), variant) and world.kind == "heir"
            )
        case "cancel_steps":
            return world.step in ("blocked", "ready") and world.run == "cancelling"
        case "succeed" | "end_without_value":
            return world.step == "running" and world.run in ("running", "cancelling") and world.kind != "kin"
    return False


OF_SCATTERS = {
    f"core.{name}"
    for name in re.findall(r"^-- name: (\w+)", (PACKAGE / "core" / "barriers.sql").read_text(), re.M)
}
"""Statements of steps that scatter, and of hands: `test_transitions_of_scatters.py` has their worlds."""
CORE_NOUNS = {
    name for name, each in TRANSITIONS.items() if {noun for noun, _, _ in each.arrows} & {"run", "step"}
} - OF_SCATTERS


def _of_plain_steps(statement: Statement) -> set[Arrow]:
    """The arrows that need neither a barrier nor a hand."""
    return {
        arrow
        for arrow in statement.arrows
        if arrow[0] in ("run", "step") and arrow != ("step", "ready", "skipped")
    }


@pytest.mark.parametrize("name", sorted(CORE_NOUNS))
def test_a_row_moves_if_and_only_if_the_arrow_exists(lab: Lab, name: str) -> None:
    statement, seen = STATEMENTS[name], set()
    lab.steady()
    for world, variant in product(_worlds(), VARIANTS.get(name, [{}])):
        moves = _try(lab, statement, name, world, variant)
        seen |= set(moves.values())
        assert set(moves.values()) <= statement.arrows, f"{world}: {moves}"
        if name != "core.start":
            own = ("step", str(world.ids["step"])), ("run", str(world.ids["run"]))
            assert (own[0] in moves) == _own_step_moves(name, world, variant), f"{world}: {moves}"
            assert (own[1] in moves) == _own_run_moves(name, world, variant), f"{world}: {moves}"
    assert seen == _of_plain_steps(statement), "declared, but never made"


def test_a_statement_without_arrows_moves_nothing(lab: Lab) -> None:
    lab.steady()
    worlds = [world for world in _worlds() if world.kind == "alone"]
    with rolled_back(lab.database) as tx:
        for world in worlds:
            _put(tx, world, sent=False, lost=False)
        before = _snapshot(tx)
        for name in sorted(STATEMENTS.keys() - TRANSITIONS.keys()):
            tx.run(sql("SAVEPOINT untouched"))
            for world in worlds:
                tx.rows(STATEMENTS[name], **_parameters(name, world, {}))
            assert _moves(before, _snapshot(tx)) == {}, name
            tx.run(sql("ROLLBACK TO untouched"))


def _of(noun: str) -> list[str]:
    """The short names of the statements with an arrow of this noun, and one that only looks like it."""
    found = {name for name, each in TRANSITIONS.items() if any(noun == mine for mine, _, _ in each.arrows)}
    return sorted({name.partition(".")[2] for name in found} | {"beat"})


def _node_in(lab: Lab, status: str) -> UUID:
    key = uuid4()
    lab.sql(
        "INSERT INTO flowstone.nodes (key, name, place, pid, keeper_pid, pool, queues, knows, status, alive_until) VALUES "
        "(%(key)s, 'n', 'p', 1, 1, 'solo', '{q}', '{t}', %(status)s, flowstone.now() - interval '1 hour') RETURNING id",
        key=key,
        status=status,
    )
    return key


@pytest.mark.parametrize("name", _of("node"))
def test_a_node_moves_if_and_only_if_the_arrow_exists(lab: Lab, name: str) -> None:
    statement = STATEMENTS[f"core.{name}"]
    declared = {(source, target) for noun, source, target in statement.arrows if noun == "node"}
    seen = set()
    for status in states.NODE.statuses:
        lab.wipe()
        lab.steady()
        key = _node_in(lab, status)
        values = {**PARAMETERS, "node": key, "alive": [], "after": 1.0}
        lab.database.once(statement, **values)
        after = lab.scalar("SELECT status FROM flowstone.nodes WHERE key = %(key)s", key=key)
        if after != status:
            seen.add((status, after))
        assert (after != status) == any(source == status for source, _ in declared), status
    if name == "register_node":
        lab.database.once(statement, **{**PARAMETERS, "node": uuid4()})
        seen.add(("", lab.scalar("SELECT status FROM flowstone.nodes ORDER BY id DESC LIMIT 1")))
    assert seen == declared


@pytest.mark.parametrize("name", _of("worker"))
def test_a_worker_moves_if_and_only_if_the_arrow_exists(lab: Lab, name: str) -> None:
    statement = STATEMENTS[f"core.{name}"]
    declared = {(source, target) for noun, source, target in statement.arrows if noun == "worker"}
    seen = set()
    lab.steady()
    for status in states.WORKER.statuses:
        worker = lab.worker()
        lab.sql(
            "UPDATE flowstone.workers SET status = %(status)s WHERE id = %(id)s", status=status, id=worker
        )
        values = {**PARAMETERS, "node": uuid4(), "alive": [worker], "workers": [worker], "after": -1e8}
        lab.database.once(statement, **values)
        after = lab.scalar("SELECT status FROM flowstone.workers WHERE id = %(id)s", id=worker)
        if after != status:
            seen.add((status, after))
        newest = lab.sql("SELECT id, status FROM flowstone.workers ORDER BY id DESC LIMIT 1")[0]
        if newest["id"] != worker:
            seen.add(("", newest["status"]))
    assert seen == declared


# --- guards -----------------------------------------------------------------------------------------------------------------------

SETTLEMENTS = ("succeed", "end_without_value", "retry", "give_back")


@pytest.mark.parametrize("name", SETTLEMENTS)
@pytest.mark.parametrize("wrong", [{"worker": 10**9}, {"fence": 0}, {"fence": 2}, {"step": 10**9}], ids=str)
def test_a_settlement_under_another_worker_or_fence_moves_nothing(
    lab: Lab, name: str, wrong: dict[str, int]
) -> None:
    claim = lab.running(lab.worker())
    story = lab.events(claim.run_id)
    values = {**PARAMETERS, **claim.held, **wrong, "status": "failed", "dependents": "failed"}
    assert lab.database.once(STATEMENTS[f"core.{name}"], **values) == []
    assert lab.statuses(claim.run_id) == {"a": "running"}
    assert lab.events(claim.run_id) == story


def _pause(lab: Lab, run: UUID) -> None:
    lab.sql("UPDATE flowstone.runs SET paused = true WHERE id = %(run)s", run=run)


def _mark_cancelling(lab: Lab, run: UUID) -> None:
    lab.sql(
        "UPDATE flowstone.runs SET status = 'cancelling', cancelled_at = flowstone.now() WHERE id = %(run)s",
        run=run,
    )
    lab.sql(
        "INSERT INTO flowstone.audit (actor, actor_type, action, resource_type, resource_id) "
        "VALUES ('t', 'user', 'run.cancel', 'run', %(run)s)",
        run=str(run),
    )


def _postpone(lab: Lab, run: UUID) -> None:
    lab.sql(
        "UPDATE flowstone.steps SET due_at = flowstone.now() + interval '1 minute' WHERE run_id = %(run)s",
        run=run,
    )


def _raise_protocol(lab: Lab, run: UUID) -> None:
    lab.sql("UPDATE flowstone.steps SET v = 2 WHERE run_id = %(run)s", run=run)


def _rename_task(lab: Lab, run: UUID) -> None:
    lab.sql("UPDATE flowstone.steps SET task = 'another' WHERE run_id = %(run)s", run=run)


def _end_leases(lab: Lab, run: UUID) -> None:
    lab.sql("UPDATE flowstone.workers SET alive_until = flowstone.now()")


def _bury_all(lab: Lab, run: UUID) -> None:
    lab.sql("UPDATE flowstone.workers SET status = 'dead'")


OBSTACLES = (_pause, _mark_cancelling, _postpone, _raise_protocol, _rename_task, _end_leases, _bury_all)


@pytest.mark.parametrize("promised", [True, False], ids=["promised", "unsent"])
@pytest.mark.parametrize("obstacle", OBSTACLES, ids=lambda each: each.__name__.strip("_"))
def test_neither_door_claims_what_may_not_run_here(lab: Lab, obstacle: Any, promised: bool) -> None:
    worker = lab.worker()
    run = lab.start(step(), promise=promised)
    obstacle(lab, run)
    assert lab.claim(worker, lab.id_of(run, "a")) is None
    assert lab.claim_next(worker) is None
    assert lab.statuses(run) == {"a": "ready"}
    assert not [event for event in lab.events(run) if event.startswith("step")]


@pytest.mark.parametrize("promised", [True, False], ids=["promised", "unsent"])
def test_without_an_obstacle_both_doors_claim(lab: Lab, promised: bool) -> None:
    worker = lab.worker()
    by_id, by_query = (lab.start(step(), promise=promised) for _ in range(2))
    first = lab.claim(worker, lab.id_of(by_id, "a"))
    second = lab.claim_next(worker)
    assert first is not None
    assert second is not None
    assert (first.run_id, second.run_id) == (by_id, by_query)
    assert (first.fence, first.attempt, first.worker_id) == (1, 1, worker)
    assert lab.claim(worker, first.id) is None


def test_the_door_of_a_query_claims_only_from_its_queue_and_its_run(lab: Lab) -> None:
    worker = lab.worker()
    other, run = lab.start(step()), lab.start(step())
    assert lab.claim_next(worker, "another queue") is None
    claim = lab.claim_next(worker, only_run=run)
    assert claim is not None
    assert claim.run_id == run
    assert lab.statuses(other) == {"a": "ready"}


def test_the_database_refuses_rows_that_cannot_be_true(lab: Lab) -> None:
    run = lab.start(step())
    for lie in (
        "UPDATE flowstone.steps SET status = 'running' WHERE run_id = %(run)s",
        "UPDATE flowstone.steps SET status = 'succeeded', due_at = NULL WHERE run_id = %(run)s",
        "UPDATE flowstone.steps SET status = 'blocked', due_at = NULL WHERE run_id = %(run)s",
        "UPDATE flowstone.steps SET due_at = NULL WHERE run_id = %(run)s",
        "UPDATE flowstone.steps SET crashes = -1 WHERE run_id = %(run)s",
        "UPDATE flowstone.runs SET status = 'succeeded' WHERE id = %(run)s",
        "UPDATE flowstone.runs SET remaining_steps = 2 WHERE id = %(run)s",
        "UPDATE flowstone.runs SET status = 'cancelling' WHERE id = %(run)s",
        "UPDATE flowstone.runs SET finished_at = flowstone.now() WHERE id = %(run)s",
    ):
        with pytest.raises(psycopg.errors.CheckViolation):
            lab.sql(lie, run=run)
