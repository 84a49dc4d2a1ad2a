"""What a step costs beside the model: drawing a token, scheduling, text.

    python benchmarks/overhead.py [MODEL.gguf] [--prefix 2000]

Sampler: one draw from logits of GLM-4's vocabulary through every sampler at once, and through the
default chain, for peaked and nearly flat logits. Engine (with a model): time of a step outside of
the model's run and the draw. Both are medians; the fastest stands beside them. --prefix: how long
the first token takes when so many tokens of the prompt are in the cache, and a decode step there.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from array import array
from collections.abc import Sequence
from pathlib import Path

from rillm.bench import cpu_name
from rillm.core import Batch, load_core
from rillm.core.sampling import SamplingRequest
from rillm.engine.config import EngineConfig
from rillm.engine.loading import load_engine
from rillm.engine.request import Request
from rillm.sampling import SamplingParams

VOCABULARY = 151552
FULL = SamplingParams(
    temperature=0.8, top_k=0, top_p=0.95, min_p=0.01, typical_p=0.97, top_n_sigma=4.0,
    xtc_probability=0.5, xtc_threshold=0.1, repeat_penalty=1.1, presence_penalty=0.1,
    frequency_penalty=0.1, dry_multiplier=0.8, dynatemp_range=0.2,
)  # fmt: skip


def line(name: str, seconds: Sequence[float]) -> str:
    """One row of the report."""
    return (
        f"{name:32} {1e3 * statistics.median(seconds):8.3f} ms (fastest {1e3 * min(seconds):.3f})"
    )


def measure_sampler(draws: int) -> None:
    """Draws from random logits."""
    core = load_core()
    source = random.Random(0)
    history = array("i", (source.randrange(VOCABULARY) for _ in range(1000)))
    with core.team(1) as team:
        for shape, spread in (("peaked", 4.0), ("flat", 0.01)):
            logits = array("f", (source.gauss(0.0, spread) for _ in range(VOCABULARY)))
            for name, params in (("default", SamplingParams()), ("every sampler", FULL)):
                request = SamplingRequest(params, VOCABULARY, seed=1)
                times = []
                for counter in range(draws):
                    request.prepare(logits.buffer_info()[0], history, counter)
                    start = time.perf_counter()
                    core.sample(team, [request])
                    times.append(time.perf_counter() - start)
                print(line(f"draw: {name}, {shape} logits", times), flush=True)


def measure_engine(path: Path, steps: int) -> None:
    """Steps of one and of eight sequences: all of the step but the model's run."""
    for num_seqs in (1, 8):
        config = EngineConfig(num_threads=1, context_length=2048, max_num_seqs=num_seqs)
        with load_engine(path, config) as loaded:
            inside = 0.0
            run = loaded.model.run

            def timed(batch: Batch) -> None:
                nonlocal inside
                start = time.perf_counter()
                run(batch)  # noqa: B023
                inside += time.perf_counter() - start

            loaded.model.run = timed  # type: ignore[method-assign]
            for seed in range(num_seqs):
                params = SamplingParams(ignore_eos=True, seed=seed)
                prompt = loaded.tokenizer.encode("Once upon a time")
                loaded.engine.add_request(
                    Request(prompt_ids=array("i", prompt), sampling=params, n_predict=steps)
                )
            loaded.engine.step()
            times = []
            while loaded.engine.has_work:
                inside = 0.0
                start = time.perf_counter()
                loaded.engine.step()
                times.append(time.perf_counter() - start - inside)
            print(line(f"step outside the model, {num_seqs} seqs", times), flush=True)


def measure_prefix(path: Path, length: int, threads: int | None, rounds: int = 5) -> None:
    """Prompts that share their first `length` tokens, which only the first one evaluates."""
    config = EngineConfig(num_threads=threads, context_length=length + 64, max_num_seqs=1)
    with load_engine(path, config) as loaded:
        source = random.Random(0)
        prefix = [source.randrange(256) for _ in range(length)]
        first: list[float] = []
        steps: list[float] = []
        for _ in range(rounds + 1):
            prompt = array("i", [*prefix, source.randrange(256)])
            params = SamplingParams(ignore_eos=True, temperature=0.0)
            start = time.perf_counter()
            loaded.engine.add_request(Request(prompt_ids=prompt, sampling=params, n_predict=8))
            times = []
            while loaded.engine.has_work:
                outputs = loaded.engine.step()
                if outputs:
                    times.append(time.perf_counter() - start)
                    start = time.perf_counter()
            first.append(times[0])
            steps += times[1:]
        print(line(f"first token, {length} not cached", first[:1]))
        print(line(f"first token, {length} cached", first[1:]))
        print(line(f"decode step after {length}", steps))


def main() -> None:
    """Measures what the arguments ask for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", type=Path)
    parser.add_argument("--draws", type=int, default=50)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--prefix", type=int, help="measure this alone: tokens already cached")
    parser.add_argument("-t", "--threads", type=int, help="of --prefix")
    arguments = parser.parse_args()
    print(f"{cpu_name()}, {load_core().variant}, vocabulary {VOCABULARY}")
    if arguments.prefix is not None:
        measure_prefix(arguments.model, arguments.prefix, arguments.threads)
        return
    measure_sampler(arguments.draws)
    if arguments.model is not None:
        measure_engine(arguments.model, arguments.steps)


if __name__ == "__main__":
    main()
