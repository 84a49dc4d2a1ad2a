"""`rillm prepare` on a checkpoint with the layout and the size of glm-4-9b-chat, weights at random.

    python benchmarks/full_size.py FOLDER --type Q4_K_M --type Q6_K

Writes ChatGLMModel's 283 tensors in bfloat16 as ten shards (19 GB) and a tokenizer.model of 151329
ranks into FOLDER, runs `rillm prepare` for each type in a process of its own, checks the files'
tensors, appends time and peak memory to benchmarks/results/prepare.jsonl and deletes what it made.
With --llama-quantize (the command that runs it; it must see FOLDER under the same name) every
tensor's name, shape and type are compared with what llama-quantize --dry-run would give it. With
--llama-convert, too ("chroot /some/root python3 /some/convert_hf_to_gguf.py"; 19 GB more), it
starts from what llama.cpp's converter makes of the same checkpoint, in which every byte of every
tensor is compared with what `rillm convert --outtype bf16` would write.

Values are slices of 16 Mi normal random numbers: generating 9.4 G of them would take longer than
the rest, and no step looks further than a block of 256.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import random
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from record import git_commit

from rillm.bench import cpu_name
from rillm.core import allowed_cpus
from rillm.gguf import GGUFReader
from rillm.prepare.checkpoint import Checkpoint
from rillm.prepare.convert import ConvertedModel
from rillm.prepare.floats import encode
from rillm.prepare.tiktoken_vocab import GLM_SPECIALS

RESULTS = Path(__file__).parent / "results" / "prepare.jsonl"
DRIVER = Path(__file__).parents[1] / "tests" / "peers" / "convert_tensors.py"
NUM_SHARDS, NUM_RANKS = 10, 151329
# glm-4-9b-chat's own config.json, as far as it describes the model.
CONFIG: dict[str, Any] = {
    "_name_or_path": "THUDM/glm-4-9b-chat", "model_type": "chatglm",
    "architectures": ["ChatGLMModel"], "add_bias_linear": False, "add_qkv_bias": True,
    "apply_residual_connection_post_layernorm": False, "attention_softmax_in_fp32": True,
    "ffn_hidden_size": 13696, "hidden_size": 4096, "kv_channels": 128,
    "layernorm_epsilon": 1.5625e-07, "multi_query_attention": True, "multi_query_group_num": 2,
    "num_attention_heads": 32, "num_hidden_layers": 40, "num_layers": 40, "rope_ratio": 500,
    "original_rope": True, "padded_vocab_size": 151552, "post_layer_norm": True, "rmsnorm": True,
    "seq_length": 131072, "use_cache": True, "torch_dtype": "bfloat16",
    "tie_word_embeddings": False, "eos_token_id": [151329, 151336, 151338],
    "pad_token_id": 151329,
}  # fmt: skip


@dataclass(frozen=True)
class Tensor:
    """One tensor of the checkpoint; scale is the standard deviation of its values."""

    name: str
    shape: tuple[int, ...]
    scale: float = 0.02

    @property
    def num_bytes(self) -> int:
        """In bfloat16."""
        return 2 * prod(self.shape)


def checkpoint_tensors(config: dict[str, Any]) -> Iterator[Tensor]:
    """Names and shapes of a ChatGLMModel, in the order of its shards."""
    hidden, ffn, vocab = (
        config[k] for k in ("hidden_size", "ffn_hidden_size", "padded_vocab_size")
    )
    heads = config["num_attention_heads"] + 2 * config["multi_query_group_num"]
    qkv = heads * config["kv_channels"]
    yield Tensor("transformer.embedding.word_embeddings.weight", (vocab, hidden))
    yield Tensor("transformer.rotary_pos_emb.inv_freq", (config["kv_channels"] // 4,))
    for layer in range(config["num_layers"]):
        prefix = f"transformer.encoder.layers.{layer}."
        yield Tensor(prefix + "input_layernorm.weight", (hidden,), 1.0)
        yield Tensor(prefix + "self_attention.query_key_value.weight", (qkv, hidden))
        yield Tensor(prefix + "self_attention.query_key_value.bias", (qkv,), 1.0)
        yield Tensor(prefix + "self_attention.dense.weight", (hidden, hidden))
        yield Tensor(prefix + "post_attention_layernorm.weight", (hidden,), 1.0)
        yield Tensor(prefix + "mlp.dense_h_to_4h.weight", (2 * ffn, hidden))
        yield Tensor(prefix + "mlp.dense_4h_to_h.weight", (hidden, ffn))
    yield Tensor("transformer.encoder.final_layernorm.weight", (hidden,), 1.0)
    yield Tensor("transformer.output_layer.weight", (vocab, hidden))


def split(tensors: Sequence[Tensor], num_shards: int) -> list[list[Tensor]]:
    """Consecutive tensors, in shards of about the same size."""
    total, done = sum(tensor.num_bytes for tensor in tensors), 0
    shards: list[list[Tensor]] = [[] for _ in range(num_shards)]
    for tensor in tensors:
        shards[min(num_shards - 1, done * num_shards // total)].append(tensor)
        done += tensor.num_bytes
    return shards


def vocabulary(num_ranks: int) -> list[bytes]:
    """Tokens in rank order, each made by one merge of two earlier ones: bytes, pairs, fours."""
    source = random.Random(4)
    tokens = [bytes([value]) for value in range(256)]
    pairs = [bytes([a, b]) for a in range(256) for b in range(256)]
    source.shuffle(pairs)
    tokens += pairs
    rank = {token: number for number, token in enumerate(tokens)}
    seen = set(tokens)
    while len(tokens) < num_ranks:
        left, right = source.choice(pairs), source.choice(pairs)
        # Merging must not begin across the middle, or it would not end at this token.
        if rank[left[1:] + right[:1]] > min(rank[left], rank[right]) and left + right not in seen:
            tokens.append(left + right)
            seen.add(left + right)
    return tokens


def write_checkpoint(folder: Path, config: dict[str, Any], num_ranks: int, num_shards: int) -> int:
    """Writes the checkpoint; returns the bytes of its weights."""
    folder.mkdir(parents=True)
    ends = [num_ranks + GLM_SPECIALS.index(text) for text in ("<|endoftext|>", "<|user|>")]
    for name, value in (
        ("config.json", config),
        ("generation_config.json", {"eos_token_id": ends, "pad_token_id": ends[0]}),
        ("tokenizer_config.json", {"tokenizer_class": "ChatGLM4Tokenizer", "do_lower_case": False}),
    ):
        (folder / name).write_text(json.dumps(value, indent=2), encoding="utf-8")
    lines = (
        base64.b64encode(token) + b" %d\n" % rank
        for rank, token in enumerate(vocabulary(num_ranks))
    )
    (folder / "tokenizer.model").write_bytes(b"".join(lines))
    generator = np.random.default_rng(9)
    normal = generator.standard_normal(1 << 24, np.float32)
    pools = {
        scale: ((normal * np.float32(scale)).view(np.uint32) >> 16).astype(np.uint16)
        for scale in (0.02, 1.0)
    }
    weight_map, total = {}, 0
    for number, tensors in enumerate(split(list(checkpoint_tensors(config)), num_shards), 1):
        name = f"model-{number:05}-of-{num_shards:05}.safetensors"
        _write_shard(folder / name, tensors, pools, generator)
        weight_map |= {tensor.name: name for tensor in tensors}
        total += sum(tensor.num_bytes for tensor in tensors)
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    return total


def _write_shard(
    path: Path,
    tensors: Sequence[Tensor],
    pools: dict[float, NDArray[np.uint16]],
    generator: np.random.Generator,
) -> None:
    header, offset = {}, 0
    for tensor in tensors:
        end = offset + tensor.num_bytes
        entry = {"dtype": "BF16", "shape": tensor.shape, "data_offsets": [offset, end]}
        header[tensor.name], offset = entry, end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors:
            pool, left = pools[tensor.scale], prod(tensor.shape)
            while left:
                start = int(generator.integers(len(pool) // 2))
                piece = pool[start : start + min(left, len(pool) // 2)]
                file.write(piece.data)
                left -= len(piece)


# Linux counts the memory of the process that started a command as the command's, too: what starts
# prepare is small.
_MEASURE = """
import json, resource, subprocess, sys
code = subprocess.call(sys.argv[1:], stdout=sys.stderr)
usage = resource.getrusage(resource.RUSAGE_CHILDREN)
print(json.dumps([code, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024]))
"""


def run_prepare(folder: Path, out: Path, type_name: str) -> dict[str, Any]:
    """Time and peak resident memory of `rillm prepare`; RuntimeError where it fails.

    The CPU time says what a busy machine's clock does not.
    """
    command = [sys.executable, "-m", "rillm", "prepare", folder, "--type", type_name, "--out", out]
    start = time.perf_counter()
    run = subprocess.run(
        [sys.executable, "-c", _MEASURE, *command], stdout=subprocess.PIPE, check=True
    )
    seconds = time.perf_counter() - start
    code, cpu_seconds, peak_bytes = json.loads(run.stdout)
    if code:
        raise RuntimeError(f"rillm prepare: exit code {code}")
    return {
        "seconds": round(seconds, 1),
        "cpu_seconds": round(cpu_seconds, 1),
        "load_average": round(os.getloadavg()[0], 1),
        "peak_bytes": peak_bytes,
    }


Listing = dict[str, tuple[tuple[int, ...], str]]  # name -> row-major shape, type


def tensors_of(path: Path) -> Listing:
    """What a GGUF file lists."""
    with GGUFReader(path) as reader:
        return {name: (info.shape, info.type.name) for name, info in reader.tensors.items()}


def tensors_of_llama_quantize(command: str, model: Path, type_name: str) -> Listing:
    """What llama-quantize would write of a model in this type."""
    run = subprocess.run(
        [*shlex.split(command), "--dry-run", "--allow-requantize", str(model), type_name],
        capture_output=True, encoding="utf-8", errors="replace", check=True,
    )  # fmt: skip
    return parse_dry_run(run.stdout + run.stderr)


def run_llama_convert(command: str, checkpoint: Path, out: Path) -> None:
    """convert_hf_to_gguf.py --outtype bf16, without the vocabulary; RuntimeError where it fails."""
    *python, script = shlex.split(command)
    driver = checkpoint.parent / DRIVER.name  # where llama.cpp's Python sees it
    shutil.copy(DRIVER, driver)
    run = subprocess.run(
        [*python, driver, script, checkpoint, "--outfile", out, "--outtype", "bf16"],
        capture_output=True, encoding="utf-8", errors="replace", check=False,
    )  # fmt: skip
    driver.unlink()
    if run.returncode:
        raise RuntimeError(f"{script}: {run.stderr[-3000:]}")


def unequal_values(checkpoint: Path, converted: Path) -> list[str]:
    """Names of tensors of a converted file that are not, bit for bit, what rillm converts to."""
    found = []
    with Checkpoint(checkpoint) as opened, GGUFReader(converted) as reader:
        for source in ConvertedModel(opened).sources:
            theirs = reader.tensors[source.name]
            num_rows = source.shape[0] if source.is_matrix else 1
            row_bytes = theirs.nbytes // num_rows
            for start in range(0, num_rows, 1024):
                stop = min(start + 1024, num_rows)
                ours = np.ascontiguousarray(encode(source.rows(start, stop), theirs.type))
                if ours.tobytes() != theirs.data[start * row_bytes : stop * row_bytes]:
                    found.append(source.name)
                    break
            theirs.release()
    return found


_LINE = re.compile(
    r"\[\s*\d+/\s*\d+\]\s+(\S+)\s+-\s+\[\s*([\d, ]+)\],\s+type =\s+(\S+),"
    r"\s+size =\s+[\d.]+ MiB(?:\s+->\s+[\d.]+ MiB \((\S+)\))?"
)


def parse_dry_run(text: str) -> Listing:
    """The tensors of llama-quantize's report."""
    found: Listing = {}
    for match in _LINE.finditer(text):
        dims = [int(number) for number in match[2].split(",")]
        while len(dims) > 1 and dims[-1] == 1:
            dims.pop()
        found[match[1]] = (tuple(reversed(dims)), (match[4] or match[3]).upper())
    return found


def differences(ours: Listing, theirs: Listing) -> list[str]:
    """One line for each tensor that is not the same in both."""
    return [
        f"{name}: rillm {ours.get(name)}, llama-quantize {theirs.get(name)}"
        for name in sorted(ours | theirs)
        if ours.get(name) != theirs.get(name)
    ]


def main() -> None:
    """Makes the checkpoint, prepares it, compares and records."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="a new folder with 28 GB of free disk")
    parser.add_argument("--type", action="append", dest="types", metavar="TYPE")
    parser.add_argument("--llama-quantize", help="command that runs llama-quantize")
    parser.add_argument("--llama-convert", help="command that runs convert_hf_to_gguf.py")
    parser.add_argument("--keep", action="store_true", help="do not delete what was made")
    parser.add_argument("--layers", type=int, default=CONFIG["num_layers"])
    arguments = parser.parse_args()
    config = CONFIG | dict.fromkeys(("num_layers", "num_hidden_layers"), arguments.layers)
    checkpoint, commit = arguments.folder / "glm-4-9b-chat", git_commit()
    if checkpoint.exists():
        parser.error(f"{checkpoint} is there already")
    try:
        start = time.perf_counter()
        weights = write_checkpoint(checkpoint, config, NUM_RANKS, NUM_SHARDS)
        print(f"checkpoint: {weights / 1e9:.2f} GB in {time.perf_counter() - start:.0f} s")
        types = arguments.types or ["Q4_K_M", "Q6_K"]
        comparison: dict[str, Any] = {}
        theirs: dict[str, Listing] = {}
        if arguments.llama_convert:
            converted = arguments.folder / "llama.bf16.gguf"
            try:
                run_llama_convert(arguments.llama_convert, checkpoint, converted)
                unequal = unequal_values(checkpoint, converted)
                print(*unequal, sep="\n")
                comparison["unequal_bf16_tensors"] = len(unequal)
                if arguments.llama_quantize:
                    theirs = {
                        name: tensors_of_llama_quantize(arguments.llama_quantize, converted, name)
                        for name in types
                    }
            finally:
                converted.unlink(missing_ok=True)
        for type_name in types:
            out = arguments.folder / f"glm-4-9b-chat.{type_name}.gguf"
            usage = run_prepare(checkpoint, out, type_name)
            listing = tensors_of(out)
            row: dict[str, Any] = {
                "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                "commit": commit, "cpu": cpu_name(), "threads": len(allowed_cpus()),
                "layers": arguments.layers, "type": type_name, **usage,
                "checkpoint_bytes": weights, "file_bytes": out.stat().st_size,
                "tensors": len(listing), **comparison,
            }  # fmt: skip
            if arguments.llama_quantize:
                wanted = theirs.get(type_name) or tensors_of_llama_quantize(
                    arguments.llama_quantize, out, type_name
                )
                unequal = differences(listing, wanted)
                row["unequal_tensors"] = len(unequal)
                print(*unequal, sep="\n")
            print(json.dumps(row), flush=True)
            with RESULTS.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
            if not arguments.keep:
                out.unlink()
    finally:
        if not arguments.keep:
            shutil.rmtree(checkpoint, ignore_errors=True)
            with suppress(OSError):  # not empty: it was there before
                arguments.folder.rmdir()


if __name__ == "__main__":
    main()
