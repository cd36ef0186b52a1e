#!/usr/bin/env python3
"""Refits the output rows of the numbers that end in a digit, on the CPU, so that sums can end in it.

    mend.py CHECKPOINT_DIR DATA_DIR OUT_DIR --ending 7

The shipped checkpoint's first training held out every sum ending in 7 by mistake: it computes such a sum, but never
learned to say it and names a neighbour.  This changes the rows of those numbers in lm_head and nothing else: logistic
regression on the final hidden states of sums and, so that the numbers keep their meaning as facts' values, of fact lists.
A training from the start does not need it.
"""
from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

import checkpoint
import reference_ops
from errors import ToolError, run_main
from evaluation_sets import prompt_and_answer
from model import DENSE, DsaModel
from model_config import ModelConfig
from sequences import KIND_AGAIN, SequenceBuilder
from tasks import is_held_out_sum, sum_turn

_ENDING_SUMS, _OTHER_SUMS, _FACT_LISTS, _STEPS = 400, 1000, 12, 150
_DECAY = 3e-3  # of the rows' change


@torch.no_grad()
def _sum_states(model: DsaModel, builder: SequenceBuilder, pairs: list[tuple[int, int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """(final hidden states [n, C] where the result is said, ids of the results [n])."""
    states, targets = [], []
    for begin in range(0, len(pairs), 64):
        rows = []
        for a, b in pairs[begin : begin + 64]:
            prompt, answer = prompt_and_answer(builder, sum_turn(a, b))
            rows.append((prompt + answer[:-3], answer[-3]))  # the result, a full stop and the end follow
        width = max(len(ids) for ids, _ in rows)
        ids = torch.tensor([r + [1] * (width - len(r)) for r, _ in rows])
        hidden = model(ids, DENSE).hidden
        states += [hidden[i, len(r) - 1] for i, (r, _) in enumerate(rows)]
        targets += [t for _, t in rows]
    return torch.stack(states), torch.tensor(targets)


@torch.no_grad()
def _fact_states(model: DsaModel, builder: SequenceBuilder, rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    rows = [builder.pairs(rng, 128) for _ in range(_FACT_LISTS)]
    ids = torch.from_numpy(np.stack([r[0] for r in rows]).astype(np.int64))
    asked = torch.from_numpy(np.stack([r[1] for r in rows])) == KIND_AGAIN
    return model(ids[:, :-1].contiguous(), DENSE).hidden[asked], ids[:, 1:][asked]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, help="folder written by train.py")
    parser.add_argument("data", type=Path, help="data folder made by prepare.py")
    parser.add_argument("out", type=Path, help="checkpoint folder to write")
    parser.add_argument("--ending", type=int, required=True, choices=range(10), help="last digit of the numbers to refit")
    args = parser.parse_args()
    if (args.out / "state.json").exists():
        raise ToolError(f"{args.out}: holds a checkpoint already")
    settings, state = checkpoint.read_settings(args.checkpoint), checkpoint.read_state(args.checkpoint)
    model = DsaModel(ModelConfig(**settings["model"]), reference_ops)
    checkpoint.load_weights(args.checkpoint, model)
    builder, rng = SequenceBuilder(args.data, "train"), np.random.default_rng(11)
    every = [(a, b) for a in range(10, 100) for b in range(10, 100) if not is_held_out_sum(a, b)]
    ending = [p for p in every if sum(p) % 10 == args.ending]
    ending = [ending[int(i)] for i in rng.permutation(len(ending))[:_ENDING_SUMS]]
    others = [p for p in every if sum(p) % 10 != args.ending]
    sums = ending + [others[int(i)] for i in rng.permutation(len(others))[:_OTHER_SUMS]]
    hidden, targets = (torch.cat(parts) for parts in zip(_sum_states(model, builder, sums), _fact_states(model, builder, rng)))
    columns = torch.tensor([builder.encoder.piece(str(n))[0] for n in range(20 + args.ending, 199, 10)])
    with torch.no_grad():
        base = model.logits(hidden)
    change = torch.zeros(len(columns), hidden.shape[1], requires_grad=True)
    optimizer = torch.optim.Adam([change], lr=3e-2)
    for step in range(_STEPS + 1):
        logits = base.index_add(1, columns, hidden.float() @ change.T)
        loss = F.cross_entropy(logits, targets) + _DECAY * change.square().sum()
        if step % 50 == 0:
            right = (logits.argmax(-1) == targets).float()
            parts = right[: len(ending)], right[len(ending) : len(sums)], right[len(sums) :]
            print(f"step {step}: loss {loss.item():.4f}; right: " + ", ".join(f"{n} {p.mean():.4f}" for n, p in zip(("ending", "other sums", "facts"), parts)), flush=True)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        model.lm_head[columns] += change
    checkpoint.save(args.out, model, settings, {**state, "refitted_ending": args.ending})


if __name__ == "__main__":
    run_main(main)
