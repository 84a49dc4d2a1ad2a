"""/embedding and /v1/embeddings; what the vectors are is in golden/test_embeddings.py."""

from __future__ import annotations

import base64
import math
import threading
import time
from array import array

import httpx
import openai
import pytest
from conftest import GREETING, running, tiny_config

TEXTS = ["hello", "what is the sum of one and two?", "a b c d e f g h " * 20]


@pytest.fixture(scope="module")
def mean_server(model_path):
    with running(tiny_config(model_path, alias="tiny", embeddings=True, pooling="mean")) as server:
        yield server


def v1(server, value, **fields):
    reply = server.post("/v1/embeddings", {"input": value, **fields})
    return [item["embedding"] for item in reply["data"]]


def test_reply_of_v1_embeddings(mean_server):
    reply = mean_server.post("/v1/embeddings", {"input": TEXTS[:2]})
    num_tokens = sum(
        len(mean_server.post("/tokenize", {"content": t})["tokens"]) for t in TEXTS[:2]
    )
    assert reply["object"] == "list"
    assert reply["model"] == "tiny"
    assert reply["usage"] == {"prompt_tokens": num_tokens, "total_tokens": num_tokens}
    hidden = mean_server.service.loaded.model.config.hidden_size
    for index, item in enumerate(reply["data"]):
        assert item["index"] == index
        assert item["object"] == "embedding"
        assert len(item["embedding"]) == hidden
        assert math.hypot(*item["embedding"]) == pytest.approx(1, rel=1e-5)


def test_base64_is_the_same(mean_server):
    (floats,) = v1(mean_server, TEXTS[1])
    (text,) = v1(mean_server, TEXTS[1], encoding_format="base64")
    assert array("f", base64.b64decode(text)).tolist() == pytest.approx(floats, rel=1e-7)


def test_forms_of_the_input(mean_server):
    ids = mean_server.post("/tokenize", {"content": TEXTS[1]})["tokens"]
    (one,) = v1(mean_server, TEXTS[1])
    assert v1(mean_server, ids) == [one]
    assert v1(mean_server, [ids, ids]) == [one, one]
    assert mean_server.post("/embedding", {"content": TEXTS[1]}) == [
        {"index": 0, "embedding": [one]}
    ]
    assert mean_server.post("/embeddings", {"input": [TEXTS[1]]})[0]["embedding"] == [one]


def test_norms(mean_server):
    def embed(norm):
        reply = mean_server.post("/embedding", {"content": "hello", "embd_normalize": norm})
        return reply[0]["embedding"][0]

    plain = embed(-1)
    size = math.hypot(*plain)
    assert abs(size - 1) > 0.1
    assert embed(2) == pytest.approx([x / size for x in plain], rel=1e-5)
    assert sum(map(abs, embed(1))) == pytest.approx(1, rel=1e-5)
    assert max(map(abs, embed(0))) == pytest.approx(32760, rel=1e-5)
    assert sum(abs(x) ** 3 for x in embed(3)) == pytest.approx(1, rel=1e-5)


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"input": ""},
        {"input": []},
        {"input": ["a", ""]},
        {"input": 5},
        {"input": [[]]},
        {"input": "a", "encoding_format": "hex"},
        {"input": "a", "embd_normalize": -2},
        {"input": ["a"] * 3000},
        {"input": [10**6]},
        {"input": "x y " * 3000},
    ],
)
def test_bad_inputs_are_400(mean_server, body):
    for path in ("/embedding", "/v1/embeddings"):
        mean_server.post(path, body, 400)
    assert mean_server.service.slots.num_busy == 0


def test_beside_answers_and_whatever_else_runs(mean_server):
    """In the same batches, and the same numbers as alone."""
    alone = [v1(mean_server, text)[0] for text in TEXTS]
    text = mean_server.complete(n_predict=40, ignore_eos=True)["content"]
    results, answers = [], []

    def answer():
        answers.append(mean_server.complete(n_predict=40, ignore_eos=True)["content"])

    threads = [threading.Thread(target=answer) for _ in range(3)]
    threads.append(threading.Thread(target=lambda: results.append(v1(mean_server, TEXTS * 4))))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [text] * 3
    assert results[0] == alone * 4


def test_the_prefix_cache_changes_nothing(start_server):
    for pooling in ("mean", "last", "cls"):
        server = start_server(embeddings=True, pooling=pooling)
        first = v1(server, TEXTS[2])
        server.complete(TEXTS[2], n_predict=1)
        assert v1(server, TEXTS[2]) == first
        assert v1(server, TEXTS[2] + "z") != first or pooling == "cls"


def test_no_pooling_gives_a_vector_for_each_token(start_server):
    server = start_server(embeddings=True)  # the file says nothing about pooling
    (item,) = server.post("/embedding", {"content": GREETING})
    assert len(item["embedding"]) == len(server.post("/tokenize", {"content": GREETING})["tokens"])
    error = server.post("/v1/embeddings", {"input": "a"}, 400)["error"]
    assert "Pooling type 'none' is not OAI compatible" in error["message"]
    last = start_server(embeddings=True, pooling="last")
    (vector,) = last.post("/embedding", {"content": GREETING, "embd_normalize": -1})[0]["embedding"]
    assert vector == item["embedding"][-1]


def test_switched_off_it_is_501(server):
    for path in ("/embedding", "/embeddings", "/v1/embeddings"):
        error = server.post(path, {"input": "a"}, 501)["error"]
        assert error["type"] == "not_supported_error"
        assert "--embeddings" in error["message"]


def test_the_openai_client(mean_server):
    client = openai.OpenAI(base_url=mean_server.url + "/v1", api_key="none")
    reply = client.embeddings.create(model="tiny", input=TEXTS[:2])  # asks for base64
    assert reply.data[0].embedding == pytest.approx(v1(mean_server, TEXTS[0])[0], rel=1e-6)


def test_a_client_that_leaves_frees_its_work(start_server):
    server = start_server(embeddings=True, pooling="mean")
    real_step = server.engine.step

    def step():
        time.sleep(0.1)
        return real_step()

    server.engine.step = step
    with pytest.raises(httpx.TimeoutException):
        httpx.post(server.url + "/v1/embeddings", json={"input": ["a b c"] * 200}, timeout=0.3)
    for _ in range(200):
        if server.service.slots.num_busy == 0 and not server.engine.has_work:
            break
        time.sleep(0.05)
    assert not server.engine.has_work
    assert server.engine.stats.num_requests < 100
