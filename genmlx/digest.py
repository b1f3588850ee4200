"""What a function body says, as a hash: comments, formatting, line numbers and the docstring do not count.

It reads the instructions and not the source, which may be missing, or already that of the next edit. Where a line break
does change the instructions (Python 3.12 fuses some pairs on one line) an edit counts as a change, never the reverse.
"""

from __future__ import annotations

import dis
import hashlib
import inspect
from bisect import bisect_left
from collections.abc import Callable
from types import CodeType
from typing import Any

import mlx.core as mx


def digest(function: Callable, within: tuple = ()) -> str:
    """Equal for functions whose instructions, defaults and closure constants are equal.

    >>> digest(lambda x: x + 1) == digest(lambda x: x  +  1), digest(lambda x: x + 1) == digest(lambda x: x + 2)
    (True, False)
    """
    if function in within:  # a closure that holds itself
        return str(within.index(function))
    within = (*within, function)
    cells = [cell.cell_contents for cell in function.__closure__ or () if _filled(cell)]
    data = (function.__defaults__, function.__kwdefaults__, cells, getattr(function, "__self__", None))
    what = (_code(function.__code__, within), [_value(value, within) for value in data])
    return hashlib.sha256(repr(what).encode()).hexdigest()


def _code(code: CodeType, within: tuple) -> tuple:
    # Only two flags count, *args and **kwargs: newer Pythons also record "has a docstring" there.
    names = (code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags & _STARS)
    found = [i for i in dis.get_instructions(code) if i.opname not in _PADDING]
    offsets = [i.offset for i in found]

    def operand(i: dis.Instruction) -> Any:
        if i.opname == "KW_NAMES":  # dis of Python 3.11 does not look these up
            return repr(code.co_consts[i.arg or 0])
        if i.opcode in dis.hasconst:
            return _value(i.argval, within)
        # A jump goes to the number of an instruction, since offsets move with the padding.
        return bisect_left(offsets, i.argval) if i.opcode in _JUMPS else repr(i.argval)

    instructions = [(i.opname, operand(i)) for i in found]
    bytecode: Any = dis.Bytecode(code)  # whose stub lacks the next attribute
    tries = [
        tuple(bisect_left(offsets, offset) for offset in (entry.start, entry.end, entry.target))
        for entry in bytecode.exception_entries
    ]
    return (names, code.co_varnames, code.co_freevars, instructions, tries)


_STARS = inspect.CO_VARARGS | inspect.CO_VARKEYWORDS
_JUMPS = {*dis.hasjrel, *dis.hasjabs}
_PADDING = {"NOP", "CACHE", "EXTENDED_ARG"}  # where they stand follows from line breaks and sizes


def _value(value: Any, within: tuple) -> Any:
    if isinstance(value, CodeType):
        return _code(value, within)
    if value is None or isinstance(value, (bool, int, float, complex, str, bytes)):
        return (type(value).__name__, repr(value))
    if isinstance(value, (tuple, list)):
        return (type(value).__name__, [_value(v, within) for v in value])
    if isinstance(value, (set, frozenset)):
        return (type(value).__name__, sorted(repr(_value(v, within)) for v in value))
    if isinstance(value, dict):
        return ("dict", [(_value(k, within), _value(v, within)) for k, v in value.items()])
    if isinstance(value, mx.array):
        return ("array", str(value.dtype), value.shape, value.tolist())
    if hasattr(value, "__code__"):
        return ("function", digest(value, within))
    return ("object", type(value).__qualname__, id(value))


def _filled(cell: Any) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True
