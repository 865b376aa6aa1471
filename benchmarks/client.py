"""A side's client: does what it is asked, one JSON line in for one JSON line out, until its input ends.

Runs under either interpreter (`python -m benchmarks.client MODULE`), so it needs nothing but the standard library. The module offers its
deeds by name in `DEEDS`; they stay warm between requests, as a web process that starts work would.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable


def main(module: str) -> None:
    """Answer requests until standard input ends. Whatever a library prints goes to standard error."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    deeds: dict[str, Callable[..., Any]] = import_module(module).DEEDS
    for line in sys.stdin:
        print(json.dumps(_answer(deeds, json.loads(line))), file=answers, flush=True)


def _answer(deeds: dict[str, Callable[..., Any]], request: dict[str, Any]) -> dict[str, Any]:
    try:
        return {"answer": deeds[request["deed"]](**request["options"])}
    except Exception:  # noqa: BLE001 - whatever went wrong is the harness's to tell
        return {"error": traceback.format_exc()}


if __name__ == "__main__":
    main(sys.argv[1])
