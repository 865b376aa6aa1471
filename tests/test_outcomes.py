"""The closed set of answers: what is valid, what is refused where it is written."""

from __future__ import annotations

import math
from dataclasses import FrozenInstanceError
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

from flowstone_celery.errors import InvalidOption
from flowstone_celery.outcomes import Cancel, Fail, Outcome, Retry, Skip, Value, as_outcome

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.mark.parametrize("answer", [Value(1), Skip(), Retry(), Fail("no"), Cancel()])
def test_an_outcome_is_taken_as_it_is(answer: Outcome) -> None:
    assert as_outcome(answer) is answer


@pytest.mark.parametrize("answer", [None, False, 0, "", [], {"value": 1}, (1, 2), int])
def test_everything_else_is_a_value(answer: object) -> None:
    assert as_outcome(answer) == Value(answer)


@pytest.mark.parametrize("kind", [Value, Skip, Retry, Fail, Cancel])
def test_a_class_in_place_of_an_outcome_is_told_apart(kind: type[Outcome]) -> None:
    with pytest.raises(InvalidOption, match=rf"the class {kind.__name__}.*Return {kind.__name__}\("):
        as_outcome(kind)


@pytest.mark.parametrize("inner", [Value(1), Skip(), Retry(), Fail("no"), Cancel()])
def test_a_value_holds_no_outcome(inner: Outcome) -> None:
    with pytest.raises(InvalidOption, match=f"Return the {type(inner).__name__} itself"):
        Value(inner)


@pytest.mark.parametrize(
    ("after", "seconds"),
    [(None, None), (0, 0.0), (1.5, 1.5), (timedelta(minutes=2), 120.0), (timedelta(0), 0.0)],
)
def test_a_retry_tells_its_pause_in_seconds(after: float | timedelta | None, seconds: float | None) -> None:
    assert Retry(after).seconds == seconds


@pytest.mark.parametrize("after", [-1, -0.1, math.nan, math.inf, timedelta(seconds=-1), True, "10", [1]])
def test_a_pause_that_is_none_is_refused(after: object) -> None:
    with pytest.raises(InvalidOption, match="Retry's after"):
        Retry(after)  # type: ignore[arg-type]  # what a caller without a type checker may write


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: Skip(1), "Skip's reason is text, not int"),
        (lambda: Retry(reason=None), "Retry's reason is text, not NoneType"),
        (lambda: Fail(ValueError("x")), "Fail's reason is text, not ValueError"),
        (lambda: Cancel(b"x"), "Cancel's reason is text, not bytes"),
        (lambda: Fail("x", error=["y"]), "Fail's error is a dict with text keys, not list"),
        (lambda: Fail("x", error={1: 2}), "Fail's error is a dict with text keys"),
        (lambda: Value(1, metadata="rows"), "Value's metadata is a dict with text keys, not str"),
    ],
)
def test_wrong_arguments_are_refused_where_the_outcome_is_built(
    build: Callable[[], Outcome], words: str
) -> None:
    with pytest.raises(InvalidOption, match=words):
        build()


def test_outcomes_are_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        Skip().reason = "later"  # type: ignore[misc]  # the assignment under test
