"""What is in a GGUF file, what it takes to run it, and in what two files differ.

Standard library and the serving path's packages only: it also runs on a board.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from math import prod
from typing import Any

from rillm.chat_template import ChatTemplate
from rillm.errors import RillmError
from rillm.gguf import GGMLType, GGUFReader, TensorInfo
from rillm.known_faults import config_of, find_faults
from rillm.memory_plan import MemoryPlan, plan_memory

EXAMPLE = (
    {"role": "system", "content": "Answer briefly."},
    {"role": "user", "content": "你好"},
    {"role": "assistant", "content": "Hello!"},
    {"role": "user", "content": "What is RISC-V?"},
)


def memory_plans(reader: GGUFReader, context: int | None = None) -> list[MemoryPlan]:
    """Memory with an f16 and a q8_0 cache; context None: the model's own.

    Raises RillmError where the file is no model that rillm runs.
    """
    config = config_of(reader)
    sizes = [(name, tensor.nbytes) for name, tensor in reader.tensors.items()]
    return [
        plan_memory(config, sizes, context=context or config.context_length, cache_type=cache_type)
        for cache_type in ("f16", "q8_0")
        if config.head_dim % GGMLType[cache_type.upper()].block_size == 0
    ]


def rendered_example(reader: GGUFReader) -> tuple[str, str]:
    """(source of the chat template, EXAMPLE in it). Raises ChatTemplateError."""
    architecture = str(reader.metadata.get("general.architecture"))
    template = ChatTemplate.from_gguf(reader.metadata, architecture)
    return template.source, template.render(EXAMPLE)


@dataclass(frozen=True)
class WeightTotals:
    """The tensors of a file, summed up."""

    num_weights: int
    bits_per_weight: float
    types: dict[str, int]  # name -> tensors of it, most first


def weight_totals(reader: GGUFReader) -> WeightTotals:
    """Sums over all tensors."""
    tensors = reader.tensors.values()
    num_weights = sum(prod(tensor.shape) for tensor in tensors)
    bits = 8 * sum(tensor.nbytes for tensor in tensors) / max(1, num_weights)
    types = Counter(tensor.type.name for tensor in tensors)
    return WeightTotals(num_weights, bits, dict(types.most_common()))


def summary(reader: GGUFReader, context: int | None = None) -> dict[str, Any]:
    """Everything about a file, for JSON."""
    try:
        memory = [plan.to_dict() for plan in memory_plans(reader, context)]
    except RillmError:
        memory = []
    try:
        source, text = rendered_example(reader)
        template: dict[str, Any] | None = {"source": source, "example": text}
    except RillmError:
        template = None
    totals = weight_totals(reader)
    return {
        "version": reader.version,
        "files": [str(file) for file in reader.files],
        "file_size": reader.file_size,
        "packed_for": None if reader.packing is None else reader.packing.variant,
        "num_weights": totals.num_weights,
        "bits_per_weight": totals.bits_per_weight,
        "types": totals.types,
        "memory": memory,
        "chat_template": template,
        "faults": [vars(fault) for fault in find_faults(reader)],
        "metadata": reader.metadata,
        "tensors": [
            {
                "name": tensor.name,
                "shape": list(tensor.shape),
                "type": tensor.type.name,
                "num_bytes": tensor.nbytes,
            }
            for tensor in reader.tensors.values()
        ],
    }


@dataclass(frozen=True)
class Difference:
    """One thing in which two files differ; None where one of them lacks it."""

    kind: str  # "key" or "tensor"
    name: str
    first: str | None
    second: str | None


def compare(first: GGUFReader, second: GGUFReader) -> list[Difference]:
    """In what the second file differs: keys, and tensors by type, shape and content.

    Tensors of one type and shape are compared byte for byte, which reads both files.
    """
    found = []
    for key in dict.fromkeys([*first.metadata, *second.metadata]):
        texts = [
            None if key not in reader.metadata
            else f"{reader.value_types[key].name} {describe(reader.metadata[key])}"
            for reader in (first, second)
        ]  # fmt: skip
        equal = key in first.metadata and key in second.metadata
        equal = equal and first.value_types[key] is second.value_types[key]
        if not equal or not _same_value(first.metadata[key], second.metadata[key]):
            found.append(Difference("key", key, texts[0], texts[1]))
    for name in dict.fromkeys([*first.tensors, *second.tensors]):
        a, b = first.tensors.get(name), second.tensors.get(name)
        if a is not None and b is not None and (a.type, a.shape) == (b.type, b.shape):
            at = _first_difference(a, b)
            if at is not None:
                row_bytes = a.type.row_bytes(a.shape[-1])
                found.append(
                    Difference(
                        "tensor", name, _tensor(a), f"other values from row {at // row_bytes}"
                    )
                )
        else:
            found.append(Difference("tensor", name, _tensor(a), _tensor(b)))
    return found


def describe(value: Any) -> str:
    """A metadata value in a line."""
    if isinstance(value, list):
        head = ", ".join(describe(item) for item in value[:3])
        return f"[{head}{', ...' if len(value) > 3 else ''}]  ({len(value)} values)"
    text = repr(value) if isinstance(value, str) else str(value)
    return text if len(text) <= 100 else f"{text[:97]}...  ({len(text)} characters)"


def _tensor(info: TensorInfo | None) -> str | None:
    if info is None:
        return None
    return f"{info.type.name} {' x '.join(map(str, info.shape))}"


def _same_value(a: Any, b: Any) -> bool:
    return bool(a == b) or (a != a and b != b)  # NaN equals NaN here


def _first_difference(a: TensorInfo, b: TensorInfo) -> int | None:
    """The first byte (to 4 KiB) in which the data differ."""
    step = 1 << 12
    chunk = 1 << 24
    try:
        for start in range(0, a.nbytes, chunk):
            if a.data[start : start + chunk] == b.data[start : start + chunk]:
                continue
            for at in range(start, min(start + chunk, a.nbytes), step):
                if a.data[at : at + step] != b.data[at : at + step]:
                    left, right = a.data[at : at + step], b.data[at : at + step]
                    return at + next(i for i, byte in enumerate(left) if byte != right[i])
        return None
    finally:
        a.release()
        b.release()
