"""Conversions between float32, float16 and bfloat16 bits, exact and to the nearest even."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from rillm.gguf import GGMLType

Floats = NDArray[np.float32]


def to_float32(values: NDArray[Any]) -> Floats:
    """Any stored float as float32; uint16 means bfloat16 bits. Exact but for float64."""
    if values.dtype == np.uint16:
        return (values.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return values.astype(np.float32, copy=False)


def is_finite(values: NDArray[Any]) -> bool:
    """Whether there is no NaN and no infinity; uint16 means bfloat16 bits."""
    if values.dtype == np.float32 or values.dtype == np.float64:
        return bool(np.isfinite(values).all())
    # On the bits: numpy's isfinite of a float16 goes through a function call for each. Positive
    # numbers are in order as signed integers, negative ones as unsigned; nothing is allocated.
    infinity = 0x7F80 if values.dtype == np.uint16 else 0x7C00
    highest, lowest = (int(values.view(bits).max(initial=0)) for bits in (np.int16, np.uint16))
    return highest < infinity and lowest < infinity | 0x8000


def encode(values: NDArray[Any], type_: GGMLType) -> NDArray[Any]:
    """`values` (uint16 means bfloat16 bits) as F32, F16 or BF16; too large for F16 is infinite."""
    if type_ is GGMLType.BF16:
        return values if values.dtype == np.uint16 else _to_bf16(to_float32(values))
    if type_ is GGMLType.F32:
        return to_float32(values)
    if values.dtype == np.float16:
        return values
    with np.errstate(over="ignore"):
        return to_float32(values).astype(np.float16)


def _to_bf16(values: Floats) -> NDArray[np.uint16]:
    bits = values.view(np.uint32)
    # Half of the dropped part, less one where the kept part is even: ties go to even.
    rounding = np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
    return ((bits + rounding) >> np.uint32(16)).astype(np.uint16)


def type_of(values: NDArray[Any]) -> GGMLType:
    """The GGUF type of an array of float32, float16 or (uint16) bfloat16."""
    types = {"f4": GGMLType.F32, "f2": GGMLType.F16, "u2": GGMLType.BF16}
    return types[values.dtype.str[1:]]
