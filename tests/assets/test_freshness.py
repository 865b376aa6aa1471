"""Freshness: what the engine says of random graphs after random acts is what a model of it says; and what it costs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from onedb import flowstone_settings, module_settings, sql  # noqa: F401 - fixtures: one database for a module, wiped

from flowstone_celery import FlowStone
from flowstone_celery.assets.freshness import assess
from flowstone_celery.assets.reasons import (
    Standing,
)
from flowstone_celery.assets.slices import Slice, Slices
from flowstone_celery.db.database import Database
from flowstone_celery.record import standing

if TYPE_CHECKING:
    from flowstone_celery.config import Settings


# --- a world of assets, and a model of what is fresh in it ------------------------------------------------------------------------


@dataclass
class Made:
    """What the model knows of a value: its content, and what it was made of."""

    content: str
    code: str
    used: dict[str, str]
    invalidated: bool = False


@dataclass
class World:
    """Assets `a0`, `a1`, …, each made from some before it, in the engine and in the model side by side."""

    settings: Settings
    codes: dict[str, int] = field(default_factory=dict)
    needs: dict[str, list[str]] = field(default_factory=dict)
    salts: dict[str, int] = field(default_factory=dict)
    """What the content depends on besides the inputs: a source that changes by itself."""
    made: dict[str, Made] = field(default_factory=dict)
    fs: FlowStone | None = None

    def declared(self) -> FlowStone:
        """A FlowStone whose assets are as the model has them now."""
        if self.fs is None:
            self.fs = FlowStone(mode="inline", namespace="world", settings=self.settings)
            for name in self.codes:
                self._declare(self.fs, name)
        return self.fs

    def _declare(self, fs: FlowStone, name: str) -> None:
        # Contents fall together often, so that inputs come out as they were.
        source = f"lambda {', '.join(self.needs[name])}: content({name!r}, {', '.join(self.needs[name])})"
        names: dict[str, Any] = {"content": lambda name, *inputs: self._content(name, list(inputs))}
        fs.asset(name=name, code_version=str(self.codes[name]))(eval(source, names))

    def _content(self, name: str, inputs: list[str]) -> str:
        return f"{name}:{(self.salts[name] + sum(int(each[-1]) for each in inputs)) % 2}"

    def close(self) -> None:
        if self.fs is not None:
            self.fs.close()
        self.fs = None

    # --- acts -----------------------------------------------------------------------------------------------------------------

    def add(self, needs: list[str]) -> None:
        name = f"a{len(self.codes)}"
        self.codes[name], self.needs[name], self.salts[name] = 1, needs, 0
        self.close()

    def make(self, name: str) -> None:
        """The asset alone, as far as its inputs are there."""
        if any(need not in self.made for need in self.needs[name]):
            return
        self.declared().materialize(name)
        self._note(name)

    def _note(self, name: str) -> None:
        used = {need: self.made[need].content for need in self.needs[name]}
        self.made[name] = Made(self._content(name, list(used.values())), str(self.codes[name]), used)

    def change_code(self, name: str) -> None:
        self.codes[name] += 1
        self.close()

    def change_source(self, name: str) -> None:
        self.salts[name] += 1

    def depend(self, name: str, on: str) -> None:
        if on < name and on not in self.needs[name]:
            self.needs[name].append(on)
            self.close()

    def forget(self, name: str) -> None:
        if self.needs[name]:
            self.needs[name].pop()
            self.close()

    def invalidate(self, name: str) -> None:
        fs = self.declared()
        marked = standing.invalidate(
            fs.database, f"world.{name}", "", cascade=False, reason="wrong", actor="ada"
        )
        expected = name in self.made and not self.made[name].invalidated
        assert marked == ([(f"world.{name}", "")] if expected else [])
        if name in self.made:
            self.made[name].invalidated = True

    # --- what holds -----------------------------------------------------------------------------------------------------------

    def expected(self) -> dict[str, str]:
        states: dict[str, str] = {}
        for name in self.codes:
            states[name] = self._expected(name, states)
        return states

    def _expected(self, name: str, states: dict[str, str]) -> str:
        if name not in self.made:
            return "missing"
        value = self.made[name]
        now = {need: self.made[need].content for need in self.needs[name] if need in self.made}
        stale = (
            value.invalidated
            or value.code != str(self.codes[name])
            or value.used != now
            or any(states[need] != "fresh" for need in self.needs[name])
        )
        return "stale" if stale else "fresh"

    def check(self) -> None:
        fs = self.declared()
        found = standings(fs)
        assert {each.asset.removeprefix("world."): each.state.value for each in found.values()} == (
            self.expected()
        )
        for each in found.values():
            assert bool(each.reasons) == (not each.is_fresh)
            assert each.sentence

    def bring_about(self, name: str) -> None:
        """`run` makes what is missing or stale on the way, and leaves the target fresh; what comes out as it was spares the rest."""
        run = self.declared().run(name)
        run.get()
        for each in self._up(name):
            if self.expected()[each] != "fresh":
                self._note(each)
        assert self.declared().freshness(name).is_fresh

    def _up(self, name: str) -> list[str]:
        """The asset and all that it stands on, each behind what it needs."""
        wanted, ahead = {name}, [name]
        while ahead:
            new = [need for need in self.needs[ahead.pop()] if need not in wanted]
            wanted.update(new)
            ahead += new
        return sorted(wanted, key=lambda each: int(each[1:]))


def standings(fs: FlowStone) -> dict[Slice, Standing]:
    """How everything declared stands."""
    slices = Slices(fs.catalog)
    return assess(
        fs.catalog, fs.database, slices.needs, [Slice(each.qualified) for each in fs.catalog.list()]
    )


ACTS = ("add", "make", "make", "make", "code", "source", "depend", "forget", "invalidate", "run")
acts = st.lists(
    st.tuples(st.sampled_from(ACTS), st.integers(0, 7), st.integers(0, 7)), min_size=6, max_size=20
)


def test_the_engine_says_what_the_model_says_whatever_happened(flowstone_settings: Settings) -> None:  # noqa: F811 - the fixture
    database = Database(flowstone_settings.database_url or "")

    @settings(
        max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow], phases=[Phase.generate]
    )
    @given(acts)
    def story(acts: list[tuple[str, int, int]]) -> None:
        for table in ("lineage", "asset_current", "asset_values"):
            sql(database, f"DELETE FROM flowstone.{table}")
        world = World(flowstone_settings)
        try:
            for needs in ([], [], ["a0"], ["a0", "a1"], ["a2", "a3"]):
                world.add(needs)
            for act, one, two in acts:
                _do(world, act, f"a{one % len(world.codes)}", f"a{two % len(world.codes)}")
                world.check()
        finally:
            world.close()

    story()
    database.dispose()


def _do(world: World, act: str, one: str, two: str) -> None:
    match act:
        case "add":
            world.add(sorted({one, two})) if len(world.codes) < 8 else world.make(one)
        case "make":
            world.make(one)
        case "code":
            world.change_code(one)
        case "source":
            world.change_source(one)
        case "depend":
            world.depend(one, two)
        case "forget":
            world.forget(one)
        case "invalidate":
            world.invalidate(one)
        case "run":
            world.bring_about(one)
