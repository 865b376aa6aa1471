"""The demo's report as one HTML page that needs nothing else: no script, no style sheet, no picture."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Any, Final

from flowstone_celery.cli.show import lasted
from flowstone_celery.cli.showcase.charts import Bar, Span, bars, timeline
from flowstone_celery.cli.showcase.closing import share_documented

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from datetime import datetime

    from flowstone_celery.cli.showcase.accident import Accident

_SHOWN: Final = 12
_STYLE: Final = """
:root { color-scheme: light dark; --ink: #1b1f24; --paper: #fff; --soft: #6b7280; --bar: #3b7dd8; --good: #2f9e5b; --bad: #d64545; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e8eb; --paper: #14171a; --soft: #9aa3ad; --bar: #6aa5f0; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 46rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.1rem; margin-top: 2rem; } p.soft { color: var(--soft); }
svg { width: 100%; height: auto; } svg text { font: 12px system-ui, sans-serif; fill: var(--ink); }
.bar { fill: var(--bar); } .succeeded { fill: var(--good); } .lost { fill: var(--bad); } .mark { stroke: var(--bad); stroke-width: 2; }
table { border-collapse: collapse; width: 100%; } th, td { text-align: left; padding: .2rem .6rem .2rem 0; border-bottom: 1px solid #8883; }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; } code { overflow-wrap: anywhere; }
"""

Row = dict[str, Any]


def page(value: Mapping[str, Any], run: Row, events: Sequence[Row], accident: Accident) -> str:
    """The whole page."""
    title = f"The standard library of Python {value['python']}"
    body = "\n".join(_sections(value, run, events, accident))
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style></head>\n'
        f"<body><h1>{escape(title)}</h1>\n{body}\n</body></html>\n"
    )


def _sections(value: Mapping[str, Any], run: Row, events: Sequence[Row], accident: Accident) -> Iterable[str]:
    totals, packages = value["totals"], value["packages"][:_SHOWN]
    yield _paragraph(
        f"{totals['files']:,} files, {totals['lines']:,} lines, {totals['functions']:,} functions, {totals['classes']:,} classes. "
        f"Made by run {run['id']} in {lasted((run['finished_at'] - run['started_at']).total_seconds())}."
    )
    yield from _story(run, events, accident)
    yield "<h2>Lines by package</h2>"
    yield bars("Lines by package", [Bar(p["package"], p["lines"], f"{p['lines']:,}") for p in packages])
    yield "<h2>With a docstring</h2>" + _paragraph("Share of modules, classes and functions.")
    shares = [(p["package"], share_documented(p)) for p in packages]
    yield bars(
        "Share with a docstring", [Bar(name, share, f"{share:.0%}") for name, share in shares], full=1.0
    )
    yield "<h2>Imported by most files</h2>"
    imported = value["imported"][:_SHOWN]
    yield bars("Imported by most files", [Bar(i["module"], i["files"], f"{i['files']:,}") for i in imported])
    yield "<h2>Most paths through one function</h2>"
    hardest = [(f"{h['path']}:{h['line']}", h["function"], h["paths"]) for h in value["hardest"][:_SHOWN]]
    yield _table(("where", "function", "paths"), hardest)
    yield "<h2>Files that do not parse</h2>" + _paragraph(
        "Kept as they are: most are there to be wrong, for tests."
    )
    yield _table(("file", "error"), [(u["path"], u["error"]) for u in value["unreadable"]])


def _story(run: Row, events: Sequence[Row], accident: Accident) -> Iterable[str]:
    began: datetime = run["started_at"]
    assert accident.at is not None
    killed = (accident.at - began).total_seconds()
    lost = ", ".join(loss.name for loss in accident.losses.values())
    yield "<h2>How the run went</h2>"
    yield _paragraph(
        f"After {killed:.1f} s {accident.victim} was killed with -9 while it held {lost}. "
        f"{lasted(accident.recovery_seconds)} later the last of what it held was running on the other worker. Red: the lost attempts."
    )
    spans = sorted(_spans(began, events, accident), key=lambda span: (span.lane, span.begin))
    yield timeline("Attempts by process", spans, mark=(killed, "kill -9"))


def _spans(began: datetime, events: Sequence[Row], accident: Accident) -> Iterable[Span]:
    """Each attempt of a step: from its claim to whatever ended it."""
    open_: dict[tuple[int, int], Row] = {}
    for event in events:
        key = (event["step_id"], event["fence"])
        if event["event"] == "step.running":
            open_[key] = event
        elif key in open_ and (claim := open_.pop(key)):
            worker, pid = accident.places.get(claim["worker_id"], ("worker", claim["worker_id"]))
            loss = accident.losses.get(event["step_id"])
            released = loss is not None and event["event"] == "step.released" and event["fence"] == loss.fence
            end = accident.at if released and accident.at else event["at"]
            first, last = ((moment - began).total_seconds() for moment in (claim["at"], end))
            look = "lost" if released else "succeeded"
            yield Span(f"{worker}, pid {pid}", claim["step"], first, last, look)


def _paragraph(text: str) -> str:
    return f'<p class="soft">{escape(text)}</p>'


def _table(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    top = "".join(f"<th>{escape(head)}</th>" for head in heads)
    body = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in rows)
    return f"<table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>"


def _cell(value: object) -> str:
    return f'<td class="n">{value:,}</td>' if isinstance(value, int) else f"<td>{escape(str(value))}</td>"
