"""``%infer`` through a series: steps, calls that grow, their options, completion, help, and what mistakes say."""

import math

import numpy as np
import pytest
from scipy.stats import norm

from genmlx.inference import ParticleFilter, Posterior
from genmlx.inference.methods import METHODS
from genmlx.inference.resampling import SCHEMES
from magics.complete import Completer
from magics.specs import RESAMPLING

MODEL = """
%load_ext genmlx
%config GenMagics.mem = "off"
@gen
def step(t, x, noise=1.0):
    x = trace("x", normal(x, 1.0))
    trace("y", normal(x, noise))
    return x
walk = unfold(step)
@gen
def model(n):
    noise = trace("noise", gamma(4.0, 4.0))
    trace("states", walk(n, 0.0, noise))
ys = [1.0, 2.0, 0.5, -0.5]
steps = [(walk(t + 1, 0.0), {(t, "y"): y}) for t, y in enumerate(ys)]
"""


def kalman():
    """The log evidence, and mean and deviation of the last state."""
    mean, variance, log_ml = 0.0, 0.0, 0.0
    for y in (1.0, 2.0, 0.5, -0.5):
        variance += 1.0
        log_ml += norm(mean, math.sqrt(variance + 1.0)).logpdf(y)
        gain = variance / (variance + 1.0)
        mean, variance = mean + gain * (y - mean), (1 - gain) * variance
    return log_ml, mean, math.sqrt(variance)


@pytest.fixture
def session(prompt, monkeypatch):
    monkeypatch.setenv("GENMLX_DISPLAY", "off")
    prompt(MODEL)
    return prompt


@pytest.mark.parametrize(
    "line",
    [
        "smc walk(len(ys), 0.0) | given y=ys",
        "smc walk(len(ys), 0.0) | given y=mx.array(ys)",
        "smc steps",
        "smc (one for one in steps)",
        "smcp3 walk(4, 0.0) | given y=ys",
    ],
)
def test_steps_and_a_call_that_grows_have_the_evidence_of_kalmans_filter(session, line):
    log_ml, mean, sd = kalman()
    session(f"%infer {line} --particles 20000 -s 1 -o pf -q")
    pf = session["pf"]
    assert isinstance(pf, ParticleFilter) and pf is session["_post"]
    assert (pf.n, len(pf.history), pf.algorithm) == (20_000, 4, line.split()[0])
    assert abs(pf.log_ml.item() - log_ml) < 4 * 0.012  # the spread over seeds is 0.012
    assert abs(pf.mean((3, "x")).item() - mean) < 4 * sd / math.sqrt(5_000)


def test_each_option_is_the_keyword_of_the_method(session):
    session("%infer smc walk(4, 0.0) | given y=ys --particles 50 -s 3 --threshold 0 -o never -q")
    session(
        "%infer smc walk(4, 0.0) | given y=ys --particles 50 -s 3 --threshold 1 --resampling multinomial -o often -q"
    )
    assert [pf.history.resampled.sum() for pf in (session["never"], session["often"])] == [0, 3]
    session("start = select((0, 'x'))")
    session("%infer smc walk(4, 0.0) | given y=ys --particles 50 --record x --rejuvenate start --threshold 1 -o pf -q")
    history = session["pf"].history
    assert all(0 < accept < 1 for accept in history.accept[:3]) and list(history.recorded[0]) == [("x",)]
    session("@gen\ndef near():\n    trace((0, 'x'), normal(7.0, 0.001))")
    session("%infer is walk(1, 0.0) | given y=ys[:1] --particles 50 --proposal near() -o drawn -q")
    assert abs(session["drawn"].mean((0, "x")).item() - 7.0) < 0.01


def test_csmc_keeps_its_trace_and_pgibbs_and_pmmh_give_posteriors(session):
    session("%infer smc walk(4, 0.0) | given y=ys --particles 50 -s 3 -o pf -q\nkept = pf.traces[0]")
    session("%infer csmc walk(4, 0.0) | given y=ys --retained kept --particles 20 -o again -q")
    assert session["again"].traces[0][3, "x"].item() == session["kept"][3, "x"].item()
    for method, more in (("pmmh", "--particles 10"), ("pgibbs", "--kernel mh_kernel('noise') --particles 5")):
        if method == "pgibbs":
            session("from genmlx.inference import mh_kernel")
        session(f"%infer {method} model(4) | given states.y=ys --parameters noise -n 6 -w 4 -c 2 {more} -o post -q")
        post = session["post"]
        assert isinstance(post, Posterior) and (post.chains, post.draws) == (2, 6)
        assert len(np.unique(np.array(post["noise"]))) > 1 and ("states", 3, "x") in post.addresses()


def test_tempered_takes_its_kernel_as_a_word(session):
    session("%infer tempered step(0, 0.0) | given y=3.0 --kernel random_walk --particles 2000 -s 1 -o tp -q")
    tp = session["tp"]
    assert tp.algorithm == "tempered_smc" and abs(tp.mean("x").item() - 1.5) < 4 * math.sqrt(0.5 / 1000)
    assert abs(tp.log_ml.item() - norm(0, math.sqrt(2)).logpdf(3.0)) < 0.15


def test_a_dry_run_and_the_report_say_how_many_steps_and_particles(session):
    said = session("%infer smc walk(len(ys), 0.0) | given y=ys --dry-run")
    assert said == "smc  unfold(step)  4 steps, 1,000 particles  given y"
    said = session("%infer pmmh model(4) | given states.y=ys --parameters noise -n 5 -c 2 --dry-run")
    assert said == "pmmh  model v1  2 chains x 5  4 steps, 100 particles  given states"
    assert session("%infer smc steps --particles 30 --dry-run") == "smc  unfold(step)  4 steps, 30 particles  given y"


def test_a_run_that_is_cut_short_says_after_how_many_steps(session):
    session("long = [0.0] * 3000")
    session("%config GenMagics.on_interrupt = 'return'")
    session("%infer smc walk(len(long), 0.0) | given y=long --particles 200 --time 0.2 -o cut -q")
    cut = session["cut"]
    done = len(cut.history)
    assert cut.status == "time" and 0 < done < 3000
    from workbench.report import Report

    assert str(Report(cut, "smc", "cut", asked=3000)).startswith(
        f"cut: stopped by --time after {done:,} of 3,000 steps\n"
    )


@pytest.mark.parametrize(
    ("line", "message", "under"),
    [
        ("smc walk", "walk is a model: give it its arguments, walk(...)", "walk"),
        ("smc ys", "step 0 is float, not (call, observations)", "ys"),
        ("smc 3", "3 is int, no steps", "3"),
        ("smc []", "[] has no steps", "[]"),
        ("smc steps | given y=ys", "steps have observations of their own", "y"),
        ("smc step(0.0, 0.0)", "step does not say how long it is: none of its arguments is", "step(0.0, 0.0)"),
        ("smc step(0, 0.0)", "step(0, 0.0) has no steps", "step(0, 0.0)"),
        ("smc normal(0, 1)", "normal does not grow", "normal(0, 1)"),
        ("smc walk(3, 0.0) | given y=ys", "y has 3 addresses, (0, 'y') to (2, 'y'), for 4 values", "y"),
        ("smc walk(4, 0.0) | given z=ys", "given: no address 'z' in unfold(step)", "z"),
        ("smc walk(4, 0.0) -n 3", "smc takes no --draws: it takes --particles, --threshold, --resampling", None),
        ("mh step(0, 0.0) --threshold 1", "mh takes no --threshold", None),
        ("mh steps", "steps is list, not a model with its arguments; steps are for smc, csmc, smcp3", "steps"),
        ("csmc steps", "csmc needs --retained TRACE", "csmc"),
        ("pmmh steps", "pmmh needs --parameters ADDRS", "pmmh"),
        ("smc steps --until 'ess>3'", "smc takes no --until: it has no draws", "'ess>3'"),
        ("smc steps --resampling sistematic", "--resampling is one of systematic, stratified", "sistematic"),
    ],
)
def test_mistakes(session, line, message, under):
    error, _ = session.fails(f"%infer {line}")
    first, *rest = str(error).split("\n")
    assert message in first
    if under is not None:
        shown, carets = rest[-2:]
        start = carets.index("^")
        assert shown[start : start + carets.count("^")] == under


def test_a_column_is_dealt_to_the_steps_of_a_series_by_every_magic(session):
    session("%trace model(4) | given states.y=ys -o tr -q")
    assert [session["tr"]["states", t, "y"].item() for t in range(4)] == [1.0, 2.0, 0.5, -0.5]
    session("@gen\ndef spliced(n):\n    trace('x0', normal(0, 1))\n    splice(walk(n, 0.0))")
    session("%infer is spliced(4) | given y=ys, x0=1.0 --particles 5 -o ps -q")
    assert session["ps"].observations.addresses() == [(0, "y"), (1, "y"), (2, "y"), (3, "y"), ("x0",)]


def test_completion_and_help_know_the_method(session):
    completer = Completer(session.ip._genmlx_session)
    offered = completer.candidates("%infer csmc steps --")[0]
    assert {"--retained", "--particles", "--seed"} <= {*offered} and not {"--draws", "--until", "--sel"} & {*offered}
    assert "--draws" in completer.candidates("%infer nuts model(3) --")[0]
    assert "walk(" in completer.candidates("%infer smc wa")[0]
    assert completer.candidates("%infer smc steps --resampling ")[0] == list(RESAMPLING)
    page = session("%infer csmc -h")
    assert "%infer csmc STEPS | MODEL(ARGS)" in page and "--retained TRACE" in page and "(needed)" in page
    assert "--draws" not in page and METHODS["csmc"].summary in page
    assert all(f"  {name} " in session("%infer -h") for name in METHODS)


def test_the_schemes_that_are_offered_are_those_that_there_are():
    assert set(RESAMPLING) == set(SCHEMES)
