"""Every op of the core against numpy in float64.

Quantised matmuls are checked twice: tightly against the same 8-bit activations, and loosely against
the exact product. test_core_loader.py runs this file once for each variant of the core, which is
why all ops are in it and it has more than 400 lines.
"""

from __future__ import annotations

import os
from array import array
from contextlib import closing

import gguf
import numpy as np
import pytest
from programs import (
    F32,
    Chunk,
    Tiny,
    cache_config,
    cached,
    causal_attention,
    dequantize,
    float_rows,
    int8_activations,
    int8_product,
    poison,
    quantize,
    ragged,
    random_blocks,
    whole_batch,
)

from rillm.core import Batch, BufferKind, KVCache, OpKind, Rows, WeightKind, load_core
from rillm.gguf import GGMLType

CORE = load_core()
FORMATS = [GGMLType(row.ggml_type) for row in CORE.formats]
FLOATS = (GGMLType.F32, GGMLType.F16, GGMLType.BF16)
TOKENS = (1, 2, 3, 5, 8, 16, 17, 33, 70)
ROWS = 70  # no multiple of any tile


def format_names(ggml_type):
    return GGMLType(ggml_type).name


@pytest.fixture(scope="module")
def team():
    with CORE.team(2) as team:
        yield team


@pytest.fixture
def rng(request):
    return np.random.default_rng(list(request.node.name.encode()))


def matrix(tiny, ggml_type, blocks, shape):
    return tiny.add_weight(WeightKind.MATRIX, ggml_type, shape, blocks.data)


def test_this_is_the_variant_that_was_asked_for():
    assert os.environ.get("RILLM_ISA") in (None, "", CORE.variant)


# ---- embed, gather, add, norms -----------------------------------------------------------------


@pytest.mark.parametrize("ggml_type", FORMATS, ids=format_names)
def test_embed_looks_up_rows_of_every_format(team, rng, ggml_type):
    shape = (7, 512)
    blocks = random_blocks(rng, ggml_type, *shape)
    tiny = Tiny(team)
    table = tiny.add_weight(WeightKind.TABLE, ggml_type, shape, blocks.data)
    out = tiny.op(OpKind.EMBED, [], [tiny.buffer(512)], [table])
    ids = [6, 0, 3, 3, 1]
    kind = gguf.GGMLQuantizationType(int(ggml_type))
    stored = {GGMLType.F32: np.float32, GGMLType.F16: np.float16}.get(ggml_type, np.uint8)
    expected = gguf.dequantize(blocks.view(stored), kind).reshape(shape)[ids]
    np.testing.assert_array_equal(tiny.run(out, ids), expected)


@pytest.mark.parametrize("wanted", [[0], [4, 0, 4, 2], list(range(6)), []])
def test_gather_picks_the_logits_rows(team, rng, wanted):
    x = rng.standard_normal((6, 96)).astype(np.float32)
    tiny = Tiny(team)
    out = tiny.op(OpKind.GATHER, [tiny.input(x)], [tiny.buffer(96, rows=Rows.LOGITS)])
    np.testing.assert_array_equal(tiny.run(out, list(range(6)), logits_rows=wanted), x[wanted])


@pytest.mark.parametrize("width", [32, 128, 416])
def test_sum_squares_of_each_column(team, rng, width):
    x = rng.standard_normal((70, width)) * 10.0 ** rng.integers(-5, 6, (1, width))
    x = x.astype(np.float32)
    tiny = Tiny(team)
    source, total = tiny.input(x), tiny.buffer(width + 64, rows=Rows.ONE)
    tiny.op(OpKind.SUM_SQUARES, [source], [total], ints=[32])
    for ids in ([3], [5, 5, 1], list(range(70))):
        got = tiny.run(total, ids)
        assert got.shape == (1, width + 64)
        exact = np.square(x[ids].astype(np.float64)).sum(axis=0)
        np.testing.assert_allclose(got[0, 32:-32], exact, rtol=5e-6)
        assert not got[0, :32].any()  # another op's place
        assert not got[0, -32:].any()


def test_sum_squares_of_the_logits_rows_is_of_those_only(team, rng):
    x = rng.standard_normal((6, 64)).astype(np.float32)
    tiny = Tiny(team)
    rows = tiny.op(OpKind.GATHER, [tiny.input(x)], [tiny.buffer(64, rows=Rows.LOGITS)])
    total = tiny.op(OpKind.SUM_SQUARES, [rows], [tiny.buffer(64, rows=Rows.ONE)], ints=[0])
    for wanted in ([4, 1], [], list(range(6))):
        got = tiny.run(total, list(range(6)), logits_rows=wanted)
        exact = np.square(x[wanted].astype(np.float64)).sum(axis=0)
        np.testing.assert_allclose(got[0], exact, rtol=1e-6)


def test_add(team, rng):
    a, b = rng.standard_normal((2, 9, 96)).astype(np.float32)
    tiny = Tiny(team)
    left, right = tiny.input(a), tiny.input(b)
    apart = tiny.op(OpKind.ADD, [left, right], [tiny.buffer(96)])
    in_place = tiny.op(OpKind.ADD, [apart, right], [apart])
    np.testing.assert_array_equal(tiny.run(in_place, range(9)), (a + b) + b)


@pytest.mark.parametrize("width", [32, 96, 512, 4096])
@pytest.mark.parametrize("residual", [False, True], ids=["alone", "residual"])
def test_rmsnorm(team, rng, width, residual):
    # Rows of every magnitude: eps counts in the small ones; the zero row must stay finite.
    x = rng.standard_normal((7, width)) * 10.0 ** np.arange(-4, 3)[:, None]
    x[2] = 0
    x, extra = x.astype(np.float32), rng.standard_normal((7, width)).astype(np.float32)
    weight = rng.normal(1, 0.3, width).astype(np.float32)
    eps = np.float32(1e-5)
    tiny = Tiny(team)
    source, other = tiny.input(x), tiny.input(extra)
    norm = [source, other if residual else None]
    f32 = tiny.buffer(width)
    both = [f32, tiny.buffer(width, BufferKind.Q8)]
    only = [None, tiny.buffer(width, BufferKind.Q8)]
    gamma = tiny.vector(weight)
    tiny.op(OpKind.RMSNORM, norm, both, [gamma], floats=[eps])
    tiny.op(OpKind.RMSNORM, norm, only, [gamma], floats=[eps])
    from_both, from_only = tiny.dequantized(both[1]), tiny.dequantized(only[1])
    exact = x.astype(np.float64)
    mean = (exact**2).mean(axis=1, keepdims=True)
    exact = exact / np.sqrt(mean + float(eps)) * weight + (extra if residual else 0)
    got = tiny.run(f32, range(7))
    np.testing.assert_allclose(got, exact, rtol=2e-6, atol=1e-6)
    scales, codes = int8_activations(got)
    expected = codes.astype(np.float32) * np.repeat(scales, 32, axis=1)
    np.testing.assert_array_equal(tiny.run(from_both, range(7)), expected)
    np.testing.assert_array_equal(tiny.run(from_only, range(7)), expected)


@pytest.mark.parametrize("width", [32, 160, 544])
def test_swiglu(team, rng, width):
    x = rng.standard_normal((6, 2 * width)) * np.array([1, 5, 40, 120, 1e-3, 3])[:, None]
    x[1, :4] = [-100, -88, 88, 100]  # where e^x underflows and overflows
    x = x.astype(np.float32)
    tiny = Tiny(team)
    source = tiny.input(x)
    f32 = tiny.buffer(width)
    both = [f32, tiny.buffer(width, BufferKind.Q8)]
    only = [None, tiny.buffer(width, BufferKind.Q8)]
    tiny.op(OpKind.SWIGLU, [source], both)
    tiny.op(OpKind.SWIGLU, [source], only)
    from_both, from_only = tiny.dequantized(both[1]), tiny.dequantized(only[1])
    gate, up = x[:, :width].astype(np.float64), x[:, width:].astype(np.float64)
    got = tiny.run(f32, range(6))
    np.testing.assert_allclose(got, gate / (1 + np.exp(-gate)) * up, rtol=3e-6, atol=1e-30)
    scales, codes = int8_activations(got)
    expected = codes.astype(np.float32) * np.repeat(scales, 32, axis=1)
    np.testing.assert_array_equal(tiny.run(from_both, range(6)), expected)
    np.testing.assert_array_equal(tiny.run(from_only, range(6)), expected)


def test_quantize_is_the_same_in_groups_of_any_size(team, rng):
    x = rng.standard_normal((70, 96)) * 10.0 ** rng.integers(-6, 7, (70, 1))
    x[3, 32:64] = 0  # a strip of zeros has scale 0
    x[4, 0] = 1e4  # an outlier leaves its strip with few codes, and no other
    x[5] = np.where(rng.random(96) < 0.5, 1.0, -1.0)  # every code is -127 or 127
    x[6] = np.linspace(-63.5, 63.5, 96)
    x = x.astype(np.float32)
    tiny = Tiny(team)
    out = tiny.dequantized(tiny.quantized(tiny.input(x)))
    scales, codes = int8_activations(x)
    expected = codes.astype(np.float32) * np.repeat(scales, 32, axis=1)
    for n in TOKENS:
        np.testing.assert_array_equal(tiny.run(out, range(n)), expected[:n])


# ---- linear ------------------------------------------------------------------------------------


def linear(tiny, x, q8, parts, biases=(), residual=None):
    """An op over (weight id, rows, is float) parts."""
    out = tiny.buffer(sum(rows for _, rows, _ in parts))
    inputs = [
        q8 if any(not is_float for _, _, is_float in parts) else None,
        residual,
        x if any(is_float for _, _, is_float in parts) else None,
    ]
    weights = [weight for weight, _, _ in parts]
    ids = weights + [None] * (3 - len(weights)) + list(biases)
    return tiny.op(OpKind.LINEAR, inputs, [out], ids)


@pytest.mark.parametrize(
    ("ggml_type", "cols"),
    [
        pytest.param(ggml_type, cols, id=f"{ggml_type.name}-{cols}")
        for ggml_type in FORMATS
        for cols in (96, 256, 512, 1056)
        if cols % ggml_type.block_size == 0
    ],
)
def test_linear_of_every_format(team, rng, ggml_type, cols):
    blocks = random_blocks(rng, ggml_type, ROWS, cols)
    w = dequantize(CORE, ggml_type, blocks, (ROWS, cols))
    x = rng.standard_normal((max(TOKENS), cols)).astype(np.float32)
    x[1] = np.where(rng.random(cols) < 0.5, 3.0, -3.0)  # the largest integer sums
    x[2] = -2.0
    tiny = Tiny(team)
    source = tiny.input(x)
    is_float = ggml_type in FLOATS
    weight = matrix(tiny, ggml_type, blocks, (ROWS, cols))
    assert tiny.weights[weight].is_quantized == (not is_float)
    out = linear(tiny, source, None if is_float else tiny.quantized(source),
                 [(weight, ROWS, is_float)])  # fmt: skip
    exact = x.astype(np.float64) @ w.astype(np.float64).T
    expected = exact if is_float else int8_product(x, w)
    # A dot product is exact to some units of the sum of its terms' magnitudes. A format with
    # minimums subtracts terms that may be larger than the weights: hence the sum of both bounds.
    size = np.abs(x.astype(np.float64)) @ np.abs(w.astype(np.float64)).T
    bound = 2e-6 * size + 1e-6 * np.abs(w).max() * np.abs(x).sum(axis=1, keepdims=True)
    for n in TOKENS:
        got = tiny.run(out, range(n))
        assert (np.abs(got - expected[:n]) <= bound[:n]).all(), (
            n,
            np.abs(got - expected[:n]).max(),
        )
    # 8-bit activations cost at most half a code for each term.
    strips = np.abs(x).reshape(len(x), -1, 32).max(axis=2, keepdims=True) / 254
    half_codes = np.broadcast_to(strips, (len(x), cols // 32, 32)).reshape(x.shape)
    allowed = 0 if is_float else half_codes.astype(np.float64) @ np.abs(w.astype(np.float64)).T
    assert (np.abs(got - exact) <= bound + allowed).all()


@pytest.mark.parametrize("ggml_type", FORMATS, ids=format_names)
def test_linear_on_weights_that_the_core_quantised(team, rng, ggml_type):
    cols = 512
    values = rng.standard_normal((ROWS, cols)).astype(np.float32)
    blocks = quantize(CORE, ggml_type, values)
    w = dequantize(CORE, ggml_type, blocks, (ROWS, cols))
    x = rng.standard_normal((33, cols)).astype(np.float32)
    tiny = Tiny(team)
    source = tiny.input(x)
    is_float = ggml_type in FLOATS
    weight = matrix(tiny, ggml_type, blocks, (ROWS, cols))
    out = linear(tiny, source, None if is_float else tiny.quantized(source),
                 [(weight, ROWS, is_float)])  # fmt: skip
    got = tiny.run(out, range(33))
    expected = x.astype(np.float64) @ w.T if is_float else int8_product(x, w)
    scale = np.abs(expected).max()
    assert np.abs(got - expected).max() < 3e-6 * scale
    assert np.abs(got - x.astype(np.float64) @ w.T.astype(np.float64)).max() < 0.02 * scale


MIXES = {
    "two Q4_K": [(GGMLType.Q4_K, 70), (GGMLType.Q4_K, 33)],
    "Q4_K Q4_K Q6_K": [(GGMLType.Q4_K, 70), (GGMLType.Q4_K, 35), (GGMLType.Q6_K, 35)],
    "Q8_0 F16": [(GGMLType.Q8_0, 41), (GGMLType.F16, 70)],
    "F32 Q5_1 BF16": [(GGMLType.F32, 1), (GGMLType.Q5_1, 65), (GGMLType.BF16, 17)],
    "three F16": [(GGMLType.F16, 64), (GGMLType.F16, 32), (GGMLType.F16, 31)],
}  # fmt: skip


@pytest.mark.parametrize("in_place", [False, True], ids=["apart", "in place"])
@pytest.mark.parametrize("mix", MIXES)
def test_linear_parts_biases_and_residual(team, rng, mix, in_place):
    cols, num_tokens = 256, 19
    x = rng.standard_normal((num_tokens, cols)).astype(np.float32)
    tiny = Tiny(team)
    source = tiny.input(x)
    q8 = tiny.quantized(source)
    parts, biases, expected = [], [], []
    for index, (ggml_type, rows) in enumerate(MIXES[mix]):
        blocks = random_blocks(rng, ggml_type, rows, cols)
        w = dequantize(CORE, ggml_type, blocks, (rows, cols))
        is_float = ggml_type in FLOATS
        parts.append((matrix(tiny, ggml_type, blocks, (rows, cols)), rows, is_float))
        y = x.astype(np.float64) @ w.T if is_float else int8_product(x, w)
        if index != 1:  # a part without a bias between parts that have one
            bias = rng.normal(0, 20, rows).astype(np.float32)
            y = y + bias
            biases.append(tiny.vector(bias))
        else:
            biases.append(None)
        expected.append(y)
    width = sum(rows for _, rows, _ in parts)
    extra = rng.normal(0, 30, (num_tokens, width)).astype(np.float32)
    residual = tiny.input(extra)
    out = linear(tiny, source, q8, parts, biases, residual)
    if in_place:
        tiny.ops[-1].outputs[0] = residual
        out = residual
    expected = np.concatenate(expected, axis=1) + extra
    got = tiny.run(out, range(num_tokens))
    assert np.abs(got - expected).max() < 1e-5 * np.abs(expected).max()


# ---- rope --------------------------------------------------------------------------------------


@pytest.mark.parametrize("start", [0, 1000, 131_000, 1_000_000])
def test_rope_table_is_exact_far_into_a_context(team, rng, start):
    frequencies = (1e4 ** -(np.arange(16) / 16)).astype(np.float32)
    magnitude = np.float32(1.1386)
    tiny = Tiny(team)
    tiny.input(np.ones((1, 32)))
    out = tiny.op(
        OpKind.ROPE_TABLE, [], [tiny.buffer(32)], [tiny.vector(frequencies)], floats=[magnitude]
    )
    with closing(tiny.compile(out, 5)) as program:
        program.run(
            Batch(
                token_ids=array("i", [0] * 5),
                positions=array("i", range(start, start + 5)),
                slot_mapping=array("i", [0] * 5),
                cu_seqlens_q=array("i", [0, 5]),
                context_lens=array("i", [start + 5]),
            )
        )
        got = float_rows(program.output_address(), 5, 32)
    angles = np.arange(start, start + 5)[:, None] * frequencies.astype(np.float64)
    expected = np.concatenate([np.cos(angles), np.sin(angles)], axis=1) * magnitude
    np.testing.assert_allclose(got, expected, atol=2e-7)


@pytest.mark.parametrize("interleaved", [True, False], ids=["interleaved", "neox"])
@pytest.mark.parametrize(
    ("first", "heads", "head_dim", "rotary"),
    [(0, 3, 32, 32), (64, 2, 64, 32), (32, 1, 128, 10), (0, 5, 32, 2), (0, 2, 128, 128)],
)
def test_rope(team, rng, interleaved, first, heads, head_dim, rotary):
    width = first + heads * head_dim + 32  # columns before and after stay as they are
    x = rng.standard_normal((11, width)).astype(np.float32)
    frequencies = (500.0 ** -(np.arange(rotary // 2) / (rotary / 2))).astype(np.float32)
    tiny = Tiny(team)
    source = tiny.input(x)
    table = tiny.op(
        OpKind.ROPE_TABLE, [], [tiny.buffer(rotary)], [tiny.vector(frequencies)], floats=[1.25]
    )
    ints = [first, heads, head_dim, rotary, int(interleaved)]
    tiny.op(OpKind.ROPE, [source, table], [source], ints=ints)
    expected = x.astype(np.float64)
    angles = np.arange(11)[:, None, None] * frequencies.astype(np.float64)
    turn = 1.25 * np.exp(1j * angles)  # [token, 1, pair]
    block = expected[:, first : first + heads * head_dim].reshape(11, heads, head_dim)
    half = rotary // 2
    pairs = (slice(0, rotary, 2), slice(1, rotary, 2)) if interleaved else (
        slice(0, half), slice(half, rotary))  # fmt: skip
    turned = (block[:, :, pairs[0]] + 1j * block[:, :, pairs[1]]) * turn
    block[:, :, pairs[0]], block[:, :, pairs[1]] = turned.real, turned.imag
    expected[:, first : first + heads * head_dim] = block.reshape(11, -1)
    np.testing.assert_allclose(tiny.run(source, range(11)), expected, atol=2e-6)


# ---- attention ---------------------------------------------------------------------------------

SHAPES = {  # query heads, KV heads, head_dim
    "MHA": (4, 4, 32),
    "16:1": (32, 2, 64),
    "3:1": (9, 3, 32),
    "4:1 of 128": (8, 2, 128),
}
# (context before the step, tokens of the step): block, partition and tile edges, and mixtures.
STEPS = [
    [(0, 1)],
    [(0, 17), (15, 1), (16, 1)],
    [(255, 1), (256, 1), (254, 5), (0, 3)],
    [(511, 2), (513, 1), (0, 40), (240, 33)],
    [(600, 1), (0, 70), (767, 3), (31, 1)],
]


@pytest.mark.parametrize("cache_type", [GGMLType.F16, GGMLType.Q8_0], ids=format_names)
@pytest.mark.parametrize(
    ("shape", "block_size"),
    [("MHA", 16), ("16:1", 16), ("3:1", 16), ("3:1", 48), ("4:1 of 128", 32)],
)
def test_attention(team, rng, shape, block_size, cache_type):
    heads, kv_heads, dim = SHAPES[shape]
    scale = np.float32(1.7 * dim**-0.5)
    layers, layer = 3, 1
    context = 770
    width = (heads + 2 * kv_heads) * dim
    table = rng.standard_normal((1200, width)).astype(np.float32)
    blocks_each = -(-context // block_size)
    num_blocks = 4 * blocks_each
    config = cache_config(kv_heads, dim, num_blocks, cache_type, layers, block_size)
    with KVCache(CORE, config) as cache:
        poison(cache)
        tiny = Tiny(team, cache)
        out = tiny.buffer(heads * dim)
        tiny.op(OpKind.ATTENTION, [tiny.input(table)], [out], ints=[layer, heads], floats=[scale])
        with closing(tiny.compile(out, 1000)) as program:
            for step in STEPS:
                free = rng.permutation(num_blocks)
                chunks, past = [], []
                for index, (before, new) in enumerate(step):
                    ids = rng.integers(0, len(table), before + new).tolist()
                    blocks = free[index * blocks_each : (index + 1) * blocks_each].tolist()
                    past.append(ids)
                    if before:
                        program.run(ragged([Chunk(ids[:before], 0, blocks)], block_size))
                    chunks.append(Chunk(ids[before:], before, blocks))
                batch = ragged(chunks, block_size)
                program.run(batch)
                got = float_rows(program.output_address(), len(batch.token_ids), heads * dim)
                for chunk, ids, at in zip(chunks, past, batch.cu_seqlens_q[:-1], strict=True):
                    rows = table[ids].reshape(len(ids), heads + 2 * kv_heads, dim)
                    q = rows[chunk.start :, :heads]
                    k, v = (
                        cached(part, cache_type)
                        for part in np.split(rows[:, heads:], [kv_heads], axis=1)
                    )
                    expected = causal_attention(q, k, v, scale, chunk.start)
                    error = np.abs(got[at : at + len(chunk.ids)] - expected).max()
                    assert error < 1e-5, (chunk.start, len(chunk.ids), error)


@pytest.mark.parametrize("cache_type", [GGMLType.F16, GGMLType.Q8_0], ids=format_names)
def test_attention_over_one_key_in_a_thousand(team, rng, cache_type):
    """Scores of +-100: the softmax must not overflow, and must find the needle."""
    heads, kv_heads, dim, context = 4, 1, 64, 1000
    table = rng.standard_normal((context, (heads + 2) * dim)).astype(np.float32)
    needle = 333
    table[needle, heads * dim : (heads + 1) * dim] = table[-1, :dim] * 3
    blocks = list(range(-(-context // 16)))
    with KVCache(CORE, cache_config(kv_heads, dim, len(blocks), cache_type)) as cache:
        tiny = Tiny(team, cache)
        out = tiny.buffer(heads * dim)
        tiny.op(OpKind.ATTENTION, [tiny.input(table)], [out], ints=[0, heads], floats=[1.0])
        with closing(tiny.compile(out, context)) as program:
            program.run(ragged([Chunk(list(range(context)), 0, blocks)]))
            got = float_rows(program.output_address(), context, heads * dim)
    rows = table.reshape(context, heads + 2, dim)
    k, v = (cached(rows[:, i : i + 1], cache_type) for i in (heads, heads + 1))
    # Scores of this size have float32 errors of 1e-5, and softmax passes them on.
    expected = causal_attention(rows[:, :heads], k, v, 1.0, 0)
    assert np.abs(got - expected).max() < 3e-4
    np.testing.assert_allclose(got[-1, :dim], v[needle, 0], atol=1e-4)


@pytest.mark.parametrize("context", [4097, 6200])
def test_attention_after_thousands_of_tokens(team, rng, context):
    """Partitions are longer there; a step of one token shares them out among threads."""
    heads, kv_heads, dim = 4, 1, 32
    table = rng.standard_normal((context, (heads + 2) * dim)).astype(np.float32)
    blocks = rng.permutation(-(-context // 16)).tolist()
    with KVCache(CORE, cache_config(kv_heads, dim, len(blocks), GGMLType.F16)) as cache:
        tiny = Tiny(team, cache)
        out = tiny.buffer(heads * dim)
        tiny.op(OpKind.ATTENTION, [tiny.input(table)], [out], ints=[0, heads], floats=[0.3])
        with closing(tiny.compile(out, context)) as program:
            program.run(ragged([Chunk(list(range(context)), 0, blocks)]))
            whole = float_rows(program.output_address(), context, heads * dim).copy()
            program.run(ragged([Chunk([context - 1], context - 1, blocks)]))
            alone = float_rows(program.output_address(), 1, heads * dim)
    np.testing.assert_array_equal(alone[0], whole[-1])
    rows = table.reshape(context, heads + 2, dim)
    k, v = (cached(rows[:, i : i + 1], GGMLType.F16) for i in (heads, heads + 1))
    expected = causal_attention(rows[-200:, :heads], k, v, np.float32(0.3), context - 200)
    assert np.abs(whole[-200:] - expected).max() < 1e-5


@pytest.mark.parametrize("cache_type", [GGMLType.F16, GGMLType.Q8_0], ids=format_names)
def test_cache_blocks_can_be_moved(team, rng, cache_type):
    """A block read from one cache and written to another holds the same keys and values."""
    heads, dim, context = 2, 32, 40
    table = rng.standard_normal((context, 3 * heads * dim)).astype(np.float32)
    outputs = []
    with (
        KVCache(CORE, cache_config(heads, dim, 5, cache_type)) as first,
        KVCache(CORE, cache_config(heads, dim, 9, cache_type)) as second,
    ):
        for cache, blocks in ((first, [4, 1, 2]), (second, [0, 8, 3])):
            tiny = Tiny(team, cache)
            out = tiny.buffer(heads * dim)
            tiny.op(OpKind.ATTENTION, [tiny.input(table)], [out], ints=[0, heads], floats=[0.2])
            with closing(tiny.compile(out, context)) as program:
                if cache is first:
                    program.run(ragged([Chunk(list(range(39)), 0, blocks)]))
                else:
                    for source, target in zip([4, 1, 2], blocks, strict=True):
                        second.write(target, first.read(source))
                program.run(ragged([Chunk([39], 39, blocks)]))
                outputs.append(float_rows(program.output_address(), 1, heads * dim))
    np.testing.assert_array_equal(outputs[0], outputs[1])
    assert np.abs(outputs[0]).max() > 0.01


def test_whole_batch_needs_no_cache(team, rng):
    """Programs without attention run without a cache, whatever the slots say."""
    x = rng.standard_normal((3, 32)).astype(np.float32)
    tiny = Tiny(team)
    source = tiny.input(x)
    batch = whole_batch([2, 1, 0])
    batch.slot_mapping = array("i", [7, -3, 10**9])
    with closing(tiny.compile(source, 3)) as program:
        program.run(batch)
        np.testing.assert_array_equal(float_rows(program.output_address(), 3, 32), x[[2, 1, 0]])


def test_biases_may_be_of_any_format(team, rng):
    """A vector is copied as float32 whatever the file holds."""
    for ggml_type in (F32, GGMLType.F16, GGMLType.BF16, GGMLType.Q8_0):
        blocks = random_blocks(rng, ggml_type, 1, 64)
        bias = dequantize(CORE, ggml_type, blocks, (1, 64))
        w, x = rng.standard_normal((64, 64)), rng.standard_normal((2, 64)).astype(np.float32)
        tiny = Tiny(team)
        source = tiny.input(x)
        weight = matrix(tiny, F32, np.ascontiguousarray(w, np.float32), (64, 64))
        vector = tiny.add_weight(WeightKind.VECTOR, ggml_type, (1, 64), blocks.data)
        out = linear(tiny, source, None, [(weight, 64, True)], [vector])
        expected = x.astype(np.float64) @ w.astype(np.float32).T + bias
        np.testing.assert_allclose(tiny.run(out, range(2)), expected, atol=1e-5)
