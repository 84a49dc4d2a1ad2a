"""inspect: what it reports, the faults it knows, and the differences of two files."""

from __future__ import annotations

import json

import numpy as np
import pytest
from checkpoint_files import fresh
from random_gguf import CONTEXT, HEAD_DIM, KV_HEADS, LAYERS, write_random_glm

from rillm.cli.app import run as rillm
from rillm.core import load_core
from rillm.gguf import GGMLType, GGUFReader, GGUFWriter
from rillm.inspection import compare, memory_plans, rendered_example
from rillm.known_faults import config_of, find_faults
from rillm.memory_plan import plan_memory
from rillm.models import load_model
from rillm.prepare.dummy import SHAPES, write_dummy
from rillm.prepare.imatrix import write_imatrix
from rillm.prepare.prepare_model import prepare


def rewrite(source, target, keys=None, tensors=None):
    """A copy with other keys (None drops one) and tensors (name -> bytes, or None to drop)."""
    keys, tensors = keys or {}, tensors or {}
    with GGUFReader(source) as reader:
        metadata = reader.copy_metadata(drop=keys)
        metadata |= {key: value for key, value in keys.items() if value is not None}
        kept = [t for t in reader.tensors.values() if tensors.get(t.name, b"") is not None]
        with GGUFWriter(target, metadata) as writer:
            for tensor in kept:
                writer.declare(tensor.name, tensor.shape, tensor.type)
            for tensor in kept:
                writer.write(tensor.name, [tensors.get(tensor.name, tensor.data)])
    return target


def faults(path):
    with GGUFReader(path) as reader:
        return {fault.field: fault for fault in find_faults(reader)}


@pytest.fixture(scope="module")
def glm_9b(tmp_path_factory):
    """glm-4-9b, narrow, with one layer and the whole vocabulary."""
    module, values = SHAPES["glm-4-9b"]
    values = values | {
        "num_layers": 1, "hidden_size": 64, "ffn_hidden_size": 128, "num_attention_heads": 2,
        "multi_query_group_num": 1, "kv_channels": 32,
    }  # fmt: skip
    path = tmp_path_factory.mktemp("glm") / "glm.gguf"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SHAPES, "narrow", (module, values))
        return write_dummy("narrow", "Q8_0", path, load_core())


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """A converted checkpoint with nothing wrong."""
    folder = tmp_path_factory.mktemp("good")
    prepare(fresh(folder, "glm_9b", "chatglm"), out=folder / "good.gguf", num_threads=1)
    return folder / "good.gguf"


def test_a_good_file_has_no_fault(good, models):
    # The checkpoint has no chat template, so the file has none.
    assert list(faults(good)) == ["tokenizer.chat_template"]
    levels = {fault.level for path in models.values() for fault in faults(path).values()}
    assert levels <= {"note"}


def test_what_converters_get_wrong_with_glm_4_9b(glm_9b, tmp_path):
    assert {field for field, fault in faults(glm_9b).items() if fault.level != "note"} == set()
    changes = {
        "chatglm.rope.freq_base": (10000.0, "error", "5e6"),
        "chatglm.rope.dimension_count": (32, "error", "32, but this model rotates 16 of 32"),
        "chatglm.attention.layer_norm_rms_epsilon": (1e-5, "warning", "1.5625e-07"),
        "chatglm.context_length": (8192, "warning", "131072"),
        "tokenizer.ggml.pre": ("llama-bpe", "warning", "not chatglm-bpe"),
        "tokenizer.ggml.add_bos_token": (True, "note", "does not add a bos"),
        "tokenizer.chat_template": ("{{ messages }}", "note", "lacks the prefix"),
    }
    path = rewrite(glm_9b, tmp_path / "x.gguf", {key: row[0] for key, row in changes.items()})
    found = faults(path)
    for key, (_, level, text) in changes.items():
        assert found[key].level == level, key
        assert text in found[key].message
    assert list(fault.level for fault in found.values()) == sorted(
        (fault.level for fault in found.values()), key=["error", "warning", "note"].index
    )
    absent = dict.fromkeys(("chatglm.rope.freq_base", "chatglm.rope.dimension_count"))
    found = faults(rewrite(glm_9b, tmp_path / "x.gguf", absent))
    assert "is absent (10000)" in found["chatglm.rope.freq_base"].message
    assert "is absent, so it counts as 32" in found["chatglm.rope.dimension_count"].message
    # -1m and the base model are right with their own values.
    for base, context in ((1e8, 1048576), (5e6, 131072)):
        keys = {"chatglm.rope.freq_base": base, "chatglm.context_length": context}
        found = faults(rewrite(glm_9b, tmp_path / "x.gguf", keys))
        assert {fault.level for fault in found.values()} <= {"note"}


def test_glm4_beyond_its_context(tmp_path):
    core = load_core()
    path = write_random_glm(tmp_path / "a.gguf", core, GGMLType.Q8_0, architecture="glm4")
    assert "glm4.context_length" not in faults(path)
    rewrite(path, tmp_path / "b.gguf", {"glm4.context_length": 131072})
    assert "needs YaRN" in faults(tmp_path / "b.gguf")["glm4.context_length"].message
    keys = {
        "glm4.context_length": 131072,
        "glm4.rope.scaling.type": "yarn",
        "glm4.rope.scaling.factor": 4.0,
        "glm4.rope.scaling.original_context_length": 32768,
    }
    rewrite(path, tmp_path / "c.gguf", keys)
    assert "glm4.context_length" not in faults(tmp_path / "c.gguf")


def test_stops_bos_and_template(good, tmp_path):
    keys = dict.fromkeys(
        (
            "tokenizer.ggml.eot_token_id",
            "tokenizer.ggml.eom_token_id",
            "tokenizer.ggml.bos_token_id",
            "tokenizer.chat_template",
        )
    )
    found = faults(rewrite(good, tmp_path / "x.gguf", keys))
    assert {fault.level for fault in found.values()} == {"note"}
    stops = found["tokenizer.ggml.eot_token_id"].message
    assert "no key names <|user|>, <|observation|> as an end" in stops
    assert "/props" in found["tokenizer.ggml.bos_token_id"].message
    assert "rillm takes its built-in glm-4-9b-chat" in found["tokenizer.chat_template"].message


def test_tensors_that_are_not_what_the_keys_say(good, tmp_path):
    found = faults(rewrite(good, tmp_path / "x.gguf", {"chatglm.block_count": 3}))
    assert "is missing (and 5 more)" in found["blk.2.attn_qkv.weight"].message
    found = faults(rewrite(good, tmp_path / "x.gguf", {"chatglm.block_count": 1}))
    assert found["blk.1.ffn_up.weight"].message == "is not part of this architecture"
    found = faults(rewrite(good, tmp_path / "x.gguf", {"chatglm.feed_forward_length": 512}))
    assert found["blk.0.ffn_down.weight"].message.startswith("has shape [1024, 640], the model's")
    found = faults(rewrite(good, tmp_path / "x.gguf", tensors={"blk.0.ffn_norm.weight": None}))
    assert found["blk.0.ffn_norm.weight"].message.startswith("is missing; the file is")
    found = faults(rewrite(good, tmp_path / "x.gguf", {"general.architecture": "gpt2"}))
    assert "'gpt2' is not one that rillm runs" in found["general.architecture"].message
    found = faults(rewrite(good, tmp_path / "x.gguf", {"chatglm.embedding_length": None}))
    assert "no key chatglm.embedding_length" in found["general.architecture"].message
    found = faults(rewrite(good, tmp_path / "x.gguf", {"tokenizer.ggml.tokens": None}))
    assert found["tokenizer.ggml"].level == "error"


@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_damaged_values(good, tmp_path, value):
    name = "blk.1.attn_norm.weight"
    with GGUFReader(good) as reader:
        values = np.frombuffer(bytes(reader.tensors[name].data), "<f4").copy()
    values[-1] = value
    path = rewrite(good, tmp_path / "x.gguf", tensors={name: values.tobytes()})
    assert faults(path)[name].message == "holds NaN or infinity; the file is damaged"
    assert rillm(["inspect", str(path)]) == 1


@pytest.mark.parametrize("weight_type", [GGMLType.F16, GGMLType.Q8_0, GGMLType.Q4_K])
def test_the_plan_is_near_what_a_loaded_model_takes(models, weight_type):
    core = load_core()
    with GGUFReader(models[weight_type]) as reader:
        sizes = [(name, tensor.nbytes) for name, tensor in reader.tensors.items()]
        plan = plan_memory(config_of(reader), sizes, context=CONTEXT, batch_tokens=512, num_seqs=16)
        with core.team(1) as team:
            model = load_model(
                reader, core, team, max_tokens=512, max_logits=16, num_blocks=CONTEXT // 16
            )
            assert plan.weights == pytest.approx(model.weight_bytes, rel=0.01)
            assert plan.kv_cache == CONTEXT // 16 * model.cache_block_bytes
            assert plan.buffers > model.buffer_bytes
            model.close()
        [f16, q8_0] = memory_plans(reader, 100)
    assert f16.kv_cache == 100 * 2 * LAYERS * KV_HEADS * HEAD_DIM * 2
    assert q8_0.kv_cache == f16.kv_cache * 34 // 64
    assert f16.total - f16.kv_cache == q8_0.total - q8_0.kv_cache


def test_diff(good, tmp_path, capsys):
    with GGUFReader(good) as a, GGUFReader(good) as b:
        assert compare(a, b) == []
        shape = a.tensors["blk.1.ffn_up.weight"].shape
        row = a.tensors["blk.1.ffn_up.weight"].type.row_bytes(shape[1])
        data = bytearray(a.tensors["blk.1.ffn_up.weight"].data)
    data[row * 7 + 3] ^= 1
    keys = {"chatglm.context_length": 5, "general.name": None, "general.x": float("nan")}
    other = rewrite(
        good, tmp_path / "x.gguf", keys,
        {"blk.1.ffn_up.weight": bytes(data), "blk.0.attn_norm.weight": None},
    )  # fmt: skip
    with GGUFReader(good) as a, GGUFReader(other) as b:
        found = {item.name: (item.kind, item.first, item.second) for item in compare(a, b)}
        assert compare(b, b) == []
    assert found == {
        "chatglm.context_length": ("key", "UINT32 2048", "UINT32 5"),
        "general.name": ("key", "STRING 'Checkpoint'", None),
        "general.x": ("key", None, "FLOAT32 nan"),
        "blk.1.ffn_up.weight": (
            "tensor", f"Q4_K {shape[0]} x {shape[1]}", "other values from row 7",
        ),
        "blk.0.attn_norm.weight": ("tensor", f"F32 {shape[1]}", None),
    }  # fmt: skip
    assert rillm(["inspect", "--diff", str(good), str(other)]) == 1
    output = capsys.readouterr().out
    assert "key chatglm.context_length: UINT32 2048 -> UINT32 5\n" in output
    assert "tensor blk.0.attn_norm.weight: F32 1024 -> (absent)\n" in output
    assert rillm(["inspect", str(good), "--diff", str(good)]) == 0
    assert "do not differ" in capsys.readouterr().out
    assert rillm(["inspect", "--diff", str(good)]) == 2
    assert rillm(["inspect", str(good), str(other)]) == 2


def test_command(good, capsys):
    assert rillm(["inspect", str(good), "--tensors", "-c", "100"]) == 0
    text = capsys.readouterr().out
    assert "good.gguf: GGUF v3, " in text
    assert ", 9.2 M weights in 17 tensors " in text
    assert "memory with a context of 100 tokens, q8_0 cache: " in text
    assert "[gMASK]<sop><|system|>\nAnswer briefly.<|user|>\n你好<|assistant|>\nHello!" in text
    with GGUFReader(good) as reader:
        for name, tensor in reader.tensors.items():
            line = next(line for line in text.splitlines() if line.startswith(name))
            assert tensor.type.name in line.split()
        assert rendered_example(reader)[0] in ("gguf", "built-in glm-4-9b-chat")
    assert rillm(["inspect", str(good), "--json"]) == 0
    everything = json.loads(capsys.readouterr().out)
    assert [fault["level"] for fault in everything["faults"]] == ["note"]
    assert everything["metadata"]["chatglm.rope.freq_base"] == 5e6
    assert [plan["cache_type"] for plan in everything["memory"]] == ["f16", "q8_0"]
    assert everything["memory"][0]["context"] == 2048
    assert everything["chat_template"]["example"].startswith("[gMASK]<sop>")


def test_files_that_are_no_models_have_no_faults(tmp_path, capsys):
    path = tmp_path / "i.gguf"
    one = {"a.weight": np.ones(32, np.float32)}
    write_imatrix(path, one, {"a.weight": np.ones(1, np.float32)}, datasets=["x"], num_chunks=1,
                  chunk_size=9)  # fmt: skip
    assert rillm(["inspect", str(path)]) == 0
    shown = capsys.readouterr().out
    assert "imatrix.chunk_size" in shown
    assert "error" not in shown
