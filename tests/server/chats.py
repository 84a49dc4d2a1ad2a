"""What the tests of the chat endpoints share."""

from __future__ import annotations

import ctypes
import json

from rillm.core.sampling import CoreProb

HELLO = [{"role": "user", "content": "hello"}]
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"enum": ["Paris", "北京"]}, "days": {"type": "integer"}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}
SEARCH = {"type": "function", "function": {"name": "search", "parameters": {}}}


def chat(server, messages=HELLO, status=200, **fields):
    fields = {"temperature": 0, **fields}
    return server.post("/v1/chat/completions", {"messages": messages, **fields}, status)


def say(server, monkeypatch, text, *, turn_ends=()):
    """Makes the next answers say `text`, token by token, instead of what the model thinks."""
    tokenizer = server.service.tokenizer
    ids = tokenizer.encode(text, parse_special=True)
    ids.append(tokenizer.specials["<|observation|>"])
    real = type(server.engine)._draw_once

    def draw(self, rows):
        for _, sequence in rows:
            generation = self._generations[sequence.sequence_id]
            draw = generation.draw
            place = sequence.num_generated_tokens
            wanted = ids[min(place, len(ids) - 1)]
            draw.struct.bias, draw.struct.num_bias = _only(draw, wanted)
        return real(self, rows)

    monkeypatch.setattr(type(server.engine), "_draw_once", draw)


def _only(draw, token):
    draw._bias = (CoreProb * 1)(CoreProb(token, 1e4))
    return ctypes.addressof(draw._bias), 1


PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 2},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}


def check_person(text):
    value = json.loads(text)
    assert set(value) <= {"name", "age", "tags"}
    assert isinstance(value["name"], str)
    assert len(value["name"]) <= 12
    assert 0 <= value["age"] <= 150
    assert set(value.get("tags", [])) <= {"a", "b"}
