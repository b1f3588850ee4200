"""Files that are edited between cells: what is run again, what stays, and what is said. In a shell without a screen."""

import gc
import math
import os
import subprocess
import sys
import threading
import types
import weakref
from pathlib import Path

import mlx.core as mx
import pytest
from IPython.utils.capture import capture_output

from genmlx import LogDensity
from genmlx.gen import _handles
from workbench.reload import is_project

REPOSITORY = Path(__file__).resolve().parents[2]
HEAD = "import mlx.core as mx\nfrom genmlx import gen, trace, normal, splice\n"
INNER = HEAD + "@gen\ndef inner():\n    return trace('x', normal({mu}, {sigma}))\n"
HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)


def density(x, mu, sigma=1.0):
    return -0.5 * ((x - mu) / sigma) ** 2 - math.log(sigma) - HALF_LOG_2PI


def close(x):
    return pytest.approx(x, abs=1e-5)


class Notebook:
    """A session with the extension loaded, and a folder of modules."""

    def __init__(self, ip, folder):
        self.ip, self.folder = ip, folder

    def file(self, name, text):
        path = self.folder / name
        before = path.stat().st_mtime_ns if path.exists() else 0
        path.write_text(text)
        if before and path.stat().st_mtime_ns <= before:
            os.utime(path, ns=(before + 1, before + 1))
        return path

    def __call__(self, code):
        with capture_output() as captured:
            result = self.ip.run_cell(code)
        result.raise_error()
        assert captured.stderr == ""
        return captured.stdout

    def __getitem__(self, name):
        return self.ip.user_ns[name]

    def score(self, model, **choices):
        """The log density of choices, as the next cell computes it."""
        self.ip.user_ns["_choices"] = choices
        self(f"_score = {model}().assess(_choices).score.item()")
        return self["_score"]


@pytest.fixture
def nb(ip, tmp_path, monkeypatch):
    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    ip.run_line_magic("load_ext", "magics")
    ip._genmlx_session.settings.mem = "off"
    # What the tests themselves are made of is this project's as well.
    ip._genmlx_session.reloader.left.update(name for name in before if is_project(name, sys.modules[name]))
    yield Notebook(ip, tmp_path)
    ip.run_line_magic("unload_ext", "magics")
    ip.reset(new_session=False)
    for name in set(sys.modules) - before:
        if is_project(name, sys.modules[name]):
            del sys.modules[name]
    # A handle that lives on, in a traceback that IPython keeps, would be re-pointed by the next test.
    _handles.clear()


def lines(text):
    return [line for line in text.splitlines() if line.startswith("[reload]")]


# what follows an edit


def test_an_edited_model_is_new_wherever_it_is_held(nb):
    """Acceptance 2 and 4: by an import in the notebook and in another module, an alias, a dict, and a combinator."""
    nb.file("models.py", INNER.format(mu=0, sigma=1))
    nb.file("uses.py", HEAD + "from models import inner\n@gen\ndef outer():\n    return trace('in', inner())\n")
    nb("from models import inner\nfrom uses import outer\nimport models\nf, table = inner, {'m': inner}")
    nb("many = genmlx.repeat(inner, 2)")
    handle = nb["inner"]
    for mu in (5, -3):
        nb.file("models.py", INNER.format(mu=mu, sigma=1))
        said = nb("from models import inner as again")
        assert f"models.py: inner v{int(handle.version) - 1} -> {handle.version!r} (line 5)" in lines(said)[0]
        assert nb["f"] is nb["again"] is nb["inner"] is nb["table"]["m"] is nb["models"].inner is handle
        expected = close(density(1.0, mu))
        assert nb.score("inner", x=1.0) == expected
        assert nb.score("outer", **{"in": {"x": 1.0}}) == expected
        assert nb.score("many", x=mx.array([1.0, 1.0])) == close(2 * density(1.0, mu))


def test_a_syntax_error_keeps_what_runs(nb):
    """Acceptance 7: one line, once; the old version runs; the next good save recovers."""
    nb.file("models.py", INNER.format(mu=0, sigma=1))
    nb("from models import inner")
    bad = nb.file("models.py", INNER.format(mu=0, sigma=1) + "\n\nx = (1,\n")
    assert nb("pass") == "[reload] models.py:8 SyntaxError: '(' was never closed - keeping v1 (stale)\n"
    assert nb.ip._genmlx_session.pending() == ["models.py"]
    assert nb("pass") == "" and nb.score("inner", x=2.0) == close(density(2, 0))
    os.utime(bad, ns=(1, 1))
    assert nb("pass") == ""
    nb.file("models.py", INNER.format(mu=3, sigma=1))
    assert lines(nb("pass")) == ["[reload] models.py: inner v1 -> v2 (line 5)"]
    assert nb.score("inner", x=3.0) == close(density(0, 0)) and nb.ip._genmlx_session.pending() == []


def test_a_file_that_is_put_back_is_no_longer_pending(nb):
    good = INNER.format(mu=0, sigma=1)
    nb.file("models.py", good)
    nb("from models import inner")
    nb.file("models.py", good + "(\n")
    nb("pass")
    nb.file("models.py", good)
    assert nb("pass") == "[reload] models.py: again what runs (v1)\n"
    assert nb("pass") == "" and nb.ip._genmlx_session.pending() == []
    nb.file("models.py", good + "(\n")
    assert "SyntaxError" in nb("pass")


TORN = HEAD + (
    "MU, KEPT = {mu}, {mu}\n"
    "def helper():\n    return {mu}\n"
    "@gen\ndef model():\n    trace('x', normal(MU, 1)), trace('y', normal(helper() + {shift}, 1))\n"
    "{end}"
)


def test_an_exception_while_a_module_runs_tears_nothing(nb):
    """Acceptance 8: the half of the module that did run is undone: constants, functions, models, new names."""
    nb.file("models.py", TORN.format(mu=0, shift=0, end=""))
    nb("import models\nfrom models import model, helper, MU")
    handle, before = nb["model"], dict(vars(nb["models"]))
    nb.file("models.py", TORN.format(mu=9, shift=7, end="@gen\ndef other(): pass\n1 / 0\n"))
    assert nb("pass") == "[reload] models.py:11 ZeroDivisionError: division by zero - keeping v1 (stale)\n"
    assert dict(vars(nb["models"])) == before
    assert int(handle.version) == 1 and nb["MU"] == 0 and nb["helper"]() == 0
    assert nb.score("model", x=0.0, y=0.0) == close(2 * density(0, 0))
    nb("models.MU = 2")  # the namespace is the one that the model reads
    assert nb.score("model", x=2.0, y=0.0) == close(2 * density(0, 0))


def test_a_body_and_what_it_reads_change_together(nb):
    """Acceptance 9: autoreload runs the old body with the new constant."""
    nb.file("models.py", TORN.format(mu=0, shift=0, end=""))
    nb("import models\nfrom models import model, helper, MU")
    helper = nb["helper"]
    nb.file("models.py", TORN.format(mu=4, shift=1, end=""))
    assert lines(nb("pass")) == [
        "[reload] models.py: model v1 -> v2 (line 8), helper() changed, MU changed, KEPT changed"
    ]
    assert nb.score("model", x=4.0, y=5.0) == close(2 * density(0, 0))
    assert nb["helper"] is helper is nb["models"].helper and helper() == 4
    nb("models.MU = 6")
    assert nb.score("model", x=6.0, y=5.0) == close(2 * density(0, 0))


@pytest.mark.parametrize("by", ["MU", "helper()", "Kind.mu", "models.MU"])
def test_what_a_model_reads_makes_a_version_and_the_old_one_keeps_the_past(nb, by):
    """A trace is pinned to its version; would catch old code that reads new constants, where weights are wrong."""
    text = HEAD + (
        "import models\n"
        "MU, OTHER = {mu}, {other}\n"
        "def helper(): return second()\n"
        "def second(): return {mu}\n"
        "class Kind:\n    mu = {mu}\n"
        "@gen\ndef model():\n    trace('x', normal(" + by + ", 1))\n"
    )
    nb.file("models.py", text.format(mu=0, other=0))
    nb("from models import model\ntr, _ = model().generate({'x': 1.0})")
    nb.file("models.py", text.format(mu=0, other=1))
    assert "OTHER changed" in nb("pass") and int(nb["model"].version) == 1 and not nb["tr"].stale
    nb.file("models.py", text.format(mu=5, other=1))
    said = nb("_w = tr.update({'x': 3.0}).weight.item()")
    if by != "models.MU":
        assert "model v1 -> v2" in said and nb["tr"].stale
        assert nb["_w"] == close(density(3, 0) - density(1, 0))
    assert nb.score("model", x=5.0) == close(density(0, 0))


def test_a_model_that_reads_nothing_that_changed_stays(nb):
    """Names that are equal though made anew: an array, a class, a closure, a distribution, a combinator, an enum."""
    text = HEAD + (
        "import enum, functools, collections\nfrom dataclasses import dataclass\nfrom genmlx import unfold\n"
        "TABLE = {{'a': [1.0, mx.array([1.0, 2.0])], 'b': (lambda x: x + 1)}}\n"
        "PRIOR = normal(0, TABLE['a'][0])\n"
        "@dataclass\nclass Setting:\n    scale: float = 1.0\n"
        "class Method(enum.Enum):\n    A = 1\n    B = 2\n"
        "Point = collections.namedtuple('Point', 'x y')\n"
        "S, P, F = Setting(), Point(1, 2), functools.partial(max, 0)\n"
        "@gen\ndef step(t, state):\n    return trace('s', normal(state, 1))\n"
        "chain = unfold(step)\n"
        "@gen\ndef model():\n"
        "    trace('a', PRIOR), trace('c', chain(2, S.scale)), TABLE['b'](P.x), Method.A, F(1), Setting, Point\n"
        "# {comment}\n"
    )
    nb.file("models.py", text.format(comment="one"))
    nb("from models import model, step")
    nb.file("models.py", text.format(comment="another"))
    assert nb("pass") == "[reload] models.py: unchanged (model v1, step v1)\n"
    nb.file("models.py", text.format(comment="").replace("A = 1", "A = 3"))
    assert "model v1 -> v2 (Method), Method changed" in nb("pass") and int(nb["step"].version) == 1


def test_a_version_that_stays_reads_the_module_of_today(nb):
    """Would catch an unchanged model that is left behind in the copy of the old namespace."""
    nb.file("models.py", "MU = 0\n" + INNER.format(mu="MU", sigma=1))
    nb("import models\nfrom models import inner")
    nb.file("models.py", "MU = 0\n# moved down\n" + INNER.format(mu="MU", sigma=1))
    nb("models.MU = 4")
    assert nb.score("inner", x=4.0) == close(density(0, 0)) and int(nb["inner"].version) == 1
    assert nb["inner"].version.function.__code__.co_firstlineno == 5


def test_names_of_the_notebook_follow_what_took_their_place(nb):
    """Acceptance 10: constants and classes that were imported; would catch names that merely have an equal value."""
    text = (
        "import genmlx\nSIGMA, N, W, NAMES = {s}, {n}, genmlx.normal(0, {s}), ['a', {n}]\nclass Noise:\n    s = {s}\n"
    )
    nb.file("models.py", text.format(s=1.0, n=2))
    nb("from models import SIGMA, N as count, W\nfrom models import (Noise as Kind,\n    NAMES)\nimport models")
    nb("N, own, s, list_ = 2, 1.0, SIGMA, models.NAMES\nclass Noise: pass")
    mine = nb["Noise"]
    nb.file("models.py", text.format(s=7.5, n=3))
    assert lines(nb("pass")) == [
        "[reload] models.py: SIGMA changed, N changed, W changed, NAMES changed, Noise changed"
    ]
    assert nb["SIGMA"] == nb["s"] == nb["Kind"].s == 7.5 and nb["count"] == 3
    assert nb["NAMES"] == nb["list_"] == ["a", 3] and nb["W"] is nb["models"].W
    assert nb["N"] == 2 and nb["own"] == 1.0 and nb["Noise"] is mine


def test_what_a_module_imports_is_not_taken_for_its_own(nb):
    """``prior = normal`` re-pointed to laplace must not take the notebook's ``normal`` along (ipython#14944)."""
    nb.file("models.py", HEAD + "prior, kind = normal, mx.float32\n")
    nb("from genmlx import normal, laplace\nimport models\ndtype = mx.float32")
    normal, laplace = nb["normal"], nb["laplace"]
    nb.file("models.py", HEAD + "from genmlx import laplace\nprior, kind = laplace, mx.float16\n")
    nb("pass")
    assert nb["models"].prior is laplace and nb["normal"] is normal and nb["dtype"] == mx.float32
    nb.file("priors.py", "TAU, NU = [1], [2]\n")
    nb.file("models.py", HEAD + "from priors import TAU\n")
    nb("from priors import TAU")
    nb.file("models.py", HEAD + "from priors import NU as TAU\n")
    nb("pass")
    assert nb["models"].TAU == [2] and nb["TAU"] == [1]


def test_a_trace_keeps_its_version_and_can_be_made_anew(nb):
    """Acceptance 11: the weight of an update is what it was before the edit; generate gives that of the new model."""
    nb.file("models.py", INNER.format(mu=0, sigma=2))
    nb("from models import inner\ntr, _ = inner().generate({'x': 1.0})")
    before = nb["tr"].update({"x": 3.0}).weight.item()
    assert before == close(density(3, 0, 2) - density(1, 0, 2))
    nb.file("models.py", HEAD + "@gen\ndef inner():\n    trace('x', normal(10, 1)), trace('z', normal(0, 1))\n")
    nb("pass")
    tr = nb["tr"]
    assert tr.stale and tr.update({"x": 3.0}).weight.item() == pytest.approx(before, abs=1e-6)
    new, weight = nb["inner"].generate(tr.args, tr.choices)
    assert weight.item() == close(density(1, 10)) and ("z",) in new.choices.addresses()


def test_a_run_uses_one_version_and_says_that_there_is_another(nb):
    """Acceptance 12: the file is edited and reloaded by another thread while the draws are made."""
    nb.file("models.py", INNER.format(mu=0, sigma=0.001))
    nb("from models import inner\nimport models")
    reloader = nb.ip._genmlx_session.reloader
    said, swaps = [], []
    reloader.say = said.append
    nb.file("models.py", INNER.format(mu=100, sigma=0.001))

    def swap(progress):
        if progress.phase == "sampling" and not swaps:
            swaps.append(threading.Thread(target=reloader.check))
            swaps[0].start()
            swaps[0].join()

    nb.ip.user_ns["swap"] = swap
    nb.ip._genmlx_session.settings.reload = False
    for method in ("nuts", "mh"):
        swaps.clear()
        mu = 0 if method == "nuts" else 100
        nb(f"post = {method}(inner(), draws=300, warmup=50, chains=2, key=mx.random.key(1), progress=swap)")
        post = nb["post"]
        assert mx.all(mx.abs(post["x"] - mu) < 0.1).item() and post.stale
        new, old = nb["inner"].version, post.pins[nb["inner"]]
        assert int(new) == int(old) + 1
        assert post.notes == [f"inner changed to {new!r} while running (used {old!r})"]
        assert post.notes[0] in str(post.summary())
        nb.file("models.py", INNER.format(mu=200, sigma=0.001))
    assert said == [f"[reload] models.py: inner v{i} -> v{i + 1} (line 5)" for i in (1, 2)]
    assert post.trace(0, 0).score.item() == pytest.approx(post.log_joint[0, 0].item(), abs=1e-4)


def test_a_recorded_graph_is_not_used_for_another_version(nb):
    """Acceptance 13: at the same shapes, after the same number of calls; and the old graph goes with its owner."""
    nb.file("models.py", INNER.format(mu=0, sigma=1))
    nb("from models import inner")
    u = mx.array([[1.0], [2.0]])

    def values():
        graph = LogDensity(nb["inner"]())
        return graph, [graph.logp(u).tolist() for _ in range(3)][-1]

    old, before = values()
    assert before == [close(density(1, 0)), close(density(2, 0))] and "replayed" in old.execution
    nb.file("models.py", INNER.format(mu=5, sigma=1))
    nb("pass")
    new, after = values()
    assert after == [close(density(1, 5)), close(density(2, 5))]
    assert old.logp(u).tolist() == before  # what is pinned stays
    gone = weakref.ref(old)
    del old
    gc.collect()
    assert gone() is None


def test_an_edit_reaches_the_importers_of_a_module(nb):
    """Acceptance 14: priors.py, imported by models.py, imported by the notebook; each is run once, in order."""
    text = (
        "import priors\nfrom priors import SCALE\n"
        + HEAD
        + (
            "runs = globals().get('runs', 0) + 1\nprint('models')\n"
            "@gen\ndef model():\n    trace('x', normal(priors.MU, SCALE))\n"
        )
    )
    nb.file("priors.py", "MU, SCALE, OTHER = 0, 1, 0\nprint('priors')\n")
    nb.file("models.py", text)
    nb.file("fits.py", "import models\nfrom models import model\nfrom genmlx import gen\nprint('fits')\n")
    nb.file("apart.py", HEAD + "print('apart')\n")
    assert nb("import fits, apart\nfrom models import model") == "priors\nmodels\nfits\napart\n"
    nb.file("priors.py", "MU, SCALE, OTHER = 4, 2, 0\nprint('priors')\n")
    assert nb("pass").splitlines() == [
        "priors",
        "[reload] priors.py: MU changed, SCALE changed",
        "models",
        "[reload] models.py, which imports priors.py: model v1 -> v2 (SCALE, priors.MU), SCALE changed",
        "fits",
        "[reload] fits.py, which imports models.py: unchanged",
    ]
    assert nb.score("model", x=4.0) == close(density(0, 0, 2))
    nb.file("models.py", text.replace("'x', normal(priors.MU, SCALE)", "'x', normal(priors.MU, 1)"))
    assert "models.py: model v2 -> v3 (line 9); priors.py untouched" in nb("pass")
    nb.file("priors.py", "MU, SCALE, OTHER = 4, 2, 1\nprint('priors')\n")
    nb("pass")
    assert int(nb["model"].version) == 3  # it reads nothing that has changed


def test_a_module_is_run_after_what_it_is_about_to_import(nb):
    """Two edits at once, of which the first needs the second; would catch an order by the old imports."""
    nb.file("a.py", INNER.format(mu=0, sigma=1))
    nb.file("z.py", "import genmlx\n")
    nb("import a, z")
    nb.file("a.py", "from z import MU\n" + INNER.format(mu="MU", sigma=1))
    nb.file("z.py", "import genmlx\nMU = 3\n")
    assert [line.split(":")[0] for line in lines(nb("pass"))] == ["[reload] z.py", "[reload] a.py"]
    assert nb.score("a.inner", x=3.0) == close(density(0, 0))


def test_a_broken_import_waits_for_the_module_that_mends_it(nb):
    """An importer that fails is tried again when what it imports changes, though its own file does not."""
    nb.file("priors.py", "MU = 0\n")
    nb.file("models.py", "from priors import MU\n" + INNER.format(mu="MU", sigma=1))
    nb("from models import inner")
    nb.file("priors.py", "NU = 0\n")
    assert lines(nb("pass")) == [
        "[reload] priors.py: NU is new, MU is gone",
        f"[reload] models.py:1 ImportError: cannot import name 'MU' from 'priors' ({nb.folder / 'priors.py'})"
        " - keeping v1 (stale)",
    ]
    assert nb.score("inner", x=1.0) == close(density(1, 0)) and nb("pass") == ""
    nb.file("priors.py", "MU = 3\n")
    assert "models.py, which imports priors.py: inner v1 -> v2 (MU), MU changed" in nb("pass")


def test_a_model_that_is_renamed_is_an_orphan(nb):
    """Acceptance 15: it goes on, warns once, and is no orphan when it comes back."""
    text = INNER.format(mu=0, sigma=1)
    nb.file("models.py", text)
    nb("from models import inner\ntr = inner.simulate()")
    inner = nb["inner"]
    nb.file("models.py", text.replace("def inner", "def inner2"))
    assert nb("pass") == "[reload] models.py: inner2 v1 is new, inner is gone (orphan)\n"
    assert inner.orphan == str(nb.folder / "models.py") and nb["inner"] is inner
    with pytest.warns(UserWarning, match=r"models.py no longer defines inner: v1 is used"):
        inner()
    assert inner().assess({"x": 1.0}).score.item() == close(density(1, 0))
    assert nb["tr"].update({"x": 1.0}).trace["x"].item() == 1.0 and not nb["tr"].stale
    with pytest.raises(ImportError):
        nb("from models import inner as gone")
    nb.file("models.py", text)
    nb("pass")
    assert inner.orphan is None and sys.modules["models"].inner is inner


def test_a_trace_of_an_earlier_version_does_not_warn_of_an_orphan(nb):
    """It calls the version that it has, and not the one that the warning would speak of."""
    outer = "\n\n@gen\ndef outer():\n    return trace('in', inner())\n"
    nb.file("models.py", INNER.format(mu=0, sigma=1) + outer)
    nb("from models import outer\ntr = outer.simulate()")
    nb.file("models.py", INNER.format(mu=1, sigma=1) + outer)
    nb("pass")
    nb.file("models.py", (INNER.format(mu=1, sigma=1) + outer).replace("inner", "other"))
    assert "inner is gone (orphan)" in nb("pass")
    assert nb["tr"].update({("in", "x"): 1.0}).trace.score.item() == close(density(1, 0))


def test_a_factory_made_model_keeps_what_it_was_made_with(nb):
    """It is no longer what its module would make; would catch old code under new constants."""
    text = (
        HEAD
        + "MU = {mu}\ndef make():\n    @gen\n    def model():\n        trace('x', normal(MU, 1))\n    return model\n"
    )
    nb.file("models.py", text.format(mu=0))
    nb("from models import make\none = make()")
    nb.file("models.py", text.format(mu=5))
    nb("two = make()")
    assert nb.score("one", x=0.0) == nb.score("two", x=5.0) == close(density(0, 0))


def test_decorated_functions_and_closures(nb):
    """Where autoreload gives up: a wrapped function, and one whose closure has changed."""
    text = "import genmlx, functools\n" + (
        "def twice(f):\n    @functools.wraps(f)\n    def run(x):\n        return 2 * f(x)\n    return run\n"
        "@twice\ndef one(x):\n    return x + {k}\n"
        "def add(k):\n    return lambda x: x + k\n"
        "two = add({k})\n"
        "def three(x, k={k}):\n    return x + k\n"
    )
    nb.file("models.py", text.format(k=1))
    nb("from models import one, two, three\nf, g, h = one, two, three")
    nb.file("models.py", text.format(k=10))
    nb("pass")
    assert (nb["one"](1), nb["two"](1), nb["three"](1)) == (22, 11, 11)
    assert (nb["f"](1), nb["g"](1), nb["h"](1)) == (22, 11, 11)


# cooperation, cost, and when it is off


@pytest.mark.parametrize("first", ["magics", "autoreload"])
def test_with_autoreload_there_is_one_swap(nb, first):
    """Acceptance 19: whichever was loaded first, each edit is run once and makes one version."""
    if first == "autoreload":
        nb.ip.run_line_magic("unload_ext", "magics")
    nb("%load_ext autoreload\n%autoreload 2")
    if first == "autoreload":
        nb.ip.run_line_magic("load_ext", "magics")
    from IPython.extensions import autoreload

    runs = "import builtins\nbuiltins.runs = getattr(builtins, 'runs', 0) + 1\n"
    try:
        rules = len(autoreload.UPDATE_RULES)
        nb.file("models.py", runs + INNER.format(mu=0, sigma=1))
        nb("from models import inner")
        nb("pass")
        for k in (1, 2, 3):
            nb.file("models.py", runs + INNER.format(mu=k, sigma=1))
            nb("pass")
            nb("pass")
            assert int(nb["inner"].version) == k + 1 and __import__("builtins").runs == k + 1
            assert nb.score("inner", x=float(k)) == close(density(0, 0))
        nb.file("models.py", "(\n")
        assert nb("pass").count("SyntaxError") == 1
        assert len(autoreload.UPDATE_RULES) == max(rules, 5)
        nb.ip.run_line_magic("unload_ext", "magics")
        assert len(autoreload.UPDATE_RULES) == 4
    finally:
        nb.ip.run_line_magic("autoreload", "0")
        nb.ip.run_line_magic("load_ext", "magics")
        vars(__import__("builtins")).pop("runs", None)
        for hook in list(nb.ip.events.callbacks["pre_run_cell"]):
            if "Autoreload" in repr(hook):
                nb.ip.events.unregister("pre_run_cell", hook)
        nb.ip.magics_manager.registry.pop("AutoreloadMagics", None)
        nb.ip.extension_manager.loaded -= {"autoreload", "IPython.extensions.autoreload"}


def test_what_somebody_else_ran_again_is_not_run_twice(nb):
    """By importlib.reload: the handle is re-pointed once, and nothing is said."""
    nb.file("models.py", INNER.format(mu=0, sigma=1))
    nb("import models, importlib")
    nb.ip._genmlx_session.settings.reload = False
    nb.file("models.py", INNER.format(mu=2, sigma=1))
    nb("importlib.reload(models)")
    nb.ip._genmlx_session.settings.reload = True
    assert nb("pass") == "" and int(nb["models"].inner.version) == 2


def test_a_touch_is_no_change(nb):
    """Acceptance 20: of fifty files; nothing is run, compiled or said."""
    for i in range(50):
        nb.file(f"part{i}.py", f"from genmlx import gen\nprint('ran')\n@gen\ndef model{i}(): pass\n")
    nb("import " + ", ".join(f"part{i}" for i in range(50)))
    for i in range(50):
        os.utime(nb.folder / f"part{i}.py", ns=(1, i + 1))
    assert nb("pass") == "" and len(nb.ip._genmlx_session.reloader.watched()) >= 50


def test_an_edit_while_the_importing_cell_runs_is_seen(nb):
    """What was imported is then unknown, so the file is run again."""
    path = nb.file("models.py", INNER.format(mu=0, sigma=1))
    nb.ip.user_ns["edit"] = lambda: path.write_text(INNER.format(mu=6, sigma=1))
    nb("from models import inner\nedit();")
    nb("pass")
    assert nb.score("inner", x=6.0) == close(density(0, 0))


def test_a_library_is_never_run_again(nb, tmp_path, monkeypatch):
    """Acceptance 21: neither our own modules, nor those of the standard library, nor installed ones."""
    packages = tmp_path / "site-packages"
    packages.mkdir()
    monkeypatch.syspath_prepend(str(packages))
    nb.file("site-packages/installed.py", "class Kind: pass\nfrom genmlx import gen\n")
    nb("import installed\nkind = installed.Kind()")
    nb.file("site-packages/installed.py", "class Kind:\n    x = 1\nfrom genmlx import gen\n")
    assert nb("pass") == "" and isinstance(nb["kind"], nb["installed"].Kind)
    for name in ("genmlx.gen", "magics", "workbench.reload", "json", "numpy", "__main__"):
        __import__(name)
        assert not is_project(name, sys.modules[name])
    assert not is_project("made", types.ModuleType("made"))
    for word in ("numpy", "genmlx"):
        with pytest.raises(Exception, match="is a library's module"):
            nb(f"%reload {word}")


def test_the_setting_turns_it_off(nb):
    nb.file("models.py", INNER.format(mu=0, sigma=1))
    nb("from models import inner")
    nb.ip._genmlx_session.settings.reload = False
    nb.file("models.py", INNER.format(mu=1, sigma=1))
    assert nb("pass") == "" and int(nb["inner"].version) == 1
    assert nb("%reload") == "[reload] models.py: inner v1 -> v2 (line 5)\n"


def test_a_failure_of_the_hook_is_said_once(nb, monkeypatch):
    def fail():
        raise RuntimeError("no disk")

    monkeypatch.setattr(nb.ip._genmlx_session.reloader, "look", fail)
    assert nb("pass") == "[reload] is off: RuntimeError: no disk (%config GenMagics.reload = True)\n"
    assert nb("pass") == ""


def test_a_cell_inside_a_cell_does_not_reload(nb):
    """A file that changes in the middle of a cell is for the next one."""
    nb.file("models.py", INNER.format(mu=0, sigma=1))
    nb("from models import inner")
    nb.ip.user_ns["edit"] = lambda: nb.file("models.py", INNER.format(mu=1, sigma=1))
    assert nb("edit()\nget_ipython().run_cell('v = int(inner.version)')\nassert v == 1;") == ""
    assert "inner v1 -> v2" in nb("pass")


# %reload and %watch


def test_reload_by_hand(nb):
    """--dry runs nothing, -v shows the sites, --all and names run what has not changed."""
    nb.file("models.py", INNER.format(mu=0, sigma=1))
    nb.file("fits.py", "from models import inner\nprint('fits')\n")
    nb("from models import inner\nimport fits")
    assert nb("%reload") == "nothing has changed (2 modules are watched)\n"
    text = HEAD + "@gen\ndef inner():\n    trace('z', normal(0, 1))\n    return trace('x', normal(0, 2))\n"
    nb.file("models.py", text)
    assert nb("%reload --dry").splitlines() == [
        "would run models.py (changed)",
        "would run fits.py (imports models)",
    ]
    assert int(nb["inner"].version) == 1
    assert nb("%reload -v").splitlines() == [
        "[reload] models.py: inner v1 -> v2 (line 5)",
        "  inner: x ~ normal(0, 1) -> normal(0, 2)",
        "  inner: + z ~ normal(0, 1)",
        "fits",
        "[reload] fits.py, which imports models.py: unchanged",
    ]
    assert nb("%reload fits") == "fits\n[reload] fits.py: unchanged; models.py untouched\n"
    assert nb("%reload models.py") == "[reload] models.py: unchanged (v2)\n"
    assert nb("%reload --all").count("[reload]") == 2
    with pytest.raises(Exception, match="no module of this project is called 'model'; did you mean 'models'"):
        nb("%reload model")


def test_watch(nb):
    """A module that has nothing to do with models, a data file, and neither any longer."""
    nb.file("plain.py", "K = 1\n")
    data = nb.file("data.csv", "1,2\n")
    nb("from plain import K")
    nb.file("plain.py", "K = 2\n")
    assert nb("pass") == "" and nb["K"] == 1
    assert "nothing is watched" in nb("%watch")
    nb(f"%watch plain {data}")
    assert nb("pass") == "[reload] plain.py: K changed\n" and nb["K"] == 2
    assert [line.split()[0] for line in nb("%watch --list").splitlines()][0] == "plain"
    nb.file("data.csv", "1,3\n")
    assert nb("pass").startswith("[reload] ") and nb("pass") == ""
    nb(f"%watch --off plain {data}")
    nb.file("plain.py", "K = 3\n")
    nb.file("data.csv", "1,4\n")
    assert nb("pass") == "" and nb["K"] == 2
    nb("%watch --off")
    assert not nb.ip._genmlx_session.settings.reload
    nb("%watch plain")
    assert nb("pass") == "[reload] plain.py: K changed\n"


def test_a_package_with_relative_imports(nb):
    """Would catch relative imports resolved against the wrong package."""
    (nb.folder / "study").mkdir()
    nb.file("study/__init__.py", "")
    nb.file("study/priors.py", "MU = 0\n")
    nb.file("study/models.py", "from .priors import MU\n" + INNER.format(mu="MU", sigma=1))
    nb("from study.models import inner")
    nb.file("study/priors.py", "MU = 2\n")
    nb("pass")
    assert nb.score("inner", x=2.0) == close(density(0, 0))
    nb.file("study/models.py", "from . import priors\n" + INNER.format(mu="priors.MU", sigma=1))
    nb("pass")
    nb.file("study/priors.py", "MU = 3\n")
    nb("pass")
    assert nb.score("inner", x=3.0) == close(density(0, 0))


def test_unloading_takes_the_hooks_away(nb):
    hooks = {event: list(found) for event, found in nb.ip.events.callbacks.items()}
    nb.ip.run_line_magic("unload_ext", "magics")
    assert not any("install" in repr(hook) for found in nb.ip.events.callbacks.values() for hook in found)
    nb.ip.run_line_magic("load_ext", "magics")
    assert {event: len(found) for event, found in nb.ip.events.callbacks.items()} == {
        event: len(found) for event, found in hooks.items()
    }


def test_the_notebook_runner_does_not_reload(tmp_path):
    """Acceptance 22: a cell that edits a file goes on with what it imported; by hand it can."""
    (tmp_path / "models.py").write_text(INNER.format(mu=0, sigma=1))
    edited = INNER.format(mu=1, sigma=1)
    (tmp_path / "book.py").write_text(
        "# %%\nfrom models import inner\n"
        f"# %%\nopen('models.py', 'w').write({edited!r})\n"
        "# %%\nassert int(inner.version) == 1\n"
        "# %%\n# %reload\n# %%\nassert int(inner.version) == 2\n"
    )
    environment = {**os.environ, "IPYTHONDIR": str(tmp_path), "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-m", "workbench.runner", "book.py"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
