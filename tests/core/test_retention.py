"""Retention: what is old goes by batches, and what something stands on stays."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from corelab import Lab, laboratory, step

from flowstone_celery import faults
from flowstone_celery.config import load_settings
from flowstone_celery.core import retention
from flowstone_celery.core.model import Done
from flowstone_celery.core.retention import DAY, Policy, Pruned
from flowstone_celery.core.statements import SQL
from flowstone_celery.faults import FaultInjectedError
from flowstone_celery.record import audit, lineage, values

if TYPE_CHECKING:
    from uuid import UUID

    from flowstone_celery.testing.kit import TestKit

MONTH = Policy(30 * DAY)


def prune(lab: Lab, policy: Policy = MONTH) -> Pruned:
    return retention.prune(lab.database, policy, actor="tester")


def old_run(lab: Lab, *, days: float = 40, **options: Any) -> UUID:
    """A run of two steps that ended so many days ago."""
    run = lab.start(step("a"), step("b", 0), **options)
    lab.drain()
    lab.sql(
        "UPDATE flowstone.runs SET created_at = created_at - make_interval(days => %(days)s::int), finished_at = finished_at - "
        "make_interval(days => %(days)s::int) WHERE id = %(run)s",
        days=days,
        run=run,
    )
    return run


def there(lab: Lab) -> set[UUID]:
    return {row["id"] for row in lab.sql("SELECT id FROM flowstone.runs")}


def test_what_is_older_than_the_age_goes_with_all_that_is_its_own(lab: Lab) -> None:
    gone, kept = old_run(lab), old_run(lab, days=20)
    found = prune(lab)
    assert (found.runs, found.steps) == (1, 2)
    assert there(lab) == {kept}
    for table in ("steps", "history"):
        assert lab.scalar(f"SELECT count(*) FROM flowstone.{table} WHERE run_id = %(run)s", run=gone) == 0
    assert lab.scalar("SELECT count(*) FROM flowstone.step_edges") == 1


def test_a_run_that_has_not_ended_stays_however_old_it_is(lab: Lab) -> None:
    run = lab.start(step("a"))
    lab.sql("UPDATE flowstone.runs SET created_at = created_at - interval '400 days'")
    assert not prune(lab).any
    assert there(lab) == {run}


def test_a_key_keeps_its_run_as_long_as_it_lives(lab: Lab) -> None:
    young, outlived, without = (
        old_run(lab, days=40, idempotency_key="k"),
        old_run(lab, days=99, idempotency_key="l"),
        old_run(lab, days=40),
    )
    assert retention.prunable(lab.database, Policy(DAY, 60 * DAY)).runs == 2
    assert prune(lab, Policy(DAY, 60 * DAY)).runs == 2
    assert there(lab) == {young}
    assert without != outlived


def test_a_batch_ends_with_the_run_that_makes_it_large(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "_STEPS", 3)
    for _ in range(5):
        old_run(lab)
    told: list[int] = []
    retention.prune(lab.database, MONTH, actor="tester", on_batch=lambda so_far: told.append(so_far.runs))
    assert told == [2, 4, 5]
    assert len(audit.of_resource(lab.database, "database", "runs")) == 3


def test_what_dies_between_batches_is_finished_by_the_next(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "_RUNS", 1)
    for _ in range(3):
        old_run(lab)
    with faults.arm("retention.between_batches"), pytest.raises(FaultInjectedError):
        prune(lab)
    assert len(there(lab)) == 2
    assert lab.findings() == []
    assert prune(lab).runs == 2


def test_runs_that_were_retried_meanwhile_are_live_again_and_stay(lab: Lab) -> None:
    run = old_run(lab)
    lab.sql(
        "UPDATE flowstone.runs SET status = 'pending', finished_at = NULL, started_at = NULL, round = 2, remaining_steps = 0"
    )
    assert not prune(lab).any
    assert there(lab) == {run}
    lab.wipe()


def test_rows_of_the_dead_go_too(lab: Lab) -> None:
    lab.worker(lab.node())
    lab.sql("UPDATE flowstone.workers SET status = 'dead', alive_until = alive_until - interval '40 days'")
    lab.sql("UPDATE flowstone.nodes SET status = 'gone', alive_until = alive_until - interval '40 days'")
    lab.sql(
        "INSERT INTO flowstone.requests (run_id, act, actor, asked_at) VALUES (gen_random_uuid(), 'cancel', 'x', "
        "flowstone.now() - interval '40 days')"
    )
    live = lab.worker(lab.node())
    assert prune(lab).dead == 3
    assert [row["id"] for row in lab.sql("SELECT id FROM flowstone.workers")] == [live]


# --- values -----------------------------------------------------------------------------------------------------------------------


def _age(fs_test: TestKit, days: int = 40) -> None:
    """Everything happened so many days earlier."""
    for table, columns in {
        "runs": ("created_at", "finished_at"),
        "asset_values": ("created_at", "settled_at"),
    }.items():
        moves = ", ".join(f"{each} = {each} - make_interval(days => {days})" for each in columns)
        fs_test.database.once(_sql(f"UPDATE flowstone.{table} SET {moves}"))


def _sql(text: str) -> Any:
    from corelab import sql

    return sql(text)


def test_current_values_stay_and_what_they_came_from_stays_by_name(fs_test: TestKit) -> None:
    fs = fs_test.fs
    made = iter(range(9))

    @fs.asset
    def orders() -> int:
        return next(made)

    @fs.asset
    def report(orders: int) -> int:
        return orders * 10

    for _ in range(2):
        fs.materialize_all("report")
    first = values.current(fs_test.database, "test.report", "")
    assert first is not None
    _age(fs_test)
    fs.run("orders", force=True)
    gone = retention.prune(fs_test.database, MONTH, actor="tester")
    assert (gone.runs, gone.values) == (
        2,
        3,
    )  # both first values, and the second orders, which a newer one followed
    assert fs.get("report") == 10
    assert fs.get("orders") == 2
    [parent] = lineage.upstream(fs_test.database, first)
    assert (parent.asset, parent.pruned) == ("test.orders", True)
    assert not retention.prune(fs_test.database, MONTH, actor="tester").any
    fs_test.assert_healthy()


def test_a_value_that_was_current_goes_when_the_run_of_its_successor_goes(fs_test: TestKit) -> None:
    @fs_test.fs.asset
    def orders() -> int:
        return 1

    fs_test.fs.run("orders")
    _age(fs_test)
    assert retention.prune(fs_test.database, MONTH, actor="tester").values == 0
    fs_test.fs.run("orders", force=True)
    _age(fs_test)
    assert retention.prune(fs_test.database, MONTH, actor="tester").values == 1
    assert fs_test.fs.get("orders") == 1


def test_what_a_live_run_consumed_stays(fs_test: TestKit) -> None:
    """A run has used orders of an old run that newer ones followed, and goes on still."""
    fs = fs_test.fs

    @fs.asset
    def orders() -> int:
        return 1

    @fs.asset
    def revenue(orders: int) -> int:
        return orders

    @fs.asset
    def report(revenue: int) -> int:
        return revenue

    fs.run("orders")
    used = values.current(fs_test.database, "test.orders", "")
    assert used is not None
    live = fs_test.fs.begin(["test.report"], only={"test.revenue", "test.report"}, drain=False)
    fs_test.step()
    fs.run("orders", force=True)
    _age(fs_test)
    assert retention.prune(fs_test.database, MONTH, actor="tester").values == 0
    made = values.current(fs_test.database, "test.revenue", "")
    assert made is not None
    assert [(link.value_id, link.pruned) for link in lineage.upstream(fs_test.database, made)] == [
        (used.id, False)
    ]
    fs_test.drain()
    assert live.state == "succeeded"


# --- by itself --------------------------------------------------------------------------------------------------------------------


def test_the_pacer_prunes_one_batch_now_and_then_where_it_is_told_to(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "_RUNS", 1)
    monkeypatch.setattr("flowstone_celery.core.pacer._PRUNE_ON", 0.0)
    for _ in range(2):
        old_run(lab)
    lab.pacer().step()
    assert len(there(lab)) == 2
    monkeypatch.setattr(
        lab, "settings", load_settings(env_file=None, **{**_given(lab), "retention_days": 30})
    )
    lab.clock.advance(seconds=4)
    pacer = lab.pacer()
    pacer.step()
    assert len(there(lab)) == 1
    lab.clock.advance(seconds=4)
    lab.wait_until(lambda: (pacer.step() >= 0) and not there(lab))


def _given(lab: Lab) -> dict[str, Any]:
    found = lab.settings.to_dict()
    return {name: found[name] for name in ("env", "database_url", "lease_seconds", "grace_seconds")}


def test_pruning_reads_no_large_table_from_end_to_end(flowstone_databases: Any) -> None:
    with laboratory(flowstone_databases) as lab:
        for _ in range(400):
            lab.start(*[step(f"s{n}") for n in range(20)], promise=False)
        lab.answers["s0"] = Done()
        lab.sql("ANALYZE")
        given = {
            "keep": MONTH.keep, "key_life": MONTH.key_life, "reached": None, "limit": 500, "most_steps": 5_000, "grace": DAY,
        }  # fmt: skip
        for name in ("prune_runs", "expired_values", "prunable"):
            with lab.database.connection() as connection:
                text = psycopg.ClientCursor(connection).mogrify(SQL[name].sql("flowstone"), given)
                row = connection.execute(
                    f"EXPLAIN (FORMAT JSON) {text}".replace("%", "%%"), prepare=False
                ).fetchone()
                connection.rollback()
            assert row is not None
            plan = json.dumps(row[0])
            scans = [node for node in _nodes(json.loads(plan)[0]["Plan"]) if node["Node Type"] == "Seq Scan"]
            assert not [node["Relation Name"] for node in scans]


def _nodes(plan: dict[str, Any]) -> list[dict[str, Any]]:
    return [plan, *(node for each in plan.get("Plans", ()) for node in _nodes(each))]
