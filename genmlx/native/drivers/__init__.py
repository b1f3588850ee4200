"""The samplers as machine code, for any density: compiled by the first process on a machine, and kept on disk.

They are written in restricted Python (``genmlx/native/restricted.py``), and know a density by the address of a function
``void f(void** inputs, void** outputs, void** constants, void* scratch)``.
"""

from __future__ import annotations

import ctypes
import functools
import inspect
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

from genmlx.native import cache, llvm, restricted, translation
from genmlx.native.drivers import chain, noise


class Drivers:
    """The functions of ``running.py``, to be called; and the addresses of transitions, by name."""

    def __init__(self, code: llvm.Loaded, lanes: bool):
        self.address = functools.cache(code.address)
        whole, pointer = ctypes.c_int64, ctypes.c_void_p
        self.sample = self._function("sample", pointer, pointer, whole, whole, whole, pointer, pointer, whole)
        if not lanes:
            self.sample_slices = self._function("sample_slices", pointer, *[whole] * 4, pointer, pointer)
        self.warm = self._function("warm", pointer, whole, pointer, whole, whole, pointer)
        self.warm_alone = self._function("warm_alone", pointer, pointer, whole, whole, pointer)
        self.advance = self._function("advance", pointer, pointer, whole)
        self.settle = self._function("settle", pointer, whole, pointer)
        self.joints = self._function("joints", pointer, pointer, whole, pointer)
        self.each = self._function("each", pointer, whole, pointer)
        self._code = code

    def _function(self, name: str, *arguments: Any) -> Callable:
        return ctypes.CFUNCTYPE(None, *arguments)(self.address(name))


@functools.cache
def drivers(lanes: bool = False) -> Drivers:
    """Those of this process: of chains, or of packs of chains in lanes."""
    functions = _functions_of_packs() if lanes else _functions()
    name = cache.key(*[inspect.getsource(module) for module in _modules(functions)])
    kept = cache.read(name)
    text = str(restricted.translate(*functions, written_out=lanes)) if kept is None else kept.decode()
    if kept is None:
        cache.write(name, text.encode())
    return Drivers(llvm.load(text), lanes)


def _functions() -> list[Callable]:
    from genmlx.native.drivers import hmc, nuts, running, slices, walks

    samplers = [nuts.nuts, hmc.hmc, walks.mala, walks.random_walk]
    firsts = [nuts.first_leap, hmc.first_jittered_leap, walks.first_langevin, walks.first_shift]
    loops = [running.sample, running.warm, running.warm_alone, running.advance, running.settle, slices.sample_slices]
    return [*samplers, *firsts, *loops, running.joints, running.each, chain.begin]


def _functions_of_packs() -> list[Callable]:
    from genmlx.native.drivers import lockstep, pack, packs, running

    samplers = [lockstep.hmc, lockstep.mala, lockstep.random_walk]
    firsts = [lockstep.first_jittered_leap, lockstep.first_langevin, lockstep.first_shift]
    loops = [packs.sample, packs.warm, packs.warm_alone, packs.advance, running.settle]
    return [*samplers, *firsts, *loops, packs.joints, packs.each, pack.begin]


def _modules(made: list[Callable]) -> list[ModuleType]:
    """Those whose text the drivers depend on."""
    from genmlx.native import coefficients, functions

    own = {chain, *(sys.modules[function.__module__] for function in made)}
    constants = [sys.modules[f"genmlx.inference.{name}"] for name in ("hmc", "nuts", "warmup")]
    shared = [restricted, translation, functions, coefficients, noise, *constants]
    return [*shared, *sorted(own, key=lambda module: module.__name__)]
