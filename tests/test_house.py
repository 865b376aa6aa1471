"""The house keeps its own rules: light imports, small modules, doors that open, words for everything public."""

from __future__ import annotations

import ast
import importlib
import json
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
from grimp import build_graph

import flowstone_celery
from flowstone_celery import telemetry

PACKAGE = Path(flowstone_celery.__file__).parent
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if "_migrations" not in path.parts)
LONGEST = 420
PAGES = {"errors.py", "db/schema.py"}
"""What is one page on purpose: a list of like entries, to be searched rather than read."""


def name_of(path: Path) -> str:
    return str(path.relative_to(PACKAGE))


def loaded_by(code: str) -> set[str]:
    """The top-level packages in a fresh process that ran this code."""
    script = f"{code}\nimport json, sys; print(json.dumps(sorted({{name.partition('.')[0] for name in sys.modules}})))"
    told = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(json.loads(told.stdout.splitlines()[-1]))


def test_importing_the_package_loads_nothing_heavy() -> None:
    heavy = {
        "celery",
        "kombu",
        "sqlalchemy",
        "psycopg",
        "pydantic",
        "pydantic_settings",
        "redis",
        "alembic",
        "click",
        "rich",
    }
    assert loaded_by("import flowstone_celery") & heavy == set()


def test_attaching_to_an_app_and_declaring_opens_no_database_room() -> None:
    code = (
        "from celery import Celery\n"
        "from flowstone_celery import FlowStone\n"
        "fs = FlowStone(Celery('x'))\n"
        "fs.asset(name='orders')(lambda: 1)\n"
    )
    assert loaded_by(code) & {"sqlalchemy", "psycopg", "pydantic", "pydantic_settings", "alembic"} == set()


@pytest.mark.parametrize("name", flowstone_celery.__all__)
def test_every_door_of_the_root_opens(name: str) -> None:
    assert getattr(flowstone_celery, name) is not None
    assert name in dir(flowstone_celery)


def test_the_root_has_no_other_doors() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Assett'"):
        _ = flowstone_celery.Assett  # type: ignore[attr-defined] # the mistake under test


def test_modules_are_short() -> None:
    lengths = {name_of(path): len(path.read_text().splitlines()) for path in MODULES}
    assert {name: count for name, count in lengths.items() if count > LONGEST and name not in PAGES} == {}


def test_the_init_of_every_room_holds_its_story_and_nothing_else() -> None:
    rooms = [path for path in MODULES if path.name == "__init__.py" and path.parent != PACKAGE]
    assert len(rooms) > 5
    wrong = [
        name_of(path)
        for path in rooms
        if len(body := ast.parse(path.read_text()).body) != 1
        or ast.get_docstring(ast.Module(body, [])) is None
    ]
    assert wrong == []


def test_every_module_postpones_its_annotations() -> None:
    line = "from __future__ import annotations"
    rooms = [path for path in MODULES if path.name != "__init__.py"]
    assert [name_of(path) for path in rooms if line not in path.read_text()] == []


def test_everything_public_says_what_it_is() -> None:
    silent = [found for path in MODULES for found in _silent(path)]
    assert silent == []


def _silent(path: Path) -> list[str]:
    """Public modules, classes, functions and methods without a docstring; overloads and methods of private classes aside."""
    tree = ast.parse(path.read_text())
    found = [] if ast.get_docstring(tree) else [name_of(path)]
    for node in tree.body:
        if not isinstance(
            node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
        ) or node.name.startswith("_"):
            continue
        members = node.body if isinstance(node, ast.ClassDef) else []
        for each in (node, *members):
            if not isinstance(
                each, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
            ) or each.name.startswith("_"):
                continue
            overload = any("overload" in ast.unparse(decorator) for decorator in each.decorator_list)
            if not overload and not ast.get_docstring(each):
                found.append(f"{name_of(path)}:{each.lineno} {each.name}")
    return found


def test_every_event_that_is_advertised_happens_somewhere() -> None:
    written = "".join(path.read_text() for path in MODULES if path.name != "telemetry.py")
    assert [name for name in telemetry.EVENTS if f'"{name}"' not in written] == []


def test_every_module_can_be_imported_first() -> None:
    """No module leans on another having been imported before it: each is imported by a process that has nothing yet."""
    names = [
        ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")
        for path in MODULES
    ]
    core = [
        name for name in names if ".worker" not in name and ".cli" not in name and ".embedded" not in name
    ]
    script = (
        "import importlib, sys\n"
        "for name in sys.argv[1:]:\n"
        "    for loaded in [each for each in sys.modules if each.startswith('flowstone_celery')]: del sys.modules[loaded]\n"
        "    importlib.import_module(name)\n"
    )
    told = subprocess.run([sys.executable, "-c", script, *core], capture_output=True, text=True, check=False)
    assert told.returncode == 0, told.stderr
    assert importlib.import_module(core[-1]) is not None


def test_no_import_runs_in_a_circle() -> None:
    """Neither between modules nor within a room; imports inside functions count, those for types alone do not."""
    graph = build_graph("flowstone_celery", exclude_type_checking_imports=True)
    sorter = TopologicalSorter(
        {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}
    )
    sorter.prepare()
