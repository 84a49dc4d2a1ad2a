"""HTTP connections with an end: clients that send or read too slowly are cut off.

A request's headers have to be complete within header_seconds of the connection's (or, on one that
is kept alive, of their own) beginning, and a client that reads nothing for send_seconds is taken
for gone. The body has a limit of its own, in json_io.py. Otherwise a few thousand half-open
connections would be enough to shut everybody else out.

Events of a stream may take a shorter way to the socket: a chunk for each token of each user passes
five layers of ASGI and h11's state machine otherwise, which cost as much as everything else.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from starlette.types import Scope
from uvicorn.protocols.http.h11_impl import H11Protocol

_WRITE_CHUNK = "rillm.write_chunk"  # in a request's scope
_TOO_LATE = b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"


def limited_protocol(header_seconds: float, send_seconds: float) -> type[asyncio.Protocol]:
    """A protocol class for uvicorn."""

    class Limited(_LimitedProtocol):
        pass

    Limited.header_seconds, Limited.send_seconds = header_seconds, send_seconds
    return Limited


def chunk_writer(scope: Scope) -> Callable[[bytes], bool] | None:
    """Writes a chunk (not an empty one) of a reply that has no content-length, once ASGI's `send`
    has sent its beginning and before it sends its end. False: not now, as the client is slow to
    read; `send` waits for it. None: this connection takes only `send`.
    """
    writer: Callable[[bytes], bool] | None = scope.get(_WRITE_CHUNK)
    return writer


class _LimitedProtocol(H11Protocol):
    header_seconds: float
    send_seconds: float

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._headers_due: asyncio.TimerHandle | None = None
        self._reading_due: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._expect_headers()

    def data_received(self, data: bytes) -> None:
        before = self.cycle
        super().data_received(data)
        if self.cycle is not before:
            self._headers_due = _cancelled(self._headers_due)
            if self.scope["http_version"] == "1.1":  # before, the end of the connection ends a body
                self.cycle.scope[_WRITE_CHUNK] = self._writer()  # type: ignore[literal-required]
        elif self._headers_due is None and (before is None or before.response_complete):
            self._expect_headers()  # another request begins on a connection that was kept alive

    def connection_lost(self, exc: Exception | None) -> None:
        self._headers_due = _cancelled(self._headers_due)
        self._reading_due = _cancelled(self._reading_due)
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._reading_due is None:
            self._reading_due = self.loop.call_later(self.send_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        self._reading_due = _cancelled(self._reading_due)
        super().resume_writing()

    def _writer(self) -> Callable[[bytes], bool]:
        cycle, flow, transport = self.cycle, self.flow, self.transport

        def write(data: bytes) -> bool:
            if flow.write_paused:
                return False
            if not cycle.disconnected:
                transport.write(b"%x\r\n%b\r\n" % (len(data), data))
            return True

        return write

    def _expect_headers(self) -> None:
        self._headers_due = self.loop.call_later(self.header_seconds, self._too_late)

    def _too_late(self) -> None:
        self._headers_due = None
        if not self.transport.is_closing():
            self.transport.write(_TOO_LATE)
            self.transport.close()


def _cancelled(timer: asyncio.TimerHandle | None) -> asyncio.TimerHandle | None:
    """None, for where the timer was."""
    if timer is not None:
        timer.cancel()
    return None
