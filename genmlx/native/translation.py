"""The translation of one function of restricted Python, statement by statement and value by value."""

from __future__ import annotations

import ast
import builtins
import functools
import inspect
import math
import textwrap
from collections.abc import Callable
from typing import Any

from genmlx.native.restricted import (
    ADDRESS,
    BOOL,
    CODE,
    FLOAT,
    INT,
    NONE,
    SINGLE,
    WORD64,
    Module,
    Type,
    Value,
    fields,
)

_COMPARED = {ast.Lt: "<", ast.LtE: "<=", ast.Gt: ">", ast.GtE: ">=", ast.Eq: "==", ast.NotEq: "!="}
_FLOATS = {ast.Add: "fadd", ast.Sub: "fsub", ast.Mult: "fmul", ast.Div: "fdiv"}
_BITS = {ast.BitAnd: "and_", ast.BitOr: "or_", ast.BitXor: "xor", ast.LShift: "shl"}
_INTS = {ast.Add: "add", ast.Sub: "sub", ast.Mult: "mul", ast.RShift: "ashr", **_BITS}
_WORDS = {**_INTS, ast.RShift: "lshr"}
_OPERATIONS = {"float": _FLOATS, "int": _INTS, "Word": _WORDS}
_INTRINSICS = {math.exp: "exp", math.log: "log", math.sqrt: "sqrt", math.cos: "cos", math.sin: "sin", abs: "fabs"}
_ROUNDED = {math.floor: "floor", math.ceil: "ceil"}


class Refused(Exception):
    """What there is not, and the node that has it."""


def _nothing() -> None: ...


def _items(node: ast.expr) -> list[ast.expr]:
    return node.elts if isinstance(node, ast.Tuple) else [node]


class Straight:
    """What ``functions`` writes with."""

    def __init__(self, body: Body):
        self.builder, self._intrinsic = body.builder, body.module.intrinsic

    def intrinsic(self, name: str, *arguments: Any) -> Any:
        return self.builder.call(self._intrinsic(name, len(arguments)), arguments)


class Body:
    """The translation of one function."""

    def __init__(self, module: Module, function: Any, made: Any, arguments: dict[str, Type], result: Type):
        self.module, self.ir, self.function, self.made, self.result = module, module.ir, function, made, result
        self.flags = ("reassoc",) if getattr(function, "reassociated", False) else ()
        self.entry = self.ir.IRBuilder(made.append_basic_block("entry"))
        self.builder = self.ir.IRBuilder(made.append_basic_block("body"))
        self.body = self.builder.block
        self.locals: dict[str, Value] = {}
        self.loops: list[tuple[Any, Any]] = []  # where continue and break go
        for (name, hint), argument in zip(arguments.items(), made.args, strict=True):
            self.assign(self.local(name, hint), Value(hint, argument))

    def translate(self) -> None:
        lines, first = inspect.getsourcelines(self.function)
        try:
            tree: Any = ast.parse(textwrap.dedent("".join(lines))).body[0]
            self.run(tree.body)
        except Refused as refused:
            message, node = refused.args
            line = first + node.lineno - 1
            at = (inspect.getsourcefile(self.function), line, node.col_offset + 1, lines[node.lineno - 1])
            raise SyntaxError(f"restricted Python has no {message}", at) from None
        if not self.builder.block.is_terminated:
            self.builder.ret_void() if self.result == NONE else self.builder.unreachable()
        self.entry.branch(self.body)

    # statements

    def run(self, statements: list) -> None:
        for node in statements:
            if not self.builder.block.is_terminated:
                self.handler("run", node)(node)

    def handler(self, what: str, node: Any) -> Callable:
        found = getattr(self, f"{what}_{type(node).__name__}", None)
        if found is None:
            raise Refused(type(node).__name__, node)
        return found

    def run_Expr(self, node: ast.Expr) -> None:
        if not isinstance(node.value, ast.Constant):
            self.value(node.value)

    def run_Assign(self, node: ast.Assign) -> None:
        values = [self.value(item) for item in _items(node.value)]
        for target in node.targets:
            places = _items(target)
            if len(places) != len(values):
                raise Refused(f"assignment of {len(values)} values to {len(places)} places", node)
            for place, value in zip(places, values, strict=True):
                self.assign(self.place(place, value.type), value, node)

    def run_AugAssign(self, node: ast.AugAssign) -> None:
        place = self.place(node.target)
        self.assign(place, self.operation(node, self.read(place), self.value(node.value)), node)

    def run_Return(self, node: ast.Return) -> None:
        if node.value is None:
            self.builder.ret_void()
        else:
            self.builder.ret(self.convert(self.value(node.value), self.result, node))

    def run_If(self, node: ast.If) -> None:
        then, other, after = (self.made.append_basic_block(name) for name in ("then", "else", "after"))
        self.builder.cbranch(self.truth(node.test), then, other)
        for block, statements in ((then, node.body), (other, node.orelse)):
            self.builder.position_at_end(block)
            self.run(statements)
            self.go(after)
        self.builder.position_at_end(after)

    def run_While(self, node: ast.While) -> None:
        self.loop(node, lambda: self.truth(node.test))

    def run_For(self, node: Any) -> None:
        if not (isinstance(node.iter, ast.Call) and self.resolve(node.iter.func) is range):
            raise Refused("loop but over a range", node)
        bounds = [self.convert(self.value(bound), INT, node) for bound in node.iter.args]
        start, stop = (self.constant(0).value, *bounds) if len(bounds) == 1 else bounds
        counter = self.entry.alloca(self.module.llvm(INT))
        self.builder.store(start, counter)
        if node.target.id not in self.locals:
            self.local(node.target.id, INT)

        at = Value(INT, counter)

        def following() -> None:
            self.builder.store(self.builder.add(self.read(at).value, self.constant(1).value), counter)

        self.loop(
            node,
            lambda: self.builder.icmp_signed("<", self.read(at).value, stop),
            following,
            lambda: self.assign(self.locals[node.target.id], self.read(at)),
        )

    def loop(self, node: Any, more: Callable, following: Callable = _nothing, first: Callable = _nothing) -> None:
        if node.orelse:
            raise Refused("else of a loop", node)
        test, body, last, after = (self.made.append_basic_block(name) for name in ("test", "body", "next", "after"))
        self.go(test)
        self.builder.position_at_end(test)
        self.builder.cbranch(more(), body, after)
        self.builder.position_at_end(body)
        self.loops.append((last, after))
        first()
        self.run(node.body)
        self.loops.pop()
        self.go(last)
        self.builder.position_at_end(last)
        following()
        self.go(test)
        self.builder.position_at_end(after)

    def run_Break(self, node: ast.Break) -> None:
        self.go(self.loops[-1][1])

    def run_Continue(self, node: ast.Continue) -> None:
        self.go(self.loops[-1][0])

    def go(self, block: Any) -> None:
        if not self.builder.block.is_terminated:
            self.builder.branch(block)

    # places

    def local(self, name: str, type: Type) -> Value:
        self.locals[name] = Value(type, self.entry.alloca(self.module.llvm(type), name=name))
        return self.locals[name]

    def place(self, node: Any, new: Type | None = None) -> Value:
        """A pointer to what a name, an attribute or an index says, and the type of what is there.

        A name that is not there yet has the type ``new``.
        """
        if isinstance(node, ast.Name) and node.id in self.locals:
            return self.locals[node.id]
        if isinstance(node, ast.Name) and new is not None:
            return self.local(node.id, new)
        if isinstance(node, ast.Attribute):
            owner = self.value(node.value)
            own = fields(owner.type.of) if owner.type.kind == "struct" else {}
            if node.attr not in own:
                raise Refused(f"attribute {node.attr} of {owner.type.kind}", node)
            i32 = self.ir.IntType(32)
            path = [self.ir.Constant(i32, 0), self.ir.Constant(i32, list(own).index(node.attr))]
            return Value(own[node.attr], self.pointer(owner.value, path, owner.type))
        if isinstance(node, ast.Subscript):
            items = self.value(node.value)
            if items.type.kind == "list":
                index = self.convert(self.value(node.slice), INT, node)
                return Value(items.type.of, self.pointer(items.value, [index], items.type.of))
        raise Refused(f"place {ast.unparse(node)}", node)

    def pointer(self, base: Any, path: list, type: Type) -> Any:
        return self.builder.gep(base, path, inbounds=True, source_etype=self.module.element(type))

    def read(self, place: Value) -> Value:
        loaded = self.builder.load(place.value, typ=self.module.llvm(place.type))
        if place.type == SINGLE:
            return Value(FLOAT, self.builder.fpext(loaded, self.module.llvm(FLOAT)))
        return Value(place.type, loaded)

    def assign(self, place: Value, value: Value, node: Any = None) -> None:
        if place.type == SINGLE:
            number = self.builder.fptrunc(self.convert(value, FLOAT, node), self.module.llvm(SINGLE))
        else:
            number = self.convert(value, place.type, node)
        self.builder.store(number, place.value)

    # values

    def value(self, node: Any) -> Value:
        return self.handler("value", node)(node)

    def truth(self, node: Any) -> Any:
        return self.convert(self.value(node), BOOL, node)

    def constant(self, value: Any) -> Value:
        kind = BOOL if isinstance(value, bool) else FLOAT if isinstance(value, float) else INT
        kind = WORD64 if kind == INT and value >= 1 << 63 else kind
        return Value(kind, self.ir.Constant(self.module.llvm(kind), value))

    def convert(self, value: Value, to: Type, node: Any) -> Any:
        if value.type == to or (to == ADDRESS and value.type.kind in ("list", "struct")):
            return value.value
        if value.type == INT and to == FLOAT:
            return self.builder.sitofp(value.value, self.module.llvm(FLOAT))
        if value.type == INT and to == WORD64 and isinstance(value.value, self.ir.Constant):
            return value.value
        raise Refused(f"way from {value.type.kind} to {to.kind}", node)

    def common(self, a: Value, b: Value) -> Type:
        return next((kind for kind in (FLOAT, WORD64) if kind in (a.type, b.type)), a.type)

    def value_Constant(self, node: ast.Constant) -> Value:
        if not isinstance(node.value, (int, float)):
            raise Refused(f"constant {node.value!r}", node)
        return self.constant(node.value)

    def value_Name(self, node: ast.Name) -> Value:
        return self.read(self.locals[node.id]) if node.id in self.locals else self.known(node)

    def value_Attribute(self, node: ast.Attribute) -> Value:
        return self.known(node) if inspect.ismodule(self.resolve(node.value)) else self.read(self.place(node))

    def known(self, node: Any) -> Value:
        """A number, or a function, of the module that the function is in."""
        value = self.resolve(node)
        if isinstance(value, (int, float)):
            return self.constant(value)
        if inspect.isfunction(value):
            return Value(CODE, self.module.function(value).made)
        raise Refused(f"name {ast.unparse(node)} with a value", node)

    def resolve(self, node: Any) -> Any:
        """What Python has under a name that is not a local one; None if nothing."""
        if isinstance(node, ast.Name) and node.id not in self.locals:
            return self.function.__globals__.get(node.id, getattr(builtins, node.id, None))
        return getattr(self.resolve(node.value), node.attr, None) if isinstance(node, ast.Attribute) else None

    def value_Subscript(self, node: ast.Subscript) -> Value:
        if not isinstance(node.slice, ast.Slice):
            place = self.place(node)
            return place if place.type.kind == "struct" else self.read(place)
        items = self.value(node.value)
        if items.type.kind != "list" or node.slice.lower is None or node.slice.upper or node.slice.step:
            raise Refused("slice but x[i:] of a list", node)
        index = self.convert(self.value(node.slice.lower), INT, node)
        return Value(items.type, self.pointer(items.value, [index], items.type.of))

    def value_BinOp(self, node: ast.BinOp) -> Value:
        return self.operation(node, self.value(node.left), self.value(node.right))

    def operation(self, node: Any, left: Value, right: Value) -> Value:
        kind = FLOAT if isinstance(node.op, ast.Div) else self.common(left, right)
        name = _OPERATIONS.get(kind.kind, {}).get(type(node.op))
        if name is None:
            raise Refused(f"{type(node.op).__name__} of {kind.kind}", node)
        a, b = self.convert(left, kind, node), self.convert(right, kind, node)
        made = getattr(self.builder, name)(a, b, flags=self.flags if kind == FLOAT else ())
        return Value(kind, made)

    def value_UnaryOp(self, node: ast.UnaryOp) -> Value:
        if isinstance(node.op, ast.Not):
            return Value(BOOL, self.builder.not_(self.truth(node.operand)))
        value = self.value(node.operand)
        if not isinstance(node.op, ast.USub) or value.type not in (INT, FLOAT):
            raise Refused(f"{type(node.op).__name__} of {value.type.kind}", node)
        return Value(value.type, (self.builder.neg if value.type == INT else self.builder.fneg)(value.value))

    def value_Compare(self, node: ast.Compare) -> Value:
        values = [self.value(item) for item in (node.left, *node.comparators)]
        found = []
        for a, b, operator in zip(values, values[1:], node.ops, strict=False):
            kind, sign = self.common(a, b), _COMPARED.get(type(operator))
            if sign is None or kind.kind not in _OPERATIONS:
                raise Refused(f"{type(operator).__name__} of {kind.kind}", node)
            floats = self.builder.fcmp_unordered if sign == "!=" else self.builder.fcmp_ordered
            words = {"float": floats, "int": self.builder.icmp_signed, "Word": self.builder.icmp_unsigned}[kind.kind]
            found.append(words(sign, self.convert(a, kind, node), self.convert(b, kind, node)))
        return Value(BOOL, functools.reduce(self.builder.and_, found))

    def value_BoolOp(self, node: ast.BoolOp) -> Value:
        """The second is not evaluated where the first decides."""
        decides = isinstance(node.op, ast.Or)
        place = Value(BOOL, self.entry.alloca(self.module.llvm(BOOL)))
        after = self.made.append_basic_block("decided")
        for item in node.values:
            self.builder.store(self.truth(item), place.value)
            following = self.made.append_basic_block("undecided")
            decided, open = (after, following) if decides else (following, after)
            self.builder.cbranch(self.read(place).value, decided, open)
            self.builder.position_at_end(following)
        self.go(after)
        self.builder.position_at_end(after)
        return self.read(place)

    def value_IfExp(self, node: ast.IfExp) -> Value:
        then, other, after = (self.made.append_basic_block(name) for name in ("then", "else", "after"))
        self.builder.cbranch(self.truth(node.test), then, other)
        found = []
        for block, item in ((then, node.body), (other, node.orelse)):
            self.builder.position_at_end(block)
            found.append((self.value(item), self.builder.block))
        kind = self.common(found[0][0], found[1][0])
        place = Value(kind, self.entry.alloca(self.module.llvm(kind)))
        for value, block in found:
            self.builder.position_at_end(block)
            self.assign(place, value, node)
            self.go(after)
        self.builder.position_at_end(after)
        return self.read(place)

    def value_Call(self, node: ast.Call) -> Value:
        values = [self.value(item) for item in node.args]
        known = self.resolve(node.func)
        if known is None:
            return self.called_code(node, self.value(node.func), values)
        if inspect.isfunction(known):
            found = self.module.function(known)
            if len(values) != len(found.arguments):
                raise Refused(f"call of {known.__name__} by {len(values)} arguments", node)
            passed = [self.convert(value, hint, node) for value, hint in zip(values, found.arguments, strict=True)]
            return Value(found.result, self.builder.call(found.made, passed))
        if known in (min, max) and len(values) == 2:
            a, b = values
            kind = self.common(a, b)
            a, b = self.convert(a, kind, node), self.convert(b, kind, node)
            sign = "<" if known is min else ">"
            second = (self.builder.fcmp_ordered if kind == FLOAT else self.builder.icmp_signed)(sign, b, a)
            return Value(kind, self.builder.select(second, b, a))
        (value,) = values
        if known is float and value.type == WORD64:
            return Value(FLOAT, self.builder.uitofp(value.value, self.module.llvm(FLOAT)))
        if known is int and value.type == BOOL:
            return Value(INT, self.builder.zext(value.value, self.module.llvm(INT)))
        number = Value(FLOAT, self.convert(value, FLOAT, node))
        if known is float:
            return number
        if known is int:
            return self.whole(number.value)
        if known is math.isfinite:
            none = self.builder.fsub(number.value, number.value)
            return Value(BOOL, self.builder.fcmp_ordered("==", none, self.constant(0.0).value))
        if known in _ROUNDED:
            return self.whole(self.builder.call(self.module.intrinsic(_ROUNDED[known]), [number.value]))
        if known in (math.exp, math.log) and self.module.written_out:
            from genmlx.native import functions

            return Value(FLOAT, getattr(functions, _INTRINSICS[known])(Straight(self), number.value))
        if known in _INTRINSICS:
            return Value(FLOAT, self.builder.call(self.module.intrinsic(_INTRINSICS[known]), [number.value]))
        raise Refused(f"function {ast.unparse(node.func)}", node)

    def whole(self, value: Any) -> Value:
        return Value(INT, self.builder.fptosi(value, self.module.llvm(INT)))

    def called_code(self, node: Any, code: Value, values: list[Value]) -> Value:
        if code.type != CODE:
            raise Refused(f"call of {ast.unparse(node.func)}", node)
        signature = self.ir.FunctionType(self.module.llvm(NONE), [self.module.llvm(value.type) for value in values])
        code.value.type = self.ir.PointerType(signature)  # what it points to, for llvmlite: LLVM does not ask
        return Value(NONE, self.builder.call(code.value, [value.value for value in values]))
