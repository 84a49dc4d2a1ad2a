"""A loaded model: what handlers need of it, and what is running on it."""

from __future__ import annotations

import asyncio
import threading
import time
from pathlib import Path

import rillm.chat_templates.sandbox  # noqa: F401  (jinja2: at the start, not in the first chat)
from rillm.chat_template import ChatTemplate
from rillm.engine.async_engine import AsyncEngine, OutputStream
from rillm.engine.loading import LoadedEngine
from rillm.engine.pooling import POOLINGS, Pooling
from rillm.engine.request import Request
from rillm.server.config import ServerConfig
from rillm.server.errors import ApiError
from rillm.server.grammar import GrammarCompiler
from rillm.server.slots import SlotTable
from rillm.tokenizer import Tokenizer


class Service:
    """One model and its engine. Create and use it in the event loop."""

    def __init__(
        self, config: ServerConfig, loaded: LoadedEngine, *, name: str | None = None
    ) -> None:
        """name: what replies call the model; None for the configured name."""
        self.config = config
        self.loaded = loaded
        self.name = config.model_name if name is None else name
        self.engine = AsyncEngine(loaded.engine)
        self.slots = SlotTable(config.parallel)
        self.created = int(time.time())
        self.num_tokens_max = 0  # of the longest sequence so far
        self._streams: set[OutputStream] = set()
        self._is_closing = False
        self._compiler: GrammarCompiler | None = None
        self._compiler_lock = threading.Lock()

    @property
    def path(self) -> Path:
        """The model file."""
        return self.loaded.path

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's."""
        return self.loaded.tokenizer

    @property
    def template(self) -> ChatTemplate:
        """The model's chat template; ChatTemplateError if it has none."""
        return self.loaded.chat_template

    @property
    def context_length(self) -> int:
        """Tokens of the longest sequence."""
        return self.loaded.engine.context_length

    @property
    def pooling(self) -> Pooling:
        """How embeddings are pooled: as configured, as the file says, or not at all."""
        if self.config.pooling is not None:
            return self.config.pooling
        metadata = self.loaded.reader.metadata
        number = metadata.get(f"{self.loaded.model.config.architecture}.pooling_type")
        known = isinstance(number, int) and 0 <= number < len(POOLINGS)
        return POOLINGS[number] if known else "none"  # type: ignore[index]

    def grammar_compiler(self) -> GrammarCompiler:
        """Made when first asked for; any thread may ask."""
        with self._compiler_lock:
            if self._compiler is None:
                self._compiler = GrammarCompiler(self.tokenizer)
            return self._compiler

    def submit(self, request: Request) -> OutputStream:
        """Queues a request; raises RillmError if it can never be served."""
        if self._is_closing:
            raise ApiError(503, "the server is shutting down")
        if len(self.slots.waiting) >= self.config.max_waiting:
            raise ApiError(503, "too many requests are waiting: try again later")
        stream = self.engine.submit(request)
        self._streams.add(stream)
        return stream

    def release(self, stream: OutputStream) -> None:
        """Ends a stream, if it has not ended by itself."""
        stream.abort()
        self._streams.discard(stream)

    def abort_all(self) -> None:
        """Ends everything that runs, before the next step; takes nothing new."""
        self._is_closing = True
        for stream in self._streams:
            stream.abort()

    async def close(self) -> None:
        """Ends what runs and frees the model."""
        self._is_closing = True
        await self.engine.close()
        await asyncio.to_thread(self.loaded.close)
