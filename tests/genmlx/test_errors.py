"""What errors say. First line: what and where; second: what was expected; third: what to try."""

import math
import pathlib
import pickle

import mlx.core as mx
import pytest

from genmlx import GenError, bernoulli, choicemap, gen, normal, param, select, splice, trace
from genmlx import errors as all_errors
from genmlx.errors import (
    AddressCollision,
    AddressError,
    BatchError,
    ImpossibleObservation,
    MissingChoice,
    ParameterError,
    UnknownAddress,
    UsageError,
    ValueMismatch,
    caller_line,
    nearest,
    one_of,
    show_address,
    show_addresses,
)
from genmlx.inference import mh

SOURCE = pathlib.Path(__file__).read_text().splitlines()


def here(marker):
    """``file:line`` of the one line of this file that ends in a marker."""
    found = [i for i, text in enumerate(SOURCE, start=1) if text.endswith(f"# {marker}")]
    assert len(found) == 1, (marker, found)
    return f"{__file__}:{found[0]}"


def message(kind, run):
    with pytest.raises(kind) as info:
        run()
    assert type(info.value) is kind
    return str(info.value)


@gen
def inner(mu):
    return trace("x", normal(mu, 1.0))  # inner x


@gen
def model(p):
    trace("slope", normal(0.0, 1.0))  # model slope
    trace("part", inner(0.0))  # model part
    trace("flag", bernoulli(p))  # model flag


@gen
def twice():
    trace("y", normal(0.0, 1.0))  # y first
    trace("y", normal(0.0, 1.0))  # y second


@gen
def under():
    trace("y", normal(0.0, 1.0))  # y leaf
    trace(("y", 1), normal(0.0, 1.0))  # y below


@gen
def over():
    trace(("y", 1, 2), normal(0.0, 1.0))  # y long
    trace(("y", 1), normal(0.0, 1.0))  # y short


@gen
def negative(sigma):
    trace("x", normal(0.0, sigma))  # bad sigma


@gen
def hosted():
    x = trace("x", normal(0.0, 1.0))
    trace("y", normal(0.0, 1.0 if x > 0 else 2.0))  # host value


CALL = model(0.5)


def test_unknown_address_of_a_constraint():
    assert message(UnknownAddress, lambda: CALL.generate({"slop": 1.0})) == (  # generate slop
        f"constraint names an address that the run never visits: at 'slop' in model ({here('generate slop')})\n"
        "expected: one of 'slope', ('part', 'x'), 'flag'\n"
        "did you mean 'slope'? try: correct the address, or pass strict=False to ignore it"
    )


def test_unknown_address_of_a_selection():
    tr = CALL.simulate()
    assert message(UnknownAddress, lambda: tr.project(select(("part", "y")))) == (  # project part
        f"selection names an address that the run never visits: at ('part', 'y') in model ({here('project part')})\n"
        "expected: one of 'slope', ('part', 'x'), 'flag'\n"
        "did you mean ('part', 'x')? try: correct the address, or pass strict=False to ignore it"
    )


def test_unknown_address_of_a_choice_map():
    cm = choicemap(slope=1.0)
    assert message(UnknownAddress, lambda: cm["slpoe"]) == (  # read slpoe
        f"no choice at 'slpoe' ({here('read slpoe')})\nexpected: one of 'slope'\ndid you mean 'slope'?"
    )
    assert message(UnknownAddress, lambda: choicemap()["a"]) == (  # read a
        f"no choice at 'a' ({here('read a')})\nexpected: no address: there are no choices"
    )


def test_missing_choice():
    assert message(MissingChoice, lambda: CALL.assess({"slope": 1.0})) == (
        f"no value is given at ('part', 'x') in model ({here('inner x')})\n"
        "expected: a value of normal\n"
        "try: give it in the choice map, or use generate, which draws what is not given"
    )


@pytest.mark.parametrize(
    "run, what, address, second",
    [
        (twice, "two choices share an address (first traced at {})", ("y first", "'y'"), "y second"),
        (
            under,
            "'y' is already a choice (traced at {}): nothing can lie under it,",
            ("y leaf", "('y', 1)"),
            "y below",
        ),
        (over, "an address is a prefix of ('y', 1, 2) (traced at {})", ("y long", "('y', 1)"), "y short"),
    ],
)
def test_collision(run, what, address, second):
    first, shown = address
    assert message(AddressCollision, run().simulate) == (
        f"{what.format(here(first))} at {shown} in {run.__name__} ({here(second)})\n"
        "expected: each address once in a run\n"
        "try: name them apart, as ('y', 0), ('y', 1)"
    )


def test_address_error_of_a_sub_map():
    assert message(AddressError, lambda: CALL.generate({"slope": {"x": 1.0}})) == (
        f"a sub-map is given where normal has one value: at 'slope' in model ({here('model slope')})\n"
        "expected: a number or an array\n"
        "try: remove what lies below: ('x',)"
    )


def test_address_error_of_a_leaf():
    lines = message(AddressError, lambda: CALL.generate({"part": 1.0})).split("\n")
    assert (
        lines[0] == f"a value is given where a model has a sub-map of choices at 'part' in model ({here('model part')})"
    )
    assert lines[1] == "expected: a choice map or a dict, one level down"


def test_address_error_of_what_is_no_address():
    assert message(AddressError, lambda: select(("y", mx.array(1)))) == (  # select array
        f"('y', array(1, dtype=int32)) is not an address ({here('select array')})\n"
        "expected: a string, an integer, or a tuple of them\n"
        "try: addresses are fixed names: use a Python int for an index, not an array or a bool"
    )


def test_address_error_of_maps_that_do_not_go_together():
    assert message(AddressError, lambda: choicemap(a=1) | {("a", 1): 1}) == (  # merge a
        f"one choice map has a value where the other has a sub-map: at 'a' ({here('merge a')})\n"
        "expected: a value in both, or a sub-map in both\n"
        "try: take one of them out with .without(select(...)) first"
    )
    assert message(AddressError, lambda: choicemap({"a": 1, ("a",): 2})) == (  # twice a
        f"a choice map names a choice twice, or a choice and something under it: at 'a' ({here('twice a')})\n"
        "expected: each address once, and nothing under a choice\n"
        "try: leave one of them out"
    )


def test_parameter_error():
    """The line is that of the bad parameter, in the body of whichever model it is."""
    text = message(ParameterError, lambda: negative(-1.0).simulate())
    assert text.split("\n")[0] == f"normal: sigma must be positive, got -1.0 in negative ({here('bad sigma')})"
    text = message(ParameterError, lambda: CALL.vsimulate(0))  # no traces
    assert text == f"a batch of 0 traces in model ({here('no traces')})\nexpected: a whole number, at least 1"


def test_value_mismatch():
    assert message(ValueMismatch, lambda: CALL.generate({("part", "x"): mx.zeros(3)})) == (
        f"f32[3] is not a value of this normal: at ('part', 'x') in model ({here('inner x')})\n"
        "expected: a number\n"
        "try: a vector of observations needs a parameter of that shape, or one address for each"
    )
    assert message(ValueMismatch, lambda: CALL.generate({"slope": math.nan})) == (  # nan
        f"the given value is or holds a NaN at 'slope' in model ({here('nan')})\n"
        "expected: numbers\n"
        "try: leave missing observations out of the choice map: they are then inferred"
    )
    assert message(ValueMismatch, lambda: CALL.simulate().choice_gradients("flag")).startswith(  # discrete
        f"a discrete choice has no gradient at 'flag' in model ({here('discrete')})\n"
        "expected: a selection of continuous choices"
    )


def test_impossible_observation():
    assert message(ImpossibleObservation, lambda: mh(CALL, {"flag": 2})) == (  # impossible
        f"the observed value 2 has density zero at 'flag' in model ({here('impossible')})\n"
        "expected: a value inside the support of its distribution in model\n"
        "try: correct the observation, or a distribution whose support holds it"
    )


@pytest.mark.parametrize("what", ["batched", "differentiated"])
def test_batch_error(what):
    run = (lambda: hosted().vsimulate(3)) if what == "batched" else lambda: hosted().simulate().choice_gradients("x")
    assert message(BatchError, run) == (
        f"the body needs the host value of a choice or an argument, and cannot be {what} "
        f"in hosted ({here('host value')})\n"
        "expected: no if, while, float(), .item() or range() on a traced value\n"
        "try: mx.where(condition, a, b), or the combinators switch and mask; a single trace may branch freely"
    )


def test_usage_error():
    assert message(UsageError, lambda: trace("x", normal(0, 1))) == (  # outside
        f"trace was called outside of a model ({here('outside')})\n"
        "expected: a call inside the body of a @gen function\n"
        "try: run the model with model(args).simulate(); a draw alone is normal(0, 1).sample()"
    )
    assert message(UsageError, lambda: splice(inner)) == (  # not a call
        f"splice was given inner, not a call ({here('not a call')})\n"
        "expected: a distribution or a model applied to its arguments, as normal(0, 1)\n"
        "try: inner(...)"
    )
    assert message(UsageError, lambda: param("theta", 1.0)) == (  # no owner
        f"param('theta') outside of a model ({here('no owner')})\n"
        "expected: a call inside the body of a @gen function\n"
        "try: read or set a parameter outside of it with model.params[name]"
    )
    assert message(UsageError, lambda: model.params["theta"]) == (  # no parameter
        f"no parameter 'theta' yet ({here('no parameter')})\n"
        "expected: a parameter that was read\n"
        "try: run the model once, which declares what it reads, or set the parameter"
    )
    assert message(UsageError, lambda: model()) == (  # no argument
        f"model: missing a required argument: 'p' ({here('no argument')})\nexpected: model(p)"
    )
    assert message(UsageError, lambda: choicemap(a=1).merge(3)) == (  # merge number
        f"int is not a choice map ({here('merge number')})\nexpected: a choice map or a dict of choices"
    )
    assert message(UsageError, lambda: choicemap(a=mx.zeros(2)).batched(3)) == (  # lanes
        f"the leaf has no 3 lanes on axis 0 at 'a' ({here('lanes')})\nexpected: an array of shape [3, ...]"
    )
    assert message(UsageError, lambda: CALL.simulate(key="k")) == (  # key
        f"'k' is not a key in model ({here('key')})\nexpected: mx.random.key(seed), an integer seed, or None"
    )


# the classes


CLASSES = [c for c in vars(all_errors).values() if isinstance(c, type) and issubclass(c, GenError)]


@pytest.mark.parametrize("kind", CLASSES)
def test_every_error_is_a_gen_error_with_its_facts(kind):
    """Errors subclass GenError and carry address, gen_fn, suggestions; here also through a pickle."""
    error = kind("what", address=("y", 3), gen_fn=None, expected="that", hint="this", suggestions=[("y", 2)])
    assert error.address == ("y", 3) and error.suggestions == (("y", 2),) and error.gen_fn is None
    text = str(error)
    assert text.split("\n")[1:] == ["expected: that", "did you mean ('y', 2)? try: this"]
    assert text.startswith(f"what at ('y', 3) ({__file__}:") and "'what" not in text
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is kind and str(again) == text and again.where == error.where
    assert kind.__doc__


@pytest.mark.parametrize(
    "kind, builtin",
    [
        (UnknownAddress, KeyError),
        (MissingChoice, KeyError),
        (AddressCollision, ValueError),
        (AddressError, TypeError),
        (ParameterError, ValueError),
        (ValueMismatch, ValueError),
        (ImpossibleObservation, ValueError),
        (BatchError, ValueError),
        (UsageError, TypeError),
    ],
)
def test_the_builtin_that_one_would_catch(kind, builtin):
    assert issubclass(kind, builtin) and set(CLASSES) >= {kind}


def test_the_model_is_the_one_that_the_address_starts_from():
    """An error from two levels down names the outermost model, and the whole address from there."""

    @gen
    def outermost():
        trace("all", model(0.5))

    with pytest.raises(MissingChoice) as info:
        outermost().assess({"all": {"slope": 0.0}})
    assert info.value.gen_fn is outermost and info.value.address == ("all", "part", "x")
    assert info.value.where == here("inner x")


# the parts


def test_nearest_takes_case_lightly():
    assert nearest(("Y",), [("x",), ("y",)]) == [("y",)]
    assert nearest(("Slope",), [("lope",), ("slope",)])[0] == ("slope",)
    assert nearest(("Y", 3), [("y", 3), ("y", 4)])[0] == ("y", 3)


def test_nearest():
    """Would catch suggestions by prefix alone, an unsorted list, and one for something altogether different."""
    known = [("slope",), ("intercept",), ("y", 0), ("y", 1), ("y", 10)]
    assert nearest(("slop",), known) == [("slope",)]
    assert nearest(("intercpt",), known) == [("intercept",)]
    assert nearest(("y", 11), known)[0] in {("y", 1), ("y", 10)}
    assert nearest(("zzz",), known) == []
    assert nearest(("a",), []) == []
    assert len(nearest(("y", 2), known)) <= 2
    assert nearest(("y", "0"), known)[0] == ("y", 0)


def test_showing_addresses():
    assert show_address(("slope",)) == "'slope'" and show_address(("y", 3)) == "('y', 3)" and show_address((0,)) == "0"
    many = [("y", i) for i in range(20)]
    assert show_addresses(many, limit=2) == "('y', 0), ('y', 1), ... 18 more"
    assert show_addresses(many[:2], limit=2) == "('y', 0), ('y', 1)"
    assert one_of(iter(many[:1])) == "one of ('y', 0)" and one_of([]) == "no address: there are no choices"


def test_the_callers_line():
    assert caller_line() == here("caller")  # caller
