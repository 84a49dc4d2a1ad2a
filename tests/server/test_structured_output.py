"""Grammars, JSON schemas: output that always validates, and refusals that give the reason."""

from __future__ import annotations

import json
import re
import sys

import pytest
from chats import HELLO, PERSON, chat, check_person


@pytest.mark.parametrize("temperature", [0, 1.5])
def test_json_schema_always_validates(server, temperature):
    for seed in range(4):
        fields = {"max_tokens": 400, "temperature": temperature, "seed": seed}
        reply = chat(
            server,
            response_format={"type": "json_schema", "json_schema": {"schema": PERSON}},
            **fields,
        )
        assert reply["choices"][0]["finish_reason"] == "stop"
        check_person(reply["choices"][0]["message"]["content"])
        reply = server.complete(json_schema=PERSON, n_predict=400, **fields)
        assert reply["stop_type"] == "eos"
        check_person(reply["content"])


def test_json_object(server):
    reply = chat(
        server, response_format={"type": "json_object"}, max_tokens=300, temperature=1, seed=2
    )
    if reply["choices"][0]["finish_reason"] == "stop":
        assert isinstance(json.loads(reply["choices"][0]["message"]["content"]), dict)
    assert reply["choices"][0]["message"]["content"].startswith("{")


def test_streamed_json(server):
    body = {
        "messages": HELLO,
        "response_format": {"type": "json_schema", "json_schema": {"schema": PERSON}},
        "max_tokens": 300,
    }
    events = server.stream("/v1/chat/completions", body)
    check_person("".join(e["choices"][0]["delta"].get("content") or "" for e in events[:-1]))


def test_gbnf_grammar(server):
    grammar = 'root ::= answer " " number\nanswer ::= "yes" | "no"\nnumber ::= [0-9]{2,3}\n'
    for seed in range(5):
        text = server.complete(grammar=grammar, temperature=2, seed=seed, n_predict=20)["content"]
        word, number = text.split(" ")
        assert word in ("yes", "no")
        assert number.isdigit()
        assert 2 <= len(number) <= 3


@pytest.mark.parametrize("name", ["regex", "guided_regex"])
def test_regular_expressions(server, name):
    pattern = r"(Paris|北京): -?[0-9]{1,2}°C"
    for seed in range(4):
        fields = {name: pattern, "temperature": 2, "seed": seed}
        assert re.fullmatch(pattern, server.complete(n_predict=40, **fields)["content"])
        (choice,) = chat(server, max_tokens=40, **fields)["choices"]
        assert re.fullmatch(pattern, choice["message"]["content"])


def test_every_endpoint_obeys(server):
    """None ignores a schema that it is given in the form of another."""
    wanted = {"type": "json_schema", "json_schema": {"schema": PERSON}}
    flat = {"type": "json_schema", "schema": PERSON}
    body = {"prompt": "hello", "max_tokens": 400, "response_format": wanted, "seed": 1}
    check_person(server.post("/completion", body)["content"])
    check_person(server.post("/v1/completions", body)["choices"][0]["text"])
    for fields in ({"output_config": {"format": flat}}, {"output_format": flat}):
        reply = server.post("/v1/messages", {"messages": HELLO, "max_tokens": 400, **fields})
        check_person(reply["content"][0]["text"])
    text = {"format": {"name": "person", **flat}}
    reply = server.post("/v1/responses", {"input": "x", "max_output_tokens": 400, "text": text})
    check_person(reply["output"][0]["content"][0]["text"])
    bad = {"type": "json_schema", "json_schema": {"schema": {"type": "nonsense"}}}
    for path, fields in (
        ("/completion", {"prompt": "x", "response_format": bad}),
        ("/v1/completions", {"prompt": "x", "response_format": {"type": "?"}}),
        ("/v1/messages", {"messages": HELLO, "output_format": {"type": "?"}}),
        ("/v1/messages", {"messages": HELLO, "output_config": {"format": {"type": "json_schema"}}}),
        ("/v1/responses", {"input": "x", "text": {"format": {"type": "?"}}}),
    ):
        server.post(path, {"max_tokens": 2, "max_output_tokens": 2, **fields}, 400)


def test_what_cannot_be_enforced_is_refused(server):
    for fields in (
        {"json_schema": {"type": "no such type"}},
        {"json_schema": {"$ref": "#/nowhere"}},
        {"json_schema": {"type": "object", "unevaluatedProperties": False, "x": 1, "not": {}}},
        {"grammar": "root ::= ("},
        {"grammar": "root ::= nowhere"},
        {"grammar": 'root ::= "a"', "json_schema": {}},
        {"grammar": "x" * 300_000},
        {"regex": "a{2"},
        {"regex": "(?=look)ahead"},
        {"regex": "a", "json_schema": {}},
        {"ignore_eos": True, "json_schema": {}},
    ):
        error = server.post("/completion", {"prompt": "x", **fields}, 400)["error"]
        assert error["type"] == "invalid_request_error"
        assert next(iter(fields)) in error["message"]
    schema = {"type": "json_schema", "json_schema": {"schema": {"type": "nonsense"}}}
    error = chat(server, response_format=schema, status=400)["error"]
    assert "response_format" in error["message"]


def test_without_llguidance_structured_output_is_501(start_server, monkeypatch):
    server = start_server()
    monkeypatch.setitem(sys.modules, "llguidance", None)
    error = server.post("/completion", {"prompt": "x", "json_schema": {}}, 501)["error"]
    assert error["type"] == "not_supported_error"
    assert "llguidance" in error["message"]
    assert server.complete(n_predict=1)["stop"]


def test_structured_output_of_a_thinking_model(start_server):
    server = start_server(chat_template="glm-z1")
    schema = {"type": "json_schema", "json_schema": {"schema": PERSON}}
    reply = chat(server, response_format=schema, max_tokens=400)
    check_person(reply["choices"][0]["message"]["content"])
