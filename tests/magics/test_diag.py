"""`%diag` and `%plot`: what they print, which result and addresses a line means, errors with carets."""

import io
from contextlib import redirect_stdout

import mlx.core as mx
import numpy as np
import pytest
from IPython.core.error import UsageError
from IPython.utils.capture import capture_output

from genmlx.inference import Posterior, importance_sampling

RNG = np.random.default_rng(0)


def posterior(values, stats=None, **rest):
    arrays = {(k if isinstance(k, tuple) else (k,)): mx.array(v) for k, v in values.items()}
    shape = next(iter(arrays.values())).shape[:2]
    numbers = {k: mx.array(v) for k, v in (stats or {}).items()}
    return Posterior(arrays, stats=numbers, log_joint=mx.zeros(shape), **rest)


def bad():
    """Chain 1 is elsewhere in tau, where it diverges, and its energy hardly moves."""
    rng = np.random.default_rng(1)
    tau = rng.normal(0, 0.5, (2, 200))
    tau[1] -= 0.3
    diverging = tau < np.quantile(tau, 0.05)
    energy = rng.normal(0, 1, (2, 200))
    energy[1] = energy[1].cumsum()
    deep = np.zeros((2, 200), bool)
    deep[0, :3] = True
    draws = {"mu": rng.normal(4, 1, (2, 200)), "tau": np.exp(tau), "fixed": np.full((2, 200), 2.0)}
    stats = {
        "diverging": diverging,
        "energy": energy,
        "accept": np.full((2, 200), 0.8),
        "reached_max_depth": deep,
    }
    return posterior(
        {k: v.astype("float32") for k, v in draws.items()}, {k: v.astype("float32") for k, v in stats.items()}
    )


def good():
    return posterior(
        {"mu": RNG.normal(4, 1, (2, 400)).astype("float32"), "theta": RNG.normal(size=(2, 400, 3)).astype("float32")},
        {"diverging": np.zeros((2, 400), bool)},
    )


@pytest.fixture
def session(prompt):
    prompt.ip.user_ns.update(bad=bad(), good=good(), _post=good(), number=3)
    return prompt


class Utf8(io.StringIO):
    encoding = "utf-8"


def shown(session, cell):
    """What a terminal shows for a cell, displays included."""
    with capture_output(display=False) as captured:
        session.ip.run_cell(cell, store_history=True).raise_error()
    assert captured.stderr == ""
    return captured.stdout.rstrip("\n")


BAD = """\
        mean     sd   rhat  ess_bulk  ess_tail  mcse/sd
tau    0.929  0.495  1.072        27       374      15%  <- rhat>1.01, ess<200
mu      3.98   1.02  0.999       468       345       5%
fixed      2      0      -         -         -        -  constant
20 divergences (5.0%): 5 in chain 0, 15 in chain 1
they gather at small tau: mean 0.312, of all draws 0.929
bfmi 0.01 in chain 1 (< 0.3): the tails are missed
3 trajectories at the largest tree depth: 3 in chain 0
try: --target-accept 0.95; non-centred choices, if tau is the scale of others
     %plot bad tau --kind pair; %plot bad --kind energy
     --max-depth 12; dense=True in a call of nuts; -n 1500; a longer warm-up (-w)
     %plot bad tau --kind rank"""


def test_a_bad_run_is_told_worst_first_with_what_to_try(session):
    assert shown(session, "%diag bad") == BAD


def test_a_good_run_is_ok(session):
    assert shown(session, "%diag").splitlines()[-1] == "ok: rhat <= 1.01, ess >= 200, 0 divergences   2 x 400 draws"
    assert "<-" not in shown(session, "%diag good") and "try" not in shown(session, "%diag good")


def names(text):
    return [line.split()[0] for line in text.splitlines()[1:] if line[0].isalpha() and not line.startswith("ok")]


def test_addresses_choose_rows_and_worst_bounds_them(session):
    assert names(shown(session, "%diag good mu, theta[1]")) in (["mu", "theta[1]"], ["theta[1]", "mu"])
    assert sorted(names(shown(session, "%diag theta"))) == ["theta[0]", "theta[1]", "theta[2]"]
    text = shown(session, "%diag good --worst 1")
    assert len(names(text)) == 1 and "... 3 more rows (--all)" in text
    assert len(names(shown(session, "%diag good --worst 1 --all"))) == 4


def test_rows_that_are_broken_or_stuck_say_so(session):
    x = np.stack([np.full(200, 1.0), np.full(200, 2.0)]).astype("float32")
    y = np.where(np.arange(400).reshape(2, 200) == 7, np.nan, RNG.normal(size=(2, 200))).astype("float32")
    session.ip.user_ns["odd"] = posterior(
        {"x": x, "y": y}, {"accept": np.zeros((2, 200), "float32")}, status="interrupted"
    )
    first, second, *rest = shown(session, "%diag odd").splitlines()[1:]
    assert first.startswith("y") and first.endswith("<- not finite")
    assert second.startswith("x") and second.endswith("<- no chain moved it")
    assert rest[:2] == ["interrupted at 200 draws", "chains 0, 1 accepted nothing"]
    assert rest[2:] == [
        "try: look for what overflows, or for a bound that is left",
        "     smaller steps (--step), or a longer warm-up (-w)",
    ]


def test_the_result_of_diag_is_shown_once_and_not_with_a_semicolon(session):
    assert shown(session, "%diag good").count("ok:") == 1
    assert shown(session, "%diag good;") == "" and shown(session, "d = %diag good\n").count("ok:") == 1
    assert repr(session["d"]) == "<Diagnosis: 4 rows, 0 things to try>"
    html = session["d"]._repr_html_()
    assert html.count("<tr>") == 5 and "<td>theta[0]</td>" in html


@pytest.fixture
def particles(session):
    session("@gen\ndef line():\n    mu = trace('mu', normal(mx.zeros(2), 1))\n    trace('y', normal(mu[0], 0.01))")
    found = importance_sampling(session["line"](), {"y": 2.5}, 200, key=mx.random.key(0))
    session.ip.user_ns["parts"] = found
    return found


def test_particles_have_weighted_moments_evidence_and_a_verdict(session, particles):
    text = shown(session, "%diag parts").splitlines()
    weights = np.asarray(particles.weights, dtype=float)
    values = np.asarray(particles["mu"], dtype=float)
    mean = weights @ values
    assert text[1].split() == ["mu[0]", f"{mean[0]:.3g}", f"{np.sqrt(weights @ (values[:, 0] - mean[0]) ** 2):.3g}"]
    assert text[3].startswith(
        f"log evidence {particles.log_ml.item():.4g}   ess {1 / (weights**2).sum():,.1f} of 200 ("
    )
    assert text[3].endswith(f"largest weight {weights.max():.1%}")
    assert text[4] == "k-hat > 0.7: the weights are not to be trusted"
    assert text[5] == "try: a proposal nearer to the posterior; nuts or mh; %plot parts --kind weights"
    assert shown(session, "%diag parts mu[1]").splitlines()[1].startswith("mu[1]")
    assert shown(session, "%plot parts").startswith("share of the weight")


# plots


def test_plot_shows_text_where_there_are_no_images(session):
    text = shown(session, "%plot good mu")
    assert text.splitlines()[0] == "mu" and text.splitlines()[-1] == "--save trace.png for the figure itself"
    assert text.isascii()  # the captured stream has no encoding
    with redirect_stdout(Utf8()) as stream:
        session.ip.run_cell("%plot good mu").raise_error()
    assert any(ord(c) > 0x2800 for c in stream.getvalue())
    settings = session.ip._genmlx_session.settings
    settings.ascii, settings.width = True, 60
    with redirect_stdout(Utf8()) as stream:
        session.ip.run_cell("%plot good mu").raise_error()
    assert stream.getvalue().isascii() and 55 < max(map(len, stream.getvalue().splitlines())) <= 60


def test_plot_means_the_last_result_where_no_other_is_named(session):
    titles = [
        axes.get_title(loc="left")
        for axes in session.value("get_ipython().run_line_magic('plot', 'mu, theta[2];')").axes
    ]
    assert titles == ["mu", "", "theta[2]", ""]
    session.ip.user_ns["mu"] = 3  # a variable of the name of an address is not a result
    assert shown(session, "%plot mu").splitlines()[0] == "mu"


def test_plot_is_bound_and_saved(session, tmp_path):
    path = tmp_path / "f.png"
    text = shown(session, f"%plot good mu --kind forest -o fig --save {path}")
    assert text.splitlines()[-1] == f"saved as {path}"
    assert path.read_bytes()[:4] == b"\x89PNG"
    assert repr(session["fig"]) == "<Plot forest: 1 panels>"
    assert shown(session, "%plot good mu -o fig;") == "" and session["fig"].kind == "trace"


def test_max_bounds_the_numbers(session):
    assert shown(session, "%plot good --max 2").splitlines()[0] == "2 of 4 numbers"


@pytest.mark.parametrize(
    ("line", "said", "under"),
    [
        ("%plot good xyz, mu", "no address xyz in good  (addresses: mu, theta)", "xyz"),
        ("%diag good mu, thta", "no address thta in good - did you mean theta?", "thta"),
        ("%plot good theta[3]", "no such element: ('theta', 3); expected: 'theta' has the shape (3,)", "theta[3]"),
        ("%plot god mu", "no result 'god'; did you mean 'good'?", "god"),
        ("%plot number", "number is of type int, no result of an algorithm", "number"),
        (
            "%plot good --kind energy",
            "this sampler reports no energies; expected: the posterior of nuts or hmc",
            "energy",
        ),
        (
            "%plot good --kind weights",
            "Posterior has no weights for the kind 'weights'; expected: particles",
            "weights",
        ),
        ("%plot good --kind ppc", "this posterior was loaded without its model", "ppc"),
        ("%plot good --kind trase", "--kind is one of", "trase"),
        ("%plot good --save f.doc", "cannot write 'f.doc'", "f.doc"),
        ("%diag good --worst 0", "--worst is a whole number from 1 on, not 0", "0"),
    ],
)
def test_errors_point_at_the_word(session, line, said, under):
    error, _ = session.fails(line)
    assert isinstance(error, UsageError)
    message, shown, carets = str(error).splitlines()
    assert message.startswith(said)
    assert shown == f"    {line}" and carets == " " * (4 + line.rindex(under)) + "^" * len(under)


def test_without_any_result_the_line_says_how_to_get_one(prompt):
    error, _ = prompt.fails("%diag")
    assert "run %infer before" in str(error)
    error, _ = prompt.fails("%plot mu")
    assert str(error).splitlines()[0] == "no result 'mu'; run %infer before"
