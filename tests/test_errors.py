"""The error tree: stable codes, sentences that teach, and forms that survive a row and a process."""

from __future__ import annotations

import inspect
import json
import pickle
import re
from datetime import date
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowstone_celery import errors
from flowstone_celery.errors import (
    CorruptRow,
    DatabaseUnavailable,
    ExecutionError,
    FlowStoneError,
    RunFailed,
    StaleFence,
    UnknownDependency,
    did_you_mean,
    reference_table,
)

ALL = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, FlowStoneError)]
PAGE = Path(__file__).parents[1] / "docs" / "reference" / "errors.md"


@pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.__name__)
def test_every_class_has_a_code_of_its_own_and_a_docstring(kind: type[FlowStoneError]) -> None:
    assert re.fullmatch(r"FS-\d{4}", vars(kind)["code"])
    assert kind.__doc__
    assert kind().message == kind.__doc__.splitlines()[0].rstrip(".")


def test_codes_are_unique() -> None:
    assert len({kind.code for kind in ALL}) == len(ALL)
    here = [kind for kind in FlowStoneError.known() if kind.__module__ == errors.__name__]
    assert here == sorted(ALL, key=lambda kind: kind.code)


def test_a_code_that_is_taken_is_refused_where_the_class_is_written() -> None:
    with pytest.raises(TypeError, match="FS-3007 of Again already belongs to StaleFence"):
        type("Again", (FlowStoneError,), {"code": "FS-3007"})
    assert isinstance(FlowStoneError.from_dict({"code": "FS-3007"}), StaleFence)


def test_the_text_says_code_what_and_how() -> None:
    error = UnknownDependency(
        "asset 'revenue' needs 'order', which is not defined", hint="Did you mean 'orders'?"
    )
    assert str(error) == "FS-1003 asset 'revenue' needs 'order', which is not defined. Did you mean 'orders'?"
    assert str(RunFailed("Why?")) == "FS-2001 Why?"


def test_a_family_shares_what_its_root_says() -> None:
    assert DatabaseUnavailable().retryable
    assert isinstance(DatabaseUnavailable(), errors.ServiceUnavailable)
    assert not StaleFence().retryable


@pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.__name__)
def test_every_error_survives_a_row_and_a_pickle(kind: type[FlowStoneError]) -> None:
    error = kind("what", hint="how", run="r1", path=["a", "b"], count=3)
    for copy in (
        FlowStoneError.from_dict(json.loads(json.dumps(error.to_dict()))),
        pickle.loads(pickle.dumps(error)),
    ):
        assert type(copy) is kind
        assert (copy.message, copy.hint, copy.facts, str(copy)) == (
            error.message,
            error.hint,
            error.facts,
            str(error),
        )
        assert copy.retryable == kind.retryable


def test_an_unknown_code_is_kept_for_the_version_that_knows_it() -> None:
    stored = {
        "code": "FS-9876",
        "type": "Newer",
        "message": "new",
        "hint": None,
        "facts": {"a": 1},
        "retryable": True,
    }
    assert FlowStoneError.from_dict(stored).to_dict() == stored | {"type": "FlowStoneError"}


def test_a_stored_fact_may_carry_the_name_of_a_parameter() -> None:
    assert FlowStoneError.from_dict({"code": "FS-5007", "facts": {"message": "m", "hint": "h"}}).facts == {
        "message": "m",
        "hint": "h",
    }


facts = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters())
    | st.dates()
    | st.binary(),
    lambda members: (
        st.lists(members) | st.dictionaries(st.text(st.characters()), members) | st.sets(st.integers())
    ),
    max_leaves=8,
)


@given(st.text(st.characters()), facts)
def test_the_stored_form_is_json_that_postgres_takes(message: str, fact: object) -> None:
    text = json.dumps(CorruptRow(message, fact=fact).to_dict(), allow_nan=False, ensure_ascii=False)
    assert "\x00" not in text
    assert "\\u0000" not in text.replace("\\\\", "")
    text.encode("utf-8")


def test_facts_that_are_not_plain_become_text() -> None:
    assert CorruptRow(when=date(2026, 11, 20), big=2**70).to_dict()["facts"] == {
        "when": "2026-11-20",
        "big": str(2**70),
    }


def test_what_user_code_raised_is_told_with_type_text_and_traceback() -> None:
    error = _caught(lambda: {}["parcel"])
    assert error.message == "step 'shop.orders' of partition 'd:2026-11-20' raised KeyError: 'parcel'"
    assert error.facts["type"] == "KeyError"
    assert error.facts["text"] == "'parcel'"
    assert "_caught" in error.facts["traceback"]
    assert isinstance(error.__cause__, KeyError)


def test_an_exception_whose_text_raises_is_recorded_all_the_same() -> None:
    class MuteError(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no text")

    def fail() -> None:
        raise MuteError

    error = _caught(fail)
    assert error.facts["text"] == "(its text could not be read)"
    assert error.facts["type"].endswith("MuteError")


def test_what_user_code_raised_is_bounded() -> None:
    def fail() -> None:
        raise ValueError("x" * 1_000_000)

    assert len(json.dumps(_caught(fail).to_dict())) < 50_000


def _caught(act: object) -> ExecutionError:
    try:
        act()  # type: ignore[operator]  # callers hand in functions without parameters
    except Exception as error:  # noqa: BLE001 - the rule under test holds for whatever is raised
        return ExecutionError.of(error, "shop.orders", "d:2026-11-20")
    raise AssertionError("nothing was raised")


@pytest.mark.parametrize(
    ("name", "candidates", "answer"),
    [
        ("order", ["orders", "revenue"], "Did you mean 'orders'?"),
        ("Revenue", ["orders", "revenue"], "Did you mean 'revenue'?"),
        ("retrys", ["retries", "timeout"], "Did you mean 'retries'?"),
        ("zzz", ["orders"], ""),
        ("orders", [], ""),
    ],
)
def test_the_nearest_name_is_suggested(name: str, candidates: list[str], answer: str) -> None:
    assert did_you_mean(name, candidates) == answer


def test_the_reference_page_holds_the_table_of_the_code() -> None:
    assert reference_table() in PAGE.read_text(encoding="utf-8"), (
        "write the answer of `python -m flowstone_celery.errors` into docs/reference/errors.md"
    )
