"""rillm quantize and llama-quantize on the same f16 file, alternating: seconds and errors.

    python benchmarks/quantize.py --llama-quantize /usr/bin/llama-quantize --folder /dev/shm/q -t 2
    python benchmarks/quantize.py ... --types Q4_K --resume      # a type at a time
    python benchmarks/quantize.py --docs

The file holds a few layers of GLM-4-9B's shape with random weights; in a folder that is given it
stays for the next command. On a disk both programs wait for the disk: /dev/shm shows their work.
Both read the file, convert every matrix to one type (--pure) and write another; rillm's seconds
hold Python's start. Errors are of one matrix: root mean square, relative to that of the weights;
with --importance both get the same random importance matrix, and the errors are weighted by it.
Medians of the rounds are appended to benchmarks/results/quantize.jsonl, and the newest of each type
are the table in docs/quantisation.md (--docs: only that). --resume leaves out what this commit has
measured. A llama-quantize that sees another file system: --llama-folder is what it calls --folder.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from record import FOLDER, fill_table, git_commit, record

from rillm.core import load_core
from rillm.gguf import GGUFReader
from rillm.prepare import dummy
from rillm.prepare.imatrix import write_imatrix

TYPES = "Q8_0,Q6_K,Q5_1,Q5_0,Q5_K,Q4_1,Q4_0,Q4_K,IQ4_NL,IQ4_XS,Q3_K,Q2_K"
MEASURED = "blk.0.attn_output.weight"
KEY = ("type", "threads", "source_bytes", "importance")  # of one measurement


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


def measured() -> list[dict[str, Any]]:
    """All rows so far, the oldest first."""
    path = FOLDER / "quantize.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def run_type(arguments: argparse.Namespace, folder: Path, theirs: Path, row: dict[str, Any]) -> str:
    """Measures one type and records it; a line of the table."""
    name, threads = f"source-{arguments.layers}.gguf", str(arguments.threads)
    source = read_matrix(folder / name, MEASURED)
    weights = np.ones(source.shape[1], np.float32)
    ours_more: list[str] = []
    theirs_more: list[str] = []
    if arguments.importance:
        make_importance(folder / name, folder / "imatrix.gguf")
        with GGUFReader(folder / "imatrix.gguf") as reader:
            sums = reader.tensors[f"{MEASURED}.in_sum2"]
            weights = np.frombuffer(sums.data, np.float32).copy()
        ours_more = ["--imatrix", str(folder / "imatrix.gguf")]
        theirs_more = ["--imatrix", str(theirs / "imatrix.gguf")]
    commands = {
        "llama": [
            *shlex.split(arguments.llama_quantize), "--pure", *theirs_more, str(theirs / name),
            str(theirs / "llama.gguf"), row["type"], threads,
        ],
        "rillm": [
            sys.executable, "-m", "rillm", "quantize", "--pure", *ours_more, "-t", threads,
            str(folder / name), str(folder / "rillm.gguf"), row["type"],
        ],
    }  # fmt: skip
    times: dict[str, list[float]] = {"llama": [], "rillm": []}
    for _ in range(arguments.rounds):
        for engine, command in commands.items():
            times[engine].append(run_time(command))
    for engine, seconds in times.items():
        path = folder / f"{engine}.gguf"
        wrong = np.square(read_matrix(path, MEASURED) - source).sum(axis=0) @ weights
        row[f"{engine}_seconds"] = statistics.median(seconds)
        row[f"{engine}_error"] = float(np.sqrt(wrong / (np.square(source).sum(axis=0) @ weights)))
        path.unlink()
    record("quantize", **row)
    return line(row)


def line(row: dict[str, Any]) -> str:
    """A measurement as a row of a Markdown table."""
    theirs, ours = row["llama_seconds"], row["rillm_seconds"]
    return (
        f"| {row['type']} | {theirs:.2f} s | {ours:.2f} s | {theirs / ours:.1f} "
        f"| {row['llama_error']:.5f} | {row['rillm_error']:.5f} |"
    )


def update_docs() -> None:
    """The newest row of each type, without an importance matrix."""
    newest = {row["type"]: line(row) + "\n" for row in measured() if not row["importance"]}
    fill_table("quantisation", "speed", "".join(newest.get(name, "") for name in TYPES.split(",")))


def main() -> None:
    """Runs the rounds and prints a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--llama-quantize", help="command that runs llama-quantize")
    parser.add_argument("--folder", type=Path, help="where the files go [default: a temporary one]")
    parser.add_argument("--llama-folder", type=Path, help="the folder, as llama-quantize calls it")
    parser.add_argument("--types", default=TYPES)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("-t", "--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("-r", "--rounds", type=int, default=3)
    parser.add_argument("--importance", action="store_true")
    parser.add_argument("--resume", action="store_true", help="leave out what is measured")
    parser.add_argument("--docs", action="store_true", help="only update the documents")
    arguments = parser.parse_args()
    if arguments.docs:
        update_docs()
        return
    if arguments.llama_quantize is None:
        parser.error("--llama-quantize is needed: the command that runs it")
    with ExitStack() as stack:
        folder = arguments.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        source = folder / f"source-{arguments.layers}.gguf"
        if not source.exists():
            make_file(source, arguments.layers)
        commit = git_commit()
        done = {tuple(row[k] for k in KEY) for row in measured() if row["commit"] == commit}
        print("| type | llama-quantize | rillm | ratio | its error | our error |")
        print("|---|---|---|---|---|---|")
        for name in arguments.types.split(","):
            values = (name, arguments.threads, source.stat().st_size, arguments.importance)
            if not (arguments.resume and values in done):
                row = dict(zip(KEY, values, strict=True))
                theirs = arguments.llama_folder or folder
                print(run_type(arguments, folder, theirs, row), flush=True)
    update_docs()


if __name__ == "__main__":
    main()
