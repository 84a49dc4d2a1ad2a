"""Packed files: GGUF files whose matrices are in the row tiles of one variant of the core.

To other programs such a file is a model of an architecture that they do not know, and its packed
matrices are bytes (I8 tensors of whole tiles). Keys say what they are: `rillm.packed.architecture`
is the model's, `.variant` and `.layout` say who can run it, `.types` and `.rows` give for each
tensor of the file its type (-1 where it is not packed) and rows without padding.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from rillm.gguf.header import TensorRecord
from rillm.gguf.types import GGMLType, GGUFError, Metadata, ValueType, quote
from rillm.gguf.values import Typed, WriterValue

ARCHITECTURE = "rillm-packed"
ALIGNMENT = 4096  # of tensors: each starts on a page
_PREFIX = "rillm.packed."


@dataclass(frozen=True)
class Packing:
    """For whom a file is packed."""

    variant: str  # of the core, e.g. "x86_avx2"
    layout: str  # Core.layout_id of the variant and the packed types


class PackedTensor(NamedTuple):
    """What a packed tensor holds: [rows, cols] of a type."""

    type: GGMLType
    rows: int


def packed_metadata(
    architecture: str, packing: Packing, tensors: Mapping[str, PackedTensor | None]
) -> dict[str, WriterValue]:
    """The keys of a packed file. tensors: all of the file in its order, None where not packed."""
    types = [-1 if tensor is None else int(tensor.type) for tensor in tensors.values()]
    rows = [0 if tensor is None else tensor.rows for tensor in tensors.values()]
    return {
        "general.architecture": ARCHITECTURE,
        f"{_PREFIX}architecture": architecture,
        f"{_PREFIX}variant": packing.variant,
        f"{_PREFIX}layout": packing.layout,
        f"{_PREFIX}types": Typed(ValueType.INT32, types),
        f"{_PREFIX}rows": Typed(ValueType.INT64, rows),
    }


def read_packing(metadata: Metadata) -> Packing | None:
    """For whom the file is packed; None for any other file."""
    if metadata.get("general.architecture") != ARCHITECTURE:
        return None
    metadata["general.architecture"] = metadata.require(f"{_PREFIX}architecture", str)
    return Packing(
        metadata.require(f"{_PREFIX}variant", str), metadata.require(f"{_PREFIX}layout", str)
    )


def logical_tensors(
    metadata: Metadata, records: list[TensorRecord]
) -> list[tuple[TensorRecord, bool]]:
    """The tensors of a packed file with the types and shapes of what is packed in them, and
    whether it is. GGUFError where the keys do not fit the tensors."""
    types = metadata.require(f"{_PREFIX}types", list[int])
    rows = metadata.require(f"{_PREFIX}rows", list[int])
    for key, values in (("types", types), ("rows", rows)):
        if len(values) != len(records):
            raise GGUFError(
                f"{metadata.source}: metadata key '{_PREFIX}{key}' has {len(values)} values for "
                f"{len(records)} tensors"
            )
    return [
        (record, False) if number == -1 else (_logical(metadata, record, number, count), True)
        for record, number, count in zip(records, types, rows, strict=True)
    ]


def _logical(metadata: Metadata, record: TensorRecord, number: int, rows: int) -> TensorRecord:
    field = f"{metadata.source}: packed tensor {quote(record.name)}"
    try:
        kind = GGMLType(number)
    except ValueError:
        raise GGUFError(f"{field}: has unknown type {number}") from None
    if record.type is not GGMLType.I8 or len(record.shape) != 2:
        raise GGUFError(f"{field}: is {record.type.name} {list(record.shape)}, not rows of bytes")
    padded, row_bytes = record.shape
    if row_bytes % kind.block_bytes or not 1 <= rows <= padded:
        raise GGUFError(
            f"{field}: {rows} rows of {kind.name} do not lie in {padded} rows of {row_bytes} bytes"
        )
    columns = row_bytes // kind.block_bytes * kind.block_size
    return record._replace(type=kind, shape=(rows, columns))
