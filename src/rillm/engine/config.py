"""How an engine is sized: threads, context, sequences at once, and the memory of the KV cache."""

from __future__ import annotations

from dataclasses import dataclass

from rillm.core import BLAS_CHOICES
from rillm.errors import RillmError
from rillm.units import format_bytes

CACHE_TYPES = ("f16", "q8_0")


class CacheMemoryError(RillmError):
    """The memory that is free now does not do; more may be free later."""


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """Every size an engine is built with; none of them changes while it runs."""

    num_threads: int | None = None  # None: every CPU this process may use
    context_length: int = 4096  # tokens a sequence may have; at most the model's, 0 = the model's
    max_num_seqs: int = 16  # sequences computed together; they share the whole KV cache
    max_num_batched_tokens: int = 512  # tokens of one step: decodes plus prompt chunks
    max_prompt_logits: int = 32  # of them, prompt tokens whose probabilities are asked for
    block_size: int = 16  # tokens of one KV cache block
    cache_type: str = "f16"  # how keys and values are stored: f16 or q8_0
    cache_memory: int | None = None  # bytes for the KV cache; None: from the memory available
    memory: int | None = None  # bytes for weights and KV cache; None: what the machine has free
    # How much of the memory that is left beside the weights the cache may take by itself.
    cache_share: float = 0.5
    prefix_cache: bool = True  # reuse the KV of prompts that begin alike
    draft_tokens: int = 0  # guessed tokens of one step, of all sequences; 0 = no speculation
    max_prefill_delay: float = 2.0  # decode steps that a prompt chunk may delay other sequences by
    max_step_seconds: float = 1.0  # of prompt tokens in a step; a request is aborted between steps
    embeddings: bool = False  # hidden states can be asked for; takes memory for one step's
    blas: str = "off"  # prefill with float weights by OpenBLAS: off, auto or openblas
    isa: str | None = None  # kernel variant; None: RILLM_ISA or the best for this CPU

    def __post_init__(self) -> None:
        for name in ("num_threads", "max_num_seqs", "max_num_batched_tokens", "block_size",
                     "max_prompt_logits"):  # fmt: skip
            value = getattr(self, name)
            if value is not None and value < 1:
                raise RillmError(f"{name} must be at least 1, not {value}")
        if self.context_length < 0:
            raise RillmError(
                f"context_length must be 0 (the model's own) or more, not {self.context_length}"
            )
        if self.draft_tokens < 0:
            raise RillmError(f"draft_tokens must be 0 (none) or more, not {self.draft_tokens}")
        if self.max_num_batched_tokens < self.max_num_seqs:
            raise RillmError(
                f"max_num_batched_tokens ({self.max_num_batched_tokens}) must be at least "
                f"max_num_seqs ({self.max_num_seqs}): every sequence decodes in every step"
            )
        if self.cache_type not in CACHE_TYPES:
            raise RillmError(
                f"cache_type must be one of {', '.join(CACHE_TYPES)}, not {self.cache_type!r}"
            )
        if self.blas not in BLAS_CHOICES:
            known = ", ".join(BLAS_CHOICES)
            raise RillmError(f"blas must be one of {known}, not {self.blas!r}")
        for name in ("max_prefill_delay", "max_step_seconds"):
            if not getattr(self, name) >= 0:
                raise RillmError(f"{name} must be 0 (no limit) or more, not {getattr(self, name)}")


@dataclass(frozen=True, slots=True)
class CachePlan:
    """How large the KV cache is. It is allocated once and never grows."""

    context_length: int  # tokens a sequence may have
    num_blocks: int
    block_size: int  # tokens
    block_bytes: int  # of one block, all layers, keys and values

    @property
    def num_tokens(self) -> int:
        """Tokens that fit, of all sequences together."""
        return self.num_blocks * self.block_size

    @property
    def num_bytes(self) -> int:
        """Memory it takes."""
        return self.num_blocks * self.block_bytes

    def __str__(self) -> str:
        return (
            f"KV cache {format_bytes(self.num_bytes)} for {self.num_tokens} tokens, "
            f"at most {self.context_length} in a sequence"
        )


def plan_cache(
    config: EngineConfig, *, model_context: int, block_bytes: int, available: int
) -> CachePlan:
    """Sizes the KV cache.

    Wanted is a full context for each of `max_num_seqs` sequences; given is `cache_memory`, or what
    of that fits into its share of the `available` bytes (memory left beside the weights). One
    sequence of the full context always fits: with context_length 0 the context is shortened until
    it does, otherwise too little memory is an error.
    """
    size = config.block_size
    context = min(config.context_length or model_context, model_context)
    budget = config.cache_memory
    if budget is None:
        budget = int(available * config.cache_share)
    affordable = budget // block_bytes
    needed = -(-context // size)
    if affordable < needed:
        if config.context_length == 0 and affordable > 0:
            context = affordable * size
            needed = affordable
        else:
            hint = "" if config.cache_memory is None else ", or raise the cache memory"
            raise CacheMemoryError(
                f"the KV cache of {context} tokens needs {format_bytes(needed * block_bytes)}, but "
                f"{format_bytes(budget)} is set aside for it: lower the context length, use a q8_0 "
                f"cache{hint}"
            )
    # Without an explicit budget there is no use for more than every sequence at full length.
    wanted = needed * config.max_num_seqs if config.cache_memory is None else affordable
    return CachePlan(context, min(affordable, wanted), size, block_bytes)
