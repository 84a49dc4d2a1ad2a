"""What convert refuses: one line that names the file or tensor, and nothing left behind."""

from __future__ import annotations

import os

import numpy as np
import pytest
from checkpoint_files import (
    change_config,
    fresh,
    parse_safetensors,
    read,
    replace_tensor,
    write_safetensors,
)

from rillm.prepare.convert import convert
from rillm.prepare.errors import PrepareError
from rillm.prepare.floats import is_finite


def refused(folder, tmp_path, match, **options):
    """convert fails with one line that matches, and leaves nothing behind."""
    out = tmp_path / "out"
    out.mkdir(exist_ok=True)
    with pytest.raises(PrepareError, match=match) as caught:
        convert(folder, out / "model.gguf", **options)
    assert "\n" not in str(caught.value)
    assert list(out.iterdir()) == []


def test_finite_is_what_numpy_says_of_every_16_bit_number():
    bits = np.arange(1 << 16, dtype="<u4")
    f16, bf16 = bits.astype("<u2").view("<f2"), bits.astype("<u2")
    expected = {f16.dtype: np.isfinite(f16), bf16.dtype: np.isfinite((bits << 16).view("<f4"))}
    for values in (f16, bf16):
        found = [is_finite(values[i : i + 1]) for i in range(len(values))]
        assert found == expected[values.dtype].tolist()
        assert is_finite(values[expected[values.dtype]])
        assert not is_finite(values)


@pytest.mark.parametrize("bits", [0x7FC0, 0xFF80, 0x7F80])  # NaN, -inf, inf
def test_not_finite_bf16(tmp_path, bits):
    folder = fresh(tmp_path)
    values = np.full((384, 512), 0x3F80, "<u2")
    values[383, 511] = bits
    replace_tensor(folder, "model.layers.2.mlp.down_proj.weight", values)
    for out_type in ("f16", "bf16"):
        refused(folder, tmp_path, r"model\.safetensors: blk\.2\.ffn_down\.weight holds NaN or inf",
                out_type=out_type)  # fmt: skip


def test_not_finite_in_a_norm(tmp_path):
    folder = fresh(tmp_path)
    values = np.ones(384, "<f4")
    values[7] = np.nan
    replace_tensor(folder, "model.norm.weight", values)
    refused(folder, tmp_path, r"output_norm\.weight holds NaN")


def test_beyond_float16(tmp_path):
    folder = fresh(tmp_path)
    values = np.full((384, 512), 7e4, "<f4")
    replace_tensor(folder, "model.layers.2.mlp.down_proj.weight", values)
    refused(folder, tmp_path, r"blk\.2\.ffn_down\.weight has values beyond the range of F16; "
            "convert to bf16")  # fmt: skip
    convert(folder, tmp_path / "out.gguf", out_type="bf16")


def test_missing_unexpected_and_misshapen_tensors(tmp_path):
    folder = fresh(tmp_path)
    name = "model.layers.1.self_attn.k_proj.weight"
    replace_tensor(folder, name, None)
    refused(folder, tmp_path, rf"tensor {name} is missing; a shard is incomplete")
    replace_tensor(folder, name, np.ones((384, 128), "<f4"))
    refused(folder, tmp_path, rf"safetensors: {name} has shape \[384, 128\], but config.json makes "
            r"it \[128, 384\]")  # fmt: skip
    replace_tensor(folder, name, np.ones((128, 384), "|u1"))
    refused(folder, tmp_path, rf"{name} is F8_E4M3; only F32, F16 and BF16")
    replace_tensor(folder, name, np.ones((128, 384), "<f2"))
    replace_tensor(folder, "model.layers.1.self_attn.k_norm.weight", np.ones(32, "<f4"))
    refused(folder, tmp_path, r"tensor model\.layers\.1\.self_attn\.k_norm\.weight has no place")
    replace_tensor(folder, "model.layers.1.self_attn.k_norm.weight", None)
    # A tied head and rotary frequencies may be there; they have no place in a GGUF file.
    replace_tensor(folder, "lm_head.weight", np.ones((384, 384), "<f2"))
    replace_tensor(folder, "model.layers.0.self_attn.rotary_emb.inv_freq", np.ones(16, "<f4"))
    convert(folder, tmp_path / "out.gguf")
    assert "output.weight" not in read(tmp_path / "out.gguf")[1]


def test_shards(tmp_path):
    folder = fresh(tmp_path, "glm_9b")
    shard = folder / "model-00002-of-00002.safetensors"
    whole = shard.read_bytes()
    shard.unlink()
    refused(folder, tmp_path, r"model-00002-of-00002\.safetensors is missing \(1 of 2 shards\)")
    shard.write_bytes(whole[:-10])
    refused(folder, tmp_path, r"00002\.safetensors: \S+ lies outside the file; fetch the file")
    shard.write_bytes(whole[:5])
    refused(folder, tmp_path, r"00002\.safetensors: not a safetensors file, or cut short")
    shard.write_bytes((1 << 62).to_bytes(8, "little") + whole[8:])
    refused(folder, tmp_path, r"00002\.safetensors: not a safetensors file, or cut short")
    shard.write_bytes(whole[:8] + b"}" + whole[9:])
    refused(folder, tmp_path, r"00002\.safetensors: its header is not JSON")
    header, data = parse_safetensors(whole)
    entry = header[next(name for name in header if name != "__metadata__")]
    for change in ({"shape": [1]}, {"data_offsets": [4]}, {"shape": "x"}, {"data_offsets": [9, 1]}):
        saved = dict(entry)
        entry.update(change)
        write_safetensors(shard, header, data)
        refused(folder, tmp_path, r"00002\.safetensors: .*; fetch the file again")
        entry.update(saved)
    (folder / "model.safetensors.index.json").unlink()
    first = (folder / "model-00001-of-00002.safetensors").read_bytes()
    shard.write_bytes(whole)
    (folder / "stale.safetensors").write_bytes(first)
    refused(folder, tmp_path, r"stale\.safetensors: \S+ is also in model-00001-of-00002\.")


def test_pickles_are_refused(tmp_path):
    folder = fresh(tmp_path)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    refused(folder, tmp_path, r"pytorch_model\.bin is a pickle, which can run any code")
    (folder / "pytorch_model.bin").unlink()
    refused(folder, tmp_path, r"no \*\.safetensors files")


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"architectures": ["MambaForCausalLM"]}, r"'MambaForCausalLM' is not supported; .*Glm4"),
        ({"architectures": None}, "architecture None is not supported"),
        ({"hidden_size": None}, "hidden_size must be a positive integer, not None"),
        ({"num_hidden_layers": 0}, "num_hidden_layers must be a positive integer, not 0"),
        ({"num_hidden_layers": 4}, r"tensor model\.layers\.3\.\S+ \(and 7 more\) is missing"),
        ({"num_hidden_layers": 2}, r"tensor model\.layers\.2\.\S+ \(and 7 more\) has no place"),
        ({"rms_norm_eps": "small"}, "rms_norm_eps must be a number, not 'small'"),
        ({"rms_norm_eps": -1e-5}, "rms_norm_eps must be positive and finite"),
        ({"attention_bias": True}, r"q_proj\.bias \(and 8 more\) is missing"),
        ({"attention_bias": 1}, "attention_bias must be true or false, not 1"),
        ({"hidden_act": "gelu"}, r"hidden_act = 'gelu' is not supported, only 'silu'"),
        ({"rope_parameters": {"rope_type": "dynamic"}}, "rope scaling 'dynamic' is not supported"),
        ({"rope_parameters": {"partial_rotary_factor": 1.5}}, "48 rotary dims of 32"),
        ({"quantization_config": {"quant_method": "gptq"}}, "the checkpoint is quantised"),
        ({"vocab_size": 100}, r"token id 369, but config\.json's vocabulary has 100|has shape"),
    ],
)
def test_config_faults(tmp_path, changes, match):
    folder = fresh(tmp_path)
    change_config(folder, **changes)
    refused(folder, tmp_path, match)


def test_chatglm_variants_that_gguf_cannot_express(tmp_path):
    folder = fresh(tmp_path, "glm_9b", "chatglm")
    for key, value in (("rmsnorm", False), ("add_bias_linear", True), ("post_layer_norm", False)):
        change_config(folder, **{key: value})
        refused(folder, tmp_path, rf"config\.json: {key} = {value} is not supported")
        change_config(folder, **{key: not value})


def test_files_that_are_missing_or_no_json(tmp_path):
    folder = fresh(tmp_path)
    (folder / "tokenizer.json").rename(folder / "kept")
    refused(folder, tmp_path, r"neither tokenizer\.json nor tokenizer\.model")
    (folder / "tokenizer.json").write_text("{")
    refused(folder, tmp_path, r"tokenizer\.json: not valid JSON")
    (folder / "config.json").write_text("[]")
    refused(folder, tmp_path, r"config\.json: expected a JSON object")
    (folder / "config.json").unlink()
    refused(folder, tmp_path, r"config\.json is missing; is this a whole")
    refused(folder / "nowhere", tmp_path, "no such folder; give a checkpoint's directory")


def test_output_faults(tmp_path, monkeypatch):
    folder = fresh(tmp_path)
    refused(folder, tmp_path, "unknown output type 'q4_k'; use one of auto, f32", out_type="q4_k")
    with pytest.raises(PrepareError, match="no such folder; make it or give another"):
        convert(folder, tmp_path / "nowhere" / "x.gguf")
    usage = os.statvfs(tmp_path)
    free = type("Usage", (), {"free": 1 << 20, "total": usage.f_blocks})
    monkeypatch.setattr("shutil.disk_usage", lambda _: free)
    refused(folder, tmp_path, r"needs 6\.2 MB, but only 1\.0 MB are free")
