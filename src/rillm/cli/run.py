"""Continue a prompt, or answer one question, and exit.

\b
Examples:
  rillm run -m glm.gguf "What is RISC-V?"
  rillm run -m glm.gguf --raw -p "An increasing sequence: one, two," -n 16 --temp 0
  git diff | rillm run -m glm.gguf --system "Write a commit message." -
"""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from rillm.cli import options
from rillm.cli.console import stderr
from rillm.cli.options import DEFAULTS


def run(
    model: options.Model,
    prompt: Annotated[
        str | None, typer.Argument(help="The question (or text, with --raw); - reads stdin.")
    ] = None,
    prompt_option: Annotated[
        str | None, typer.Option("-p", "--prompt", help="The same as the argument.")
    ] = None,
    system: Annotated[str | None, typer.Option("--system", help="System prompt.")] = None,
    raw: Annotated[
        bool, typer.Option("--raw", help="Continue the text as it is, without the chat format.")
    ] = False,
    n_predict: options.NumPredict = 512,
    threads: options.Threads = None,
    cpu_list: options.CpuList = None,
    ctx_size: options.ContextSize = 4096,
    cache_type: options.CacheType = "f16",
    spec_type: options.SpecType = "none",
    draft_max: options.DraftMax = options.DEFAULT_DRAFT,
    blas: options.Blas = "off",
    temperature: options.Temperature = DEFAULTS.temperature,
    top_k: options.TopK = DEFAULTS.top_k,
    top_p: options.TopP = DEFAULTS.top_p,
    min_p: options.MinP = DEFAULTS.min_p,
    repeat_penalty: options.RepeatPenalty = DEFAULTS.repeat_penalty,
    seed: options.Seed = -1,
    stats: Annotated[bool, typer.Option("--stats", help="Print tokens/s on stderr.")] = False,
) -> None:
    """Loads, answers, prints the answer as it comes."""
    given = [text for text in (prompt, prompt_option) if text is not None]
    if len(given) != 1:
        raise typer.BadParameter("give one prompt: rillm run -m FILE PROMPT (or -p PROMPT, or -)")
    text = sys.stdin.read() if given[0] == "-" else given[0]
    params = options.sampling(temperature, top_k, top_p, min_p, repeat_penalty, seed)
    draft = options.draft_tokens(spec_type, draft_max)
    with options.load(model, threads, ctx_size, cache_type, draft=draft, blas=blas) as llm:
        if raw:
            chunks = llm.stream(text, params, n_predict=n_predict)
        else:
            messages = [{"role": "user", "content": text}]
            if system is not None:
                messages.insert(0, {"role": "system", "content": system})
            chunks = llm.chat(messages, params, stream=True, n_predict=n_predict)
        for chunk in chunks:
            print(chunk, end="", flush=True)
        print()
        if stats:
            timings = llm.last_timings
            guesses = f", {timings.draft_n_accepted} of {timings.draft_n} guesses came true"
            stderr.print(
                f"prompt {timings.prompt_n} tokens at {timings.prompt_per_second:.1f}/s, "
                f"answer {timings.predicted_n} tokens at {timings.predicted_per_second:.1f}/s"
                f"{guesses if timings.draft_n else ''}",
                style="dim",
            )
