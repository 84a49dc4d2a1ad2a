"""Keeps text that spells a special token from becoming one on its way through a template."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from rillm.chat_templates import ChatTemplateError


class ChatTokenizer(Protocol):
    """What ChatTemplate.encode() needs of rillm.tokenizer.Tokenizer."""

    bos_id: int | None
    add_bos: bool

    def encode(self, text: str) -> list[int]:
        """Ids of plain text."""

    def split_special(self, text: str) -> list[str | int]:
        """`text` cut at the special tokens spelled in it, these as ids."""

    def token_text(self, token_id: int) -> str:
        """A token's spelling."""

    def is_special(self, token_id: int) -> bool:
        """Whether it is a control token, not one that answers may hold."""


class Mask:
    """Hides special tokens that data spells, and shows them again in plain text."""

    def __init__(self, tokenizer: ChatTokenizer, texts: Iterable[str]) -> None:
        self._tokenizer = tokenizer
        self._char = unused_char(texts)
        mark = f"(?:{self._char}|{re.escape(json.dumps(self._char)[1:-1])})"  # also in ASCII JSON
        self._hidden = re.compile(f"{mark}([0-9]+){mark}")

    def hide(self, value: Any, message: Mapping[str, Any] | None = None) -> Any:
        """`value` with its strings masked; `message` is the message it is part of."""
        own_words = message is not None and message.get("role") == "assistant"

        def hide_text(text: str) -> str:
            return "".join(
                part if isinstance(part, str) else self._replacement(part, own_words)
                for part in self._tokenizer.split_special(text)
            )

        return _map_strings(value, hide_text)

    def _replacement(self, token_id: int, own_words: bool) -> str:
        if own_words and not self._tokenizer.is_special(token_id):
            return self._tokenizer.token_text(token_id)
        return f"{self._char}{token_id}{self._char}"

    def show(self, text: str) -> str:
        """`text` with the hidden spellings back."""
        return self._hidden.sub(lambda m: self._tokenizer.token_text(int(m[1])), text)


def strings(value: Any) -> Iterator[str]:
    """Every string in nested data, keys included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from strings(key)
            yield from strings(item)
    elif isinstance(value, Sequence):
        for item in value:
            yield from strings(item)


def _map_strings(value: Any, change: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {_map_strings(k, change): _map_strings(v, change) for k, v in value.items()}
    if isinstance(value, Sequence):
        return [_map_strings(item, change) for item in value]
    return value


def unused_char(texts: Iterable[str]) -> str:
    """A private-use character that none of the texts has, not even as a JSON escape."""
    whole = "\n".join(texts)
    for code in range(0xE000, 0xF900):
        if chr(code) not in whole and f"\\u{code:04x}" not in whole:
            return chr(code)
    raise ChatTemplateError("messages: they use every private-use character")
