"""convert, against the weights it was given and the names of the gguf package."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from checkpoint_files import change_config, fresh, parse_safetensors, read, replace_tensor

from rillm.gguf import GGMLType, GGUFReader
from rillm.prepare import convert as convert_module
from rillm.prepare.convert import convert
from rillm.prepare.model_card import size_label
from rillm.prepare.quantize import quantize
from rillm.tokenizer import Tokenizer

sys.path.append(str(Path(__file__).parent / "golden"))
from checkpoints import CASES, VOCAB_SIZE, weights, write_checkpoint

FORMS = [(name, form) for name, case in CASES.items() for form in case.forms]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """A function that writes a case once and gives its folder; do not change the files."""
    folder = tmp_path_factory.mktemp("checkpoints")

    def write(name, form="hf"):
        path = folder / f"{name}-{form}"
        return path if path.exists() else write_checkpoint(CASES[name], path, form)

    return write


def gguf_name(gguf, architecture, num_layers, name):
    """The name that llama.cpp's own table gives to a tensor of a checkpoint."""
    arch = next(key for key, value in gguf.MODEL_ARCH_NAMES.items() if value == architecture)
    table = gguf.get_tensor_name_map(arch, num_layers)
    found = table.get_name(name.removeprefix("transformer."), (".weight", ".bias"))
    return found or table.get_name(name, (".weight", ".bias"))


def split_rows(case, fused):
    rows = case.num_heads * case.head_dim, case.num_kv_heads * case.head_dim
    return np.split(fused, np.cumsum((rows[0], rows[1])))


@pytest.mark.parametrize(("name", "form"), FORMS)
def test_values_and_names(checkpoints, tmp_path, name, form):
    gguf = pytest.importorskip("gguf")
    case = CASES[name]
    result = convert(checkpoints(name, form), tmp_path / "out.gguf", out_type="f32")
    metadata, arrays, types = read(tmp_path / "out.gguf")
    assert set(types.values()) == {GGMLType.F32}
    architecture = metadata["general.architecture"]
    assert result.architecture == architecture
    assert result.num_tensors == len(arrays)
    assert result.num_weights == sum(array.size for array in arrays.values())
    expected = {
        gguf_name(gguf, architecture, case.num_layers, source): array
        for source, array in weights(case).items()
    }
    assert None not in expected
    if form == "chatglm":
        for layer in range(case.num_layers):
            for part in ("weight", "bias"):
                parts = split_rows(case, arrays.pop(f"blk.{layer}.attn_qkv.{part}"))
                for letter, array in zip("qkv", parts, strict=True):
                    arrays[f"blk.{layer}.attn_{letter}.{part}"] = array
    assert set(arrays) == set(expected)
    for tensor, array in expected.items():
        if architecture == "llama" and tensor.endswith(("attn_q.weight", "attn_k.weight")):
            # Rows 2i, 2i + 1 of a head here are its rows i, i + head_dim / 2 there.
            heads = arrays[tensor].reshape(-1, case.head_dim, array.shape[1])
            halves = array.reshape(-1, case.head_dim, array.shape[1])
            np.testing.assert_array_equal(heads[:, 0::2], halves[:, : case.head_dim // 2])
            np.testing.assert_array_equal(heads[:, 1::2], halves[:, case.head_dim // 2 :])
        else:
            np.testing.assert_array_equal(arrays[tensor], array)


@pytest.mark.parametrize(("name", "form"), FORMS)
def test_metadata(checkpoints, tmp_path, name, form):
    case = CASES[name]
    convert(checkpoints(name, form), tmp_path / "out.gguf")
    metadata, _, types = read(tmp_path / "out.gguf")
    arch = {"GlmForCausalLM": "chatglm", "Glm4ForCausalLM": "glm4", "LlamaForCausalLM": "llama"}
    prefix = arch[case.architecture]
    assert metadata["general.architecture"] == prefix
    expected = {
        "block_count": case.num_layers,
        "context_length": 2048,
        "embedding_length": case.hidden_size,
        "feed_forward_length": case.ffn_size,
        "attention.head_count": case.num_heads,
        "attention.head_count_kv": case.num_kv_heads,
        "rope.dimension_count": case.rotary_dim,
    }
    for key, value in expected.items():
        assert metadata[f"{prefix}.{key}"] == value
    for key in ("key_length", "value_length"):
        width = metadata.get(f"{prefix}.attention.{key}", case.hidden_size // case.num_heads)
        assert width == case.head_dim
    # The two that other converters get wrong for GlmForCausalLM.
    assert metadata[f"{prefix}.rope.freq_base"] == np.float32(case.rope_base)
    assert metadata[f"{prefix}.attention.layer_norm_rms_epsilon"] == np.float32(case.eps)
    assert metadata["general.file_type"] == 1
    assert metadata["general.quantization_version"] == 2
    assert len(metadata["tokenizer.ggml.tokens"]) == VOCAB_SIZE
    matrices = {name for name, type_ in types.items() if type_ is GGMLType.F16}
    assert matrices == {name for name in types if name.endswith(".weight") and "norm" not in name}


def test_rotation_of_neighbours_equals_rotation_of_halves(checkpoints, tmp_path):
    """The reason for the reordered rows: q.k after GGUF's rotation is q.k after Hugging Face's."""
    case = CASES["llama_smollm"]
    convert(checkpoints("llama_smollm"), tmp_path / "out.gguf", out_type="f32")
    _, arrays, _ = read(tmp_path / "out.gguf")
    original = weights(case)
    x = np.random.default_rng(3).standard_normal((2, case.hidden_size))
    half = case.head_dim // 2
    frequencies = case.rope_base ** (-np.arange(half) / half)

    def scores(q_weight, k_weight, pairs):
        rotated = []
        for weight, position, row in ((q_weight, 7, x[0]), (k_weight, 3, x[1])):
            heads = (weight.astype(np.float64) @ row).reshape(-1, case.head_dim)
            a, b = (heads[:, 0::2], heads[:, 1::2]) if pairs else (heads[:, :half], heads[:, half:])
            cos, sin = np.cos(position * frequencies), np.sin(position * frequencies)
            rotated.append(np.stack([a * cos - b * sin, a * sin + b * cos]))
        q, k = rotated
        groups = q.reshape(2, case.num_kv_heads, -1, half)
        return np.einsum("chgd,chd->hg", groups, k)

    ours = scores(arrays["blk.1.attn_q.weight"], arrays["blk.1.attn_k.weight"], True)
    at = "model.layers.1.self_attn."
    theirs = scores(original[f"{at}q_proj.weight"], original[f"{at}k_proj.weight"], False)
    np.testing.assert_allclose(ours, theirs, rtol=1e-9)


@pytest.mark.parametrize(("out_type", "file_type"), [("f16", 1), ("bf16", 32), ("F32", 0)])
@pytest.mark.parametrize("dtype", ["<f4", "<f8"])
def test_rounding_is_to_the_nearest_even(tmp_path, out_type, file_type, dtype):
    folder = fresh(tmp_path)
    random = np.random.default_rng(5)
    values = random.standard_normal((VOCAB_SIZE, 384)) * 2.0 ** random.integers(-30, 12, (384, 384))
    values[0, :4] = [65504.0, 1.0 + 2.0**-8, 1.0 + 3 * 2.0**-9, -(2.0**-24)]  # ties, subnormals
    values = values.astype(dtype)
    replace_tensor(folder, "model.embed_tokens.weight", values)
    convert(folder, tmp_path / "out.gguf", out_type=out_type)
    metadata, arrays, types = read(tmp_path / "out.gguf")
    assert metadata["general.file_type"] == file_type
    assert types["token_embd.weight"] is GGMLType[out_type.upper()]
    expected = values.astype("<f4")
    if out_type == "f16":
        expected = expected.astype("<f2")
    if out_type == "bf16":
        torch_like = pytest.importorskip("gguf").quants
        bits = torch_like.quantize(expected, torch_like.GGMLQuantizationType.BF16).view("<u2")
        expected = (bits.reshape(expected.shape).astype("<u4") << 16).view("<f4")
    np.testing.assert_array_equal(arrays["token_embd.weight"], expected.astype("<f4"))


@pytest.mark.parametrize(
    ("name", "expected"), [("glm_9b", "BF16"), ("glm_1m", "F16"), ("glm_chatglm3", "F16")]
)
def test_auto_keeps_the_16_bit_type(checkpoints, tmp_path, name, expected):
    assert convert(checkpoints(name), tmp_path / "out.gguf", out_type="auto").type.name == expected


@pytest.mark.parametrize("name", ["glm_edge_4kv", "llama_smollm"])
def test_q8_0_equals_quantising_the_float32_file(checkpoints, tmp_path, name):
    convert(checkpoints(name), tmp_path / "q8.gguf", out_type="q8_0")
    convert(checkpoints(name), tmp_path / "f32.gguf", out_type="f32")
    quantize(tmp_path / "f32.gguf", tmp_path / "quantized.gguf", "Q8_0")
    with GGUFReader(tmp_path / "q8.gguf") as ours, GGUFReader(tmp_path / "quantized.gguf") as other:
        assert ours.metadata == other.metadata
        assert set(ours.tensors) == set(other.tensors)
        for tensor, info in ours.tensors.items():
            assert info.type is other.tensors[tensor].type
            assert info.type is (GGMLType.F32 if "norm" in tensor else GGMLType.Q8_0)
            assert bytes(info.data) == bytes(other.tensors[tensor].data)


def test_the_same_model_in_two_forms_has_the_same_vocabulary(checkpoints, tmp_path):
    readings = []
    for form in ("hf", "chatglm"):
        convert(checkpoints("glm_9b", form), tmp_path / f"{form}.gguf")
        readings.append(read(tmp_path / f"{form}.gguf")[0])
    texts = ["The model reads 你好，今天天气很好。 one  two\n\n3456", "<|user|> is text", ""]
    first, second = (Tokenizer.from_gguf(metadata) for metadata in readings)
    for text in texts:
        assert first.encode(text) == second.encode(text)
        assert first.decode(first.encode(text)) == text
    for metadata in readings:
        tokens = metadata["tokenizer.ggml.tokens"]
        names = {
            key: tokens[metadata[f"tokenizer.ggml.{key}_token_id"]]
            for key in ("bos", "eos", "eot", "eom", "unknown", "padding")
        }
        assert names.pop("eot") == "<|user|>"
        assert names.pop("eom") == "<|observation|>"
        assert set(names.values()) == {"<|endoftext|>"}
        assert metadata["tokenizer.ggml.add_bos_token"] is False
        assert metadata["tokenizer.ggml.pre"] == "chatglm-bpe"
        assert tokens[370:] == [f"[PAD{i}]" for i in range(370, VOCAB_SIZE)]


@pytest.mark.parametrize("name", ["glm4_9b", "llama_3", "llama_smollm"])
def test_tokenizer_json_gives_the_ids_of_the_tokenizers_library(checkpoints, tmp_path, name):
    tokenizers = pytest.importorskip("tokenizers")
    folder = checkpoints(name)
    convert(folder, tmp_path / "out.gguf")
    metadata = read(tmp_path / "out.gguf")[0]
    reference = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    ours = Tokenizer.from_gguf(metadata)
    texts = ("Hello, how are you?", "今天是好天气。 2024 10", "  tabs\t\n and lines\n\n", "I'll")
    for text in texts:
        assert ours.encode(text) == reference.encode(text, add_special_tokens=False).ids
    pre = {"glm4_9b": "glm4", "llama_3": "llama-bpe", "llama_smollm": "smollm"}
    assert metadata["tokenizer.ggml.pre"] == pre[name]
    if name != "glm4_9b":
        settings = json.loads((folder / "tokenizer_config.json").read_text())
        tokens = metadata["tokenizer.ggml.tokens"]
        for key in ("bos", "eos"):
            token_id = metadata[f"tokenizer.ggml.{key}_token_id"]
            assert tokens[token_id] == settings[f"{key}_token"]
            assert metadata["tokenizer.ggml.token_type"][token_id] == 3


def test_llama3_rope_factors(tmp_path):
    folder = fresh(tmp_path, "llama_3")
    change_config(
        folder,
        rope_parameters={
            "rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
        },
    )  # fmt: skip
    convert(folder, tmp_path / "out.gguf")
    _, arrays, types = read(tmp_path / "out.gguf")
    factors = arrays["rope_freqs.weight"]
    assert types["rope_freqs.weight"] is GGMLType.F32
    wavelengths = 2 * math.pi * 5e5 ** (np.arange(64) / 64)
    assert (factors[wavelengths < 8192 / 4] == 1).all()
    assert (factors[wavelengths > 8192] == 8).all()
    between = (wavelengths > 8192 / 4) & (wavelengths < 8192)
    smooth = (8192 / wavelengths[between] - 1) / 3
    np.testing.assert_allclose(factors[between], 1 / ((1 - smooth) / 8 + smooth), rtol=1e-6)
    assert between.sum() >= 3


@pytest.mark.parametrize("old_form", [True, False])
def test_yarn(tmp_path, old_form):
    folder = fresh(tmp_path)
    yarn = {"factor": 4.0, "original_max_position_embeddings": 512, "beta_fast": 16}
    if old_form:
        change_config(
            folder, rope_parameters=None, rope_theta=20000.0, partial_rotary_factor=0.5,
            rope_scaling=yarn | {"type": "yarn"},
        )  # fmt: skip
    else:
        rope = {"rope_type": "yarn", "rope_theta": 20000.0, "partial_rotary_factor": 0.5}
        change_config(folder, rope_parameters=yarn | rope)
    convert(folder, tmp_path / "out.gguf")
    metadata = read(tmp_path / "out.gguf")[0]
    rope_keys = {key: value for key, value in metadata.items() if ".rope." in key}
    assert rope_keys == {
        "chatglm.rope.dimension_count": 16,
        "chatglm.rope.freq_base": 20000.0,
        "chatglm.rope.scaling.type": "yarn",
        "chatglm.rope.scaling.factor": 4.0,
        "chatglm.rope.scaling.original_context_length": 512,
        "chatglm.rope.scaling.yarn_beta_fast": 16.0,
    }


def test_model_card(tmp_path):
    folder = fresh(tmp_path)
    (folder / "README.md").write_text(
        "---\nlicense: other\nlicense_name: glm-4\nlanguage:\n- zh\n  - 'en'\ntags: [glm, chat]\n"
        "widget:\n- text: hi\n---\n# GLM\nlicense: mit\n"
    )
    convert(folder, tmp_path / "out.gguf")
    metadata = read(tmp_path / "out.gguf")[0]
    assert metadata["general.name"] == "Checkpoint"
    assert metadata["general.license"] == "other"
    assert metadata["general.license.name"] == "glm-4"
    assert metadata["general.languages"] == ["zh", "en"]
    assert metadata["general.tags"] == ["glm", "chat"]
    assert metadata["general.size_label"] == "3.1M"
    assert [size_label(n) for n in (9_400_000_000, 32_566_000_000, 134_515_008, 900)] == [
        "9.4B", "33B", "135M", "0.9K",
    ]  # fmt: skip


def test_an_interrupted_conversion_keeps_the_previous_file(checkpoints, tmp_path):
    out = tmp_path / "model.gguf"
    out.write_text("previous")
    seen = []

    def interrupt(done, total):
        seen.append((done, total))
        if done > total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(checkpoints("glm_edge_4kv"), out, progress=interrupt)
    assert out.read_text() == "previous"
    assert sorted(os.listdir(tmp_path)) == [".model.gguf.partial", "model.gguf"]
    convert(
        checkpoints("glm_edge_4kv"), out, progress=lambda done, total: seen.append((done, total))
    )
    assert seen[-1][0] == seen[-1][1]
    assert read(out)[0]["general.architecture"] == "chatglm"


def test_memory_stays_small(tmp_path):
    """An embedding of 130 MB is converted with less than 90 MB more than the interpreter has."""
    folder = fresh(tmp_path)
    header, data = parse_safetensors((folder / "model.safetensors").read_bytes())
    change_config(folder, vocab_size=170_000)
    rows = np.random.default_rng(1).integers(0, 0x3F80, (2000, 384), "<u2").tobytes()
    header["model.embed_tokens.weight"] = {
        "dtype": "BF16",
        "shape": [170_000, 384],
        "data_offsets": [len(data), len(data) + 85 * len(rows)],
    }
    with (folder / "model.safetensors").open("wb") as file:
        text = json.dumps(header).encode()
        file.write(len(text).to_bytes(8, "little") + text + data)
        for _ in range(85):
            file.write(rows)
    script = (
        "import sys\n"
        "from rillm.prepare.convert import convert\n"
        "def peak():\n"
        "    for line in open('/proc/self/status'):\n"
        "        if line.startswith('VmHWM'):  # ru_maxrss would start with the parent's\n"
        "            return int(line.split()[1])\n"
        "before = peak()\n"
        "convert(sys.argv[1], sys.argv[2], num_threads=2)\n"
        "print(peak() - before)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", script, str(folder), str(tmp_path / "out.gguf")],
        check=True, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": source_path()},
    )  # fmt: skip
    assert (tmp_path / "out.gguf").stat().st_size > 130e6
    assert int(result.stdout) < 90 * 1024  # KiB


def source_path():
    folder = str(Path(convert_module.__file__).parents[2])
    return os.pathsep.join([folder, os.environ.get("PYTHONPATH", "")])
