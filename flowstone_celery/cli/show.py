"""How verbs write: JSON by the line, tables and facts for people, statuses by shape and color, times that are read at a glance."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import click

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

_WIDE: Final = 4_000
"""Columns of a pipe: nothing is cut off there."""

_SHAPES: Final[dict[str, tuple[str, str, str]]] = {
    "pending": ("○", "o", "yellow"),
    "blocked": ("◌", ".", "dim"),
    "ready": ("○", "o", "yellow"),
    "running": ("●", "*", "bright_blue"),
    "active": ("●", "*", "bright_blue"),
    "paused": ("‖", "=", "yellow"),
    "completed": ("✔", "+", "green"),
    "waiting": ("◇", "w", "magenta"),
    "open": ("●", "*", "bright_blue"),
    "partial_failure": ("◐", "~", "yellow"),
    "retry": ("○", "o", "yellow"),
    "promoted": ("◇", "w", "magenta"),
    "succeeded": ("✔", "+", "green"),
    "success": ("✔", "+", "green"),
    "partial": ("◐", "~", "yellow"),
    "failed": ("✘", "x", "red"),
    "skipped": ("⊘", "-", "dim"),
    "cancelling": ("▣", "#", "red"),
    "cancelled": ("■", "#", "red"),
    "missing": ("·", ".", "dim"),
    "fresh": ("✔", "+", "green"),
    "stale": ("◔", "~", "yellow"),
    "ok": ("✔", "+", "green"),
    "warn": ("!", "!", "yellow"),
    "broken": ("✘", "x", "red"),
    "away": ("✘", "x", "red"),
}
"""By status: its shape, the shape where the terminal knows ASCII only, its color."""


def console(*, err: bool = False) -> Console:
    """A console on stdout or stderr that takes users' text as it is, and on a pipe is wide enough for it."""
    from rich.console import Console

    file = sys.stderr if err else sys.stdout
    width = None if file.isatty() else _WIDE
    return Console(
        file=file, width=width, markup=False, emoji=False, highlight=False, no_color=_no_color() or None
    )


def _no_color() -> bool:
    """Whether `celery -C` was given; NO_COLOR is heard by the console itself."""
    ctx = click.get_current_context(silent=True)
    return bool(ctx and getattr(ctx.obj, "no_color", False))


def mark(status: str, word: str | None = None) -> Text:
    """The status as shape and word in its color."""
    from rich.text import Text

    shape, plain, color = _SHAPES.get(status, ("?", "?", ""))
    text = status if word is None else word
    return Text(f"{shape if has_shapes() else plain} {text}", style=color)


def shape(status: str) -> Text:
    """The status as its shape alone, in its color."""
    from rich.text import Text

    pretty, plain, color = _SHAPES.get(status, ("?", "?", ""))
    return Text(pretty if has_shapes() else plain, style=color)


def has_shapes() -> bool:
    """Whether whoever reads knows more than ASCII."""
    file = getattr(
        sys.stdout, "rich_proxied_file", sys.stdout
    )  # a live picture stands before the real stdout
    return (getattr(file, "encoding", None) or "ascii").lower().replace("-", "") == "utf8"


def put_json(found: object) -> None:
    """One object on one line. Moments are UTC; what JSON lacks is text."""
    import orjson

    click.echo(orjson.dumps(found, default=str, option=orjson.OPT_UTC_Z | orjson.OPT_NON_STR_KEYS))


def put_rows(rows: Iterable[Mapping[str, Any]]) -> None:
    """One object a line."""
    for row in rows:
        put_json(row)


def put_table(heads: Sequence[str], rows: Sequence[Sequence[object]], *, empty: str) -> None:
    """The rows below their heads, or a sentence if there are none."""
    from rich.table import Table

    if not rows:
        click.echo(empty)
        return
    table = Table(*heads, box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for row in rows:
        table.add_row(*(_cell(each) for each in row))
    _put(table)


def put_facts(facts: Mapping[str, object]) -> None:
    """Name and value, one a line; what is None or empty is left out."""
    from rich.table import Table

    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    for name, value in facts.items():
        if value is not None and value not in ("", (), []):
            table.add_row(_cell(name), _cell(value))
    _put(table)


def _put(table: Table) -> None:
    """The table stands on stdout; on a pipe without the blanks that fill its last column."""
    output = console()
    if output.is_terminal:
        output.print(table)
        return
    with output.capture() as page:
        output.print(table)
    for line in page.get().splitlines():
        click.echo(line.rstrip())


def _cell(value: object) -> Text:
    from rich.text import Text

    if isinstance(value, Text):
        return value
    return Text(
        ", ".join(map(str, value)) if isinstance(value, tuple | list) else "" if value is None else str(value)
    )


def when(moment: datetime | None) -> str:
    """A moment in UTC to the second, or nothing."""
    return moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%SZ") if moment else ""


def lasted(seconds: float | None) -> str:
    """A length of time: 35 ms, 4.2 s, 3 m 05 s, 2 h 11 m, 30 d."""
    if seconds is None:
        return ""
    if seconds < 1:
        return f"{max(0.0, seconds) * 1000:.0f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(int(seconds), 60)
    if minutes < 60:
        return f"{minutes} m {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} m" if minutes < 48 * 60 else f"{minutes // 1440} d"


def between(start: datetime | None, end: datetime | None) -> float | None:
    """Seconds from the start to the end, or until now; None before the start."""
    return None if start is None else ((end or datetime.now(UTC)) - start).total_seconds()


def sized(size: int) -> str:
    """A number of bytes with its unit."""
    amount, units = float(size), ("B", "KiB", "MiB", "GiB", "TiB")
    for unit in units:
        if amount < 1024 or unit == units[-1]:
            break
        amount /= 1024
    return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"


def slice_of(name: str, partition: str) -> str:
    """An asset's name with its partition in brackets."""
    return f"{name} [{partition}]" if partition else name


def run_facts(row: Mapping[str, Any]) -> dict[str, Any]:
    """A run's row as JSON users see it."""
    names = (
        "id", "kind", "name", "partition", "status", "priority", "requested_by", "idempotency_key", "correlation_id",
        "total_steps", "remaining_steps", "failed_steps", "cancelled_steps",
        "created_at", "started_at", "cancelled_at", "finished_at", "error",
    )  # fmt: skip
    return {name: row[name] for name in names}


def step_facts(row: Mapping[str, Any]) -> dict[str, Any]:
    """A step's row as JSON users see it."""
    names = (
        "id", "ordinal", "name", "partition", "status", "queue", "priority", "attempt", "max_failures", "failures", "crashes",
        "losses", "fence", "node_name", "pid", "created_at", "due_at", "started_at", "finished_at", "error", "parents",
    )  # fmt: skip
    return {name: row[name] for name in names}
