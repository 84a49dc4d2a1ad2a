"""A small GLM with random weights as a GGUF file, in any weight format the core can write."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from fake_model import vocabulary_keys

from rillm.core import Core
from rillm.gguf import GGMLType, GGUFWriter, Value

HIDDEN, FFN, HEADS, KV_HEADS, HEAD_DIM, LAYERS = 256, 512, 8, 2, 32, 2
VOCAB_ROWS = 288  # more than the vocabulary has tokens: padding, as in GLM-4
CONTEXT = 512
WEIGHT_TYPES = [GGMLType.F16, GGMLType.Q8_0, GGMLType.Q4_0, GGMLType.Q4_K, GGMLType.Q6_K]


def write_random_glm(
    path: Path,
    core: Core,
    weight_type: GGMLType,
    *,
    architecture: str = "chatglm",
    seed: int = 1,
    specials: Sequence[str] = (),
    metadata: Mapping[str, Value] | None = None,
) -> Path:
    """Writes the file; its matrices are of weight_type, norms and biases float32.

    specials: further special tokens; metadata: further keys.
    """
    prefix = architecture
    keys: dict[str, Value] = {
        "general.architecture": architecture,
        "general.name": "random",
        f"{prefix}.block_count": LAYERS,
        f"{prefix}.context_length": CONTEXT,
        f"{prefix}.embedding_length": HIDDEN,
        f"{prefix}.feed_forward_length": FFN,
        f"{prefix}.attention.head_count": HEADS,
        f"{prefix}.attention.head_count_kv": KV_HEADS,
        f"{prefix}.attention.layer_norm_rms_epsilon": 1e-5,
        f"{prefix}.rope.dimension_count": HEAD_DIM // 2,
        f"{prefix}.rope.freq_base": 10000.0,
    } | vocabulary_keys(specials)
    keys |= metadata or {}
    qkv = (HEADS + 2 * KV_HEADS) * HEAD_DIM
    norms = ["attn_norm", "ffn_norm"]
    if architecture == "glm4":
        norms += ["post_attention_norm", "post_ffw_norm"]
    shapes: dict[str, tuple[int, ...]] = {
        "token_embd.weight": (VOCAB_ROWS, HIDDEN),
        "output_norm.weight": (HIDDEN,),
        "output.weight": (VOCAB_ROWS, HIDDEN),
    }
    for i in range(LAYERS):
        shapes |= {f"blk.{i}.{norm}.weight": (HIDDEN,) for norm in norms}
        shapes |= {
            f"blk.{i}.attn_qkv.weight": (qkv, HIDDEN),
            f"blk.{i}.attn_qkv.bias": (qkv,),
            f"blk.{i}.attn_output.weight": (HIDDEN, HEADS * HEAD_DIM),
            f"blk.{i}.ffn_up.weight": (2 * FFN, HIDDEN),
            f"blk.{i}.ffn_down.weight": (HIDDEN, FFN),
        }
    generator = np.random.default_rng(seed)
    with GGUFWriter(path, keys) as writer:
        for name, shape in shapes.items():
            writer.declare(name, shape, weight_type if len(shape) == 2 else GGMLType.F32)
        for name, shape in shapes.items():
            size = math.prod(shape)
            # Peaked attention and a varied output: everything that a token sees shall matter.
            scale = 3.0 / math.sqrt(shape[-1]) if len(shape) == 2 else 0.3
            centre = 1.0 if "norm" in name else 0.0
            values = generator.normal(centre, scale, size).astype(np.float32)
            if len(shape) == 1 or weight_type == GGMLType.F32:
                writer.write(name, [values.tobytes()])
                continue
            blocks = bytearray(size // weight_type.block_size * weight_type.block_bytes)
            core.quantize(weight_type, memoryview(values), blocks, shape[-1])
            writer.write(name, [blocks])
    return path
