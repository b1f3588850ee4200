"""MLX's random bits, bit for bit: Threefry-2x32 with 20 rounds, Salmon et al. (2011)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llvmlite import ir

from genmlx.native.graph import Node, Untranslatable
from genmlx.native.views import Indices
from genmlx.native.writing import I32, Code, Index, Value

if TYPE_CHECKING:
    from genmlx.native.emit import Emitter

_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
_PARITY = 0x1BD11BDA


def threefry(code: Code, key: tuple, count: tuple) -> tuple[Value, Value]:
    """Two words of 32 bits."""
    builder = code.builder
    schedule = (key[0], key[1], builder.xor(builder.xor(key[0], key[1]), ir.Constant(I32, _PARITY)))
    x, y = builder.add(count[0], schedule[0]), builder.add(count[1], schedule[1])
    for i in range(5):
        for rotation in _ROTATIONS[i % 2]:
            x = builder.add(x, y)
            y = code.builder.xor(x, code.intrinsic("fshl", y, y, ir.Constant(I32, rotation)))
        x = builder.add(x, schedule[(i + 1) % 3])
        y = builder.add(builder.add(y, schedule[(i + 2) % 3]), ir.Constant(I32, i + 1))
    return x, y


def _random_bits(emitter: Emitter, node: Node) -> None:
    shape, width = node.settings
    (keys,) = node.inputs
    if width != 4 or node.dtype.itemsize != 4:
        raise Untranslatable(f"RandomBits of {width} bytes")
    code, builder = emitter.code, emitter.code.builder
    lead = len(keys.shape) - 1
    if tuple(node.shape[:lead]) != keys.shape[:-1]:
        raise Untranslatable(f"RandomBits {list(node.shape)} of keys {list(keys.shape)}")
    words = 1
    for n in node.shape[lead:]:
        words *= n
    half, odd = words // 2, words % 2

    def of_key(outer: Indices) -> None:
        key = (emitter.element(keys, (*outer, 0)), emitter.element(keys, (*outer, 1)))
        buffer = emitter.buffers[node.number]
        start = code.linear(outer, buffer.strides[:lead])

        def word(i: Index) -> Value:
            return ir.Constant(I32, i) if isinstance(i, int) else builder.trunc(i, I32)

        def pair(i: Index) -> None:
            second = code.add(i, half + odd)
            x, y = threefry(code, key, (word(i), word(second)))
            emitter.store(buffer, code.add(start, i), x)
            emitter.store(buffer, code.add(start, second), y)

        code.loop(half, pair)
        if odd:
            x, _ = threefry(code, key, (word(half), ir.Constant(I32, 0)))
            emitter.store(buffer, code.add(start, half), x)

    emitter.loops(node.shape[:lead], of_key)


RULES = {"RandomBits": _random_bits}
