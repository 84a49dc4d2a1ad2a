"""Turns a planned step into the plain arrays of one batch, and runs the model on it."""

from __future__ import annotations

import time
from array import array
from dataclasses import dataclass, field
from typing import Protocol

from rillm.core import Batch
from rillm.engine.scheduler import ScheduledSequence, Step
from rillm.engine.sequence import Sequence


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

    @property
    def hidden_size(self) -> int:
        """Width of the hidden states of tokens; 0 if they are not kept."""
        ...

    def add_hidden(self, first: int, count: int, total: array[float]) -> None:
        """Adds the hidden states of `count` tokens of the last run to total: [hidden_size]."""
        ...


@dataclass(slots=True)
class LogitsRows:
    """What each row of a step's logits is for, in the order of the rows."""

    # (row of the last token, sequence); the rows of its guesses follow
    drawing: list[tuple[int, ScheduledSequence]] = field(default_factory=list)
    # (row, sequence, index of the prompt token that the row predicts)
    scoring: list[tuple[int, Sequence, int]] = field(default_factory=list)


class ModelRunner:
    """Runs steps on a model whose KV cache has blocks of `block_size` tokens."""

    def __init__(self, model: Model, block_size: int) -> None:
        self._model = model
        self._block_size = block_size
        self.model_seconds = 0.0  # that the model took, of all steps

    def run(self, step: Step) -> LogitsRows:
        """Computes a step; says what its logits are for."""
        cache = self._model.kv_cache
        for source, target in step.copies:
            cache.write(target, cache.read(source))
        batch, rows = build_batch(step, self._block_size)
        started = time.perf_counter()
        self._model.run(batch)
        self.model_seconds += time.perf_counter() - started
        return rows

    def logits_address(self, row: int) -> int:
        """Where the logits of the last step's row lie."""
        return self._model.logits_address(row)


def build_batch(step: Step, block_size: int) -> tuple[Batch, LogitsRows]:
    """The ragged batch of a step, and what the logits that it gives are for.

    No work here grows with a context token by token: tables and prompts are copied as slices.
    """
    token_ids, positions, slot_mapping = array("i"), array("i"), array("i")
    cu_seqlens_q, context_lens, logits_rows = array("i", [0]), array("i"), array("i")
    rows = LogitsRows()
    tables: list[array[int]] = []
    for item in step.scheduled:
        sequence = item.sequence
        start = sequence.num_computed_tokens
        last = start + item.num_tokens
        end = last + len(item.draft)
        table = sequence.block_table
        first_row = len(token_ids)
        # It generates, as nearly all do: the same as below, in a fifth of the time.
        if end - start == 1 and end == len(sequence.token_ids) > sequence.num_prompt_tokens:
            token_ids.append(sequence.token_ids[start])
            positions.append(start)
            slot_mapping.append(table[start // block_size] * block_size + start % block_size)
            cu_seqlens_q.append(first_row + 1)
            context_lens.append(end)
            tables.append(table)
            rows.drawing.append((len(logits_rows), item))
            logits_rows.append(first_row)
            continue
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
        # The logits at a position are about the token after it.
        scored_from = max(start + 1, sequence.next_scored_token)
        for index in range(scored_from, min(last + 1, sequence.num_prompt_tokens)):
            rows.scoring.append((len(logits_rows), sequence, index))
            logits_rows.append(first_row + index - 1 - start)
        if last == sequence.num_tokens and sequence.wants_logits:
            rows.drawing.append((len(logits_rows), item))
            logits_rows.extend(range(len(token_ids) - 1 - len(item.draft), len(token_ids)))
    max_blocks = max(map(len, tables))
    block_tables = array("i")
    for table in tables:
        block_tables.extend(table)
        if len(table) < max_blocks:
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
    return batch, rows
