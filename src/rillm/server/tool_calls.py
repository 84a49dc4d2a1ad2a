"""Finds GLM's tool calls in a growing answer.

A call is `name\\n{json}` at the beginning of a turn; the model separates several by <|assistant|>.
It counts only if the name is a declared tool and the arguments are a JSON object: everything else
is text, given back as it was written.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Iterable
from dataclasses import dataclass, field

_HEADER_END = re.compile(r"[ \t]*\n\s*(?=\{)")
_HEADER_REST = re.compile(r"[ \t]*(\n\s*)?")


@dataclass(frozen=True, slots=True)
class ToolCall:
    """One call, complete."""

    name: str
    arguments: str  # JSON, as the model wrote it
    call_id: str = field(default_factory=lambda: f"call_{secrets.token_urlsafe(18)}")


class ToolCallParser:
    """`push` and `finish` return pieces of text and calls, in order."""

    def __init__(self, names: Iterable[str]) -> None:
        """names: of the declared tools; without any, all is text."""
        self._names = tuple(names)
        self._held = ""
        self.is_text = not self._names  # what comes, and is held back, is text
        self._num_braces = 0  # closing braces looked at: only a new one can end the arguments

    def push(self, text: str) -> list[str | ToolCall]:
        """What is certain after this piece."""
        if self.is_text:
            return [text] if text else []
        self._held += text
        results: list[str | ToolCall] = []
        while self._held:
            name = self._header()
            if name is None:
                if not self._may_become_call():
                    results.append(self._take_text())
                break
            body = self._held[self._held.index("{") :]
            call_end = self._json_end(body)
            if call_end is None:
                break
            results.append(ToolCall(name, body[:call_end]))
            self._held = body[call_end:]
            self._num_braces = 0
        return results

    def next_turn(self) -> list[str | ToolCall]:
        """The model began another turn: a call may begin again."""
        results = self.finish()
        self.is_text = not self._names
        return results

    def finish(self) -> list[str | ToolCall]:
        """The rest: a call that is not complete is text."""
        text = self._held
        self._held, self._num_braces = "", 0
        return [text] if text else []

    def _take_text(self) -> str:
        self.is_text = True
        text, self._held = self._held, ""
        return text

    def _header(self) -> str | None:
        """The tool's name, if the text begins with a complete header."""
        text = self._held.lstrip("\n")
        for name in self._names:
            if text.startswith(name) and _HEADER_END.match(text, len(name)):
                return name
        return None

    def _may_become_call(self) -> bool:
        text = self._held.lstrip("\n")
        if len(self._held) - len(text) > 2:
            return False
        for name in self._names:
            if name.startswith(text):
                return True
            if text.startswith(name) and _HEADER_REST.fullmatch(text, len(name)):
                return True
        return False

    def _json_end(self, body: str) -> int | None:
        """Where the arguments end; None if they go on."""
        num_braces = body.count("}")
        if num_braces == self._num_braces:
            return None
        self._num_braces = num_braces
        try:
            _, end = json.JSONDecoder().raw_decode(body)
        except (ValueError, RecursionError):
            return None  # it may still become one; finish() decides
        return end
