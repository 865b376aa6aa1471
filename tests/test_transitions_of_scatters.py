"""The arrows of steps that scatter, of their barriers, hands, claims and items: every status and every statement on a real database."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import product
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

import pytest
from corelab import QUEUE, TASK, Lab, rolled_back, sql

from flowstone_celery import states
from flowstone_celery.core.barrier_pages import pack
from flowstone_celery.core.statements import SQL

if TYPE_CHECKING:
    from flowstone_celery.db.database import Tx

Arrow = tuple[str, str, str]
NOUNS = ("run", "step", "barrier", "item", "item_claim")
PAGE = pack([b"0", b"1", b"2"])

STATEMENTS = (
    "scatter", "wait_for", "open_barrier", "add_hands", "claim_page", "claim_retries", "keep_of_claim", "take_over", "settle_part",
    "close_barrier", "skip_hands", "gather", "end_waiting", "end_without_value", "stand_aside", "go_back", "finish_hand", "reopen_items",
    "reopen_barrier", "release_dead", "release_lost", "lose_claims", "cancel_steps",
)  # fmt: skip
OF_HANDS = (
    "claim_page",
    "claim_retries",
    "keep_of_claim",
    "take_over",
    "settle_part",
    "stand_aside",
    "go_back",
    "finish_hand",
    "release_dead",
    "release_lost",
)


@dataclass(frozen=True)
class World:
    """A scattering step, its barrier of three items, one hand, what the hand has claimed, and what became of the first item."""

    run: str = "running"
    step: str = "waiting"
    barrier: str = "open"
    hand: str = "running"
    claim: str = "held"
    item: str = ""
    sealed: bool = True
    child: str = ""
    last: bool = False
    """Whether the run has no other open step."""
    ids: dict[str, Any] = field(default_factory=dict, compare=False)

    def __str__(self) -> str:
        return f"run {self.run}, step {self.step}, barrier {self.barrier}, hand {self.hand}, claim {self.claim}, item {self.item or 'pending'}"


def _worlds() -> Iterator[World]:
    for step, barrier, hand in product(states.STEP.statuses, ("open", "completed"), ("ready", "running")):
        yield World(step=step, barrier=barrier, hand=hand)
    for barrier, hand in product(states.BARRIER.statuses, ("ready", "running", "succeeded")):
        yield World(barrier=barrier, hand=hand)
        yield World("cancelling", barrier=barrier, hand=hand)
    for run, barrier in product(("running", "cancelling"), ("open", "failed")):
        yield from (
            World(run, step, barrier, "succeeded", last=True) for step in ("ready", "running", "waiting")
        )
        yield from (World(run, "succeeded", barrier, hand, last=True) for hand in ("ready", "running"))
    items = ("", "retry", "claimed", "succeeded", "failed", "cancelled")
    for barrier, claim, item in product(("open", "failed"), ("", *states.ITEM_CLAIM.statuses), items):
        yield World(barrier=barrier, claim=claim, item=item)
    for child, step in product(("needs", "can do without"), ("waiting", "running")):
        yield World(step=step, child=child)
    yield World(step="running", sealed=False)


def _put(tx: Tx, world: World) -> None:
    """The world's rows, valid by every constraint."""
    run, ids = uuid4(), world.ids
    ids.update(run=run, worker=_worker(tx))
    _insert(
        tx,
        "runs",
        id=run, kind="plain", name="world", status=world.run, total_steps=9, remaining_steps=_open_steps(world), started_at="-1 s",
        cancelled_at="-1 s" if world.run == "cancelling" else None,
    )  # fmt: skip
    ids["scattering"] = _step(tx, run, 1, world.step, ids["worker"])
    if world.child:
        child = _step(tx, run, 2, "blocked", ids["worker"])
        _insert(
            tx, "step_edges", child=child, parent=ids["scattering"], optional=world.child == "can do without"
        )
    ids["barrier"] = _insert(
        tx,
        "barriers",
        "id",
        step_id=ids["scattering"], run_id=run, round=1, name="world", kind="plain", task=TASK, queue=QUEUE, status=world.barrier,
        sealed=world.sealed, total=3, policy="{}", closed_at=None if world.barrier == "open" else "-1 s",
    )  # fmt: skip
    ids["hand"] = _step(tx, run, 3, world.hand, ids["worker"], phase="item", barrier_id=ids["barrier"])
    text = (
        "INSERT INTO flowstone.barrier_pages (barrier_id, number, first, size, next, keys) "
        "SELECT %(barrier)s, 1, 0, 3, %(next)s, (%(keys)s::bytea[])[1]"
    )
    tx.run(sql(text), barrier=ids["barrier"], next=2 if world.claim else 0, keys=PAGE.keys)
    if world.claim:
        _claim(tx, world)
    if world.item:
        _item(tx, world)


def _open_steps(world: World) -> int:
    if world.last:
        return 1
    return 3


def _claim(tx: Tx, world: World) -> None:
    ids = world.ids
    _insert(
        tx,
        "item_claims",
        hand_id=ids["hand"], barrier_id=ids["barrier"], round=1, kind="range", page=1, first=0, size=2,
        left_open=0 if world.claim == "settled" else 2, fence=1, worker_id=ids["worker"], status=world.claim,
        lost_by="crash" if world.claim == "lost" else None,
    )  # fmt: skip


def _item(tx: Tx, world: World) -> None:
    status = "retry" if world.item == "claimed" else world.item
    _insert(
        tx,
        "items",
        barrier_id=world.ids["barrier"], index=0, status=status, attempt=1, failures=0, crashes=0, losses=0, alone=False, round=1, seconds=0,
        claim=world.ids["hand"] if world.item == "claimed" else None, due_at="-1 s" if world.item == "retry" else None,
        ended_at=None if status == "retry" else "-1 s",
    )  # fmt: skip


def _insert(tx: Tx, table: str, answer: str = "1", **values: Any) -> Any:
    """One row; a text such as "-1 s" in a column of a moment is added to the present."""
    moments = {name for name in values if name.endswith(("_at", "_until"))}
    listed = ", ".join(
        f"flowstone.now() + %({name})s::interval" if name in moments else f"%({name})s" for name in values
    )
    text = (
        f"INSERT INTO flowstone.{table} ({', '.join(values)}) VALUES ({listed}) RETURNING {answer} AS answer"
    )
    row = tx.row(sql(text), **values)
    assert row is not None
    return row["answer"]


def _worker(tx: Tx) -> int:
    return int(
        _insert(
            tx,
            "workers",
            "id",
            node_key=uuid4(),
            node_name="n",
            place="p",
            pid=1,
            pid_started=1,
            status="live",
            alive_until="-1 s",
        )
    )


def _step(tx: Tx, run: UUID, ordinal: int, status: str, worker: int, **more: Any) -> int:
    ended = status in states.STEP_TERMINAL
    return int(
        _insert(
            tx,
            "steps",
            "id",
            run_id=run, ordinal=ordinal, kind="plain", name="x", task=TASK, queue=QUEUE, status=status, remaining=int(status == "blocked"),
            attempt=1, fence=1, worker_id=worker if status == "running" else None, due_at="-1 s" if status == "ready" else None,
            started_at="-1 s", finished_at="-1 s" if ended else None, **more,
        )
    )  # fmt: skip


PARAMETERS: dict[str, Any] = {
    "fence": 1, "output": None, "error": None, "dependents": "failed", "dependents_error": "{}", "failed_attempts": 0, "crashed": 0, "lost": 0,
    "reason": "because", "crash": 1, "loss": 0, "crash_limit": 3, "loss_limit": 20, "lease": 2.0, "limit": 100, "protocol": 1,
    "name": "world", "task": TASK, "queue": QUEUE, "priority": 0, "policy": "{}", "metadata": None, "total": 3, "collapsed": 0,
    "firsts": PAGE.firsts, "sizes": PAGE.sizes, "keys": PAGE.keys, "wanted": 5, "width": 1, "whole": False, "items": [], "round": 1, "uncounted": 0,
    "keep": False, "statuses": None, "attempts": None, "failures": None, "crashes": None, "losses": None, "alone": None, "seconds": None,
    "results": None, "errors": None, "delays": None, "indexes": [0, 1],
}  # fmt: skip

VARIANTS: dict[str, list[dict[str, Any]]] = {
    "settle_part": [{"statuses": [each, each]} for each in ("retry", "succeeded", "failed", "cancelled")],
    "close_barrier": [{"status": each} for each in ("completed", "partial_failure", "failed", "cancelled")],
    "end_waiting": [{"status": each, "dependents": each, "worker": None} for each in ("failed", "cancelled")],
    "end_without_value": [
        {"status": each, "dependents": each} for each in ("failed", "skipped", "cancelled")
    ],
    "reopen_barrier": [{"round": 2}],
    "reopen_items": [{"round": 2}],
    "open_barrier": [{}, {"step": 0}],
    "keep_of_claim": [{"items": []}, {"items": [0]}],
    "stand_aside": [{}, {"all_claimed": True}],
}
ONLY_ELSEWHERE: dict[str, set[Arrow]] = {
    "end_without_value": {("run", "running", "succeeded"), ("step", "running", "failed"), ("step", "running", "cancelled"),
                          ("step", "blocked", "skipped")},
    "release_dead": set(),
    "cancel_steps": set(),
    "skip_hands": {("run", "running", "failed"), ("run", "running", "cancelled"), ("run", "cancelling", "failed")},
    "finish_hand": {("run", "running", "failed"), ("run", "running", "cancelled"), ("run", "cancelling", "failed")},
    "end_waiting": {("run", "cancelling", "failed")},
}  # fmt: skip
"""Arrows that need what these worlds do not have: see `test_transitions.py`, and rounds and deadlines."""


def _snapshot(tx: Tx) -> dict[tuple[str, str], str]:
    text = (
        "SELECT 'run' AS noun, id::text, status FROM flowstone.runs UNION ALL SELECT 'step', id::text, status FROM flowstone.steps "
        "UNION ALL SELECT 'barrier', id::text, status FROM flowstone.barriers "
        "UNION ALL SELECT 'item', barrier_id || '.' || index, status FROM flowstone.items "
        "UNION ALL SELECT 'item_claim', hand_id::text, status FROM flowstone.item_claims"
    )
    return {(row["noun"], row["id"]): row["status"] for row in tx.rows(sql(text))}


def _try(lab: Lab, name: str, world: World, variant: dict[str, Any]) -> dict[tuple[str, str], Arrow]:
    with rolled_back(lab.database) as tx:
        _put(tx, world)
        ids = world.ids
        mine = {
            "run": ids["run"],
            "step": ids["hand"] if name in OF_HANDS else ids["scattering"],
            "worker": ids["worker"],
            "workers": [ids["worker"]],
            "barrier": ids["barrier"],
            "hands": [ids["hand"]],
        }
        if name in ("scatter", "open_barrier"):
            tx.run(sql("UPDATE flowstone.barriers SET round = 9"))
        if variant.get("all_claimed"):
            tx.run(sql("UPDATE flowstone.barrier_pages SET next = size"))
        before = _snapshot(tx)
        tx.rows(SQL[name], **{**PARAMETERS, **mine, **variant})
        after = _snapshot(tx)
        assert before.keys() <= after.keys(), "a row is gone"
        return {
            key: (key[0], before.get(key, ""), status)
            for key, status in after.items()
            if before.get(key, "") != status
        }


def _guarded(name: str, world: World) -> dict[str, bool]:
    """Of these nouns' own rows: whether the guard of the statement lets them move."""
    held = world.hand == "running" and world.barrier == "open"
    match name:
        case "scatter" | "wait_for" | "end_without_value":
            return {"scattering": world.step == "running"}
        case "gather" | "end_waiting":
            return {"scattering": world.step == "waiting"}
        case "close_barrier":
            return {"barrier": world.barrier == "open"}
        case "reopen_barrier":
            return {"barrier": world.barrier != "open"}
        case "skip_hands":
            return {"hand": world.hand == "ready"}
        case "finish_hand":
            return {"hand": world.hand == "running" and world.barrier != "open"}
        case "go_back" | "release_dead" | "release_lost":
            return {"hand": world.hand == "running"}
        case "claim_page":
            return {"claim": held and world.claim in ("", "settled") and world.item != "retry"}
        case "claim_retries":
            return {"claim": held and world.item == "retry" and world.claim in ("", "settled")}
        case "take_over":
            return {"claim": world.claim == "lost"}
        case "lose_claims":
            return {"claim": world.claim == "held"}
    return {}


@pytest.mark.parametrize("name", STATEMENTS)
def test_a_row_moves_if_and_only_if_the_arrow_exists(lab: Lab, name: str) -> None:
    statement, seen = SQL[name], set[Arrow]()
    lab.steady()
    worlds = list(_worlds())
    if name == "claim_retries":  # never asked for while the claim is not settled
        worlds = [world for world in worlds if world.claim in ("", "settled")]
    for world in worlds:
        for variant in VARIANTS.get(name, [{}]):
            moves = _try(lab, name, world, variant)
            seen |= set(moves.values())
            assert set(moves.values()) <= statement.arrows, f"{world}: {moves}"
            for which, moved in _guarded(name, world).items():
                noun = {"scattering": "step", "hand": "step", "claim": "item_claim"}.get(which, which)
                row = (noun, str(world.ids["hand" if which == "claim" else which]))
                assert (row in moves) == moved, f"{world}: {which}: {moves}"
    assert seen >= statement.arrows - ONLY_ELSEWHERE.get(name, set()) - _of_plain_steps(name), (
        "declared, but never made"
    )


def _of_plain_steps(name: str) -> set[Arrow]:
    """What a statement that scatters share with all steps does elsewhere."""
    if name not in ("release_dead", "release_lost", "cancel_steps", "end_without_value"):
        return set()
    return {arrow for arrow in SQL[name].arrows if arrow[0] in ("run", "step")} - {
        ("step", "ready", "skipped")
    }


def test_every_statement_with_an_arrow_of_scatters_is_walked() -> None:
    found = {
        name
        for name, each in SQL.items()
        if any(noun in ("barrier", "item", "item_claim") for noun, _, _ in each.arrows)
    }
    assert found <= set(STATEMENTS)


@pytest.mark.parametrize(
    "name",
    [
        "settle_part",
        "stand_aside",
        "go_back",
        "finish_hand",
        "claim_page",
        "claim_retries",
        "scatter",
        "wait_for",
    ],
)
@pytest.mark.parametrize("wrong", [{"worker": 10**9}, {"fence": 0}, {"fence": 2}, {"step": 10**9}], ids=str)
def test_under_another_worker_or_fence_nothing_moves(lab: Lab, name: str, wrong: dict[str, int]) -> None:
    for world in (World(), World(step="running", barrier="completed"), World(claim="", item="retry")):
        assert _try(lab, name, world, wrong) == {}
