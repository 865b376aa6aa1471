"""The reference page of the command line, from the commands themselves: `python -m flowstone_celery.cli.reference`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from flowstone_celery.cli.main import group
from flowstone_celery.cli.verbs import EXIT_CODES

if TYPE_CHECKING:
    from collections.abc import Iterator

_INTRO = """# Command line

One group of verbs, reached as `flowstone …` and as `celery -A shop flowstone …`. The app is named by `-A` as for Celery, else by
`FLOWSTONE_APP` (also in the file `.env`), else as Celery finds it by itself. `-A` and `-v` may stand before or behind the verb.
Verbs that read take `--json` and write one object a line; verbs that destroy take `--dry-run`, and ask unless `--yes` is given.
Errors are two lines on stderr, what (with its code) and how to mend it; `-v` adds the traceback.
"""


def page() -> str:
    """The whole page as Markdown."""
    root = click.Context(group, info_name="flowstone")
    codes = [f"| {code} | {text} |" for code, text in EXIT_CODES.items()]
    lines = [
        _INTRO,
        "## Exit codes",
        "",
        "| code | meaning |",
        "|---|---|",
        *codes,
        "",
        *_sections(group, root),
    ]
    return "\n".join(lines).rstrip() + "\n"


def _sections(command: click.Command, ctx: click.Context) -> Iterator[str]:
    """This command's section, then those of the verbs below it."""
    yield f"## `{ctx.command_path}`" if not isinstance(command, click.Group) else f"## `{ctx.command_path} …`"
    yield from ("", command.help or "", "")
    if not isinstance(command, click.Group):
        yield from ("```console", f"$ {_usage(command, ctx)}", "```", "")
    options = [each for each in command.params if isinstance(each, click.Option) and not each.hidden]
    if options:
        yield from ("| option | default | |", "|---|---|---|", *map(_row, options), "")
    if isinstance(command, click.Group):
        for name in command.list_commands(ctx):
            child = command.get_command(ctx, name)
            assert child is not None, "what is listed is there"
            yield from _sections(child, click.Context(child, info_name=name, parent=ctx))


def _usage(command: click.Command, ctx: click.Context) -> str:
    arguments = [_metavar(each) for each in command.params if isinstance(each, click.Argument)]
    options = any(isinstance(each, click.Option) and not each.hidden for each in command.params)
    return " ".join([ctx.command_path, *(["[OPTIONS]"] if options else []), *arguments])


def _metavar(argument: click.Argument) -> str:
    name = argument.metavar or (argument.name or "").upper()
    return name if argument.required or name.startswith("[") else f"[{name}]"


def _row(option: click.Option) -> str:
    names = ", ".join(f"`{name}`" for name in (*option.opts, *option.secondary_opts))
    default: Any = "" if option.is_flag and not option.secondary_opts else _default(option)
    return f"| {names}{_values(option)} | {default} | {option.help or ''} |".replace(
        "(2026-11-20|eu)", "(2026-11-20\\|eu)"
    )


def _default(option: click.Option) -> str:
    value = option.default
    if not option.show_default or callable(value):
        return ""
    if option.secondary_opts:
        return f"`{(option.opts if value else option.secondary_opts)[0]}`"
    return f"`{value}`"


def _values(option: click.Option) -> str:
    """What may stand behind the option."""
    if option.is_flag:
        return ""
    if isinstance(option.type, click.Choice):
        return f" {', '.join(str(getattr(each, 'value', each)) for each in option.type.choices)}"
    return f" {option.metavar or option.type.name.partition(' ')[0].upper()}"


if __name__ == "__main__":
    click.echo(page(), nl=False)
