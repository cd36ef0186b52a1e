#!/usr/bin/env python3
"""Compares the Triton kernels with their plain PyTorch forms on a GPU, and times them at training sizes.

    check_kernels.py [--time]
"""
from __future__ import annotations

import argparse
import time
from typing import Callable

import torch

import kernels
import reference_ops
from errors import ToolError, run_main


def _inputs(B: int, T: int, H: int, dtype: torch.dtype) -> list[torch.Tensor]:
    shapes = ((B, T, H, 128), (B, T, H, 64), (B, T, H, 128), (B, T, 1, 64), (B, T, H, 128))
    return [torch.randn(s, device="cuda", dtype=dtype).requires_grad_() for s in shapes]


def _error(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a.float() - b.float()).norm() / b.float().norm()).item()


def check() -> None:
    torch.manual_seed(0)
    for B, T in ((2, 96), (1, 1000), (2, 512)):
        q, k = torch.randn(B, T, 16, 128, device="cuda").bfloat16(), torch.randn(B, T, 128, device="cuda").bfloat16()
        w = torch.randn(B, T, 16, device="cuda")
        causal = torch.ones(T, T, device="cuda", dtype=torch.bool).tril()
        expected = reference_ops.index_scores(q, k, w)
        errors = {"scores": _error(kernels.index_scores(q, k, w)[:, causal], expected[:, causal])}
        tied = torch.where(torch.rand_like(expected) < 0.5, 0.0, expected)
        differ = int((kernels.select_topk(tied, 64) != reference_ops.select_topk(tied, 64)).sum())
        if differ:
            raise ToolError(f"select_topk: {differ} of {tied.numel()} entries differ at T={T}")
        for mask in (None, reference_ops.select_topk(expected, 64)):
            ours, theirs = _inputs(B, T, 8, torch.bfloat16), None
            theirs = [x.detach().float().requires_grad_() for x in ours]
            out, reference = kernels.attention(*ours, mask, 0.1), reference_ops.attention(*theirs, mask, 0.1)
            grad = torch.randn_like(reference)
            found, wanted = torch.autograd.grad(out, ours, grad.bfloat16()), torch.autograd.grad(reference, theirs, grad)
            errors["attention" + ("" if mask is None else " masked")] = max([_error(out, reference)] + [_error(a, b) for a, b in zip(found, wanted)])
        print(f"B={B} T={T}: " + ", ".join(f"{n} {e:.1e}" for n, e in errors.items()))
        if not max(errors.values()) < 2e-2:
            raise ToolError(f"a kernel differs from its reference at T={T}")


def _milliseconds(f: Callable[[], object]) -> float:
    f()
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(3):
        f()
    torch.cuda.synchronize()
    return (time.perf_counter() - start) / 3 * 1e3


def measure() -> None:
    for B, T in ((48, 1024), (6, 8192), (3, 16384)):
        q, k = torch.randn(B, T, 16, 128, device="cuda").bfloat16(), torch.randn(B, T, 128, device="cuda").bfloat16()
        w = torch.randn(B, T, 16, device="cuda")
        scores = kernels.index_scores(q, k, w)
        mask = kernels.select_topk(scores, 256)
        inputs = _inputs(B, T, 8, torch.bfloat16)
        grad = torch.randn(B, T, 8, 128, device="cuda", dtype=torch.bfloat16)
        times = {"scores": _milliseconds(lambda: kernels.index_scores(q, k, w)), "select": _milliseconds(lambda: kernels.select_topk(scores, 256)),
                 "masked attention": _milliseconds(lambda: kernels.attention(*inputs, mask, 0.1)),
                 "with backward": _milliseconds(lambda: torch.autograd.grad(kernels.attention(*inputs, mask, 0.1), inputs, grad))}
        print(f"B={B} T={T}: " + ", ".join(f"{n} {t:.1f} ms" for n, t in times.items()), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--time", action="store_true", help="time the kernels too")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        raise ToolError("no GPU is present")
    check()
    if args.time:
        measure()


if __name__ == "__main__":
    run_main(main)
