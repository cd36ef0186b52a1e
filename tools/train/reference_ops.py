"""Plain PyTorch forms of the operators in kernels.py, for the CPU and for tests of the kernels."""
from __future__ import annotations

import torch


def attention(qn: torch.Tensor, qr: torch.Tensor, kn: torch.Tensor, kr: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None,
              scale: float) -> torch.Tensor:
    """As kernels.attention."""
    T = qn.shape[1]
    logits = (torch.einsum("bthd,bshd->bhts", qn.float(), kn.float()) + torch.einsum("bthd,bsd->bhts", qr.float(), kr[:, :, 0].float())) * scale
    visible = torch.ones(T, T, dtype=torch.bool, device=qn.device).tril()
    if mask is not None:
        visible = visible & (mask[:, None] > 0)
    p = logits.masked_fill(~visible, float("-inf")).softmax(-1)
    return torch.einsum("bhts,bshd->bthd", p, v.float()).to(v.dtype)


@torch.no_grad()
def index_scores(q: torch.Tensor, k: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    """As kernels.index_scores."""
    return torch.einsum("bth,bths->bts", w.float(), torch.einsum("bthd,bsd->bths", q.float(), k.float()).relu())


@torch.no_grad()
def select_topk(scores: torch.Tensor, count: int) -> torch.Tensor:
    """As kernels.select_topk; ties go to the lower position."""
    T = scores.shape[-1]
    causal = torch.ones(T, T, dtype=torch.bool, device=scores.device).tril()
    ranked = scores.masked_fill(~causal, float("-inf")).argsort(dim=-1, descending=True, stable=True)[..., : min(count, T)]
    mask = torch.zeros(scores.shape, dtype=torch.uint8, device=scores.device).scatter_(-1, ranked, 1)
    return mask * causal
