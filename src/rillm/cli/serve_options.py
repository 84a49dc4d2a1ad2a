"""Options of `rillm serve` beyond the usual ones: memory and limits, and what texts they take."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from rillm.errors import RillmError
from rillm.units import parse_bytes


def _size(text: str | int | None) -> int | None:
    if text is None or isinstance(text, int):
        return text
    try:
        return parse_bytes(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


def _bytes(flag: str, text: str, default: str | bool = False) -> Any:
    return typer.Option(flag, parser=_size, metavar="SIZE", help=text, show_default=default)


CacheMemory = Annotated[
    int | None,
    _bytes("--cache-memory", "Of the KV cache, as 2G [default: half of what weights leave free]."),
]
ModelsDir = Annotated[
    Path | None,
    typer.Option(
        "--models-dir",
        exists=True,
        file_okay=False,
        envvar="LLAMA_ARG_MODELS_DIR",
        help="Folder of models.",
    ),
]
ModelsMax = Annotated[
    int,
    typer.Option(
        "--models-max",
        min=0,
        envvar="LLAMA_ARG_MODELS_MAX",
        help="Models in memory at the same time; 0 = as many as fit.",
    ),
]
ModelsMemory = Annotated[
    int | None,
    _bytes("--models-memory", "Of all models, weights and caches [default: what is free]."),
]
ModelsAutoload = Annotated[
    bool,
    typer.Option(
        "--models-autoload/--no-models-autoload",
        envvar="LLAMA_ARG_MODELS_AUTOLOAD",
        help="Load a model when a request names it; else only /models/load does.",
    ),
]
MaxBody = Annotated[int, _bytes("--max-body", "Largest body of a request.", "32M")]
MaxHeaders = Annotated[int, _bytes("--max-headers", "Largest headers of a request.", "64K")]
MaxSchema = Annotated[int, _bytes("--max-schema", "Largest schema, grammar or regex.", "256K")]
MaxPredict = Annotated[
    int,
    typer.Option("--max-predict", min=-1, help="Most tokens of an answer, whatever is asked for; "
                 "-1 = no limit."),
]  # fmt: skip
MaxChoices = Annotated[
    int, typer.Option("--max-choices", min=1, help="Most answers of a request: n times prompts.")
]
MaxInputs = Annotated[
    int, typer.Option("--max-inputs", min=1, help="Most texts of a request for embeddings.")
]
MaxStops = Annotated[int, typer.Option("--max-stops", min=0, help="Most stop strings.")]
MaxLogitBias = Annotated[
    int, typer.Option("--max-logit-bias", min=0, help="Most entries of logit_bias.")
]
MaxProbs = Annotated[
    int, typer.Option("--max-probs", min=0, help="Most n_probs, logprobs, top_logprobs.")
]
MaxWaiting = Annotated[
    int, typer.Option("--max-waiting", min=1, help="Most sequences that wait; more get a 503.")
]
HeaderTimeout = Annotated[
    float, typer.Option("--header-timeout", min=0.1, help="Seconds for headers to arrive.")
]
DrainTimeout = Annotated[
    float,
    typer.Option("--drain-timeout", min=1, help="Seconds that requests get after SIGTERM."),
]


def json_object(text: str) -> dict[str, Any]:
    """What --chat-template-kwargs says."""
    try:
        value = json.loads(text)
    except ValueError as error:
        raise RillmError(f"--chat-template-kwargs: not JSON: {error}") from None
    if not isinstance(value, dict):
        raise RillmError("--chat-template-kwargs: must be a JSON object")
    return value


def text_of(file: Path) -> str:
    """A file that an option names."""
    try:
        return file.read_text(encoding="utf-8")
    except OSError as error:
        raise RillmError(f"{file}: cannot read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise RillmError(f"{file}: not a text in UTF-8") from None


def api_keys(given: list[str], file: Path | None) -> tuple[str, ...]:
    """Keys of --api-key and --api-key-file."""
    keys = [key for text in given for key in text.split(",")]
    if file is not None:
        lines = [line.strip() for line in text_of(file).splitlines()]
        keys += [line for line in lines if line]
        if not any(lines):
            raise RillmError(f"{file}: holds no key; put one on a line")
    return tuple(keys)
