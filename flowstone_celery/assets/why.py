"""Why a slice is not fresh, told for people: its reasons, and below each stale input the reasons of that one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any, NamedTuple

from flowstone_celery.assets.reasons import InputMissing, InputStale, Standing, shown
from flowstone_celery.assets.slices import Slice

_DEEPEST = 30


class Told(NamedTuple):
    """One line of the story."""

    depth: int
    text: str
    standing: Standing | None
    """The slice that a new branch begins with; None for a reason."""


def story(standing: Standing) -> Iterator[Told]:
    """The slice, its reasons, and behind them those of its inputs; each slice is told once, and no deeper than anybody reads."""
    seen = {standing.slice}
    ahead = [(0, standing)]
    while ahead:
        depth, here = ahead.pop()
        yield Told(depth, f"{shown(here.slice)} is {here.state}", here)
        below = []
        for reason in here.reasons:
            new = isinstance(reason, InputStale | InputMissing) and reason.input not in seen
            if new and depth < _DEEPEST and isinstance(reason, InputStale | InputMissing):
                seen.add(reason.input)
                below.append((depth + 1, reason.cause))
            else:
                yield Told(depth + 1, reason.sentence, None)
        ahead.extend(reversed(below))


def as_text(standing: Standing) -> str:
    """The story as indented lines."""
    return "\n".join(f"{'  ' * each.depth}{each.text}" for each in story(standing))


def as_facts(standing: Standing) -> dict[str, Any]:
    """The slice with its reasons, and flat beside it the stale and missing slices behind it, nearest first."""
    behind: dict[Any, Standing] = {standing.slice: standing}
    ahead = [standing]
    for here in ahead:
        for reason in here.reasons:
            if isinstance(reason, InputStale | InputMissing) and reason.input not in behind:
                behind[reason.input] = reason.cause
                ahead.append(reason.cause)
    return {**_facts(standing), "behind": [_facts(each) for each in ahead[1:]]}


def _facts(standing: Standing) -> dict[str, Any]:
    return {
        "asset": standing.asset,
        "partition": standing.partition,
        "state": standing.state.value,
        "version": standing.version,
        "made_at": standing.made_at,
        "run_id": standing.run_id,
        "reasons": [_of_reason(each) for each in standing.reasons],
    }


def _of_reason(reason: Any) -> dict[str, Any]:
    if isinstance(reason, InputStale):
        path = [each._asdict() for each in reason.path]
        facts: dict[str, Any] = {"input": reason.input, "path": path, "root": reason.root.kind}
    elif isinstance(reason, InputMissing):
        facts = {"input": reason.input}
    else:
        facts = asdict(reason)
    plain = {name: each._asdict() if isinstance(each, Slice) else each for name, each in facts.items()}
    return {"kind": reason.kind, "sentence": reason.sentence, **plain}
