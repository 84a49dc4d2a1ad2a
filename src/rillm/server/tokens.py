"""POST /tokenize, /detokenize: text to token ids and back."""

from __future__ import annotations

import asyncio
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from rillm.server.json_io import JSONReply, read_object
from rillm.server.prompts import encode
from rillm.server.schema import DetokenizeBody, TokenizeBody
from rillm.server.state import service_for


async def tokenize(request: Request) -> Response:
    """Token ids of `content`, with their pieces where asked for."""
    raw = await read_object(request)
    service = await service_for(request, raw)
    body = TokenizeBody.parse(raw)
    content: Any = body.content
    ids = await asyncio.to_thread(
        encode,
        service,
        content,
        add_special=body.add_special,
        parse_special=body.parse_special,
        field="content",
    )
    if not body.with_pieces:
        return JSONReply({"tokens": ids})
    pieces = [service.tokenizer.token_bytes(token) for token in ids]
    return JSONReply(
        {
            "tokens": [
                {"id": token, "piece": _piece(piece)}
                for token, piece in zip(ids, pieces, strict=True)
            ]
        }
    )


async def detokenize(request: Request) -> Response:
    """The text of `tokens`."""
    raw = await read_object(request)
    service = await service_for(request, raw)
    body = DetokenizeBody.parse(raw)
    return JSONReply({"content": service.tokenizer.decode(body.tokens)})


def _piece(data: bytes) -> str | list[int]:
    """Text, or the bytes where they are only part of a character."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return list(data)
