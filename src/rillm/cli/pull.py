"""Fetch a model: a checkpoint's files from Hugging Face or ModelScope, or a ready GGUF file.

Only what convert needs is fetched. Interrupted, the same command goes on where it was; every file
is checked against its hash. HF_ENDPOINT names a mirror, HF_TOKEN opens models behind a licence.

\b
Examples:
  rillm pull zai-org/glm-4-9b-chat
  rillm pull ZhipuAI/glm-4-9b-chat --source modelscope
  rillm pull bartowski/THUDM_GLM-4-9B-0414-GGUF --file THUDM_GLM-4-9B-0414-Q4_K_M.gguf
  rillm pull smollm2                                   a real 135 M model, from the Python index
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rillm.cli.bars import StageBars
from rillm.cli.console import stdout
from rillm.units import format_bytes


def pull(
    name: Annotated[str, typer.Argument(help="OWNER/NAME of the repository, or smollm2.")],
    source: Annotated[str, typer.Option("--source", help="hf or modelscope.")] = "hf",
    revision: Annotated[
        str | None, typer.Option("--revision", help="Branch, tag or commit.")
    ] = None,
    include: Annotated[
        list[str] | None,
        typer.Option("--include", help="Only files that match GLOB; may be repeated."),
    ] = None,
    file: Annotated[str | None, typer.Option("--file", help="One GGUF file.")] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Folder [default: ./NAME; for a GGUF file, this one]."),
    ] = None,
) -> None:
    """Fetches and says what is there."""
    from rillm.prepare.pull import pull as fetch

    if file and include:
        raise typer.BadParameter("give either --file or --include")
    with StageBars() as bars:
        result = fetch(
            name,
            source=source,
            revision=revision,
            include=include or (),
            file=file,
            out=out,
            progress=bars.pull,
        )
    where = result.paths[0] if len(result.paths) == 1 else result.directory
    stdout.print(
        f"{where}: {len(result.paths)} file{'s' if len(result.paths) != 1 else ''}, "
        f"{format_bytes(result.num_bytes)} ({result.num_fetched} new), revision {result.revision}",
        markup=False,
    )
