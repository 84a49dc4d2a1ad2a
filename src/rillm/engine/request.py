"""What is asked of the engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from rillm.engine.pooling import Pooling
from rillm.sampling import SamplingParams


class MaskProvider(Protocol):
    """Constrains the tokens of one sequence, e.g. to a grammar."""

    def mask_address(self) -> int:
        """Address of a bit per token of the vocabulary (uint32 words), set = allowed now."""
        ...

    def accept(self, token: int) -> None:
        """Moves on: `token` was drawn."""
        ...


@dataclass(frozen=True, slots=True)
class Request:
    """A prompt and how to continue it. Names and defaults are those of llama-server."""

    prompt_ids: Sequence[int]
    sampling: SamplingParams = field(default_factory=SamplingParams)
    n_predict: int = -1  # tokens to generate; -1: until the context is full, 0: only the prompt
    stop: Sequence[str] = ()  # texts that end the answer
    cache_prompt: bool = True  # use, and leave behind, cached prefixes
    t_max_predict_ms: float = -1.0  # ends generation after a line feed once so much time passed
    mask_provider: MaskProvider | None = None
    return_progress: bool = False  # outputs while the prompt is evaluated
    timings_per_token: bool = False
    # Of every prompt token but the first: its probability, and that many of the likeliest tokens
    # in its place. None: not wanted.
    prompt_probs: int | None = None
    rank: int = 0  # how many sequences of the same asker came before: later ones queue up behind it
    pooling: Pooling | None = None  # hidden states of the prompt, and nothing generated
