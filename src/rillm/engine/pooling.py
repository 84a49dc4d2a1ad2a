"""From the hidden states of a prompt's tokens to embeddings, as llama.cpp pools them."""

from __future__ import annotations

from array import array
from typing import Literal, Protocol

Pooling = Literal["none", "mean", "cls", "last"]
POOLINGS: tuple[Pooling, ...] = ("none", "mean", "cls", "last")

_INT16_RANGE = 32760.0  # what llama.cpp scales the largest value to with norm 0


class HiddenStates(Protocol):
    """Where hidden states come from."""

    @property
    def hidden_size(self) -> int:
        """Their width."""
        ...

    def add_hidden(self, first: int, count: int, total: array[float]) -> None:
        """Adds the rows of `count` tokens to total: [hidden_size]."""
        ...


class Pooler:
    """Gathers one prompt's embeddings chunk by chunk; how it was cut changes nothing.

    none: one embedding a token. mean: of all tokens. cls: the first token's. last: the last one's.
    """

    def __init__(self, pooling: Pooling, num_tokens: int, hidden_size: int) -> None:
        self._pooling = pooling
        self._num_tokens = num_tokens
        self._hidden_size = hidden_size
        self._rows: list[array[float]] = []

    def push(self, states: HiddenStates, first_row: int, start: int, count: int) -> None:
        """Takes tokens [start, start + count), whose states begin at row first_row."""
        if start == 0:
            self._rows.clear()  # computed again after a preemption
        if self._pooling == "none":
            for row in range(first_row, first_row + count):
                self._add(states, row, 1)
        elif self._pooling == "mean":
            if self._rows:
                states.add_hidden(first_row, count, self._rows[0])
            else:
                self._add(states, first_row, count)
        elif self._pooling == "cls":
            if start == 0:
                self._add(states, first_row, 1)
        elif start + count == self._num_tokens:
            self._add(states, first_row + count - 1, 1)

    def _add(self, states: HiddenStates, first_row: int, count: int) -> None:
        total = array("f", bytes(4 * self._hidden_size))
        states.add_hidden(first_row, count, total)
        self._rows.append(total)

    def result(self) -> list[array[float]]:
        """The embeddings, not normalised: float32 [hidden_size]."""
        if self._pooling == "mean":
            count = self._num_tokens
            return [array("f", (value / count for value in row)) for row in self._rows]
        return self._rows


def normalized(values: array[float], norm: int = 2) -> array[float]:
    """llama.cpp's embd_normalize: -1 as it is, 0 largest = 32760, 1 sum of sizes, p the p-norm."""
    if norm < 0:
        return values
    if norm == 0:
        size = max(map(abs, values)) / _INT16_RANGE
    elif norm == 2:
        size = sum(value * value for value in values) ** 0.5
    else:
        largest = max(map(abs, values)) or 1.0  # so that no power overflows
        size = largest * sum((abs(value) / largest) ** norm for value in values) ** (1.0 / norm)
    return array("f", (value / size for value in values)) if size > 0 else values
