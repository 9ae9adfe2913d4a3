"""LLVM instructions on vectors, where numba's own loops would not become them. Compiles, so import it only where it is used."""

import inspect
from collections.abc import Callable
from typing import Any, Final

from llvmlite import ir
from numba import types
from numba.core import cgutils, config
from numba.core.codegen import get_host_cpu_features
from numba.extending import intrinsic

from trainer.maths.loops import machine_code

I32: Final = ir.IntType(32)
I64: Final = ir.IntType(64)
F32: Final = ir.FloatType()


def compiled(function: Callable[..., Any], **options: Any) -> Any:
    """A loop as machine code, kept on disk until its own file changes (numba looks at no other: after changes here, clear it)."""
    # of numpy: a division by zero would be asked about at every step, which no loop in vectors can
    return machine_code(function, error_model="numpy", **options)


def inlined(function: Callable[..., Any]) -> Any:
    """What compiled loops may call, from a function that returns its `instructions`."""
    return intrinsic(inspect.unwrap(function))


def instructions(write: Callable[[Any, Any], None], count: int) -> tuple[Any, Callable[..., None]]:
    """Those that `write(builder, args)` writes, of so many addresses, strides and counts, as numba takes them."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> None:
        write(builder, args)

    return types.void(*(types.uint64,) * count), code


def features() -> frozenset[str]:
    """What loops are compiled for: instructions as LLVM calls them, without those that numba's environment switches off."""
    if config.DISABLE_JIT:
        return frozenset()
    listed = get_host_cpu_features() if config.CPU_FEATURES is None else config.CPU_FEATURES
    return frozenset(name[1:] for name in listed.split(",") if name.startswith("+"))


class Writer:
    """Writes instructions at a builder's place."""

    def __init__(self, builder: Any) -> None:
        self.builder = builder

    def after(self, address: Any, *offsets: Any) -> Any:
        """An address so many bytes on."""
        for offset in offsets:
            address = self.builder.add(address, I64(offset) if isinstance(offset, int) else offset)
        return address

    def load(self, address: Any, kind: Any) -> Any:
        """A value, wherever it lies."""
        return self.builder.load(self.builder.inttoptr(address, kind.as_pointer()), align=1)

    def store(self, value: Any, address: Any) -> None:
        """A value, wherever it is to lie."""
        self.builder.store(value, self.builder.inttoptr(address, value.type.as_pointer()), align=1)

    def spread(self, value: Any, lanes: int) -> Any:
        """So many times a value."""
        blank = ir.Constant(ir.VectorType(value.type, lanes), ir.Undefined)
        one = self.builder.insert_element(blank, value, I32(0))
        return self.builder.shuffle_vector(one, blank, ir.Constant(ir.VectorType(I32, lanes), None))

    def call(self, name: str, *args: Any, kind: Any = None) -> Any:
        """One of LLVM's own functions, whose result is of `kind`, by default its first argument's."""
        taken = ir.FunctionType(kind or args[0].type, [argument.type for argument in args])
        return self.builder.call(cgutils.get_or_insert_function(self.builder.module, taken, name), args)
