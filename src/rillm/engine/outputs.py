"""What a step gives back for one sequence. Plain values: they may cross threads."""

from __future__ import annotations

from array import array
from dataclasses import dataclass
from typing import Literal

from rillm.errors import RillmError

FinishReason = Literal["none", "eos", "limit", "word", "abort", "error"]


class ContextSizeError(RillmError):
    """A prompt that cannot fit into the context."""

    def __init__(self, num_prompt_tokens: int, context_length: int) -> None:
        super().__init__(
            f"request ({num_prompt_tokens} tokens) exceeds the available context size "
            f"({context_length} tokens), try increasing it"
        )
        self.num_prompt_tokens = num_prompt_tokens
        self.context_length = context_length


@dataclass(frozen=True, slots=True)
class Timings:
    """Durations of one request, under the names of llama-server's `timings`."""

    cache_n: int = 0  # prompt tokens found in the cache
    prompt_n: int = 0  # prompt tokens computed
    prompt_ms: float = 0.0
    predicted_n: int = 0
    predicted_ms: float = 0.0
    draft_n: int = 0  # tokens guessed by speculation
    draft_n_accepted: int = 0  # of them, those that came true

    @property
    def prompt_per_token_ms(self) -> float:
        """0 where nothing was computed."""
        return self.prompt_ms / self.prompt_n if self.prompt_n else 0.0

    @property
    def prompt_per_second(self) -> float:
        """Prompt tokens a second."""
        return 1000.0 * self.prompt_n / self.prompt_ms if self.prompt_ms > 0 else 0.0

    @property
    def predicted_per_token_ms(self) -> float:
        """0 where nothing was generated."""
        return self.predicted_ms / self.predicted_n if self.predicted_n else 0.0

    @property
    def predicted_per_second(self) -> float:
        """Generated tokens a second."""
        return 1000.0 * self.predicted_n / self.predicted_ms if self.predicted_ms > 0 else 0.0

    def to_dict(self) -> dict[str, float]:
        """All fields of llama-server's object (draft_* where tokens were guessed); never NaN."""
        drafts = {"draft_n": self.draft_n, "draft_n_accepted": self.draft_n_accepted}
        return {
            "cache_n": self.cache_n,
            "prompt_n": self.prompt_n,
            "prompt_ms": self.prompt_ms,
            "prompt_per_token_ms": self.prompt_per_token_ms,
            "prompt_per_second": self.prompt_per_second,
            "predicted_n": self.predicted_n,
            "predicted_ms": self.predicted_ms,
            "predicted_per_token_ms": self.predicted_per_token_ms,
            "predicted_per_second": self.predicted_per_second,
            **(drafts if self.draft_n else {}),
        }


@dataclass(frozen=True, slots=True)
class TokenProbs:
    """The drawn token's logarithmic probability and the likeliest tokens beside it."""

    token: int
    logprob: float
    top: list[tuple[int, float, float]]  # (id, logit, probability), likeliest first


@dataclass(frozen=True, slots=True)
class PromptProgress:
    """How far a prompt has been evaluated, in tokens."""

    total: int
    cache: int
    processed: int  # cached ones included
    time_ms: float


@dataclass(frozen=True, slots=True)
class Finish:
    """How a sequence ended, and its figures."""

    reason: FinishReason
    stopping_word: str
    truncated: bool  # the context was full
    has_new_line: bool  # a line feed was generated
    num_prompt_tokens: int
    num_generated_tokens: int  # with the stop token
    num_cached_tokens: int  # of the context that is left in the KV cache
    timings: Timings
    error: RillmError | None = None


@dataclass(slots=True)  # not frozen: making a frozen one takes five times as long
class Output:
    """One sequence's share of one step. Not to be changed.

    text: what can be shown now; it may be empty while a token's text is withheld (it could begin a
    stop string, or ends in half a character) and longer than one token when that is settled.
    """

    sequence_id: int
    token: int | None = None  # None: progress of the prompt, or an end without a token
    text: str = ""
    probs: TokenProbs | None = None
    progress: PromptProgress | None = None
    timings: Timings | None = None  # so far, where asked for
    prompt_probs: list[TokenProbs] | None = None  # of prompt tokens 1, 2, ..., once all are known
    embeddings: list[array[float]] | None = None  # float32 [hidden_size]: one, or one a token
    finish: Finish | None = None
