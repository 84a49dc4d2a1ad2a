"""The C++ core, and the only package that uses ctypes.

`load_core()` probes the CPU and loads one variant; everything else hangs on the `Core` it returns.
"""

from __future__ import annotations

from rillm.core.abi import BufferKind, CoreBuffer, CoreCacheConfig, CoreOp, OpKind, Rows, WeightKind
from rillm.core.batch import Batch
from rillm.core.blas import BLAS_CHOICES, BlasUse, choose_blas, open_blas
from rillm.core.library import Core, Format, ThreadTeam, Weight, allowed_cpus, load_core
from rillm.core.loader import (
    CoreError,
    Variant,
    cpu_features,
    supported_variants,
    variants,
    vector_evidence,
)
from rillm.core.program import CompiledProgram, KVCache
from rillm.core.sampling import SamplingRequest

__all__ = [
    "BLAS_CHOICES",
    "Batch",
    "BlasUse",
    "BufferKind",
    "CompiledProgram",
    "Core",
    "CoreBuffer",
    "CoreCacheConfig",
    "CoreError",
    "CoreOp",
    "Format",
    "KVCache",
    "OpKind",
    "Rows",
    "SamplingRequest",
    "ThreadTeam",
    "Variant",
    "Weight",
    "WeightKind",
    "allowed_cpus",
    "choose_blas",
    "cpu_features",
    "load_core",
    "open_blas",
    "supported_variants",
    "variants",
    "vector_evidence",
]
