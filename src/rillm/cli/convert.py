"""Make a GGUF file from a Hugging Face checkpoint.

The checkpoint is a folder with config.json, safetensors and its tokenizer (ChatGLMModel,
GlmForCausalLM, Glm4ForCausalLM or LlamaForCausalLM). It is streamed: memory stays small.

\b
Examples:
  rillm convert glm-4-9b-chat                          writes glm-4-9b-chat.f16.gguf
  rillm convert glm-4-9b-chat out.gguf --outtype bf16
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rillm.cli import options
from rillm.cli.console import progress_bar, stdout, tell
from rillm.units import format_bytes


def convert(
    checkpoint: Annotated[Path, typer.Argument(help="Folder of the checkpoint.")],
    output: Annotated[
        Path | None, typer.Argument(help="GGUF file to write [default: CHECKPOINT.TYPE.gguf].")
    ] = None,
    outtype: Annotated[
        str, typer.Option("--outtype", help="f32, f16, bf16, q8_0, or auto (as stored).")
    ] = "f16",
    threads: options.Threads = None,
) -> None:
    """Converts and says what was written."""
    from rillm.prepare.convert import convert as convert_checkpoint

    folder = checkpoint.resolve()
    path = output or Path(f"{folder.name}.{outtype.lower()}.gguf")
    with progress_bar(f"converting {folder.name}") as progress:
        result = convert_checkpoint(
            checkpoint, path, out_type=outtype, num_threads=threads, progress=progress, report=tell
        )
    stdout.print(
        f"{result.path}: {result.architecture}, {result.num_tensors} tensors, "
        f"{result.num_weights / 1e6:.1f} M weights, {format_bytes(result.file_size)}",
        markup=False,
    )
