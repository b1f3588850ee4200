"""Completion of magic lines, through IPython's own completer."""

import pytest
from IPython.core.completer import provisionalcompleter
from IPython.core.interactiveshell import InteractiveShell
from traitlets.config import Config


@pytest.fixture(scope="module")
def ip():
    config = Config()
    config.HistoryManager.enabled = False
    config.InteractiveShell.colors = "nocolor"
    config.IPCompleter.use_jedi = False
    ip = InteractiveShell(config=config)
    ip.run_line_magic("load_ext", "genmlx")
    ip.run_cell(
        "@gen\n"
        "def line(xs):\n"
        "    slope = trace('slope', normal(0, 10))\n"
        "    intercept = trace('intercept', normal(0, 10))\n"
        "    for i, x in enumerate(xs):\n"
        "        trace(('y', i), normal(slope * x + intercept, 1))\n"
        "tr = line([1.0, 2.0]).simulate()\n",
        store_history=False,
    )
    yield ip
    ip.run_line_magic("unload_ext", "genmlx")


def offered(ip, line):
    """What Tab would make of the line."""
    with provisionalcompleter():
        found = list(ip.Completer.completions(line, len(line)))
    return [line[: c.start] + c.text + line[c.end :] for c in found]


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("%infer nu", ["%infer nuts"]),
        ("post = %infer nu", ["post = %infer nuts"]),
        ("%infer nuts line(xs) | gi", ["%infer nuts line(xs) | given"]),
        ("%infer nuts line(xs) --tar", ["%infer nuts line(xs) --target-accept"]),
        ("%infer nuts line(xs) --sel slope,int", ["%infer nuts line(xs) --sel slope,intercept"]),
        ("%infer nuts line(xs) --live=h", ["%infer nuts line(xs) --live=html"]),
        ("%plot post --kind ra", ["%plot post --kind rank"]),
        ("%trace tr slo", ["%trace tr slope"]),
        ("%mem to", ["%mem toolbar"]),
    ],
)
def test_one_way_to_go_on(ip, typed, expected):
    assert offered(ip, typed) == expected


def test_every_method_is_offered(ip):
    from genmlx.inference.methods import METHODS

    assert {line.split()[-1] for line in offered(ip, "%infer ")} >= {*METHODS, "auto"}


def test_models_and_addresses_stand_among_the_names_of_python(ip):
    assert "%infer nuts line(" in offered(ip, "%infer nuts li")
    assert "%infer nuts line(xs) | given slope=" in offered(ip, "%infer nuts line(xs) | given sl")


def test_python_is_left_to_python(ip):
    assert "%infer nuts line(xs) -n len" in offered(ip, "%infer nuts line(xs) -n le")
