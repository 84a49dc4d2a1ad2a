"""The list of commands, and what becomes of an error: one line, and an exit code.

Exit codes: 0 done, 1 failed (the reason is the last line on stderr), 2 wrong arguments,
130 interrupted by Ctrl-C.
"""

from __future__ import annotations

import importlib
import io
import os
import sys
from collections.abc import Sequence
from typing import Any

import typer
from typer.core import TyperGroup

from rillm import __version__
from rillm.cli.console import stderr
from rillm.errors import RillmError

# name -> one line of help. The function of the same name in rillm.cli.<name> is the command.
COMMANDS = {
    "run": "Continue a prompt, or answer one question, and exit.",
    "chat": "Talk to a model in the terminal.",
    "serve": "Serve a model over HTTP, as llama-server does.",
    "pull": "Fetch a model from Hugging Face or ModelScope.",
    "prepare": "Fetch, convert and quantise a model in one go.",
    "convert": "Make a GGUF file from a Hugging Face checkpoint.",
    "quantize": "Make a GGUF file smaller.",
    "imatrix": "Measure on a text which weights matter, for quantize --imatrix.",
    "inspect": "Show what is in a GGUF file.",
    "perplexity": "Measure how well a model predicts a text, and how far it is from another.",
    "bench": "Measure prefill and decode speed on this machine.",
    "doctor": "Look at this machine: what it can run, how fast, and what stands in the way.",
    "build": "Make a wheel for another machine.",
    "deploy": "Install rillm and a model on a board over ssh.",
}

# Of the "prepare" extra: a board that only serves does not have them.
_WORKSTATION_PACKAGES = ("numpy", "safetensors", "huggingface_hub")

# Newer typers carry a click of their own, so its base exception is reached through typer's:
# ClickException <- UsageError <- BadParameter.
_ClickError: Any = typer.BadParameter.__mro__[2]


# Text for pipes as much as for terminals; a bug shows Python's own traceback.
_PLAIN: dict[str, Any] = {
    "add_completion": False,
    "rich_markup_mode": None,
    "pretty_exceptions_enable": False,
}


class _LazyGroup(TyperGroup):
    """Imports a command's module when the command is asked for: `rillm --help` stays instant."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: Any, name: str) -> Any:
        if name not in COMMANDS:
            return None
        module = importlib.import_module(f"rillm.cli.{name}")
        app = typer.Typer(**_PLAIN)
        app.command(name, help=module.__doc__, no_args_is_help=False)(getattr(module, name))
        command = typer.main.get_command(app)
        command.name = name
        return command

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


app = typer.Typer(
    **_PLAIN,
    cls=_LazyGroup,
    context_settings={
        "help_option_names": ["-h", "--help"],
        "max_content_width": 100,
        # --ctx_size is --ctx-size: llama.cpp takes both, so scripts in the wild have both.
        "token_normalize_func": lambda name: name.replace("_", "-"),
    },
    epilog="Example: rillm chat -m glm-4-9b-chat.Q4_K_M.gguf",
)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"rillm {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: bool = typer.Option(
        False, "--version", callback=_print_version, is_eager=True, help="Print the version."
    ),
) -> None:
    """GLM-4 language models on RISC-V machines, and on the workstation that prepares them."""


def _tolerate_any_text() -> None:
    """A locale that is not UTF-8, or input that is no text, costs a character and not the run."""
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def _print_error(text: str) -> None:
    stderr.print(f"error: {text}", style="bold red", markup=False)


def _in_one_line(error: Any) -> str:
    message = " ".join(error.format_message().split())
    context = getattr(error, "ctx", None)
    return f"{message} (see: {context.command_path} --help)" if context else message


def run(arguments: Sequence[str]) -> int:
    """Runs one command line and returns its exit code."""
    _tolerate_any_text()
    try:
        code = app(list(arguments) or ["--help"], prog_name="rillm", standalone_mode=False)
        if sys.stdout is not None:
            sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except _ClickError as error:
        _print_error(_in_one_line(error))
        return int(error.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        return 130
    except BrokenPipeError:  # the reader of our output has gone, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except ModuleNotFoundError as error:
        if error.name not in _WORKSTATION_PACKAGES:
            raise
        _print_error(f"{arguments[0]} needs {error.name}: pip install 'rillm[prepare]'")
        return 1
    except MemoryError as error:
        _print_error(
            f"not enough memory ({error or 'allocation failed'}); take a smaller --ctx-size or "
            "type, or close other programs: `rillm inspect MODEL` says what a model needs"
        )
        return 1
    except (RillmError, OSError) as error:
        _print_error(str(error))
        return 1
