"""The grammar alone: where a line is cut, and what the carets say."""

import pytest
from IPython.core.error import UsageError

from magics.grammar import Line, help_text
from magics.specs import INFER, SPECS, TRACE, WHERE


def test_a_full_line():
    head = 'nuts line(xs[:3], name="a | b")'
    text = head + ' | given y=ys, ("z", 0)=[1, 2], {"q": 3} -n 2*500 --sel slope, y[3] -o post;  # a comment'
    line = Line(INFER, text)
    assert [piece.text for piece in line.words] == ["nuts", 'line(xs[:3], name="a | b")'] and line.silent
    names = {"ys": 3.0}
    assert line.value("draws", names) == 1000 and line.word("out") == "post"
    assert line.addresses("sel", names) == [("slope",), ("y", 3)]
    assert line.observations(names).to_dict() == {("y",): 3.0, ("z", 0): [1, 2], ("q",): 3}


@pytest.mark.parametrize(
    ("text", "message", "under"),
    [
        ("nuts line(xs", "'(' is not closed", "("),
        ("nuts line(xs)]", "']' closes nothing", "]"),
        ("nuts line('a)", "a string is not closed", "'"),
        ("nuts line(xs) --drws 3", "infer has no option --drws; did you mean '--draws'?", "--drws"),
        ("nuts line(xs) -n", "-n needs a value: E", "-n"),
        ("nuts line(xs) -n 3 --draws 4", "--draws is given twice", "--draws"),
        ("nuts line(xs) --live=txt", "--live is one of auto, text, html, mpl, off; did you mean 'text'?", "txt"),
        ("nuts line(xs) -o 3x", "-o needs a name, not '3x'", "3x"),
        ("nuts line(xs) -q=1", "-q takes no value", "-q=1"),
        ("nuts line(xs) | y=3", "after | comes given", "y=3"),
        ("nuts line(xs) | given -n 3", "given: nothing follows", "given"),
    ],
)
def test_mistakes_show_their_place(text, message, under):
    with pytest.raises(UsageError) as caught:
        Line(INFER, text)
    first, shown, carets = str(caught.value).split("\n")
    assert first == message and shown == f"    %infer {text}"
    start = carets.index("^")
    assert shown[start : start + carets.count("^")] == under


def test_names_that_do_not_exist():
    line = Line(INFER, "nuts line(xs) | given y=yys")
    with pytest.raises(UsageError, match="name 'yys' is not defined; did you mean 'ys'") as caught:
        line.observations({"ys": 1})
    assert str(caught.value).endswith(" " * 31 + "^^^")


def test_negative_numbers_comparisons_and_keywords_are_expressions():
    line = Line(INFER, "mh m(x == 3, y=-4) | given a=b == c --step -0.5 -n -5")
    assert line.words[1].text == "m(x == 3, y=-4)" and line.value("step", {}) == -0.5
    assert line.observations({"b": 1, "c": 1}).to_dict() == {("a",): True} and line.value("draws", {}) == -5


def test_words_apart_and_together():
    line = Line(TRACE, "a if b else c --max 3")
    assert [w.text for w in line.words] == ["a", "if", "b", "else", "c"]
    assert line.evaluate(line.rest(0), {"a": 1, "b": 0, "c": 2}) == 2


def test_the_table_is_whole():
    assert SPECS.keys() == WHERE.keys()
    for spec in SPECS.values():
        flags = [flag for option in spec.all_options for flag in option.flags]
        assert len(set(flags)) == len(flags) and all(flag in help_text(spec) for flag in flags)
        for example in spec.examples:
            Line(spec, example.removeprefix(spec.mark + spec.name).strip())
