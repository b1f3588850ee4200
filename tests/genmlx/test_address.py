"""Addresses: what is one, and what it looks like inside the library."""

import mlx.core as mx
import numpy as np
import pytest

from genmlx import GenError
from genmlx.address import normalise
from genmlx.errors import AddressError


class Name(str):
    pass


@pytest.mark.parametrize(
    "given, inside",
    [
        ("slope", ("slope",)),
        (3, (3,)),
        (("y", 3), ("y", 3)),
        (("a", ("b")), ("a", "b")),
        ((), ()),
        (np.int64(4), (4,)),
        (("y", np.int32(2)), ("y", 2)),
        (Name("x"), ("x",)),
        ("3", ("3",)),
    ],
)
def test_every_address_is_a_tuple_inside(given, inside):
    """Would catch a string split into letters, a numpy integer kept as a foreign key, '3' taken for 3."""
    found = normalise(given)
    assert found == inside
    assert [type(part) for part in found] == [type(part) for part in inside]


def test_a_digit_string_and_an_integer_are_different_addresses():
    assert normalise("3") != normalise(3)


@pytest.mark.parametrize(
    "given",
    [
        1.0,
        True,
        None,
        mx.array(1),
        ("y", mx.array(0)),
        ("y", 0.5),
        [1],
        np.array(1),
        np.bool_(True),
        (("a", "b"), "c"),
        {},
    ],
)
def test_anything_else_raises(given):
    """Would catch an array or a bool that silently becomes a key which no lookup finds again."""
    with pytest.raises(AddressError, match="is not an address") as info:
        normalise(given)
    assert isinstance(info.value, GenError) and isinstance(info.value, TypeError)
    assert "expected: a string, an integer, or a tuple of them" in str(info.value)
