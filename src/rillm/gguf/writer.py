"""GGUFWriter: writes a GGUF version 3 file from a stream of tensor chunks, all or nothing."""

from __future__ import annotations

import hashlib
import os
import struct
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from math import prod
from types import TracebackType
from typing import TYPE_CHECKING, NamedTuple

from rillm.gguf.header import MAX_ALIGNMENT
from rillm.gguf.partial import HASH_BYTES, PartialFile
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

KEEP_BYTES = 128 << 20  # a run that another may go on with saves its work after so many bytes
_MAX_NAME_BYTES = 63  # GGML_MAX_NAME of ggml.h, less the zero byte; llama.cpp refuses longer names


class _Declared(NamedTuple):
    shape: tuple[int, ...]
    type: GGMLType
    nbytes: int


class GGUFWriter:
    """Writes one file: `declare` every tensor, then `write` each in the same order, then `close`.

    The bytes go to a temporary file beside `path` that takes its name only when all of them are on
    the disk; if anything fails, or the context is left by an exception, the temporary is deleted
    and a previous file at `path` stays as it was. No more than one chunk is in memory at a time.

    With `made_from`, a text that says what the values come from, a killed or interrupted run is not
    lost: one with the same text, metadata and tensors goes on after those that are whole, which
    `resume` names. Then an interrupt leaves the temporary file, and only an error deletes it.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        metadata: Mapping[str, WriterValue],
        alignment: int = DEFAULT_ALIGNMENT,
        *,
        made_from: str | None = None,
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
        self._made_from = made_from
        self._head = b""
        self._whole = 0  # bytes of the header and of whole tensors
        if not os.path.basename(self.path) or os.path.isdir(self.path):
            raise GGUFError(f"{self.path}: is a folder; give the name of a file")
        try:
            self._partial = PartialFile(self.path, made_from is not None)
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

    def resume(self) -> list[str]:
        """After the last declaration: the tensors that an interrupted run has written already.

        They are not written again. Where there are none, `left_over` says whether there was a run
        that wrote something else.
        """
        self._start()
        return [name for name in self._tensors if name not in self._unwritten]

    @property
    def left_over(self) -> bool:
        """Whether an interrupted run was of another input or other options."""
        return self._partial.left_over

    def write(self, name: str, chunks: Iterable[ReadableBuffer]) -> None:
        """Writes the next declared tensor: contiguous buffers whose sizes add up to its own.

        An exception from `chunks` passes through, after the temporary file is deleted.
        """
        field = f"{self.path}: tensor {quote(name)}"
        try:
            if self._partial.file.closed:
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
            self._whole += self._padded(name)
            if self._partial.resumable and self._whole - self._partial.whole >= KEEP_BYTES:
                self._keep()
        except BaseException as error:
            self._give_up(error)
            raise

    def close(self) -> None:
        """Makes the file durable and gives it its name; GGUFError if tensors are missing."""
        if self._complete:
            return
        if self._partial.file.closed:
            raise GGUFError(f"{self.path}: was not written, because of an earlier failure")
        try:
            if self._unwritten:
                name = quote(self._unwritten[0])
                raise GGUFError(f"{self.path}: tensor {name}: was declared but not written")
            self._start()
            try:
                self._partial.finish(self._head)
                self._complete = True
            except OSError as error:
                raise self._error(error) from error
        except BaseException as error:
            self._give_up(error)
            raise

    def discard(self) -> None:
        """Gives up: deletes the temporary file. Harmless after `close`."""
        self._partial.delete()

    def __enter__(self) -> GGUFWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is None:
            self.close()
        else:
            self._give_up(error)

    def _give_up(self, error: BaseException) -> None:
        """Leaves what is whole to another run, where there may be one and it was not an error."""
        if self._partial.file.closed:
            return
        nothing_whole = len(self._unwritten) == len(self._tensors)
        if isinstance(error, Exception) or not self._partial.resumable or nothing_whole:
            self.discard()
            return
        with suppress(GGUFError):
            self._keep()
        self._partial.leave()

    def _keep(self) -> None:
        try:
            self._partial.keep(self._whole)
        except OSError as error:
            raise self._error(error) from error

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
            offset += self._padded(name)
        header = b"".join([head, self._metadata, *records])
        header += bytes(-len(header) % self._alignment)
        self._metadata = b""
        self._head = header[:64]  # more than the journal covers
        self._whole = len(header)
        try:
            whole = 0
            if self._made_from is not None:
                digest = hashlib.sha256(header + self._made_from.encode()).digest()
                whole = self._partial.resume(digest[:HASH_BYTES])
            if whole == 0:
                self._partial.start(header)
        except OSError as error:
            raise self._error(error) from error
        while self._whole < whole:
            self._whole += self._padded(self._unwritten.popleft())

    def _padded(self, name: str) -> int:
        """Bytes of a tensor with the padding after it."""
        nbytes = self._tensors[name].nbytes
        return nbytes + -nbytes % self._alignment

    def _put(self, data: ReadableBuffer) -> None:
        try:
            self._partial.file.write(data)
        except OSError as error:
            raise self._error(error) from error

    def _error(self, error: Exception) -> GGUFError:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        return GGUFError(f"{self.path}: cannot write: {reason}")
