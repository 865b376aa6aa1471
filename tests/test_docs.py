"""The docs say what is so: their Python runs, their generated parts are those of the code, their links lead somewhere."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from flowstone_celery import states

if TYPE_CHECKING:
    from flowstone_celery.config import Settings

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted([*DOCS.rglob("*.md"), *ROOT.glob("*.md")])
_BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\((?!https?:|mailto:|#)([^)#\s]+)(?:#[^)]*)?\)")

EXECUTED = [
    "tutorial/first-pipeline.md",
    "how-to/test-your-assets.md",
    "how-to/write-an-io-manager.md",
    "how-to/use-resources.md",
    "how-to/partition-your-assets.md",
    "how-to/join-your-transaction.md",
    "how-to/retry-and-rerun.md",
    "how-to/order-and-fairness.md",
    "how-to/backfill.md",
    "how-to/scatter.md",
    "how-to/follow-a-scatter.md",
    "how-to/read-items-from-anywhere.md",
]


def generator() -> Any:
    """The module docs/reference/generate.py."""
    spec = importlib.util.spec_from_file_location("generate", DOCS / "reference" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("page", EXECUTED)
def test_the_python_of_a_page_runs_from_top_to_bottom(
    page: str,
    flowstone_settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("FLOWSTONE_DATABASE_URL", str(flowstone_settings.database_url))
    text = (DOCS / page).read_text()
    names: dict[str, Any] = {"__name__": "page"}
    blocks = list(_BLOCK.finditer(text))
    assert blocks
    try:
        for block in blocks:
            line = text[: block.start(1)].count("\n")
            exec(compile("\n" * line + block[1], str(DOCS / page), "exec"), names)
    finally:
        if "fs" in names:
            names["fs"].close()


def test_a_generated_page_is_what_the_code_says() -> None:
    made = generator()
    stale = [
        name
        for name, make in made.PAGES.items()
        if (DOCS / "reference" / f"{name}.md").read_text() != made.text_of(make)
    ]
    assert stale == [], "run `make docs`"


def test_the_page_of_states_draws_every_arrow() -> None:
    text = (DOCS / "reference" / "states.md").read_text()
    for machine in states.MACHINES.values():
        drawing = text.partition(f"## {machine.noun.capitalize()}\n")[2].partition("\n## ")[0]
        drawn = set(re.findall(r"^    (\S+) --> (\S+)$", drawing, re.MULTILINE))
        assert {(source or "[*]", target) for source, target in machine.arrows} <= drawn
        assert {source for source, target in drawn if target == "[*]"} <= machine.terminal


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    targets = _LINK.findall(page.read_text())
    assert [target for target in targets if not (page.parent / target).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_python_on_a_page_is_python(page: Path) -> None:
    for block in _BLOCK.findall(page.read_text()):
        compile(block, str(page), "exec")
