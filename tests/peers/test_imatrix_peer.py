"""Importance matrices against llama-imatrix, and what both quantisers make of both files."""

from __future__ import annotations

import hashlib
from pathlib import Path

import models
import numpy as np
import peer
import pytest
from models import GLM4, GLM_TINY, LLAMA, Source

from rillm.data import glm_tiny_path
from rillm.gguf import GGUFReader
from rillm.prepare.collect_imatrix import collect
from rillm.prepare.imatrix import ImportanceMatrix, read_imatrix
from rillm.prepare.quantize import quantize

CONTEXT, CHUNKS = 256, 4


def write_text(shared: Path) -> Path:
    path = shared / "text.txt"
    path.write_bytes((glm_tiny_path() / "heldout.txt").read_bytes())
    return path


def measure_both(model: Path, shared: Path) -> tuple[Path, Path]:
    """(rillm's, llama.cpp's) importance matrix of the model on the same text."""
    text = write_text(shared)
    ours, theirs = shared / f"{model.name}.ours.gguf", shared / f"{model.name}.theirs.gguf"
    collect(
        model, text.read_text(encoding="utf-8"), ours, dataset=text.name, context=CONTEXT,
        max_chunks=CHUNKS, num_threads=1,
    )  # fmt: skip
    # Flash attention rounds to 16 bits, and so does the cache; rillm's cache is the same.
    peer.tool(
        "imatrix", "-m", model, "-f", text, "-o", theirs, "-c", CONTEXT, "--chunks", CHUNKS,
        "-t", 1, "--no-ppl",
    )  # fmt: skip
    return ours, theirs


def worst_difference(ours: ImportanceMatrix, theirs: ImportanceMatrix) -> float:
    """The largest of the matrices' relative differences: |a - b| / |b| over their columns."""
    assert set(ours.sums) == set(theirs.sums)
    assert (ours.num_chunks, ours.chunk_size) == (theirs.num_chunks, theirs.chunk_size)
    worst = 0.0
    for name, sums in theirs.sums.items():
        np.testing.assert_array_equal(ours.counts[name], theirs.counts[name])
        assert ours.sums[name].shape == sums.shape
        difference = np.linalg.norm(ours.sums[name] - sums) / np.linalg.norm(sums)
        worst = max(worst, float(difference))
    return worst


@pytest.mark.parametrize("source", [GLM_TINY, GLM4, LLAMA], ids=lambda source: source.name)
@pytest.mark.parametrize("out_type", ["f32", "f16"])
def test_the_same_statistics(source: Source, out_type: str, shared: Path) -> None:
    ours, theirs = measure_both(source.write(shared, out_type), shared)
    worst = worst_difference(read_imatrix(ours), read_imatrix(theirs))
    print(f"\n{source.name} {out_type}: differ by {worst:.2e}")
    assert worst < 2e-3  # llama.cpp rounds the inputs of f16 matrices to f16, rillm does not


def test_smollm2(shared: Path) -> None:
    """Real weights, in Q4_1: both programs round the inputs to 8 bits, in different ways."""
    given, reason = models.smollm2()
    if given is None:
        pytest.skip(reason)
    path = shared / "smollm2.f16.gguf"
    quantize(given, path, "F16", allow_requantize=True)
    ours, theirs = measure_both(path, shared)
    worst = worst_difference(read_imatrix(ours), read_imatrix(theirs))
    print(f"\nSmolLM2 f16: differ by {worst:.2e}")
    assert worst < 2e-3


def test_llama_quantize_reads_ours_as_its_own(shared: Path) -> None:
    """From the same numbers the same bytes: each reader takes both files alike."""
    model = GLM_TINY.write(shared, "f16")
    ours, theirs = measure_both(model, shared)
    for kind in ("Q4_K_M", "Q2_K", "IQ4_XS"):
        made = {}
        for name, matrix in (("ours", ours), ("theirs", theirs)):
            path = shared / f"tiny.{kind}.{name}.gguf"
            peer.tool("quantize", "--imatrix", matrix, model, path, kind, 1)
            made[f"llama.cpp {name}"] = path
            path = shared / f"tiny.{kind}.{name}.rillm.gguf"
            quantize(model, path, kind, importance=read_imatrix(matrix).importance(), num_threads=1)
            made[f"rillm {name}"] = path
        plain = shared / f"tiny.{kind}.plain.gguf"
        peer.tool("quantize", model, plain, kind, 1)
        hashes = {name: digests(path) for name, path in made.items()}
        num = len(hashes["rillm ours"])
        for program in ("llama.cpp", "rillm"):
            a, b = hashes[f"{program} ours"], hashes[f"{program} theirs"]
            assert a.keys() == b.keys()
            same = sum(a[name] == b[name] for name in a)
            print(f"\n{kind} {program}: {same} of {num} tensors the same from both files")
            unlike = sum(a[name] != digests(plain)[name] for name in a)
            assert unlike > num // 3  # it was used at all


def digests(path: Path) -> dict[str, str]:
    with GGUFReader(path) as reader:
        return {
            name: hashlib.sha256(info.data).hexdigest() for name, info in reader.tensors.items()
        }
