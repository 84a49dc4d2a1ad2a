"""The C ABI of csrc/core.h, field for field.

Every structure here is compared with the library's own size when a variant is loaded, so a mirror
that fell behind is an error at start and not a crash later.
"""

from __future__ import annotations

import ctypes
from ctypes import (
    POINTER,
    Structure,
    c_char,
    c_char_p,
    c_double,
    c_float,
    c_int32,
    c_int64,
    c_uint32,
    c_uint64,
    c_void_p,
)
from enum import IntEnum

ABI_VERSION = 3


class Status(IntEnum):
    """CoreStatus: what a function of the core returns."""

    OK = 0
    INVALID = 1
    NO_MEMORY = 2
    UNSUPPORTED = 3


class WeightKind(IntEnum):
    """CoreWeightKind: the form in which an op reads a tensor."""

    MATRIX = 0
    TABLE = 1
    VECTOR = 2
    PACKED = 3


class BufferKind(IntEnum):
    """CoreBufferKind: float32 rows, or 8-bit activations with scales."""

    F32 = 0
    Q8 = 1


class Rows(IntEnum):
    """CoreRows: a row for each token, for each token whose logits are wanted, or for the batch."""

    TOKENS = 0
    LOGITS = 1
    ONE = 2


class OpKind(IntEnum):
    """CoreOpKind; csrc/core.h says what each op reads and writes."""

    EMBED = 0
    RMSNORM = 1
    LINEAR = 2
    ROPE_TABLE = 3
    ROPE = 4
    ATTENTION = 5
    SWIGLU = 6
    ADD = 7
    QUANTIZE = 8
    GATHER = 9
    SUM_SQUARES = 10


class CoreAbi(Structure):
    """Version of the ABI and the size of every structure."""

    _fields_ = [
        (name, c_uint32)
        for name in (
            "version", "sizeof_format", "sizeof_tensor", "sizeof_cache", "sizeof_buffer",
            "sizeof_op", "sizeof_program", "sizeof_batch", "sizeof_sampling", "sizeof_prob",
        )
    ]  # fmt: skip


class CoreFormat(Structure):
    """One weight format that the core runs."""

    _fields_ = [
        ("ggml_type", c_int32),
        ("block_size", c_int32),
        ("block_bytes", c_int32),
        ("can_quantize", c_int32),
        ("name", c_char * 16),
    ]


class CoreTensor(Structure):
    """GGUF blocks in memory: [rows, cols] of one format."""

    _fields_ = [
        ("data", c_void_p),
        ("num_bytes", c_uint64),
        ("rows", c_int64),
        ("cols", c_int64),
        ("ggml_type", c_int32),
    ]


class CoreCacheConfig(Structure):
    """Shape of the paged KV cache."""

    _fields_ = [
        (name, c_int32)
        for name in (
            "num_layers", "num_kv_heads", "head_dim", "block_size", "num_blocks", "ggml_type",
        )
    ]  # fmt: skip


class CoreBuffer(Structure):
    """One buffer of a program."""

    _fields_ = [(name, c_int32) for name in ("kind", "rows", "width", "slot")]


class CoreOp(Structure):
    """One op of a program."""

    _fields_ = [
        ("kind", c_int32),
        ("inputs", c_int32 * 3),
        ("outputs", c_int32 * 2),
        ("weight", c_int32 * 6),
        ("i", c_int32 * 6),
        ("f", c_float * 2),
    ]


class CoreProgramConfig(Structure):
    """A whole program, as core_program_create reads it."""

    _fields_ = [
        ("ops", POINTER(CoreOp)),
        ("buffers", POINTER(CoreBuffer)),
        ("weights", POINTER(c_void_p)),
        ("num_ops", c_int32),
        ("num_buffers", c_int32),
        ("num_weights", c_int32),
        ("max_tokens", c_int32),
        ("max_logits", c_int32),
        ("output", c_int32),
        ("blas_min_rows", c_int32),
    ]


class CoreBatch(Structure):
    """One ragged batch; the pointers are to int32 arrays."""

    _fields_ = [
        (name, c_void_p)
        for name in (
            "token_ids", "positions", "slot_mapping", "cu_seqlens_q", "context_lens",
            "block_tables", "logits_rows",
        )
    ] + [
        (name, c_int32) for name in ("num_tokens", "num_seqs", "max_blocks", "num_logits")
    ]  # fmt: skip


HANDLE = c_void_p
_OUT = POINTER(c_void_p)

# name -> (result type, argument types)
FUNCTIONS: dict[str, tuple[object, list[object]]] = {
    "core_variant": (c_char_p, []),
    "core_last_error": (c_char_p, []),
    "core_team_create": (c_int32, [c_int32, POINTER(c_int32), _OUT]),
    "core_team_destroy": (None, [HANDLE]),
    "core_multiply_peak": (c_int32, [HANDLE, POINTER(c_double), POINTER(c_double)]),
    "core_read_bandwidth": (c_int32, [HANDLE, c_void_p, c_uint64, c_int32, POINTER(c_double)]),
    "core_load_blas": (c_int32, [c_char_p]),
    "core_blas_info": (c_char_p, []),
    "core_format_at": (c_int32, [c_int32, POINTER(CoreFormat)]),
    "core_dequantize": (c_int32, [c_int32, c_void_p, c_uint64, c_void_p, c_uint64]),
    "core_quantize": (
        c_int32,
        [HANDLE, c_int32, c_void_p, c_void_p, c_void_p, c_uint64, c_uint64, c_uint64],
    ),
    "core_weight_create": (c_int32, [HANDLE, c_int32, POINTER(CoreTensor), _OUT]),
    "core_weight_bytes": (c_uint64, [HANDLE]),
    "core_weight_is_quantized": (c_int32, [HANDLE]),
    "core_weight_destroy": (None, [HANDLE]),
    "core_tile_rows": (c_int32, [c_char_p]),
    "core_pack": (c_int32, [HANDLE, c_char_p, POINTER(CoreTensor), c_void_p, c_uint64]),
    "core_layout_id": (c_int32, [c_char_p, c_int32, POINTER(c_uint64)]),
    "core_cache_create": (c_int32, [POINTER(CoreCacheConfig), _OUT]),
    "core_cache_block_bytes": (c_uint64, [HANDLE]),
    "core_cache_read": (c_int32, [HANDLE, c_int32, c_void_p, c_uint64]),
    "core_cache_write": (c_int32, [HANDLE, c_int32, c_void_p, c_uint64]),
    "core_cache_destroy": (None, [HANDLE]),
    "core_program_create": (c_int32, [HANDLE, HANDLE, POINTER(CoreProgramConfig), _OUT]),
    "core_program_run": (c_int32, [HANDLE, POINTER(CoreBatch)]),
    "core_program_output": (c_void_p, [HANDLE]),
    "core_program_add_rows": (c_int32, [HANDLE, c_int32, c_int32, c_int32, c_void_p]),
    "core_program_bytes": (c_uint64, [HANDLE]),
    "core_program_destroy": (None, [HANDLE]),
    "core_sample": (c_int32, [HANDLE, c_void_p, c_int32]),
}


def bind(library: ctypes.CDLL) -> None:
    """Gives the library's functions their types."""
    for name, (result, arguments) in FUNCTIONS.items():
        function = getattr(library, name)
        function.restype = result
        function.argtypes = arguments
