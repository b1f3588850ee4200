"""``%%gen``, ``%gfi``, ``%sites`` and ``%models``, in a shell without a screen."""

import inspect
import linecache
import math
import re
import subprocess
import sys
import traceback

import pytest

HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)
LINE = """%%gen
def line(xs):
    slope = trace("slope", normal(0, 10))
    intercept = trace("intercept", normal(0, {scale}))
    for i, x in enumerate(xs):
        trace(("y", i), normal(slope * x + intercept, 1))
    return slope
"""
INNER = '%%gen\ndef inner():\n    return trace("x", normal({mu}, 1))\n'


def density(x, mu, sigma=1.0):
    return -0.5 * ((x - mu) / sigma) ** 2 - math.log(sigma) - HALF_LOG_2PI


def close(x):
    return pytest.approx(x, abs=1e-5)


def score(prompt, call, choices):
    prompt.ip.user_ns["_choices"] = choices
    return prompt.value(f"{call}.assess(_choices).score.item()")


# what is said


def test_the_report_of_a_definition_and_of_a_redefinition(prompt):
    """S1 and S2 to the letter, the time aside."""
    prompt("xs = [1.0, 2.0]")
    said = prompt(LINE.format(scale=10).replace("%%gen", "%%gen --check (xs,)"))
    assert re.sub(r"\d+ ms", "41 ms", said) == 'line v1   2 static + ("y", i) dynamic sites   6 laws ok in 41 ms'
    prompt('@gen\ndef hier(xs):\n    return trace("in", line(xs))')
    prompt('_tr = hier(xs).simulate()\npost = importance_sampling(line(xs), {("y", 0): 1.0}, particles=2)')
    prompt("_post, other, current = post, normal(0, 1).simulate(), normal")
    assert prompt(LINE.format(scale=2)) == (
        "line v1 -> v2   intercept ~ normal(0, 10) -> normal(0, 2)   callers: hier   stale: _tr, post (v1)"
    )
    assert prompt(LINE.format(scale=2)) == "line v2 (unchanged)"


def test_sites_that_come_and_go_and_a_new_signature(prompt):
    prompt("%%gen\ndef m(a):\n    trace('x', flip(a))\n    splice(n())\n")
    said = prompt("%%gen\ndef m(a, b=1):\n    trace('z', flip(a))\n    trace(('x', b), flip(b))\n")
    changes = '(a) -> (a, b=1), + z ~ flip(a), + ("x", b) ~ flip(b), 2 more'
    assert said == f"m v1 -> v2   {changes}"
    assert prompt("%%gen\ndef m(a, b=1):\n    trace('z', flip(a))\n    trace(('x', b), flip(b))\n    return 1\n") == (
        "m v2 -> v3   sites unchanged"
    )


def test_quiet_silent_and_several(prompt):
    assert prompt("%%gen -q\ndef a(): pass\n") == "" and prompt("%%gen ;\ndef a(): return 1\n") == ""
    assert prompt("%%gen\ndef a(): return 2\nK = 3\ndef b(): return trace('x', flip(0.1 * K))\n") == (
        "a v2 -> v3   sites unchanged\nb v1   1 static site"
    )
    assert prompt["K"] == 3 and score(prompt, "b()", {"x": 1}) == close(math.log(0.3))


def test_the_value_of_the_last_expression_is_shown(prompt):
    assert prompt("%%gen\ndef a():\n    return trace('x', delta(4.0))\na().simulate().retval.item()\n") == (
        "a v1   1 static site\nOut[1]: 4.0"
    )


def test_show(prompt):
    prompt("%%gen -q\ndef inner(): pass\n")
    said = prompt("%%gen --show sites\ndef m():\n    k ~ flip(0.5)\n    y[k, 0] ~ normal(k, 1)\n    splice(inner())\n")
    assert said.splitlines() == [
        'm v1   1 static + ("y", k, 0) dynamic + those of inner() sites',
        'm v1   1 static + ("y", k, 0) dynamic + those of inner() sites',
        "  k            flip(0.5)",
        '  ("y", k, 0)  normal(k, 1)',
        "               splice(inner())",
    ]
    said = prompt("%%gen --show src\ndef m():\n    k ~ flip(0.5)   # a coin\n    return k\n")
    assert said.splitlines()[1:] == ["def m():", "    k ~ flip(0.5)   # a coin", "    return k"]


# late binding: acceptance 1, 3 and 4


def test_callers_combinators_and_aliases_follow(prompt):
    """Through a call by name, a splice, map_over and vmap made before the edit, an alias and a dict."""
    prompt(INNER.format(mu=0))
    prompt('@gen\ndef outer():\n    return trace("in", inner())\n@gen\ndef spliced():\n    return splice(inner())')
    prompt("%%gen\ndef step(t):\n    return trace('z', normal(t, 1))\n")
    prompt("f, table, many, batch = inner, {'m': inner}, map_over(step), vmap(step)\nhandle = inner")
    for mu in (5, -3):
        prompt(INNER.format(mu=mu))
        prompt(f"%%gen\ndef step(t):\n    return trace('z', normal(t + {mu}, 1))\n")
        assert prompt["inner"] is prompt["handle"] is prompt["f"] is prompt["table"]["m"]
        for call, choices in (
            ("inner()", {"x": 1.0}),
            ("f()", {"x": 1.0}),
            ("table['m']()", {"x": 1.0}),
            ("outer()", {("in", "x"): 1.0}),
            ("spliced()", {"x": 1.0}),
        ):
            assert score(prompt, call, choices) == close(density(1, mu))
        expected = density(1, mu) + density(2, 1 + mu)
        assert score(prompt, "many([0.0, 1.0])", {(0, "z"): 1.0, (1, "z"): 2.0}) == close(expected)
        assert score(prompt, "batch([0.0, 1.0])", {"z": [1.0, 2.0]}) == close(expected)


def test_a_running_version_goes_on(prompt):
    """Acceptance 18: a trace of the old signature updates; a call with the old arguments names the new signature."""
    prompt("%%gen\ndef line(xs):\n    trace('a', normal(xs, 1))\n")
    prompt("tr = line(1.0).generate({'a': 0.0}).trace")
    prompt("%%gen\ndef line(xs, s):\n    trace('a', normal(xs, s))\n")
    assert prompt.value("tr.update({'a': 1.0}).weight.item()") == close(0.5) and prompt["tr"].stale
    error, screen = prompt.fails("line(1.0)")
    assert isinstance(error, TypeError)
    assert "missing a required argument: 's'" in screen and "expected: line(xs, s)" in screen
    assert "line was redefined: this is v2" in screen


# what is no change: acceptance 5 and 6


def test_an_equal_body_is_no_new_version(prompt):
    prompt(LINE.format(scale=2))
    version = prompt["line"].version
    same = LINE.format(scale=2)
    sugar = same.replace('slope = trace("slope", normal(0, 10))', "slope ~ normal(0, 10)")
    for cell in (
        same,
        "# why\n\n# and why not\n" + same,
        same.replace("return", "# the end\n    return"),
        same.replace("    slope =", '    """A line."""\n    slope ='),
        same.replace("normal(0, 10)", "normal(\n        0,  # nought\n        10,\n    )"),
        sugar.replace('trace(("y", i), normal(slope * x + intercept, 1))', "y[i] ~ normal(slope * x + intercept, 1)"),
    ):
        assert prompt(cell) == "line v1 (unchanged)"
        assert prompt["line"].version is version
    prompt(same.replace("    slope =", '    """A line."""\n    slope ='))
    assert prompt["line"].__doc__ == "A line."
    tr = prompt.value("line([1.0]).simulate()")
    assert not tr.stale and int(tr.version) == 1


# acceptance 16 and 17


def test_the_same_name_in_another_module_is_another_model(prompt, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    source = "from genmlx import gen, normal, trace\n@gen\ndef inner():\n    return trace('x', normal(7, 1))\n"
    (tmp_path / "other_models.py").write_text(source)
    prompt("import other_models")
    prompt(INNER.format(mu=0))
    prompt(INNER.format(mu=1))
    assert prompt["inner"] is not prompt["other_models"].inner
    assert int(prompt["inner"].version) == 2 and int(prompt["other_models"].inner.version) == 1
    assert score(prompt, "inner()", {"x": 1.0}) == close(density(1, 1))
    assert score(prompt, "other_models.inner()", {"x": 1.0}) == close(density(1, 7))
    del sys.modules["other_models"]


def test_factory_made_models_stay_distinct(prompt):
    cell = "def make(k):\n    @gen\n    def m():\n        return trace('x', normal(k, 1))\n    return m\n"
    cell += "one, two = make(1), make(2)"
    prompt(cell)
    first = prompt["one"], prompt["two"]
    prompt(cell)
    assert len({id(m) for m in (*first, prompt["one"], prompt["two"])}) == 4
    assert [score(prompt, m, {"x": 0.0}) for m in ("one()", "two()")] == [close(density(0, k)) for k in (1, 2)]


def test_new_makes_a_fresh_handle(prompt):
    """What held the old one keeps it; what is defined later under the name goes to the new one."""
    prompt(INNER.format(mu=0))
    prompt("old = inner")
    assert prompt(INNER.format(mu=1).replace("%%gen", "%%gen --new")) == "inner v1   1 static site"
    fresh = prompt["inner"]
    assert fresh is not prompt["old"]
    prompt(INNER.format(mu=2))
    assert prompt["inner"] is fresh
    assert [score(prompt, m, {"x": 0.0}) for m in ("old()", "inner()")] == [close(density(0, mu)) for mu in (0, 2)]


# the cell as the body, and the sugar in a cell


def test_the_cell_as_the_body(prompt):
    cell = '%%gen coin(p=0.5, *, n=2)\n"""A coin."""\nk ~ flip(p)\ntext = """a\n  b"""\nfor i in range(n):\n'
    cell += "    y[i] ~ normal(k, 1)\nreturn text"
    assert prompt(cell) == 'coin v1   1 static + ("y", i) dynamic sites'
    assert str(prompt["coin"].signature) == "(p=0.5, *, n=2)" and prompt["coin"].__doc__ == "A coin."
    expected = math.log(0.25) + density(2, 1)
    assert score(prompt, "coin(0.25, n=1)", {"k": 1, ("y", 0): 2.0}) == close(expected)
    assert prompt.value("coin().simulate().retval") == "a\n  b"
    assert prompt("%%gen coin\nreturn 3").startswith("coin v1 -> v2   (p=0.5, *, n=2) -> ()")


def test_the_same_model_in_both_forms(prompt):
    prompt(INNER.format(mu=3))
    assert prompt("%%gen inner()\nx ~ normal(3, 1)\nreturn x") == (
        "inner v1 -> v2   sites unchanged"  # x is a variable now
    )
    assert prompt('%%gen inner()\nreturn trace("x", normal(3, 1))').startswith("inner v2 -> v3")
    assert prompt(INNER.format(mu=3)) == "inner v3 (unchanged)"


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ("%%gen coin(p\nreturn p", "'(' is not closed"),
        ("%%gen coin(p,,q)\nreturn p", "not NAME(PARAMS): invalid syntax"),
        ("%%gen coin(p): return 1; x\nreturn p", "not NAME(PARAMS): invalid syntax"),
        ("%%gen coin()\n# nothing", "the cell, which is the body of coin, is empty"),
        ("%%gen\nx = 3", "the cell defines no function"),
        ("%%gen --chek\nx = 3", "gen has no option --chek; did you mean '--check'?"),
    ],
)
def test_misuse_is_said_in_one_line(prompt, cell, message):
    error, screen = prompt.fails(cell)
    assert type(error).__name__ == "UsageError" and message in screen and "Traceback" not in screen


def test_the_sugar_needs_the_trace_of_the_library(prompt):
    prompt("trace = 3")
    _, screen = prompt.fails("%%gen\ndef m():\n    x ~ flip(0.5)\n")
    assert "~ needs the trace of genmlx; here trace is int" in screen


# errors at their lines, and all or nothing


SHOWN = """  Cell In[{n}], line 4
    b ~ normal(0, 1
              ^
SyntaxError: '(' was never closed
"""


def test_a_syntax_error_is_shown_as_that_of_a_cell(prompt):
    for n, head in ((1, "%%gen\ndef m():\n"), (2, "%%gen m()\na = 1\n")):
        indent = "    " if n == 1 else ""
        error, screen = prompt.fails(f"{head}{indent}a = 1\n{indent}b ~ normal(0, 1\n{indent}return a")
        assert isinstance(error, SyntaxError) and error.lineno == 4
        assert screen.strip("\n") == SHOWN.format(n=n).strip("\n")
    _, screen = prompt.fails("# Above.\n# Also above.\n%%gen\ndef m():\n    if True: k ~ flip(0.3)\n")
    assert screen.startswith("  Cell In[3], line 5\n    if True: k ~ flip(0.3)\n")
    assert "SyntaxError: a choice with ~ stands on a line of its own" in screen
    _, screen = prompt.fails("%%gen\ndef m():\n    nonlocal z\n")
    assert screen.startswith("  Cell In[4], line 3") and "nonlocal" in screen.splitlines()[-2]


def test_an_error_in_the_cell_shows_its_line_alone(prompt):
    error, screen = prompt.fails("%%gen\nK = 2\ndef m(a=1 / 0): pass\n")
    assert isinstance(error, ZeroDivisionError)
    assert "Cell In[1], line 3\n" in screen and "----> 3 def m(a=1 / 0): pass" in screen
    assert "magics" not in screen and "run_cell_magic" not in screen
    assert "K" not in prompt.ip.user_ns and "__define__" not in prompt.ip.user_ns


BAD = [
    "x ~ normal(0, 1\n    return 2",
    "x ~ normal(0, 1)\n    yield x",
    "return 2\n1 / 0",
    "return 2\ndef other(a=K / 0): pass",
    "return 2\n@no_such_decorator\ndef third(): pass",
]


@pytest.mark.parametrize("body", BAD)
def test_a_cell_that_fails_leaves_everything_as_it_was(prompt, body):
    """Would catch a first function that stays redefined when a later line fails, and constants torn from models."""
    prompt("%%gen\nK = 1\ndef m():\n    return 1\n")
    version, names = prompt["m"].version, set(prompt.ip.user_ns)
    prompt.fails(f"%%gen\nK = 5\nNEW = 6\ndef m():\n    {body}\n")
    assert prompt["m"].version is version and prompt["K"] == 1
    new = {name for name in set(prompt.ip.user_ns) - names if not name.startswith("_")}
    assert new <= {"normal"}  # a name of the library, which the cell has loaded
    assert prompt.value("m().simulate().retval") == 1
    assert prompt("%%gen\ndef m():\n    return 7\n") == "m v1 -> v2   sites unchanged"


def test_a_failing_decorator_leaves_the_old_version(prompt):
    prompt("def twice(f):\n    raise ValueError('not today')")
    prompt(INNER.format(mu=0))
    error, _ = prompt.fails(INNER.format(mu=1).replace("def", "@twice\ndef"))
    assert str(error) == "not today" and int(prompt["inner"].version) == 1
    assert score(prompt, "inner()", {"x": 0.0}) == close(density(0, 0))


def test_decorators_that_work(prompt):
    """An explicit @gen is no mistake, and a combinator over a def stays what it is."""
    assert prompt(INNER.format(mu=0).replace("def", "@gen\ndef")) == "inner v1   1 static site"
    assert prompt(INNER.format(mu=1).replace("def", "@gen\ndef")).startswith("inner v1 -> v2   x ~ normal(0, 1) ->")
    prompt("%%gen\n@map_over\n@gen\ndef each(t):\n    z ~ normal(t, 1)\n\ndef other(): pass\n")
    assert score(prompt, "each([1.0])", {(0, "z"): 1.0}) == close(density(1, 1))


# source


def test_the_source_and_the_lines_of_a_traceback(prompt):
    prompt("# Why this model.\n%%gen\ndef m(a):\n    x ~ normal(0, 1)\n    return 1 / a\n")
    function = prompt["m"].version.function
    assert inspect.getsource(function) == "def m(a):\n    x ~ normal(0, 1)\n    return 1 / a\n"
    assert function.__code__.co_firstlineno == 3
    error, screen = prompt.fails("m(0).simulate()")
    assert "Cell In[1], line 5, in m(a)" in screen and "----> 5     return 1 / a" in screen
    shown = "".join(traceback.format_tb(error.__traceback__)[-1:])
    assert "line 5, in m" in shown and "return 1 / a\n           ~~^~~" in shown


def test_the_source_of_a_cell_that_is_a_body(prompt):
    prompt('%%gen m(a)\n"""Doc."""\ns = """one\ntwo"""\nif a:\n    x ~ normal(0, 1)\nreturn 1 / a')
    function = prompt["m"].version.function
    source = 'def m(a):  # %%gen\n    """Doc."""\n    s = """one\ntwo"""\n    if a:\n        x ~ normal(0, 1)\n'
    assert inspect.getsource(function) == source + "    return 1 / a\n"
    error, screen = prompt.fails("m(0).simulate()")
    assert "Cell In[1], line 7, in m(a)" in screen and "----> 7 return 1 / a" in screen
    shown = "".join(traceback.format_tb(error.__traceback__)[-1:])
    assert "return 1 / a\n           ~~^~~" in shown


def test_what_the_question_marks_show(prompt):
    prompt('%%gen\ndef line(xs):\n    """A line."""\n    slope ~ normal(0, 10)\n')
    prompt("%%gen -q\ndef line(xs, n=1):\n    '''A line.'''\n    slope ~ normal(0, 1)\n    y[n] ~ normal(slope, 1)\n")
    shown = prompt("line?")
    assert re.search(r"Signature: +line\(xs, n=1\)", shown)
    expected = 'line v2   Cell In[2], line 2\nslope     normal(0, 1)\n("y", n)  normal(slope, 1)\n\nA line.\n'
    assert expected in shown
    assert "def line(xs, n=1):\n    '''A line.'''\n    slope ~ normal(0, 1)\n    y[n] ~" in prompt("line??")


def test_in_a_notebook_that_is_a_file(tmp_path):
    """The runner names the file and its lines, where a magic is a comment."""
    text = "# %%\nimport genmlx\n\n# %%\n# A model.\n# %%gen\n"
    text += "def m(a):\n    x = trace('x', flip(0.5))\n    return 1 / a\n"
    path = tmp_path / "nb.py"
    body = "\n# %%\n# %%gen coin(p)\nk = trace('k', flip(p))\n"
    body += "\n# %%\nassert coin.version.function.__code__.co_firstlineno == 12\n"
    path.write_text(text + body + "\n# %%\nm(0).simulate()\n")
    run = [sys.executable, "-m", "workbench.runner", str(path)]
    done = subprocess.run(run, capture_output=True, text=True, cwd=tmp_path, timeout=120)
    assert done.returncode == 1 and "nb.py:9 m" in done.stdout + done.stderr
    path.write_text(text.replace("    return", "    y = x +* 2\n    return"))
    done = subprocess.run(run, capture_output=True, text=True, cwd=tmp_path, timeout=120)
    assert done.returncode == 1 and re.search(r"nb\.py:9 .*SyntaxError", done.stdout + done.stderr)


# checking


def test_check_finds_what_a_run_finds(prompt):
    """A duplicate address: the definition stands, its line is printed, and the cell fails with the collision."""
    error, screen = prompt.fails("%%gen --check\ndef m():\n    x ~ flip(0.5)\n    x ~ flip(0.4)\n")
    assert type(error).__name__ == "AddressCollision" and screen.startswith("m v1   1 static site\n")
    assert int(prompt["m"].version) == 1


def test_check_takes_arguments_or_a_call(prompt):
    prompt("%%gen\ndef inner(a): x ~ normal(a, 1)\n".replace(": x", ":\n    x"))
    cell = "def outer(a, b=2.0):\n    return trace('in', inner(a * b))\ndef last():\n    z ~ flip(0.5)\n"
    for check in ("--check", "--check=()", "--check ()", "--check outer(1.0, b=3.0)"):
        assert re.search(r"last v\d.*6 laws ok in \d+ ms$", prompt(f"%%gen {check}\n{cell}"))
    said = prompt("%%gen --check 1.5\ndef one(a):\n    z ~ normal(a, 1)\n")
    assert said.startswith("one v1   1 static site   6 laws ok")
    error, screen = prompt.fails("%%gen --check (1, 2)\ndef one(a):\n    z ~ normal(a, 1)\n")
    assert "one: too many positional arguments" in screen
    _, screen = prompt.fails("%%gen --check (xz,)\ndef one(a):\n    z ~ normal(a, 1)\n")
    assert "name 'xz' is not defined" in screen and "    %%gen --check (xz,)\n                   ^^\n" in screen


BROKEN = """
class Loose(genmlx.gen(lambda: None).__class__):
    def _update(self, trace, args, diffs, constraints, key):
        new, weight, retdiff, discard = super()._update(trace, args, diffs, constraints, key)
        return new, weight + 0.5, retdiff, discard
def body(a):
    return trace("x", normal(a, 1))
loose = Loose(body)
"""


def test_gfi(prompt):
    prompt(LINE.format(scale=10))
    said = prompt("%gfi line([1.0, 2.0]) --n 2 -s 1")
    rows = [line.split() for line in said.splitlines()]
    assert rows[1] == ["line([1.0,", "2.0])", "2", "traces"]
    assert [row[0] for row in rows[3:9]] == ["assess", "project", "generate", "update", "regenerate", "batch"]
    assert all(row[2] == "ok" and float(row[1]) < 1e-4 for row in rows[3:9])
    assert re.fullmatch(r"6 laws ok in \d+ ms", said.splitlines()[9])
    prompt("found = %gfi line([1.0]) | given y=[0.5] --n 1 --laws update,batch;")
    assert [result.law for result in prompt["found"]] == ["update", "batch"] and prompt["found"].ok


def test_gfi_of_what_is_broken_fails_the_cell(prompt):
    prompt(BROKEN)
    error, screen = prompt.fails("%gfi loose(1.0) --n 2 -s 3 --laws update assess")
    assert type(error).__name__ == "LawError" and [r.law for r in error.results if not r.ok] == ["update"]
    assert "update      0.5           BROKEN: update(nothing) weight == 0 does not hold: 0.5 and 0" in screen
    assert "1 of 2 laws broken" in screen and "LawError: update: update(nothing) weight == 0" in screen


def test_check_of_what_is_broken_fails_the_cell(prompt):
    prompt(BROKEN)
    error, screen = prompt.fails("%%gen --check loose(1.0)\ndef fine():\n    x ~ flip(0.5)\n")
    assert type(error).__name__ == "LawError" and screen.startswith("fine v1   1 static site\nLawError: update: ")
    assert "does not hold: 0.5 and 0, in body" in screen


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("%gfi", "%gfi needs a model with its arguments: %gfi line(xs)"),
        ("%gfi line", "line is a model: give it its arguments, line(...)"),
        ("%gfi 3 + 4", "3 + 4 is int, not a model with its arguments"),
        ("%gfi line([1.0]) --laws assess,updat", "no law 'updat'; did you mean 'update'?"),
        ("%sites", "%sites needs a model with its arguments"),
        ("%sites line | given y=1", "| given needs a run: give the model its arguments"),
        ("%sites 3", "3 is int, not a model with its arguments"),
    ],
)
def test_misuse_of_the_others(prompt, line, message):
    prompt(LINE.format(scale=10))
    error, screen = prompt.fails(line)
    assert type(error).__name__ == "UsageError" and message in screen


# listing


def test_sites_of_a_run(prompt):
    prompt(LINE.format(scale=10))
    assert prompt("%sites line([1.0, 2.0, 3.0]) | given y=[1, 2, 3], slope=2").splitlines() == [
        "line v1   5 addresses",
        "  address      distribution                      value      support",
        "  slope        normal(0, 10)                     f32[]      a real number  observed",
        "  intercept    normal(0, 10)                     f32[]      a real number  latent",
        '  ("y", 0..2)  normal(slope * x + intercept, 1)  3 x f32[]  a real number  observed',
    ]
    assert prompt("%sites line") == (
        'line v1   2 static + ("y", i) dynamic sites\n  slope      normal(0, 10)\n'
        '  intercept  normal(0, 10)\n  ("y", i)   normal(slope * x + intercept, 1)'
    )


def test_sites_through_combinators_splices_and_branches(prompt):
    prompt("%%gen -q\ndef leaf(t):\n    z ~ gamma(2.0, t)\n    return z\n")
    prompt("%%gen -q\ndef extra():\n    e ~ flip(0.2)\n")
    body = "    k ~ flip(1.0)\n    each ~ map_over(leaf)([1.0, 2.0])\n    all ~ vmap(leaf)(mx.ones(4))\n"
    body += "    splice(extra())\n"
    body += "    if k:\n        w ~ dirichlet(mx.ones(3))\n    else:\n        v ~ flip(0.5)\n"
    prompt(f"%%gen -q\ndef top():\n{body}")
    rows = [re.split(r"  +", row.strip()) for row in prompt("%sites top()").splitlines()[2:]]
    assert rows == [
        ["k", "flip(1.0)", "i32[]", "0 or 1", "latent"],
        ['("each", 0..1, "z")', "gamma(2.0, t)", "2 x f32[]", "nonnegative", "latent"],
        ['("all", "z")', "gamma(2.0, t)", "f32[4]", "nonnegative", "latent"],
        ["e", "flip(0.2)", "i32[]", "0 or 1", "latent"],
        ["w", "dirichlet(mx.ones(3))", "f32[3]", "a probability vector", "latent"],
        ["not in this run: v ~ flip(0.5)"],
    ]


def test_models(prompt):
    def models():  # without those of the modules of other tests
        return [row for row in prompt("%models").splitlines() if "." not in row.split("(")[0]]

    assert models() in ([], ["no models; %%gen or @gen defines one"])
    prompt(LINE.format(scale=10))
    prompt("tr = line([1.0]).simulate()\n@gen\ndef hier(xs):\n    return trace('in', line(xs))")
    prompt(LINE.format(scale=2))
    prompt("now = line([1.0]).simulate()")
    prompt.fails("%%gen\ndef hier(xs):\n    x = (\n")
    prompt.fails("%%gen\ndef fresh(xs):\n    1 +\n")
    rows = [re.split(r"  +", row) for row in models()]
    never = "pending: SyntaxError in line 3: '(' was never closed"
    assert rows == [
        ["line(xs)", "v2", "Cell In[4], line 2", '2 static + ("y", i) dynamic sites', "stale: tr (v1)"],
        ["hier(xs)", "v1", "Cell In[3], line 2", "1 static site", never],
        ["fresh", "pending: SyntaxError in line 3: invalid syntax"],
    ]
    prompt("%%gen\ndef hier(xs):\n    return trace('in', line(xs))\n")
    assert "pending" not in models()[1]


# comments above, and what unloading leaves


def test_a_comment_above_a_cell_magic(prompt):
    said = prompt("# One comment,\n\n   # and another.\n%%gen --check\ndef m():\n    x ~ flip(0.5)\n")
    assert said.startswith("m v1   1 static site   6 laws ok")
    assert prompt("# Not ours.\nx = 3\n# %%gen") == "" and prompt["x"] == 3


def test_unloading_leaves_nothing(prompt, ip):
    transforms, custom = len(ip.input_transformers_cleanup), ip.custom_exceptions
    prompt("%%gen -q\ndef m(): pass\n")
    ip.run_line_magic("unload_ext", "magics")
    assert len(ip.input_transformers_cleanup) == transforms - 1 and ip.custom_exceptions == () == custom
    ip.run_line_magic("load_ext", "magics")
    ip._genmlx_session.settings.mem = "off"


def test_the_lines_of_cells_stay_known(prompt):
    """The source of an earlier version is there after a redefinition."""
    prompt(LINE.format(scale=10))
    old = prompt["line"].version.function
    prompt(LINE.format(scale=2))
    linecache.checkcache()
    assert "normal(0, 10))\n    for" in inspect.getsource(old)
