"""Vectors of 16 float32 in numba kernels, which LLVM maps to what the machine has."""

from __future__ import annotations

import operator

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.errors import RequireLiteralValue
from numba.core.imputils import lower_builtin
from numba.core.typing.templates import ConcreteTemplate, infer_global, signature
from numba.extending import intrinsic, models, register_model

LANES = 16


class _Vector(types.Type):
    def __init__(self, name: str) -> None:
        super().__init__(name)


lanes = _Vector("lanes16f")
mask = _Vector("lanes16b")
_F32 = ir.FloatType()
_VECTOR = ir.VectorType(_F32, LANES)
_I32 = ir.IntType(32)


@register_model(_Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager, kind) -> None:
        super().__init__(manager, kind, _VECTOR if kind.name == "lanes16f" else ir.VectorType(ir.IntType(1), LANES))


def _operator(function, cases, build):
    infer_global(function)(type(function.__name__, (ConcreteTemplate,), {"cases": cases}))  # pyright: ignore
    for case in cases:
        lower_builtin(function, *case.args)(lambda context, builder, sig, args: build(builder, *args))


_binary = [signature(lanes, lanes, lanes)]
_compare = [signature(mask, lanes, lanes)]
_operator(operator.add, _binary, lambda b, x, y: b.fadd(x, y, flags=("contract",)))
_operator(operator.sub, _binary, lambda b, x, y: b.fsub(x, y, flags=("contract",)))
_operator(operator.mul, _binary, lambda b, x, y: b.fmul(x, y, flags=("contract",)))
_operator(operator.truediv, _binary, lambda b, x, y: b.fdiv(x, y))
_operator(operator.gt, _compare, lambda b, x, y: b.fcmp_ordered(">", x, y))
_operator(operator.le, _compare, lambda b, x, y: b.fcmp_ordered("<=", x, y))
_operator(operator.and_, [signature(mask, mask, mask)], lambda b, x, y: b.and_(x, y))


def _shuffle(builder, x, y, order):
    return builder.shuffle_vector(x, y, ir.Constant(ir.VectorType(_I32, len(order)), list(order)))


@intrinsic
def splat(typingctx, x):
    """A number in all lanes."""

    def codegen(context, builder, sig, args):
        value = context.cast(builder, args[0], sig.args[0], types.float32)
        one = builder.insert_element(ir.Constant(_VECTOR, ir.Undefined), value, _I32(0))
        return _shuffle(builder, one, one, [0] * LANES)

    return lanes(x), codegen


def address(context, builder, sig, args, kind):
    array = context.make_array(sig.args[0])(context, builder, args[0])
    return builder.bitcast(builder.gep(array.data, [args[1]]), kind.as_pointer())


@intrinsic
def spread(typingctx, array, at):
    """One number of a flat float32 array in all lanes, unchecked."""

    def codegen(context, builder, sig, args):
        value = builder.load(address(context, builder, sig, args, _F32))
        one = builder.insert_element(ir.Constant(_VECTOR, ir.Undefined), value, _I32(0))
        return _shuffle(builder, one, one, [0] * LANES)

    return lanes(array, types.intp), codegen


@intrinsic
def load(typingctx, array, start):
    """16 numbers of a flat float32 array, unchecked."""

    def codegen(context, builder, sig, args):
        return builder.load(address(context, builder, sig, args, _VECTOR), align=4)

    return lanes(array, types.intp), codegen


@intrinsic
def store(typingctx, array, start, x):
    """16 numbers into a flat float32 array, unchecked."""

    def codegen(context, builder, sig, args):
        builder.store(args[2], address(context, builder, sig, args, _VECTOR), align=4)
        return context.get_dummy_value()

    return types.void(array, types.intp, lanes), codegen


@intrinsic
def select(typingctx, condition, x, y):
    """x where the mask holds, else y."""

    def codegen(context, builder, sig, args):
        return builder.select(*args)

    return lanes(mask, lanes, lanes), codegen


@intrinsic
def some(typingctx, condition):
    """Whether a mask holds in any lane."""

    def codegen(context, builder, sig, args):
        bits = builder.bitcast(args[0], ir.IntType(LANES))
        return builder.icmp_unsigned("!=", bits, ir.IntType(LANES)(0))

    return types.boolean(mask), codegen


@intrinsic
def root(typingctx, x):
    """Square roots."""

    def codegen(context, builder, sig, args):
        kind = ir.FunctionType(_VECTOR, [_VECTOR])
        return builder.call(cgutils.get_or_insert_function(builder.module, kind, f"llvm.sqrt.v{LANES}f32"), args)

    return lanes(lanes), codegen


@intrinsic
def minus_abs(typingctx, x):
    """-|x|."""

    def codegen(context, builder, sig, args):
        kind = ir.VectorType(_I32, LANES)
        bits = builder.bitcast(args[0], kind)
        return builder.bitcast(builder.or_(bits, ir.Constant(kind, [0x80000000] * LANES)), _VECTOR)

    return lanes(lanes), codegen


@intrinsic
def fold(typingctx, x, y, half):
    """One step of a transposing reduction: lanes of x added in pairs ``half`` apart, then those of y, interleaved by blocks."""
    if not isinstance(half, types.IntegerLiteral):
        raise RequireLiteralValue("half")
    step = half.literal_value

    def codegen(context, builder, sig, args):
        low = [i + (LANES if i & step else 0) - (step if i & step else 0) for i in range(LANES)]
        high = [i + (LANES if i & step else 0) + (0 if i & step else step) for i in range(LANES)]
        return builder.fadd(_shuffle(builder, args[0], args[1], low), _shuffle(builder, args[0], args[1], high))

    return lanes(lanes, lanes, half), codegen


@intrinsic
def prefetch(typingctx, array, start):
    """Asks for the cache line of a flat float32 array's element."""

    def codegen(context, builder, sig, args):
        pointer = address(context, builder, sig, args, ir.IntType(8))
        kind = ir.FunctionType(ir.VoidType(), [pointer.type, _I32, _I32, _I32])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        builder.call(function, [pointer, _I32(0), _I32(3), _I32(1)])
        return context.get_dummy_value()

    return types.void(array, types.intp), codegen
