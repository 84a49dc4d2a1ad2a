"""What holds for every endpoint: readiness, keys, CORS, errors, limits, clients that leave."""

from __future__ import annotations

import json
import socket
import threading
import time
from contextlib import nullcontext

import httpx
import pytest
from conftest import GREETING, running, tiny_config

import rillm.server.run
from rillm.errors import RillmError
from rillm.server.config import ServerConfig
from rillm.server.run import Server


def test_health(server):
    assert server.get("/health") == {"status": "ok"}
    assert server.get("/v1/health") == {"status": "ok"}


def test_unknown_routes_and_methods(server):
    error = server.get("/no/such/thing", 404)["error"]
    assert error == {"code": 404, "message": "File Not Found", "type": "not_found_error"}
    assert server.get("/completion", 405)["error"]["code"] == 405


def test_while_loading_everything_is_503_with_the_progress(model_path, monkeypatch):
    real, may_load = rillm.server.run.load_engine, threading.Event()

    def slow(*args, progress, **options):
        progress(30, 40)
        assert may_load.wait(30)
        return real(*args, progress=progress, **options)

    monkeypatch.setattr(rillm.server.run, "load_engine", slow)
    with running(tiny_config(model_path, api_keys=("k",)), wait=False) as server:
        deadline = time.monotonic() + 10
        while server.server.state.progress == 0 and time.monotonic() < deadline:
            time.sleep(0.01)
        for path in ("/health", "/completion", "/no/such/thing"):
            error = server.get(path, 503)["error"]
            assert error["message"] == "Loading model"
            assert error["type"] == "unavailable_error"
            assert error["progress"] == 0.75
        assert server.client.options("/completion").status_code == 200
        may_load.set()
        assert server.server.ready.wait(30)
        assert server.get("/health") == {"status": "ok"}


def test_loading_can_be_stopped(model_path, monkeypatch):
    def endless(*args, progress, **options):
        while True:
            progress(1, 2)
            time.sleep(0.01)

    monkeypatch.setattr(rillm.server.run, "load_engine", endless)
    with running(tiny_config(model_path), wait=False) as server:
        server.get("/health", 503)
    assert server.error is None


def is_refused(url):
    try:
        httpx.get(url)
    except httpx.TransportError:
        return True
    return False


def test_stopped_at_the_very_end_of_loading(model_path, monkeypatch):
    real, may_end = rillm.server.run.load_engine, threading.Event()

    def slow(*args, **options):
        loaded = real(*args, **options)
        assert may_end.wait(30)
        return loaded

    monkeypatch.setattr(rillm.server.run, "load_engine", slow)
    with running(tiny_config(model_path), wait=False) as server:
        server.get("/health", 503)
        server.server.stop()
        deadline = time.monotonic() + 30
        while not is_refused(server.url):
            assert time.monotonic() < deadline
        may_end.set()
    assert server.error is None
    assert "ready" not in server.messages.getvalue()


def test_a_model_that_cannot_be_loaded_ends_the_server(tmp_path):
    bad = tmp_path / "bad.gguf"
    bad.write_bytes(b"GGUF" + bytes(100))
    server = Server(tiny_config(bad))
    with pytest.raises(RillmError, match=r"bad\.gguf"):
        server.run()


def test_a_bad_chat_template_ends_the_server(model_path):
    for template in ("glm-4", "{% if %}"):
        server = Server(tiny_config(model_path, chat_template=template))
        with pytest.raises(RillmError, match="template"):
            server.run()


def test_a_taken_port_is_one_clear_error(server, model_path):
    port = int(server.url.rpartition(":")[2])
    with pytest.raises(RillmError, match=f"cannot listen on 127.0.0.1 port {port}"):
        Server(tiny_config(model_path, port=port))


def test_the_port_can_be_had_again_at_once(model_path):
    port = 0
    for _ in range(2):
        with running(tiny_config(model_path, port=port)) as server:
            port = int(server.url.rpartition(":")[2])
            assert server.complete(n_predict=2)["stop"]


def test_keys(start_server):
    server = start_server(api_keys=("first-key", "second-key"))
    assert server.get("/health") == {"status": "ok"}
    body = {"prompt": "a", "n_predict": 1}
    for headers in (
        {},
        {"Authorization": "Bearer wrong"},
        {"Authorization": "first-key"},
        {"X-Api-Key": "first-keyy"},
        {"X-Api-Key": ""},
    ):
        reply = server.client.post("/completion", json=body, headers=headers)
        assert reply.status_code == 401
        error = reply.json()["error"]
        assert error["message"] == "Invalid API Key"
        assert error["type"] == "authentication_error"
    for headers in (
        {"Authorization": "Bearer first-key"},
        {"Authorization": "bearer second-key"},
        {"X-Api-Key": "second-key"},
    ):
        assert server.post("/completion", body, headers=headers)["stop"]
    assert server.client.get("/no/such").status_code == 401  # says nothing about what exists
    assert server.client.options("/completion").status_code == 200


def test_cors(server, start_server):
    reply = server.client.options("/completion", headers={"Origin": "http://a.example"})
    assert reply.status_code == 200
    assert reply.content == b""
    assert reply.headers["access-control-allow-origin"] == "http://a.example"
    assert reply.headers["access-control-allow-credentials"] == "true"
    assert reply.headers["access-control-allow-methods"] == "GET, POST, DELETE, OPTIONS"
    assert reply.headers["access-control-allow-headers"] == "*"
    for path in ("/health", "/no/such"):  # errors as well: a page must be able to read them
        reply = server.client.get(path, headers={"Origin": "http://a.example"})
        assert reply.headers["access-control-allow-origin"] == "http://a.example"
    assert "access-control-allow-origin" not in server.client.get("/health").headers
    strict = start_server(cors_origins=("http://good.example",))
    for origin, allowed in (("http://good.example", True), ("http://bad.example", False)):
        headers = strict.client.get("/health", headers={"Origin": origin}).headers
        assert ("access-control-allow-origin" in headers) is allowed


def test_large_bodies_are_refused(start_server):
    server = start_server(max_body_bytes=2000)
    assert server.complete("a", n_predict=1)["stop"]
    error = server.post("/completion", {"prompt": "x" * 3000}, 413)["error"]
    assert "2000 bytes" in error["message"]

    def chunks():  # no content-length to go by
        for _ in range(10):
            yield b" " * 1000

    assert server.client.post("/completion", content=chunks()).status_code == 413


def test_slow_bodies_are_refused(start_server):
    server = start_server(body_timeout=0.3)

    def chunks():
        yield b'{"prompt":'
        time.sleep(1.5)
        yield b'"a"}'

    assert server.client.post("/completion", content=chunks()).status_code == 408


def wait_until(condition, seconds=10):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


LONG = {"prompt": GREETING, "n_predict": -1, "ignore_eos": True, "temperature": 0}


def test_the_queue_has_an_end(start_server):
    server = start_server(parallel=1, max_waiting=1)
    may_step, real_step = threading.Event(), server.engine.step

    def step():
        assert may_step.wait(30)
        return real_step()

    server.engine.step = step
    body = {"prompt": "a", "n": 2, "n_predict": 1}
    replies = []
    asking = threading.Thread(target=lambda: replies.append(server.post("/completion", body)))
    asking.start()
    wait_until(lambda: len(server.service.slots.waiting) == 1)
    error = server.post("/completion", body, 503)["error"]
    assert error["type"] == "unavailable_error"
    may_step.set()
    asking.join(30)
    assert len(replies[0]) == 2
    assert server.post("/completion", body)


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_frees_its_work_within_a_step(start_server, stream):
    server = start_server()
    steps = []
    real_step = server.engine.step

    def step():
        steps.append(len(server.engine.scheduler.running))
        time.sleep(0.02)  # so that an answer takes much longer than this test
        return real_step()

    server.engine.step = step
    with (
        httpx.Client(base_url=server.url, timeout=30 if stream else 0.5) as client,
        nullcontext() if stream else pytest.raises(httpx.ReadTimeout),
        client.stream("POST", "/completion", json={**LONG, "stream": stream}) as reply,
    ):
        for _ in reply.iter_bytes():
            if len(steps) > 5:
                break
    wait_until(lambda: not server.engine.has_work)
    assert 5 < len(steps) < 150, "it ended early: the context has 2048 tokens"
    assert server.service.slots.num_busy == 0


def test_a_client_that_leaves_in_prefill(start_server):
    server = start_server(context_length=2048)
    steps = []
    real_step = server.engine.step

    def step():
        steps.append(1)
        time.sleep(0.1)
        return real_step()

    server.engine.step = step
    prompt = server.service.tokenizer.encode("a b c d e f " * 400)[:2000]
    with (
        httpx.Client(base_url=server.url, timeout=0.25) as client,
        pytest.raises(httpx.TimeoutException),
    ):
        client.post("/completion", json={"prompt": prompt, "n_predict": 1})
    wait_until(lambda: not server.engine.has_work)
    assert server.engine.stats.generated_tokens == 0
    assert 0 < server.engine.stats.prompt_tokens < 2000


def test_sigterm_lets_running_requests_finish(model_path):
    with running(tiny_config(model_path)) as server:
        replies = []
        body = {**LONG, "n_predict": 200}
        asking = threading.Thread(target=lambda: replies.append(server.post("/completion", body)))
        asking.start()
        wait_until(lambda: server.engine.stats.generated_tokens > 3)
        server.server.stop(drain=True)
        asking.join(30)
        assert replies[0]["tokens_predicted"] == 200
        with pytest.raises(httpx.TransportError):
            httpx.get(server.url + "/health")


def test_ctrl_c_ends_running_requests(model_path):
    with running(tiny_config(model_path)) as server:
        real_step = server.engine.step

        def step():
            time.sleep(0.02)
            return real_step()

        server.engine.step = step
        replies = []
        asking = threading.Thread(
            target=lambda: replies.append(server.client.post("/completion", json=LONG))
        )
        asking.start()
        wait_until(lambda: server.engine.stats.generated_tokens > 3)
        started = time.monotonic()
        server.server.stop(drain=False)
        asking.join(30)
        assert time.monotonic() - started < 5
        assert replies[0].status_code == 503
        assert replies[0].json()["error"]["type"] == "unavailable_error"


def test_an_engine_failure_is_500_and_an_event_in_a_stream(start_server):
    server = start_server()
    real_run = server.engine._runner.run
    num_runs = 0

    def run(step):
        nonlocal num_runs
        num_runs += 1
        if num_runs >= 4:
            raise RillmError("the core failed: test")
        return real_run(step)

    server.engine._runner.run = run
    events = server.stream("/completion", {**LONG, "n_predict": 20})
    assert events[-1]["error"] == {
        "code": 500, "message": "the core failed: test", "type": "server_error",
    }  # fmt: skip
    assert any(event.get("content") for event in events[:-1])
    assert server.post("/completion", LONG, 500)["error"]["message"] == "the core failed: test"
    # Before the first event a failure is an ordinary reply.
    reply = server.client.post("/completion", json={**LONG, "stream": True})
    assert reply.status_code == 500
    assert reply.json()["error"]["type"] == "server_error"


def test_silence_in_a_stream_is_filled_with_comments(start_server):
    server = start_server(ping_seconds=0.1)
    real_step = server.engine.step

    def step():
        time.sleep(0.5)
        return real_step()

    server.engine.step = step
    body = {**LONG, "n_predict": 2, "stream": True}
    with server.client.stream("POST", "/completion", json=body) as reply:
        lines = list(reply.iter_lines())
    assert lines.count(":") >= 2
    assert lines[0] == ":"
    assert sum(line.startswith("data: ") for line in lines) == 3


def test_answers_do_not_depend_on_what_else_runs(server):
    bodies = [
        {"prompt": f"{GREETING[:-13]}{i}<|assistant|>", "n_predict": 16, "seed": i}
        for i in range(10)
    ]
    alone = [server.post("/completion", body)["content"] for body in bodies]
    together = [""] * len(bodies)

    def ask(i):
        together[i] = httpx.post(server.url + "/completion", json=bodies[i], timeout=60).json()[
            "content"
        ]

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(len(bodies))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert together == alone


@pytest.mark.parametrize(
    "fields",
    [
        {"port": 70000},
        {"n_predict": -2},
        {"reasoning_format": "x"},
        {"ssl_cert": "a.pem"},
        {"api_keys": ("",)},
        {"slot_save_path": "/no/such/folder"},
        {"sampling": {"top_p": 3}},
        {"parallel": 0},
        {"cache_type": "q3"},
    ],
)
def test_bad_settings_are_refused(fields):
    with pytest.raises(RillmError):
        ServerConfig("model.gguf", **fields)


def raw_stream(server, version):
    """A stream's bytes as they come over the wire: the head, and all that follows."""
    fields = {"prompt": "hello", "n_predict": 8, "temperature": 0, "stream": True}
    body = json.dumps(fields).encode()
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        connection.sendall(
            f"POST /completion HTTP/{version}\r\nHost: {host}\r\nConnection: close\r\n"
            f"Content-Length: {len(body)}\r\n\r\n".encode()
            + body
        )
        with connection.makefile("rb") as reply:
            head, _, rest = reply.read().partition(b"\r\n\r\n")
    return head.lower(), rest


def test_streams_are_framed_as_the_version_of_http_wants(server):
    head, rest = raw_stream(server, "1.1")
    assert b"transfer-encoding: chunked" in head
    chunks = []
    while rest:
        size, _, rest = rest.partition(b"\r\n")
        chunk, rest = rest[: int(size, 16)], rest[int(size, 16) :]
        assert rest.startswith(b"\r\n")
        chunks.append(chunk)
        rest = rest[2:]
    assert chunks.pop() == b""
    assert len(chunks) == 9  # a token each, and the end
    assert all(chunk.startswith(b"data: {") and chunk.endswith(b"}\n\n") for chunk in chunks)
    head, rest = raw_stream(server, "1.0")
    assert b"transfer-encoding" not in head
    events = [event for event in rest.split(b"\n\n") if event]
    assert [json.loads(event[6:])["content"] for event in events] == [
        json.loads(chunk[6:])["content"] for chunk in chunks
    ]
