"""How much of the waiting prompts a step may compute, so that the others hardly notice.

What a step takes is predicted from what steps took. The unit is work: 1 is a prompt token at the
start of its sequence, and a token that comes later costs more by what it attends to.
"""

from __future__ import annotations

import math
from collections import defaultdict, deque
from dataclasses import dataclass

# A step without decodes computes at least so many prompt tokens, however slow the machine; one with
# decodes at least one.
_MIN_CHUNK_ALONE = 32
# The first chunk of all, before any step was timed.
_FIRST_CHUNK = 64
# A step does no more than so many times what lately another did: a guess that is far off shows
# while it is harmless.
_GROWTH = 2.0
_FORGET = 0.98
# Of the delay allowed, what a chunk is cut for. It is moved so that about one step in 160 exceeds
# the delay: down after each that does, a little up after each that does not.
_FIRST_AIM = 0.6
_AIMS = (0.5, 0.85)
_AIM_DOWN, _AIM_UP = 0.85, 1.001
# Mixed steps after which the time of a step of decodes alone is measured again; at once after one
# that took so much less or more than predicted, as the machine's speed may have changed.
_REMEASURE = 16
_EXPECTED = (0.75, 1.35)


def prompt_work(start: int, num_tokens: int, key_cost: float) -> float:
    """Work of prompt tokens [start, start + num_tokens).

    key_cost: what one key that a token attends to costs, in times of what the token's weights cost.
    """
    return num_tokens * (1.0 + key_cost * (start + 0.5 * num_tokens))


@dataclass(slots=True)
class Room:
    """What a step may still take of prompts: at most so many tokens, and so much work."""

    tokens: int
    work: float
    key_cost: float

    @property
    def is_open(self) -> bool:
        """Whether there is any."""
        return self.tokens > 0 and self.work > 0.0

    def fit(self, start: int) -> int:
        """How many tokens that follow the first `start` of a sequence there is room for."""
        if self.work == math.inf:
            return self.tokens
        # The root of prompt_work(start, n) = work, without dividing by a key_cost of 0.
        first = 1.0 + self.key_cost * start
        root = math.sqrt(first * first + 2.0 * self.key_cost * self.work)
        return min(self.tokens, int(2.0 * self.work / (first + root) + 1e-6))

    def take(self, start: int, num_tokens: int) -> None:
        """Takes what these tokens need."""
        self.tokens -= num_tokens
        self.work -= prompt_work(start, num_tokens, self.key_cost)


class PrefillPacer:
    """Bounds the prompt tokens of a step, from the measured times of earlier steps.

    While one prompt is evaluated, a step may take at most `max_delay` decode steps longer than its
    decodes alone; where more prompts wait than sequences decode, so many times that (to hold up
    many for the sake of a few is no better). No step shall take much more than `max_seconds`, so
    that a slow machine notices soon when a request is new or gone. 0 = no limit. What a step
    computes never depends on how its prompts were cut, only when.
    """

    def __init__(
        self, max_delay: float = 0.0, max_seconds: float = 0.0, key_cost: float = 0.0
    ) -> None:
        """key_cost: see prompt_work."""
        self.key_cost = key_cost
        self._max_delay = max_delay
        self._max_seconds = max_seconds
        # Of steps of decodes alone, by the bit length of num_decodes: the latest times. Their
        # median counts, because a prompt slows the steps before its own (it is being encoded).
        self._decode_times: dict[int, deque[float]] = defaultdict(lambda: deque(maxlen=5))
        self._mixed_seconds: float | None = None  # of one unit of work in a step with decodes
        self._alone_seconds: float | None = None  # of one unit of work in a step without
        self._num_mixed_steps = 0
        self._aim = _FIRST_AIM
        # Of the last mixed step: its limit, the delay that this was for in seconds, and the work
        # of one token. A limit seldom is a whole number of tokens; the rest is the next step's.
        self._limit = 0.0
        self._allowed = 0.0
        self._token_work = 1.0
        self._rest = 0.0
        self._reached = 0.0  # the most work that a mixed step did lately

    def limit(self, num_decodes: int, num_prompts: int = 1, start: int = 0) -> float | None:
        """Work of prompts that the next step may do beside its decodes; None = no limit.

        start: tokens that the oldest prompt has behind it; what it gives is enough for one more.
        """
        if num_decodes == 0:
            if self._max_seconds == 0:
                return None
            if self._alone_seconds is None:
                return prompt_work(start, _FIRST_CHUNK, self.key_cost)
            least = prompt_work(start, _MIN_CHUNK_ALONE, self.key_cost)
            return max(least, self._max_seconds / self._alone_seconds)
        if self._max_delay == 0:
            return None
        decode_seconds = self._decode_seconds(num_decodes)
        if decode_seconds == 0 or self._num_mixed_steps >= _REMEASURE:
            return 0.0  # a step of decodes alone, to know how long that takes
        self._allowed = self._max_delay * decode_seconds * max(1.0, num_prompts / num_decodes)
        self._token_work = prompt_work(start, 1, self.key_cost)
        limit = _GROWTH * self._reached + self._token_work
        if self._mixed_seconds is not None:
            delay = self._aim * self._allowed
            if self._max_seconds:
                delay = min(delay, self._max_seconds)
            limit = min(limit, delay / self._mixed_seconds + self._rest)
        self._limit = max(limit, self._token_work)
        return self._limit

    def observe(self, num_decodes: int, num_prompt: int, work: float, seconds: float) -> None:
        """Learns from a finished step: its decodes, prompt tokens and their work."""
        seconds = max(seconds, 1e-6)
        if num_prompt == 0:
            self._decode_times[num_decodes.bit_length()].append(seconds)
            self._num_mixed_steps = 0
        elif num_decodes == 0:
            if num_prompt >= _MIN_CHUNK_ALONE:  # a short prompt costs a whole pass all the same
                self._alone_seconds = _mean(self._alone_seconds, seconds / work)
        else:
            self._num_mixed_steps += 1
            decode_seconds = self._decode_seconds(num_decodes)
            if self._mixed_seconds is not None:
                ratio = seconds / (decode_seconds + work * self._mixed_seconds)
                if not _EXPECTED[0] < ratio < _EXPECTED[1]:
                    self._num_mixed_steps = _REMEASURE
            self._reached = max(work, _FORGET * self._reached)
            rest = self._limit - work
            self._rest = rest if rest < self._token_work else 0.0  # else there was no prompt left
            extra = max(seconds - decode_seconds, 0.05 * seconds)
            is_late = extra > self._allowed > 0.0
            if is_late:  # a stall of the machine must not count for more than what any chunk may be
                extra = min(extra, 2.0 * self._allowed)
            # A short end of a prompt says little: it costs nearly as much as some tokens more.
            if is_late or self._mixed_seconds is None or work >= 0.5 * self._limit:
                self._mixed_seconds = _mean(self._mixed_seconds, extra / work)
            if num_prompt > 1:
                aim = self._aim * (_AIM_DOWN if is_late else _AIM_UP)
                self._aim = min(max(aim, _AIMS[0]), _AIMS[1])

    def _decode_seconds(self, num_decodes: int) -> float:
        """Of a step of so many decodes and nothing else; 0 if none was measured."""
        times = sorted(self._decode_times[num_decodes.bit_length()])
        return times[len(times) // 2] if times else 0.0


def _mean(known: float | None, measured: float) -> float:
    """Mostly old where it gets less: one step that was fast by chance must not lengthen chunks."""
    if known is None:
        return measured
    weight = 0.5 if measured > known else 0.2
    return known + weight * (measured - known)
