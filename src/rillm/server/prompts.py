"""The `prompt` field: a text, token ids, a mix of both, or several of these."""

from __future__ import annotations

import asyncio
from typing import Any

from rillm.server.errors import FieldError
from rillm.server.jobs import Prompt
from rillm.server.schema import CompletionBody
from rillm.server.service import Service

# Texts of this many characters are encoded beside the event loop, which should not stand still.
_LONG = 1 << 15


async def read_prompts(service: Service, body: CompletionBody) -> tuple[list[Prompt], bool]:
    """The prompts, and whether the field was an array of prompts."""
    limit = service.config.max_choices
    return await encode_all(service, body.prompt, field="prompt", limit=limit)


async def encode_all(
    service: Service, value: Any, *, field: str, limit: int
) -> tuple[list[Prompt], bool]:
    """The prompts of a field, at most `limit`, and whether it was an array of prompts."""
    is_many = isinstance(value, list) and bool(value) and _is_many(value)
    items = value if is_many else [value]
    if len(items) > limit:
        raise FieldError(field, f"{len(items)} prompts in one request, at most {limit}")

    def encode_items() -> list[list[int]]:
        return [encode(service, item, field=field) for item in items]

    if sum(map(_length, items)) >= _LONG:
        ids = await asyncio.to_thread(encode_items)
    else:
        ids = encode_items()
    return [Prompt(item, each) for item, each in zip(items, ids, strict=True)], is_many


def _is_many(value: list[Any]) -> bool:
    # ["a", "b"] are two prompts; ["a", 5, "b"] is one.
    return any(isinstance(item, list) for item in value) or all(
        isinstance(item, str) for item in value
    )


def _length(item: str | list[Any]) -> int:
    if isinstance(item, str):
        return len(item)
    return sum(len(part) for part in item if isinstance(part, str))


def encode(
    service: Service,
    item: str | list[str | int],
    *,
    add_special: bool = True,
    parse_special: bool = True,
    field: str = "prompt",
) -> list[int]:
    """Token ids of one prompt; special tokens that its texts spell count as such."""
    tokenizer = service.tokenizer
    parts = [item] if isinstance(item, str) else item
    ids: list[int] = []
    for index, part in enumerate(parts):
        if isinstance(part, str):
            is_first = add_special and index == 0
            ids += tokenizer.encode(part, add_special=is_first, parse_special=parse_special)
        elif isinstance(part, int) and 0 <= part < service.loaded.engine.vocab_size:
            ids.append(part)
        else:
            limit = service.loaded.engine.vocab_size - 1
            raise FieldError(field, f"{part!r:.40} is no token: the ids are 0 to {limit}")
    return ids
