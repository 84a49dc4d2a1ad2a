"""POST /v1/chat/completions, /v1/chat/completions/input_tokens and /apply-template."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from rillm.engine.outputs import TokenProbs
from rillm.server.chat_task import (
    AnswerReader,
    ChatTask,
    Piece,
    Thought,
    chat_ids,
    chat_task,
    rendered_text,
)
from rillm.server.completion import close_all, progress_object
from rillm.server.jobs import Job, Part, finish_all, merged, start
from rillm.server.json_io import JSONReply, read_object
from rillm.server.openai import envelope, finish_reason, logprobs, new_id, usage
from rillm.server.service import Service
from rillm.server.sse import DONE, EventStream, event, text_events, until_disconnect
from rillm.server.state import service_for
from rillm.server.tool_calls import ToolCall


async def chat_completions(request: Request) -> Response:
    """Answers a conversation."""
    body = await read_object(request)
    service = await service_for(request, body)
    task = await chat_task(service, body)
    jobs = start(service, task.plan, [task.prompt])
    if task.plan.controls.stream:
        return EventStream(
            _events(service, task, jobs),
            close=lambda: close_all(jobs),
            ping_seconds=service.config.ping_seconds,
        )
    await until_disconnect(request, finish_all(jobs))
    reply: dict[str, Any] = {
        "choices": [_choice(service, task, job) for job in jobs],
        **envelope(service, "chat.completion", new_id("chatcmpl-")),
        "usage": usage(jobs),
        "timings": jobs[0].timings.to_dict(),
    }
    return JSONReply(reply)


async def input_tokens(request: Request) -> Response:
    """How many tokens a conversation has."""
    body = await read_object(request)
    service = await service_for(request, body)
    ids = await asyncio.to_thread(chat_ids, service, body)
    return JSONReply({"input_tokens": len(ids), "object": "response.input_tokens"})


async def apply_template(request: Request) -> Response:
    """A conversation as the text that the model is given."""
    body = await read_object(request)
    service = await service_for(request, body)
    text = await asyncio.to_thread(rendered_text, service, body)
    return JSONReply({"prompt": text})


def read_answer(task: ChatTask, job: Job) -> AnswerReader:
    """A finished answer in its parts."""
    reader = task.reader()
    for part in job.history:
        for _ in reader.push(part):
            pass
    for _ in reader.finish():
        pass
    return reader


def _choice(service: Service, task: ChatTask, job: Job) -> dict[str, Any]:
    reader = read_answer(task, job)
    message: dict[str, Any] = {"role": "assistant", "content": reader.content}
    if reader.thoughts:
        message["reasoning_content"] = reader.thoughts
    if reader.calls:
        message["content"] = reader.content or None
        message["tool_calls"] = [_call_object(call) for call in reader.calls]
    choice: dict[str, Any] = {
        "finish_reason": "tool_calls" if reader.calls else finish_reason(job),
        "index": job.index,
        "message": message,
    }
    if task.body.logprobs:
        choice["logprobs"] = _logprobs(service, task, job.probs)
    return choice


def _call_object(call: ToolCall) -> dict[str, Any]:
    return {
        "id": call.call_id,
        "type": "function",
        "function": {"name": call.name, "arguments": call.arguments},
    }


def _logprobs(
    service: Service, task: ChatTask, probs: Sequence[TokenProbs]
) -> dict[str, Any] | None:
    result = logprobs(service, probs)
    if result is not None and task.body.top_logprobs is None:
        for item in result["content"]:
            item["top_logprobs"] = []
    return result


async def _events(service: Service, task: ChatTask, jobs: Sequence[Job]) -> AsyncIterator[bytes]:
    frame = envelope(service, "chat.completion.chunk", new_id("chatcmpl-"))
    controls = task.plan.controls
    readers = [task.reader() for _ in jobs]
    begun: set[int] = set()
    texts: dict[int, Callable[[str], bytes]] = {}
    is_plain = not (task.body.logprobs or controls.timings_per_token)

    def chunk(job: Job, delta: dict[str, Any], **fields: Any) -> dict[str, Any]:
        choice = {"finish_reason": None, "index": job.index, "delta": delta, **fields}
        return {"choices": [choice], **frame}

    def text_event(job: Job, text: str) -> bytes:
        if job.index not in texts:
            texts[job.index] = text_events(lambda text: chunk(job, {"content": text}))
        return texts[job.index](text)

    async for job, part in merged(jobs):
        if job.index not in begun:
            begun.add(job.index)
            yield event(chunk(job, {"role": "assistant", "content": None}))
        reader = readers[job.index]
        if is_plain and part is not None and part.text:
            text = reader.push_text(part)
            if text is not None:
                yield text_event(job, text)
                continue
        for delta, probs in _deltas(service, task, reader, part):
            data = chunk(job, delta, **probs)
            yield event(_timed(data, part, controls.timings_per_token))
        if part is not None:
            if part.progress is not None:
                progress = progress_object(part.progress)
                yield event({**chunk(job, {}), "prompt_progress": progress})
            continue
        reason = "tool_calls" if reader.calls else finish_reason(job)
        last = chunk(job, {}, finish_reason=reason)
        if not controls.stream_options.include_usage:
            last["timings"] = job.timings.to_dict()
        yield event(last)
    if controls.stream_options.include_usage:
        timings = jobs[0].timings.to_dict()
        yield event({"choices": [], **frame, "usage": usage(jobs), "timings": timings})
    yield DONE


def _timed(chunk: dict[str, Any], part: Part | None, wanted: bool) -> dict[str, Any]:
    if wanted and part is not None and part.timings is not None:
        chunk["timings"] = part.timings.to_dict()
    return chunk


def _deltas(
    service: Service, task: ChatTask, reader: AnswerReader, part: Part | None
) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """The deltas of a part, or of the rest (None), and their other fields: logprobs go with the
    first."""
    num_calls = len(reader.calls)
    pieces: Iterable[Piece] = reader.finish() if part is None else reader.push(part)
    probs: dict[str, Any] = {}
    if task.body.logprobs and part is not None and part.probs:
        found = _logprobs(service, task, part.probs)
        if found is not None:
            probs = {"logprobs": found}
    for piece in pieces:
        if isinstance(piece, ToolCall):
            delta: dict[str, Any] = {"tool_calls": [{"index": num_calls, **_call_object(piece)}]}
            num_calls += 1
        elif isinstance(piece, Thought):
            delta = {"reasoning_content": piece.text}
        else:
            delta = {"content": piece}
        yield delta, probs
        probs = {}
    if probs:  # a token whose text is held back, or has none
        yield {}, probs
