"""Selections: what ``select("x")`` holds, and the laws of the algebra."""

import copy
import pickle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genmlx import Selection, select
from genmlx.errors import AddressError
from genmlx.selection import as_selection

parts = st.sampled_from(["a", "b", "1", 0, 1])
addresses = st.lists(parts, min_size=1, max_size=3).map(tuple)
anywhere = st.lists(parts, min_size=0, max_size=4).map(tuple)
simple = st.lists(addresses, max_size=3).map(lambda found: select(*found))
selections = st.recursive(
    simple | st.sampled_from([select.all(), select.none()]),
    lambda s: (
        s.map(lambda x: ~x) | st.tuples(s, s).map(lambda p: p[0] & p[1]) | st.tuples(s, s).map(lambda p: p[0] | p[1])
    ),
    max_leaves=5,
)
laws = settings(max_examples=200, deadline=None)


def test_a_name_selects_the_leaf_or_the_whole_subtree_and_nothing_else():
    """Would catch prefixes matched by spelling, and a name that also matches deeper down."""
    s = select("x")
    assert "x" in s and ("x", 0) in s and ("x", "y", "z") in s
    for other in ("xx", "y", ("y", "x"), (), 0):
        assert other not in s


def test_a_path_does_not_select_what_is_above_it():
    s = select(("x", 1))
    assert ("x", 1) in s and ("x", 1, "z") in s
    assert "x" not in s and ("x", 2) not in s and 1 not in s
    assert ("x", "1") not in s


def test_a_longer_name_under_a_shorter_one_adds_nothing():
    """In either order; would catch the second narrowing the first."""
    for s in (select("x", ("x", 1)), select(("x", 1), "x"), select(("x", 1, 2), ("x", 1), "x")):
        assert "x" in s and ("x", 2) in s and ("x", 1) in s


def test_all_none_and_the_empty_address():
    assert "x" in select.all() and () in select.all()
    assert "x" not in select.none()
    assert "x" in select(()) and "x" not in select()


def test_sub_selections():
    s = select("slope", ("y", 0))
    assert 0 in s["y"] and 1 not in s["y"]
    assert "anything" in s["slope"] and () in s["slope"]
    assert () not in s["nowhere"] and "x" not in s["nowhere"]


def test_named():
    """What strictness checks: every address that the expression spells out, under whatever operators."""
    s = ~(select("a", ("b", 0)) & ~select("c")) | select.all()["x"]
    assert set((~select("a", ("b", 0)) & select("c")).named()) == {("a",), ("b", 0), ("c",)}
    assert isinstance(s, Selection)
    assert list(select.all().named()) == list(select.none().named()) == []


def test_not_an_address():
    for wrong in (1.5, None, ["a"]):
        with pytest.raises(AddressError):
            select(wrong)
        with pytest.raises(AddressError):
            as_selection(wrong)
    assert "a" in as_selection("a") and ("y", 0) in as_selection(("y", 0))
    assert as_selection(select.all()) is select.all()


@laws
@given(selections, selections, anywhere)
def test_boolean_algebra(s, t, a):
    """Membership is a homomorphism; would catch a complement that forgets what lies below, or de Morgan broken."""
    assert (a in ~s) == (a not in s)
    assert (a in ~~s) == (a in s)
    assert (a in (s & t)) == (a in s and a in t)
    assert (a in (s | t)) == (a in s or a in t)
    assert (a in ~(s & t)) == (a in (~s | ~t))
    assert (a in ~(s | t)) == (a in (~s & ~t))
    assert a not in (s & ~s) and a in (s | ~s)


@laws
@given(selections, anywhere, anywhere)
def test_the_sub_selection_holds_what_the_selection_holds_below(s, prefix, rest):
    assert (rest in s[prefix]) == ((*prefix, *rest) in s)


@laws
@given(simple, addresses, anywhere)
def test_names_select_downwards(s, a, rest):
    """Once an address is selected by name, so is everything under it."""
    assert a not in s or (*a, *rest) in s


@laws
@given(selections, anywhere)
def test_repr_rebuilds(s, a):
    assert (a in eval(repr(s), {"select": select})) == (a in s)


@laws
@given(selections, anywhere)
def test_copies_are_equal(s, a):
    """Would catch a copy of select.all() that is not recognised any more."""
    for again in (copy.deepcopy(s), pickle.loads(pickle.dumps(s))):
        assert (a in again) == (a in s) and repr(again) == repr(s)
        assert list(again.named()) == list(s.named())
