"""mix: the component is a choice, and its choices lie beside it."""

import mlx.core as mx
import numpy as np
import pytest
from closed_forms import N, close, numbers
from scipy.special import log_softmax

from genmlx import choicemap, contramap, gen, mix, normal, select, trace, unfold
from genmlx.errors import UnknownAddress, UsageError


@gen
def low(x):
    return trace("z", normal(x - 1, 1)) + trace("only", normal(0, 2)) * 0


@gen
def high(x):
    return trace("z", normal(x + 1, 2))


WEIGHTS = [0.3, 1.5]
LOGS = log_softmax(WEIGHTS)
either = mix([low, high], WEIGHTS)


def test_generate():
    tr, weight = either.generate((0.5,), {"component": 1, "z": 0.7})
    assert weight.item() == close(LOGS[1] + N(0.7, 1.5, 2)) == tr.score.item()
    assert tr.choices.addresses() == [("component",), ("z",)] and tr["component"].dtype == mx.int32
    assert tr.retval.item() == close(0.7) and either.__name__ == "mix(low, high)"
    assert either.generate((0.5,), {"component": 0}, key=1).weight.item() == close(LOGS[0])
    assert len(either.simulate((0.5,), key=1).choices) in (2, 3)


def test_draws_components_by_their_weights():
    """4000 draws: the frequency within 4 standard errors, here 0.027."""
    drawn = np.array(either(0.5).vsimulate(4000, 3)["component"])
    assert abs(drawn.mean() - np.exp(LOGS[1])) < 4 * np.sqrt(np.exp(LOGS).prod() / 4000)


def test_another_component():
    """What both have is kept, what only the old one has is discarded, and what is fresh does not count."""
    tr, _ = either.generate((0.5,), {"component": 0, "z": 0.7, "only": 0.2})
    new, weight, _, discard = tr.update({"component": 1})
    change = LOGS[1] + N(0.7, 1.5, 2) - LOGS[0] - N(0.7, -0.5)
    assert weight.item() == close(change - N(0.2, 0, 2))
    assert numbers(discard) == {("component",): 0, ("only",): close(0.2)}
    back = new.update(discard)
    assert back.trace.choices == tr.choices and back.weight.item() == close(-weight.item())
    assert new.update({"component": 0}, key=1).weight.item() == close(-change)


def test_regenerate_the_component():
    tr, _ = either.generate((0.5,), {"component": 0, "z": 0.7, "only": 0.2})
    seen = set()
    for seed in range(12):
        new, weight, _ = tr.regenerate("component", key=seed)
        which = new["component"].item()
        seen.add(which)
        assert new["z"].item() == close(0.7) and ("only" in new.choices) == (which == 0)
        assert weight.item() == close(N(0.7, 1.5, 2) - N(0.7, -0.5) if which else 0.0)
    assert seen == {0, 1}


def test_weights_from_the_arguments():
    model = mix([low, high], lambda x: mx.stack([x, 2 * x]))
    tr, weight = model.generate((mx.array(0.5),), {"component": 1})
    assert weight.item() == close(log_softmax([0.5, 1.0])[1])
    assert tr.update({}, (mx.array(1.5),)).weight.item() == close(
        log_softmax([1.5, 3.0])[1] - log_softmax([0.5, 1.0])[1] + N(tr["z"], 2.5, 2) - N(tr["z"], 1.5, 2)
    )
    (x,), _, _ = tr.choice_gradients(select.none())
    assert x.item() == close(1 - np.exp(log_softmax([0.5, 1.0])[1]) + (tr["z"].item() - 1.5) / 4)


def test_in_a_chain_in_a_batch():
    """A component for each step and each lane."""
    chain = unfold(contramap(either, lambda t, x: x * 0.5))
    batch = chain(3, 0.2).vsimulate(16, 1)
    for tr in batch:
        expected, x = 0.0, 0.2
        for t in range(3):
            which, z = tr[t, "component"].item(), tr[t, "z"].item()
            expected += LOGS[which] + (N(z, x / 2 + 1, 2) if which else N(z, x / 2 - 1) + N(tr[t, "only"], 0, 2))
            assert ((t, "only") in tr.choices) == (which == 0)
            x = z
        assert tr.score.item() == close(expected)
    new, weights, _, discard = batch.update({(1, "component"): 1})
    for lane in range(16):
        alone = batch[lane].update({(1, "component"): 1})
        assert alone.weight.item() == close(weights[lane].item()) and alone.discard == discard.lane(lane)
        assert alone.trace.choices == new[lane].choices


def test_components_that_do_not_fit():
    with pytest.raises(UsageError, match="cannot be spliced(.|\n)*no address of its own"):
        mix([normal, normal], WEIGHTS).simulate((0.0, 1.0))
    with pytest.raises(UnknownAddress):
        either.generate((0.5,), {"component": 1, "only": 1.0})
    assert choicemap({"component": 1}) == either.generate((0.5,), {"component": 1}).trace.choices.filter("component")
