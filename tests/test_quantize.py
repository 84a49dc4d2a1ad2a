"""quantize: what is written, that it does not depend on chunks or threads, and what is refused."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from rillm.core import load_core
from rillm.gguf import GGMLType, GGUFReader, GGUFWriter, Typed, ValueType
from rillm.prepare import quantize as quantize_module
from rillm.prepare import streaming
from rillm.prepare.errors import PrepareError
from rillm.prepare.mixes import MIXES
from rillm.prepare.quantize import plan_quantize, quantize

HIDDEN, FFN, VOCAB, LAYERS = 512, 544, 777, 4  # 544 = 17 x 32: ffn_down falls back
METADATA = {
    "general.architecture": "glm4",
    "general.name": "Tëst",
    "general.file_type": 1,
    "glm4.block_count": LAYERS,
    "glm4.attention.head_count": 8,
    "glm4.attention.head_count_kv": 2,
    "glm4.rope.freq_base": 1e4,
    "test.int64": Typed(ValueType.INT64, -5),
    "test.float64": Typed(ValueType.FLOAT64, 0.1),
    "test.bytes": Typed(ValueType.UINT8, [1, 2, 255]),
    "tokenizer.ggml.tokens": ["a", "你"],
}


def shapes():
    result = {"token_embd.weight": (VOCAB, HIDDEN), "output.weight": (VOCAB, HIDDEN)}
    for layer in range(LAYERS):
        at = f"blk.{layer}."
        result |= {
            f"{at}attn_norm.weight": (HIDDEN,),
            f"{at}attn_q.weight": (HIDDEN, HIDDEN),
            f"{at}attn_q.bias": (HIDDEN,),
            f"{at}attn_v.weight": (128, HIDDEN),
            f"{at}attn_output.weight": (HIDDEN, HIDDEN),
            f"{at}ffn_up.weight": (2 * FFN, HIDDEN),
            f"{at}ffn_down.weight": (HIDDEN, FFN),
        }
    return result | {"output_norm.weight": (HIDDEN,)}


def make_weights(seed=0):
    """Heavy-tailed rows of very different sizes, as trained weights have."""
    random = np.random.default_rng(seed)
    return {
        name: (random.standard_t(6, shape) * 0.02 * random.lognormal(0, 1, (*shape[:-1], 1)))
        .astype("<f2").astype("<f4")
        for name, shape in shapes().items()
    }  # fmt: skip


def encode(array, type_):
    if type_ is GGMLType.BF16:
        return (array.view("<u4") >> 16).astype("<u2")
    return array.astype("<f2" if type_ is GGMLType.F16 else "<f4")


def write_gguf(path, arrays, type_=GGMLType.F16, metadata=METADATA):
    types = {name: type_ if array.ndim > 1 else GGMLType.F32 for name, array in arrays.items()}
    with GGUFWriter(path, metadata) as writer:
        for name, array in arrays.items():
            writer.declare(name, array.shape, types[name])
        for name, array in arrays.items():
            writer.write(name, [encode(array, types[name]).tobytes()])
    return path


def read_gguf(path):
    """name -> (type, float32 array) of a GGUF file."""
    core, result = load_core(), {}
    with GGUFReader(path) as reader:
        for name, info in reader.tensors.items():
            array = np.empty(info.shape, np.float32)
            core.dequantize(info.type, info.data, array.data)
            result[name] = (info.type, array)
    return result


@pytest.fixture(scope="module")
def arrays():
    return make_weights()


@pytest.fixture(scope="module")
def source(arrays, tmp_path_factory):
    return write_gguf(tmp_path_factory.mktemp("source") / "f16.gguf", arrays)


# Root-mean-square error over the deviation of a row, as the number of bits allows.
MAX_ERROR = {
    "F32": 0, "F16": 0, "BF16": 2e-3, "Q8_0": 0.01, "Q6_K": 0.03, "Q5_K": 0.06, "Q5_1": 0.06,
    "Q5_0": 0.07, "Q4_K": 0.11, "Q4_1": 0.12, "Q4_0": 0.14, "IQ4_NL": 0.12, "IQ4_XS": 0.12,
    "Q3_K": 0.23, "Q2_K": 0.42,
}  # fmt: skip


@pytest.mark.parametrize("mix", MIXES)
def test_every_mix(source, arrays, tmp_path, mix):
    result = quantize(source, tmp_path / "out.gguf", mix.lower(), num_threads=2)
    written = read_gguf(result.path)
    assert list(written) == [tensor.name for tensor in result.plan.tensors]
    assert {name: type_ for name, (type_, _) in written.items()} == {
        tensor.name: tensor.type for tensor in result.plan.tensors
    }
    assert result.file_size == os.path.getsize(result.path)
    for name, (type_, array) in written.items():
        if array.ndim == 1:
            assert type_ is GGMLType.F32
            np.testing.assert_array_equal(array, arrays[name])
            continue
        error = np.sqrt(np.mean((array - arrays[name]) ** 2, axis=1)) / arrays[name].std(axis=1)
        assert error.mean() <= MAX_ERROR[type_.name], (name, type_)
    with GGUFReader(result.path) as reader:
        assert reader.metadata["general.file_type"] == MIXES[mix].file_type


def test_blocks_are_what_the_gguf_package_reads(source, tmp_path):
    gguf = pytest.importorskip("gguf")
    quantize(source, tmp_path / "out.gguf", "Q4_K_M", num_threads=1)
    ours = read_gguf(tmp_path / "out.gguf")
    for tensor in gguf.GGUFReader(tmp_path / "out.gguf").tensors:
        theirs = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        np.testing.assert_array_equal(theirs.reshape(ours[tensor.name][1].shape),
                                      ours[tensor.name][1])  # fmt: skip


def test_metadata_is_copied_with_its_types(source, tmp_path):
    quantize(source, tmp_path / "out.gguf", "Q6_K")
    with GGUFReader(source) as old, GGUFReader(tmp_path / "out.gguf") as new:
        changed = {"general.file_type": 18, "general.quantization_version": 2}
        assert dict(new.metadata) == dict(old.metadata) | changed
        for key, type_ in old.value_types.items():
            assert new.value_types[key] is type_
        assert new.value_types["general.quantization_version"] is ValueType.UINT32
        assert new.metadata["test.float64"] == 0.1


@pytest.mark.parametrize("type_", [GGMLType.F32, GGMLType.BF16])
def test_the_type_of_the_source_does_not_matter(source, tmp_path, type_):
    arrays = {  # exact in all three
        name: (array.view("<u4") & 0xFFFF0000).view("<f4") for name, array in make_weights().items()
    }
    first = write_gguf(tmp_path / "f16.gguf", arrays)
    second = write_gguf(tmp_path / "other.gguf", arrays, type_)
    exact = all((encode(a, GGMLType.F16).astype("<f4") == a).all() for a in arrays.values())
    assert exact
    quantize(first, tmp_path / "a.gguf", "Q5_K_M")
    quantize(second, tmp_path / "b.gguf", "Q5_K_M")
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()


def test_chunks_and_threads_do_not_change_a_bit(source, tmp_path, monkeypatch):
    quantize(source, tmp_path / "a.gguf", "Q4_K_M", num_threads=1)
    for weights, threads in ((HIDDEN, 3), (7 * HIDDEN + 5, 2), (1, 1)):
        monkeypatch.setattr(streaming, "CHUNK_WEIGHTS", weights)
        quantize(source, tmp_path / "b.gguf", "Q4_K_M", num_threads=threads)
        assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()


def test_dry_run_equals_the_run(source, tmp_path):
    options = {"tensor_types": [(r"blk\.[01]\..*_v", "q8_0")], "leave_output_tensor": True}
    plan = plan_quantize(source, "Q3_K_L", **options)
    assert quantize(source, tmp_path / "out.gguf", "Q3_K_L", **options).plan == plan
    with GGUFReader(tmp_path / "out.gguf") as reader:
        sizes = {name: info.nbytes for name, info in reader.tensors.items()}
        assert sizes == {tensor.name: tensor.num_bytes for tensor in plan.tensors}
        assert reader.tensors["output.weight"].type is GGMLType.F16
        assert reader.tensors["blk.1.attn_v.weight"].type is GGMLType.Q8_0
        assert reader.tensors["blk.2.attn_v.weight"].type is GGMLType.Q5_K
    num_weights = sum(np.prod(shape) for shape in shapes().values())
    assert plan.bits_per_weight == pytest.approx(8 * sum(sizes.values()) / num_weights)
    with GGUFReader(source) as reader:
        assert plan.source_bytes == sum(info.nbytes for info in reader.tensors.values())
    assert plan.fallbacks["blk.0.ffn_down.weight"] is GGMLType.Q5_K
    pure = plan_quantize(source, "Q4_K", pure=True)
    types = {tensor.type.name for tensor in pure.tensors if len(tensor.shape) > 1}
    assert types == {"Q4_K", "Q5_0"}


def test_importance_lowers_the_error_where_it_counts(source, arrays, tmp_path):
    random = np.random.default_rng(9)
    columns = random.lognormal(0, 2, HIDDEN).astype(np.float32)
    names = [name for name in arrays if name.endswith(("attn_q.weight", "ffn_up.weight"))]
    quantize(source, tmp_path / "plain.gguf", "Q2_K")
    quantize(source, tmp_path / "aware.gguf", "Q2_K", importance=dict.fromkeys(names, columns))
    plain, aware = read_gguf(tmp_path / "plain.gguf"), read_gguf(tmp_path / "aware.gguf")
    for name in names:
        errors = [
            float((columns * (file[name][1] - arrays[name]) ** 2).sum()) for file in (plain, aware)
        ]
        assert errors[1] < 0.9 * errors[0], name
    np.testing.assert_array_equal(
        plain["blk.0.attn_output.weight"][1], aware["blk.0.attn_output.weight"][1]
    )


def test_experts_have_their_own_importance(tmp_path):
    random = np.random.default_rng(4)
    name = "blk.0.ffn_up_exps.weight"
    stack = random.standard_normal((3, 10, 256)).astype("<f2").astype("<f4")
    importance = random.lognormal(0, 2, (3, 256)).astype(np.float32)
    facts = METADATA | {"glm4.expert_count": 3}
    write_gguf(tmp_path / "stack.gguf", {name: stack}, GGMLType.F32, facts)
    quantize(
        tmp_path / "stack.gguf", tmp_path / "out.gguf", "Q3_K_S", importance={name: importance}
    )
    together = read_gguf(tmp_path / "out.gguf")[name][1]
    for matrix in range(3):
        # Alone, under a name with the same rule.
        write_gguf(tmp_path / "one.gguf", {"blk.0.ffn_up.weight": stack[matrix]}, GGMLType.F32)
        quantize(
            tmp_path / "one.gguf", tmp_path / "alone.gguf", "Q3_K_S",
            importance={"blk.0.ffn_up.weight": importance[matrix]},
        )  # fmt: skip
        alone = read_gguf(tmp_path / "alone.gguf")["blk.0.ffn_up.weight"][1]
        np.testing.assert_array_equal(together[matrix], alone)


def test_requantizing_must_be_asked_for(source, arrays, tmp_path):
    quantize(source, tmp_path / "q8.gguf", "Q8_0")
    with pytest.raises(PrepareError, match=r"q8\.gguf: \S+ is Q8_0 already; start from an f16"):
        quantize(tmp_path / "q8.gguf", tmp_path / "q4.gguf", "Q4_0")
    quantize(tmp_path / "q8.gguf", tmp_path / "q4.gguf", "Q4_0", allow_requantize=True)
    array = read_gguf(tmp_path / "q4.gguf")["blk.1.attn_q.weight"][1]
    original = arrays["blk.1.attn_q.weight"]
    error = np.sqrt(np.mean((array - original) ** 2, axis=1)) / original.std(axis=1)
    assert error.mean() < MAX_ERROR["Q4_0"]
    # To the type it has: copied, not converted again.
    quantize(tmp_path / "q8.gguf", tmp_path / "again.gguf", "Q8_0")
    assert (tmp_path / "q8.gguf").read_bytes() == (tmp_path / "again.gguf").read_bytes()


def failure(source, tmp_path, match, type_name="Q4_K", **options):
    """quantize fails with one line that matches, and leaves nothing behind."""
    out = tmp_path / "out"
    out.mkdir(exist_ok=True)
    with pytest.raises(PrepareError, match=match) as caught:
        quantize(source, out / "model.gguf", type_name, **options)
    assert "\n" not in str(caught.value)
    assert list(out.iterdir()) == []


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["blk.3.ffn_down.weight", "output_norm.weight"])
def test_not_finite(arrays, tmp_path, name, value):
    damaged = dict(arrays)
    damaged[name] = damaged[name].copy()
    damaged[name].flat[-1] = value
    path = write_gguf(tmp_path / "damaged.gguf", damaged)
    for type_name in ("Q4_K", "F16", "BF16"):  # converted, and copied
        failure(path, tmp_path, rf"damaged\.gguf: {name} holds NaN or infinity", type_name)


def test_beyond_float16(tmp_path):
    arrays = {"blk.0.attn_q.weight": np.full((4, 48), 7e4, "<f4")}  # 48: no block fits
    path = write_gguf(tmp_path / "large.gguf", arrays, GGMLType.F32)
    failure(path, tmp_path, "has values beyond the range of F16")


def test_refusals(source, tmp_path):
    failure(source, tmp_path, "Q8_K is a format for activations .* use Q8_0", "Q8_K")
    failure(source, tmp_path, "unknown type 'Q9'; use one of", "Q9")
    name = "blk.0.attn_q.weight"
    failure(source, tmp_path, f"importance of {name}: 5 values for 512 columns",
            importance={name: np.ones(5)})  # fmt: skip
    failure(source, tmp_path, f"importance of {name}: a value is negative",
            importance={name: -np.ones(512)})  # fmt: skip
    with pytest.raises(PrepareError, match=r"f16\.gguf: is the input file"):
        quantize(source, source, "Q4_K")
    link = tmp_path / "link.gguf"
    link.symlink_to(source)
    with pytest.raises(PrepareError, match="is the input file"):
        quantize(source, link, "Q4_K")
    with pytest.raises(PrepareError, match="no such folder"):
        quantize(source, tmp_path / "nowhere" / "x.gguf", "Q4_K")
    other = write_gguf(tmp_path / "no_model.gguf", {}, metadata={"general.type": "imatrix"})
    failure(other, tmp_path, r"no_model\.gguf: no usable .*attention\.head_count; is it a model")


def test_interrupted(source, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "model.gguf").write_text("previous")
    seen = []

    def interrupt(done, total):
        seen.append(done)
        if done > total // 3:
            raise KeyboardInterrupt

    lines = []
    model = out / "model.gguf"
    with pytest.raises(KeyboardInterrupt):
        quantize(source, model, "Q4_0", progress=interrupt, report=lines.append)
    assert sorted(path.name for path in out.iterdir()) == [".model.gguf.partial", "model.gguf"]
    assert model.read_text() == "previous"
    assert seen == sorted(seen)
    assert seen[0] == 0
    assert lines.pop().endswith("are kept; the same command goes on")
    done = []
    result = quantize(
        source, model, "Q4_0", progress=lambda *at: done.append(at), report=lines.append
    )
    assert 0 < done[0][0] < done[-1][0]
    assert done[-1] == (result.plan.num_bytes, result.plan.num_bytes)
    assert "going on with an interrupted run" in lines.pop()
    quantize(source, tmp_path / "whole.gguf", "Q4_0", report=lines.append)
    assert model.read_bytes() == (tmp_path / "whole.gguf").read_bytes()
    assert not lines
    assert list(out.iterdir()) == [model]


@pytest.mark.parametrize("change", ["type", "input", "importance", "metadata"])
def test_interrupted_and_begun_anew(arrays, tmp_path, change):
    source = write_gguf(tmp_path / "f16.gguf", arrays)
    importance = {name: np.ones(array.shape[-1]) for name, array in arrays.items()}

    def interrupt(done, total):
        if done > total // 2:
            raise KeyboardInterrupt

    def run(**options):
        quantize(source, tmp_path / "model.gguf", importance=importance, **options)

    with pytest.raises(KeyboardInterrupt):
        run(type_name="Q4_0", progress=interrupt)
    kind = "Q4_1" if change == "type" else "Q4_0"
    if change == "input":
        write_gguf(source, make_weights(seed=1))
    elif change == "importance":
        importance["output.weight"][5] = 2
    elif change == "metadata":
        write_gguf(source, arrays, metadata=METADATA | {"general.name": "other"})
    lines, done = [], []
    run(type_name=kind, report=lines.append, progress=lambda *at: done.append(at[0]))
    assert "beginning anew" in lines.pop()
    assert done[0] == 0
    run(type_name=kind, report=lines.append)
    assert not lines


def test_split_input(arrays, tmp_path):
    names = list(arrays)
    parts = names[::2], names[1::2]
    for number, part in enumerate(parts):
        keys = {
            "split.no": Typed(ValueType.UINT16, number),
            "split.count": Typed(ValueType.UINT16, 2),
            "split.tensors.count": Typed(ValueType.INT32, len(names)),
        }
        metadata = (METADATA if number == 0 else {}) | keys
        write_gguf(tmp_path / f"m-0000{number + 1}-of-00002.gguf", {n: arrays[n] for n in part},
                   metadata=metadata)  # fmt: skip
    whole = write_gguf(tmp_path / "whole.gguf", arrays)
    quantize(tmp_path / "m-00001-of-00002.gguf", tmp_path / "a.gguf", "Q4_0")
    quantize(whole, tmp_path / "b.gguf", "Q4_0")
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()


def test_memory_stays_small(tmp_path):
    """A tensor of 160 MB is quantised with less than 90 MB more than the interpreter has."""
    rows = np.random.default_rng(1).standard_normal((2000, 2048)).astype("<f2").tobytes()
    with GGUFWriter(tmp_path / "large.gguf", METADATA) as writer:
        writer.declare("output.weight", (40_000, 2048), GGMLType.F16)
        writer.write("output.weight", [rows] * 20)
    script = (
        "import sys\n"
        "from rillm.core import load_core\n"
        "from rillm.prepare.quantize import quantize\n"
        "def peak():\n"
        "    for line in open('/proc/self/status'):\n"
        "        if line.startswith('VmHWM'):  # ru_maxrss would start with the parent's\n"
        "            return int(line.split()[1])\n"
        "load_core()\n"
        "before = peak()\n"
        "quantize(sys.argv[1], sys.argv[2], 'Q8_0', num_threads=2)\n"
        "print(peak() - before)\n"
    )
    folder = str(Path(quantize_module.__file__).parents[2])
    path = os.pathsep.join([folder, os.environ.get("PYTHONPATH", "")])
    result = subprocess.run(
        [sys.executable, "-c", script, tmp_path / "large.gguf", tmp_path / "out.gguf"],
        check=True, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": path},
    )  # fmt: skip
    assert int(result.stdout) < 90 * 1024  # KiB
