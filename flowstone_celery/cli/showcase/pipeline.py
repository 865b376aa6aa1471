"""The demo's pipeline: the standard library of this Python, listed, each file parsed, summed up by package, reported.

celery -A flowstone_celery.cli.showcase.pipeline worker
"""

from __future__ import annotations

import os
import sys
import sysconfig
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from celery import Celery

from flowstone_celery import FlowStone, Gathered, Scatter
from flowstone_celery.cli.showcase.measure import measure

if TYPE_CHECKING:
    from collections.abc import Iterator

QUEUE = "stdlib"
_ROOT = Path(sysconfig.get_path("stdlib"))
_ELSEWHERE = {"site-packages", "dist-packages", "__pycache__"}
_TOP = 15

app = Celery("stdlib")
# A queue of its own: workers of the same project that do not know these assets get no message about them.
app.conf.task_default_queue = QUEUE
fs = FlowStone(app)

File = dict[str, Any]
"""What `measure` says of one file."""


@fs.asset
def sources() -> list[str]:
    """Every source file of the standard library."""
    return sorted(str(path.relative_to(_ROOT)) for path in _python_files(_ROOT))


def _python_files(root: Path) -> Iterator[Path]:
    for folder, inner, names in os.walk(root):
        inner[:] = set(inner) - _ELSEWHERE
        yield from (Path(folder, name) for name in names if name.endswith(".py"))


@fs.asset(scatter=Scatter(over="sources"))
def files(item: str) -> File:
    """One file, parsed and measured: each is an item of its own."""
    return measure(_ROOT, item)


@files.gather
def _(gathered: Gathered[File]) -> list[File]:
    return list(gathered)


@fs.asset
def metrics_by_package(files: list[File]) -> list[dict[str, Any]]:
    """The files summed up by package, the largest first."""
    groups: dict[str, list[File]] = {}
    for file in files:
        groups.setdefault(_package(file["path"]), []).append(file)
    return sorted((_sum(name, group) for name, group in groups.items()), key=lambda each: -each["lines"])


@fs.asset
def report(files: list[File], metrics_by_package: list[dict[str, Any]]) -> dict[str, Any]:
    """What the demo shows at its end."""
    readable = [file for file in files if "error" not in file]
    imports = Counter(name for file in readable for name in file["imports"])
    return {
        "python": ".".join(map(str, sys.version_info[:3])),
        "totals": {key: sum(each[key] for each in metrics_by_package) for key in ("files", *_SUMMED)},
        "packages": metrics_by_package,
        "largest": _top(readable, "path", "lines", "functions", "classes", by="lines"),
        "hardest": [
            {
                "path": file["path"],
                "paths": file["hardest"][0],
                "function": file["hardest"][1],
                "line": file["hardest"][2],
            }
            for file in sorted(readable, key=lambda file: -file["hardest"][0])[:_TOP]
        ],
        "deepest": _top(readable, "path", "depth", by="depth"),
        "imported": [{"module": name, "files": count} for name, count in imports.most_common(_TOP)],
        "unreadable": [file for file in files if "error" in file],
    }


_SUMMED = ("lines", "functions", "classes", "documented", "branches")


def _package(path: str) -> str:
    first, slash, _ = path.partition("/")
    return first if slash else "(modules)"


def _sum(name: str, group: list[File]) -> dict[str, Any]:
    readable = [file for file in group if "error" not in file]
    sums = {key: sum(file[key] for file in readable) for key in _SUMMED}
    return {"package": name, "files": len(group), "unreadable": len(group) - len(readable), **sums}


def _top(files: list[File], *keys: str, by: str) -> list[dict[str, Any]]:
    return [{key: file[key] for key in keys} for file in sorted(files, key=lambda file: -file[by])[:_TOP]]
