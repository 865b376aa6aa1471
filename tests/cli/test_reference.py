"""The reference page says what the commands say."""

from __future__ import annotations

from pathlib import Path

import click
import pytest

from flowstone_celery.cli.main import group
from flowstone_celery.cli.reference import page

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "cli.md"


def test_page_is_what_the_commands_say() -> None:
    told = "write it anew: python -m flowstone_celery.cli.reference > docs/reference/cli.md"
    assert PAGE.read_text(encoding="utf-8") == page(), told


def verbs(command: click.Command, ctx: click.Context) -> list[tuple[str, click.Command]]:
    """Every verb below this command, with its path."""
    if not isinstance(command, click.Group):
        return [(ctx.command_path, command)]
    found = []
    for name in command.list_commands(ctx):
        child = command.get_command(ctx, name)
        assert child is not None
        found += verbs(child, click.Context(child, info_name=name, parent=ctx))
    return found


ALL = dict(verbs(group, click.Context(group, info_name="flowstone")))
READS = [
    "asset ls", "asset show", "asset status", "asset get", "run ls", "run show", "run events", "run wait", "scatter ls",
    "scatter show", "scatter items",
    "config show", "db current", "doctor", "version",
]  # fmt: skip


@pytest.mark.parametrize("path", READS)
def test_every_verb_that_reads_takes_json(path: str) -> None:
    assert "--json" in [name for each in ALL[f"flowstone {path}"].params for name in each.opts]


@pytest.mark.parametrize("path", ["run cancel", "db prune", "scatter cancel", "scatter accept"])
def test_every_verb_that_destroys_takes_dry_run_and_yes(path: str) -> None:
    names = {name for each in ALL[f"flowstone {path}"].params for name in each.opts}
    assert {"--dry-run", "--yes"} <= names


@pytest.mark.parametrize("path", sorted(ALL))
def test_every_verb_and_option_has_its_sentence(path: str) -> None:
    command = ALL[path]
    assert (command.help or "").strip().endswith(".")
    options = [each for each in command.params if isinstance(each, click.Option) and not each.hidden]
    assert [each.name for each in options if not each.help and each.name != "form"] == []
