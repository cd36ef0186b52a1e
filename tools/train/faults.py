"""Faults planted in the indexer, to show that the evaluation sees it: each makes IndexerOptions for a batch of needles."""
from __future__ import annotations

from typing import Callable, Sequence

import torch
from torch import Tensor

import reference_ops
from model import IndexerOptions
from sequences import Needle

_BLOCK = 64  # tokens of a cache block, in which index keys live


def _select(scores: Tensor, count: int) -> Tensor:
    if scores.is_cuda:
        import kernels  # noqa: PLC0415  (Triton needs a GPU)
        return kernels.select_topk(scores, count)
    return reference_ops.select_topk(scores, count)


def _random_selection(scores: Tensor, count: int, layer: int) -> Tensor:
    generator = torch.Generator(device=scores.device).manual_seed(layer)
    return _select(torch.rand(scores.shape, device=scores.device, generator=generator), count)


def _shifted_selection(scores: Tensor, count: int, layer: int) -> Tensor:
    """Every selected position replaced by the one 64 before it (the first ones stay where they are)."""
    mask = _select(scores, count)
    shifted = torch.zeros_like(mask)
    shifted[..., :-_BLOCK] = mask[..., _BLOCK:]
    shifted[..., 0] |= mask[..., :_BLOCK].amax(-1)
    return shifted


def _zero_needle_blocks(needles: Sequence[Needle]) -> IndexerOptions:
    def corrupt(k: Tensor) -> Tensor:
        k = k.clone()
        sequences = max(n.sequence for n in needles) + 1
        view = k.view(sequences, -1, k.shape[-1])  # the keys come as one flat batch
        for needle in needles:
            for block in {needle.fact_at // _BLOCK, (needle.fact_end - 1) // _BLOCK}:
                view[needle.sequence, block * _BLOCK : (block + 1) * _BLOCK] = 0.0
        return k

    return IndexerOptions(corrupt_keys=corrupt)


FAULTS: dict[str, Callable[[Sequence[Needle]], IndexerOptions]] = {
    "random selection": lambda needles: IndexerOptions(select=_random_selection),
    "selection shifted by 64": lambda needles: IndexerOptions(select=_shifted_selection),
    "hadamard on one side": lambda needles: IndexerOptions(hadamard_one_side=True),
    "keys of the needle's block zeroed": _zero_needle_blocks,
    "interleaved rope": lambda needles: IndexerOptions(interleaved_rope=True),
}
