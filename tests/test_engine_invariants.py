"""What a sequence's logits may depend on: its own tokens, and nothing else. On real kernels."""

from __future__ import annotations

import ctypes
import random
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from draft_oracle import draft_oracle
from random_gguf import HEAD_DIM, KV_HEADS, LAYERS, VOCAB_ROWS, WEIGHT_TYPES

from rillm import SamplingParams
from rillm.core import SamplingRequest
from rillm.engine import EngineConfig, Request, speculation
from rillm.engine.loading import LoadedEngine, load_engine
from rillm.gguf import GGMLType

ENDLESS = SamplingParams(temperature=0.0, ignore_eos=True)


class Recorder:
    """Draws with the core, and remembers the logits that follow each prefix."""

    def __init__(self) -> None:
        self.logits: dict[bytes, bytes] = {}
        self.num_seen_again = 0

    def attach(self, loaded: LoadedEngine) -> None:
        draw = partial(loaded.core.sample, loaded.team)

        def recording(requests: list[SamplingRequest]) -> None:
            for request in requests:
                struct = request.struct
                prefix = ctypes.string_at(struct.history, 4 * struct.num_history)
                logits = ctypes.string_at(struct.logits, 4 * VOCAB_ROWS)
                self.num_seen_again += prefix in self.logits
                known = self.logits.setdefault(prefix, logits)
                assert known == logits, f"other logits after {struct.num_history} tokens"
            draw(requests)

        loaded.engine._draw = recording


def answers(
    path: Path,
    prompts: list[list[int]],
    recorder: Recorder,
    *,
    n_predict: int = 40,
    rounds: int = 1,
    num_blocks: int | None = None,
    sampling: SamplingParams = ENDLESS,
    **sizes: int | float | str | bool,
) -> tuple[list[list[int]], LoadedEngine]:
    """The tokens of all prompts together, of the last of some rounds."""
    settings: dict[str, object] = {"num_threads": 1, "context_length": 200}
    settings |= {"max_prefill_delay": 0.0, "max_step_seconds": 0.0} | sizes
    config = EngineConfig(**settings)  # type: ignore[arg-type]
    if num_blocks is not None:
        config = replace(config, cache_memory=num_blocks * block_bytes(config))
    with load_engine(path, config) as loaded:
        recorder.attach(loaded)
        for _ in range(rounds):
            ids = [
                loaded.engine.add_request(Request(prompt, sampling, n_predict=n_predict))
                for prompt in prompts
            ]
            tokens: dict[int, list[int]] = {sequence_id: [] for sequence_id in ids}
            while loaded.engine.has_work:
                for output in loaded.engine.step():
                    if output.token is not None:
                        tokens[output.sequence_id].append(output.token)
    return [tokens[sequence_id] for sequence_id in ids], loaded


def block_bytes(config: EngineConfig) -> int:
    row = GGMLType[config.cache_type.upper()].row_bytes(HEAD_DIM)
    return 2 * LAYERS * KV_HEADS * config.block_size * row


def some_prompts(seed: int) -> list[list[int]]:
    """Of many lengths; some begin alike, up to the middle of a block."""
    generator = random.Random(seed)
    stem = [generator.randrange(256) for _ in range(70)]
    prompts = [stem[: generator.randrange(20, 70)] for _ in range(3)]
    prompts += [[] for _ in range(4)]
    for prompt in prompts:
        prompt += [generator.randrange(256) for _ in range(generator.randrange(1, 45))]
    return prompts


@pytest.mark.parametrize("cache_type", ["f16", "q8_0"])
@pytest.mark.parametrize("weight_type", WEIGHT_TYPES, ids=lambda weight_type: weight_type.name)
def test_logits_are_bit_identical_however_they_are_computed(
    models: dict[GGMLType, Path],
    weight_type: GGMLType,
    cache_type: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = models[weight_type]
    prompts = some_prompts(int(weight_type))
    recorder = Recorder()
    run = partial(answers, path, recorder=recorder, cache_type=cache_type)
    alone = [run([prompt], prefix_cache=False)[0][0] for prompt in prompts]
    assert len({tuple(tokens) for tokens in alone}) == len(prompts), "answers worth comparing"
    assert recorder.num_seen_again == 0

    def check(tokens: list[list[int]]) -> None:
        assert tokens == alone
        assert recorder.num_seen_again >= sum(map(len, alone))
        recorder.num_seen_again = 0

    check(run(prompts, prefix_cache=False)[0])  # batched
    for budget in (8, 29):  # in chunks, beside decodes
        check(run(prompts, prefix_cache=False, max_num_seqs=8, max_num_batched_tokens=budget)[0])
    tokens, loaded = run(prompts, rounds=2)  # from the prefix cache
    check(tokens)
    stats = loaded.engine.stats
    assert stats.cached_prompt_tokens >= sum(map(len, prompts)) - len(prompts)
    tokens, loaded = run(prompts, num_blocks=13)  # preempted
    check(tokens)
    assert loaded.engine.stats.num_preemptions > 0
    tokens, loaded = run(prompts, num_blocks=13, prefix_cache=False)  # and computed anew
    check(tokens)
    assert loaded.engine.stats.num_preemptions > 0
    for num_threads in (2, 3):
        check(run(prompts, num_threads=num_threads)[0])
    guesses = draft_oracle(list(zip(prompts, alone, strict=True)), right=0.8)
    monkeypatch.setattr(speculation, "find_draft", guesses)
    for budget in (7, 20):  # several tokens of a sequence in one step, some of them wrong
        tokens, loaded = run(prompts, draft_tokens=budget, num_blocks=13)
        check(tokens)
        assert loaded.engine.stats.drafted_tokens > 60


def test_the_same_seed_gives_the_same_text_whatever_else_runs(
    models: dict[GGMLType, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = models[GGMLType.Q4_K]
    sampling = SamplingParams(temperature=1.3, seed=7, repeat_penalty=1.1)
    prompts = some_prompts(3)
    run = partial(answers, path, recorder=Recorder(), sampling=sampling, n_predict=25)
    alone = [run([prompt])[0][0] for prompt in prompts]
    assert run(prompts)[0] == alone
    assert run(prompts, max_num_seqs=3, num_threads=2, num_blocks=14)[0] == alone
    guesses = draft_oracle(list(zip(prompts, alone, strict=True)), right=0.8)
    monkeypatch.setattr(speculation, "find_draft", guesses)
    assert run(prompts, draft_tokens=9)[0] == alone
    other = SamplingParams(temperature=1.3, seed=8, repeat_penalty=1.1)
    assert run([prompts[0]], sampling=other)[0][0] != alone[0]


def test_the_core_draws_at_most_from_the_tokenizers_vocabulary(
    models: dict[GGMLType, Path],
) -> None:
    hot = SamplingParams(temperature=50.0, top_k=0, top_p=1.0, min_p=0.0, seed=1, ignore_eos=True)
    tokens, loaded = answers(models[GGMLType.F16], [[1]], Recorder(), sampling=hot, n_predict=190)
    vocabulary = loaded.tokenizer.vocab_size
    assert vocabulary < VOCAB_ROWS
    assert max(tokens[0]) < vocabulary
    assert not set(tokens[0]) & loaded.tokenizer.stop_ids
    assert len(set(tokens[0])) > 90
