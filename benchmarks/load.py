"""How long a model takes from the start of the process to its first token, beside reading its file.

    python benchmarks/load.py --shape glm-4-9b --type Q4_K_M -t 2
    python benchmarks/load.py FILE.gguf PACKED.gguf -r 1

Without files it makes one, and its packed form (`rillm quantize --pack native`). The file is in the
page cache, so both should fit beside what a model takes that repacks its weights. Each round reads
it once (one thread, 4 MiB at a time: what no program can avoid) and starts rillm in a process of
its own. Last it takes as much new memory as the file is large from the kernel, once: what a program
that repacks its weights cannot avoid. Not before a round: a virtual machine's kernel gives freed
memory back to the host for seconds, and all that runs meanwhile, Python's imports too, takes twice
as long. Every round is appended to benchmarks/results/load.jsonl.
"""

from __future__ import annotations

import argparse
import itertools
import json
import mmap
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from record import git_commit, record

from rillm.bench import cpu_name
from rillm.core import load_core
from rillm.prepare.dummy import write_dummy
from rillm.prepare.pack import pack

PHASES = ("imports", "engine", "token")


def child(path: str, threads: int, started: float) -> None:
    """Loads the model as the commands do and runs a token; prints the seconds of each phase."""
    from rillm.engine import EngineConfig
    from rillm.engine.loading import load_engine, one_token

    times = [started, time.time()]
    config = EngineConfig(num_threads=threads, max_num_seqs=1)
    with load_engine(path, config, warm_up=False) as loaded:
        times.append(time.time())
        loaded.model.run(one_token())
        times.append(time.time())
        seconds = [stop - start for start, stop in itertools.pairwise(times)]
        row = dict(zip(PHASES, seconds, strict=True)) | {
            "total": times[-1] - started,
            "peak_rss": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            "cache_bytes": loaded.cache_plan.num_bytes,
            "variant": loaded.core.variant,
        }
        print(json.dumps(row))


def read_once(path: Path) -> float:
    """Seconds to read the file with read()."""
    buffer = bytearray(4 << 20)
    start = time.perf_counter()
    with open(path, "rb", buffering=0) as file:
        while file.readinto(buffer):
            pass
    return time.perf_counter() - start


def take_memory(num_bytes: int) -> float:
    """Seconds to get memory from the kernel, in huge pages where it has them, on one thread."""
    start = time.perf_counter()
    with mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        memory.madvise(mmap.MADV_HUGEPAGE)
        for offset in range(0, num_bytes, mmap.PAGESIZE):
            memory[offset] = 1
    return time.perf_counter() - start


def measure(path: Path, threads: int) -> dict[str, Any]:
    """One round."""
    read = read_once(path)
    arguments = [sys.executable, __file__, "--child", str(path), str(threads), str(time.time())]
    run = subprocess.run(arguments, capture_output=True, text=True, check=True)
    return {
        "threads": threads,
        "file": path.name,
        "file_bytes": path.stat().st_size,
        "read_once": read,
        **json.loads(run.stdout),
    }


def main() -> None:
    """Measures a file, or one that is made for it, and prints a table."""
    if sys.argv[1:2] == ["--child"]:
        child(sys.argv[2], int(sys.argv[3]), float(sys.argv[4]))
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="*", type=Path)
    parser.add_argument("--shape", default="glm-4-9b")
    parser.add_argument("--type", default="Q4_K_M")
    parser.add_argument("--layers", type=int, help="fewer than the shape has")
    parser.add_argument("-t", "--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("-r", "--rounds", type=int, default=3)
    arguments = parser.parse_args()
    core = load_core()
    print(f"{cpu_name()}, {core.variant}, {arguments.threads} threads, commit {git_commit()}")
    columns = ("file", "GB", "read_once", *PHASES, "total", "of reading", "peak", "take_memory")
    print(f"\n| {' | '.join(columns)} |")
    print("|---" * len(columns) + "|")
    with tempfile.TemporaryDirectory() as folder:
        files = arguments.files
        if not files:
            path = Path(folder) / f"{arguments.shape}.{arguments.type}.gguf"
            write_dummy(arguments.shape, arguments.type, path, core, num_layers=arguments.layers)
            with core.team(arguments.threads) as team:
                files = [path, pack(path, path.with_suffix(".packed.gguf"), core, team)]
        for path in files:
            report(path, arguments.threads, arguments.rounds)


def report(path: Path, threads: int, rounds: int) -> None:
    """Measures a file and prints its line of the table: medians, and the highest peak of memory."""
    read_once(path)
    rows = [measure(path, threads) for _ in range(rounds)]
    memory = take_memory(path.stat().st_size)
    for row in rows:
        record("load", **row, take_memory=memory)
    names = ("read_once", *PHASES, "total")
    median = {name: statistics.median(row[name] for row in rows) for name in names}
    size = rows[0]["file_bytes"]
    peak = max(row["peak_rss"] for row in rows)
    print(
        f"| {path.name} | {size / 1e9:.2f} "
        f"| {' | '.join(f'{seconds:.2f} s' for seconds in median.values())} "
        f"| {median['total'] / median['read_once']:.2f} "
        f"| {peak / (size + rows[0]['cache_bytes']):.2f} of file + KV | {memory:.2f} s |",
        flush=True,
    )


if __name__ == "__main__":
    main()
