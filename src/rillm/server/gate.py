"""What happens to every request before its route: CORS, readiness, keys, and the access log."""

from __future__ import annotations

import hmac
import logging
import time

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rillm.server.errors import ApiError
from rillm.server.json_io import error_reply
from rillm.server.sse import ClientGoneError
from rillm.server.state import ServerState

_log = logging.getLogger("rillm.access")
_PUBLIC = frozenset({"/health", "/v1/health"})
_METHODS = "GET, POST, DELETE, OPTIONS"


class Gate:
    """ASGI middleware. Order: OPTIONS, ready, key, route."""

    def __init__(self, app: ASGIApp, state: ServerState, ui_paths: frozenset[str]) -> None:
        self._app = app
        self._state = state
        self._ui_paths = ui_paths if state.config.ui else frozenset()
        self._keys = [key.encode() for key in state.config.api_keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Runs one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        origin = self._allowed_origin(headers)
        started = time.perf_counter()
        status = 0

        async def send_on(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                reply = MutableHeaders(scope=message)
                reply["X-Content-Type-Options"] = "nosniff"
                if origin is not None:
                    reply["Access-Control-Allow-Origin"] = origin
                    reply.add_vary_header("Origin")
            await send(message)

        try:
            if scope["method"] == "OPTIONS":
                await self._options(send_on)
                return
            try:
                self._admit(scope["path"], headers)
            except ApiError as error:
                await error_reply(error)(scope, receive, send_on)
                return
            await self._app(scope, receive, send_on)
        except ClientGoneError:
            status = 499  # nginx's number for it; nobody sees it but the log
        finally:
            self._state.release(scope)
            if self._state.config.access_log:
                _log.info(
                    "%s %s %d %.1f ms",
                    scope["method"],
                    scope["path"].encode("unicode_escape").decode(),
                    status,
                    1000 * (time.perf_counter() - started),
                )

    def _admit(self, path: str, headers: Headers) -> None:
        # The parser's own limit is on headers that are not complete yet: those that arrive in one
        # piece pass it.
        limit = self._state.config.max_header_bytes
        if sum(len(name) + len(value) + 4 for name, value in headers.raw) > limit:
            raise ApiError(431, f"the headers are larger than {limit} bytes")
        if path in self._ui_paths:
            return
        self._state.require_ready()
        if path not in _PUBLIC and self._keys and not self._has_key(headers):
            raise ApiError(401, "Invalid API Key")

    def _has_key(self, headers: Headers) -> bool:
        kind, _, bearer = headers.get("authorization", "").partition(" ")
        candidates = [headers.get("x-api-key", "")]
        if kind.lower() == "bearer":
            candidates.append(bearer.strip())
        # Every key is compared, so that the time tells nothing about which one was close.
        found = False
        for candidate in candidates:
            given = candidate.encode("utf-8", "surrogateescape")
            for key in self._keys:
                found |= hmac.compare_digest(given, key)
        return found

    def _allowed_origin(self, headers: Headers) -> str | None:
        origin = headers.get("origin")
        allowed = self._state.config.cors_origins
        if origin is None or not ("*" in allowed or origin in allowed):
            return None
        return origin

    async def _options(self, send: Send) -> None:
        headers = [
            (b"access-control-allow-credentials", b"true"),
            (b"access-control-allow-methods", _METHODS.encode()),
            (b"access-control-allow-headers", b"*"),
            (b"content-length", b"0"),
        ]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b""})
