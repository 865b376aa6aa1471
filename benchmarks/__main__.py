"""`python -m benchmarks NAME [options] --json`: the names, and what each runs."""

from __future__ import annotations

import os
import signal
import sys
from argparse import ArgumentParser
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks import barrier, chain, dag, idle, imports, latency, plan, scatter, side_by_side, timers
from benchmarks.errors import BenchmarkError
from benchmarks.report import print_json, print_table
from benchmarks.sides import PEERS_PYTHON

if TYPE_CHECKING:
    from types import ModuleType

BENCHMARKS = {
    "chain": chain,
    "latency": latency,
    "import": imports,
    "timers": timers,
    "plan": plan,
    "idle": idle,
    "async": side_by_side,
    "scatter": scatter,
    "barrier": barrier,
    "dag": dag,
}
"""Each module has `arguments(parser)` and `measure(options) -> Result`; its docstring is its help."""


def main(words: list[str] | None = None) -> int:
    """Run the benchmark that is named; answers the exit code."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what was started is stopped
    options = _parser().parse_args(words)
    load = os.getloadavg()[0]
    try:
        result = replace(BENCHMARKS[options.name].measure(options), load=load)
    except BenchmarkError as error:
        print(f"{options.name}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    (print_json if options.json else print_table)(result)
    return 0


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="python -m benchmarks", description="Speed beside a peer's, on this machine."
    )
    names = parser.add_subparsers(dest="name", required=True, metavar="NAME")
    for name, module in BENCHMARKS.items():
        _add_common(own := names.add_parser(name, help=_first_line(module), description=module.__doc__))
        module.arguments(own)
    return parser


def _add_common(parser: ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="one JSON line in place of the table")
    parser.add_argument("--rounds", type=_count, default=5, help="rounds that are measured (default: 5)")
    parser.add_argument(
        "--events", action="store_true", help="start the workers of both sides with -E, as Flower wants it"
    )
    parser.add_argument(
        "--peer-python",
        type=Path,
        default=PEERS_PYTHON,
        help="the interpreter that has the peers (default: that of `make bench-venv`)",
    )


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError(text)
    return number


def _first_line(module: ModuleType) -> str:
    return (module.__doc__ or "").partition("\n")[0]


if __name__ == "__main__":
    sys.exit(main())
