"""`flowstone demo`: the main job on two real workers, one of which is killed while it works."""

from __future__ import annotations

import fcntl
import os
import shlex
import shutil
import signal
import sys
import threading
import time
from contextlib import ExitStack, contextmanager, suppress
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from flowstone_celery.cli.desk import desk
from flowstone_celery.cli.show import console, lasted, mark
from flowstone_celery.cli.verbs import Verb
from flowstone_celery.errors import FlowStoneError
from flowstone_celery.states import RunStatus

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from types import FrameType

    from rich.console import Console

    from flowstone_celery.app import FlowStone
    from flowstone_celery.assets.handle import Run
    from flowstone_celery.cli.live import Story
    from flowstone_celery.cli.showcase.accident import Accident
    from flowstone_celery.cli.showcase.crew import Crew
    from flowstone_celery.config import Settings
    from flowstone_celery.db.database import Database
    from flowstone_celery.embedded.servers import Servers

_APP: Final = "flowstone_celery.cli.showcase.pipeline"
_REQUESTED_BY: Final = "flowstone demo"
_LEASE_SECONDS: Final = 2.0
_RUN_SECONDS: Final = 120.0
_LOOK_EVERY: Final = 0.1


@click.command(cls=Verb)
def demo() -> None:
    """Show it at work: Python's own sources, two workers, one of them killed. By itself, in under a minute."""
    from flowstone_celery.cli.showcase import closing

    settings = desk().own_settings
    _refuse_in_production(settings)
    begun, say, cleaning = time.monotonic(), Stage(console()), ExitStack()
    say.box()
    with _ending_on_signals() as deaf, _alone(settings.home) as folder:
        try:
            _play(say, folder, settings, cleaning)
        finally:
            deaf()
            with say.phase("What the demo started is stopped"):
                cleaning.close()
    say.note(f"Done in {lasted(time.monotonic() - begun)}. Three commands to try:")
    for command, what in closing.to_try(_flowstone(), _APP):
        say.note(f"  {command}   ({what})")


def _play(say: Stage, folder: Path, settings: Settings, cleaning: ExitStack) -> None:
    """Every phase in its order; what each starts is ended by `cleaning`."""
    from flowstone_celery.cli.showcase.crew import CHILDREN, Crew

    # The servers take their time to start; meanwhile this process loads what it needs next.
    threading.Thread(target=import_module, args=(_APP,), name="flowstone-demo", daemon=True).start()
    with say.phase("PostgreSQL and Redis are up"):
        found = _servers(settings, cleaning)
    variables = _variables(found)
    cleaning.enter_context(_environment(variables))
    with say.phase("The schema is there"):
        fs = _house(cleaning)
    crew = Crew(_APP, "stdlib", folder, variables)
    cleaning.callback(crew.stop)
    with say.phase(f"Two Celery workers are ready, {CHILDREN} processes each"):
        for name in ("worker-1", "worker-2"):
            crew.start(name)
        crew.wait_until_ready(fs.database)
    run, accident = _run(say, fs, crew)
    _report(say, fs, run, accident, folder)
    _examine(say, fs, crew)


# --- before -----------------------------------------------------------------------------------------------------------------------


def _refuse_in_production(settings: Settings) -> None:
    from flowstone_celery.errors import ConfigError

    if settings.env == "production":
        raise ConfigError(
            "the demo starts servers and kills a worker, and FLOWSTONE_ENV says production",
            hint="Run it with FLOWSTONE_ENV=dev in a folder of its own.",
        )


@contextmanager
def _ending_on_signals() -> Iterator[Callable[[], None]]:
    """SIGTERM and SIGHUP end the demo as Ctrl-C does; yields what makes it deaf to all three, for cleaning up."""

    def end(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    def deaf() -> None:
        listen(lambda _number, _frame: None)

    def listen(handler: Any) -> dict[signal.Signals, Any]:
        return {each: signal.signal(each, handler) for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}

    before = listen(end)
    try:
        yield deaf
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _alone(home: Path) -> Iterator[Path]:
    """The demo's folder is ours alone meanwhile.

    Raises:
        WrongState: another demo runs in this project.
    """
    from flowstone_celery.errors import ServiceUnavailable, WrongState

    folder = home / "demo"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        page = (folder / "lock").open("w")
    except OSError as error:
        raise ServiceUnavailable(
            f"the demo cannot write to {folder}: {error.strerror}",
            hint="run it in a folder that you may write to",
        ) from error
    with page:
        try:
            fcntl.flock(page, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise WrongState(
                f"a demo runs in {home} already", hint="wait for its end, or use another folder"
            ) from None
        yield folder.absolute()


def _servers(settings: Settings, cleaning: ExitStack) -> Servers:
    """The servers of this project are up; those that were not before go down at the end."""
    from flowstone_celery.embedded import servers

    if servers.find(settings.home) is None:
        cleaning.callback(servers.down, settings.home)
    return servers.up(settings.home)


def _variables(found: Servers) -> dict[str, str]:
    """What workers, and this process, read their settings from: these servers whatever else is configured, and a short lease."""
    return {
        "FLOWSTONE_DATABASE_URL": found.database_url,
        "FLOWSTONE_REDIS_URL": found.redis_url,
        "FLOWSTONE_LEASE_SECONDS": f"{_LEASE_SECONDS:g}",
        "CELERY_BROKER_URL": found.broker_url,
    }


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _house(cleaning: ExitStack) -> FlowStone:
    """The pipeline's FlowStone on these servers, their database migrated."""
    from flowstone_celery.cli.showcase.pipeline import fs
    from flowstone_celery.config import load_settings
    from flowstone_celery.db.migrate import migrate

    before = fs.use(settings=load_settings(), mode="celery")
    cleaning.callback(lambda: fs.use(**before))
    migrate(fs.database)
    return fs


# --- the run ----------------------------------------------------------------------------------------------------------------------


def _run(say: Stage, fs: FlowStone, crew: Crew) -> tuple[Run, Accident]:
    """The run has succeeded although a worker was killed.

    Raises:
        DemoFailed: it has not, or nothing was lost by the kill.
    """
    from flowstone_celery.cli.live import Story
    from flowstone_celery.cli.showcase.accident import Accident
    from flowstone_celery.cli.showcase.pipeline import files, report

    with say.phase("The run has ended well, with one worker less"):
        _cancel_leftovers(fs)
        run = fs.materialize_all(report, requested_by=_REQUESTED_BY)
        story, accident = Story(run), Accident(crew, say.loud, files.name)
        ends = time.monotonic() + _RUN_SECONDS
        with _cancelled_if_left(run), say.following(run, story) as show:
            watch = _Watch(fs.database, run, accident)
            while not _over(run, crew, ends):
                watch.look()
                show(story.news())
            watch.look()
            show(story.news())
        _check(run, crew, accident)
    return run, accident


def _cancel_leftovers(fs: FlowStone) -> None:
    """No run of a demo that was itself killed is open; our workers would go on with it first."""
    from flowstone_celery.core import runs

    for status in (RunStatus.PENDING, RunStatus.RUNNING):
        for row in runs.page(fs.database, name="stdlib.report", status=status):
            if row["requested_by"] == _REQUESTED_BY:
                runs.cancel(fs.database, row["id"], actor=_REQUESTED_BY, reason="its demo is gone")


@contextmanager
def _cancelled_if_left(run: Run) -> Iterator[None]:
    """If the block is left early, the run ends too: nobody would go on with it."""
    try:
        yield
    except BaseException:
        with suppress(FlowStoneError):  # what went wrong matters more
            run.cancel(actor=_REQUESTED_BY, reason="the demo ended early")
        raise


class _Watch:
    """What the accident sees of the run: its hands, too."""

    def __init__(self, database: Database, run: Run, accident: Accident) -> None:
        self._database = database
        self._run = run
        self._accident = accident
        self._last = 0

    def look(self) -> None:
        from flowstone_celery.core import runs

        percent = max((each.progress().percent for each in self._run.scatters()), default=0.0)
        steps = runs.steps(self._database, self._run.uuid, hands=True)
        news = _all_events(self._database, self._run, self._last)
        self._last = news[-1]["id"] if news else self._last
        self._accident.look(steps, percent, news)


def _all_events(database: Database, run: Run, after: int = 0) -> list[dict[str, Any]]:
    """The run's history after this event, with that of its hands."""
    from flowstone_celery.core import runs

    found: list[dict[str, Any]] = []
    while page := runs.events(database, run.uuid, after=after, hands=True):
        found += page
        after = page[-1]["id"]
    return found


def _over(run: Run, crew: Crew, ends: float) -> bool:
    from flowstone_celery.errors import WaitTimeout

    crew.check()
    try:
        run.wait(_LOOK_EVERY)
    except WaitTimeout as error:
        if time.monotonic() > ends:
            raise crew.failed(f"the run did not end within {_RUN_SECONDS:g} s: {error.message}") from None
        return False
    return True


def _check(run: Run, crew: Crew, accident: Accident) -> None:
    if not run.successful():
        error = run.row["error"] or {}
        raise crew.failed(f"the run {run.state}: {error.get('message', 'no error was recorded')}")
    if accident.recovery_seconds is None:
        raise crew.failed(
            "nothing was lost and taken over, though a worker was to be killed while it did items"
        )


# --- after ------------------------------------------------------------------------------------------------------------------------


def _report(say: Stage, fs: FlowStone, run: Run, accident: Accident, folder: Path) -> None:
    """The report stands on the terminal and in the demo's folder."""
    from flowstone_celery.cli.showcase import closing, page

    with say.phase("The report is written"):
        value, path = run.get(timeout=1.0), folder / "report.html"
        path.write_text(page.page(value, run.row, _all_events(fs.database, run), accident), encoding="utf-8")
    closing.tables(say.console, value, accident)
    say.note(f"  HTML page with charts: {_short(path)}")


def _examine(say: Stage, fs: FlowStone, crew: Crew) -> None:
    """The doctor finds nothing.

    Raises:
        DemoFailed: it finds that an invariant does not hold.
    """
    from flowstone_celery.core import doctor

    with say.phase("The doctor finds every invariant to hold"):
        findings = doctor.examine(fs.database)
        if findings:
            told = "\n".join(f"  {each.invariant}: {each.sentence}" for each in findings)
            raise crew.failed(f"the doctor found:\n{told}")


def _short(path: Path) -> str:
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def _flowstone() -> str:
    """The command as it can be typed here."""
    beside = Path(sys.executable).parent / "flowstone"
    found = shutil.which("flowstone")
    if found and (not beside.exists() or Path(found).samefile(beside)):
        return "flowstone"
    return (
        shlex.quote(_short(beside))
        if beside.exists()
        else f"{shlex.quote(_short(Path(sys.executable)))} -m flowstone_celery.cli.main"
    )


class Stage:
    """What is said, and when: each phase with its time, the run as it goes, the loud moments."""

    def __init__(self, output: Console) -> None:
        """Speak to this console."""
        self.console = output

    def box(self) -> None:
        """Say first what this is not."""
        from rich.panel import Panel

        text = f"Not for production: servers of this folder only, leases of {_LEASE_SECONDS:g} s, a worker killed on purpose."
        self.console.print(Panel.fit(text, title="FlowStone demo", border_style="yellow"))

    @contextmanager
    def phase(self, done: str) -> Iterator[None]:
        """In the block something takes its time, which is told when it is done."""
        begun = time.monotonic()
        yield
        self.console.print(mark("ok", f"{done}  ({lasted(time.monotonic() - begun)})"))

    @contextmanager
    def following(self, run: Run, story: Story) -> Iterator[Callable[[list[dict[str, Any]]], None]]:
        """In the block the run is shown when asked: on a terminal as a tree, on a pipe as one line for each event, and for each tenth of a scatter."""
        from flowstone_celery.cli.bars import Bars
        from flowstone_celery.cli.live import put_events, tree_of

        bars = Bars(run)
        if not self.console.is_terminal:

            def tell(news: list[dict[str, Any]]) -> None:
                for line in bars.news():
                    self.console.print(line, soft_wrap=True)
                put_events(self.console, news)

            yield tell
            return
        from rich.live import Live

        with Live(console=self.console, auto_refresh=False) as picture:
            yield lambda _: picture.update(tree_of(run, story, bars=bars), refresh=True)

    def loud(self, text: str) -> None:
        """One of the moments that the demo is about."""
        self.console.print(mark("warn", text), soft_wrap=True)

    def note(self, text: str) -> None:
        """Something to know."""
        self.console.print(text, soft_wrap=True)
