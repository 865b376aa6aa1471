"""The grid of partitions: a line for each asset, a cell for each partition or, where they are too many, for a few of them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from flowstone_celery.cli.show import mark, shape

if TYPE_CHECKING:
    from rich.text import Text

_WORST_FIRST = ("failed", "cancelled", "running", "waiting", "pending", "blocked", "ready")
"""What shows in a cell of several partitions, if it is so for one of them."""
_GAP = 2
_SHORTEST_LABELS = 3
_MOMENT = re.compile(r"^(\d{4}-\d\d-\d\d)T(\d\d:\d\d).*")


@dataclass(frozen=True, slots=True)
class Line:
    """One line: what stands before it, and the state of each partition, in order."""

    name: str
    states: Sequence[str]


@dataclass(frozen=True, slots=True)
class Block:
    """Lines with the same partitions, which stand above their columns."""

    title: str
    keys: Sequence[str]
    lines: Sequence[Line]


def cells(block: Block, width: int) -> list[range]:
    """Which partitions share a column, so that all lines fit into so many characters."""
    room = max(8, width - name_width(block) - _GAP)
    each = -(-len(block.keys) // room) or 1
    return [range(first, min(first + each, len(block.keys))) for first in range(0, len(block.keys), each)]


def name_width(block: Block) -> int:
    """How wide the names before the lines are."""
    return max((len(line.name) for line in block.lines), default=0)


def merged(states: Sequence[str]) -> str:
    """The one state that a cell shows: the worst of what is at work or went wrong; some made and some not is partial."""
    found = set(states)
    for state in _WORST_FIRST:
        if state in found:
            return state
    if len(found) == 1:
        return found.pop()
    return "success" if found == {"success", "skipped"} else "partial"


def drawn(block: Block, width: int) -> Iterator[Text]:
    """The block's lines: its title, the first key above each stretch of columns, and a line for each asset."""
    from rich.text import Text

    columns, names = cells(block, width), name_width(block)
    each = len(columns[0]) if columns else 1
    yield Text(block.title, style="bold")
    if not columns:
        yield Text(f"{'':{names + _GAP}}no partition yet", style="dim")
        return
    labels = _labels([block.keys[column[0]] for column in columns], width - names - _GAP)
    yield Text(f"{'':{names + _GAP}}{labels}", style="dim")
    for line in block.lines:
        text = Text(f"{line.name:{names + _GAP}}")
        for column in columns:
            text.append_text(shape(merged([line.states[place] for place in column])))
        yield text
    if each > 1:
        yield Text(f"{'':{names + _GAP}}each column stands for {each} partitions", style="dim")


def _labels(firsts: Sequence[str], room: int) -> str:
    """The keys of some columns, as many as fit, each beginning above its column."""
    shown = [_MOMENT.sub(r"\1 \2", first) for first in firsts]
    step = max(_SHORTEST_LABELS, max(map(len, shown)) + _GAP)
    places = [place for place in range(0, len(shown), step) if not place or place + len(shown[place]) <= room]
    return "".join(f"{shown[place]:{step}}" for place in places).rstrip()


def legend(blocks: Sequence[Block], width: int) -> Text:
    """How many partitions are in which state; the shapes say which is which without colors."""
    from rich.text import Text

    found = Counter(state for block in blocks for line in block.lines for state in line.states)
    words = [mark(state, f"{count:,} {state}") for state, count in found.most_common()]
    if any(len(column) > 1 for block in blocks for column in cells(block, width)[:1]):
        words.append(mark("partial", "made in part"))
    return Text("   ").join(words)


def facts(block: Block, width: int) -> Iterator[dict[str, Any]]:
    """Each line as JSON users see it: its cells, with the first and last key and how many are in which state."""
    columns = cells(block, width)
    for line in block.lines:
        yield {
            "asset": line.name,
            "partitions": block.title,
            "cells": [_cell(block.keys, line.states, column) for column in columns],
        }


def _cell(keys: Sequence[str], states: Sequence[str], column: range) -> Mapping[str, Any]:
    found = [states[place] for place in column]
    return {
        "first": keys[column[0]],
        "last": keys[column[-1]],
        "state": merged(found),
        "states": Counter(found),
    }
