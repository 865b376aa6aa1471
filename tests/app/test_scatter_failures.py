"""Items that fail: thresholds, further attempts, the next round, and what is accepted as it is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from flowstone_celery import Context, FlowStone, Gathered, Scatter
from flowstone_celery.errors import RunFailed, WrongState

if TYPE_CHECKING:
    pass

if TYPE_CHECKING:
    from flowstone_celery.testing.kit import TestKit

URLS = [f"/{number}" for number in range(40)]


def urls(fs: FlowStone, found: Any = URLS) -> None:
    fs.asset(name="urls")(lambda: found)


def failing(fs: FlowStone, bad: set[str], **options: Any) -> Any:
    """An asset whose items in `bad` fail for good."""
    urls(fs)

    @fs.asset(scatter=Scatter(over="urls", retry_delay=0, **options))
    def pages(item: str) -> str:
        if item in bad:
            raise ConnectionError(f"{item} is away")
        return item

    return pages


def test_a_failed_item_within_the_threshold_lets_the_others_be_gathered_and_used(fs: FlowStone) -> None:
    pages = failing(fs, {"/3", "/7"}, failure_threshold="5%")

    @fs.asset
    def report(pages: Gathered[str]) -> dict[str, Any]:
        return {"good": len(pages), "bad": [each.key for each in pages.failed]}

    run = fs.run(report)
    assert run.get() == {"good": 38, "bad": ["/3", "/7"]}
    [scatter] = run.scatters()
    assert scatter.status == "partial_failure"
    assert [(each.index, each.key) for each in scatter.items("failed")] == [(3, "/3"), (7, "/7")]
    assert [each.attempt for each in fs.get(pages).failed] == [3, 3]
    assert "/3 is away" in next(iter(fs.get(pages).failed)).message


def test_more_failures_than_may_be_fail_the_run(fs: FlowStone) -> None:
    pages = failing(fs, {"/3", "/7", "/9"}, failure_threshold="5%")
    run = fs.run(pages)
    with pytest.raises(RunFailed, match="is away"):
        run.get()
    [scatter] = run.scatters()
    assert scatter.status == "failed"
    assert not fs.exists(pages)


def test_all_or_nothing_ends_with_the_first_item_that_fails_for_good(fs: FlowStone) -> None:
    pages = failing(fs, {"/3"}, max_attempts=1)
    run = fs.run(pages)
    with pytest.raises(RunFailed, match="/3 is away"):
        run.get()
    [scatter] = run.scatters()
    assert scatter.status == "failed"
    assert {each.status for each in scatter.items()} <= {"succeeded", "failed", "cancelled"}


def test_an_attempt_that_fails_is_no_failure_while_there_are_others(fs: FlowStone) -> None:
    urls(fs)

    @fs.asset(scatter=Scatter(over="urls", max_attempts=3, retry_delay=0))
    def pages(item: str, ctx: Context) -> int:
        if ctx.attempt < 3:
            raise ConnectionError("away")
        return ctx.attempt

    value = fs.run(pages).get()
    assert set(value) == {3}
    assert value.counts.failed == 0


def test_failed_items_are_done_again_alone_and_then_gathered_again(fs: FlowStone) -> None:
    bad, called = {"/38", "/39"}, list[str]()
    urls(fs)

    @fs.asset(scatter=Scatter(over="urls", max_attempts=1, failure_threshold="3%"))
    def pages(item: str) -> str:
        called.append(item)
        if item in bad:
            raise ConnectionError(f"{item} is away")
        return item

    gatherings: list[int] = []
    pages.gather(lambda gathered: gatherings.append(len(gathered)) or list(gathered))
    run = fs.run(pages)
    assert run.state == "failed"
    assert gatherings == []
    bad.clear()
    called.clear()
    run.retry()
    assert run.get() == URLS
    assert sorted(called) == ["/38", "/39"]
    assert gatherings == [40]
    [scatter] = run.scatters()
    assert (scatter.status, run.round) == ("completed", 2)


def test_a_partial_result_is_completed_by_its_handle(fs: FlowStone) -> None:
    bad = {"/3"}
    pages = failing(fs, bad, failure_threshold=0.5, max_attempts=1)
    run = fs.run(pages)
    before = run.get()
    assert len(before) == 39
    bad.clear()
    [scatter] = run.scatters()
    assert scatter.retry().status == "completed"
    assert list(run.get()) == URLS
    assert list(fs.get(pages)) == URLS
    with pytest.raises(WrongState, match="no item of it is there to be done again"):
        scatter.retry()


def test_what_succeeded_of_a_failed_scatter_is_accepted(fs: FlowStone) -> None:
    pages = failing(fs, {"/39"}, failure_threshold="2%", max_attempts=1)
    run = fs.run(pages)
    assert run.state == "failed"
    [scatter] = run.scatters()
    scatter.accept(reason="good enough")
    value = run.get()
    assert (len(value), [each.key for each in value.failed]) == (39, ["/39"])
    assert scatter.status == "partial_failure"


def test_a_fold_that_raised_is_called_again_and_no_item_is(fs: FlowStone) -> None:
    urls(fs)
    called: list[str] = []
    pages = fs.asset(name="pages", scatter=Scatter(over="urls"))(lambda item: called.append(item) or item)
    broken = [True]

    @pages.gather
    def joined(gathered: Gathered[str]) -> int:
        if broken.pop() if broken else False:
            raise ValueError("not yet")
        return len(gathered)

    run = fs.run(pages)
    assert run.state == "failed"
    run.retry()
    assert run.get() == 40
    assert len(called) == 40


@pytest.mark.parametrize("options", [{"failure_mode": "partial"}, {"failure_threshold": 0.5}, {}])
def test_force_scatters_anew_whatever_became_of_the_items(fs: FlowStone, options: dict[str, Any]) -> None:
    bad, told = {"/39"}, list[int]()
    urls(fs)

    @fs.asset(scatter=Scatter(max_attempts=1, **options))
    def pages(item: str) -> str:
        if item in bad:
            raise ConnectionError(f"{item} is away")
        return item

    @pages.keys
    def some(urls: list[str]) -> list[str]:
        told.append(len(urls))
        return urls

    run = fs.run(pages)
    bad.clear()
    run.retry(force=True)
    assert list(run.get()) == URLS
    assert told == [40, 40]
    assert run.scatters()[0].status == "completed"


def test_force_scatters_anew(fs: FlowStone) -> None:
    urls(fs, ["a", "b"])
    called: list[str] = []
    pages = fs.asset(name="pages", scatter=Scatter(over="urls"))(lambda item: called.append(item) or item)
    run = fs.run(pages)
    assert fs.run(pages).id == run.id  # fresh: nothing is made
    run.retry(force=True)
    assert list(run.get()) == ["a", "b"]
    assert called == ["a", "b", "a", "b"]
    fs.run(pages, force=True)
    assert len(called) == 6


# --- processes that die ---------------------------------------------------------------------------------------------------------------


EDGES = {
    "claim.after_commit": 3,
    "range.after_commit": 2,
    "part.before_commit": 2,
    "part.after_commit": 2,
    "settle.before_commit": 3,
    "settle.after_commit": 2,
}
"""Where a process dies, and how often it gets there."""


@pytest.mark.parametrize(
    ("point", "nth"), [(point, nth) for point, most in EDGES.items() for nth in range(1, most + 1)]
)
def test_a_death_at_any_edge_loses_no_item_and_doubles_none(fs_test: TestKit, point: str, nth: int) -> None:
    fs = fs_test.fs
    urls(fs)
    pages = fs.asset(name="pages", scatter=Scatter(over="urls"))(lambda item: item * 2)
    pages.gather(lambda gathered: list(gathered.items()))
    run = fs_test.start(pages)
    with fs_test.crash_at(point, nth=nth):
        fs_test.drain(run)
    fs_test.drain(run)
    assert run.get() == [[url, url * 2] for url in URLS]
    assert run.scatters()[0].progress().succeeded == 40
