"""Handles and versions, without a shell."""

import math
import sys
import threading
import types

import mlx.core as mx
import pytest

from genmlx import Propose, choicemap, gen, importance_sampling, normal, param, select, splice, trace
from genmlx.errors import UsageError

NAMES = {"gen": gen, "trace": trace, "splice": splice, "normal": normal, "param": param, "mx": mx}


@pytest.fixture
def module():
    """Makes modules to define models in, as a notebook or a reloaded file does."""
    made = []

    def make(name):
        made.append(types.ModuleType(name))
        made[-1].__dict__.update(NAMES)
        return Module(made[-1].__dict__)

    yield make
    for m in made:
        m.__dict__.clear()


class Module:
    def __init__(self, names):
        self.names = names

    def run(self, source):
        exec(compile(source, f"<{self.names['__name__']}>", "exec"), self.names)
        return self

    def __getattr__(self, name):
        return self.names[name]


INNER = "@gen\ndef inner():\n    return trace('x', normal({mu}, {sigma}))\n"
OUTER = "@gen\ndef outer():\n    return trace('in', inner())\n"


def density(x, mu, sigma=1.0):
    return -0.5 * ((x - mu) / sigma) ** 2 - math.log(sigma) - 0.5 * math.log(2 * math.pi)


def score(model, choices):
    return model.assess((), choices).score.item()


def close(x):
    return pytest.approx(x, abs=1e-5, rel=1e-6)


# R1, R5: late binding


def test_callers_follow_a_redefinition(module):
    """Acceptance 1 and 4: through a nested call, a splice, an alias, a dict, and a call made before the edit."""
    m = module("late").run(INNER.format(mu=0, sigma=1)).run(OUTER)
    m.run("@gen\ndef spliced():\n    return splice(inner())\n")
    m.run("alias = inner\ntable = {'m': inner}\n@gen\ndef by_table():\n    return trace('t', table['m']())\n")
    m.run("@gen\ndef by_alias():\n    return trace('a', alias())\n")
    inner, call = m.inner, m.inner()
    for mu in (0, 5, -3):
        m.run(INNER.format(mu=mu, sigma=1))
        assert m.inner is inner is m.alias is m.table["m"]
        expected = close(density(1.0, mu))
        assert score(m.inner, {"x": 1.0}) == expected
        assert score(m.outer, {"in": {"x": 1.0}}) == expected
        assert score(m.spliced, {"x": 1.0}) == expected
        assert score(m.by_table, {"t": {"x": 1.0}}) == expected
        assert score(m.by_alias, {"a": {"x": 1.0}}) == expected
        assert call.assess({"x": 1.0}).score.item() == expected


def test_a_name_imported_by_another_module_follows(module):
    """Acceptance 2: ``from models import inner`` is where IPython's autoreload fails."""
    models = module("models").run(INNER.format(mu=0, sigma=1))
    notebook = module("notebook")
    notebook.names["inner"] = models.inner
    notebook.run(OUTER)
    models.run(INNER.format(mu=2, sigma=1))
    assert score(notebook.outer, {"in": {"x": 1.0}}) == close(density(1.0, 2))


def test_the_same_name_in_two_modules(module):
    """Acceptance 16: they never affect each other."""
    a, b = module("a").run(INNER.format(mu=0, sigma=1)), module("b").run(INNER.format(mu=5, sigma=1))
    assert a.inner is not b.inner
    a.run(INNER.format(mu=1, sigma=1))
    assert int(a.inner.version) == 2 and int(b.inner.version) == 1
    assert score(b.inner, {"x": 5.0}) == close(density(0, 0))


def test_factory_made_models_stay_distinct(module):
    """Acceptance 17, also after the cell runs again."""
    m = module("factory")
    cell = (
        "def make(k):\n    @gen\n    def model():\n        return trace('x', normal(k, 1))\n    return model\n"
        "one, two = make(1), make(2)\n"
    )
    m.run(cell)
    first = m.one, m.two
    m.run(cell)
    assert len({id(x) for x in (*first, m.one, m.two)}) == 4
    for made in (first, (m.one, m.two)):
        assert [score(x, {"x": 0.0}) for x in made] == [close(density(0, 1)), close(density(0, 2))]


def test_a_method_is_named_by_its_class(module):
    m = module("methods").run("class A:\n    @gen\n    def f(self):\n        trace('x', normal(0, 1))\n")
    a = m.A.f
    m.run("class B:\n    @gen\n    def f(self):\n        trace('y', normal(0, 1))\n")
    assert m.A.f is a and m.B.f is not a and int(a.version) == 1


def test_gen_new_forces_a_fresh_handle(module):
    m = module("fresh").run(INNER.format(mu=0, sigma=1))
    old = m.inner
    m.run(INNER.format(mu=7, sigma=1).replace("@gen", "@gen.new"))
    assert m.inner is not old and int(old.version) == 1
    assert score(old, {"x": 0.0}) == close(density(0, 0)) and score(m.inner, {"x": 0.0}) == close(density(0, 7))


def test_a_handle_that_nobody_holds_is_forgotten(module):
    """Would catch a registry that keeps every model ever made alive."""
    import gc
    import weakref

    m = module("short").run(INNER.format(mu=0, sigma=1))
    gone = weakref.ref(m.inner)
    m.inner.simulate()
    del m.names["inner"]
    gc.collect()
    assert gone() is None


# R2: what is a change, and what is not

BASE = """@gen
def model(xs, scale=1.0, *, shift=0.0):
    total = 0.0
    for i, x in enumerate(xs):
        if x > 0:
            total = total + trace(("y", i), normal(x, scale))
    try:
        return [t + shift for t in (total, 1)]
    except ValueError:
        return None
"""
FORMATTED = '''@gen
def model(
    xs,
    scale = 1.0,
    *,
    shift = 0.0,  # moved
):
    """A docstring that was not there."""
    # a comment
    total = 0.0

    for i, x in enumerate(xs):
        if x > 0: total = total + trace(
            ("y", i),
            normal(x, scale),
        )

    try:
        return [t + shift for t in (total, 1)]
    except ValueError: return None
'''


def test_comments_docstring_and_formatting_are_no_change(module):
    """Acceptance 5 and 6; would catch a digest of the source, or of line numbers. The docstring is refreshed."""
    m = module("same").run(BASE)
    version = m.model.version
    for source in (BASE, "# a comment\n\n\n" + BASE, FORMATTED, BASE):
        m.run(source)
        assert m.model.version is version and int(version) == 1
        assert m.model.__doc__ == ("A docstring that was not there." if source is FORMATTED else None)
    trace_made = m.model.simulate(((1.0,),))
    m.run(FORMATTED)
    assert not trace_made.stale


@pytest.mark.parametrize(
    "old, new",
    [
        ("scale=1.0", "scale=2.0"),
        ("shift=0.0", "shift=0"),
        ("scale=1.0, *, shift", "scale=1.0, shift"),
        ("total = 0.0", "total = -0.0"),
        ("x > 0", "x >= 0"),
        ("normal(x, scale)", "normal(mu=x, sigma=scale)"),
        ('"y", i', '"z", i'),
        ('"y", i', '"y", total'),
        ("t + shift", "t - shift"),
        ("ValueError", "TypeError"),
        ("(total, 1)", "(total, 2)"),
        ("enumerate(xs)", "enumerate(xs, 1)"),
        ("(xs, scale", "(ys, scale"),
    ],
)
def test_an_edit_is_a_change(module, old, new):
    """Would catch a digest that leaves out defaults, constants, names, or nested code."""
    m = module("edited").run(BASE)
    assert old in BASE
    m.run(BASE.replace(old, new))
    assert int(m.model.version) == 2


@pytest.mark.parametrize(
    "one, two",
    [
        (
            "def m(x):\n try: f(x)\n except E: pass\n return x",
            "def m(x):\n try:\n  f(x)\n except E:\n  pass\n return x",
        ),
        (
            "def m(c):\n match c:\n  case 1: return f(1)\n  case [a, *_]: return a",
            "def m(c):\n match c:\n  case 1:\n   return f(1)\n  case [a, *_]:\n   return a",
        ),
        (
            "def m(xs):\n while True:\n  if f(xs): break\n  else: h()\n return 1",
            "def m(xs):\n while True:\n  if f(xs):\n   break\n  else:\n   h()\n return 1",
        ),
    ],
)
def test_line_breaks_that_move_instructions(module, one, two):
    """Python pads the instructions where lines break; would catch offsets and padding in the digest."""
    m = module("padded").run("@gen\n" + one)
    m.run("@gen\n" + two)
    assert int(m.m.version) == 1


@pytest.mark.parametrize(
    "one, two",
    [
        ("def m(*a): return a", "def m(**a): return a"),
        ("def m(x): return f(x, a=1)", "def m(x): return f(x, b=1)"),
        ("def m():\n try:\n  a(); b()\n except E: pass\n", "def m():\n try:\n  a()\n except E: pass\n else: b()\n"),
        ("def m(x): return (lambda: 1)()", "def m(x): return (lambda: 2)()"),
        ("def m(x):\n for i in x:\n  f()\n  g()\n", "def m(x):\n for i in x:\n  f()\n g()\n"),
        ("def m(x): global y; y = x", "def m(x): y = x"),
        ("def m(x=mx.array(1.0)): pass", "def m(x=mx.array(2.0)): pass"),
        ("def m(x=(1, [2])): pass", "def m(x=(1, [3])): pass"),
    ],
)
def test_changes_that_are_easy_to_miss(module, one, two):
    m = module("subtle").run("@gen\n" + one)
    m.run("@gen\n" + two)
    assert int(m.m.version) == 2


def test_a_changed_closure_constant_is_a_change():
    """A closure is redefined by hand, since a function made inside another has a handle of its own."""

    def make(k, helper):
        def model():
            return trace("x", normal(helper(k), 1))

        return model

    def plus(k):
        return k + 1

    def twice(k):
        return k * 2

    handle = gen(make(1, plus))
    assert not handle.redefine(make(1, plus)) and int(handle.version) == 1
    assert handle.redefine(make(2, plus)) and int(handle.version) == 2
    assert handle.redefine(make(2, twice)) and int(handle.version) == 3
    assert score(handle, {"x": 4.0}) == close(density(0, 0))


def test_a_closure_that_holds_itself_has_a_digest():
    """Would catch endless recursion through a helper that calls itself."""

    def make(step):
        def down(n):
            return down(n - step) if n > 0 else n

        def model():
            return trace("x", normal(down(3), 1))

        return model

    handle = gen(make(1))
    assert score(handle, {"x": 0.0}) == close(density(0, 0))
    assert not handle.redefine(make(1)) and handle.redefine(make(2))


# R3: atomic


@pytest.mark.parametrize(
    "bad",
    [
        "@gen\ndef inner(:\n",
        "@gen\nasync def inner(): pass\n",
        "@gen\ndef inner(x=1/0): pass\n",
        "@gen\ndef inner(): yield\n",
    ],
)
def test_a_definition_that_fails_leaves_the_old_version(module, bad):
    m = module("failing").run(INNER.format(mu=3, sigma=1))
    inner = m.inner
    with pytest.raises((SyntaxError, UsageError, ZeroDivisionError)):
        m.run(bad)
    assert m.names["inner"] is inner and int(inner.version) == 1
    assert score(inner, {"x": 3.0}) == close(density(0, 0))
    m.run(INNER.format(mu=4, sigma=1))
    assert int(inner.version) == 2


# R4: one version in one operation


def test_a_run_never_mixes_versions(module):
    """A body that redefines its callee between two calls sees one version; the next operation sees the new one."""
    m = module("swap").run(INNER.format(mu=0, sigma=1))
    m.names["redefine"] = lambda mu: m.run(INNER.format(mu=mu, sigma=1))
    m.run(
        "@gen\ndef outer(mu):\n"
        "    trace('a', inner())\n"
        "    redefine(mu)\n"
        "    trace('b', inner())\n"
        "    splice(inner())\n"
    )
    choices = {"a": {"x": 0.0}, "b": {"x": 0.0}, "x": 0.0}
    tr, weight = m.outer.generate((10.0,), choices)
    assert weight.item() == close(3 * density(0, 0))
    assert tr.stale and int(m.inner.version) == 2
    tr, weight = m.outer.generate((10.0,), choices)
    assert weight.item() == close(3 * density(0, 10)) and not tr.stale


def test_a_changed_signature_in_the_middle_of_a_run(module):
    """The early check of the arguments is that of the version in use, not of the newest."""
    m = module("signature").run(INNER.format(mu=0, sigma=1))
    m.names["redefine"] = lambda: m.run("@gen\ndef inner(mu):\n    trace('x', normal(mu, 1))\n")
    m.run("@gen\ndef outer():\n    trace('a', inner())\n    redefine()\n    trace('b', inner())\n")
    tr = m.outer.simulate()
    assert tr.choices.addresses() == [("a", "x"), ("b", "x")]
    with pytest.raises(UsageError, match="missing a required argument: 'mu'"):
        m.outer.simulate()


def test_redefinition_from_another_thread(module):
    """Acceptance 12, in small: a run that is under way goes on with what it started with."""
    m = module("threads").run(INNER.format(mu=0, sigma=1))
    started, swapped = threading.Event(), threading.Event()

    def hold():
        started.set()
        assert swapped.wait(10)

    m.names["hold"] = hold
    m.run("@gen\ndef outer():\n    trace('a', inner())\n    hold()\n    trace('b', inner())\n")

    def swap():
        assert started.wait(10)
        m.run(INNER.format(mu=10, sigma=1))
        swapped.set()

    thread = threading.Thread(target=swap)
    thread.start()
    weight = m.outer.generate((), {"a": {"x": 0.0}, "b": {"x": 0.0}}).weight
    thread.join()
    assert weight.item() == close(2 * density(0, 0))
    assert score(m.inner, {"x": 10.0}) == close(density(0, 0))


def test_many_swaps_while_runs_go_on(module):
    """No run is ever torn: both halves agree, whatever the moment of the swap."""
    m = module("race").run(INNER.format(mu=0, sigma=1))
    m.run("@gen\ndef outer():\n    trace('a', inner())\n    trace('b', inner())\n")
    stop = threading.Event()

    def swapper():
        k = 0
        while not stop.is_set():
            k += 1
            m.run(INNER.format(mu=k % 5, sigma=1))

    interval = sys.getswitchinterval()
    thread = threading.Thread(target=swapper)
    sys.setswitchinterval(1e-5)
    try:
        thread.start()
        for _ in range(150):
            tr, _ = m.outer.generate((), {"a": {"x": 0.0}, "b": {"x": 0.0}})
            a, b = tr.project(select("a")).item(), tr.project(select("b")).item()
            assert a == b
    finally:
        sys.setswitchinterval(interval)
        stop.set()
        thread.join()


# R6: a trace pins its version


@pytest.mark.parametrize("edited", ["model", "callee"])
def test_a_trace_goes_on_with_its_version(module, edited):
    """Acceptance 11: every operation on an old trace gives what it gave before the edit; .stale says so."""
    m = module("pinned").run(INNER.format(mu=0, sigma=2)).run(OUTER)
    model = m.outer
    tr, _ = model().generate({"in": {"x": 1.0}})
    new = {"in": {"x": 3.0}}

    def operations():
        key = mx.random.key(5)
        arguments, _, gradients = tr.choice_gradients(select("in"))
        return [
            tr.update(new).weight.item(),
            tr.update(new).discard["in", "x"].item(),
            tr.regenerate(select("in"), key=key).trace["in", "x"].item(),
            tr.project(select("in")).item(),
            gradients["in", "x"].item(),
            tr.update(new).trace.update({"in": {"x": 0.0}}).weight.item(),
        ]

    before = operations()
    assert before[0] == close(density(3, 0, 2) - density(1, 0, 2))
    assert not tr.stale
    if edited == "callee":
        m.run(INNER.format(mu=50, sigma=1))
    else:
        m.run("@gen\ndef outer():\n    return trace('other', normal(0, 1))\n")
    assert tr.stale and tr.gen_fn is model
    assert operations() == before
    assert tr.update(new).trace.stale
    assert int(tr.version) == 1 and int(model.version) == (2 if edited == "model" else 1)
    assert not model.simulate().stale
    if edited == "callee":
        assert model.assess((), new).score.item() == close(density(3, 50))


def test_a_spliced_model_redefined_makes_a_trace_stale(module):
    """The spliced body leaves no trace of its own; would catch staleness judged by sub-traces alone."""
    m = module("spliced").run(INNER.format(mu=0, sigma=1))
    m.run("@gen\ndef outer():\n    return splice(inner())\n")
    tr, _ = m.outer().generate({"x": 1.0})
    m.run(INNER.format(mu=5, sigma=1))
    assert tr.stale
    assert tr.update({"x": 2.0}).weight.item() == close(density(2, 0) - density(1, 0))


def test_stale_is_about_the_models_that_ran(module):
    m = module("unrelated").run(INNER.format(mu=0, sigma=1))
    m.run("@gen\ndef other():\n    trace('x', normal(0, 1))\n")
    tr = m.inner.simulate()
    m.run("@gen\ndef other():\n    trace('y', normal(0, 1))\n")
    assert not tr.stale


def test_an_update_that_changes_nothing_stays_pinned(module):
    m = module("same_trace").run(INNER.format(mu=0, sigma=1))
    tr, _ = m.inner().generate({"x": 1.0})
    m.run(INNER.format(mu=9, sigma=1))
    again, weight, _, _ = tr.update()
    assert weight.item() == 0.0 and again.score.item() == close(density(1, 0))


def test_parameter_gradients_are_those_of_the_pinned_version(module):
    from genmlx.params import param_gradients

    m = module("trained").run("@gen\ndef model():\n    return param('theta', 1.0) * 2\n")
    tr = m.model.simulate()
    m.run("@gen\ndef model():\n    return param('theta', 1.0) * 5\n")
    assert param_gradients(tr, 1.0)[m.model, "theta"].item() == 2.0
    assert param_gradients(m.model.simulate(), 1.0)[m.model, "theta"].item() == 5.0


def test_a_signature_change(module):
    """Acceptance 18: old traces update; a new call with the old arguments says what the signature is now."""
    m = module("arguments").run("@gen\ndef line(xs):\n    trace('a', normal(xs, 1))\n")
    old_call = m.line(1.0)
    tr, _ = old_call.generate({"a": 0.0})
    m.run("@gen\ndef line(xs, s):\n    trace('a', normal(xs, s))\n")
    assert tr.update({"a": 1.0}).weight.item() == close(0.5)
    assert tr.update(args=(2.0,)).weight.item() == close(0.5 - 2.0)
    for run in (lambda: m.line(1.0), lambda: old_call.simulate(), lambda: m.line.simulate((1.0,))):
        with pytest.raises(TypeError) as info:
            run()
        assert str(info.value).startswith("line: missing a required argument: 's'")
        assert "expected: line(xs, s)" in str(info.value)
        assert "line was redefined: this is v2" in str(info.value)
    assert m.line(1.0, 2.0).simulate().args == (1.0, 2.0)


def test_versions_count_up_and_compare(module):
    m = module("count").run(INNER.format(mu=0, sigma=1))
    first = m.inner.version
    m.run(INNER.format(mu=1, sigma=1))
    m.run(INNER.format(mu=0, sigma=1))
    assert int(m.inner.version) == 3 and m.inner.version == 3 and repr(m.inner.version) == "v3"
    assert first.digest == m.inner.version.digest and first != m.inner.version


# batches


def test_a_batch_pins_its_version(module):
    m = module("batch").run(INNER.format(mu=0, sigma=1)).run(OUTER)
    traces, _ = m.outer().vgenerate({"in": {"x": 1.0}}, 4)
    m.run(INNER.format(mu=9, sigma=1))
    assert traces.stale
    weights = traces.update({"in": {"x": 2.0}}).weight
    assert weights.tolist() == [close(density(2, 0) - density(1, 0))] * 4
    assert traces[1].update(choicemap({("in", "x"): 2.0})).weight.item() == close(density(2, 0) - density(1, 0))


def test_only_what_a_trace_ran_makes_it_stale(module):
    """A proposal runs beside the model, under the same pins; redefining it says nothing about the model's traces."""
    m = module("beside").run(INNER.format(mu=0, sigma=1)).run(OUTER)
    m.run("@gen\ndef guess(scale):\n    trace(('in', 'x'), normal(0, scale))\n")
    traces = importance_sampling(m.outer(), {}, particles=3, proposal=m.guess(1.0)).traces
    edited = m.outer.simulate(key=0).edit(Propose(m.guess(1.0), m.guess(1.0))).trace
    m.run("@gen\ndef guess(scale):\n    trace(('in', 'x'), normal(1, scale))\n")
    assert not traces.stale and not edited.stale
    m.run(INNER.format(mu=9, sigma=1))
    assert traces.stale and edited.stale


def test_a_spliced_model_makes_its_callers_traces_stale(module):
    m = module("spliced").run(INNER.format(mu=0, sigma=1))
    m.run("@gen\ndef around():\n    return splice(inner())\n")
    tr = m.around.simulate(key=0)
    assert not tr.stale
    m.run(INNER.format(mu=9, sigma=1))
    assert tr.stale
