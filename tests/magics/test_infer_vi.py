"""``%infer vi``, ``%diag`` and ``%plot`` of its fits in a headless shell."""

import re

import pytest

from genmlx.inference import GaussianFit


@pytest.fixture(scope="module")
def ip(shell_with_a_line):
    return shell_with_a_line


def test_a_fit_is_bound_and_reported(run, ip):
    """Least squares: slope 1.99 with deviation 0.316, intercept 0.05; the log evidence -11.17 by linear algebra."""
    result, out, _ = run("%infer vi line(xs) | given y=ys --family fullrank -s 1 -o fit")
    result.raise_error()
    fit = ip.user_ns["fit"]
    assert isinstance(fit, GaussianFit) and ip.user_ns["_post"] is fit and fit.family == "fullrank"
    assert out.startswith("fit: GaussianFit vi fullrank line v1\n")
    assert re.search(r"^slope +1\.9\d+ +0\.31\d+$", out, re.MULTILINE)
    bound = float(re.search(r"^log evidence >= (-[\d.]+) \(se \S+\)   k-hat ", out, re.MULTILINE)[1])
    assert abs(bound - _evidence()) < 0.01
    assert "\nGaussianFit vi fullrank" in run("%infer vi line(xs) | given y=ys --family fullrank;\n_post")[1]


def _evidence():
    import numpy as np
    from scipy.stats import multivariate_normal

    x = np.stack([np.arange(1.0, 6.0), np.ones(5)], axis=1)
    return multivariate_normal(np.zeros(5), 100 * x @ x.T + np.eye(5)).logpdf([2.1, 3.9, 6.2, 7.8, 10.1])


def test_its_options(run, ip):
    run("%infer vi line(xs) | given y=ys --family lowrank --rank 1 --iterations 70 --samples 4 --tolerance 0 -o fit;")[
        0
    ]
    fit = ip.user_ns["fit"]
    assert fit.params["factor"].shape == (2, 1) and len(fit.history) == 70
    assert run("%infer vi line(xs) | given y=ys --dry-run")[1] == "vi  line v1  meanfield  given y\n"
    run("%infer vi line(xs) | given y=ys --iterations 20 --tolerance 0 -o first;")[0].raise_error()
    run("%infer ! --iterations 30 -o again;")[0].raise_error()
    assert len(ip.user_ns["again"].history) == 30
    run("%infer vi line(xs) | given y=ys --time 0.2 --tolerance 0 --iterations 1000000 -o short")[0].raise_error()
    assert ip.user_ns["short"].status == "time"


@pytest.mark.parametrize(
    ("line", "told"),
    [
        (
            "vi line(xs) | given y=ys --family full",
            "--family is one of meanfield, fullrank, lowrank; did you",
        ),
        (
            "vi line(xs) | given y=ys --draws 5",
            "vi takes no --draws: it takes --family, --rank, --iterations, --samples, ",
        ),
        ("nuts line(xs) | given y=ys --family fullrank", "nuts takes no --family"),
        ("vi line(xs) | given y=ys --until 'ess>400'", "vi takes no --until: it has no draws"),
        ("vi line(xs) | given yy=ys", "no address 'yy'"),
    ],
)
def test_mistakes(run, line, told):
    result, out, err = run(f"%infer {line}")
    assert result.error_in_exec is not None and told in out + err + str(result.error_in_exec)


def test_diagnoses_and_figures_of_a_fit(run, ip):
    run("%infer vi line(xs) | given y=ys --family fullrank -s 1 -o fit;")[0].raise_error()
    found = run("%diag")[1]
    assert re.search(r"^slope +1\.99 +0\.31\d +1\.99 ", found, re.MULTILINE) and "\nok: converged" in found
    assert re.search(r"^intercept ", run("%diag fit intercept")[1], re.MULTILINE)
    assert "slope " not in run("%diag fit intercept")[1].replace("line(", "")
    for kind in ("", "--kind elbo"):
        run(f"fig = %plot fit {kind}")[0].raise_error()
        assert ip.user_ns["fig"].kind == "elbo"
    result, out, err = run("%diag fit slop")
    assert "slope" in out + err + str(result.error_in_exec)
    result, out, err = run("%plot fit --kind trace")
    assert "has no chains of draws" in out + err + str(result.error_in_exec)
