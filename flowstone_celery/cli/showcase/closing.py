"""What the demo says at its end: what was found in the sources, how the accident went, what to try next."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from flowstone_celery.cli.show import lasted, mark

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rich.console import Console

    from flowstone_celery.cli.showcase.accident import Accident

_ROWS: Final = 6

Row = dict[str, Any]


def tables(console: Console, value: Mapping[str, Any], accident: Accident) -> None:
    """The report of the demo stands on the terminal."""
    totals = value["totals"]
    console.print()
    console.print(
        f"The standard library of Python {value['python']}: {totals['files']:,} files, {totals['lines']:,} lines, "
        f"{totals['functions']:,} functions, {totals['classes']:,} classes; {len(value['unreadable'])} files do not parse.",
        soft_wrap=True,
    )
    _table(
        console,
        ("package", "files", "lines", "functions", "documented"),
        map(_package, value["packages"][:_ROWS]),
    )
    _table(console, ("largest file", "lines", "functions"), map(_file, value["largest"][:_ROWS]))
    _table(console, ("most paths through one function", "paths"), map(_function, value["hardest"][:_ROWS]))
    _story(console, accident)


def share_documented(package: Mapping[str, Any]) -> float:
    """The share of modules, classes and functions with a docstring, 0 to 1."""
    things = package["files"] - package["unreadable"] + package["functions"] + package["classes"]
    return float(package["documented"]) / things if things else 0.0


def to_try(flowstone: str, app: str) -> list[tuple[str, str]]:
    """Three commands, as they can be typed, and what each does."""
    return [
        (f"{flowstone} up", "start the servers of this folder again; the data stayed"),
        (f"{flowstone} -A {app} asset ls", "the assets, and what is made of them"),
        (f"{flowstone} scatter ls", "the scatters; `scatter show ID` and `scatter items ID` tell the rest"),
    ]


def _package(row: Row) -> tuple[str, ...]:
    share = f"{share_documented(row):.0%}"
    return (row["package"], f"{row['files']:,}", f"{row['lines']:,}", f"{row['functions']:,}", share)


def _file(row: Row) -> tuple[str, ...]:
    return (row["path"], f"{row['lines']:,}", f"{row['functions']:,}")


def _function(row: Row) -> tuple[str, ...]:
    return (f"{row['path']}:{row['line']} {row['function']}", f"{row['paths']:,}")


def _table(console: Console, heads: tuple[str, ...], rows: Any) -> None:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for number, head in enumerate(heads):
        table.add_column(head, justify="right" if number else "left")
    for row in rows:
        table.add_row(*row)
    console.print()
    console.print(table)


def _story(console: Console, accident: Accident) -> None:
    lost = ", ".join(f"{loss.name} (on {loss.taken_by})" for loss in accident.losses.values())
    told = f"Recovered in {lasted(accident.recovery_seconds)}, from kill -9 of {accident.victim} to its last lost hand at work again"
    console.print()
    console.print(mark("ok", f"{told}: {lost}"), soft_wrap=True)
