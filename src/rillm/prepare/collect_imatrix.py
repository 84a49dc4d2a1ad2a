"""imatrix: what a model's matrices are multiplied with on a text, as llama-imatrix measures it.

The text is cut into chunks of `context` tokens that know nothing of each other (a rest that fills
no chunk is left out), and for each matrix the squares of every column's input are summed over all
tokens. The output head is left out unless it is asked for: quantize gives it more bits anyway.

What is summed so far is kept in `.NAME.HASH.partial` beside the output, written anew every minute
and when the run is interrupted. It is an importance matrix too; the next run with the same model,
text and options goes on from it.
"""

from __future__ import annotations

import hashlib
import os
import time
from array import array
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rillm.core import Batch, load_core
from rillm.engine.machine import start_team
from rillm.gguf import GGUFError, GGUFReader
from rillm.models import LoadedModel, load_model
from rillm.perplexity import cut_windows
from rillm.prepare.errors import PrepareError
from rillm.prepare.imatrix import ImportanceMatrix, read_imatrix, write_imatrix
from rillm.tokenizer import Tokenizer

SAVE_SECONDS = 60.0
_BLOCK = 16
_BATCH_TOKENS = 512
_HEADS = ("output.weight", "token_embd.weight")  # a tied head goes by the embedding's name


@dataclass(frozen=True)
class _State:
    """What has been measured.

    Sums are float32, as in the file: a run that goes on from one gives the bits of an
    uninterrupted one.
    """

    sums: dict[str, NDArray[np.float32]]  # parameter -> [cols]
    num_chunks: int


@dataclass(frozen=True)
class CollectResult:
    """A file that was written."""

    path: Path
    num_chunks: int
    num_tokens: int  # of this text
    num_matrices: int
    num_resumed: int  # chunks that an interrupted run had done


def collect(
    model: str | os.PathLike[str],
    text: str,
    out: str | os.PathLike[str],
    *,
    dataset: str = "",
    context: int = 512,
    max_chunks: int | None = None,
    process_output: bool = False,
    parse_special: bool = False,
    add_to: ImportanceMatrix | None = None,
    num_threads: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    report: Callable[[int, int], None] | None = None,
) -> CollectResult:
    """Writes the importance matrix of the GGUF file `model` on `text` to `out`.

    dataset: what the text is called in the file. parse_special: spellings of special tokens in the
    text are those tokens. add_to: sums of other texts, which these are added to. progress: bytes of
    weights loaded, in total. report: called with the chunks done (first those of an interrupted
    run) and their number. Raises RillmError with one line; `out` is only ever a whole file.
    """
    out = Path(out)
    if not out.absolute().parent.is_dir():
        raise PrepareError(f"{out.parent}: no such folder; make it or give another output path")
    if not os.access(out.absolute().parent, os.W_OK):
        raise PrepareError(f"{out.parent}: cannot be written to; give another output path")
    core = load_core()
    with ExitStack() as stack:
        reader = stack.enter_context(GGUFReader(model))
        tokenizer = Tokenizer.from_gguf(reader.metadata)
        chunks = [
            window.token_ids
            for window in cut_windows(
                tokenizer.encode(text, add_special=True, parse_special=parse_special),
                context,
                bos_id=tokenizer.bos_id if tokenizer.add_bos else None,
            )[:max_chunks]
        ]
        part = _Part(out, _identity(reader, chunks, process_output), dataset, context)
        # One name for both, so that an interrupt finds the sums of as many chunks as it says.
        state = part.read()
        num_resumed = state.num_chunks
        if report is not None:
            report(num_resumed, len(chunks))
        size = min(_BATCH_TOKENS, context)
        team = stack.enter_context(start_team(core, num_threads))
        loaded = load_model(
            reader, core, team, max_tokens=size, max_logits=size if process_output else 1,
            num_blocks=-(-context // _BLOCK), block_size=_BLOCK, progress=progress,
            observe=lambda name: process_output or name not in _HEADS,
        )  # fmt: skip
        stack.callback(loaded.close)
        names = _file_names(loaded, reader)
        if add_to is not None:
            _check_same_model(add_to, loaded, names)
        try:
            saved = time.monotonic()
            for ids in chunks[num_resumed:]:
                steps = _run(loaded, ids, size, process_output)
                state = _added(loaded, steps, state, reader.path)
                if report is not None:
                    report(state.num_chunks, len(chunks))
                if time.monotonic() - saved > SAVE_SECONDS:
                    part.write(state)
                    saved = time.monotonic()
        except BaseException:
            if state.num_chunks > num_resumed:
                part.write(state)
            raise
    tokens = len(chunks) * context
    totals = {names[name]: values for name, values in state.sums.items()}
    counts = dict.fromkeys(totals, np.array([tokens], np.float32))
    datasets, num_chunks = [dataset] if dataset else [], len(chunks)
    if add_to is not None:
        totals = {name: add_to.sums[name][0] + values for name, values in totals.items()}
        counts = {name: add_to.counts[name] + counts[name] for name in totals}
        datasets = [*add_to.datasets, *datasets]
        num_chunks += add_to.num_chunks
    write_imatrix(out, totals, counts, datasets=datasets, num_chunks=num_chunks, chunk_size=context)
    part.delete()
    return CollectResult(out, num_chunks, tokens, len(totals), num_resumed)


def _run(
    model: LoadedModel, ids: list[int], size: int, process_output: bool
) -> Iterator[NDArray[np.float32]]:
    """Runs a chunk, `size` tokens a step; yields each step's sums, which the next overwrites."""
    for start in range(0, len(ids), size):
        stop = min(start + size, len(ids))
        model.run(Batch.alone(ids, start, stop, block_size=_BLOCK, wants_logits=process_output))
        yield np.asarray(model.sums())


def _added(
    model: LoadedModel, steps: Iterator[NDArray[np.float32]], state: _State, where: str
) -> _State:
    """The state with one more chunk. PrepareError where a value is not finite."""
    total = sum(step.astype(np.float64) for step in steps)
    assert isinstance(total, np.ndarray)
    if not np.isfinite(total).all():
        name = next(n for n, place in model.observed.items() if not np.isfinite(total[place]).all())
        raise PrepareError(f"{where}: the input of {name} holds NaN or infinity: it is damaged")
    chunk = {name: total[place].astype(np.float32) for name, place in model.observed.items()}
    sums = {n: state.sums[n] + c if n in state.sums else c for n, c in chunk.items()}
    return _State(sums, state.num_chunks + 1)


def _file_names(model: LoadedModel, reader: GGUFReader) -> dict[str, str]:
    """Parameter -> tensor of the file; they differ where the head is the embedding."""
    names = {name: name for name in model.observed}
    if "output.weight" in names and "output.weight" not in reader.tensors:
        names["output.weight"] = "token_embd.weight"
    return names


def _check_same_model(other: ImportanceMatrix, model: LoadedModel, names: dict[str, str]) -> None:
    for parameter, place in model.observed.items():
        name, width = names[parameter], place.stop - place.start
        if name not in other.sums or other.sums[name].shape != (1, width):
            raise PrepareError(
                f"the importance matrix to add to has no {name} of {width} columns; it was made "
                "with another model"
            )


def _identity(reader: GGUFReader, chunks: list[list[int]], process_output: bool) -> str:
    """A hash of everything that the sums depend on: the model, the tokens and the options."""
    digest = hashlib.sha256()
    for path in reader.files:
        status = path.stat()
        digest.update(f"{status.st_size} {status.st_mtime_ns}\n".encode())
    for ids in chunks:
        digest.update(array("i", ids).tobytes())
    digest.update(f"{[len(ids) for ids in chunks[:1]]} {process_output}".encode())
    return digest.hexdigest()[:12]


class _Part:
    """The sums of an interrupted run."""

    def __init__(self, out: Path, identity: str, dataset: str, context: int) -> None:
        self.path = out.with_name(f".{out.name}.{identity}.partial")
        self._dataset, self._context = dataset, context

    def read(self) -> _State:
        """What was measured; nothing where there is no usable part."""
        if not self.path.exists():
            return _State({}, 0)
        try:
            matrix = read_imatrix(self.path)
        except (PrepareError, GGUFError):
            return _State({}, 0)
        return _State({n: values[0] for n, values in matrix.sums.items()}, matrix.num_chunks)

    def write(self, state: _State) -> None:
        """Replaces the part."""
        count = np.array([state.num_chunks * self._context], np.float32)
        write_imatrix(
            self.path,
            state.sums,
            dict.fromkeys(state.sums, count),
            datasets=[self._dataset],
            num_chunks=state.num_chunks,
            chunk_size=self._context,
        )

    def delete(self) -> None:
        """The whole file is there."""
        self.path.unlink(missing_ok=True)
