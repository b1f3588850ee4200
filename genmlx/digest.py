"""What a function body says, as a hash: comments, formatting, line numbers and the docstring do not count."""

from __future__ import annotations

import dis
import hashlib
from collections.abc import Callable
from types import CodeType
from typing import Any

import mlx.core as mx


def digest(function: Callable) -> str:
    """Equal for functions whose instructions, defaults and closure constants are equal.

    >>> digest(lambda x: x + 1) == digest(lambda x: x  +  1), digest(lambda x: x + 1) == digest(lambda x: x + 2)
    (True, False)
    """
    cells = [cell.cell_contents for cell in function.__closure__ or () if _filled(cell)]
    what = (_code(function.__code__), _value(function.__defaults__), _value(function.__kwdefaults__), _value(cells))
    return hashlib.sha256(repr(what).encode()).hexdigest()


def _code(code: CodeType) -> tuple:
    # The flags leave out "has a docstring", which newer Pythons record.
    instructions = [
        (i.opname, _value(i.argval) if i.opcode in dis.hasconst else _operand(i)) for i in dis.get_instructions(code)
    ]
    names = (code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_varnames, code.co_freevars)
    return (names, instructions)


def _operand(instruction: dis.Instruction) -> Any:
    relative = instruction.opcode in dis.hasjrel
    return instruction.argval - instruction.offset if relative else repr(instruction.argval)


def _value(value: Any) -> Any:
    if isinstance(value, CodeType):
        return _code(value)
    if value is None or isinstance(value, (bool, int, float, complex, str, bytes)):
        return (type(value).__name__, repr(value))
    if isinstance(value, (tuple, list)):
        return (type(value).__name__, [_value(v) for v in value])
    if isinstance(value, (set, frozenset)):
        return (type(value).__name__, sorted(repr(_value(v)) for v in value))
    if isinstance(value, dict):
        return ("dict", [(_value(k), _value(v)) for k, v in value.items()])
    if isinstance(value, mx.array):
        return ("array", str(value.dtype), value.shape, value.tolist())
    if hasattr(value, "__code__"):
        return ("function", digest(value))
    return ("object", type(value).__qualname__, id(value))


def _filled(cell: Any) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True
