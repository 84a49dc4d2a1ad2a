"""Importance matrices against llama-imatrix, and what both quantisers make of both files."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean

import models
import numpy as np
import peer
import pytest
from models import GLM4, GLM_TINY, LLAMA, Source
from weighing import errors

from rillm.data import glm_tiny_path
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


@pytest.mark.parametrize("kind", ["Q2_K", "Q3_K_M", "Q4_0", "Q4_K_M", "IQ4_XS"])
def test_either_file_in_either_quantiser(kind: str, shared: Path) -> None:
    """Errors weighted by llama-imatrix's own statistics: its file and rillm's do the same good in
    llama-quantize, and in rillm quantize, whose errors are not the larger ones."""
    model = GLM_TINY.write(shared, "f16")
    ours, theirs = measure_both(model, shared)
    importance = read_imatrix(theirs).importance()
    found: dict[str, dict[str, float]] = {}
    for name, matrix in (("rillm's", ours), ("llama.cpp's", theirs)):
        path = shared / "quantised.gguf"
        peer.tool("quantize", "--imatrix", matrix, model, path, kind, 1)
        found[f"{name} file in llama-quantize"] = errors(path, model, importance)
        own = read_imatrix(matrix).importance()
        quantize(model, path, kind, importance=own, num_threads=1)
        found[f"{name} file in rillm quantize"] = errors(path, model, importance)
    peer.tool("quantize", model, path, kind, 1)
    found["no file in llama-quantize"] = errors(path, model, importance)
    means = {name: fmean(rows[tensor] for tensor in importance) for name, rows in found.items()}
    print(f"\n{kind}: " + ", ".join(f"{name} {mean:.5f}" for name, mean in means.items()))
    for program in ("llama-quantize", "rillm quantize"):
        a, b = (found[f"{name} file in {program}"] for name in ("rillm's", "llama.cpp's"))
        assert a.keys() == b.keys()
        for tensor in a:
            assert a[tensor] == pytest.approx(b[tensor], rel=0.01), (program, tensor)
    for name in ("rillm's", "llama.cpp's"):
        a, b = (found[f"{name} file in {p}"] for p in ("rillm quantize", "llama-quantize"))
        for tensor in a:
            assert a[tensor] <= b[tensor] * 1.001, (name, tensor)
    assert means["rillm's file in llama-quantize"] < means["no file in llama-quantize"]
