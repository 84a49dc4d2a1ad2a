"""The engine for asyncio: requests as asynchronous iterators."""

from __future__ import annotations

import asyncio
from collections import deque
from types import TracebackType
from typing import Self

from rillm.core.waker import Waker
from rillm.engine.engine import Engine
from rillm.engine.engine_thread import EngineThread
from rillm.engine.outputs import Output
from rillm.engine.request import Request


class OutputStream:
    """The outputs of one request as they come; leaving it early aborts the request.

    async with async_engine.submit(request) as stream:
        async for output in stream:
            ...
    """

    def __init__(self, engine: AsyncEngine, sequence_id: int) -> None:
        self.sequence_id = sequence_id
        self.is_finished = False
        self._engine = engine
        self._ready: deque[Output] = deque()
        self._waiter: asyncio.Future[None] | None = None

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Output:
        while not self._ready:
            if self.is_finished:
                raise StopAsyncIteration
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        return self._ready.popleft()

    def abort(self) -> None:
        """Ends the request before the next step; does nothing if it has ended."""
        if not self.is_finished:
            self._engine.abort(self.sequence_id)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.abort()

    def push(self, output: Output) -> None:
        """Called in the event loop's thread for each output."""
        self._ready.append(output)
        self.is_finished = output.finish is not None
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class AsyncEngine:
    """Runs an engine in its thread for one event loop. Create and use it in that loop."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._loop = asyncio.get_running_loop()
        self._streams: dict[int, OutputStream] = {}
        self._delivered: deque[list[Output]] = deque()
        self._waker = Waker()
        self._is_open = True
        self._loop.add_reader(self._waker.fd, self._collect)
        self._thread = EngineThread(engine, self._deliver)

    def submit(self, request: Request) -> OutputStream:
        """Queues a request; raises RillmError at once if it can never be served."""
        generation = self.engine.create(request)
        sequence_id = generation.sequence.sequence_id
        stream = self._streams[sequence_id] = OutputStream(self, sequence_id)
        try:
            self._thread.add(generation)
        except BaseException:
            del self._streams[sequence_id]
            raise
        return stream

    def abort(self, sequence_id: int) -> None:
        """Ends a request before the next step; its stream still gets the final output."""
        self._thread.abort(sequence_id)

    @property
    def thread(self) -> EngineThread:
        """For `call`: a function to run between two steps."""
        return self._thread

    async def drain(self, timeout: float | None = None) -> bool:
        """Takes no more requests and waits for the running ones; False if they took too long."""
        return await asyncio.to_thread(self._thread.drain, timeout)

    async def close(self) -> None:
        """Aborts what runs and ends the engine's thread. May be repeated."""
        await asyncio.to_thread(self._thread.close)
        if self._is_open:
            self._is_open = False
            self._loop.remove_reader(self._waker.fd)
            self._collect()
            self._waker.close()

    def _deliver(self, outputs: list[Output]) -> None:
        if self._loop.is_closed():  # nobody is left to read
            for output in outputs:
                if output.finish is None:
                    self._thread.abort(output.sequence_id)
            return
        # One wake-up a step, however many sequences.
        self._delivered.append(outputs)
        self._waker.wake()

    def _collect(self) -> None:
        self._waker.clear()
        while self._delivered:
            self._dispatch(self._delivered.popleft())

    def _dispatch(self, outputs: list[Output]) -> None:
        for output in outputs:
            stream = self._streams.get(output.sequence_id)
            if stream is None:
                continue
            if output.finish is not None:
                del self._streams[output.sequence_id]
            stream.push(output)
