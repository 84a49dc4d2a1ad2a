"""Byte-pair merging: the best pair of neighbours becomes one symbol until no pair is known."""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from itertools import pairwise


class Merger:
    """Merges by a table of ranks, the lowest first and among equals the leftmost.

    A pair is looked up as left + joiner + right. With an empty joiner that is the symbol which it
    would make: tiktoken's rule (rank = token id) and SentencePiece's (rank = -score). With a space
    it is a line of a merge list (rank = its place), where no symbol has a space in it.
    """

    def __init__(self, ranks: Mapping[str, float], joiner: str) -> None:
        self._ranks = ranks
        self._joiner = joiner

    def merge(self, text: str) -> list[str]:
        """The symbols of `text`, which starts out as its characters. O(n log n)."""
        rank_of, joiner = self._ranks.get, self._joiner
        symbols = list(text)
        end = len(symbols)
        heap = [
            (rank, i, len(pair))
            for i, pair in enumerate(map(joiner.join, pairwise(symbols)))
            if (rank := rank_of(pair)) is not None
        ]
        if not heap:
            return symbols
        heapq.heapify(heap)
        following = list(range(1, end + 1))
        before = list(range(-1, end - 1))
        extra = len(joiner)
        while heap:
            _, left, length = heapq.heappop(heap)
            text_left = symbols[left]
            right = following[left]
            # A symbol that went into another is empty; one that grew makes a longer pair.
            if not text_left or right == end:
                continue
            text_right = symbols[right]
            if len(text_left) + len(text_right) + extra != length:
                continue
            merged = symbols[left] = text_left + text_right
            symbols[right] = ""
            after = following[left] = following[right]
            if after != end:
                before[after] = left
                pair = merged + joiner + symbols[after]
                if (rank := rank_of(pair)) is not None:
                    heapq.heappush(heap, (rank, left, len(pair)))
            previous = before[left]
            if previous >= 0:
                pair = symbols[previous] + joiner + merged
                if (rank := rank_of(pair)) is not None:
                    heapq.heappush(heap, (rank, previous, len(pair)))
        return [symbol for symbol in symbols if symbol]
