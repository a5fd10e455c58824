"""The merge of parameters: what wins, what is kept, and where each value came from."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from provisiond.inventory.parameters import merge

_keys = st.text(alphabet="ab.\\", min_size=1, max_size=3)
_leaves = (
    st.none()
    | st.booleans()
    | st.integers(-3, 3)
    | st.text("xy", max_size=2)
    | st.lists(st.integers(0, 2), max_size=2)
)
_trees = st.dictionaries(
    _keys,
    st.recursive(_leaves, lambda inner: st.dictionaries(_keys, inner, max_size=3), max_leaves=6),
    max_size=4,
)
_places = st.lists(_trees, max_size=4).map(lambda trees: [(f"p{i}", tree) for i, tree in enumerate(trees)])


def leaves(value: Any, path: str = "") -> dict[str, Any]:
    """Dotted paths of all leaves, as ``origins`` writes them."""
    found: dict[str, Any] = {}
    for key, child in value.items():
        here = path + key.replace("\\", "\\\\").replace(".", "\\.")
        if isinstance(child, dict) and child:
            found |= leaves(child, here + ".")
        else:
            found[here] = child
    return found


def test_the_later_place_wins_and_tables_merge() -> None:
    """The example of the documentation, written out."""
    merged = merge(
        [
            ("global", {"dns": ["10.0.0.1"], "http": {"port": 80, "user": "www"}, "ntp": "pool"}),
            ("group web", {"dns": ["10.0.0.2"], "http": {"port": 8080}}),
            ("host web01", {"ntp": None, "http": {"tls": {"on": True}}}),
        ]
    )
    assert merged.values == {
        "dns": ["10.0.0.2"],
        "http": {"port": 8080, "user": "www", "tls": {"on": True}},
        "ntp": None,
    }
    assert merged.origins == {
        "dns": "group web", "http.port": "group web", "http.user": "global", "http.tls.on": "host web01", "ntp": "host web01",
    }  # fmt: skip


def test_a_table_and_a_value_replace_each_other() -> None:
    """A value over a table takes the whole of it away, and the other way round."""
    merged = merge([("a", {"x": {"y": 1, "z": 2}, "v": 1}), ("b", {"x": 5, "v": {"w": 2}})])
    assert merged.values == {"x": 5, "v": {"w": 2}}
    assert merged.origins == {"x": "b", "v.w": "b"}


def test_values_are_not_shown_in_repr() -> None:
    """Parameters may hold secrets."""
    assert "geheim" not in repr(merge([("host", {"password": "geheim"})]))


@given(_places)
def test_every_leaf_has_an_origin_that_says_the_same(places: list[tuple[str, dict[str, Any]]]) -> None:
    """Origins name exactly the leaves, and the place named has that value there; the inputs stay as they are."""
    before = deepcopy(places)
    merged = merge(places)
    assert places == before
    found = leaves(merged.values)
    assert found.keys() == merged.origins.keys()
    by_name = dict(places)
    for path, value in found.items():
        assert leaves(by_name[merged.origins[path]]).get(path, value) == value


@given(_places, _trees)
def test_the_last_place_is_always_seen(
    places: list[tuple[str, dict[str, Any]]], last: dict[str, Any]
) -> None:
    """Whatever came before, each leaf that is no empty table of the strongest place is in the result."""
    values = leaves(merge([*places, ("last", last)]).values)
    for path, value in leaves(last).items():
        if value != {}:
            assert values[path] == value


@given(_places)
def test_merging_in_two_steps_is_the_same(places: list[tuple[str, dict[str, Any]]]) -> None:
    """Merging a prefix first changes nothing (so a cache of the groups' part would be right)."""
    half = len(places) // 2
    assert merge([("first", merge(places[:half]).values), *places[half:]]).values == merge(places).values
