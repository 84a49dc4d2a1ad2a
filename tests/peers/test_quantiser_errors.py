"""Errors of rillm quantize beside llama-quantize's, for every type: rillm's is never the larger.

On glm-tiny's own weights, and on normal and heavy-tailed (Student, 3 degrees of freedom) random
numbers in their place; and on the ffn_down of SmolLM2's 30 layers, whose rows alone are multiples
of 256. Plain, and weighted by an importance matrix that both quantised with. Run with -s to see the
table.
"""

from __future__ import annotations

from pathlib import Path

import models
import numpy as np
import peer
import pytest
from models import GLM_TINY
from weighing import Floats, matrices, relative_error

from rillm.core import load_core
from rillm.data import glm_tiny_path
from rillm.gguf import GGMLType, GGUFReader, GGUFWriter
from rillm.prepare.collect_imatrix import collect
from rillm.prepare.imatrix import read_imatrix, write_imatrix
from rillm.prepare.quantize import quantize

TYPES = (
    "Q8_0", "Q6_K", "Q5_1", "Q5_0", "Q5_K", "Q4_1", "Q4_0", "Q4_K", "IQ4_NL", "IQ4_XS", "Q3_K",
    "Q2_K",
)  # fmt: skip
MIXES = {"Q5_K": "Q5_K_S", "Q4_K": "Q4_K_S", "Q3_K": "Q3_K_S"}  # pure: the type for every matrix
# Both search for the best scales, over different candidates; on a few thousand blocks of a type
# this is the luck that one of them can have.
SLACK = 1.0005


def write_random(kind: str, path: Path, like: Path) -> None:
    """glm-tiny with random numbers in its matrices."""
    generator = np.random.default_rng(12)
    with GGUFReader(like) as reader, GGUFWriter(path, reader.copy_metadata()) as writer:
        for info in reader.tensors.values():
            writer.declare(info.name, info.shape, info.type)
        for info in reader.tensors.values():
            if len(info.shape) == 1:
                writer.write(info.name, [info.data])
                continue
            heavy = kind == "heavy-tailed"
            values = (
                generator.standard_t(3, info.shape)
                if heavy
                else generator.standard_normal(info.shape)
            )
            writer.write(info.name, [(0.02 * values).astype(np.float32).data])


def write_smollm2(folder: Path) -> tuple[Path, Path]:
    """(f32 file of SmolLM2's ffn_down, importance matrix of the whole model)"""
    given, reason = models.smollm2()
    if given is None:
        pytest.skip(reason)
    matrix, path = folder / "smollm2.imatrix.gguf", folder / "smollm2.f32.gguf"
    text = (Path(peer.__file__).parents[2] / "docs" / "prepare.md").read_text(encoding="utf-8")
    collect(given, text, matrix, context=256, max_chunks=8)
    with GGUFReader(given) as reader, GGUFWriter(path, reader.copy_metadata()) as writer:
        chosen = [info for name, info in reader.tensors.items() if "ffn_down" in name]
        for info in chosen:
            writer.declare(info.name, info.shape, GGMLType.F32)
        for info in chosen:
            values = np.empty(info.shape, np.float32)
            load_core().dequantize(info.type, info.data, values.data)
            writer.write(info.name, [values.data])
    return path, matrix


@pytest.fixture(scope="module", params=["glm-tiny", "normal", "heavy-tailed", "smollm2"])
def case(request: pytest.FixtureRequest, shared: Path) -> tuple[str, Path, Path]:
    """(name, f32 file, importance matrix)"""
    if request.param == "smollm2":
        return request.param, *write_smollm2(shared)
    model = GLM_TINY.write(shared, "f32")
    matrix = shared / f"{request.param}.imatrix.gguf"
    if request.param == "glm-tiny":
        text = (glm_tiny_path() / "heldout.txt").read_text(encoding="utf-8")
        collect(model, text, matrix, context=256, max_chunks=16, num_threads=1)
        return request.param, model, matrix
    path = shared / f"{request.param}.f32.gguf"
    write_random(request.param, path, model)
    generator = np.random.default_rng(13)
    sums = {
        name: generator.lognormal(size=(1, values.shape[1])).astype(np.float32)
        for name, (_, values) in matrices(path).items()
    }
    counts = dict.fromkeys(sums, np.ones(1, np.float32))
    write_imatrix(matrix, sums, counts, datasets=["random"], num_chunks=1, chunk_size=1)
    return request.param, path, matrix


@pytest.mark.parametrize("kind", TYPES)
def test_not_above_llama_quantize(kind: str, case: tuple[str, Path, Path], shared: Path) -> None:
    name, model, matrix = case
    importance = read_imatrix(matrix).importance()
    ours, theirs = shared / "ours.gguf", shared / "theirs.gguf"
    mix = MIXES.get(kind, kind)
    cells = []
    for weighted in (False, True):
        flags = ["--imatrix", matrix] if weighted else []
        peer.tool("quantize", "--pure", *flags, model, theirs, mix, 1)
        quantize(
            model, ours, mix, pure=True, num_threads=1, importance=importance if weighted else None
        )
        weights = importance if weighted else {}
        a, b = (error_of(path, model, GGMLType[kind], weights, weighted) for path in (ours, theirs))
        cells += [f"{a:.5f}", f"{b:.5f}"]
        assert a <= b * SLACK, (weighted, a, b)
    print(f"\n| {name} | {kind} | " + " | ".join(cells) + " |")


def error_of(
    path: Path, exact: Path, kind: GGMLType, importance: dict[str, Floats], weighted: bool
) -> float:
    """Relative error over all matrices of the type (those of 288 columns may have another)."""
    floats = matrices(exact)
    squares = []
    for name, (type_, values) in matrices(path).items():
        if type_ is kind and (not weighted or name in importance):
            error = relative_error(floats[name][1], values, importance.get(name))
            squares.append(error**2)
    assert len(squares) >= 18
    return float(np.sqrt(np.mean(squares)))
