"""The command line of `rillm serve`: llama-server's flags, and what becomes of them."""

from __future__ import annotations

import logging

import pytest

import rillm.server
from rillm.cli import main
from rillm.server import ServerConfig
from rillm.server.run import _show_access_log


@pytest.fixture
def configured(monkeypatch):
    """What the server is started with, by the arguments after `serve`."""

    def run(*arguments):
        found = []
        monkeypatch.setattr(rillm.server, "serve", lambda config: found.append(config) or 0)
        monkeypatch.setattr("sys.argv", ["rillm", "serve", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        return found[0] if found else ended.value.code

    return run


def test_flags_of_llama_server_are_taken(configured):
    """Those that change nothing here, too: scripts must go on working."""
    config = configured(
        "-m", "x.gguf", "-a", "name", "-t", 2, "-tb", 2, "-c", 4096, "-n", 64, "-b", 256,
        "-ub", 128, "-np", 8, "-cb", "-fa", "on", "-ctk", "q8_0", "-ctv", "q8_0", "--host",
        "0.0.0.0", "--port", 8000, "--api-key", "K", "--jinja", "--reasoning-format", "none",
        "--mlock", "--no-mmap", "--metrics", "--no-slots", "--embedding", "--pooling", "cls",
        "--timeout", 600, "--threads-http", 4, "--temp", 0.5, "--top-k", 10, "--top-p", 0.9,
        "--min-p", 0.1, "-s", 7, "--repeat-penalty", 1.1, "--no-warmup", "--no-ui", "--offline",
        "--repeat_last_n", 32, "--presence-penalty", 0.1, "--frequency-penalty", 0.2,
        "--samplers", "top_k;temperature", "--no-perf", "-kvu", "-ngl", 99, "--cache-ram", 0,
    )  # fmt: skip
    assert config.model_name == "name"
    assert (config.num_threads, config.context_length, config.parallel) == (2, 4096, 8)
    assert (config.n_predict, config.batch_size, config.cache_type) == (64, 256, "q8_0")
    assert (config.host, config.port, config.api_keys) == ("0.0.0.0", 8000, ("K",))
    assert (config.embeddings, config.pooling, config.ui) == (True, "cls", False)
    assert (config.metrics, config.slots, config.reasoning_format) == (True, False, "none")
    assert config.body_timeout == config.send_timeout == 600
    assert config.sampling == {
        "temperature": 0.5, "top_k": 10, "top_p": 0.9, "min_p": 0.1, "seed": 7,
        "repeat_penalty": 1.1, "repeat_last_n": 32, "presence_penalty": 0.1,
        "frequency_penalty": 0.2, "samplers": ["top_k", "temperature"],
    }  # fmt: skip
    assert not config.log_bodies


def test_several_models(configured, tmp_path):
    config = configured("-m", "a.gguf", "-m", "b.gguf", "--models-max", 1)
    assert [path.name for path in config.paths] == ["a.gguf", "b.gguf"]
    assert config.has_pool
    assert config.models_max == 1
    assert configured("--models-dir", tmp_path).has_pool
    assert not configured("-m", "a.gguf").has_pool


def test_thinking_can_be_switched_off_for_all(configured):
    assert configured("-m", "x", "--reasoning-budget", 0).template_options == {
        "enable_thinking": False
    }
    options = configured("-m", "x", "--chat-template-kwargs", '{"a": 1}').template_options
    assert options == {"a": 1}


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ([], "--models-dir"),
        (["-hf", "THUDM/glm-4-9b"], "rillm pull THUDM/glm-4-9b"),
        (["-m", "x", "--reranking"], "rerank"),
        (["-m", "x", "--pooling", "mean"], "--embeddings"),
        (["-m", "x", "--embeddings", "--pooling", "max"], "pooling must be one of"),
        (["-m", "x", "--chat-template-kwargs", "{"], "not JSON"),
        (["-m", "a", "-m", "b", "-a", "c"], "alias"),
    ],
)
def test_what_cannot_be_done_is_said(configured, capsys, arguments, reason):
    assert configured(*arguments) != 0
    assert reason in capsys.readouterr().err.replace("\n", " ")


def test_template_options_are_defaults(start_server):
    server = start_server(
        chat_template="{{ name }} {{ messages[0].content }}", template_options={"name": "A"}
    )
    messages = [{"role": "user", "content": "x"}]
    body = {"messages": messages}
    assert server.post("/apply-template", body)["prompt"].endswith("A x")
    body["chat_template_kwargs"] = {"name": "B"}
    assert server.post("/apply-template", body)["prompt"].endswith("B x")


def test_bodies_are_logged_only_if_asked(start_server, caplog):
    for log_bodies in (False, True):
        server = start_server(log_bodies=log_bodies, access_log=True)
        with caplog.at_level(logging.INFO, logger="rillm.access"):
            server.post("/tokenize", {"content": "xyzzy"})
        assert ("xyzzy" in caplog.text) is log_bodies


def test_a_log_file(tmp_path, monkeypatch):
    logger = logging.Logger("rillm.access")
    monkeypatch.setattr(logging, "getLogger", lambda name=None: logger)
    _show_access_log(tmp_path / "log")
    logger.info("GET / 200")
    assert "GET / 200" in (tmp_path / "log").read_text()
    for handler in logger.handlers:
        handler.close()


def test_limits_have_flags_whose_defaults_are_the_servers(configured):
    usual, plain = configured("-m", "x.gguf"), ServerConfig("x.gguf")
    for name in ServerConfig.__slots__:
        if name not in ("model", "cors_origins"):
            assert getattr(usual, name) == getattr(plain, name), name
    config = configured(
        "-m", "x.gguf", "--max-body", "1M", "--max-headers", "8k", "--max-schema", "1000",
        "--max-predict", 100, "--max-choices", 2, "--max-inputs", 3, "--max-stops", 4,
        "--max-logit-bias", 5, "--max-probs", 6, "--max-waiting", 7, "--header-timeout", 8,
        "--drain-timeout", 9, "--cache-memory", "1.5GiB",
    )  # fmt: skip
    assert (config.max_body_bytes, config.max_header_bytes) == (1 << 20, 8 << 10)
    assert (config.max_schema_bytes, config.max_n_predict, config.max_choices) == (1000, 100, 2)
    assert (config.max_inputs, config.max_stops, config.max_logit_bias) == (3, 4, 5)
    assert (config.max_probs, config.max_waiting) == (6, 7)
    assert (config.header_timeout, config.drain_seconds) == (8, 9)
    assert config.cache_memory == config.engine_config().cache_memory == 3 << 29


def test_memory_of_several_models(configured, capsys):
    config = configured(
        "-m", "a.gguf", "-m", "b.gguf", "--models-memory", "4G", "--no-models-autoload"
    )
    assert config.models_memory == 4 << 30
    assert not config.models_autoload
    assert configured("-m", "a.gguf", "--models-memory", "4G") == 1
    assert "several models" in capsys.readouterr().err
    assert configured("-m", "a.gguf", "--cache-memory", "lots") == 2
    assert "'lots' is no size" in capsys.readouterr().err
