"""Turns, and what is made of their times: medians of the rounds, with the spread beside them."""

from __future__ import annotations

import math
import statistics
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

Figures: TypeAlias = "dict[str, float]"
Turn: TypeAlias = "Callable[[], Figures]"

_DIGITS = 3


def interleaved(rounds: int, turns: Mapping[str, Turn]) -> dict[str, list[Figures]]:
    """The figures of every round for every side; the sides take turns (A B A B …), so that a busy moment meets both."""
    found: dict[str, list[Figures]] = {side: [] for side in turns}
    for _ in range(rounds):
        for side, turn in turns.items():
            found[side].append(turn())
    return found


def medians(rounds: Sequence[Figures]) -> Figures:
    """The median of each figure over the rounds."""
    return {name: round(statistics.median(each[name] for each in rounds), _DIGITS) for name in rounds[0]}


def spread(rounds: Sequence[Figures]) -> dict[str, list[float]]:
    """The least and the greatest of each figure over the rounds."""
    return {
        name: [round(pick(each[name] for each in rounds), _DIGITS) for pick in (min, max)]
        for name in rounds[0]
    }


def known_peers(text: str) -> tuple[str, ...]:
    """Names of peers with commas between them; `none` names no one.

    Raises:
        ValueError: there is no such peer.
    """
    names = tuple(name.strip() for name in text.split(",") if name.strip() and name.strip() != "none")
    unknown = set(names) - {"celery", "dbos"}
    if unknown:
        raise ValueError(f"no such peer: {', '.join(sorted(unknown))}")
    return names


def percentiles(seconds: Sequence[float]) -> Figures:
    """The median and the 99th percentile (nearest rank) in milliseconds."""
    return {"p50_ms": _rank(seconds, 0.50) * 1000, "p99_ms": _rank(seconds, 0.99) * 1000}


def _rank(values: Sequence[float], share: float) -> float:
    return sorted(values)[math.ceil(share * len(values)) - 1]
