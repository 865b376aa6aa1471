"""Handles on scatters: how far one is, its items, and what can be done to it."""

from __future__ import annotations

from datetime import date
from typing import TYPE_CHECKING, Any

import pytest
from onedb import sql

from flowstone_celery import Context, FlowStone, Gathered, Scatter
from flowstone_celery.core import retention
from flowstone_celery.errors import Cancelled, InvalidOption, RunFailed, ScatterNotFound, WrongState
from flowstone_celery.record import audit

if TYPE_CHECKING:
    from flowstone_celery.testing.kit import TestKit


def counted(fs: FlowStone, most: int = 20, **options: Any) -> tuple[Any, set[int]]:
    """An asset over numbers, and the set of those that fail."""
    bad: set[int] = set()
    fs.asset(name="numbers")(lambda: list(range(most)))

    @fs.asset(scatter=Scatter("numbers", **{"max_attempts": 1, "failure_mode": "partial", **options}))
    def squares(item: int) -> int:
        if item in bad:
            raise ValueError(f"{item} is bad")
        return item * item

    return squares, bad


def test_a_scatter_is_known_while_it_goes_on(fs_test: TestKit) -> None:
    fs = fs_test.fs
    squares, _ = counted(fs)
    run = fs_test.start(squares)
    assert run.scatters() == []
    assert fs_test.step()
    assert fs_test.step()
    [scatter] = run.scatters()
    assert (scatter.asset, scatter.status) == ("test.squares", "open")
    found = scatter.progress()
    assert (found.total, found.succeeded, found.failed, found.pending, found.percent) == (20, 0, 0, 20, 0.0)
    assert {each.status for each in scatter.items()} == {"pending"}
    assert list(scatter.gathered()) == []
    fs_test.drain(run)
    assert scatter.status == "completed"
    assert scatter.progress().percent == 100.0
    assert list(scatter.gathered()) == [number**2 for number in range(20)]
    assert [each.index for each in scatter.items("succeeded")] == list(range(20))
    assert fs.scatter(scatter.id) == scatter


def test_scatters_are_listed_by_asset_and_status(fs: FlowStone) -> None:
    squares, bad = counted(fs)
    first = fs.run(squares)
    bad.add(19)
    second = fs.run(squares, force=True)
    assert second.state == "failed"
    assert [each.row.run_id for each in fs.scatters()] == [second.uuid, first.uuid]
    assert [each.row.run_id for each in fs.scatters("squares", status="failed")] == [second.uuid]
    assert list(fs.scatters("numbers")) == []
    assert repr(next(fs.scatters())).startswith("<Scatter: ")


@pytest.mark.parametrize(("own", "of_items"), [(None, 7), (3, 3)])
def test_items_have_the_priority_of_their_step_unless_the_scatter_says_otherwise(
    fs_test: TestKit, own: int | None, of_items: int
) -> None:
    squares, _ = counted(fs_test.fs, priority=own)
    run = fs_test.start(squares, priority=7)
    fs_test.drain(run)
    text = "SELECT DISTINCT priority FROM flowstone.steps WHERE run_id = %(run)s AND phase = 'item'"
    assert sql(fs_test.database, text, run=run.uuid) == [{"priority": of_items}]


def test_keys_are_told_as_they_were(fs: FlowStone) -> None:
    days = [date(2026, 11, 20), date(2026, 11, 21)]
    fs.asset(name="days")(lambda: days)

    @fs.asset(scatter=Scatter("days", max_attempts=1, failure_threshold=1))
    def reports(item: date) -> str:
        if item == days[1]:
            raise ValueError("not yet")
        return item.isoformat()

    run = fs.run(reports)
    [scatter] = run.scatters()
    assert [each.key for each in scatter.items()] == days
    assert [each.key for each in run.get().failed] == days[1:]
    assert list(run.get().keys()) == days[:1]


def test_a_scatter_that_is_not_there_is_told(fs: FlowStone) -> None:
    scatter = fs.scatter(4711)
    with pytest.raises(ScatterNotFound, match="no scatter has the id 4711"):
        _ = scatter.status
    for act in (scatter.progress, scatter.gathered, scatter.cancel, scatter.accept, scatter.retry):
        with pytest.raises(ScatterNotFound):
            act()


def test_a_status_that_there_is_none_of_is_told_with_the_nearest(fs: FlowStone) -> None:
    with pytest.raises(InvalidOption, match="Did you mean 'completed'"):
        fs.scatters(status="complete")
    with pytest.raises(InvalidOption, match="Did you mean 'succeeded'"):
        fs.scatter(1).items("suceeded")


def test_a_cancelled_scatter_ends_its_run_and_no_further_item_begins(fs_test: TestKit) -> None:
    squares, _ = counted(fs_test.fs)
    run = fs_test.start(squares)
    fs_test.step()
    fs_test.step()
    [scatter] = run.scatters()
    assert scatter.cancel(reason="enough", actor="alice")
    assert not scatter.cancel()
    fs_test.drain(run)
    assert scatter.status == "cancelled"
    assert {each.status for each in scatter.items()} == {"cancelled"}
    with pytest.raises((Cancelled, RunFailed)):
        run.get()


def test_a_cancelled_run_takes_its_scatter_with_it_and_the_next_round_goes_on(fs_test: TestKit) -> None:
    squares, _ = counted(fs_test.fs)
    run = fs_test.start(squares)
    fs_test.step()
    fs_test.step()
    assert run.cancel()
    fs_test.drain(run)
    fs_test.sweep()
    [scatter] = run.scatters()
    assert (run.state, scatter.status) == ("cancelled", "cancelled")
    run.retry()
    assert list(run.get()) == [number**2 for number in range(20)]
    assert run.scatters()[0].status == "completed"


@pytest.mark.parametrize("act", ["retry", "accept"])
def test_what_is_not_over_or_has_not_failed_is_neither_done_again_nor_accepted(
    fs: FlowStone, act: str
) -> None:
    squares, _ = counted(fs)
    [scatter] = fs.run(squares).scatters()
    with pytest.raises(WrongState, match=r"scatter \d+ of 'test\.squares' is completed, its run succeeded"):
        getattr(scatter, act)()


def test_acts_are_in_the_audit_log(fs: FlowStone) -> None:
    squares, bad = counted(fs)
    bad.add(19)
    run = fs.run(squares)
    [scatter] = run.scatters()
    scatter.accept(reason="good enough", actor="alice")
    rows = [
        *audit.of_resource(fs.database, "run", run.id),
        *audit.of_resource(fs.database, "barrier", str(scatter.id)),
    ]
    assert "alice" in {row["actor"] for row in rows}


def test_downstream_of_a_scatter_that_is_completed_later_is_made_again(fs: FlowStone) -> None:
    _, bad = counted(fs, failure_threshold=0.5)
    made: list[int] = []

    @fs.asset
    def total(squares: Gathered[int]) -> int:
        made.append(len(squares))
        return sum(squares)

    bad.add(3)
    run = fs.run(total)
    assert made == [19]
    bad.clear()
    run.scatters()[0].retry()
    assert made == [19, 20]
    assert run.get() == sum(number**2 for number in range(20))


def test_a_version_stays_what_it_was_when_a_later_round_completes_it(fs: FlowStone) -> None:
    squares, bad = counted(fs, failure_threshold=0.5)
    bad.add(3)
    run = fs.run(squares)
    before = run.get()
    bad.clear()
    run.scatters()[0].retry()
    assert len(list(before)) == len(before) == 19
    assert len(list(run.get())) == len(run.get()) == 20


def test_a_value_is_read_as_long_as_it_stands_though_its_run_was_pruned(fs: FlowStone) -> None:
    squares, _ = counted(fs)
    first = fs.run(squares)
    policy = retention.Policy(keep=0.0, key_life=0.0)
    retention.prune(fs.database, policy, actor="test")
    assert list(fs.get(squares)) == [number**2 for number in range(20)]
    fs.run(squares, force=True)
    retention.prune(fs.database, policy, actor="test")
    retention.prune(fs.database, policy, actor="test")
    assert len(list(fs.scatters())) == 1
    assert list(fs.get(squares)) == [number**2 for number in range(20)]
    assert first.scatters() == []


def test_each_item_has_a_key_of_its_own_for_side_effects(fs: FlowStone) -> None:
    keys: list[tuple[int, int, str]] = []
    fs.asset(name="numbers")(lambda: [1, 2])

    @fs.asset(scatter=Scatter("numbers", retry_delay=0))
    def squares(item: int, ctx: Context) -> int:
        keys.append((item, ctx.attempt, ctx.idempotency_key))
        if ctx.attempt == 1:
            raise ValueError("once")
        return item

    fs.run(squares)
    assert len({key for _, _, key in keys}) == 4
    assert sorted((item, attempt) for item, attempt, _ in keys) == [(1, 1), (1, 2), (2, 1), (2, 2)]
