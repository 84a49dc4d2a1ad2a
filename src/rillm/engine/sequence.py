"""One sequence: its tokens, where they lie in the KV cache, and how far it has come."""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from enum import Enum

from rillm.engine.speculation import Drafter


class SequenceStatus(Enum):
    """Where a sequence is in its life."""

    WAITING = "waiting"  # not admitted yet, or preempted
    RUNNING = "running"  # owns blocks
    FINISHED = "finished"


class Sequence:
    """A prompt and the tokens generated after it.

    Tokens [0, num_computed_tokens) have their keys and values in the cache; token i lies in block
    block_table[i // block_size]. A sequence generates when just one token is not computed yet.
    """

    __slots__ = (
        "block_digests",
        "block_table",
        "drafter",
        "next_scored_token",
        "num_cached_tokens",
        "num_committed_blocks",
        "num_computed_tokens",
        "num_preemptions",
        "num_prompt_tokens",
        "sequence_id",
        "status",
        "token_ids",
        "turn",
        "use_prefix_cache",
        "wants_logits",
    )

    def __init__(
        self, sequence_id: int, prompt_ids: Iterable[int], *, use_prefix_cache: bool = True
    ) -> None:
        self.sequence_id = sequence_id  # ascending in the order of arrival
        self.token_ids = array("i", prompt_ids)
        self.num_prompt_tokens = len(self.token_ids)
        self.use_prefix_cache = use_prefix_cache
        self.wants_logits = True  # of the last token; False: only fill the cache
        self.drafter: Drafter | None = None  # guesses its next tokens, where that is wanted
        # The prompt token whose probability is computed next; num_prompt_tokens: none (any more).
        self.next_scored_token = self.num_prompt_tokens
        self.status = SequenceStatus.WAITING
        self.block_table = array("i")
        self.num_computed_tokens = 0
        self.num_cached_tokens = -1  # prompt tokens found in the cache; -1 until admitted
        self.num_preemptions = 0
        self.turn = 0  # its place in the queue, the scheduler's
        # Kept by the block manager: digests of the full blocks, and how many blocks it knows.
        self.block_digests: list[bytes] = []
        self.num_committed_blocks = 0

    @property
    def num_tokens(self) -> int:
        """Tokens of the prompt and the answer."""
        return len(self.token_ids)

    @property
    def num_generated_tokens(self) -> int:
        """Tokens of the answer."""
        return len(self.token_ids) - self.num_prompt_tokens

    @property
    def num_uncomputed_tokens(self) -> int:
        """Tokens whose keys and values are not in the cache yet."""
        return len(self.token_ids) - self.num_computed_tokens

    def __repr__(self) -> str:
        return (
            f"Sequence({self.sequence_id}, {self.status.value}, {self.num_prompt_tokens}+"
            f"{self.num_generated_tokens} tokens, {self.num_computed_tokens} computed)"
        )
