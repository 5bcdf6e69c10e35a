"""The decoder's ops against autograd in float64: values, tangents, backward, and its derivative."""

import pytest
import torch
from torch.func import jvp, vjp, vmap

from fudlr_ext import _C

OPS = torch.ops.fudlr_decoder
K = 3
LENGTHS = (5, 0, 1, 13, 9)


@pytest.fixture(autouse=True, params=("best", "portable"))
def isa(request):
    before = _C.isa()
    if request.param != "best":
        _C.set_isa(request.param)
    yield
    _C.set_isa(before)


@pytest.fixture(params=(torch.float64, torch.float32, torch.bfloat16), ids=str)
def dtype(request):
    torch.manual_seed(0)
    return request.param


# Float32 by its rounding over some sums, bfloat16 by that of the result.
ERROR = {torch.float64: 1e-13, torch.float32: 4e-6, torch.bfloat16: 2**-8}


def held(x, dtype):
    """x in float64, as `dtype` holds it: what is measured is the op's error, not its input's."""
    return x.to(dtype).double()


def close(got, expected, dtype):
    scale = expected.abs().max().clamp(min=1)
    error = float((got.double() - expected).abs().max() / scale)
    assert error <= ERROR[dtype], error


def padded(rows, dtype):
    """The same numbers with a gap between rows, as a slice of a wider product has."""
    wide = torch.full((rows.shape[0], rows.shape[1] + 5), torch.nan, dtype=dtype)
    wide[:, : rows.shape[1]] = rows
    return wide[:, : rows.shape[1]]


def flat(tangents):
    """[k, T, w] to k rows a position."""
    return tangents.transpose(0, 1).flatten(0, 1)


def derivatives(function, primals, directions, delta):
    """Tangents of the value, the backward of k cotangents, and its derivative along directions."""

    def pull(*primals):
        return vjp(function, *primals)[1](delta)

    along = vmap(lambda *t: jvp(function, primals, t)[1])(*directions)
    bent = vmap(lambda *t: jvp(pull, primals, t)[1])(*directions)
    return along, bent


def check(dtype, function, primals, ops):
    """ops: value(), tangent(directions), backward(grads, delta=, directions=) on flat rows."""
    value, tangent, backward = ops
    expected = function(*primals)
    close(value(), expected, dtype)
    directions = tuple(held(torch.randn(K, *p.shape), dtype) for p in primals)
    delta = held(torch.randn_like(expected), dtype)
    grads = held(torch.randn(K, *expected.shape), dtype)
    along, bent = derivatives(function, primals, directions, delta)
    rows = [padded(flat(t), dtype) for t in directions]
    close(tangent(*rows), flat(along), dtype)
    pulled = vmap(vjp(function, *primals)[1])(grads)
    for got, wanted in zip(backward(padded(flat(grads), dtype)), pulled, strict=True):
        close(got, flat(wanted), dtype)
    second = backward(padded(flat(grads), dtype), padded(delta, dtype), rows)
    for got, linear, curved in zip(second, pulled, bent, strict=True):
        close(got, flat(linear + curved), dtype)


@pytest.mark.parametrize("width", [1, 7, 64])
def test_rms_norm(dtype, width):
    x, weight = (held(torch.randn(*s), dtype) for s in ((11, width), (width,)))

    def norm(x):
        return weight * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 0.1)

    rows, w = padded(x, dtype), weight.to(dtype)
    y, scale, _ = OPS.rms_norm(rows, None, w, 0.1)
    check(dtype, norm, (x,), (
        lambda: y,
        lambda dx: OPS.rms_norm_tangent(rows, w, scale, dx),
        lambda g, delta=None, d=None: (
            OPS.rms_norm_backward(rows, w, scale, g, None, delta, d[0] if d else None),
        ),
    ))  # fmt: skip
    other = held(torch.randn_like(x), dtype)
    y, _, total = OPS.rms_norm(rows, padded(other, dtype), w, 0.1)
    close(total, x + other, dtype)
    close(y, norm(x + other), dtype)
    added = OPS.rms_norm_backward(rows, w, scale, rows, padded(other, dtype))
    close(added, vjp(norm, x)[1](x)[0] + other, dtype)


@pytest.mark.parametrize("width", [1, 13, 300])
def test_swiglu(dtype, width):
    gu = held(torch.randn(6, 2 * width) * 3, dtype)

    def swiglu(gu):
        g, u = gu.chunk(2, -1)
        return torch.nn.functional.silu(g) * u

    rows = padded(gu, dtype)
    check(dtype, swiglu, (gu,), (
        lambda: OPS.swiglu(rows),
        lambda d: OPS.swiglu_tangent(rows, d),
        lambda g, delta=None, d=None: (
            OPS.swiglu_backward(rows, g, delta, d[0] if d else None),
        ),
    ))  # fmt: skip


def test_swiglu_far_out(dtype):
    """Where e^-g overflows or vanishes."""
    g = torch.tensor([-1e4, -800.0, -90.0, 0.0, 90.0, 800.0, 1e4], dtype=torch.float64)
    gu = torch.stack([g, torch.ones_like(g)], 1).contiguous()
    close(OPS.swiglu(gu.to(dtype))[:, 0], torch.nn.functional.silu(g), dtype)


def test_rotate_heads(dtype):
    x = held(torch.randn(4, 2 * 6), dtype)
    angle = torch.randn(4, 3, dtype=torch.float64).repeat(1, 2)
    cos, sin = held(angle.cos(), dtype), held(angle.sin(), dtype)

    def turned(x, sin):
        heads = x.double().view(-1, 2, 6)
        half = torch.cat([-heads[..., 3:], heads[..., :3]], -1)
        k = len(heads) // 4
        return (
            heads * cos.repeat_interleave(k, 0)[:, None]
            + half * sin.repeat_interleave(k, 0)[:, None]
        ).flatten(1)

    for k in (1, K):
        rows = padded(x.repeat_interleave(k, 0), dtype)
        for inverse in (False, True):
            expected = turned(rows.clone(), -sin if inverse else sin)
            OPS.rotate_heads(rows, cos.to(dtype), sin.to(dtype), inverse)
            close(rows, expected, dtype)


@pytest.mark.parametrize("some", [False, True], ids=["all queries", "some queries"])
@pytest.mark.parametrize("width", [3, 8, 32])
def test_attention(dtype, width, some):
    heads, key_heads = 4, 2
    keys = torch.tensor([0, *LENGTHS]).cumsum(0)
    seen = [torch.arange(1, t + 1) for t in LENGTHS]
    if some:
        seen = [s[s % 3 == 1] for s in seen]
    queries = torch.tensor([0, *map(len, seen)]).cumsum(0)
    limits = torch.cat(seen)
    q = held(torch.randn(int(queries[-1]), heads * width), dtype)
    k, v = held(torch.randn(2, int(keys[-1]), key_heads * width), dtype)

    def attend(q, k, v):
        rows = []
        for i, limit in enumerate(seen):
            here = slice(int(queries[i]), int(queries[i + 1]))
            there = slice(int(keys[i]), int(keys[i + 1]))
            hq = q[here].unflatten(1, (heads, width)).transpose(0, 1)
            hk, hv = (
                t[there].unflatten(1, (key_heads, width)).transpose(0, 1).repeat_interleave(2, 0)
                for t in (k, v)
            )
            scores = 0.7 * hq @ hk.transpose(1, 2)
            hidden = torch.arange(len(hk[0]))[None] >= limit[:, None]
            p = scores.masked_fill(hidden, -torch.inf).softmax(-1)
            rows.append((p @ hv).transpose(0, 1).flatten(1))
        return torch.cat(rows)

    given = [*(padded(t, dtype) for t in (q, k, v)), queries, keys, limits, heads, key_heads, 0.7]
    check(dtype, attend, (q, k, v), (
        lambda: OPS.attention(*given),
        lambda *d: OPS.attention_tangent(*given, *d),
        lambda g, delta=None, d=(None,) * 3: OPS.attention_backward(*given, g, delta, *d),
    ))  # fmt: skip


@pytest.mark.parametrize("op", ["rms_norm", "attention"])
def test_threads_change_no_number(op):
    torch.manual_seed(0)
    x, w = torch.randn(900, 64), torch.randn(64)
    offsets = torch.arange(0, 901, 45)
    limits = (torch.arange(45) + 1).repeat(20)

    def call():
        if op == "rms_norm":
            return OPS.rms_norm(x, None, w, 1e-5)[0]
        return OPS.attention(x, x, x, offsets, offsets, limits, 4, 4, 0.2)

    one = call()
    torch.set_num_threads(2)
    try:
        assert torch.equal(call(), one)
    finally:
        torch.set_num_threads(1)


def test_room_is_left_beside_the_results():
    x, grads = torch.randn(4, 8), torch.randn(8, 8)
    scale, offsets = x[:, 0].contiguous(), torch.tensor([0, 4])
    heads = (x, x, x, offsets, offsets, torch.arange(1, 5), 2, 2, 0.7)
    calls = (
        lambda **spare: OPS.rms_norm_tangent(x, x[0], scale, grads, **spare),
        lambda **spare: OPS.rms_norm_backward(x, x[0], scale, grads, **spare),
        lambda **spare: OPS.swiglu_tangent(x, grads, **spare),
        lambda **spare: OPS.swiglu_backward(x, grads[:, :4], **spare),
        lambda **spare: OPS.attention_tangent(*heads, grads, grads, grads, **spare),
    )
    for call in calls:
        plain, wide = call(), call(spare=3)
        assert wide.shape == (plain.shape[0], plain.shape[1] + 3)
        assert torch.equal(wide[:, : plain.shape[1]], plain)
    plain, wide = (
        OPS.attention_backward(*heads, grads),
        OPS.attention_backward(*heads, grads, spare=3),
    )
    assert wide[2].stride(0) == plain[2].stride(0) + 3
    assert all(torch.equal(a, b) for a, b in zip(wide, plain, strict=True))
    with pytest.raises(ValueError, match="spare must not be negative"):
        OPS.swiglu_tangent(x, grads, spare=-1)


def test_wrong_arguments_are_refused():
    x = torch.randn(6, 8)
    with pytest.raises(ValueError, match="weight must be 8 numbers"):
        OPS.rms_norm(x, None, torch.randn(7), 1e-5)
    with pytest.raises(ValueError, match="delta and dx go together"):
        OPS.rms_norm_backward(x, x[0], x[:, 0].contiguous(), x, None, x, None)
    with pytest.raises(ValueError, match="as many tangents"):
        OPS.swiglu_tangent(x, torch.randn(7, 8))
    offsets = torch.tensor([0, 3, 6])
    limits = torch.tensor([1, 2, 3, 1, 2, 4])
    with pytest.raises(ValueError, match=r"limits\[5\] is 4"):
        OPS.attention(x, x, x, offsets, offsets, limits, 2, 2, 1.0)
    with pytest.raises(ValueError, match="must rise from 0 to 6"):
        OPS.attention(x, x, x, torch.tensor([0, 7, 6]), offsets, limits, 2, 2, 1.0)
