"""The user's app, found by name as Celery finds it, and its FlowStone; a module that is broken gets one line with file and line."""

from __future__ import annotations

import os
import sys
import traceback
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType, TracebackType
from typing import TYPE_CHECKING, Any, NoReturn

from flowstone_celery.errors import ConfigError, FlowStoneError, did_you_mean

if TYPE_CHECKING:
    from collections.abc import Sequence

    from flowstone_celery.app import FlowStone

_HOW = "Name it: flowstone -A shop …, or set FLOWSTONE_APP=shop (also in the file .env)."
_NOT_THE_USERS = ("celery", "kombu", "importlib", "flowstone_celery")
"""Packages between the user's line and ours."""


def find_house(named: Any) -> FlowStone:
    """The FlowStone of a Celery app, of an app's name, or (None) of the app that Celery finds by itself.

    Raises:
        ConfigError: there is none, there are several, or its module cannot be imported (names file and line).
    """
    from flowstone_celery.app import FlowStone

    _see_working_folder()
    app = _load(named) if isinstance(named, str) else named if named is not None else _current_app()
    house = app if isinstance(app, FlowStone) else None
    _import_all_modules(house.app if house else app)
    if house is not None:
        return house
    houses = _houses_of(app) or _houses_of(None)
    if len(houses) != 1:
        _refuse(named, houses)
    return houses[0]


def _houses_of(app: Any) -> list[FlowStone]:
    """The FlowStones on this Celery app, by namespace; for None those that need no app."""
    from flowstone_celery.app import FlowStone
    from flowstone_celery.assets.declared import houses

    found = [house for house in houses() if isinstance(house, FlowStone) and house.app is app]
    return sorted(found, key=lambda house: house.namespace)


def _see_working_folder() -> None:
    """Modules of the working folder can be imported, as Celery has it."""
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)


def _import_all_modules(app: Any) -> None:
    """Celery's own discovery (include, imports, autodiscover_tasks) has been done."""
    if app is not None:
        try:
            app.loader.import_default_modules()
        except FlowStoneError:
            raise
        except (Exception, SystemExit) as error:  # noqa: BLE001 - a user's module may raise anything while it is imported
            _broken(f"a module of the Celery app {app.main or app!r}", error)


def _current_app() -> Any:
    """The app that Celery takes when none is named, if anything says which."""
    configured = any(name in os.environ for name in ("CELERY_CONFIG_MODULE", "CELERY_LOADER"))
    if os.environ.get("APP"):
        return _load(os.environ["APP"])
    if not configured and find_spec("celeryconfig") is None:
        raise ConfigError("no app was named", hint=f"{_HOW}{_candidates()}")
    from celery._state import get_current_app

    return get_current_app()


def _load(name: str) -> Any:
    """What the name stands for: a Celery app, a FlowStone, or None if the module has only a FlowStone without an app."""
    from celery.app.utils import find_app

    try:
        return find_app(name)
    except FlowStoneError:
        raise
    except ModuleNotFoundError as error:
        if error.name and f"{name.partition(':')[0]}.".startswith(f"{error.name}."):
            raise ConfigError(
                f"there is no module {error.name!r} for the app {name!r} ({Path.cwd()})",
                hint=f"Run the command in the folder that holds it.{_candidates(error.name)}",
            ) from error
        return _broken(f"the app {name!r}", error)
    except AttributeError as error:
        if _place(error) is None:
            return _without_app(name, error)
        return _broken(f"the app {name!r}", error)
    except (Exception, SystemExit) as error:  # noqa: BLE001 - a user's module may raise anything while it is imported
        return _broken(f"the app {name!r}", error)


def _without_app(name: str, error: AttributeError) -> Any:
    """A module without a Celery app may hold a FlowStone that needs none."""
    from flowstone_celery.app import FlowStone

    module = sys.modules.get(name)
    houses = [each for each in vars(module).values() if isinstance(each, FlowStone)] if module else []
    if len(houses) == 1:
        return houses[0]
    module_name, _, attribute = name.partition(":")
    held = sys.modules.get(module_name)
    near = did_you_mean(attribute, _apps_in(held)) if attribute and held else ""
    raise ConfigError(
        f"{name!r} names no Celery app: {error}",
        hint=near or "In the module: app = Celery('shop'); fs = FlowStone(app).",
    ) from error


def _apps_in(module: ModuleType) -> list[str]:
    from celery import Celery

    from flowstone_celery.app import FlowStone

    return [name for name, each in vars(module).items() if isinstance(each, Celery | FlowStone)]


def _refuse(named: Any, houses: Sequence[FlowStone]) -> NoReturn:
    which = f"the Celery app {getattr(named, 'main', None) or named!r}" if named else "this process"
    if houses:
        raise ConfigError(
            f"{which} has {len(houses)} FlowStones: {', '.join(each.namespace for each in houses)}",
            hint="Name the one that is meant: flowstone -A shop:fs …",
        )
    raise ConfigError(
        f"{which} has no FlowStone",
        hint="Add to its module: from flowstone_celery import FlowStone; fs = FlowStone(app).",
    )


def _candidates(name: str = "") -> str:
    """A hint on modules of the working folder that speak of FlowStone, nearest name first."""
    pages = [path for path in sorted(Path.cwd().glob("*.py")) if "FlowStone(" in _text(path)]
    stems = [path.stem for path in pages if not path.stem.startswith("test_")]
    near = did_you_mean(name, stems) if name else ""
    return f" {near}" if near else f" Here are: {', '.join(stems)}." if stems else ""


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


# --- broken modules ---------------------------------------------------------------------------------------------------------------


def _broken(what: str, error: BaseException) -> NoReturn:
    place = _place(error) or "a place without source"
    text = str(error).splitlines()[0] if str(error) else "no more is known"
    if isinstance(error, SyntaxError):
        text = error.msg
    raise ConfigError(
        f"{what} cannot be imported: {type(error).__name__}: {text} ({place})",
        hint="Mend it there; -v shows the whole traceback.",
        place=place,
    ) from error


def _place(error: BaseException) -> str | None:
    """`folder/file.py:14` of the user's line that failed: the innermost one that is not of Celery's or of the import itself."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{_short(error.filename)}:{error.lineno}"
    frames = [(frame, line) for frame, line in _frames(error.__traceback__) if not _is_foreign(frame)]
    here = str(Path.cwd())
    own = [each for each in frames if each[0].startswith(here) and "site-packages" not in each[0]] or frames
    return f"{_short(own[-1][0])}:{own[-1][1]}" if own else None


def _frames(trace: TracebackType | None) -> list[tuple[str, int]]:
    return [(frame.f_code.co_filename, line) for frame, line in traceback.walk_tb(trace)]


def _is_foreign(file: str) -> bool:
    return file.startswith(("<", *_foreign_folders()))


@cache
def _foreign_folders() -> tuple[str, ...]:
    modules = [sys.modules[name] for name in _NOT_THE_USERS if name in sys.modules]
    return tuple(f"{Path(each.__file__).parent}{os.sep}" for each in modules if each.__file__)


def _short(file: str) -> str:
    path = Path(file)
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
