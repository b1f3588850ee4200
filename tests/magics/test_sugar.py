"""``NAME ~ EXPRESSION`` as Python, without a shell."""

import ast
import textwrap

import pytest

from magics.sugar import ALONE, FORMS, infix_tildes, parse


def tree(source):
    return ast.unparse(parse(textwrap.dedent(source), "<cell>"))


@pytest.mark.parametrize(
    ("sugar", "python"),
    [
        ("x ~ normal(0, 1)", "x = trace('x', normal(0, 1))"),
        ("x~normal(0, 1)", "x = trace('x', normal(0, 1))"),
        ("y[i] ~ normal(x, 1)  # a ~ comment", "trace(('y', i), normal(x, 1))"),
        ("y[i, j + 1] ~ f(a)", "trace(('y', i, j + 1), f(a))"),
        ("y[*at] ~ f(a)", "trace(('y', *at), f(a))"),
        ("x ~ normal(\n    0,  # the mean\n    1,\n)", "x = trace('x', normal(0, 1))"),
        ("x ~ \\\n  normal(0, 1)", "x = trace('x', normal(0, 1))"),
        ("a = ~b; x ~ f(~a); c = not ~b", "a = ~b\nx = trace('x', f(~a))\nc = not ~b"),
        ("é = 'é~é'; ü ~ f('~')", "é = 'é~é'\nü = trace('ü', f('~'))"),
        ("def f(n):\n  for i in range(n):\n    if i: pass\n    else:\n      y[i] ~ g(i)", None),
        ("with a as b:\n  x ~ f(b)\ntry:\n  y ~ f(b)\nexcept E:\n  z ~ f(b)\nfinally:\n  w ~ f(b)", None),
        ("text = '''\nx ~ f\n'''", None),
        ("text = f'{a}~{b:~>3}~'", "text = f'{a}~{b:~>3}~'"),
    ],
)
def test_what_it_means(sugar, python):
    if python is None:
        python = ast.unparse(ast.parse(API[sugar.split("\n")[0]]))
    assert tree(sugar) == python


API = {
    "def f(n):": "def f(n):\n  for i in range(n):\n    if i: pass\n    else:\n      trace(('y', i), g(i))",
    "with a as b:": (
        "with a as b:\n  x = trace('x', f(b))\ntry:\n  y = trace('y', f(b))\n"
        "except E:\n  z = trace('z', f(b))\nfinally:\n  w = trace('w', f(b))"
    ),
    "text = '''": "text = '''\nx ~ f\n'''",
}


def test_lines_and_columns_stay():
    """Would catch a rewrite that joins the lines of a long right-hand side, or shifts what stands behind."""
    source = "if a:\n  x ~ normal(\n    b,\n    c)  # d\n  e = f(x)\n"
    names = {n.id: (n.lineno, n.col_offset) for n in ast.walk(parse(source, "<cell>")) if isinstance(n, ast.Name)}
    assert {n: names[n] for n in "abcef"} == {"a": (1, 3), "b": (3, 4), "c": (4, 4), "e": (5, 2), "f": (5, 6)}


def test_the_same_instructions_as_with_trace():
    """A cell that goes from one way of writing to the other is unchanged."""
    from genmlx.digest import digest

    found = []
    for body in ("x ~ f(1)\n  y[0] ~ f(x)", 'x = trace("x", f(1))\n  trace(("y", 0), f(x))'):
        names: dict = {}
        exec(compile(parse(f"def m():\n  {body}\n  return x", "<cell>"), "<cell>", "exec"), names)
        found.append(digest(names["m"]))
    assert found[0] == found[1]


@pytest.mark.parametrize(
    ("source", "message", "under"),
    [
        ("if x: k ~ flip(0.3)", ALONE, "~"),
        ("if x: a = 1; k ~ flip(0.3)", ALONE, "~"),
        ("for i in r: y[i] ~ f(i)", ALONE, "~"),
        ("if x:\n  pass\nelse: k ~ f(0)", ALONE, "~"),
        ("try:\n  pass\nexcept E: k ~ f(0)", ALONE, "~"),
        ("match x:\n  case 1: k ~ f(0)", ALONE, "~"),
        ("if (a and\n    b): k ~ f(0)", ALONE, "~"),
        ("f(a ~ b)", FORMS, "~"),
        ("def f(a ~ b): pass", FORMS, "~"),
        ("a.b ~ f()", FORMS, "~"),
        ("y[i][j] ~ f()", FORMS, "~"),
        ("a, b ~ f()", FORMS, "~"),
        ("a ~ b ~ f()", FORMS, "~"),
        ("a = b ~ f()", FORMS, "~"),
        ("a: int ~ f()", FORMS, "~"),
        ("a ~= 3", FORMS, "~"),
        ("f(a) ~ g()", FORMS, "f"),
        ("None ~ g()", FORMS, "N"),
        ("y[1:2] ~ f()", "an address has no slices", "~"),
        ("trace ~ f()", "a choice named trace hides the trace that ~ stands for", "~"),
        ("x ~ f(1,\n  2", "'(' was never closed", "("),
        ("x ~ f(1 2)", "invalid syntax. Perhaps you forgot a comma?", "1"),
        ("x ~", "invalid syntax", ""),
    ],
)
def test_what_is_wrong_is_said_at_its_place(source, message, under):
    with pytest.raises(SyntaxError) as caught:
        parse(source, "<cell>")
    error = caught.value
    assert error.msg == message and error.filename == "<cell>"
    text = source.split("\n")[(error.lineno or 0) - 1]
    assert (error.text or "").rstrip("\n") == text  # as it was written, with its ~
    assert text[(error.offset or 0) - 1 :][: len(under)] == under


def test_a_tilde_between_expressions():
    assert infix_tildes("a ~ b\n~a\nc = [~a,\n~b]\nreturn ~x\n(y) ~ z\ny[0] ~ z\n'~' \n") == [(1, 2), (6, 4), (7, 5)]
