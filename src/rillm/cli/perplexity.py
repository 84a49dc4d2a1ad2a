"""Measure how well a model predicts a text, as llama-perplexity does.

Lower is better, and only figures of the same text, context and vocabulary compare. A quantised
file is judged best against its 16-bit original: save the original's log probabilities, then ask for
the divergence from them.

\b
Examples:
  rillm perplexity glm.Q4_K_M.gguf wiki.test.raw
  rillm perplexity glm.bf16.gguf wiki.test.raw --chunks 20 --save-logits base.gguf
  rillm perplexity glm.Q4_K_M.gguf wiki.test.raw --chunks 20 --kl-base base.gguf
  rillm perplexity -m glm.gguf -f wiki.test.raw -c 2048 --stride 512 --json
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from rillm.cli import options
from rillm.cli.console import progress_bar, stderr, stdout


def perplexity(
    model: options.ModelArgument = None,
    text: options.TextArgument = None,
    ctx_size: Annotated[
        int, typer.Option("-c", "--ctx-size", min=4, help="Tokens of a chunk.")
    ] = 512,
    stride: Annotated[
        int,
        typer.Option("--stride", "--ppl-stride", min=0,
                     help="Overlapping windows, each so many tokens on; 0 = chunks."),
    ] = 0,
    chunks: Annotated[
        int | None, typer.Option("--chunks", min=1, help="Only the first so many.")
    ] = None,
    kl_base: Annotated[
        Path | None,
        typer.Option("--kl-base", exists=True, dir_okay=False,
                     help="Compare with the log probabilities in this file."),
    ] = None,
    save_logits: Annotated[
        Path | None, typer.Option("--save-logits", help="Write this model's log probabilities.")
    ] = None,
    save_type: Annotated[str, typer.Option("--save-type", help="f16 or f32.")] = "f16",
    cache_type: options.CacheType = "f16",
    model_option: options.ModelOption = None,
    text_option: options.TextOption = None,
    threads: options.Threads = None,
    cpu_list: options.CpuList = None,
    blas: options.Blas = "off",
    as_json: Annotated[bool, typer.Option("--json", help="The result as JSON.")] = False,
) -> None:  # fmt: skip
    """Measures and prints."""
    from rillm.perplexity import PerplexityResult, measure

    if cache_type.lower() not in ("f16", "q8_0"):
        raise typer.BadParameter(f"{cache_type!r} is not f16 or q8_0", param_hint="--cache-type")
    model, _, content = options.model_and_text((model, text), model_option, text_option)

    def report(number: int, count: int, value: float) -> None:
        stderr.print(f"chunk {number} of {count}: {value:.4f}")

    with progress_bar(f"loading {model.name}") as progress:
        result = measure(
            model,
            content,
            context=ctx_size,
            stride=stride,
            max_chunks=chunks,
            save_logits=save_logits,
            save_type=save_type.lower(),
            kl_base=kl_base,
            cache_type=cache_type.lower(),
            num_threads=threads,
            blas=blas,
            progress=progress,
            report=report,
        )
    assert isinstance(result, PerplexityResult)
    if as_json:
        print(json.dumps(result.to_dict()))
        return
    stdout.print(
        f"PPL {result.ppl.value:.4f} +/- {result.ppl.error:.5f} over {result.num_scored} tokens "
        f"in {result.num_chunks} chunks of {result.context}"
    )
    if result.divergence is not None:
        d = result.divergence
        stdout.print(
            f"base PPL {d.base_ppl:.4f}, ln(PPL / base) {d.log_ratio.value:.6f} +/- "
            f"{d.log_ratio.error:.6f}\n"
            f"KL divergence {d.kl.value:.6f} +/- {d.kl.error:.6f}, median {d.kl_median:.6f}, "
            f"99 % {d.kl_99:.6f}, largest {d.kl_max:.6f}\n"
            f"same top token {100 * d.same_top.value:.3f} +/- {100 * d.same_top.error:.3f} %, "
            f"RMS change of p {100 * d.rms_dp:.3f} %"
        )
