"""How far a scatter is, drawn and told: from its counts alone."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowstone_celery.cli.bars import Pace, bar, counts, seconds_left
from flowstone_celery.core.barrier_model import Progress

RUN = UUID(int=1)


def progress(total: int, succeeded: int = 0, failed: int = 0, **more: Any) -> Progress:
    facts: dict[str, Any] = {"status": "open", "sealed": True, "retrying": 0, "running": 0, "collapsed": 0}
    return Progress(
        7, "shop.pages", "", RUN, 3, 1, total=total, succeeded=succeeded, failed=failed, **{**facts, **more}
    )


def cells(now: Progress, width: int = 20) -> str:
    """The bar alone: its spans by color, as g, r and a blank."""
    line = bar(now, width=width)
    letters = {"green": "g", "red": "r", "dim": " "}
    text = "".join(letters[str(span.style)] * (span.end - span.start) for span in line.spans)
    return text[:width]


def test_bar_has_a_cell_for_its_part_of_the_items() -> None:
    assert cells(progress(100, 50)) == "g" * 10 + " " * 10
    assert cells(progress(100, 50, 25)) == "g" * 10 + "r" * 5 + " " * 5
    assert cells(progress(100)) == " " * 20


def test_one_failure_of_many_is_seen() -> None:
    assert cells(progress(100_000, 99_999, 1)) == "g" * 19 + "r"


def test_bar_is_full_only_when_no_item_is_open() -> None:
    assert cells(progress(100_000, 99_999)).endswith(" ")
    assert cells(progress(100_000, 100_000)) == "g" * 20
    assert cells(progress(0, status="completed")) == "g" * 20


@given(
    st.integers(0, 2_000_000).flatmap(
        lambda total: st.tuples(st.just(total), st.integers(0, total)).flatmap(
            lambda both: st.tuples(st.just(both[0]), st.just(both[1]), st.integers(0, both[0] - both[1]))
        )
    ),
    st.integers(1, 80),
)
def test_bar_is_as_wide_as_asked_and_never_ahead_of_what_has_ended(
    numbers: tuple[int, int, int], width: int
) -> None:
    total, succeeded, failed = numbers
    drawn = cells(progress(total, succeeded, failed), width)
    assert len(drawn) == width
    assert ("r" in drawn) is (failed > 0)
    if total and not failed:
        assert drawn.count("g") * total <= width * succeeded
    assert (" " not in drawn) <= (succeeded + failed == total or failed > 0)


def test_counts_are_told_in_words_and_nothing_that_is_nought() -> None:
    now = progress(2_000, 1_195, 5, retrying=2, running=20)
    told = "1,200/2,000 items · 350/s · 5 failed · 2 retrying · 20 at work · 2.3 s left"
    assert counts(now, 350.0) == told
    assert counts(progress(12, 12, status="completed"), 9.0) == "12/12 items"
    assert counts(progress(12, 2), 0.4) == "2/12 items · 0.4/s · 25.0 s left"


def test_while_keys_are_being_read_nobody_knows_when_it_ends() -> None:
    now = progress(500, 100, sealed=False)
    assert counts(now, 50.0) == "100 of 500 items so far · 50/s"
    assert seconds_left(now, 50.0) is None


@pytest.mark.parametrize(
    ("now", "rate"), [(progress(9, 3), None), (progress(9, 3), 0.0), (progress(9, 3, status="failed"), 3.0)]
)
def test_without_a_rate_or_once_it_has_closed_no_time_is_left(now: Progress, rate: float | None) -> None:
    assert seconds_left(now, rate) is None


def test_pace_is_what_ended_in_the_last_seconds() -> None:
    pace = Pace()
    assert pace.look(0.0, 100) is None
    assert pace.look(0.1, 150) is None  # too short to say
    assert pace.look(1.0, 600) == 500.0
    for second in range(2, 30):
        pace.look(float(second), 600 + 10 * (second - 1))
    assert pace.look(30.0, 890) == pytest.approx(10.0)


def test_pace_of_what_stands_still_falls_to_nought() -> None:
    pace = Pace()
    pace.look(0.0, 0)
    assert pace.look(1.0, 100) == 100.0
    assert pace.look(8.0, 100) == 12.5
    assert pace.look(12.0, 100) == 0.0


def test_a_look_after_a_long_time_still_has_one_to_compare_with() -> None:
    pace = Pace()
    pace.look(0.0, 0)
    assert pace.look(60.0, 6) == 0.1


def test_another_round_is_measured_anew() -> None:
    pace = Pace()
    pace.look(0.0, 1_000)
    assert pace.look(10.0, 5) is None
    assert pace.look(11.0, 15) == 10.0
