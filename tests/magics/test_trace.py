"""%trace as its user sees it: golden/trace_*.txt are whole sessions; numbers are checked against scipy."""

import linecache
import sys
from pathlib import Path

import golden
import mlx.core as mx
import pytest
from IPython.core.error import UsageError
from IPython.utils.capture import capture_output
from scipy import stats

from genmlx import choicemap
from genmlx.trace import Trace
from magics.grammar import Line, Piece
from magics.specs import TRACE
from workbench.render.nodes import path

HERE = Path(__file__).parent

MODEL = """\
@gen
def line(xs):
    slope = trace("slope", normal(0, 10))
    intercept = trace("intercept", normal(0, 2))
    for i, x in enumerate(xs):
        trace(("y", i), normal(slope * x + intercept, 1))
    return slope

@gen
def noisy(xs):
    noise = trace("noise", exponential(1.0))
    trace("line", line(xs))
    trace("z", normal(mx.zeros((3,)), noise))

xs, ys = mx.arange(1, 6).astype(mx.float32), [2.1, 3.9, 6.2, 7.8, 10.1]
points = {("y", i): y for i, y in enumerate(ys)}
tr = line(xs).generate({"slope": 1.983, "intercept": 0.112, **points}).trace
deep = noisy(xs).generate({"noise": 2.0, "line": tr.choices, "z": [1.0, 2.0, 3.0]}).trace
"""
REDEFINED = """\
@gen
def line(xs):
    slope = trace("slope", normal(0, 10))
    noise = trace("noise", exponential(1.0))
    for i, x in enumerate(xs):
        trace(("y", i), normal(slope * x, noise))
    return slope
"""


@pytest.fixture
def session(prompt):
    prompt(MODEL)
    return prompt


def shown(prompt, cell):
    """What a cell shows: its displays, and the value of its last line."""
    with capture_output() as captured:
        result = prompt.ip.run_cell(cell, store_history=True)
    result.raise_error()
    assert captured.stderr == ""
    return "\n".join([*captured.stdout.splitlines(), *(output.data["text/plain"] for output in captured.outputs)])


def transcript(prompt, cells):
    told = []
    for cell in cells:
        with capture_output() as captured:
            result = prompt.ip.run_cell(cell, store_history=True)
        texts = [captured.stdout.rstrip(), *(output.data["text/plain"] for output in captured.outputs)]
        error = result.error_in_exec or result.error_before_exec
        if isinstance(error, UsageError):
            texts = [f"UsageError: {error}"]
        elif error is not None:
            texts = error._render_traceback_()
        told.append("\n".join(["gen> " + cell.replace("\n", "\n...> "), *filter(None, texts)]))
    return "\n\n".join(told)


def test_a_session(session):
    cells = [
        "%trace line(xs) | given y=ys, slope=1.983, intercept=0.112",
        "%trace _tr --set slope=2.5",
        "_tr",
        "%trace _tr y",
        "%trace tr --set y[3]=1, y[4]=2.5 -o b",
        "%trace --diff tr b",
        "%trace --diff tr.choices {'slope': 1, ('y', 0): 2.1}",
        "%trace deep --max 4",
        "%trace deep line.y --lp",
        "%trace deep --depth 1 --stats",
        "%trace {'a': 1, ('b', 'c'): [1.0, 2.0]}",
        "[tr.choices['slope'], tr]",
        "%trace tr --src",
    ]
    golden.assert_golden(HERE, "trace_session", transcript(session, cells))


def test_mistakes(session):
    cells = [
        "%trace",
        "%trace line",
        "%trace xs",
        "%trace nothing",
        "%trace line(xs) | given slop=1",
        "%trace line(xs) | given y=[1, 2]",
        "%trace line(xs) | given y={9: 1.0}",
        "%trace line(xs) | given slope='a'",
        "%trace tr | given slope=1",
        "%trace tr slop",
        "%trace deep line.y[7]",
        "%trace tr slope y",
        "%trace tr --set slop=2",
        "%trace tr --set y[9]=2",
        "%trace tr --set y=[1, 2, 3]",
        "%trace tr --set slope=[1, 2, 3]",
        "%trace tr --set 2",
        "%trace deep --set noise=-1",
        "%trace deep --set line.slope=1, noise=-0.5",
        "%trace tr --redo slop",
        "%trace tr --redo slope --set slope=1",
        "%trace tr --rebase --depth 2",
        "%trace tr slope --redo slope",
        "%trace tr.choices --set slope=1",
        "%trace tr --max 0",
        "%trace tr --depth 2.5",
        "%trace tr -s 1",
        "%trace --diff tr",
        "%trace --diff tr xs",
        "%trace normal(0, 1) --src",
    ]
    golden.assert_golden(HERE, "trace_mistakes", transcript(session, cells))


def test_what_it_returns_and_binds(session):
    """The trace: by assignment, by -o, and as _tr; shown once, and not at all where it is silenced."""
    assert shown(session, "x = %trace line(xs) -s 1").count("line(xs: f32[5])") == 1
    assert isinstance(session["x"], Trace) and session["_tr"] is session["x"]
    assert shown(session, "%trace line(xs) -s 1 -o y1").count("line(xs: f32[5])") == 1
    assert session["y1"].choices == session["x"].choices and session["_tr"] is session["y1"]
    assert session["y1"].choices == session.value("line(xs).generate({}, mx.random.key(1)).trace.choices")
    for quiet in ("%trace tr --set slope=3 -o q;", "%trace tr --set slope=3 -o q -q"):
        assert shown(session, quiet) == ""
        assert session.value('q["slope"].item()') == 3 and session["_tr"] is session["q"]
    shown(session, "x = %trace tr y")
    assert session["x"] is session["tr"]
    assert shown(session, "d = %trace --diff tr q").startswith("diff line(xs: f32[5]) v1   score -9.51 -> ")
    assert "slope   1.983 -> 3" in repr(session["d"]) and session["_tr"] is session["tr"]


def test_observations_are_dealt_out(session):
    """A column goes to the addresses of the model, also two levels deep; marks say what was observed."""
    session(
        "@gen\ndef table(n, m):\n    for i in range(n):\n        for j in range(m):\n"
        "            trace(('t', i, j), normal(10 * i + j, 1))\n    trace('v', normal(mx.zeros((2,)), 1))"
    )
    text = shown(session, "%trace table(2, 3) | given t=[[0, 1, 2], mx.array([10.0, 11, 12])], v=[0.5, 0.5]")
    weight = 6 * stats.norm.logpdf(0) + 2 * stats.norm.logpdf(0.5)
    assert f"log weight {weight:.2f}" in text
    assert "6 obs" in text and "* 1   0 10  1 11  2 12" in text and "* v" in text
    text = shown(session, "%trace line(xs) | given y=ys, {'slope': 1.0}")
    assert "5 obs" in text and "* slope" in text and "* intercept" not in text
    assert "* slope" in shown(session, "%trace _tr --max 20")
    shown(session, "%trace _tr --set intercept=1.0")
    assert "* 4" in shown(session, "%trace _tr y")
    assert "*" not in shown(session, "%trace tr")


def test_set_and_redo_are_update_and_regenerate(session):
    tr = session["tr"]
    text = shown(session, "new = %trace tr --set slope=2.5, y=[1, 2, 3, 4, 5]")
    weight = tr.update({"slope": 2.5, **{("y", i): i + 1.0 for i in range(5)}}).weight.item()
    assert session["new"].choices.to_dict()["y", 4].item() == 5 and f"log weight {weight:.2f}" in text
    text = shown(session, "new = %trace tr --redo slope, y[2] -s 3")
    expected = session.value('tr.regenerate(select("slope", ("y", 2)), key=mx.random.key(3))')
    assert session["new"].choices == expected.trace.choices and f"log weight {expected.weight.item():.2f}" in text
    assert "~ slope" in text and "~ y[2]" in text and "~ y[1]" not in text


def test_rebase(session):
    """The old choices under the new body: what is kept is scored, what is gone is named, what is new is drawn."""
    session(REDEFINED)
    assert "line(xs: f32[5])   stale (v1; current v2)   score -9.51" in shown(session, "%trace tr")
    assert "noisy(xs: f32[5])   v1   stale (line v1; current v2)" in shown(session, "%trace deep")
    text = shown(session, "new = %trace tr --rebase -s 0")
    new = session["new"]
    assert new.gen_fn is session["line"] and not new.stale and new["slope"].item() == pytest.approx(1.983)
    noise = new["noise"].item()
    kept = stats.norm.logpdf(1.983, 0, 10)
    kept += stats.norm.logpdf([2.1, 3.9, 6.2, 7.8, 10.1], 1.983 * mx.arange(1, 6).__array__(), noise).sum()
    lines = text.splitlines()
    assert lines[0].startswith(f"rebase line v1 -> v2   log weight {kept:.2f}   score ")
    assert [line.split()[:2] for line in lines[1:]] == [
        ["-", "intercept"], ["y", "(5)"], ["+", "noise"], ["kept:", "6"]
    ]  # fmt: skip
    assert session["tr"].stale and session["_tr"] is new


def test_rebase_where_a_choice_has_become_a_model_or_has_another_shape(session):
    session("@gen\ndef part():\n    trace('a', normal(0, 1))\n    trace('b', normal(mx.zeros((2,)), 1))")
    session("old = part().generate({'a': 0.5, 'b': [1.0, 2.0]}).trace")
    session(
        "@gen\ndef inner():\n    trace('z', normal(0, 1))\n"
        "@gen\ndef part():\n    trace('a', inner())\n    trace('b', normal(mx.zeros((3,)), 1))"
    )
    text = shown(session, "%trace old --rebase -s 0")
    assert text.startswith("rebase part v1 -> v2   log weight 0.00")
    assert "- a   0.5" in text and "+ a" in text and "f32[2] -> f32[3]" in text
    session("@gen\ndef part(n):\n    trace('a', normal(0, n))")
    error, _ = session.fails("%trace old --rebase")
    assert "part(n)" in str(error) and "redefined" in str(error)


def test_batches_and_particles(session):
    session("many = line(xs).vsimulate(50, key=mx.random.key(0))")
    assert "[N=50]" in shown(session, "%trace many")
    text = shown(session, "new = %trace many --set slope=1.0")
    assert session["new"].n == 50 and "-> 1 ± 0" in text
    assert "~ slope" in shown(session, "%trace many --redo slope -s 1")
    session("p = importance_sampling(line(xs), points, particles=100, key=mx.random.key(0))")
    text = shown(session, "got = %trace p")
    assert f"ess {session['p'].ess.item():,.1f} of 100" in text and "5 obs" in text
    mean = session["p"].mean("slope").item()
    assert f"slope       {mean:.4g} ±" in text
    assert session["got"] is session["p"].traces
    error, _ = session.fails("%trace --diff tr many")
    assert "as many lanes" in str(error)


def test_differences_of_posteriors(session):
    """Means, deviations, and how far apart for their Monte Carlo errors."""
    session(
        "from genmlx import Posterior\n"
        "import numpy as np\n"
        "rng = np.random.default_rng(0)\n"
        "def post(shift, *more):\n"
        "    values = {('mu',): mx.array(rng.normal(shift, 2, (2, 500)).astype('f')),\n"
        "              ('theta',): mx.array(rng.normal([0, shift], 1, (2, 500, 2)).astype('f'))}\n"
        "    for name in more:\n"
        "        values[name,] = mx.zeros((2, 500))\n"
        "    return Posterior(values, stats={}, log_joint=mx.zeros((2, 500)), algorithm='nuts')\n"
        "p, q = post(0.0, 'gone'), post(3.0, 'come')"
    )
    p, q = session["p"], session["q"]
    rows = [line.split("   ") for line in shown(session, "%trace --diff p q").splitlines()]
    assert rows[0] == ["diff nuts 2x500 -> nuts 2x500"]
    mean, sd = [x.mean("mu").item() for x in (p, q)], [x.std("mu").item() for x in (p, q)]
    d = mean[1] - mean[0]
    error = (p.mcse("mu") ** 2 + q.mcse("mu") ** 2) ** 0.5
    assert rows[1][0] == "  mu"
    assert f"{mean[0]:.4g} ± {sd[0]:.4g} -> {mean[1]:.4g} ± {sd[1]:.4g}" in "   ".join(rows[1])
    assert rows[1][-1] == f"d {d:.2g} = {d / float(error):.1f} mcse"
    assert rows[2][0] == "  theta" and rows[2][-1].endswith("at [1]")
    assert [row[0] for row in rows[3:]] == ["- gone", "+ come"]


def test_the_source_of_a_file_that_has_changed(session, tmp_path, monkeypatch):
    """Lines of the new text are not shown as the body of the old version."""
    file = tmp_path / "models_of_trace.py"
    text = "from genmlx import gen, normal, trace\n@gen\ndef one():\n    return trace('a', normal(0, 1))\n"
    file.write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(sys.modules, file.stem, None)  # which takes the module away again at the end
    del sys.modules[file.stem]
    session("import models_of_trace\nold = models_of_trace.one().simulate()")
    assert "return trace('a', normal(0, 1))" in shown(session, "%trace old --src")
    file.write_text(text.replace("@gen", "# a comment\n@gen").replace("normal(0, 1)", "normal(0, 2)"))
    linecache.checkcache(str(file))
    session("import importlib; importlib.reload(models_of_trace)")
    assert "has changed: v1 is no longer there to read" in shown(session, "%trace old --src")


def test_settings(session):
    settings = session.ip._genmlx_session.settings
    settings.width, settings.ascii = 60, True
    text = shown(session, "%trace tr")
    assert "|-- slope" in text and "├" not in text
    assert max(map(len, text.splitlines())) <= 60


@pytest.mark.parametrize(
    "address",
    [
        ("a",),
        ("a", 3),
        ("a", 3, "b"),
        ("a", "b", 0, 1),
        (2,),
        (0, "z"),
        ("not a name",),
        ("a", "b c"),
        ("a", -1),
        ("a", "class"),
        ("lambda",),
    ],
)
def test_addresses_are_shown_as_they_are_typed(address):
    text = path(address)
    assert Line(TRACE, "tr").address(Piece(text, 0), {}) == address


def test_an_update_that_changes_nothing(session):
    assert "nothing has changed" in shown(session, "%trace tr --set slope=tr['slope']")
    assert choicemap(session["_tr"].choices) == session["tr"].choices
