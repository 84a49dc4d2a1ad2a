"""Nothing malformed gets past the core: a CoreError with a reason, and never a crash.

Each check of program_validate.cpp, weight.cpp and abi.cpp is met, hence more than 400 lines;
batches are also fuzzed against a second opinion in Python.
"""

from __future__ import annotations

import copy
from array import array
from contextlib import closing

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from programs import Chunk, Tiny, cache_config, float_rows, ragged

from rillm.core import (
    Batch,
    BufferKind,
    CompiledProgram,
    CoreBuffer,
    CoreError,
    KVCache,
    OpKind,
    Rows,
    Weight,
    WeightKind,
    load_core,
)
from rillm.gguf import GGMLType

CORE = load_core()
HEADS, KV_HEADS, DIM, LAYERS, NUM_BLOCKS, VOCAB = 4, 2, 32, 2, 12, 50
WIDTH = (HEADS + 2 * KV_HEADS) * DIM
INT32 = st.one_of(
    st.integers(-3, 70), st.integers(-(2**31), 2**31 - 1), st.sampled_from([2**31 - 1, -(2**31)])
)


@pytest.fixture(scope="module")
def team():
    with CORE.team(2) as team:
        yield team


@pytest.fixture
def cache():
    with KVCache(CORE, cache_config(KV_HEADS, DIM, NUM_BLOCKS, layers=LAYERS)) as cache:
        yield cache


# ---- arguments ---------------------------------------------------------------------------------


@pytest.mark.parametrize("num_threads", [0, -1, 1025, 2**31 - 1])
def test_team_sizes(num_threads):
    with pytest.raises(CoreError, match="threads: 1 to 1024"):
        CORE.team(num_threads)


def test_team_pins():
    with pytest.raises(CoreError, match="2 threads cannot be pinned to 1 CPUs"):
        CORE.team(2, [0])
    with CORE.team(2, [0, 10**6]) as team:  # pinning is a hint: such a CPU is not there
        assert team.num_threads == 2


@pytest.mark.parametrize(
    ("kind", "ggml_type", "shape", "num_bytes", "reason"),
    [
        (WeightKind.MATRIX, 99, (4, 32), 512, "ggml type 99 is not a weight format"),
        (WeightKind.MATRIX, GGMLType.Q8_K, (1, 256), 292, "ggml type 15 is not a weight format"),
        (WeightKind.MATRIX, GGMLType.F32, (4, 32), 511, r"\[4, 32\] F32 tensor has 512 bytes, no"),
        (WeightKind.MATRIX, GGMLType.F32, (4, 32), 0, r"has 512 bytes, not 0"),
        (WeightKind.MATRIX, GGMLType.Q4_K, (4, 32), 144, "rows of 32 weights are not whole Q4_K"),
        (WeightKind.MATRIX, GGMLType.F32, (4, 33), 528, "multiple of 32 columns, not 33"),
        (WeightKind.MATRIX, GGMLType.F32, (0, 32), 0, r"bad shape \[0, 32\]"),
        (WeightKind.VECTOR, GGMLType.F32, (1, -4), 16, r"bad shape \[1, -4\]"),
        (WeightKind.TABLE, GGMLType.F16, (2**40, 2**40), 64, "bad shape"),
        (4, GGMLType.F32, (1, 32), 128, "weight kind 4"),
    ],
)
def test_weights(team, kind, ggml_type, shape, num_bytes, reason):
    with pytest.raises(CoreError, match=reason):
        Weight(CORE, kind, ggml_type, shape, bytearray(num_bytes), team)


def test_a_matrix_needs_a_team():
    with pytest.raises(CoreError, match="packed by a thread team"):
        Weight(CORE, WeightKind.MATRIX, GGMLType.F32, (1, 32), bytearray(128), None)


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"kv_heads": 0}, "KV cache: 2 layers, 0 heads"),
        ({"head_dim": 48}, "heads of 48 .a multiple of 32"),
        ({"head_dim": 2048}, "heads of 2048"),
        ({"num_blocks": 0}, "0 blocks"),
        ({"num_blocks": -5}, "-5 blocks"),
        ({"layers": 0}, "0 layers"),
        ({"block_size": 8}, "blocks of 8 .of 16"),
        ({"block_size": 24}, "blocks of 24"),
        ({"ggml_type": GGMLType.Q4_0}, "type 2 is neither f16 nor q8_0"),
    ],
)
def test_cache_shapes(changed, reason):
    good = {"kv_heads": 2, "head_dim": 32, "num_blocks": 4, "layers": 2}
    with pytest.raises(CoreError, match=reason):
        KVCache(CORE, cache_config(**good | changed))


@pytest.mark.parametrize(
    "changed",
    [
        {"num_blocks": 2**30, "layers": 2},  # 2 * layers * blocks is 2^32
        {"num_blocks": 2**31 - 1, "layers": 2**31 - 1},
        {"num_blocks": 2**31 - 1, "kv_heads": 2**31 - 1, "block_size": 2**31 - 16},
        {"kv_heads": 2**31 - 1, "block_size": 2**31 - 16, "head_dim": 1024},
    ],
)
def test_cache_too_large_for_any_memory(changed):
    good = {"kv_heads": 2, "head_dim": 1024, "num_blocks": 4, "layers": 2}
    with pytest.raises((MemoryError, CoreError)):
        KVCache(CORE, cache_config(**good | changed))


def test_cache_blocks(cache):
    size = cache.block_bytes
    assert size == 2 * LAYERS * KV_HEADS * 16 * DIM * 2
    for block in (-1, NUM_BLOCKS, 2**31 - 1, -(2**31)):
        with pytest.raises(CoreError, match=f"cache block {block}"):
            cache.read(block)
        with pytest.raises(CoreError, match=f"cache block {block}"):
            cache.write(block, bytearray(size))
    for wrong in (0, size - 1, size + 1):
        with pytest.raises(CoreError, match=f"cache block 0, {wrong} bytes"):
            cache.write(0, bytearray(wrong))


def test_formats():
    with pytest.raises(CoreError, match="256 Q4_K weights do not take 143 bytes"):
        CORE.dequantize(GGMLType.Q4_K, bytearray(143), bytearray(1024))
    with pytest.raises(CoreError, match="255 Q4_K weights do not take 144 bytes"):
        CORE.dequantize(GGMLType.Q4_K, bytearray(144), bytearray(1020))
    with pytest.raises(CoreError, match="rows of 32 weights are not whole Q4_K blocks"):
        CORE.quantize(GGMLType.Q4_K, bytearray(1024), bytearray(144), 32)
    with pytest.raises(CoreError, match="rows of 0 weights"):
        CORE.quantize(GGMLType.Q8_0, bytearray(1024), bytearray(272), 0)
    with pytest.raises(CoreError, match="importance has not one float32 for each of 256 columns"):
        CORE.quantize(GGMLType.Q4_K, bytearray(1024), bytearray(144), 256, bytearray(1020))


def test_closed_objects_say_so(cache):
    own = CORE.team(1)
    tiny = Tiny(own, cache)
    out = tiny.input(np.ones((2, 32)))
    program = tiny.compile(out, 2)
    batch = ragged([Chunk([0, 1], 0, [0])])
    program.run(batch)
    cache.close()
    with pytest.raises(CoreError, match="thread team or KV cache is closed"):
        program.run(batch)
    program.close()
    program.close()
    with pytest.raises(CoreError, match="this CompiledProgram is closed"):
        program.output(0)
    with pytest.raises(CoreError, match="this KVCache is closed"):
        cache.read(0)
    tiny.cache = None
    tiny.close()
    with pytest.raises(CoreError, match="this Weight is closed"):
        tiny.compile(out, 2)
    own.close()
    with pytest.raises(CoreError, match="this ThreadTeam is closed"):
        Tiny(own).vector(np.ones(4))


# ---- programs ----------------------------------------------------------------------------------


class Parts:
    """One of each thing that an op can name."""

    def __init__(self, team, cache):
        self.tiny = tiny = Tiny(team, cache)
        self.x64, self.y64 = tiny.buffer(64), tiny.buffer(64)
        self.x32, self.x96, self.x33 = tiny.buffer(32), tiny.buffer(96), tiny.buffer(33)
        self.qkv, self.heads = tiny.buffer(WIDTH), tiny.buffer(HEADS * DIM)
        self.q64, self.q32 = tiny.buffer(64, BufferKind.Q8), tiny.buffer(32, BufferKind.Q8)
        self.logits64 = tiny.buffer(64, rows=Rows.LOGITS)
        self.one96 = tiny.buffer(96, rows=Rows.ONE)
        self.logits_q64 = tiny.buffer(64, BufferKind.Q8, Rows.LOGITS)
        floats, blocks = bytearray(4 * 70 * 64), bytearray(70 * 2 * 34)
        self.table = tiny.add_weight(WeightKind.TABLE, GGMLType.F32, (70, 64), floats)
        self.f32 = tiny.add_weight(WeightKind.MATRIX, GGMLType.F32, (32, 64), floats[: 4 * 2048])
        self.q8 = tiny.add_weight(WeightKind.MATRIX, GGMLType.Q8_0, (32, 64), blocks[: 32 * 68])
        self.v64, self.v32 = tiny.vector(np.ones(64)), tiny.vector(np.ones(32))


# Each makes one op from the parts; none of them fits together.
BAD_OPS = {
    "unknown kind": lambda p: (10, [p.x64], [p.y64]),
    "negative kind": lambda p: (-1, [p.x64], [p.y64]),
    "buffer past the end": lambda p: (OpKind.ADD, [p.x64, 1000], [p.y64]),
    "buffer below -1": lambda p: (OpKind.ADD, [p.x64, -2], [p.y64]),
    "output past the end": lambda p: (OpKind.ADD, [p.x64, p.x64], [11]),
    "no output": lambda p: (OpKind.ADD, [p.x64, p.x64], [None, None]),
    "embed: matrix for a table": lambda p: (OpKind.EMBED, [], [p.x64], [p.f32]),
    "embed: no weight": lambda p: (OpKind.EMBED, [], [p.x64], []),
    "embed: weight past the end": lambda p: (OpKind.EMBED, [], [p.x64], [99]),
    "embed: width": lambda p: (OpKind.EMBED, [], [p.x32], [p.table]),
    "embed: logits rows": lambda p: (OpKind.EMBED, [], [p.logits64], [p.table]),
    "embed: 8-bit output": lambda p: (OpKind.EMBED, [], [p.q64], [p.table]),
    "rmsnorm: no input": lambda p: (OpKind.RMSNORM, [], [p.y64], [p.v64]),
    "rmsnorm: weight width": lambda p: (OpKind.RMSNORM, [p.x64], [p.y64], [p.v32]),
    "rmsnorm: table for a vector": lambda p: (OpKind.RMSNORM, [p.x64], [p.y64], [p.table]),
    "rmsnorm: residual width": lambda p: (OpKind.RMSNORM, [p.x64, p.x32], [p.y64], [p.v64]),
    "rmsnorm: other rows": lambda p: (OpKind.RMSNORM, [p.x64], [p.logits64], [p.v64]),
    "rmsnorm: 8-bit input": lambda p: (OpKind.RMSNORM, [p.q64], [p.y64], [p.v64]),
    "rmsnorm: kinds swapped": lambda p: (OpKind.RMSNORM, [p.x64], [p.q64, p.y64], [p.v64]),
    "rmsnorm: odd width": lambda p: (OpKind.RMSNORM, [p.x33], [p.x33], [p.v64]),
    "linear: no weight": lambda p: (OpKind.LINEAR, [p.q64], [p.x32], []),
    "linear: f32 input for 8-bit": lambda p: (OpKind.LINEAR, [p.x64], [p.x32], [p.q8]),
    "linear: f32 weight, 8-bit input": lambda p: (OpKind.LINEAR, [p.q64], [p.x32], [p.f32]),
    "linear: input width": lambda p: (OpKind.LINEAR, [p.q32], [p.x32], [p.q8]),
    "linear: output width": lambda p: (OpKind.LINEAR, [p.q64], [p.x64], [p.q8]),
    "linear: vector for a matrix": lambda p: (OpKind.LINEAR, [p.q64], [p.x32], [p.v64]),
    "linear: bias width": lambda p: (
        OpKind.LINEAR, [p.q64], [p.x32], [p.q8, None, None, p.v64]),
    "linear: bias is a matrix": lambda p: (
        OpKind.LINEAR, [p.q64], [p.x32], [p.q8, None, None, p.f32]),
    "linear: residual width": lambda p: (OpKind.LINEAR, [p.q64, p.x64], [p.x32], [p.q8]),
    "linear: residual rows": lambda p: (
        OpKind.LINEAR, [p.logits_q64, p.x32], [p.x32], [p.q8]),
    "linear: one part of two": lambda p: (OpKind.LINEAR, [p.q64], [p.x64], [p.q8, p.f32]),
    "rope table: odd": lambda p: (OpKind.ROPE_TABLE, [], [p.x33], [p.v32]),
    "rope table: frequencies": lambda p: (OpKind.ROPE_TABLE, [], [p.x64], [p.v64]),
    "rope: not in place": lambda p: (OpKind.ROPE, [p.x64, p.x32], [p.y64], [], [0, 2, 32, 32, 1]),
    "rope: past the end": lambda p: (OpKind.ROPE, [p.x64, p.x32], [p.x64], [], [1, 2, 32, 32, 1]),
    "rope: first below 0": lambda p: (
        OpKind.ROPE, [p.x64, p.x32], [p.x64], [], [-1, 2, 32, 32, 1]),
    "rope: overflow": lambda p: (
        OpKind.ROPE, [p.x64, p.x32], [p.x64], [], [2**31 - 1, 2**31 - 1, 2**31 - 1, 32, 1]),
    "rope: no heads": lambda p: (OpKind.ROPE, [p.x64, p.x32], [p.x64], [], [0, 0, 32, 32, 1]),
    "rope: table width": lambda p: (OpKind.ROPE, [p.x64, p.x64], [p.x64], [], [0, 2, 32, 32, 1]),
    "rope: rotary over the head": lambda p: (
        OpKind.ROPE, [p.x64, p.x64], [p.x64], [], [0, 1, 32, 64, 1]),
    "attention: layer": lambda p: (OpKind.ATTENTION, [p.qkv], [p.heads], [], [LAYERS, HEADS]),
    "attention: layer -1": lambda p: (OpKind.ATTENTION, [p.qkv], [p.heads], [], [-1, HEADS]),
    "attention: heads": lambda p: (OpKind.ATTENTION, [p.qkv], [p.heads], [], [0, 3]),
    "attention: no heads": lambda p: (OpKind.ATTENTION, [p.qkv], [p.heads], [], [0, 0]),
    "attention: widths": lambda p: (OpKind.ATTENTION, [p.qkv], [p.heads], [], [0, 2 * HEADS]),
    "attention: in place": lambda p: (OpKind.ATTENTION, [p.qkv], [p.qkv], [], [0, HEADS]),
    "swiglu: widths": lambda p: (OpKind.SWIGLU, [p.x96], [p.x32]),
    "swiglu: 8-bit width": lambda p: (OpKind.SWIGLU, [p.x64], [p.x32, p.q64]),
    "add: widths": lambda p: (OpKind.ADD, [p.x64, p.x32], [p.y64]),
    "add: rows": lambda p: (OpKind.ADD, [p.x64, p.logits64], [p.y64]),
    "add: one input": lambda p: (OpKind.ADD, [p.x64], [p.y64]),
    "quantize: widths": lambda p: (OpKind.QUANTIZE, [p.x64], [None, p.q32]),
    "quantize: f32 output": lambda p: (OpKind.QUANTIZE, [p.x64], [p.y64]),
    "quantize: two outputs": lambda p: (OpKind.QUANTIZE, [p.x64], [p.y64, p.q64]),
    "gather: to tokens": lambda p: (OpKind.GATHER, [p.x64], [p.y64]),
    "gather: from logits": lambda p: (OpKind.GATHER, [p.logits64], [p.logits64]),
    "gather: widths": lambda p: (OpKind.GATHER, [p.x32], [p.logits64]),
    "sum squares: to tokens": lambda p: (OpKind.SUM_SQUARES, [p.x64], [p.y64], [], [0]),
    "sum squares: past the end": lambda p: (OpKind.SUM_SQUARES, [p.x64], [p.one96], [], [33]),
    "sum squares: below 0": lambda p: (OpKind.SUM_SQUARES, [p.x64], [p.one96], [], [-1]),
    "sum squares: overflow": lambda p: (
        OpKind.SUM_SQUARES, [p.x64], [p.one96], [], [2**31 - 1]),
    "sum squares: 8-bit input": lambda p: (OpKind.SUM_SQUARES, [p.q64], [p.one96], [], [0]),
    "sum squares: odd width": lambda p: (OpKind.SUM_SQUARES, [p.x33], [p.one96], [], [0]),
    "add: one row to many": lambda p: (OpKind.ADD, [p.x96, p.one96], [p.x96]),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_OPS)
def test_programs_that_do_not_fit_together(team, cache, name):
    parts = Parts(team, cache)
    parts.tiny.op(*BAD_OPS[name](parts))
    with pytest.raises(CoreError, match=r"^op 0\b"):
        parts.tiny.compile(parts.x64, 4)


def test_attention_without_a_cache_or_with_two_shapes(team, cache):
    parts = Parts(team, None)
    attention = (OpKind.ATTENTION, [parts.qkv], [parts.heads], [], [0, HEADS])
    parts.tiny.op(*attention)
    with pytest.raises(CoreError, match="op 0: attention needs a cache"):
        parts.tiny.compile(parts.x64, 4)
    parts = Parts(team, cache)
    parts.tiny.op(*attention)
    other, out = parts.tiny.buffer((2 + 2 * KV_HEADS) * DIM), parts.tiny.buffer(2 * DIM)
    parts.tiny.op(OpKind.ATTENTION, [other], [out], [], [1, 2])
    with pytest.raises(CoreError, match="op 1: all layers must have the same number of heads"):
        parts.tiny.compile(parts.x64, 4)


@pytest.mark.parametrize(
    "buffer",
    [(2, 0, 32, 0), (-1, 0, 32, 0), (0, 3, 32, 0), (0, -1, 32, 0), (0, 0, 0, 0), (0, 0, -32, 0),
     (1, 0, 33, 0), (0, 0, 2**24 + 1, 0), (0, 0, 32, 1), (0, 0, 32, -1), (0, 0, 2**31 - 1, 0)],
)  # fmt: skip
def test_buffers(team, buffer):
    with pytest.raises(CoreError, match="buffer 0: kind"):
        CompiledProgram(
            team, None, [], [CoreBuffer(*buffer)], [], max_tokens=1, max_logits=1, output=0
        )


@pytest.mark.parametrize(
    ("rows", "reason"),
    [((0, 1), "a program needs rows"), ((1, 0), "a program needs rows"), ((-3, 1), "needs rows")],
)
def test_program_sizes(team, rows, reason):
    with pytest.raises(CoreError, match=reason):
        CompiledProgram(team, None, [], [CoreBuffer(0, 0, 32, 0)], [], max_tokens=rows[0],
                        max_logits=rows[1], output=0)  # fmt: skip


def test_program_too_large_for_any_memory(team):
    with pytest.raises((MemoryError, CoreError)):
        CompiledProgram(team, None, [], [CoreBuffer(0, 0, 2**24, 0)], [], max_tokens=2**31 - 1,
                        max_logits=1, output=0)  # fmt: skip


def test_output_must_be_float32(team):
    buffers = [CoreBuffer(1, 0, 32, 0), CoreBuffer(0, 0, 32, 1)]
    with pytest.raises(CoreError, match="output buffer 0"):
        CompiledProgram(team, None, [], buffers, [], max_tokens=1, max_logits=1, output=0)
    with (
        CompiledProgram(team, None, [], buffers, [], max_tokens=1, max_logits=1, output=1) as one,
        pytest.raises(IndexError, match="output row 1 of 1"),
    ):
        one.output(1)


# ---- batches -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def program(team):
    """embed -> attention -> gather, on a cache with NUM_BLOCKS blocks."""
    with KVCache(CORE, cache_config(KV_HEADS, DIM, NUM_BLOCKS)) as cache:
        tiny = Tiny(team, cache)
        x = tiny.input(np.random.default_rng(1).standard_normal((VOCAB, WIDTH)))
        y = tiny.op(OpKind.ATTENTION, [x], [tiny.buffer(HEADS * DIM)], [], [0, HEADS], [0.2])
        out = tiny.op(OpKind.GATHER, [y], [tiny.buffer(HEADS * DIM, rows=Rows.LOGITS)])
        with closing(tiny.compile(out, max_tokens=48, max_logits=6)) as program:
            yield program


def good_batch():
    """A prefill, a decode step and a chunk in the middle of a sequence."""
    chunks = [
        Chunk([1, 2, 3, 4, 5], 0, [0]),
        Chunk([49], 40, [3, 2, 1]),
        Chunk(list(range(20)), 13, [7, 6, 5], [0, 19]),
    ]
    return ragged(chunks)


def run(program, batch):
    program.run(batch)
    return float_rows(program.output_address(), len(batch.logits_rows), program.output_width)


def changed(field, index, value):
    batch = good_batch()
    if index is None:
        setattr(batch, field, value)
    else:
        getattr(batch, field)[index] = value
    return batch


def test_the_good_batch_is_good(program):
    got = run(program, good_batch())
    assert got.shape == (4, HEADS * DIM)
    assert np.isfinite(got).all()
    assert np.abs(got).min(axis=1).max() > 0


@pytest.mark.parametrize(
    ("field", "index", "value", "reason"),
    [
        ("token_ids", 2, -1, "token id -1 is not in the vocabulary of 50"),
        ("token_ids", 25, VOCAB, "token id 50 is not"),
        ("positions", 0, 1, "token 0 is at position 1, not 0"),
        ("positions", 5, -1, "token 5 is at position -1, not 40"),
        ("slot_mapping", 5, 3 * 16, "token 5 goes to slot 48, its block table says 24"),
        ("slot_mapping", 6, -1, "token 6 goes to slot -1"),
        ("slot_mapping", 25, 10**9, "token 25 goes to slot 1000000000"),
        ("cu_seqlens_q", 0, 1, "cu_seqlens_q does not cover the tokens"),
        ("cu_seqlens_q", 3, 25, "cu_seqlens_q does not cover the tokens"),
        ("cu_seqlens_q", 1, 0, "sequence 0 has tokens"),
        ("cu_seqlens_q", 1, 6, "sequence 0 has tokens .0, 6. of a context of 5"),
        ("cu_seqlens_q", 2, 10**9, "sequence 1 has tokens"),
        ("cu_seqlens_q", 1, -7, "sequence 0 has tokens"),
        ("context_lens", 0, 4, "sequence 0 has tokens .0, 5. of a context of 4"),
        ("context_lens", 1, 0, "sequence 1 has tokens .* of a context of 0"),
        ("context_lens", 1, 42, "token 5 is at position 40, not 41"),
        ("context_lens", 2, 2**31 - 1, "position 13, not"),
        ("block_tables", 0, -1, "sequence 0 uses cache block -1 of 12"),
        ("block_tables", 3, NUM_BLOCKS, "sequence 1 uses cache block 12 of 12"),
        ("logits_rows", 1, -1, "logits row -1 of 26 tokens"),
        ("logits_rows", 3, 26, "logits row 26 of 26 tokens"),
        ("logits_rows", None, array("i", range(7)), r"7 logits rows \(max 6\)"),
        ("positions", None, array("i", [0]), "do not have the same number of rows"),
        ("slot_mapping", None, array("i"), "do not have the same number of rows"),
        ("cu_seqlens_q", None, array("i", [0, 26]), "do not have the same number of rows"),
        ("context_lens", None, array("i", [5]), "do not have the same number of rows"),
        ("block_tables", None, array("i", [0] * 8), "do not have the same number of rows"),
        ("max_blocks", None, -1, "do not have the same number of rows"),
        ("max_blocks", None, 4, "do not have the same number of rows"),
        ("token_ids", None, array("b", [1] * 26), "typecode"),
    ],
)
def test_bad_batches(program, field, index, value, reason):
    batch = changed(field, index, value)
    with pytest.raises(CoreError, match=reason):
        program.run(batch)
    run(program, good_batch())  # and the program still works


def test_empty_and_oversized_batches(program):
    with pytest.raises(CoreError, match="batch: 0 tokens"):
        program.run(Batch(cu_seqlens_q=array("i", [0])))
    long = ragged([Chunk([0] * 49, 0, [0, 1, 2, 3])])
    with pytest.raises(CoreError, match=r"batch: 49 tokens \(max 48\)"):
        program.run(long)
    table = ragged([Chunk([0] * 48, 0, [0, 1, 2])])
    table.block_tables, table.max_blocks = array("i", [0, 1]), 2
    with pytest.raises(CoreError, match="sequence 0 needs 3 blocks, its table has 2"):
        program.run(table)
    nothing = ragged([Chunk([0] * 48, 0, [0, 1, 2], [])])
    assert run(program, nothing).size == 0


def is_good(batch):
    """A second opinion on whether the batch may run on `program`."""
    n, seqs = len(batch.token_ids), len(batch.context_lens)
    if not 1 <= n <= 48 or not 1 <= seqs <= n or len(batch.logits_rows) > 6:
        return False
    if len(batch.positions) != n or len(batch.slot_mapping) != n:
        return False
    if len(batch.cu_seqlens_q) != seqs + 1 or len(batch.block_tables) != seqs * batch.max_blocks:
        return False
    if any(not 0 <= i < VOCAB for i in batch.token_ids):
        return False
    if any(not 0 <= row < n for row in batch.logits_rows):
        return False
    lengths = np.diff(np.array(batch.cu_seqlens_q, np.int64))
    if batch.cu_seqlens_q[0] != 0 or batch.cu_seqlens_q[-1] != n or (lengths < 1).any():
        return False
    for seq, length in enumerate(lengths):
        context = batch.context_lens[seq]
        table = batch.block_tables[seq * batch.max_blocks : (seq + 1) * batch.max_blocks]
        used = -(-context // 16)
        if context < length or used > len(table):
            return False
        if any(not 0 <= block < NUM_BLOCKS for block in table[:used]):
            return False
        for k in range(length):
            token, position = batch.cu_seqlens_q[seq] + k, context - length + k
            slot = table[position // 16] * 16 + position % 16
            if batch.positions[token] != position or batch.slot_mapping[token] != slot:
                return False
    return True


FIELDS = ("token_ids", "positions", "slot_mapping", "cu_seqlens_q", "context_lens", "block_tables",
          "logits_rows")  # fmt: skip
EDITS = st.lists(
    st.tuples(
        st.sampled_from(FIELDS),
        st.sampled_from(["set", "set", "set", "drop", "add"]),
        st.integers(0, 40),
        INT32,
    ),
    min_size=1,
    max_size=3,
)


@settings(
    max_examples=400,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(edits=EDITS, max_blocks=st.one_of(st.just(3), INT32))
@example(edits=[("cu_seqlens_q", "set", 2, 2**31 - 1)], max_blocks=3)
@example(edits=[("context_lens", "set", 0, -(2**31))], max_blocks=3)
@example(edits=[("block_tables", "set", 1, -1)], max_blocks=3)  # beyond what sequence 0 uses
def test_fuzzed_batches(program, edits, max_blocks):
    """A batch runs exactly if it is good; a bad one is an error that says what is wrong."""
    batch = good_batch()
    batch.max_blocks = max_blocks
    for field, action, index, value in edits:
        values = getattr(batch, field)
        if action == "add":
            values.append(value)
        elif len(values) and action == "drop":
            values.pop(index % len(values))
        elif len(values):
            values[index % len(values)] = value
    before = copy.deepcopy(batch)
    if is_good(batch):
        assert np.isfinite(run(program, batch)).all()
    else:
        with pytest.raises(CoreError, match=r"^batch: "):
            program.run(batch)
    assert batch == before


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_fuzzed_good_batches_run(program, data):
    """Random ragged batches that are right must be accepted."""
    chunks, budget = [], 48
    blocks = data.draw(st.permutations(range(NUM_BLOCKS)))
    for _ in range(data.draw(st.integers(1, 4))):
        length = data.draw(st.integers(1, budget - 4))
        start = data.draw(st.integers(0, 48 - length))
        own, blocks = blocks[:3], blocks[3:]
        chunks.append(Chunk([length % VOCAB] * length, start, own))
        budget -= length
        if budget < 8:
            break
    batch = ragged(chunks)
    assert is_good(batch)
    assert np.isfinite(run(program, batch)).all()
