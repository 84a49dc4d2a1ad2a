"""OpenAI's messages and tools, checked, and the forms that templates want them in."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from rillm.chat_templates import ChatTemplateError

_ROLE = re.compile(r"[a-z]+(_[a-z]+)*")
# A GLM role becomes a special token, so there are no others.
_GLM_ROLES = {
    "system": "system",
    "user": "user",
    "assistant": "assistant",
    "observation": "observation",
    "tool": "observation",
    "function": "observation",
}


def normalize(message: Mapping[str, Any]) -> dict[str, Any]:
    """The message with a checked role and its content as one string."""
    role = message.get("role") if isinstance(message, Mapping) else None
    if not isinstance(role, str) or not _ROLE.fullmatch(role):
        raise ChatTemplateError(f"messages: role {role!r} is not a lower-case word")
    # An assistant's turn may be tool calls alone; what others say is not left out by intention.
    if "content" not in message and not (role == "assistant" and message.get("tool_calls")):
        raise ChatTemplateError(f"messages: the {role} message has no content")
    turn = {**message, "role": "system" if role == "developer" else role}
    turn["content"] = _content(message.get("content"))
    if calls := message.get("tool_calls"):
        turn["tool_calls"] = [_call(call) for call in calls]
    return turn


def glm_turns(turn: dict[str, Any]) -> list[dict[str, Any]]:
    """The turn as GLM's templates want it; each tool call becomes a turn of its own."""
    if turn["role"] not in _GLM_ROLES:
        known = ", ".join(_GLM_ROLES)
        raise ChatTemplateError(f"messages: role {turn['role']!r} is not one of {known}")
    turn = {**turn, "role": _GLM_ROLES[turn["role"]]}
    calls = turn.pop("tool_calls", None) or []
    if not isinstance(turn.get("metadata"), str):  # GLM's header, not some client's own field
        turn.pop("metadata", None)
    turns = [turn] if turn["content"] or not calls else []
    for call in calls:
        arguments = call["function"]["arguments"]
        if not isinstance(arguments, str):
            arguments = json.dumps(arguments, ensure_ascii=False)
        name = call["function"]["name"]
        turns.append({"role": "assistant", "metadata": name, "content": arguments})
    return turns


def parsed_calls(turn: dict[str, Any]) -> dict[str, Any]:
    """The turn with call arguments as objects, which is what other templates want."""
    if not turn.get("tool_calls"):
        return turn
    calls = []
    for call in turn["tool_calls"]:
        arguments = call["function"]["arguments"]
        if isinstance(arguments, str):
            with suppress(ValueError):  # a model may have written bad JSON: shown as it is
                arguments = json.loads(arguments)
        calls.append({**call, "function": {**call["function"], "arguments": arguments}})
    return {**turn, "tool_calls": calls}


def _call(call: Any) -> dict[str, Any]:
    """An OpenAI tool call, checked."""
    function = call.get("function", call) if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise ChatTemplateError("messages: a tool call needs function.name and function.arguments")
    arguments = function.get("arguments")
    return {
        **call,
        "type": "function",
        "function": {**function, "arguments": "{}" if arguments is None else arguments},
    }


def wrapped_tool(tool: Any) -> dict[str, Any]:
    """The tool in OpenAI's form {"type": "function", "function": {...}}; a bare one is wrapped."""
    if isinstance(tool, Mapping):
        function = tool.get("function", tool)
        if isinstance(function, Mapping) and isinstance(function.get("name"), str):
            return {
                **(tool if "function" in tool else {}),
                "type": "function",
                "function": function,
            }
    raise ChatTemplateError("tools: each needs a function with a name")


def _content(content: Any) -> str:
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if isinstance(content, Sequence):
        texts = [
            part.get("text")
            for part in content
            if isinstance(part, Mapping) and part.get("type") == "text"
        ]
        if len(texts) == len(content) and all(isinstance(text, str) for text in texts):
            return "".join(str(text) for text in texts)
    raise ChatTemplateError("messages: content must be a string or a list of text parts")
