"""The limits that bench prints beside its figures."""

from __future__ import annotations

from dataclasses import replace

import pytest

from rillm.roofline import Machine, Work, limit

MACHINE = Machine(bandwidth=1000.0, int8_rate=100.0, float_rate=10.0)
WORK = Work(
    int8_macs=40, float_macs=0, head_macs=10, head_is_float=False, attention_macs=2,
    num_layers=3, weight_bytes=5000, cache_bytes=4.0,
)  # fmt: skip


def test_a_decode_step_reads_the_weights_and_every_cache() -> None:
    found = limit(MACHINE, WORK, num_seqs=1, num_tokens=1, num_logits=1, depth=0)
    assert found.bound == "memory"
    assert found.tokens_per_second == pytest.approx(1 / ((5000 + 4) / 1000))
    deep = limit(MACHINE, WORK, num_seqs=2, num_tokens=1, num_logits=1, depth=1)
    assert deep.tokens_per_second == pytest.approx(2 / ((5000 + 2 * 2 * 4) / 1000))


def test_a_prompt_is_bound_by_its_multiplications() -> None:
    found = limit(MACHINE, WORK, num_seqs=1, num_tokens=100, num_logits=1, depth=10)
    keys = 100 * 10 + 100 * 101 / 2
    seconds = 100 * 40 / 100 + 10 / 100 + keys * 2 * 3 / 10
    assert found.bound == "multiply"
    assert found.tokens_per_second == pytest.approx(100 / seconds)


def test_float_matrices_are_counted_at_the_float_rate() -> None:
    floats = replace(WORK, int8_macs=0, float_macs=40, head_is_float=True, attention_macs=0)
    found = limit(MACHINE, floats, num_seqs=1, num_tokens=100, num_logits=1, depth=0)
    assert found.tokens_per_second == pytest.approx(100 / (100 * 40 / 10 + 10 / 10))
