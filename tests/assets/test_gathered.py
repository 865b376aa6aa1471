"""What was gathered is read page by page, in index order, whenever it is iterated."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowstone_celery import Gathered, codec
from flowstone_celery.assets.batching import Batched
from flowstone_celery.assets.gathered import Counts, Failure, Result


class Pages:
    """Results in memory, which count how often and how much is read."""

    def __init__(self, results: Sequence[Result], failures: Sequence[Failure] = ()) -> None:
        self.results, self.failures = results, failures
        self.reads: list[int] = []

    def succeeded(self, after: int, limit: int) -> Sequence[Result]:
        found = [each for each in self.results if each.index > after][: min(limit, 7)]
        self.reads.append(len(found))
        return found

    def failed(self, after: int, limit: int) -> Sequence[Failure]:
        return [each for each in self.failures if each.index > after][:2]


def result(index: int, key: Any, value: Any) -> Result:
    return Result(index, codec.canonical(key), codec.encode(value))


def batch(index: int, elements: list[Any], value: Any) -> Result:
    return result(index, Batched(index, elements).element(), value)


def counts(source: Pages) -> Counts:
    return Counts(len(source.results) + len(source.failures), len(source.results), len(source.failures))


@given(st.lists(st.integers(), max_size=40))
def test_all_results_come_in_index_order_however_pages_fall(values: list[int]) -> None:
    source = Pages([result(2 * index, f"k{index}", value) for index, value in enumerate(values)])
    found: Gathered[int] = Gathered(source, counts(source))
    assert list(found) == list(found.values()) == values
    assert list(found.items()) == [(f"k{index}", value) for index, value in enumerate(values)]
    assert list(found.keys()) == [f"k{index}" for index in range(len(values))]
    assert len(found) == len(values)
    assert bool(found) == bool(values)


def test_nothing_is_read_before_it_is_iterated_and_no_more_than_a_page_ahead() -> None:
    source = Pages([result(index, index, index) for index in range(30)])
    found: Gathered[int] = Gathered(source, counts(source))
    assert (len(found), repr(found), source.reads) == (30, "<gathered: 30 succeeded, 0 failed>", [])
    assert next(iter(found)) == 0
    assert source.reads == [7]


def test_failed_items_are_told_with_their_keys_and_errors() -> None:
    failures = [Failure(index, f"k{index}", {"message": f"away {index}"}, 3) for index in range(5)]
    source = Pages([result(9, "fine", 1)], failures)
    found: Gathered[int] = Gathered(source, counts(source))
    assert [(each.key, each.message, each.attempt) for each in found.failed] == [
        (f"k{index}", f"away {index}", 3) for index in range(5)
    ]
    assert (len(found.failed), bool(found.failed), found.counts) == (5, True, Counts(6, 1, 5))
    assert "away 0" in repr(found.failed)
    assert repr(Gathered.for_test({}).failed) == "<no failed items>"


def test_batches_that_were_taken_whole_have_one_result_each() -> None:
    source = Pages([batch(0, ["a", "b"], 2), batch(1, ["c"], 1)])
    found: Gathered[int] = Gathered(source, counts(source), batched=True)
    assert list(found.items()) == [(["a", "b"], 2), (["c"], 1)]
    assert len(found) == 2


def test_batches_that_were_taken_one_by_one_have_a_result_for_each_element() -> None:
    error = {"message": "b is away"}
    source = Pages(
        [
            batch(0, ["a", "b", "c"], {"values": ["A", "C"], "errors": [(1, error)]}),
            batch(1, ["d"], {"values": ["D"], "errors": []}),
            batch(2, ["e", "f"], None),
        ],
        [Failure(3, Batched(3, ["g"]).element(), {"message": "all of it"})],
    )
    found: Gathered[str] = Gathered(source, counts(source), batched=True, each=True)
    assert list(found.items()) == [("a", "A"), ("c", "C"), ("d", "D"), ("e", None), ("f", None)]
    assert len(found) == 5
    assert [(each.index, each.key, each.message) for each in found.failed] == [
        (3, ["g"], "all of it"),
        (0, "b", "b is away"),
    ]


def test_the_digest_is_that_of_keys_and_results() -> None:
    def digest(*pairs: tuple[Any, Any]) -> str:
        return Gathered.for_test(list(pairs)).digest()

    assert digest(("a", 1), ("b", 2)) == digest(("a", 1), ("b", 2))
    different = [digest(("a", 1)), digest(("a", 2)), digest(("b", 1)), digest(("b", 2), ("a", 1)), digest()]
    assert len({*different, digest(("a", 1), ("b", 2))}) == 6


def test_a_fold_is_tested_with_results_that_were_made_up() -> None:
    found: Gathered[int] = Gathered.for_test({"a": 1, "b": 2}, failed={"c": "away"})
    assert sum(found) == 3
    assert [each.message for each in found.failed] == ["away"]
    assert found.counts == Counts(3, 2, 1)


def test_a_result_that_json_cannot_hold_is_refused_there_too() -> None:
    with pytest.raises(Exception, match="cannot be stored"):
        Gathered.for_test({"a": {1, 2}})
