"""Causal attention of the dense form: times the available kernels once per shape and uses the fastest."""
from __future__ import annotations

import time
from typing import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

import kernels


def _scaled_dot_product(backend: SDPBackend, pad_values: bool) -> Callable[..., Tensor]:
    def attend(qn: Tensor, qr: Tensor, kn: Tensor, kr: Tensor, v: Tensor, scale: float) -> Tensor:
        q = torch.cat((qn, qr), -1).transpose(1, 2)
        k = torch.cat((kn, kr.expand(-1, -1, kn.shape[2], -1)), -1).transpose(1, 2)
        values = F.pad(v, (0, q.shape[-1] - v.shape[-1])) if pad_values else v
        with sdpa_kernel(backend):
            out = F.scaled_dot_product_attention(q, k, values.transpose(1, 2), is_causal=True, scale=scale)
        return out[..., : v.shape[-1]].transpose(1, 2).contiguous()

    return attend


_CANDIDATES: dict[str, Callable[..., Tensor]] = {
    # First the kernel that check_kernels.py compares with plain PyTorch: the others must agree with it.
    "triton": lambda qn, qr, kn, kr, v, scale: kernels.attention(qn, qr, kn, kr, v, None, scale),
    "cudnn": _scaled_dot_product(SDPBackend.CUDNN_ATTENTION, False),
    "flash": _scaled_dot_product(SDPBackend.FLASH_ATTENTION, True),
}


class DenseAttention:
    """Callable like kernels.attention with mask None."""

    def __init__(self, forward_only: bool = False) -> None:
        self._forward_only = forward_only  # evaluation: cuDNN, without timing
        self._chosen: dict[tuple[int, ...], str] = {}
        self.timings: dict[tuple[int, ...], dict[str, float]] = {}  # ms, forward and backward

    def __call__(self, qn: Tensor, qr: Tensor, kn: Tensor, kr: Tensor, v: Tensor, mask: Tensor | None, scale: float) -> Tensor:
        assert mask is None
        if self._forward_only:
            return _CANDIDATES["cudnn"](qn, qr, kn, kr, v, scale)
        shape = tuple(qn.shape)
        if shape not in self._chosen:
            self._choose(shape, (qn, qr, kn, kr, v), scale)
        return _CANDIDATES[self._chosen[shape]](qn, qr, kn, kr, v, scale)

    def _choose(self, shape: tuple[int, ...], inputs: tuple[Tensor, ...], scale: float) -> None:
        timings: dict[str, float] = {}
        expected = expected_gradients = None
        with torch.enable_grad():
            leaves = [torch.randn_like(x).requires_grad_() for x in inputs]
            upstream = torch.randn_like(leaves[-1])
            for name, attend in _CANDIDATES.items():
                try:
                    out = attend(*leaves, scale)
                    expected = out.detach() if expected is None else expected
                    if not (out.detach() - expected).float().norm() < 0.02 * expected.float().norm():
                        continue
                    gradients = torch.autograd.grad(out, leaves, upstream)
                    expected_gradients = gradients if expected_gradients is None else expected_gradients
                    errors = [((a - b).float().norm() / b.float().norm()).item() for a, b in zip(gradients, expected_gradients)]
                    if not max(errors) < 0.02:
                        print(f"attention {name} {shape}: gradients differ by {[round(e, 3) for e in errors]}", flush=True)
                        continue
                    for repeat in range(3):
                        if repeat == 1:
                            torch.cuda.synchronize()
                            start = time.perf_counter()
                        torch.autograd.grad(attend(*leaves, scale), leaves, upstream)
                    torch.cuda.synchronize()
                    timings[name] = (time.perf_counter() - start) / 2 * 1e3
                except RuntimeError as error:
                    print(f"attention {name} {shape}: {str(error).splitlines()[0][:100]}")
        self.timings[shape] = timings
        self._chosen[shape] = min(timings, key=timings.__getitem__)
        print(f"attention {shape}: " + ", ".join(f"{n} {t:.2f} ms" for n, t in timings.items()), flush=True)
