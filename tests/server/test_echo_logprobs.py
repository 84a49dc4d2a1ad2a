"""/v1/completions with echo and logprobs, as evaluation harnesses read it."""

from __future__ import annotations

import math

import openai
import pytest
from conftest import GREETING

TEXT = "<|user|>\nwhat is the sum of one and two?<|assistant|>\nthe sum is three"


def legacy(server, prompt, **fields):
    body = {"prompt": prompt, "temperature": 0, "max_tokens": 1, "logprobs": 2, "echo": True}
    reply = server.post("/v1/completions", {**body, **fields})
    return reply["choices"][0]


def test_prompt_logprobs_are_those_of_generation(server):
    """Each is the pre-sampling probability that /completion reports in its place."""
    ids = server.post("/tokenize", {"content": TEXT})["tokens"]
    logprobs = legacy(server, ids)["logprobs"]
    assert len(logprobs["tokens"]) == len(ids) + 1
    assert logprobs["token_logprobs"][0] is logprobs["top_logprobs"][0] is None
    for i in (1, 2, len(ids) // 2, len(ids) - 1):
        reply = server.complete(
            ids[:i], n_predict=1, n_probs=1, logit_bias=[[ids[i], 1000]], ignore_eos=True
        )
        (drawn,) = reply["completion_probabilities"]
        assert drawn["id"] == ids[i]
        assert logprobs["token_logprobs"][i] == pytest.approx(drawn["logprob"], abs=1e-4)
        top = drawn["top_logprobs"][0]
        best = max(logprobs["top_logprobs"][i].items(), key=lambda item: item[1])
        assert best[1] == pytest.approx(top["logprob"], abs=1e-5)
        assert best[0] == top["token"]


def test_shape_of_the_lists(server):
    choice = legacy(server, TEXT, max_tokens=3)
    logprobs = choice["logprobs"]
    assert choice["text"].startswith(TEXT)
    lengths = {
        len(logprobs[name]) for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset")
    }
    assert len(lengths) == 1
    assert logprobs["text_offset"][0] == 0
    for token, offset in zip(logprobs["tokens"], logprobs["text_offset"], strict=True):
        assert choice["text"][offset:].startswith(token) or not token.strip("\ufffd")
    for own, top in zip(logprobs["token_logprobs"][1:], logprobs["top_logprobs"][1:], strict=True):
        assert 2 <= len(top) <= 3
        assert own in top.values()
        assert all(value <= 0 for value in top.values())


def test_greedy_tokens_are_recognised(server):
    """The harness takes a continuation for greedy if each token's own is the largest."""
    answer = server.complete(TEXT, n_predict=6, return_tokens=True, ignore_eos=True)["tokens"]
    ids = server.post("/tokenize", {"content": TEXT})["tokens"]
    lists = legacy(server, ids + answer, logprobs=1)["logprobs"]
    own, top = lists["token_logprobs"][len(ids) : -1], lists["top_logprobs"][len(ids) : -1]
    assert len(own) == len(answer)
    assert all(a == max(t.values()) for a, t in zip(own, top, strict=True))
    ids[-1] += 1
    lists = legacy(server, ids, logprobs=1)["logprobs"]
    assert lists["token_logprobs"][-2] != max(lists["top_logprobs"][-2].values())


def test_several_prompts_and_chunks(server, start_server):
    """Neither company nor the size of the chunks changes a number."""
    long = (TEXT + "\n") * 8
    alone = [legacy(server, prompt)["logprobs"] for prompt in (TEXT, long, GREETING)]
    body = {"prompt": [TEXT, long, GREETING], "temperature": 0, "max_tokens": 1, "logprobs": 2}
    choices = server.post("/v1/completions", {**body, "echo": True})["choices"]
    assert [choice["logprobs"] for choice in choices] == alone
    small = start_server(batch_size=7, cache_prompt=False)
    assert legacy(small, long)["logprobs"] == alone[1]


def test_memory_is_bounded_by_rows(server):
    engine = server.engine
    seen = []
    real = engine._runner.run

    def run(step):
        rows = real(step)
        seen.append((len(rows.scoring), len(rows.drawing)))
        return rows

    engine._runner.run = run
    try:
        legacy(server, (TEXT + "\n") * 30)
    finally:
        engine._runner.run = real
    assert max(scored for scored, _ in seen) == engine.config.max_prompt_logits
    assert sum(scored for scored, _ in seen) > 400


def test_no_token_at_all(server):
    choice = legacy(server, TEXT, max_tokens=0)
    assert choice["text"] == TEXT
    assert choice["finish_reason"] == "length"
    assert len(choice["logprobs"]["tokens"]) == len(
        server.post("/tokenize", {"content": TEXT})["tokens"]
    )


def test_one_token_prompt_and_logprobs_0(server):
    choice = legacy(server, [5], logprobs=0)
    assert choice["logprobs"]["token_logprobs"][0] is None
    assert len(choice["logprobs"]["tokens"]) == 2
    assert len(choice["logprobs"]["top_logprobs"][1]) == 1


def test_without_echo_both_forms_are_there(server):
    choice = legacy(server, TEXT, echo=False, max_tokens=4)
    logprobs = choice["logprobs"]
    assert len(logprobs["content"]) == len(logprobs["tokens"])
    assert [item["logprob"] for item in logprobs["content"]] == logprobs["token_logprobs"]
    assert logprobs["text_offset"][0] == len(TEXT)


def test_echo_without_logprobs(server):
    choice = legacy(server, TEXT, logprobs=None)
    assert choice["text"].startswith(TEXT)
    assert choice["logprobs"] is None


def test_a_stream_adds_up_to_the_same(server):
    whole = legacy(server, TEXT, max_tokens=5)
    body = {"prompt": TEXT, "temperature": 0, "max_tokens": 5, "logprobs": 2, "echo": True}
    events = server.stream("/v1/completions", body)
    choices = [event["choices"][0] for event in events[:-1]]
    assert "".join(choice["text"] for choice in choices) == whole["text"]
    for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
        parts = [choice["logprobs"][name] for choice in choices if choice["logprobs"]]
        assert [item for part in parts for item in part] == whole["logprobs"][name]


def test_rare_tokens_keep_their_logarithm(server):
    """Far below what a float32 probability holds."""
    ids = server.post("/tokenize", {"content": TEXT})["tokens"]
    vocab = server.service.tokenizer.vocab_size
    lowest = min(
        legacy(server, [*ids, token], max_tokens=0)["logprobs"]["token_logprobs"][-1]
        for token in range(3, vocab, vocab // 20)
    )
    assert -1e4 < lowest < -10
    assert math.isfinite(lowest)


def test_the_openai_client(server):
    client = openai.OpenAI(base_url=server.url + "/v1", api_key="none")
    reply = client.completions.create(
        model="tiny", prompt=TEXT, echo=True, logprobs=2, max_tokens=1, temperature=0
    )
    logprobs = reply.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.token_logprobs == legacy(server, TEXT)["logprobs"]["token_logprobs"]
