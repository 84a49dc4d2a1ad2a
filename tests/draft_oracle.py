"""Guesses for tests: what an answer is known to be, with wrong tokens strewn in."""

from __future__ import annotations

import random
from array import array
from collections.abc import Callable, Sequence

Answer = tuple[Sequence[int], Sequence[int]]  # prompt, what follows it


def draft_oracle(
    answers: Sequence[Answer], right: float, seed: int = 0
) -> Callable[[array[int], int], array[int]]:
    """Stands in for speculation.find_draft; `right` is the share of guesses that come true."""
    generator = random.Random(seed)

    def find(tokens: array[int], num_draft: int) -> array[int]:
        for prompt, answer in answers:
            place = len(tokens) - len(prompt)
            if [*prompt, *answer[: max(0, place)]] == list(tokens):
                draft = answer[place : place + num_draft]
                return array("i", [t if generator.random() < right else t ^ 1 for t in draft])
        raise AssertionError("no such prompt")

    return find
