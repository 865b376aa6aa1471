"""A run while it is waited for: on a terminal a tree of its steps that lives, on a pipe one line for each thing that happens."""

from __future__ import annotations

import threading
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Final

from flowstone_celery.cli.bars import Bars
from flowstone_celery.cli.show import between, lasted, mark, slice_of
from flowstone_celery.errors import FlowStoneError
from flowstone_celery.states import STEP_TERMINAL, Phase, StepStatus

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from rich.console import Console, RenderableType
    from rich.text import Text
    from rich.tree import Tree

    from flowstone_celery.assets.handle import Run

_LOOK_EVERY: Final = 0.2
_FRAME: Final = 4
_LEAST_LINES: Final = 8
_URGENT: Final = (
    StepStatus.RUNNING,
    StepStatus.WAITING,
    StepStatus.FAILED,
    StepStatus.CANCELLED,
    StepStatus.READY,
    StepStatus.BLOCKED,
)
_QUIET_EVENTS: Final = frozenset({"step.ready", "run.pending"})


class Story:
    """What a run's history has told so far: each event once, and for each step what became of its worker."""

    def __init__(self, run: Run, *, after: int = 0) -> None:
        """Nothing is read yet; events up to `after` never are."""
        self._run = run
        self._last = after
        self._losses: dict[int, str] = {}
        self._scattered: set[tuple[int, int]] = set()
        """Steps that have waited for items, by id and round."""

    def news(self) -> list[dict[str, Any]]:
        """The events since the last time, oldest first."""
        found = [self._with_phase(event) for event in self._run.events(self._last)]
        for event in found:
            self._last = event["id"]
            if event["event"] == "step.released":
                self._losses[event["step_id"]] = (event["detail"] or {}).get("reason", "given back")
        return found

    def _with_phase(self, event: dict[str, Any]) -> dict[str, Any]:
        """The event; with `gathers` if its step has waited for its items before, in this round."""
        step = (event["step_id"], event["round"])
        gathers = step in self._scattered
        if event["event"] == "step.waiting":
            self._scattered.add(step)
        return {**event, "gathers": True} if gathers else event

    def loss_of(self, step: Mapping[str, Any]) -> str:
        """Why the step was taken from a worker, and whether another has it: empty for most."""
        reason = self._losses.get(step["id"])
        if reason is None:
            return ""
        return (
            f"{reason}, {'waits for another worker' if step['status'] == StepStatus.READY else 'taken over'}"
        )


# --- the tree ---------------------------------------------------------------------------------------------------------------------


def tree_of(
    run: Run, story: Story | None = None, *, lines: int | None = None, bars: Bars | None = None
) -> Tree:
    """The run's steps as a tree, each below the last thing that it needs; at most so many, the urgent ones first.

    A step that scatters has a bar below it, which tells how far its items are.
    """
    from rich.tree import Tree

    row, steps = run.row, run.steps()
    story = story or Story(run)
    story.news()
    found = (bars or Bars(run)).by_step()
    root = Tree(_root_line(row), guide_style="dim")
    most = len(steps) if lines is None else max(1, lines - len(found))
    shown = steps if len(steps) <= most else sorted(steps, key=_urgency)[:most]
    branches: dict[int, Tree] = {}
    for step in sorted(shown, key=lambda each: each["ordinal"]):
        parents = [parent for parent in step["parents"] or () if parent in branches]
        branch = (branches[parents[-1]] if parents else root).add(_step_line(step, story))
        branches[step["id"]] = branch
        if step["id"] in found:
            branch.add(found[step["id"]])
    if len(shown) < len(steps):
        root.add(f"… and {len(steps) - len(shown):,} more")
    return root


def _urgency(step: Mapping[str, Any]) -> tuple[int, int]:
    status = step["status"]
    return (_URGENT.index(status) if status in _URGENT else len(_URGENT), step["ordinal"])


def _root_line(row: Mapping[str, Any]) -> Text:
    done = row["total_steps"] - row["remaining_steps"]
    took = lasted(between(row["started_at"], row["finished_at"]))
    line = mark(row["status"], slice_of(row["name"], row["partition"]))
    return line.append(
        f"  {row['status']} · {done}/{row['total_steps']} steps · {took or 'not begun'}", style="default"
    )


def _step_line(step: Mapping[str, Any], story: Story) -> Text:
    line = mark(step["status"], slice_of(step["name"], step["partition"]))
    ran = step["attempt"] > 0
    gathers = step["phase"] == Phase.GATHER
    attempt = step["attempt"] - gathers  # the first was the scatter
    about = [
        step["status"] if step["status"] != StepStatus.SUCCEEDED else "",
        "gathers" if gathers and step["status"] == StepStatus.RUNNING else "",
        f"attempt {attempt}" if attempt > 1 else "",
        f"on {step['node_name']} (pid {step['pid']})" if step["node_name"] else "",
        lasted(between(step["started_at"], step["finished_at"])) if ran and _took_time(step) else "",
    ]
    remarks = (
        (" · ".join(filter(None, about)), "dim"),
        (story.loss_of(step), "yellow"),
        (_cause(step), "red"),
    )
    for text, style in remarks:
        line.append(f"  {text}" if text else "", style=style)
    return line


def _took_time(step: Mapping[str, Any]) -> bool:
    return step["status"] in STEP_TERMINAL or step["status"] == StepStatus.RUNNING


def _cause(step: Mapping[str, Any]) -> str:
    error = step["error"]
    if not error or step["status"] == StepStatus.SUCCEEDED:
        return ""
    return str(error.get("message", "")).partition("\n")[0]


# --- lines ------------------------------------------------------------------------------------------------------------------------


def event_line(event: Mapping[str, Any]) -> Text:
    """One event of a run's history on one line."""
    what, noun = event["event"].partition(".")[2], event["event"].partition(".")[0]
    subject = slice_of(event["step"] or "", event["partition"] or "") if event["step"] else noun
    line = mark(_status_after(what), f"{event['at'].strftime('%H:%M:%S')} {subject} {what}")
    return line.append(_detail(event), style="default")


def _status_after(what: str) -> str:
    return {"retry": "ready", "released": "warn"}.get(what, what)


def _detail(event: Mapping[str, Any]) -> str:
    detail = event["detail"] or {}
    error = detail.get("error") or detail
    gathers = event.get("gathers", False)
    attempt = (event["attempt"] or 0) - gathers  # the first was the scatter
    parts = [
        "gathers" if gathers and event["event"] == "step.running" else "",
        f"attempt {attempt}" if attempt > 1 or event["event"] == "step.retry" else "",
        f"again in {lasted(detail['delay'])}" if "delay" in detail else "",
        f"{detail['items']:,} items" if event["event"] == "step.waiting" and "items" in detail else "",
        str(detail.get("reason") or "") if event["event"] in ("step.released", "run.cancelling") else "",
        str(error.get("message") or "").partition("\n")[0],
    ]
    told = ", ".join(filter(None, parts))
    return f": {told}" if told else ""


# --- following --------------------------------------------------------------------------------------------------------------------


@contextmanager
def followed(run: Run, console: Console) -> Iterator[Callable[[str], None]]:
    """In the block the run is shown as it moves; yields a way to say something meanwhile."""
    with _living(run, console) if console.is_terminal else _printing(run, console) as say:
        yield say


@contextmanager
def _living(run: Run, console: Console) -> Iterator[Callable[[str], None]]:
    from rich.live import Live

    story, bars, last = Story(run), Bars(run), [tree_of(run)]

    def picture() -> RenderableType:
        with suppress(FlowStoneError):  # the last picture stays; whoever waits in the foreground hears of it
            last[0] = tree_of(run, story, lines=max(_LEAST_LINES, console.height - 4), bars=bars)
        return last[0]

    with Live(get_renderable=picture, console=console, refresh_per_second=_FRAME):
        yield lambda text: console.print(text, style="yellow")


@contextmanager
def _printing(run: Run, console: Console) -> Iterator[Callable[[str], None]]:
    story, bars, over = Story(run), Bars(run), threading.Event()

    def tell() -> None:
        with suppress(FlowStoneError):  # whoever waits in the foreground hears of it
            while not over.wait(_LOOK_EVERY):
                put_news(console, story, bars)

    teller = threading.Thread(target=tell, name="flowstone-cli", daemon=True)
    teller.start()
    try:
        yield lambda text: console.print(f"! {text}", style="yellow")
    finally:
        over.set()
        teller.join()
    put_news(console, story, bars)


def put_news(console: Console, story: Story, bars: Bars) -> None:
    """One line for each event, and for each scatter that has got further; the scatters first: their steps go on when they have closed."""
    for line in bars.news():
        console.print(line, soft_wrap=True)
    put_events(console, story.news())


def put_events(console: Console, events: Sequence[Mapping[str, Any]]) -> None:
    """One line for each event that says something to people."""
    for event in events:
        if event["event"] not in _QUIET_EVENTS:
            console.print(event_line(event), soft_wrap=True)
