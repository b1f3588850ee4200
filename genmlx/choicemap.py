"""Choice maps: immutable, hierarchical maps from addresses to values."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Mapping
from typing import Any

import mlx.core as mx

from genmlx.address import normalise
from genmlx.display import mimebundle, pretty
from genmlx.errors import AddressError, UnknownAddress, UsageError, nearest, one_of, show_address
from genmlx.pytree import map_arrays, register
from genmlx.selection import ALL, NONE, Selection, as_selection, select

_MISSING = object()
_REPR_LEAVES, _REPR_ELEMENTS = 8, 6


class ChoiceMap:
    """Choices by address. ``choicemap({...})`` makes one; every operation returns a new one.

    A map that came out of a batch of N traces carries ``n``: each of its leaves has the lanes on axis 0.

    >>> cm = choicemap({"slope": 2.0, ("y", 0): 2.1, ("y", 1): 3.9})
    >>> cm["slope"], cm["y", 0], cm["y"]
    (2.0, 2.1, choicemap({0: 2.1, 1: 3.9}))
    >>> cm.set("slope", 3.0) | {("y", 2): 6.2}
    choicemap({'slope': 3.0, ('y', 0): 2.1, ('y', 1): 3.9, ('y', 2): 6.2})
    """

    __slots__ = ("_root", "n")

    # The root is a dict from address parts to roots, or a leaf. Dicts are never changed once wrapped.
    def __init__(self, root: Any, n: int | None = None):
        self._root, self.n = root, n

    # reading

    @property
    def is_leaf(self) -> bool:
        return type(self._root) is not dict

    @property
    def is_empty(self) -> bool:
        return type(self._root) is dict and not self._root

    @property
    def value(self) -> Any:
        """The value of a leaf."""
        return self._root

    def sub(self, address: tuple) -> ChoiceMap:
        """What lies under an address (a tuple): a leaf, a sub-map, or the empty map."""
        root = self._root
        for part in address:
            root = root.get(part, _MISSING) if type(root) is dict else _MISSING
            if root is _MISSING:
                return EMPTY
        return ChoiceMap(root, self.n)

    def __getitem__(self, address: Any) -> Any:
        address = normalise(address)
        found = self.sub(address)
        if found.is_empty and address:
            known = [a for a, _ in self.items()]
            raise UnknownAddress(
                "no choice",
                address=address,
                suggestions=nearest(address, known),
                expected=one_of(known),
            )
        return found._root if found.is_leaf else found

    def get(self, address: Any, default: Any = None) -> Any:
        found = self.sub(normalise(address))
        return default if found.is_empty else found._root if found.is_leaf else found

    def __contains__(self, address: Any) -> bool:
        return not self.sub(normalise(address)).is_empty

    def __len__(self) -> int:
        return sum(1 for _ in self.items())

    def __bool__(self) -> bool:
        return not self.is_empty

    def items(self) -> Iterator[tuple[tuple, Any]]:
        """``(address tuple, value)`` of every leaf, in insertion order."""
        return _walk(self._root, ())

    def __iter__(self) -> Iterator[tuple]:
        return (address for address, _ in self.items())

    def addresses(self) -> list[tuple]:
        return list(self)

    def parts(self) -> list:
        """The first parts of the addresses."""
        return list(self._root) if type(self._root) is dict else []

    def to_dict(self) -> dict[tuple, Any]:
        """``{address tuple: value}``; ``choicemap`` of it is this map again."""
        return dict(self.items())

    # algebra

    def set(self, address: Any, value: Any) -> ChoiceMap:
        """With ``value`` (a leaf, a map or a dict) at ``address``, in the place of what was at or under it."""
        entry = as_choicemap(value, leaf=True)
        mine, entry = self._lifted(entry), entry._lifted(self)
        return ChoiceMap(_put(mine._root, normalise(address), entry._root, ()), mine.n)

    def without_sub(self, address: tuple) -> ChoiceMap:
        """Without what lies at or under one address."""
        return ChoiceMap(_drop(self._root, address), self.n)

    def merge(self, other: Any) -> ChoiceMap:
        """Both maps' choices; where both have a leaf, the other's. A leaf against a sub-map raises."""
        mine, theirs = self._lifted(other := as_choicemap(other)), other._lifted(self)
        return ChoiceMap(_merge(mine._root, theirs._root, ()), mine.n if mine.n is not None else theirs.n)

    __or__ = merge

    def __ror__(self, other: Any) -> ChoiceMap:
        return as_choicemap(other).merge(self)

    def filter(self, selection: Any) -> ChoiceMap:
        """Only the selected choices."""
        return ChoiceMap(_filter(self._root, as_selection(selection)), self.n)

    def without(self, selection: Any) -> ChoiceMap:
        """All but the selected choices."""
        return self.filter(~as_selection(selection))

    def map(self, f: Any) -> ChoiceMap:
        """``f`` of every leaf."""
        return ChoiceMap(_map(self._root, f), self.n)

    def batched(self, n: int) -> ChoiceMap:
        """Say that every leaf already has ``n`` lanes on axis 0, one for each trace of a batch."""
        arrays = self.map(_as_array)
        for address, value in arrays.items():
            if value.shape[:1] != (n,):
                raise UsageError(
                    f"the leaf has no {n} lanes on axis 0", address=address, expected=f"an array of shape [{n}, ...]"
                )
        return ChoiceMap(arrays._root, n)

    def repeated(self, n: int) -> ChoiceMap:
        """The same values in each of ``n`` lanes."""
        return self._lifted(ChoiceMap({}, n))

    def lane(self, i: Any) -> ChoiceMap:
        """One lane of a batched map: the choices that this lane has."""
        from genmlx.masked import settled_choices

        return settled_choices(from_items((address, leaf[i]) for address, leaf in self.items()))

    def _lifted(self, other: ChoiceMap) -> ChoiceMap:
        """This map with lanes, when the other has them and this has not."""
        if other.n is None or self.n == other.n:
            return self
        if self.n is not None:
            raise UsageError(f"choice maps of {self.n} and {other.n} lanes do not go together")
        n = other.n

        def lift(leaf: Any) -> Any:
            return map_arrays(lambda array: mx.broadcast_to(array, (n, *array.shape)), _as_array(leaf))

        return ChoiceMap(_map(self._root, lift), n)

    # display and comparison

    def __eq__(self, other: object) -> bool:
        """Equal values at the same addresses, also where one says with a mask that a choice is there, or is not."""
        from genmlx.masked import anywhere, settled

        if not isinstance(other, ChoiceMap):
            return NotImplemented
        mine, theirs = ({a: settled(v) for a, v in choices.items() if anywhere(v)} for choices in (self, other))
        return mine.keys() == theirs.keys() and all(_equal(v, theirs[a]) for a, v in mine.items())

    __hash__ = None  # type: ignore[assignment]

    _repr_mimebundle_, _repr_pretty_ = mimebundle, pretty

    def __repr__(self) -> str:
        if self.is_leaf:
            return f"choicemap({{(): {show_value(self._root)}}})"
        entries = []
        for address, value in self.items():
            if len(entries) == _REPR_LEAVES:
                entries.append(f"...+{len(self) - _REPR_LEAVES}")
                break
            entries.append(f"{show_address(address)}: {show_value(value)}")
        lanes = "" if self.n is None else f".batched({self.n})"
        return f"choicemap({{{', '.join(entries)}}}){lanes}"


EMPTY = ChoiceMap({})

register(
    ChoiceMap,
    lambda cm: (list(cm.to_dict().values()), (tuple(cm), cm.n)),
    lambda fixed, leaves: from_items(zip(fixed[0], leaves, strict=True), fixed[1]),
)


def choicemap(entries: Mapping | ChoiceMap | None = None, /, **named: Any) -> ChoiceMap:
    """A choice map from ``{address: value}`` and keywords. A dict as a value is a sub-map.

    >>> choicemap({"a": {"b": 1}}, slope=2.0)
    choicemap({('a', 'b'): 1, 'slope': 2.0})
    """
    base = EMPTY if entries is None else as_choicemap(entries)
    return base.merge(_from_mapping(named)) if named else base


def as_choicemap(value: Any, leaf: bool = False) -> ChoiceMap:
    """A choice map from what a user passes: a map or a dict; with ``leaf``, any other value is a leaf."""
    if isinstance(value, ChoiceMap):
        return value
    if isinstance(value, Mapping):
        return _from_mapping(value)
    if leaf:
        return ChoiceMap(value)
    if value is None:
        return EMPTY
    raise UsageError(f"{type(value).__name__} is not a choice map", expected="a choice map or a dict of choices")


def from_items(items: Any, n: int | None = None) -> ChoiceMap:
    """A choice map from ``(address tuple, value or map)`` pairs that do not collide."""
    root: Any = {}
    for address, value in items:
        leaf = value._root if isinstance(value, ChoiceMap) else value
        if not address:
            # A copy, because what follows is put into it.
            root = _merge(root, leaf, ()) if root else dict(leaf) if type(leaf) is dict else leaf
            continue
        if type(leaf) is dict and not leaf:
            continue
        node = root
        for part in address[:-1]:
            node = node.setdefault(part, {})
        node[address[-1]] = leaf
    return ChoiceMap(root, n)


def _as_array(leaf: Any) -> Any:
    return leaf if hasattr(leaf, "active") else mx.array(leaf)


def covering(choices: ChoiceMap) -> Selection:
    """The selection of exactly the addresses of a map."""
    return NONE if choices.is_empty else select(*choices.addresses())


def _from_mapping(entries: Mapping) -> ChoiceMap:
    root: Any = {}
    for address, value in entries.items():
        address, below = normalise(address), as_choicemap(value, leaf=True)._root
        if type(below) is dict and not below:
            continue
        for part in reversed(address):
            below = {part: below}
        root = _merge(root, below, (), strict=True) if root or not address else below
        if not address and type(below) is not dict and len(entries) > 1:
            raise AddressError("a choice at the empty address leaves no room for others")
    return ChoiceMap(root)


def _walk(root: Any, prefix: tuple) -> Iterator[tuple[tuple, Any]]:
    if type(root) is not dict:
        yield prefix, root
        return
    for part, below in root.items():
        yield from _walk(below, (*prefix, part))


def _merge(mine: Any, theirs: Any, prefix: tuple, strict: bool = False) -> Any:
    if type(mine) is dict and type(theirs) is dict:
        merged = dict(mine)
        for part, below in theirs.items():
            merged[part] = _merge(mine[part], below, (*prefix, part), strict) if part in mine else below
        return merged
    if type(mine) is dict and not mine:
        return theirs
    if type(theirs) is dict and not theirs:
        return mine
    if strict:
        raise AddressError(
            "a choice map names a choice twice, or a choice and something under it:",
            address=prefix,
            expected="each address once, and nothing under a choice",
            hint="leave one of them out",
        )
    if type(mine) is dict or type(theirs) is dict:
        raise _leaf_against_sub_map(prefix)
    return theirs


def _leaf_against_sub_map(address: tuple) -> AddressError:
    return AddressError(
        "one choice map has a value where the other has a sub-map:",
        address=address,
        expected="a value in both, or a sub-map in both",
        hint="take one of them out with .without(select(...)) first",
    )


def _put(root: Any, address: tuple, new: Any, prefix: tuple) -> Any:
    if type(new) is dict and not new:
        return _drop(root, address)
    if not address:
        return new
    if type(root) is not dict:
        raise _leaf_against_sub_map(prefix)
    part = address[0]
    return {**root, part: _put(root.get(part, {}), address[1:], new, (*prefix, part))}


def _drop(root: Any, address: tuple) -> Any:
    if not address:
        return {}
    if type(root) is not dict or address[0] not in root:
        return root
    below = _drop(root[address[0]], address[1:])
    if type(below) is dict and not below:
        return {part: child for part, child in root.items() if part != address[0]}
    return {**root, address[0]: below}


def _filter(root: Any, selection: Selection) -> Any:
    if selection is ALL:
        return root
    if selection is NONE:
        return {}
    if type(root) is not dict:
        return root if selection.here else {}
    kept = {part: _filter(below, selection.below(part)) for part, below in root.items()}
    return {part: below for part, below in kept.items() if type(below) is not dict or below}


def _map(root: Any, f: Any) -> Any:
    return {part: _map(below, f) for part, below in root.items()} if type(root) is dict else f(root)


def _equal(a: Any, b: Any) -> bool:
    if hasattr(a, "equals"):  # a value that only some lanes have
        return a.equals(b)
    try:
        a, b = mx.array(a), mx.array(b)
    except (TypeError, ValueError):  # not numbers
        return a == b
    return a.shape == b.shape and bool(mx.all((a == b) | ((a != a) & (b != b))).item())


def show_value(value: Any) -> str:
    """A value as Python writes it when it is small, else its type and shape. Evaluating it gives the value again."""
    if type(value) is list:
        return f"[{', '.join(map(show_value, value))}]"
    if type(value) is tuple:
        return f"({', '.join(map(show_value, value))}{',' if len(value) == 1 else ''})"
    if type(value) is float:
        return _nested(value, repr)
    given = value
    if not isinstance(value, mx.array):
        try:
            value = mx.array(value) if hasattr(value, "dtype") else None
        except (TypeError, ValueError):
            value = None
        if value is None:
            return repr(given)
    if value.size > _REPR_ELEMENTS:
        return f"<{show_type(value)}>"
    dtype = str(value.dtype).rsplit(".", 1)[-1].replace("bool", "bool_")
    digits = repr if dtype == "float64" else _short
    try:
        if value.ndim == 0:
            return _nested(value.item(), digits)
        return f"mx.array({_nested(value.tolist(), digits)}, mx.{dtype})"
    except ValueError:  # being traced by a transformation: there is no value yet
        return f"<{show_type(value)}>"


def show_type(value: mx.array) -> str:
    """``f32[1000]``"""
    name = str(value.dtype).rsplit(".", 1)[-1].replace("float", "f").replace("uint", "u").replace("int", "i")
    return f"{name}[{','.join(map(str, value.shape))}]"


def _nested(value: Any, digits: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(_nested(v, digits) for v in value)}]"
    if not isinstance(value, float):
        return repr(value)
    return digits(value) if math.isfinite(value) else f"float({str(value)!r})"


def _short(x: float) -> str:
    """The fewest digits, at least 7, that give back a float32."""
    texts = [f"{x:.{n}g}" for n in (7, 8, 9)]
    text = next((t for t in texts if struct.pack("f", float(t)) == struct.pack("f", x)), texts[-1])
    return text if "e" in text or "." in text else text + ".0"
