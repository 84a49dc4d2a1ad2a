"""Finds out what the CPU can do and loads the one variant of the core that suits it best."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import json
import os
import platform
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import rillm.core
from rillm.core.placement import Cpu, one_kind, read_cpus
from rillm.errors import RillmError


class CoreError(RillmError):
    """The core could not be loaded, or refused a call; the message is the core's own."""


@dataclass(frozen=True)
class Variant:
    """A build of the core for one instruction set.

    `features` are the CPU features that it needs; of the variants whose features are all there the
    one with the highest score is loaded.
    """

    name: str
    features: frozenset[str]
    score: int
    path: Path


def _library_folders() -> Iterator[Path]:
    # In an editable install the Python files and the built libraries lie in different trees,
    # and both are on the package's path.
    for folder in rillm.core.__path__:
        yield Path(folder) / "lib"


@functools.cache
def variants() -> tuple[Variant, ...]:
    """The variants that this installation carries, best first."""
    for folder in _library_folders():
        index = folder / "variants.jsonl"
        if not index.is_file():
            continue
        rows = [json.loads(line) for line in index.read_text(encoding="utf-8").splitlines()]
        found = [
            Variant(
                name=row["name"],
                features=frozenset(filter(None, row["features"].split(","))),
                score=row["score"],
                path=folder / f"librillm_{row['name']}.so",
            )
            for row in rows
        ]
        return tuple(sorted(found, key=lambda variant: -variant.score))
    raise CoreError("rillm's core is not built: run `pip install .` (or `make core`) in its folder")


@functools.cache
def cpu_features() -> frozenset[str]:
    """The features of the CPUs that we run on that matter to rillm, e.g. {"avx2", "fma"}.

    Where CPUs differ in them, the whole process is kept to the CPUs of one kind from here on.
    """
    keep_to_one_kind()
    return _probe()


def keep_to_one_kind() -> tuple[int, ...]:
    """Leaves this process only CPUs that run the same kernels; returns those that were given up."""
    allowed = sorted(os.sched_getaffinity(0))
    cpus = read_cpus(allowed)
    features: dict[int, frozenset[str]] = {}
    if platform.machine() == "riscv64" and len(allowed) > 1:
        # Only a CPU itself tells its vector length: ask each one.
        try:
            for cpu in allowed:
                os.sched_setaffinity(0, {cpu})
                features[cpu] = _probe()
        finally:
            os.sched_setaffinity(0, allowed)
        cpus = tuple(
            replace(cpu, kind=f"{cpu.kind}; {','.join(sorted(features[cpu.number]))}")
            for cpu in cpus
        )

    def score(cpu: Cpu) -> int:
        known = features.get(cpu.number)
        if known is None:
            return 0
        return max((one.score for one in variants() if one.features <= known), default=-1)

    kept = {cpu.number for cpu in one_kind(cpus, score)}
    given_up = tuple(cpu for cpu in allowed if cpu not in kept)
    if given_up:
        for thread in os.listdir("/proc/self/task"):
            with contextlib.suppress(OSError):  # one that ends just now
                os.sched_setaffinity(int(thread), kept)
    return given_up


def vector_evidence() -> str:
    """What the probe was told of a RISC-V CPU's vector unit and made of it; else empty."""
    return _ask_probe()[1]


def _probe() -> frozenset[str]:
    return _ask_probe()[0]


def _ask_probe() -> tuple[frozenset[str], str]:
    path = variants()[0].path.parent / "librillm_probe.so"
    try:
        probe = ctypes.CDLL(str(path))
    except OSError as error:
        raise CoreError(f"{path}: cannot be loaded ({error})") from None
    features, reason = (ctypes.create_string_buffer(4096) for _ in range(2))
    probe.probe_features(features, reason, ctypes.c_size_t(len(features)))
    return frozenset(filter(None, features.value.decode().split(","))), reason.value.decode()


def supported_variants() -> list[Variant]:
    """The variants that can run on this CPU, best first."""
    return [variant for variant in variants() if variant.features <= cpu_features()]


def choose_variant(name: str | None = None) -> Variant:
    """The variant called `name` (or by RILLM_ISA), else the best one for this CPU."""
    wanted = name or os.environ.get("RILLM_ISA")
    if not wanted:
        supported = supported_variants()
        if not supported:
            raise CoreError("this build of rillm has no variant for this CPU: build it here")
        return supported[0]
    for variant in variants():
        if variant.name == wanted:
            missing = sorted(variant.features - cpu_features())
            if missing:
                raise CoreError(f"RILLM_ISA={wanted}: this CPU lacks {', '.join(missing)}")
            return variant
    names = ", ".join(variant.name for variant in variants())
    raise CoreError(f"RILLM_ISA={wanted}: no such variant; this build has {names}")
