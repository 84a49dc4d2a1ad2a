"""GET /health: whether the server can answer."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from rillm.server.json_io import JSONReply
from rillm.server.state import state_of


async def health(request: Request) -> Response:
    """{"status": "ok"}; 503 while the model loads."""
    state_of(request).require_ready()
    return JSONReply({"status": "ok"})
