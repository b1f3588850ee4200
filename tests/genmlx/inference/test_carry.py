"""A posterior carried over an edit: weights against closed forms, and the draws against exact posteriors."""

import itertools
import math
import types

import mlx.core as mx
import numpy as np
import pytest

from genmlx import (
    Posterior,
    choicemap,
    discrete_uniform,
    exponential,
    flip,
    gen,
    hmc_kernel,
    mask,
    mh,
    normal,
    nuts,
    splice,
    trace,
    uniform,
)
from genmlx.errors import ImpossibleObservation, UnknownAddress, UsageError
from genmlx.inference import carry
from genmlx.versions import pinned, resolve

Y = np.array([0.9, 1.6, 2.2, 0.4, 1.9])
OBSERVED = {("y", i): float(y) for i, y in enumerate(Y)}
NAMES = {f.__name__: f for f in (discrete_uniform, exponential, flip, mask, normal, trace, uniform)}
NAMES |= {name: globals()[name] for name in ("gen", "flip", "mx", "normal", "uniform", "exponential", "mask")}


COUNT = itertools.count()


def log_normal(x, mean=0.0, sd=1.0):
    return -0.5 * ((x - mean) / sd) ** 2 - np.log(sd) - 0.5 * math.log(2 * math.pi)


def gaussian_posterior(scale, total=None):
    """Mean and sd of mu ~ N(0, scale^2) given five observations N(mu, 1), with this sum."""
    precision = scale**-2 + len(Y)
    return (Y.sum() if total is None else total) / precision, precision**-0.5


def edited(*bodies):
    """The model of the first body, and a function that redefines it by the next."""
    module = types.ModuleType(f"edited{next(COUNT)}")
    module.__dict__.update(NAMES)
    rest = iter(bodies)

    def edit():
        lines = "".join(f"    {line}\n" for line in next(rest).strip().splitlines())
        exec(f"@gen\ndef model():\n{lines}", module.__dict__)
        return module.model

    return edit(), edit


def posterior(call, values, log_joint, observations=OBSERVED, stats=None):
    """A posterior with these draws ``[chains, draws]``."""
    with pinned() as pins:
        resolve(call.gen_fn)
    arrays = {(a,) if isinstance(a, str) else a: mx.array(np.asarray(v, dtype=np.float32)) for a, v in values.items()}
    return Posterior(
        arrays,
        stats=stats or {},
        log_joint=mx.array(np.asarray(log_joint, dtype=np.float32)),
        call=call,
        pins=pins,
        observations=choicemap(observations),
        algorithm="exact",
    )


def exact_draws(model, scale=1.0, shape=(4, 1000), seed=0, args=()):
    """Independent draws of mu given Y under the prior N(0, scale^2), as a posterior."""
    mean, sd = gaussian_posterior(scale)
    mu = np.random.default_rng(seed).normal(mean, sd, size=shape)
    joint = log_normal(mu, 0, scale) + log_normal(Y[:, None, None], mu).sum(0)
    return posterior(model(*args), {"mu": mu}, joint), mu


def assert_carried(draws, mean, sd, ess):
    """Mean and sd within 4.5 standard errors for so many independent draws."""
    x = np.array(draws).ravel().astype(float)
    assert abs(x.mean() - mean) < 4.5 * sd / math.sqrt(ess)
    assert abs(x.std() - sd) < 4.5 * sd / math.sqrt(2 * ess)


@gen
def scaled(scale):
    mu = trace("mu", normal(0, scale))
    for i in range(len(Y)):
        trace(("y", i), normal(mu, 1))


LINES = "for i in range(5):\n    trace(('y', i), normal({}, 1))"
BODY = "mu = trace('mu', normal(0, {}))\n" + LINES.format("mu")


# weights


@pytest.mark.parametrize("rejuvenate", [None, "nuts", "mh"])
@pytest.mark.parametrize("scale", [0.5, 3.0])
def test_a_prior_that_is_edited(way, scale, rejuvenate):
    """Weights are the ratio of the priors; would catch a weight without the old density, or moves to another target."""
    model, edit = edited(BODY.format(1.0), BODY.format(scale))
    post, mu = exact_draws(model)
    assert edit() is model and post.stale
    new = carry(post, model(), rejuvenate=rejuvenate, key=mx.random.key(2))
    expected = log_normal(mu, 0, scale) - log_normal(mu)
    np.testing.assert_allclose(np.array(new.carrying.log_weights), expected, atol=1e-4)
    weights = np.exp(expected - expected.max())
    assert new.carrying.ess == pytest.approx(weights.sum() ** 2 / (weights**2).sum(), rel=1e-3)
    assert new["mu"].shape == (4, 1000) and not new.stale
    assert_carried(new["mu"], *gaussian_posterior(scale), new.carrying.ess)
    joint = log_normal(np.array(new["mu"]), 0, scale) + log_normal(Y[:, None, None], np.array(new["mu"])).sum(0)
    np.testing.assert_allclose(np.array(new.log_joint), joint, atol=1e-3)
    shown = "carried model v1 -> model v2: kept 'mu'"
    assert str(new.carrying).splitlines()[0] == shown and shown in str(new.summary())
    assert new.algorithm == ("carry" if rejuvenate is None else f"carry({rejuvenate})")


def test_an_edit_inside_of_the_model_is_named():
    inner, edit = edited("return trace('mu', normal(0, 1))", "return trace('mu', normal(0, 2))")

    @gen
    def outer():
        trace("y", normal(splice(inner()), 1))

    post = mh(outer(), {"y": 1.0}, draws=500, key=mx.random.key(0))
    assert "carried outer v1 -> outer v1: kept 'mu'" in str(carry(post, outer(), rejuvenate=None).carrying)
    edit()
    shown = "carried outer v1 (model v1) -> outer v1 (model v2): kept 'mu'"
    assert shown in str(carry(post, outer(), rejuvenate=None).carrying)


def test_other_arguments_and_observations():
    """The same version: the weight is that of the data, which the old posterior did not have."""
    post, mu = exact_draws(scaled, args=(1.0,))
    more = {**OBSERVED, ("y", 0): 3.0}
    new = carry(post, scaled(1.0), more, key=mx.random.key(0))
    expected = log_normal(3.0, mu) - log_normal(Y[0], mu)
    np.testing.assert_allclose(np.array(new.carrying.log_weights), expected, atol=1e-4)
    assert_carried(new["mu"], *gaussian_posterior(1.0, total=Y.sum() - Y[0] + 3.0), new.carrying.ess)
    assert new.observations["y", 0] == 3.0


def test_an_edit_that_adds_an_address(way):
    """The new choice comes from its prior, and its density is no part of the weight."""
    mu_b = LINES.format("mu + b")
    model, edit = edited(BODY.format(1.0), "mu = trace('mu', normal(0, 1))\nb = trace('b', normal(0, 0.5))\n" + mu_b)
    post, mu = exact_draws(model, shape=(4, 4000))
    edit()
    new = carry(post, model(), rejuvenate=None, key=mx.random.key(3))
    assert (new.carrying.kept, new.carrying.new, new.carrying.dropped) == ([("mu",)], [("b",)], [])
    # Jointly Gaussian: the sum s = mu + b has the prior variance 1.25, of which mu has 1 / 1.25.
    mean, sd = gaussian_posterior(math.sqrt(1.25))
    assert_carried(new["mu"], mean / 1.25, math.sqrt(0.2 + (sd / 1.25) ** 2), new.carrying.ess)
    assert_carried(new["b"], mean / 5, math.sqrt(0.2 + (sd / 5) ** 2), new.carrying.ess)
    assert_carried(new["mu"] + new["b"], mean, sd, new.carrying.ess)
    moved = carry(post, model(), rejuvenate="nuts", key=mx.random.key(3))
    assert_carried(moved["mu"], mean / 1.25, math.sqrt(0.2 + (sd / 1.25) ** 2), moved.carrying.ess)


def test_an_address_that_changes_nothing_else_leaves_the_weights_even():
    model, edit = edited(BODY.format(1.0), BODY.format(1.0) + "\ntrace('z', normal(mu, 2))")
    post, mu = exact_draws(model)
    edit()
    new = carry(post, model(), rejuvenate=None, key=mx.random.key(3))
    assert new.carrying.ess == pytest.approx(4000, rel=1e-6)
    np.testing.assert_array_equal(np.array(new["mu"]), mu.astype(np.float32))  # each draw once, where it was
    assert_carried(new["z"] - new["mu"], 0.0, 2.0, 4000)


def test_an_edit_that_drops_an_address():
    """Would catch a weight that has the density of the dropped choice in it, or the whole old density."""
    mu_b = LINES.format("mu + b")
    model, edit = edited("mu = trace('mu', normal(0, 1))\nb = trace('b', normal(0, 0.5))\n" + mu_b, BODY.format(1.0))
    rng = np.random.default_rng(1)
    mean, sd = gaussian_posterior(math.sqrt(1.25))
    s = rng.normal(mean, sd, size=(4, 4000))
    mu = s / 1.25 + rng.normal(0, math.sqrt(0.2), size=s.shape)
    b = s - mu
    joint = log_normal(mu) + log_normal(b, 0, 0.5) + log_normal(Y[:, None, None], s).sum(0)
    post = posterior(model(), {"mu": mu, "b": b}, joint)
    edit()
    new = carry(post, model(), rejuvenate=None, key=mx.random.key(3))
    expected = (log_normal(Y[:, None, None], mu) - log_normal(Y[:, None, None], s)).sum(0)
    np.testing.assert_allclose(np.array(new.carrying.log_weights), expected, atol=2e-3)
    assert new.carrying.dropped == [("b",)] and ("b",) not in new
    assert_carried(new["mu"], *gaussian_posterior(1.0), new.carrying.ess)


def test_a_dropped_parent_of_a_kept_choice():
    """The old density of the kept choice is given its old parent."""
    new_body = "mu = trace('mu', normal(0, 2))"
    model, edit = edited("s = trace('s', exponential(1))\nmu = trace('mu', normal(0, s))", new_body)
    rng = np.random.default_rng(2)
    s = rng.exponential(size=(2, 3000))
    mu = rng.normal(0, s)
    post = posterior(model(), {"s": s, "mu": mu}, -s + log_normal(mu, 0, s), observations={})
    edit()
    new = carry(post, model(), rejuvenate=None, key=mx.random.key(1))
    expected = log_normal(mu, 0, 2) - log_normal(mu, 0, s)
    np.testing.assert_allclose(np.array(new.carrying.log_weights), expected, atol=2e-3, rtol=1e-4)


def test_weights_by_enumeration():
    """Of all states of a discrete model: old posterior times weight, summed over what is dropped, is the new one."""

    def bernoulli(p, x):
        return p if x else 1 - p

    model, edit = edited(
        "a = trace('a', flip(0.3))\nb = trace('b', flip(0.2 + 0.5 * a))\ntrace('y', flip(0.1 + 0.3 * a + 0.5 * b))",
        "a = trace('a', flip(0.6))\ntrace('y', flip(0.9 - 0.5 * a))",
    )
    states = list(itertools.product((0, 1), (0, 1)))
    old = np.array([bernoulli(0.3, a) * bernoulli(0.2 + 0.5 * a, b) * (0.1 + 0.3 * a + 0.5 * b) for a, b in states])
    a, b = (np.array([[state[i] for state in states]]) for i in (0, 1))
    post = posterior(model(), {"a": a, "b": b}, np.log(old)[None], observations={"y": 1})
    post._values = {name: value.astype(mx.int32) for name, value in post._values.items()}
    edit()
    weights = np.exp(np.array(carry(post, model(), rejuvenate=None, key=mx.random.key(0)).carrying.log_weights))[0]
    mass = [(old / old.sum() * weights)[[state[0] == value for state in states]].sum() for value in (0, 1)]
    new = [bernoulli(0.6, value) * (0.9 - 0.5 * value) for value in (0, 1)]
    assert mass[1] / sum(mass) == pytest.approx(new[1] / sum(new), abs=1e-5)


# what cannot be kept


def test_draws_that_the_new_support_excludes(way):
    """They have weight zero, and the report counts and names them."""
    line = "x = trace('x', uniform(0, {}))\ntrace('y', normal(x, 2))"
    model, edit = edited(line.format(10), line.format(4))
    x = np.random.default_rng(0).uniform(0, 10, size=(2, 20_000))
    keep = np.random.default_rng(1).uniform(size=x.shape) < np.exp(log_normal(5.0, x, 2) - log_normal(0, 0, 2))
    x = x[keep][: 2 * (keep.sum() // 2)].reshape(2, -1)
    post = posterior(model(), {"x": x}, -math.log(10) + log_normal(5.0, x, 2), observations={"y": 5.0})
    edit()
    for rejuvenate in (None, "nuts"):
        new = carry(post, model(), rejuvenate=rejuvenate, key=mx.random.key(0))
        assert (np.array(new.carrying.log_weights) == -math.inf).tolist() == (x > 4).tolist()
        assert new.carrying.impossible == {("x",): int((x > 4).sum())}
        assert f"{(x > 4).sum():,} draws are impossible now: 'x' has density zero" in str(new.carrying)
        grid = np.linspace(0, 4, 100_001)
        density = np.exp(log_normal(5.0, grid, 2))
        mean = (grid * density).sum() / density.sum()
        sd = math.sqrt(((grid - mean) ** 2 * density).sum() / density.sum())
        got = np.array(new["x"]).ravel()
        assert 0 <= got.min() and got.max() <= 4
        assert abs(got.mean() - mean) < 4.5 * sd / math.sqrt(new.carrying.ess)


@pytest.mark.parametrize(
    "before, after, why",
    [
        ("uniform(0, 1)", "uniform(5, 6)", "outside of its support in every draw"),
        ("normal(mu * mx.ones(3), 1)", "normal(mu * mx.ones(2), 1)", "the shape [3] is [2] now"),
        ("discrete_uniform(0, 3)", "uniform(0, 3)", "discrete before, continuous now"),
    ],
)
def test_a_value_that_does_not_fit_is_drawn_anew(before, after, why):
    """It counts as dropped and as new: the weights of the rest are what they were."""
    end = "\nmu = mu\n" + LINES.format("mu")
    model, edit = edited(*(f"mu = trace('mu', normal(0, 1))\ntrace('w', {d})" + end for d in (before, after)))
    post = mh(model(), OBSERVED, draws=50, chains=8, key=mx.random.key(0))
    edit()
    new = carry(post, model(), rejuvenate=None, key=mx.random.key(1))
    assert new.carrying.redrawn == {("w",): why} and f"'w' was drawn anew: {why}" in str(new.carrying)
    assert (new.carrying.kept, new.carrying.new, new.carrying.dropped) == ([("mu",)], [("w",)], [("w",)])
    np.testing.assert_allclose(np.array(new.carrying.log_weights), 0.0, atol=1e-4)
    np.testing.assert_array_equal(np.array(new["mu"]), np.array(post["mu"]))
    assert new.trace(3, 7).score.item() == pytest.approx(new.log_joint[3, 7].item(), abs=1e-4)


def test_one_choice_becomes_several_and_back():
    several = "[trace(('w', i), normal(0, 1)) for i in range(2)]\n" + BODY.format(1.0)
    one = "trace('w', normal(mx.zeros(2), 1))\n" + BODY.format(1.0)
    for bodies, new_addresses in (((one, several), [("w", 0), ("w", 1)]), ((several, one), [("w",)])):
        model, edit = edited(*bodies)
        post = mh(model(), OBSERVED, draws=20, chains=4, key=mx.random.key(0))
        edit()
        new = carry(post, model(), rejuvenate=None, key=mx.random.key(1))
        assert new.carrying.new == new_addresses and new.carrying.ess == pytest.approx(80, rel=1e-5)


def test_an_edit_that_leaves_nothing():
    """An observation outside of its new support, whatever the draw: nothing can be carried."""
    body = "mu = trace('mu', normal(0, 1))\ntrace('y', uniform({}, 10))"
    model, edit = edited(body.format(0), body.format(5))
    post = mh(model(), {"y": 1.0}, draws=20, chains=2, key=mx.random.key(0))
    edit()
    with pytest.raises(ImpossibleObservation, match="no draw of the posterior is possible in the new model"):
        carry(post, model())


def test_a_low_effective_size_is_a_warning():
    """A prior far away: the draws are still those with the right weights, but too few."""
    post, _ = exact_draws(scaled, args=(1.0,))
    more = {a: v + 6 for a, v in OBSERVED.items()}
    new = carry(post, scaled(1.0), more, rejuvenate=None, key=mx.random.key(0))
    assert new.carrying.ess < 10
    line = f"only {new.carrying.ess:,.0f} of 4,000 draws are worth anything after the edit: sample anew"
    assert new.carrying.warning == line and f"! {line}" in str(new.summary())
    assert carry(post, scaled(1.1), key=mx.random.key(0)).carrying.warning is None


# models whose addresses come and go


def branch_posterior(prior, y=0.7):
    """P(k = 1 | y) of k ~ flip(prior), a ~ N(1, 1) if k, y ~ N(a or 0, 1)."""
    one = prior * math.exp(log_normal(y, 1, math.sqrt(2)))
    return one / (one + (1 - prior) * math.exp(log_normal(y, 0, 1)))


PYTHON = "k = trace('k', flip({}))\na = trace('a', normal(1, 1)) if k.item() else 0.0\ntrace('y', normal(a, 1))"
MASKED = (
    "k = trace('k', flip({}))\na = trace('a', mask(inner)(k))\n"
    "trace('y', normal(0.0 if a is None else mx.where(k, a, 0.0), 1))"
)


@pytest.mark.parametrize("rejuvenate", [None, "mh"])
@pytest.mark.parametrize("body", ["python", "masked"])
def test_addresses_that_some_draws_lack(body, rejuvenate):
    """From exact draws. Would catch densities of absent choices in the weights."""
    NAMES["inner"] = inner
    model, edit = edited(*((PYTHON if body == "python" else MASKED).format(p) for p in (0.5, 0.2)))
    y, address = 0.7, ("a",) if body == "python" else ("a", "a")
    rng = np.random.default_rng(3)
    shape = (2, 150) if body == "python" else (4, 1000)
    k = rng.uniform(size=shape) < branch_posterior(0.5)
    a = rng.normal((1 + y) / 2, math.sqrt(0.5), size=shape)
    joint = math.log(0.5) + np.where(k, log_normal(a, 1) + log_normal(y, a), log_normal(y))
    post = posterior(model(), {"k": k}, joint, observations={"y": y})
    post._values = {("k",): mx.array(k.astype(np.int32)), address: mx.array(a.astype(np.float32))}
    post._present = {address: mx.array(k)}
    edit()
    new = carry(post, model(), rejuvenate=rejuvenate, steps=3, key=mx.random.key(4))
    expected = np.where(k, math.log(0.2 / 0.5), math.log(0.8 / 0.5))
    np.testing.assert_allclose(np.array(new.carrying.log_weights), expected, atol=1e-4)
    p = branch_posterior(0.2)
    assert_carried(new["k"], p, math.sqrt(p * (1 - p)), new.carrying.ess)
    has = np.array(new.has(address))
    assert (has == (np.array(new["k"]) > 0)).all()
    assert_carried(np.array(new.values_at(address))[has], (1 + y) / 2, math.sqrt(0.5), new.carrying.ess * has.mean())


def test_a_choice_that_some_draws_drop():
    """The mask opens where it was shut: a is dropped in the draws that have it, and new in those that have not."""
    NAMES["inner"] = inner
    model, edit = edited(*(f"k = trace('k', flip(0.5))\ntrace('a', mask(inner)({when}))" for when in ("k", "1 - k")))
    rng = np.random.default_rng(0)
    k, a = rng.uniform(size=(2, 2000)) < 0.5, rng.normal(1, 1, size=(2, 2000))
    joint = math.log(0.5) + np.where(k, log_normal(a, 1), 0.0)
    post = posterior(model(), {"k": k}, joint, observations={})
    post._values = {("k",): mx.array(k.astype(np.int32)), ("a", "a"): mx.array(a.astype(np.float32))}
    post._present = {("a", "a"): mx.array(k)}
    edit()
    new = carry(post, model(), rejuvenate=None, key=mx.random.key(4))
    np.testing.assert_allclose(np.array(new.carrying.log_weights), 0.0, atol=1e-5)
    assert np.array(new["k"]).tolist() == k.astype(int).tolist()
    assert (np.array(new.has(("a", "a"))) == ~k).all()
    assert_carried(np.array(new.values_at(("a", "a")))[~k], 1.0, 1.0, (~k).sum())


@gen
def inner():
    return trace("a", normal(1, 1))


# how it is called


def test_a_real_run_carried_by_nuts(way):
    """From nuts to nuts, with the step size that it found; and again from the carried posterior."""
    post = nuts(scaled(1.0), OBSERVED, draws=500, warmup=150, key=mx.random.key(0))
    new = carry(post, scaled(2.0), key=mx.random.key(1))
    assert new.algorithm == "carry(nuts)" and "10 steps of nuts, acceptance 0." in str(new.carrying)
    assert new.stats["step_size"][0, 0].item() == post.stats["step_size"][0, 0].item()
    assert set(new.stats) <= {"accept", "diverging", "step_size", "n_leapfrog"}
    assert_carried(new["mu"], *gaussian_posterior(2.0), 0.8 * new.carrying.ess)
    again = carry(new, scaled(1.0), draws=250, key=mx.random.key(2))
    assert again["mu"].shape == (4, 250)
    assert_carried(again["mu"], *gaussian_posterior(1.0), 500)


def test_a_kernel_of_the_users():
    post, _ = exact_draws(scaled, args=(1.0,))
    new = carry(post, scaled(2.0), rejuvenate=hmc_kernel("mu", 0.3), steps=4, key=mx.random.key(1))
    assert new.algorithm == "carry(hmc_kernel)" and "4 steps of hmc_kernel" in str(new.carrying)
    assert_carried(new["mu"], *gaussian_posterior(2.0), new.carrying.ess)
    # Few draws alike: copies have moved apart.
    assert len(np.unique(np.array(new["mu"]))) > 3990
    assert len(np.unique(np.array(carry(post, scaled(2.0), steps=0, key=mx.random.key(1))["mu"]))) < 3500


@pytest.mark.parametrize(
    "rejuvenate, steps, shift", [(None, 0, 0.5), ("nuts", 1, 0.5), ("mh", 2, 0.5), ("nuts", 5, 1.0)]
)
def test_the_effective_size_that_is_claimed(way, rejuvenate, steps, shift):
    """Errors of the mean are what mcse says. Would catch copies that are shuffled, and moved draws that are taken for
    independent ones while they remember the weights' error: both claim errors less than half as large as they are."""
    mean, _ = gaussian_posterior(1.0, total=Y.sum() + 5 * shift)
    shifted = {a: v + shift for a, v in OBSERVED.items()}
    z = []
    for seed in range(40):
        post, _ = exact_draws(scaled, shape=(4, 250), seed=seed, args=(1.0,))
        key = mx.random.key(seed)
        new = carry(post, scaled(1.0), shifted, rejuvenate=rejuvenate, steps=steps, key=key)
        z.append((new.mean("mu").item() - mean) / float(new.mcse("mu")))
    # The mean of 40 squares of standard normals is within 1 +- 3 * sqrt(2 / 40); what is claimed is on the safe side.
    assert 0.15 < np.mean(np.square(z)) < 1.7


def test_what_the_weights_cost_is_in_every_number(way):
    """Draws that have not moved have at most the effective size of the weights, in the table as well."""
    post, _ = exact_draws(scaled, args=(1.0,))
    new = carry(post, scaled(3.0), rejuvenate=None, key=mx.random.key(0))
    row = new.summary()["mu"]
    assert row.ess_bulk == pytest.approx(float(new.ess("mu")))
    assert row.ess_tail == pytest.approx(float(new.ess_tail("mu")))
    assert row.mcse_mean == pytest.approx(float(new.mcse("mu"))) and row.ess_bulk < new.carrying.ess
    plain = Posterior.ess(new, "mu")
    assert 1 / row.ess_bulk == pytest.approx(1 / plain + new.lost["mu",], rel=1e-6)
    w = np.exp(np.array(new.carrying.log_weights, dtype=float).ravel())
    x = np.array(post["mu"], dtype=float).ravel()
    error = ((w / w.sum()) ** 2 * (x - np.average(x, weights=w)) ** 2).sum() / np.array(new["mu"], dtype=float).var()
    assert new.lost["mu",] == pytest.approx(max(error, 1 / new.carrying.ess), rel=1e-4)
    moved = carry(post, scaled(3.0), rejuvenate="nuts", steps=10, key=mx.random.key(0))
    assert moved.lost["mu",] < 0.05 * new.lost["mu",]


def test_moves_do_not_depend_on_what_is_shared_between_lanes(way):
    """Sampling the same model on: the weights are even, and mean and sd stay within their errors."""
    post, mu = exact_draws(scaled, shape=(2, 2000), args=(1.0,))
    for rejuvenate in ("nuts", "mh"):
        new = carry(post, scaled(1.0), rejuvenate=rejuvenate, key=mx.random.key(5))
        assert new.carrying.ess == pytest.approx(4000, rel=1e-6)
        moved = np.abs(np.array(new["mu"]) - mu) > 1e-6
        assert moved.mean() > 0.9
        assert_carried(new["mu"], *gaussian_posterior(1.0), 4000)


def test_a_saved_posterior(tmp_path):
    """Without its model it can be carried as long as nothing is dropped."""
    post, _ = exact_draws(scaled, args=(1.0,))
    post.save(tmp_path / "post.npz")
    loaded = Posterior.load(tmp_path / "post.npz")
    new = carry(loaded, scaled(2.0), rejuvenate=None, key=mx.random.key(0))
    assert "carried a saved posterior -> scaled v1" in str(new.carrying)
    assert_carried(new["mu"], *gaussian_posterior(2.0), new.carrying.ess)

    @gen
    def other():
        for i in range(5):
            trace(("y", i), normal(trace(("m", i), normal(0, 1)), 1))

    with pytest.raises(UsageError, match="loaded without its model"):
        carry(loaded, other())


def test_mistakes():
    post, _ = exact_draws(scaled, args=(1.0,), shape=(1, 50))
    with pytest.raises(UsageError, match="no way 'hmc' to move draws"):
        carry(post, scaled(1.0), rejuvenate="hmc")
    with pytest.raises(UsageError, match="not a call"):
        carry(post, scaled)
    with pytest.raises(UnknownAddress, match=r"at \('y', 9\)"):
        carry(post, scaled(1.0), {("y", 9): 1.0})
    for keyword in ({"draws": 0}, {"steps": -1}):
        with pytest.raises(ValueError, match="must be a whole number"):
            carry(post, scaled(1.0), **keyword)
