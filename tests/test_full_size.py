"""benchmarks/full_size.py at a size that tests can afford: its checkpoint is one, its list too."""

from __future__ import annotations

import sys
from math import prod
from pathlib import Path

import numpy as np
import pytest

from rillm.gguf import GGUFReader
from rillm.prepare.convert import convert
from rillm.prepare.prepare_model import prepare
from rillm.prepare.tiktoken_vocab import derive_merges

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))
import full_size

SMALL = full_size.CONFIG | {
    "num_layers": 2, "num_hidden_layers": 2, "hidden_size": 256, "ffn_hidden_size": 288,
    "num_attention_heads": 4, "multi_query_group_num": 2, "kv_channels": 64,
    "padded_vocab_size": 66048, "eos_token_id": [65900],
}  # fmt: skip


def test_the_real_shape():
    tensors = list(full_size.checkpoint_tensors(full_size.CONFIG))
    # reference: 283 tensors in the GGUF file, which leaves out inv_freq; 18.8 GB in bf16.
    assert len(tensors) == 284
    assert sum(prod(t.shape) for t in tensors if "inv_freq" not in t.name) == 9_399_951_360
    shards = full_size.split(tensors, 10)
    assert [t for shard in shards for t in shard] == tensors
    sizes = [sum(t.num_bytes for t in shard) for shard in shards]
    assert min(sizes) > 1.2e9
    assert max(sizes) < 2.7e9


def test_every_token_has_its_merge():
    tokens = full_size.vocabulary(66_500)
    assert len(set(tokens)) == 66_500
    merges = derive_merges(tokens)
    assert [left + right for left, right in merges] == tokens[256:]


def test_the_checkpoint_prepares(tmp_path):
    folder = tmp_path / "checkpoint"
    num_bytes = full_size.write_checkpoint(folder, SMALL, 65_900, 3)
    assert len(list(folder.glob("*.safetensors"))) == 3
    result = prepare(folder, type_name="Q4_K_M", out=tmp_path / "x.gguf", num_threads=1)
    assert result.plan.num_bytes < num_bytes
    listing = full_size.tensors_of(tmp_path / "x.gguf")
    assert len(listing) == 3 + 2 * 7
    assert listing["blk.1.ffn_down.weight"] == ((256, 288), "Q8_0")
    with GGUFReader(tmp_path / "x.gguf") as reader:
        assert len(reader.metadata["tokenizer.ggml.tokens"]) == 66048
        data = bytes(reader.tensors["blk.0.ffn_up.weight"].data)
    assert len(set(data)) == 256  # random, not zero


def test_the_memory_of_who_measures_does_not_count(tmp_path):
    folder = tmp_path / "checkpoint"
    full_size.write_checkpoint(folder, SMALL, 65_900, 1)
    ballast = np.ones(64 << 20)  # 512 MiB
    usage = full_size.run_prepare(folder, tmp_path / "x.gguf", "Q4_0")
    assert 20 << 20 < usage["peak_bytes"] < ballast.nbytes // 2
    assert usage["cpu_seconds"] > 0
    with pytest.raises(RuntimeError, match="exit code 1"):
        full_size.run_prepare(folder / "absent", tmp_path / "y.gguf", "Q4_0")


def test_values_that_differ_are_named(tmp_path):
    folder, converted = tmp_path / "checkpoint", tmp_path / "x.gguf"
    full_size.write_checkpoint(folder, SMALL, 65_900, 2)
    convert(folder, converted, out_type="bf16")
    assert full_size.unequal_values(folder, converted) == []
    with GGUFReader(converted) as reader:
        last = reader.tensors["blk.1.ffn_down.weight"]
        place = last.offset + last.nbytes - 1
    with converted.open("r+b") as file:
        file.seek(place)
        (byte,) = file.read(1)
        file.seek(place)
        file.write(bytes([byte ^ 1]))
    assert full_size.unequal_values(folder, converted) == ["blk.1.ffn_down.weight"]


REPORT = """
[   1/  17] output.weight            - [   256,  66048,      1,      1], type =   q6_K, size = 13.2 MiB
[   3/  17] blk.0.attn_norm.weight   - [   256,      1,      1,      1], type =    f32, size =  0.0 MiB
[   8/  17] blk.0.ffn_down.weight    - [   288,    256,      1,      1], type =   q4_K, size = 0.05 MiB -> 0.07 MiB (q8_0)
"""  # noqa: E501


def test_reading_what_llama_quantize_says():
    theirs = full_size.parse_dry_run(REPORT)
    assert theirs == {
        "output.weight": ((66048, 256), "Q6_K"),
        "blk.0.attn_norm.weight": ((256,), "F32"),
        "blk.0.ffn_down.weight": ((256, 288), "Q8_0"),
    }
    assert full_size.differences(theirs, theirs) == []
    ours = theirs | {"output.weight": ((66048, 256), "Q8_0")}
    (line,) = full_size.differences(ours, theirs)
    assert line.startswith("output.weight: rillm ((66048, 256), 'Q8_0'), llama-quantize ")


def test_a_folder_that_is_there_is_not_touched(tmp_path, monkeypatch, capsys):
    (tmp_path / "glm-4-9b-chat").mkdir()
    monkeypatch.setattr(sys, "argv", ["full_size.py", str(tmp_path)])
    with pytest.raises(SystemExit):
        full_size.main()
    assert "is there already" in capsys.readouterr().err
    assert (tmp_path / "glm-4-9b-chat").is_dir()
