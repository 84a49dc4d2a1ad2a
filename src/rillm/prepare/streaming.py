"""Writes a GGUF file from tensors that are read, converted and written a few rows at a time.

Each worker takes a chunk of rows through all its steps (read, check, to float32, to blocks), so
every core is busy without a tensor ever being in memory as a whole.
"""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from rillm import __version__
from rillm.core import allowed_cpus, load_core
from rillm.gguf import Encoded, GGMLType, GGUFWriter, Typed, WriterValue, bytes_left
from rillm.prepare.disk import check_free
from rillm.prepare.errors import PrepareError
from rillm.prepare.floats import encode, is_finite, type_of
from rillm.prepare.mixes import FLOAT_TYPES
from rillm.units import format_bytes

if TYPE_CHECKING:
    from rillm.core import Core

CHUNK_WEIGHTS = 1 << 20  # 4 MiB of float32: many chunks for many cores, little of Python's time

CHUNKS_PER_RELEASE = 16  # so a mapped file takes some 64 MiB, however large its tensors

# Called with (bytes done, bytes in total) of the output.
Progress = Callable[[int, int], None]
# Called with a line for the user.
Report = Callable[[str], None]


class Source(Protocol):
    """A tensor to be written, wherever it comes from. Read from several threads at once."""

    @property
    def name(self) -> str:
        """In the GGUF file."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Row-major: [rows, cols], [cols] or [matrices, rows, cols]."""

    @property
    def row_group(self) -> int:
        """Chunks begin and end at multiples of so many rows."""

    @property
    def where(self) -> str:
        """The file it comes from, for messages."""

    def rows(self, start: int, stop: int) -> NDArray[Any]:
        """Rows as float32, float16 or (uint16) bfloat16, or as float64."""

    def blocks(self, start: int, stop: int, type_: GGMLType) -> memoryview | None:
        """Rows as they are stored, where that is in `type_` and of a quantised type."""

    def release(self) -> None:
        """Give memory back; what was read will not be read again, the rest may be."""


@dataclass(frozen=True)
class Output:
    """A tensor of the new file."""

    source: Source
    type: GGMLType
    importance: NDArray[np.float32] | None = None  # [cols], or [matrices * cols] of a 3-D tensor

    @property
    def num_bytes(self) -> int:
        """Bytes of the tensor, without padding."""
        shape = self.source.shape
        return self.type.row_bytes(shape[-1]) * prod(shape[:-1])


def write_model(
    path: str | os.PathLike[str],
    metadata: Mapping[str, WriterValue],
    outputs: Sequence[Output],
    *,
    num_threads: int | None = None,
    progress: Progress | None = None,
    report: Report | None = None,
) -> int:
    """Write `outputs` in order to a GGUF file; returns its size in bytes.

    Uses all allowed CPUs unless `num_threads` says otherwise. A run that was killed or interrupted
    is gone on with where input and options are the same; `report` is told so. Raises PrepareError
    for a full disk or a value that is not finite; `path` is replaced only by a complete file.
    """
    total = sum(output.num_bytes for output in outputs)
    header_bytes = _header_bytes(metadata) + 128 * len(outputs)
    folder = Path(path).parent
    if not folder.is_dir():
        raise PrepareError(f"{folder}: no such folder; make it or give another output path")
    needed = total + header_bytes - bytes_left(path)
    check_free(Path(path), folder, needed, "another output path")
    core = load_core() if any(output.type not in FLOAT_TYPES for output in outputs) else None
    num_threads = num_threads or len(allowed_cpus())
    pool = ThreadPoolExecutor(num_threads)
    try:
        with GGUFWriter(path, metadata, made_from=_made_from(outputs)) as writer:
            for output in outputs:
                writer.declare(output.source.name, output.source.shape, output.type)
            whole = set(writer.resume())
            done = sum(output.num_bytes for output in outputs if output.source.name in whole)
            if report and (whole or writer.left_over):
                report(_how_it_begins(path, done, total))
            if progress:
                progress(done, total)
            for output in outputs:
                if output.source.name in whole:
                    continue

                def stream(output: Output = output) -> Iterator[memoryview]:
                    nonlocal done
                    chunks = _in_order(pool, num_threads, core, output)
                    for number, data in enumerate(chunks, 1):
                        yield data
                        if number % CHUNKS_PER_RELEASE == 0:
                            output.source.release()
                        done += data.nbytes
                        if progress:
                            progress(done, total)

                writer.write(output.source.name, stream())
                output.source.release()
    except KeyboardInterrupt:
        if report and (left := bytes_left(path)):
            report(f"{path}: {format_bytes(left)} are kept; the same command goes on")
        raise
    finally:
        pool.shutdown(cancel_futures=True)
    return os.path.getsize(path)


def _how_it_begins(path: str | os.PathLike[str], done: int, total: int) -> str:
    if done:
        return (
            f"{path}: going on with an interrupted run, {format_bytes(done)} of "
            f"{format_bytes(total)} are there"
        )
    return (
        f"{path}: an interrupted run had another input or other options, or no tensor was whole; "
        "beginning anew"
    )


def _made_from(outputs: Sequence[Output]) -> str:
    """All that the bytes of the tensors depend on, beside what the new file's header says."""
    lines = [f"rillm {__version__}"]
    for name in sorted({output.source.where for output in outputs}):
        status = os.stat(name)
        lines.append(f"{status.st_size} bytes of {status.st_mtime_ns}")
    for output in outputs:
        if output.importance is not None:
            lines.append(hashlib.sha256(output.importance.tobytes()).hexdigest())
    return "\n".join(lines)


def _in_order(
    pool: ThreadPoolExecutor, num_threads: int, core: Core | None, output: Output
) -> Iterator[memoryview]:
    """The tensor's bytes, chunk after chunk, while the pool works on the next ones."""
    pending: deque[Future[memoryview]] = deque()
    try:
        for matrix, start, stop in _chunks(output.source):
            pending.append(pool.submit(_convert, core, output, matrix, start, stop))
            if len(pending) > num_threads + 1:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        for future in pending:
            future.cancel()


def _chunks(source: Source) -> Iterator[tuple[int, int, int]]:
    """(matrix, first row, row after the last) of each chunk; none spans two matrices."""
    if len(source.shape) == 1:
        yield 0, 0, 1
        return
    matrix_rows, columns = source.shape[-2:]
    group = source.row_group
    step = max(1, CHUNK_WEIGHTS // (columns * group)) * group
    for matrix in range(prod(source.shape[:-2])):
        first = matrix * matrix_rows
        for start in range(0, matrix_rows, step):
            yield matrix, first + start, first + min(start + step, matrix_rows)


def _convert(core: Core | None, output: Output, matrix: int, start: int, stop: int) -> memoryview:
    source, type_ = output.source, output.type
    stored = source.blocks(start, stop, type_)
    if stored is not None:
        return stored
    values = source.rows(start, stop)
    if not is_finite(values):
        raise PrepareError(
            f"{source.where}: {source.name} holds NaN or infinity between rows {start} and {stop}; "
            "the file is damaged, get it again"
        )
    if type_ in FLOAT_TYPES:
        result = encode(values, type_)
        if result is not values and not is_finite(result):
            raise PrepareError(
                f"{source.where}: {source.name} has values beyond the range of {type_.name}; "
                "convert to bf16"
            )
        return np.ascontiguousarray(result).data.cast("B")
    assert core is not None
    columns = source.shape[-1]
    blocks = np.empty((stop - start) * type_.row_bytes(columns), np.uint8)
    importance = output.importance
    if importance is not None:
        importance = importance[matrix * columns : (matrix + 1) * columns]
    core.quantize(
        type_,
        to_float32(core, values).data,
        blocks.data,
        columns,
        None if importance is None else importance.data,
    )
    return blocks.data


def to_float32(core: Core, values: NDArray[Any]) -> NDArray[np.float32]:
    """Floats of any type as contiguous float32, by the core: faster than numpy."""
    values = np.ascontiguousarray(values)
    if values.dtype == np.float64:
        return values.astype(np.float32)
    if values.dtype == np.float32:
        return values
    result = np.empty(values.shape, np.float32)
    core.dequantize(type_of(values), values.data, result.data)
    return result


def _header_bytes(metadata: Mapping[str, WriterValue]) -> int:
    """About what the keys take: vocabularies make it up to 20 MB."""
    total = 0
    for value in metadata.values():
        plain = value.value if isinstance(value, Typed) else value
        if isinstance(plain, Encoded):
            total += len(plain.payload)
        elif isinstance(plain, str) or not isinstance(plain, Sequence):
            total += 64
        else:
            total += sum(8 + len(item.encode()) if isinstance(item, str) else 8 for item in plain)
    return total
