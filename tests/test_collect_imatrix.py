"""Collecting an importance matrix: against the definition, and stopped on the way."""

from __future__ import annotations

import random
import re

import numpy as np
import pytest
from random_gguf import write_random_glm
from tiny import Terminal, rillm, write_tiny

from rillm.cli.app import run
from rillm.core import load_core
from rillm.errors import RillmError
from rillm.gguf import GGMLType, GGUFReader, GGUFWriter
from rillm.prepare import collect_imatrix
from rillm.prepare.collect_imatrix import collect
from rillm.prepare.errors import PrepareError
from rillm.prepare.imatrix import read_imatrix
from rillm.prepare.quantize import quantize
from rillm.tokenizer import Tokenizer

WORDS = ["GLM", "risc", "-V ", "你好", "the ", "model", ", ", "tensor\n", "is ", "42"]
TEXT = "".join(random.Random(5).choices(WORDS, k=120))
LAYER = ("attn_qkv", "attn_output", "ffn_up", "ffn_down")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("imatrix")
    return write_random_glm(folder / "f32.gguf", load_core(), GGMLType.F32)


def floats(reader, name):
    info = reader.tensors[name]
    return np.frombuffer(info.data, np.float32).reshape(info.shape).astype(np.float64)


def means(path):
    return read_imatrix(path).importance()


def close(got, wanted, rtol=2e-6):
    assert set(got) == set(wanted)
    for name, values in wanted.items():
        np.testing.assert_allclose(got[name], values, rtol=rtol, err_msg=name)


def test_the_first_layer_by_hand(model, tmp_path):
    """Its norm of the embeddings is what attn_qkv is multiplied with."""
    collect(model, TEXT, tmp_path / "i.gguf", dataset="words", context=48, num_threads=2)
    matrix = read_imatrix(tmp_path / "i.gguf")
    assert set(matrix.sums) == {f"blk.{i}.{name}.weight" for i in (0, 1) for name in LAYER}
    with GGUFReader(model) as reader:
        ids = Tokenizer.from_gguf(reader.metadata).encode(TEXT, add_special=True)
        num_chunks = len(ids) // 48
        rows = floats(reader, "token_embd.weight")[ids[: num_chunks * 48]]
        rows /= np.sqrt(np.square(rows).mean(axis=1, keepdims=True) + 1e-5)
        rows *= floats(reader, "blk.0.attn_norm.weight")
    expected = np.square(rows).sum(axis=0)
    np.testing.assert_allclose(matrix.sums["blk.0.attn_qkv.weight"][0], expected, rtol=2e-6)
    assert matrix.counts["blk.0.attn_qkv.weight"] == [num_chunks * 48]
    assert (matrix.datasets, matrix.num_chunks, matrix.chunk_size) == (("words",), num_chunks, 48)


def test_batches_threads_and_the_head_change_nothing_else(model, tmp_path, monkeypatch):
    whole, parts = tmp_path / "whole.gguf", tmp_path / "parts.gguf"
    collect(model, TEXT, whole, context=64, max_chunks=3, num_threads=1)
    monkeypatch.setattr(collect_imatrix, "_BATCH_TOKENS", 20)
    result = collect(
        model, TEXT, parts, context=64, max_chunks=3, num_threads=3, process_output=True
    )
    assert (result.num_chunks, result.num_tokens, result.num_matrices) == (3, 192, 9)
    ours = means(parts)
    head = ours.pop("output.weight")
    close(ours, means(whole))
    # The final norm's weights are near 1, so its outputs' mean square is too.
    assert head.shape == (256,)
    assert 0.2 < head.mean() < 5


def test_a_tied_head_goes_by_the_name_of_the_embedding(tmp_path):
    source = write_random_glm(tmp_path / "f32.gguf", load_core(), GGMLType.F32)
    tied = tmp_path / "tied.gguf"
    with GGUFReader(source) as reader:
        kept = {n: t for n, t in reader.tensors.items() if n != "output.weight"}
        with GGUFWriter(tied, reader.copy_metadata()) as writer:
            for name, tensor in kept.items():
                writer.declare(name, tensor.shape, tensor.type)
            for name, tensor in kept.items():
                writer.write(name, [tensor.data])
    collect(tied, TEXT, tmp_path / "i.gguf", context=64, max_chunks=1, process_output=True)
    names = set(read_imatrix(tmp_path / "i.gguf").sums)
    assert "token_embd.weight" in names
    assert "output.weight" not in names
    collect(tied, TEXT, tmp_path / "i.gguf", context=64, max_chunks=1)
    assert set(read_imatrix(tmp_path / "i.gguf").sums) == names - {"token_embd.weight"}


def test_two_texts_add_up(model, tmp_path):
    half = TEXT[: len(TEXT) // 2]
    rest = TEXT[len(half) :]
    kind = {"context": 32, "num_threads": 1}
    first = tmp_path / "first.gguf"
    collect(model, half, first, dataset="a", **kind)
    collect(model, rest, tmp_path / "second.gguf", dataset="b", **kind)
    both = tmp_path / "both.gguf"
    collect(model, rest, both, dataset="b", add_to=read_imatrix(first), **kind)
    a, b, c = map(read_imatrix, (first, tmp_path / "second.gguf", both))
    assert c.datasets == ("a", "b")
    assert c.num_chunks == a.num_chunks + b.num_chunks
    for name in a.sums:
        np.testing.assert_allclose(c.sums[name], a.sums[name] + b.sums[name], rtol=1e-6)
        assert c.counts[name] == a.counts[name] + b.counts[name]
    other = write_random_glm(tmp_path / "other.gguf", load_core(), GGMLType.F32)
    collect(other, half, tmp_path / "o.gguf", process_output=True, **kind)
    alien = read_imatrix(tmp_path / "o.gguf")
    alien.sums.pop("blk.1.ffn_down.weight")
    with pytest.raises(PrepareError, match=r"no blk\.1\.ffn_down\.weight of 512 columns"):
        collect(model, rest, both, add_to=alien, **kind)


class StopError(Exception):
    pass


def test_an_interrupted_run_goes_on(model, tmp_path):
    out, seen = tmp_path / "i.gguf", []
    kind = {"dataset": "words", "context": 32, "num_threads": 1}

    def stop_after(count):
        def report(done, total):
            seen.append(done)
            if done == count:
                raise StopError

        return report

    for count, begun in ((2, 0), (4, 2)):
        seen.clear()
        with pytest.raises(StopError):
            collect(model, TEXT, out, report=stop_after(count), **kind)
        assert seen[0] == begun
        (part,) = tmp_path.iterdir()  # nothing that looks whole
        assert re.fullmatch(r"\.i\.gguf\.[0-9a-f]{12}\.partial", part.name)
        assert read_imatrix(part).num_chunks == count
    # Another text or another model is another measurement, and does not go on from this part.
    with pytest.raises(StopError):
        collect(model, TEXT[3:], out, report=stop_after(0), **kind)
    assert seen[-1] == 0
    result = collect(model, TEXT, out, **kind)
    assert result.num_resumed == 4
    assert list(tmp_path.iterdir()) == [out]
    collect(model, TEXT, tmp_path / "whole.gguf", **kind)
    assert out.read_bytes() == (tmp_path / "whole.gguf").read_bytes()
    # A part that was damaged is not gone on from.
    with pytest.raises(StopError):
        collect(model, TEXT, out, report=stop_after(2), **kind)
    part.write_bytes(part.read_bytes()[:2000])
    assert collect(model, TEXT, out, **kind).num_resumed == 0


def test_what_cannot_be_measured(model, tmp_path):
    with pytest.raises(RillmError, match="two chunks of 512 are needed"):
        collect(model, "short", tmp_path / "i.gguf")
    with pytest.raises(PrepareError, match="no such folder; make it"):
        collect(model, TEXT, tmp_path / "nowhere" / "i.gguf")
    damaged = tmp_path / "damaged.gguf"
    with GGUFReader(model) as reader:
        offset = bytes(reader.tensors["blk.1.attn_norm.weight"].data[:64])
    data = bytearray(model.read_bytes())
    at = data.index(offset)
    data[at : at + 4] = np.float32(np.nan).tobytes()
    damaged.write_bytes(data)
    with pytest.raises(PrepareError, match=r"input of blk\.1\.attn_qkv\.weight holds NaN"):
        collect(damaged, TEXT, tmp_path / "i.gguf", context=32, num_threads=1)
    assert not (tmp_path / "i.gguf").exists()


def test_the_command(tmp_path):
    tiny = write_tiny(tmp_path).with_name("glm-tiny.f16.gguf")
    text = tmp_path / "text.txt"
    text.write_text("The sun is out. 今天天气很好。\n" * 200, encoding="utf-8")
    first = rillm("imatrix", tiny, text, "-c", 128, "--chunks", 2, "-t", 1)
    assert first.returncode == 0, first.stderr
    path = tmp_path / "glm-tiny.f16.imatrix.gguf"
    assert first.stdout == f"{path}: 24 matrices, 2 chunks of 128 tokens\n"
    assert read_imatrix(path).datasets == ("text.txt",)
    assert (
        run(["quantize", str(tiny), str(tmp_path / "w.gguf"), "Q2_K", "--imatrix", str(path)]) == 0
    )
    quantize(tiny, tmp_path / "plain.gguf", "Q2_K")
    assert (tmp_path / "w.gguf").read_bytes() != (tmp_path / "plain.gguf").read_bytes()
    options = ["-m", tiny, "-f", text, "-c", 128, "--chunks", 2, "-o", "o.gguf"]
    assert rillm("imatrix", *options, cwd=tmp_path).returncode == 0
    assert (tmp_path / "o.gguf").read_bytes() == path.read_bytes()
    for arguments in ([tiny], ["-m", tiny, tiny, text], [], ["-f", text]):
        wrong = rillm("imatrix", *arguments)
        assert wrong.returncode == 2
        assert "give MODEL and TEXT, or -m MODEL and -f TEXT" in wrong.stderr
    text.write_bytes(b"\xff\xfe")
    wrong = rillm("imatrix", tiny, text)
    assert (wrong.returncode, wrong.stdout) == (1, "")
    assert wrong.stderr == f"error: {text}: is not UTF-8 text (invalid start byte at 0)\n"


def test_ctrl_c_keeps_what_is_measured(tmp_path):
    tiny = write_tiny(tmp_path).with_name("glm-tiny.f16.gguf")
    text = tmp_path / "text.txt"
    text.write_text("The sun is out. 今天天气很好。\n" * 20000, encoding="utf-8")
    command = ["imatrix", str(tiny), str(text), "-o", str(tmp_path / "i.gguf"), "-t", "1"]
    with Terminal(*command, TERM="xterm") as terminal:
        terminal.expect("chunk [2-9] of")
        terminal.send("\x03")
        assert terminal.wait() == 130
        assert "chunks are kept; the same command goes on" in terminal.shown
    assert not (tmp_path / "i.gguf").exists()
    with Terminal(*command, TERM="xterm") as terminal:
        terminal.expect("going on after [2-9] of")
        terminal.send("\x03")
        assert terminal.wait() == 130
