"""Jinja for templates that come with a model file: sandboxed and bounded.

A template cannot reach Python objects (jinja2's immutable sandbox), loop for ever, or return
unbounded text. It can still be slow or large within these bounds; a model file is chosen by the
user, so this guards against faults and casual malice, not against every waste of memory.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import datetime
from typing import Any, NoReturn

import jinja2
import jinja2.ext
from jinja2.lexer import Token, TokenStream
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

from rillm.chat_templates import ChatTemplateError

MAX_ITERATIONS = 1_000_000  # of all loops of one rendering together
MAX_CHARS = 1 << 24  # of the text, and of a repeated string
_MAX_INT = 1 << 64


class _Budget:
    """Counts the iterations of one rendering."""

    def __init__(self) -> None:
        self.left = MAX_ITERATIONS

    def tick(self) -> str:
        self._take(1)
        return ""

    def range(self, *args: int) -> range:
        numbers = range(*args)
        self._take(len(numbers))
        return numbers

    def _take(self, count: int) -> None:
        self.left -= count
        if self.left < 0:
            raise jinja2.TemplateRuntimeError(f"more than {MAX_ITERATIONS} loop iterations")


class _CountLoops(jinja2.ext.Extension):
    """Puts `{{ _tick() }}` at the head of every loop's body."""

    def filter_stream(self, stream: TokenStream) -> Iterator[Token]:
        previous = ""
        in_for = False
        for token in stream:
            yield token
            if previous == "block_begin":
                in_for = token.test("name:for")
            elif in_for and token.type == "block_end":
                in_for = False
                line = token.lineno
                yield Token(line, "variable_begin", "{{")
                yield Token(line, "name", "_tick")
                yield Token(line, "lparen", "(")
                yield Token(line, "rparen", ")")
                yield Token(line, "variable_end", "}}")
            previous = token.type


class _Environment(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset({"*", "**"})

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "**":
            fits = abs(left) < _MAX_INT and abs(right) <= 64
        else:
            sizes = [len(x) if hasattr(x, "__len__") else abs(x) for x in (left, right)]
            numbers = not any(hasattr(x, "__len__") for x in (left, right))
            fits = sizes[0] * sizes[1] <= (_MAX_INT if numbers else MAX_CHARS)
        if not fits:
            raise jinja2.TemplateRuntimeError(f"the result of {operator} is too large")
        return super().call_binop(context, operator, left, right)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _raise(message: object) -> NoReturn:
    raise jinja2.TemplateError(str(message))


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)


def _environment() -> _Environment:
    environment = _Environment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=["jinja2.ext.loopcontrols", _CountLoops],
    )
    environment.filters["tojson"] = _to_json
    for unbounded in ("center", "format"):
        del environment.filters[unbounded]
    del environment.globals["lipsum"]
    environment.globals["raise_exception"] = _raise
    environment.globals["strftime_now"] = _strftime_now
    return environment


_ENVIRONMENT = _environment()


class SandboxedTemplate:
    """One compiled template."""

    def __init__(self, text: str) -> None:
        try:
            self._template = _ENVIRONMENT.from_string(text)
        except (jinja2.TemplateError, RecursionError) as error:
            raise ChatTemplateError(f"chat template: {_one_line(error)}") from error

    def render(self, variables: dict[str, Any]) -> str:
        """The text; every failure inside the template becomes a ChatTemplateError."""
        budget = _Budget()
        parts: list[str] = []
        num_chars = 0
        try:
            for part in self._template.generate(
                {**variables, "_tick": budget.tick, "range": budget.range}
            ):
                num_chars += len(part)
                if num_chars > MAX_CHARS:
                    raise jinja2.TemplateRuntimeError(f"more than {MAX_CHARS} characters")
                parts.append(part)
        except Exception as error:  # any type: the template calls methods on caller's data
            raise ChatTemplateError(f"chat template: {_one_line(error)}") from error
        return "".join(parts)


def _one_line(error: BaseException) -> str:
    lines = str(error).split("\n")
    text = " ".join(line.strip() for line in lines if line.strip()) or type(error).__name__
    line_number = getattr(error, "lineno", None)
    return f"line {line_number}: {text}" if line_number else text
