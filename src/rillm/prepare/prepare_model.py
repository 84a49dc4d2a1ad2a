"""prepare: a repository or a checkpoint folder -> a quantised GGUF file, in one pass.

The checkpoint's rows go through conversion and quantisation a few at a time; there is no 16-bit
file in between. The result is, byte for byte, what convert (to the type that the checkpoint has)
and quantize would give.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from numpy.typing import ArrayLike

from rillm.gguf import GGMLType, WriterValue, bytes_left
from rillm.memory_plan import MemoryPlan, plan_memory
from rillm.models.config import read_config
from rillm.prepare.architecture import Config, ModelPlan
from rillm.prepare.boards import Suggestion, Target, find_target, suggest
from rillm.prepare.checkpoint import Checkpoint, read_json
from rillm.prepare.convert import ConvertedModel, model_plan_of
from rillm.prepare.errors import PrepareError
from rillm.prepare.hub import is_repo_name
from rillm.prepare.mixes import ModelFacts, TypeOptions, find_mix, fitting_type
from rillm.prepare.pull import PullProgress, pull
from rillm.prepare.quantize import (
    QuantizePlan,
    check_importance,
    importance_from,
    importance_of,
    plan_tensors,
)
from rillm.prepare.streaming import Output, Progress, Report, write_model

DEFAULT_TYPE = "Q4_K_M"
DEFAULT_CONTEXT = 4096


@dataclass(frozen=True)
class PrepareResult:
    """A file that was written."""

    path: Path
    file_size: int  # bytes
    plan: QuantizePlan
    suggestion: Suggestion | None  # where a board was named and no type


def prepare(
    source: str | os.PathLike[str],
    *,
    type_name: str | None = None,
    board: str | None = None,
    context: int = DEFAULT_CONTEXT,
    cache_type: str = "f16",
    out: str | os.PathLike[str] | None = None,
    hub: str = "hf",
    revision: str | None = None,
    folder: str | os.PathLike[str] | None = None,
    tensor_types: Sequence[tuple[str, str]] = (),
    importance: Mapping[str, ArrayLike] | None = None,
    imatrix: str | os.PathLike[str] | None = None,
    num_threads: int | None = None,
    pull_progress: PullProgress | None = None,
    progress: Progress | None = None,
    report: Report | None = None,
) -> PrepareResult:
    """Make a quantised GGUF file of `source`: a folder, or OWNER/NAME on `hub`.

    type_name: a mix such as "Q4_K_M" (the default); or board ("k1:8") for the type that fits its
    memory with a context of `context` tokens. out: NAME.TYPE.gguf here by default. folder: where a
    repository's files go, ./NAME by default; they stay, and what is there is not fetched again.
    importance, imatrix: as quantize takes them.
    report: called with a line when a type was chosen, or an interrupted run is gone on with.

    Raises PrepareError, GGUFError or CoreError; the output is only ever a whole file.
    """
    mix = find_mix(type_name or DEFAULT_TYPE)
    importance, origin = importance_from(imatrix, importance)
    target = find_target(board) if board else None
    directory, is_repository = _directory(source, folder)
    if is_repository:
        name = os.fspath(source)
        # A commit from here on, so that all files are of one version.
        revision = pull(
            name, source=hub, revision=revision, out=directory, small_only=True,
            progress=pull_progress,
        ).revision  # fmt: skip
    # The type is chosen, and an unknown model refused, before 19 GB are fetched.
    where = directory / "config.json"
    model_plan = model_plan_of(Config(read_json(where), str(where)))
    suggestion = None
    if target is not None:
        suggestion = _choose(target, model_plan, type_name, context, cache_type)
        mix = find_mix(suggestion.type_name)
        if report is not None:
            report(str(suggestion))
    path = Path(out) if out is not None else Path(f"{directory.resolve().name}.{mix.name}.gguf")
    if not path.absolute().parent.is_dir():
        raise PrepareError(f"{path.parent}: no such folder; make it or give another --out")
    if is_repository:
        same_disk = path.absolute().parent.stat().st_dev == directory.stat().st_dev
        num_bytes = sum(size for _, size in tensor_sizes(model_plan, mix.name))
        pull(
            name, source=hub, revision=revision, out=directory, progress=pull_progress,
            spare_bytes=max(0, num_bytes - bytes_left(path)) if same_disk else 0,
        )  # fmt: skip
    with Checkpoint(directory) as checkpoint:
        model = ConvertedModel(checkpoint)
        sources = {tensor.name: tensor for tensor in model.sources}
        plan = plan_tensors(
            mix,
            _stored(model.plan, model.stored_type()),
            ModelFacts.from_metadata(model.metadata, str(directory)),
            TypeOptions(overrides=tensor_types, has_importance=bool(importance)),
        )
        check_importance(plan, importance)
        outputs = [
            Output(sources[tensor.name], tensor.type, importance_of(tensor, importance))
            for tensor in plan.tensors
        ]
        metadata = model.metadata | {"general.file_type": mix.file_type} | origin
        size = write_model(
            path, metadata, outputs, num_threads=num_threads, progress=progress, report=report
        )
    return PrepareResult(path, size, plan, suggestion)


def _directory(
    source: str | os.PathLike[str], folder: str | os.PathLike[str] | None
) -> tuple[Path, bool]:
    """Where the checkpoint is (or will be), and whether it must be fetched."""
    directory = Path(source)
    if directory.exists():
        return directory, False
    if not is_repo_name(os.fspath(source)):
        raise PrepareError(f"{source}: no such folder; give a checkpoint, or OWNER/NAME to fetch")
    return Path(folder or directory.name), True


def _choose(
    target: Target, plan: ModelPlan, type_name: str | None, context: int, cache_type: str
) -> Suggestion:
    if type_name is None:
        return suggest(target, lambda name: memory_of(plan, name, context, cache_type))
    chosen = Suggestion(
        find_mix(type_name).name, memory_of(plan, type_name, context, cache_type), target
    )
    if chosen.plan.total > target.usable_bytes:
        raise PrepareError(f"does not fit: {chosen}; leave out --type for one that does")
    return chosen


def tensor_sizes(plan: ModelPlan, type_name: str) -> list[tuple[str, int]]:
    """(name, bytes) of the tensors of a model in a type, from its config.json alone."""
    facts = ModelFacts.from_metadata(_metadata(plan), "config.json")
    planned = plan_tensors(find_mix(type_name), _stored(plan, GGMLType.BF16), facts)
    return [(tensor.name, tensor.num_bytes) for tensor in planned.tensors]


def memory_of(plan: ModelPlan, type_name: str, context: int, cache_type: str) -> MemoryPlan:
    """The memory that a model takes in a type, from its config.json alone."""
    shapes = {tensor.name: tensor.shape for tensor in plan.tensors}
    config = read_config(_metadata(plan), shapes, rope_interleaved=True)
    return plan_memory(
        config,
        tensor_sizes(plan, type_name),
        context=min(context or config.context_length, config.context_length),
        cache_type=cache_type,
    )


def _metadata(plan: ModelPlan) -> dict[str, WriterValue]:
    architecture = plan.architecture
    keys = {f"{architecture}.{key}": value for key, value in plan.metadata.items()}
    return {"general.architecture": architecture, **keys}


def _stored(plan: ModelPlan, type_: GGMLType) -> dict[str, tuple[tuple[int, ...], GGMLType]]:
    """name -> (shape, type) of the 16-bit file that convert would write."""
    return {
        tensor.name: (
            tensor.shape,
            fitting_type(type_ if len(tensor.shape) > 1 else GGMLType.F32, tensor.shape[-1]),
        )
        for tensor in plan.tensors
    }
