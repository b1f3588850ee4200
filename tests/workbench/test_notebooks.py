"""The notebooks, run as scripts: what their names hold at the end, against answers that were computed otherwise."""

import csv
import itertools
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.special import gammaln, k0, logsumexp
from scipy.stats import norm, poisson

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


@pytest.fixture
def session(monkeypatch, tmp_path):
    """`session("06_hot_reload.py")` is the same of a notebook with magics: a shell runs its cells."""
    monkeypatch.setenv("MPLBACKEND", "agg")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setitem(sys.modules, "__main__", sys.modules["__main__"])
    import matplotlib
    import matplotlib.pyplot as plt
    from IPython.core.interactiveshell import InteractiveShell
    from IPython.utils.capture import capture_output
    from traitlets.config import Config

    from genmlx.gen import _handles
    from workbench.percent import read_notebook

    def forget_models():
        for identity in [identity for identity in _handles if identity[0] == "__main__"]:
            del _handles[identity]

    matplotlib.use("agg")
    forget_models()
    config = Config()
    config.HistoryManager.enabled = config.GenMagics.reload = False
    config.InteractiveShell.colors = "nocolor"
    config.GenMagics.mem = "off"
    shell = InteractiveShell.instance(config=config)
    shell.extension_manager.load_extension("magics")

    def run(name):
        path = NOTEBOOKS / name
        shell.user_ns["__file__"] = str(path)
        for cell in read_notebook(path) or []:
            if cell.kind == "code":
                with capture_output():
                    result = shell.run_cell(cell.source, store_history=True)
                result.raise_error()
        return shell.user_ns

    yield run
    plt.close("all")
    shell.extension_manager.unload_extension("magics")
    InteractiveShell.clear_instance()
    forget_models()


def assert_agree(post, name, truth, errors=4.5):
    """Means within 4.5 Monte Carlo errors, at an effective size of 200 and more."""
    assert np.all(np.asarray(post.ess(name)) > 200), (name, post.ess(name))
    off = (np.array(post.mean(name)) - truth) / np.asarray(post.mcse(name))
    assert np.all(np.abs(off) < errors), (name, off)


def assert_share_agrees(indicator, truth, size, errors=4.5):
    """The share of draws with some property, of which `size` are independent."""
    assert abs(np.mean(indicator) - truth) < errors * np.sqrt(truth * (1 - truth) / size), (np.mean(indicator), truth)


def assert_mean_agrees(draws, truth, errors=4.5):
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
        assert_agree(second, name, truth)

    def school(j):
        def mean(tau):
            data, prior = 1 / sigma[j] ** 2, 1 / tau**2
            return (data * y[j] + prior * given(tau)[1]) / (data + prior)

        return average(mean)

    for j in range(8):
        assert_mean_agrees(nb["theta"][..., j], school(j))
    positive = average(lambda tau: norm.sf(0, given(tau)[1], np.sqrt(given(tau)[2])))
    ninth = average(lambda tau: norm.sf(0, given(tau)[1], np.sqrt(given(tau)[2] + tau**2)))
    assert_share_agrees(nb["mu"] > 0, positive, second.ess("mu"))
    assert_share_agrees(nb["ninth"] > 0, ninth, second.ess("mu"))
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
            assert_agree(post, name, exact[name])
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
        assert_agree(post, "change", p @ year[c])
        assert_agree(post, "before", p @ rate(0, c))
        assert_agree(post, "after", p @ rate(c, end))
        drawn, size = np.array(post["change"]), float(post.ess("change"))
        for candidate in range(1887, 1896):
            assert_share_agrees(drawn == candidate, p[year[c] == candidate].item(), size)
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
        assert_mean_agrees(nb["rates"][..., i], np.sum(q * these))
        if change is not None:
            assert_mean_agrees(nb["both"][..., i], np.sum(q * year[change]))


def cars():
    with open(NOTEBOOKS / "data" / "cars.csv") as file:
        return np.array([[float(row["speed"]), float(row["dist"])] for row in csv.DictReader(file)]).T


def test_debugging(session):
    """Each message names what is wrong; a prior, a funnel and a product against closed forms.

    Catches a typo that is passed over, a body with random numbers that passes the check, a share of absurd worlds that
    is of another model, and a sampler that is called good on half of a posterior.
    """
    nb = session("05_debugging_a_model.py")
    expected = (
        ("UsageError", "no address 'distanse' in stopping v1; did you mean 'distance'?", "^^^^^^^^"),
        ("LawError", "assess(choices) == score does not hold", "no random numbers or state of its own"),
        ("ValueMismatch", "f32[50] is not a value", "'distance' in square", "an array of shape [50, 50]"),
        ("NoStartingPoint", "has log probability -inf at 'distance' in rolling"),
    )
    assert len(nb["messages"]) == len(expected)
    for message, parts in zip(nb["messages"], expected, strict=True):
        assert all(part in message for part in parts), message
    assert len(set(nb["scores"])) == 3

    def share(limit, level, power, power_sd, rate):
        """Worlds above a limit: a normal distribution given the noise, which is integrated out."""

        def given(noise):
            return norm.sf(limit, power * np.log(10), np.sqrt(level**2 + (power_sd * np.log(10)) ** 2 + noise**2))

        return quad(lambda noise: rate * np.exp(-rate * noise) * given(noise), 0, np.inf)[0]

    for logs, prior in ((nb["vague"], (10, 0, 10, 1)), (nb["sound"], (1, 1.5, 0.5, 3))):
        for limit in (0, 1.5, 3):
            assert_share_agrees(logs > limit, share(limit * np.log(10), *prior), len(logs))

    mended = nb["mended"]
    assert_agree(mended, "log_scale", 0)
    for q in (0.05, 0.25, 0.75, 0.95):
        size = float(min(mended.ess("log_scale"), mended.ess_tail("log_scale")))
        assert_share_agrees(np.array(mended["log_scale"]) < norm.ppf(q, 0, 1.5), q, size)
    assert nb["funnel"].stats["diverging"].sum().item() > 0
    assert any("bfmi" in warning for warning in nb["funnel"].summary().warnings)

    # The product of two normal(0, 2) has the density K0(|s| / 4) / (4 pi); a least-squares fit says where it matters.
    speed, distance = cars()
    slope, noise = np.meshgrid(np.linspace(2, 4, 401), np.linspace(8, 40, 321), indexing="ij")
    residual = np.sum((distance[:, None, None] - slope * speed[:, None, None]) ** 2, axis=0)
    log_prob = np.log(k0(slope / 4)) - 0.05 * noise - 50 * np.log(noise) - 0.5 * residual / noise**2
    weight = np.exp(log_prob - logsumexp(log_prob))
    assert_mean_agrees(nb["slope_again"], np.sum(weight * slope))
    assert_mean_agrees(np.array(nb["positive"]["noise"]), np.sum(weight * noise))


def test_hot_reload(session):
    """Least squares with a row for each prior; scores of the pinned trace and of the rebased one, from the densities.

    Catches a trace that follows an edit, draws that are carried without their weights, and a file with an error in it
    of which a part is taken over.
    """
    nb = session("06_hot_reload.py")
    speed, distance = cars()

    def exact(columns, sds):
        rows = np.concatenate([np.stack(columns, -1) / 15, np.diag(1 / np.array(sds))])
        return np.linalg.lstsq(rows, np.concatenate([distance / 15, np.zeros(len(sds))]), rcond=None)[0]

    one, bend = np.ones(50), (speed / 10) ** 2
    for post, columns, sds in (
        (nb["post"], [one, speed], [20, 5]),
        (nb["narrower"], [one, speed], [5, 5]),
        (nb["bent"], [one, speed, bend], [5, 5, 0.5]),
    ):
        names = ["intercept", "slope", "bend"][: len(sds)]
        assert post.addresses() == [("slope",), ("intercept",), ("bend",)][: len(sds)]
        for name, truth in zip(names, exact(columns, sds), strict=True):
            assert_agree(post, name, truth)
    assert nb["post"].stale and nb["narrower"].stale and nb["too_far"].stale
    assert "(line v1) -> stopping v1 (line v2): kept" in str(nb["narrower"].carrying)
    assert "new 'bend'" in str(nb["bent"].carrying) and "sample anew" in nb["too_far"].carrying.warning

    def score(tr, spread):
        slope, intercept = tr["slope"].item(), tr["intercept"].item()
        priors = norm.logpdf(slope, 0, 5) + norm.logpdf(intercept, 0, spread)
        return priors + norm.logpdf(distance, intercept + slope * speed, 15).sum()

    assert nb["tr"].score.item() == pytest.approx(score(nb["tr"], 20), abs=2e-3)
    assert nb["again"].score.item() == nb["tr"].score.item()
    assert nb["rebased"].score.item() == pytest.approx(score(nb["rebased"], 5), abs=2e-3)
    assert nb["rebased"]["slope"].item() == nb["tr"]["slope"].item()
    assert nb["stopping"] is nb["braking"].stopping and nb["stopping"].version.number == 3


def test_time_series(session):
    """The flows as one normal vector of a hundred, whose covariance is written down: no filter.

    Catches a filter that is one step off, a smoother that draws from the filtered levels, hidden years that are seen,
    and a forecast that begins at the last flow or does not spread.
    """
    nb = session("07_time_series.py")
    flow = nb["flow"]
    assert (len(flow), flow.mean(), nb["year"][0], nb["year"][-1]) == (100, 919.35, 1871, 1970)
    assert flow.std(ddof=1) == pytest.approx(169.2275, abs=1e-4)  # R's sd(Nile)

    years = np.arange(1, 111)
    walk = np.minimum(years[:, None], years)

    def given(drift, noise, seen):
        """log p of the flows that are seen, and mean and variance of all levels given them."""
        levels = 300.0**2 + drift**2 * walk
        covariance = levels[np.ix_(seen, seen)] + noise**2 * np.eye(len(seen))
        gain = np.linalg.solve(covariance, levels[seen]).T
        apart = flow[seen] - 1000
        log_prob = -0.5 * (apart @ np.linalg.solve(covariance, apart) + np.linalg.slogdet(2 * np.pi * covariance)[1])
        return log_prob, 1000 + gain @ apart, np.diag(levels) - np.sum(gain * levels[seen].T, axis=1)

    def average(seen):
        """log evidence, means of drift and noise, and of the levels; mean and sd of the flows."""
        points = list(itertools.product(np.arange(4, 160, 8.0), np.arange(75, 180, 5.0)))
        found = [given(*point, seen) for point in points]
        log_prob = np.array([each[0] for each in found]) + 2 * np.log(2)
        log_prob += np.sum(norm.logpdf(points, 0, (100, 200)), axis=1)
        total = logsumexp(log_prob)
        weight = np.exp(log_prob - total)
        level, variance = (weight @ [each[i] for each in found] for i in (1, 2))
        square = weight @ [each[1] ** 2 + each[2] + noise**2 for each, (_, noise) in zip(found, points, strict=True)]
        return total + np.log(40.0), weight @ points, level, np.sqrt(square - level**2)

    log_ml, (drift, noise), level, sd = average(np.arange(100))
    assert nb["exact_log_ml"] == pytest.approx(log_ml, abs=0.01)
    assert nb["exact"] == pytest.approx({"drift": drift, "noise": noise}, rel=5e-3)
    assert np.abs(nb["exact_level"] - level[:100]).max() < 1
    assert nb["ahead_sd"] == pytest.approx(sd[100:], rel=5e-3)

    particles, size = nb["particles"], nb["size"]
    assert size > 1500 and abs(particles.log_ml.item() - log_ml) < 4.5 / np.sqrt(particles.ess.item())
    assert np.all(np.abs(nb["levels"].mean(axis=0) - level[:100]) < 4.5 * nb["levels"].std(axis=0) / np.sqrt(size))
    for i in range(10):
        assert abs(nb["future_flows"][:, i].mean() - level[100 + i]) < 4.5 * sd[100 + i] / np.sqrt(size)
        assert abs(nb["future_flows"][:, i].std() / sd[100 + i] - 1) < 4.5 / np.sqrt(size)

    hidden = nb["hidden"]
    _, _, level, sd = average(np.flatnonzero(~hidden))
    assert hidden.sum() == 20 and not hidden[[19, 40]].any()
    found = nb["gap_levels"]
    assert np.all(np.abs(found.mean(axis=0) - level[:100]) < 5 * found.std(axis=0) / np.sqrt(1000))
    found = nb["gap_flows"]
    assert np.all(np.abs(found.mean(axis=0) - level[:100][hidden]) < 5 * found.std(axis=0) / np.sqrt(1000))
    assert np.all(np.abs(found.std(axis=0) / sd[:100][hidden] - 1) < 5 / np.sqrt(1000))


def test_choosing_an_algorithm(session):
    """The five exact answers that the runs are judged by, each found in another way.

    Catches an answer that is of another model, which would make a good sampler look bad, or the reverse.
    """
    nb = session("08_choosing_an_algorithm.py")
    grid, measured = nb["grid"], nb["measured"]
    inverse = np.linalg.inv(np.exp(-((grid[:, None] - grid) ** 2) / 8) + 1e-4 * np.eye(40))
    posterior = np.linalg.inv(inverse + np.eye(40))
    assert nb["curve_mean"] == pytest.approx(posterior @ measured, abs=1e-6)
    assert nb["curve_sd"] == pytest.approx(np.sqrt(np.diag(posterior)), abs=1e-6)

    def hill(x, power):
        return x**power * norm.pdf(x, 0.5, 3) * norm.pdf(2, np.abs(x), 0.3)

    total, first, second = (
        sum(quad(hill, middle - 2, middle + 2, (power,), points=[middle])[0] for middle in (-2, 2))
        for power in (0, 1, 2)
    )
    assert (nb["x_mean"], nb["x_sd"]) == pytest.approx((first / total, np.sqrt(second / total - (first / total) ** 2)))

    weights = np.zeros(11)
    for s in itertools.product((0, 1), repeat=10):
        alike = sum(a == b for a, b in zip(s, s[1:], strict=False))
        p = norm.pdf(8, alike, 1) * norm.pdf(nb["readings"], s, 0.8).prod()
        weights += p * np.array([*s, 1])
    assert nb["switch_mean"] == pytest.approx(weights[:10] / weights[10])

    # All 2^15 sets of wild points; given a set, the line is a linear regression.
    x, y = np.stack([np.ones(15), nb["xs"]], axis=-1), nb["ys"]
    wild = np.array(list(itertools.product((False, True), repeat=15)))
    precision = np.where(wild, 1 / 25, 1 / 0.16)
    inner = np.einsum("sn,na,nb->sab", precision, x, x) + np.eye(2) / 9
    right = np.einsum("sn,na,n->sa", precision, x, y)
    covariance = np.linalg.inv(inner)
    mean = np.einsum("sab,sb->sa", covariance, right)
    log_prob = np.where(wild, np.log(0.1), np.log(0.9)).sum(axis=1) + 0.5 * np.log(precision).sum(axis=1)
    log_prob += 0.5 * np.sum(mean * right, axis=1) - 0.5 * precision @ y**2 - 0.5 * np.linalg.slogdet(inner)[1]
    weight = np.exp(log_prob - logsumexp(log_prob))
    exact = weight @ mean
    spread = weight @ (mean**2 + np.diagonal(covariance, axis1=1, axis2=2)) - exact**2
    assert nb["line_mean"] == pytest.approx(exact, abs=1e-3)
    assert nb["line_sd"] == pytest.approx(np.sqrt(spread), rel=0.01)

    rows = np.concatenate([x / 2, np.eye(2) / 3])
    assert nb["straight_mean"] == pytest.approx(np.linalg.lstsq(rows, [*(y / 2), 0, 0], rcond=None)[0])
    assert nb["of_straight"]["hmc, 1000 chains"]["error"] < 0.02


def read(name, *columns):
    with open(NOTEBOOKS / "data" / name) as file:
        rows = list(csv.DictReader(file))
    return [np.array([float(row[column]) for row in rows]) for column in columns]


def test_hidden_markov_model(session):
    """The forward algorithm in probabilities, with scipy's Poisson; of `stay` an integral over it.

    Catches a filter that gives a number to the wrong year, a state that is drawn from the wrong row, and draws of
    `stay` from a chain that takes the evidence for exact where it is not.
    """
    (counts,) = read("earthquakes.csv", "count")
    assert len(counts) == 107 and abs(counts.mean() - 19.364) < 1e-3 and abs(counts.var(ddof=1) - 51.573) < 1e-3

    def forward(stay):
        state, log_ml, found = np.full(3, 1 / 3), 0.0, []
        moves = np.where(np.eye(3) == 1, stay, (1 - stay) / 2)
        for t, count in enumerate(counts):
            joint = (state @ moves if t else state) * poisson.pmf(count, [13, 20, 30])
            log_ml, state = log_ml + np.log(joint.sum()), joint / joint.sum()
            found.append(state)
        return log_ml, np.array(found)

    nb = session("09_hidden_markov_model.py")
    log_ml, filtered = forward(0.9)
    np.testing.assert_allclose(nb["exact"].log_ml.item(), log_ml, atol=1e-4)
    for pf in (nb["pf"], nb["again"]):
        assert abs(pf.log_ml.item() - log_ml) < 4.5 * 0.2  # the spread over seeds is 0.2
    np.testing.assert_allclose(nb["shares"], filtered, atol=0.12)
    means = np.array([known["state",].mean for known in nb["pf"].history.recorded])
    np.testing.assert_allclose(means, filtered @ [0, 1, 2], atol=0.15)
    top = max(forward(x)[0] for x in (0.85, 0.9, 0.95))
    moments = [quad(lambda x, k=k: x**k * np.exp(forward(x)[0] - top), 0.5, 0.999, limit=30)[0] for k in range(3)]
    mean = moments[1] / moments[0]
    sd = np.sqrt(moments[2] / moments[0] - mean**2)
    assert abs(nb["exact_mean"] - mean) < 0.002 and abs(nb["exact_sd"] - sd) < 0.002
    assert abs(nb["stays"].mean() - mean) < 4.5 * sd / np.sqrt(8)


def test_state_space_model(session):
    """A grid of other points and another width than that of the notebook, by scipy's densities.

    Catches a filter whose first step is another one, a proposal whose weight forgets its density, and a volatility that
    is taken for a variance.
    """
    (gdp,) = read("gdp.csv", "gdp")
    growth = 400 * np.log(gdp[1:] / gdp[:-1])
    jumps = growth - growth.mean()
    assert len(jumps) == 202
    points = np.linspace(-4.5, 8.5, 521)

    def filtered(wander):
        moves = norm(points[:, None], wander).pdf(points[None]) * (points[1] - points[0])
        state, log_ml, means = norm(np.log(16.0), wander).pdf(points), 0.0, []
        state /= state.sum()
        for t, jump in enumerate(jumps):
            joint = (state @ moves if t else state) * norm(0, np.exp(points / 2)).pdf(jump)
            log_ml, state = log_ml + np.log(joint.sum()), joint / joint.sum()
            means.append(state @ points)
        return log_ml, np.array(means)

    nb = session("10_state_space_model.py")
    log_ml, means = filtered(0.25)
    assert abs(nb["exact_log_ml"] - log_ml) < 0.01
    np.testing.assert_allclose(nb["exact_means"], means, atol=0.01)
    for pf in (nb["pf"], nb["guided"]):
        assert abs(pf.log_ml.item() - log_ml) < 4.5 * 0.27  # the spread over seeds is 0.27
    np.testing.assert_allclose(nb["means"], means, atol=0.3)
    exact = [filtered(value)[0] for value in nb["values"]]
    assert np.all(np.abs(nb["estimates"] - exact) < 4.5 * np.maximum(nb["errors"], 0.3))
    grid = np.linspace(0.06, 0.8, 38)
    weight = np.exp([filtered(x)[0] - log_ml + 3 * np.log(x) - 15 * x for x in grid])
    weight /= weight.sum()
    mean = weight @ grid
    sd = np.sqrt(weight @ (grid - mean) ** 2)
    assert abs(nb["exact_wander"] - mean) < 0.003
    assert abs(nb["draws"].mean() - mean) < 4.5 * sd / np.sqrt(5)
