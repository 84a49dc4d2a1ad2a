"""quantize: a GGUF file in smaller types, laid out as llama-quantize would."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rillm.core import load_core
from rillm.gguf import GGMLType, GGUFReader, TensorInfo, WriterValue
from rillm.memory_plan import MemoryPlan, plan_memory
from rillm.models import ModelError, read_model_config
from rillm.prepare.errors import PrepareError
from rillm.prepare.imatrix import read_imatrix
from rillm.prepare.mixes import FLOAT_TYPES, Mix, ModelFacts, TypeOptions, assign_types, find_mix
from rillm.prepare.streaming import Output, Progress, Report, write_model

QUANTIZATION_VERSION = 2  # of the block formats: GGML_QNT_VERSION

_NUMPY_TYPES: dict[GGMLType, np.dtype[Any]] = {
    GGMLType.F32: np.dtype("<f4"),
    GGMLType.F16: np.dtype("<f2"),
    GGMLType.BF16: np.dtype("<u2"),
    GGMLType.F64: np.dtype("<f8"),
}


@dataclass(frozen=True)
class TensorPlan:
    """One tensor of the new file."""

    name: str
    shape: tuple[int, ...]  # row-major
    source_type: GGMLType
    type: GGMLType

    @property
    def num_weights(self) -> int:
        """Numbers in the tensor."""
        return prod(self.shape)

    @property
    def num_bytes(self) -> int:
        """Bytes in the new file, without padding."""
        return self.type.row_bytes(self.shape[-1]) * prod(self.shape[:-1])

    @property
    def source_bytes(self) -> int:
        """Bytes in the old file, without padding."""
        return self.source_type.row_bytes(self.shape[-1]) * prod(self.shape[:-1])


@dataclass(frozen=True)
class QuantizePlan:
    """What quantising would give; nothing has been written."""

    mix: Mix
    tensors: tuple[TensorPlan, ...]  # in the order of the file
    # Tensors whose rows no multiple of the mix's block fits: name -> the type they would have had.
    fallbacks: dict[str, GGMLType] = field(default_factory=dict)

    @property
    def num_bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.num_bytes for tensor in self.tensors)

    @property
    def source_bytes(self) -> int:
        """Bytes of all tensors before."""
        return sum(tensor.source_bytes for tensor in self.tensors)

    @property
    def bits_per_weight(self) -> float:
        """The mean over all tensors, norms included."""
        return 8 * self.num_bytes / max(1, sum(tensor.num_weights for tensor in self.tensors))


@dataclass(frozen=True)
class QuantizeResult:
    """A file that was written."""

    path: Path
    file_size: int  # bytes
    plan: QuantizePlan


def plan_tensors(
    mix: Mix,
    tensors: Mapping[str, tuple[Sequence[int], GGMLType]],
    model: ModelFacts,
    options: TypeOptions = TypeOptions(),  # noqa: B008 (frozen)
) -> QuantizePlan:
    """The plan for tensors given as name -> (shape, type), of which no data need exist."""
    assignment = assign_types(mix, tensors, model, options)
    planned = tuple(
        TensorPlan(name, tuple(tensors[name][0]), tensors[name][1], type_)
        for name, type_ in assignment.types.items()
    )
    return QuantizePlan(mix, planned, assignment.fallbacks)


def plan_quantize(
    in_path: str | os.PathLike[str],
    type_name: str,
    *,
    pure: bool = False,
    leave_output_tensor: bool = False,
    tensor_types: Sequence[tuple[str, str]] = (),
    has_importance: bool = False,
) -> QuantizePlan:
    """What `quantize` with these options would write (a dry run).

    tensor_types: (regular expression, type) pairs; the first that is found in a tensor's name wins.
    Raises PrepareError for unknown types, GGUFError for a bad file.
    """
    options = TypeOptions(pure, leave_output_tensor, tensor_types, has_importance)
    mix = find_mix(type_name)
    with GGUFReader(in_path) as reader:
        return _plan(reader, mix, options)


def memory_of_plan(
    in_path: str | os.PathLike[str], plan: QuantizePlan, context: int
) -> MemoryPlan | None:
    """What running the planned file takes; None for a model that rillm does not run."""
    with GGUFReader(in_path) as reader:
        try:
            config = read_model_config(reader)
        except ModelError:
            return None
    sizes = [(tensor.name, tensor.num_bytes) for tensor in plan.tensors]
    return plan_memory(config, sizes, context=min(context, config.context_length))


def quantize(
    in_path: str | os.PathLike[str],
    out_path: str | os.PathLike[str],
    type_name: str,
    *,
    pure: bool = False,
    leave_output_tensor: bool = False,
    tensor_types: Sequence[tuple[str, str]] = (),
    importance: Mapping[str, ArrayLike] | None = None,
    imatrix: str | os.PathLike[str] | None = None,
    allow_requantize: bool = False,
    num_threads: int | None = None,
    progress: Progress | None = None,
    report: Report | None = None,
) -> QuantizeResult:
    """Write `in_path` to `out_path` as `type_name` ("Q4_K_M", ...; "Q4_K" means that).

    importance: tensor name -> weight of each column's error, at least 0; or imatrix: a file of such
    weights (see rillm.prepare.imatrix), which the new file names in its metadata.
    allow_requantize: accept a file that is quantised already, at a loss of quality.
    progress is called with (bytes written, bytes in total).

    Raises PrepareError, GGUFError or CoreError with one line; `out_path` is only ever a whole file.
    """
    mix = find_mix(type_name)
    importance, origin = importance_from(imatrix, importance)
    options = TypeOptions(pure, leave_output_tensor, tensor_types, bool(importance))
    with GGUFReader(in_path) as reader:
        if any(_is_same_file(out_path, part) for part in reader.files):
            raise PrepareError(f"{out_path}: is the input file; give another output path")
        plan = _plan(reader, mix, options)
        where = os.fspath(in_path)
        _check_types(plan, where, allow_requantize)
        check_importance(plan, importance)
        outputs = [
            Output(
                _GGUFSource(reader.tensors[tensor.name]),
                tensor.type,
                importance_of(tensor, importance),
            )
            for tensor in plan.tensors
        ]
        metadata = reader.copy_metadata() | {
            "general.quantization_version": QUANTIZATION_VERSION,
            "general.file_type": mix.file_type,
            **origin,
        }
        size = write_model(
            out_path, metadata, outputs, num_threads=num_threads, progress=progress, report=report
        )
    return QuantizeResult(Path(out_path), size, plan)


def _plan(reader: GGUFReader, mix: Mix, options: TypeOptions) -> QuantizePlan:
    if reader.packing is not None:
        raise PrepareError(
            f"{reader.path}: is packed for {reader.packing.variant}; start from the GGUF file it "
            "was made from"
        )
    model = ModelFacts.from_metadata(reader.metadata, str(reader.files[0]))
    tensors = {name: (info.shape, info.type) for name, info in reader.tensors.items()}
    return plan_tensors(mix, tensors, model, options)


def _check_types(plan: QuantizePlan, where: str, allow_requantize: bool) -> None:
    """Refuse before anything is written what could not be finished."""
    formats = {row.ggml_type: row for row in load_core().formats}
    for tensor in plan.tensors:
        if tensor.type is tensor.source_type:
            continue
        if tensor.source_type not in formats and tensor.source_type not in _NUMPY_TYPES:
            raise PrepareError(
                f"{where}: {tensor.name} is {tensor.source_type.name}, which rillm cannot read; "
                "start from an f16 or bf16 file"
            )
        if tensor.source_type not in _NUMPY_TYPES and not allow_requantize:
            raise PrepareError(
                f"{where}: {tensor.name} is {tensor.source_type.name} already; start from an f16 "
                "or bf16 file, or accept the loss of quality with --allow-requantize"
            )
        row = formats.get(tensor.type)
        if tensor.type not in FLOAT_TYPES and (row is None or not row.can_quantize):
            raise PrepareError(f"{tensor.name}: the core cannot write {tensor.type.name}")


def importance_from(
    path: str | os.PathLike[str] | None, given: Mapping[str, ArrayLike] | None
) -> tuple[Mapping[str, ArrayLike], dict[str, WriterValue]]:
    """The weights of an importance matrix's file, or those given; and the keys that say so."""
    if path is None:
        return given or {}, {}
    matrix = read_imatrix(path)
    return matrix.importance(), matrix.origin(path)


def check_importance(plan: QuantizePlan, importance: Mapping[str, ArrayLike]) -> None:
    """PrepareError where none of the weights is for a tensor of this model."""
    if importance and not any(tensor.name in importance for tensor in plan.tensors):
        raise PrepareError(
            f"the importance matrix is of {next(iter(importance))} and others, none of which this "
            "model has: it was made with another model"
        )


def importance_of(
    tensor: TensorPlan, importance: Mapping[str, ArrayLike]
) -> NDArray[np.float32] | None:
    """The checked weight of each column's error for one tensor, or None where there is none."""
    if tensor.name not in importance or tensor.type in FLOAT_TYPES:
        return None
    values = np.ascontiguousarray(importance[tensor.name], np.float32).reshape(-1)
    expected = tensor.shape[-1] * prod(tensor.shape[:-2])
    if values.size != expected:
        raise PrepareError(
            f"importance of {tensor.name}: {values.size} values for {expected} columns; it was "
            "made with another model"
        )
    if not (np.isfinite(values).all() and (values >= 0).all()):
        raise PrepareError(f"importance of {tensor.name}: a value is negative or not finite")
    return values


def _is_same_file(path: str | os.PathLike[str], other: Path) -> bool:
    try:
        return os.path.samefile(path, other)
    except OSError:
        return False


class _GGUFSource:
    """A tensor of an open GGUF file."""

    row_group = 1

    def __init__(self, info: TensorInfo) -> None:
        self.info = info
        self.name, self.shape, self.where = info.name, info.shape, info.path
        self._row_bytes = info.type.row_bytes(info.shape[-1])

    def rows(self, start: int, stop: int) -> NDArray[Any]:
        """The rows as stored floats, or dequantised."""
        data = self._bytes(start, stop)
        shape = (stop - start, self.shape[-1])
        dtype = _NUMPY_TYPES.get(self.info.type)
        if dtype is not None:
            return np.frombuffer(data, dtype).reshape(shape)
        values = np.empty(shape, np.float32)
        load_core().dequantize(self.info.type, data, values.data)
        return values

    def blocks(self, start: int, stop: int, type_: GGMLType) -> memoryview | None:
        """The rows to be copied as they are; floats are not, so that they are checked."""
        same = type_ is self.info.type and type_ not in FLOAT_TYPES
        return self._bytes(start, stop) if same else None

    def release(self) -> None:
        """Give the file's pages back."""
        self.info.release()

    def _bytes(self, start: int, stop: int) -> memoryview:
        return self.info.data[start * self._row_bytes : stop * self._row_bytes]
