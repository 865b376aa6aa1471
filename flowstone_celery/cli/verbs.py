"""What all verbs share: exit codes, errors in plain lines, options, questions before something is destroyed."""

from __future__ import annotations

import sys
import traceback
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Final, NoReturn, TypeVar

import click

from flowstone_celery import errors
from flowstone_celery.cli.desk import Desk, desk
from flowstone_celery.errors import FlowStoneError, did_you_mean

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from flowstone_celery.assets.partition import PartitionKey

    ParamType = click.ParamType[Any]
else:
    ParamType = click.ParamType  # not generic in the oldest click that serves

F = TypeVar("F", bound="Callable[..., Any]")

DONE: Final = 0
RUN_FAILED: Final = 1
USAGE: Final = 2
NOT_FOUND: Final = 3
CONFLICT: Final = 4
STILL_WAITING: Final = 5
UNAVAILABLE: Final = 69
OWN_FAULT: Final = 70
INTERRUPTED: Final = 130

EXIT_CODES: Final[dict[int, str]] = {
    DONE: "done",
    RUN_FAILED: "the run failed or was cancelled, or the doctor found something broken",
    USAGE: "the command, an option, a setting or a declaration is wrong",
    NOT_FOUND: "no such asset, run, backfill, scatter or value",
    CONFLICT: "it conflicts with what is there: a stale fence, a taken key, a missing dependency, a run that has ended",
    STILL_WAITING: "the time to wait is over; the run goes on",
    UNAVAILABLE: "a service is away, or its schema does not fit",
    OWN_FAULT: "a fault of FlowStone itself; `-v` shows where",
    INTERRUPTED: "interrupted by Ctrl-C",
}

_EXITS: Final[tuple[tuple[type[FlowStoneError], int], ...]] = (
    (errors.UnknownAsset, NOT_FOUND),
    (errors.RunNotFound, NOT_FOUND),
    (errors.BackfillNotFound, NOT_FOUND),
    (errors.ValueNotFound, NOT_FOUND),
    (errors.ScatterNotFound, NOT_FOUND),
    (errors.DeclarationError, USAGE),
    (errors.ConfigError, USAGE),
    (errors.IdempotencyConflict, CONFLICT),
    (errors.DependencyNotReady, CONFLICT),
    (errors.WrongState, CONFLICT),
    (errors.StaleFence, CONFLICT),
    (errors.LeaseLost, CONFLICT),
    (errors.WaitTimeout, STILL_WAITING),
    (errors.ServiceUnavailable, UNAVAILABLE),
    (errors.SchemaMismatch, UNAVAILABLE),
)
"""The first that fits decides; any other error of ours is a run that failed."""


def exit_code(error: FlowStoneError) -> int:
    """The exit code that tells a script what kind of error it was."""
    return next((code for kind, code in _EXITS if isinstance(error, kind)), RUN_FAILED)


def tell_error(error: FlowStoneError, *, verbose: bool = False) -> None:
    """The error stands on stderr: code and what, then how to mend it; with `verbose` the traceback before it."""
    if verbose:
        click.echo(str(error.facts.get("traceback") or _traceback(error)).rstrip(), err=True)
    click.echo(f"{click.style(error.code, fg='red', bold=True)} {error.message}", err=True)
    if error.hint:
        click.echo(f"  {error.hint}", err=True)


def _traceback(error: BaseException) -> str:
    return "".join(traceback.format_exception(error))


class Verb(click.Command):
    """A verb that takes `-A` and `-v` behind it as well as before it."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Make the command and give it the two common options, which its help does not repeat."""
        super().__init__(*args, **kwargs)
        self.params += [
            _common("-A", "--app", callback=_choose_app),
            _common("-v", "--verbose", is_flag=True, callback=_be_verbose),
        ]


def _common(*names: str, **options: Any) -> click.Option:
    return click.Option(list(names), hidden=True, expose_value=False, **options)


def _choose_app(ctx: click.Context, _parameter: click.Parameter, value: str | None) -> None:
    if value is not None:
        desk(ctx).choose(value)


def _be_verbose(ctx: click.Context, _parameter: click.Parameter, value: bool) -> None:
    desk(ctx).verbose |= value


class Verbs(click.Group):
    """A group of verbs; those named in `lazy` are imported when they are asked for."""

    command_class = Verb

    def __init__(self, *args: Any, lazy: Mapping[str, str] | None = None, **kwargs: Any) -> None:
        """Take the verbs that lie elsewhere: name → `module:attribute`, in the order of the help."""
        super().__init__(*args, **kwargs)
        self._lazy = dict(lazy or {})

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All verbs that are installed."""
        return [
            *(name for name, target in self._lazy.items() if _is_there(target)),
            *super().list_commands(ctx),
        ]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The verb of this name, imported now if need be."""
        target = self._lazy.get(cmd_name)
        if target is None or not _is_there(target):
            return super().get_command(ctx, cmd_name)
        module, _, attribute = target.partition(":")
        found: click.Command = getattr(import_module(module), attribute)
        return found

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click does it; an unknown verb gets the nearest one named."""
        if args and not args[0].startswith("-") and self.get_command(ctx, args[0]) is None:
            near = did_you_mean(args[0], self.list_commands(ctx))
            ctx.fail(f"No such command {args[0]!r}. {near}".rstrip())
        return super().resolve_command(ctx, args)


def _is_there(target: str) -> bool:
    spec = find_spec(target.partition(":")[0])
    return spec is not None and spec.origin is not None


Verbs.group_class = Verbs


class Door(Verbs):
    """The outermost group: what goes wrong inside comes out as plain lines and an exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the verb; errors end the command with their exit code."""
        try:
            return super().invoke(ctx)
        except FlowStoneError as error:
            tell_error(error, verbose=_is_verbose(ctx))
            ctx.exit(exit_code(error))
        except KeyboardInterrupt:
            ctx.exit(INTERRUPTED)
        except (click.ClickException, click.exceptions.Exit, click.Abort, BrokenPipeError):
            raise  # click has its own words for these
        except Exception as error:  # noqa: BLE001 - nothing else may escape as a traceback: it would say nothing to a user
            self._own_fault(ctx, error)

    def _own_fault(self, ctx: click.Context, error: Exception) -> NoReturn:
        text = f"{type(error).__name__}: {error}"
        hint = "This is a fault of FlowStone or of code it called; run the same with -v to see where."
        tell_error(_caused_by(FlowStoneError(text, hint=hint), error), verbose=_is_verbose(ctx))
        ctx.exit(OWN_FAULT)


def _caused_by(outer: FlowStoneError, cause: Exception) -> FlowStoneError:
    outer.__cause__ = cause
    return outer


def _is_verbose(ctx: click.Context) -> bool:
    found = ctx.meta.get(Desk.KEY)
    return bool(found and found.verbose)


# --- options ----------------------------------------------------------------------------------------------------------------------


class Partition(ParamType):
    """A partition key as people write it."""

    name = "key"

    def convert(self, value: Any, _param: click.Parameter | None, _ctx: click.Context | None) -> PartitionKey:
        """The text as it was written: which key it means depends on the asset."""
        from flowstone_celery.assets.partition import Written

        return Written(value) if isinstance(value, str) else value


class Duration(ParamType):
    """A number of seconds, or a number with a unit: 90s, 15m, 2h, 30d, 4w."""

    name = "duration"
    _UNITS: Final = {"s": 1, "m": 60, "h": 3_600, "d": 86_400, "w": 604_800}

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Seconds."""
        if isinstance(value, int | float):
            return float(value)
        number, unit = (value[:-1], value[-1]) if value[-1:] in self._UNITS else (value, "s")
        try:
            seconds = float(number) * self._UNITS[unit]
        except ValueError:
            seconds = -1.0
        if not 0 <= seconds < 10**10:
            self.fail(f"{value!r} is not a duration; write 90s, 15m, 2h or 30d.", param, ctx)
        return seconds


def json_option(verb: F) -> F:
    """The verb takes `--json`."""
    return click.option("--json", "as_json", is_flag=True, help="Write JSON, one object a line.")(verb)


def partition_option(verb: F) -> F:
    """The verb takes `--partition`."""
    text = "The slice: text, a date (2026-11-20), i:7, true, or a tuple (2026-11-20|eu)."
    return click.option("-p", "--partition", type=Partition(), metavar="KEY", help=text)(verb)


def careful_options(verb: F) -> F:
    """The verb takes `--dry-run` and `--yes`."""
    verb = click.option("-y", "--yes", is_flag=True, help="Do not ask.")(verb)
    return click.option("--dry-run", is_flag=True, help="Say what would happen, and do nothing.")(verb)


def sure(question: str, *, yes: bool) -> None:
    """Return if the user agrees; otherwise the command ends with nothing done."""
    if yes:
        return
    try:
        agreed = click.confirm(question, err=True)
    except click.Abort:
        raise click.UsageError("Nobody is there to answer. Add --yes to go on without a question.") from None
    if not agreed:
        click.echo("Nothing was done.", err=True)
        sys.exit(USAGE)
