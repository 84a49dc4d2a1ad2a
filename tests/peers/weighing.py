"""Errors of a quantised file against the floats it was made from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rillm.core import load_core
from rillm.gguf import GGMLType, GGUFReader

Floats = NDArray[np.float32]


def matrices(path: Path) -> dict[str, tuple[GGMLType, Floats]]:
    """The matrices of a GGUF file: name -> type, values [rows, cols]."""
    found = {}
    with GGUFReader(path) as reader:
        for name, info in reader.tensors.items():
            if len(info.shape) == 2:
                values = np.empty(info.shape, np.float32)
                load_core().dequantize(info.type, info.data, values.data)
                found[name] = info.type, values
    return found


def relative_error(exact: Floats, got: Floats, importance: Floats | None = None) -> float:
    """Root mean square error over root mean square; importance: [cols], or none for all alike."""
    weight = np.ones(exact.shape[1]) if importance is None else importance.astype(np.float64)
    difference = np.square(got.astype(np.float64) - exact) @ weight
    return float(np.sqrt(difference.sum() / (np.square(exact.astype(np.float64)) @ weight).sum()))


def errors(path: Path, exact: Path, importance: Mapping[str, Floats]) -> dict[str, float]:
    """name -> error of each quantised matrix, weighted where there is an importance."""
    floats = matrices(exact)
    return {
        name: relative_error(floats[name][1], values, importance.get(name))
        for name, (type_, values) in matrices(path).items()
        if type_ not in (GGMLType.F32, GGMLType.F16, GGMLType.BF16)
    }
