"""From a chat request to a prompt and a constraint, and from the answer's text to its parts.

All chat endpoints (OpenAI's two and Anthropic's) meet here: they bring their body down to
ChatBody, and turn the pieces that `AnswerReader` gives into their own events.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from rillm.server.config import REASONING_FORMATS
from rillm.server.errors import ApiError, FieldError
from rillm.server.grammar import (
    GrammarSource,
    requested_source,
    response_format_source,
    schema_text,
)
from rillm.server.jobs import Part, Plan, Prompt, make_plan
from rillm.server.schema import ChatBody, Controls
from rillm.server.service import Service
from rillm.server.thinking import CLOSE, OPEN, ThinkingSplitter
from rillm.server.tool_calls import ToolCall, ToolCallParser

_RESERVED = frozenset(
    {"messages", "tools", "tokenizer", "add_generation_prompt", "continue_final_message"}
)
_ASSISTANT = "<|assistant|>"


@dataclass(frozen=True, slots=True)
class ChatTask:
    """A conversation, ready to be continued."""

    body: ChatBody
    plan: Plan
    prompt: Prompt
    tool_names: tuple[str, ...]
    splits_thinking: bool
    opens_thinking: bool  # the prompt ends in <think>
    strips_newline: bool  # the model begins its turns with a newline of the format's

    def reader(self) -> AnswerReader:
        """For one answer."""
        return AnswerReader(self)


@dataclass(frozen=True, slots=True)
class Thought:
    """Text of the thinking."""

    text: str


Piece = str | Thought | ToolCall


@dataclass(frozen=True, slots=True)
class _Rendered:
    ids: list[int]
    tools: list[dict[str, Any]]
    opens_thinking: bool
    ends_in_turn: bool  # in a bare <|assistant|>


async def chat_task(service: Service, body: Mapping[str, Any]) -> ChatTask:
    """Checks a chat body and writes its prompt; RillmError says what is wrong with it."""
    fields = _fields(service, body, logprobs=body.get("logprobs", False))
    if fields.top_logprobs is not None and not fields.logprobs:
        raise ApiError(400, "top_logprobs requires logprobs to be set to true")
    reasoning = fields.reasoning_format or service.config.reasoning_format
    if reasoning not in REASONING_FORMATS:
        known = ", ".join(REASONING_FORMATS)
        raise FieldError("reasoning_format", f"must be one of {known}")
    source = response_format_source(fields.response_format)
    forced = _forced_tools(fields)
    if forced is not None:
        if source is not None:
            raise FieldError("response_format", "cannot be combined with a required tool call")
        source = _tool_grammar(service, fields, forced)
    is_free = source is None and requested_source(Controls.parse(body)) is None
    rendered = await asyncio.to_thread(_render, service, fields)
    ids, begins_after = rendered.ids, None
    opens_thinking = rendered.opens_thinking
    if opens_thinking and not is_free:
        # The constraint is on the answer, not on the thinking before it.
        begins_after = service.tokenizer.specials.get(CLOSE)
        if begins_after is None:
            ids = ids + _plain(service, f"\n\n{CLOSE}\n\n")
            opens_thinking = False
    strips_newline = rendered.ends_in_turn and service.template.strip_leading_newline
    if strips_newline and not is_free and forced is None:
        # GLM begins a text with a newline, which the grammar does not know: write it for it.
        ids = ids + _plain(service, "\n")
        strips_newline = False
    options = dict(body)
    options.pop("logprobs", None)
    if fields.logprobs:
        options["n_probs"] = max(1, fields.top_logprobs or 0)
    plan = await make_plan(service, options, source=source, grammar_begins_after=begins_after)
    return ChatTask(
        body=fields,
        plan=plan,
        prompt=Prompt("", ids),
        tool_names=tuple(_name(tool) for tool in rendered.tools),
        splits_thinking=reasoning != "none",
        opens_thinking=opens_thinking,
        strips_newline=strips_newline,
    )


def _fields(service: Service, body: Mapping[str, Any], *, logprobs: object) -> ChatBody:
    fields = ChatBody.parse({**body, "logprobs": logprobs})
    options = {**service.config.template_options, **fields.chat_template_kwargs}
    return fields.model_copy(update={"chat_template_kwargs": options})


def chat_ids(service: Service, body: Mapping[str, Any]) -> list[int]:
    """Only the token ids of a conversation."""
    fields = _fields(service, body, logprobs=False)
    _forced_tools(fields)
    return _render(service, fields).ids


def rendered_text(service: Service, body: Mapping[str, Any]) -> str:
    """The prompt of a conversation as text."""
    fields = _fields(service, body, logprobs=False)
    _forced_tools(fields)
    return service.template.render(
        fields.messages,
        tools=_shown_tools(fields) or None,
        add_generation_prompt=fields.add_generation_prompt,
        **_template_options(fields),
    )


def without_thinking(body: Mapping[str, Any]) -> dict[str, Any]:
    """The body's chat_template_kwargs, with thinking switched off."""
    options = body.get("chat_template_kwargs", {})
    if not isinstance(options, dict):
        raise FieldError("chat_template_kwargs", "must be an object")
    return {**options, "enable_thinking": False}


def _render(service: Service, fields: ChatBody) -> _Rendered:
    tools = _shown_tools(fields)
    options = _template_options(fields)
    ids = service.template.encode(
        service.tokenizer,
        fields.messages,
        tools=tools or None,
        add_generation_prompt=fields.add_generation_prompt,
        **options,
    )
    opens = service.tokenizer.decode(ids[-8:]).rstrip().endswith(OPEN)
    if opens and options.get("enable_thinking") is False:
        ids = ids + _plain(service, f"\n\n{CLOSE}\n\n")
        opens = False
    turn = service.tokenizer.specials.get(_ASSISTANT)
    return _Rendered(ids, tools, opens, bool(ids) and ids[-1] == turn)


def _plain(service: Service, text: str) -> list[int]:
    return service.tokenizer.encode(text, parse_special=True)


def _template_options(fields: ChatBody) -> dict[str, Any]:
    options = fields.chat_template_kwargs
    for name in options:
        if name in _RESERVED:
            raise FieldError("chat_template_kwargs", f"{name} is not the template's to be given")
    if not isinstance(options.get("enable_thinking", True), bool):
        raise FieldError("chat_template_kwargs", "enable_thinking must be true or false")
    return options


def _shown_tools(fields: ChatBody) -> list[dict[str, Any]]:
    return [] if fields.tool_choice == "none" else fields.tools


def _name(tool: Mapping[str, Any]) -> str:
    function = tool.get("function", tool)
    name = function.get("name") if isinstance(function, Mapping) else None
    if not isinstance(name, str) or not name or "\n" in name:
        raise FieldError("tools", "each needs a function with a name")
    return name


def _forced_tools(fields: ChatBody) -> list[dict[str, Any]] | None:
    """The tools of which one has to be called; None if the model may choose not to."""
    choice = fields.tool_choice
    names = [_name(tool) for tool in fields.tools]
    if isinstance(choice, str):
        if choice not in ("auto", "none", "required"):
            raise FieldError("tool_choice", "must be auto, none, required or a function")
        if choice != "required":
            return None
        if not names:
            raise FieldError("tool_choice", "required, but there are no tools")
        return fields.tools
    function = choice.get("function", choice)
    wanted = function.get("name") if isinstance(function, Mapping) else None
    if wanted not in names:
        raise FieldError("tool_choice", f"{wanted!r:.40} is not one of the tools")
    return [fields.tools[names.index(wanted)]]


def _tool_grammar(service: Service, fields: ChatBody, tools: list[dict[str, Any]]) -> GrammarSource:
    calls, rules = [], []
    for i, tool in enumerate(tools):
        function = tool.get("function", tool)
        schema = function.get("parameters") or {}
        if not isinstance(schema, dict):
            raise FieldError("tools", f"{_name(tool)}: parameters must be a JSON schema")
        schema = {"type": "object", **schema}
        if schema["type"] != "object":
            raise FieldError("tools", f"{_name(tool)}: parameters must describe an object")
        calls.append(f"call_{i}")
        rules.append(f"call_{i}: {json.dumps(_name(tool) + chr(10))} args_{i}")
        rules.append(f"args_{i}: %json {schema_text(schema)}")
    one = f"({' | '.join(calls)})"
    more = ""
    if fields.parallel_tool_calls and _ASSISTANT in service.tokenizer.specials:
        more = f" ({_ASSISTANT} {one})*"
    return GrammarSource("lark", "\n".join([f"start: {one}{more}", *rules]), "tools")


class AnswerReader:
    """Turns the parts of one answer into pieces: thoughts, text, tool calls."""

    def __init__(self, task: ChatTask) -> None:
        self._task = task
        self._tools = ToolCallParser(task.tool_names)
        self._strip = task.strips_newline
        self._thinking: ThinkingSplitter | None = None
        if task.splits_thinking:
            self._thinking = ThinkingSplitter(is_open=task.opens_thinking)
        self.content = ""
        self.thoughts = ""
        self.calls: list[ToolCall] = []

    def push(self, part: Part) -> Iterator[Piece]:
        """What this part settles. The totals above grow with it."""
        text = part.text
        if text and self._strip:
            self._strip = False
            text = text.removeprefix("\n")
        thought = ""
        if self._thinking is not None and text:
            thought, text = self._thinking.push(text)
        yield from self._results(thought, self._tools.push(text) if text else [])
        if part.ends_turn:
            yield from self._results("", self._tools.next_turn())
            self._strip = self._task.strips_newline

    def push_text(self, part: Part) -> str | None:
        """The same in short, for a part that is text of the answer and nothing else, as nearly all
        are; None where it may be more: then `push` it."""
        if self._strip or part.ends_turn or not self._tools.is_text:
            return None
        if self._thinking is not None and not self._thinking.is_over:
            return None
        if self.calls and not part.text.strip():
            return None
        self.content += part.text
        return part.text

    def finish(self) -> Iterator[Piece]:
        """The rest, once the answer is complete."""
        thought, text = ("", "") if self._thinking is None else self._thinking.finish()
        yield from self._results(thought, self._tools.push(text) if text else [])
        yield from self._results("", self._tools.finish())

    def _results(self, thought: str, results: list[str | ToolCall]) -> Iterator[Piece]:
        if thought:
            self.thoughts += thought
            yield Thought(thought)
        for result in results:
            if isinstance(result, ToolCall):
                self.calls.append(result)
            elif self.calls and not result.strip():
                continue  # line ends between calls
            else:
                self.content += result
            yield result
