"""The server's process: port first, then the model; signals; the end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import resource
import signal
import socket
import sys
import threading
import time
from collections.abc import Generator
from dataclasses import replace
from pathlib import Path
from typing import TextIO

import uvicorn

from rillm.engine.loading import load_engine
from rillm.errors import RillmError
from rillm.server.app import create_app
from rillm.server.config import ServerConfig
from rillm.server.connection import limited_protocol
from rillm.server.errors import ApiError
from rillm.server.models_pool import ModelPool, find_models
from rillm.server.service import Service

_MAX_FILES = 65536


def serve(config: ServerConfig) -> int:
    """Serves until a signal ends it; returns the process's exit status.

    SIGTERM: takes no more requests, finishes the running ones within config.drain_seconds. Ctrl-C:
    ends the running ones at once. A second signal: leaves at once. Raises RillmError if the port
    or the model cannot be had.
    """
    server = Server(config)
    if config.access_log:
        _show_access_log(config.log_file)
    server.run()
    return 0


def _show_access_log(file: str | os.PathLike[str] | None) -> None:
    """In a file or on standard error, unless the program has its own logging set up."""
    logger = logging.getLogger("rillm.access")
    if logger.hasHandlers():
        return
    handler: logging.Handler = logging.StreamHandler()
    if file is not None:
        try:
            handler = logging.FileHandler(file, encoding="utf-8", errors="backslashreplace")
        except OSError as error:
            raise RillmError(f"{file}: cannot be written: {error.strerror}") from None
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)


class Server:
    """One server. `run` blocks; `stop` may be called from any thread."""

    def __init__(self, config: ServerConfig, *, out: TextIO | None = None) -> None:
        """Opens the port, so that clients get an answer from now on. out: for messages."""
        self.config = config
        self.ready = threading.Event()  # the model is loaded
        self._out = out if out is not None else sys.stderr
        self._app, self.state = create_app(config)
        self._socket = _listen(config.host, config.port)
        self._error: RillmError | None = None
        self._stopping = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._uvicorn = _Uvicorn(
            uvicorn.Config(
                self._app,
                lifespan="off",
                access_log=False,
                log_config=None,
                log_level="warning",
                ws="none",
                http=limited_protocol(config.header_timeout, config.send_timeout),
                server_header=False,
                proxy_headers=False,
                timeout_keep_alive=config.keep_alive,
                timeout_graceful_shutdown=max(1, round(config.drain_seconds)),
                h11_max_incomplete_event_size=config.max_header_bytes,
                ssl_certfile=config.ssl_cert,
                ssl_keyfile=config.ssl_key,
            )
        )

    @property
    def url(self) -> str:
        """Where it listens."""
        host, port = self._socket.getsockname()[:2]
        scheme = "https" if self.config.ssl_cert else "http"
        return f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}"

    def run(self) -> None:
        """Serves until stopped; raises RillmError if the model cannot be loaded."""
        with contextlib.closing(self._socket):
            asyncio.run(self._run())
        if self._error is not None:
            raise self._error

    def stop(self, *, drain: bool = True) -> None:
        """Ends `run`; drain: running requests may finish."""
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: it has ended
                self._loop.call_soon_threadsafe(self._stop, drain)

    async def _run(self) -> None:
        self._loop = asyncio.get_running_loop()
        if threading.current_thread() is threading.main_thread():
            for number, drain in ((signal.SIGTERM, True), (signal.SIGINT, False)):
                self._loop.add_signal_handler(number, self._signalled, drain)
        _allow_many_connections()
        self._say(f"listening on {self.url}")
        loading = asyncio.create_task(self._load())
        try:
            await self._uvicorn.serve(sockets=[self._socket])
        finally:
            self._stopping = True  # ends loading, if that is still under way
            await loading
            if self.state.service is not None:
                await self.state.service.close()
            if self.state.pool is not None:
                await self.state.pool.close()

    async def _load(self) -> None:
        config = self.config
        try:
            if config.has_pool:
                found = find_models(config.paths)
                self._say(f"{len(found)} models: {', '.join(found)}")
                self.state.pool = ModelPool(
                    found,
                    config.models_max,
                    self._load_service,
                    self._say,
                    memory=config.models_memory,
                )
            else:
                name, path = config.model_name, config.paths[0]
                self.state.service = await self._load_service(name, path)
        except _StoppedError:
            return
        except RillmError as error:
            self._error = error
            self._uvicorn.should_exit = True
            return
        except BaseException:
            self._uvicorn.should_exit = True
            raise
        if not self._stopping:  # else the port is closed by now
            self.ready.set()
            self._say(f"ready on {self.url}")

    async def _load_service(self, name: str, path: Path, memory: int | None = None) -> Service:
        config = self.config
        started = time.perf_counter()
        loaded = await asyncio.to_thread(
            load_engine,
            path,
            replace(config.engine_config(), memory=memory),
            chat_template=config.chat_template,
            progress=self._loading,
        )
        seconds = time.perf_counter() - started
        self._say(f"{name}: loaded in {seconds:.1f} s; {loaded.cache_plan}")
        if config.blas != "off":
            self._say(f"{name}: BLAS {loaded.model.blas}")
        return Service(config, loaded, name=name)

    def _loading(self, num_bytes: int, total: int) -> None:
        if self._stopping:
            raise _StoppedError(503, "the server is shutting down")
        self.state.progress = num_bytes / total if total else 1.0

    def _signalled(self, drain: bool) -> None:
        if self._stopping:
            self._say("stopped at once")
            with contextlib.suppress(OSError, ValueError):
                self._out.flush()
            os._exit(130)
        self._say("finishing the running requests" if drain else "stopping")
        self._stop(drain)

    def _stop(self, drain: bool) -> None:
        self._stopping = True
        self._uvicorn.should_exit = True
        for runs in (self.state.service, self.state.pool):
            if not drain and runs is not None:
                runs.abort_all()

    def _say(self, text: str) -> None:
        with contextlib.suppress(OSError, ValueError):
            print(f"rillm: {text}", file=self._out, flush=True)


class _StoppedError(ApiError):
    """Leaves load_engine from its progress callback."""


class _Uvicorn(uvicorn.Server):
    """Leaves signals to Server."""

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Nothing."""
        yield


def _allow_many_connections() -> None:
    """Every connection is an open file, and shells allow few of these unless asked."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MAX_FILES if hard == resource.RLIM_INFINITY else min(hard, _MAX_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        # The port can be had again at once after a restart, though not while another listens.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(1024)
        listener.setblocking(False)
    except (OSError, OverflowError) as error:
        listener.close()
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise RillmError(f"cannot listen on {host} port {port}: {reason}") from None
    return listener
