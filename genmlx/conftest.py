"""For pytest: the model that the doctests of the interface speak of."""

import mlx.core as mx
import pytest

import genmlx


@genmlx.gen
def model(p):
    a = genmlx.trace("a", genmlx.flip(p))
    return genmlx.trace("x", genmlx.normal(a, 1.0))


@pytest.fixture(autouse=True)
def _names(doctest_namespace):
    doctest_namespace.update(model=model, mx=mx, select=genmlx.select)
