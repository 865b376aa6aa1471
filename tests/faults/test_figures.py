"""The table of figures: a line for each, the worst of what several tests noted, met or missed by the right side of its bar."""

from __future__ import annotations

import pytest
from faults.figures import Noted, collected, noting, p99, table


def reports(request: pytest.FixtureRequest, *, when: str = "call") -> list[pytest.TestReport]:
    """What goes out of this very test, and back to the one who prints."""
    properties = list(request.node.user_properties)
    return [pytest.TestReport("here", ("", 0, ""), {}, "passed", None, when, user_properties=properties)]  # type: ignore[arg-type] # `when` is one of its words


@pytest.fixture
def note(request: pytest.FixtureRequest) -> Noted:
    return noting(request.node)


def test_less_is_better_unless_at_least_so_much_is_wanted(
    request: pytest.FixtureRequest, note: Noted
) -> None:
    note("G19", "deadlocks", 0, 0)
    note("G19", "share", 94.9, 95, at_least=True)
    note("G6", "seconds", 46, 45)
    assert [(each.goal, each.met) for each in collected(reports(request))] == [
        ("G6", False),
        ("G19", True),
        ("G19", False),
    ]
    request.node.user_properties.clear()


def test_of_one_figure_that_several_noted_the_worst_is_told(
    request: pytest.FixtureRequest, note: Noted
) -> None:
    for value in (1, 3, 2):
        note("G6", "seconds", value, 45)
        note("G19", "share", value, 2, at_least=True)
    assert [each.value for each in collected(reports(request))] == [3, 1]
    assert collected(reports(request, when="teardown")) == []
    request.node.user_properties.clear()


def test_the_table_has_equal_columns(request: pytest.FixtureRequest, note: Noted) -> None:
    note("G6", "seconds", 0.75, 15)
    note("G19", "a longer figure, %", 96.666666, 95, at_least=True)
    assert table(collected(reports(request))) == [
        "goal  figure              value  bar",
        "G6    seconds             0.75   ≤ 15  met",
        "G19   a longer figure, %  96.67  ≥ 95  met",
    ]
    request.node.user_properties.clear()


def test_the_99th_percentile_of_few_is_the_greatest() -> None:
    assert (p99([3.0, 1.0, 2.0]), p99(range(1, 201))) == (3.0, 198)
