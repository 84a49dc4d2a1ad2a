"""rillm.nn: recording, fusion, 8-bit activations and the buffer plan."""

from __future__ import annotations

from array import array
from collections import Counter
from contextlib import closing
from types import SimpleNamespace

import numpy as np
import pytest
from programs import F32, cache_config, float_rows, whole_batch

from rillm.core import BufferKind, KVCache, OpKind, Rows, Weight, WeightKind, load_core
from rillm.gguf import GGMLType
from rillm.models import chatglm, glm4, llama
from rillm.nn import ModelConfig, RopeScaling, compile_graph, graph, record, rope_frequencies
from rillm.nn.program import fold_adds, lower, plan_slots

CORE = load_core()
HIDDEN = 64
# Ops of a layer: norm, qkv, rope, attention, its 8-bit form, output (+ x), norm, gate and up,
# swiglu, down (+ x); in glm4 the output norms take the additions instead of the matrices.
OPS_OF_A_LAYER = {"chatglm": 10, "llama": 10, "glm4": 12}
OPS_AROUND = 5  # rope table, embed; gather, norm, head
MODULES = {"chatglm": chatglm, "glm4": glm4, "llama": llama}


@pytest.fixture(scope="module")
def team():
    with CORE.team(1) as team:
        yield team


def config(**changed):
    shape = {
        "architecture": "test", "num_layers": 3, "hidden_size": HIDDEN, "ffn_size": 96,
        "num_heads": 4, "num_kv_heads": 2, "head_dim": 32, "vocab_size": 40,
        "context_length": 128, "rms_norm_eps": 1e-5, "rope_theta": 1e4, "rotary_dims": 16,
        "rope_interleaved": True, "rope_scaling": RopeScaling(), "fused_qkv": True,
        "fused_gate_up": True,
    }  # fmt: skip
    return ModelConfig(**shape | changed)


def random_weight(team, rng, kind, shape, ggml_type=F32):
    values = (rng.standard_normal(shape) / np.sqrt(shape[1])).astype(np.float32)
    if kind is WeightKind.VECTOR:
        values = values + np.float32(1)
    if kind is not WeightKind.MATRIX or ggml_type == F32:
        return Weight(CORE, kind, F32, shape, values.data, team)
    blocks = bytearray(values.size // 32 * 34)
    CORE.quantize(ggml_type, values.data, blocks, shape[1])
    return Weight(CORE, kind, ggml_type, shape, blocks, team)


def record_model(team, architecture, ggml_type, **changed):
    """(graph, logits) of a random model; biases are left out."""
    rng = np.random.default_rng(5)
    shape = config(**changed)
    model = MODULES[architecture].Model(shape)
    for _, parameter in model.named_parameters():
        if not parameter.optional:
            parameter.loaded = random_weight(team, rng, parameter.kind, parameter.shape, ggml_type)
    frequencies, magnitude = rope_frequencies(1e4, shape.rotary_dims, shape.rope_scaling)
    table = Weight(CORE, WeightKind.VECTOR, F32, (1, len(frequencies)), frequencies)
    with record() as recorded:
        logits, _ = model(table, magnitude)
    return recorded, logits


def check_slots(ops, output):
    """Every op finds in its input buffers what was last written to them."""
    owner = {}
    for index, op in enumerate(ops):
        for buffer in op.inputs:
            if buffer is not None:
                assert owner[buffer.slot] is buffer, f"op {index} reads what another overwrote"
        inputs = {id(buffer): buffer.slot for buffer in op.inputs if buffer is not None}
        for buffer in op.outputs:
            if buffer is None:
                continue
            if id(buffer) not in inputs:  # not in place: no memory that the op still reads
                assert buffer.slot not in inputs.values()
            owner[buffer.slot] = buffer
        written = [buffer.slot for buffer in op.outputs if buffer is not None]
        assert len(set(written)) == len(written)
    assert owner[output.slot] is output


@pytest.mark.parametrize("fused", [True, False], ids=["fused", "apart"])
@pytest.mark.parametrize("architecture", OPS_OF_A_LAYER)
def test_number_of_ops(team, architecture, fused):
    for ggml_type in (GGMLType.Q8_0, F32):
        recorded, logits = record_model(
            team, architecture, ggml_type, fused_qkv=fused, fused_gate_up=fused
        )
        ops, [output] = lower(fold_adds(recorded.nodes), [logits])
        # Float weights need no 8-bit form of the attention's output.
        of_layer = OPS_OF_A_LAYER[architecture] - (ggml_type == F32)
        assert len(ops) == OPS_AROUND + 3 * of_layer
        kinds = Counter(op.kind for op in ops)
        assert kinds[OpKind.ADD] == 0
        assert kinds[OpKind.QUANTIZE] == (3 if ggml_type != F32 else 0)
        assert kinds[OpKind.LINEAR] == 3 * 4 + 1
        residuals = [op for op in ops if len(op.inputs) > 1 and op.kind in
                     (OpKind.LINEAR, OpKind.RMSNORM) and op.inputs[1] is not None]  # fmt: skip
        assert len(residuals) == 2 * 3
        kind = OpKind.RMSNORM if architecture == "glm4" else OpKind.LINEAR
        assert {op.kind for op in residuals} == {kind}
        buffers = plan_slots(ops, [output])
        check_slots(ops, output)
        assert len({buffer.slot for buffer in buffers}) <= 9  # and not one for each of ~40 buffers


def test_slots_do_not_grow_with_the_number_of_layers(team):
    slots = []
    for num_layers in (1, 2, 6):
        recorded, logits = record_model(team, "glm4", GGMLType.Q8_0, num_layers=num_layers)
        ops, [output] = lower(fold_adds(recorded.nodes), [logits])
        buffers = plan_slots(ops, [output])
        check_slots(ops, output)
        for rows in Rows:
            shared = [buffer.slot for buffer in buffers if buffer.rows is rows]
            others = [buffer.slot for buffer in buffers if buffer.rows is not rows]
            assert not set(shared) & set(others)
        slots.append(len({buffer.slot for buffer in buffers}))
    assert slots[0] <= slots[1] == slots[2]


def test_slot_check_notices_an_overlap(team):
    recorded, logits = record_model(team, "chatglm", F32)
    ops, [output] = lower(fold_adds(recorded.nodes), [logits])
    for buffer in plan_slots(ops, [output]):
        buffer.slot = 0
    with pytest.raises(AssertionError):
        check_slots(ops, output)


def test_a_graph_can_be_compiled_twice(team):
    """Compiling leaves the record as it is, and both programs give the same logits."""
    recorded, logits = record_model(team, "glm4", GGMLType.Q8_0)
    rows = []
    with KVCache(CORE, cache_config(2, 32, 4, layers=3)) as cache:
        for _ in range(2):
            program = compile_graph(recorded, logits, team, cache, max_tokens=8, max_logits=8)
            with closing(program):
                batch = whole_batch([3, 1, 39])
                batch.block_tables, batch.max_blocks = array("i", [2]), 1
                batch.slot_mapping = array("i", [32, 33, 34])
                program.run(batch)
                rows.append(float_rows(program.output_address(), 3, 40))
    np.testing.assert_array_equal(rows[0], rows[1])
    assert np.abs(rows[0]).max() > 0.1


def test_one_8_bit_form_serves_all_that_read_it(team):
    rng = np.random.default_rng(0)
    w = [random_weight(team, rng, WeightKind.MATRIX, (64, 64), GGMLType.Q8_0) for _ in range(3)]
    f32 = random_weight(team, rng, WeightKind.MATRIX, (64, 64))
    table = random_weight(team, rng, WeightKind.TABLE, (10, 64))
    norm = random_weight(team, rng, WeightKind.VECTOR, (1, 64))
    with record() as recorded:
        x = graph.rmsnorm(graph.embed(table), norm, 1e-5)
        y = graph.linear(x, w[:1], [None]) + graph.linear(x, w[1:2], [None])
        out = graph.linear(y, w[2:], [None]) + graph.linear(x, [f32], [None])
    ops, _ = lower(fold_adds(recorded.nodes), [out])
    kinds = [op.kind for op in ops]
    assert kinds.count(OpKind.QUANTIZE) == 1  # of y; that of x comes from its norm
    (made,) = [op for op in ops if op.kind is OpKind.RMSNORM]
    assert [buffer.kind for buffer in made.outputs] == [BufferKind.F32, BufferKind.Q8]
    assert kinds.count(OpKind.ADD) == 0


def test_8_bit_form_is_of_the_rotated_value(team):
    """A linear op after a rope reads what the rope left, not what it found."""
    rng = np.random.default_rng(1)
    table = random_weight(team, rng, WeightKind.TABLE, (10, 64))
    w = random_weight(team, rng, WeightKind.MATRIX, (64, 64), GGMLType.Q8_0)
    frequencies = Weight(CORE, WeightKind.VECTOR, F32, (1, 4), np.full(4, 0.5, np.float32).data)
    with record() as recorded:
        x = graph.embed(table)
        x = graph.rope(x, graph.rope_table(frequencies, 1.0), 0, 2, 32, True)
        out = graph.linear(x, [w], [None])
    kinds = [op.kind for op in lower(fold_adds(recorded.nodes), [out])[0]]
    assert kinds.index(OpKind.QUANTIZE) == kinds.index(OpKind.ROPE) + 1


def test_adds_are_not_folded_where_the_summand_is_used_again(team):
    rng = np.random.default_rng(2)
    table = random_weight(team, rng, WeightKind.TABLE, (10, 64))
    norm = random_weight(team, rng, WeightKind.VECTOR, (1, 64))
    with record() as recorded:
        x = graph.embed(table)
        y = graph.rmsnorm(x, norm, 1e-5)
        z = x + y
        z + y
    kinds = [node.kind for node in fold_adds(recorded.nodes)]
    assert kinds == [OpKind.EMBED, OpKind.RMSNORM, OpKind.ADD, OpKind.ADD]


class Reference:
    """Evaluates random graphs in numpy beside recording them."""

    def __init__(self, team, rng, num_tokens):
        self.team, self.rng, self.num_tokens = team, rng, num_tokens

    def source(self):
        table = self.rng.standard_normal((self.num_tokens, HIDDEN)).astype(np.float32)
        weight = Weight(CORE, WeightKind.TABLE, F32, table.shape, table.data, self.team)
        return SimpleNamespace(value=graph.embed(weight), rows=table.astype(np.float64))

    def norm(self, x):
        gamma = self.rng.normal(1, 0.2, HIDDEN).astype(np.float32)
        weight = Weight(CORE, WeightKind.VECTOR, F32, (1, HIDDEN), gamma.data)
        scale = np.sqrt((x.rows**2).mean(axis=1, keepdims=True) + 1e-5)
        return SimpleNamespace(
            value=graph.rmsnorm(x.value, weight, 1e-5), rows=x.rows / scale * gamma
        )

    def linear(self, x, rows=HIDDEN):
        w = (self.rng.standard_normal((rows, HIDDEN)) / 8).astype(np.float32)
        weight = Weight(CORE, WeightKind.MATRIX, F32, w.shape, w.data, self.team)
        return SimpleNamespace(
            value=graph.linear(x.value, [weight], [None]), rows=x.rows @ w.T.astype(np.float64)
        )

    def mlp(self, x):
        wide = self.linear(x, 2 * HIDDEN)
        gate, up = wide.rows[:, :HIDDEN], wide.rows[:, HIDDEN:]
        return SimpleNamespace(value=graph.swiglu(wide.value), rows=gate / (1 + np.exp(-gate)) * up)

    def add(self, a, b):
        return SimpleNamespace(value=a.value + b.value, rows=a.rows + b.rows)


@pytest.mark.parametrize("seed", range(25))
def test_random_graphs(team, seed):
    """Fusion and shared memory change no value, whatever the graph."""
    rng = np.random.default_rng(seed)
    with record() as recorded:
        make = Reference(team, rng, num_tokens=5)
        values = [make.source(), make.source()]
        unused = list(values)
        for _ in range(14):
            x, y = (values[i] for i in rng.integers(len(values), size=2))
            kind = rng.integers(5)
            out = [make.norm, make.linear, make.mlp][kind](x) if kind < 3 else make.add(x, y)
            used = [x] if kind < 3 else [x, y]
            unused = [value for value in unused if not any(value is other for other in used)]
            values.append(out)
            unused.append(out)
        total = unused[0]
        for value in unused[1:]:
            total = make.add(total, value)
    output = total.value
    ops, [last] = lower(fold_adds(recorded.nodes), [output])
    plan_slots(ops, [last])
    check_slots(ops, last)
    with closing(
        compile_graph(recorded, output, team, None, max_tokens=5, max_logits=5)
    ) as program:
        program.run(whole_batch(range(5)))
        got = float_rows(program.output_address(), 5, HIDDEN)
    np.testing.assert_allclose(got, total.rows, atol=2e-5 * np.abs(total.rows).max())


def test_recording_is_over_after_the_block():
    with record():
        pass
    with pytest.raises(LookupError):
        graph.current()
