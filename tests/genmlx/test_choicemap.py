"""Choice maps: reading, the algebra, immutability, errors that help, and a repr that rebuilds."""

import math

import mlx.core as mx
import numpy as np
import optree
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genmlx import ChoiceMap, choicemap, normal, select
from genmlx.choicemap import EMPTY, covering, from_items
from genmlx.errors import AddressError, UnknownAddress, UsageError
from genmlx.masked import Masked
from genmlx.pytree import NAMESPACE

CM = choicemap({"slope": 2.0, ("y", 0): 2.1, ("y", 1): 3.9})


# reading


def test_reading_a_leaf_and_a_sub_map():
    """Would catch a prefix that raises, or a sub-map that keeps its full addresses."""
    assert CM["slope"] == 2.0
    assert CM["y", 0] == 2.1
    assert CM["y"] == choicemap({0: 2.1, 1: 3.9})
    assert CM["y"][1] == 3.9
    assert CM[()] == CM


def test_leaves_are_counted_and_prefixes_are_not():
    """Case 12: x holds two leaves and one sub-map."""
    cm = choicemap({"y": 1.0, ("x", 1): 2.0, ("x", 2): 3.0, ("x", 3, "z"): 4.0})
    assert len(cm) == 4
    assert len(cm["x"]) == 3
    assert len(cm["x"][3]) == 1
    assert cm["x"][3]["z"] == 4.0
    assert [len(a) for a in cm["x"].addresses()] == [1, 1, 2]


def test_membership_and_get():
    """Would catch `in` that means only leaves, and `get` that returns an empty map for what is missing."""
    assert "slope" in CM and ("y", 0) in CM and "y" in CM
    assert "x" not in CM and ("y", 2) not in CM and ("slope", 0) not in CM
    assert CM.get("slope") == 2.0 and CM.get("y") == choicemap({0: 2.1, 1: 3.9})
    assert CM.get("x") is None and CM.get(("slope", 0), 7) == 7


def test_insertion_order():
    """Would catch sorted addresses; an override keeps its place, as in a dict."""
    cm = choicemap({"b": 1, "a": 2, ("c", 1): 3, ("c", 0): 4})
    assert cm.addresses() == [("b",), ("a",), ("c", 1), ("c", 0)]
    assert [v for _, v in cm.items()] == [1, 2, 3, 4]
    assert cm.merge({"a": 9, "d": 0}).addresses() == [("b",), ("a",), ("c", 1), ("c", 0), ("d",)]
    assert cm.set("b", 9).addresses() == cm.addresses()
    assert cm.set(("c", 1), 9).addresses() == cm.addresses()
    assert list(cm) == cm.addresses()


def test_a_dict_as_a_value_is_a_sub_map():
    assert choicemap({"a": {"b": 1, ("c", 0): 2}}) == choicemap({("a", "b"): 1, ("a", "c", 0): 2})
    assert choicemap({"a": choicemap(b=1)}) == choicemap({("a", "b"): 1})
    assert choicemap({"a": 1}, b=2) == choicemap({"a": 1, "b": 2}) == choicemap(a=1, b=2)


def test_a_string_and_an_integer_key_do_not_mix():
    """Would catch keys compared by their spelling."""
    cm = choicemap({"1": "text", 1: "number"})
    assert len(cm) == 2 and cm["1"] == "text" and cm[1] == "number"


def test_empty_sub_maps_leave_nothing_behind():
    """A map without leaves is the empty map; would catch {"x": {}} passing for a constraint."""
    for cm in (choicemap({"x": {}}), choicemap({"x": {"y": {}}}), choicemap().set("x", {}), choicemap({})):
        assert cm.is_empty and not cm and len(cm) == 0 and cm == EMPTY
        assert "x" not in cm
        assert repr(cm) == "choicemap({})"
    assert choicemap({"x": 1, "y": {}}).addresses() == [("x",)]


@pytest.mark.parametrize(
    "address, near", [("slpe", ("slope",)), (("y", 2), ("y", 1)), ("Y", None), (("y", "0"), ("y", 0))]
)
def test_a_missing_address_names_the_nearest(address, near):
    """Would catch a bare KeyError, and suggestions that have nothing to do with the address."""
    with pytest.raises(KeyError) as info:
        CM[address]
    error = info.value
    assert isinstance(error, UnknownAddress)
    assert error.address == (address if isinstance(address, tuple) else (address,))
    assert (error.suggestions[0] if error.suggestions else None) == near
    assert "expected: one of 'slope', ('y', 0), ('y', 1)" in str(error)


# the algebra


def test_set_over_a_leaf_a_sub_map_and_with_a_sub_map():
    """set puts the value in the place of whatever was at or under the address."""
    assert CM.set("slope", 3.0)["slope"] == 3.0
    assert CM.set("y", 1.0).to_dict() == {("slope",): 2.0, ("y",): 1.0}
    assert CM.set("y", {"z": 1.0}).to_dict() == {("slope",): 2.0, ("y", "z"): 1.0}
    assert CM.set(("y", 2), 1.0).to_dict()[("y", 2)] == 1.0
    assert CM.set("y", {}).to_dict() == {("slope",): 2.0}
    assert choicemap().set(("a", "b", 0), 1).to_dict() == {("a", "b", 0): 1}
    assert CM.set((), 5.0) == choicemap({(): 5.0})


def test_set_under_a_leaf_raises():
    with pytest.raises(AddressError) as info:
        CM.set(("slope", 0), 1.0)
    assert info.value.address == ("slope",)


def test_merge_prefers_the_other():
    merged = CM.merge({"slope": 5.0, ("y", 2): 1.0})
    assert merged.to_dict() == {("slope",): 5.0, ("y", 0): 2.1, ("y", 1): 3.9, ("y", 2): 1.0}
    assert CM | {"slope": 5.0} == CM.merge({"slope": 5.0})
    assert {"slope": 5.0} | CM == CM.merge({}) == CM


@pytest.mark.parametrize("other", [{("slope", 0): 1.0}, {"y": 1.0}, {"y": {0: {"deep": 1.0}}}])
def test_a_leaf_against_a_sub_map_raises_both_ways(other):
    """Would catch a merge that lets one swallow the other."""
    for left, right in ((CM, other), (choicemap(other), CM)):
        with pytest.raises(AddressError, match="value where the other has a sub-map") as info:
            left.merge(right)
        assert info.value.address in {("slope",), ("y",), ("y", 0)}


def test_a_map_that_names_a_choice_twice_raises():
    with pytest.raises(AddressError, match="twice") as info:
        choicemap({"a": 1, ("a",): 2})
    assert info.value.address == ("a",)
    with pytest.raises(AddressError):
        choicemap({"a": 1, ("a", "b"): 2})
    with pytest.raises(AddressError):
        choicemap({(): 1, "a": 2})


def test_filter_and_without():
    assert CM.filter(select("y")).to_dict() == {("y", 0): 2.1, ("y", 1): 3.9}
    assert CM.filter("slope").to_dict() == {("slope",): 2.0}
    assert CM.without(select(("y", 0))).to_dict() == {("slope",): 2.0, ("y", 1): 3.9}
    assert CM.filter(select.none()) == EMPTY and CM.without(select.all()) == EMPTY
    assert CM.filter(select(("slope", 0))) == EMPTY  # what lies under a leaf is not the leaf


def test_something_that_is_no_map_raises():
    for wrong in (3.0, [("a", 1)], "a"):
        with pytest.raises(UsageError, match="is not a choice map"):
            CM.merge(wrong)


# immutability


def test_no_operation_changes_a_map():
    """Would catch sub-maps that are shared and then written to."""
    before = dict(CM.to_dict())
    for result in (
        CM.set("slope", 9),
        CM.set(("y", 5), 9),
        CM.merge({("y", 0): 9, "z": 1}),
        CM.filter("y"),
        CM.without("y"),
        CM.map(lambda v: 0),
        from_items([((), CM), (("new",), 1)]),
        from_items([(("y",), CM["y"]), (("z",), 1)]),
    ):
        assert result is not CM
        assert CM.to_dict() == before


def test_a_map_does_not_follow_the_dict_that_made_it():
    given = {"a": {"b": 1}}
    cm = choicemap(given)
    given["a"]["b"] = 2
    given["c"] = 3
    assert cm.to_dict() == {("a", "b"): 1}
    out = cm.to_dict()
    out[("x",)] = 1
    assert "x" not in cm


def test_item_assignment_is_not_there():
    with pytest.raises(TypeError):
        CM["slope"] = 1.0
    with pytest.raises(TypeError):
        hash(CM)


# equality


def test_equality_compares_values_and_shapes():
    assert choicemap(a=1.0) == choicemap(a=mx.array(1.0))
    assert choicemap(a=mx.array([1.0])) != choicemap(a=1.0)
    assert choicemap(a=1.0) != choicemap(b=1.0)
    assert choicemap(a=1.0) != choicemap(a=1.0, b=2.0)
    assert choicemap(a=math.nan) == choicemap(a=math.nan)
    assert choicemap({"a": 1, "b": 2}) == choicemap({"b": 2, "a": 1})
    assert choicemap(a=1) != {"a": 1}
    assert choicemap(a="red") == choicemap(a="red") != choicemap(a="blue")
    assert choicemap(a="red") != choicemap(a=1.0)


# repr


@pytest.mark.parametrize(
    "entries",
    [
        {},
        {"a": 1, "b": -2.5, ("c", 0, "d"): True},
        {"a": math.inf, "b": -math.inf, "c": math.nan, "d": -0.0, "e": 1e-30, "f": 1e30},
        {"1": 1, 1: 2, ("2", 2): 3},
        {"it's": 1, 'say "x"': 2, "new\nline": 3},
        {(): 3.5},
        {(): mx.array([1.0, 2.0])},
        {"a": mx.array([1.0, -2.5, math.inf, -math.inf, math.nan])},
        {"a": mx.array([[1, 2], [3, 4]]), "b": mx.array([True, False]), "c": mx.array(True), "d": mx.array(3)},
        {"a": mx.array(0.1), "b": mx.array(16777213.0), "c": mx.array(1 / 3), "d": mx.array([1e-38, 3.4e38])},
        {"a": mx.array([1, 2], mx.uint8), "b": mx.array([0.1], mx.bfloat16), "c": mx.array([1 + 2j])},
        {"a": np.float32(0.5), "b": np.array([1.0, 2.0]), "c": np.int64(3)},
        {"a": [1.0, math.inf], "b": "red", "c": (1.0, -math.inf), "d": (1,)},
    ],
    ids=str,
)
def test_repr_rebuilds_small_maps(entries):
    """Would catch inf as a bare name, mx.bool, digits that are cut off, keys that change their type, lost dtypes."""
    cm = choicemap(entries)
    rebuilt = eval(repr(cm), {"choicemap": choicemap, "mx": mx})
    assert rebuilt.addresses() == cm.addresses()
    for address, value in cm.items():
        if isinstance(value, str):
            assert rebuilt[address] == value
            continue
        a, b = mx.array(value), mx.array(rebuilt[address] if address else rebuilt.value)
        assert a.shape == b.shape
        assert mx.array_equal(a, b, equal_nan=True).item(), (a, b)
        if a.ndim and isinstance(value, mx.array):
            assert a.dtype == b.dtype


@settings(max_examples=200, deadline=None)
@given(st.floats(width=32, allow_nan=False))
def test_repr_keeps_every_bit_of_a_float32(x):
    """Would catch seven digits, which do not tell neighbouring float32 numbers apart."""
    cm = choicemap(a=mx.array(x, mx.float32))
    rebuilt = eval(repr(cm), {"choicemap": choicemap, "mx": mx})
    assert np.float32(rebuilt["a"]) == np.float32(x)


def test_repr_of_a_large_map_is_short():
    cm = choicemap({("y", i): mx.zeros((100,)) for i in range(1000)})
    assert repr(cm).startswith("choicemap({('y', 0): <f32[100]>, ")
    assert "...+992" in repr(cm) and len(repr(cm)) < 400


def test_repr_inside_a_transformation_does_not_raise():
    """A print in a body must not be what breaks a batch."""
    seen = []

    def f(x):
        seen.append(repr(choicemap(a=x, b=mx.stack([x, x]))))
        return x

    mx.vmap(f)(mx.arange(3.0))
    assert seen[-1] == "choicemap({'a': <f32[]>, 'b': <f32[2]>})"


def test_a_call_shows_lists_of_arrays():
    """What is shown is what could be typed; inside a transformation there is no value to show."""
    xs = [mx.array(1.0), 2.0, (math.inf, "a")]
    assert repr(normal(xs, 1.0)) == "normal([1.0, 2.0, (float('inf'), 'a')], 1.0)"


# batches and trees


def test_lanes():
    """A plain value set into, or merged with, a map of lanes is shared by the lanes."""
    cm = choicemap(a=mx.arange(3.0)).batched(3)
    for both in (cm.set("b", 1.0), cm.merge({"b": 1.0}), choicemap(b=1.0).merge(cm)):
        assert both.n == 3 and both["b"].tolist() == [1.0, 1.0, 1.0] and both["a"].tolist() == [0.0, 1.0, 2.0]
    assert cm.lane(1)["a"].item() == 1.0 and cm.lane(1).n is None
    assert choicemap(x=0.0).set("s", cm).n == 3
    with pytest.raises(UsageError, match="no 4 lanes"):
        cm.batched(4)
    with pytest.raises(UsageError, match="3 and 2 lanes"):
        cm.merge(choicemap(b=mx.zeros(2)).batched(2))


def test_a_choice_map_is_a_tree():
    doubled = optree.tree_map(lambda v: 2 * v, CM, namespace=NAMESPACE)
    assert isinstance(doubled, ChoiceMap)
    assert doubled.to_dict() == {a: 2 * v for a, v in CM.to_dict().items()}
    leaf = optree.tree_map(lambda v: v + 1, choicemap({(): 1}), namespace=NAMESPACE)
    assert leaf.is_leaf and leaf.value == 2


# laws

parts = st.sampled_from(["a", "b", "1", 0, 1])
addresses = st.lists(parts, min_size=1, max_size=3).map(tuple)


def _free(pairs):
    """The pairs without those that would collide with an earlier one."""
    kept = {}
    for address, value in pairs:
        if not any(address[: len(k)] == k or k[: len(address)] == address for k in kept):
            kept[address] = value
    return kept


entries = st.lists(st.tuples(addresses, st.integers(-3, 3)), max_size=6).map(_free)
maps = entries.map(choicemap)
selections = st.recursive(
    st.lists(addresses, max_size=3).map(lambda found: select(*found)) | st.sampled_from([select.all(), select.none()]),
    lambda s: (
        s.map(lambda x: ~x) | st.tuples(s, s).map(lambda p: p[0] & p[1]) | st.tuples(s, s).map(lambda p: p[0] | p[1])
    ),
    max_leaves=4,
)
laws = settings(max_examples=150, deadline=None)


def _try(f):
    try:
        return f().to_dict()
    except AddressError:
        return "collision"


@laws
@given(maps, maps, maps)
def test_merge_is_associative_where_defined(a, b, c):
    assert _try(lambda: (a | b) | c) == _try(lambda: a | (b | c))


@laws
@given(maps, maps)
def test_merge_is_what_a_dict_does(a, b):
    """Where no leaf meets a sub-map, the merge is that of the dicts, in values and in set of addresses."""
    expected = a.to_dict() | b.to_dict()
    merged = _try(lambda: a | b)
    assert merged == (expected if len(_free(expected.items())) == len(expected) else "collision")


@laws
@given(maps)
def test_merge_with_itself_and_with_nothing(a):
    assert (a | a).to_dict() == (a | EMPTY).to_dict() == (EMPTY | a).to_dict() == a.to_dict()


@laws
@given(maps, selections)
def test_filter_and_without_make_the_whole(cm, s):
    """Every choice is in exactly one of the two parts."""
    inside, outside = cm.filter(s), cm.without(s)
    assert inside | outside == cm
    assert len(inside) + len(outside) == len(cm)
    assert all(a in s for a in inside) and not any(a in s for a in outside)


@laws
@given(entries)
def test_to_dict_round_trip(found):
    cm = choicemap(found)
    assert cm.to_dict() == found
    assert choicemap(cm.to_dict()).to_dict() == found
    assert eval(repr(cm), {"choicemap": choicemap}) == cm
    assert from_items(cm.items()) == cm
    assert len(cm) == len(found)


@laws
@given(maps, addresses, st.integers())
def test_set_then_read(cm, address, value):
    """After a set the address holds the value, and everything that is not at or under it is as before."""
    try:
        new = cm.set(address, value)
    except AddressError:
        assert any(address[: len(a)] == a and len(a) < len(address) for a in cm)
        return
    assert new[address] == value
    rest = {a: v for a, v in cm.to_dict().items() if a[: len(address)] != address}
    assert {a: v for a, v in new.to_dict().items() if a != address} == rest


@laws
@given(maps)
def test_covering_selects_exactly_the_addresses(cm):
    s = covering(cm)
    assert cm.filter(s) == cm and cm.without(s) == EMPTY
    assert "elsewhere" not in s and () not in s


def test_a_mask_that_is_open_everywhere_or_nowhere_says_the_same_as_no_mask():
    plain, value = choicemap(a=mx.array([1.0, 2.0])), mx.array([1.0, 2.0])
    everywhere, nowhere = mx.array([True, True]), mx.array([False, False])
    assert choicemap(a=Masked(value, everywhere)) == plain == choicemap(a=value, b=Masked(value, nowhere))
    assert choicemap(a=Masked(value, mx.array([True, False]))) != plain
    assert choicemap(a=Masked(value, nowhere)) == choicemap() != choicemap(a=Masked(value, mx.array([True, False])))
