"""Measure which columns of a model's matrices matter on a text, for quantize --imatrix.

An importance matrix, in the file that llama.cpp reads and writes. Take the f16 or bf16 model (a
Q8_0 one does nearly as well) and a text of the kind that the model will be used for, in its
languages. Interrupted, the same command goes on.

\b
Examples:
  rillm imatrix glm.bf16.gguf calibration.txt              writes glm.bf16.imatrix.gguf
  rillm imatrix glm.bf16.gguf calibration.txt -o glm.imatrix.gguf --chunks 100
  rillm imatrix glm.bf16.gguf zh.txt -o both.gguf --in-file en.imatrix.gguf
  rillm quantize glm.bf16.gguf IQ4_XS --imatrix glm.imatrix.gguf
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rillm.cli import options
from rillm.cli.console import stage_bars, stderr, stdout


def imatrix(
    model: options.ModelArgument = None,
    text: options.TextArgument = None,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", "--output-file",
                     help="File to write [default: MODEL.imatrix.gguf]."),
    ] = None,
    chunks: Annotated[
        int | None, typer.Option("--chunks", min=1, help="Only the first so many.")
    ] = None,
    ctx_size: Annotated[
        int, typer.Option("-c", "--ctx-size", min=4, help="Tokens of a chunk.")
    ] = 512,
    process_output: Annotated[
        bool, typer.Option("--process-output", help="Measure the output head too.")
    ] = False,
    parse_special: Annotated[
        bool, typer.Option("--parse-special", help="<|user|> and the like in TEXT are tokens.")
    ] = False,
    in_file: Annotated[
        Path | None,
        typer.Option("--in-file", exists=True, dir_okay=False,
                     help="Add to this importance matrix, of the same model on another text."),
    ] = None,
    model_option: options.ModelOption = None,
    text_option: options.TextOption = None,
    threads: options.Threads = None,
) -> None:  # fmt: skip
    """Measures and says what was written."""
    from rillm.prepare.collect_imatrix import collect
    from rillm.prepare.imatrix import read_imatrix

    model, text, content = options.model_and_text((model, text), model_option, text_option)
    name = model.name
    path = output or model.with_suffix(".imatrix.gguf")
    done = resumed = total = 0
    with stage_bars() as show:

        def report(number: int, count: int) -> None:
            nonlocal done, resumed, total
            if total == 0 and number > 0:
                resumed = number
                stderr.print(f"going on after {number} of {count} chunks")
            done, total = number, count
            show(f"chunk {number} of {count}", "chunks", number, count)

        try:
            result = collect(
                model,
                content,
                path,
                dataset=text.name,
                context=ctx_size,
                max_chunks=chunks,
                process_output=process_output,
                parse_special=parse_special,
                add_to=None if in_file is None else read_imatrix(in_file),
                num_threads=threads,
                progress=lambda *at: show(f"loading {name}", "loading", *at),
                report=report,
            )
        except KeyboardInterrupt:
            if done > resumed:
                stderr.print(f"{done} of {total} chunks are kept; the same command goes on")
            raise
    stdout.print(
        f"{result.path}: {result.num_matrices} matrices, {result.num_chunks} chunks of {ctx_size} "
        "tokens",
        markup=False,
    )
