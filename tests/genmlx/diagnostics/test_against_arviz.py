"""Every number against ArviZ 0.23.4 (numpy 2.4, scipy 1.17), at rtol 1e-6.

The arrays are drawn again here from fixed seeds; the literals are ArviZ's answers. What each array is for:
antithetic reaches the cap of ESS, shifted and scaled need the bulk and the folded R-hat, cauchy has no variance,
odd drops a middle draw, short has too few lags, limit ends at the last lag, counts, coin and stuck have ties, single
has one chain (where ArviZ's public `rhat` declines; the literal is its private split R-hat, as in R's posterior).
"""

import numpy as np
import pytest

from genmlx import diagnostics


def autoregression(rng: np.random.Generator, chains: int, draws: int, rho: float) -> np.ndarray:
    noise = rng.normal(size=(chains, draws))
    x = np.empty((chains, draws))
    x[:, 0] = noise[:, 0] / np.sqrt(1 - rho**2)
    for t in range(1, draws):
        x[:, t] = rho * x[:, t - 1] + noise[:, t]
    return x


def arrays() -> dict[str, np.ndarray]:
    rng = np.random.default_rng
    return {
        "iid": rng(1).normal(size=(4, 250)),
        "ar1": autoregression(rng(2), 4, 250, 0.9),
        "antithetic": autoregression(rng(3), 4, 250, -0.6),
        "shifted": rng(4).normal(size=(4, 250)) + np.array([[0.0], [0.0], [0.3], [1.0]]),
        "scaled": rng(5).normal(size=(4, 250)) * np.array([[1.0], [1.0], [1.0], [3.0]]),
        "cauchy": rng(6).standard_cauchy(size=(4, 250)),
        "odd": autoregression(rng(7), 3, 17, 0.5),
        "short": rng(8).normal(size=(2, 7)),
        "single": autoregression(rng(9), 1, 400, 0.5),
        "counts": rng(10).poisson(3.0, size=(4, 250)),
        "coin": rng(11).random(size=(4, 250)) < 0.3,
        "limit": rng(53).normal(size=(2, 12)),
        "stuck": np.repeat(rng(12).normal(size=(3, 40)), 5, axis=1),
    }


ARVIZ = {
    "iid": {
        "rhat": 1.0064869956036937,
        "ess": 1047.8444908377837,
        "ess_tail": 950.8681670656908,
        "ess_mean": 1049.7286457401615,
        "mcse_mean": 0.0304558449108665,
        "mcse_sd": 0.02317834078263965,
        "mcse_10%": 0.06403923778540443,
        "bfmi": 2.224777503615536,
        "hdi_low": -1.7838454781954174,
        "hdi_high": 1.8740813416812043,
    },
    "ar1": {
        "rhat": 1.04999086418547,
        "ess": 100.18659112154762,
        "ess_tail": 176.2421235902706,
        "ess_mean": 99.01958107795953,
        "mcse_mean": 0.19661854171889784,
        "mcse_sd": 0.11450594012653696,
        "mcse_10%": 0.36209352030087816,
        "bfmi": 0.48740719385442555,
        "hdi_low": -3.789480124940714,
        "hdi_high": 3.8439072064852815,
    },
    "antithetic": {
        "rhat": 1.002288443435174,
        "ess": 3000.0,
        "ess_tail": 760.1431527651625,
        "ess_mean": 3000.0,
        "mcse_mean": 0.023117167304031943,
        "mcse_sd": 0.039957808609520196,
        "mcse_10%": 0.08420681109541739,
        "bfmi": 3.301914792013011,
        "hdi_low": -2.131061145679133,
        "hdi_high": 2.587788575717989,
    },
    "shifted": {
        "rhat": 1.080669738745942,
        "ess": 36.747210078342896,
        "ess_tail": 477.39719381244,
        "ess_mean": 37.1379722221924,
        "mcse_mean": 0.17822622320459552,
        "mcse_sd": 0.025087320326555123,
        "mcse_10%": 0.06624811604371605,
        "bfmi": 2.1335384552702235,
        "hdi_low": -1.54315828186273,
        "hdi_high": 2.4509018824786284,
    },
    "scaled": {
        "rhat": 1.1659276132239715,
        "ess": 894.3414632295986,
        "ess_tail": 50.71534846901411,
        "ess_mean": 866.5062205884938,
        "mcse_mean": 0.05911710544979177,
        "mcse_sd": 0.4555832629517701,
        "mcse_10%": 0.3967657480118668,
        "bfmi": 1.9527257638607072,
        "hdi_low": -3.4050635635536413,
        "hdi_high": 3.259020082522483,
    },
    "cauchy": {
        "rhat": 1.0008624666301789,
        "ess": 983.5343824505671,
        "ess_tail": 901.2233263541818,
        "ess_mean": 1023.7031295907012,
        "mcse_mean": 0.9195365956189779,
        "mcse_sd": 8.98599582762409,
        "mcse_10%": 0.4094385309839397,
        "bfmi": 2.027428637287127,
        "hdi_low": -13.120792470961003,
        "hdi_high": 12.021829054023305,
    },
    "odd": {
        "rhat": 1.4099860737948449,
        "ess": 11.37632403100406,
        "ess_tail": 29.970011534025385,
        "ess_mean": 11.118524107324266,
        "mcse_mean": 0.3206866503132582,
        "mcse_sd": 0.11878510460011389,
        "mcse_10%": 0.5172788808600272,
        "bfmi": 1.5602894167500356,
        "hdi_low": -2.6710016935995977,
        "hdi_high": 1.225020211589712,
    },
    "short": {
        "rhat": 1.6158295071817814,
        "ess": 12.9501749525715,
        "ess_tail": 12.9501749525715,
        "ess_mean": 12.9501749525715,
        "mcse_mean": 0.3452746445417624,
        "mcse_sd": 0.14523349723497264,
        "mcse_10%": 0.48796939325778543,
        "bfmi": 3.0051022834372154,
        "hdi_low": -2.3125815796967033,
        "hdi_high": 1.5054811563838433,
    },
    "single": {
        "rhat": 1.0097499716858211,
        "ess": 108.60054832003732,
        "ess_tail": 126.98639109781482,
        "ess_mean": 109.65154373438202,
        "mcse_mean": 0.11093831580297678,
        "mcse_sd": 0.0665681961525273,
        "mcse_10%": 0.09685327519751241,
        "bfmi": 0.9735073149281815,
        "hdi_low": -1.9285681372693166,
        "hdi_high": 2.210692327102082,
    },
    "counts": {
        "rhat": 0.9982603004198218,
        "ess": 1093.7389380027892,
        "ess_tail": 969.3731503332478,
        "ess_mean": 1072.2871577047445,
        "mcse_mean": 0.053602146751605226,
        "mcse_sd": 0.03873115334656813,
        "mcse_10%": 0.0,
        "bfmi": 2.059820454293862,
        "hdi_low": 0.0,
        "hdi_high": 6.0,
    },
    "coin": {
        "rhat": 0.999699900309466,
        "ess": 949.6387004749241,
        "ess_tail": 949.6387004749233,
        "ess_mean": 949.6387004749233,
        "mcse_mean": 0.015042138028290278,
        "mcse_sd": 0.00610068563685006,
        "mcse_10%": 0.0,
        "bfmi": 2.0626189972498414,
        "hdi_low": 0.0,
        "hdi_high": 1.0,
    },
    "limit": {
        "rhat": 1.047047098198845,
        "ess": 28.39081696162501,
        "ess_tail": 33.12506980107854,
        "ess_mean": 24.893132017341962,
        "mcse_mean": 0.17509266864173387,
        "mcse_sd": 0.0808142355634074,
        "mcse_10%": 0.2052152506392384,
        "bfmi": 1.4473102959549724,
        "hdi_low": -1.2169758146668057,
        "hdi_high": 1.3556001985174029,
    },
    "stuck": {
        "rhat": 1.0319508538160442,
        "ess": 77.8555319492916,
        "ess_tail": 125.99487825698141,
        "ess_mean": 86.00834801920642,
        "mcse_mean": 0.09987310994300037,
        "mcse_sd": 0.05354429217415512,
        "mcse_10%": 0.23463842274377988,
        "bfmi": 0.37463798810229565,
        "hdi_low": -1.9302874975259847,
        "hdi_high": 1.345493870380258,
    },
}

DIAGNOSTICS = {
    "rhat": diagnostics.rhat,
    "ess": diagnostics.ess,
    "ess_tail": diagnostics.ess_tail,
    "ess_mean": diagnostics.ess_mean,
    "mcse_mean": diagnostics.mcse,
    "mcse_sd": lambda x: diagnostics.mcse(x, "sd"),
    "mcse_10%": lambda x: diagnostics.mcse(x, 0.1),
    "bfmi": lambda x: diagnostics.bfmi(x)[0],
    "hdi_low": lambda x: diagnostics.hdi(x)[0],
    "hdi_high": lambda x: diagnostics.hdi(x)[1],
}


@pytest.mark.parametrize("name", ARVIZ)
@pytest.mark.parametrize("diagnostic", DIAGNOSTICS)
def test_arviz_gives_the_same_number(diagnostic, name):
    """A slip anywhere: rank offsets, tie ranks, fold, split, pair sums, the tip, the cap, order statistics."""
    assert DIAGNOSTICS[diagnostic](arrays()[name]) == pytest.approx(ARVIZ[name][diagnostic], rel=1e-6)


@pytest.mark.parametrize("diagnostic", list(DIAGNOSTICS)[:7])
def test_elements_of_an_event_do_not_mix(diagnostic):
    """An axis taken for another, or ranks over the whole array, would change stacked elements."""
    names = ["iid", "ar1", "antithetic", "shifted", "scaled", "cauchy"]
    stacked = np.stack([arrays()[name] for name in names], axis=-1).reshape(4, 250, 2, 3)
    expected = np.reshape([ARVIZ[name][diagnostic] for name in names], (2, 3))
    np.testing.assert_allclose(DIAGNOSTICS[diagnostic](stacked), expected, rtol=1e-6)


def log_weights() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(20)
    return {
        "light": rng.normal(size=1000) * 0.5,
        "half": 0.5 * rng.exponential(size=2000),
        "heavy": 1.2 * rng.exponential(size=500),
        "zeros": np.where(np.arange(300) % 3 == 0, -np.inf, rng.normal(size=300)),
    }


# khat, then the three largest and the smallest finite of the normalised log weights, from `arviz.psislw`.
ARVIZ_PSIS = {
    "light": [
        0.0254791278728,
        -5.61575923686,
        -5.55575421938,
        -5.55575421938,
        -8.52155004246,
    ],
    "half": [
        0.500511444704,
        -4.79967746995,
        -4.53984024836,
        -3.98395857969,
        -8.32596157805,
    ],
    "heavy": [
        1.16269463334,
        -2.85836533676,
        -2.26286892692,
        -0.98413126381,
        -9.10379996703,
    ],
    "zeros": [
        0.290331862478,
        -3.59493096675,
        -3.40450521924,
        -3.07880279225,
        -8.55111858512,
    ],
}


@pytest.mark.parametrize("name", ARVIZ_PSIS)
def test_psis_agrees_with_arviz(name):
    """The length of the tail, the cutoff, the prior on the shape, the truncation, the normalisation."""
    raw = log_weights()[name]
    smoothed, khat = diagnostics.psis(raw)
    ordered = np.sort(smoothed[np.isfinite(smoothed)])
    np.testing.assert_allclose(np.array([khat, *ordered[-3:], ordered[0]]), ARVIZ_PSIS[name], rtol=1e-6)
    assert np.array_equal(np.isneginf(smoothed), np.isneginf(raw))
