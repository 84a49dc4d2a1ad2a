"""Tells the thinking of an answer, <think>...</think>, from what is said."""

from __future__ import annotations

OPEN, CLOSE = "<think>", "</think>"


def held_back(text: str, mark: str) -> int:
    """How many characters at the end of `text` may be the beginning of `mark`."""
    for length in range(min(len(mark) - 1, len(text)), 0, -1):
        if mark.startswith(text[-length:]):
            return length
    return 0


class ThinkingSplitter:
    """Splits a growing answer; `push` and `finish` return (thinking, content)."""

    def __init__(self, *, is_open: bool) -> None:
        """is_open: the prompt has opened the thinking already."""
        self._state = "thinking" if is_open else "start"
        self._held = ""

    @property
    def is_over(self) -> bool:
        """Whether all that comes is content."""
        return self._state == "content"

    def push(self, text: str) -> tuple[str, str]:
        """What is certain after this piece."""
        if self._state == "content":
            return "", text
        text = self._held + text
        self._held = ""
        if self._state == "start":
            stripped = text.lstrip()
            if stripped.startswith(OPEN):
                self._state = "thinking"
                text = stripped[len(OPEN) :]
            elif OPEN.startswith(stripped):
                self._held = text
                return "", ""
            else:
                self._state = "content"
                return "", text
        if self._state == "thinking":
            before, mark, after = text.partition(CLOSE)
            if mark:
                self._state = "after"
                return before, self._after(after)
            num_held = held_back(text, CLOSE)
            self._held = text[len(text) - num_held :]
            return text[: len(text) - num_held], ""
        return "", self._after(text)

    def finish(self) -> tuple[str, str]:
        """The rest."""
        held, self._held = self._held, ""
        if self._state == "thinking":
            return held, ""
        return ("", held) if self._state == "start" else ("", "")

    def _after(self, text: str) -> str:
        """Content without the empty lines between it and the thinking."""
        text = text.lstrip("\n")
        if text:
            self._state = "content"
        return text
