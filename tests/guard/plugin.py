"""A pytest plugin that puts one seeded fault into the process, and writes down of what kind the errors were with which tests failed.

Loaded by `test_mutations.py` alone, or by hand, to see what else a fault meets:

    SEEDED_FAULT="a keeper extends no lease" PYTHONPATH=tests python -m pytest -p guard.plugin tests/core

Read from the environment: SEEDED_FAULT (a name of the table, or nothing), SEEDED_REPORT (a file to write, if any), SEEDED_TEMPLATE (a
migrated database to clone in place of migrating one, if any).
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from guard.seeded import FAULTS, InSql, Seeded

if TYPE_CHECKING:
    import pytest

_failures: dict[str, list[str]] = {}
_functions: dict[str, str] = {}
"""What makes the broken functions, by name."""


def _prepare() -> None:
    """Before any conftest is loaded: who loads a statement gets it broken."""
    fault = next((each for each in FAULTS if each.name == os.environ.get("SEEDED_FAULT")), None)
    assert fault is not None or not os.environ.get("SEEDED_FAULT"), "no such fault"
    if fault is not None:
        _put_in(fault)
    template = os.environ.get("SEEDED_TEMPLATE")
    if template and (fault is None or not fault.in_schema):
        _clone(template)
    _break_functions()


def _put_in(fault: Seeded) -> None:
    from flowstone_celery.db import statements

    real = statements.parse

    def parse(room: str, text: str) -> dict[str, statements.Statement]:
        found = real(room, text)
        for change in fault.sql:
            if change.room == room:
                _break(found, change)
        return found

    statements.parse = parse
    if fault.code is not None:
        fault.code()


def _break(found: dict[str, Any], change: InSql) -> None:
    for name in change.statements:
        if name in found:
            part = "definition" if found[name].definition else "text"
            old, new = (
                _in_function(each) if part == "definition" else each for each in (change.old, change.new)
            )
            reads = getattr(found[name], part)
            assert old in reads, f"{name} does not read {old!r} any more: mend the table"
            found[name] = replace(found[name], **{part: reads.replace(old, new)})
            if part == "definition":
                _functions[name] = found[name].definition


def _in_function(text: str) -> str:
    """As it reads in the body of a function, where parameters are variables."""
    return re.sub(r"%\((\w+)\)s", r"_\1", text).replace("%%", "%")


def _clone(given: str) -> None:
    """A template of this session's own is made from the one that stands, without a migration."""
    from flowstone_celery.testing import databases

    def make(url: str, name: str) -> None:
        databases._admin(url, f'CREATE DATABASE "{name}" TEMPLATE "{given}"')

    databases._make_template = make


def _break_functions() -> None:
    """Functions are broken where they are: in the template that this session's databases are clones of."""
    from flowstone_celery.testing import databases

    real = databases._make_template

    def make(url: str, name: str) -> None:
        from importlib import import_module

        for room in ("core.statements", "record.values"):
            import_module(f"flowstone_celery.{room}")
        real(url, name)
        for definition in _functions.values():
            databases._admin(databases._renamed(url, name), definition.replace("%", "%%"))

    databases._make_template = make


def pytest_exception_interact(call: pytest.CallInfo[Any], report: pytest.TestReport) -> None:
    """Of what kind the error was with which a phase of a test ended."""
    assert call.excinfo is not None
    _failures.setdefault(report.nodeid, []).append(call.excinfo.typename)


def pytest_sessionfinish() -> None:
    """For whoever started this session."""
    if report := os.environ.get("SEEDED_REPORT"):
        Path(report).write_text(json.dumps(_failures), encoding="utf-8")


_prepare()
