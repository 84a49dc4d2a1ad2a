"""POST /v1/responses: OpenAI's newer interface. Nothing is stored: each request has it all."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from rillm.server.chat import read_answer
from rillm.server.chat_task import ChatTask, Piece, Thought, chat_task, without_thinking
from rillm.server.errors import FieldError
from rillm.server.jobs import Job, finish_all, start
from rillm.server.json_io import JSONReply, read_object
from rillm.server.openai import new_id
from rillm.server.schema import ResponsesBody
from rillm.server.service import Service
from rillm.server.sse import EventStream, event, until_disconnect
from rillm.server.state import service_for
from rillm.server.tool_calls import ToolCall

_TAKEN_OVER = ("temperature", "top_p", "top_k", "stream", "seed", "min_p", "chat_template_kwargs")


async def responses(request: Request) -> Response:
    """Answers a conversation."""
    body = await read_object(request)
    service = await service_for(request, body)
    fields = ResponsesBody.parse(body)
    task = await chat_task(service, to_chat(body, fields))
    (job,) = start(service, task.plan, [task.prompt])
    reply = _Reply(service, fields, task)
    if task.plan.controls.stream:
        return EventStream(
            _events(reply, task, job), close=job.close, ping_seconds=service.config.ping_seconds
        )
    await until_disconnect(request, finish_all([job]))
    reader = read_answer(task, job)
    pieces: list[Piece] = [Thought(reader.thoughts)] if reader.thoughts else []
    if reader.content or not reader.calls:
        pieces.append(reader.content)
    items = [_item(piece) for piece in [*pieces, *reader.calls]]
    return JSONReply(reply.finished(job, items))


# ---- the request -------------------------------------------------------------------------


def to_chat(body: Mapping[str, Any], fields: ResponsesBody) -> dict[str, Any]:
    """The body as one for /v1/chat/completions."""
    if fields.previous_response_id:
        raise FieldError("previous_response_id", "responses are not stored here: send them again")
    chat: dict[str, Any] = {name: body[name] for name in _TAKEN_OVER if name in body}
    turns: list[dict[str, Any]] = []
    if fields.instructions:
        turns.append({"role": "system", "content": fields.instructions})
    if isinstance(fields.input, str):
        turns.append({"role": "user", "content": fields.input})
    else:
        for item in fields.input:
            _add_item(turns, item)
    chat["messages"] = turns
    if fields.max_output_tokens is not None:
        chat["max_tokens"] = fields.max_output_tokens
    if fields.reasoning.get("effort") == "none":
        chat["chat_template_kwargs"] = without_thinking(body)
    chat["tools"] = [_tool(tool) for tool in fields.tools]
    choice = fields.tool_choice
    if isinstance(choice, dict):
        choice = {"type": "function", "function": {"name": choice.get("name")}}
    chat["tool_choice"] = choice
    chat["parallel_tool_calls"] = fields.parallel_tool_calls
    if form := fields.text.get("format"):
        chat["response_format"] = form
    return chat


def _tool(tool: Mapping[str, Any]) -> dict[str, Any]:
    if tool.get("type") != "function":
        raise FieldError("tools", f"type {tool.get('type')!r:.40}: only functions can be called")
    function = {name: tool[name] for name in ("name", "description", "parameters") if name in tool}
    return {"type": "function", "function": function}


def _add_item(turns: list[dict[str, Any]], item: Mapping[str, Any]) -> None:
    kind = item.get("type", "message")
    if kind == "message":
        turns.append({"role": item.get("role"), "content": _text(item.get("content", ""))})
    elif kind == "function_call":
        function = {"name": item.get("name"), "arguments": item.get("arguments", "{}")}
        call = {"id": item.get("call_id"), "type": "function", "function": function}
        if turns and turns[-1]["role"] == "assistant" and "tool_calls" in turns[-1]:
            turns[-1]["tool_calls"].append(call)
        else:
            turns.append({"role": "assistant", "content": "", "tool_calls": [call]})
    elif kind == "function_call_output":
        output = _text(item.get("output", ""))
        turns.append({"role": "tool", "tool_call_id": item.get("call_id"), "content": output})
    elif kind != "reasoning":
        raise FieldError("input", f"an item of type {kind!r:.40} cannot be read")


def _text(content: Any) -> str:
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        texts = [part.get("text") if isinstance(part, Mapping) else None for part in content]
        if all(isinstance(text, str) for text in texts):
            return "".join(map(str, texts))
    raise FieldError("input", "content must be a string or a list of text parts")


# ---- the reply ---------------------------------------------------------------------------


def _text_part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "annotations": [], "logprobs": [], "text": text}


def _item(piece: Piece, *, status: str = "completed") -> dict[str, Any]:
    """An output item; of one in progress, without its text."""
    is_done = status == "completed"
    if isinstance(piece, ToolCall):
        return {
            "type": "function_call",
            "status": status,
            "id": new_id("fc_"),
            "call_id": piece.call_id,
            "name": piece.name,
            "arguments": piece.arguments if is_done else "",
        }
    if isinstance(piece, Thought):
        content = [{"type": "reasoning_text", "text": piece.text}] if is_done else []
        return {"type": "reasoning", "id": new_id("rs_"), "summary": [], "content": content}
    return {
        "type": "message",
        "status": status,
        "id": new_id("msg_"),
        "role": "assistant",
        "content": [_text_part(piece)] if is_done else [],
    }


class _Reply:
    """The response object of one request."""

    def __init__(self, service: Service, fields: ResponsesBody, task: ChatTask) -> None:
        sampling = task.plan.sampling
        self._base: dict[str, Any] = {
            "id": new_id("resp_"),
            "object": "response",
            "created_at": int(time.time()),
            "model": service.name,
            "error": None,
            "incomplete_details": None,
            "instructions": fields.instructions or None,
            "max_output_tokens": fields.max_output_tokens,
            "metadata": {},
            "parallel_tool_calls": fields.parallel_tool_calls,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "tool_choice": fields.tool_choice,
            "tools": fields.tools,
        }

    def begun(self) -> dict[str, Any]:
        """While it is being made."""
        return {**self._base, "status": "in_progress", "output": [], "usage": None}

    def finished(self, job: Job, items: list[dict[str, Any]]) -> dict[str, Any]:
        """When it is complete."""
        num_input, num_output = len(job.prompt.ids), len(job.token_ids)
        reply = {**self._base, "status": "completed", "completed_at": int(time.time())}
        if job.finish.reason == "limit":
            reply["status"] = "incomplete"
            reply["incomplete_details"] = {"reason": "max_output_tokens"}
        reply["output"] = items
        reply["usage"] = {
            "input_tokens": num_input,
            "output_tokens": num_output,
            "total_tokens": num_input + num_output,
            "input_tokens_details": {"cached_tokens": job.timings.cache_n},
            "output_tokens_details": {"reasoning_tokens": 0},
        }
        return reply


class _Items:
    """The output items of a stream: at most one is open."""

    def __init__(self) -> None:
        self.done: list[dict[str, Any]] = []
        self._open: dict[str, Any] | None = None
        self._text = ""

    def add(self, piece: Piece) -> Iterator[dict[str, Any]]:
        """The events of a piece."""
        if isinstance(piece, ToolCall):
            yield from self.close()
            item = _item(piece, status="in_progress")
            yield from self._begin(item)
            where = self._where(item)
            kind = "response.function_call_arguments"
            yield {"type": f"{kind}.delta", **where, "delta": piece.arguments}
            yield {
                "type": f"{kind}.done",
                **where,
                "name": piece.name,
                "arguments": piece.arguments,
            }
            self._open = None
            yield from self._end({**item, "status": "completed", "arguments": piece.arguments})
            return
        is_thought = isinstance(piece, Thought)
        kind = "reasoning" if is_thought else "message"
        if self._open is None or self._open["type"] != kind:
            yield from self.close()
            self._open = _item(piece, status="in_progress")
            yield from self._begin(self._open)
            if not is_thought:
                yield {
                    "type": "response.content_part.added",
                    **self._where(self._open),
                    "content_index": 0,
                    "part": _text_part(""),
                }
        text = piece.text if isinstance(piece, Thought) else piece
        self._text += text
        name = "reasoning_text" if is_thought else "output_text"
        yield {
            "type": f"response.{name}.delta",
            **self._where(self._open),
            "content_index": 0,
            "delta": text,
            **({} if is_thought else {"logprobs": []}),
        }

    def close(self) -> Iterator[dict[str, Any]]:
        """Ends the open item."""
        item, self._open = self._open, None
        if item is None:
            return
        text, self._text = self._text, ""
        where = {**self._where(item), "content_index": 0}
        if item["type"] == "reasoning":
            yield {"type": "response.reasoning_text.done", **where, "text": text}
            part: dict[str, Any] = {"type": "reasoning_text", "text": text}
        else:
            part = _text_part(text)
            yield {"type": "response.output_text.done", **where, "text": text, "logprobs": []}
            yield {"type": "response.content_part.done", **where, "part": part}
        done = {**item, "content": [part]}
        if "status" in done:
            done["status"] = "completed"
        yield from self._end(done)

    def _where(self, item: dict[str, Any]) -> dict[str, Any]:
        return {"item_id": item["id"], "output_index": len(self.done)}

    def _begin(self, item: dict[str, Any]) -> Iterator[dict[str, Any]]:
        index = len(self.done)
        yield {"type": "response.output_item.added", "output_index": index, "item": item}

    def _end(self, item: dict[str, Any]) -> Iterator[dict[str, Any]]:
        index = len(self.done)
        self.done.append(item)
        yield {"type": "response.output_item.done", "output_index": index, "item": item}


async def _events(reply: _Reply, task: ChatTask, job: Job) -> AsyncIterator[bytes]:
    reader, items = task.reader(), _Items()
    number = -1

    def numbered(value: dict[str, Any]) -> bytes:
        nonlocal number
        number += 1
        return event({**value, "sequence_number": number}, str(value["type"]))

    def begin() -> bytes:
        return b"".join(
            numbered({"type": f"response.{name}", "response": reply.begun()})
            for name in ("created", "in_progress")
        )

    async for part in job.parts():
        if number < 0:
            yield begin()
        for piece in reader.push(part):
            for value in items.add(piece):
                yield numbered(value)
    if number < 0:
        yield begin()
    for piece in reader.finish():
        for value in items.add(piece):
            yield numbered(value)
    for value in items.close():
        yield numbered(value)
    final = reply.finished(job, items.done)
    name = "completed" if final["status"] == "completed" else "incomplete"
    yield numbered({"type": f"response.{name}", "response": final})
