"""Charts as SVG text: bars with their names, and a timeline of lanes. No script, no file besides."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_WIDTH: Final = 720
_NAMES: Final = 200
_FIGURES: Final = 80
_LINE: Final = 24


@dataclass(frozen=True, slots=True)
class Bar:
    """One thing with its size, and how the size is written."""

    name: str
    size: float
    figure: str


@dataclass(frozen=True, slots=True)
class Span:
    """Something that lasted, in seconds since the chart's beginning, in a lane, with a word for its look."""

    lane: str
    name: str
    begin: float
    end: float
    look: str


def bars(title: str, found: Sequence[Bar], *, full: float | None = None) -> str:
    """Bars below each other, in the given order; `full` is the size of a whole width, by default the largest."""
    room = _WIDTH - _NAMES - _FIGURES
    scale = room / max(full or max((bar.size for bar in found), default=0), 1e-9)
    lines = (_bar(number * _LINE, bar, bar.size * scale) for number, bar in enumerate(found))
    return _svg(title, len(found) * _LINE, lines)


def timeline(title: str, spans: Sequence[Span], *, mark: tuple[float, str]) -> str:
    """What ran in which lane, and one moment marked through all of them."""
    lanes = list(dict.fromkeys(span.lane for span in spans))
    room = _WIDTH - _NAMES - 10
    scale = room / max((span.end for span in spans), default=1.0)
    height = (len(lanes) + 1) * _LINE
    names = (_text(0, lanes.index(lane) * _LINE, lane) for lane in lanes)
    boxes = (_box(span, lanes.index(span.lane) * _LINE, scale) for span in spans)
    at = _NAMES + mark[0] * scale
    line = f'<line class="mark" x1="{at:.1f}" x2="{at:.1f}" y1="0" y2="{height - _LINE}"/>'
    return _svg(title, height, [*names, *boxes, line, _text(at - 4, height - _LINE, mark[1])])


def _bar(top: float, bar: Bar, width: float) -> str:
    end = _NAMES + width
    box = f'<rect class="bar" x="{_NAMES}" y="{top + 3}" width="{width:.1f}" height="{_LINE - 6}" rx="2"/>'
    return _text(0, top, bar.name) + box + _text(end + 6, top, bar.figure)


def _box(span: Span, top: float, scale: float) -> str:
    left, width = _NAMES + span.begin * scale, max(1.5, (span.end - span.begin) * scale)
    told = escape(f"{span.name}: {span.look}, {span.begin:.2f} to {span.end:.2f} s")
    return (
        f'<rect class="{escape(span.look)}" x="{left:.1f}" y="{top + 3}" width="{width:.1f}" height="{_LINE - 6}" rx="2">'
        f"<title>{told}</title></rect>"
    )


def _text(left: float, top: float, text: str) -> str:
    return f'<text x="{left:.1f}" y="{top + 16}">{escape(text)}</text>'


def _svg(title: str, height: float, parts: Iterable[str]) -> str:
    drawn = "".join(parts)
    return (
        f'<svg role="img" aria-label="{escape(title)}" viewBox="0 0 {_WIDTH} {max(height, 1)}" '
        f'xmlns="http://www.w3.org/2000/svg"><title>{escape(title)}</title>{drawn}</svg>'
    )
