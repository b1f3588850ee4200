"""A long sequence run as a whole must be the sequence run step by step: same densities, same laws, same gradients."""

import mlx.core as mx
import numpy as np
import pytest
from scipy import stats

from genmlx import categorical, choicemap, flip, gen, map_over, normal, param, scan, select, trace, unfold, vmap
from genmlx.combinators import whole
from genmlx.params import param_gradients

N = 75  # four chunks of sixteen and eleven single steps
runs = [0]


@gen
def walk(t, x, a, b):
    runs[0] += 1
    z = trace("x", normal(x * a + b, 1.0))
    trace("y", normal(z, 0.5))
    return z


@gen
def pair(t, state):
    level, slope = state["level"], state["slope"]
    slope = trace("slope", normal(slope, 0.1))
    level = trace("level", normal(level + slope, mx.array([0.5, 1.0])))
    return {"level": level, "slope": slope}


@gen
def regime(t, k):
    k = trace("k", categorical(mx.where(k == 0, mx.array([2.0, 0.0]), mx.array([0.0, 1.0]))))
    trace("y", normal(k * 3.0, 1.0))
    return k


@gen
def cumulate(carry, x):
    carry = carry + trace("step", normal(x, 1.0))
    return carry, 2 * carry


@gen
def each(x, y):
    return trace("z", normal(x + y, 1.0))


XS = mx.linspace(-1, 1, N)
CASES = {
    "unfold": (unfold(walk), (N, 0.1, 0.9, 0.3), (N, 0.4, 0.8, 0.3)),
    "unfold_tree": (unfold(pair), (N, {"level": mx.zeros((2,)), "slope": 0.0}), None),
    "unfold_discrete": (unfold(regime), (N, 0), (N, 1)),
    "scan_array": (scan(cumulate), (0.5, XS), (1.0, XS + 1)),
    "scan_list": (scan(cumulate), (0.5, XS.tolist()), None),
    "map_over": (map_over(each), (XS, XS.tolist()), (XS + 1, XS.tolist())),
    "nested": (unfold(unfold_of_vmap := gen.new(lambda t, x: trace("v", vmap(each)(x, x)))), (N, mx.zeros((3,))), None),
}


@pytest.fixture(params=CASES, ids=str)
def case(request):
    return CASES[request.param]


@pytest.fixture
def step_by_step(monkeypatch):
    """Inside the context, nothing is run as a whole."""

    class Off:
        def __enter__(self):
            monkeypatch.setattr(whole, "LEAST", 10**9)

        def __exit__(self, *_):
            monkeypatch.setattr(whole, "LEAST", 32)

    return Off()


def close(a, b, scale=N):
    return abs(float(a) - float(b)) < 1e-6 * scale * 20


def same_tree(a, b):
    import optree

    from genmlx.pytree import NAMESPACE

    x, y = (optree.tree_leaves(t, namespace=NAMESPACE) for t in (a, b))
    return len(x) == len(y) and all(np.allclose(p, q, atol=1e-4) for p, q in zip(x, y, strict=True))


def test_it_is_run_as_a_whole():
    """The kernel is traced a fixed number of times, however long the sequence."""
    counts = []
    for n in (100, 1000):
        runs[0] = 0
        mx.eval(unfold(walk).simulate((n, 0.1, 0.9, 0.3), key=0).score)
        counts.append(runs[0])
    assert counts[1] <= counts[0] < 50


def test_scores_agree_with_the_steps(case, step_by_step):
    """assess and generate of the same choices, retval included, by both ways."""
    model, args, _ = case
    tr = model.simulate(args, key=1)
    fast = model.assess(args, tr.choices)
    with step_by_step:
        slow = model.assess(args, tr.choices)
    assert close(tr.score, slow.score) and close(fast.score, slow.score)
    assert type(fast.retval) is type(slow.retval)
    assert same_tree(fast.retval, slow.retval) and same_tree(tr.retval, slow.retval)


def test_updates_agree_with_the_steps(case, step_by_step):
    model, args, other = case
    old, source = model.simulate(args, key=1), model.simulate(args, key=2).choices
    few = source.filter(select(3, 40))
    for constraints, new_args in ((few, None), (source, None), (few, other), ({}, other)):
        fast = old.update(constraints, new_args)
        with step_by_step:
            again = model.generate(args, old.choices).trace
            slow = again.update(constraints, new_args)
        assert close(fast.weight, slow.weight) and close(fast.trace.score, slow.trace.score)
        assert fast.discard == slow.discard and fast.trace.choices == slow.trace.choices
        assert same_tree(fast.trace.retval, slow.trace.retval)
        back = fast.trace.update(fast.discard, old.args)
        assert back.trace.choices == old.choices and close(back.weight, -fast.weight)


def test_partial_constraints_and_projections(case):
    """The weight of observed leaves, the same leaf at every step, is their projected density."""
    model, args, _ = case
    tr = model.simulate(args, key=3)
    last = sorted({a[1:] for a in tr.choices}, key=str)[-1]
    observed = choicemap({a: v for a, v in tr.choices.items() if a[1:] == last})
    new, weight = model.generate(args, observed, key=4)
    assert close(weight, new.project(select(*observed.addresses())))
    assert close(new.project(select.all()), new.score)
    assert close(weight + new.project(~select(*observed.addresses())), new.score)


def test_regenerate_on_a_whole_trace():
    model, args, _ = CASES["unfold"]
    tr = model.simulate(args, key=3)
    new, weight, _ = tr.regenerate(select((70, "x")), key=5)
    change = [a for a in tr.choices if (np.array(tr.choices[a]) != np.array(new.choices[a])).any()]
    assert change == [(70, "x")]
    # Retained: y at 70 and x at 71, which see the new state.
    x, z = (np.array([t[70, "x"].item(), t[69, "x"].item()]) for t in (new, tr))
    after = stats.norm.logpdf(tr[70, "y"].item(), x[0], 0.5) + stats.norm.logpdf(tr[71, "x"].item(), x[0] * 0.9 + 0.3)
    before = stats.norm.logpdf(tr[70, "y"].item(), z[0], 0.5) + stats.norm.logpdf(tr[71, "x"].item(), z[0] * 0.9 + 0.3)
    assert abs(weight.item() - (after - before)) < 1e-3


def test_growing_runs_one_step():
    model, args, _ = CASES["unfold"]
    tr = model.simulate(args, key=3)
    runs[0] = 0
    new, weight, _, discard = tr.update({(N, "x"): 1.0, (N, "y"): 1.5}, (N + 1, *args[1:]))
    assert runs[0] == 1 and len(new.retval) == N + 1 and len(discard) == 0
    want = stats.norm.logpdf(1.0, tr.retval[-1].item() * 0.9 + 0.3) + stats.norm.logpdf(1.5, 1.0, 0.5)
    assert abs(weight.item() - want) < 1e-4


def test_draws_are_independent_and_right():
    """Noise laid out before the run: no step may get another's, nor a site another site's."""
    tr = unfold(walk).simulate((4000, 0.0, 0.0, 0.0), key=6)
    x = np.array([tr[t, "x"].item() for t in range(4000)])
    y = np.array([tr[t, "y"].item() for t in range(4000)])
    assert stats.kstest(x, "norm").pvalue > 1e-3 and stats.kstest((y - x) / 0.5, "norm").pvalue > 1e-3
    assert abs(np.corrcoef(x[1:], x[:-1])[0, 1]) < 0.05 and abs(np.corrcoef(x, y - x)[0, 1]) < 0.05
    other = unfold(walk).simulate((4000, 0.0, 0.0, 0.0), key=7)
    assert other[5, "x"].item() != tr[5, "x"].item()
    same = unfold(walk).simulate((4000, 0.0, 0.0, 0.0), key=6)
    assert same[5, "x"].item() == tr[5, "x"].item()


def test_batched(case):
    model, args, _ = case
    batch = model(*args).vsimulate(3, key=8)
    assert batch.score.shape == (3,)
    for i in range(3):
        assert close(batch.score[i], model.assess(args, batch[i].choices).score)
    first = [np.array(value) for _, value in batch.choices.items()][0]
    assert len(np.unique(first.reshape(3, -1)[:, 0])) > 1 or first.dtype == np.int32


def test_gradients_agree_with_the_steps(step_by_step):
    """A recorded graph that froze a state or an argument would lose its gradient."""
    for name in ("unfold", "scan_array", "map_over"):
        model, args, _ = CASES[name]
        args = tuple(float(a) if isinstance(a, float) else a for a in args)
        tr = model.simulate(args, key=9)
        chosen = select((0, "x"), (40, "x"), (0, "step"), (40, "step"), (0, "z")) & select(*tr.choices.addresses())
        chosen = select(*[a for a in tr.choices if a in chosen])
        fast = tr.choice_gradients(chosen)
        with step_by_step:
            slow = model.generate(args, tr.choices).trace.choice_gradients(chosen)
        assert same_tree(fast[0], slow[0]) and any(np.any(np.array(g)) for g in fast[0] if g is not None)
        for address in fast[2]:
            assert np.allclose(fast[2][address], slow[2][address], atol=1e-3)


def test_a_gradient_through_the_states():
    """d x_n / d x_0 = a^n when every x_t is given relative to the state: the chain rule through 64 recorded steps."""

    @gen
    def drift(t, x, a):
        trace("y", normal(x, 1.0))
        return a * x

    model = unfold(drift)
    tr, _ = model.generate((64, 1.0, 0.9), {(t, "y"): 0.0 for t in range(64)})
    grads, _, _ = tr.choice_gradients()
    powers = 0.9 ** np.arange(64)
    assert abs(grads[1].item() + np.sum(powers**2)) < 1e-3  # -sum x_t dx_t/dx_0
    want = -np.sum(powers * np.arange(64) * 0.9 ** np.maximum(np.arange(64) - 1, 0))
    assert abs(grads[2].item() - want) < 1e-2


def test_kernels_that_close_over_arrays_are_not_frozen():
    """The gradient in an outer choice that the kernel closes over must not vanish."""

    @gen
    def outer():
        scale = trace("scale", normal(1.0, 1.0))

        @gen
        def kernel(t, x):
            return trace("x", normal(scale * x, 1.0))

        return trace("walk", unfold(kernel)(N, 1.0))

    tr = outer.simulate(key=1)
    x = np.array([1.0] + [tr["walk", t, "x"].item() for t in range(N)])
    s = tr["scale"].item()
    _, _, grads = tr.choice_gradients(select("scale"))
    want = np.sum((x[1:] - s * x[:-1]) * x[:-1]) - (s - 1.0)
    assert abs(grads["scale"].item() - want) < 1e-2 * max(1, abs(want))


def test_parameters_are_not_frozen():
    @gen
    def kernel(t, x):
        return trace("x", normal(x + param("drift", 0.5), 1.0))

    tr = unfold(kernel).simulate((N, 0.0), key=1)
    x = np.array([0.0] + [tr[t, "x"].item() for t in range(N)])
    grads = param_gradients(tr)
    assert abs(grads[kernel, "drift"].item() - np.sum(x[1:] - x[:-1] - 0.5)) < 1e-2
    kernel.params["drift"] = 1.0
    new = tr.update({})
    want = np.sum(stats.norm.logpdf(x[1:], x[:-1] + 1.0) - stats.norm.logpdf(x[1:], x[:-1] + 0.5))
    assert abs(new.weight.item() - want) < 1e-2


def test_kernels_that_branch_run_step_by_step():
    """What needs the host value of a state, or has other addresses at some steps, is still right."""

    @gen
    def branching(t, x):
        if x > 0:
            return trace("down", normal(-1.0, 1.0))
        return trace("up", normal(1.0, 1.0))

    tr = unfold(branching).simulate((N, 0.0), key=1)
    assert close(tr.score, unfold(branching).assess((N, 0.0), tr.choices).score)
    assert {a[1] for a in tr.choices} == {"up", "down"}

    @gen
    def first_is_special(t, x):
        if t == 0:
            trace("start", flip(0.5))
        return trace("x", normal(x, 1.0))

    tr = unfold(first_is_special).simulate((N, 0.0), key=1)
    assert (0, "start") in tr.choices and (1, "start") not in tr.choices


def test_an_error_in_the_kernel_names_its_step():
    from genmlx import GenError

    with pytest.raises(GenError, match=r"\(70, 'x'\)"):
        unfold(walk).generate((N, 0.1, 0.9, 0.3), {(70, "x"): [1.0, 2.0]})
    with pytest.raises(GenError, match=r"\(0, 'x'\)"):
        unfold(walk).assess((N, 0.1, 0.9, 0.3), {})


def test_large_numbers_made_of_the_number_of_a_step():
    """(400 t)^3 is beyond 32 bits from t = 4 on."""

    @gen.new
    def step(t, x):
        trace("y", normal(1e-9 * (t * 400) ** 3, 1e-3))
        return x

    found = unfold(step)(40, 0.0).simulate(key=0).choices
    for t in (3, 4, 12, 39):
        assert found[t, "y"].item() == pytest.approx(1e-9 * (t * 400) ** 3, rel=1e-5, abs=0.01)
