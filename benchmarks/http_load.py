"""Chats over HTTP as users have them: streamed, many at once, each token timed as it arrives.

Plain sockets and no JSON: the client shares two cores with the server that it measures.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from dataclasses import dataclass, field

# Common words, so that a word is about a token in any vocabulary.
_TEXT = """
the time of day in which people work and live is long so that they can see how water and light
make food for all who come here to read write learn build and help each other while music sound
stone river tree house road city paper glass metal wind rain snow sun moon star
"""
_WORDS = _TEXT.split()
# Merged into every request. Random weights mostly draw tokens without text: `letters()` for them.
EXTRA: dict[str, object] = {}


def letters() -> dict[str, object]:
    """A request's fields that make every token a letter."""
    return {"logit_bias": [[letter, 100] for letter in "abcdefghijklmnopqrstuvwxyz"]}


@dataclass
class Chat:
    """What one client saw. Times are seconds."""

    sent: float = 0.0
    arrivals: list[float] = field(default_factory=list)  # one entry a token that has text
    num_tokens: int = 0  # by the server's own count

    @property
    def first(self) -> float:
        """Time to the first token."""
        return self.arrivals[0] - self.sent

    @property
    def gaps(self) -> list[float]:
        """Times between tokens."""
        return [b - a for a, b in zip(self.arrivals, self.arrivals[1:], strict=False)]


def prompt_of(num_words: int, seed: int) -> str:
    """A text that no other seed's shares a beginning with."""
    source = random.Random(seed)
    return f"{seed}: " + " ".join(source.choice(_WORDS) for _ in range(num_words))


async def chat(port: int, prompt: str, num_tokens: int, seen: Chat) -> Chat:
    """One streamed chat of exactly num_tokens; `seen` is filled while it runs."""
    body = json.dumps(
        {
            "messages": [{"role": "user", "content": prompt}],
            "max_tokens": num_tokens,
            "ignore_eos": True,
            "seed": 1,
            "stream": True,
            "stream_options": {"include_usage": True},
            **EXTRA,
        }
    ).encode()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        "Connection: close\r\n\r\n"
    )
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    status, usage, rest = b"", b"", b""
    try:
        writer.write(head.encode() + body)
        seen.sent = time.perf_counter()
        while data := await reader.read(65536):
            now = time.perf_counter()
            *events, rest = (rest + data).split(b"\n\n")
            status = status or data[: data.find(b"\r\n")]
            for event in events:
                # Tokens that came in one piece arrived together: their gaps are 0.
                if b'"content":"' in event and b'"content":""' not in event:
                    seen.arrivals.append(now)
                elif b'"completion_tokens":' in event:
                    usage = event
    finally:
        writer.close()
    if b" 200 " not in status or not seen.arrivals or not usage:
        raise RuntimeError(f"{status.decode()}: {rest[-300:]!r}")
    _, _, count = usage.partition(b'"completion_tokens":')
    seen.num_tokens = int(count[:10].split(b",")[0].split(b"}")[0])
    return seen


async def crowd(port: int, num_clients: int, num_words: int, num_tokens: int) -> list[Chat]:
    """num_clients chats that begin at once."""
    chats = [
        chat(port, prompt_of(num_words, 1000 * num_clients + i), num_tokens, Chat())
        for i in range(num_clients)
    ]
    return await asyncio.gather(*chats)


async def interrupted(
    port: int, num_clients: int, num_words: int, num_tokens: int
) -> tuple[list[float], list[float], float]:
    """The gaps that running chats see before and while a prompt of num_words is evaluated, and how
    long that takes. num_tokens: of each running chat, enough to outlast the prompt."""
    running = [Chat() for _ in range(num_clients)]
    tasks = [
        asyncio.ensure_future(chat(port, prompt_of(30, 77 + i), num_tokens, seen))
        for i, seen in enumerate(running)
    ]
    while any(len(seen.arrivals) < 32 for seen in running):
        await asyncio.sleep(0.01)
    before = [gap for seen in running for gap in seen.gaps[-16:]]
    # Two tokens: the first of GLM is a line feed that is not shown.
    long = await chat(port, prompt_of(num_words, 5), 2, Chat())
    begin, end = long.sent, long.arrivals[0]
    is_over = [task.done() for task in tasks]
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    if any(is_over):
        raise RuntimeError("a chat ended before the long prompt was evaluated: raise --long-tokens")
    # A gap counts where it touches the time of the long prompt, the last one up to its end.
    gaps = [
        min(b, end) - a
        for seen in running
        for a, b in zip(seen.arrivals, [*seen.arrivals[1:], end], strict=True)
        if b > begin and a < end
    ]
    return before, gaps, end - begin
