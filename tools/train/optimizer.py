"""AdamW, or Muon for the matrices and Adam for the rest (embedding, head, norms, router, head weights of the indexer).

Muon: Jordan et al. 2024; the update is scaled to AdamW's size as in Liu et al. 2025 (Moonlight), so one learning rate
serves both.  State is float32.
"""
from __future__ import annotations

from collections import defaultdict

import torch
from torch import Tensor, nn

_ADAM_NAMES = ("embed_tokens", "lm_head", "norm", "router", "weights_proj")


def orthogonalize(g: Tensor) -> Tensor:
    """Five Newton-Schulz steps towards the nearest orthogonal matrix of each [..., m, n]; bf16."""
    x = g.bfloat16()
    transposed = x.shape[-2] > x.shape[-1]
    if transposed:
        x = x.mT
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(5):
        a = x @ x.mT
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return x.mT if transposed else x


def _is_matrix(name: str, parameter: nn.Parameter) -> bool:
    return parameter.dim() >= 2 and not any(part in name for part in _ADAM_NAMES)


class Optimizer:
    """Steps a set of named parameters whose gradients are in `.grad`; all on one device.  Can be captured in a CUDA graph.

    `muon` says which matrices Muon takes: "all", "mlp" or "none"; Adam takes the rest.  Weight decay is for matrices alone.
    """

    def __init__(self, parameters: dict[str, nn.Parameter], weight_decay: float, muon: str = "all", momentum: float = 0.95) -> None:
        self._momentum, self._weight_decay = momentum, weight_decay
        groups: dict[torch.Size, list[nn.Parameter]] = defaultdict(list)
        decayed, plain = [], []
        for name, parameter in parameters.items():
            if not _is_matrix(name, parameter):
                plain.append(parameter)
            elif muon == "all" or (muon == "mlp" and parameter.dim() == 3):
                groups[parameter.shape[-2:]].append(parameter)
            else:
                decayed.append(parameter)
        self._groups = list(groups.values())
        self._buffers = {p: torch.zeros_like(p) for group in self._groups for p in group}
        device = plain[0].device
        self._lr = torch.zeros((), device=device)  # a tensor, so that a captured graph sees it change
        on_gpu = device.type == "cuda"
        adam = [{"params": plain, "weight_decay": 0.0}] + ([{"params": decayed, "weight_decay": weight_decay}] if decayed else [])
        self._adam = torch.optim.AdamW(adam, lr=self._lr if on_gpu else 1e-3, betas=(0.9, 0.95), eps=1e-10, fused=on_gpu, capturable=on_gpu)

    def set_lr(self, lr: float) -> None:
        """The learning rate of both methods, in AdamW's terms."""
        self._lr.fill_(lr)
        if not self._lr.is_cuda:
            for group in self._adam.param_groups:
                group["lr"] = lr

    @torch.no_grad()
    def step(self) -> None:
        self._adam.step()
        for group in self._groups:
            gradients, buffers = [p.grad for p in group], [self._buffers[p] for p in group]
            torch._foreach_lerp_(buffers, gradients, 1 - self._momentum)
            looked_ahead = torch._foreach_lerp(gradients, buffers, self._momentum)  # Nesterov
            shape = group[0].shape[-2:]
            stacked = torch.cat([u.reshape(-1, *shape) for u in looked_ahead])
            updates = orthogonalize(stacked).float() * (self._lr * (0.2 * max(shape) ** 0.5))
            parts = updates.split([u.numel() // (shape[0] * shape[1]) for u in looked_ahead])
            if self._weight_decay:
                torch._foreach_mul_(group, 1 - self._lr * self._weight_decay)
            torch._foreach_sub_(group, [u.view(p.shape) for u, p in zip(parts, group)])
