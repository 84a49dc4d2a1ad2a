"""Importance matrices: the GGUF files that llama-imatrix writes, read and written.

For each matrix of a model the file has `NAME.in_sum2` [matrices, cols], the sum of squares of each
column's input over all tokens of a text, and `NAME.counts` [matrices, 1], how many tokens that was
(there are several matrices where a tensor holds a stack of experts). What quantize weights a
column's error with is their quotient.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
from numpy.typing import NDArray

from rillm.gguf import (
    GGMLType,
    GGUFReader,
    GGUFWriter,
    TensorInfo,
    Typed,
    ValueType,
    WriterValue,
)
from rillm.prepare.errors import PrepareError

Floats = NDArray[np.float32]
_SUMS, _COUNTS = ".in_sum2", ".counts"


@dataclass(frozen=True)
class ImportanceMatrix:
    """Statistics of the inputs of a model's matrices on a text."""

    sums: dict[str, Floats]  # tensor name -> sum of squares, [matrices, cols]
    counts: dict[str, Floats]  # tensor name -> tokens, [matrices]
    datasets: tuple[str, ...]  # what the text was
    num_chunks: int
    chunk_size: int  # tokens

    def origin(self, path: str | os.PathLike[str]) -> dict[str, WriterValue]:
        """The keys by which a file that was quantised with this says so, as llama-quantize's."""
        keys: dict[str, WriterValue] = {
            "quantize.imatrix.file": os.path.basename(path),
            "quantize.imatrix.entries_count": len(self.sums),
            "quantize.imatrix.chunks_count": self.num_chunks,
        }
        if self.datasets:
            keys["quantize.imatrix.dataset"] = self.datasets[0]
        return keys

    def importance(self) -> dict[str, Floats]:
        """tensor name -> mean square of each column's input, [matrices * cols], for `quantize`.

        A matrix that saw no token (an expert that was never chosen) gets 1 everywhere.
        """
        result = {}
        for name, sums in self.sums.items():
            counts = self.counts[name].reshape(-1, 1)
            means = np.where(counts > 0, sums / np.maximum(counts, 1), np.float32(1))
            result[name] = means.astype(np.float32).reshape(-1)
        return result


def read_imatrix(path: str | os.PathLike[str]) -> ImportanceMatrix:
    """Read llama-imatrix's GGUF file. Raises PrepareError or GGUFError with one line."""
    with open(path, "rb") as file:
        if file.read(4) != b"GGUF":
            raise PrepareError(
                f"{path}: is no GGUF file; an older imatrix (.dat) is converted by "
                f"llama-imatrix --in-file {path} -o NEW.gguf"
            )
    with GGUFReader(path) as reader:
        metadata = reader.metadata
        if metadata.get("general.type") != "imatrix":
            raise PrepareError(f"{path}: is a GGUF file, but no importance matrix")
        sums, counts = {}, {}
        for key, info in reader.tensors.items():
            if not key.endswith(_SUMS):
                continue
            name = key.removesuffix(_SUMS)
            count = reader.tensors.get(name + _COUNTS)
            if count is None:
                raise PrepareError(f"{path}: {name} has no {_COUNTS}; the file is incomplete")
            columns = info.shape[-1]
            sums[name] = _floats(info).reshape(-1, columns)
            counts[name] = _floats(count).reshape(-1)
            if len(counts[name]) != len(sums[name]):
                raise PrepareError(
                    f"{path}: {name} has {len(sums[name])} matrices and {len(counts[name])} counts"
                )
            if (sums[name] < 0).any() or (counts[name] < 0).any():
                raise PrepareError(f"{path}: {name} has a negative sum; make the file again")
        if not sums:
            raise PrepareError(f"{path}: holds no statistics (NAME{_SUMS})")
        return ImportanceMatrix(
            sums,
            counts,
            tuple(metadata.require("imatrix.datasets", list[str], [])),
            metadata.require("imatrix.chunk_count", int, 0),
            metadata.require("imatrix.chunk_size", int, 0),
        )


def write_imatrix(
    path: str | os.PathLike[str],
    sums: Mapping[str, Floats],
    counts: Mapping[str, Floats],
    *,
    datasets: Sequence[str],
    num_chunks: int,
    chunk_size: int,
) -> None:
    """Write the file that llama-quantize --imatrix reads; arguments as in ImportanceMatrix."""
    metadata: dict[str, WriterValue] = {
        "general.type": "imatrix",
        "imatrix.datasets": Typed(ValueType.STRING, list(datasets)),
        "imatrix.chunk_count": num_chunks,
        "imatrix.chunk_size": chunk_size,
    }
    arrays: dict[str, Floats] = {}
    for name in sorted(sums):
        total = np.ascontiguousarray(sums[name], np.float32)
        if total.ndim == 1:
            total = total.reshape(1, -1)
        count = np.ascontiguousarray(counts[name], np.float32).reshape(-1, 1)
        if total.ndim != 2 or len(total) != len(count):
            raise PrepareError(f"{name}: {total.shape} sums do not go with {len(count)} counts")
        arrays[name + _SUMS], arrays[name + _COUNTS] = total, count
    with GGUFWriter(path, metadata) as writer:
        for key, array in arrays.items():
            writer.declare(key, array.shape, GGMLType.F32)
        for key, array in arrays.items():
            writer.write(key, [array.data])


def _floats(info: TensorInfo) -> Floats:
    if info.type is not GGMLType.F32:
        raise PrepareError(f"{info.path}: {info.name} is {info.type.name}, not F32")
    values = np.frombuffer(info.data, "<f4", prod(info.shape)).copy()
    if not np.isfinite(values).all():
        raise PrepareError(f"{info.path}: {info.name} holds NaN or infinity; make the file again")
    return values
