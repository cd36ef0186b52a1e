"""Triton kernels of the sparse stage: index scores, exact top-k selection as a mask, and masked MLA attention.

Attention computes every 64 x 64 block that holds a selected pair, so its result is exactly that of attention over the
selected sets; blocks without one are skipped.  Tensors are [B, T, H, D], bf16, contiguous.  T may be any length.
"""
from __future__ import annotations

import torch
import triton
import triton.language as tl

_BLOCK = 64


@triton.jit
def _index_scores_kernel(q, k, w, out, T, H: tl.constexpr, D: tl.constexpr, M: tl.constexpr, N: tl.constexpr):
    """One [M, N] tile of scores[b, t, s] = sum_h w[b, t, h] * relu(q[b, t, h] . k[b, s]); tiles past the diagonal stay unwritten."""
    m0, n0, b = tl.program_id(0) * M, tl.program_id(1) * N, tl.program_id(2).to(tl.int64)
    if n0 > m0 + M - 1:
        return
    t, s, d = m0 + tl.arange(0, M), n0 + tl.arange(0, N), tl.arange(0, D)
    keys = tl.load(k + (b * T + s[None, :]) * D + d[:, None], mask=s[None, :] < T, other=0.0)
    scores = tl.zeros([M, N], tl.float32)
    for h in range(H):
        queries = tl.load(q + ((b * T + t[:, None]) * H + h) * D + d[None, :], mask=t[:, None] < T, other=0.0)
        weight = tl.load(w + (b * T + t) * H + h, mask=t < T, other=0.0)
        scores += weight[:, None] * tl.maximum(tl.dot(queries, keys), 0.0)
    tl.store(out + (b * T + t[:, None]) * T + s[None, :], scores, mask=(t[:, None] < T) & (s[None, :] < T))


@triton.jit
def _select_kernel(scores, out, T, K, W: tl.constexpr):
    """One row: marks the K largest causal scores; ties go to the lower position.  W >= T is a power of two."""
    row = tl.program_id(0).to(tl.int64)
    t = (row % T).to(tl.int32)
    s = tl.arange(0, W)
    visible = s <= t
    chosen = visible
    if t >= K:
        value = tl.load(scores + row * T + s, mask=visible, other=float("-inf"))
        value = tl.where(value == 0.0, 0.0, value)  # -0 ties with 0
        bits = value.to(tl.int32, bitcast=True)
        order = tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)  # ordered as the floats are
        order = tl.where(visible, order, -2147483648)
        # Bisection for the K-th largest: the largest threshold that at least K values reach.
        low = tl.full([], -2147483648, tl.int64)
        high = tl.full([], 2147483647, tl.int64)
        for _ in range(32):
            middle = (low + high + 1) >> 1
            reached = tl.sum((order.to(tl.int64) >= middle).to(tl.int32))
            low = tl.where(reached >= K, middle, low)
            high = tl.where(reached >= K, high, middle - 1)
        threshold = low.to(tl.int32)
        above = order > threshold
        tied = (order == threshold) & visible
        left = K - tl.sum(above.to(tl.int32))
        chosen = above | (tied & (tl.cumsum(tied.to(tl.int32), 0) <= left))
    tl.store(out + row * T + s, chosen.to(tl.uint8), mask=s < T)


@triton.jit
def _load_rows(pointer, b, h, rows, T, H: tl.constexpr, D: tl.constexpr):
    d = tl.arange(0, D)
    return tl.load(pointer + ((b * T + rows[:, None]) * H + h) * D + d[None, :], mask=rows[:, None] < T, other=0.0)


@triton.jit
def _store_rows(pointer, value, b, h, rows, T, H: tl.constexpr, D: tl.constexpr):
    d = tl.arange(0, D)
    tl.store(pointer + ((b * T + rows[:, None]) * H + h) * D + d[None, :], value.to(pointer.dtype.element_ty), mask=rows[:, None] < T)


@triton.jit
def _pairs(mask, b, t, s, T, MASKED: tl.constexpr):
    """[M, N] bool: which (query, key) pairs of a block count."""
    pairs = (s[None, :] <= t[:, None]) & (t[:, None] < T)
    if MASKED:
        pairs = pairs & (tl.load(mask + (b * T + t[:, None]) * T + s[None, :], mask=pairs, other=0) > 0)
    return pairs


@triton.jit
def _forward_kernel(qn, qr, kn, kr, v, mask, out, lse, scale, T, H: tl.constexpr, DN: tl.constexpr, DR: tl.constexpr, DV: tl.constexpr,
                    BLOCK: tl.constexpr, MASKED: tl.constexpr):
    m0 = (tl.num_programs(0) - 1 - tl.program_id(0)) * BLOCK  # the longest rows first
    b, h = (tl.program_id(1) // H).to(tl.int64), tl.program_id(1) % H
    t = m0 + tl.arange(0, BLOCK)
    q_nope, q_rope = _load_rows(qn, b, h, t, T, H, DN), _load_rows(qr, b, h, t, T, H, DR)
    total, peak = tl.zeros([BLOCK], tl.float32), tl.full([BLOCK], -1e30, tl.float32)
    acc = tl.zeros([BLOCK, DV], tl.float32)
    for n0 in range(0, m0 + BLOCK, BLOCK):
        s = n0 + tl.arange(0, BLOCK)
        pairs = _pairs(mask, b, t, s, T, MASKED)
        if tl.max(pairs.to(tl.int32)) > 0:
            logits = tl.dot(q_nope, tl.trans(_load_rows(kn, b, h, s, T, H, DN))) + tl.dot(q_rope, tl.trans(_load_rows(kr, b, 0, s, T, 1, DR)))
            logits = tl.where(pairs, logits * scale, float("-inf"))
            new_peak = tl.maximum(peak, tl.max(logits, 1))
            p, shrink = tl.exp(logits - new_peak[:, None]), tl.exp(peak - new_peak)
            total = total * shrink + tl.sum(p, 1)
            acc = acc * shrink[:, None] + tl.dot(p.to(v.dtype.element_ty), _load_rows(v, b, h, s, T, H, DV))
            peak = new_peak
    total = tl.maximum(total, 1e-30)
    _store_rows(out, acc / total[:, None], b, h, t, T, H, DV)
    tl.store(lse + (b * H + h) * T + t, peak + tl.log(total), mask=t < T)


@triton.jit
def _backward_q_kernel(qn, qr, kn, kr, v, mask, dout, lse, delta, dqn, dqr, scale, T, H: tl.constexpr, DN: tl.constexpr, DR: tl.constexpr,
                       DV: tl.constexpr, BLOCK: tl.constexpr, MASKED: tl.constexpr):
    m0 = (tl.num_programs(0) - 1 - tl.program_id(0)) * BLOCK
    b, h = (tl.program_id(1) // H).to(tl.int64), tl.program_id(1) % H
    t = m0 + tl.arange(0, BLOCK)
    q_nope, q_rope = _load_rows(qn, b, h, t, T, H, DN), _load_rows(qr, b, h, t, T, H, DR)
    d_out = _load_rows(dout, b, h, t, T, H, DV)
    row_lse = tl.load(lse + (b * H + h) * T + t, mask=t < T, other=0.0)
    row_delta = tl.load(delta + (b * H + h) * T + t, mask=t < T, other=0.0)
    acc_nope, acc_rope = tl.zeros([BLOCK, DN], tl.float32), tl.zeros([BLOCK, DR], tl.float32)
    for n0 in range(0, m0 + BLOCK, BLOCK):
        s = n0 + tl.arange(0, BLOCK)
        pairs = _pairs(mask, b, t, s, T, MASKED)
        if tl.max(pairs.to(tl.int32)) > 0:
            k_nope, k_rope = _load_rows(kn, b, h, s, T, H, DN), _load_rows(kr, b, 0, s, T, 1, DR)
            logits = (tl.dot(q_nope, tl.trans(k_nope)) + tl.dot(q_rope, tl.trans(k_rope))) * scale
            p = tl.where(pairs, tl.exp(logits - row_lse[:, None]), 0.0)
            dp = tl.dot(d_out, tl.trans(_load_rows(v, b, h, s, T, H, DV)))
            ds = (p * (dp - row_delta[:, None]) * scale).to(k_nope.dtype)
            acc_nope += tl.dot(ds, k_nope)
            acc_rope += tl.dot(ds, k_rope)
    _store_rows(dqn, acc_nope, b, h, t, T, H, DN)
    _store_rows(dqr, acc_rope, b, h, t, T, H, DR)


@triton.jit
def _backward_kv_kernel(qn, qr, kn, kr, v, mask, dout, lse, delta, dkn, dkr, dv, scale, T, H: tl.constexpr, DN: tl.constexpr, DR: tl.constexpr,
                        DV: tl.constexpr, BLOCK: tl.constexpr, MASKED: tl.constexpr):
    n0 = tl.program_id(0) * BLOCK
    b, h = (tl.program_id(1) // H).to(tl.int64), tl.program_id(1) % H
    s = n0 + tl.arange(0, BLOCK)
    k_nope, k_rope, value = _load_rows(kn, b, h, s, T, H, DN), _load_rows(kr, b, 0, s, T, 1, DR), _load_rows(v, b, h, s, T, H, DV)
    acc_nope, acc_rope, acc_v = tl.zeros([BLOCK, DN], tl.float32), tl.zeros([BLOCK, DR], tl.float32), tl.zeros([BLOCK, DV], tl.float32)
    for m0 in range(n0, T, BLOCK):
        t = m0 + tl.arange(0, BLOCK)
        pairs = _pairs(mask, b, t, s, T, MASKED)
        if tl.max(pairs.to(tl.int32)) > 0:
            q_nope, q_rope = _load_rows(qn, b, h, t, T, H, DN), _load_rows(qr, b, h, t, T, H, DR)
            d_out = _load_rows(dout, b, h, t, T, H, DV)
            row_lse = tl.load(lse + (b * H + h) * T + t, mask=t < T, other=0.0)
            row_delta = tl.load(delta + (b * H + h) * T + t, mask=t < T, other=0.0)
            logits = (tl.dot(q_nope, tl.trans(k_nope)) + tl.dot(q_rope, tl.trans(k_rope))) * scale
            p = tl.where(pairs, tl.exp(logits - row_lse[:, None]), 0.0)
            acc_v += tl.dot(tl.trans(p.to(value.dtype)), d_out)
            ds = (p * (tl.dot(d_out, tl.trans(value)) - row_delta[:, None]) * scale).to(value.dtype)
            acc_nope += tl.dot(tl.trans(ds), q_nope)
            acc_rope += tl.dot(tl.trans(ds), q_rope)
    _store_rows(dkn, acc_nope, b, h, s, T, H, DN)
    _store_rows(dkr, acc_rope, b, h, s, T, H, DR)
    _store_rows(dv, acc_v, b, h, s, T, H, DV)


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, qn, qr, kn, kr, v, mask, scale):
        B, T, H, DN = qn.shape
        out, lse = torch.empty_like(v), torch.empty(B, H, T, device=v.device, dtype=torch.float32)
        sizes = dict(H=H, DN=DN, DR=qr.shape[-1], DV=v.shape[-1], BLOCK=_BLOCK, MASKED=mask is not None)
        grid = (triton.cdiv(T, _BLOCK), B * H)
        _forward_kernel[grid](qn, qr, kn, kr, v, mask, out, lse, scale, T, **sizes, num_warps=4, num_stages=2)
        ctx.save_for_backward(qn, qr, kn, kr, v, mask, out, lse)
        ctx.scale, ctx.sizes = scale, sizes
        return out

    @staticmethod
    def backward(ctx, dout):
        qn, qr, kn, kr, v, mask, out, lse = ctx.saved_tensors
        B, T, H, _ = qn.shape
        dout = dout.contiguous()
        delta = (out.float() * dout.float()).sum(-1).transpose(1, 2).contiguous()
        dqn, dqr, dkn, dv = (torch.empty_like(x) for x in (qn, qr, kn, v))
        dkr = torch.empty_like(qr)  # a head each; summed below
        grid = (triton.cdiv(T, _BLOCK), B * H)
        _backward_kv_kernel[grid](qn, qr, kn, kr, v, mask, dout, lse, delta, dkn, dkr, dv, ctx.scale, T, **ctx.sizes, num_warps=8, num_stages=2)
        _backward_q_kernel[grid](qn, qr, kn, kr, v, mask, dout, lse, delta, dqn, dqr, ctx.scale, T, **ctx.sizes, num_warps=8, num_stages=2)
        return dqn, dqr, dkn, dkr.sum(2, keepdim=True, dtype=torch.float32).to(kr.dtype), dv, None, None


def attention(qn: torch.Tensor, qr: torch.Tensor, kn: torch.Tensor, kr: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None,
              scale: float) -> torch.Tensor:
    """softmax(scale * (qn . kn + qr . kr)) v over the causal pairs that `mask` [B, T, T] uint8 marks; differentiable.

    qn, kn [B, T, H, 128], qr [B, T, H, 64], kr [B, T, 1, 64] (one for all heads), v [B, T, H, 128]; the result is like v.
    """
    return _Attention.apply(qn.contiguous(), qr.contiguous(), kn.contiguous(), kr.contiguous(), v.contiguous(), mask, scale)


@torch.no_grad()
def index_scores(q: torch.Tensor, k: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    """Scores [B, T, T] float32 of q [B, T, H, D], k [B, T, D], w [B, T, H] float32.  Entries with s > t are undefined."""
    B, T, H, D = q.shape
    out = torch.empty(B, T, T, device=q.device, dtype=torch.float32)
    grid = (triton.cdiv(T, 64), triton.cdiv(T, 128), B)
    _index_scores_kernel[grid](q.contiguous(), k.contiguous(), w.contiguous(), out, T, H=H, D=D, M=64, N=128, num_warps=4, num_stages=2)
    return out


@torch.no_grad()
def select_topk(scores: torch.Tensor, count: int) -> torch.Tensor:
    """Mask [B, T, T] uint8 of the `count` largest scores[b, t, :t + 1]; all of them where there are fewer."""
    B, T, _ = scores.shape
    mask = torch.empty(B, T, T, device=scores.device, dtype=torch.uint8)
    width = triton.next_power_of_2(T)
    _select_kernel[(B * T,)](scores, mask, T, count, W=width, num_warps=max(1, min(16, width // 512)))
    return mask
