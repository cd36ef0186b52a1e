#!/usr/bin/env python3
"""Evaluates a checkpoint with this code's own forward pass: recall, faults, perplexity, definitions, sums, overlap.

    evaluate.py MODEL_DIR DATA_DIR OUT.json [--form dense sparse] [--numerics bf16 fp8] [--only recall sums ...]

MODEL_DIR is a training checkpoint or an exported folder.  Held-out text and (adjective, noun) pairs are used throughout;
questions are answered greedily (an answer counts when every token of it is the best one).  OUT.json gets one entry a
figure with its sample count; it is written after each, so a run that is cut off keeps what it had.
"""
from __future__ import annotations

import argparse
import itertools
import json
import time
from pathlib import Path
from typing import Any, Callable

import numpy as np
import torch

import checkpoint
import export
import reference_ops
from errors import ToolError, run_main
from evaluation_sets import definitions, haystacks, prompt_and_answer, sums
from faults import FAULTS
from model import DENSE, SPARSE, DsaModel, IndexerOptions, indexer_loss
from model_config import ModelConfig
from numerics import Numerics
from sequences import Needle, SequenceBuilder

_SEED = 20


class Evaluation:
    """One model in one numerics; every method draws its samples from a fixed seed."""

    def __init__(self, model: DsaModel, builder: SequenceBuilder, batch_tokens: int) -> None:
        self.model, self.builder, self.batch_tokens = model, builder, batch_tokens
        self.device = model.embed_tokens.device

    @torch.no_grad()
    def _best(self, ids: np.ndarray, form: str, at: list[tuple[int, int]], options: IndexerOptions) -> np.ndarray:
        """The most likely next token at (sequence, position) pairs of ids [B, T]."""
        hidden = self.model(torch.from_numpy(ids.astype(np.int64)).to(self.device), form, options=options).hidden
        rows, columns = (torch.tensor(v, device=self.device) for v in zip(*at))
        return self.model.logits(hidden[rows, columns]).argmax(-1).cpu().numpy()

    def recall(self, length: int, questions: int, form: str, facts: int, hard: bool, fault: str | None = None) -> dict[str, Any]:
        """Recall of facts hidden at random depth; `facts` a haystack, all asked for in turn.  Ten bins of depth."""
        right, total = np.zeros(10, int), np.zeros(10, int)
        source = haystacks(self.builder, length, questions, facts, hard)
        while drawn := list(itertools.islice(source, max(1, self.batch_tokens // length))):
            ids = np.stack([d[0] for d in drawn])
            needles = [Needle(i, n.answer_at, n.fact_at, n.fact_end) for i, d in enumerate(drawn) for n in d[1]]
            options = FAULTS[fault](needles) if fault else IndexerOptions()
            best = self._best(ids[:, :-1], form, [(n.sequence, n.answer_at) for n in needles], options)
            for needle, token in zip(needles, best):
                depth = min(9, needle.fact_at * 10 // length)
                total[depth] += 1
                right[depth] += int(token == ids[needle.sequence, needle.answer_at + 1])
        return {"recall": float(right.sum() / total.sum()), "samples": int(total.sum()), "right_by_depth": right.tolist(), "samples_by_depth": total.tolist()}

    def turns(self, turns: list[Any], form: str) -> dict[str, Any]:
        """Share of single-turn conversations whose whole answer is the greedy one."""
        right = 0
        for begin in range(0, len(turns), 128):
            rows = [prompt_and_answer(self.builder, turn) for turn in turns[begin : begin + 128]]
            width = max(len(p) + len(a) for p, a in rows)
            ids = np.full((len(rows), width), 1)
            at = []
            for i, (prompt, answer) in enumerate(rows):
                ids[i, : len(prompt) + len(answer)] = prompt + answer
                at += [(i, len(prompt) - 1 + k) for k in range(len(answer))]
            best = self._best(ids, form, at, IndexerOptions())
            good = np.ones(len(rows), bool)
            for (i, position), token in zip(at, best):
                good[i] &= token == ids[i, position + 1]
            right += int(good.sum())
        return {"right": right / len(turns), "samples": len(turns)}

    @torch.no_grad()
    def perplexity(self, length: int, form: str, windows_max: int) -> dict[str, Any]:
        """Perplexity of the held-out text in windows of `length`."""
        text = self.builder.text
        windows = [text[i : i + length] for i in range(0, len(text) - length, length)][:windows_max]
        total = 0.0
        for window in windows:
            ids = torch.from_numpy(np.concatenate(([0], window)).astype(np.int64)).to(self.device)[None]
            losses, _ = self.model.token_losses(self.model(ids[:, :-1].contiguous(), form).hidden[0], ids[0, 1:])
            total += losses.double().sum().item()
        count = len(windows) * length
        return {"perplexity": float(np.exp(total / count)), "tokens": count}

    @torch.no_grad()
    def overlap(self, length: int, haystacks: int) -> dict[str, Any]:
        """Share of the dense attention that falls on the indexer's selection, a layer; rows from the end of haystacks."""
        rng = np.random.default_rng([_SEED, length])
        sums = np.zeros(len(self.model.layers))
        for _ in range(haystacks):
            ids, _, needles = self.builder.retrieval(rng, length, 4, 4)
            traces = self.model(torch.from_numpy(ids[None, :-1].astype(np.int64)).to(self.device), DENSE, trace=True).traces
            anywhere = rng.integers(length // 2, length, 28)
            rows = torch.from_numpy(np.concatenate(([n.answer_at for n in needles], anywhere))).to(self.device)[None]
            sums += [indexer_loss(self.model, layer, trace, rows)[1].item() for layer, trace in zip(self.model.layers, traces)]
        return {"mass_by_layer": (sums / haystacks).tolist(), "haystacks": haystacks}


def load_model(folder: Path, numerics: Numerics, device: torch.device, compiled: bool) -> DsaModel:
    """The model of a training checkpoint or an exported folder; with fp8 numerics its weights are the fp8 checkpoint's values."""
    ops: Any = reference_ops
    if device.type == "cuda":
        import kernels as ops  # noqa: PLC0415  (Triton needs a GPU)
    exported = (folder / "config.json").exists()
    config = ModelConfig() if exported else ModelConfig(**checkpoint.read_settings(folder)["model"])
    model = DsaModel(config, ops, numerics, compiled)
    if exported:
        export.read_checkpoint(folder, model)
    else:
        checkpoint.load_weights(folder, model)
    if numerics.fp8:
        export.quantize_in_place(model)
    model = model.to(device).eval()
    if device.type == "cuda":
        from dense_attention import DenseAttention  # noqa: PLC0415
        model.dense_attention = DenseAttention(forward_only=True)
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="training checkpoint or exported folder")
    parser.add_argument("data", type=Path, help="data folder made by prepare.py")
    parser.add_argument("out", type=Path, help="JSON file to write")
    parser.add_argument("--numerics", nargs="+", choices=("bf16", "fp8"), default=["bf16", "fp8"], help="(default: both)")
    parser.add_argument("--form", nargs="+", choices=(DENSE, SPARSE), default=[SPARSE, DENSE], help="(default: both)")
    parser.add_argument("--only", nargs="+", choices=("recall", "multi", "faults", "chat", "perplexity", "overlap"), help="parts to run (default: all)")
    parser.add_argument("--lengths", nargs="+", type=int, default=[1024, 4096, 8192, 16384], help="of the haystacks (default: %(default)s)")
    parser.add_argument("--samples", type=int, default=1000, help="questions a length (default: %(default)s)")
    parser.add_argument("--fault-length", type=int, default=8192, help="(default: %(default)s)")
    parser.add_argument("--fault-samples", type=int, default=500, help="(default: %(default)s)")
    parser.add_argument("--window", type=int, default=4096, help="of the perplexity (default: %(default)s)")
    parser.add_argument("--windows", type=int, default=1000, help="at most so many (default: %(default)s)")
    parser.add_argument("--batch-tokens", type=int, default=65536, help="(default: %(default)s)")
    args = parser.parse_args()
    if min(args.lengths) < 256:
        raise ToolError(f"--lengths {min(args.lengths)}: a haystack of four facts needs at least 256 tokens")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    builder = SequenceBuilder(args.data, "held")
    results: list[dict[str, Any]] = []
    parts = args.only or ("recall", "multi", "chat", "perplexity", "overlap", "faults")

    def measure(name: str, work: Callable[[], dict[str, Any]], **labels: Any) -> None:
        started = time.time()
        entry = {"figure": name, **labels, **work(), "seconds": round(time.time() - started, 1)}
        results.append(entry)
        args.out.write_text(json.dumps(results, indent=0) + "\n")
        print(json.dumps(entry), flush=True)

    for kind in args.numerics:
        model = load_model(args.model, Numerics(torch.bfloat16, fp8=kind == "fp8"), device, compiled=False)
        e = Evaluation(model, builder, args.batch_tokens)
        if "chat" in parts:
            measure("definitions", lambda: e.turns(definitions(builder, 500), SPARSE), numerics=kind)
            measure("sums", lambda: e.turns(sums(500), SPARSE), numerics=kind)
        for form in args.form:
            for length in args.lengths if "recall" in parts else ():
                measure("recall", lambda: e.recall(length, args.samples, form, 4, False), numerics=kind, form=form, length=length)
            if "multi" in parts:
                measure("multi-needle", lambda: e.recall(args.fault_length, args.fault_samples, form, 8, True), numerics=kind, form=form, length=args.fault_length)
            if "perplexity" in parts:
                measure("perplexity", lambda: e.perplexity(args.window, form, args.windows), numerics=kind, form=form, length=args.window)
        if "overlap" in parts:
            measure("overlap", lambda: e.overlap(4096, 16), numerics=kind, length=4096)
        if "faults" in parts and kind == args.numerics[0]:
            for fault in FAULTS:
                work = lambda: e.recall(args.fault_length, args.fault_samples, SPARSE, *((8, True) if fault == "interleaved rope" else (4, False)), fault)
                measure("fault", work, fault=fault, numerics=kind, length=args.fault_length)


if __name__ == "__main__":
    run_main(main)
