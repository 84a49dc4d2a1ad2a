"""One step's input: a ragged batch of prefill chunks and decode tokens, as plain arrays."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Self

from rillm.core import abi
from rillm.core.loader import CoreError


@dataclass
class Batch:
    """One ragged batch of prefill chunks and decode tokens, as int32 arrays.

    token_ids, positions, slot_mapping: [num_tokens]; cu_seqlens_q: [num_seqs + 1];
    context_lens: [num_seqs] tokens in the cache after the step; block_tables: [num_seqs,
    max_blocks]; logits_rows: [num_logits] the token rows whose logits are wanted.
    """

    token_ids: array[int] = field(default_factory=lambda: array("i"))
    positions: array[int] = field(default_factory=lambda: array("i"))
    slot_mapping: array[int] = field(default_factory=lambda: array("i"))
    cu_seqlens_q: array[int] = field(default_factory=lambda: array("i"))
    context_lens: array[int] = field(default_factory=lambda: array("i"))
    block_tables: array[int] = field(default_factory=lambda: array("i"))
    logits_rows: array[int] = field(default_factory=lambda: array("i"))
    max_blocks: int = 0

    @classmethod
    def alone(
        cls, ids: Sequence[int], start: int, stop: int, *, block_size: int, wants_logits: bool
    ) -> Self:
        """Tokens start..stop of a sequence that has the cache to itself; logits of all or none."""
        num_blocks = -(-stop // block_size)
        return cls(
            token_ids=array("i", ids[start:stop]),
            positions=array("i", range(start, stop)),
            slot_mapping=array("i", range(start, stop)),
            cu_seqlens_q=array("i", [0, stop - start]),
            context_lens=array("i", [stop]),
            block_tables=array("i", range(num_blocks)),
            max_blocks=num_blocks,
            logits_rows=array("i", range(stop - start)) if wants_logits else array("i"),
        )

    def to_core(self) -> abi.CoreBatch:
        """The batch as the C structure; it borrows the arrays."""
        num_tokens, num_seqs = len(self.token_ids), len(self.context_lens)
        good = (
            len(self.positions) == len(self.slot_mapping) == num_tokens
            and len(self.cu_seqlens_q) == num_seqs + 1
            and len(self.block_tables) == num_seqs * self.max_blocks
        )
        if not good:
            raise CoreError("batch: its arrays do not have the same number of rows")
        arrays = (
            self.token_ids, self.positions, self.slot_mapping, self.cu_seqlens_q,
            self.context_lens, self.block_tables, self.logits_rows,
        )  # fmt: skip
        if any(values.typecode != "i" for values in arrays):
            raise CoreError("batch: its arrays are not all of typecode 'i'")
        return abi.CoreBatch(
            token_ids=self.token_ids.buffer_info()[0],
            positions=self.positions.buffer_info()[0],
            slot_mapping=self.slot_mapping.buffer_info()[0],
            cu_seqlens_q=self.cu_seqlens_q.buffer_info()[0],
            context_lens=self.context_lens.buffer_info()[0],
            block_tables=self.block_tables.buffer_info()[0],
            logits_rows=self.logits_rows.buffer_info()[0],
            num_tokens=num_tokens,
            num_seqs=num_seqs,
            max_blocks=self.max_blocks,
            num_logits=len(self.logits_rows),
        )
