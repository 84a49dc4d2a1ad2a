"""Measure prefill and decode speed on this machine.

Beside each rate stands the limit that the machine sets for it: read bandwidth for decoding, the
rate of multiplications for prompts, both measured at the same time. With --dummy no model is
needed: random weights in the shape of a known one are written to a temporary file, so you know a
board's speed before you download 20 GB.

\b
Examples:
  rillm bench glm-4-9b-chat.Q4_K_M.gguf -p 512 -n 128 -t 1,2,4
  rillm bench --dummy glm-4-9b --type Q4_K_M --plot roofline.html
  rillm bench model.gguf -n 32 --users 1,4,16 --depth 0,4096 --csv
"""

from __future__ import annotations

import csv
import json
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from rillm.bench import BenchResult, BenchTest, run_benchmarks
from rillm.cli import options
from rillm.cli.console import progress_bar, stderr, stdout
from rillm.core import load_core
from rillm.engine.config import CACHE_TYPES
from rillm.errors import RillmError
from rillm.gguf import GGMLType
from rillm.roofline_plot import check_plot_path, write_plot
from rillm.units import format_bytes


def bench(
    file: Annotated[Path | None, typer.Argument(metavar="MODEL", help="GGUF file.")] = None,
    model: Annotated[Path | None, typer.Option("-m", "--model", help="The same.")] = None,
    dummy: Annotated[
        str | None, typer.Option("--dummy", help="Random weights in this shape, e.g. glm-4-9b.")
    ] = None,
    type_name: Annotated[str, typer.Option("--type", help="Their type.")] = "Q4_K_M",
    layers: Annotated[
        int | None, typer.Option("--layers", min=1, help="Fewer layers than the shape has.")
    ] = None,
    prompt: Annotated[
        str, typer.Option("-p", "--n-prompt", help="Prompt lengths, with commas; 0 = none.")
    ] = "512",
    n_gen: Annotated[
        str, typer.Option("-n", "--n-gen", help="Decode steps, with commas; 0 = none.")
    ] = "128",
    depth: Annotated[
        str, typer.Option("-d", "--depth", help="Tokens in the cache before, with commas.")
    ] = "0",
    users: Annotated[
        str, typer.Option("--users", help="Sequences that decode together, with commas.")
    ] = "1",
    threads: Annotated[
        str | None,
        typer.Option("-t", "--threads", help="Threads, with commas [default: the CPUs]."),
    ] = None,
    cache_type: options.CacheType = "f16",
    batch_size: Annotated[
        int, typer.Option("-b", "--batch-size", min=1, help="Tokens of a prompt in one step.")
    ] = 512,
    cpu_list: options.CpuList = None,
    blas: options.Blas = "off",
    repeats: Annotated[int, typer.Option("-r", "--repetitions", min=1, help="Runs.")] = 3,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Comma-separated values.")] = False,
    plot: Annotated[
        Path | None, typer.Option("--plot", help="Draw the roofline: .html, .svg or .png.")
    ] = None,
) -> None:
    """Measures and prints a table."""
    model = model if file is None else file
    if (model is None) == (dummy is None):
        raise typer.BadParameter("give either a MODEL file or --dummy SHAPE")
    if plot is not None:
        try:
            check_plot_path(plot)
        except RillmError as error:
            raise typer.BadParameter(str(error), param_hint="--plot") from None
    prompts, steps = _numbers("-p", prompt), _numbers("-n", n_gen)
    sequences = _numbers("--users", users, least=1)
    tests = []
    for tokens in _numbers("--depth", depth):
        tests += [BenchTest(num_prompt=n, depth=tokens) for n in prompts if n]
        tests += [
            BenchTest(num_steps=n, num_seqs=seqs, depth=tokens)
            for n in steps
            if n
            for seqs in sequences
        ]
    if not tests:
        raise typer.BadParameter("nothing to measure: -p and -n are both 0")
    counts: list[int | None] = [None]
    if threads is not None:
        counts = [*_numbers("--threads", threads, least=1)]
    cache = _cache_type(cache_type)
    results: list[BenchResult] = []

    def report(result: BenchResult) -> None:
        if as_json:
            print(json.dumps(result.to_dict()), flush=True)
        elif as_csv:
            writer = csv.DictWriter(sys.stdout, list(result.to_dict()))
            if not results:
                writer.writeheader()
            writer.writerow(result.to_dict())
            sys.stdout.flush()
        results.append(result)

    with tempfile.TemporaryDirectory(prefix="rillm-bench-") as folder:
        if dummy is not None:
            from rillm.prepare.dummy import write_dummy

            path = Path(folder) / f"{dummy}.{type_name}.gguf"
            with progress_bar(f"writing {path.name}") as progress:
                write_dummy(
                    dummy, type_name, path, load_core(), num_layers=layers, progress=progress
                )
        else:
            assert model is not None
            path = model
        for count in counts:
            with progress_bar(f"loading {path.name}") as progress:
                run_benchmarks(
                    path,
                    tests,
                    num_threads=count,
                    blas=blas,
                    repeats=repeats,
                    cache_type=cache,
                    batch_size=batch_size,
                    progress=progress,
                    report=report,
                )
    if not as_json and not as_csv:
        _print_table(results)
    if plot is not None:
        write_plot(results, plot)


def _cache_type(name: str) -> GGMLType:
    if name.lower() not in CACHE_TYPES:
        known = ", ".join(CACHE_TYPES)
        raise typer.BadParameter(f"{name!r} is none of {known}", param_hint="-ctk")
    return GGMLType[name.upper()]


def _numbers(option: str, text: str, least: int = 0) -> list[int]:
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        numbers = [least - 1]
    if any(number < least for number in numbers):
        raise typer.BadParameter(f"{text!r} is not a list of numbers", param_hint=option)
    return numbers


def _print_table(results: list[BenchResult]) -> None:
    first = results[0]
    stderr.print(
        f"{first.model}, {format_bytes(first.weight_bytes)} of weights a token; {first.cpu}, "
        f"{first.variant}" + (f"; BLAS {first.blas}" if first.blas != "off" else ""),
        markup=False,
    )
    for threads in dict.fromkeys(result.num_threads for result in results):
        result = next(result for result in results if result.num_threads == threads)
        stderr.print(
            f"{threads} threads: {result.bandwidth / 1e9:.1f} GB/s read bandwidth, "
            f"{result.multiply_peak / 1e9:.0f} G multiply-accumulates/s",
            markup=False,
        )
    table = Table(box=None, pad_edge=False)
    for title in ("test", "threads", "tokens/s", "slowest", "fastest", "limit", "of limit", "by"):
        table.add_column(title, justify="left" if title in ("test", "by") else "right")
    for result in results:
        table.add_row(
            result.test,
            str(result.num_threads),
            f"{result.tokens_per_second:.2f}",
            f"{result.slowest:.2f}",
            f"{result.fastest:.2f}",
            f"{result.limit:.2f}",
            f"{100 * result.tokens_per_second / result.limit:.0f} %",
            result.bound,
        )
    stdout.print(table)
