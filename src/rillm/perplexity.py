"""How well a model predicts a text, and how far it is from another (quantised) model of its kind.

The definition is llama-perplexity's, so that figures can be put side by side. The text is cut into
chunks of `context` tokens that know nothing of each other; in each, the tokens of the second half
are predicted from all before them in the chunk. Models that begin a text with a bos token get it in
place of the first token of every chunk. With a stride, a window of `context` tokens moves on by
`stride` and the last `stride` tokens of each are predicted, so that every one has seen at least
context - stride before it (the definition of the transformers documentation).

Perplexity is exp of the mean negative log probability; its error is the standard error of that
mean, carried through exp. Needs numpy, so it is for a workstation.
"""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rillm.core import Batch, load_core
from rillm.engine.machine import start_team
from rillm.errors import RillmError
from rillm.gguf import GGMLType, GGUFReader
from rillm.logits_file import BaseLogits, LogitsWriter
from rillm.models import LoadedModel, load_model
from rillm.tokenizer import Tokenizer

Floats = NDArray[np.float32]
_BLOCK = 16
_BATCH_TOKENS = 128
_LOGITS_BYTES = 64 << 20  # of one step


class PerplexityError(RillmError):
    """The text is too short, or the base was made of something else."""


@dataclass(frozen=True)
class Window:
    """One stretch of the text: token ids, of which those from `first` on are predicted."""

    token_ids: list[int]
    first: int  # index of the first token that is predicted

    @property
    def num_scored(self) -> int:
        """Predicted tokens."""
        return len(self.token_ids) - self.first


@dataclass(frozen=True)
class Estimate:
    """A mean and its standard error."""

    value: float
    error: float


@dataclass(frozen=True)
class Divergence:
    """A model against its base, over the predicted tokens (natural logarithms)."""

    kl: Estimate  # mean of KL(base || model)
    kl_max: float
    kl_median: float
    kl_99: float  # 99th percentile
    same_top: Estimate  # share of tokens whose likeliest prediction is the same
    base_ppl: float
    log_ratio: Estimate  # mean of ln(PPL / base PPL)
    rms_dp: float  # root mean square of the change in the right token's probability


@dataclass(frozen=True)
class PerplexityResult:
    """What was measured."""

    model: str
    ppl: Estimate
    num_chunks: int
    num_scored: int  # predicted tokens
    context: int
    stride: int
    divergence: Divergence | None = None

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def cut_windows(
    token_ids: Sequence[int], context: int, *, stride: int = 0, bos_id: int | None = None
) -> list[Window]:
    """The stretches of a text that are measured; a rest that fills no window is left out.

    bos_id takes the place of the first token of each. Raises PerplexityError for a text of less
    than two windows.
    """
    if context < 4:
        raise PerplexityError(f"context {context}: at least 4 tokens are needed")
    if not 0 <= stride < context:
        raise PerplexityError(f"stride {stride}: must be less than the context, {context}")
    if len(token_ids) < 2 * context:
        raise PerplexityError(
            f"the text has {len(token_ids)} tokens, but two chunks of {context} are needed: take a "
            "longer text or a shorter context"
        )
    starts = range(0, len(token_ids) - context + 1, stride or context)
    # The first token of a half is not predicted: llama-perplexity's count is context / 2 - 1.
    first = context - stride if stride else context // 2 + 1
    windows = []
    for start in starts:
        ids = list(token_ids[start : start + context])
        if bos_id is not None:
            ids[0] = bos_id
        windows.append(Window(ids, first))
    return windows


@dataclass
class Scores:
    """Sums over predicted tokens, added a few rows at a time."""

    nll: list[Floats] = field(default_factory=list)
    kl: list[Floats] = field(default_factory=list)
    same_top: list[NDArray[np.bool_]] = field(default_factory=list)
    base_nll: list[Floats] = field(default_factory=list)

    def add(self, log_probs: Floats, targets: NDArray[np.int64], base: Floats | None) -> None:
        """log_probs and base [rows, vocab_size], targets [rows]."""
        rows = np.arange(len(targets))
        self.nll.append(-log_probs[rows, targets])
        if base is not None:
            probs = np.exp(base)
            # What rounding has left of the sum: the stored base is 16 bits wide.
            total = probs.sum(axis=1, dtype=np.float64)
            kl = np.einsum("ij,ij->i", probs, base - log_probs, dtype=np.float64) / total
            self.kl.append((kl + -np.log(total)).astype(np.float32))
            self.same_top.append(base.argmax(axis=1) == log_probs.argmax(axis=1))
            self.base_nll.append((-base[rows, targets] + np.log(total)).astype(np.float32))

    def perplexity(self) -> Estimate:
        """exp of the mean, and its error."""
        mean = _mean(np.concatenate(self.nll))
        ppl = math.exp(mean.value)
        return Estimate(ppl, mean.error * ppl)

    def divergence(self) -> Divergence:
        """The comparison with the base."""
        nll, base_nll = np.concatenate(self.nll), np.concatenate(self.base_nll)
        kl = np.concatenate(self.kl)
        same = np.concatenate(self.same_top).astype(np.float64)
        share = float(same.mean())
        error = math.sqrt(share * (1 - share) / max(1, len(same) - 1))
        change = np.exp(-nll.astype(np.float64)) - np.exp(-base_nll.astype(np.float64))
        return Divergence(
            kl=_mean(kl),
            kl_max=float(kl.max()),
            kl_median=float(np.median(kl)),
            kl_99=float(np.quantile(kl, 0.99)),
            same_top=Estimate(share, error),
            base_ppl=math.exp(float(base_nll.mean(dtype=np.float64))),
            log_ratio=_mean(nll.astype(np.float64) - base_nll),
            rms_dp=float(np.sqrt(np.mean(change**2))),
        )


def _mean(values: NDArray[Any]) -> Estimate:
    count = len(values)
    deviation = float(values.std(dtype=np.float64))
    return Estimate(float(values.mean(dtype=np.float64)), deviation / math.sqrt(max(1, count - 1)))


def log_softmax(logits: Floats) -> Floats:
    """Log probabilities of rows of logits [rows, vocab_size]; the sum is made in float64."""
    shifted = logits - logits.max(axis=1, keepdims=True)
    total = np.exp(shifted).sum(axis=1, dtype=np.float64, keepdims=True)
    return np.asarray(shifted - np.log(total).astype(np.float32))


def measure(
    path: str | os.PathLike[str],
    text: str,
    *,
    context: int = 512,
    stride: int = 0,
    max_chunks: int | None = None,
    save_logits: str | os.PathLike[str] | None = None,
    save_type: str = "f16",
    kl_base: str | os.PathLike[str] | None = None,
    cache_type: str = "f16",
    num_threads: int | None = None,
    blas: str = "off",
    progress: Callable[[int, int], None] | None = None,
    report: Callable[[int, int, float], None] | None = None,
) -> PerplexityResult:
    """Measures the model in the GGUF file `path` on `text`.

    save_logits: writes all log probabilities to this file, for kl_base of a later run with the same
    text, context and stride. progress: bytes of weights loaded, in total. report: called after each
    chunk with its number, their count and the perplexity so far. Raises RillmError with one line.
    """
    core = load_core()
    scores = Scores()
    with ExitStack() as stack:
        reader = stack.enter_context(GGUFReader(path))
        tokenizer = Tokenizer.from_gguf(reader.metadata)
        windows = cut_windows(
            tokenizer.encode(text, add_special=True),
            context,
            stride=stride,
            bos_id=tokenizer.bos_id if tokenizer.add_bos else None,
        )[:max_chunks]
        if not windows:
            raise PerplexityError("no chunk to measure: --chunks must be 1 or more")
        size, num_scored = len(windows[0].token_ids), windows[0].num_scored
        vocab_size = _vocab_size(reader)
        num_rows = max(1, min(num_scored, _BATCH_TOKENS, _LOGITS_BYTES // (4 * vocab_size)))
        base = writer = None
        if kl_base is not None:
            base = stack.enter_context(BaseLogits(kl_base, windows, vocab_size))
        team = stack.enter_context(start_team(core, num_threads))
        model = load_model(
            reader,
            core,
            team,
            max_tokens=_BATCH_TOKENS,
            max_logits=num_rows,
            num_blocks=-(-size // _BLOCK),
            block_size=_BLOCK,
            cache_type=GGMLType[cache_type.upper()],
            blas=blas,
            progress=progress,
        )
        stack.callback(model.close)
        if save_logits is not None:
            writer = stack.enter_context(
                LogitsWriter(save_logits, windows, vocab_size, save_type, os.fspath(path))
            )
        for number, window in enumerate(windows):
            base_rows = None if base is None else base.rows(number)
            rows = _score(model, window, num_rows, base_rows, scores, path)
            if writer is not None:
                writer.write(number, rows)
            else:
                deque(rows, maxlen=0)
            if report is not None:
                report(number + 1, len(windows), scores.perplexity().value)
    return PerplexityResult(
        os.path.basename(path),
        scores.perplexity(),
        len(windows),
        len(windows) * num_scored,
        context,
        stride,
        scores.divergence() if kl_base is not None else None,
    )


def _vocab_size(reader: GGUFReader) -> int:
    embedding = reader.tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise PerplexityError(f"{reader.path}: has no token_embd.weight; is it a language model?")
    return embedding.shape[0]


def _score(
    model: LoadedModel,
    window: Window,
    num_rows: int,
    base: NDArray[Any] | None,
    scores: Scores,
    path: str | os.PathLike[str],
) -> Iterator[Floats]:
    """Runs a window and adds to the scores; yields the log probabilities, a few rows at a time.

    base: [num_scored, vocab_size] of the base model, or None.
    """
    ids, vocab_size = window.token_ids, model.config.vocab_size
    predicting = window.first - 1  # the position whose logits predict token `first`
    start = 0
    while start < len(ids) - 1:
        is_scored = start >= predicting
        limit = num_rows if is_scored else min(_BATCH_TOKENS, predicting - start)
        stop = min(start + limit, len(ids) - 1)  # nothing follows the last token
        model.run(Batch.alone(ids, start, stop, block_size=_BLOCK, wants_logits=is_scored))
        if is_scored:
            logits = np.empty((stop - start, vocab_size), np.float32)
            for row in range(stop - start):
                logits[row] = np.asarray(model.logits(row))
            log_probs = log_softmax(logits)
            if not np.isfinite(log_probs).all():
                raise PerplexityError(
                    f"{path}: the logits of token {start} hold NaN or infinity: it is damaged"
                )
            targets = np.array(ids[start + 1 : stop + 1], np.int64)
            done = start - predicting
            part = None if base is None else base[done : done + stop - start].astype(np.float32)
            scores.add(log_probs, targets, part)
            yield log_probs
        start = stop
