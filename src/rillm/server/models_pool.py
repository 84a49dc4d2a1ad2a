"""Several models behind one port: loaded when asked for, the least recently used ones unloaded.

A request holds the model that it is for until its reply is sent; such a model is never unloaded.
Loads happen one after the other, in the order in which they were asked for. One that needs room
(a place among max_loaded, or memory) takes it from the model that was used least recently; where
that is still in use, it gets no new requests until it is free (they wait for its next load), so
every request is served in the end.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from rillm.engine.config import CacheMemoryError
from rillm.errors import RillmError
from rillm.server.errors import ApiError
from rillm.server.service import Service

_PART = re.compile(r"(.+)-(\d{5})-of-\d{5}")


def find_models(paths: Iterable[Path]) -> dict[str, Path]:
    """Names and files of the models at `paths`: GGUF files, or folders with such files.

    A name is the file's without .gguf and, of a split one, without the number of its part.
    """
    found: dict[str, Path] = {}
    for path in paths:
        for file in _files(path):
            part = _PART.fullmatch(file.stem)
            if part and int(part[2]) != 1:
                continue
            name = part[1] if part else file.stem
            if name in found:
                raise RillmError(f"{file}: {found[name]} has the same name; rename one of them")
            found[name] = file
    return found


def _files(path: Path) -> Iterator[Path]:
    """Of a folder, also what lies in folders below it."""
    if not path.is_dir():
        if not path.exists():
            raise RillmError(f"{path}: no such file or folder")
        yield path
        return
    files = sorted(path.rglob("*.gguf"))
    if not files:
        raise RillmError(f"{path}: no .gguf file in this folder or below it")
    yield from files


@dataclass(slots=True, eq=False)
class PooledModel:
    """One model of the pool."""

    name: str
    path: Path
    service: Service | None = None  # while it is loaded
    num_users: int = 0  # requests that hold it
    last_used: int = 0
    is_leaving: bool = False  # takes no new requests: it will be unloaded
    loading: asyncio.Task[None] | None = None
    waiters: list[asyncio.Future[Service]] = field(default_factory=list)
    idle: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def status(self) -> str:
        """As llama-server's router names it."""
        if self.service is not None:
            return "loaded"
        return "unloaded" if self.loading is None else "loading"


class ModelPool:
    """Create and use it in the event loop."""

    def __init__(
        self,
        paths: dict[str, Path],
        max_loaded: int,
        load: Callable[[str, Path, int | None], Awaitable[Service]],
        say: Callable[[str], None],
        *,
        memory: int | None = None,
    ) -> None:
        """max_loaded: models in memory at the same time, 0 = as many as fit. memory: bytes of all
        of them, None = what the machine has. load: loads one into so many of the bytes."""
        self.models = {name: PooledModel(name, path) for name, path in paths.items()}
        self.created = int(time.time())
        self._max_loaded = max_loaded
        self._memory = memory
        self._load = load
        self._say = say
        self._turn = asyncio.Lock()  # first come, first served
        self._clock = 0
        self._is_closing = False

    def find(self, name: str | None) -> PooledModel:
        """The model of that name, the first one for None; ApiError 404 if there is none."""
        if name is None:
            return next(iter(self.models.values()))
        model = self.models.get(name)
        if model is None:
            known = ", ".join(self.models)
            raise ApiError(404, f"model {name!r:.80} not found; here are: {known:.500}")
        return model

    async def acquire(self, model: PooledModel) -> Service:
        """Loads the model if it is not, and holds it until `release`."""
        if self._is_closing:
            raise ApiError(503, "the server is shutting down")
        if model.service is not None and not model.is_leaving:
            self._hold(model)
            return model.service
        future: asyncio.Future[Service] = asyncio.get_running_loop().create_future()
        model.waiters.append(future)
        if model.loading is None:
            model.loading = asyncio.create_task(self._load_model(model))
        try:
            return await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled() and future.exception() is None:
                self.release(model)  # it was given to us just now
            raise
        finally:
            if future in model.waiters:
                model.waiters.remove(future)

    def release(self, model: PooledModel) -> None:
        """Ends what `acquire` began."""
        model.num_users -= 1
        if model.num_users == 0:
            model.idle.set()

    async def unload(self, model: PooledModel) -> bool:
        """Frees a model once its requests are through; False if it is not loaded."""
        async with self._turn:
            if model.service is None:
                return False
            await self._unload_when_idle(model)
            return True

    def abort_all(self) -> None:
        """Ends everything that runs or waits; takes nothing new."""
        self._is_closing = True
        for model in self.models.values():
            if model.service is not None:
                model.service.abort_all()
            self._fail(model, ApiError(503, "the server is shutting down"))

    async def close(self) -> None:
        """Ends what runs and frees all models."""
        self.abort_all()
        tasks = [model.loading for model in self.models.values() if model.loading is not None]
        await asyncio.gather(*tasks, return_exceptions=True)
        for model in self.models.values():
            await self._unload(model)

    # ---- loading -------------------------------------------------------------------------

    def _hold(self, model: PooledModel) -> None:
        self._clock += 1
        model.last_used = self._clock
        model.num_users += 1
        model.idle.clear()

    async def _load_model(self, model: PooledModel) -> None:
        error: ApiError | None = None
        try:
            async with self._turn:
                if model.waiters and not self._is_closing:
                    await self._load_with_room(model)
        except ApiError as failure:
            error = failure
        except RillmError as failure:
            error = ApiError(500, f"model {model.name} cannot be loaded: {failure}")
        except Exception as failure:
            error = ApiError(500, f"model {model.name} cannot be loaded: {type(failure).__name__}")
            raise
        finally:
            # No await from here on: who comes next finds everything settled.
            model.loading = None
            if model.service is None or self._is_closing:
                self._fail(model, error or ApiError(503, "the server is shutting down"))
            else:
                waiters, model.waiters = model.waiters, []
                for waiter in waiters:
                    if not waiter.done():
                        self._hold(model)
                        waiter.set_result(model.service)

    async def _load_with_room(self, model: PooledModel) -> None:
        while self._max_loaded and len(self._loaded()) >= self._max_loaded:
            await self._unload_one()
        while True:
            try:
                model.service = await self._load(model.name, model.path, self._memory_left())
                return
            except CacheMemoryError:
                if not self._loaded():
                    raise
                await self._unload_one()

    def _memory_left(self) -> int | None:
        if self._memory is None:
            return None
        services = [model.service for model in self._loaded() if model.service is not None]
        return max(0, self._memory - sum(service.loaded.num_bytes for service in services))

    def _loaded(self) -> list[PooledModel]:
        return [model for model in self.models.values() if model.service is not None]

    async def _unload_one(self) -> None:
        # Idle ones first; of those in use, the one that new requests came for least recently.
        await self._unload_when_idle(
            min(self._loaded(), key=lambda model: (model.num_users > 0, model.last_used))
        )

    async def _unload_when_idle(self, model: PooledModel) -> None:
        model.is_leaving = True
        if model.num_users:
            await model.idle.wait()
        await self._unload(model)
        self._say(f"{model.name}: unloaded")

    async def _unload(self, model: PooledModel) -> None:
        service, model.service = model.service, None
        model.is_leaving = False
        if service is not None:
            await service.close()

    def _fail(self, model: PooledModel, error: ApiError) -> None:
        waiters, model.waiters = model.waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_exception(error)
