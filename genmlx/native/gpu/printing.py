"""A function of LLVM IR, as ``genmlx/native/emit.py`` makes it, as the text of its body in C, CUDA and Metal alike.

Integers of 32 bits and less are unsigned variables, and positions, which are 64 bits wide in IR, are ``int``: no array
here has 2^31 elements. Arithmetic is by functions of the dialect (``dialects.py``), which round each operation.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir

from genmlx.native.graph import Untranslatable

_KINDS = {1: "bool", 8: "unsigned char", 16: "unsigned short", 32: "unsigned", 64: "int"}
_SIGNED = {8: "signed char", 16: "short", 32: "int", 64: "int"}
_FLOATS = {"fadd": "add", "fsub": "subtract", "fmul": "multiply", "fdiv": "divide"}
_WHOLE = {"add": "+", "sub": "-", "mul": "*", "and": "&", "or": "|", "xor": "^", "shl": "<<", "lshr": ">>"}
_WHOLE |= {"udiv": "/", "urem": "%"}
_OF_SIGNED = {"sdiv": "/", "srem": "%", "ashr": ">>"}
_COMPARED = {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}
_UNROLLED = 32  # rounds of an innermost loop that a compiler is asked to write out


class Pointer(NamedTuple):
    """``at`` gives the text of an element: of its type in C, at a position, to read or (given a value) to write."""

    at: Callable[[str, str, str | None], str]
    position: str = "0"

    def moved(self, by: str) -> Pointer:
        return Pointer(self.at, by if self.position == "0" else f"{self.position} + {by}")


def of_thread(name: str) -> Pointer:
    """An array of this thread."""
    return Pointer(lambda kind, i, value: f"{name}[{i}]" + ("" if value is None else f" = {value};"))


def body(function: ir.Function, arguments: list[Pointer]) -> tuple[str, int]:
    """The statements of a function, its arguments being these pointers; and how many of them are run.

    Raises Untranslatable for float64 and for instructions that a GPU's text has no form for.
    """
    printer = _Printer(function, arguments)
    return printer.text(), printer.run


class _Printer:
    def __init__(self, function: ir.Function, arguments: list[Pointer]):
        self.function = function
        self.pointers = {id(argument): own for argument, own in zip(function.args, arguments, strict=True)}
        self.values: dict[int, str] = {}
        self.names = map("v{}".format, itertools.count())
        self.lines: list[str] = []
        self.run, self.rounds = 0, 1  # statements so far, each as often as the loops that it is in go round
        self.skipped: set[int] = set()  # what counts the rounds of loops, which are loops of C

    def text(self) -> str:
        entry, start = self.function.blocks[:2]
        for made in entry.instructions[:-1]:
            self.reserve(made)
        self.block(start, None)
        return "\n".join(self.lines)

    def reserve(self, made: Any) -> None:
        name = next(self.names)
        self.lines.append(f"{kind_of(made.allocated_type)} {name}[{made.operands[0].constant}];")
        self.pointers[id(made)] = of_thread(name)

    # blocks

    def block(self, block: Any, end: Any) -> None:
        """A block and those that follow, up to ``end``."""
        while block is not end:
            for made in block.instructions[:-1]:
                self.instruction(made)
            block = self.after(block, block.terminator, end)

    def after(self, block: Any, last: Any, end: Any) -> Any:
        """Where it goes on after a block, once what lies between is written."""
        if isinstance(last, ir.instructions.Ret):
            return end
        if len(last.operands) == 1:
            target = last.operands[0]
            return self.loop(block, target) if counter(target) is not None else target
        condition, then, other = last.operands
        if end is not None and then is end:  # the end of a loop: `end` is its first block
            return end
        if counter(then) is not None:
            return self.loop(block, then)
        self.nested(f"if ({self.of(condition)})", then, other)
        return other

    def loop(self, block: Any, inside: Any) -> Any:
        phi = counter(inside)
        (first, _), (following, latch) = sorted(phi.incomings, key=lambda pair: pair[1] is not block)
        condition, _, after = latch.terminator.operands
        name, start, stop = next(self.names), self.of(first), self.of(condition.operands[1])
        self.values[id(phi)] = name
        head = f"for (int {name} = {start}; {name} < {stop}; ++{name})"
        self.skipped |= {id(following), id(condition)}
        at = len(self.lines)
        known = start.isdigit() and stop.isdigit()
        before, self.rounds = self.rounds, self.rounds * (int(stop) - int(start) if known else 1)
        self.nested(head, inside, inside)
        self.rounds = before
        few = known and int(stop) - int(start) <= _UNROLLED
        if few and not any(line.startswith("for ") for line in self.lines[at + 1 :]):
            self.lines.insert(at, "UNROLL")
        return after

    def nested(self, head: str, first: Any, end: Any) -> None:
        self.lines.append(head + " {")
        if first is end:  # a loop, whose last block goes to its first
            for made in first.instructions[:-1]:
                self.instruction(made)
            following = self.after(first, first.terminator, end)
            if following is not end:
                self.block(following, end)
        else:
            self.block(first, end)
        self.lines.append("}")

    # instructions

    def instruction(self, made: Any) -> None:
        if id(made) in self.skipped or isinstance(made, ir.instructions.PhiInstr):
            return
        self.run += self.rounds
        if isinstance(made, ir.instructions.GEPInstr):
            (index,) = made.indices
            self.pointers[id(made)] = self.pointers[id(made.pointer)].moved(self.of(index))
        elif isinstance(made, ir.instructions.StoreInstr):
            value, place = made.operands
            at = self.pointers[id(place)]
            self.lines.append(at.at(kind_of(value.type), at.position, self.of(value)))
        else:
            text = self.expression(made)
            wide = isinstance(made, ir.instructions.CallInstr) and made.callee.name.startswith("llvm.fpto")
            name = next(self.names)
            self.lines.append(f"{'WIDE' if wide else kind_of(made.type)} {name} = {text};")
            self.values[id(made)] = name

    def expression(self, made: Any) -> str:
        op, operands = made.opname, made.operands
        if isinstance(made, ir.instructions.LoadInstr):
            at = self.pointers[id(operands[0])]
            return at.at(kind_of(made.type), at.position, None)
        if isinstance(made, ir.instructions.CallInstr):
            return self.call(made)
        if isinstance(made, ir.instructions.CastInstr):
            return self.cast(op, operands[0], made.type)
        values = [self.of(value) for value in operands]
        if isinstance(made, ir.instructions.FCMPInstr):
            return compared(made.op, *values)
        if isinstance(made, ir.instructions.ICMPInstr):
            sign = made.op[0] == "s"
            same, width = made.op in ("eq", "ne"), operands[0].type.width
            a, b = values if same else [as_whole(value, width, sign) for value in values]
            return f"{a} {_COMPARED[made.op if same else made.op[1:]]} {b}"
        if op == "select":
            return "{} ? {} : {}".format(*values)
        if op == "fneg":
            return f"-{values[0]}"
        if op in _FLOATS:
            return f"{_FLOATS[op]}_({values[0]}, {values[1]})"
        kind = kind_of(made.type)
        if op in _OF_SIGNED:
            a, b = values[0], values[1]
            left = as_whole(a, made.type.width, True)
            right = b if op == "ashr" else as_whole(b, made.type.width, True)
            return f"({kind})({left} {_OF_SIGNED[op]} {right})"
        if op in _WHOLE:
            return f"({kind})({values[0]} {_WHOLE[op]} {values[1]})"
        raise Untranslatable(f"the instruction {op} on a GPU")

    def call(self, made: Any) -> str:
        name, values = made.callee.name, ", ".join(self.of(value) for value in made.args)
        kind_of(made.type)
        if name.startswith("llvm.fpto"):
            return f"saturated_({values})"
        if name.startswith("llvm."):
            return f"{name.split('.')[1]}_({values})"
        return f"{name}({values})"

    def cast(self, op: str, value: Any, target: Any) -> str:
        kind, own = kind_of(target), self.of(value)
        if op in ("sext", "sitofp"):
            return (
                f"({kind}){as_whole(own, value.type.width, True)}" if value.type.width > 1 else f"({kind})-(int){own}"
            )
        if op == "bitcast":
            return f"float_of_({own})" if kind == "float" else f"bits_of_({own})"
        if op == "fptosi":
            return f"({kind})(int){own}"
        if op == "trunc" and target.width == 1:
            return f"({own} & 1) != 0"
        if op in ("zext", "trunc", "uitofp"):
            return f"({kind}){own}"
        raise Untranslatable(f"the cast {op} on a GPU")

    def of(self, value: Any) -> str:
        if isinstance(value, ir.Constant):
            return constant(value)
        return self.values[id(value)]


def counter(block: Any) -> Any:
    """What counts the rounds of the loop that a block begins; None if it begins none."""
    first = block.instructions[0]
    return first if isinstance(first, ir.instructions.PhiInstr) else None


def kind_of(type: Any) -> str:
    if isinstance(type, ir.FloatType):
        return "float"
    if isinstance(type, ir.IntType) and type.width in _KINDS:
        return _KINDS[type.width]
    raise Untranslatable(f"{'float64' if isinstance(type, ir.DoubleType) else type} on a GPU")


def as_whole(value: str, width: int, signed: bool) -> str:
    """An operand of a signed or unsigned operation."""
    if signed:
        return f"({_SIGNED[width]}){value}" if width < 64 else value
    return value if width < 64 else f"(unsigned){value}"


def compared(op: str, a: str, b: str) -> str:
    if op == "uno":
        return f"{a} != {a} || {b} != {b}"
    if op == "une" or (op[0] == "o" and op[1:] in _COMPARED and op != "one"):
        return f"{a} {_COMPARED[op[1:]]} {b}"
    raise Untranslatable(f"the comparison {op} on a GPU")


def constant(value: ir.Constant) -> str:
    type: Any = value.type
    number = value.constant
    if isinstance(type, ir.FloatType):
        return literal(number)
    kind_of(type)
    if type.width == 1:
        return "true" if number else "false"
    if type.width == 64:
        return str(number) if number >= 0 else f"({number})"
    return f"{int(number) & ((1 << type.width) - 1)}u"


def literal(number: float) -> str:
    """A float32, exactly.

    >>> literal(0.1), literal(-2.0), literal(float("-inf"))
    ('1.00000001e-01f', '(-2.00000000e+00f)', 'float_of_(0xff800000u)')
    """
    single = np.float32(number)
    if not np.isfinite(single):
        return f"float_of_(0x{single.view(np.uint32):08x}u)"
    text = f"{single:.8e}f"
    return text if not np.signbit(single) else f"({text})"
