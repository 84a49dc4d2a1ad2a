"""Tiny core programs for tests, and what they should compute, in numpy.

A `Tiny` collects buffers, weights and ops; its inputs are float32 tables that an embed op looks up
by token id, so a batch's token ids choose the input rows.
"""

from __future__ import annotations

import contextlib
import ctypes
from array import array
from dataclasses import dataclass

import numpy as np

from rillm.core import (
    Batch,
    BufferKind,
    CompiledProgram,
    CoreBuffer,
    CoreCacheConfig,
    CoreOp,
    KVCache,
    OpKind,
    Rows,
    Weight,
    WeightKind,
)
from rillm.gguf import GGMLType

F32 = GGMLType.F32

# Where the binary16 scales lie in a block; every other byte may be anything.
HALF_FIELDS = {
    GGMLType.Q4_0: (0,),
    GGMLType.Q4_1: (0, 2),
    GGMLType.Q5_0: (0,),
    GGMLType.Q5_1: (0, 2),
    GGMLType.Q8_0: (0,),
    GGMLType.Q2_K: (80, 82),
    GGMLType.Q3_K: (108,),
    GGMLType.Q4_K: (0, 2),
    GGMLType.Q5_K: (0, 2),
    GGMLType.Q6_K: (208,),
    GGMLType.IQ4_NL: (0,),
    GGMLType.IQ4_XS: (0,),
}


def whole_batch(ids, *, logits_rows=None):
    """One sequence from position 0, for programs without a cache."""
    n = len(ids)
    rows = range(n) if logits_rows is None else logits_rows
    return Batch(
        token_ids=array("i", ids),
        positions=array("i", range(n)),
        slot_mapping=array("i", [0] * n),
        cu_seqlens_q=array("i", [0, n]),
        context_lens=array("i", [n]),
        logits_rows=array("i", rows),
    )


@dataclass
class Chunk:
    """Tokens of one sequence in a step: ids, the position of the first, the sequence's blocks."""

    ids: list[int]
    start: int
    blocks: list[int]
    logits: list[int] | None = None  # rows of the chunk whose output is wanted; None = the last

    def split(self, *lengths):
        """The same tokens as several chunks."""
        assert sum(lengths) == len(self.ids)
        at = 0
        for length in lengths:
            yield Chunk(self.ids[at : at + length], self.start + at, self.blocks, self.logits)
            at += length


def ragged(chunks, block_size=16):
    """Chunks -> Batch."""
    batch = Batch(cu_seqlens_q=array("i", [0]))
    batch.max_blocks = max(len(chunk.blocks) for chunk in chunks)
    for chunk in chunks:
        first = len(batch.token_ids)
        n = len(chunk.ids)
        positions = range(chunk.start, chunk.start + n)
        batch.token_ids.extend(chunk.ids)
        batch.positions.extend(positions)
        batch.slot_mapping.extend(
            chunk.blocks[p // block_size] * block_size + p % block_size for p in positions
        )
        batch.cu_seqlens_q.append(first + n)
        batch.context_lens.append(chunk.start + n)
        batch.block_tables.extend(chunk.blocks + [0] * (batch.max_blocks - len(chunk.blocks)))
        wanted = [n - 1] if chunk.logits is None else chunk.logits
        batch.logits_rows.extend(first + row for row in wanted)
    return batch


def float_rows(address, rows, width):
    """A copy of float32 [rows, width] at an address."""
    floats = (ctypes.c_float * (rows * width)).from_address(address)
    return np.frombuffer(floats, np.float32).reshape(rows, width).copy()


class Tiny:
    """A program under construction. Every buffer has memory of its own unless `slot` says so."""

    def __init__(self, team, cache=None):
        self.team, self.cache = team, cache
        self.ops, self.buffers, self.weights = [], [], []

    def buffer(self, width, kind=BufferKind.F32, rows=Rows.TOKENS, slot=None):
        slot = len(self.buffers) if slot is None else slot
        self.buffers.append(CoreBuffer(kind, rows, width, slot))
        return len(self.buffers) - 1

    def add_weight(self, kind, ggml_type, shape, data):
        self.weights.append(Weight(self.team.core, kind, ggml_type, shape, data, self.team))
        return len(self.weights) - 1

    def vector(self, values):
        values = np.ascontiguousarray(values, np.float32)
        return self.add_weight(WeightKind.VECTOR, F32, (1, values.size), values.data)

    def op(self, kind, inputs, outputs, weights=(), ints=(), floats=()):
        op = CoreOp(kind=kind)
        for field, values, filler in (
            (op.inputs, inputs, -1),
            (op.outputs, outputs, -1),
            (op.weight, weights, -1),
            (op.i, ints, 0),
            (op.f, floats, 0.0),
        ):
            values = [filler if value is None else value for value in values]
            field[:] = values + [filler] * (len(field) - len(values))
        self.ops.append(op)
        return next((out for out in outputs if out is not None), None)

    def input(self, table):
        """A buffer whose row t is row token_ids[t] of the table."""
        table = np.ascontiguousarray(table, np.float32)
        weight = self.add_weight(WeightKind.TABLE, F32, table.shape, table.data)
        return self.op(OpKind.EMBED, [], [self.buffer(table.shape[1])], [weight])

    def quantized(self, x):
        """The buffer's rows as 8-bit activations."""
        source = self.buffers[x]
        q8 = self.buffer(source.width, BufferKind.Q8, source.rows)
        return self.op(OpKind.QUANTIZE, [x], [None, q8])

    def dequantized(self, q8):
        """scale * code of 8-bit activations, exactly: the product with an identity matrix."""
        width = self.buffers[q8].width
        blocks = np.zeros((width, width // 32, 34), np.uint8)
        blocks[:, :, :2] = np.frombuffer(np.float16(1.0).tobytes(), np.uint8)
        row = np.arange(width)
        blocks[row, row // 32, 2 + row % 32] = 1
        identity = self.add_weight(
            WeightKind.MATRIX, GGMLType.Q8_0, (width, width), blocks.reshape(-1).data
        )
        out = self.buffer(width, rows=self.buffers[q8].rows)
        return self.op(OpKind.LINEAR, [q8], [out], [identity])

    def compile(self, output, max_tokens, max_logits=None):
        return CompiledProgram(
            self.team,
            self.cache,
            self.ops,
            self.buffers,
            self.weights,
            max_tokens=max_tokens,
            max_logits=max_tokens if max_logits is None else max_logits,
            output=output,
        )

    def run(self, output, ids, **batch):
        """The output's rows for the token ids, one for each row that the buffer holds."""
        with contextlib.closing(self.compile(output, len(ids))) as program:
            step = whole_batch(ids, **batch)
            program.run(step)
            rows = {Rows.LOGITS: len(step.logits_rows), Rows.ONE: 1}
            num_rows = rows.get(self.buffers[output].rows, len(ids))
            return float_rows(program.output_address(), num_rows, program.output_width)

    def close(self):
        for weight in self.weights:
            weight.close()


def quantize(core, ggml_type, values):
    """Blocks of float32 [rows, cols], written by the core (bf16 and f16 too)."""
    values = np.ascontiguousarray(values, np.float32)
    ggml_type = GGMLType(ggml_type)
    size = values.size // ggml_type.block_size * ggml_type.block_bytes
    blocks = np.zeros(size, np.uint8)
    core.quantize(ggml_type, values.data, blocks.data, values.shape[1])
    return blocks


def random_blocks(rng, ggml_type, rows, cols):
    """Blocks with every code and scale that a file may hold, their float16 fields below 1."""
    ggml_type = GGMLType(ggml_type)
    count = rows * cols // ggml_type.block_size
    if ggml_type in (GGMLType.F32, GGMLType.F16, GGMLType.BF16):
        values = rng.standard_normal(rows * cols).astype(np.float32)
        if ggml_type is GGMLType.F16:
            return values.astype(np.float16).view(np.uint8)
        bits = values.view(np.uint32)
        return ((bits >> 16).astype(np.uint16) if ggml_type is GGMLType.BF16 else bits).view(
            np.uint8
        )
    blocks = rng.integers(0, 256, (count, ggml_type.block_bytes), dtype=np.uint8)
    for at in HALF_FIELDS[ggml_type]:
        scales = (rng.uniform(-0.05, 0.05, count) + 0.001).astype(np.float16)
        blocks[:, at : at + 2] = scales.view(np.uint8).reshape(count, 2)
    return blocks.reshape(-1)


def dequantize(core, ggml_type, blocks, shape):
    out = np.empty(shape, np.float32)
    core.dequantize(ggml_type, blocks.data, out.reshape(-1).data)
    return out


def int8_activations(x):
    """What a quantised matmul reads instead of x [n, width]: float32 scale * code of 32 columns.

    Returned as (scales [n, width / 32] float32, codes [n, width]).
    """
    strips = np.ascontiguousarray(x, np.float32).reshape(len(x), -1, 32)
    top = np.abs(strips).max(axis=2)
    with np.errstate(divide="ignore"):
        inverse = np.where(top > 0, np.float32(127) / top, np.float32(0)).astype(np.float32)
    codes = np.rint(strips * inverse[:, :, None])
    return top / np.float32(127), codes.reshape(x.shape)


def int8_product(x, w):
    """x [n, cols] in 8-bit activations times w [rows, cols], in float64."""
    scales, codes = int8_activations(x)
    return (codes * np.repeat(scales.astype(np.float64), 32, axis=1)) @ w.astype(np.float64).T


def cache_config(kv_heads, head_dim, num_blocks, ggml_type=GGMLType.F16, layers=1, block_size=16):
    return CoreCacheConfig(layers, kv_heads, head_dim, block_size, num_blocks, ggml_type)


def poison(cache: KVCache):
    """Fills the cache with NaN in every field, as f16 values and as Q8_0 scales."""
    for block in range(cache.num_blocks):
        cache.write(block, np.full(cache.block_bytes, 0x7F, np.uint8).data)


def cached(x, ggml_type):
    """What the cache keeps of rows x [..., head_dim]."""
    x = np.ascontiguousarray(x, np.float32)
    if ggml_type == GGMLType.F16:
        return x.astype(np.float16).astype(np.float32)
    strips = x.reshape(-1, 32)
    top = np.abs(strips).max(axis=1, keepdims=True)
    with np.errstate(divide="ignore"):
        inverse = np.where(top > 0, np.float32(127) / top, np.float32(0)).astype(np.float32)
    scale = (top / np.float32(127)).astype(np.float16).astype(np.float32)
    return (np.rint(strips * inverse) * scale).reshape(x.shape)


def causal_attention(q, k, v, scale, start):
    """q [n, heads, dim] at positions start.., k and v [context, kv_heads, dim]; in float64."""
    n, heads, dim = q.shape
    group = heads // k.shape[1]
    k, v = (np.repeat(part.astype(np.float64), group, axis=1) for part in (k, v))
    scores = np.einsum("nhd,chd->hnc", q.astype(np.float64), k) * scale
    mask = np.arange(k.shape[0])[None, :] > start + np.arange(n)[:, None]
    scores[:, mask] = -np.inf
    scores -= scores.max(axis=2, keepdims=True)
    weights = np.exp(scores)
    weights /= weights.sum(axis=2, keepdims=True)
    return np.einsum("hnc,chd->nhd", weights, v).reshape(n, heads * dim)
