"""The frame around the blocks: embedding, rotary table, final norm, output head."""

from __future__ import annotations

from typing import Protocol

from rillm.core import Weight
from rillm.nn import (
    Embedding,
    Linear,
    ModelConfig,
    Module,
    RMSNorm,
    Value,
    gather_logits_rows,
    rope_table,
)


class BlockType(Protocol):
    """What a decoder model calls to make a layer and to run it."""

    def __call__(self, config: ModelConfig) -> Block:
        """Makes a layer."""
        ...


class Block(Protocol):
    """One layer of a decoder model."""

    def __call__(self, x: Value, layer: int, rope_table: Value) -> Value:
        """Records the layer: [num_tokens, hidden_size] -> the same."""
        ...


class DecoderModel(Module):
    """Token ids -> logits [num_logits, vocab_size] through a stack of blocks."""

    block: BlockType

    def __init__(self, config: ModelConfig) -> None:
        self._config = config
        self.token_embd = Embedding(config.vocab_size, config.hidden_size)
        self.blk = [self.block(config) for _ in range(config.num_layers)]
        self.output_norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.output = Linear(config.hidden_size, config.vocab_size)

    def __call__(
        self, frequencies: Weight, rope_magnitude: float, *, embeddings: bool = False
    ) -> tuple[Value, Value | None]:
        """Records the model; returns its logits and, with `embeddings`, its hidden states.

        Hidden states are those after the last norm: [num_tokens, hidden_size].
        """
        table = rope_table(frequencies, rope_magnitude)
        x = self.token_embd()
        for layer, block in enumerate(self.blk):
            x = block(x, layer, table)
        if embeddings:
            hidden = self.output_norm(x)
            return self.output(gather_logits_rows(hidden)), hidden
        return self.output(self.output_norm(gather_logits_rows(x))), None
