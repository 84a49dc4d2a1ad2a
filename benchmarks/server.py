"""rillm serve and llama-server under the same load, in turn.

    python benchmarks/server.py --llama-server llama-server -t 2 MODEL.gguf ...
    python benchmarks/server.py --clients 1 4 --words 40 --tokens 16 9b.Q4_K_M.gguf   # rillm alone

For every number of clients: tokens/s in total and per user, time to the first token (p50, p99),
time between tokens (p99), peak memory. Then, with 4 chats running, the times between their tokens
before and while one long prompt is evaluated: "delay" is how much longer they wait, in times of
what they waited before (the median). Medians of the rounds; every round is appended to
benchmarks/results/server.jsonl.

Last what serving costs rillm for a step of 16 users, who get a token each:

    model     time inside the model, by the server's own clock
    serving   the rest of the step: drawing, scheduling, text, handing over
    http cpu  processor time of the event loop, which runs beside the model
    client    processor time of this program, which the server cannot help
    bare      the model's time without any server: more than that, and HTTP or the client slow it

HTTP and Python cost at most serving + http cpu.
"""

from __future__ import annotations

import argparse
import asyncio
import shlex
import signal
import socket
import statistics
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from http_load import EXTRA, crowd, interrupted, letters
from record import git_commit, percentile, record

from rillm.bench import BenchTest, cpu_name, run_benchmarks

Figures = dict[str, float]


@dataclass(frozen=True)
class Server:
    """A program under load."""

    name: str
    port: int
    process: subprocess.Popen[bytes]

    @property
    def peak_memory(self) -> float:
        """MiB."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        (line,) = [line for line in status.splitlines() if line.startswith("VmHWM")]
        return int(line.split()[1]) / 1024


def command_of(name: str, llama_server: str, model: Path, threads: int, seqs: int) -> list[str]:
    """The same work for both: llama-server divides -c by the sequences, rillm does not."""
    common = ["-m", str(model), "-t", str(threads), "-np", str(seqs), "--host", "127.0.0.1"]
    if name == "rillm":
        return [sys.executable, "-m", "rillm", "serve", *common, "-c", "8192", "--metrics"]
    return [*shlex.split(llama_server), *common, "-c", "32768"]


@contextmanager
def running(name: str, command: list[str]) -> Iterator[Server]:
    """The server, ready to answer."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    process = subprocess.Popen(
        [*command, "--port", str(port)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        for _ in range(1200):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
                break
            except (urllib.error.URLError, OSError):
                if process.poll() is not None:
                    raise SystemExit(f"{shlex.join(command)}: exit {process.poll()}") from None
                time.sleep(0.25)
        yield Server(name, port, process)
    finally:
        process.terminate()
        process.wait()


def measure(server: Server, clients: int, words: int, tokens: int) -> Figures:
    """One crowd of clients."""
    start = time.perf_counter()
    chats = asyncio.run(crowd(server.port, clients, words, tokens))
    seconds = time.perf_counter() - start
    gaps = [gap for chat in chats for gap in chat.gaps]
    return {
        "tokens/s": sum(chat.num_tokens for chat in chats) / seconds,
        "per user": statistics.median(
            (chat.num_tokens - 1) / max(chat.arrivals[-1] - chat.arrivals[0], 1e-6)
            for chat in chats
        ),
        "first p50 ms": 1e3 * percentile([chat.first for chat in chats], 0.5),
        "first p99 ms": 1e3 * percentile([chat.first for chat in chats], 0.99),
        "gap p50 ms": 1e3 * percentile(gaps, 0.5),
        "gap p99 ms": 1e3 * percentile(gaps, 0.99),
        "peak MiB": server.peak_memory,
    }


def measure_long(server: Server, words: int, tokens: int) -> Figures:
    """Four chats while a long prompt comes in."""
    before, gaps, seconds = asyncio.run(interrupted(server.port, 4, words, tokens))
    usual = statistics.median(before)
    return {
        "before ms": 1e3 * usual,
        "delay p50": percentile(gaps, 0.5) / usual - 1,
        "delay p99": percentile(gaps, 0.99) / usual - 1,
        "gap p50 ms": 1e3 * percentile(gaps, 0.5),
        "gap p99 ms": 1e3 * percentile(gaps, 0.99),
        "gap max ms": 1e3 * max(gaps),
        "long prompt s": seconds,
    }


@dataclass(frozen=True)
class Clocks:
    """What has passed since the start, in seconds."""

    wall: float
    steps: float
    model: float
    loop: float  # processor time of the server's main thread
    client: float

    @classmethod
    def read(cls, server: Server) -> Clocks:
        with urllib.request.urlopen(f"http://127.0.0.1:{server.port}/metrics") as reply:
            lines = [line.split() for line in reply.read().decode().splitlines()]
        values = {name: value for name, value, *_ in lines if name != "#"}
        pid = server.process.pid
        loop = int(Path(f"/proc/{pid}/task/{pid}/schedstat").read_text().split()[0]) / 1e9
        return cls(
            time.perf_counter(),
            float(values["llamacpp:n_decode_total"]),
            float(values["llamacpp:model_seconds_total"]),
            loop,
            time.process_time(),
        )


def measure_cost(server: Server, words: int, tokens: int) -> Figures:
    """Of 16 users whose prompts are in the cache, so that nearly every step is one token of each"""
    asyncio.run(crowd(server.port, 16, words, 2))
    a = Clocks.read(server)
    chats = asyncio.run(crowd(server.port, 16, words, tokens))
    b = Clocks.read(server)
    steps = b.steps - a.steps
    model = 1e3 * (b.model - a.model) / steps
    # From the first token to the last: what comes before is not a step.
    seconds = max(chat.arrivals[-1] for chat in chats) - min(chat.arrivals[0] for chat in chats)
    step = 1e3 * seconds / (steps - 1)
    return {
        "step ms": step,
        "model ms": model,
        "serving ms": step - model,
        "http cpu ms": 1e3 * (b.loop - a.loop) / steps,
        "client cpu ms": 1e3 * (b.client - a.client) / steps,
    }


def show(title: str, rows: dict[str, list[Figures]]) -> None:
    """One line an engine: the medians of the rounds."""
    for engine, rounds in rows.items():
        figures = {key: statistics.median(each[key] for each in rounds) for key in rounds[0]}
        values = "  ".join(f"{key} {value:.4g}" for key, value in figures.items())
        print(f"{title:<28} {engine:<10} {values}", flush=True)


def show_rounds(model: Path, rows: Mapping[str, dict[str, list[Figures]]]) -> None:
    """All tests of a model."""
    for test, engines in rows.items():
        show(f"{model.name} {test}", engines)


def main() -> None:
    """Runs the rounds."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that no server is left behind
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--llama-server", help="command that runs llama-server")
    parser.add_argument("--only", choices=("rillm", "llama.cpp"), help="one of the two")
    parser.add_argument("--letters", action="store_true", help="for random weights")
    parser.add_argument("-t", "--threads", type=int, default=2)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 4, 16, 64])
    parser.add_argument("--words", type=int, default=80, help="of a prompt")
    parser.add_argument("--tokens", type=int, default=64, help="of an answer")
    parser.add_argument("--long-words", type=int, default=3000, help="0: no long prompt")
    parser.add_argument("--long-tokens", type=int, default=4000)
    parser.add_argument("-r", "--rounds", type=int, default=3)
    args = parser.parse_args()
    if args.letters:
        EXTRA.update(letters())
    engines = ["rillm", *(["llama.cpp"] if args.llama_server else [])]
    engines = [engine for engine in engines if args.only in (None, engine)]
    print(f"{cpu_name()}, {args.threads} threads, commit {git_commit()}")
    for model in args.models:
        rows: dict[str, dict[str, list[Figures]]] = defaultdict(lambda: defaultdict(list))

        def note(
            test: str,
            engine: str,
            figures: Figures,
            rows: dict[str, dict[str, list[Figures]]] = rows,
            model: Path = model,
        ) -> None:
            rows[test][engine].append(figures)
            record(
                "server", model=model.name, threads=args.threads, engine=engine, test=test,
                words=args.words, tokens=args.tokens, **figures,
            )  # fmt: skip

        for _ in range(args.rounds):
            for engine in engines:
                most = max(args.clients)
                command = command_of(engine, args.llama_server, model, args.threads, most)
                with running(engine, command) as server:
                    measure(server, 1, args.words, 8)  # warm-up
                    for clients in args.clients:
                        figures = measure(server, clients, args.words, args.tokens)
                        note(f"{clients} clients", engine, figures)
                if args.long_words:
                    command = command_of(engine, args.llama_server, model, args.threads, 8)
                    with running(engine, command) as server:
                        measure(server, 1, args.words, 8)
                        figures = measure_long(server, args.long_words, args.long_tokens)
                        note(f"{args.long_words}-word prompt", engine, figures)
        show_rounds(model, rows)
        if 16 in args.clients and "rillm" in engines:
            command = command_of("rillm", "", model, args.threads, 16)
            with running("rillm", command) as server:
                for _ in range(args.rounds):
                    note("cost", "rillm", measure_cost(server, args.words, args.tokens))
            step = BenchTest(num_steps=args.tokens, num_seqs=16, depth=args.words)
            (bare,) = run_benchmarks(model, [step], num_threads=args.threads)
            note("cost, bare", "rillm", {"step ms": 1e3 * 16 / bare.tokens_per_second})
            show_rounds(model, {test: rows[test] for test in ("cost", "cost, bare")})


if __name__ == "__main__":
    main()
