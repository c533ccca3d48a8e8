"""Triton kernels of the inference step. `fused.py` has the same in PyTorch and decides which one runs.

Shapes: R rows of a batch, B slots, H heads, T positions of a step, C ring columns, D numbers in a head, P pairs.
A plain `range` is not pipelined; `tl.range` is. Offsets into rings are 64 bits wide: a layer has more than 2^31 bytes.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from slipstream.nn.ring import LayerRing, signs

COLUMNS = 32
"""Columns that a program reads at a time."""
WARPS, STAGES = 4, 3
PROGRAMS = 1024
"""Programs that keep a large GPU busy: a smaller grid is split over the context."""
MAX_SPLITS = 16
ELEMENTS = 1024
"""Numbers that a program of an elementwise kernel computes."""


# ------------------------------------------------------------------------------------------------- append to the ring


@triton.jit
def _quantised(x):
    largest = tl.max(tl.abs(x), axis=0)
    unit = tl.where(largest > 0, tl.math.div_rn(largest, 127.0), 1.0)
    return tl.floor(tl.math.div_rn(x, unit) + 0.5).to(tl.int8), unit


@triton.jit
def _turned(even, odd, signs, P: tl.constexpr, LOG: tl.constexpr):
    """The Hadamard transform of interleaved pairs, in the order of `ring.hadamard`."""
    p = tl.arange(0, P)
    even = even * tl.load(signs + 2 * p)
    odd = odd * tl.load(signs + 2 * p + 1)
    x = tl.reshape(tl.permute(tl.join(even + odd, even - odd), (1, 0)), (2 * P,))
    for _ in tl.static_range(LOG - 1):
        a, b = tl.split(tl.reshape(x, (P, 2)))
        x = tl.reshape(tl.permute(tl.join(a + b, a - b), (1, 0)), (2 * P,))
    return x * tl.math.rsqrt(2.0 * P)


@triton.jit
def append_kernel(
    qkv, rotation, slots, positions, signs, k, v, k_scale, v_scale, q_out,
    H: tl.constexpr, T: tl.constexpr, C: tl.constexpr, P: tl.constexpr, LOG: tl.constexpr,
    INT8: tl.constexpr, HADAMARD: tl.constexpr,
):  # fmt: skip
    """One head of one position: rotate its query and key, and write key and value into the position's column."""
    row, t, head = tl.program_id(0) // T, tl.program_id(0) % T, tl.program_id(1)
    D: tl.constexpr = 2 * P
    p, d = tl.arange(0, P), tl.arange(0, D)
    source = qkv + (row * T + t).to(tl.int64) * 3 * H * D + head * D
    turn = rotation + (row * T + t) * D
    cosine, sine = tl.load(turn + 2 * p), tl.load(turn + 2 * p + 1)
    column = tl.load(positions + row * T + t) % C
    vector = (tl.load(slots + row) * H + head) * C + column

    a, b = tl.load(source + 2 * p).to(tl.float32), tl.load(source + 2 * p + 1).to(tl.float32)
    even, odd = a * cosine - b * sine, a * sine + b * cosine
    q = _turned(even, odd, signs, P, LOG) if HADAMARD else tl.interleave(even, odd)
    tl.store(q_out + ((row * H + head) * T + t) * D + d, q.to(q_out.dtype.element_ty))

    source += H * D
    a, b = tl.load(source + 2 * p).to(tl.float32), tl.load(source + 2 * p + 1).to(tl.float32)
    even, odd = a * cosine - b * sine, a * sine + b * cosine
    x = _turned(even, odd, signs, P, LOG) if HADAMARD else tl.interleave(even, odd)
    y = tl.load(source + H * D + d)
    if INT8:
        x, unit = _quantised(x)
        tl.store(k_scale + vector, unit)
        y, unit = _quantised(y.to(tl.float32))
        tl.store(v_scale + vector, unit)
    tl.store(k + vector * D + d, x.to(k.dtype.element_ty))
    tl.store(v + vector * D + d, y.to(v.dtype.element_ty))


def append(qkv_RT3HD: Tensor, rotation_R1TP: Tensor, ring: LayerRing, position_RT: Tensor) -> Tensor:
    """Write T new keys and values of each row into its slot's ring. Returns the rotated queries `[R, H, T, D]`."""
    R, T, _, H, D = qkv_RT3HD.shape
    qkv_RT3HD, rotation_R1TP, position_RT = (x.contiguous() for x in (qkv_RT3HD, rotation_R1TP, position_RT))
    q_RHTD = torch.empty(R, H, T, D, device=qkv_RT3HD.device, dtype=qkv_RT3HD.dtype)
    append_kernel[(R * T, H)](
        qkv_RT3HD, torch.view_as_real(rotation_R1TP), _slots(ring, R), position_RT, signs(D, ring.k.device),
        ring.k, ring.v, ring.k_scale, ring.v_scale, q_RHTD,
        H=H, T=T, C=ring.k.shape[2], P=D // 2, LOG=D.bit_length() - 1,
        INT8=ring.format.int8, HADAMARD=ring.format.hadamard, num_warps=1,
    )  # fmt: skip
    return q_RHTD


# ------------------------------------------------------------------------------------------------------------- attend


@triton.jit
def _merge(scores, units, values, largest, total, mean):
    """Take one more column into each of N running softmaxes (arXiv:2112.05682). Nothing is summed across threads."""
    new = tl.maximum(largest, scores)
    base = tl.where(new == float("-inf"), 0.0, new)
    scale, weight = tl.exp2(largest - base), tl.exp2(scores - base)
    return new, total * scale + weight, mean * scale[:, None] + (weight * units)[:, None] * values


@triton.jit
def attend_kernel(
    q, k, v, k_scale, v_scale, slots, positions, out, partial, weights, scale,
    H: tl.constexpr, T: tl.constexpr, C: tl.constexpr, D: tl.constexpr, CONTEXT: tl.constexpr,
    N: tl.constexpr, SPLITS: tl.constexpr, STAGES: tl.constexpr, INT8: tl.constexpr,
):  # fmt: skip
    """One head of one row over one part of the filled columns. T is 1 or 2; two queries share what is read."""
    row, head, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    last = tl.load(positions + row * T + T - 1)
    filled = tl.minimum(last + 1, C).to(tl.int32)
    part = tl.cdiv(tl.cdiv(filled, SPLITS), N) * N
    low = split * part
    high = tl.minimum(low + part, filled)
    first = (tl.load(slots + row) * H + head) * C
    k += first * D
    v += first * D
    if INT8:
        k_scale += first
        v_scale += first
    d, n = tl.arange(0, D), tl.arange(0, N)
    newest = (last % C).to(tl.int32)
    queries = q + (row * H + head) * T * D
    q_0 = tl.load(queries + d).to(tl.float32) * scale
    q_1 = tl.load(queries + (T - 1) * D + d).to(tl.float32) * scale
    none = float("-inf")
    units = tl.full([N], 1.0, tl.float32)
    largest_0, total_0, mean_0 = tl.full([N], none, tl.float32), tl.zeros([N], tl.float32), tl.zeros([N, D], tl.float32)
    largest_1, total_1, mean_1 = largest_0, total_0, mean_0
    for start in tl.range(low, high, N, num_stages=STAGES):
        column = start + n
        inside = column < high
        # How many positions before the newest this column's key is; a column that is not filled is not read.
        age = (newest - column + C) % C
        at = column[:, None] * D + d[None, :]
        keys = tl.load(k + at, mask=inside[:, None], other=0.0).to(tl.float32)
        values = tl.load(v + at, mask=inside[:, None], other=0.0).to(tl.float32)
        scores_0 = tl.sum(keys * q_0[None, :], axis=1)
        scores_1 = tl.sum(keys * q_1[None, :], axis=1) if T == 2 else scores_0
        if INT8:
            unit = tl.load(k_scale + column, mask=inside, other=0.0)
            scores_0 *= unit
            scores_1 *= unit
            units = tl.load(v_scale + column, mask=inside, other=0.0)
        visible = inside & (age >= T - 1) & (age < CONTEXT + T - 1)
        scores_0 = tl.where(visible, scores_0, none)
        largest_0, total_0, mean_0 = _merge(scores_0, units, values, largest_0, total_0, mean_0)
        if T == 2:
            scores_1 = tl.where(inside & (age < CONTEXT), scores_1, none)
            largest_1, total_1, mean_1 = _merge(scores_1, units, values, largest_1, total_1, mean_1)
    _finish(out, partial, weights, row, head, split, 0, largest_0, total_0, mean_0, H, T, D, SPLITS)
    if T == 2:
        _finish(out, partial, weights, row, head, split, 1, largest_1, total_1, mean_1, H, T, D, SPLITS)


@triton.jit
def _finish(
    out, partial, weights, row, head, split, t, largest, total, mean,
    H: tl.constexpr, T: tl.constexpr, D: tl.constexpr, SPLITS: tl.constexpr,
):  # fmt: skip
    """Merge the N softmaxes of a program, and store their mean, or what `combine_kernel` needs."""
    d = tl.arange(0, D)
    at = (row * T + t) * H + head
    most = tl.max(largest, axis=0)
    share = tl.exp2(largest - tl.where(most == float("-inf"), 0.0, most))
    total, mean = tl.sum(total * share, axis=0), tl.sum(mean * share[:, None], axis=0)
    if SPLITS == 1:
        tl.store(out + at * D + d, (mean / total).to(out.dtype.element_ty))
    else:
        tl.store(partial + (at * SPLITS + split) * D + d, mean)
        tl.store(weights + (at * SPLITS + split) * 2, most)
        tl.store(weights + (at * SPLITS + split) * 2 + 1, total)


@triton.jit
def combine_kernel(partial, weights, out, D: tl.constexpr, SPLITS: tl.constexpr):
    """Merge the parts of one query's context. A part without columns has a total of 0."""
    at = tl.program_id(0)
    s, d = tl.arange(0, SPLITS), tl.arange(0, D)
    largest = tl.load(weights + (at * SPLITS + s) * 2)
    share = tl.exp2(largest - tl.max(largest, axis=0))
    total = tl.sum(tl.load(weights + (at * SPLITS + s) * 2 + 1) * share, axis=0)
    mean = tl.load(partial + (at * SPLITS + s)[:, None] * D + d[None, :])
    y = tl.sum(mean * share[:, None], axis=0) / total
    tl.store(out + at * D + d, y.to(out.dtype.element_ty))


def attend(
    q_RHTD: Tensor, ring: LayerRing, position_RT: Tensor, context: int, *,
    columns: int = COLUMNS, warps: int = WARPS, stages: int = STAGES, splits: int | None = None,
) -> Tensor:  # fmt: skip
    """Attend to the filled columns of each row's slot: `[R, T, H * D]`."""
    R, H, T, D = q_RHTD.shape
    q_RHTD, position_RT = q_RHTD.contiguous(), position_RT.contiguous()
    splits = splits or split_count(R * H)
    out = torch.empty(R, T, H * D, device=q_RHTD.device, dtype=q_RHTD.dtype)
    partial = weights = out
    if splits > 1:
        partial = torch.empty(R, T, H, splits, D, device=q_RHTD.device)
        weights = torch.empty(R, T, H, splits, 2, device=q_RHTD.device)
    attend_kernel[(R, H, splits)](
        q_RHTD, ring.k, ring.v, ring.k_scale, ring.v_scale, _slots(ring, R), position_RT, out, partial, weights,
        D**-0.5 * 1.4426950408889634,  # to the base of 2
        H=H, T=T, C=ring.k.shape[2], D=D, CONTEXT=context,
        N=columns, SPLITS=splits, STAGES=stages, INT8=ring.format.int8, num_warps=warps,
    )  # fmt: skip
    if splits > 1:
        combine_kernel[(R * T * H,)](partial, weights, out, D=D, SPLITS=splits, num_warps=1)
    return out


def split_count(programs: int) -> int:
    """How many parts the context is cut into, a power of 2: few rows would leave most of a GPU idle."""
    return min(MAX_SPLITS, 1 << max(0, (PROGRAMS // programs).bit_length() - 1))


def _slots(ring: LayerRing, rows: int) -> Tensor:
    return torch.arange(rows, device=ring.k.device) if ring.slots_R is None else ring.slots_R


# -------------------------------------------------------------------------------------------------------- elementwise


@triton.jit
def rms_norm_kernel(x, weight, out, eps, D: tl.constexpr, BLOCK: tl.constexpr):
    row, d = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK)
    numbers = tl.load(x + row * D + d, mask=d < D, other=0.0).to(tl.float32)
    root = tl.math.rsqrt(tl.sum(numbers * numbers, axis=0) / D + eps)
    y = numbers * root * tl.load(weight + d, mask=d < D, other=0.0).to(tl.float32)
    tl.store(out + row * D + d, y.to(out.dtype.element_ty), mask=d < D)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    x, D = x.contiguous(), x.shape[-1]
    out = torch.empty_like(x)
    rms_norm_kernel[(x.numel() // D,)](x, weight, out, eps, D=D, BLOCK=triton.next_power_of_2(D), num_warps=4)
    return out


@triton.jit
def silu_multiply_kernel(x, out, count, F: tl.constexpr, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    gates = x + (at // F) * 2 * F + at % F
    gate = tl.load(gates, mask=at < count, other=0.0).to(tl.float32)
    value = tl.load(gates + F, mask=at < count, other=0.0).to(tl.float32)
    tl.store(out + at, (gate * tl.sigmoid(gate) * value).to(out.dtype.element_ty), mask=at < count)


def silu_multiply(x: Tensor) -> Tensor:
    x, F = x.contiguous(), x.shape[-1] // 2
    out = x.new_empty(*x.shape[:-1], F)
    grid = (triton.cdiv(out.numel(), ELEMENTS),)
    silu_multiply_kernel[grid](x, out, out.numel(), F=F, BLOCK=ELEMENTS, num_warps=WARPS)
    return out


@triton.jit
def elu_after_kernel(state, x, out, count, K: tl.constexpr, S: tl.constexpr, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    row, column = at // (K + S), at % (K + S)
    before = tl.load(state + row * K + column, mask=(at < count) & (column < K), other=0.0)
    now = tl.load(x + row * S + column - K, mask=(at < count) & (column >= K), other=0.0).to(tl.float32)
    now = tl.where(now > 0, now, tl.exp(now) - 1)
    tl.store(out + at, tl.where(column < K, before, now).to(out.dtype.element_ty), mask=at < count)


def elu_after(state: Tensor, x: Tensor) -> Tensor:
    state, x, K, S = state.contiguous(), x.contiguous(), state.shape[-1], x.shape[-1]
    out = x.new_empty(*x.shape[:-1], K + S)
    grid = (triton.cdiv(out.numel(), ELEMENTS),)
    elu_after_kernel[grid](state, x, out, out.numel(), K=K, S=S, BLOCK=ELEMENTS, num_warps=WARPS)
    return out
