"""convert: a Hugging Face checkpoint -> a GGUF file, tensor by tensor.

Each architecture is a module with `HF_CLASSES` and `plan(config)`; adding one means a row here.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rillm.gguf import GGMLType, WriterValue
from rillm.prepare import chatglm, glm, glm4, llama
from rillm.prepare.architecture import Config, ModelPlan, PlannedTensor
from rillm.prepare.checkpoint import Checkpoint
from rillm.prepare.errors import PrepareError
from rillm.prepare.mixes import MIXES, fitting_type
from rillm.prepare.model_card import general_metadata
from rillm.prepare.quantize import QUANTIZATION_VERSION
from rillm.prepare.streaming import Output, Progress, Report, write_model
from rillm.prepare.vocab import tokenizer_metadata

_MODULES = (chatglm, glm, glm4, llama)
_PLANS: dict[Any, Callable[[Config], ModelPlan]] = {
    name: module.plan for module in _MODULES for name in module.HF_CLASSES
}
OUT_TYPES = ("auto", "f32", "f16", "bf16", "q8_0")


@dataclass(frozen=True)
class ConvertResult:
    """A file that was written."""

    path: Path
    architecture: str  # general.architecture
    type: GGMLType  # of the matrices
    num_tensors: int
    num_weights: int
    file_size: int  # bytes


class ConvertedModel:
    """A checkpoint seen as the GGUF file it becomes: metadata, and tensors to be read.

    Raises PrepareError where the checkpoint is not a whole one of a known architecture.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint
        config = Config(checkpoint.config, str(checkpoint.directory / "config.json"))
        self.plan = model_plan_of(config)
        _check_tensors(checkpoint, self.plan)
        self.sources = [_CheckpointSource(checkpoint, tensor) for tensor in self.plan.tensors]
        self.num_weights = sum(prod(tensor.shape) for tensor in self.plan.tensors)
        architecture = self.plan.architecture
        self.metadata: dict[str, WriterValue] = {
            "general.architecture": architecture,
            **general_metadata(checkpoint.directory, self.num_weights),
            **{f"{architecture}.{key}": value for key, value in self.plan.metadata.items()},
            "general.quantization_version": QUANTIZATION_VERSION,
            **tokenizer_metadata(checkpoint.directory, config, self.plan),
        }

    def stored_type(self) -> GGMLType:
        """The 16-bit type that holds the checkpoint best: BF16 for BF16, F16 for the others."""
        dtype = self.checkpoint.tensors[self.plan.tensors[0].source or ""].dtype
        return GGMLType.BF16 if dtype == "BF16" else GGMLType.F16


def convert(
    checkpoint_dir: str | os.PathLike[str],
    out_path: str | os.PathLike[str],
    *,
    out_type: str = "f16",
    num_threads: int | None = None,
    progress: Progress | None = None,
    report: Report | None = None,
) -> ConvertResult:
    """Write the checkpoint in `checkpoint_dir` as a GGUF file.

    out_type: "f32", "f16", "bf16", "q8_0", or "auto" for the 16-bit type nearest to what is stored.
    Norms, biases and other vectors are always float32. progress is called with (bytes written,
    bytes in total). Raises PrepareError with one line; `out_path` is only ever a whole file.
    """
    if out_type.lower() not in OUT_TYPES:
        raise PrepareError(f"unknown output type {out_type!r}; use one of {', '.join(OUT_TYPES)}")
    with Checkpoint(checkpoint_dir) as checkpoint:
        model = ConvertedModel(checkpoint)
        type_ = model.stored_type() if out_type == "auto" else GGMLType[out_type.upper()]
        outputs = [
            Output(
                source,
                fitting_type(type_ if source.is_matrix else GGMLType.F32, source.shape[-1]),
            )
            for source in model.sources
        ]
        metadata = model.metadata | {"general.file_type": MIXES[type_.name].file_type}
        size = write_model(
            out_path, metadata, outputs, num_threads=num_threads, progress=progress, report=report
        )
    return ConvertResult(
        Path(out_path),
        model.plan.architecture,
        type_,
        len(outputs),
        model.num_weights,
        size,
    )


def model_plan_of(config: Config) -> ModelPlan:
    """What the checkpoint of this config.json becomes; PrepareError for one we do not convert."""
    if config.values.get("quantization_config"):
        raise config.error("the checkpoint is quantised; get the original in f16, bf16 or f32")
    names = config.values.get("architectures")
    name = names[0] if isinstance(names, list) and names else None
    if name not in _PLANS:
        raise config.error(
            f"architecture {name!r} is not supported; rillm converts {', '.join(_PLANS)}"
        )
    return _PLANS[name](config)


def _check_tensors(checkpoint: Checkpoint, plan: ModelPlan) -> None:
    """Every planned tensor must be there in the right shape, and no other."""
    wanted = {tensor.source: tensor for tensor in plan.tensors if tensor.source is not None}
    stored = {
        name: tensor
        for name, tensor in checkpoint.tensors.items()
        if not plan.ignored.fullmatch(name)
    }
    where = checkpoint.directory
    if missing := [name for name in wanted if name not in stored]:
        raise PrepareError(
            f"{where}: tensor {_some(missing)} is missing; a shard is incomplete, or config.json "
            "belongs to another model"
        )
    if unexpected := [name for name in stored if name not in wanted]:
        raise PrepareError(
            f"{where}: tensor {_some(unexpected)} has no place in this architecture; config.json "
            "belongs to another model, or the model is a variant that rillm does not convert"
        )
    for name, tensor in wanted.items():
        if stored[name].shape != tensor.shape:
            raise PrepareError(
                f"{where / stored[name].file}: {name} has shape {list(stored[name].shape)}, but "
                f"config.json makes it {list(tensor.shape)}"
            )
        checkpoint.dtype(name)


def _some(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} (and {len(names) - 1} more)"


class _CheckpointSource:
    """A planned tensor with its values."""

    def __init__(self, checkpoint: Checkpoint, tensor: PlannedTensor) -> None:
        self.checkpoint = checkpoint
        self.tensor = tensor
        self.name, self.shape = tensor.name, tensor.shape
        self.row_group = tensor.pair_heads_of or 1
        self.is_matrix = len(tensor.shape) > 1
        stored = checkpoint.tensors.get(tensor.source or "")
        self.where = str(checkpoint.directory / (stored.file if stored else "config.json"))

    def rows(self, start: int, stop: int) -> NDArray[Any]:
        """Rows in the order of the GGUF file; a vector is one row."""
        source, head_dim = self.tensor.source, self.tensor.pair_heads_of
        if source is None:
            return np.array(self.tensor.values, np.float32).reshape(1, -1)
        if not self.is_matrix:
            start, stop = 0, self.shape[0]
        values = self.checkpoint.read_rows(source, start, stop)
        if head_dim:
            halves = values.reshape(-1, 2, head_dim // 2, *values.shape[1:])
            values = np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(values.shape)
        return values

    def blocks(self, start: int, stop: int, type_: GGMLType) -> memoryview | None:
        """Never: a checkpoint holds floats."""
        return None

    def release(self) -> None:
        """Nothing is held."""
