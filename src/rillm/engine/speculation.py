"""Speculative decoding by prompt look-up: what followed these tokens before may follow again.

An answer that repeats its prompt (editing a text, quoting, code) is full of runs that stood there
already. The last few tokens are searched for among the earlier ones, and what followed there is
computed together with the next token, for little more than the cost of one: a step reads every
weight once however many tokens it has. Guesses are kept as far as the sampler draws the same; the
draw depends on logits, history and counter only, and logits do not depend on how tokens were cut
into steps. So the answer is the one without speculation, greedy or sampled, bit for bit.
(Prompt lookup decoding: A. Saxena, 2023.)
"""

from __future__ import annotations

from array import array

# Tokens that have to agree, the longest match tried first. One alone agrees too often by chance.
_LONGEST = 4
_SHORTEST = 2


def find_draft(token_ids: array[int], num_draft: int) -> array[int]:
    """What followed the latest earlier occurrence of the last tokens: at most num_draft tokens."""
    size = token_ids.itemsize
    data = token_ids.tobytes()
    for length in range(min(_LONGEST, len(token_ids) - 1), _SHORTEST - 1, -1):
        needle = data[-length * size :]
        place = len(data) - size  # the occurrence ends before the last token does
        while (place := data.rfind(needle, 0, place)) >= 0:
            if place % size == 0:
                first = place // size + length
                return token_ids[first : first + num_draft]
            place += len(needle) - 1  # found between two tokens: look further left
    return array("i")


class Drafter:
    """The guesses for one sequence: how many are worth making, and how many came true."""

    def __init__(self, max_draft: int, end: int) -> None:
        """max_draft: guesses of a step at most. end: tokens that the sequence may have."""
        self.num_drafted = 0
        self.num_accepted = 0
        self._max_draft = max_draft
        self._end = end
        self._length = max_draft  # of the next draft: short after a failure, then longer again
        self._last_length = 0
        self._last_accepted = 0

    def propose(self, token_ids: array[int], room: int) -> array[int]:
        """Guesses for the tokens after `token_ids`, at most `room`."""
        if self._last_accepted < self._last_length:
            self._length = max(1, self._last_accepted)
        elif self._last_length:
            self._length = min(2 * self._length, self._max_draft)
        self._last_length = self._last_accepted = 0
        # The step gives one token beyond the guesses.
        num_draft = min(self._length, room, self._end - len(token_ids) - 1)
        return find_draft(token_ids, num_draft) if num_draft > 0 else array("i")

    def begin(self, num_draft: int) -> None:
        """Notes that so many guesses are being computed."""
        self.num_drafted += num_draft
        self._last_length = num_draft

    def accept(self) -> None:
        """Notes that the next guess came true."""
        self.num_accepted += 1
        self._last_accepted += 1
