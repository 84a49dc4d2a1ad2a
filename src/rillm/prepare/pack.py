"""pack: a GGUF file with its matrices in the form that one variant of the core multiplies.

Such a file is mapped and run: nothing is repacked or copied when it is loaded. It needs no numpy,
so a board can pack for itself; a workstation can pack for a board.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

from rillm.core import Core, ThreadTeam
from rillm.gguf import (
    GGMLType,
    GGUFReader,
    GGUFWriter,
    PackedTensor,
    Packing,
    TensorInfo,
    packed_metadata,
)
from rillm.gguf.packed import ALIGNMENT
from rillm.models import matrix_tensors
from rillm.prepare.errors import PrepareError

_CHUNK_ROWS = 4096  # of whole tiles in any variant

# Called with (bytes done, bytes in total).
Progress = Callable[[int, int], None]


def pack(
    in_path: str | os.PathLike[str],
    out_path: str | os.PathLike[str],
    core: Core,
    team: ThreadTeam,
    variant: str | None = None,
    *,
    progress: Progress | None = None,
) -> Path:
    """Writes the model of `in_path` packed for a variant of the core (None: the one loaded).

    The types stay as they are. Raises PrepareError, ModelError, GGUFError or CoreError with one
    line; `out_path` is only ever a whole file.
    """
    variant = variant or core.variant
    tile_rows = core.tile_rows(variant)
    with GGUFReader(in_path) as reader:
        if reader.packing is not None:
            raise PrepareError(
                f"{in_path}: is packed already, for {reader.packing.variant}; start from the GGUF "
                "file it was made from"
            )
        if any(os.path.exists(out_path) and os.path.samefile(out_path, x) for x in reader.files):
            raise PrepareError(f"{out_path}: is the input file; give another output path")
        # A tied head is the embedding once more: in tiles, beside the rows that are looked up.
        sources = {name: (tensor, False) for name, tensor in reader.tensors.items()} | {
            name: (tensor, True) for name, tensor in matrix_tensors(reader).items()
        }
        packed = {
            name: PackedTensor(tensor.type, tensor.shape[0]) if is_packed else None
            for name, (tensor, is_packed) in sources.items()
        }
        types = {int(tensor.type) for tensor in packed.values() if tensor is not None}
        metadata = reader.copy_metadata() | packed_metadata(
            str(reader.metadata["general.architecture"]),
            Packing(variant, core.layout_id(variant, types)),
            packed,
        )
        total = sum(tensor.nbytes for tensor, _ in sources.values())
        done = 0
        with GGUFWriter(out_path, metadata, ALIGNMENT) as writer:
            for name, (tensor, is_packed) in sources.items():
                if is_packed:
                    rows = -(-tensor.shape[0] // tile_rows) * tile_rows
                    row_bytes = tensor.type.row_bytes(tensor.shape[1])
                    writer.declare(name, (rows, row_bytes), GGMLType.I8)
                else:
                    writer.declare(name, tensor.shape, tensor.type)
            for name, (tensor, is_packed) in sources.items():
                data = _packed(core, team, variant, tensor) if is_packed else iter([tensor.data])
                writer.write(name, data)
                tensor.release()
                done += tensor.nbytes
                if progress is not None:
                    progress(done, total)
    return Path(out_path)


def _packed(
    core: Core, team: ThreadTeam, variant: str, tensor: TensorInfo
) -> Iterator[memoryview | bytearray]:
    rows, cols = tensor.shape
    row_bytes = tensor.type.row_bytes(cols)
    for first in range(0, rows, _CHUNK_ROWS):
        last = min(first + _CHUNK_ROWS, rows)
        blocks = tensor.data[first * row_bytes : last * row_bytes]
        yield core.pack(team, variant, tensor.type, (last - first, cols), blocks)
