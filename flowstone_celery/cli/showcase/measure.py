"""What one source file is made of, read from its syntax tree."""

from __future__ import annotations

import ast
import gc
import warnings
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
_BRANCHES = (ast.If, ast.For, ast.AsyncFor, ast.While, ast.ExceptHandler, ast.match_case)
_COMPOUND = (*_FUNCTIONS, *_BRANCHES, ast.ClassDef, ast.With, ast.AsyncWith, ast.Try, ast.TryStar, ast.Match)
_TELLING = frozenset({*_COMPOUND, ast.Import, ast.ImportFrom})
"""The other statements hold nothing that is counted; most are of these."""
_BLOCKS = ("body", "orelse", "handlers", "finalbody", "cases")
_UNREADABLE = (SyntaxError, ValueError, RecursionError, MemoryError, OSError)


@dataclass(slots=True)
class Tally:
    """The counts of one file."""

    lines: int = 0
    functions: int = 0
    classes: int = 0
    documented: int = 0
    """Functions, classes and the module itself, if they have a docstring."""
    branches: int = 0
    depth: int = 0
    """How many compound statements stand around the deepest one."""
    imports: set[str] = field(default_factory=set)
    """Top-level names of what it imports, itself excepted."""
    hardest: tuple[int, str, int] = (0, "", 0)
    """The function with the most paths through it: McCabe's number, its name, its line."""


def measure(root: Path, relative: str) -> dict[str, Any]:
    """The tally of a file as plain JSON; a file that is no Python of this version answers with its error instead."""
    try:
        source = (root / relative).read_bytes()
        with _quietly():
            tally = _tally(ast.parse(source, relative))
    except _UNREADABLE as error:
        return {"path": relative, "error": f"{type(error).__name__}: {error}"}
    tally.lines = source.count(b"\n") + (not source.endswith(b"\n") and bool(source))
    return {"path": relative, **asdict(tally), "imports": sorted(tally.imports)}


@contextmanager
def _quietly() -> Iterator[None]:
    """No warning about old code is shown, and no garbage looked for: trees have no cycles, and parsing is twice as fast without."""
    collected = gc.isenabled()
    gc.disable()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        if collected:
            gc.enable()


def _tally(tree: ast.Module) -> Tally:
    """Walk the statements, not the expressions: these hold all that is counted, at a tenth of the time."""
    tally = Tally(documented=_has_docstring(tree))
    paths: list[int] = []
    names: list[tuple[str, int]] = []
    ahead = [(child, depth, -1) for child, depth in _inside(tree, -1)]
    while ahead:
        node, depth, owner = ahead.pop()
        if isinstance(node, _FUNCTIONS):
            owner = len(paths)
            paths.append(1)
            names.append((node.name, node.lineno))
        elif isinstance(node, _BRANCHES) and owner >= 0:
            paths[owner] += 1
        _count(tally, node, depth)
        if isinstance(node, _COMPOUND):
            ahead += [(child, inner, owner) for child, inner in _inside(node, depth)]
    if paths:
        tally.hardest = max((count, *name) for count, name in zip(paths, names, strict=True))
    return tally


def _count(tally: Tally, node: ast.AST, depth: int) -> None:
    match node:
        case ast.FunctionDef() | ast.AsyncFunctionDef():
            tally.functions += 1
            tally.documented += _has_docstring(node)
        case ast.ClassDef():
            tally.classes += 1
            tally.documented += _has_docstring(node)
        case ast.Import(names=names):
            tally.imports.update(each.name.partition(".")[0] for each in names)
        case ast.ImportFrom(module=str(module), level=0):
            tally.imports.add(module.partition(".")[0])
    tally.branches += isinstance(node, _BRANCHES)
    tally.depth = max(tally.depth, depth)


def _inside(node: ast.AST, depth: int) -> Iterator[tuple[ast.AST, int]]:
    """The statements directly inside that tell something, each with its depth. An `elif` stands no deeper than its `if`."""
    for block in _BLOCKS:
        children: list[ast.AST] = getattr(node, block, [])
        is_elif = block == "orelse" and isinstance(node, ast.If) and [*map(type, children)] == [ast.If]
        inner = depth if is_elif else depth + 1
        yield from ((child, inner) for child in children if type(child) in _TELLING)


def _has_docstring(node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    match node.body[:1]:
        case [ast.Expr(value=ast.Constant(value=str()))]:
            return True
    return False
