"""The mixes against what llama-quantize chose.

golden/llama_quantize_mixes.json was made with `llama-quantize --dry-run` (llama.cpp 0.7.0) on files
that declare the shapes under "shape" and hold no data. "types" has a run of types for each kind of
tensor, layer by layer; "MiB" is the size it printed. A key is a mix, then options.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from rillm.gguf import GGMLType
from rillm.prepare.errors import PrepareError
from rillm.prepare.mixes import ModelFacts, TypeOptions, assign_types, find_mix, find_type
from rillm.prepare.quantize import QuantizePlan, plan_tensors

GOLDEN = json.loads(
    (Path(__file__).parent / "golden" / "llama_quantize_mixes.json").read_text(encoding="utf-8")
)
CASES = [(model, key) for model, entry in GOLDEN.items() for key in entry["mixes"]]


def tensors_of(shape):
    """name -> (shape, type) of an f16 file of the model, in an order that is not the file's."""
    hidden, ffn, head_dim = shape["hidden"], shape["ffn"], shape["head_dim"]
    heads, kv_heads = shape["heads"], shape["kv_heads"]
    matrices = {"token_embd.weight": (shape["vocab"], hidden)}
    vectors = {"output_norm.weight": hidden}
    if not shape["tied"]:
        matrices["output.weight"] = (shape["vocab"], hidden)
    for layer in reversed(range(shape["num_layers"])):
        kv_rows = kv_heads * head_dim
        rows = {"attn_q": heads * head_dim, "attn_k": kv_rows, "attn_v": kv_rows}
        if shape["fused_qkv"]:
            rows = {"attn_qkv": sum(rows.values())}
        norms = ["attn_norm", "ffn_norm"]
        if shape["architecture"] == "glm4":
            norms += ["post_attention_norm", "post_ffw_norm"]
        for name in norms:
            vectors[f"blk.{layer}.{name}.weight"] = hidden
        for name, num_rows in rows.items():
            matrices[f"blk.{layer}.{name}.weight"] = (num_rows, hidden)
            if shape["qkv_bias"]:
                vectors[f"blk.{layer}.{name}.bias"] = num_rows
        matrices[f"blk.{layer}.attn_output.weight"] = (hidden, heads * head_dim)
        matrices[f"blk.{layer}.ffn_down.weight"] = (hidden, ffn)
        if shape["architecture"] == "llama":
            matrices[f"blk.{layer}.ffn_gate.weight"] = (ffn, hidden)
            matrices[f"blk.{layer}.ffn_up.weight"] = (ffn, hidden)
        else:
            matrices[f"blk.{layer}.ffn_up.weight"] = (2 * ffn, hidden)
    tensors = {name: (dims, GGMLType.F16) for name, dims in matrices.items()}
    return tensors | {name: ((length,), GGMLType.F32) for name, length in vectors.items()}


def plan(model, key) -> QuantizePlan:
    shape = GOLDEN[model]["shape"]
    mix, *words = key.split()
    options = TypeOptions(
        pure="pure" in words,
        leave_output_tensor="leave_output_tensor" in words,
        overrides=[tuple(word.split("=")) for word in words if "=" in word],
        has_importance="importance" in words,
    )
    facts = ModelFacts(
        shape["architecture"], shape["num_layers"], shape["heads"] // shape["kv_heads"]
    )
    return plan_tensors(find_mix(mix), tensors_of(shape), facts, options)


def runs(text):
    """ "2*Q4_K Q6_K" -> Q4_K, Q4_K, Q6_K."""
    for run in text.split():
        count, _, name = run.rpartition("*")
        yield from [name] * int(count or 1)


def kind_of(name):
    return re.sub(r"^blk\.\d+\.", "", name).removesuffix(".weight")


@pytest.mark.parametrize(("model", "key"), CASES)
def test_types_and_size_are_those_of_llama_quantize(model, key):
    result = plan(model, key)
    expected = GOLDEN[model]["mixes"][key]
    types: dict[str, list[str]] = {}
    for tensor in result.tensors:
        if len(tensor.shape) > 1:
            types.setdefault(kind_of(tensor.name), []).append(tensor.type.name)
        else:
            assert tensor.type is GGMLType.F32
    assert types == {kind: list(runs(text)) for kind, text in expected["types"].items()}
    assert result.num_bytes / 2**20 == pytest.approx(expected["MiB"], abs=0.006)


def test_golden_covers_every_mix():
    assert {key for model, key in CASES if model == "glm4-9b"} >= {
        "Q2_K", "Q3_K_S", "Q3_K_M", "Q3_K_L", "Q4_0", "Q4_1", "Q4_K_S", "Q4_K_M", "Q5_0", "Q5_1",
        "Q5_K_S", "Q5_K_M", "Q6_K", "Q8_0", "IQ4_NL", "IQ4_XS", "F16", "BF16", "F32",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("mix", "chatglm", "glm4"),
    [("Q3_K_M", 4.72, 4.62), ("Q4_K_M", 5.82, 5.73), ("Q5_K_M", 6.60, 6.56), ("Q6_K", 7.69, 7.69)],
)
def test_9b_files_have_the_sizes_that_are_published(mix, chatglm, glm4):
    assert round(plan("chatglm-9b", mix).num_bytes / 2**30, 2) == chatglm
    assert round(plan("glm4-9b", mix).num_bytes / 2**30, 2) == glm4


def test_the_file_begins_with_what_is_outside_the_layers_then_layer_by_layer():
    names = [tensor.name for tensor in plan("glm4-9b", "Q4_K_M").tensors]
    assert names[:5] == [
        "output.weight", "output_norm.weight", "token_embd.weight", "blk.0.attn_k.bias",
        "blk.0.attn_k.weight",
    ]  # fmt: skip
    layers = [int(name.split(".")[1]) for name in names[3:]]
    assert layers == sorted(layers)  # 2 before 10, as numbers


def test_fallbacks_are_reported():
    result = plan("chatglm-9b", "Q4_K_M")
    assert len(result.fallbacks) == 40
    assert result.fallbacks["blk.0.ffn_down.weight"] is GGMLType.Q6_K
    assert result.fallbacks["blk.5.ffn_down.weight"] is GGMLType.Q4_K
    assert plan("glm4-32b", "Q4_K_M").fallbacks == {}


def test_experts_count_by_layer_and_their_router_stays():
    tensors = {}
    for layer in range(16):
        for name in ("ffn_down_exps", "ffn_down_shexp"):
            shape = (8, 512, 256) if name == "ffn_down_exps" else (512, 256)
            tensors[f"blk.{layer}.{name}.weight"] = (shape, GGMLType.F16)
        tensors[f"blk.{layer}.ffn_gate_inp.weight"] = ((8, 512), GGMLType.F32)
    facts = ModelFacts("glm4moe", 16, 12, num_experts=128)
    types = assign_types(find_mix("Q4_K_S"), tensors, facts, TypeOptions()).types
    for layer in range(16):
        expected = GGMLType.Q5_K if layer < 2 else GGMLType.Q4_K
        assert types[f"blk.{layer}.ffn_down_exps.weight"] is expected
        assert types[f"blk.{layer}.ffn_down_shexp.weight"] is expected
        assert types[f"blk.{layer}.ffn_gate_inp.weight"] is GGMLType.F32


def test_names_of_mixes():
    assert [find_mix(name).name for name in ("Q4_K", "q5_k", "Q3_K", "q6_K")] == [
        "Q4_K_M", "Q5_K_M", "Q3_K_M", "Q6_K",
    ]  # fmt: skip
    for name in ("Q8_K", "q8_1"):
        with pytest.raises(PrepareError, match=r"activations.*use Q8_0"):
            find_mix(name)
        with pytest.raises(PrepareError, match=r"activations.*use Q8_0"):
            find_type(name)
    with pytest.raises(PrepareError, match=r"unknown type 'Q7_K'; use one of F32, F16.*Q2_K"):
        find_mix("Q7_K")
    with pytest.raises(PrepareError, match="unknown type 'Q4_K_M'"):
        find_type("Q4_K_M")  # a mix is no tensor type


def test_a_bad_override_is_refused():
    with pytest.raises(PrepareError, match=r"--tensor-type 'ffn_\[' is no regular expression"):
        plan("edge-1.5b", "Q4_K_M ffn_[=q8_0")
    with pytest.raises(PrepareError, match="unknown type 'q9'"):
        plan("edge-1.5b", "Q4_K_M ffn=q9")
    with pytest.raises(PrepareError, match="'attn_w' is found in no tensor's name"):
        plan("edge-1.5b", "Q4_K_M ffn=q8_0 attn_w=q8_0")


def test_facts_come_from_the_metadata():
    metadata = {
        "general.architecture": "glm4",
        "glm4.block_count": 40,
        "glm4.attention.head_count": 32,
        "glm4.attention.head_count_kv": [2, 2],
    }
    assert ModelFacts.from_metadata(metadata, "f") == ModelFacts("glm4", 40, 16)
    del metadata["glm4.block_count"]
    with pytest.raises(PrepareError, match=r"f: no usable glm4\.block_count"):
        ModelFacts.from_metadata(metadata, "f")
