"""What bodies say before they run: their sites as written, and the models that they call."""

import sys
import types

import mlx.core as mx
import pytest

import genmlx
from genmlx import flip, gen, map_over, normal, splice, switch, trace
from genmlx.schema import callees, callers, changes, describe, schema, schema_of

here = genmlx


@gen
def inner(a):
    return trace("x", normal(a, 1.0))


@gen
def every(xs, address="q"):
    """Every way to write a site."""
    a = trace("a", normal(0, 10))
    normal(a, 1.0) @ "b"
    for i, x in enumerate(xs):
        trace(("y", i), normal(a * x, 1))
        normal(a, 1) @ ("z", i, 0)
    if a > 0:
        trace("c", flip(0.5))
    else:
        here.trace(address="c", call=normal(0, 2))
    trace(address, flip(0.1))
    inner(1.0) @ address
    trace(f"d{a}", inner(a))
    trace(3, flip(0.2))
    trace((*xs, "e"), flip(0.3))
    splice(inner(trace("deep", normal(0, 1))))
    mx.trace(mx.eye(2)), mx.eye(2) @ mx.eye(2), xs.trace("no", 1) if False else 0
    return [trace(("w", j), flip(0.4)) for j in range(2)]


WANT = [
    ("a", "normal(0, 10)", ("a",)),
    ("b", "normal(a, 1.0)", ("b",)),
    ('("y", i)', "normal(a * x, 1)", ("y", None)),
    ('("z", i, 0)', "normal(a, 1)", ("z", None, 0)),
    ("c", "flip(0.5)", ("c",)),
    ("c", "normal(0, 2)", ("c",)),
    ("address", "flip(0.1)", None),
    ("address", "inner(1.0)", None),
    ("f'd{a}'", "inner(a)", None),
    ("3", "flip(0.2)", (3,)),
    ('(*xs, "e")', "flip(0.3)", None),
    ("deep", "normal(0, 1)", ("deep",)),
    ('("w", j)', "flip(0.4)", ("w", None)),
]


def test_every_way_to_write_a_site():
    found = schema(every)
    assert found is not None and [tuple(site) for site in found.sites] == WANT
    assert found.spliced == ("inner(trace('deep', normal(0, 1)))",)
    assert str(found) == (
        '5 static + ("y", i), ("z", i, 0), address + 3 more dynamic'
        " + those of inner(trace('deep', normal(0, 1))) sites"
    )
    assert found.texts()["c"] == "flip(0.5) | normal(0, 2)"


def test_the_site_of_an_address():
    found = schema(every)
    assert found is not None
    addresses = [("y", 3), ("a",), ("z", 1, 0), ("z", 1, 1), ("y",), (3,)]
    assert {a: s and s.call for a in addresses for s in [found.find(a)]} == {
        ("y", 3): "normal(a * x, 1)",
        ("a",): "normal(0, 10)",
        ("z", 1, 0): "normal(a, 1)",
        ("z", 1, 1): None,
        ("y",): None,
        (3,): "flip(0.2)",
    }


def test_what_is_called_trace_elsewhere_is_no_site():
    """The names mean what they mean in the body: a parameter, a closure, another library's function."""
    local = trace
    other = mx.trace

    @gen
    def model(trace):
        local("a", flip(0.5))
        other("b", flip(0.5))
        trace("c", flip(0.5))

    found = schema(model)
    assert found is not None and [site.address for site in found.sites] == ["a"]


def test_a_lambda():
    model = gen(lambda p: trace("k", flip(p)))
    assert str(schema(model)) == "1 static site" and str(schema(gen.new(lambda: 3))) == "no sites"


def test_source_that_is_that_of_a_later_edit_is_not_read(tmp_path):
    """Would catch a schema of whatever now stands in the lines that the function had."""
    path = tmp_path / "models.py"
    names = {"trace": trace, "flip": flip, "normal": normal, "gen": gen, "__name__": "models"}

    def define(text):
        path.write_text(text)
        exec(compile(text, str(path), "exec"), names)

    define("@gen\ndef model():\n    trace('x', normal(0, 1))\n")
    first = names["model"].version
    path.write_text("@gen\ndef model():\n    trace('y', flip(0.5))\n")
    assert schema_of(first.function) is None  # asked for only now
    define("@gen\ndef model():\n    trace('x', normal(0, 2))\n")
    assert schema(names["model"]).texts() == {"x": "normal(0, 2)"}
    before = schema(names["model"])
    path.write_text("")
    assert schema(names["model"]) is before  # kept since it was read
    path.unlink()
    exec(compile("@gen\ndef model():\n    trace('z', flip(0.5))\n", "<nowhere>", "exec"), names)
    assert schema(names["model"]) is None and describe(names["model"]).startswith("model v3   <nowhere>:1")


def test_changes():
    def of(body):
        names = {"trace": trace, "splice": splice, "a": 1}
        exec(f"def f(): {body}", names)
        import ast

        from genmlx.schema import read

        return read(names["f"], ast.parse(f"def f(): {body}").body[0])

    old = of("trace('a', n(0)); trace(('y', a), n(1)); trace('c', n(2)); splice(g(1))")
    new = of("trace('a', n(0)); trace(('y', a), n(5)); trace('b', n(2)); splice(g(2))")
    assert changes(old, new) == [
        '("y", a) ~ n(1) -> n(5)', "+ b ~ n(2)", "- c ~ n(2)", "+ splice(g(2))", "- splice(g(1))"
    ]  # fmt: skip
    assert changes(old, old) == [] and changes(None, new) == []


def test_describe():
    assert describe(inner).splitlines()[0].startswith("inner v1   ") and "test_schema.py:" in describe(inner)
    assert describe(inner).splitlines()[1:] == ["x  normal(a, 1.0)"]
    assert describe(every).splitlines()[-2:] == ["", "Every way to write a site."]


# who calls whom

many = map_over(inner)
table = {"one": [inner], "two": 3}


def helper(x):
    return trace("h", inner(x))


@gen
def through_combinator():
    trace("xs", many([1.0, 2.0]))


@gen
def through_table():
    trace("t", table["one"][0](1.0))


@gen
def through_helper():
    return [helper(x) for x in (1.0,)]


@gen
def through_module():
    trace("m", sys.modules and here_models.inner(1.0))


@gen
def through_another():
    trace("a", through_helper())


@gen
def beside():
    inner_ = 3
    return trace("b", normal(inner_, 1))


here_models = types.ModuleType("here_models")
here_models.inner = inner  # type: ignore[attr-defined]


@pytest.mark.parametrize("model", [through_combinator, through_table, through_helper, through_module, through_another])
def test_callees(model):
    assert inner in callees(model) and normal not in callees(model)


def test_callers():
    def factory():
        local = switch(inner, inner)

        @gen
        def made(k):
            return [trace("s", local(k, 1.0)) for _ in range(1)]

        return made

    made = factory()
    known = callers(inner, [made])
    assert {m.__name__ for m in known if m.__module__ == __name__} == {
        "every", "through_combinator", "through_table", "through_helper", "through_module", "through_another", "made"
    }  # fmt: skip
    assert callees(beside) == [] and callers(through_another) == []
    assert callees(many) == [inner]


def test_a_model_that_calls_itself_is_found_once():
    @gen
    def tree(n):
        return n and trace("left", tree(n - 1))

    assert callees(tree) == [] and callers(tree, [tree]) == []
