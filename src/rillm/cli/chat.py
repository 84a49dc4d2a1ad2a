"""Talk to a model in the terminal.

Ctrl-C stops the answer, not the program; Ctrl-D or /exit leaves. End a line with a backslash to go
on in the next one.

\b
Examples:
  rillm chat -m glm-4-9b-chat.Q4_K_M.gguf
  rillm chat -m glm.gguf --system "Answer in one sentence." --temp 0.6 -t 8
"""

from __future__ import annotations

import json
import sys
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from rillm.cli import options
from rillm.cli.console import stderr
from rillm.cli.options import DEFAULTS
from rillm.errors import RillmError
from rillm.llm import LLM
from rillm.sampling import SamplingParams

HELP = """\
/system TEXT  set the system prompt and start again   /reset       forget the conversation
/save FILE    write the conversation as JSON          /load FILE   read one back
/stats        speed of the last answer                /help        this list
/exit         leave (also Ctrl-D)"""


class Conversation:
    """The messages so far, and the commands that change them."""

    def __init__(self, system: str | None) -> None:
        self.messages: list[dict[str, str]] = []
        self.reset(system)

    @property
    def system(self) -> str | None:
        """The system prompt."""
        first = self.messages[0] if self.messages else None
        return first["content"] if first and first["role"] == "system" else None

    def reset(self, system: str | None) -> None:
        """Starts again with this system prompt."""
        self.messages = [{"role": "system", "content": system}] if system else []

    def save(self, path: Path) -> None:
        """Writes the messages as OpenAI-style JSON."""
        text = json.dumps(self.messages, ensure_ascii=False, indent=2) + "\n"
        partial = path.with_name(path.name + ".partial")
        try:
            partial.write_text(text, encoding="utf-8", errors="replace")
            partial.replace(path)
        except OSError as error:
            with suppress(OSError):
                partial.unlink()
            raise RillmError(f"{path}: cannot write: {error.strerror}") from None

    def load(self, path: Path) -> None:
        """Reads what `save` wrote."""
        try:
            messages = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            raise RillmError(f"{path}: not a JSON file") from None
        except OSError as error:
            raise RillmError(f"{path}: cannot read: {error.strerror}") from None
        fields = [
            isinstance(m, dict)
            and isinstance(m.get("role"), str)
            and isinstance(m.get("content"), str)
            for m in (messages if isinstance(messages, list) else [None])
        ]
        if not all(fields):
            raise RillmError(f"{path}: not a list of messages with role and content")
        self.messages = messages


def chat(
    model: options.Model,
    system: Annotated[str | None, typer.Option("--system", help="System prompt.")] = None,
    n_predict: options.NumPredict = -1,
    threads: options.Threads = None,
    cpu_list: options.CpuList = None,
    ctx_size: options.ContextSize = 8192,
    cache_type: options.CacheType = "f16",
    blas: options.Blas = "off",
    chat_template: Annotated[
        str | None,
        typer.Option("--chat-template", help="Name of a built-in template [default: the file's]."),
    ] = None,
    spec_type: options.SpecType = "none",
    draft_max: options.DraftMax = options.DEFAULT_DRAFT,
    temperature: options.Temperature = DEFAULTS.temperature,
    top_k: options.TopK = DEFAULTS.top_k,
    top_p: options.TopP = DEFAULTS.top_p,
    min_p: options.MinP = DEFAULTS.min_p,
    repeat_penalty: options.RepeatPenalty = DEFAULTS.repeat_penalty,
    seed: options.Seed = -1,
) -> None:
    """Reads lines from the terminal (or stdin) and answers them."""
    params = options.sampling(temperature, top_k, top_p, min_p, repeat_penalty, seed)
    conversation = Conversation(system)
    draft = options.draft_tokens(spec_type, draft_max)
    with options.load(model, threads, ctx_size, cache_type, chat_template, draft, blas) as llm:
        if sys.stdin.isatty():
            stderr.print(
                f"{model.name}, context {llm.context_length} tokens. /help for commands.",
                markup=False,
            )
        while True:
            try:
                if (line := _read_line()) is None:
                    return
                if line.startswith("/"):
                    if not _command(line, conversation, llm):
                        return
                elif line.strip():
                    _answer(line, conversation, llm, params, n_predict)
            except KeyboardInterrupt:  # wherever it comes, it ends what is going on and no more
                print(file=sys.stderr)


def _read_line() -> str | None:
    """What the user typed, or None at the end. Ctrl-C clears the line."""
    is_terminal = sys.stdin.isatty()
    if is_terminal:
        with suppress(ImportError):  # some Pythons are built without it
            import readline  # noqa: F401  (line editing and history for input())
    lines: list[str] = []
    while True:
        try:
            line = input(("> " if not lines else ". ") if is_terminal else "")
        except EOFError:
            return "\n".join(lines) if lines else None
        except KeyboardInterrupt:
            print(file=sys.stderr)
            lines.clear()
            continue
        if not line.endswith("\\"):
            return "\n".join([*lines, line])
        lines.append(line[:-1])


def _command(line: str, conversation: Conversation, llm: LLM) -> bool:
    """Carries out a /command; False to leave."""
    name, _, argument = line[1:].strip().partition(" ")
    argument = argument.strip()
    try:
        if name in ("exit", "quit", "bye"):
            return False
        if name == "help":
            stderr.print(HELP, markup=False)
        elif name == "reset":
            conversation.reset(conversation.system)
            stderr.print("(forgotten)")
        elif name == "system":
            conversation.reset(argument or None)
            stderr.print("(system prompt set)" if argument else "(no system prompt)")
        elif name == "save" and argument:
            conversation.save(Path(argument).expanduser())
            count = len(conversation.messages)
            stderr.print(f"(saved {count} messages to {argument})", markup=False)
        elif name == "load" and argument:
            conversation.load(Path(argument).expanduser())
            stderr.print(f"(loaded {len(conversation.messages)} messages)")
        elif name in ("save", "load"):
            stderr.print(f"/{name} needs the name of a file")
        elif name == "stats" and not llm.last_timings.predicted_n:
            stderr.print("(no answer has ended yet)")
        elif name == "stats":
            timings = llm.last_timings
            stderr.print(
                f"prompt {timings.prompt_n} tokens (+{timings.cache_n} cached) at "
                f"{timings.prompt_per_second:.1f}/s, answer {timings.predicted_n} at "
                f"{timings.predicted_per_second:.1f}/s"
            )
        else:
            stderr.print(f"no such command: {line} (/help lists them)", markup=False)
    except (RillmError, OSError) as error:
        stderr.print(f"error: {error}", style="red", markup=False)
    return True


def _answer(
    text: str, conversation: Conversation, llm: LLM, params: SamplingParams, n_predict: int
) -> None:
    messages = [*conversation.messages, {"role": "user", "content": text}]
    answer = ""
    try:
        for chunk in llm.chat(messages, params, stream=True, n_predict=n_predict):
            answer += chunk
            print(chunk, end="", flush=True)
        print()
    except KeyboardInterrupt:
        stderr.print(" [stopped]", markup=False)
    except RillmError as error:
        if answer:
            print()
        stderr.print(f"error: {error}", style="red", markup=False)
        return
    if answer:  # what was said before it was stopped stays in the conversation
        conversation.messages = [*messages, {"role": "assistant", "content": answer}]
