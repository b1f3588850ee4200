"""The gradient of an objective: as it is recorded, and as it is run each time."""

import mlx.core as mx
import pytest

from genmlx import gen, lecture, log_evidence, normal, param, smc_log_evidence, trace, unfold
from genmlx.errors import UsageError
from genmlx.learning import elbo, gradient, over_rows, wake
from genmlx.learning.objective import Objective, value_and_gradient


@gen
def model():
    trace("x", normal(trace("z", normal(param("theta", 0.5), 1.0)), 1.0))


@gen
def guide(x):
    trace("z", normal(param("a", 0.3) * x, mx.exp(param("log_sd", 0.2))))


def see(choices):
    return guide(choices["x"])


XS = mx.array([1.0, 2.0, -1.0])
OBJECTIVES = {
    "lecture": lambda xs, key: lecture(model(), see, 20, key),
    "wake": lambda xs, key: wake(model(), {"x": xs}, see, 2, key),
    "elbo": lambda xs, key: elbo(model(), {"x": xs[0]}, guide(xs[0]), 3, key),
    "evidence": lambda xs, key: log_evidence(model(), {"x": xs[0]}, 10, key=key),
    "proposal": lambda xs, key: log_evidence(model(), {"x": xs[0]}, 10, proposal=guide(xs[0]), key=key),
    "rows": lambda xs, key: mx.sum(over_rows(lambda x, key: log_evidence(model(), {"x": x}, 10, key=key), xs, key)),
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_both_ways_give_the_same(name):
    """What is recorded traces the parameters all the way; elsewhere the constants are made before, of the same key."""
    objective, key = Objective(OBJECTIVES[name]), mx.random.key(3)
    reads = objective.reads(XS, 2.0, key, None)
    found = [
        value_and_gradient(objective, list(reads), list(reads.values()), XS, 2.0, key, traced)
        for traced in (True, False)
    ]
    for (value, slopes), (other, others) in [found]:
        assert value[0].item() == pytest.approx(other[0].item(), rel=1e-5)
        for slope, again in zip(slopes, others, strict=True):
            assert slope.item() == pytest.approx(again.item(), rel=1e-4, abs=1e-6) and slope.item() != 0.0


def test_what_is_drawn_on_the_host_is_drawn_before():
    """Sequential Monte Carlo looks at host values, which a differentiated run cannot; its particles are the same."""

    @gen
    def step(t, x):
        x = trace("x", normal(param("drift", 0.4) + x, 1.0))
        trace("y", normal(x, 1.0))
        return x

    walk = unfold(step)
    steps = [(walk(t + 1, 0.0), {(t, "y"): y}) for t, y in enumerate([1.0, 2.0, 0.5])]

    def objective(key):
        return smc_log_evidence(steps, 50, key)

    key = mx.random.key(1)
    one, again = (gradient(objective, key=key)[step, "drift"].item() for _ in range(2))
    assert one == again != gradient(objective, key=mx.random.key(2))[step, "drift"].item()


def test_a_gradient_names_what_it_is_of():
    found = gradient(lambda x: model().assess({"x": x, "z": 2.0}).score, mx.array(1.0))
    assert {name: g.item() for (owner, name), g in found.items() if owner is model} == {"theta": 1.5}
    with pytest.raises(UsageError, match="too many positional arguments"):
        gradient(lambda x: x, (XS, XS))
