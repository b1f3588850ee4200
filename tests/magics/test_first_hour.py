"""What a newcomer meets in the first hour: advice that fits, errors that show one's own code, names that are there."""

import re

import mlx.core as mx
import pytest
from IPython.utils.capture import capture_output

LINE = """
%%gen
def line(xs):
    slope ~ normal(0, 10)
    y ~ normal(slope * xs, 1)
"""


@pytest.fixture
def look(prompt, monkeypatch):
    """``look(cell)`` is all that a cell shows, its error included."""
    monkeypatch.setenv("GENMLX_DISPLAY", "off")

    def look(cell):
        with capture_output() as captured:
            prompt.ip.run_cell(cell, store_history=True)
        shown = "".join(output.data.get("text/plain", "") for output in captured.outputs)
        return captured.stdout + shown + captured.stderr

    look(LINE)
    look("xs, ys = mx.array([1.0, 2.0, 3.0]), [2.1, 3.9, 6.2]")
    return look


# %infer


def test_the_head_says_which_method_was_chosen_and_why(look):
    out = look("%infer auto line(xs) | given y=ys -n 100 -w 100 -c 2 -s 1 -o post")
    assert out.startswith("post: Posterior nuts (auto: all latent choices are continuous) 2x100 line v1\n")
    look("%%gen\ndef coin():\n    k ~ bernoulli(0.3)\n    y ~ normal(1.0 * k, 1)")
    out = look("%infer auto coin() | given y=0.9 -n 100 -c 2 -s 1")
    assert out.startswith("_post: Posterior gibbs (auto: discrete choices) 2x100 coin v1\n")
    assert look("%infer gibbs coin() | given y=0.9 -n 100 -c 2 --dry-run").startswith("gibbs  coin v1")


def test_a_result_that_was_not_asked_for_by_name_is_called_what_it_is_bound_to(look, prompt):
    look("post = 3")
    assert look("%infer mh line(xs) | given y=ys -n 50 -c 2").startswith("_post: Posterior mh")
    assert prompt["post"] == 3


def test_the_depth_of_trees(look, prompt):
    """A tree of depth 1 has one step."""
    look("%infer nuts line(xs) | given y=ys -n 50 -w 50 -c 2 -s 1 --max-depth 1 -o short;")
    assert mx.max(prompt["short"].stats["n_leapfrog"]).item() == 1
    assert "mh takes no --max-depth" in look("%infer mh line(xs) | given y=ys --max-depth 3")


def test_a_carried_posterior_that_is_worth_nothing_is_not_ok(look):
    """The edit moves the posterior by 50 deviations: what the nuts moves make of one draw looks like four chains."""
    look("%infer nuts line(xs) | given y=ys -n 500 -w 200 -s 1 -o old;")
    look(LINE.replace("normal(slope * xs, 1)", "normal(slope * xs + 30, 1)"))
    out = look("%infer nuts line(xs) --carry old -s 2 -o new")
    assert "sample anew" in out and "ok:" not in out
    out = look("%diag new")
    assert out.endswith("try: sample anew: the same line without --carry") and "ok:" not in out


def test_a_carry_speaks_of_the_draws_that_it_moves(look):
    look("%infer nuts line(xs) | given y=ys -n 30 -w 50 -c 3 -s 1 -o old;")
    assert look("%infer nuts line(xs) --carry old --dry-run").startswith("nuts  line v1  3 chains x 30")
    assert look("%infer nuts line(xs) --carry old -n 20 --dry-run").startswith("nuts  line v1  3 chains x 20")
    assert "--carry takes --draws and --seed, and no --warmup" in look("%infer nuts line(xs) --carry old -w 9")


@pytest.mark.parametrize(
    ("line", "message", "under"),
    [
        ("nuts line(xs) | given Y=ys", "given: no address 'Y' in line v1; did you mean 'y'?", "Y"),
        ("nuts line(xs) given y=ys", "a bar goes before given: | given", "given"),
        ("line(xs) | given y=ys", "%infer needs a method before the model, as %infer nuts line(xs)", "line(xs)"),
        ("Nuts line(xs)", "no method 'Nuts'; did you mean 'nuts'?", "Nuts"),
        ("nutz lin(xs)", "no method 'nutz'; did you mean 'nuts'?", "nutz"),
        (
            "mh line(xs) | given y=ys b=2",
            "infer: not an expression: invalid syntax; is a comma missing?",
            "ys b=2",
        ),
        ("mh line(xs) | given y=ys --sel slop", "--sel: no address 'slop' in line v1; did you mean 'slope'?", "slop"),
        ("mh line(xs) | given y=ys --save no/p.npz", "--save: there is no folder 'no'", "no/p.npz"),
        (
            "mh line(xs) | given y=ys --until 'rhat<a'",
            "--until: 'rhat<a' is no condition: rhat<1.01, ess>400 or divergences>10",
            "'rhat<a'",
        ),
        ("nuts Line(xs)", "name 'Line' is not defined; did you mean 'line'?", "Line"),
    ],
)
def test_mistakes_of_infer(look, line, message, under):
    first, shown, carets = look(f"%infer {line}").splitlines()[-3:]
    assert first == f"UsageError: {message}" and shown == f"    %infer {line}"
    assert [shown[i] for i, c in enumerate(carets) if c == "^"] == list(under)


@pytest.mark.parametrize("width", [60, 88])
def test_what_a_report_tells_is_broken_at_words(look, prompt, width):
    prompt.ip._genmlx_session.settings.width = width
    out = look("%infer mh line(xs) | given y=ys -n 60 -c 2 -s 1")
    prompt.ip._genmlx_session.settings.width = 88
    told = out[out.index("! ") :].splitlines()
    assert max(map(len, told)) <= width and "".join(told).count("! ") < len(told)
    assert "take at least 100" in " ".join(line.strip() for line in told)


# %diag


def test_two_modes_are_told_and_no_other_coordinates_advised(look):
    """|x| is near 4: chains at -4 and at 4, each of them well mixed."""
    look("%%gen\ndef two():\n    x ~ normal(0, 3)\n    y ~ normal(mx.abs(x), 0.2)")
    look("%infer nuts two() | given y=4.0 -n 300 -w 200 -c 4 -s 1 -o both;")
    out = look("%diag both")
    assert re.search(r"sit in different places: mean of x -[34][.\d]* in chains? [0-3, ]+; [34][.\d]* in", out)
    assert "centred" not in out and "-n " not in out and "warm-up" not in out and "%plot both x --kind trace" in out


def test_chains_that_are_on_their_way_are_not_two_places(look, prompt):
    import numpy as np

    from genmlx.inference import Posterior
    from workbench.diagnosis import of_posterior

    rng = np.random.default_rng(0)
    drift = np.linspace(0, 40, 200)[None, :] * np.array([[1.0], [-1.0], [2.0], [0.5]]) + rng.normal(size=(4, 200))
    apart = np.array([[-9.0], [-9.0], [9.0], [-9.0]]) + rng.normal(size=(4, 200))

    def post(values):
        return Posterior({("x",): mx.array(values)}, stats={}, log_joint=mx.zeros((4, 200)))

    assert "different places" not in str(of_posterior(post(drift)))
    assert "in chains 0, 1, 3; 9" in str(of_posterior(post(apart)))


def test_non_centred_choices_are_named_only_where_divergences_gather():
    """Four divergences are too few to say where they are."""
    import numpy as np

    from genmlx.inference import Posterior
    from workbench.diagnosis import of_posterior

    rng = np.random.default_rng(0)
    diverging = np.zeros((4, 200), bool)
    diverging[0, :4] = True
    stats = {"diverging": mx.array(diverging), "accept": mx.full((4, 200), 0.8)}
    post = Posterior({("x",): mx.array(rng.normal(size=(4, 200)))}, stats=stats, log_joint=mx.zeros((4, 200)))
    text = str(of_posterior(post))
    assert "non-centred choices where one sets the scale of others" in text and "if x is" not in text


def test_the_numbers_of_particles_have_no_needless_digits(look):
    out = look("%infer is line(xs) | given y=ys --particles 50000 -s 1 -o ps\n%diag ps")
    found = re.search(r"ess ([\d,]+) of 50,000 \(([\d.]+)%\)   k-hat -?[\d.]+   largest weight ([\d.e-]+)%", out)
    assert found is not None and float(found[3]) > 0


def test_a_word_that_is_no_result_and_no_address(look):
    look("%infer mh line(xs) | given y=ys -n 50 -c 2;")
    assert "no address pst in _post, and no result  (addresses: slope)" in look("%diag pst")
    assert "no address slop in _post - did you mean slope?" in look("%diag slope, slop")


# errors of one's own


def test_an_error_in_an_expression_shows_the_users_frames(look):
    look("def f(x):\n    return x + 'a'")
    out = look("%trace --diff a f(3)".replace("a f", "line(xs).simulate() f"))
    assert "TypeError: unsupported operand" in out and "return x + 'a'" in out and "----> 1 f(3)" in out
    assert "/magics/" not in out and "/genmlx/" not in out


def test_an_error_in_a_body_shows_the_users_frames(look, prompt):
    look("%%gen\ndef bad(xs):\n    a ~ normal(0, 1)\n    return helper(a)\n")
    look("def helper(a):\n    return a.nothing")
    for line in ("%trace bad(xs)", "%infer mh bad(xs) | given a=1.0", "%gfi bad(xs)", "%sites bad(xs)"):
        out = look(line)
        assert "AttributeError" in out and "return helper(a)" in out and "return a.nothing" in out
        assert "/magics/" not in out and "/genmlx/" not in out
    assert isinstance(prompt["_e"], AttributeError)


def test_an_error_of_the_library_itself_is_shown_in_full(look, monkeypatch):
    monkeypatch.setattr("magics.look.LookMagics._run", None)
    out = look("%trace line(xs)")
    assert "TypeError: 'NoneType' object is not callable" in out
    assert "magics/session.py" in out and "magics/look.py" in out


def test_an_indexed_site_is_no_variable(look):
    look("%%gen\ndef rows(n):\n    for i in range(n):\n        b[i] ~ normal(0, 1)\n        y[i] ~ normal(b[i], 1)")
    out = look("%trace rows(2)")
    assert "b[i] ~ ... makes a choice and no variable: t = trace(('b', i), ...) does both" in out
    assert "makes a choice" not in look("%trace rows(missing(2))")


def test_the_place_of_a_call_in_a_magic_is_the_line_itself(look):
    assert look("%trace line()").splitlines()[0] == "UsageError: line: missing a required argument: 'xs'"


def test_a_helper_in_a_cell_of_models(look):
    out = look(
        "%%gen\ndef square(x):\n    return x * x\ndef curve(x):\n    a ~ normal(0, 1)\n    y ~ normal(square(a), 1)"
    )
    assert out.splitlines() == [
        "square v1   no choices; a model all the same: plain functions go outside of %%gen",
        "curve v1   2 static sites",
    ]
    assert "try: that is a model" in look("%trace curve(1.0)")


# names


def test_every_distribution_is_there(look, prompt):
    """Those that ``from genmlx import *`` leaves out as well, until somebody has another use for the name."""
    from types import ModuleType

    import genmlx
    from genmlx.dist.distribution import Distribution
    from magics.names import _MORE

    found = {name: getattr(genmlx.dist, name) for name in dir(genmlx.dist)}
    families = {n for n, v in found.items() if isinstance(v, Distribution)}
    assert families - set(genmlx.LAZY) <= _MORE and not any(isinstance(found[name], ModuleType) for name in _MORE)
    look("%%gen\ndef m():\n    s ~ half_normal(1)\n    y ~ normal(0, s)")
    assert "support" not in look("%trace m() | given s=0.5, y=0.0") and "half_normal" in prompt.ip.user_ns
    look("logistic = 3\nlogistic")
    assert prompt["logistic"] == 3


# files


def test_watch_takes_expressions(look, tmp_path):
    (tmp_path / "data.csv").write_text("1,2")
    look(f"import pathlib\nfolder = pathlib.Path({str(tmp_path)!r})\npath = folder / 'data.csv'")
    look("%watch path")
    assert "data.csv" in look("%watch")
    look("%watch --off str(path)")
    assert "data.csv" not in look("%watch")
    look("%watch (folder/'data.csv')")
    assert "data.csv" in look("%watch")
    assert "no module of this project is called 'pat'" in look("%watch pat")


def test_models_keep_their_sites_when_their_file_changes(look, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    body = "from genmlx import *\n@gen\ndef shop_line(xs):\n    a = trace('a', normal(0, 1))\n    return a\n"
    (tmp_path / "shop_for_sites.py").write_text(body)
    look("from shop_for_sites import shop_line")
    (tmp_path / "shop_for_sites.py").write_text(body.replace("normal(0, 1))", "normal(0, 1"))
    out = look("%models")
    row = next(one for one in out.splitlines() if one.startswith("shop_line"))
    assert "1 static site" in row and "pending" in row


def test_carry_offers_posteriors_alone(look, prompt):
    from IPython.core.completer import provisionalcompleter

    look("%infer mh line(xs) | given y=ys -n 50 -c 2 -o post;\nport = 3")
    typed = "%infer nuts line(xs) --carry po"
    with provisionalcompleter():
        found = [c.text for c in prompt.ip.Completer.completions(typed, len(typed))]
    assert found == ["post"]
