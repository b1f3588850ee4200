"""From an ``llvmlite.ir`` module to machine code in this process.

>>> from llvmlite import ir
>>> module = ir.Module("doctest")
>>> function = ir.Function(module, ir.FunctionType(ir.IntType(64), [ir.IntType(64)]), "twice")
>>> builder = ir.IRBuilder(function.append_basic_block())
>>> _ = builder.ret(builder.add(function.args[0], function.args[0]))
>>> import ctypes
>>> loaded = load(module)
>>> ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_int64)(loaded.address("twice"))(21)
42
"""

from __future__ import annotations

import functools
import threading
from typing import Any

import mlx.core as mx

from genmlx.errors import UsageError
from genmlx.native import cache

_PIPELINE = "4"  # the version of `_compiled`
_LOCK = threading.Lock()  # LLVM's contexts are not for several threads


class Loaded:
    """Machine code: its functions live as long as this object."""

    def __init__(self, engine: Any, cached: bool):
        self._engine, self.cached = engine, cached

    def address(self, name: str) -> int:
        """Where the function ``name`` begins."""
        return self._engine.get_function_address(name)


def load(module: Any) -> Loaded:
    """The functions of an ``llvmlite.ir.Module``, optimised for this machine; its object code is kept on disk.

    Raises RuntimeError, from LLVM, for a module that is not well formed.
    """
    text = str(module)
    with _LOCK:
        host = _host()
        name = cache.key(text, *host.names)
        code = cache.read(name)
        cached = code is not None
        if code is None:
            code = _compiled(host, text)
            cache.write(name, code)
        return Loaded(_engine(host, code), cached)


def binding() -> Any:
    """``llvmlite.binding``, ready for use."""
    try:
        from llvmlite import binding
    except ImportError:
        raise UsageError(
            "native kernels need llvmlite, which is not installed", hint="pip install 'genmlx[native]'"
        ) from None
    return binding


class _Host:
    """This machine, for LLVM."""

    def __init__(self) -> None:
        import llvmlite

        llvm = binding()
        llvm.initialize_native_target()
        llvm.initialize_native_asmprinter()
        llvm.load_library_permanently("")  # what the process has: libm
        # Loop strength reduction takes seconds where a loop reads fifty arrays, and gains nothing here. LLVM has no
        # switch for it but this one, for the whole process.
        llvm.set_option("", "-disable-lsr")
        self.cpu, self.features = llvm.get_host_cpu_name(), llvm.get_host_cpu_features().flatten()
        self.target = llvm.Target.from_default_triple()
        version: Any = mx
        versions = [llvmlite.__version__, version.__version__, _own_version(), _PIPELINE]
        self.names = [self.target.triple, self.cpu, self.features, *versions]

    def machine(self) -> Any:
        return self.target.create_target_machine(cpu=self.cpu, features=self.features, opt=3, codemodel="jitdefault")


def _own_version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("genmlx")
    except PackageNotFoundError:
        return ""


@functools.cache
def _host() -> _Host:
    return _Host()


def _compiled(host: _Host, text: str) -> bytes:
    llvm, machine = binding(), host.machine()
    parsed = llvm.parse_assembly(text)
    parsed.triple, parsed.data_layout = host.target.triple, str(machine.target_data)
    parsed.verify()
    options = llvm.create_pipeline_tuning_options(speed_level=3)
    options.loop_unrolling = False  # ten times the compile time, and slower code
    passes = llvm.create_pass_builder(machine, options)
    passes.getModulePassManager().run(parsed, passes)
    return machine.emit_object(parsed)


def _engine(host: _Host, code: bytes) -> Any:
    llvm = binding()
    empty = llvm.parse_assembly("")
    empty.triple = host.target.triple
    engine = llvm.create_mcjit_compiler(empty, host.machine())
    engine.add_object_file(llvm.ObjectFileRef.from_data(code))
    engine.finalize_object()
    return engine
