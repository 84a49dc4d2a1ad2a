"""Embeddings by SmolLM2-135M against llama.cpp's (recorded by make_embeddings.py)."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from test_smollm2 import RECORDED as ANSWERS
from test_smollm2 import smollm2_file

from rillm import LLM
from rillm.engine.pooling import POOLINGS
from rillm.engine.request import Request
from rillm.prepare.quantize import quantize

RECORDED = json.loads(
    Path(__file__).with_name("smollm2_embeddings.json").read_text(encoding="utf-8")
)
# 1 - cosine. Both compute f32 exactly but for the order of sums; of Q4_1 llama.cpp's activations
# have one scale for 32 values as ours do, but other sums.
LIMITS = {"f32": 1e-6, "q4_1": 2e-3}


@pytest.fixture(scope="module", params=LIMITS)
def model(request, tmp_path_factory):
    path, reason = smollm2_file()
    if path is None:
        pytest.skip(reason)
    if request.param == "f32":
        f32 = tmp_path_factory.mktemp("smollm2") / "f32.gguf"
        quantize(path, f32, "F32", allow_requantize=True)
        path = f32
    with LLM(path, num_threads=2, context_length=512, embeddings=True) as llm:
        yield request.param, llm
    if request.param == "f32":
        path.unlink()  # half a gigabyte


def vectors(llm, text, pooling):
    """What the engine gives, not normalised."""
    outputs = llm._start(
        Request(llm.tokenize(text, add_special=True), n_predict=0, pooling=pooling)
    )
    return [np.array(v) for output in outputs for v in output.embeddings or ()]


@pytest.mark.parametrize("pooling", POOLINGS)
def test_embeddings_are_those_of_llama_cpp(model, pooling):
    name, llm = model
    for text, expected in zip(RECORDED["texts"], RECORDED[f"{name}.{pooling}"], strict=False):
        got = vectors(llm, text, pooling)
        assert len(got) == len(expected) == (len(llm.tokenize(text)) if pooling == "none" else 1)
        for ours, theirs in zip(got, np.array(expected), strict=True):
            cosine = ours @ theirs / np.linalg.norm(ours) / np.linalg.norm(theirs)
            assert 1 - cosine < LIMITS[name]
            if pooling == "none":  # not normalised there either
                assert np.linalg.norm(ours) == pytest.approx(np.linalg.norm(theirs), rel=2e-2)


def test_texts_of_a_kind_are_near_each_other(model):
    texts = ["The cat sleeps on the sofa.", "A cat is sleeping on a sofa.", "int main(void) {}"]
    a, b, c = np.array(model[1].embed(texts))
    assert a @ b > a @ c
    np.testing.assert_allclose([a @ a, b @ b], 1, rtol=1e-6)


def test_probabilities_of_a_given_text_are_those_of_llama_cpp(model):
    """What it said about its own answers as it wrote them, asked of the finished text."""
    name, llm = model
    differences = []
    for prompt, answer in zip(ANSWERS["prompts"][:4], ANSWERS["runs"][name], strict=False):
        ids = prompt["prompt_ids"] + answer["ids"]
        outputs = llm._start(Request(ids, n_predict=0, prompt_probs=5))
        (probs,) = [output.prompt_probs for output in outputs if output.prompt_probs]
        probs = probs[len(prompt["prompt_ids"]) - 1 :]
        assert [item.token for item in probs] == answer["ids"]
        for item, recorded in zip(probs, answer["top_logprobs"], strict=True):
            differences.append(abs(item.logprob - recorded[0]))  # it wrote the likeliest
    assert len(differences) == 4 * 64
    if name == "f32":
        assert max(differences) < 0.02
    assert np.mean(differences) < {"f32": 1e-3, "q4_1": 0.1}[name]
