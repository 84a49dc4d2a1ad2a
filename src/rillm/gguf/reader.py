"""GGUFReader: metadata and tensor views of a GGUF file, or of all parts of a split one."""

from __future__ import annotations

import mmap
import os
import re
import stat
import sys
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

from rillm.closing import Closing
from rillm.gguf.header import Header, TensorRecord, parse_header
from rillm.gguf.packed import Packing, logical_tensors, read_packing
from rillm.gguf.types import Encoded, GGMLType, GGUFError, Metadata, ValueType, quote

_PART_NAME = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.gguf", re.DOTALL)
_MAX_PARTS = 65535  # split.count is a UINT16

# Without it the kernel may refuse to map a model larger than memory, because it reckons that every
# page of a writable private mapping could be written to. Python names the flag from 3.13 on.
_NORESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000 if sys.platform == "linux" else 0)


class _Mapping(NamedTuple):
    path: str
    buffer: mmap.mmap
    header: Header


class TensorInfo:
    """One tensor of a file: what it is, and a view of its bytes.

    `shape` is row-major ([rows, cols]: the reverse of the order in the file), `offset` counts from
    the start of the file `path`, `nbytes` has no padding in it. `is_packed`: `data` is not blocks
    of `type` but the row tiles of a variant of the core, see rillm.gguf.packed.
    """

    __slots__ = ("_buffer", "is_packed", "name", "nbytes", "offset", "path", "shape", "type")

    def __init__(
        self, record: TensorRecord, buffer: mmap.mmap, path: str, is_packed: bool = False
    ) -> None:
        self.is_packed = is_packed
        self.name: str = record.name
        self.shape: tuple[int, ...] = record.shape
        self.type: GGMLType = record.type
        self.nbytes: int = record.nbytes
        self.offset: int = record.offset
        self.path: str = path
        self._buffer = buffer

    def __repr__(self) -> str:
        return f"TensorInfo({self.name!r}, {list(self.shape)}, {self.type.name})"

    @property
    def data(self) -> memoryview:
        """The `nbytes` bytes in the file, not copied.

        The mapping is private and formally writable, since ctypes takes the address of nothing
        else; do not write to it. GGUFError after the reader was closed.
        """
        try:
            view = memoryview(self._buffer)
        except ValueError:
            raise GGUFError(f"{self.path}: tensor {quote(self.name)}: file is closed") from None
        return view[self.offset : self.offset + self.nbytes]

    def release(self) -> None:
        """Gives back the memory of all pages that hold nothing but this tensor.

        A later access reads them from the file again.
        """
        if self._buffer.closed or not hasattr(mmap, "MADV_DONTNEED"):
            return
        start = -(-self.offset // mmap.PAGESIZE) * mmap.PAGESIZE
        stop = (self.offset + self.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
        if stop > start:
            self._buffer.madvise(mmap.MADV_DONTNEED, start, stop - start)


class GGUFReader(Closing):
    """An open GGUF file; `path` may be any part of a split one (`-00001-of-0000N.gguf`).

    Everything is checked on opening, so no view can lie outside its file; GGUFError says in one
    line what is wrong. The file must not be truncated while it is open.

    Attributes:
        metadata: values by key (of the first part).
        value_types: the type each value has in the file.
        tensors: by name, in the order of the file(s).
        version, alignment: of the first part.
        path: as given.
        files: the path of each part.
        file_size: bytes of all parts together.
        packing: for whom a packed file is packed; None for any other.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path: str = os.fspath(path)
        self._mappings: list[_Mapping] = []
        try:
            self._mappings = [_open(self.path)]
            self._follow_split()
            first = self._mappings[0].header
            self.metadata: Metadata = first.metadata
            self.value_types: dict[str, ValueType] = {
                key: span.type for key, span in first.spans.items()
            }
            self.version: int = first.version
            self.alignment: int = first.alignment
            self.files: list[Path] = [Path(part.path) for part in self._mappings]
            self.file_size: int = sum(len(part.buffer) for part in self._mappings)
            self.tensors: dict[str, TensorInfo] = {}
            self.packing: Packing | None = read_packing(self.metadata)
            for part in self._mappings:
                records = [(record, False) for record in part.header.tensors]
                if self.packing is not None:
                    records = logical_tensors(part.header.metadata, part.header.tensors)
                for record, is_packed in records:
                    if record.name in self.tensors:
                        other = self.tensors[record.name].path
                        raise GGUFError(
                            f"{part.path}: tensor {quote(record.name)}: is also in {other}"
                        )
                    self.tensors[record.name] = TensorInfo(
                        record, part.buffer, part.path, is_packed
                    )
            self._check_num_tensors()
        except BaseException:
            self.close()
            raise

    def copy_metadata(self, drop: Collection[str] = ()) -> dict[str, Encoded]:
        """The metadata for a GGUFWriter that rewrites this file, each value bit for bit.

        Leaves out the keys of `drop` and those that describe this file and not the model:
        general.alignment (the writer adds its own) and split.*. Merge changes with `|`.
        """
        if not self._mappings:
            raise GGUFError(f"{self.path}: file is closed")
        part = self._mappings[0]
        return {
            key: Encoded(span.type, part.buffer[span.start : span.stop])
            for key, span in part.header.spans.items()
            if key not in drop and key != "general.alignment" and not key.startswith("split.")
        }

    def close(self) -> None:
        """Unmaps the file; if views of tensors are still alive, when the last of them goes."""
        for part in self._mappings:
            try:
                part.buffer.close()
            except BufferError:
                continue
        self._mappings = []

    def _follow_split(self) -> None:
        """Opens the other parts if the opened file says that it is one of several."""
        opened = self._mappings[0]
        count = opened.header.metadata.require("split.count", int, 1)
        if count in (0, 1):
            return
        if not 1 < count <= _MAX_PARTS:
            raise GGUFError(f"{opened.path}: metadata key 'split.count': {count} is no file count")
        number = opened.header.metadata.require("split.no", int)
        folder, name = os.path.split(opened.path)
        match = _PART_NAME.fullmatch(name)
        if match is None or (int(match[2]), int(match[3])) != (number + 1, count):
            raise GGUFError(
                f"{opened.path}: is part {number + 1} of {count} of a model, but its name does not "
                f"end in -{number + 1:05d}-of-{count:05d}.gguf"
            )
        paths = [
            os.path.join(folder, f"{match[1]}-{part + 1:05d}-of-{count:05d}.gguf")
            for part in range(count)
        ]
        missing = [path for path in paths if not os.path.exists(path)]
        if missing:
            others = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
            raise GGUFError(f"{opened.path}: part {missing[0]}{others} of the model is missing")
        self._mappings.extend(_open(path) for path in paths[:number])
        self._mappings.append(self._mappings.pop(0))
        self._mappings.extend(_open(path) for path in paths[number + 1 :])
        for index, part in enumerate(self._mappings):
            for key, expected in (("split.count", count), ("split.no", index)):
                found = part.header.metadata.require(key, int)
                if found != expected:
                    raise GGUFError(
                        f"{part.path}: metadata key {key!r} is {found} instead of {expected}"
                    )

    def _check_num_tensors(self) -> None:
        if len(self._mappings) == 1:
            return
        first = self._mappings[0]
        expected = first.header.metadata.require("split.tensors.count", int, len(self.tensors))
        if expected != len(self.tensors):
            raise GGUFError(
                f"{first.path}: metadata key 'split.tensors.count' is {expected}, but the "
                f"{len(self._mappings)} parts hold {len(self.tensors)} tensors"
            )


def _open(path: str) -> _Mapping:
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # opening a pipe would wait for its writer
            raise GGUFError(f"{path}: is not a regular file")
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size == 0:
                raise GGUFError(f"{path}: the file is empty")
            buffer = mmap.mmap(
                file.fileno(),
                size,
                flags=mmap.MAP_PRIVATE | _NORESERVE,
                prot=mmap.PROT_READ | mmap.PROT_WRITE,
            )
    except (OSError, ValueError) as error:  # ValueError: a path with a zero byte
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise GGUFError(f"{path}: cannot open: {reason}") from error
    try:
        return _Mapping(path, buffer, parse_header(buffer, path))
    except BaseException:
        buffer.close()
        raise
