"""rillm quantize and llama-quantize on the same f16 file, alternating: seconds and errors.

    python benchmarks/quantize.py --llama-quantize /usr/bin/llama-quantize --types Q4_0,Q4_K -t 2

The file holds a few layers of GLM-4-9B's shape with random weights, and is in the page cache. Both
programs read it, convert every matrix to one type (--pure) and write a file. Errors are of one
matrix: root mean square, relative to that of the weights; with --importance both programs are given
the same random importance matrix, and the errors are weighted by it. Medians of the rounds are
appended to benchmarks/results/quantize.jsonl. A llama-quantize that sees another file system:
--llama-folder is what it calls --folder.
"""

from __future__ import annotations

import argparse
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from record import record

from rillm.bench import cpu_name
from rillm.core import load_core
from rillm.gguf import GGUFReader
from rillm.prepare import dummy
from rillm.prepare.imatrix import write_imatrix

TYPES = "Q4_0,Q4_1,Q5_0,Q5_1,Q8_0,Q2_K,Q3_K,Q4_K,Q5_K,Q6_K,IQ4_NL,IQ4_XS"
MEASURED = "blk.0.attn_output.weight"


def make_file(path: Path, num_layers: int) -> None:
    """f16 weights: the layers of GLM-4-9B, and a small vocabulary."""
    module, values = dummy.SHAPES["glm-4-9b-0414"]
    dummy.SHAPES = {"layers": (module, values | {"vocab_size": 4096})}
    dummy.write_dummy("layers", "F16", path, load_core(), num_layers=num_layers)


def make_importance(source: Path, path: Path) -> None:
    """Log-normal importances for every matrix."""
    rng = np.random.default_rng(3)
    with GGUFReader(source) as reader:
        sums = {
            name: rng.lognormal(size=tensor.shape[-1]).astype(np.float32)
            for name, tensor in reader.tensors.items()
            if len(tensor.shape) == 2
        }
    counts = {name: np.ones(1, np.float32) for name in sums}
    write_imatrix(path, sums, counts, datasets=["random"], num_chunks=1, chunk_size=512)


def read_matrix(path: Path, name: str) -> NDArray[np.float32]:
    """A matrix as float32."""
    with GGUFReader(path) as reader:
        tensor = reader.tensors[name]
        values = np.empty(tensor.shape, np.float32)
        load_core().dequantize(tensor.type, tensor.data, values.data)
    return values


def run_time(command: list[str]) -> float:
    """Wall seconds of a command that must succeed."""
    start = time.perf_counter()
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - start
    if run.returncode:
        sys.exit(f"{shlex.join(command)}: {run.stdout[-500:]}{run.stderr[-1500:]}")
    return seconds


def main() -> None:
    """Runs the rounds and prints a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--llama-quantize", required=True, help="command that runs llama-quantize")
    parser.add_argument("--folder", type=Path, help="where the files go [default: a temporary one]")
    parser.add_argument("--llama-folder", help="the same folder, as llama-quantize calls it")
    parser.add_argument("--types", default=TYPES)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("-t", "--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("-r", "--rounds", type=int, default=3)
    parser.add_argument("--importance", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder = Path(name)
        theirs = Path(arguments.llama_folder or folder.parent) / folder.name
        make_file(folder / "source.gguf", arguments.layers)
        source = read_matrix(folder / "source.gguf", MEASURED)
        weights = np.ones(source.shape[1], np.float32)
        ours_more: list[str] = []
        theirs_more: list[str] = []
        if arguments.importance:
            make_importance(folder / "source.gguf", folder / "imatrix.gguf")
            with GGUFReader(folder / "imatrix.gguf") as reader:
                sums = reader.tensors[f"{MEASURED}.in_sum2"]
                weights = np.frombuffer(sums.data, np.float32).copy()
            ours_more = ["--imatrix", str(folder / "imatrix.gguf")]
            theirs_more = ["--imatrix", str(theirs / "imatrix.gguf")]

        def error(path: Path) -> float:
            wrong = np.square(read_matrix(path, MEASURED) - source).sum(axis=0) @ weights
            return float(np.sqrt(wrong / (np.square(source).sum(axis=0) @ weights)))

        print(f"{cpu_name()}, {arguments.threads} threads, {arguments.layers} layers\n")
        print("| type | llama-quantize | rillm | ratio | its error | our error |")
        print("|---|---|---|---|---|---|")
        for type_name in arguments.types.split(","):
            commands = {
                "llama": [
                    *shlex.split(arguments.llama_quantize), "--pure", *theirs_more,
                    str(theirs / "source.gguf"), str(theirs / "llama.gguf"), type_name,
                    str(arguments.threads),
                ],
                "rillm": [
                    sys.executable, "-m", "rillm", "quantize", "--pure", *ours_more,
                    "-t", str(arguments.threads), str(folder / "source.gguf"),
                    str(folder / "rillm.gguf"), type_name,
                ],
            }  # fmt: skip
            times: dict[str, list[float]] = {"llama": [], "rillm": []}
            for _ in range(arguments.rounds):
                for engine, command in commands.items():
                    times[engine].append(run_time(command))
            row: dict[str, Any] = {
                "threads": arguments.threads,
                "type": type_name,
                "source_bytes": (folder / "source.gguf").stat().st_size,
                "importance": arguments.importance,
            }
            for engine, seconds in times.items():
                row[f"{engine}_seconds"] = statistics.median(seconds)
                row[f"{engine}_error"] = error(folder / f"{engine}.gguf")
            record("quantize", **row)
            print(
                f"| {type_name} | {row['llama_seconds']:.2f} s | {row['rillm_seconds']:.2f} s "
                f"| {row['llama_seconds'] / row['rillm_seconds']:.1f} "
                f"| {row['llama_error']:.5f} | {row['rillm_error']:.5f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
