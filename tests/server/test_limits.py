"""Every limit of config.py, and clients that try to outlast the server."""

from __future__ import annotations

import json
import logging
import re
import socket
import time

import pytest
from conftest import GREETING, running, tiny_config

GOOD = {"prompt": "a", "n_predict": 1}


@pytest.fixture(scope="module")
def small(model_path):
    """Everything small."""
    config = tiny_config(
        model_path, max_choices=3, max_stops=2, max_logit_bias=2, max_probs=4, max_breakers=2,
        max_schema_bytes=300, max_n_predict=5, max_body_bytes=20_000, max_header_bytes=4096,
        header_timeout=0.6, body_timeout=0.6, send_timeout=1.0, max_inputs=2, embeddings=True,
        pooling="mean", access_log=True, keep_alive=3,
    )  # fmt: skip
    with running(config) as server:
        yield server


LONG_SCHEMA = {"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(40)}}


@pytest.mark.parametrize(
    ("path", "fields", "named"),
    [
        ("/completion", {"n": 4}, "n"),
        ("/completion", {"prompt": ["a"] * 4}, "prompt"),
        ("/completion", {"prompt": ["a", "b"], "n": 2}, "n"),
        ("/completion", {"stop": ["a", "b", "c"]}, "stop"),
        ("/completion", {"logit_bias": [[1, 1], [2, 1], [3, 1]]}, "logit_bias"),
        ("/completion", {"logit_bias": {"1": 1, "2": 1, "3": 1}}, "logit_bias"),
        ("/completion", {"n_probs": 5}, "n_probs"),
        ("/v1/completions", {"logprobs": 5}, "n_probs"),
        ("/completion", {"dry_sequence_breakers": ["a", "b", "c"]}, "dry_sequence_breakers"),
        ("/completion", {"json_schema": LONG_SCHEMA}, "json_schema"),
        ("/completion", {"grammar": 'root ::= "' + "a" * 400 + '"'}, "grammar"),
        ("/v1/embeddings", {"input": ["a"] * 3}, "input"),
        ("/completion", {"n_predict": -2}, "n_predict"),
        ("/completion", {"prompt": "x " * 4000}, "context"),
    ],
)
def test_sizes(small, path, fields, named):
    error = small.post(path, {**GOOD, **fields}, 400)["error"]
    assert named in error["message"]
    assert small.post("/completion", GOOD)["stop"]


def test_answers_have_a_longest_length(small):
    for asked in (-1, 1000):
        reply = small.complete(n_predict=asked, ignore_eos=True)
        assert reply["tokens_predicted"] == 5
        assert reply["generation_settings"]["n_predict"] == 5


def test_bodies_have_a_largest_size(small):
    assert small.post("/tokenize", {"content": "x" * 19_000})
    assert small.post("/tokenize", {"content": "x" * 21_000}, 413)


# ---- raw connections ---------------------------------------------------------------------


def connect(server):
    host, port = server.url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=20)


def read_all(connection):
    data = b""
    try:
        while part := connection.recv(65536):
            data += part
    except ConnectionResetError:
        pass
    return data


def request(body: bytes, *headers: str) -> bytes:
    lines = ["POST /completion HTTP/1.1", "host: x", f"content-length: {len(body)}", *headers]
    return ("\r\n".join(lines) + "\r\n\r\n").encode() + body


def trickle(connection, data, seconds):
    """One byte after the other, until nobody listens any more; returns how long that took."""
    started = time.monotonic()
    try:
        for byte in data:
            connection.sendall(bytes([byte]))
            time.sleep(seconds)
            if time.monotonic() - started > 10:
                break
    except OSError:
        pass
    return time.monotonic() - started


def test_slow_headers(small):
    """Slowloris: many connections that never finish their headers keep nobody else out."""
    many = [connect(small) for _ in range(100)]
    for connection in many:
        connection.sendall(b"POST /completion HTTP/1.1\r\nhost: x\r\n")
    assert small.post("/completion", GOOD)["stop"]
    with connect(small) as connection:
        assert trickle(connection, request(b"{}", "x-filler: " + "a" * 3000), 0.02) < 5
    for connection in many:
        assert read_all(connection).startswith(b"HTTP/1.1 408 ")
        connection.close()
    with connect(small) as silent:  # not even a byte
        started = time.monotonic()
        read_all(silent)
        assert time.monotonic() - started < 5


def test_slow_headers_of_a_second_request(small):
    body = b'{"prompt": "a", "n_predict": 1}'
    with connect(small) as connection:
        connection.sendall(request(body))
        data = b""
        while b'"stop":true' not in data:
            data += connection.recv(65536)
        time.sleep(1)  # idle between requests: keep-alive's business, not the headers'
        connection.sendall(request(body))
        assert connection.recv(65536).startswith(b"HTTP/1.1 200 ")
        assert trickle(connection, request(body, "x-filler: " + "a" * 3000), 0.02) < 5


def test_slow_body(small):
    with connect(small) as connection:
        connection.sendall(request(b"")[:-4].replace(b"length: 0", b"length: 5000") + b"\r\n\r\n")
        assert trickle(connection, b'{"prompt": "' + b"a" * 3000, 0.02) < 5
    with connect(small) as connection:
        connection.sendall(request(b"")[:-4].replace(b"length: 0", b"length: 50") + b"\r\n\r\n{")
        assert read_all(connection).startswith(b"HTTP/1.1 408 ")


def test_large_headers(small):
    with connect(small) as connection:
        connection.sendall(request(b"{}", "x-filler: " + "a" * 100_000))
        assert read_all(connection)[:12] in (b"HTTP/1.1 400", b"HTTP/1.1 431", b"")
    with connect(small) as connection:  # in one piece
        connection.sendall(request(b"{}", "x-filler: " + "a" * 4100))
        reply = read_all(connection)
        assert reply.startswith(b"HTTP/1.1 431 ")
        assert b"the headers are larger than 4096 bytes" in reply
    reply = small.client.get("/health", headers={"x-filler": "a" * 3000})
    assert reply.status_code == 200
    assert small.post("/completion", GOOD)["stop"]


def test_a_client_that_does_not_read_its_stream(start_server):
    """The same, while its answer is still being made: that ends with the connection."""
    server = start_server(send_timeout=0.5)
    body = {"prompt": "a", "n_predict": 1500, "ignore_eos": True, "n_probs": 300, "stream": True}
    with connect(server) as connection:
        connection.sendall(request(json.dumps(body).encode()))
        deadline = time.monotonic() + 60
        while not server.service.slots.num_busy:
            assert time.monotonic() < deadline
        while server.service.slots.num_busy:
            assert time.monotonic() < deadline, "it is still waited for"
            time.sleep(0.05)
    assert server.service.slots.slots[0].last.num_decoded < 1500


def test_a_client_that_does_not_read(start_server):
    """Its connection is given up, and not kept until the end of time."""
    server = start_server(send_timeout=0.5, embeddings=True)
    server.client.close()
    open_now = server.server._uvicorn.server_state.connections
    with connect(server) as connection:
        texts = json.dumps(["a b c " * 200] * 12).encode()  # more numbers than any buffer holds
        body = b'{"content": ' + texts + b"}"
        connection.sendall(request(body).replace(b"/completion", b"/embedding"))
        deadline = time.monotonic() + 30
        while not open_now:
            assert time.monotonic() < deadline
        while open_now:
            assert time.monotonic() < deadline, "it is still waited for"
            time.sleep(0.05)


def test_garbage(small):
    for data in (b"\x00" * 100, b"GET\r\n\r\n", b"GET / HTTP/1\r\n\r\n", b"\x16\x03\x01" * 50):
        with connect(small) as connection:
            connection.sendall(data)
            assert read_all(connection)[:12] in (b"HTTP/1.1 400", b"HTTP/1.1 408", b"")
    assert small.post("/completion", GOOD)["stop"]


# ---- what is told to whom ----------------------------------------------------------------


def test_the_access_log_says_nothing_of_what_was_asked(small, caplog):
    secret = "xyzzy-secret"
    with caplog.at_level(logging.INFO, logger="rillm.access"):
        small.post("/completion", {**GOOD, "prompt": secret, "user": secret})
        small.client.get(f"/health?key={secret}", headers={"Authorization": f"Bearer {secret}"})
        small.post("/completion", {"prompt": 5, "note": secret}, 400)
    lines = [record.getMessage() for record in caplog.records if record.name == "rillm.access"]
    assert [re.sub(r"[\d.]+ ms", "T", line) for line in lines] == [
        "POST /completion 200 T", "GET /health 200 T", "POST /completion 400 T",
    ]  # fmt: skip
    assert secret not in caplog.text


def test_keys_are_compared_in_constant_time(start_server, monkeypatch):
    import rillm.server.gate as gate

    seen = []
    real = gate.hmac.compare_digest
    monkeypatch.setattr(gate.hmac, "compare_digest", lambda a, b: seen.append((a, b)) or real(a, b))
    server = start_server(api_keys=("one", "two"))
    server.client.get("/props", headers={"Authorization": "Bearer one"})
    assert [pair for pair in seen if pair[0] == b"one"] == [(b"one", b"one"), (b"one", b"two")]


def test_nothing_listens_beyond_this_machine_unless_told():
    from rillm.server.config import ServerConfig

    assert ServerConfig("x.gguf").host == "127.0.0.1"


def test_greeting_is_still_answered(small):
    assert small.complete(GREETING)["stop"]
