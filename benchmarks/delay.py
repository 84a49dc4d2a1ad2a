"""How long one long prompt keeps the others waiting, in the engine alone.

    python benchmarks/delay.py -t 2 --prompt 7900 SmolLM2-135M.gguf
    python benchmarks/delay.py -t 2 --prompt 16000 --dummy glm-4-9b --layers 4

Some chats run and a prompt comes. Every step with a piece of the prompt takes longer than the steps
around it that have none, by `delay` times what those take: the median of three before it and two
after, as the chats grow and the machine's speed varies. Shown for the whole prompt and for its
eighths, because a token costs more the more there is before it. Every run is appended to
benchmarks/results/delay.jsonl.
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
import time
from bisect import bisect
from pathlib import Path

from record import git_commit, percentile, record

from rillm.bench import cpu_name
from rillm.core import load_core
from rillm.engine import Engine, EngineConfig, Request
from rillm.engine.loading import load_engine
from rillm.prepare.dummy import write_dummy
from rillm.sampling import SamplingParams

WARM_UP = 60  # steps
CHAT = 60  # tokens of a chat's prompt


def delays_of(engine: Engine, prompt: list[int], seconds: float) -> list[float]:
    """Of every step with a piece of the prompt; ends early after so many seconds."""
    places: list[int] = []  # of the steps without, and their times
    usual: list[float] = []
    mixed: list[tuple[int, float]] = []
    place = 0

    def step() -> None:
        nonlocal place
        num_before = engine.stats.prompt_tokens
        start = time.perf_counter()
        engine.step()
        took = time.perf_counter() - start
        place += 1
        if engine.stats.prompt_tokens > num_before:
            mixed.append((place, took))
        else:
            places.append(place)
            usual.append(took)

    for _ in range(WARM_UP):
        step()
    mixed.clear()  # the ends of the chats' own prompts
    end = time.perf_counter() + seconds
    last = engine.stats.prompt_tokens + len(prompt) - 1
    engine.add_request(Request(prompt, SamplingParams(ignore_eos=True), n_predict=0))
    while engine.stats.prompt_tokens < last and time.perf_counter() < end:
        step()
    for _ in range(2):
        step()
    delays = []
    for place, took in mixed:
        after = bisect(places, place)
        delays.append(took / statistics.median(usual[after - 3 : after + 2]) - 1.0)
    return delays


def measure(path: Path, name: str, args: argparse.Namespace) -> None:
    """One model."""
    config = EngineConfig(
        num_threads=args.threads, context_length=args.prompt + 64, max_num_seqs=args.chats + 1
    )
    with load_engine(path, config) as loaded:
        engine = loaded.engine
        source = random.Random(1)
        size = min(loaded.tokenizer.vocab_size, 20_000)
        params = SamplingParams(ignore_eos=True)
        for _ in range(args.chats):
            chat = [source.randrange(size) for _ in range(CHAT)]
            engine.add_request(Request(chat, params))
        while engine.stats.prompt_tokens < args.chats * (CHAT - 1):
            engine.step()
        prompt = [source.randrange(size) for _ in range(args.prompt)]
        start = time.perf_counter()
        num_before = engine.stats.prompt_tokens
        delays = delays_of(engine, prompt, args.seconds)
        seconds = time.perf_counter() - start
        num_tokens = engine.stats.prompt_tokens - num_before
    figures = {
        "delay p50": percentile(delays, 0.5),
        "delay p90": percentile(delays, 0.9),
        "delay p99": percentile(delays, 0.99),
        "delay max": max(delays),
        "seconds": seconds,
    }
    print(f"{name}: {num_tokens} of {args.prompt} tokens in {len(delays)} steps")
    print("  ".join(f"{key} {value:.2f}" for key, value in figures.items()))
    part = max(1, -(-len(delays) // 8))
    eighths = [delays[i : i + part] for i in range(0, len(delays), part)]
    print("p99 of each eighth:", *(f"{percentile(each, 0.99):.2f}" for each in eighths), flush=True)
    record(
        "delay", model=name, threads=args.threads, chats=args.chats, prompt=num_tokens, **figures
    )


def main() -> None:
    """Measures every model named."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", type=Path)
    parser.add_argument("--dummy", help="random weights in this shape, e.g. glm-4-9b")
    parser.add_argument("--layers", type=int, help="of the dummy")
    parser.add_argument("--type", default="Q4_K_M", help="of the dummy")
    parser.add_argument("-t", "--threads", type=int, default=2)
    parser.add_argument("--chats", type=int, default=4, help="that run beside")
    parser.add_argument("--prompt", type=int, default=7900, help="tokens")
    parser.add_argument("--seconds", type=float, default=3600.0, help="the prompt gets at most")
    args = parser.parse_args()
    print(f"{cpu_name()}, {args.threads} threads, commit {git_commit()}")
    for path in args.models:
        measure(path, path.name, args)
    if args.dummy:
        with tempfile.TemporaryDirectory(prefix="rillm-delay-") as folder:
            name = f"{args.dummy}.{args.type}, {args.layers or 'all'} layers"
            path = Path(folder) / "dummy.gguf"
            write_dummy(args.dummy, args.type, path, load_core(), num_layers=args.layers)
            measure(path, name, args)


if __name__ == "__main__":
    main()
