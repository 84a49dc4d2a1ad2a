"""Measure prefill and decode speed on this machine.

Beside each decode rate stands the limit that the machine's read bandwidth, measured at the same
time, sets for it. With --dummy no model is needed: random weights in the shape of a known one are
written to a temporary file, so you know a board's speed before you download 20 GB.

\b
Examples:
  rillm bench -m glm-4-9b-chat.Q4_K_M.gguf -p 512 -n 128 -t 4
  rillm bench --dummy glm-4-9b --type Q4_K_M
  rillm bench -m model.gguf -n 32 --users 1,4,16 --json
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from rillm.bench import BenchResult, BenchTest, run_benchmarks
from rillm.cli import options
from rillm.cli.console import human_bytes, progress_bar, stderr, stdout
from rillm.core import load_core


def bench(
    model: Annotated[Path | None, typer.Option("-m", "--model", help="GGUF file.")] = None,
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
        int, typer.Option("-d", "--depth", min=0, help="Tokens that are in the cache before.")
    ] = 0,
    users: Annotated[
        str, typer.Option("--users", help="Sequences that decode together, with commas.")
    ] = "1",
    threads: options.Threads = None,
    cpu_list: options.CpuList = None,
    blas: options.Blas = "off",
    repeats: Annotated[int, typer.Option("-r", "--repetitions", min=1, help="Runs.")] = 3,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
) -> None:
    """Measures and prints a table."""
    if (model is None) == (dummy is None):
        raise typer.BadParameter("give either -m FILE or --dummy SHAPE")
    tests = [BenchTest(num_prompt=n, depth=depth) for n in _numbers("-p", prompt) if n]
    tests += [
        BenchTest(num_steps=n, num_seqs=seqs, depth=depth)
        for n in _numbers("-n", n_gen)
        if n
        for seqs in _numbers("--users", users)
    ]
    if not tests:
        raise typer.BadParameter("nothing to measure: -p and -n are both 0")
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
        with progress_bar(f"loading {path.name}") as progress:
            results = run_benchmarks(
                path,
                tests,
                num_threads=threads,
                blas=blas,
                repeats=repeats,
                progress=progress,
                report=(lambda result: print(json.dumps(result.to_dict()), flush=True))
                if as_json
                else None,
            )
    if not as_json:
        _print_table(results)


def _numbers(option: str, text: str) -> list[int]:
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        numbers = [-1]
    if any(number < 0 for number in numbers):
        raise typer.BadParameter(f"{text!r} is not a list of numbers", param_hint=option)
    return numbers


def _print_table(results: list[BenchResult]) -> None:
    first = results[0]
    stderr.print(
        f"{first.model}, {human_bytes(first.weight_bytes)} of weights a token; {first.cpu}, "
        f"{first.variant}, {first.num_threads} threads, "
        f"{first.bandwidth / 1e9:.1f} GB/s read bandwidth"
        + (f"; BLAS {first.blas}" if first.blas != "off" else ""),
        markup=False,
    )
    table = Table(box=None, pad_edge=False)
    for title in ("test", "tokens/s", "slowest", "fastest", "limit", "of limit"):
        table.add_column(title, justify="left" if title == "test" else "right")
    for result in results:
        share = f"{100 * result.tokens_per_second / result.limit:.0f} %" if result.limit else ""
        table.add_row(
            result.test,
            f"{result.tokens_per_second:.2f}",
            f"{result.slowest:.2f}",
            f"{result.fastest:.2f}",
            f"{result.limit:.2f}" if result.limit else "",
            share,
        )
    stdout.print(table)
