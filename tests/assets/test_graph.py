"""The graph of assets: order, closures, cycles and drawings, whatever the order of declaration."""

from __future__ import annotations

import itertools
import re
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowstone_celery.assets.asset import AssetSpec, Dependency
from flowstone_celery.assets.graph import AssetGraph
from flowstone_celery.errors import DependencyCycle, InvalidOption, UnknownAsset, UnknownDependency


def make() -> None:
    """Stands for the function of every asset here."""


def spec(name: str, *needs: str, namespace: str = "shop", optional: tuple[str, ...] = ()) -> AssetSpec:
    dependencies = tuple(Dependency(need, None, need in optional) for need in needs)
    return AssetSpec(name, namespace, make, dependencies, place=f"{namespace}/{name}.py:1")


def graph_of(edges: dict[str, Any]) -> AssetGraph:
    return AssetGraph(spec(name, *needs) for name, needs in edges.items())


SHOP = {
    "report": ["revenue", "stock"],
    "revenue": ["orders", "prices"],
    "stock": ["orders"],
    "orders": [],
    "prices": [],
}
NODES = "abcdefg"

any_edges = st.fixed_dictionaries({node: st.sets(st.sampled_from(NODES)) for node in NODES})
acyclic_edges = st.permutations(NODES).flatmap(
    lambda order: st.fixed_dictionaries(
        {
            node: st.sets(st.sampled_from(order[:index])) if index else st.just(set())
            for index, node in enumerate(order)
        }
    )
)


def has_cycle(edges: dict[str, set[str]]) -> bool:
    """By brute force: somewhere a node reaches itself."""
    reach = {node: set(needs) for node, needs in edges.items()}
    for through, source in itertools.product(NODES, NODES):
        if through in reach[source]:
            reach[source] |= reach[through]
    return any(node in reached for node, reached in reach.items())


@given(acyclic_edges)
def test_every_asset_stands_behind_what_it_needs(edges: dict[str, set[str]]) -> None:
    order = graph_of(edges).order
    assert sorted(order) == [f"shop.{node}" for node in NODES]
    for node, needs in edges.items():
        assert all(order.index(f"shop.{need}") < order.index(f"shop.{node}") for need in needs)


@given(acyclic_edges, st.permutations(NODES))
def test_the_order_does_not_know_the_order_of_declaration(
    edges: dict[str, set[str]], other: list[str]
) -> None:
    shuffled = graph_of({node: edges[node] for node in other})
    assert shuffled.order == graph_of(edges).order
    sorted_needs = {node: sorted(needs) for node, needs in edges.items()}
    drawings = {
        graph_of({node: sorted_needs[node] for node in nodes}).render("mermaid") for nodes in (NODES, other)
    }
    assert len(drawings) == 1


@given(any_edges)
def test_a_cycle_is_found_exactly_when_there_is_one_and_its_path_is_real(edges: dict[str, set[str]]) -> None:
    if not has_cycle(edges):
        graph_of(edges).check()
        return
    with pytest.raises(DependencyCycle) as caught:
        graph_of(edges).check()
    path = [name.removeprefix("shop.") for name in caught.value.facts["path"]]
    assert path[0] == path[-1] == min(path)
    assert len(set(path)) == len(path) - 1
    assert all(need in edges[node] for node, need in itertools.pairwise(path))
    assert " -> ".join(caught.value.facts["path"]) in str(caught.value)


@given(acyclic_edges)
def test_closures_hold_exactly_what_is_reached(edges: dict[str, set[str]]) -> None:
    graph = graph_of(edges)
    for node in NODES:
        name = f"shop.{node}"
        direct = {f"shop.{need}" for need in edges[node]}
        assert graph.upstream(name) == direct.union(*(graph.upstream(need) for need in direct))
        assert graph.downstream(name) == {
            f"shop.{user}" for user in NODES if name in graph.upstream(f"shop.{user}")
        }
        assert graph.plan(name) == tuple(
            each for each in graph.order if each in graph.upstream(name) | {name}
        )


def test_direct_edges_keep_the_order_of_the_declaration() -> None:
    graph = graph_of({"a": [], "b": [], "c": ["b", "a"], "d": ["b"]})
    assert graph.needs("shop.c") == ("shop.b", "shop.a")
    assert graph.needed_by("shop.b") == ("shop.c", "shop.d")
    assert graph.plan("shop.d", "shop.a") == ("shop.a", "shop.b", "shop.d")


def test_an_asset_that_needs_itself_is_a_cycle_of_one() -> None:
    with pytest.raises(DependencyCycle, match=r"shop\.a -> shop\.a"):
        graph_of({"a": ["a"]}).check()


def test_a_short_name_is_looked_for_in_its_own_namespace_and_a_dotted_one_as_it_is() -> None:
    ours, theirs = spec("orders"), spec("orders", namespace="sales")
    user = spec("revenue", "orders", "sales.orders")
    graph = AssetGraph([ours, theirs, user])
    assert graph.needs("shop.revenue") == ("shop.orders", "sales.orders")


@pytest.mark.parametrize(
    ("specs", "hint"),
    [
        ([spec("orders"), spec("revenue", "order")], "Did you mean 'orders'?"),
        (
            [spec("orders", namespace="sales"), spec("revenue", "orders")],
            "Did you mean 'sales.orders'? List it: deps=['sales.orders'].",
        ),
        ([spec("orders"), spec("revenue", "sales.orders")], "Did you mean 'shop.orders'?"),
        ([spec("orders", namespace="sales"), spec("revenue", "sales.order")], "Did you mean 'sales.orders'?"),
        ([spec("revenue", "revenu")], "Declare it"),
        ([spec("revenue", "zzz")], "Declare it, or give the parameter a default."),
    ],
)
def test_an_unknown_dependency_is_told_with_the_nearest_and_its_place(
    specs: list[AssetSpec], hint: str
) -> None:
    with pytest.raises(UnknownDependency) as caught:
        AssetGraph(specs).check()
    missing = caught.value.facts["dependency"]
    assert caught.value.facts["asset"] == "shop.revenue"
    assert str(caught.value).startswith(
        f"FS-1003 asset 'revenue' needs {missing!r}, which is not defined. {hint}"
    )
    assert str(caught.value).endswith("(shop/revenue.py:1)")


def test_nothing_is_checked_before_it_is_asked_for() -> None:
    graph = graph_of({"a": ["missing"]})
    for ask in (graph.check, graph.render, lambda: graph.order, lambda: graph.upstream("shop.a")):
        with pytest.raises(UnknownDependency):
            ask()


def test_an_unknown_asset_is_told_with_the_nearest() -> None:
    graph = graph_of(SHOP)
    for ask in (graph.upstream, graph.downstream, graph.plan, graph.needs, graph.needed_by):
        with pytest.raises(
            UnknownAsset, match=r"no asset 'shop\.ordres' is declared\. Did you mean 'shop\.orders'\?"
        ):
            ask("shop.ordres")


def test_the_ascii_drawing_has_one_line_for_each_asset() -> None:
    graph = AssetGraph(
        [spec("orders"), spec("prices"), spec("revenue", "orders", "prices", optional=("prices",))]
    )
    assert graph.render() == "shop.orders\nshop.prices\nshop.revenue <- shop.orders, shop.prices?"


def test_the_mermaid_drawing_names_nodes_by_number() -> None:
    graph = AssetGraph([spec("end"), spec("prices"), spec("revenue", "end", "prices", optional=("prices",))])
    assert graph.render("mermaid") == (
        'flowchart LR\n  n0["shop.end"]\n  n1["shop.prices"]\n  n2["shop.revenue"]\n  n0 --> n2\n  n1 -.-> n2'
    )


def test_the_dot_drawing_quotes_every_name() -> None:
    graph = AssetGraph(
        [spec("node"), spec("prices"), spec("revenue", "node", "prices", optional=("prices",))]
    )
    assert graph.render("dot") == (
        'digraph assets {\n  rankdir=LR;\n  "shop.node";\n  "shop.prices";\n  "shop.revenue";\n'
        '  "shop.node" -> "shop.revenue";\n  "shop.prices" -> "shop.revenue" [style=dashed];\n}'
    )


@pytest.mark.parametrize("format", ["ascii", "mermaid", "dot"])
def test_a_drawing_of_one_target_holds_what_it_needs_and_no_more(format: str) -> None:  # noqa: A002 - the parameter under test
    drawing = graph_of(SHOP).render(format, target="shop.revenue")
    assert set(re.findall(r"shop\.\w+", drawing)) == {"shop.revenue", "shop.orders", "shop.prices"}


@given(st.text(st.characters(codec="utf-8"), min_size=1))
def test_no_name_breaks_out_of_a_drawing(name: str) -> None:
    graph = AssetGraph([spec(name), spec("user", f"shop.{name}")])
    assert len(graph.render("ascii").split("\n")) == 2
    assert re.fullmatch(
        r'flowchart LR\n(  n[01]\["[A-Za-z0-9_. #;-]*"\]\n){2}  n\d --> n\d', graph.render("mermaid")
    )
    quoted = r'"(?:[^"\\\n]|\\["\\])*"'
    assert re.fullmatch(
        rf"digraph assets {{\n  rankdir=LR;\n(  {quoted};\n){{2}}  {quoted} -> {quoted};\n}}",
        graph.render("dot"),
    )


def test_an_unknown_format_is_told_with_the_nearest() -> None:
    with pytest.raises(InvalidOption, match=r"'mermiad'.* Did you mean 'mermaid'"):
        graph_of(SHOP).render("mermiad")
    with pytest.raises(InvalidOption, match="Use one of ascii, mermaid, dot"):
        graph_of(SHOP).render("png")


def test_five_thousand_assets_in_one_chain_take_no_recursion_and_little_time() -> None:
    count = 5_000
    edges = {f"a{n}": [f"a{m}" for m in (n - 1, n - 2, n // 2) if 0 <= m < n] for n in range(count)}
    begun = time.process_time()
    graph = graph_of({name: list(dict.fromkeys(needs)) for name, needs in edges.items()})
    assert len(graph.order) == count
    assert len(graph.upstream(f"shop.a{count - 1}")) == count - 1
    assert len(graph.downstream("shop.a0")) == count - 1
    assert all(graph.render(each).count("\n") >= count - 1 for each in ("ascii", "mermaid", "dot"))
    assert time.process_time() - begun < 5


def test_a_long_cycle_is_found_without_recursion() -> None:
    count = 5_000
    with pytest.raises(DependencyCycle) as caught:
        graph_of({f"a{n}": [f"a{(n + 1) % count}"] for n in range(count)}).check()
    assert len(caught.value.facts["path"]) == count + 1
    assert len(str(caught.value)) < 1_000
