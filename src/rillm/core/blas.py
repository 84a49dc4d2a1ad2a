"""OpenBLAS for prefill with float weights: where it is, and whether it pays on this machine.

The library is the distribution's or the user's, found at run time; see docs/openblas.md.
"""

from __future__ import annotations

import os
import time
from array import array
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

from rillm.core.abi import BufferKind, CoreBuffer, CoreOp, OpKind, Rows, WeightKind
from rillm.core.batch import Batch
from rillm.core.library import Core, ThreadTeam, Weight
from rillm.core.loader import CoreError
from rillm.core.program import CompiledProgram

BLAS_CHOICES = ("off", "auto", "openblas")
# Tokens of a step from which OpenBLAS is used: below, converting a panel of weights and packing it
# costs more than its faster products save (measured on x86: docs/openblas.md).
MIN_ROWS = 64

# The names of builds that take several callers at once: Debian's, then Fedora's. (Fedora's
# libopenblas.so.0 is a build for one thread, which the core refuses.)
_NAMES = ("libopenblas.so.0", "libopenblasp.so.0", "libopenblas.so")
_INSTALL = (
    "install it (Debian: sudo apt-get install libopenblas0-pthread) or set OPENBLAS to a library "
    "or to the prefix of one"
)
_F32 = 0
_WIDTHS = {0: 4, 1: 2, 30: 2}  # ggml type of a float matrix -> bytes of a weight
# auto: how much faster than our kernels it must be, so that noise alone never turns it on.
_MARGIN = 1.15
# What it multiplies is the model's median matrix, cut down to this.
_MOST_COLS = 1024
_MOST_ROWS_A_THREAD = 256
_REPEATS = 3

Shape = tuple[int, int, int]  # ggml type, rows, columns


@dataclass(frozen=True, slots=True)
class BlasUse:
    """What became of the user's choice. min_rows: tokens from which it is used; 0: never."""

    min_rows: int
    description: str


def choose_blas(core: Core, team: ThreadTeam, choice: str, matrices: Iterable[Shape]) -> BlasUse:
    """Loads OpenBLAS if it is wanted.

    choice: one of BLAS_CHOICES. matrices: all of the model's; float ones count. "auto" measures
    both and never fails; "openblas" raises CoreError where there is no library.
    """
    if choice not in BLAS_CHOICES:
        raise CoreError(f"blas must be one of {', '.join(BLAS_CHOICES)}, not {choice!r}")
    if choice == "off":
        return BlasUse(0, "off")
    try:
        open_blas(core)
    except CoreError as error:
        if choice == "openblas":
            raise
        return BlasUse(0, f"off: {error}")
    floats = sorted((rows * cols, type_, rows, cols) for type_, rows, cols in matrices
                    if type_ in _WIDTHS)  # fmt: skip
    if not floats:
        return BlasUse(0, "off: the model has no f32, f16 or bf16 matrix")
    if choice == "openblas":
        return BlasUse(MIN_ROWS, f"{core.blas_info} for {MIN_ROWS} tokens or more")
    _, ggml_type, num_rows, cols = floats[len(floats) // 2]
    speeds = compare(core, team, (ggml_type, num_rows, cols))
    rows = least_rows(speeds)
    shown = ", ".join(f"{ratio:.2f} at {count}" for count, ratio in speeds.items())
    if not rows:
        return BlasUse(0, f"off: {core.blas_info} is not faster (times our speed: {shown} tokens)")
    return BlasUse(rows, f"{core.blas_info} for {rows} tokens or more (times our speed: {shown})")


def open_blas(core: Core, environment: Mapping[str, str] = os.environ) -> None:
    """Loads the first OpenBLAS that can be used; CoreError with one line if there is none."""
    if core.blas_info:
        return
    reason = ""
    for path in candidates(environment):
        try:
            core.load_blas(path)
            return
        except CoreError as error:
            reason = reason or str(error)
    raise CoreError(f"no OpenBLAS can be used ({reason or 'none found'}): {_INSTALL}")


def candidates(environment: Mapping[str, str]) -> Iterator[str]:
    """What to try: the library or prefix that OPENBLAS names, and nothing else; or known names."""
    wanted = environment.get("OPENBLAS")
    if not wanted:
        yield from _NAMES
        return
    path = Path(wanted)
    if not path.is_dir():
        yield wanted
        return
    folders = (path, path / "lib", path / "lib64", *sorted((path / "lib").glob("*-linux-gnu*")))
    for folder in folders:
        # The links first: they point to the version that was installed last.
        yield from sorted(map(str, folder.glob("libopenblas*.so*")), key=lambda name: len(name))


def least_rows(speeds: Mapping[int, float]) -> int:
    """The number of tokens from which on OpenBLAS is faster by a margin; 0 if it never is.

    speeds: number of tokens -> OpenBLAS's speed over ours.
    """
    least = 0
    for count in sorted(speeds, reverse=True):
        if speeds[count] < _MARGIN:
            break
        least = count
    return least


def compare(
    core: Core, team: ThreadTeam, matrix: Shape, counts: tuple[int, ...] = (64, 128, 256)
) -> dict[int, float]:
    """Number of tokens -> OpenBLAS's speed over ours, measured on a matrix of (at most) this shape.

    Takes a tenth of a second on a fast machine and some seconds on one without a vector unit.
    """
    ggml_type, rows, cols = matrix
    rows, cols = min(rows, _MOST_ROWS_A_THREAD * team.num_threads), min(cols, _MOST_COLS)
    # The bits of some number in any of the types; what it is does not change the time.
    blocks = array("H", [0x3E66]) * (rows * cols * _WIDTHS[ggml_type] // 2)
    row = array("f", [0.5]) * cols
    with ExitStack() as stack:
        embedding = stack.enter_context(Weight(core, WeightKind.TABLE, _F32, (1, cols), row))
        weight = stack.enter_context(
            Weight(core, WeightKind.MATRIX, ggml_type, (rows, cols), blocks, team)
        )
        programs = [
            stack.enter_context(closing(_product(team, embedding, weight, max(counts), least)))
            for least in (0, 1)
        ]
        return {count: _speed_ratio(programs, count) for count in counts}


def _product(
    team: ThreadTeam, embedding: Weight, matrix: Weight, max_tokens: int, min_rows: int
) -> CompiledProgram:
    look_up = _op(OpKind.EMBED, [-1, -1, -1], 0, 0)
    multiply = _op(OpKind.LINEAR, [-1, -1, 0], 1, 1)
    widths = (embedding.shape[1], matrix.shape[0])
    return CompiledProgram(
        team,
        None,
        [look_up, multiply],
        [CoreBuffer(BufferKind.F32, Rows.TOKENS, width, slot) for slot, width in enumerate(widths)],
        [embedding, matrix],
        max_tokens=max_tokens,
        max_logits=1,
        output=1,
        blas_min_rows=min_rows,
    )


def _op(kind: OpKind, inputs: list[int], output: int, weight: int) -> CoreOp:
    op = CoreOp(kind=kind)
    op.inputs[:] = inputs
    op.outputs[:] = [output, -1]
    op.weight[:] = [weight, -1, -1, -1, -1, -1]
    return op


def _speed_ratio(programs: list[CompiledProgram], count: int) -> float:
    """Time of the first program over the second's; each the best of some alternating runs."""
    zeros = array("i", bytes(4 * count))
    batch = Batch(
        token_ids=zeros,
        positions=array("i", range(count)),
        slot_mapping=zeros,
        cu_seqlens_q=array("i", [0, count]),
        context_lens=array("i", [count]),
    )
    best = [float("inf")] * len(programs)
    for repeat in range(_REPEATS + 1):  # the first warms up
        for index, program in enumerate(programs):
            start = time.perf_counter()
            program.run(batch)
            if repeat:
                best[index] = min(best[index], time.perf_counter() - start)
    return best[0] / best[1]
