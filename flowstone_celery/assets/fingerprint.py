"""A function's digest changes when what it does changes, and not when a comment, its layout or its place does.

It is taken from the compiled code that is loaded, never from the file, which may have been edited since. Another minor version of
Python compiles differently and so gives another digest; a declared `code_version` does not depend on that.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
from pathlib import Path
from types import CodeType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


def underlying(function: Callable[..., Any]) -> Any:
    """The plain function behind partials, wrappers and objects with `__call__`, as far as there is one."""
    found: Any = function
    while True:
        found = inspect.unwrap(found)
        if isinstance(found, functools.partial):
            found = found.func
        elif (
            not hasattr(found, "__code__")
            and not isinstance(found, type)
            and hasattr(type(found).__call__, "__code__")
        ):
            found = type(found).__call__
        else:
            return found


@functools.lru_cache(maxsize=10_000)
def code_digest(function: Callable[..., Any]) -> str:
    """The SHA-256 of the function's code, constants and defaults, as 64 hexadecimal digits."""
    found = underlying(function)
    parts = [*_code_parts(getattr(found, "__code__", None)), *_default_parts(found), *_bound_parts(function)]
    text = "\n".join(parts) or f"{found.__module__}.{found.__qualname__}"
    return hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()


def place(function: Callable[..., Any]) -> str:
    """Where the function stands, as `folder/file.py:14`; the empty text when no source is known."""
    code = getattr(underlying(function), "__code__", None)
    if code is None:
        return ""
    parts = Path(code.co_filename).parts
    return f"{'/'.join(parts[-2:]).lstrip('/')}:{code.co_firstlineno}"


def _code_parts(code: CodeType | None) -> Iterator[str]:
    if code is None:
        return
    yield code.co_code.hex()
    yield repr(
        (
            code.co_names,
            code.co_varnames,
            code.co_freevars,
            code.co_argcount,
            code.co_kwonlyargcount,
        )
    )
    for constant in code.co_consts:
        yield from _constant_parts(constant)


def _default_parts(found: Any) -> Iterator[str]:
    for constant in (
        *(getattr(found, "__defaults__", None) or ()),
        getattr(found, "__kwdefaults__", None) or {},
    ):
        yield from _constant_parts(constant)


def _bound_parts(function: Any) -> Iterator[str]:
    if isinstance(function, functools.partial):
        yield from _constant_parts([*function.args, function.keywords])


def _constant_parts(constant: Any) -> Iterator[str]:
    """A text that is the same in every process: sets sorted, nothing that prints an address."""
    if isinstance(constant, CodeType):
        yield from _code_parts(constant)
    elif isinstance(constant, set | frozenset):
        yield from sorted("\n".join(_constant_parts(member)) for member in constant)
    elif isinstance(constant, tuple | list):
        yield f"{type(constant).__name__} of {len(constant)}"
        for member in constant:
            yield from _constant_parts(member)
    elif isinstance(constant, dict):
        yield from _constant_parts(list(constant.items()))
    elif (
        constant is None or isinstance(constant, str | bytes | int | float | complex) or constant is Ellipsis
    ):
        yield f"{type(constant).__name__} {constant!r}"
    else:
        yield type(constant).__qualname__
