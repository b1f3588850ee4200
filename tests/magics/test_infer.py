"""``%infer`` in a headless shell: what it runs, binds and shows, and what its mistakes say."""

import math
import os
import re
import signal
import threading

import mlx.core as mx
import pytest
from line_model import LINE

from genmlx.inference import InferenceInterrupted, Optimum, Particles, Posterior


@pytest.fixture(scope="module")
def ip(shell_with_a_line):
    return shell_with_a_line


def test_a_posterior_is_bound_shown_once_and_right(run, ip):
    """Least squares: slope 1.99, intercept 0.05; the prior is wide."""
    result, out, _ = run("%infer nuts line(xs) | given y=ys -n 1000 -w 500 -c 4 -s 1 -o post")
    result.raise_error()
    post = ip.user_ns["post"]
    assert isinstance(post, Posterior) and post is ip.user_ns["_post"] and (post.chains, post.draws) == (4, 1000)
    assert abs(post.mean("slope").item() - 1.988) < 0.05 and abs(post.mean("intercept").item() - 0.05) < 0.2
    assert out.startswith("post: Posterior nuts 4x1000 line v1\n") and "slope " in out and "<Posterior" not in out
    assert re.search(r"ok: rhat <= 1.01, ess >= 400   0 divergences   [\d.]+ s", out)


def test_the_same_seed_gives_the_same_draws(run, ip):
    for name in ("one", "two"):
        run(f"{name} = %infer mh line(xs) | given y=ys -n 20 -c 2 -s 7;")[0].raise_error()
    assert mx.array_equal(ip.user_ns["one"]["slope"], ip.user_ns["two"]["slope"]).item()


def test_a_semicolon_shows_nothing_but_binds(run, ip):
    result, out, _ = run("quiet = %infer mh line(xs) | given y=ys -n 5 -c 2;")
    result.raise_error()
    assert out == "" and ip.user_ns["quiet"].draws == 5
    assert run("%infer mh line(xs) | given y=ys -n 5 -c 2;")[1] == ""
    assert "\nPosterior mh 2x5 line v1\n" in run("%infer mh line(xs) | given y=ys -n 5 -c 2;\nquiet")[1]


def test_the_last_line_again_with_other_options(run, ip):
    run("%infer mh line(xs) | given y=ys -n 7 -c 2 -o first;")[0].raise_error()
    run("%infer")[0].raise_error()
    assert (ip.user_ns["_post"].chains, ip.user_ns["_post"].draws) == (2, 7)
    run("%infer ! -n 9 -o second;")[0].raise_error()
    assert (ip.user_ns["second"].chains, ip.user_ns["second"].draws) == (2, 9)


def test_observations_of_a_cell(run, ip):
    result, _, _ = run("%%infer mh line(xs) -n 5 -c 2 -o told\ny = ys  # the data\n\n# a comment\nslope = 2.0")
    result.raise_error()
    assert ip.user_ns["told"].addresses() == [("intercept",)]


def test_other_methods_and_their_results(run, ip):
    result, out, _ = run("%infer is line(xs) | given y=ys --particles 2000 -s 3 -o ps")
    result.raise_error()
    assert isinstance(ip.user_ns["ps"], Particles) and "log evidence -11" in out and "the weights are not to be" in out
    result, out, _ = run("%infer map line(xs) | given y=ys -o best")
    result.raise_error()
    assert isinstance(ip.user_ns["best"], Optimum) and re.search(r"slope +1\.98", out)
    result, _, _ = run("%infer auto line(xs) | given y=ys -n 5 -w 5 -c 2 -o chosen;")
    result.raise_error()
    assert ip.user_ns["chosen"].algorithm == "nuts"


def test_selection_thinning_and_the_keywords_of_a_method(run, ip):
    run("%infer mh line(xs) | given y=ys --sel slope -n 6 --thin 2 -c 2 -o sel;")[0].raise_error()
    post = ip.user_ns["sel"]
    assert post.draws == 6 and mx.all(post["intercept"] == post["intercept"][:, :1]).item()


def test_a_run_ends_when_it_is_asked_to(run, ip):
    run("%infer mh line(xs) | given y=ys -n 10000000 -c 2 --time 0.3 -o short;")[0].raise_error()
    assert ip.user_ns["short"].status == "time" and ip.user_ns["short"].draws < 10_000_000
    result, out, _ = run(
        "%infer nuts line(xs) | given y=ys -n 100000 -w 200 -s 2 --until 'rhat<1.05, divergences<5' -o till"
    )
    result.raise_error()
    till = ip.user_ns["till"]
    assert till.status == "enough" and f"till: stopped by --until at {till.draws}/100000 draws (4 chains)" in out


def test_a_dry_run_says_what_would_run(run):
    assert run("%infer nuts line(xs) | given y=ys -n 10 -c 3 --dry-run")[1] == "nuts  line v1  3 chains x 10  given y\n"


def test_saving(run, ip, tmp_path):
    run(f"%infer mh line(xs) | given y=ys -n 5 -c 2 --save '{tmp_path}/p.npz' -o kept;")[0].raise_error()
    assert mx.array_equal(Posterior.load(tmp_path / "p.npz")["slope"], ip.user_ns["kept"]["slope"]).item()


def test_draws_are_carried_to_an_edited_model(run, ip):
    """The prior of the slope becomes narrow: its exact posterior is a Gaussian, by the precisions of a regression."""
    run("%infer nuts line(xs) | given y=ys -n 500 -w 300 -s 1 -o wide;")[0].raise_error()
    run(LINE.replace('"slope", normal(0, 10)', '"slope", normal(0, 2)'))[0].raise_error()
    result, out, _ = run("%infer nuts line(xs) --carry wide -s 2 -o moved")
    result.raise_error()
    moved = ip.user_ns["moved"]
    x, y = mx.array([1.0, 2, 3, 4, 5]), mx.array([2.1, 3.9, 6.2, 7.8, 10.1])
    a, b, c = (x * x).sum().item() + 1 / 4, x.sum().item(), 5 + 1 / 100
    determinant = a * c - b * b
    mean = (c * (x * y).sum().item() - b * y.sum().item()) / determinant
    sd = math.sqrt(c / determinant)
    assert (
        abs(moved.mean("slope").item() - mean) < 4.5 * sd / math.sqrt(300)
        and abs(moved.std("slope").item() / sd - 1) < 0.15
    )
    assert "v2" in out and "kept" in out and ip.user_ns["wide"].stale
    run(LINE)[0].raise_error()


@pytest.mark.parametrize(
    ("line", "message", "under"),
    [
        ("nutz line(xs)", "no method 'nutz'; did you mean 'nuts'?", "nutz"),
        ("nuts line", "line is a model: give it its arguments, line(...)", "line"),
        ("nuts xs", "xs is array, not a model with its arguments", "xs"),
        ("nuts lin(xs)", "name 'lin' is not defined; did you mean 'line'?", "lin"),
        ("nuts line(xs) | given slop=1", "given: no address 'slop' in line v\\d+; did you mean 'slope'?", "slop"),
        (
            "mh line(xs) | given y=ys --L 3",
            "mh takes no --L: it takes --draws, --warmup, --chains, --sel, --proposal, --thin",
            None,
        ),
        ("hmc line(xs) --carry wide", "--carry moves the draws by nuts, mh or auto", "hmc"),
        ("nuts line(xs) --carry xs", "xs is array, not a posterior", "xs"),
    ],
)
def test_mistakes(run, line, message, under):
    result, _, err = run(f"%infer {line}")
    assert result.error_in_exec is not None
    first, *rest = str(result.error_in_exec).split("\n")
    assert re.fullmatch(
        message.replace("(", r"\(").replace(")", r"\)").replace("?", r"\?").replace("...", r"\.\.\."), first
    )
    if under is not None:
        start = rest[1].index("^")
        assert rest[0][start : start + rest[1].count("^")] == under


def interrupting(run, line):
    """Run a line, with Ctrl-C after its first half second."""
    timer = threading.Timer(0.5, lambda: os.kill(os.getpid(), signal.SIGINT))
    timer.start()
    try:
        return run(line)
    finally:
        timer.cancel()


def test_ctrl_c_returns_what_was_drawn_or_raises_with_it(run, ip):
    """In a script it raises: a shell without a terminal or a kernel is one."""
    ip._genmlx_session.settings.on_interrupt = "return"
    result, out, _ = interrupting(run, "%infer mh line(xs) | given y=ys -n 10000000 -c 2 -o kept")
    result.raise_error()
    kept = ip.user_ns["kept"]
    assert kept.status == "interrupted" and 0 < kept.draws < 10_000_000
    assert f"kept: interrupted at {kept.draws}/10000000 draws (2 chains)" in out
    for setting in ("raise", "auto"):
        ip._genmlx_session.settings.on_interrupt = setting
        result, _, _ = interrupting(run, "%infer mh line(xs) | given y=ys -n 10000000 -c 2 -o lost")
        error = result.error_in_exec
        assert isinstance(error, InferenceInterrupted) and "interrupted; what was drawn is in _post" in str(error)
        assert ip.user_ns["lost"] is ip.user_ns["_post"] is error.result and error.result.status == "interrupted"
        del ip.user_ns["lost"]


def test_results_at_the_prompt_are_tables_and_in_a_list_one_line(run, ip):
    run("%infer mh line(xs) | given y=ys -n 5 -c 2 -o post;\n%infer is line(xs) | given y=ys -o ps;")[0].raise_error()
    run("%infer map line(xs) | given y=ys -o best;\n%infer laplace line(xs) | given y=ys -o lap;")[0].raise_error()
    heads = {"post": "Posterior mh 2x5", "ps": "Particles importance_sampling n=1,000"}
    heads |= {"best": "Optimum", "lap": "LaplaceApproximation"}
    for name, head in heads.items():
        head += f" line {ip.user_ns['line'].version!r}"
        out = run(name)[1]
        assert out.partition("\n")[2].startswith(f"{head}\n") and re.search(r"^slope +\S", out, re.MULTILINE)
        assert f"<b>{head}</b><table>" in ip.user_ns[name]._repr_mimebundle_()["text/html"]
        assert len(run(f"[{name}]")[1].strip().splitlines()) == 1
