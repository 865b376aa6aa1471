"""The reference pages that come from the code: settings, events, crash points, errors. `make docs` runs this."""

from __future__ import annotations

from pathlib import Path

from flowstone_celery import config, faults, telemetry
from flowstone_celery.errors import reference_table

HERE = Path(__file__).parent


def main() -> None:
    """Every generated page says what the code says."""
    pages = {"settings": settings(), "events": events(), "crash-points": crash_points(), "errors": errors()}
    for name, text in pages.items():
        (HERE / f"{name}.md").write_text(text.rstrip() + "\n")


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


def _default(value: object) -> str:
    return "unset" if value in (None, ()) else f"`{value}`"


def _signal(event: telemetry.EventType) -> str:
    return f"`{event.signal.name}` ({event.sender})" if event.signal else ""


def _page(title: str, intro: str, head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [f"# {title}", "", intro, "", _row(head), _row(("---",) * len(head)), *map(_row, rows)]
    return "\n".join(lines)


def _row(cells: tuple[str, ...]) -> str:
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
