"""Makes batches in worker processes; the batch of a (stage, step, rank) depends on nothing but these and the seed."""
from __future__ import annotations

import multiprocessing
from collections import deque
from pathlib import Path

import numpy as np
import torch

from sequences import SequenceBuilder
from stages import Stage

_PREFETCH_PER_WORKER = 3


def length_of_step(stage: Stage, seed: int, step: int) -> int:
    """The sequence length of a step, drawn by the stage's shares; the same for all ranks."""
    rng = np.random.default_rng([seed, 7, step])
    shares = np.array([share for _, share in stage.lengths])
    return stage.lengths[int(rng.choice(len(shares), p=shares / shares.sum()))][0]


def make_batch(builder: SequenceBuilder, stages: tuple[Stage, ...], seed: int, stage: int, step: int, rank: int, ranks: int) -> tuple[np.ndarray, np.ndarray]:
    """(ids [B, L + 1], kinds [B, L]) of one rank's share of a step."""
    length = length_of_step(stages[stage], seed, step)
    count = max(1, stages[stage].batch_tokens // ranks // length)
    builder.limit_keys(stages[stage].keys)
    return builder.batch(np.random.default_rng([seed, stage, step, rank]), count, length, stages[stage].mixture)


def _work(data: Path, stages: tuple[Stage, ...], seed: int, rank: int, ranks: int, requests, results) -> None:
    builder = SequenceBuilder(data, "train")
    while (request := requests.get()) is not None:
        results.put((request, make_batch(builder, stages, seed, *request, rank, ranks)))


class Loader:
    """Ordered batches from `workers` processes.  Make it before anything touches the GPU: the workers are forked."""

    def __init__(self, data: Path, stages: tuple[Stage, ...], seed: int, rank: int, ranks: int, workers: int) -> None:
        context = multiprocessing.get_context("fork")
        self._queues = [(context.SimpleQueue(), context.SimpleQueue()) for _ in range(workers)]
        self._pending: list[deque[tuple[int, int]]] = [deque() for _ in range(workers)]
        self._next: tuple[int, int] | None = None
        self._processes = [context.Process(target=_work, args=(data, stages, seed, rank, ranks, *q), daemon=True) for q in self._queues]
        for process in self._processes:
            process.start()

    def batch(self, stage: int, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The batch of a step as (ids int64, kinds uint8), pinned where a GPU is present; asks for the ones after it ahead."""
        workers = len(self._queues)
        if self._next is None or self._next[0] != stage or self._next[1] < step:
            self._next = (stage, step)
        while self._next[1] < step + workers * _PREFETCH_PER_WORKER:
            worker = self._next[1] % workers
            self._queues[worker][0].put(self._next)
            self._pending[worker].append(self._next)
            self._next = (stage, self._next[1] + 1)
        worker = step % workers
        while True:
            expected = self._pending[worker].popleft()
            request, (ids, kinds) = self._queues[worker][1].get()
            assert request == expected, (request, expected)
            if request == (stage, step):  # others were asked for by a stage that ended early
                tensors = torch.from_numpy(ids.astype(np.int64)), torch.from_numpy(kinds)
                return tuple(t.pin_memory() for t in tensors) if torch.cuda.is_available() else tensors

    def close(self) -> None:
        for requests, _ in self._queues:
            requests.put(None)
        for process in self._processes:
            process.terminate()
