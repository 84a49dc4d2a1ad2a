"""What runs: the paged KV cache and compiled programs."""

from __future__ import annotations

import ctypes
from array import array
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rillm.core import abi
from rillm.core.batch import Batch
from rillm.core.handle import Handle, address_of
from rillm.core.loader import CoreError

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from rillm.core.library import Core, ThreadTeam, Weight


class KVCache(Handle):
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


class CompiledProgram(Handle):
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
        """Where output row `row` lies: float32 [output_width]. CoreError once it is closed."""
        _ = self.handle  # raises
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
