"""The core as Python objects: thread team, weights, KV cache and programs.

Each object owns one handle of the C ABI and frees it in `close()` or when it is collected. Calls
that compute release the GIL (ctypes does), so other Python threads go on meanwhile.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rillm.closing import Closing
from rillm.core import abi
from rillm.core.batch import Batch
from rillm.core.loader import CoreError, choose_variant
from rillm.core.sampling import CoreProb, CoreSampling

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from rillm.core.sampling import SamplingRequest

_loaded: Core | None = None


def load_core(isa: str | None = None) -> Core:
    """Loads the core: the variant `isa`, else RILLM_ISA, else the best for this CPU.

    A process has one core; asking for another variant later is a CoreError.
    """
    global _loaded
    if _loaded is None:
        _loaded = Core(choose_variant(isa).path)
    elif isa is not None and isa != _loaded.variant:
        raise CoreError(f"variant {_loaded.variant} is loaded already; a process has only one")
    return _loaded


def allowed_cpus() -> list[int]:
    """The CPUs that this process may run on (its cpuset), in order."""
    return sorted(os.sched_getaffinity(0))


def address_of(buffer: Buffer) -> int:
    """Where a contiguous buffer lies in memory. The caller keeps the buffer alive."""
    view = memoryview(buffer)
    if not view.c_contiguous:
        raise ValueError("the buffer is not contiguous")
    if view.nbytes == 0:
        return 0
    if view.readonly:
        # ctypes takes addresses of writable buffers only; bytes objects go by c_char_p.
        if not isinstance(buffer, bytes):
            raise ValueError("a read-only buffer must be a bytes object")
        return ctypes.cast(ctypes.c_char_p(buffer), ctypes.c_void_p).value or 0
    return ctypes.addressof(ctypes.c_char.from_buffer(view.cast("B") if view.ndim else view))


@dataclass(frozen=True)
class Format:
    """A GGUF weight format that the core runs."""

    ggml_type: int
    name: str
    block_size: int
    block_bytes: int
    can_quantize: bool


class Core:
    """One loaded variant of the core library."""

    def __init__(self, path: os.PathLike[str]) -> None:
        try:
            self._library = ctypes.CDLL(str(path))
        except OSError as error:
            raise CoreError(f"{path}: cannot be loaded ({error})") from None
        self._check_abi(path)
        abi.bind(self._library)
        self.variant: str = self._library.core_variant().decode()
        self.formats = self._read_formats()

    def _check_abi(self, path: os.PathLike[str]) -> None:
        theirs = abi.CoreAbi()
        try:
            self._library.core_abi(ctypes.byref(theirs))
        except AttributeError:
            raise CoreError(f"{path}: is not a library of rillm's core") from None
        ours = (
            abi.ABI_VERSION,
            *map(
                ctypes.sizeof,
                (
                    abi.CoreFormat, abi.CoreTensor, abi.CoreCacheConfig, abi.CoreBuffer,
                    abi.CoreOp, abi.CoreProgramConfig, abi.CoreBatch, CoreSampling, CoreProb,
                ),
            ),
        )  # fmt: skip
        for field_, mine in zip(abi.CoreAbi._fields_, ours, strict=True):
            name = field_[0]
            if getattr(theirs, name) != mine:
                raise CoreError(
                    f"{path}: {name} is {getattr(theirs, name)}, this rillm expects {mine}: "
                    "the library is of another version; reinstall rillm"
                )

    def _read_formats(self) -> list[Format]:
        formats: list[Format] = []
        row = abi.CoreFormat()
        while self._library.core_format_at(len(formats), ctypes.byref(row)) == abi.Status.OK:
            formats.append(
                Format(
                    row.ggml_type, row.name.decode(), row.block_size, row.block_bytes,
                    bool(row.can_quantize),
                )
            )  # fmt: skip
        return formats

    def call(self, name: str, *arguments: Any) -> None:
        """Calls a function of the ABI; a status other than OK becomes CoreError or MemoryError."""
        status = getattr(self._library, name)(*arguments)
        if status != abi.Status.OK:
            reason = self._library.core_last_error().decode(errors="replace")
            if status == abi.Status.NO_MEMORY:
                raise MemoryError(f"{name}: {reason}")
            raise CoreError(reason)

    def query(self, name: str, *arguments: Any) -> Any:
        """Calls a function of the ABI that cannot fail and returns its value."""
        return getattr(self._library, name)(*arguments)

    def team(
        self, num_threads: int, cpus: Sequence[int] | None = None, *, caller: int | None = None
    ) -> ThreadTeam:
        """Starts a thread team. cpus: where to pin its threads, [num_threads].

        caller: the CPU that threads which call the team are kept on while they do (NUMA).
        """
        return ThreadTeam(self, num_threads, cpus, caller)

    def load_blas(self, path: str | os.PathLike[str]) -> None:
        """Loads an OpenBLAS for programs that ask for it. CoreError if it is not one we can use."""
        self.call("core_load_blas", os.fsencode(path))

    @property
    def blas_info(self) -> str:
        """What `load_blas` loaded, e.g. "OpenBLAS 0.3.21 Zen"; empty before."""
        info: bytes = self.query("core_blas_info")
        return info.decode(errors="replace")

    def dequantize(self, ggml_type: int, blocks: Buffer, out: Buffer) -> None:
        """Weights of any format -> float32, equal bit for bit to the gguf package's."""
        source, target = memoryview(blocks), memoryview(out)
        self.call(
            "core_dequantize", ggml_type, address_of(blocks), source.nbytes, address_of(out),
            target.nbytes // 4,
        )  # fmt: skip

    def quantize(
        self,
        ggml_type: int,
        weights: Buffer,
        out: Buffer,
        row_length: int,
        importance: Buffer | None = None,
        team: ThreadTeam | None = None,
    ) -> None:
        """float32 weights [rows, row_length] -> blocks. importance: float32 [row_length]."""
        if importance is not None and memoryview(importance).nbytes != 4 * row_length:
            raise CoreError(f"importance has not one float32 for each of {row_length} columns")
        self.call(
            "core_quantize",
            None if team is None else team.handle,
            ggml_type,
            address_of(weights),
            None if importance is None else address_of(importance),
            address_of(out),
            memoryview(out).nbytes,
            memoryview(weights).nbytes // 4,
            row_length,
        )

    def sample(self, team: ThreadTeam, requests: Sequence[SamplingRequest]) -> None:
        """Draws one token for every request, in parallel over the team.

        One request that cannot be drawn from (its token is -1) does not stop the others: all are
        drawn, and then the first failure is raised as CoreError.
        """
        if not requests:
            return
        rows = (CoreSampling * len(requests))(*(request.struct for request in requests))
        try:
            self.call("core_sample", team.handle, ctypes.cast(rows, ctypes.c_void_p), len(requests))
        finally:
            for request, row in zip(requests, rows, strict=True):
                request.struct = row


class _Handle(Closing):
    """Owns one handle of the ABI."""

    _destroy: str

    def __init__(self, core: Core, handle: int | None) -> None:
        self.core = core
        self._handle = handle

    @property
    def handle(self) -> int:
        """What the ABI knows the object by; CoreError once it is closed."""
        if self._handle is None:
            raise CoreError(f"this {type(self).__name__} is closed")
        return self._handle

    @property
    def is_open(self) -> bool:
        """Whether `close` has not been called yet."""
        return self._handle is not None

    def close(self) -> None:
        """Frees what the handle owns. Closing twice is fine."""
        handle, self._handle = self._handle, None
        if handle is not None:
            self.core.query(self._destroy, handle)

    def __del__(self) -> None:
        if getattr(self, "_handle", None) is not None:
            self.close()


class ThreadTeam(_Handle):
    """Threads that run programs; the calling thread is one of them."""

    _destroy = "core_team_destroy"

    def __init__(
        self,
        core: Core,
        num_threads: int,
        cpus: Sequence[int] | None = None,
        caller: int | None = None,
    ) -> None:
        if cpus is not None and len(cpus) != num_threads:
            raise CoreError(f"{num_threads} threads cannot be pinned to {len(cpus)} CPUs")
        pins = None if cpus is None else (ctypes.c_int32 * num_threads)(*cpus)
        handle = ctypes.c_void_p()
        core.call("core_team_create", num_threads, pins, ctypes.byref(handle))
        super().__init__(core, handle.value)
        self.num_threads = num_threads
        self._caller = caller

    @contextlib.contextmanager
    def calling(self) -> Iterator[None]:
        """Keeps this thread on thread 0's CPU, if it has one: its share of the weights lies there.

        The pinning of the caller is a hint, and its old affinity comes back at the end.
        """
        if self._caller is None:
            yield
            return
        before = os.sched_getaffinity(0)
        with contextlib.suppress(OSError):  # a CPU that went offline
            os.sched_setaffinity(0, {self._caller})
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                os.sched_setaffinity(0, before)

    def read_bandwidth(self, data: Buffer, repeats: int = 3) -> float:
        """Bytes per second at which the team reads `data` (the best of `repeats` passes)."""
        result = ctypes.c_double()
        self.core.call(
            "core_read_bandwidth", self.handle, address_of(data), memoryview(data).nbytes, repeats,
            ctypes.byref(result),
        )  # fmt: skip
        return result.value

    def multiply_peak(self) -> tuple[float, float]:
        """Multiply-accumulates per second on values in registers: (int8, float32)."""
        int8_rate, float_rate = ctypes.c_double(), ctypes.c_double()
        self.core.call(
            "core_multiply_peak", self.handle, ctypes.byref(int8_rate), ctypes.byref(float_rate)
        )
        return int8_rate.value, float_rate.value


class Weight(_Handle):
    """One tensor in the form an op reads: packed matrix, look-up table or float32 vector."""

    _destroy = "core_weight_destroy"

    def __init__(
        self,
        core: Core,
        kind: abi.WeightKind,
        ggml_type: int,
        shape: tuple[int, int],
        data: Buffer,
        team: ThreadTeam | None = None,
    ) -> None:
        tensor = abi.CoreTensor(
            address_of(data), memoryview(data).nbytes, shape[0], shape[1], ggml_type
        )
        handle = ctypes.c_void_p()
        with contextlib.nullcontext() if team is None else team.calling():
            core.call(
                "core_weight_create",
                None if team is None else team.handle,
                int(kind),
                ctypes.byref(tensor),
                ctypes.byref(handle),
            )
        super().__init__(core, handle.value)
        self.kind = kind
        self.shape = shape
        # A table stays where the file is mapped: hold on to the mapping.
        self._data = data if kind is abi.WeightKind.TABLE else None

    @property
    def num_bytes(self) -> int:
        """Memory that the weight owns (a table owns none)."""
        return int(self.core.query("core_weight_bytes", self.handle))

    @property
    def is_quantized(self) -> bool:
        """Whether linear ops on it read 8-bit activations."""
        return bool(self.core.query("core_weight_is_quantized", self.handle))


class KVCache(_Handle):
    """The paged KV cache of all layers."""

    _destroy = "core_cache_destroy"

    def __init__(self, core: Core, config: abi.CoreCacheConfig) -> None:
        handle = ctypes.c_void_p()
        core.call("core_cache_create", ctypes.byref(config), ctypes.byref(handle))
        super().__init__(core, handle.value)
        self.num_blocks: int = config.num_blocks
        self.block_size: int = config.block_size

    @property
    def block_bytes(self) -> int:
        """Bytes of one block over all layers."""
        return int(self.core.query("core_cache_block_bytes", self.handle))

    def read(self, block: int) -> bytearray:
        """Keys and values of one block, all layers."""
        data = bytearray(self.block_bytes)
        self.core.call("core_cache_read", self.handle, block, address_of(data), len(data))
        return data

    def write(self, block: int, data: Buffer) -> None:
        """Puts back what `read` gave."""
        size = memoryview(data).nbytes
        self.core.call("core_cache_write", self.handle, block, address_of(data), size)


class CompiledProgram(_Handle):
    """A validated op list that runs as one call."""

    _destroy = "core_program_destroy"

    def __init__(
        self,
        team: ThreadTeam,
        cache: KVCache | None,
        ops: Sequence[abi.CoreOp],
        buffers: Sequence[abi.CoreBuffer],
        weights: Sequence[Weight],
        *,
        max_tokens: int,
        max_logits: int,
        output: int,
        hidden: int | None = None,
        blas_min_rows: int = 0,
    ) -> None:
        """output, hidden: indices of buffers; `hidden` is one that `add_hidden` reads.

        blas_min_rows: linear ops on float weights with so many rows use OpenBLAS; 0: none.
        """
        core = team.core
        handles = (ctypes.c_void_p * len(weights))(*(weight.handle for weight in weights))
        config = abi.CoreProgramConfig(
            (abi.CoreOp * len(ops))(*ops),
            (abi.CoreBuffer * len(buffers))(*buffers),
            handles,
            len(ops),
            len(buffers),
            len(weights),
            max_tokens,
            max_logits,
            output,
            blas_min_rows,
        )
        handle = ctypes.c_void_p()
        core.call(
            "core_program_create",
            team.handle,
            None if cache is None else cache.handle,
            ctypes.byref(config),
            ctypes.byref(handle),
        )
        super().__init__(core, handle.value)
        self._team, self._cache = team, cache
        self._weights = list(weights)  # they must outlive the program
        self.output_width = int(buffers[output].width)
        # It stays where it is; a call would give the interpreter's lock away, for each sequence.
        self._output_address = int(core.query("core_program_output", self.handle))
        self.hidden_width = 0 if hidden is None else int(buffers[hidden].width)
        self._hidden = hidden
        self.max_tokens = max_tokens
        self.max_logits = max_logits

    @property
    def num_bytes(self) -> int:
        """Memory of the program's buffers."""
        return int(self.core.query("core_program_bytes", self.handle))

    def run(self, batch: Batch) -> None:
        """One step: fills the cache and the output rows of the batch."""
        if not (self._team.is_open and (self._cache is None or self._cache.is_open)):
            raise CoreError("the program's thread team or KV cache is closed")
        with self._team.calling():
            self.core.call("core_program_run", self.handle, ctypes.byref(batch.to_core()))

    def output_address(self, row: int = 0) -> int:
        """Where output row `row` lies: float32 [output_width]."""
        return self._output_address + 4 * row * self.output_width

    def output(self, row: int) -> memoryview[float]:
        """Output row `row` as float32 [output_width]; the next run overwrites it."""
        if not 0 <= row < self.max_logits:
            raise IndexError(f"output row {row} of {self.max_logits}")
        floats = ctypes.c_float * self.output_width
        view = memoryview(floats.from_address(self.output_address(row)))
        return view.cast("B").cast("f")

    def add_hidden(self, first: int, count: int, total: array[float]) -> None:
        """Adds `count` rows of the hidden states of the last run to total: [hidden_width]."""
        if self._hidden is None:
            raise CoreError("the program keeps no hidden states: it was compiled without")
        if total.typecode != "f" or len(total) != self.hidden_width:
            raise CoreError(f"total is not float32 [{self.hidden_width}]")
        self.core.call(
            "core_program_add_rows", self.handle, self._hidden, first, count,
            total.buffer_info()[0],
        )  # fmt: skip
