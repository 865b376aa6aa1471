"""`flowstone worker`, `beat`, `flower`: thin wrappers that print the celery command and become it."""

from __future__ import annotations

import os
import shlex
import sys
from importlib.util import find_spec
from typing import TYPE_CHECKING, Final, NoReturn

import click

from flowstone_celery.cli.desk import desk
from flowstone_celery.cli.verbs import Verb
from flowstone_celery.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

_PASS_ON: Final = {"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []}
"""Whatever stands behind the verb is Celery's, `--help` too."""


@click.command(cls=Verb, context_settings=_PASS_ON)
@click.argument("options", nargs=-1, type=click.UNPROCESSED)
def worker(*, options: tuple[str, ...]) -> None:
    """Start a Celery worker: celery -A APP worker OPTIONS."""
    become("worker", options)


@click.command(cls=Verb, context_settings=_PASS_ON)
@click.argument("options", nargs=-1, type=click.UNPROCESSED)
def beat(*, options: tuple[str, ...]) -> None:
    """Start Celery's beat: celery -A APP beat OPTIONS."""
    become("beat", options)


@click.command(cls=Verb, context_settings=_PASS_ON)
@click.argument("options", nargs=-1, type=click.UNPROCESSED)
def flower(*, options: tuple[str, ...]) -> None:
    """Start Flower, if it is installed: celery -A APP flower OPTIONS."""
    require_flower()
    become("flower", options)


def become(verb: str, options: Sequence[str]) -> NoReturn:
    """This process is the celery command from now on."""
    command = celery_command(app_name(), verb, *options)
    click.echo(f"$ {shown(command)}", err=True)
    os.execv(sys.executable, command)  # noqa: S606 - the interpreter that runs now, with the user's own arguments


def app_name() -> str:
    """The name to hand to `celery -A`.

    Raises:
        ConfigError: no app was named.
    """
    name = desk().app_name
    if name is None:
        raise ConfigError(
            "no app was named",
            hint="Name it: flowstone -A shop …, or set FLOWSTONE_APP=shop (also in the file .env).",
        )
    return name


def celery_command(app: str, verb: str, *options: str) -> list[str]:
    """The argument vector of `celery -A APP VERB …` on this interpreter."""
    return [sys.executable, "-m", "celery", "-A", app, verb, *options]


def shown(command: Sequence[str]) -> str:
    """The command as a person would type it."""
    return shlex.join(["celery", *command[3:]])


def has_flower() -> bool:
    """Whether Flower is installed."""
    return find_spec("flower") is not None


def require_flower() -> None:
    """Return if Flower is installed. Raises ConfigError."""
    if not has_flower():
        raise ConfigError("Flower is not installed", hint="pip install 'flowstone-celery[flower]'")
