"""Guessed tokens: found where they should be, and never seen in an answer unless drawn."""

from __future__ import annotations

import random
from array import array
from collections.abc import Sequence

import pytest
from draft_oracle import draft_oracle
from fake_model import (
    GREEDY,
    Script,
    expected_tokens,
    fake_engine,
    finish_of,
    generate,
    run,
    tokens_of,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from rillm.engine import EngineConfig, Request, speculation
from rillm.engine.speculation import Drafter, find_draft
from rillm.errors import RillmError
from rillm.sampling import SamplingParams


def plain_find(tokens: Sequence[int], num_draft: int) -> list[int]:
    for length in (4, 3, 2):
        tail = list(tokens[-length:])
        for end in range(len(tokens) - 1, length - 1, -1):
            if list(tokens[end - length : end]) == tail:
                return list(tokens[end : end + num_draft])
    return []


# Ids whose bytes look like parts of each other's: a match between two tokens is none.
@given(
    tokens=st.lists(st.sampled_from([0, 1, 257, 65536, 16777216, 16843009]), max_size=60),
    num_draft=st.integers(1, 9),
)
@settings(max_examples=300)
def test_find_draft(tokens: list[int], num_draft: int) -> None:
    assert list(find_draft(array("i", tokens), num_draft)) == plain_find(tokens, num_draft)


def test_drafts_shrink_after_a_failure_and_grow_again() -> None:
    drafter = Drafter(8, end=1000)
    tokens = array("i", list(range(50)) * 2 + [0, 1, 2])

    def lengths(num_accepted: int) -> int:
        draft = drafter.propose(tokens, 100)
        drafter.begin(len(draft))
        for _ in range(min(num_accepted, len(draft))):
            drafter.accept()
        return len(draft)

    assert [lengths(n) for n in (8, 3, 0, 1, 9, 9, 9, 9)] == [8, 8, 3, 1, 2, 4, 8, 8]
    assert (drafter.num_drafted, drafter.num_accepted) == (42, 34)
    assert len(drafter.propose(tokens, 2)) == 2
    assert not Drafter(8, end=len(tokens) + 1).propose(tokens, 8), "the step's own token is last"


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    right=st.sampled_from([0.0, 0.5, 0.9, 1.0]),
    draft_tokens=st.integers(1, 12),
    num_blocks=st.integers(20, 60),
    block_size=st.sampled_from([1, 3, 4, 16]),
    max_num_seqs=st.integers(1, 5),
    budget=st.integers(0, 20),
)
def test_tokens_are_those_without_drafts(
    seed: int,
    right: float,
    draft_tokens: int,
    num_blocks: int,
    block_size: int,
    max_num_seqs: int,
    budget: int,
) -> None:
    engine, model = fake_engine(
        num_blocks=num_blocks,
        context_length=min(60, num_blocks * block_size),
        block_size=block_size,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_num_seqs + budget,
        draft_tokens=draft_tokens,
    )
    generator = random.Random(seed)
    longest = engine.context_length - 2
    expected: dict[int, list[int]] = {}
    answers: list[tuple[list[int], list[int]]] = []
    for i in range(8):
        prompt = [i, *(generator.randrange(256) for _ in range(generator.randrange(longest)))]
        num = min(generator.randrange(1, 30), engine.context_length - len(prompt))
        tokens = expected_tokens(prompt, num)
        answers.append((prompt, tokens))
        expected[engine.add_request(Request(prompt, GREEDY, n_predict=num))] = tokens
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(speculation, "find_draft", draft_oracle(answers, right, seed))
        outputs = run(engine)
    for sequence_id, tokens in expected.items():
        assert tokens_of(outputs[sequence_id]) == tokens
        timings = finish_of(outputs[sequence_id]).timings
        assert 0 <= timings.draft_n_accepted <= timings.draft_n
        if right == 1.0:
            assert timings.draft_n_accepted == timings.draft_n
    for batch in model.batches:
        assert len(batch.logits_rows) <= max_num_seqs + draft_tokens
        assert len(batch.token_ids) <= max_num_seqs + budget


def test_a_true_draft_saves_steps_and_a_sampled_answer_stays_the_same() -> None:
    tokens = [1, 2, 3, 4, 5, 6] * 8
    sampling = SamplingParams(temperature=1.0, seed=3)
    counts = []
    for draft_tokens in (0, 5):
        engine, model = fake_engine(draft_tokens=draft_tokens)
        script = Script([*tokens, 0])
        outputs = generate(engine, [9, 9], len(tokens), sampling=sampling, mask_provider=script)
        assert tokens_of(outputs) == tokens
        assert script.accepted == tokens
        counts.append(len(model.batches))
    assert counts[0] == 48
    assert counts[1] <= 8 + 40 // 6 + 1


def test_a_stop_inside_a_true_draft_ends_the_answer_there() -> None:
    engine, _ = fake_engine(draft_tokens=8)
    text = b"abcdefgh" * 4
    script = Script([*text, 0])
    outputs = generate(engine, [9, 9], 40, stop=["gha"], mask_provider=script)
    assert bytes(tokens_of(outputs)) == b"abcdefgha"
    assert finish_of(outputs).reason == "word"
    # What was computed beyond the end is not taken for part of the prefix.
    again = generate(engine, [9, 9, *b"abcdefgha"], 5)
    assert tokens_of(again) == expected_tokens([9, 9, *b"abcdefgha"], 5)


def test_config() -> None:
    with pytest.raises(RillmError, match="draft_tokens must be 0"):
        EngineConfig(draft_tokens=-1)
