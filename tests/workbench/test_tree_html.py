"""Trees as HTML: well formed, escaped, small, the same facts as the text; and what IPython is given to show."""

import math
import re
from html.parser import HTMLParser

import mlx.core as mx
import pytest
from IPython.lib.pretty import pretty

from genmlx import choicemap, gen, normal, trace
from workbench.render.block import Block
from workbench.render.html import BYTES, tree_html
from workbench.render.spark import svg
from workbench.render.text import tree_text
from workbench.render.tree import Look, Tree

VOID = {"rect", "circle", "polyline", "br"}


class Checked(HTMLParser):
    """Raises on an end tag that does not match; keeps the text and the tags."""

    def __init__(self, text):
        super().__init__()
        self.open, self.seen, self.words, self.titles = [], [], [], []
        self.feed(text)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag, attrs):
        self.seen.append(tag)
        self.titles += [value for name, value in attrs if name == "title"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.seen.append(tag)

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.words.append(data)


@gen
def model(n, name="<b>"):
    mu = trace("mu", normal(0, 1))
    for i in range(n):
        trace(("y", i), normal(mu, 1))
    trace("v", normal(mx.zeros((50,)), 1.0))
    trace(("a<b", "c&d"), normal(0, 1))
    return mu


def test_a_trace():
    tr = model(6).simulate(key=mx.random.key(0))
    page = Checked(tree_html(Tree(tr)))
    assert page.seen.count("details") == 2 and page.seen.count("svg") == 2 and "script" not in page.seen
    assert {"mu", "y", "y[3]", "v", "('a<b', 'c&d')"} <= set(page.titles)
    words = " ".join("".join(page.words).split())
    assert "'<b>'" in words and "'c&d'" in words
    # Every cell of the text is there too.
    for row in tree_text(Tree(tr, Look(rows=40))).splitlines():
        for cell in re.split(r"   +|[├└│─]+ ", row):
            if cell.strip() and not re.search("[▁▂▃▄▅▆▇█]", cell):
                assert " ".join(cell.split()) in words, cell


def test_what_is_addressed_by_markup_is_escaped():
    cm = choicemap({"<script>alert(1)</script>": 1.0, 'quo"te': "<img src=x>"})
    text = tree_html(Tree(cm))
    assert "<script>" not in text and "<img" not in text
    assert 'quo"te' in "".join(Checked(text).words)
    assert Block("<head>", ((" ", "<a>", "&", ""),), ("<foot>",)).html().count("&lt;") == 3


@pytest.mark.parametrize("n", [150, 5000])
def test_the_size_is_bounded(n):
    wide = choicemap({f"a_rather_long_name_for_a_choice_{i}": mx.arange(20) + i for i in range(n)})
    deep = choicemap({("a", i % 7, f"b{i}", "c"): mx.arange(20.0) for i in range(n)})
    for cm in (wide, deep, model(n).simulate(key=mx.random.key(0))):
        text = tree_html(Tree(cm, Look(rows=n)))
        assert len(text.encode()) <= BYTES
        Checked(text)
        assert n < 200 or re.search(r"\.\.\. [\d,]+ more", text)


def test_sparks_without_numbers():
    for values in ([], [math.nan], [math.inf, -math.inf], [1.0], [1.0, math.nan, 3.0], [2.0] * 500):
        for bars in (False, True):
            drawn = svg(values, bars)
            Checked(drawn)
            assert not re.search("nan|inf", drawn)


def test_what_ipython_is_given():
    tr = model(2).simulate(key=mx.random.key(0))
    for thing in (tr, tr.choices, model(2).vsimulate(3, key=mx.random.key(0))):
        bundle = thing._repr_mimebundle_()
        assert bundle["text/plain"] == tree_text(Tree(thing)) and "\x1b" not in bundle["text/plain"]
        assert Checked(bundle["text/html"])
        assert "\n" not in repr(thing)
        assert pretty(thing) == bundle["text/plain"]
        assert pretty({"a": thing}).count("\n") <= 1 and "├" not in pretty({"a": thing})
