"""rillm and its peers on the same files, alternating, so that a drifting machine hits all alike.

    python benchmarks/compare.py --llama-bench /usr/bin/llama-bench -t 2 -p 512 -n 32 FILE.gguf ...
    python benchmarks/compare.py --llama-bench llama-bench --dummy glm-4-9b --layers 4 \\
        --types Q4_K_M,Q6_K,Q8_0 --depth 0,4096 --markdown table.md

Each round runs every engine once; the table has the medians and rillm's ratio to llama-bench. With
llama-cpp-python installed (`pip install llama-cpp-python`) that is a column, too. Every measurement
is appended to benchmarks/results/compare.jsonl with CPU, variant, threads and commit. llama-bench
must be one without a BLAS backend beside it: BLAS makes its quantised prefill slower.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import shlex
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from record import git_commit, record

from rillm.bench import cpu_name
from rillm.core import load_core
from rillm.prepare.dummy import write_dummy

_LLAMA_CPP_PYTHON = Path(__file__).parent / "llama_cpp_python.py"


@dataclass(frozen=True)
class Sizes:
    """What every engine is asked for."""

    threads: int
    prompt: int
    steps: int
    depths: tuple[int, ...]
    cache_type: str


@dataclass(frozen=True)
class Row:
    """One figure; limit is 0 where the engine knows none."""

    test: str
    tokens_per_second: float
    limit: float = 0.0
    bound: str = ""


def run_llama_bench(command: str, path: Path, sizes: Sizes) -> list[Row]:
    """One llama-bench run, with flash attention: it is its faster setting at depth."""
    arguments = [
        *shlex.split(command), "-m", str(path), "-t", str(sizes.threads), "-p", str(sizes.prompt),
        "-n", str(sizes.steps), "-d", ",".join(map(str, sizes.depths)), "-fa", "1",
        "-ctk", sizes.cache_type, "-ctv", sizes.cache_type, "-r", "1", "-o", "json",
    ]  # fmt: skip
    run = subprocess.run(arguments, capture_output=True, text=True, check=True)
    rows = []
    for row in json.loads(run.stdout):
        test = f"pp{row['n_prompt']}" if row["n_prompt"] else f"tg{row['n_gen']}"
        depth = f" d{row['n_depth']}" if row["n_depth"] else ""
        rows.append(Row(test + depth, row["avg_ts"]))
    return rows


def run_llama_cpp_python(path: Path, sizes: Sizes) -> list[Row]:
    """llama-cpp-python in a process of its own (depth 0 and a binary16 cache only)."""
    arguments = [
        sys.executable, str(_LLAMA_CPP_PYTHON), str(path), str(sizes.threads), str(sizes.prompt),
        str(sizes.steps),
    ]  # fmt: skip
    run = subprocess.run(arguments, capture_output=True, text=True, check=True)
    return [Row(test, rate) for test, rate in json.loads(run.stdout.splitlines()[-1])]


def run_rillm(path: Path, sizes: Sizes) -> list[Row]:
    """One rillm bench run in a process of its own."""
    arguments = [
        sys.executable, "-m", "rillm", "bench", str(path), "-t", str(sizes.threads),
        "-p", str(sizes.prompt), "-n", str(sizes.steps),
        "--depth", ",".join(map(str, sizes.depths)), "-ctk", sizes.cache_type, "-r", "1", "--json",
    ]  # fmt: skip
    run = subprocess.run(arguments, capture_output=True, text=True, check=True)
    rows = [json.loads(line) for line in run.stdout.splitlines()]
    return [Row(row["test"], row["tokens_per_second"], row["limit"], row["bound"]) for row in rows]


def compare(path: Path, sizes: Sizes, llama_bench: str, rounds: int) -> list[str]:
    """Runs the rounds and returns the file's lines of the table."""
    rates: dict[tuple[str, str], list[float]] = defaultdict(list)
    limits: dict[str, list[float]] = defaultdict(list)
    bounds: dict[str, str] = {}
    for _ in range(rounds):
        measured = {
            "llama.cpp": run_llama_bench(llama_bench, path, sizes),
            "rillm": run_rillm(path, sizes),
        }
        if importlib.util.find_spec("llama_cpp") is not None:
            measured["llama-cpp-python"] = run_llama_cpp_python(path, sizes)
        for engine, rows in measured.items():
            for row in rows:
                rates[row.test, engine].append(row.tokens_per_second)
                if row.limit:
                    limits[row.test].append(row.limit)
                    bounds[row.test] = row.bound
                keep(path, engine, row, sizes)
    lines = []
    for test in dict.fromkeys(test for test, engine in rates if engine == "rillm"):
        ours = statistics.median(rates[test, "rillm"])
        theirs = statistics.median(rates[test, "llama.cpp"])
        python = rates.get((test, "llama-cpp-python"))
        most = statistics.median(limits[test])
        lines.append(
            f"| {path.name} | {test} | {theirs:.2f} "
            f"| {f'{statistics.median(python):.2f}' if python else ''} | {ours:.2f} "
            f"| {ours / theirs:.2f} | {most:.2f} ({bounds[test]}) | {ours / most:.0%} |"
        )
    return lines


def keep(path: Path, engine: str, row: Row, sizes: Sizes) -> None:
    """Appends one measurement to the results."""
    record(
        "compare",
        variant=load_core().variant,
        threads=sizes.threads,
        cache_type=sizes.cache_type,
        file=path.name,
        engine=engine,
        test=row.test,
        tokens_per_second=row.tokens_per_second,
        limit=row.limit,
    )


@contextmanager
def model_files(arguments: argparse.Namespace) -> Iterator[Iterator[Path]]:
    """The files that were named, then random ones, one at a time: they are large."""
    with tempfile.TemporaryDirectory(prefix="rillm-compare-", dir=arguments.folder) as folder:

        def files() -> Iterator[Path]:
            yield from arguments.files
            for name in filter(None, arguments.types.split(",")) if arguments.dummy else ():
                path = Path(folder) / f"{arguments.dummy}.{name}.gguf"
                write_dummy(
                    arguments.dummy, name, path, load_core(), num_layers=arguments.layers,
                    pure=arguments.pure,
                )  # fmt: skip
                yield path
                path.unlink()

        yield files()


def main() -> None:
    """Measures and prints a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="*", type=Path)
    parser.add_argument("--llama-bench", required=True, help="command that runs llama-bench")
    parser.add_argument("--dummy", help="random weights in this shape, e.g. glm-4-9b")
    parser.add_argument("--layers", type=int, help="fewer layers than the shape has")
    parser.add_argument("--types", default="Q4_K_M", help="types of the dummy, with commas")
    parser.add_argument("--pure", action="store_true", help="no mixes: one type for all matrices")
    parser.add_argument("--folder", help="where dummies are written (both engines must see it)")
    parser.add_argument("-t", "--threads", type=int, default=2)
    parser.add_argument("-p", "--prompt", type=int, default=512)
    parser.add_argument("-n", "--steps", type=int, default=16)
    parser.add_argument("--depth", default="0", help="tokens in the cache before, with commas")
    parser.add_argument("-ctk", "--cache-type", default="f16")
    parser.add_argument("-r", "--rounds", type=int, default=3)
    parser.add_argument("--markdown", type=Path, help="write the table here, too")
    arguments = parser.parse_args()
    depths = tuple(int(depth) for depth in arguments.depth.split(","))
    sizes = Sizes(
        arguments.threads, arguments.prompt, arguments.steps, depths, arguments.cache_type
    )
    lines = [
        f"{cpu_name()}, {load_core().variant}, {sizes.threads} threads, {sizes.cache_type} cache, "
        f"commit {git_commit()}",
        "",
        "| file | test | llama.cpp | llama-cpp-python | rillm | ratio | limit | of limit |",
        "|---|---|---|---|---|---|---|---|",
    ]
    print("\n".join(lines), flush=True)
    with model_files(arguments) as files:
        for path in files:
            found = compare(path, sizes, arguments.llama_bench, arguments.rounds)
            print("\n".join(found), flush=True)
            lines += found
    if arguments.markdown is not None:
        arguments.markdown.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
