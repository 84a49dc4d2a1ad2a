"""`rillm doctor`: what this machine can run, how fast, and what stands in the way."""

from __future__ import annotations

import math
import os
import platform
import shutil
import time
from array import array
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rillm.bench import cpu_name
from rillm.board.machine import Machine, read_machine
from rillm.board.problems import Problem, find_problems
from rillm.board.sizing import Advice, advise, size_of_file, sizes_of_shape
from rillm.board.vector import describe_vector
from rillm.core import (
    CoreError,
    allowed_cpus,
    cpu_features,
    load_core,
    open_blas,
    variants,
    vector_evidence,
)
from rillm.engine.machine import available_memory, cpu_quota, default_num_threads
from rillm.errors import RillmError

_BANDWIDTH_BYTES = 256 << 20
_DISK_BYTES = 256 << 20
_CHUNK = 4 << 20
# More threads than the fewest that come this close to the best bandwidth gain decode nothing, but
# they gain prefill; only a bandwidth that falls again speaks against them.
_FALLING = 0.9

Say = Callable[[str], None]


@dataclass(frozen=True)
class VariantChoice:
    """A kernel variant and why it was or was not taken."""

    name: str
    chosen: bool
    reason: str


@dataclass(frozen=True)
class Bandwidth:
    """Bytes per second that `num_threads` threads read together."""

    num_threads: int
    bytes_per_second: float


@dataclass
class Report:
    """Everything that the doctor found. `problems` with `fatal` say that it cannot run."""

    architecture: str
    cpu: str
    kernel: str
    vector: str
    vector_evidence: str  # what the probe was told of a RISC-V vector unit, and what it made of it
    features: list[str]
    machine: Machine
    allowed: list[int]
    quota: float | None  # CPUs' worth of time; None: no limit
    available: int  # bytes, within the control groups' limits
    variants: list[VariantChoice] = field(default_factory=list)
    bandwidth: list[Bandwidth] = field(default_factory=list)
    num_threads: int = 0  # recommended
    num_threads_reason: str = ""
    disk: float | None = None  # bytes per second from the model's file
    disk_free: int = 0  # bytes, where the model is, else in the home folder
    advice: Advice | None = None
    problems: list[Problem] = field(default_factory=list)
    blas: str = ""  # the OpenBLAS that --blas would use, or why there is none

    @property
    def can_run(self) -> bool:
        """Whether nothing that was found is fatal."""
        return not any(problem.fatal for problem in self.problems)

    @property
    def best_bandwidth(self) -> float:
        """What decode can count on with the recommended threads, bytes per second."""
        fitting = [row for row in self.bandwidth if row.num_threads <= self.num_threads]
        return max((row.bytes_per_second for row in fitting), default=0.0)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self) | {"can_run": self.can_run}


def examine(
    model: Path | None = None,
    shape: str | None = None,
    *,
    measure: bool = True,
    say: Say = lambda line: None,
) -> Report:
    """Looks at everything. A model or shape adds advice; without `measure` no bandwidth is known.

    What is wrong with the machine becomes a problem of the report; a model file that cannot be
    read, or an unknown shape, is a RillmError.
    """
    machine = read_machine()
    quota = cpu_quota()
    report = Report(
        architecture=platform.machine(),
        cpu=cpu_name(),
        kernel=platform.release(),
        vector="",
        vector_evidence="",
        features=[],
        machine=machine,
        allowed=allowed_cpus(),
        quota=None if math.isinf(quota) else quota,
        available=available_memory(),
    )
    folder = model.absolute().parent if model is not None else Path.home()
    report.disk_free = shutil.disk_usage(folder).free if folder.is_dir() else 0
    core_error, is_probed = "", False
    try:
        report.features = sorted(cpu_features())
        report.vector_evidence = vector_evidence()
        is_probed = True
        report.variants = variant_choices()
        load_core()
        report.blas = _find_blas()
    except RillmError as error:
        core_error = str(error)
    report.vector = describe_vector(
        report.architecture, report.features, machine.isa, is_probed=is_probed
    )
    if not core_error and measure:
        counts = thread_counts(default_num_threads())
        say(f"measuring read bandwidth with {', '.join(map(str, counts))} threads")
        report.bandwidth = measure_bandwidth(counts, report.available)
    report.num_threads, report.num_threads_reason = recommend_threads(
        report.bandwidth, default_num_threads()
    )
    if model is not None or shape is not None:
        sizes = [size_of_file(model)] if model is not None else sizes_of_shape(shape or "")
        report.advice = advise(sizes, report.available, report.best_bandwidth)
    if model is not None and measure:
        say(f"measuring how fast {model.name} is read")
        report.disk = read_speed(model)
    report.problems = find_problems(
        machine,
        architecture=report.architecture,
        kernel=report.kernel,
        vector=report.vector,
        allowed=report.allowed,
        quota=report.quota,
        available=report.available,
        chosen=next((choice.name for choice in report.variants if choice.chosen), ""),
        core_error=core_error,
        forced=os.environ.get("RILLM_ISA", ""),
        advice=report.advice,
    )
    return report


def _find_blas() -> str:
    try:
        open_blas(load_core())
    except CoreError as error:
        return str(error)
    return load_core().blas_info


def variant_choices() -> list[VariantChoice]:
    """Every variant of this installation, best first, with the reason for its fate."""
    features = cpu_features()
    forced = os.environ.get("RILLM_ISA")
    rows: list[VariantChoice] = []
    chosen = ""
    for variant in variants():
        missing = sorted(variant.features - features)
        if missing:
            rows.append(VariantChoice(variant.name, False, f"the CPU lacks {', '.join(missing)}"))
        elif forced and variant.name != forced:
            rows.append(VariantChoice(variant.name, False, f"RILLM_ISA={forced}"))
        elif chosen:
            rows.append(VariantChoice(variant.name, False, f"{chosen} is faster"))
        else:
            chosen = variant.name
            reason = f"RILLM_ISA={forced}" if forced else "the best that the CPU can run"
            rows.append(VariantChoice(variant.name, True, reason))
    return rows


def thread_counts(most: int) -> list[int]:
    """1, 2, 4, ... and `most`."""
    counts = [1 << i for i in range(most.bit_length()) if 1 << i < most]
    return [*counts, most]


def measure_bandwidth(counts: Sequence[int], available: int) -> list[Bandwidth]:
    """Reads memory with each number of threads."""
    core = load_core()
    size = max(1 << 20, min(_BANDWIDTH_BYTES, available // 8))
    data = array("B", bytes(size))
    rows = []
    for count in counts:
        with core.team(count) as team:
            rows.append(Bandwidth(count, team.read_bandwidth(data)))
    return rows


def recommend_threads(bandwidth: Sequence[Bandwidth], most: int) -> tuple[int, str]:
    """How many threads to use, and why. `most`: CPUs that are allowed to us."""
    if not bandwidth:
        return most, "the CPUs allowed to us; bandwidth was not measured"
    best = max(bandwidth, key=lambda row: row.bytes_per_second)
    everyone = max(bandwidth, key=lambda row: row.num_threads)
    if everyone.bytes_per_second < _FALLING * best.bytes_per_second:
        return best.num_threads, (
            f"{everyone.num_threads} threads read more slowly than {best.num_threads}"
        )
    return everyone.num_threads, "prefill gains from every CPU, and the bandwidth does not suffer"


def read_speed(path: Path) -> float:
    """Bytes per second at which the start of a file is read, past the page cache."""
    buffer = bytearray(_CHUNK)
    with path.open("rb", buffering=0) as file:
        size = min(os.fstat(file.fileno()).st_size, _DISK_BYTES)
        os.posix_fadvise(file.fileno(), 0, size, os.POSIX_FADV_DONTNEED)
        start = time.perf_counter()
        done = 0
        while done < size:
            count = file.readinto(memoryview(buffer)[: min(_CHUNK, size - done)])
            if not count:
                break
            done += count
        return done / max(time.perf_counter() - start, 1e-9)
