"""What `import flowstone_celery` and `FlowStone(app)` cost beyond Celery's own import, each round in a fresh interpreter.

Celery's figure stands beside ours; no ratio is made of them, for ours comes on top.
"""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import version
from typing import TYPE_CHECKING

from benchmarks.errors import BenchmarkError
from benchmarks.report import OURS, Result
from benchmarks.workers import ROOT

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

    from benchmarks.rounds import Figures

_PROBE = """
import json, time
begun = time.perf_counter()
import celery
app = celery.Celery("probe")
celerys = time.perf_counter()
import flowstone_celery
imported = time.perf_counter()
flowstone_celery.FlowStone(app)
attached = time.perf_counter()
print(json.dumps({
    "celery": {"import_ms": (celerys - begun) * 1000},
    "ours": {"extra_ms": (imported - celerys) * 1000, "attach_ms": (attached - imported) * 1000},
}))
"""


def arguments(parser: ArgumentParser) -> None:
    """Interpreters are cheap: more of them than other benchmarks have rounds."""
    parser.set_defaults(rounds=15)


def measure(options: Namespace) -> Result:
    """Medians of fresh interpreters; the first only writes the bytecode."""
    found = [_probe() for _ in range(options.rounds + 1)][1:]
    return Result(
        "import", {side: [each[side] for each in found] for side in (OURS, "celery")}, machine=_celery()
    )


def _probe() -> dict[str, Figures]:
    said = subprocess.run(
        [sys.executable, "-c", _PROBE], cwd=ROOT, capture_output=True, check=False, text=True
    )
    if said.returncode:
        raise BenchmarkError(f"the import failed:\n{said.stderr}")
    figures: dict[str, Figures] = json.loads(said.stdout)
    return figures


def _celery() -> dict[str, str]:
    return {"celery": version("celery")}
