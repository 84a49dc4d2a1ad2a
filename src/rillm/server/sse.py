"""Server-sent events, and what happens when a client leaves."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import TypeVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from rillm.errors import RillmError
from rillm.server.connection import chunk_writer
from rillm.server.errors import ApiError, from_request
from rillm.server.json_io import dump, error_reply

_T = TypeVar("_T")
_log = logging.getLogger(__name__)

DONE = b"data: [DONE]\n\n"


def event(value: object, name: str | None = None) -> bytes:
    """One event; `name` gives it an `event:` line."""
    head = f"event: {name}\n".encode() if name else b""
    return head + b"data: " + dump(value) + b"\n\n"


def text_events(value_of: Callable[[str], object]) -> Callable[[str], bytes]:
    """Makes the events that value_of(text) would, if nothing but the text differs: the rest is
    encoded only once."""
    mark = secrets.token_hex(16)
    head, _, tail = event(value_of(mark)).partition(dump(mark))
    return lambda text: head + dump(text) + tail


class ClientGoneError(Exception):
    """Nobody is left to read the reply."""


async def until_disconnect(request: Request, work: Awaitable[_T]) -> _T:
    """Awaits `work`, but cancels it and raises ClientGoneError as soon as the client leaves."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_disconnect(request.receive))
    try:
        await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientGoneError
    finally:
        await _cancel(task)
        await _cancel(gone)


async def _disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _cancel(task: asyncio.Future[_T]) -> None:
    if not task.done():
        task.cancel()
        await asyncio.wait((task,))


class EventStream(Response):
    """Sends events as they come.

    A failure before the first event becomes an ordinary error reply, a later one an event. Silence
    is filled with comments. When the client leaves, the iterator is closed at once.
    """

    def __init__(
        self,
        events: AsyncIterator[bytes],
        *,
        close: Callable[[], None],
        ping_seconds: float,
        error_name: str | None = None,
    ) -> None:
        """close: frees what the events come from, even if none was ever asked for."""
        super().__init__(media_type="text/event-stream")
        self.headers["Cache-Control"] = "no-cache"
        self.headers["X-Accel-Buffering"] = "no"  # a proxy must not collect events
        del self.headers["content-length"]
        self._events = events
        self._close = close
        self._ping_seconds = ping_seconds
        self._error_name = error_name
        self._has_begun = False
        self._last_sent = 0.0
        self._write: Callable[[bytes], bool] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Runs the response."""
        self._write = chunk_writer(scope)
        tasks = (
            asyncio.ensure_future(self._produce(scope, receive, send)),
            asyncio.ensure_future(_disconnect(receive)),
            asyncio.ensure_future(self._ping(send)),
        )
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            self._close()
            for task in tasks:
                await _cancel(task)

    async def _produce(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            async with aclosing(self._events) as events:  # type: ignore[type-var]
                now = asyncio.get_running_loop().time
                async for chunk in events:
                    if self._has_begun and self._write is not None and self._write(chunk):
                        self._last_sent = now()
                    else:
                        await self._send(send, chunk)
        except Exception as error:
            if isinstance(error, RillmError):
                failure = from_request(error)
            else:
                _log.exception("a stream failed")
                failure = ApiError(500, "internal error")
            if not self._has_begun:
                await error_reply(failure)(scope, receive, send)
                return
            await self._send(send, event(failure.body, self._error_name))
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _ping(self, send: Send) -> None:
        now = asyncio.get_running_loop().time
        self._last_sent = now()
        while True:
            wait = self._last_sent + self._ping_seconds - now()
            if wait > 0:
                await asyncio.sleep(wait)
            else:
                await self._send(send, b":\n\n")

    async def _send(self, send: Send, chunk: bytes) -> None:
        self._last_sent = asyncio.get_running_loop().time()
        if not self._has_begun:
            self._has_begun = True
            head: Message = {
                "type": "http.response.start",
                "status": self.status_code,
                "headers": self.raw_headers,
            }
            await send(head)
        await send({"type": "http.response.body", "body": chunk, "more_body": True})
