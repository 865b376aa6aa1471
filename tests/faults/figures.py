"""Figures of the goals of reliability: what each test measured, beside its bar, in one table at the end of the run."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    import pytest
    from _pytest.terminal import TerminalReporter

_KEY = "figure of a goal"


@dataclass(frozen=True, slots=True)
class Figure:
    """One figure; less is better, unless at least so much is wanted."""

    goal: str
    what: str
    value: float
    bar: float
    at_least: bool = False

    @property
    def met(self) -> bool:
        return self.value >= self.bar if self.at_least else self.value <= self.bar

    def cells(self) -> tuple[str, ...]:
        sign = "≥" if self.at_least else "≤"
        return (
            self.goal,
            self.what,
            f"{self.value:.4g}",
            f"{sign} {self.bar:g}",
            "met" if self.met else "missed",
        )


Noted: TypeAlias = Callable[..., None]
"""Notes a figure: goal, what it is, value, bar, and `at_least=True` where more is better."""


def noting(item: pytest.Item) -> Noted:
    """What a test notes goes out with its report, also from a process of pytest-xdist."""

    def note(goal: str, what: str, value: float, bar: float, *, at_least: bool = False) -> None:
        found = Figure(goal, what, float(value), float(bar), at_least)
        item.user_properties.append((_KEY, asdict(found)))

    return note


def collected(reports: Iterable[pytest.TestReport]) -> list[Figure]:
    """The figures of these reports, by goal; of the same figure, noted by several tests, the worst."""
    worst: dict[tuple[str, str], Figure] = {}
    for report in reports:
        for name, value in getattr(report, "user_properties", ()):
            if name == _KEY and report.when == "call":
                found = Figure(**value)  # type: ignore[arg-type] # what `noting` has put there
                there = worst.setdefault((found.goal, found.what), found)
                if (found.value < there.value) == found.at_least and found.value != there.value:
                    worst[found.goal, found.what] = found
    return sorted(worst.values(), key=lambda each: (int(each.goal.removeprefix("G")), each.what))


def table(figures: Sequence[Figure]) -> list[str]:
    """As lines of equal columns."""
    rows = [("goal", "figure", "value", "bar", ""), *(each.cells() for each in figures)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]


def print_table(terminal: TerminalReporter) -> None:
    """At the end of a run in which figures were noted."""
    reports = [each for kind in ("passed", "failed") for each in terminal.stats.get(kind, ())]
    if figures := collected(reports):
        terminal.section("goals of reliability")
        for line in table(figures):
            terminal.write_line(line)


def p99(values: Sequence[float]) -> float:
    """The 99th percentile by nearest rank: of fewer than a hundred, the greatest."""
    return sorted(values)[math.ceil(0.99 * len(values)) - 1]
