"""Freshness: what the engine says of random graphs after random acts is what a model of it says; and what it costs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from onedb import flowstone_settings, module_settings, sql  # noqa: F401 - fixtures: one database for a module, wiped

from flowstone_celery import FlowStone
from flowstone_celery.assets.asset import AssetSpec, declare
from flowstone_celery.assets.freshness import assess
from flowstone_celery.assets.reasons import InputStale, Invalidated, Standing
from flowstone_celery.assets.recipe import code_change, code_of, recipe
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
        max_examples=40,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow],
        phases=[Phase.explicit, Phase.reuse, Phase.generate],
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

    try:
        story()
    finally:
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


# --- what a recipe is made of -----------------------------------------------------------------------------------------------------


def _spec(fn: Any = lambda: 1, **options: Any) -> AssetSpec:
    return declare(fn, namespace="world", **{"name": "a", **options})


def test_a_recipe_is_code_and_content_whatever_the_order_of_the_inputs() -> None:
    spec = _spec()
    one, two = ("world.b", "", "digest of b"), ("world.c", "d:2026-11-20", "digest of c")
    assert recipe(spec, [one, two]) == recipe(spec, [two, one, two])
    assert recipe(spec, [one]) != recipe(spec, [two])
    assert recipe(spec, [("world.b", "p", "d")]) != recipe(spec, [("world.bp", "", "d")])
    assert recipe(spec, [one]) != recipe(_spec(lambda: 2), [one])
    assert recipe(_spec(code_version="1"), [one]) == recipe(_spec(lambda: 2, code_version="1"), [one])


def test_another_minor_version_of_python_compares_no_code_and_a_declared_version_always_does() -> None:
    spec, named = _spec(), _spec(code_version="2")
    assert code_change(spec, "python3.9:another digest", "another digest") is None
    assert code_change(spec, code_of(spec), spec.code_digest) is None
    assert code_change(spec, code_of(_spec(lambda: 2)), "another digest") is not None
    assert code_change(named, "version:1", "any digest of any minor") == ("'1'", "'2'")


def test_to_begin_or_to_cease_to_name_a_version_of_the_same_code_is_no_change() -> None:
    spec, named = _spec(), _spec(code_version="2")
    assert code_change(named, code_of(spec), spec.code_digest) is None
    assert code_change(spec, code_of(named), named.code_digest) is None
    assert code_change(named, code_of(spec), "digest of other code") is not None


# --- what it costs ----------------------------------------------------------------------------------------------------------------


def test_the_number_of_statements_does_not_grow_with_the_slices(
    flowstone_settings: Settings,  # noqa: F811 - the fixture
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fs = FlowStone(mode="inline", namespace="world", settings=flowstone_settings)
    try:
        fs.asset(name="raw")(lambda: 1)
        fs.asset(name="total")(lambda raw: raw)
        for day in range(12):
            fs.run("total", partition=day)
        sql(fs.database, "UPDATE flowstone.asset_values SET recipe = NULL WHERE partition <> '3'")
        asked: list[str] = []
        once = fs.database.once
        monkeypatch.setattr(
            fs.database,
            "once",
            lambda statement, **values: (asked.append(statement.name), once(statement, **values))[1],
        )
        found = fs.freshness_of(fs.slice("total", day) for day in range(500))
        assert sorted(each.state for each in found.values()) == ["fresh"] * 12 + ["missing"] * 488
        assert asked == ["currents", "consumed_by"]
    finally:
        fs.close()


def test_a_chain_of_a_thousand_stale_assets_is_told_without_recursion(flowstone_settings: Settings) -> None:  # noqa: F811 - the fixture
    fs = FlowStone(mode="inline", namespace="world", settings=flowstone_settings)
    try:
        for number in range(1_000):
            fs.asset(name=f"a{number}", deps=[f"a{number - 1}"] if number else [])(lambda: 1)
        fs.materialize_all("a999")
        assert fs.freshness("a999").is_fresh
        assert fs.invalidate("a0") == 1
        (reason,) = fs.freshness("a999").reasons
        assert isinstance(reason, InputStale)
        assert len(reason.path) == 999
        assert isinstance(reason.root, Invalidated)
        assert reason.sentence
        assert len(fs.why("a999").splitlines()) < 40
        assert "…" in reason.sentence
    finally:
        fs.close()
