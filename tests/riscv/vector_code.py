"""Finds the vector instructions in the code of a RISC-V library (RVV 1.0 and 0.7.1 alike)."""

from __future__ import annotations

import struct
from pathlib import Path

VLENB = 0xC22
# vstart, vxsat, vxrm, vcsr, vl, vtype, vlenb
VECTOR_CSRS = frozenset({0x008, 0x009, 0x00A, 0x00F, 0xC20, 0xC21, VLENB})
_OP_V, _LOAD_FP, _STORE_FP, _SYSTEM = 0x57, 0x07, 0x27, 0x73
_SCALAR_WIDTHS = (1, 2, 3, 4)  # of floating-point loads and stores: binary16 to binary128


def text_of(path: Path) -> bytes:
    """The executable code of an ELF64 file (its section .text)."""
    data = path.read_bytes()
    (offset,) = struct.unpack_from("<Q", data, 0x28)
    size, count, names = struct.unpack_from("<HHH", data, 0x3A)
    sections = [struct.unpack_from("<IIQQQQ", data, offset + i * size) for i in range(count)]
    for name, _, _, _, start, length in sections:
        if data[sections[names][4] + name :].startswith(b".text\0"):
            return data[start : start + length]
    raise AssertionError(f"{path.name}: no section .text")


def vector_instructions(path: Path) -> list[int]:
    """Every instruction that needs a vector unit, in the order of the code."""
    code, at, found = text_of(path), 0, []
    while at + 4 <= len(code):
        (word,) = struct.unpack_from("<I", code, at)
        if word & 3 != 3:
            at += 2
            continue
        at += 4
        opcode, width = word & 0x7F, word >> 12 & 7
        if (
            opcode == _OP_V
            or (opcode in (_LOAD_FP, _STORE_FP) and width not in _SCALAR_WIDTHS)
            or (opcode == _SYSTEM and width != 0 and word >> 20 in VECTOR_CSRS)
        ):
            found.append(word)
    return found


def csr_of(word: int) -> int:
    """The control register that an instruction of vector_instructions() uses; 0: none."""
    return word >> 20 if word & 0x7F == _SYSTEM else 0
