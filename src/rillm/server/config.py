"""Everything that can be set on the server."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rillm.engine.config import EngineConfig
from rillm.engine.pooling import POOLINGS, Pooling
from rillm.errors import RillmError
from rillm.sampling import SamplingParams

# Half of the memory that weights leave free is for keys and values: of all models together.
_CACHE_SHARE = 0.5
REASONING_FORMATS = ("none", "deepseek", "auto")


@dataclass(frozen=True, slots=True)
class ServerConfig:
    """The flags of `rillm serve`. Names and defaults are llama-server's where it has them."""

    # A GGUF file; or a folder of them, or several of both: each loaded when it is asked for.
    model: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]
    alias: str | None = None  # the name in replies; None: the path as given
    models_max: int = 4  # models in memory at the same time; 0: as many as fit
    models_memory: int | None = None  # bytes of all of them; None: what the machine has free
    models_autoload: bool = True  # False: only /models/load loads one
    host: str = "127.0.0.1"
    port: int = 8080  # 0: any free one

    # The model.
    n_predict: int = -1  # of requests that do not say; -1: until the context is full
    num_threads: int | None = None  # None: every CPU this process may use
    context_length: int = 0  # tokens a sequence may have; 0: the model's, as far as memory allows
    parallel: int = 16  # sequences computed together; they share the context memory
    batch_size: int = 512  # tokens of one step
    cache_type: str = "f16"  # keys and values: f16 or q8_0
    cache_memory: int | None = None  # bytes; None: from the memory available
    draft_tokens: int = 0  # tokens guessed in a step from the text before them; 0: none
    cache_prompt: bool = True  # reuse the keys and values of prompts that begin alike
    blas: str = "off"  # prefill with float weights by OpenBLAS: off, auto or openblas
    isa: str | None = None
    chat_template: str | None = None  # name of a built-in one or Jinja source; None: the file's
    # Given to the template unless a request's chat_template_kwargs say otherwise.
    template_options: Mapping[str, Any] = field(default_factory=dict)
    embeddings: bool = False  # /embedding and /v1/embeddings
    pooling: Pooling | None = None  # of embeddings; None: what the file says, else none
    reasoning_format: str = "auto"  # none: thinking stays in the content
    sampling: Mapping[str, Any] = field(default_factory=dict)  # defaults under their request names

    # Who may ask, and what.
    api_keys: tuple[str, ...] = ()
    cors_origins: tuple[str, ...] = ("*",)  # "*": whoever asks
    slots: bool = True  # GET /slots
    metrics: bool = False  # GET /metrics
    slot_save_path: str | os.PathLike[str] | None = None  # None: slots cannot be saved
    ui: bool = True  # the page at /

    # Limits.
    max_header_bytes: int = 64 << 10
    max_body_bytes: int = 32 << 20
    max_choices: int = 64  # results of one request: prompts times n
    max_inputs: int = 2048  # texts of one request for embeddings
    max_stops: int = 64
    max_logit_bias: int = 4096
    max_probs: int = 1024  # n_probs, logprobs, top_logprobs
    max_breakers: int = 32  # dry_sequence_breakers: each is looked for in the whole vocabulary
    max_schema_bytes: int = 256 << 10
    max_waiting: int = 1024  # sequences in the queue; more get a 503
    max_n_predict: int = -1  # what a request may ask for at most; -1: no limit

    # Times in seconds.
    header_timeout: float = 20.0  # for a request's headers to arrive
    body_timeout: float = 60.0  # for its body
    send_timeout: float = 60.0  # that a client may go without reading any of its reply
    ping_seconds: float = 30.0  # of silence in a stream until a comment keeps it alive
    drain_seconds: float = 60.0  # what running requests get after SIGTERM
    keep_alive: int = 5  # of an idle connection

    ssl_cert: str | os.PathLike[str] | None = None
    ssl_key: str | os.PathLike[str] | None = None
    access_log: bool = True  # method, path, status, time; never what was asked
    log_bodies: bool = False  # what was asked, after all
    log_file: str | os.PathLike[str] | None = None  # None: standard error

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise RillmError(f"port must be from 0 to 65535, not {self.port}")
        if self.n_predict < -1:
            raise RillmError(f"n_predict must be -1 (no limit) or more, not {self.n_predict}")
        if self.reasoning_format not in REASONING_FORMATS:
            known = ", ".join(REASONING_FORMATS)
            raise RillmError(
                f"reasoning_format must be one of {known}, not {self.reasoning_format!r}"
            )
        if self.pooling not in (None, *POOLINGS):
            known = ", ".join(POOLINGS)
            raise RillmError(f"pooling must be one of {known}, not {self.pooling!r}")
        if self.pooling is not None and not self.embeddings:
            raise RillmError("--pooling is about embeddings: add --embeddings")
        if not self.paths:
            raise RillmError("no model was given")
        if self.models_max < 0:
            raise RillmError(f"models_max must be 0 (no limit) or more, not {self.models_max}")
        if self.models_memory is not None and not self.has_pool:
            raise RillmError("models_memory is about several models: give --cache-memory for one")
        if self.alias is not None and self.has_pool:
            raise RillmError("alias: several models are known by the names of their files")
        if (self.ssl_cert is None) != (self.ssl_key is None):
            raise RillmError("TLS needs both --ssl-cert and --ssl-key")
        for key in self.api_keys:
            if not key or not key.isascii() or not key.isprintable():
                raise RillmError("an API key must be printable ASCII and not empty")
        if self.slot_save_path is not None and not Path(self.slot_save_path).is_dir():
            raise RillmError(f"slot_save_path: {self.slot_save_path} is not a directory")
        SamplingParams.from_mapping(self.sampling)
        self.engine_config()

    @property
    def paths(self) -> tuple[Path, ...]:
        """What was given as model."""
        given = self.model
        items = [given] if isinstance(given, (str, os.PathLike)) else given
        return tuple(Path(item) for item in items)

    @property
    def has_pool(self) -> bool:
        """Whether requests choose among several models."""
        return len(self.paths) > 1 or self.paths[0].is_dir()

    @property
    def model_name(self) -> str:
        """What replies call the model, where there is one."""
        return self.alias or os.fspath(self.paths[0])

    def engine_config(self) -> EngineConfig:
        """The engine's part."""
        return EngineConfig(
            num_threads=self.num_threads,
            context_length=self.context_length,
            max_num_seqs=self.parallel,
            max_num_batched_tokens=max(self.batch_size, self.parallel),
            cache_type=self.cache_type,
            cache_memory=self.cache_memory,
            cache_share=_CACHE_SHARE / self.models_max
            if self.has_pool and self.models_max
            else _CACHE_SHARE,
            embeddings=self.embeddings,
            prefix_cache=self.cache_prompt,
            draft_tokens=self.draft_tokens,
            blas=self.blas,
            isa=self.isa,
        )
