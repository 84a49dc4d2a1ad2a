"""GGUFWriter: writes a GGUF version 3 file from a stream of tensor chunks, all or nothing."""

from __future__ import annotations

import fcntl
import os
import re
import struct
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from math import prod
from types import TracebackType
from typing import TYPE_CHECKING, NamedTuple

from rillm.gguf.header import MAX_ALIGNMENT
from rillm.gguf.types import (
    DEFAULT_ALIGNMENT,
    MAGIC,
    MAX_DIMS,
    GGMLType,
    GGUFError,
    ValueType,
    quote,
)
from rillm.gguf.values import Typed, WriterValue, encode_string, encode_value

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

_MAX_NAME_BYTES = 63  # GGML_MAX_NAME of ggml.h, less the zero byte; llama.cpp refuses longer names


def _delete_abandoned(folder: str, name: str) -> None:
    """Deletes temporary files for `name` whose writers were killed: those that nobody has locked.

    They can be gigabytes that no user sees. One that had our process id would be in our way.
    """
    pattern = re.compile(re.escape(f".{name}.") + r"\d{1,7}\.partial")
    for entry in os.listdir(folder):
        if pattern.fullmatch(entry) is None:
            continue
        path = os.path.join(folder, entry)
        with suppress(OSError), open(path, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.unlink(path)


class _Declared(NamedTuple):
    shape: tuple[int, ...]
    type: GGMLType
    nbytes: int


class GGUFWriter:
    """Writes one file: `declare` every tensor, then `write` each in the same order, then `close`.

    The bytes go to a temporary file beside `path` that takes its name only when all of them are on
    the disk; if anything fails, or the context is left by an exception, the temporary is deleted
    and a previous file at `path` stays as it was. No more than one chunk is in memory at a time.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        metadata: Mapping[str, WriterValue],
        alignment: int = DEFAULT_ALIGNMENT,
    ) -> None:
        self.path: str = os.fspath(path)
        if not 8 <= alignment <= MAX_ALIGNMENT or alignment & (alignment - 1):
            raise GGUFError(
                f"{self.path}: alignment {alignment} is not a power of two between 8 and "
                f"{MAX_ALIGNMENT}"
            )
        if "general.alignment" in metadata:
            raise GGUFError(f"{self.path}: pass the alignment as an argument, not as metadata")
        values = dict(metadata)
        if alignment != DEFAULT_ALIGNMENT:
            values["general.alignment"] = Typed(ValueType.UINT32, alignment)
        self._alignment = alignment
        self._num_keys = len(values)
        self._metadata = b"".join(self._encode_key(*item) for item in values.items())
        self._tensors: dict[str, _Declared] = {}
        self._unwritten: deque[str] = deque()
        self._started = False
        self._complete = False
        folder, name = os.path.split(self.path)
        if not name or os.path.isdir(self.path):
            raise GGUFError(f"{self.path}: is a folder; give the name of a file")
        self._folder = folder or "."
        self._temporary = os.path.join(folder, f".{name}.{os.getpid()}.partial")
        try:
            _delete_abandoned(folder or ".", name)
            self._file = open(self._temporary, "xb")  # noqa: SIM115
            with suppress(OSError):  # a file system without locks
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (OSError, ValueError) as error:
            raise self._error(error) from error

    def declare(self, name: str, shape: Sequence[int], type: GGMLType) -> None:
        """Announces the next tensor of the file, of row-major `shape` ([rows, cols])."""
        field = f"{self.path}: tensor {quote(name)}"
        if self._started:
            raise GGUFError(f"{field}: must be declared before the first write")
        if name in self._tensors:
            raise GGUFError(f"{field}: is declared twice")
        num_bytes = len(encode_string(name, field)) - 8
        if not 1 <= num_bytes <= _MAX_NAME_BYTES:
            raise GGUFError(f"{field}: the name must have 1 to {_MAX_NAME_BYTES} bytes")
        if not 1 <= len(shape) <= MAX_DIMS or min(shape) < 1:
            raise GGUFError(
                f"{field}: shape {list(shape)} must have 1 to {MAX_DIMS} dimensions of at least 1"
            )
        try:
            nbytes = type.row_bytes(shape[-1]) * prod(shape[:-1])
        except GGUFError as error:
            raise GGUFError(f"{field}: {error}") from None
        self._tensors[name] = _Declared(tuple(shape), type, nbytes)
        self._unwritten.append(name)

    def write(self, name: str, chunks: Iterable[ReadableBuffer]) -> None:
        """Writes the next declared tensor: contiguous buffers whose sizes add up to its own.

        An exception from `chunks` passes through, after the temporary file is deleted.
        """
        field = f"{self.path}: tensor {quote(name)}"
        try:
            if self._file.closed:
                raise GGUFError(f"{field}: the file is closed")
            if not self._unwritten or name != self._unwritten[0]:
                expected = quote(self._unwritten[0]) if self._unwritten else "none"
                raise GGUFError(f"{field}: is out of turn; the next tensor to write is {expected}")
            self._start()
            nbytes = self._tensors[name].nbytes
            written = 0
            for chunk in chunks:
                view = memoryview(chunk)
                if not view.c_contiguous:
                    raise GGUFError(f"{field}: a chunk is not contiguous")
                written += view.nbytes
                if written > nbytes:
                    raise GGUFError(f"{field}: got more than the declared {nbytes} bytes")
                self._put(view)
                del chunk, view  # or both would live on while the next chunk is made
            if written != nbytes:
                raise GGUFError(f"{field}: got {written} bytes of the declared {nbytes}")
            self._put(bytes(-nbytes % self._alignment))
            self._unwritten.popleft()
        except BaseException:
            self.discard()
            raise

    def close(self) -> None:
        """Makes the file durable and gives it its name; GGUFError if tensors are missing."""
        if self._complete:
            return
        if self._file.closed:
            raise GGUFError(f"{self.path}: was not written, because of an earlier failure")
        try:
            if self._unwritten:
                name = quote(self._unwritten[0])
                raise GGUFError(f"{self.path}: tensor {name}: was declared but not written")
            self._start()
            try:
                self._file.flush()
                os.fsync(self._file.fileno())
                self._file.close()
                os.replace(self._temporary, self.path)
                self._complete = True
            except OSError as error:
                raise self._error(error) from error
        except BaseException:
            self.discard()
            raise
        self._sync_folder()

    def discard(self) -> None:
        """Gives up: deletes the temporary file. Harmless after `close`."""
        with suppress(OSError):
            self._file.close()  # flushes, which fails once more on a full disk
        with suppress(OSError):
            os.unlink(self._temporary)

    def __enter__(self) -> GGUFWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.discard()

    def _encode_key(self, key: str, value: WriterValue) -> bytes:
        field = f"{self.path}: metadata key {quote(key)}"
        if not key:
            raise GGUFError(f"{field}: is empty")
        encoded = encode_value(value, field)
        return encode_string(key, field) + struct.pack("<I", encoded.type) + encoded.payload

    def _start(self) -> None:
        """Writes everything before the tensor data, once."""
        if self._started:
            return
        self._started = True
        head = MAGIC + struct.pack("<IQQ", 3, len(self._tensors), self._num_keys)
        records = []
        offset = 0
        for name, tensor in self._tensors.items():
            dims = tuple(reversed(tensor.shape))
            records.append(encode_string(name, name))
            records.append(struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, tensor.type, offset))
            offset += tensor.nbytes + -tensor.nbytes % self._alignment
        header = b"".join([head, self._metadata, *records])
        self._put(header)
        self._put(bytes(-len(header) % self._alignment))
        self._metadata = b""

    def _put(self, data: ReadableBuffer) -> None:
        try:
            self._file.write(data)
        except OSError as error:
            raise self._error(error) from error

    def _error(self, error: Exception) -> GGUFError:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        return GGUFError(f"{self.path}: cannot write: {reason}")

    def _sync_folder(self) -> None:
        """Makes the new name durable too, where the file system can."""
        with suppress(OSError):
            folder = os.open(self._folder, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
