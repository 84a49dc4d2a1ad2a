"""Endpoints that this server knows but cannot answer: 501 with the reason."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from rillm.server.errors import ApiError
from rillm.server.state import state_of


async def rerank(request: Request) -> Response:
    """Not supported: none of the architectures that rillm runs has a ranking head."""
    state_of(request).require_ready()
    raise ApiError(501, "This server does not support reranking: the model is not made for it")


async def change_props(request: Request) -> Response:
    """Not supported: what the server was started with stays."""
    state_of(request).require_ready()
    raise ApiError(501, "This server does not support changing global properties")
