"""The notebooks, run as scripts: what their names hold at the end, against answers that were computed otherwise."""

import csv
import itertools
import runpy
from pathlib import Path

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.special import gammaln, logsumexp
from scipy.stats import norm

NOTEBOOKS = Path(__file__).resolve().parents[2] / "notebooks"


@pytest.fixture
def notebook(monkeypatch):
    """`notebook("02_eight_schools.py")` is the namespace after its last cell; figures are drawn and closed."""
    monkeypatch.setenv("MPLBACKEND", "agg")
    import matplotlib
    import matplotlib.pyplot as plt

    def show():
        for number in plt.get_fignums():
            plt.figure(number).canvas.draw()
        plt.close("all")

    matplotlib.use("agg")
    monkeypatch.setattr(plt, "show", show)
    return lambda name: runpy.run_path(str(NOTEBOOKS / name))


def agree(post, name, truth, errors=4.5):
    """Means within 4.5 Monte Carlo errors, at an effective size of 200 and more."""
    assert np.all(np.asarray(post.ess(name)) > 200), (name, post.ess(name))
    off = (np.array(post.mean(name)) - truth) / np.asarray(post.mcse(name))
    assert np.all(np.abs(off) < errors), (name, off)


def share_agrees(indicator, truth, size, errors=4.5):
    """The share of draws with some property, of which `size` are independent."""
    assert abs(np.mean(indicator) - truth) < errors * np.sqrt(truth * (1 - truth) / size), (np.mean(indicator), truth)


def mean_agrees(draws, truth, errors=4.5):
    """The same, for numbers that were computed from the draws, `[chains, draws]`."""
    from genmlx.diagnostics import ess_mean, mcse

    assert ess_mean(draws) > 200
    assert abs(draws.mean() - truth) < errors * mcse(draws), (draws.mean(), truth, mcse(draws))


def test_eight_schools(notebook):
    """Adaptive quadrature over log tau, with the rest integrated by hand: of the means, and of the notebook's answers.

    Catches a centred run that is taken for good (its tau is too large), effects that are computed from other draws than
    their tau, and a ninth school that has the posterior of another.
    """
    nb = notebook("02_eight_schools.py")
    y, sigma = np.array([28.0, 8, -3, 7, -1, 1, 18, 12]), np.array([15.0, 10, 16, 11, 9, 11, 10, 18])

    def given(tau):
        """The density of log tau, unnormalised, and mean and variance of mu."""
        variance = sigma**2 + tau**2
        precision = 1 / 25 + np.sum(1 / variance)
        mean = np.sum(y / variance) / precision
        # p(y | tau) = p(y | mu) p(mu) / p(mu | y), at mu = 0
        log_prob = norm.logpdf(y, 0, np.sqrt(variance)).sum() + norm.logpdf(0, 0, 5)
        log_prob -= norm.logpdf(0, mean, precision**-0.5)
        return np.exp(log_prob + 30) / (1 + (tau / 5) ** 2) * tau, mean, 1 / precision

    def average(f):
        def integral(g):
            return quad(lambda u: given(np.exp(u))[0] * g(np.exp(u)), -20, 8, points=[-4, 0, 1, 2, 3], limit=500)[0]

        return integral(f) / integral(lambda tau: 1.0)

    exact = {"mu": average(lambda tau: given(tau)[1]), "tau": average(lambda tau: tau)}
    assert exact == pytest.approx({"mu": 4.3968, "tau": 3.5977}, abs=1e-3)
    assert nb["exact"] == pytest.approx(exact, abs=1e-3)

    first, second = nb["first"], nb["second"]
    assert nb["diverging"].any() and any("diverged" in line for line in first.summary().warnings)
    assert not second.summary().warnings
    for name, truth in exact.items():
        agree(second, name, truth)

    def school(j):
        def mean(tau):
            data, prior = 1 / sigma[j] ** 2, 1 / tau**2
            return (data * y[j] + prior * given(tau)[1]) / (data + prior)

        return average(mean)

    for j in range(8):
        mean_agrees(nb["theta"][..., j], school(j))
    positive = average(lambda tau: norm.sf(0, given(tau)[1], np.sqrt(given(tau)[2])))
    ninth = average(lambda tau: norm.sf(0, given(tau)[1], np.sqrt(given(tau)[2] + tau**2)))
    share_agrees(nb["mu"] > 0, positive, second.ess("mu"))
    share_agrees(nb["ninth"] > 0, ninth, second.ess("mu"))
    assert nb["replicated"].shape == (second.chains * second.draws, 8)


def radon():
    with open(NOTEBOOKS / "data" / "radon.csv") as file:
        rows = list(csv.DictReader(file))
    names = list(dict.fromkeys(row["county"] for row in rows))
    county = np.array([names.index(row["county"]) for row in rows])
    floor, radon, uranium = (np.array([float(row[key]) for row in rows]) for key in ("floor", "radon", "uranium"))
    return county, floor, np.log(np.where(radon > 0, radon, 0.1)), np.log(uranium)


def exact_radon(with_uranium):
    """Posterior means, by a sum over a grid of the three spreads: given them all else is normal and integrated out.

    For each county the covariance of its houses is noise^2 I + Z diag(spreads^2) Z', with two columns in Z; Woodbury's
    identity makes it sums over its houses.
    """
    county, floor, y, uranium = radon()
    columns = [np.ones_like(y), floor, uranium] if with_uranium else [np.ones_like(y), floor]
    z, x = np.stack(columns[:2], -1), np.stack([*columns, y], -1)
    counties = range(county.max() + 1)
    zz = np.array([z[county == j].T @ z[county == j] for j in counties])
    zx = np.array([z[county == j].T @ x[county == j] for j in counties])
    xx, n, p = x.T @ x, len(y), len(columns)

    def given(level, effect, noise):
        """Log posterior density of the spreads, and the mean of the coefficients."""
        inner = np.diag([level**-2.0, effect**-2.0]) + zz / noise**2
        precision = (xx - np.einsum("jia,jib->ab", zx, np.linalg.solve(inner, zx)) / noise**2) / noise**2
        log_det = np.linalg.slogdet(inner)[1].sum() + len(zz) * 2 * np.log(level * effect) + n * 2 * np.log(noise)
        coefficients, right = precision[:p, :p] + np.eye(p) / 4, precision[:p, p]  # priors normal(0, 2)
        mean = np.linalg.solve(coefficients, right)
        log_prob = 0.5 * (right @ mean - precision[p, p] - log_det - np.linalg.slogdet(coefficients)[1])
        return log_prob - 0.5 * (level**2 + effect**2 + noise**2), mean  # priors half_normal(1)

    ranges = (0.005, 0.6, 40), (0.005, 1.0, 50), (0.67, 0.85, 20)
    points = list(itertools.product(*(np.linspace(*each) for each in ranges)))
    found = [given(*point) for point in points]
    weight = np.exp(np.array([log_prob for log_prob, _ in found]) - max(log_prob for log_prob, _ in found))
    weight /= weight.sum()
    names = ["level", "effect", "slope"][:p] + ["level_spread", "effect_spread", "noise"]
    return dict(zip(names, weight @ np.concatenate([[mean for _, mean in found], points], axis=-1), strict=True))


def test_hierarchical_regression(notebook):
    """The exact posterior of both models; and within half a standard error, what REML estimates.

    Those estimates are of statsmodels' MixedLM (0.14), with independent intercepts and slopes. Catches houses that
    are put into other counties, a spread that is a variance, and a standardised deviation that is not scaled.
    """
    nb = notebook("03_hierarchical_regression.py")
    first, second = nb["first"], nb["second"]
    reml = {"level": (1.460, 0.052), "effect": (-0.675, 0.086)}
    reml_with_uranium = {"level": (1.456, 0.034), "effect": (-0.630, 0.095), "slope": (0.781, 0.084)}
    for post, estimates, names in ((first, reml, ("level", "effect")), (second, reml_with_uranium, None)):
        exact = exact_radon(with_uranium=post is second)
        for name in names or exact:
            agree(post, name, exact[name])
        for name, (estimate, error) in estimates.items():
            assert abs(post.mean(name).item() - estimate) < error / 2
    assert not second.summary()["level"].rhat > 1.02

    # A county's risk is the average of what each draw says of it, in closed form.
    levels, noise = nb["second_levels"], nb["draws_of"](second, "noise")
    closed = norm.sf(np.log(4), levels, noise[:, None]).mean(axis=0)
    size = 0.5 * len(levels)
    assert np.all(np.abs(nb["risk"] - closed) < 4.5 * np.sqrt(closed * (1 - closed) / size))

    # Leave-one-out against WAIC (Watanabe 2010), another estimate of the same score.
    from genmlx import log_likelihood

    for call, post, score in (("call", first, "without"), ("new_call", second, "with_uranium")):
        densities = np.array(log_likelihood(nb[call], post)["y"], dtype=float).reshape(-1, 919)
        waic = logsumexp(densities, axis=0) - np.log(len(densities)) - densities.var(axis=0, ddof=1)
        assert abs(nb[score].sum() - waic.sum()) < 3
    assert nb["gain"].sum() > 0


def test_change_point(notebook):
    """Enumeration anew, from the file, with cumulative sums: of one change and of two.

    Catches a year that is off by one, a proposal for the rates that is not their conditional (it would reject), and a
    Gibbs sweep that does not see the rates.
    """
    nb = notebook("04_change_point.py")
    with open(NOTEBOOKS / "data" / "coal.csv") as file:
        year, count = np.array([[int(row["year"]), int(row["disasters"])] for row in csv.DictReader(file)]).T
    assert (year[0], year[-1], count.sum()) == (1851, 1962, 191)
    total = np.concatenate([[0], np.cumsum(count)])

    def log_evidence(start, stop):
        events, years = total[stop] - total[start], stop - start
        return gammaln(2 + events) - (2 + events) * np.log(1 + years)

    def rate(start, stop):
        return (2 + total[stop] - total[start]) / (1 + stop - start)

    end, factorials = len(year), gammaln(1 + count).sum()
    c = np.arange(1, end)
    one = log_evidence(0, c) + log_evidence(c, end)
    p = np.exp(one - logsumexp(one))
    assert nb["probability"] == pytest.approx(p, abs=1e-9)
    assert year[c[np.argmax(p)]] == 1892 and p[(year[c] >= 1887) & (year[c] <= 1895)].sum() > 0.9
    for post in (nb["by_hand"], nb["post"]):
        agree(post, "change", p @ year[c])
        agree(post, "before", p @ rate(0, c))
        agree(post, "after", p @ rate(c, end))
        drawn, size = np.array(post["change"]), float(post.ess("change"))
        for candidate in range(1887, 1896):
            share_agrees(drawn == candidate, p[year[c] == candidate].item(), size)
    assert np.array(nb["by_hand"].stats["accept"]).min() > 0.999

    lo, hi = np.meshgrid(c, c, indexing="ij")
    lo, hi = np.minimum(lo, hi), np.maximum(lo, hi)
    two = log_evidence(0, lo) + log_evidence(lo, hi) + log_evidence(hi, end)
    q = np.exp(two - logsumexp(two))
    evidence = {
        "no change": log_evidence(0, end),
        "one change": logsumexp(one) - np.log(len(c)),
        "two changes": logsumexp(two) - 2 * np.log(len(c)),
    }
    assert nb["evidence"] == pytest.approx({name: value - factorials for name, value in evidence.items()}, abs=1e-6)
    for i, (change, these) in enumerate(((lo, rate(0, lo)), (hi, rate(lo, hi)), (None, rate(hi, end)))):
        mean_agrees(nb["rates"][..., i], np.sum(q * these))
        if change is not None:
            mean_agrees(nb["both"][..., i], np.sum(q * year[change]))
