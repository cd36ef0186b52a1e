"""The evaluation's questions, drawn from fixed seeds; used by evaluate.py here and over gRPC by tools/eval."""
from __future__ import annotations

from typing import Iterator

import numpy as np

from chat_format import Turn, render
from sequences import Needle, SequenceBuilder
from tasks import definition_turn, is_held_out_sum, sum_turn

_SEED = 20


def haystacks(builder: SequenceBuilder, length: int, questions: int, facts: int, hard: bool) -> Iterator[tuple[np.ndarray, list[Needle]]]:
    """(ids [length + 1], needles) until `questions` needles have been given; each haystack has `facts`, all asked for in turn.

    With `hard` facts share their nouns.  Text and (adjective, noun) pairs are those of the builder's split.
    """
    rng = np.random.default_rng([_SEED, length, facts, int(hard)])
    remaining = questions
    while remaining > 0:
        ids, _, needles = builder.retrieval(rng, length, facts, facts, hard=hard)
        yield ids, needles[:remaining]
        remaining -= len(needles)


def sums(count: int) -> list[Turn]:
    """Two-digit sums that training never asks for."""
    rng = np.random.default_rng(_SEED)
    pairs = [(a, b) for a in range(10, 100) for b in range(10, 100) if is_held_out_sum(a, b)]
    return [sum_turn(*pairs[int(i)]) for i in rng.permutation(len(pairs))[:count]]


def definitions(builder: SequenceBuilder, count: int) -> list[Turn]:
    """Headwords of the dictionary, asked for in the main form."""
    rng = np.random.default_rng(_SEED)
    return [definition_turn(builder.dictionary[int(i)]) for i in rng.permutation(len(builder.dictionary))[:count]]


def prompt_and_answer(builder: SequenceBuilder, turn: Turn) -> tuple[list[int], list[int]]:
    """Ids of a single-turn conversation's prompt and of its answer, the end token included."""
    (head, _), (question, _), (answer, _) = render([turn])
    return builder.encoder.ids(head + question), builder.encoder.ids(answer)
