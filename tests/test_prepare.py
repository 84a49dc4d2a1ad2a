"""prepare: the same file as convert and quantize give, in one pass; and the boards it knows."""

from __future__ import annotations

import json
import os
import re
import resource
import sys
from math import prod
from pathlib import Path

import numpy as np
import pytest
from checkpoint_files import change_config, fresh, replace_tensor
from hub_server import Hub

from rillm.cli.app import run as rillm
from rillm.gguf import GGUFReader
from rillm.models.config import read_config
from rillm.prepare.architecture import Config
from rillm.prepare.boards import BOARDS, CANDIDATES, find_target, fitting_boards, suggest
from rillm.prepare.checkpoint import Checkpoint
from rillm.prepare.convert import ConvertedModel, convert
from rillm.prepare.dummy import SHAPES
from rillm.prepare.errors import PrepareError
from rillm.prepare.imatrix import write_imatrix
from rillm.prepare.prepare_model import memory_of, prepare, tensor_sizes
from rillm.prepare.quantize import quantize

sys.path.append(str(Path(__file__).parent / "golden"))
from checkpoints import CASES

GIB = 1 << 30


@pytest.mark.parametrize(
    ("case", "form", "type_name"),
    [
        ("glm_9b", "chatglm", "Q4_K_M"),
        ("glm_9b", "hf", "Q6_K"),
        ("glm_chatglm3", "chatglm", "Q5_K_S"),
        ("glm_1m", "chatglm", "IQ4_XS"),
        ("glm4_9b", "hf", "Q3_K_M"),
        ("glm_edge", "hf", "Q4_0"),
        ("llama_smollm", "hf", "Q2_K"),
        ("llama_3", "hf", "Q8_0"),
        ("llama_3", "hf", "BF16"),
    ],
)
def test_the_same_file_as_in_two_steps(tmp_path, case, form, type_name):
    folder = fresh(tmp_path, case, form)
    convert(folder, tmp_path / "whole.gguf", out_type="auto", num_threads=1)
    quantize(tmp_path / "whole.gguf", tmp_path / "two.gguf", type_name, num_threads=1)
    done = []
    result = prepare(
        folder, type_name=type_name.lower(), out=tmp_path / "one.gguf", num_threads=2,
        progress=lambda *at: done.append(at),
    )  # fmt: skip
    one, two = (tmp_path / "one.gguf").read_bytes(), (tmp_path / "two.gguf").read_bytes()
    if CASES[case].dtype != "float32":  # there the 16-bit file rounds what prepare does not
        assert one == two
    with GGUFReader(tmp_path / "one.gguf") as a, GGUFReader(tmp_path / "two.gguf") as b:
        assert list(a.metadata.items()) == list(b.metadata.items())
        assert [(t.name, t.type, t.shape) for t in a.tensors.values()] == [
            (t.name, t.type, t.shape) for t in b.tensors.values()
        ]
    assert result.file_size == len(one)
    assert result.plan.mix.name == type_name
    assert done[-1] == (result.plan.num_bytes, result.plan.num_bytes)
    assert sorted(os.listdir(tmp_path)) == ["checkpoint", "one.gguf", "two.gguf", "whole.gguf"]


def test_overrides_and_importance(tmp_path):
    folder = fresh(tmp_path, "glm4_9b")
    prepare(folder, type_name="Q4_K_M", out=tmp_path / "plain.gguf", num_threads=1)
    with GGUFReader(tmp_path / "plain.gguf") as reader:
        columns = {name: info.shape[-1] for name, info in reader.tensors.items()}
    name = "blk.1.attn_q.weight"
    importance = {name: [float(i % 7) for i in range(columns[name])]}
    prepare(
        folder, type_name="Q4_K_M", out=tmp_path / "own.gguf", num_threads=1,
        tensor_types=[("blk.0.attn_output", "Q8_0")], importance=importance,
    )  # fmt: skip
    with GGUFReader(tmp_path / "plain.gguf") as a, GGUFReader(tmp_path / "own.gguf") as b:
        differ = [name for name in a.tensors if a.tensors[name].data != b.tensors[name].data]
        assert b.tensors["blk.0.attn_output.weight"].type.name == "Q8_0"
    assert differ == ["blk.0.attn_output.weight", "blk.1.attn_q.weight"]


@pytest.fixture
def hub(tmp_path, monkeypatch):
    folder = fresh(tmp_path, "glm_9b", "chatglm")
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    server = Hub(files)
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "nowhere"))
    monkeypatch.setattr("rillm.prepare.download.time.sleep", lambda seconds: None)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    yield server
    server.close()


def test_from_a_repository(hub, tmp_path):
    shard = next(path for path in hub.files if path.endswith(".safetensors"))
    hub.plan = {shard: [("cut", 1000), *[("cut", 0)] * 20]}
    with pytest.raises(PrepareError, match="connection was cut"):
        prepare("org/model", num_threads=1)
    assert os.listdir() == ["model"]  # a part of the checkpoint, no GGUF file
    hub.plan = {}
    hub.sent = 0
    seen = []
    result = prepare("org/model", num_threads=1, pull_progress=lambda *a: seen.append(a))
    weights = sum(len(data) for path, data in hub.files.items() if path.endswith(".safetensors"))
    assert hub.sent == weights - 1000  # the rest; what was there has been kept
    assert seen[-1][3] == seen[-1][4]
    assert sorted(os.listdir()) == ["model", "model.Q4_K_M.gguf"]
    assert result.path == Path("model.Q4_K_M.gguf")
    prepare(tmp_path / "checkpoint", out="local.gguf", num_threads=1)
    with GGUFReader("local.gguf") as a, GGUFReader(result.path) as b:
        assert {n: bytes(t.data) for n, t in a.tensors.items()} == {
            n: bytes(t.data) for n, t in b.tensors.items()
        }
        assert b.metadata["general.name"] == "Model"


def test_an_unknown_architecture_is_refused_before_the_weights_come(hub):
    hub.files["config.json"] = b'{"architectures": ["GPT2LMHeadModel"]}'
    with pytest.raises(PrepareError, match="architecture 'GPT2LMHeadModel' is not supported"):
        prepare("org/model")
    assert not any(hub.downloads(path) for path in hub.files if path.endswith(".safetensors"))


def test_the_output_counts_when_the_disk_is_checked(hub, monkeypatch):
    size = sum(map(len, hub.files.values()))
    usage = type("Usage", (), {"free": (64 << 20) + size + 1000})
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    with pytest.raises(PrepareError, match=r"model: needs \d\d\.\d MB, but only"):
        prepare("org/model", num_threads=1)
    assert not any(hub.downloads(path) for path in hub.files if path.endswith(".safetensors"))


def plan_of(shape, **changes):
    module, values = SHAPES[shape]
    return module.plan(Config(values | changes, shape))


@pytest.mark.parametrize(
    ("shape", "board", "type_name"),
    [
        ("glm-4-9b", "k1:8", "Q4_K_M"),
        ("glm-4-9b", "k1", "Q4_K_M"),  # 16 GB hold more, but each token would take longer
        ("glm-4-9b", "bpi-f3:16", "Q4_K_M"),
        ("glm-4-9b", "k3", "Q6_K"),
        ("glm-4-9b-0414", "th1520", "Q4_K_M"),
        ("glm-4-32b-0414", "k3:16", None),
        ("glm-4-32b-0414", "k3:32", "Q6_K"),
        ("glm-4-32b-0414", "sg2042", "Q6_K"),
        ("glm-edge-1.5b", "k1:4", "Q4_K_M"),
        ("glm-edge-1.5b", "k230:2 GB", "Q4_K_M"),
    ],
)
def test_suggestions(shape, board, type_name):
    plan, target = plan_of(shape), find_target(board)
    suggestion = suggest(target, lambda name: memory_of(plan, name, 4096, "f16"))
    if type_name is not None:
        assert suggestion.type_name == type_name
    assert suggestion.plan.total <= target.usable_bytes < target.memory * GIB
    better = CANDIDATES[CANDIDATES.index(target.board.best) :]
    for name in better[: better.index(suggestion.type_name)]:
        assert memory_of(plan, name, 4096, "f16").total > target.usable_bytes
    if target.board.bandwidth:
        assert suggestion.decode_limit == target.board.bandwidth / suggestion.plan.weights
        assert "tokens/s" in str(suggestion)


def test_which_boards_fit():
    line = fitting_boards(memory_of(plan_of("glm-4-9b"), "Q4_K_M", 4096, "f16"))
    assert re.fullmatch(
        r"runs in 6\.\d\d GiB with a context of 4096 tokens; fits k1:8, k1:16, k3:16, k3:32, "
        r"sg2042:128, th1520:16, p550:8, p550:16, p550:32; not k1:4", line,
    ), line  # fmt: skip
    line = fitting_boards(memory_of(plan_of("glm-edge-1.5b"), "Q4_K_M", 4096, "f16"))
    assert "not" not in line


def test_the_context_counts():
    plan = plan_of("glm-4-9b")
    target = find_target("k1:8")
    short = suggest(target, lambda name: memory_of(plan, name, 4096, "f16"))
    long = suggest(target, lambda name: memory_of(plan, name, 65536, "f16"))
    half = memory_of(plan, long.type_name, 65536, "q8_0")
    assert CANDIDATES.index(long.type_name) > CANDIDATES.index(short.type_name)
    # reference/glm.md: 40 KiB a token in f16.
    assert long.plan.kv_cache == 65536 * 40 * 1024
    assert half.kv_cache == long.plan.kv_cache * 34 // 64
    with pytest.raises(PrepareError, match=r"K1 .* 8 GB: even Q2_K needs .* a shorter --ctx-size"):
        suggest(target, lambda name: memory_of(plan, name, 0, "f16"))


@pytest.mark.parametrize("case", ["glm_9b", "glm_edge", "llama_smollm"])
def test_sizes_from_the_configuration_are_those_of_the_file(tmp_path, case):
    folder = fresh(tmp_path, case)
    result = prepare(folder, type_name="Q4_K_M", out=tmp_path / "x.gguf", num_threads=1)
    with Checkpoint(folder) as checkpoint:
        plan = ConvertedModel(checkpoint).plan
    sizes = dict(tensor_sizes(plan, "Q4_K_M"))
    assert sizes == {tensor.name: tensor.num_bytes for tensor in result.plan.tensors}
    with GGUFReader(tmp_path / "x.gguf") as reader:
        shapes = {name: info.shape for name, info in reader.tensors.items()}
        config = read_config(reader.metadata, shapes, rope_interleaved=True)
        memory = memory_of(plan, "Q4_K_M", 100, "f16")
        row = 2 * config.num_layers * config.num_kv_heads * config.head_dim * 2
        assert memory.kv_cache == 100 * row
        assert memory.embedding == reader.tensors["token_embd.weight"].nbytes
        tied = memory.embedding if config.tied_embeddings else 0
        assert memory.weights + memory.embedding - tied == sum(sizes.values())


def test_boards():
    assert find_target("K1:4GB").memory == 4
    assert find_target("milkv-pioneer") == find_target("sg2042:128")
    for board in BOARDS.values():
        assert board.best in CANDIDATES
        assert find_target(f"{board.name}:16").board is board
    with pytest.raises(PrepareError, match=r"unknown board 'pi5'; known: k1, .* \(with memory"):
        find_target("pi5")
    with pytest.raises(PrepareError, match="such boards differ in memory; say it: x280:16"):
        find_target("x280")
    for text in ("k1:", "k1:0", "k1:8:8", "k1:-8", ""):
        with pytest.raises(PrepareError):
            find_target(text)


def test_refusals_leave_nothing(tmp_path, monkeypatch):
    folder = fresh(tmp_path, "glm_edge_4kv")
    out = tmp_path / "out"
    out.mkdir()
    monkeypatch.chdir(out)

    def refused(match, source=folder, **options):
        with pytest.raises(PrepareError, match=match) as caught:
            prepare(source, num_threads=1, **options)
        assert "\n" not in str(caught.value)
        assert list(out.iterdir()) == []

    refused("unknown type 'Q9'", type_name="Q9")
    refused("Q8_K is a format for activations", type_name="Q8_K")
    refused("unknown board", board="toaster")
    refused("no such folder; give a checkpoint, or OWNER/NAME", source=tmp_path / "nowhere")
    refused("no such folder; make it or give another --out", out=tmp_path / "no" / "x.gguf")
    vocab_size = json.loads((folder / "config.json").read_text())["vocab_size"]
    change_config(folder, vocab_size=2_000_000)
    refused(r"does not fit: F32 for .* K1 .* leave out --type", type_name="F32", board="k1:2")
    change_config(folder, vocab_size=vocab_size)
    values = np.full((384, 384), np.nan, "<f4")
    replace_tensor(folder, "model.layers.0.self_attn.q_proj.weight", values)
    refused("attn_q.weight holds NaN or infinity")
    change_config(folder, architectures=["Other"])
    refused("architecture 'Other' is not supported")


@pytest.mark.parametrize("what", ["convert", "quantize", "prepare", "imatrix"])
def test_a_disk_that_fills_up_on_the_way(what, tmp_path, capsys):
    """A limit on the size of files makes the kernel refuse to write on, as a full disk does."""
    folder = fresh(tmp_path, "glm_9b", "chatglm")
    f16, text, out = tmp_path / "f16.gguf", tmp_path / "text.txt", tmp_path / "out"
    convert(folder, f16, num_threads=1)
    text.write_text("The sun is out. " * 100, encoding="utf-8")
    out.mkdir()
    (out / "x.gguf").write_bytes(b"the previous file")
    arguments = {
        "convert": [folder, out / "x.gguf"],
        "quantize": [f16, out / "x.gguf", "Q4_K_M"],
        "prepare": [folder, "--out", out / "x.gguf"],
        "imatrix": [f16, text, "-c", "64", "--chunks", "1", "-o", out / "x.gguf"],
    }[what]
    limit = 4000 if what == "imatrix" else 100_000
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        assert rillm([what, *map(str, arguments)]) == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert capsys.readouterr().err == f"error: {out}/x.gguf: cannot write: File too large\n"
    assert {path.name: path.read_bytes() for path in out.iterdir()} == {
        "x.gguf": b"the previous file"
    }


def test_with_an_importance_matrix(tmp_path):
    """The same file as convert and quantize with that matrix, its keys too."""
    folder, matrix = fresh(tmp_path, "glm_9b", "chatglm"), tmp_path / "i.gguf"
    convert(folder, tmp_path / "whole.gguf", out_type="auto", num_threads=1)
    with GGUFReader(tmp_path / "whole.gguf") as reader:
        columns = {n: t.shape[-1] for n, t in reader.tensors.items() if n.startswith("blk.0.ffn_")}
        columns.pop("blk.0.ffn_norm.weight")
    generator = np.random.default_rng(3)
    sums = {n: generator.lognormal(size=(1, c)).astype(np.float32) for n, c in columns.items()}
    counts = dict.fromkeys(sums, np.ones(1, np.float32))
    write_imatrix(matrix, sums, counts, datasets=["x"], num_chunks=1, chunk_size=1)
    two = tmp_path / "two.gguf"
    quantize(tmp_path / "whole.gguf", two, "IQ4_XS", imatrix=matrix, num_threads=1)
    arguments = ["--type", "IQ4_XS", "--imatrix", str(matrix), "--out", str(tmp_path / "one.gguf")]
    assert rillm(["prepare", str(folder), *arguments]) == 0
    assert (tmp_path / "one.gguf").read_bytes() == two.read_bytes()


def test_command(tmp_path, monkeypatch, capsys):
    folder = fresh(tmp_path, "glm_9b", "chatglm")
    monkeypatch.chdir(tmp_path)
    assert rillm(["prepare", str(folder), "--for", "k1:8", "-t", "1"]) == 0
    output = capsys.readouterr()
    assert "Q4_K_M for SpacemiT K1" in output.err
    assert "checkpoint.Q4_K_M.gguf: Q4_K_M, " in output.out
    assert rillm(["prepare", str(folder), "--type", "Q6_K", "--out", "x.gguf", "-t", "1"]) == 0
    assert rillm(["inspect", "x.gguf", "--json"]) == 0
    written = json.loads(capsys.readouterr().out.partition("\n")[2])
    assert written["types"]["Q6_K"] > 0
    assert written["num_weights"] == sum(prod(t["shape"]) for t in written["tensors"])
    assert rillm(["prepare", str(folder), "--cache-type", "f8"]) == 2
    assert rillm(["prepare", "no/where", "--for", "toaster"]) == 1
    assert "error: unknown board 'toaster'" in capsys.readouterr().err
