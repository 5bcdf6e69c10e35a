"""What is run on the kernels for GPUs, emulated or real: OP_CASES, and what has no row there."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import attention_cases
import torch
from attention_cases import AttentionSize
from backward_cases import BACKWARDS
from decoder_cases import DECODER_SIZES, DECODER_WAYS
from emulation import LIBRARIES
from torch import Tensor

from fudlr_ext.testing import (
    OP_CASES,
    OpCase,
    Shape,
    as_tuple,
    check_agreement,
    on_floats,
    result_dtype,
)
from fudlr_ext.testing.catalogue import CatalogueShape
from fudlr_ext.testing.rows import RowShape

# Where the kernels for GPUs change. Samples: 128 threads of 4 or 8 columns, chunks of 512
# positions, parts of 256, tiles of 8, 16 or 64 rows, 128 columns and 32 positions on tensor cores.
# Rows: parts of 4,096 columns, chunks of 256 rows, waves of 16 MB. Catalogues: tiles of 64 users,
# items and columns, chunks of 1,024 items, parts of the users.
MORE = {
    Shape: (
        Shape((513, 3, 1024), 3, 9, 2),
        Shape((40, 1), 8, 516, 9),
        Shape((33, 64, 31), 16, 130, 2),
        Shape((5,), 17, 1030, 1),
        Shape((34, 7), 72, 136, 3),
        Shape((2, 30), 100, 72, 10),
    ),
    RowShape: (RowShape(260, 16700, 1), RowShape(70, 8200, 9)),
    CatalogueShape: (
        CatalogueShape(65, 1090, 70, 66),
        CatalogueShape(330, 70, 5, 2),
        CatalogueShape(66, 130, 17, 5),
    ),
}
# Powers of two that take items in float16 to subnormal numbers, and near its largest ones.
FAR_OUT = {CatalogueShape: (CatalogueShape(7, 241, 17), 13, -15)}
LONG_LIST = CatalogueShape(3, 2100, 3, 1100)  # longer than a chunk

ROUNDINGS = OP_CASES[0].rounding  # in float32 and in float64
FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
EPS = {dtype: torch.finfo(dtype).eps for dtype in FLOATS}

# Where not all cases are run: of samples, rows, catalogues, attention and the decoder every so
# many, prime to the number of dtypes.
STEPS = {Shape: 7, RowShape: 37, CatalogueShape: 31, AttentionSize: 19, None: 13}


@dataclass(frozen=True)
class Job:
    """One call of one op: what it gives on the emulated kernels, and what must hold of that."""

    op: str
    label: str
    run: Callable[[], tuple[Tensor, ...]]
    check: Callable[[tuple[Tensor, ...]], None]


def _call(where: str, library: str, name: str, arguments: tuple) -> tuple[Tensor, ...]:
    """What an op returns, or the argument that it changes in place.

    where: "native" (CPU), "emulated" or "cuda".
    """
    if where == "emulated":
        library = f"{library}_emulated"
    if where == "cuda":
        arguments = tuple(x.cuda() if isinstance(x, Tensor) else x for x in arguments)
    result = getattr(getattr(torch.ops, library), name).default(*arguments)
    changed = (arguments[0],) if result is None else as_tuple(result)
    return tuple(x.cpu() for x in changed)


def has_kernel(library: str, op: str, where: str) -> bool:
    """Ask the dispatcher for a kernel on "cuda", or an emulated one."""
    if where == "emulated":
        return torch._C._dispatch_has_kernel_for_dispatch_key(f"{library}_emulated::{op}", "CPU")
    return torch._C._dispatch_has_kernel_for_dispatch_key(f"{library}::{op}", "CUDA")


def dtypes_of(case: OpCase) -> tuple[torch.dtype, ...]:
    """What the kernels take: what the CPU's do, and float16."""
    return (*case.dtypes, torch.float16)


def shapes_of(case: OpCase) -> tuple[object, ...]:
    """The sizes at which something changes, on the CPU or on a GPU."""
    long = (LONG_LIST,) if case.name == "catalogue_top" else ()
    return (*long, *case.shapes, *MORE.get(type(case.shapes[0]), ()))


def _job(case: OpCase, shape: object, dtype: torch.dtype, where: str) -> Job:
    return _agreement(case, f"{case} {shape} {dtype}", case.make(shape, dtype), where)


def _far_out(case: OpCase, shape: object, power: int, where: str) -> Job:
    """Items of float16 so many powers of two larger, users smaller: all scores stay in size."""
    users, items, *rest = case.make(shape, torch.float32)
    given = users * 2.0**-power, (items * 2.0**power).half(), *rest
    return _agreement(case, f"{case} {shape} 2^{power}", given, where)


def _agreement(case: OpCase, label: str, arguments: tuple, where: str) -> Job:
    def run() -> tuple[Tensor, ...]:
        return _call(where, "fudlr", case.name, arguments)

    def check(got: tuple[Tensor, ...]) -> None:
        check_agreement(got if len(got) > 1 else got[0], case, arguments)

    return Job(case.name, label, run, check)


def _nonsense(case: OpCase, label: str, where: str) -> Job:
    """Offsets or seen items that lie nowhere: nothing is read there, and all is NaN."""
    arguments = tuple(
        x + (1 << 40) if isinstance(x, Tensor) and x.dtype == torch.int64 else x
        for x in case.make(case.small[0], torch.float32)
    )

    def check(got: tuple[Tensor, ...]) -> None:
        for result in got:
            assert (result.isnan() if result.is_floating_point() else result == -1).all()

    return Job(
        case.name, f"{case} {label}", lambda: _call(where, "fudlr", case.name, arguments), check
    )


def kin_job(
    library: str,
    name: str,
    label: str,
    make: Callable[[], tuple],
    *,
    sizes: Callable[..., tuple[Tensor, ...]] | None = None,
    where: str,
) -> Job:
    """An op without a row in OP_CASES, held to the CPU's kernel.

    It may have twice its error, and four roundings of the largest number, one in 16 bits. In
    float64, where nothing more exact is at hand, that error is the one in float32, scaled, and
    the CPU's kernel may have it as well. sizes: Of its arguments, the sums of the sizes of the
    terms of every result, of which it may have roundings as an op with a row may.
    What the CPU does not take, and the decoder in 16 bits, is float32 there, and its error the one
    in that.
    """
    given = make()
    widened = (torch.float16, torch.bfloat16) if library == "fudlr_decoder" else (torch.float16,)

    def call(where: str, change: Callable[[Tensor], Tensor]) -> tuple[Tensor, ...]:
        if name not in WITH_SPARE:
            return _call(where, library, name, on_floats(given, change))
        result = _call(where, library, name, (*on_floats(given, change), SPARE))
        return tuple(x[:, :-SPARE] for x in result)

    def check(got: tuple[Tensor, ...]) -> None:
        exact = call("native", lambda x: x.to(torch.float64, copy=True))
        near = call("native", lambda x: x.float() if x.dtype in widened else x.clone())
        worst = [
            (x.double() - y).abs().max() for x, y in zip(near, exact, strict=True) if y.numel()
        ]
        if near[0].dtype == torch.float64:
            rough = call("native", Tensor.float)
            truth = call("native", lambda x: x.float().double())
            worst = [
                2 * (x.double() - y).abs().max() * (EPS[torch.float64] / EPS[torch.float32])
                for x, y in zip(rough, truth, strict=True)
                if y.numel()
            ]
        assert len(got) == len(exact)
        terms = [torch.zeros(1)] * len(exact)
        if sizes is not None:
            terms = [x.flatten() for x in sizes(*on_floats(given, Tensor.double))]
        count, accumulated = ROUNDINGS[near[0].dtype == torch.float64], EPS[near[0].dtype]
        dtypes = _result_dtypes(library, name, given)
        for result, wanted, dtype, size in zip(got, exact, dtypes, terms, strict=False):
            assert (result.dtype, result.shape) == (dtype, wanted.shape)
            if not wanted.numel():
                continue
            roundings = (1 if result.dtype.itemsize == 2 else 4) * EPS[result.dtype]
            error = (result.double() - wanted).abs().max()
            allowed = 2 * worst.pop(0) + roundings * wanted.abs().max()
            assert error <= allowed + count * accumulated * size.max(), (error, allowed)

    return Job(name, f"{name} {label}", partial(call, where, _spaced), check)


def _result_dtypes(library: str, name: str, given: tuple) -> list[torch.dtype]:
    """Gradients are like what they are of, the decoder's like its first rows; sums are wide."""
    if library == "fudlr_grad":
        return [x.dtype for x in given if isinstance(x, Tensor)]
    own = given[0].dtype
    return [own, result_dtype(own) if name == "rms_norm" else own, own]


def _spaced(rows: Tensor) -> Tensor:
    """The same numbers, a matrix with a gap between its rows."""
    if rows.dim() != 2:
        return rows.clone()
    wide = torch.full((rows.shape[0], rows.shape[1] + 3), torch.nan).to(rows.dtype)
    wide[:, : rows.shape[1]] = rows
    return wide[:, : rows.shape[1]]


# Columns left free beside the results of these.
SPARE = 3
WITH_SPARE = (
    "rms_norm_tangent",
    "rms_norm_backward",
    "swiglu_tangent",
    "swiglu_backward",
    "attention_tangent",
)


def attention_job(op: str, size: AttentionSize, way: str, dtype: torch.dtype, where: str) -> Job:
    """One call of an attention op."""
    make = partial(decoder_arguments, attention_cases.make, dtype, op, size, way)
    return kin_job("fudlr_decoder", op, f"{way} {size} {dtype}", make, where=where)


def _senseless(op: str, place: int, change: int, where: str) -> Job:
    """The last number of offsets or limits makes no sense: all of every result is NaN.

    It gives where that is so, which can be compared.
    """
    size = attention_cases.SIZES[0]
    given = list(decoder_arguments(attention_cases.make, torch.float32, op, size, "all"))
    given[place] = given[place].clone()
    given[place][-1] += change

    def run() -> tuple[Tensor, ...]:
        return tuple(x.isnan() for x in _call(where, "fudlr_decoder", op, tuple(given)))

    def check(got: tuple[Tensor, ...]) -> None:
        assert all(x.all() for x in got)

    return Job(op, f"{op} argument {place} off by {change}", run, check)


def decoder_arguments(make: Callable[..., tuple], dtype: torch.dtype, *rest: object) -> tuple:
    generator = torch.Generator().manual_seed(0)

    def random(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator, dtype=torch.float64).to(dtype)

    op, *others = rest
    return make(op, random, *others)


def _families() -> Iterator[tuple[str, str, list[partial[Job]], int]]:
    """Library, op, makers of its jobs, and which of them are taken where not all are."""
    for case in OP_CASES:
        jobs = [
            partial(_job, case, shape, dtype)
            for shape in shapes_of(case)
            for dtype in dtypes_of(case)
        ]
        given = case.make(case.small[0], torch.float32)
        if any(isinstance(x, Tensor) and x.dtype == torch.int64 for x in given):
            jobs.append(partial(_nonsense, case, "indices without sense"))
        shape, *powers = FAR_OUT.get(type(case.shapes[0]), (None,))
        jobs += [partial(_far_out, case, shape, power) for power in powers]
        yield "fudlr", case.name, jobs, STEPS[type(case.shapes[0])]
    for case in OP_CASES:
        if case.name in BACKWARDS:
            name, make_from, sizes, more = BACKWARDS[case.name]
            shapes = [(shape, {}) for shape in shapes_of(case)]
            jobs = [
                partial(
                    kin_job,
                    "fudlr_grad",
                    name,
                    f"{case.variant} {shape} {dtype} {how or ''}".strip(),
                    make,
                    sizes=sizes,
                )
                for shape, how in (*shapes, *more)
                for dtype in dtypes_of(case)
                for make in [partial(make_from, case, shape, dtype, **how)]
            ]
            yield "fudlr_grad", name, jobs, STEPS[type(case.shapes[0])]
    for op, (maker, *ways) in DECODER_WAYS.items():
        jobs = [
            partial(kin_job, "fudlr_decoder", op, f"{way} {size} {dtype}", make)
            for size in DECODER_SIZES
            for way in ways
            for dtype in FLOATS
            for make in [partial(decoder_arguments, maker, dtype, op, size, way)]
        ]
        yield "fudlr_decoder", op, jobs, STEPS[None]
    for op, ways in attention_cases.WAYS.items():
        jobs = [
            partial(attention_job, op, size, way, dtype)
            for size in attention_cases.SIZES
            for way in ways
            for dtype in FLOATS
        ]
        jobs += [
            partial(_senseless, op, place, change)
            for place in attention_cases.OFFSETS
            for change in (1, 1 << 40, -(1 << 40))
        ]
        yield "fudlr_decoder", op, jobs, STEPS[AttentionSize]


def every_job(where: str, *, some: bool = False, only: tuple[str, ...] = ()) -> Iterator[Job]:
    """Every job of the ops that have a kernel "emulated" or on "cuda".

    some: Of each op's the last, and every so many before it. only: These ops.
    """
    for library, op, jobs, step in _families():
        if (not only or op in only) and has_kernel(library, op, where):
            for make in jobs[::-1][:: step if some else 1]:
                yield make(where=where)


def case_names(wanted: str) -> list[str]:
    """What tells the jobs of an op apart, without making them."""
    return [
        " ".join(map(str, make.args[:3]))
        for _, op, jobs, _ in _families()
        if op == wanted
        for make in jobs
    ]


def every_op() -> list[tuple[str, str]]:
    """Library and name of every op."""
    names = (schema.name.partition("::") for schema in torch._C._jit_get_all_schemas())
    return [(library, op) for library, _, op in names if library in LIBRARIES]


def without_kernel(where: str) -> list[str]:
    """The ops that have no kernel there."""
    return sorted(op for library, op in every_op() if not has_kernel(library, op, where))
