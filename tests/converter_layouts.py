"""Checkpoints of every class and form, and the tensors that they become."""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable
from pathlib import Path

from rillm.gguf import GGUFReader
from rillm.prepare.convert import convert
from rillm.prepare.prepare_model import prepare

sys.path.append(str(Path(__file__).parent / "golden"))
sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))
import full_size
from checkpoints import CASES, write_checkpoint

GOLDEN = Path(__file__).parent / "golden" / "llama_converter.json"
KINDS = ("BF16", "Q4_K_M", "Q6_K")

# glm-4-9b-chat's own config.json and shards with narrow layers: 53.5 x 32 columns in ffn_down.
_TEN_SHARDS = full_size.CONFIG | {
    "num_layers": 9, "num_hidden_layers": 9, "hidden_size": 256, "ffn_hidden_size": 1712,
    "num_attention_heads": 8, "kv_channels": 32, "padded_vocab_size": 66048,
    "eos_token_id": [66000, 66007, 66009], "pad_token_id": 66000,
}  # fmt: skip


def _write_ten_shards(folder: Path) -> object:
    return full_size.write_checkpoint(folder, _TEN_SHARDS, 66_000, 10)


LAYOUTS: dict[str, Callable[[Path], object]] = {
    f"{case.name}-{form}": functools.partial(write_checkpoint, case, form=form)
    for case in CASES.values()
    for form in case.forms
} | {"glm-4-9b-chat": _write_ten_shards}


def listing(path: Path) -> dict[str, str]:
    """name -> "ROWSxCOLS TYPE", in the order of the file."""
    with GGUFReader(path) as reader:
        return {
            name: f"{'x'.join(map(str, info.shape))} {info.type.name}"
            for name, info in reader.tensors.items()
        }


def make(checkpoint: Path, kind: str, path: Path) -> Path:
    """rillm's file of this kind."""
    if kind == "BF16":
        convert(checkpoint, path, out_type="bf16")
    else:
        prepare(checkpoint, type_name=kind, out=path)
    return path


def golden() -> dict[str, dict[str, dict[str, str]]]:
    """layout -> kind -> listing of llama.cpp's file."""
    entries: dict[str, dict[str, str]] = json.loads(GOLDEN.read_text(encoding="utf-8"))
    return {
        layout: {
            kind: {
                name: " ".join([text.split()[0], text.split()[1 + number]])
                for name, text in tensors.items()
            }
            for number, kind in enumerate(KINDS)
        }
        for layout, tensors in entries.items()
    }
