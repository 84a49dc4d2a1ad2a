"""From a repository to a quantised GGUF file in one go: pull, convert and quantize.

The checkpoint is fetched (a folder is taken as it is), then converted and quantised in one
streaming pass: no 16-bit file in between, little memory. Interrupted, the same command goes on.

\b
Examples:
  rillm prepare zai-org/glm-4-9b-chat                       writes glm-4-9b-chat.Q4_K_M.gguf
  rillm prepare zai-org/glm-4-9b-chat --for k1:8            the type that fits a BPI-F3 with 8 GB
  rillm prepare ./glm-4-9b-chat --type Q6_K --out glm.gguf
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rillm.cli import options
from rillm.cli.bars import StageBars
from rillm.cli.console import stdout, tell
from rillm.cli.quantize import tensor_type_pair
from rillm.units import format_bytes


def prepare(
    source: Annotated[str, typer.Argument(help="OWNER/NAME, or a checkpoint's folder.")],
    type_name: Annotated[
        str | None, typer.Option("--type", help="Q4_K_M, Q6_K, ... [default: Q4_K_M].")
    ] = None,
    board: Annotated[
        str | None,
        typer.Option("--for", help="Choose the type that fits a board: k1:8, k3, sg2042, ..."),
    ] = None,
    ctx_size: Annotated[
        int, typer.Option("-c", "--ctx-size", min=0, help="Context that must fit; 0 = all.")
    ] = 4096,
    cache_type: options.CacheType = "f16",
    out: Annotated[
        Path | None, typer.Option("--out", help="GGUF file [default: NAME.TYPE.gguf].")
    ] = None,
    folder: Annotated[
        Path | None, typer.Option("--folder", help="Where the checkpoint goes [default: ./NAME].")
    ] = None,
    hub: Annotated[str, typer.Option("--source", help="hf or modelscope.")] = "hf",
    revision: Annotated[
        str | None, typer.Option("--revision", help="Branch, tag or commit.")
    ] = None,
    tensor_type: Annotated[
        list[str] | None,
        typer.Option("--tensor-type", help="REGEX=TYPE for tensors of that name; may be repeated."),
    ] = None,
    imatrix: Annotated[
        Path | None,
        typer.Option("--imatrix", exists=True, dir_okay=False,
                     help="Importance matrix (rillm imatrix): errors count by it."),
    ] = None,
    threads: options.Threads = None,
) -> None:  # fmt: skip
    """Prepares and says what was written."""
    from rillm.memory_plan import CACHE_TYPES
    from rillm.prepare.prepare_model import prepare as run

    if cache_type.lower() not in CACHE_TYPES:
        raise typer.BadParameter(f"{cache_type!r} is not f16 or q8_0", param_hint="--cache-type")
    with StageBars() as bars:
        result = run(
            source,
            type_name=type_name,
            board=board,
            context=ctx_size,
            cache_type=cache_type.lower(),
            out=out,
            folder=folder,
            hub=hub,
            revision=revision,
            tensor_types=[tensor_type_pair(text) for text in tensor_type or []],
            imatrix=imatrix,
            num_threads=threads,
            pull_progress=bars.pull,
            progress=bars.write,
            report=tell,
        )
    stdout.print(
        f"{result.path}: {result.plan.mix.name}, {len(result.plan.tensors)} tensors, "
        f"{result.plan.bits_per_weight:.2f} bits per weight, {format_bytes(result.file_size)}",
        markup=False,
    )
