"""The reference pages that come from the code: settings, events, crash points, errors, states, options. `make docs` runs this."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from flowstone_celery import config, faults, states, telemetry
from flowstone_celery.assets.batch import BATCH_OPTIONS
from flowstone_celery.assets.options import OPTIONS, Option
from flowstone_celery.assets.resource import RESOURCE_OPTIONS
from flowstone_celery.assets.scatter import SCATTER_OPTIONS
from flowstone_celery.errors import reference_table

HERE = Path(__file__).parent


def main() -> None:
    """Every generated page says what the code says."""
    for name, make in PAGES.items():
        (HERE / f"{name}.md").write_text(text_of(make))


def text_of(make: Callable[[], str]) -> str:
    """The page as it is written to its file."""
    return make().rstrip() + "\n"


def settings() -> str:
    rows = [(f"`{v}`", _default(d), a, h) for v, d, a, h in config.describe()]
    intro = (
        "Stronger first: an argument of `load_settings`, the environment, the file `.env` of the working folder, the default.\n"
        "`flowstone config show --source` prints every value with the place it came from."
    )
    return _page("Settings", intro, ("variable", "default", "allowed", "what it is"), rows)


def events() -> str:
    rows = [
        (
            f"`{e.name}`",
            ", ".join(sorted(e.fields)),
            ", ".join(sorted(e.allowed - e.fields)),
            _signal(e),
            e.sentence,
        )
        for e in telemetry.EVENTS.values()
    ]
    intro = "Every event goes to all sinks (`telemetry.add_sink`), and to its signal (`telemetry.signals`) if it has one."
    return _page(
        "Events and signals", intro, ("event", "fields", "may have", "signal (sender)", "says"), rows
    )


def crash_points() -> str:
    intro = "Places at which tests kill, raise, sleep or cut the connection: `FLOWSTONE_FAULT=point:nth:action[:once-file]`."
    rows = [(f"`{name}`", sentence) for name, sentence in faults.POINTS.items()]
    return _page("Crash points", intro, ("point", "where it is, and what must follow"), rows)


def errors() -> str:
    """The page's own words, and the table anew."""
    words, _, _ = (HERE / "errors.md").read_text().partition("| code |")
    return words + reference_table()


def state_page() -> str:
    """Every status and every arrow, as drawings and as tables."""
    intro = (
        "What can be true, and how it becomes true. `flowstone_celery/states.py` holds all of it as data; every arrow is one guarded\n"
        "statement, and no row back means that it did not happen."
    )
    users = (
        "What users see of the step that makes an asset (`fs.status(…).state`). Derived, never stored; a slice that nobody ever asked\n"
        "for is `missing`."
    )
    table = _table(("step", "materialization"), _materializations())
    machines = map(_machine, states.MACHINES.values())
    parts = ["# States", intro, *machines, "## Materialization", users, table]
    return "\n\n".join(parts)


def _machine(machine: states.Machine) -> str:
    order = {name: place for place, name in enumerate(("", *machine.statuses))}
    arrows = sorted(machine.arrows, key=lambda arrow: (order[arrow[0]], order[arrow[1]]))
    reached = [name for name in machine.statuses if any(name in arrow for arrow in arrows)]
    later = [f"`{name}`" for name in machine.statuses if name not in reached]
    ends = [(name, "[*]") for name in reached if name in machine.terminal]
    lines = [f"    {source or '[*]'} --> {target}" for source, target in (*arrows, *ends)]
    note = f"\n\nNamed, and not reached yet: {', '.join(later)}." if later else ""
    drawing = "\n".join(["```mermaid", "stateDiagram-v2", *lines, "```"])
    return f"## {machine.noun.capitalize()}\n\n{drawing}{note}"


def _materializations() -> list[tuple[str, ...]]:
    return [(f"`{status}`", f"`{states.materialization(status)}`") for status in states.StepStatus]


def assets() -> str:
    """The page's own words, and the tables of options anew."""
    text = (HERE / "assets.md").read_text()
    tables = {
        "options": OPTIONS,
        "resource options": RESOURCE_OPTIONS,
        "scatter options": SCATTER_OPTIONS,
        "batch options": BATCH_OPTIONS,
    }
    for mark, options in tables.items():
        text = _with_options(text, mark, options)
    return text


def _with_options(text: str, mark: str, options: Mapping[str, Option]) -> str:
    before, begin, rest = text.partition(f"<!-- {mark} -->\n")
    _, end, after = rest.partition(f"<!-- /{mark} -->")
    rows = [(f"`{name}`", option.is_, f"`{option.example}`") for name, option in options.items()]
    return f"{before}{begin}{_table(('option', 'what it is', 'for example'), rows)}\n{end}{after}"


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    return "\n".join([_row(head), _row(("---",) * len(head)), *map(_row, rows)])


def _default(value: object) -> str:
    return "unset" if value in (None, ()) else f"`{value}`"


def _signal(event: telemetry.EventType) -> str:
    return f"`{event.signal.name}` ({event.sender})" if event.signal else ""


def _page(title: str, intro: str, head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    return "\n".join([f"# {title}", "", intro, "", _table(head, rows)])


def _row(cells: tuple[str, ...]) -> str:
    return f"| {' | '.join(cells)} |"


PAGES: dict[str, Callable[[], str]] = {
    "settings": settings,
    "events": events,
    "crash-points": crash_points,
    "errors": errors,
    "states": state_page,
    "assets": assets,
}


if __name__ == "__main__":
    main()
