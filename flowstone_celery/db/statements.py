"""Named SQL statements: read once from a room's .sql files, each with the arrows it makes.

A statement begins with `-- name: claim (step: ready -> running; run: pending -> running)`; the arrows may be missing. A piece that
several statements share begins with `-- fragment: claimed` and is put in where a line reads `-- use: claimed`. Tables are written
as `flowstone.steps`; the schema's name is replaced by the configured one. A prepared statement keeps one plan for all values; one
whose filters may be given or not says `-- plan: anew`, and is planned for its values each time.

What a step pays each time is a function in the database: `-- function: succeed (…)`, then `-- takes: step bigint, …` and
`-- answers: id bigint, …`, then a body in PL/pgSQL, in which parameters are written as in any statement. It is called like a
statement of that name; a revision in `migrations/` makes it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from importlib import resources

_HEAD = re.compile(
    r"^-- (?P<kind>name|function|fragment): (?P<name>\w+)(?: \((?P<arrows>.*)\))?\s*$", re.MULTILINE
)
_USE = re.compile(r"^\s*-- use: (\w+)\s*$", re.MULTILINE)
_ANEW = re.compile(r"^\s*-- plan: anew\s*$", re.MULTILINE)
_TAKES = re.compile(r"^-- takes: (.*)$", re.MULTILINE)
_ANSWERS = re.compile(r"^-- answers: (.*)$", re.MULTILINE)
_PARAMETER = re.compile(r"%\((\w+)\)s|%%")
_BLANK = re.compile(r"\n\s*\n")
_COMMENT = re.compile(r"^\s*--.*\n?", re.MULTILINE)
_SCHEMA = re.compile(r"\bflowstone\.")


@dataclass(frozen=True, slots=True)
class Statement:
    """One named statement: where it stands, what it says, which arrows it makes."""

    room: str
    name: str
    arrows: frozenset[tuple[str, str, str]]
    """Triples of noun, source status (empty for a birth) and target status."""
    text: str
    anew: bool = False
    """Whether it is planned for its values each time it runs."""

    definition: str = ""
    """Of a function in the database: what makes it. The text calls it then."""

    def sql(self, schema: str) -> str:
        """The text for one schema, without comments."""
        return _in_schema(self.text, schema)

    @property
    def body(self) -> str:
        """What it does: of a function its definition, else its text."""
        return self.definition or self.text


@cache
def _in_schema(text: str, schema: str) -> str:
    return _SCHEMA.sub(f'"{schema}".', text) if schema != "flowstone" else text


def load(package: str, *files: str) -> dict[str, Statement]:
    """All named statements of the files, which lie beside the package's modules."""
    text = "\n".join(resources.files(package).joinpath(file).read_text(encoding="utf-8") for file in files)
    return parse(package, text)


def parse(room: str, text: str) -> dict[str, Statement]:
    """Split a page of SQL into its named statements.

    Raises:
        ValueError: a name occurs twice, or a fragment that is used does not exist.
    """
    blocks = _blocks(text)
    fragments = {name: body for kind, name, _, body in blocks if kind == "fragment"}
    statements: dict[str, Statement] = {}
    for kind, name, arrows, body in blocks:
        if kind == "fragment":
            continue
        if name in statements:
            raise ValueError(f"statement {name!r} of {room} occurs twice")
        text = _clean(_with_fragments(body, fragments))
        function = kind == "function"
        statements[name] = Statement(
            room,
            name,
            parse_arrows(arrows),
            _call(name, body) if function else text,
            anew=bool(_ANEW.search(body)),
            definition=_definition(name, body, text) if function else "",
        )
    return statements


def _call(name: str, head: str) -> str:
    given = ", ".join(f"%({each})s::{kind}" for each, kind in _typed(_TAKES, head))
    return f"SELECT * FROM flowstone.{name}({given})"  # noqa: S608 - both come from our own page


def _definition(name: str, head: str, body: str) -> str:
    takes = ", ".join(f"_{each} {kind}" for each, kind in _typed(_TAKES, head))
    answers = ", ".join(f"{each} {kind}" for each, kind in _typed(_ANSWERS, head))
    body = _BLANK.sub("\n", _PARAMETER.sub(lambda found: f"_{found[1]}" if found[1] else "%", body))
    return (
        f"CREATE OR REPLACE FUNCTION flowstone.{name}({takes}) RETURNS TABLE ({answers}) LANGUAGE plpgsql ROWS 1 AS $$\n"
        f"#variable_conflict use_column\n{body}\n$$"
    )


def _typed(line: re.Pattern[str], head: str) -> list[tuple[str, str]]:
    """Names and types, from all lines of this kind."""
    listed = ", ".join(found[1] for found in line.finditer(head))
    return [(name, kind) for name, _, kind in (each.strip().partition(" ") for each in listed.split(","))]


def _blocks(text: str) -> list[tuple[str, str, str, str]]:
    heads = list(_HEAD.finditer(text))
    ends = [*(head.start() for head in heads[1:]), len(text)]
    return [
        (head["kind"], head["name"], head["arrows"] or "", text[head.end() : end])
        for head, end in zip(heads, ends, strict=True)
    ]


def _with_fragments(body: str, fragments: dict[str, str]) -> str:
    def put_in(use: re.Match[str]) -> str:
        if use[1] not in fragments:
            raise ValueError(f"no fragment {use[1]!r}")
        return _with_fragments(fragments[use[1]], fragments)

    return _USE.sub(put_in, body)


def _clean(body: str) -> str:
    return _COMMENT.sub("", body).strip().rstrip(";")


def parse_arrows(text: str) -> frozenset[tuple[str, str, str]]:
    """Read `step: ready | blocked -> running; run: -> pending` as triples of noun, source, target."""
    triples: set[tuple[str, str, str]] = set()
    for clause in filter(None, (part.strip() for part in text.split(";"))):
        noun, _, arrow = clause.partition(":")
        sources, _, targets = arrow.partition("->")
        triples |= {
            (noun.strip(), source.strip(), target.strip())
            for source in sources.split("|")
            for target in targets.split("|")
        }
    return frozenset(triples)
