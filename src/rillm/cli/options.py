"""Options that several commands share, spelled as llama.cpp spells them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rillm.cli.console import progress_bar
from rillm.core.placement import format_cpu_list, parse_cpu_list
from rillm.errors import RillmError
from rillm.sampling import SamplingParams

if TYPE_CHECKING:
    from rillm.llm import LLM

Model = Annotated[
    Path,
    typer.Option("-m", "--model", help="GGUF file (the first part, if it is split)."),
]
Threads = Annotated[
    int | None,
    typer.Option("-t", "--threads", min=1, help="Threads [default: the CPUs allowed to us]."),
]


def _keep_to(text: str | None) -> str | None:
    """The callback of --cpu-list: the process, and all that it starts, stays on these CPUs."""
    if text is not None:
        cpus = set(parse_cpu_list(text))
        foreign = sorted(cpus - os.sched_getaffinity(0))
        if not cpus or foreign:
            reason = f"CPU {foreign[0]} is not ours" if foreign else "is not a list as 0-3,8"
            ours = format_cpu_list(os.sched_getaffinity(0))
            raise typer.BadParameter(f"{text!r}: {reason}; we may use {ours}")
        os.sched_setaffinity(0, cpus)
    return text


CpuList = Annotated[
    str | None,
    typer.Option(
        "--cpu-list", callback=_keep_to, help="Run on these CPUs only, e.g. 0-3,8 (as taskset -c)."
    ),
]
Blas = Annotated[
    str,
    typer.Option(
        "--blas",
        help="Prefill with f32, f16 and bf16 weights by OpenBLAS: off, openblas, or auto (where it "
        "is measured to be faster). With it the last bits of logits depend on what is computed "
        "together; without it they never do.",
    ),
]
ContextSize = Annotated[
    int, typer.Option("-c", "--ctx-size", min=0, help="Context in tokens; 0 = the model's.")
]
NumPredict = Annotated[
    int,
    typer.Option("-n", "--predict", "--n-predict",
                 help="Most tokens of an answer; -1 = until the context is full."),
]  # fmt: skip
CacheType = Annotated[
    str, typer.Option("-ctk", "--cache-type", help="KV cache: f16, or q8_0 at half the memory.")
]
SpecType = Annotated[
    str,
    typer.Option(
        "--spec-type",
        envvar="LLAMA_ARG_SPEC_TYPE",
        help="Guess tokens that stood in the text before: none or ngram-simple. The answer stays "
        "the same; editing and quoting get faster.",
    ),
]
DraftMax = Annotated[
    int,
    typer.Option(
        "--draft-max",
        "--draft",
        "--spec-draft-n-max",
        min=1,
        envvar="LLAMA_ARG_SPEC_DRAFT_N_MAX",
        help="Most tokens guessed in a step.",
    ),
]
DEFAULT_DRAFT = 8
Temperature = Annotated[
    float, typer.Option("--temp", help="Temperature; 0 = always the likeliest.")
]
TopK = Annotated[int, typer.Option("--top-k", help="Keep the k likeliest tokens; 0 = all.")]
TopP = Annotated[float, typer.Option("--top-p", help="Keep the likeliest tokens of this mass.")]
MinP = Annotated[float, typer.Option("--min-p", help="Drop tokens below this share of the top.")]
RepeatPenalty = Annotated[
    float, typer.Option("--repeat-penalty", help="Penalty on repeated tokens; 1 = none.")
]
Seed = Annotated[int, typer.Option("-s", "--seed", help="Random seed; -1 = a new one.")]

# Of `serve`: taken so that llama-server's command lines go through; none changes a result here.
IGNORED_VALUES = (
    "-fa", "--flash-attn", "-ub", "--ubatch-size", "-ngl", "--gpu-layers", "--n-gpu-layers",
    "-tb", "--threads-batch", "--threads-http", "-sps", "--slot-prompt-similarity",
    "-cram", "--cache-ram", "--cache-reuse", "-fit", "--fit", "--prio", "-lv", "--log-verbosity",
    "--log-colors", "--numa", "-dev", "--device",
)  # fmt: skip
IGNORED_FLAGS = (
    "--no-mmap", "--mlock", "--no-warmup", "--offline", "--no-perf", "--log-disable",
    "--no-context-shift", "--swa-full", "-kvu", "--kv-unified", "--check-tensors",
)  # fmt: skip

# Of the commands that run a model over a text: MODEL TEXT, or -m and -f as in llama.cpp.
ModelArgument = Annotated[Path | None, typer.Argument(metavar="MODEL", help="GGUF file.")]
TextArgument = Annotated[Path | None, typer.Argument(metavar="TEXT", help="Text file, UTF-8.")]
ModelOption = Annotated[Path | None, typer.Option("-m", "--model", help="The same as MODEL.")]
TextOption = Annotated[Path | None, typer.Option("-f", "--file", help="The same as TEXT.")]

DEFAULTS = SamplingParams()


def model_and_text(
    arguments: tuple[Path | None, Path | None], model: Path | None, file: Path | None
) -> tuple[Path, Path, str]:
    """The model's path, the text's and the text, given in either form or one of each."""
    given = [path for path in arguments if path is not None]
    if len(given) != (model is None) + (file is None):
        raise typer.BadParameter("give MODEL and TEXT, or -m MODEL and -f TEXT")
    model, file = model or given.pop(0), file or given.pop()
    if not file.is_file():
        raise typer.BadParameter(f"{str(file)!r} is not a file", param_hint="TEXT")
    try:
        return model, file, file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise RillmError(f"{file}: is not UTF-8 text ({error.reason} at {error.start})") from None


def sampling(
    temperature: float, top_k: int, top_p: float, min_p: float, repeat_penalty: float, seed: int
) -> SamplingParams:
    """The options as the engine wants them."""
    return SamplingParams(
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repeat_penalty=repeat_penalty,
        seed=seed,
    )


def draft_tokens(spec_type: str, draft_max: int) -> int:
    """Guesses of a step: 0 without speculation."""
    if spec_type not in ("none", "ngram-simple"):
        raise typer.BadParameter(f"--spec-type {spec_type}: must be none or ngram-simple")
    return 0 if spec_type == "none" else draft_max


def load(
    model: Path,
    threads: int | None,
    ctx_size: int,
    cache_type: str,
    chat_template: str | None = None,
    draft: int = 0,
    blas: str = "off",
) -> LLM:
    """The model, with a progress bar while it loads. One sequence at a time."""
    from rillm.llm import LLM  # the engine: commands without a model start faster

    with progress_bar(f"loading {model.name}") as progress:
        return LLM(
            model,
            num_threads=threads,
            context_length=ctx_size,
            max_num_seqs=1,
            cache_type=cache_type.lower(),
            chat_template=chat_template,
            draft_tokens=draft,
            blas=blas,
            progress=progress,
        )
