"""The log probabilities of a model on a text, kept for comparing other models with it.

The file is a GGUF file:

    general.type              "logits"
    general.source            the model's file name
    rillm.logits.vocab_size   columns
    rillm.logits.first        index in a window of the first token that is predicted
    window.N.tokens           I32 [window]: token ids of window N
    window.N.log_probs        F16 or F32 [num_scored, vocab_size]: natural logarithms

F16 keeps a log probability of -10 to 0.005; the reader restores the sum of each row to 1, and what
is left is far below a divergence that matters (1e-5).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from rillm.closing import Closing
from rillm.errors import RillmError
from rillm.gguf import GGMLType, GGUFReader, GGUFWriter

_DTYPES: dict[GGMLType, np.dtype[Any]] = {
    GGMLType.F16: np.dtype("<f2"),
    GGMLType.F32: np.dtype("<f4"),
}


class LogitsFileError(RillmError):
    """The base cannot be used; the message says of which file, and why."""


class Window(Protocol):
    """Token ids, of which those from `first` on are predicted."""

    @property
    def token_ids(self) -> list[int]:
        """All of them."""

    @property
    def first(self) -> int:
        """Index of the first predicted one."""

    @property
    def num_scored(self) -> int:
        """How many are predicted."""


class LogitsWriter:
    """Writes the file window by window; it has its name only when it is whole."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        windows: Sequence[Window],
        vocab_size: int,
        type_name: str,
        source: str,
    ) -> None:
        types = {type_.name.lower(): type_ for type_ in _DTYPES}
        if type_name not in types:
            raise LogitsFileError(f"log probabilities are kept as f16 or f32, not {type_name!r}")
        self._dtype = _DTYPES[types[type_name]]
        self._windows = windows
        self._writer = GGUFWriter(
            path,
            {
                "general.type": "logits",
                "general.source": os.path.basename(source),
                "rillm.logits.vocab_size": vocab_size,
                "rillm.logits.first": windows[0].first,
            },
        )
        for number, window in enumerate(windows):
            self._writer.declare(f"window.{number}.tokens", (len(window.token_ids),), GGMLType.I32)
            self._writer.declare(
                f"window.{number}.log_probs", (window.num_scored, vocab_size), types[type_name]
            )

    def write(self, number: int, rows: Iterator[NDArray[np.float32]]) -> None:
        """The next window: its log probabilities, a few rows at a time."""
        ids = np.array(self._windows[number].token_ids, "<i4")
        self._writer.write(f"window.{number}.tokens", [ids.data])
        self._writer.write(
            f"window.{number}.log_probs",
            (np.ascontiguousarray(part.astype(self._dtype)).data for part in rows),
        )

    def __enter__(self) -> LogitsWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._writer.__exit__(kind, error, trace)


class BaseLogits(Closing):
    """The base of a comparison. Raises LogitsFileError where it is of another text or model."""

    def __init__(
        self, path: str | os.PathLike[str], windows: Sequence[Window], vocab_size: int
    ) -> None:
        self._reader = GGUFReader(path)
        try:
            self._check(os.fspath(path), windows, vocab_size)
        except BaseException:
            self._reader.close()
            raise

    def rows(self, number: int) -> NDArray[Any]:
        """Log probabilities of window `number`: [num_scored, vocab_size], as stored."""
        info = self._reader.tensors[f"window.{number}.log_probs"]
        return np.frombuffer(info.data, _DTYPES[info.type]).reshape(info.shape)

    def close(self) -> None:
        """Closes the file."""
        self._reader.close()

    def _check(self, path: str, windows: Sequence[Window], vocab_size: int) -> None:
        metadata, tensors = self._reader.metadata, self._reader.tensors
        if metadata.get("general.type") != "logits":
            raise LogitsFileError(f"{path}: was not written by rillm perplexity --save-logits")
        found = metadata.require("rillm.logits.vocab_size", int)
        if found != vocab_size:
            raise LogitsFileError(
                f"{path}: is of a model with {found} tokens, this one has {vocab_size}"
            )
        first = metadata.require("rillm.logits.first", int)
        for number, window in enumerate(windows):
            ids = tensors.get(f"window.{number}.tokens")
            if ids is None:
                raise LogitsFileError(
                    f"{path}: has {len(tensors) // 2} chunks, {len(windows)} are asked for: give "
                    f"--chunks {len(tensors) // 2}"
                )
            same = np.frombuffer(ids.data, "<i4").tolist() == window.token_ids
            log_probs = tensors.get(f"window.{number}.log_probs")
            if not same or first != window.first or log_probs is None:
                raise LogitsFileError(
                    f"{path}: chunk {number + 1} is of another text, context or stride; use those "
                    "that the base was made with"
                )
            if log_probs.type not in _DTYPES or log_probs.shape != (window.num_scored, vocab_size):
                raise LogitsFileError(f"{path}: chunk {number + 1} is malformed; make it again")
