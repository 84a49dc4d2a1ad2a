"""Embeddings and probabilities of prompts: the same however a prompt is computed. Real kernels."""

from __future__ import annotations

import math
from array import array
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from random_gguf import HIDDEN, VOCAB_ROWS
from test_engine_invariants import ENDLESS, block_bytes, some_prompts

from rillm import LLM, RillmError, SamplingParams
from rillm.engine import EngineConfig, Request
from rillm.engine.loading import load_engine
from rillm.engine.pooling import POOLINGS, normalized
from rillm.gguf import GGMLType

Results = list[tuple[Any, ...]]


def results(
    path: Path,
    requests: list[Request],
    *,
    num_blocks: int | None = None,
    rounds: int = 1,
    **sizes: Any,
) -> tuple[Results, Any]:
    """(embeddings, prompt probabilities, tokens) of each request, all run together."""
    settings = {"num_threads": 1, "context_length": 200, "embeddings": True}
    settings |= {"max_prefill_delay": 0.0, "max_step_seconds": 0.0} | sizes
    config = EngineConfig(**settings)
    if num_blocks is not None:
        config = replace(config, cache_memory=num_blocks * block_bytes(config))
    with load_engine(path, config) as loaded:
        for _ in range(rounds):
            ids = [loaded.engine.add_request(request) for request in requests]
            found: dict[int, list[Any]] = {sequence_id: [None, None, []] for sequence_id in ids}
            while loaded.engine.has_work:
                for output in loaded.engine.step():
                    mine = found[output.sequence_id]
                    if output.embeddings is not None:
                        mine[0] = [vector.tobytes() for vector in output.embeddings]
                    if output.prompt_probs is not None:
                        mine[1] = output.prompt_probs
                    if output.token is not None:
                        mine[2].append(output.token)
                    assert output.finish is None or output.finish.error is None
        return [tuple(found[sequence_id]) for sequence_id in ids], loaded.engine.stats


def mixed_requests() -> list[Request]:
    """Every kind beside the others, and some that only generate."""
    prompts = [prompt for seed in (1, 2) for prompt in some_prompts(seed)]
    kinds: list[dict[str, Any]] = [{"n_predict": 0, "pooling": pooling} for pooling in POOLINGS]
    kinds += [{"n_predict": 30, "prompt_probs": 2}, {"n_predict": 0, "prompt_probs": 0}]
    kinds += [{"n_predict": 40}]
    return [
        Request(prompt, ENDLESS, **kinds[index % len(kinds)])
        for index, prompt in enumerate(prompts)
    ]


@pytest.mark.parametrize("weight_type", [GGMLType.F16, GGMLType.Q4_K], ids=lambda t: t.name)
def test_results_are_the_same_however_they_are_computed(
    models: dict[GGMLType, Path], weight_type: GGMLType
) -> None:
    requests = mixed_requests()
    run = partial(results, models[weight_type])
    alone = [run([request])[0][0] for request in requests]
    for request, (embeddings, probs, tokens) in zip(requests, alone, strict=True):
        num = len(request.prompt_ids)
        assert len(tokens) == request.n_predict
        if request.pooling is not None:
            assert len(embeddings) == (num if request.pooling == "none" else 1)
            assert len(embeddings[0]) == 4 * HIDDEN
        if request.prompt_probs is not None:
            assert [item.token for item in probs] == list(request.prompt_ids[1:])
            assert all(len(item.top) == request.prompt_probs for item in probs)
    assert run(requests)[0] == alone
    assert run(requests, num_threads=2, rounds=2)[0] == alone  # also beside cached prompts
    for budget in (8, 29):
        assert run(requests, max_num_seqs=8, max_num_batched_tokens=budget)[0] == alone
    assert run(requests, max_prompt_logits=3)[0] == alone
    assert run(requests, draft_tokens=5)[0] == alone  # whose rows lie between the others'
    preempted, stats = run(requests, num_blocks=13)
    assert preempted == alone
    assert stats.num_preemptions > 0


def test_logits_do_not_depend_on_whether_hidden_states_are_kept(
    models: dict[GGMLType, Path],
) -> None:
    requests = [Request(prompt, ENDLESS, n_predict=20) for prompt in some_prompts(5)]
    for weight_type in (GGMLType.F16, GGMLType.Q6_K):
        path = models[weight_type]
        with_states, without = (
            results(path, requests, embeddings=embeddings)[0] for embeddings in (True, False)
        )
        assert with_states == without


def test_probabilities_add_up(models: dict[GGMLType, Path]) -> None:
    """All tokens at one place: their probabilities have the sum 1."""
    requests = [
        Request([1, 2, token], ENDLESS, n_predict=0, prompt_probs=1) for token in range(VOCAB_ROWS)
    ]
    probs = [result[1][1] for result in results(models[GGMLType.F16], requests)[0]]
    assert math.fsum(math.exp(item.logprob) for item in probs) == pytest.approx(1, abs=1e-5)
    best = max(probs, key=lambda item: item.logprob)
    assert all(item.top[0][0] == best.token for item in probs)
    # Rows of the model beyond the tokenizer's vocabulary are never drawn.
    assert [item.token for item in probs if item.logprob == -math.inf] == list(
        range(263, VOCAB_ROWS)
    )


def test_what_cannot_be_asked(models: dict[GGMLType, Path]) -> None:
    config = EngineConfig(context_length=32)
    with (
        load_engine(models[GGMLType.F16], config) as loaded,
        pytest.raises(RillmError, match="without embeddings"),
    ):
        loaded.engine.create(Request([1], pooling="mean"))
    config = EngineConfig(context_length=32, embeddings=True)
    with load_engine(models[GGMLType.F16], config) as loaded:
        loaded.engine.create(Request([1] * 32, pooling="mean"))  # no answer needs room
        with pytest.raises(RillmError, match="33 tokens"):
            loaded.engine.create(Request([1] * 33, pooling="mean"))


def test_embed(models: dict[GGMLType, Path]) -> None:
    with LLM(models[GGMLType.F16], num_threads=1, embeddings=True) as llm:
        one, two = llm.embed(["One, two,", [72, 105]])
        assert llm.embed("One, two,") == [one]
        assert math.hypot(*one) == pytest.approx(1)
        assert one != two
        (plain,) = llm.embed("One, two,", norm=-1)
        assert math.hypot(*plain) != pytest.approx(1)
        assert llm.embed("One, two,", pooling="last") != [one]
        with pytest.raises(RillmError, match="pooling"):
            llm.embed("One", pooling="none")  # type: ignore[arg-type]
        assert llm.generate("One", SamplingParams(temperature=0), n_predict=3)
    with LLM(models[GGMLType.F16], num_threads=1) as llm, pytest.raises(RillmError):
        llm.embed("One")


def test_normalized() -> None:
    values = array("f", [3.0, -4.0])
    assert normalized(values).tolist() == pytest.approx([0.6, -0.8])
    assert normalized(values, -1) is values
    assert normalized(values, 0).tolist() == pytest.approx([24570, -32760])
    assert normalized(values, 1).tolist() == pytest.approx([3 / 7, -4 / 7])
    assert normalized(values, 100).tolist() == pytest.approx([0.75, -1.0])
    for norm in (0, 1, 2, 3):
        assert normalized(array("f", [0.0, 0.0]), norm).tolist() == [0, 0]
