"""Random weights in the exact shape of a known model, as a GGUF file.

They say how fast a machine will be before 20 GB are downloaded: speed depends on shapes and types,
not on values. The rows of a matrix are a few random rows again and again, quantised once.
"""

from __future__ import annotations

import random
from array import array
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from rillm.core import Core
from rillm.gguf import GGMLType, GGUFWriter, WriterValue
from rillm.prepare import chatglm, glm, glm4
from rillm.prepare.architecture import Config, ModelPlan
from rillm.prepare.errors import PrepareError
from rillm.prepare.mixes import ModelFacts, TypeOptions, assign_types, find_mix
from rillm.prepare.tiktoken_vocab import GLM_SPECIALS, spell

_ROWS = 64  # random rows of each width and type
_CHUNK_ROWS = 4096

_CHATGLM_9B = {
    "num_layers": 40, "hidden_size": 4096, "ffn_hidden_size": 13696, "num_attention_heads": 32,
    "multi_query_attention": True, "multi_query_group_num": 2, "kv_channels": 128,
    "padded_vocab_size": 151552, "seq_length": 131072, "layernorm_epsilon": 1.5625e-07,
    "rope_ratio": 500, "add_qkv_bias": True,
}  # fmt: skip
_GLM4_9B = {
    "num_hidden_layers": 40, "hidden_size": 4096, "intermediate_size": 13696,
    "num_attention_heads": 32, "num_key_value_heads": 2, "head_dim": 128, "vocab_size": 151552,
    "max_position_embeddings": 32768, "rms_norm_eps": 1e-05, "rope_theta": 10000.0,
    "partial_rotary_factor": 0.5, "attention_bias": True,
}  # fmt: skip
_GLM4_32B = _GLM4_9B | {
    "num_hidden_layers": 61, "hidden_size": 6144, "intermediate_size": 23040,
    "num_attention_heads": 48, "attention_bias": False,
}  # fmt: skip
# For emulators: 57.7 M weights with its 2 layers.
_GLM4_SMALL = _GLM4_9B | {
    "num_hidden_layers": 2, "hidden_size": 1024, "intermediate_size": 3072,
    "num_attention_heads": 8, "vocab_size": 32768,
}  # fmt: skip
_GLM_EDGE = _GLM4_9B | {
    "num_hidden_layers": 28, "hidden_size": 2048, "intermediate_size": 6144,
    "num_attention_heads": 16, "num_key_value_heads": 4, "vocab_size": 59264,
    "max_position_embeddings": 8192, "partial_rotary_factor": 1.0, "attention_bias": False,
    "tie_word_embeddings": True,
}  # fmt: skip
# Name -> (module that plans it, config.json). Sources: the models' own config.json files.
SHAPES: Mapping[str, tuple[Any, dict[str, Any]]] = {
    "glm-4-9b": (chatglm, _CHATGLM_9B),
    "glm-4-9b-0414": (glm4, _GLM4_9B),
    "glm-4-32b-0414": (glm4, _GLM4_32B),
    "glm-edge-1.5b": (glm, _GLM_EDGE),
    "glm-4-small": (glm4, _GLM4_SMALL),
}


def write_dummy(
    shape: str,
    type_name: str,
    path: Path,
    core: Core,
    *,
    num_layers: int | None = None,
    pure: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Writes random weights in the shape of a model of `SHAPES`.

    type_name: a mix such as "Q4_K_M". num_layers: fewer than the model has, for a quick look. pure:
    every matrix in the mix's base type.
    Raises PrepareError for an unknown name.
    """
    if shape not in SHAPES:
        raise PrepareError(f"no shape {shape!r}; known: {', '.join(SHAPES)}")
    module, values = SHAPES[shape]
    if num_layers is not None:
        key = "num_layers" if module is chatglm else "num_hidden_layers"
        values = values | {key: num_layers}
    plan: ModelPlan = module.plan(Config(values, shape))
    mix = find_mix(type_name)
    metadata: dict[str, WriterValue] = {
        "general.architecture": plan.architecture,
        "general.name": f"random weights in the shape of {shape}",
        "general.file_type": mix.file_type,
        "general.quantization_version": 2,
        **{f"{plan.architecture}.{name}": value for name, value in plan.metadata.items()},
        **_vocabulary(plan),
    }
    assignment = assign_types(
        mix,
        {
            tensor.name: (tensor.shape, GGMLType.F16 if len(tensor.shape) > 1 else GGMLType.F32)
            for tensor in plan.tensors
        },
        ModelFacts.from_metadata(metadata, shape),
        TypeOptions(pure=pure),
    )
    shapes = {tensor.name: tensor.shape for tensor in plan.tensors}
    rows = _RandomRows(core)
    total = sum(_num_bytes(shapes[name], type_) for name, type_ in assignment.types.items())
    done = 0
    with GGUFWriter(path, metadata) as writer:
        for name, type_ in assignment.types.items():
            writer.declare(name, shapes[name], type_)
        for name, type_ in assignment.types.items():
            writer.write(name, rows.tensor(name, shapes[name], type_))
            done += _num_bytes(shapes[name], type_)
            if progress is not None:
                progress(done, total)
    return path


def _num_bytes(shape: tuple[int, ...], type_: GGMLType) -> int:
    count = type_.row_bytes(shape[-1])
    for length in shape[:-1]:
        count *= length
    return count


class _RandomRows:
    """Quantised random rows, made once for each width and type."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._made: dict[tuple[int, GGMLType], bytes] = {}

    def tensor(self, name: str, shape: tuple[int, ...], type_: GGMLType) -> Iterator[bytes]:
        if len(shape) == 1:  # norms near 1, biases near 0
            mean = 1.0 if name.endswith("norm.weight") else 0.0
            source = random.Random(name)
            yield array("f", (source.gauss(mean, 0.1) for _ in range(shape[0]))).tobytes()
            return
        rows, cols = shape
        block = self._rows(cols, type_)
        row_bytes = type_.row_bytes(cols)
        for first in range(0, rows, _CHUNK_ROWS):
            count = min(_CHUNK_ROWS, rows - first)
            repeats = -(-count // _ROWS)
            yield (block * repeats)[: count * row_bytes]

    def _rows(self, cols: int, type_: GGMLType) -> bytes:
        key = (cols, type_)
        if key not in self._made:
            source = random.Random(cols)
            spread = cols**-0.5  # outputs about as large as inputs
            weights = array("f", (source.gauss(0.0, spread) for _ in range(_ROWS * cols)))
            out = bytearray(_ROWS * type_.row_bytes(cols))
            self._core.quantize(type_, weights, out, cols)
            self._made[key] = bytes(out)
        return self._made[key]


def _vocabulary(plan: ModelPlan) -> dict[str, WriterValue]:
    """Bytes, the family's special tokens where GLM-4 has them, and padding: enough to run."""
    size = plan.vocab_size
    first_special = 151329 if size > 151343 else size - 64
    tokens = [spell(bytes([byte])) for byte in range(256)]
    tokens += [f"[PAD{i}]" for i in range(256, first_special)]
    tokens += GLM_SPECIALS
    tokens += [f"[PAD{i}]" for i in range(len(tokens), size)]
    types = [1] * 256 + [5] * (first_special - 256) + [3] * len(GLM_SPECIALS)
    types += [5] * (size - len(types))
    prefix = "tokenizer.ggml."
    return {
        prefix + "model": "gpt2",
        prefix + "pre": plan.glm_pre,
        prefix + "tokens": tokens,
        prefix + "token_type": types,
        prefix + "merges": [f"{tokens[97]} {tokens[98]}"],
        prefix + "eos_token_id": first_special,
        prefix + "eot_token_id": first_special + 7,
        prefix + "padding_token_id": first_special,
        prefix + "add_bos_token": False,
    }
