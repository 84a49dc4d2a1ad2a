"""/tokenize, /detokenize, /apply-template, /props, /v1/models, /slots, /metrics, and the 501s."""

from __future__ import annotations

import json
import re
import threading

import pytest
from conftest import GREETING

from rillm.server.app import ROUTES


def test_tokenize_round_trip(server):
    tokenizer = server.service.tokenizer
    text = "héllo 汉字 \U0001f600 <|user|>\n"
    ids = server.post("/tokenize", {"content": text})["tokens"]
    assert ids == tokenizer.encode(text, parse_special=True)
    assert server.post("/detokenize", {"tokens": ids}) == {"content": text}
    plain = server.post("/tokenize", {"content": text, "parse_special": False})["tokens"]
    assert plain == tokenizer.encode(text) != ids
    assert server.post("/tokenize", {"content": ["a", 5, "b"]})["tokens"][1] == 5
    assert server.post("/tokenize", {}) == {"tokens": []}


def test_pieces_are_text_or_bytes(server):
    text = "aé\U0001f600\U00012345"
    tokens = server.post("/tokenize", {"content": text, "with_pieces": True})["tokens"]
    data = b"".join(
        item["piece"].encode() if isinstance(item["piece"], str) else bytes(item["piece"])
        for item in tokens
    )
    assert data.decode() == text
    assert any(isinstance(item["piece"], list) for item in tokens), "a rare character is split"


def test_token_errors(server):
    server.post("/detokenize", {"tokens": [10**6]}, 400)
    server.post("/detokenize", {"tokens": ["x"]}, 400)
    assert "content" in server.post("/tokenize", {"content": [10**6]}, 400)["error"]["message"]


def test_apply_template(server):
    body = {"messages": [{"role": "system", "content": "S"}, {"role": "user", "content": "U"}]}
    expected = "[gMASK]<sop><|system|>\nS<|user|>\nU<|assistant|>"
    assert server.post("/apply-template", body) == {"prompt": expected}
    error = server.post("/apply-template", {"messages": []}, 400)["error"]
    assert error["type"] == "invalid_request_error"
    server.post("/apply-template", {}, 400)
    server.post("/apply-template", {"messages": [{"role": "no such", "content": ""}]}, 400)


def test_props(server):
    props = server.get("/props")
    assert props["total_slots"] == 4
    assert props["model_alias"] == "tiny"
    assert props["model_path"].endswith("glm-tiny.gguf")
    assert props["default_generation_settings"]["n_ctx"] == server.engine.context_length
    assert props["default_generation_settings"]["params"]["temperature"] == 0.8
    assert props["default_generation_settings"]["params"]["n_predict"] == 24
    assert "<|assistant|>" in props["chat_template"]
    assert props["eos_token"] == "<|endoftext|>"
    assert props["modalities"] == {"vision": False, "audio": False, "video": False}


def test_models(server):
    for path in ("/models", "/v1/models"):
        reply = server.get(path)
        assert reply["object"] == "list"
        (model,) = reply["data"]
        assert model["id"] == "tiny"
        assert model["object"] == "model"
        meta = model["meta"]
        config = server.service.loaded.model.config
        assert meta["n_vocab"] == config.vocab_size
        assert meta["n_embd"] == config.hidden_size
        assert meta["n_params"] > config.vocab_size * config.hidden_size
        # Q8_0: 34 bytes for 32 weights, a few vectors in f32.
        assert 1.0 < meta["size"] / meta["n_params"] < 1.2


def test_slots_show_what_runs(start_server):
    server = start_server(parallel=2)
    assert [slot["is_processing"] for slot in server.get("/slots")] == [False, False]
    real_step, may_step = server.engine.step, threading.Event()

    def step():
        assert may_step.wait(30)
        return real_step()

    server.engine.step = step
    body = {"prompt": GREETING, "n_predict": 5, "id_slot": 1, "ignore_eos": True}
    replies = []
    threads = [
        threading.Thread(target=lambda: replies.append(server.post("/completion", body)))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for _ in range(1000):
        slots = server.get("/slots")
        if all(slot["is_processing"] for slot in slots) and server.service.slots.waiting:
            break
    assert all(slot["is_processing"] for slot in slots)
    assert slots[0]["params"]["n_predict"] == 5
    assert len(server.service.slots.waiting) == 1
    assert server.get("/slots?fail_on_no_slot=1", 503)["error"]["type"] == "unavailable_error"
    may_step.set()
    for thread in threads:
        thread.join(30)
    assert {reply["id_slot"] for reply in replies} == {0, 1}
    slots = server.get("/slots")
    assert not any(slot["is_processing"] for slot in slots)
    assert slots[1]["next_token"][0]["n_decoded"] == 5


def test_slots_and_metrics_can_be_off(start_server):
    server = start_server(slots=False)
    for path in ("/slots", "/metrics"):
        assert server.get(path, 501)["error"]["type"] == "not_supported_error"


def metrics(server):
    text = server.client.get("/metrics").text
    values = {}
    for line in text.splitlines():
        if not line.startswith("#"):
            name, value = line.split()
            assert f"# TYPE {name} " in text
            assert f"# HELP {name} " in text
            values[name.removeprefix("llamacpp:")] = float(value)
    return values


def test_metrics_count(server):
    before = metrics(server)
    reply = server.complete("metrics of a server", n_predict=5, ignore_eos=True)
    after = metrics(server)
    assert after["tokens_predicted_total"] - before["tokens_predicted_total"] == 5
    assert (
        after["prompt_tokens_total"] - before["prompt_tokens_total"] == reply["timings"]["prompt_n"]
    )
    assert (
        after["prompt_tokens_cached_total"] - before["prompt_tokens_cached_total"]
        == reply["timings"]["cache_n"]
    )
    assert after["prompt_seconds_total"] > before["prompt_seconds_total"]
    assert after["n_decode_total"] >= before["n_decode_total"] + 5
    assert after["requests_processing"] == 0
    assert server.client.get("/metrics").headers["content-type"].startswith("text/plain")


@pytest.mark.parametrize(
    "path", ["/embedding", "/embeddings", "/v1/embeddings", "/rerank", "/v1/rerank", "/infill"]
)
def test_what_this_model_cannot_do_is_501(server, path):
    assert server.post(path, {}, 501)["error"]["type"] == "not_supported_error"


def test_openapi_describes_every_route(server):
    document = server.get("/openapi.json")
    assert document["openapi"].startswith("3.1")
    for route in ROUTES:
        for path in route.paths:
            operation = document["paths"][path][route.method.lower()]
            assert operation["summary"]
            assert ("requestBody" in operation) == (route.body is not None)
    schemas = document["components"]["schemas"]
    references = re.findall(r'"#/components/schemas/(\w+)"', json.dumps(document))
    assert set(references) <= set(schemas)
    assert {"prompt", "echo"} <= set(schemas["CompletionBody"]["properties"])
    assert schemas["Sampling"]["properties"]["temperature"] == {"type": "number", "default": 0.8}
