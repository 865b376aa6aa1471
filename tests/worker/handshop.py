"""The shop's chores: scatters whose items say what they do."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flowstone_celery import Context, FlowStone, Scatter

ENDURED: dict[str, Any] = {
    "failure_threshold": 0.5,
    "max_attempts": 2,
    "retry_delay": 0.05,
    "jitter": 0,
    "timeout": 1.5,
}


def declare_chores(fs: FlowStone, note: Callable[[str, object], None], scratch: Path) -> None:
    """The shop has these assets; the run's metadata tells their items."""

    def do(item: str, ctx: Context) -> int:
        what, _, number = item.partition("-")
        note(f"chore-{item}", os.getpid())
        if what == "sleep":
            time.sleep(60)
        if what == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if what == "fail":
            raise ValueError(item)
        while what == "wait" and not (scratch / "go-chores").exists():
            time.sleep(0.02)
        return int(number)

    def items(ctx: Context) -> list[str]:
        found: list[str] = list(ctx.metadata["items"])
        return found

    kinds = {
        "chores": Scatter(**ENDURED),
        "shown_chores": Scatter(dispatch="item"),
        "strict_chores": Scatter(dispatch="item", max_attempts=1),
    }
    for name, scatter in kinds.items():
        fs.asset(name=name, scatter=scatter)(do).keys(items)
