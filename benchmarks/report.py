"""What a benchmark answers, as one JSON line or a small table."""

from __future__ import annotations

import json
import os
import platform
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from benchmarks.rounds import medians, spread

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from benchmarks.rounds import Figures

OURS = "ours"


@dataclass(frozen=True, slots=True)
class Result:
    """The figures of every round, by side."""

    name: str
    rounds: Mapping[str, Sequence[Figures]]
    compared: str | None = None
    """The figure that ratios compare, of which less is better; None where there is nothing to compare."""
    machine: Mapping[str, str] = field(default_factory=dict)
    load: float = 0.0

    @property
    def figures(self) -> dict[str, Figures]:
        """The medians, by side."""
        return {side: medians(each) for side, each in self.rounds.items()}

    @property
    def ratios(self) -> dict[str, float]:
        """How many times better ours is than each peer, the first named first."""
        key, found = self.compared, self.figures
        if key is None:
            return {}
        return {
            side: round(figures[key] / found[OURS][key], 3) for side, figures in found.items() if side != OURS
        }

    def to_dict(self) -> dict[str, Any]:
        """The contract: name, ratio, ratios, ours, peers, spread, machine."""
        return {
            "name": self.name,
            "ratio": next(iter(self.ratios.values()), None),
            "ratios": self.ratios,
            "ours": self.figures[OURS],
            "peers": {side: figures for side, figures in self.figures.items() if side != OURS},
            "spread": {side: spread(each) for side, each in self.rounds.items()},
            "machine": {
                "cpus": os.cpu_count(),
                "python": platform.python_version(),
                **self.machine,
                "load": round(self.load, 2),
            },
        }


def print_json(result: Result) -> None:
    """One line on standard output."""
    print(json.dumps(result.to_dict()))


def print_table(result: Result) -> None:
    """A row for each figure, a column for each side, and the ratio below."""
    said = result.to_dict()
    table = Table(title=f"{result.name}, medians of {len(result.rounds[OURS])} rounds (least to greatest)")
    table.add_column("figure")
    for side in result.rounds:
        table.add_column(side, justify="right")
    for figure in dict.fromkeys(name for each in result.figures.values() for name in each):
        table.add_row(figure, *(_cell(said, side, figure) for side in result.rounds))
    console = Console()
    console.print(table)
    for peer, ratio in result.ratios.items():
        console.print(f"ratio to {peer}: {ratio:.2f} (above 1 is better than the peer)")
    console.print(", ".join(f"{name} {value}" for name, value in said["machine"].items()), style="dim")


def _cell(said: Mapping[str, Any], side: str, figure: str) -> str:
    figures = said["ours"] if side == OURS else said["peers"][side]
    if figure not in figures:
        return ""
    least, greatest = said["spread"][side][figure]
    return f"{figures[figure]:.2f} ({least:.2f} to {greatest:.2f})"
