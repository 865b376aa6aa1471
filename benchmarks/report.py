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
    """The figures of every round, by side. A peer that was asked for and is not installed has no rounds."""

    name: str
    rounds: Mapping[str, Sequence[Figures]]
    compared: str | None = None
    """The figure that ratios compare; None where there is nothing to compare."""
    machine: Mapping[str, str] = field(default_factory=dict)
    load: float = 0.0
    more_is_better: bool = False
    """Of the figure that is compared; else less is."""
    notes: Sequence[str] = ()
    """What whoever reads the figures has to know of these rounds."""

    @property
    def figures(self) -> dict[str, Figures]:
        """The medians, by side."""
        return {side: medians(each) for side, each in self.rounds.items() if each}

    @property
    def ratios(self) -> dict[str, float | None]:
        """How many times better ours is than each peer, the first named first; None for one that is not installed."""
        key, found = self.compared, self.figures
        if key is None:
            return {}
        power = -1 if self.more_is_better else 1
        return {
            side: round((found[side][key] / found[OURS][key]) ** power, 3) if side in found else None
            for side in self.rounds
            if side != OURS
        }

    def to_dict(self) -> dict[str, Any]:
        """The contract: name, ratio, ratios, ours, peers, spread, machine, notes."""
        return {
            "name": self.name,
            "ratio": next(iter(self.ratios.values()), None),
            "ratios": self.ratios,
            "ours": self.figures[OURS],
            "peers": {side: figures for side, figures in self.figures.items() if side != OURS},
            "spread": {side: spread(each) for side, each in self.rounds.items() if each},
            "machine": {
                "cpus": os.cpu_count(),
                "python": platform.python_version(),
                **self.machine,
                "load": round(self.load, 2),
            },
            "notes": list(self.notes),
        }


def print_json(result: Result) -> None:
    """One line on standard output."""
    print(json.dumps(result.to_dict()))


def print_table(result: Result) -> None:
    """A row for each figure, a column for each side, and the ratio below."""
    said = result.to_dict()
    table = Table(title=f"{result.name}, medians of {len(result.rounds[OURS])} rounds (least to greatest)")
    table.add_column("figure")
    for side in result.figures:
        table.add_column(side, justify="right")
    for figure in dict.fromkeys(name for each in result.figures.values() for name in each):
        table.add_row(figure, *(_cell(said, side, figure) for side in result.figures))
    console = Console()
    console.print(table)
    for peer, ratio in result.ratios.items():
        told = "unknown" if ratio is None else f"{ratio:.2f} (above 1 is better than the peer)"
        console.print(f"ratio to {peer}: {told}")
    for note in said["notes"]:
        console.print(note)
    console.print(", ".join(f"{name} {value}" for name, value in said["machine"].items()), style="dim")


def _cell(said: Mapping[str, Any], side: str, figure: str) -> str:
    figures = said["ours"] if side == OURS else said["peers"].get(side, {})
    if figure not in figures:
        return ""
    least, greatest = said["spread"][side][figure]
    return f"{figures[figure]:.2f} ({least:.2f} to {greatest:.2f})"
