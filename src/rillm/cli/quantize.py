"""Make a GGUF file smaller.

TYPE is one of llama.cpp's: Q4_K_M, Q5_K_M, Q6_K, Q8_0, Q4_0, ... The tensors get the same types as
llama-quantize gives them. (Q8_K is no file type: llama.cpp uses it for activations. Use Q8_0.)

\b
Examples:
  rillm quantize glm-4-9b-chat.f16.gguf Q4_K_M
  rillm quantize glm.f16.gguf small.gguf Q6_K --tensor-type attn_v=Q8_0
  rillm quantize glm.f16.gguf Q4_K_M --dry-run
  rillm quantize glm.f16.gguf IQ4_XS --imatrix glm.imatrix.gguf
  rillm quantize glm.Q4_K_M.gguf --pack native
  rillm quantize glm.Q4_K_M.gguf board.gguf --pack riscv_rvv256

With --pack the weights stay as they are, in the order in which one variant of rillm's kernels reads
them ("rillm doctor" names this machine's): such a file loads without being copied, and runs in
rillm only.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated

import typer

from rillm.cli import options
from rillm.cli.console import progress_bar, stdout, tell
from rillm.units import format_bytes


def quantize(
    source: Annotated[Path, typer.Argument(help="GGUF file in f16, bf16 or f32.")],
    output_and_type: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[OUTPUT] TYPE",
            help="GGUF file to write [default: beside SOURCE], and its type (none with --pack).",
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what each tensor would become.")
    ] = False,
    tensor_type: Annotated[
        list[str] | None,
        typer.Option("--tensor-type", help="REGEX=TYPE for tensors of that name; may be repeated."),
    ] = None,
    pure: Annotated[
        bool, typer.Option("--pure", help="The same type for all matrices, no mix.")
    ] = False,
    leave_output_tensor: Annotated[
        bool, typer.Option("--leave-output-tensor", help="Keep output.weight as it is.")
    ] = False,
    allow_requantize: Annotated[
        bool, typer.Option("--allow-requantize", help="Accept a file that is quantised already.")
    ] = False,
    ctx_size: Annotated[
        int, typer.Option("-c", "--ctx-size", min=1, help="Context of --dry-run's memory plan.")
    ] = 4096,
    imatrix: Annotated[
        Path | None,
        typer.Option(
            "--imatrix",
            exists=True,
            dir_okay=False,
            help="Importance matrix of llama-imatrix: errors count by it.",
        ),
    ] = None,
    pack: Annotated[
        str | None,
        typer.Option(
            "--pack",
            metavar="ISA",
            help="Quantise nothing: pack for a variant, e.g. riscv_rvv256, or native: this one's.",
        ),
    ] = None,
    threads: options.Threads = None,
) -> None:
    """Quantises and says what was written."""
    if pack is not None:
        _pack(source, output_and_type or [], pack, threads)
        return
    from rillm.prepare import quantize as prepare
    from rillm.prepare.boards import fitting_boards

    if output_and_type is None or len(output_and_type) > 2:
        raise typer.BadParameter("give SOURCE [OUTPUT] TYPE: at most one file to write")
    *target, kind = output_and_type
    pairs = [tensor_type_pair(text) for text in tensor_type or []]
    if dry_run:
        plan = prepare.plan_quantize(
            source,
            kind,
            pure=pure,
            leave_output_tensor=leave_output_tensor,
            tensor_types=pairs,
            has_importance=imatrix is not None,
        )
        for tensor in plan.tensors:
            stdout.print(
                f"{tensor.name:32} {tensor.shape!s:18} {tensor.source_type.name:>6} -> "
                f"{tensor.type.name:7} {format_bytes(tensor.num_bytes):>12}",
                markup=False,
            )
        _summary(plan)
        memory = prepare.memory_of_plan(source, plan, ctx_size)
        if memory is not None:
            stdout.print(fitting_boards(memory), markup=False)
        return
    path = Path(target[0]) if target else source.with_name(f"{_stem(source)}.{kind.upper()}.gguf")
    with progress_bar(f"quantising to {kind.upper()}") as progress:
        result = prepare.quantize(
            source,
            path,
            kind,
            pure=pure,
            leave_output_tensor=leave_output_tensor,
            tensor_types=pairs,
            imatrix=imatrix,
            allow_requantize=allow_requantize,
            num_threads=threads,
            progress=progress,
            report=tell,
        )
    stdout.print(f"{result.path}: {format_bytes(result.file_size)}", markup=False)
    _summary(result.plan)


def _pack(source: Path, output: list[str], isa: str, threads: int | None) -> None:
    from rillm.core import load_core
    from rillm.engine.machine import start_team
    from rillm.prepare.pack import pack

    if len(output) > 1:
        raise typer.BadParameter("with --pack give SOURCE [OUTPUT]: the types stay as they are")
    core = load_core()
    variant = core.variant if isa == "native" else isa
    path = Path(output[0]) if output else source.with_name(f"{source.stem}.{variant}.gguf")
    with start_team(core, threads) as team, progress_bar(f"packing for {variant}") as progress:
        pack(source, path, core, team, variant, progress=progress)
    stdout.print(f"{path}: {format_bytes(path.stat().st_size)}, packed for {variant}", markup=False)


def _stem(path: Path) -> str:
    """model.f16.gguf -> model"""
    stem = path.stem
    base, _, last = stem.rpartition(".")
    return base if base and last.lower() in ("f16", "bf16", "f32") else stem


def tensor_type_pair(text: str) -> tuple[str, str]:
    """The pair of a text REGEX=TYPE; BadParameter for anything else."""
    name, equals, kind = text.rpartition("=")
    if not equals or not name:
        raise typer.BadParameter(f"{text!r} is not REGEX=TYPE", param_hint="--tensor-type")
    return name, kind


def _summary(plan: object) -> None:
    from rillm.prepare.quantize import QuantizePlan

    assert isinstance(plan, QuantizePlan)
    types = Counter(tensor.type.name for tensor in plan.tensors)
    counts = ", ".join(f"{count} {name}" for name, count in types.most_common())
    stdout.print(
        f"{len(plan.tensors)} tensors ({counts}), {format_bytes(plan.source_bytes)} -> "
        f"{format_bytes(plan.num_bytes)}, {plan.bits_per_weight:.2f} bits per weight"
    )
    if plan.fallbacks:
        stdout.print(
            f"{len(plan.fallbacks)} tensors have rows that are no multiple of 256 and take the "
            "type that llama.cpp falls back to"
        )
