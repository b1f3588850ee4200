"""For pytest: the model that the doctests of the interface speak of."""

import mlx.core as mx
import pytest

import genmlx
from genmlx.gen import _handles


@genmlx.gen
def model(p):
    a = genmlx.trace("a", genmlx.flip(p))
    return genmlx.trace("x", genmlx.normal(a, 1.0))


@pytest.fixture(autouse=True)
def _names(doctest_namespace):
    """Models of one example are not those of the next that have their names."""
    doctest_namespace.update(model=model, mx=mx, select=genmlx.select)
    before = set(_handles)
    yield
    for name in set(_handles) - before:
        del _handles[name]
