"""Several models behind one port."""

from __future__ import annotations

import asyncio
import shutil
import threading
import time
from pathlib import Path

import httpx
import pytest
from conftest import GREETING, running, tiny_config

from rillm.engine.config import CacheMemoryError
from rillm.errors import RillmError
from rillm.server.errors import ApiError
from rillm.server.models_pool import ModelPool, find_models


@pytest.fixture(scope="module")
def folder(model_path, tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    for name in ("a", "b"):
        shutil.copy(model_path, folder / f"{name}.gguf")
    (folder / "sub").mkdir()
    shutil.copy(model_path, folder / "sub" / "c.gguf")
    (folder / "broken.gguf").write_bytes(b"GGUF" + bytes(100))
    return folder


@pytest.fixture
def pool(folder):
    with running(tiny_config(folder, models_max=2, context_length=256)) as server:
        yield server


def ask(server, model, status=200, **fields):
    body = {"prompt": GREETING, "n_predict": 3, "temperature": 0, "model": model, **fields}
    return server.post("/completion", body, status)


def statuses(server):
    data = server.get("/v1/models")["data"]
    return {item["id"]: item["status"]["value"] for item in data}


def loaded(server):
    return {name for name, status in statuses(server).items() if status == "loaded"}


def test_find_models(folder, tmp_path):
    assert list(find_models([folder])) == ["a", "b", "broken", "c"]
    for part in (1, 2):
        (tmp_path / f"big-0000{part}-of-00002.gguf").touch()
    assert find_models([tmp_path]) == {"big": tmp_path / "big-00001-of-00002.gguf"}
    assert list(find_models([folder / "a.gguf", tmp_path])) == ["a", "big"]
    with pytest.raises(RillmError, match="same name"):
        find_models([folder, folder / "a.gguf"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(RillmError, match=r"no \.gguf file"):
        find_models([tmp_path / "empty"])
    with pytest.raises(RillmError, match="no such file"):
        find_models([tmp_path / "none.gguf"])


def test_requests_choose_and_the_least_recently_used_leaves(pool):
    assert set(statuses(pool).values()) == {"unloaded"}
    assert pool.get("/health") == {"status": "ok"}
    assert ask(pool, "a")["model"] == "a"
    assert ask(pool, "b")["model"] == "b"
    assert loaded(pool) == {"a", "b"}
    ask(pool, "a")
    assert ask(pool, "c")["model"] == "c"  # b was used before a
    assert loaded(pool) == {"a", "c"}
    meta = {item["id"]: "meta" in item for item in pool.get("/v1/models")["data"]}
    assert meta == {"a": True, "b": False, "broken": False, "c": True}
    assert pool.get("/props", params={"model": "c"})["model_alias"] == "c"
    reply = pool.post("/v1/chat/completions", {
        "model": "b", "max_tokens": 2, "messages": [{"role": "user", "content": "hello"}]
    })  # fmt: skip
    assert reply["model"] == "b"


def test_unknown_and_broken_models(pool):
    error = ask(pool, "x", 404)["error"]
    assert "model 'x' not found" in error["message"]
    assert "a, b, broken, c" in error["message"]
    assert "model" in ask(pool, 5, 400)["error"]["message"]
    for _ in range(2):  # it can be tried again
        error = ask(pool, "broken", 500)["error"]
        assert "model broken cannot be loaded" in error["message"]
    assert ask(pool, "a")["model"] == "a"
    assert pool.post("/tokenize", {"content": "x", "model": "b"})["tokens"]


def test_without_a_name_the_first_one_answers(pool):
    assert pool.post("/completion", {"prompt": "a", "n_predict": 1})["model"] == "a"


def test_a_look_loads_nothing(pool):
    pool.get("/slots", 503, params={"model": "a"})
    assert loaded(pool) == set()
    ask(pool, "a")
    assert len(pool.get("/slots", params={"model": "a"})) == 4


def slow(service, seconds=0.05):
    engine = service.loaded.engine
    real = engine.step

    def step():
        time.sleep(seconds)
        return real()

    engine.step = step


def test_a_model_in_use_stays_until_its_answers_are_complete(folder):
    """And who asks for it meanwhile, or for the new one, is served in turn."""
    with running(tiny_config(folder, models_max=1, context_length=256)) as server:
        ask(server, "a")
        slow(server.server.state.pool.models["a"].service)
        done = []

        def run(name, **fields):
            done.append((name, ask(server, name, ignore_eos=True, **fields)["tokens_predicted"]))

        def start(name, **fields):
            thread = threading.Thread(target=run, args=(name,), kwargs=fields)
            thread.start()
            return thread

        threads = [start("a", n_predict=40)]
        time.sleep(0.2)
        threads.append(start("b", n_predict=4))  # needs the room of a
        time.sleep(0.2)
        threads.append(start("a", n_predict=5))  # comes after b: a is loaded once more
        time.sleep(0.2)
        assert loaded(server) == {"a"}
        for thread in threads:
            thread.join(30)
        assert done == [("a", 40), ("b", 4), ("a", 5)]
        assert loaded(server) == {"a"}
        assert all(not model.num_users for model in server.server.state.pool.models.values())


def test_streams_hold_their_model(folder):
    with running(tiny_config(folder, models_max=1, context_length=256)) as server:
        ask(server, "a")
        slow(server.server.state.pool.models["a"].service)
        body = {"prompt": "x", "model": "a", "n_predict": 30, "ignore_eos": True}
        other = threading.Thread(target=ask, args=(server, "b"))
        events = []
        with server.client.stream("POST", "/completion", json={**body, "stream": True}) as reply:
            for line in reply.iter_lines():
                if line.startswith("data: "):
                    if not events:
                        other.start()
                    events.append(line)
        other.join(30)
        assert len(events) > 20
        assert '"stop_type":"limit"' in events[-1]
        assert loaded(server) == {"b"}


def test_many_requests_for_many_models(folder):
    """None is lost and none waits for ever."""
    with running(tiny_config(folder, models_max=1, context_length=256)) as server:
        results = []

        def run(name):
            reply = httpx.post(
                server.url + "/completion",
                json={"prompt": "a", "n_predict": 3, "model": name},
                timeout=60,
            )
            results.append((name, reply.json()["model"]))

        names = [name for _ in range(6) for name in ("a", "b", "c")]
        threads = [threading.Thread(target=run, args=(name,)) for name in names]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert sorted(results) == sorted((name, name) for name in names)


def test_a_client_that_leaves_while_its_model_loads(folder, monkeypatch):
    with running(tiny_config(folder, models_max=1, context_length=256)) as server:
        ask(server, "a")
        pool = server.server.state.pool
        slow(pool.models["a"].service)
        body = {"prompt": "x", "model": "a", "n_predict": 30, "ignore_eos": True}
        first = threading.Thread(target=lambda: server.post("/completion", body))
        first.start()
        time.sleep(0.2)
        with pytest.raises(httpx.TimeoutException):
            httpx.post(server.url + "/completion", json={**body, "model": "b"}, timeout=0.3)
        first.join(30)
        assert ask(server, "a")["model"] == "a"
        deadline = time.monotonic() + 10
        while any(m.num_users or m.waiters for m in pool.models.values()):
            assert time.monotonic() < deadline
            time.sleep(0.01)


def test_a_stop_ends_who_waits(folder):
    with running(tiny_config(folder, models_max=1, context_length=256)) as server:
        ask(server, "a")
        slow(server.server.state.pool.models["a"].service)
        replies = []

        def run(name, n_predict):
            body = {"prompt": "x", "model": name, "n_predict": n_predict, "ignore_eos": True}
            replies.append(httpx.post(server.url + "/completion", json=body, timeout=60))

        threads = [
            threading.Thread(target=run, args=("a", 200)),
            threading.Thread(target=run, args=("b", 2)),
        ]
        for thread in threads:
            thread.start()
            time.sleep(0.2)
        started = time.monotonic()
        server.server.stop(drain=False)
        for thread in threads:
            thread.join(30)
        assert time.monotonic() - started < 5
        assert [reply.status_code for reply in replies] == [503, 503]


def test_models_are_loaded_and_unloaded_when_told(folder, server):
    config = tiny_config(folder, models_autoload=False, context_length=256)
    with running(config) as pool:
        error = ask(pool, "a", 400)["error"]
        assert error["message"] == "model a is not loaded: POST /models/load loads it"
        assert pool.post("/models/load", {"model": "a"}) == {"success": True}
        assert loaded(pool) == {"a"}
        assert ask(pool, "a")["model"] == "a"
        again = pool.post("/models/load", {"model": "a"}, 400)["error"]
        assert again["message"] == "model is already loaded"
        slow(pool.server.state.pool.models["a"].service)
        answers = []
        fields = {"n_predict": 20, "ignore_eos": True}
        thread = threading.Thread(target=lambda: answers.append(ask(pool, "a", **fields)))
        thread.start()
        time.sleep(0.2)
        assert pool.post("/models/unload", {"model": "a"}) == {"success": True}
        thread.join(30)
        assert answers[0]["tokens_predicted"] == 20  # it waited for who was there
        assert loaded(pool) == set()
        error = pool.post("/models/unload", {"model": "a"}, 400)["error"]
        assert error["message"] == "model is not loaded"
        pool.post("/models/load", {"model": "x"}, 404)
        pool.post("/models/load", {"model": "broken"}, 500)
        pool.post("/models/load", {}, 400)
    error = server.post("/models/load", {"model": "tiny"}, 501)["error"]
    assert "one model" in error["message"]


def test_models_share_a_budget_of_memory(folder):
    """What is loaded never takes more; who was used least recently makes room."""
    size = (folder / "a.gguf").stat().st_size
    cache = 4 << 20
    options = {"models_max": 0, "cache_memory": cache, "context_length": 256}
    with running(tiny_config(folder, models_memory=2 * (size + cache), **options)) as server:
        for name in ("a", "b", "c"):
            ask(server, name)
        assert loaded(server) == {"b", "c"}
        models = server.server.state.pool.models.values()
        services = [model.service for model in models if model.service]
        assert sum(service.loaded.num_bytes for service in services) <= 2 * (size + cache)
    with running(tiny_config(folder, models_memory=size + cache - 1, **options)) as server:
        error = ask(server, "a", 500)["error"]
        assert "left of the memory set aside" in error["message"]
    with running(tiny_config(folder, models_memory=size // 2)) as server:
        assert "its weights take" in ask(server, "a", 500)["error"]["message"]


class StubService:
    """As much of a Service as a pool uses."""

    def __init__(self, pool_log, name):
        self.log, self.name = pool_log, name

    def abort_all(self):
        self.log.append(f"abort {self.name}")

    async def close(self):
        self.log.append(f"close {self.name}")


def with_pool(run, *, max_loaded=0, fits=9, names="abc"):
    """Runs a coroutine on a pool in whose memory `fits` models have room; returns what it did."""
    log, loaded = [], set()

    async def load(name, path, memory):
        await asyncio.sleep(0)
        if len(loaded) >= fits:
            raise CacheMemoryError("no memory")
        loaded.add(name)
        log.append(f"load {name}")
        service = StubService(log, name)
        real_close = service.close

        async def close():
            loaded.discard(name)
            await real_close()

        service.close = close
        return service

    async def main():
        pool = ModelPool({name: Path(name) for name in names}, max_loaded, load, lambda text: None)
        await asyncio.wait_for(run(pool), 10)
        await pool.close()

    asyncio.run(main())
    return log


def test_a_model_that_does_not_fit_takes_the_room_of_idle_ones():
    async def run(pool):
        for name in "abcb":
            model = pool.find(name)
            assert (await pool.acquire(model)).name == name
            pool.release(model)

    log = with_pool(run, fits=2)
    assert log[:5] == ["load a", "load b", "close a", "load c", "abort b"]
    with pytest.raises(ApiError, match="model a cannot be loaded: no memory"):
        with_pool(run, fits=0)


def test_nobody_starves_while_others_keep_coming():
    """Requests for a never pause, and b gets its turn all the same."""

    async def run(pool):
        a, b = pool.find("a"), pool.find("b")
        served = []

        async def use(model, seconds):
            await pool.acquire(model)
            await asyncio.sleep(seconds)
            served.append(model.name)
            pool.release(model)

        tasks = []
        for i in range(30):
            tasks.append(asyncio.ensure_future(use(a, 0.02)))
            if i == 5:
                tasks.append(asyncio.ensure_future(use(b, 0.0)))
            await asyncio.sleep(0.005)
        await asyncio.gather(*tasks)
        assert served.count("a") == 30
        assert 0 < served.index("b") < 15

    log = with_pool(run, max_loaded=1)
    assert log[:4] == ["load a", "close a", "load b", "close b"]


def test_who_is_cancelled_while_waiting_holds_nothing():
    async def run(pool):
        a, b = pool.find("a"), pool.find("b")
        await pool.acquire(a)
        waiting = [asyncio.ensure_future(pool.acquire(b)) for _ in range(3)]
        await asyncio.sleep(0.01)
        waiting[0].cancel()
        await asyncio.sleep(0)
        pool.release(a)
        await asyncio.gather(*waiting[1:])
        assert b.num_users == 2
        assert not b.waiters

    with_pool(run, max_loaded=1)


def test_one_model_goes_by_any_name(server):
    reply = server.post("/completion", {"prompt": "a", "n_predict": 1, "model": "gpt-4"})
    assert reply["model"] == "tiny"
    assert "status" not in server.get("/v1/models")["data"][0]


def test_settings(folder, model_path):
    with pytest.raises(RillmError, match="alias"):
        tiny_config(folder, alias="x")
    config = tiny_config([model_path, folder / "b.gguf"])
    assert config.has_pool
    assert config.engine_config().cache_share == pytest.approx(0.5 / 4)
    assert not tiny_config([model_path]).has_pool
