"""Keys and noise. Keys are explicit; ``key=None`` at the surface takes the next key of the session's stream.

A key is a ``uint32[2]`` array, or a :class:`LaneKey` inside a batched run. A batched run does not split its key
over N lanes: it carries one key and the lane's index, and the noise primitive below draws ``[N, ...]`` at once
by its vmap rule. One draw of shape [N] costs about half of N draws under ``mx.vmap`` for normals and a fifth
for uniforms.
"""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Iterable
from functools import cache
from typing import Any, NamedTuple

import mlx.core as mx

from genmlx.errors import UsageError


class LaneKey:
    """One key for a whole batch, the index of this lane in it, and how many batches deep that lane is."""

    __slots__ = ("key", "lane", "depth")

    def __init__(self, key: mx.array, lane: mx.array, depth: int = 1):
        self.key, self.lane, self.depth = key, lane, depth


class Tape:
    """A key whose noise is laid out in advance, so that one graph serves for many steps.

    Made from a key it draws, and writes down what was asked for; made from arrays it hands those out in that order.
    """

    __slots__ = ("requests", "_keys", "_draws")

    def __init__(self, key: Any = None, draws: Iterable[mx.array] | None = None):
        self.requests: list[tuple[str, tuple]] = []
        self._keys = Keys(key)
        self._draws = None if draws is None else iter(draws)

    def draw(self, kind: str, shape: tuple) -> mx.array:
        self.requests.append((kind, shape))
        return _draw(kind, self._keys.next(), shape) if self._draws is None else next(self._draws)


Key = mx.array | LaneKey | Tape


class Streams(NamedTuple):
    """The disjoint streams that an algorithm splits its key into, once."""

    initialise: Any
    warmup: Any
    propose: Any
    accept: Any
    resample: Any


class _Session(threading.local):
    def __init__(self):
        self.seed, self.count = int.from_bytes(os.urandom(8), "little"), 0


_session = _Session()
_CHUNK = 8
_WORD = (1 << 64) - 1


def seed(n: int) -> None:
    """Make the session's stream of keys start over from ``n``.

    >>> import genmlx
    >>> seed(3); a = genmlx.normal(0, 1).sample()
    >>> seed(3); b = genmlx.normal(0, 1).sample()
    >>> a.item() == b.item()
    True
    """
    _session.seed, _session.count = int(n) & _WORD, 0


def session_seed() -> tuple[int, int]:
    """The seed of the session's stream, and how many keys have been taken from it."""
    return _session.seed, _session.count


def next_key() -> mx.array:
    """The next key of the session's stream: SplitMix64 (Steele, Lea and Flood 2014) of seed and counter."""
    _session.count += 1
    z = (_mix(_session.seed) + _session.count * 0x9E3779B97F4A7C15) & _WORD
    return mx.random.key(_mix(z))


def _mix(z: int) -> int:
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _WORD
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _WORD
    return z ^ (z >> 31)


def as_key(key: Any) -> Any:
    """A key from what a user passes: a key, an integer seed, or None for the session's next."""
    if key is None:
        return next_key()
    if isinstance(key, LaneKey) or (isinstance(key, mx.array) and key.shape == (2,) and key.dtype == mx.uint32):
        return key
    if isinstance(key, int) and not isinstance(key, bool):
        return mx.random.key(key & _WORD)
    raise UsageError(f"{key!r} is not a key", expected="mx.random.key(seed), an integer seed, or None")


def split(key: Any, n: int = 2) -> list:
    """``n`` keys for independent draws. No key gives none: a run without a key samples nothing."""
    if key is None:
        return [None] * n
    if isinstance(key, Tape):
        return [key] * n
    if isinstance(key, LaneKey):
        return [LaneKey(k, key.lane, key.depth) for k in split(key.key, n)]
    rows = mx.random.split(key, n)
    return [rows[i] for i in range(n)]


class Keys:
    """A supply of independent keys: one split serves seven, and its last row starts the next split."""

    __slots__ = ("_key", "_ready")

    def __init__(self, key: Any):
        self._key, self._ready = key, []

    def next(self) -> Any:
        if not self._ready:
            *self._ready, self._key = split(self._key, _CHUNK)
        return self._ready.pop(0)


def streams(key: Any) -> Streams:
    return Streams(*split(as_key(key), len(Streams._fields)))


def lane_key(key: Any, lane: mx.array, n: int) -> Any:
    """The key of one lane of ``n`` under ``mx.vmap``, where ``lane`` is the batched index."""
    if key is None:
        return None
    if isinstance(key, Tape):
        raise UsageError("a tape of noise has no lanes")
    if isinstance(key, LaneKey):
        return LaneKey(key.key, key.lane * n + lane, key.depth + 1)
    return LaneKey(key, lane)


def key_array(key: Any) -> mx.array:
    """A plain MLX key, its own for each lane: what a user's own sampler receives."""
    if isinstance(key, Tape):
        return key.draw("bits", (2,))
    if not isinstance(key, LaneKey):
        return key
    return _noise("bits", (2,), key.depth)(key.key, key.lane)


def normal(key: Any, shape: tuple = ()) -> mx.array:
    """Standard normal noise, float32."""
    return _draw("normal", key, shape)


def noise(kind: str, key: Any, shape: tuple) -> mx.array:
    """What a tape wrote down: noise of one of the kinds "normal", "uniform" and "bits"."""
    return _draw(kind, key, shape)


def uniform(key: Any, shape: tuple = ()) -> mx.array:
    """Uniform noise on [0, 1), float32."""
    return _draw("uniform", key, shape)


def uniform_open(key: Any, shape: tuple = ()) -> mx.array:
    """Uniform noise on the open interval (0, 1), never 0 and never 1: midpoints of 2^23 cells."""
    cells = _draw("bits", key, shape) >> 9
    return (cells.astype(mx.float32) + 0.5) * (1.0 / (1 << 23))


def gumbel(key: Any, shape: tuple = ()) -> mx.array:
    """Standard Gumbel noise."""
    return -mx.log(exponential(key, shape))


def exponential(key: Any, shape: tuple = ()) -> mx.array:
    """Standard exponential noise, above 0."""
    return -mx.log(uniform_open(key, shape))


def bits(key: Any, shape: tuple = ()) -> mx.array:
    """Uniform uint32."""
    return _draw("bits", key, shape)


def _draw(kind: str, key: Any, shape: tuple) -> mx.array:
    shape = tuple(shape)
    if isinstance(key, Tape):
        return key.draw(kind, shape)
    if isinstance(key, LaneKey):
        return _noise(kind, shape, key.depth)(key.key, key.lane)
    return _DRAW[kind](key, shape)


_DRAW = {
    "normal": lambda key, shape: mx.random.normal(shape, key=key),
    "uniform": lambda key, shape: mx.random.uniform(shape=shape, key=key),
    "bits": lambda key, shape: _bits(key, shape),
}


def _bits(key: mx.array, shape: tuple) -> mx.array:
    # MLX does not expose its raw bits, but the keys of a split are just that: two words each.
    size = math.prod(shape)
    return mx.random.split(key, max(1, (size + 1) // 2)).reshape(-1)[:size].reshape(shape)


@cache
def _noise(kind: str, shape: tuple, depth: int) -> Any:
    """The noise primitive: ``(key, lanes[...]) -> [*lanes.shape, *shape]``, one block of independent draws.

    Its vmap rule only widens the block when the lanes are batched, so that it costs one draw however deep the
    nesting; when the key itself is batched, each key draws its own block. Once all ``depth`` batches have widened
    it, it is ordinary MLX, which can be exported; a custom function cannot (0.32.4).
    """

    def block(key: Any, lanes: Any) -> Any:
        if lanes.ndim == 0:
            key = mx.random.split(key + mx.stack([mx.zeros_like(lanes), lanes]).astype(mx.uint32))[0]
        return _DRAW[kind](key, (*lanes.shape, *shape))

    draw: Any = mx.custom_function(block)

    @draw.vmap
    def rule(inputs, axes):
        (key, lanes), (key_axis, lane_axis) = inputs, axes
        if lane_axis is not None:
            lanes = mx.moveaxis(lanes, lane_axis, 0)
        if key_axis is None:
            return (draw if lanes.ndim < depth else block)(key, lanes), 0
        inner = lanes.shape if lane_axis is None else lanes.shape[1:]
        return mx.vmap(lambda k: _DRAW[kind](k, (*inner, *shape)), in_axes=key_axis)(key), 0

    return draw
