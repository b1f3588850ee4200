"""Functions of restricted Python as machine code, to be called from tests."""

import ctypes

import numpy as np

from genmlx.native import llvm
from genmlx.native.restricted import Word, translate

_TYPES = {int: ctypes.c_int64, float: ctypes.c_double, bool: ctypes.c_bool, Word: ctypes.c_uint64}
_LOADED = []


def compiled(function, result, *arguments, written_out=False):
    """The machine code of a function, to be called with numbers and numpy arrays; what is not a number is a pointer."""
    _LOADED.append(llvm.load(translate(function, written_out=written_out)))
    types = [_TYPES.get(argument, ctypes.c_void_p) for argument in arguments]
    call = ctypes.CFUNCTYPE(_TYPES.get(result), *types)(_LOADED[-1].address(function.__name__))
    return lambda *values: call(*[v.ctypes.data if isinstance(v, np.ndarray) else v for v in values])
