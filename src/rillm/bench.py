"""How fast a model runs on this machine: prefill, decode, and the limits beside them.

A decode step reads every weight once, so memory bounds it; a prefill is bound by multiplying. Both
limits (roofline.py) are computed from rates that are measured in the same process.
"""

from __future__ import annotations

import os
import random
import statistics
import time
from array import array
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rillm.core import Batch, load_core
from rillm.engine.machine import start_team
from rillm.gguf import GGMLType, GGUFReader
from rillm.models import LoadedModel, load_model
from rillm.roofline import Limit, Machine, Work, limit

_BLOCK = 16
_BANDWIDTH_BYTES = 256 << 20


@dataclass(frozen=True)
class BenchResult:
    """One figure. Rates are tokens per second, the median of `repeats` runs after a warm-up."""

    model: str
    test: str  # "pp512" = prefill of 512 tokens; "tg128" = 128 decode steps; "tg128@8" = 8 at once
    tokens_per_second: float
    slowest: float
    fastest: float
    limit: float  # tokens per second that the machine allows at the most
    bound: str  # by what: "memory" or "multiply"
    intensity: float  # multiply-accumulates of a step for each byte of weights
    weight_bytes: int
    macs_per_token: int  # of the matrices
    bandwidth: float  # bytes per second
    multiply_peak: float  # multiply-accumulates per second in registers, of the weights' kind
    variant: str
    num_threads: int
    repeats: int
    cpu: str
    blas: str  # whether OpenBLAS was used in prefill, and why

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


@dataclass(frozen=True)
class BenchTest:
    """num_prompt tokens of prefill, or num_steps decode steps of num_seqs sequences at `depth`."""

    num_prompt: int = 0
    num_steps: int = 0
    num_seqs: int = 1
    depth: int = 0

    @property
    def name(self) -> str:
        """llama-bench's name for it."""
        base = f"pp{self.num_prompt}" if self.num_prompt else f"tg{self.num_steps}"
        users = f"@{self.num_seqs}" if self.num_seqs > 1 else ""
        return f"{base}{users}" + (f" d{self.depth}" if self.depth else "")

    @property
    def context(self) -> int:
        """Tokens of one sequence at the end."""
        return self.depth + self.num_prompt + self.num_steps + 1

    @property
    def num_tokens(self) -> int:
        """Tokens that a run computes."""
        return self.num_prompt or self.num_steps * self.num_seqs


def cpu_name() -> str:
    """What /proc/cpuinfo calls this CPU."""
    fields = ("model name", "uarch", "isa", "CPU part")
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return os.uname().machine
    values = {name.strip(): value.strip() for name, _, value in (x.partition(":") for x in lines)}
    return next((values[name] for name in fields if name in values), os.uname().machine)


def run_benchmarks(
    path: Path,
    tests: Sequence[BenchTest],
    *,
    num_threads: int | None = None,
    repeats: int = 3,
    cache_type: GGMLType = GGMLType.F16,
    isa: str | None = None,
    batch_size: int = 512,
    blas: str = "off",
    progress: Callable[[int, int], None] | None = None,
    report: Callable[[BenchResult], None] | None = None,
) -> list[BenchResult]:
    """Runs the tests one after another; `report` gets each result as it is there."""
    core = load_core(isa)
    longest = max(test.context * test.num_seqs for test in tests)
    most_seqs = max(test.num_seqs for test in tests)
    results = []
    with start_team(core, num_threads) as team, GGUFReader(path) as reader:
        bandwidth = team.read_bandwidth(array("B", bytes(_BANDWIDTH_BYTES)))
        machine = Machine(bandwidth, *team.multiply_peak())
        model = load_model(
            reader,
            core,
            team,
            max_tokens=max(batch_size, most_seqs),
            max_logits=most_seqs,
            num_blocks=longest // _BLOCK + most_seqs + 1,
            block_size=_BLOCK,
            cache_type=cache_type,
            blas=blas,
            progress=progress,
        )
        try:
            cache_bytes = model.cache_block_bytes / _BLOCK
            work = Work.of(reader, model.config, model.weight_bytes, cache_bytes)
            for test in tests:
                rates = _measure(model, test, repeats, batch_size)
                most = _limit(machine, work, test, batch_size)
                step = min(test.num_prompt, batch_size) or test.num_seqs
                quantized = work.int8_macs >= work.float_macs
                result = BenchResult(
                    model=path.name,
                    test=test.name,
                    tokens_per_second=statistics.median(rates),
                    slowest=min(rates),
                    fastest=max(rates),
                    limit=most.tokens_per_second,
                    bound=most.bound,
                    intensity=step * work.macs / work.weight_bytes,
                    weight_bytes=work.weight_bytes,
                    macs_per_token=work.macs - (work.head_macs if test.num_prompt else 0),
                    bandwidth=bandwidth,
                    multiply_peak=machine.int8_rate if quantized else machine.float_rate,
                    variant=core.variant,
                    num_threads=team.num_threads,
                    repeats=repeats,
                    cpu=cpu_name(),
                    blas=model.blas,
                )
                results.append(result)
                if report is not None:
                    report(result)
        finally:
            model.close()
    return results


def _measure(model: LoadedModel, test: BenchTest, repeats: int, batch_size: int) -> list[float]:
    run = _Run(model, test, batch_size)
    run.steps(warm_up=True)
    rates = []
    for _ in range(repeats):
        run.fill()
        start = time.perf_counter()
        run.steps()
        rates.append(test.num_tokens / (time.perf_counter() - start))
    return rates


def _limit(machine: Machine, work: Work, test: BenchTest, batch_size: int) -> Limit:
    if not test.num_prompt:
        depth = test.depth + test.num_steps / 2
        return limit(machine, work, num_seqs=test.num_seqs, num_tokens=1, num_logits=1, depth=depth)
    # Chunk after chunk: each has the ones before it as its depth.
    seconds, bounds = 0.0, []
    for first in range(0, test.num_prompt, batch_size):
        count = min(batch_size, test.num_prompt - first)
        chunk = limit(
            machine, work, num_seqs=1, num_tokens=count, num_logits=1, depth=test.depth + first
        )
        seconds += count / chunk.tokens_per_second
        bounds.append(chunk.bound)
    return Limit(test.num_prompt / seconds, bounds[0])


class _Run:
    """Random tokens through the model, on blocks that each sequence owns."""

    def __init__(self, model: LoadedModel, test: BenchTest, batch_size: int) -> None:
        self._model = model
        self._test = test
        self._batch_size = batch_size
        self._blocks = test.context // _BLOCK + 1
        self._source = random.Random(0)
        self._filled = False

    def fill(self) -> None:
        """Puts `depth` tokens of every sequence into the cache, once."""
        if not self._filled:
            for seq in range(self._test.num_seqs):
                self._prompt(seq, 0, self._test.depth)
            self._filled = True

    def steps(self, *, warm_up: bool = False) -> None:
        """The work that is measured (a part of it, to warm up)."""
        test = self._test
        if test.num_prompt:
            self._prompt(0, test.depth, min(test.num_prompt, 64) if warm_up else test.num_prompt)
            return
        for step in range(2 if warm_up else test.num_steps):
            self._model.run(self._batch(range(test.num_seqs), test.depth + step, 1))

    def _prompt(self, seq: int, start: int, count: int) -> None:
        for first in range(start, start + count, self._batch_size):
            length = min(self._batch_size, start + count - first)
            self._model.run(self._batch([seq], first, length))

    def _batch(self, seqs: Sequence[int], start: int, count: int) -> Batch:
        vocab = min(self._model.config.vocab_size, 100000)
        batch = Batch(max_blocks=self._blocks)
        batch.cu_seqlens_q.append(0)
        for seq in seqs:
            first_slot = seq * self._blocks * _BLOCK
            batch.token_ids.extend(self._source.randrange(vocab) for _ in range(count))
            batch.positions.extend(range(start, start + count))
            batch.slot_mapping.extend(range(first_slot + start, first_slot + start + count))
            batch.cu_seqlens_q.append(len(batch.token_ids))
            batch.context_lens.append(start + count)
            batch.block_tables.extend(range(seq * self._blocks, (seq + 1) * self._blocks))
            batch.logits_rows.append(len(batch.token_ids) - 1)
        return batch
