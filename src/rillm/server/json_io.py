"""JSON in and out, strictly: what we send always parses, what we read always is an object."""

from __future__ import annotations

import asyncio
import json
import logging
from typing import Any, NoReturn

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from rillm.server.errors import ApiError

_log = logging.getLogger("rillm.access")
_encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode


def dump(value: object) -> bytes:
    """Compact UTF-8 JSON. A lone surrogate, which has no UTF-8, stays an escape."""
    return _encode(value).encode("utf-8", "backslashreplace")


class JSONReply(Response):
    """A JSON response."""

    media_type = "application/json; charset=utf-8"

    def render(self, content: object) -> bytes:
        """The body."""
        return dump(content)


def error_reply(error: ApiError) -> JSONReply:
    """The response of a failure."""
    headers = {"WWW-Authenticate": "Bearer"} if error.status == 401 else None
    return JSONReply(error.body, status_code=error.status, headers=headers)


async def read_object(request: Request) -> dict[str, Any]:
    """The request's body, a JSON object, without the fields that are null (null = absent)."""
    config = request.app.state.server.config
    limit: int = config.max_body_bytes
    too_large = ApiError(413, f"the body is larger than {limit} bytes")
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length) > limit:
        raise too_large
    data = bytearray()
    try:
        async with asyncio.timeout(config.body_timeout):
            async for chunk in request.stream():
                data += chunk
                if len(data) > limit:
                    raise too_large
    except TimeoutError:
        raise ApiError(408, "the body did not arrive in time") from None
    except ClientDisconnect:
        raise ApiError(400, "the client left before its request was complete") from None
    if config.log_bodies:
        _log.info("%s %s", request.url.path, data.decode(errors="replace"))
    return parse_object(bytes(data))


def parse_object(data: bytes) -> dict[str, Any]:
    """The object that `data` spells; ApiError 400 if it is anything else."""
    try:
        value = json.loads(data, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise ApiError(400, f"the body is not valid JSON: {reason}") from None
    if not isinstance(value, dict):
        raise ApiError(400, "the body must be a JSON object")
    return {name: item for name, item in value.items() if item is not None}


def _refuse(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")
