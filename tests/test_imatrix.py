"""Importance matrices: the file that llama-imatrix writes, and what quantize makes of it."""

from __future__ import annotations

import numpy as np
import pytest
from random_gguf import write_random_glm

from rillm.cli.app import run as rillm
from rillm.core import load_core
from rillm.gguf import GGMLType, GGUFReader, GGUFWriter
from rillm.prepare.errors import PrepareError
from rillm.prepare.imatrix import read_imatrix, write_imatrix
from rillm.prepare.quantize import quantize

RANDOM = np.random.default_rng(8)


def sums(rows, columns):
    return RANDOM.lognormal(0, 2, (rows, columns)).astype(np.float32)


def write(path, arrays, kind="imatrix"):
    """A file with these tensors, and the keys of llama-imatrix b11669."""
    metadata = {
        "general.type": kind,
        "imatrix.datasets": ["wiki.txt"],
        "imatrix.chunk_count": 2,
        "imatrix.chunk_size": 512,
    }
    with GGUFWriter(path, metadata) as writer:
        for name, array in arrays.items():
            writer.declare(name, array.shape, GGMLType.F32)
        for name, array in arrays.items():
            writer.write(name, [array.astype("<f4").tobytes()])
    return path


def test_what_llama_imatrix_writes(tmp_path):
    # One matrix: its rows are 1-dimensional. A stack of experts: one row each. Newer versions add
    # more statistics, which do not matter here.
    one, stack = sums(1, 256)[0], sums(3, 64)
    path = write(
        tmp_path / "i.gguf",
        {
            "blk.0.attn_q.weight.in_sum2": one,
            "blk.0.attn_q.weight.counts": np.array([1024.0]),
            "blk.0.attn_q.weight.in_sum": -one,
            "blk.0.attn_q.weight.stats": np.full(12, np.nan),
            "blk.0.ffn_up_exps.weight.in_sum2": stack,
            "blk.0.ffn_up_exps.weight.counts": np.array([[10.0], [0.0], [3.0]]),
        },
    )
    matrix = read_imatrix(path)
    assert (matrix.datasets, matrix.num_chunks, matrix.chunk_size) == (("wiki.txt",), 2, 512)
    importance = matrix.importance()
    assert set(importance) == {"blk.0.attn_q.weight", "blk.0.ffn_up_exps.weight"}
    np.testing.assert_allclose(importance["blk.0.attn_q.weight"], one / 1024, rtol=1e-6)
    expected = np.concatenate([stack[0] / 10, np.ones(64), stack[2] / 3])
    np.testing.assert_allclose(importance["blk.0.ffn_up_exps.weight"], expected, rtol=1e-6)


def test_written_and_read_back(tmp_path):
    totals = {"a.weight": sums(1, 96)[0], "b.weight": sums(4, 32)}
    counts = {"a.weight": np.array([7.0]), "b.weight": np.array([1.0, 2.0, 0.0, 5.0])}
    path = tmp_path / "i.gguf"
    write_imatrix(path, totals, counts, datasets=["x"], num_chunks=3, chunk_size=256)
    matrix = read_imatrix(path)
    for name in totals:
        np.testing.assert_array_equal(matrix.sums[name].reshape(totals[name].shape), totals[name])
        np.testing.assert_array_equal(matrix.counts[name], counts[name])
    assert (matrix.datasets, matrix.num_chunks, matrix.chunk_size) == (("x",), 3, 256)
    with GGUFReader(path) as reader:  # the shapes that llama-quantize looks for
        assert reader.tensors["b.weight.in_sum2"].shape == (4, 32)
        assert reader.tensors["b.weight.counts"].shape == (4, 1)
    with pytest.raises(PrepareError, match="do not go with 4 counts"):
        write_imatrix(path, {"b.weight": sums(3, 32)}, counts, datasets=[], num_chunks=1,
                      chunk_size=1)  # fmt: skip


def test_files_that_are_refused(tmp_path):
    path, one = tmp_path / "i.gguf", sums(1, 32)[0]

    def refused(match):
        with pytest.raises(PrepareError, match=match) as caught:
            read_imatrix(path)
        assert "\n" not in str(caught.value)

    path.write_bytes(b"\x02\0\0\0" + bytes(40))
    refused(r"older imatrix \(\.dat\) is converted by llama-imatrix --in-file")
    write(path, {"a.in_sum2": one, "a.counts": np.ones(1)}, kind="model")
    refused("no importance matrix")
    write(path, {"a.in_sum2": one})
    refused(r"a has no \.counts")
    write(path, {"a.in_sum2": one, "a.counts": np.ones(2)})
    refused("a has 1 matrices and 2 counts")
    write(path, {"a.in_sum2": -one, "a.counts": np.ones(1)})
    refused("a has a negative sum")
    write(path, {"a.in_sum2": one * np.nan, "a.counts": np.ones(1)})
    refused("holds NaN or infinity")
    write(path, {"a.counts": np.ones(1)})
    refused("holds no statistics")


def test_quantize_with_it(tmp_path, capsys):
    source = write_random_glm(tmp_path / "f16.gguf", load_core(), GGMLType.F16)
    names = ["blk.0.attn_qkv.weight", "blk.1.ffn_down.weight"]
    with GGUFReader(source) as reader:
        columns = {name: reader.tensors[name].shape[-1] for name in names}
    totals = {name: sums(1, columns[name])[0] for name in names}
    counts = dict.fromkeys(names, np.array([64.0]))
    write_imatrix(tmp_path / "i.gguf", totals, counts, datasets=["x"], num_chunks=1, chunk_size=64)
    command = ["quantize", str(source), str(tmp_path / "ours.gguf"), "Q2_K", "-t", "1"]
    assert rillm([*command, "--imatrix", str(tmp_path / "i.gguf")]) == 0
    quantize(source, tmp_path / "plain.gguf", "Q2_K", num_threads=1)
    with GGUFReader(tmp_path / "ours.gguf") as a, GGUFReader(tmp_path / "plain.gguf") as b:
        differ = [name for name in a.tensors if a.tensors[name].data != b.tensors[name].data]
    assert differ == names
    assert rillm([*command[:-2], "--imatrix", str(tmp_path / "plain.gguf")]) == 1
    assert "no importance matrix" in capsys.readouterr().err


def test_the_new_file_says_what_it_was_made_with(tmp_path):
    source = write_random_glm(tmp_path / "f16.gguf", load_core(), GGMLType.F16)
    matrix, alien = tmp_path / "i.gguf", tmp_path / "alien.gguf"
    kind = {"datasets": ["wiki.txt"], "num_chunks": 3, "chunk_size": 64}
    count = {"blk.0.ffn_down.weight": np.array([192.0])}
    write_imatrix(matrix, {"blk.0.ffn_down.weight": sums(1, 512)[0]}, count, **kind)
    quantize(source, tmp_path / "q.gguf", "Q4_K_M", imatrix=matrix, num_threads=1)
    with GGUFReader(tmp_path / "q.gguf") as reader:  # as llama-quantize does
        said = {k: v for k, v in reader.metadata.items() if k.startswith("quantize.imatrix.")}
    assert said == {
        "quantize.imatrix.file": "i.gguf",
        "quantize.imatrix.dataset": "wiki.txt",
        "quantize.imatrix.entries_count": 1,
        "quantize.imatrix.chunks_count": 3,
    }
    write_imatrix(alien, {"blk.0.attn_w.weight": sums(1, 512)[0]}, {
        "blk.0.attn_w.weight": np.array([192.0])}, **kind)  # fmt: skip
    with pytest.raises(PrepareError, match=r"blk\.0\.attn_w\.weight and others, none of which"):
        quantize(source, tmp_path / "q.gguf", "Q4_K_M", imatrix=alien)
