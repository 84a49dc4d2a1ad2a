"""Show what is in a GGUF file, what it takes to run it, and what is wrong with it.

Exit code 1 if a fault means that the model cannot run or will write nonsense; with --diff, if the
files differ.

\b
Examples:
  rillm inspect glm-4-9b-chat.Q4_K_M.gguf
  rillm inspect model.gguf --tensors -c 8192
  rillm inspect model.gguf --json | jq .faults
  rillm inspect --diff mine.gguf theirs.gguf
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from rillm.cli.console import stdout
from rillm.errors import RillmError
from rillm.gguf import GGUFReader
from rillm.inspection import (
    compare,
    describe,
    memory_plans,
    rendered_example,
    summary,
    weight_totals,
)
from rillm.known_faults import Fault, find_faults
from rillm.units import format_bytes

_STYLES = {"error": "bold red", "warning": "yellow", "note": "dim"}


def inspect(
    paths: Annotated[list[Path], typer.Argument(help="GGUF file; two with --diff.")],
    tensors: Annotated[bool, typer.Option("--tensors", help="List every tensor.")] = False,
    ctx_size: Annotated[
        int, typer.Option("-c", "--ctx-size", min=0, help="Plan memory for this context.")
    ] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Everything, as JSON.")] = False,
    diff: Annotated[bool, typer.Option("--diff", help="In what do two files differ?")] = False,
) -> None:
    """Prints what there is, or the differences."""
    if len(paths) != (2 if diff else 1):
        raise typer.BadParameter("--diff takes two files" if diff else "give one file")
    if diff:
        raise typer.Exit(_print_differences(paths[0], paths[1], as_json))
    with GGUFReader(paths[0]) as reader:
        if as_json:
            everything = summary(reader, ctx_size or None)
            print(json.dumps(everything, ensure_ascii=False, indent=2))
            faults = [Fault(**fault) for fault in everything["faults"]]
        else:
            faults = find_faults(reader)
            _print_file(reader, tensors, ctx_size)
            for fault in faults:
                stdout.print(
                    f"{fault.level}: {fault.field}: {fault.message}",
                    style=_STYLES[fault.level],
                    markup=False,
                )
    if any(fault.level == "error" for fault in faults):
        raise typer.Exit(1)


def _print_file(reader: GGUFReader, list_tensors: bool, ctx_size: int) -> None:
    stdout.print(_headline(reader), markup=False)
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(no_wrap=True, overflow="fold")  # a key is there to be copied
    for key, value in reader.metadata.items():
        table.add_row(key, describe(value))
    stdout.print(table, markup=False)
    if list_tensors:
        listing = Table(box=None, pad_edge=False)
        listing.add_column("tensor")
        listing.add_column("shape", justify="right")
        listing.add_column("type")
        listing.add_column("size", justify="right")
        for tensor in reader.tensors.values():
            shape = " x ".join(map(str, tensor.shape))
            listing.add_row(tensor.name, shape, tensor.type.name, format_bytes(tensor.nbytes))
        stdout.print(listing, markup=False)
    try:
        for plan in memory_plans(reader, ctx_size or None):
            stdout.print(
                f"memory with a context of {plan.context} tokens, {plan.cache_type} cache: "
                f"{format_bytes(plan.total)} = weights {format_bytes(plan.weights)} + embedding "
                f"{format_bytes(plan.embedding)} + KV {format_bytes(plan.kv_cache)} + buffers "
                f"about {format_bytes(plan.buffers)}"
            )
        source, text = rendered_example(reader)
        stdout.print(f"chat template ({source}), an example:")
        stdout.print(text, markup=False)
    except RillmError:
        return  # a fault says why


def _headline(reader: GGUFReader) -> str:
    totals = weight_totals(reader)
    types = ", ".join(f"{count} {name}" for name, count in totals.types.items())
    parts = f", {len(reader.files)} files" if len(reader.files) > 1 else ""
    if reader.packing is not None:
        parts += f", packed for {reader.packing.variant} (runs in rillm only)"
    return (
        f"{reader.files[0].name}: GGUF v{reader.version}{parts}, {format_bytes(reader.file_size)}, "
        f"{totals.num_weights / 1e6:,.1f} M weights in {len(reader.tensors)} tensors ({types}), "
        f"{totals.bits_per_weight:.2f} bits per weight"
    )


def _print_differences(first: Path, second: Path, as_json: bool) -> int:
    with GGUFReader(first) as a, GGUFReader(second) as b:
        differences = compare(a, b)
    if as_json:
        print(json.dumps([vars(item) for item in differences], ensure_ascii=False, indent=2))
    else:
        for item in differences:
            before, after = (text or "(absent)" for text in (item.first, item.second))
            stdout.print(f"{item.kind} {item.name}: {before} -> {after}", markup=False)
        if not differences:
            stdout.print("the files do not differ in keys or tensors")
    return 1 if differences else 0
