"""The number of a step, and the elements of a scan, are arrays in a step that is run by itself: they mean the same."""

import mlx.core as mx
import numpy as np
import pytest

from genmlx import gen, normal, poisson, scan, smc, trace, unfold, uniform
from genmlx.errors import GenError, UnknownAddress, ValueMismatch
from genmlx.gfi import checked_choices
from genmlx.inference import ParticleFilter
from genmlx.inference.extension import one_more_step
from genmlx.inference.translators import SimpleExtendingTranslator
from genmlx.native.graph import Untranslatable
from genmlx.pytree import split_arrays


def walk_by(drift):
    @gen.new
    def step(t, x):
        x = trace("x", normal(x + drift(t), 1e-3))
        trace("y", normal(x, 1.0))
        return x

    return unfold(step)


def steps_of(chain, n=8):
    return [(chain(t + 1, 0.0), {(t, "y"): 0.0}) for t in range(n)]


DRIFTS = {
    "a power beyond 2**31": lambda t: 1e-9 * (t * 400) ** 3,
    "a product beyond 2**31": lambda t: 1e-9 * (t * 86_400_000 * 10),
    "a constant beyond 2**31": lambda t: 1e-9 * (t * 3_000_000_000),
    "a quotient": lambda t: t / 8 + t // 3 - (t - 5) % 4,
}


@pytest.mark.parametrize("name", DRIFTS)
def test_numbers_of_steps_are_as_large_as_those_of_python(name):
    """The last state is the sum of the drifts but for noise of 0.01."""
    drift = DRIFTS[name]
    found = smc(steps_of(walk_by(drift), 16), 3, 0.0, key=0)
    expected = sum(drift(t) for t in range(16))
    assert np.allclose(np.array(found[15, "x"]), expected, rtol=1e-5, atol=0.05)


@pytest.mark.parametrize("start", [1.6e9, 1_600_000_000, 2**40], ids=["float", "int", "long"])
def test_elements_that_float32_does_not_hold_keep_their_digits(start):
    @gen.new
    def driven(carry, now):
        z = trace("z", normal(carry + 1.0 * (now - start), 1e-3))
        trace("y", normal(z, 1.0))
        return z, z

    clock, times = scan(driven), [start + 5 * t for t in range(8)]
    found = smc([(clock(0.0, times[: t + 1]), {(t, "y"): 0.0}) for t in range(8)], 3, 0.0, key=0)
    assert np.allclose(np.array(found[7, "z"]), 5.0 * sum(range(8)), atol=0.05)


def test_a_number_that_is_returned_stays_one_of_python():
    @gen.new
    def step(t, state):
        x = trace("x", normal(state[0], 1.0))
        trace("y", normal(x, 1.0))
        return x, t

    chain = unfold(step)
    pf = ParticleFilter.init(chain(1, (0.0, 0)), {(0, "y"): 0.0}, 5, key=0)
    for t in range(1, 6):
        pf = pf.step(chain(t + 1, (0.0, 0)), {(t, "y"): 0.0}, key=t)
        last = pf.traces[2].retval[-1][1]
        assert type(last) is int and last == t


def update_of(pf, call, given, key):
    """The step as an update of whole traces."""
    translator = SimpleExtendingTranslator(call, None, given, None)
    return pf._moved(translator, call, translator.observations, mx.random.key(key))


def assert_same(mine, theirs):
    (a, form), (b, other) = (split_arrays(pf.traces.lanes) for pf in (mine, theirs))
    assert form.spec == other.spec and form.places == other.places
    for x, y in zip([*a, mine.log_weights, mine.log_ml], [*b, theirs.log_weights, theirs.log_ml], strict=True):
        assert x.dtype == y.dtype and mx.array_equal(x, y).item()


def test_particles_become_impossible_and_stay_so():
    @gen.new
    def step(t, x):
        x = trace("x", uniform(-1.0, 2.0))
        trace("y", uniform(x - 1.0, x + 1.0))
        return x

    chain = unfold(step)
    mine = theirs = ParticleFilter.init(chain(1, 0.0), {(0, "y"): 0.9}, 400, key=0)
    for t in range(1, 5):
        call, given = chain(t + 1, 0.0), {(t, "y"): 0.9}
        mine, theirs = mine.step(call, given, key=t), update_of(theirs, call, given, t)
    assert_same(mine, theirs)
    alive = np.array(mine.log_weights) > -np.inf
    assert 0 < alive.sum() < 200 and np.array_equal(alive, np.array(mine.traces.score) > -np.inf)


def test_several_steps_at_once_and_none_are_those_of_an_update():
    chain = walk_by(lambda t: 0.5)
    mine = theirs = ParticleFilter.init(chain(1, 0.0), {(0, "y"): 0.0}, 5, key=0)
    done = 1
    for n in (2, 4, 5, 8, 8, 9):
        call, given = chain(n, 0.0), {(t, "y"): 0.1 * t for t in range(done, n) if n != 4}
        mine, theirs, done = mine.step(call, given, key=n), update_of(theirs, call, given, n), n
    assert_same(mine, theirs)
    assert len(mine.traces.retval) == 9


def test_an_observation_of_an_earlier_step_is_not_passed_over():
    chain = walk_by(lambda t: 0.5)
    pf = ParticleFilter.init(chain(1, 0.0), {(0, "y"): 0.0}, 5, key=0)
    given = {(0, "y"): 3.0, (1, "y"): 1.0}
    with pytest.raises(GenError) as expected:
        update_of(pf, chain(2, 0.0), given, 1)
    with pytest.raises(GenError) as found:
        pf.step(chain(2, 0.0), given, key=1)
    assert found.value.what == expected.value.what


def plain(t):
    return 0.0


def looks_up(t):
    return 10.0 if t in {4, 6} else 0.0


def test_a_helper_that_comes_to_tell_numbers_from_arrays_is_seen():
    drift = [plain]
    chain = walk_by(lambda t: drift[0](t))
    pf = ParticleFilter.init(chain(1, 0.0), {(0, "y"): 0.0}, 5, key=0)
    for t in range(1, 8):
        drift[0] = plain if t < 4 else looks_up
        pf = pf.step(chain(t + 1, 0.0), {(t, "y"): 0.0}, key=t)
    assert [round(pf.mean((t, "x")).item()) for t in range(8)] == [0, 0, 0, 0, 10, 10, 20, 20]


def by_its_bits(t):
    try:
        return 10.0 if t.bit_length() == 3 and t % 2 == 0 else 0.0
    except AttributeError:
        return 5.0


def test_data_of_64_bits_do_not_keep_a_kernel_from_running_by_itself():
    @gen.new
    def step(t, state):
        x = trace("x", normal(state[0], 1.0))
        trace("y", normal(x, 1.0))
        return x, state[1] + 1

    chain, start = unfold(step), (0.0, mx.array(2**40))
    pf = ParticleFilter.init(chain(1, start), {(0, "y"): 0.0}, 5, key=0)
    given = checked_choices({(1, "y"): 0.0})
    traces, _ = one_more_step(pf.recent, pf.log_weights, chain(2, start), given, mx.random.key(1))
    assert traces.retval[1][1].tolist() == [2**40 + 2] * 5


@pytest.mark.parametrize("name", ["a table", "text", "a type", "a method of a table", "an error"])
def test_a_kernel_that_tells_numbers_from_arrays_is_left_to_the_update(name):
    table = {4: 10.0, 6: 10.0}
    drift = {
        "a table": lambda t: 10.0 if t in table else 0.0,
        "text": lambda t: 10.0 if f"{t}" == "4" or f"{t}" == "6" else 0.0,
        "a type": lambda t: (10.0 if t == 4 or t == 6 else 0.0) if isinstance(t, int) else 5.0,
        "a method of a table": lambda t: table.get(t, 0.0),
        "an error": by_its_bits,
    }[name]
    found = smc(steps_of(walk_by(drift)), 5, 0.0, key=0)
    assert [round(found.mean((t, "x")).item()) for t in range(8)] == [0, 0, 0, 0, 10, 10, 20, 20]


SHIFT = [0.0]


def require_machine_code():
    pytest.importorskip("llvmlite")
    if mx.default_device() != mx.Device(mx.cpu):
        pytest.skip("batches are machine code on the CPU alone")


@pytest.mark.parametrize("native", [False, True])
def test_what_a_callback_changes_during_a_run_is_followed(native):
    if native:
        require_machine_code()
    SHIFT[0] = 0.0

    def changes(pf):
        SHIFT[0] = 10.0 * (len(pf.history) > 5)

    found = smc(steps_of(walk_by(lambda t: SHIFT[0]), 10), 5, 0.0, record=changes, key=0, native=native)
    assert [round(found.mean((t, "x")).item()) for t in range(10)] == [0] * 6 + [10, 20, 30, 40]


def test_a_mistake_in_the_observations_says_nothing_of_the_kernel():
    chain = walk_by(lambda t: 0.0)
    pf = ParticleFilter.init(chain(1, 0.0), {(0, "y"): 0.0}, 5, key=0)
    for mistake, error in (({(1, "y"): [1.0, 2.0]}, ValueMismatch), ({(1, "z"): 1.0}, UnknownAddress)):
        with pytest.raises(error):
            pf.step(chain(2, 0.0), mistake, key=1)
    given = checked_choices({(1, "y"): 0.0})
    assert one_more_step(pf.recent, pf.log_weights, chain(2, 0.0), given, mx.random.key(1)) is not None


def test_a_kernel_that_catches_errors_is_left_to_the_update():
    """Its number is an array while it is recorded, of which ``int`` raises: what it does then is right at first."""

    @gen.new
    def step(t, x):
        try:
            mean = 100.0 if int(t) > 4 else 0.0
        except ValueError:
            mean = 0.0
        x = trace("x", normal(mean, 1.0))
        trace("y", normal(x, 1.0))
        return x

    found = smc(steps_of(unfold(step)), 5, 0.0, key=0)
    assert [round(found.mean((t, "x")).item() / 100) for t in range(8)] == [0] * 5 + [1] * 3


def test_machine_code_that_is_required_says_what_has_none():
    require_machine_code()

    @gen.new
    def step(t, x):
        scale = 1.0 if isinstance(t, int) else mx.linalg.svd(t * mx.eye(2), stream=mx.cpu)[1][0]
        x = trace("x", normal(x, scale))
        trace("y", normal(x, 1.0))
        return x

    with pytest.raises(Untranslatable, match="takes an array for its number"):
        smc(steps_of(unfold(step)), 5, key=0, native=True)

    @gen.new
    def decomposes(t, x):
        n = trace("n", poisson(1.0 + mx.abs(mx.linalg.svd(t * mx.eye(2), stream=mx.cpu)[1][0])))
        trace("y", normal(n, 1.0))
        return n

    chain = unfold(decomposes)
    pf = ParticleFilter.init(chain(1, 0.0), {(0, "y"): 0.0}, 5, key=0)
    from genmlx.kept import execution

    with execution(True, True), pytest.raises(Untranslatable, match="SVD"):
        pf.step(chain(2, 0.0), {(1, "y"): 0.0}, key=1)
