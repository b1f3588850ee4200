"""A file with networks that is run again: their weights stay as long as they fit."""

import sys
from types import ModuleType

import mlx.core as mx
import pytest

from workbench.rerun import run_again

TEXT = """
import mlx.nn as nn
from genmlx import gen, neural, normal, splice, trace
class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear({wide}, 1)
    def __call__(self, x):
        return {factor} * self.inner(x)
net = neural(nn.Sequential(nn.Linear(2, {wide}), Block()))
@gen
def model(x):
    return trace("y", normal(splice(net(x))[0] + {shift}, 1.0))
"""


@pytest.fixture
def module(monkeypatch):
    made = ModuleType("of_networks")
    made.__file__ = "of_networks.py"
    monkeypatch.setitem(sys.modules, "of_networks", made)
    run(made)
    return made


def run(module, wide=3, factor=1.0, shift=0.0):
    code = compile(TEXT.format(wide=wide, factor=factor, shift=shift), "of_networks.py", "exec")
    if "net" in vars(module):
        return run_again(module, code, {}, set())
    exec(code, vars(module))


def mean(module):
    return module.net.module(mx.ones(2)).item()


def test_the_same_network_stays_with_its_weights_and_nothing_is_new(module):
    net, model, before = module.net, module.model, mean(module)
    tr = model(mx.ones(2)).simulate()
    run(module)
    assert module.net is net and mean(module) == before and not tr.stale
    run(module, shift=5.0)
    assert module.net is net and tr.stale
    score = module.model(mx.ones(2)).generate({"y": before + 5.0}).weight.item()
    assert score == pytest.approx(-0.9189385, abs=1e-5)


def test_a_changed_network_takes_over_what_was_trained_and_fits(module):
    module.net.params["layers.1.inner.bias"] = [7.0]
    old = module.net
    run(module, factor=2.0)  # the code of a layer
    assert module.net is not old and mean(module) == pytest.approx(2.0 * old.module(mx.ones(2)).item(), rel=1e-5)
    run(module, wide=4)  # the shape of all but that bias
    assert module.net.params["layers.1.inner.bias"].item() == 7.0
    assert module.net.params["layers.0.weight"].shape == (4, 2)


def test_a_changed_network_that_was_not_trained_starts_anew(module):
    old = module.net.params["layers.0.weight"]
    run(module, factor=2.0)
    assert not mx.array_equal(module.net.params["layers.0.weight"], old).item()
