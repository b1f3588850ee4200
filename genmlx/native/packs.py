"""The memory of packs: chains in lanes, so many at once as there are lanes."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np

from genmlx.native.drivers.pack import LANES, Pack
from genmlx.native.restricted import fields, structure

_PACK = structure(Pack)
_ALIGNED = 64


def packs_of(chains: Any, pairs: int) -> Any:
    """Packs for an array of chains, whose mean has ``dim`` squares, or pairs; the array owns its memory."""
    n, dim = len(chains), chains[0].dim
    found: Any = (_PACK * -(-n // LANES))()
    sizes = {"stats": 8, "position": dim, "gradient": dim, "mean": dim, "squares": pairs}
    names = [name for name, type in fields(Pack).items() if type.kind == "list" and name != "chains"]
    room = np.zeros(len(found) * LANES * sum(sizes.get(name, 1) for name in names) + _ALIGNED, dtype=np.uint64)
    at = -(-room.ctypes.data // _ALIGNED) * _ALIGNED
    for i, pack in enumerate(found):
        pack.chains = ctypes.addressof(chains) + i * LANES * ctypes.sizeof(chains[0])
        pack.n = min(LANES, n - i * LANES)
        for name in names:
            setattr(pack, name, at)
            at += 8 * LANES * sizes.get(name, 1)
    found.owned = room
    return found
