"""``check_laws``: what keeps the laws passes, and each way of breaking one is found under its name."""

import math

import mlx.core as mx
import pytest
from gfi_zoo import CASES

from genmlx import flip, gen, normal, trace
from genmlx.choicemap import EMPTY, choicemap
from genmlx.errors import AddressCollision, BatchError, UsageError
from genmlx.gen import GenFn
from genmlx.laws import LAWS, LawError, check_laws


@pytest.mark.parametrize("case", CASES, ids=repr)
def test_the_zoo_keeps_the_laws(case):
    results = check_laws(case.model(*case.args), n=3, key=1)
    assert results.ok, str(results)
    assert [result.law for result in results] == list(LAWS)
    assert [result.law for result in results if result.skipped] == ([] if case.batches else ["batch"])
    results.require()


def body(p):
    a = trace("a", normal(0, 2))
    b = trace("b", normal(a, 1))
    return trace("c", normal(a + b, p))


class Broken(GenFn):
    """A model in which one operation is wrong."""


def broken(name, change):
    """The body under a class whose method of this name has its result changed."""
    whole = getattr(GenFn, name)

    def method(self, *args):
        return change(whole(self, *args), *args)

    return type("Broken", (Broken,), {name: method})(body)


def wrong_discard(result, trace, args, diffs, constraints, key):
    new, weight, retdiff, discard = result
    return new, weight, retdiff, discard if constraints.is_empty else EMPTY


def whole_discard(result, trace, args, diffs, constraints, key):
    new, weight, retdiff, discard = result
    return new, weight, retdiff, discard if constraints.is_empty else trace.choices


def score_difference(result, trace, args, diffs, selection, key):
    """The acceptance ratio that counts the prior twice."""
    new, weight, retdiff = result
    return new, new.score - trace.score, retdiff


def score_difference_of_update(result, trace, args, diffs, constraints, key):
    new, weight, retdiff, discard = result
    return new, weight * 1.01, retdiff, discard


def keeps_everything(result, trace, args, diffs, selection, key):
    return (trace, 0.0, None) if selection.named() else result


def lanes_share(result, args, constraints, key):
    """Right alone, wrong where the key is that of a lane."""
    new, weight = result
    return new, weight + (0.0 if isinstance(key, (mx.array, type(None))) else 1.0)


BREAKS = [
    ("_generate", lambda r, args, constraints, key: (r[0], r[1] + 0.01), {"generate"}),
    ("_generate", lambda r, args, constraints, key: (r[0], r[0].score), {"generate"}),
    ("_generate", lanes_share, {"batch"}),
    ("_project", lambda r, trace, selection: r * 1.001, {"project", "generate", "regenerate"}),
    ("_project", lambda r, trace, selection: trace.score, {"project", "generate", "update", "regenerate"}),
    ("_update", score_difference_of_update, {"update"}),
    ("_update", wrong_discard, {"update"}),
    ("_update", whole_discard, {"update"}),
    ("_update", lambda r, *a: (a[0], r[1], r[2], r[3]), {"update"}),
    ("_update", lambda r, *a: (r[0], math.nan, r[2], r[3]), {"update"}),
    ("_update", lambda r, *a: 1 / 0, {"update"}),
    ("_regenerate", score_difference, {"regenerate"}),
    ("_regenerate", lambda r, trace, *a: (r[0], r[1] + 0.001, r[2]), {"regenerate"}),
]


@pytest.mark.parametrize(("name", "change", "laws"), BREAKS, ids=[f"{b[0]}-{i}" for i, b in enumerate(BREAKS)])
def test_what_is_broken_is_found_by_name(name, change, laws):
    results = check_laws(broken(name, change)(1.5), n=6, key=0)
    found = {result.law for result in results if not result.ok}
    assert laws <= found
    # A law that does not use the operation holds. A batch runs all of them.
    assert found - laws <= {"batch", "update"} if name == "_project" else found - laws <= {"batch"}
    with pytest.raises(LawError) as caught:
        results.require()
    assert caught.value.results is results and str(caught.value).startswith(next(r.law for r in results if not r.ok))


def test_a_score_that_is_not_that_of_the_choices():
    """A body that keeps state between runs: assess of the same choices is another number."""
    runs = [0]

    @gen
    def drifting():
        runs[0] += 1
        return trace("x", normal(runs[0], 1))

    results = check_laws(drifting(), n=2, key=0)
    assert not results[0].ok and results[0].law == "assess"
    assert "assess(choices) == score does not hold" in str(results[0].broken)


def test_the_message_has_both_numbers():
    results = check_laws(broken("_update", lambda r, *a: (r[0], r[1] + 0.5, r[2], r[3]))(1.0), n=1, key=0)
    update = results[list(LAWS).index("update")]
    assert update.broken == "update(nothing) weight == 0 does not hold: 0.5 and 0" and update.error == 0.5
    with pytest.raises(LawError, match=r"update: update\(nothing\) weight == 0 does not hold: 0.5 and 0, in body"):
        results.require()
    results = check_laws(broken("_update", lambda r, *a: {}["oops"])(1.0), n=1, key=0, laws=["update"])
    assert "it raises KeyError: 'oops' (" in str(results[0].broken) and isinstance(results[0].cause, KeyError)
    assert repr(results).startswith("1 of 1 laws broken in ")


def does_nothing(result, trace, args, diffs, constraints, key):
    return trace, 0.0, None, EMPTY


def moves_another(result, trace, args, diffs, constraints, key):
    """Sets one choice more than it was told to; weight and discard are consistent with what is given."""
    new, weight, retdiff, discard = result
    if constraints.is_empty or "c" in constraints:
        return result
    moved, _ = GenFn._generate(new.gen_fn, new.args, new.choices.set("c", 9.0), None)
    return moved, weight + moved.score - new.score, None, discard


def test_the_message_says_which_equation():
    for change, equation in ((does_nothing, "update takes what is given"), (moves_another, "update keeps what is not")):
        (update,) = check_laws(broken("_update", change)(1.5), n=20, key=0, laws=["update"])
        assert str(update.broken).startswith(equation)


def test_only_the_law_of_batches_is_skipped():
    def cannot(*args):
        raise BatchError("no batch")

    (update,) = check_laws(broken("_update", cannot)(1.5), n=1, key=0, laws=["update"])
    assert not update.ok and update.skipped is None and "it raises BatchError: no batch" in str(update.broken)


def test_observations_are_those_of_every_trace():
    """Traces come from generate: with an observation far out, the scores say so."""
    seen = []

    @gen
    def model():
        x = trace("x", normal(0, 1))
        seen.append(x.item())

    results = check_laws(model(), n=3, key=0, laws=["assess"], observations={"x": 50.0})
    assert results.ok and seen.count(50.0) >= 6


def test_laws_by_name_and_the_number_of_traces():
    results = check_laws(normal(0, 1), n=4, key=0, laws=("project", "assess"))
    assert [r.law for r in results] == ["project", "assess"] and results.traces == 4
    assert check_laws(normal(0, 1), n=1000, key=0, seconds=0.0).traces == 1
    assert repr(check_laws(normal(0, 1), n=1, key=0)).startswith("6 laws ok in ")


def test_the_same_key_gives_the_same_check():
    one, two = (check_laws(broken("_project", lambda r, *a: r * 1.001)(1.0), n=3, key=7) for _ in range(2))
    assert [(r.law, r.error, r.broken) for r in one] == [(r.law, r.error, r.broken) for r in two]


def test_a_model_that_branches_is_not_batched_and_says_so():
    @gen
    def branching():
        if trace("k", flip(0.5)):
            trace("x", normal(0, 1))
        else:
            trace("y", normal(3, 1))

    results = check_laws(branching(), n=8, key=0)
    assert results.ok and results[-1].skipped is not None and repr(results).endswith("ms, batch skipped")
    assert "batch       -             skipped: the body needs" in str(results)


def test_scores_of_many_terms_are_judged_by_their_size():
    """Ten thousand float32 terms: the sides differ in the last digits, which is no breach."""

    @gen
    def large():
        for i in range(5):
            trace(("x", i), normal(mx.zeros(2000), 1e-3))

    assert check_laws(large(), n=3, key=0).ok


def test_what_cannot_be_run_raises_its_own_error():
    @gen
    def twice():
        trace("x", normal(0, 1))
        trace("x", normal(0, 1))

    with pytest.raises(AddressCollision):
        check_laws(twice())
    for mistake in (lambda: check_laws(twice), lambda: check_laws(normal(0, 1), laws=["asess"])):
        with pytest.raises(UsageError):
            mistake()
    with pytest.raises(UsageError, match="0 traces"):
        check_laws(normal(0, 1), n=0)


def test_impossible_values_are_no_breach():
    """An update can make a trace impossible: the weights are -inf on both sides."""
    from genmlx import uniform

    @gen
    def shrinking():
        top = trace("top", uniform(0.1, 1))
        trace("x", uniform(0, top))

    assert check_laws(shrinking(), n=20, key=3).ok
    assert choicemap({"x": 2.0})["x"] == 2.0


def test_a_body_with_random_numbers_of_its_own_is_told_so():
    @gen
    def model():
        trace("y", normal(mx.random.normal(), 1))

    with pytest.raises(LawError, match="no random numbers or state of its own"):
        check_laws(model(), n=3, key=0).require()
