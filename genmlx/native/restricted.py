"""A small part of Python, translated to LLVM: what the samplers are written in, which is plain Python as well.

A function has annotated arguments and result. Numbers are ``int`` (64 bits), ``float`` (64 bits), ``bool``, and
``Word``, 64 bits without a sign, to which its Python original keeps by ``& WORD``. ``list[float]``, ``list[int]``,
``list[Word]`` and ``list[Single]`` (32 bits, read and written as floats) are pointers: indexed, and sliced as
``x[i:]``, which is a view. A class of nothing but annotated names is a struct, passed by pointer; ``list[Struct]`` are
several in a row. ``Code`` is a pointer to a function without a result, and ``Address`` one that is only handed on.

There are ``if``, ``while``, ``for _ in range(...)``, ``break``, ``continue``, ``return``, arithmetic, comparisons,
functions of ``math``, ``min``, ``max`` and ``abs``, and calls of functions of the same kind, but no recursion. Anything
else is a SyntaxError with its line.
"""

from __future__ import annotations

import ctypes
import typing
from collections.abc import Callable
from typing import Any, NamedTuple

WORD = (1 << 64) - 1


if typing.TYPE_CHECKING:
    Word = int
    Single = float
else:

    class Word(int):
        """64 bits without a sign."""

    class Single(float):
        """The 32 bits of an element of a ``list[Single]``."""


Code = Callable[..., None]
Address = Any


def reassociated(function: Callable) -> Callable:
    """Let the sums of a function be taken in any order, which is several at once."""
    function.__dict__["reassociated"] = True
    return function


def disjoint(function: Callable) -> Callable:
    """No list that is given to a function is a part of another, which LLVM need not check then."""
    function.__dict__["disjoint"] = True
    return function


def structure(cls: type) -> type[ctypes.Structure]:
    """A struct as ctypes lays it out."""
    return type(cls.__name__, (ctypes.Structure,), {"_fields_": [(n, t.ctype) for n, t in fields(cls).items()]})


def translate(*functions: Callable, written_out: bool = False) -> Any:
    """An ``llvmlite.ir.Module`` with these functions, by their names, and with what they call.

    ``written_out`` are exp and log then, by ``functions``, so that loops over them become vectors; else they are the C
    library's.
    """
    from llvmlite import ir

    module = Module(ir, written_out)
    for function in functions:
        module.function(function).made.linkage = ""
    return module.module


class Type(NamedTuple):
    """``kind`` names it; ``of`` is the type of the elements of a list, and the class of a struct."""

    kind: str
    of: Any = None

    @property
    def ctype(self) -> Any:
        return {"int": ctypes.c_int64, "Word": ctypes.c_uint64, "float": ctypes.c_double}.get(
            self.kind, ctypes.c_void_p
        )


INT, WORD64, FLOAT, BOOL, SINGLE = map(Type, ("int", "Word", "float", "bool", "Single"))
NONE, CODE, ADDRESS = Type("None"), Type("Code"), Type("Address")
NAMED = {int: INT, Word: WORD64, float: FLOAT, bool: BOOL, Single: SINGLE, None: NONE, type(None): NONE}


class Value(NamedTuple):
    type: Type
    value: Any


class Function(NamedTuple):
    made: Any
    arguments: list[Type]
    result: Type


def type_of(annotation: Any) -> Type:
    if annotation in (Code, Address):
        return CODE if annotation == Code else ADDRESS
    if typing.get_origin(annotation) is list:
        return Type("list", type_of(typing.get_args(annotation)[0]))
    if annotation in NAMED:
        return NAMED[annotation]
    if isinstance(annotation, type):
        return Type("struct", annotation)
    raise TypeError(f"no type {annotation!r}")


def fields(cls: type) -> dict[str, Type]:
    return {name: type_of(annotation) for name, annotation in typing.get_type_hints(cls).items()}


class Module:
    def __init__(self, ir: Any, written_out: bool):
        self.ir, self.module, self.written_out = ir, ir.Module("restricted"), written_out
        self.functions: dict[Callable, Function] = {}
        word, pointer = ir.IntType(64), ir.PointerType()
        self.types = {"int": word, "Word": word, "float": ir.DoubleType(), "Single": ir.FloatType()}
        self.types |= {"bool": ir.IntType(1), "None": ir.VoidType()}
        self.types |= dict.fromkeys(("list", "struct", "Code", "Address"), pointer)

    def llvm(self, type: Type) -> Any:
        return self.types[type.kind]

    def element(self, type: Type) -> Any:
        """What a list of the type has in memory."""
        if type.kind != "struct":
            return self.llvm(type)
        return self.ir.LiteralStructType([self.llvm(field) for field in fields(type.of).values()])

    def function(self, function: Callable) -> Function:
        from genmlx.native.translation import Body

        if function not in self.functions:
            arguments = {name: type_of(hint) for name, hint in typing.get_type_hints(function).items()}
            result = arguments.pop("return")
            signature = self.ir.FunctionType(self.llvm(result), [self.llvm(t) for t in arguments.values()])
            made = self.ir.Function(self.module, signature, function.__name__)
            made.linkage = "internal"
            made.attributes.add("nounwind")
            for argument, type in zip(made.args, arguments.values(), strict=True):
                if getattr(function, "disjoint", False) and type.kind == "list":
                    argument.add_attribute("noalias")
            self.functions[function] = Function(made, list(arguments.values()), result)
            Body(self, function, made, arguments, result).translate()
        return self.functions[function]

    def intrinsic(self, name: str, arguments: int = 1) -> Any:
        real = self.types["float"]
        return self.module.declare_intrinsic(f"llvm.{name}", [real], self.ir.FunctionType(real, [real] * arguments))
