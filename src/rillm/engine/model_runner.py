"""Turns a planned step into the plain arrays of one batch, and runs the model on it."""

from __future__ import annotations

from array import array
from typing import Protocol

from rillm.core import Batch
from rillm.engine.scheduler import ScheduledSequence, Step


class BlockStore(Protocol):
    """The KV cache's memory, block by block."""

    def read(self, block: int) -> bytearray:
        """Keys and values of one block, all layers."""
        ...

    def write(self, block: int, data: bytearray) -> None:
        """Puts back what `read` gave."""
        ...


class Model(Protocol):
    """What the engine needs of a loaded model (rillm.models.load_model gives one)."""

    @property
    def kv_cache(self) -> BlockStore:
        """Where keys and values lie."""
        ...

    def run(self, batch: Batch) -> None:
        """Computes one batch: stores its keys and values, leaves the logits."""
        ...

    def logits_address(self, row: int) -> int:
        """Where the float32 logits of the last run's row lie; they may be overwritten."""
        ...


class ModelRunner:
    """Runs steps on a model whose KV cache has blocks of `block_size` tokens."""

    def __init__(self, model: Model, block_size: int) -> None:
        self._model = model
        self._block_size = block_size

    def run(self, step: Step) -> list[ScheduledSequence]:
        """Computes a step; returns what to draw tokens for: each has a logits row for its last
        token, and one for each guess after it, one after another."""
        cache = self._model.kv_cache
        for source, target in step.copies:
            cache.write(target, cache.read(source))
        batch, drawing = build_batch(step, self._block_size)
        self._model.run(batch)
        return drawing

    def logits_address(self, row: int) -> int:
        """Where the logits of the last step's row lie."""
        return self._model.logits_address(row)


def build_batch(step: Step, block_size: int) -> tuple[Batch, list[ScheduledSequence]]:
    """The ragged batch of a step, and those of it whose logits it gives (see ModelRunner.run).

    No work here grows with a context token by token: tables and prompts are copied as slices.
    """
    token_ids, positions, slot_mapping = array("i"), array("i"), array("i")
    cu_seqlens_q, context_lens, logits_rows = array("i", [0]), array("i"), array("i")
    drawing: list[ScheduledSequence] = []
    tables: list[array[int]] = []
    for item in step.scheduled:
        sequence = item.sequence
        start = sequence.num_computed_tokens
        last = start + item.num_tokens
        end = last + len(item.draft)
        table = sequence.block_table
        token_ids.extend(sequence.token_ids[start:last])
        token_ids.extend(item.draft)
        positions.extend(range(start, end))
        position = start
        while position < end:
            block, offset = divmod(position, block_size)
            num = min(block_size - offset, end - position)
            slot = table[block] * block_size + offset
            slot_mapping.extend(range(slot, slot + num))
            position += num
        cu_seqlens_q.append(len(token_ids))
        context_lens.append(end)
        tables.append(table[: -(-end // block_size)])
        if last == sequence.num_tokens and sequence.wants_logits:
            logits_rows.extend(range(len(token_ids) - 1 - len(item.draft), len(token_ids)))
            drawing.append(item)
    max_blocks = max(map(len, tables))
    block_tables = array("i")
    for table in tables:
        block_tables.extend(table)
        block_tables.frombytes(bytes(4 * (max_blocks - len(table))))
    batch = Batch(
        token_ids=token_ids,
        positions=positions,
        slot_mapping=slot_mapping,
        cu_seqlens_q=cu_seqlens_q,
        context_lens=context_lens,
        block_tables=block_tables,
        max_blocks=max_blocks,
        logits_rows=logits_rows,
    )
    return batch, drawing
