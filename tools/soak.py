"""A server under random requests for a while, and whether anything is left of them afterwards.

    python tools/soak.py [--seconds 120] [--clients 24] [--seed 0]

The bundled model is served by a process of its own, with few cache blocks, so that sequences are
put off and computed again. Clients ask all kinds of things, wrong ones too; many leave before the
answer is complete, in the prompt or in the middle, or send half a request. One request is asked
again and again and must always give the same text. At the end nothing may run or wait, every cache
block must be free, no file descriptor may be left, and memory must not have grown.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import contextlib
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx

import rillm
from rillm.prepare.convert import convert
from rillm.prepare.quantize import quantize

_CHECKPOINT = Path(rillm.__file__).parent / "data" / "glm-tiny"
_PROBE = {"prompt": "[gMASK]<sop><|user|>\nhello<|assistant|>", "n_predict": 24, "seed": 7}
_MAX_GROWTH = 48  # MiB of memory after the first quarter: allocators keep some of what they had
_SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
_TOOL = {"type": "function", "function": {"name": "look", "parameters": _SCHEMA}}


class Soak:
    """The clients, and what they saw."""

    def __init__(self, url: str, seed: int) -> None:
        self.url = url
        self.counts: collections.Counter[str] = collections.Counter()
        self.problems: list[str] = []
        self._random = random.Random(seed)
        self._probe: str | None = None

    def _request(self) -> tuple[str, dict[str, Any]]:
        source = self._random
        words = " ".join(source.choice(("tree", "river", "light", "work", "你好"))
                         for _ in range(source.choice((1, 5, 40, 300))))  # fmt: skip
        options: dict[str, Any] = {
            "n_predict": source.choice((0, 1, 8, 40, 250)),
            "temperature": source.choice((0, 0.8, 2)),
            "stream": source.random() < 0.5,
            "cache_prompt": source.random() < 0.8,
            "ignore_eos": source.random() < 0.5,
        }
        turns = [{"role": "user", "content": words}]
        kinds: list[tuple[str, dict[str, Any]]] = [
            ("/completion", {"prompt": words, **options}),
            ("/completion", {"prompt": words, **options, "n": 3, "n_probs": 3}),
            ("/completion", {"prompt": [words, "other"], **options, "stop": ["e", "work"]}),
            ("/completion", {"prompt": words, "json_schema": _SCHEMA, "n_predict": 40}),
            ("/completion", {"prompt": words, "mirostat": 2, "dry_multiplier": 1, "n_predict": 9}),
            ("/v1/completions", {"prompt": words[:200], "echo": True, "logprobs": 2, **options}),
            ("/v1/chat/completions", {"messages": turns, **options, "logprobs": True}),
            ("/v1/chat/completions", {"messages": turns, "tools": [_TOOL], "max_tokens": 60,
                                      "tool_choice": "required", "stream": options["stream"]}),
            ("/v1/messages", {"messages": turns, "max_tokens": 20, "stream": options["stream"]}),
            ("/v1/responses", {"input": words, "max_output_tokens": 20}),
            ("/v1/embeddings", {"input": [words, "b"]}),
            ("/tokenize", {"content": words}),
            ("/completion", {"prompt": words, "grammar": "root ::= ("}),
            ("/completion", {"prompt": "a" * 40000}),
            ("/v1/chat/completions", {"messages": "no"}),
        ]  # fmt: skip
        return source.choice(kinds)

    async def client(self, until: float) -> None:
        """One client after another, until the time is over."""
        async with httpx.AsyncClient(base_url=self.url, timeout=120) as http:
            while time.monotonic() < until:
                path, body = self._request()
                patience = self._random.choice((0.02, 0.1, 0.5, 60, 60, 60))
                if self._random.random() < 0.05:
                    await self._half_a_request()
                elif self._random.random() < 0.1:
                    await self._probe_with(http)
                else:
                    await self._ask(http, path, body, patience)

    async def probe(self) -> None:
        """The request whose answer never changes."""
        async with httpx.AsyncClient(base_url=self.url, timeout=120) as http:
            await self._probe_with(http)

    async def _probe_with(self, http: httpx.AsyncClient) -> None:
        reply = await http.post("/completion", json=_PROBE)
        text = reply.json().get("content", reply.text)
        if self._probe is None:
            self._probe = text
        elif text != self._probe:
            self.problems.append(f"another answer to the same request: {text!r}")
        self.counts["probes"] += 1

    async def _ask(
        self, http: httpx.AsyncClient, path: str, body: dict[str, Any], patience: float
    ) -> None:
        try:
            async with asyncio.timeout(patience):
                async with http.stream("POST", path, json=body) as reply:
                    async for _ in reply.aiter_raw():
                        pass
        except TimeoutError:
            self.counts["left early"] += 1
            return
        except httpx.HTTPError as error:
            self.problems.append(f"{path}: {error!r}")
            return
        self.counts[str(reply.status_code)] += 1
        if reply.status_code >= 500:
            self.problems.append(f"{path}: {reply.status_code}")

    async def _half_a_request(self) -> None:
        host, port = self.url.removeprefix("http://").split(":")
        _, writer = await asyncio.open_connection(host, int(port))
        writer.write(b'POST /completion HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\n\r\n{"pro')
        await asyncio.sleep(0.05)
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
        self.counts["half requests"] += 1


def state_of(process: subprocess.Popen[bytes], url: str) -> dict[str, float]:
    """What the server holds, once nothing runs any more."""
    for _ in range(100):
        lines = [line.split() for line in httpx.get(url + "/metrics").text.splitlines()]
        values = {name: float(value) for name, value, *_ in lines if name != "#"}
        if not values["llamacpp:requests_processing"] + values["llamacpp:requests_deferred"]:
            break
        time.sleep(0.1)
    status = Path(f"/proc/{process.pid}/status").read_text()
    (memory,) = [line.split()[1] for line in status.splitlines() if line.startswith("VmRSS")]
    return {
        "running": values["llamacpp:requests_processing"],
        "waiting": values["llamacpp:requests_deferred"],
        "blocks": values["llamacpp:kv_cache_usage_ratio"],
        "put off": values["llamacpp:n_preemptions_total"],
        "tokens": values["llamacpp:tokens_predicted_total"],
        "descriptors": len(list(Path(f"/proc/{process.pid}/fd").iterdir())),
        "MiB": int(memory) / 1024,
    }


async def crowd(soak: Soak, clients: int, seconds: float) -> None:
    """All clients at once."""
    until = time.monotonic() + seconds
    await asyncio.gather(*(soak.client(until) for _ in range(clients)))


@contextlib.contextmanager
def serving(model: Path) -> Any:
    """The server's process and address."""
    command = [
        sys.executable, "-m", "rillm", "serve", "-m", model, "--port", "0", "-np", "8", "-c",
        "600", "--cache-memory", "2M", "--metrics", "--embeddings", "--pooling", "mean",
        "--no-access-log", "--chat-template", "glm-4-9b-chat", "--max-predict", "256",
    ]  # fmt: skip
    process = subprocess.Popen(command, stderr=subprocess.PIPE)
    assert process.stderr is not None
    try:
        for line in process.stderr:
            print(line.decode().rstrip(), flush=True)
            if b"ready on " in line:
                break
        else:
            raise SystemExit(f"the server ended with {process.wait()}")
        yield process, line.split()[-1].decode()
    finally:
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(60)
        process.kill()


def main() -> None:
    """Runs it; exit status 1 if anything is wrong."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--clients", type=int, default=24)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        convert(_CHECKPOINT, folder / "f16.gguf", out_type="f16")
        quantize(folder / "f16.gguf", folder / "glm-tiny.gguf", "Q8_0")
        with serving(folder / "glm-tiny.gguf") as (process, url):
            soak = Soak(url, args.seed)
            asyncio.run(soak.probe())
            # What the first requests load stays: libraries, compiled grammars, caches.
            asyncio.run(crowd(soak, args.clients, args.seconds / 4))
            before = state_of(process, url)
            asyncio.run(crowd(soak, args.clients, args.seconds * 3 / 4))
            asyncio.run(soak.probe())
            after = state_of(process, url)
            started = time.monotonic()
            process.send_signal(signal.SIGTERM)
            status = process.wait(60)
            soak.counts["seconds to end"] = round(time.monotonic() - started)
    print(dict(soak.counts))
    print("before", before)
    print("after ", after)
    problems = soak.problems
    problems += [
        f"{name}: {after[name]}" for name in ("running", "waiting", "blocks") if after[name]
    ]
    if after["descriptors"] > before["descriptors"]:
        problems.append("file descriptors are left")
    if after["MiB"] > before["MiB"] + _MAX_GROWTH:
        problems.append("memory has grown")
    if after["put off"] == 0:
        problems.append("no sequence was ever put off: the cache is too large for this test")
    if status != 0:
        problems.append(f"exit status {status}")
    for problem in problems[:20]:
        print("WRONG:", problem)
    raise SystemExit(1 if problems else 0)


if __name__ == "__main__":
    main()
