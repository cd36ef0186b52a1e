"""Plain PyTorch forms of the operators in kernels.py, for the CPU and for tests of the kernels."""
from __future__ import annotations

import torch

_ROWS = 1024  # queries at a time, to bound the memory of long sequences


def attention(qn: torch.Tensor, qr: torch.Tensor, kn: torch.Tensor, kr: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None,
              scale: float) -> torch.Tensor:
    """As kernels.attention."""
    T = qn.shape[1]
    q, k = torch.cat((qn, qr), -1).float().transpose(1, 2), torch.cat((kn, kr.expand(-1, -1, kn.shape[2], -1)), -1).float().transpose(1, 2)
    values, out = v.float().transpose(1, 2), []
    for begin in range(0, T, _ROWS):
        end = min(begin + _ROWS, T)
        visible = torch.arange(end, device=q.device) <= torch.arange(begin, end, device=q.device)[:, None]
        if mask is not None:
            visible = visible & (mask[:, None, begin:end, :end] > 0)
        p = (q[:, :, begin:end] @ k[:, :, :end].mT * scale).masked_fill(~visible, float("-inf")).softmax(-1)
        out.append(p @ values[:, :, :end])
    return torch.cat(out, 2).transpose(1, 2).to(v.dtype)


@torch.no_grad()
def index_scores(q: torch.Tensor, k: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    """As kernels.index_scores."""
    keys, scores = k.float().mT, torch.zeros(*q.shape[:2], q.shape[1], device=q.device)
    for head in range(q.shape[2]):
        scores += (q[:, :, head].float() @ keys).relu_() * w[:, :, head, None].float()
    return scores


@torch.no_grad()
def select_topk(scores: torch.Tensor, count: int) -> torch.Tensor:
    """As kernels.select_topk; ties go to the lower position."""
    T = scores.shape[-1]
    causal = torch.ones(T, T, dtype=torch.bool, device=scores.device).tril()
    if count >= T:
        return causal.expand_as(scores).to(torch.uint8)
    visible = scores.masked_fill(~causal, float("-inf"))
    threshold = visible.topk(count, -1).values[..., -1:]
    above, tied = visible > threshold, (visible == threshold) & causal
    left = count - above.sum(-1, keepdim=True)
    return (above | (tied & (tied.cumsum(-1) <= left))).to(torch.uint8)
