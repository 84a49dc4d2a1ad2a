"""POST /v1/messages and /v1/messages/count_tokens: Anthropic's interface."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterable, Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from rillm.server.chat import read_answer
from rillm.server.chat_task import (
    ChatTask,
    Piece,
    Thought,
    chat_ids,
    chat_task,
    without_thinking,
)
from rillm.server.errors import FieldError
from rillm.server.jobs import Job, finish_all, start
from rillm.server.json_io import JSONReply, read_object
from rillm.server.openai import new_id
from rillm.server.schema import AnthropicBody
from rillm.server.service import Service
from rillm.server.sse import EventStream, event, until_disconnect
from rillm.server.state import service_for
from rillm.server.tool_calls import ToolCall

# Sampling fields with the same name and meaning here as there.
_TAKEN_OVER = ("temperature", "top_p", "top_k", "stream", "seed", "min_p", "chat_template_kwargs")


async def messages(request: Request) -> Response:
    """Answers a conversation."""
    body = await read_object(request)
    service = await service_for(request, body)
    task = await chat_task(service, to_chat(body))
    (job,) = start(service, task.plan, [task.prompt])
    if task.plan.controls.stream:
        return EventStream(
            _events(service, task, job),
            close=job.close,
            ping_seconds=service.config.ping_seconds,
            error_name="error",
        )
    await until_disconnect(request, finish_all([job]))
    reader = read_answer(task, job)
    content: list[dict[str, Any]] = []
    if reader.thoughts:
        content.append({"type": "thinking", "thinking": reader.thoughts, "signature": ""})
    if reader.content or not reader.calls:
        content.append({"type": "text", "text": reader.content})
    content += [_tool_use(call, _parsed(call)) for call in reader.calls]
    return JSONReply(
        {
            **_message(service, new_id("msg_")),
            "content": content,
            **_stop(job, bool(reader.calls)),
            "usage": _usage(job),
        }
    )


async def count_tokens(request: Request) -> Response:
    """How many tokens a conversation has."""
    body = await read_object(request)
    service = await service_for(request, body)
    ids = await asyncio.to_thread(chat_ids, service, to_chat(body))
    return JSONReply({"input_tokens": len(ids)})


# ---- the request -------------------------------------------------------------------------


def to_chat(body: Mapping[str, Any]) -> dict[str, Any]:
    """The body as one for /v1/chat/completions."""
    fields = AnthropicBody.parse(body)
    chat: dict[str, Any] = {name: body[name] for name in _TAKEN_OVER if name in body}
    turns: list[dict[str, Any]] = []
    if system := _text(fields.system, "system"):
        turns.append({"role": "system", "content": system})
    for message in fields.messages:
        turns += _turns(message)
    chat["messages"] = turns
    if fields.max_tokens is not None:
        chat["max_tokens"] = fields.max_tokens
    if fields.stop_sequences:
        chat["stop"] = fields.stop_sequences
    output_format = fields.output_config.get("format") or fields.output_format
    if output_format is not None:
        chat["response_format"] = _response_format(output_format)
    if fields.thinking.get("type") == "disabled":
        chat["chat_template_kwargs"] = without_thinking(body)
    chat["tools"] = [
        {
            "type": "function",
            "function": {
                "name": tool.get("name"),
                "description": tool.get("description", ""),
                "parameters": tool.get("input_schema", {}),
            },
        }
        for tool in fields.tools
    ]
    chat["tool_choice"] = _tool_choice(fields.tool_choice)
    chat["parallel_tool_calls"] = not fields.tool_choice.get("disable_parallel_tool_use", True)
    return chat


def _response_format(asked: object) -> dict[str, Any]:
    if not isinstance(asked, dict) or asked.get("type") != "json_schema":
        raise FieldError("output_config.format", "must be of type json_schema")
    return {"type": "json_schema", "json_schema": {"schema": asked.get("schema")}}


def _tool_choice(choice: Mapping[str, Any]) -> str | dict[str, Any]:
    kind = choice.get("type", "auto")
    if kind == "tool":
        return {"type": "function", "function": {"name": choice.get("name")}}
    known = {"auto": "auto", "any": "required", "none": "none"}
    if kind not in known:
        raise FieldError("tool_choice", f"type {kind!r:.40} is not known")
    return known[kind]


def _turns(message: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One message as OpenAI's: tool results become messages of their own."""
    role, content = message.get("role"), message.get("content")
    if isinstance(content, str) or content is None:
        return [{"role": role, "content": content or ""}]
    turns: list[dict[str, Any]] = []
    texts: list[str] = []
    calls: list[dict[str, Any]] = []
    for block in _blocks(content, "messages"):
        kind = block.get("type")
        if kind == "text":
            texts.append(_text([block], "messages"))
        elif kind == "tool_use":
            arguments = json.dumps(block.get("input", {}), ensure_ascii=False)
            function = {"name": block.get("name"), "arguments": arguments}
            calls.append({"id": block.get("id"), "type": "function", "function": function})
        elif kind == "tool_result":
            result = _text(block.get("content", ""), "messages")
            call_id = block.get("tool_use_id")
            turns.append({"role": "tool", "tool_call_id": call_id, "content": result})
        elif kind not in ("thinking", "redacted_thinking"):
            raise FieldError("messages", f"content of type {kind!r:.40} cannot be read")
    if texts or calls or not turns:
        turn: dict[str, Any] = {"role": role, "content": "".join(texts)}
        if calls:
            turn["tool_calls"] = calls
        turns.append(turn)
    return turns


def _blocks(content: Any, field: str) -> list[Mapping[str, Any]]:
    if not isinstance(content, list) or not all(isinstance(item, Mapping) for item in content):
        raise FieldError(field, "content must be a string or a list of blocks")
    return content


def _text(content: Any, field: str) -> str:
    """The text of a string or of text blocks."""
    if isinstance(content, str):
        return content
    parts = [block.get("text") for block in _blocks(content, field)]
    if not all(isinstance(part, str) for part in parts):
        raise FieldError(field, "a text block needs a text")
    return "".join(str(part) for part in parts)


# ---- the reply ---------------------------------------------------------------------------


def _message(service: Service, message_id: str) -> dict[str, Any]:
    return {
        "id": message_id,
        "type": "message",
        "role": "assistant",
        "content": [],
        "model": service.name,
        "stop_reason": None,
        "stop_sequence": None,
    }


def _usage(job: Job) -> dict[str, int]:
    cached = job.timings.cache_n
    return {
        "cache_read_input_tokens": cached,
        "input_tokens": len(job.prompt.ids) - cached,
        "output_tokens": len(job.token_ids),
    }


def _stop(job: Job, has_calls: bool) -> dict[str, Any]:
    reasons = {"limit": "max_tokens", "word": "stop_sequence"}
    reason = "tool_use" if has_calls else reasons.get(job.finish.reason, "end_turn")
    return {"stop_reason": reason, "stop_sequence": job.finish.stopping_word or None}


def _tool_use(call: ToolCall, arguments: dict[str, Any]) -> dict[str, Any]:
    call_id = call.call_id.replace("call_", "toolu_", 1)
    return {"type": "tool_use", "id": call_id, "name": call.name, "input": arguments}


def _parsed(call: ToolCall) -> dict[str, Any]:
    arguments: dict[str, Any] = json.loads(call.arguments)
    return arguments


class _Blocks:
    """The content blocks of a stream: at most one is open."""

    def __init__(self) -> None:
        self._index = -1
        self._kind = ""

    def add(self, piece: Piece) -> Iterable[bytes]:
        """The events of a piece."""
        if isinstance(piece, ToolCall):
            yield from self._open("tool_use", _tool_use(piece, {}), always=True)
            yield self._delta({"type": "input_json_delta", "partial_json": piece.arguments})
        elif isinstance(piece, Thought):
            yield from self._open("thinking", {"type": "thinking", "thinking": "", "signature": ""})
            yield self._delta({"type": "thinking_delta", "thinking": piece.text})
        else:
            yield from self._open("text", {"type": "text", "text": ""})
            yield self._delta({"type": "text_delta", "text": piece})

    def close(self) -> Iterable[bytes]:
        """Ends the open block."""
        if self._kind:
            self._kind = ""
            yield _named({"type": "content_block_stop", "index": self._index})

    def _open(self, kind: str, block: dict[str, Any], always: bool = False) -> Iterable[bytes]:
        if kind == self._kind and not always:
            return
        yield from self.close()
        self._kind = kind
        self._index += 1
        yield _named({"type": "content_block_start", "index": self._index, "content_block": block})

    def _delta(self, delta: dict[str, Any]) -> bytes:
        return _named({"type": "content_block_delta", "index": self._index, "delta": delta})


def _named(value: dict[str, Any]) -> bytes:
    return event(value, str(value["type"]))


async def _events(service: Service, task: ChatTask, job: Job) -> AsyncIterator[bytes]:
    reader, blocks = task.reader(), _Blocks()
    has_begun = False
    async for part in job.parts():
        if not has_begun:
            has_begun = True
            yield _named(_start(service, job))
        for piece in reader.push(part):
            for chunk in blocks.add(piece):
                yield chunk
    if not has_begun:
        yield _named(_start(service, job))
    for piece in reader.finish():
        for chunk in blocks.add(piece):
            yield chunk
    for chunk in blocks.close():
        yield chunk
    delta = _stop(job, bool(reader.calls))
    yield _named({"type": "message_delta", "delta": delta, "usage": _usage(job)})
    yield _named({"type": "message_stop"})


def _start(service: Service, job: Job) -> dict[str, Any]:
    usage = {**_usage(job), "output_tokens": 0}
    message = {**_message(service, new_id("msg_")), "usage": usage}
    return {"type": "message_start", "message": message}
