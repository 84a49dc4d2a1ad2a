from __future__ import annotations

import json
import math

import pytest
from conftest import GREETING

FINAL_FIELDS = [
    "index", "content", "tokens", "id_slot", "stop", "model", "tokens_predicted",
    "tokens_evaluated", "generation_settings", "prompt", "has_new_line", "truncated", "stop_type",
    "stopping_word", "tokens_cached", "timings",
]  # fmt: skip
TIMING_FIELDS = [
    "cache_n", "prompt_n", "prompt_ms", "prompt_per_token_ms", "prompt_per_second", "predicted_n",
    "predicted_ms", "predicted_per_token_ms", "predicted_per_second",
]  # fmt: skip


def test_the_final_object(server):
    reply = server.complete(n_predict=32)
    assert list(reply) == FINAL_FIELDS
    assert list(reply["timings"]) == TIMING_FIELDS
    assert all(math.isfinite(value) for value in reply["timings"].values())
    assert reply["content"].startswith("\n")  # GLM's own: this endpoint shows the raw text
    assert len(reply["content"]) > 5
    assert reply["index"] == 0
    assert reply["model"] == "tiny"
    assert reply["prompt"] == GREETING
    assert reply["stop"] is True
    assert reply["stop_type"] == "eos"
    assert reply["tokens"] == []
    prompt_ids = server.service.tokenizer.encode(GREETING, parse_special=True)
    assert reply["tokens_evaluated"] == len(prompt_ids)
    assert reply["timings"]["cache_n"] + reply["timings"]["prompt_n"] == len(prompt_ids)
    assert reply["has_new_line"] is True
    assert reply["truncated"] is False


def test_a_repeated_prompt_computes_one_token_and_says_the_same(server):
    first = server.complete(n_predict=8)
    second = server.complete(n_predict=8)
    assert second["timings"]["prompt_n"] == 1
    assert second["content"] == first["content"]
    assert server.complete(n_predict=8, cache_prompt=False)["timings"]["cache_n"] == 0


def test_stream_adds_up_to_the_whole(server):
    whole = server.complete(n_predict=12, return_tokens=True)
    events = server.stream("/completion", {"prompt": GREETING, "n_predict": 12, "temperature": 0})
    *chunks, final = events
    assert "".join(chunk["content"] for chunk in chunks) == whole["content"]
    tokens = [token for chunk in chunks for token in chunk["tokens"]]
    assert tokens == whole["tokens"][: len(tokens)]
    assert len(tokens) >= len(whole["tokens"]) - 1  # the stop token has no text
    assert all(chunk["stop"] is False for chunk in chunks)
    assert [chunk["tokens_predicted"] for chunk in chunks] == sorted(
        chunk["tokens_predicted"] for chunk in chunks
    )
    assert list(final) == FINAL_FIELDS
    assert final["content"] == ""
    assert final["tokens"] == []
    assert final["tokens_predicted"] == whole["tokens_predicted"]


def test_settings_are_what_was_asked_for(server):
    asked = {
        "temperature": 0.5, "dynatemp_range": 0.25, "dynatemp_exponent": 2, "top_k": 7,
        "top_p": 0.75, "min_p": 0.125, "typical_p": 0.5, "top_n_sigma": 2, "xtc_probability": 0.5,
        "xtc_threshold": 0.25, "repeat_penalty": 1.5, "repeat_last_n": 9, "presence_penalty": 0.5,
        "frequency_penalty": 0.25, "dry_multiplier": 0.5, "dry_base": 2, "dry_allowed_length": 3,
        "dry_penalty_last_n": 11, "dry_sequence_breakers": ["x", "\n"], "mirostat": 2,
        "mirostat_tau": 4, "mirostat_eta": 0.25, "seed": 42, "min_keep": 1,
        "samplers": ["top_k", "temperature"], "n_probs": 2, "post_sampling_probs": True,
        "stop": ["ZZZ"], "n_keep": 1, "t_max_predict_ms": 60000, "timings_per_token": True,
    }  # fmt: skip
    reply = server.post("/completion", {"prompt": "a", "n_predict": 3, **asked})
    settings = reply["generation_settings"]
    assert {name: settings[name] for name in asked} == asked
    assert settings["n_predict"] == settings["max_tokens"] == 3


def test_defaults_are_llama_servers(server):
    settings = server.post("/completion", {"prompt": "a"})["generation_settings"]
    defaults = {
        "temperature": 0.8, "top_k": 40, "top_p": 0.95, "min_p": 0.05, "seed": 4294967295,
        "repeat_penalty": 1.0, "repeat_last_n": 64, "dry_multiplier": 0.0, "mirostat": 0,
        "n_probs": 0, "stop": [], "n_predict": 24, "ignore_eos": False, "logit_bias": [],
    }  # fmt: skip
    assert {name: settings[name] for name in defaults} == defaults


def test_unknown_fields_are_ignored_and_null_is_absent(server):
    plain = server.complete(n_predict=4)
    odd = server.complete(n_predict=4, stop=None, top_k=None, foo={"bar": 1}, stream=None, n=None)
    assert odd["content"] == plain["content"]
    assert odd["generation_settings"] == plain["generation_settings"]


@pytest.mark.parametrize("alias", ["n_predict", "max_tokens", "max_completion_tokens"])
def test_n_predict_and_its_aliases(server, alias):
    reply = server.post("/completion", {"prompt": "a b c", alias: 3, "ignore_eos": True})
    assert reply["tokens_predicted"] == 3
    assert reply["stop_type"] == "limit"


def test_n_predict_0_only_evaluates_the_prompt(server):
    reply = server.complete(n_predict=0, prompt="一二三四五 zero")
    assert reply["content"] == ""
    assert reply["tokens_predicted"] == 0
    assert reply["stop_type"] == "limit"
    assert all(math.isfinite(value) for value in reply["timings"].values())


def test_the_same_seed_gives_the_same_text(server):
    texts = [
        server.complete("The", temperature=1.5, seed=seed, n_predict=12)["content"]
        for seed in (7, 7, 8, 9, 10)
    ]
    assert texts[0] == texts[1]
    assert len(set(texts)) > 2


def test_stop_strings(server):
    whole = server.complete(n_predict=16)["content"]
    word = whole.split()[2]
    for stop in (word, [word, "unlikely"]):
        reply = server.complete(n_predict=16, stop=stop)
        assert reply["content"] == whole[: whole.index(word)]
        assert reply["stop_type"] == "word"
        assert reply["stopping_word"] == word
    events = server.stream(
        "/completion", {"prompt": GREETING, "stop": [word], "n_predict": 16, "temperature": 0}
    )
    assert "".join(event["content"] for event in events) == whole[: whole.index(word)]


def test_logit_bias_bans_and_forces(server):
    tokenizer = server.service.tokenizer
    first = server.complete(n_predict=1, return_tokens=True)["tokens"][0]
    banned = server.complete(n_predict=1, return_tokens=True, logit_bias=[[first, False]])
    assert banned["tokens"][0] != first
    wanted = tokenizer.encode("7")[0]
    for bias in ([[wanted, 1000]], [["7", 1000]], {"7": 1000} if wanted == 7 else {"7 ": 0}):
        forced = server.complete(n_predict=1, return_tokens=True, logit_bias=bias)
        if bias != {"7 ": 0}:
            assert forced["tokens"] == [wanted]


def test_ignore_eos(server):
    assert server.complete(n_predict=24)["stop_type"] == "eos"
    reply = server.complete(n_predict=24, ignore_eos=True)
    assert reply["stop_type"] == "limit"
    assert reply["tokens_predicted"] == 24


def test_prompt_forms(server):
    tokenizer = server.service.tokenizer
    text = server.complete()["content"]
    ids = tokenizer.encode(GREETING, parse_special=True)
    assert server.complete(ids)["content"] == text
    head, tail = GREETING[:12], GREETING[12:]
    mixed = [head, *tokenizer.encode(tail, parse_special=True)]
    assert server.complete(mixed)["content"] == text
    several = server.complete([GREETING, ids, mixed])
    assert [item["content"] for item in several] == [text] * 3
    assert [item["index"] for item in several] == [0, 1, 2]
    assert isinstance(server.complete([GREETING]), list)


def test_n_gives_several_answers(server):
    replies = server.complete("The", n=3, temperature=1.5, seed=3, n_predict=12)
    assert [reply["index"] for reply in replies] == [0, 1, 2]
    assert len({reply["content"] for reply in replies}) > 1
    events = server.stream(
        "/completion",
        {"prompt": "The", "n": 3, "temperature": 1.5, "seed": 3, "n_predict": 12},
    )
    for reply in replies:
        own = [event for event in events if event["index"] == reply["index"]]
        assert "".join(event["content"] for event in own) == reply["content"]
        assert own[-1]["stop"] is True


def test_probabilities_before_sampling(server):
    reply = server.complete(n_predict=6, n_probs=3, return_tokens=True)
    probs = reply["completion_probabilities"]
    assert [item["id"] for item in probs] == reply["tokens"]
    for item in probs:
        assert list(item) == ["id", "token", "bytes", "logprob", "top_logprobs"]
        assert len(item["top_logprobs"]) == 3
        assert item["top_logprobs"][0]["id"] == item["id"]  # greedy
        assert item["logprob"] == pytest.approx(item["top_logprobs"][0]["logprob"], abs=1e-5)
        values = [top["logprob"] for top in item["top_logprobs"]]
        assert values == sorted(values, reverse=True)
        assert sum(map(math.exp, values)) <= 1 + 1e-5
        assert bytes(item["bytes"]) == server.service.tokenizer.token_bytes(item["id"])


def test_logprobs_must_be_a_number(server):
    for path in ("/completion", "/v1/completions"):
        error = server.post(path, {"prompt": "a", "logprobs": "x"}, 400)["error"]
        assert error["message"].startswith("logprobs")


def test_probabilities_after_sampling(server):
    reply = server.complete(
        "The", n_predict=4, n_probs=5, post_sampling_probs=True, temperature=1, seed=1
    )
    for item in reply["completion_probabilities"]:
        assert list(item) == ["id", "token", "bytes", "prob", "top_probs"]
        assert 0 < item["prob"] <= 1 + 1e-6
        assert sum(top["prob"] for top in item["top_probs"]) <= 1 + 1e-5


def test_streamed_probabilities_come_with_their_tokens(server):
    whole = server.complete(n_predict=6, n_probs=2)["completion_probabilities"]
    events = server.stream(
        "/completion", {"prompt": GREETING, "n_predict": 6, "n_probs": 2, "temperature": 0}
    )
    streamed = [item for event in events[:-1] for item in event["completion_probabilities"]]
    assert [item["id"] for item in streamed] == [item["id"] for item in whole]
    assert "completion_probabilities" not in events[-1]


def test_progress_and_timings_in_the_stream(server):
    prompt = "eins zwei drei " * 80
    events = server.stream(
        "/completion",
        {
            "prompt": prompt, "n_predict": 3, "return_progress": True, "timings_per_token": True,
            "cache_prompt": False, "ignore_eos": True,
        },
    )  # fmt: skip
    progress = [event["prompt_progress"] for event in events if "prompt_progress" in event]
    assert progress
    assert progress[-1]["processed"] == progress[-1]["total"] == events[-1]["tokens_evaluated"]
    assert [item["processed"] for item in progress] == sorted(
        item["processed"] for item in progress
    )
    timed = [event["timings"]["predicted_n"] for event in events[:-1] if "timings" in event]
    assert timed == sorted(timed)
    assert timed


def test_response_fields(server):
    reply = server.complete(
        response_fields=["content", "generation_settings/n_predict", "no/such", "timings"]
    )
    assert list(reply) == ["content", "generation_settings/n_predict", "timings"]


def test_a_full_context_ends_with_200(start_server):
    server = start_server(context_length=64)
    reply = server.complete("one two", n_predict=-1, ignore_eos=True)
    assert reply["stop_type"] == "limit"
    assert reply["truncated"] is True
    assert reply["tokens_evaluated"] + reply["tokens_predicted"] == 64
    error = server.post("/completion", {"prompt": "word " * 100}, 400)["error"]
    assert error["type"] == "exceed_context_size_error"
    assert error["n_ctx"] == 64
    assert error["n_prompt_tokens"] >= 100
    assert error["message"].startswith(f"request ({error['n_prompt_tokens']} tokens) exceeds")


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({}, "prompt"),
        ({"prompt": 5}, "prompt"),
        ({"prompt": ["a", 10**6]}, "prompt"),
        ({"prompt": "a", "temperature": "hot"}, "temperature"),
        ({"prompt": "a", "top_p": 2}, "top_p"),
        ({"prompt": "a", "n_predict": -2}, "n_predict"),
        ({"prompt": "a", "n_predict": 1.5}, "n_predict"),
        ({"prompt": "a", "stop": [1]}, "stop"),
        ({"prompt": "a", "stop": ["x"] * 1000}, "stop"),
        ({"prompt": "a", "n": 0}, "n"),
        ({"prompt": "a", "n": 100000}, "n"),
        ({"prompt": "a", "stream": "yes"}, "stream"),
        ({"prompt": "a", "samplers": ["nonsense"]}, "samplers"),
        ({"prompt": "a", "logit_bias": [[-1, 2]]}, "logit_bias"),
        ({"prompt": "a", "logit_bias": [[10**6, 2]]}, "logit_bias"),
        ({"prompt": "a", "logit_bias": [[i, 1] for i in range(5000)]}, "logit_bias"),
        ({"prompt": "a", "seed": "x"}, "seed"),
        ({"prompt": "a", "n_probs": 2000}, "n_probs"),
        ({"prompt": "a", "logprobs": 2000}, "n_probs"),
        ({"prompt": "a", "dry_sequence_breakers": [str(i) for i in range(99)]}, "dry_sequence"),
        ({"prompt": ["a"] * 1000}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": []}, "prompt"),
    ],
)
def test_bad_values_are_named(server, fields, named):
    error = server.post("/completion", fields, 400)["error"]
    assert error["code"] == 400
    assert error["type"] == "invalid_request_error"
    assert named in error["message"]


@pytest.mark.parametrize(
    "body", [b"{", b"", b"[1]", b"5", b'{"prompt": NaN}', b"\xff\xfe", b"[" * 100000]
)
def test_malformed_json_is_400(server, body):
    reply = server.client.post("/completion", content=body)
    assert reply.status_code == 400
    assert reply.json()["error"]["type"] == "invalid_request_error"


def test_odd_texts_survive(server):
    text = 'quote " backslash \\ tab \t 汉字 \U0001f600 \u2028'
    assert server.complete(text, n_predict=1)["prompt"] == text
    body = b'{"prompt": "a \\ud800 b", "n_predict": 1}'  # a lone surrogate, which JSON can spell
    reply = server.client.post("/completion", content=body)
    assert reply.status_code == 200
    assert json.loads(reply.content)["prompt"] == "a \ud800 b"
