"""The public API on real kernels, with a small model of random weights."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
from fake_model import FIRST_SPECIAL
from random_gguf import CONTEXT, VOCAB_ROWS

from rillm import LLM, Completion, RillmError, SamplingParams
from rillm.engine import Request, loading
from rillm.gguf import GGMLType

GREEDY = SamplingParams(temperature=0.0)


@pytest.fixture(scope="module")
def llm(models: dict[GGMLType, Path]) -> Iterator[LLM]:
    with LLM(models[GGMLType.Q8_0], num_threads=1) as llm:
        yield llm


def test_import_is_light() -> None:
    code = (
        "import sys, rillm; rillm.RillmError; heavy = {'ctypes', 'regex', 'jinja2', 'numpy'};"
        "print(sorted(heavy & set(sys.modules)), hasattr(rillm, 'nothing'), rillm.LLM.__name__,"
        "sorted({'numpy', 'torch', 'gguf', 'safetensors'} & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "[] False LLM []\n"


def test_generate_answers_prompts_in_order(llm: LLM) -> None:
    prompts = ["One, two,", [72, 105], "你好"]
    completions = llm.generate(prompts, GREEDY, n_predict=9)
    assert all(isinstance(completion, Completion) for completion in completions)
    for prompt, completion in zip(prompts, completions, strict=True):
        (alone,) = llm.generate([prompt], GREEDY, n_predict=9)
        assert completion.token_ids == alone.token_ids
        assert completion.text == alone.text
        assert completion.text == llm.loaded.tokenizer.decode(
            completion.token_ids, skip_special=True
        )
        assert completion.finish_reason in ("limit", "eos")
    assert completions[0].num_prompt_tokens == len("One, two,")
    assert completions[1].num_prompt_tokens == 2
    timings = completions[2].timings.to_dict()
    assert timings["predicted_n"] == len(completions[2].token_ids)
    assert all(value >= 0 for value in timings.values())
    (single,) = llm.generate("One, two,", GREEDY, n_predict=9)
    assert single.token_ids == completions[0].token_ids
    assert llm.generate([], GREEDY) == []


def test_stream_gives_the_same_text_in_pieces(llm: LLM) -> None:
    (whole,) = llm.generate("Once", GREEDY, n_predict=30)
    pieces = list(llm.stream("Once", GREEDY, n_predict=30))
    assert "".join(pieces) == whole.text
    assert len(pieces) > 5
    assert all(pieces)


def test_two_streams_may_be_read_in_turns(llm: LLM) -> None:
    first, second = (llm.stream(text, GREEDY, n_predict=20) for text in ("aaa", "bbb"))
    turns = [next(first) + next(second) for _ in range(3)]
    rest = "".join(first), "".join(second)
    expected = [llm.generate(text, GREEDY, n_predict=20)[0].text for text in ("aaa", "bbb")]
    assert len(turns) == 3
    assert expected[0].endswith(rest[0])
    assert expected[1].endswith(rest[1])


def test_leaving_a_stream_stops_the_work(llm: LLM) -> None:
    everything = SamplingParams(temperature=0.0, ignore_eos=True)
    stream = llm.stream("x", everything, n_predict=-1)
    next(stream)
    stream.close()
    free = llm._thread.call(lambda engine: (engine.has_work, engine.blocks.num_free_blocks))
    assert free.result(10) == (False, llm.loaded.engine.blocks.num_blocks)
    # Also when nothing was ever read from it.
    llm.stream("x", everything, n_predict=-1).close()
    assert free.result(10) == llm._thread.call(
        lambda engine: (engine.has_work, engine.blocks.num_free_blocks)
    ).result(10)
    assert llm._queues == {}


def test_ctrl_c_stops_the_answer_and_not_the_engine(llm: LLM) -> None:
    everything = SamplingParams(temperature=0.0, ignore_eos=True)
    inner = llm.loaded.model.run
    model: Any = llm.loaded.model
    model.run = lambda batch: (time.sleep(0.02), inner(batch))  # not done before the signal
    timer = threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            for _ in llm.stream("x", everything, n_predict=-1):
                pass
    finally:
        timer.join()
        del model.run
    assert not llm._thread.call(lambda engine: engine.has_work).result(10)
    assert len(llm.generate("x", everything, n_predict=5)[0].token_ids) == 5


def test_threads_share_a_model(llm: LLM) -> None:
    prompts = [f"client {i}" for i in range(6)]
    expected = {
        prompt: completion.token_ids
        for prompt, completion in zip(
            prompts, llm.generate(prompts, GREEDY, n_predict=8), strict=True
        )
    }
    got: dict[str, list[int]] = {}

    def client(prompt: str) -> None:
        got[prompt] = llm.generate(prompt, GREEDY, n_predict=8)[0].token_ids

    threads = [threading.Thread(target=client, args=(prompt,)) for prompt in prompts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert got == expected


def test_stop_strings_and_probabilities(llm: LLM) -> None:
    (whole,) = llm.generate("stop", GREEDY, n_predict=40)
    stop = next(c for c in whole.text[3:] if c not in whole.text[:3])
    (stopped,) = llm.generate("stop", GREEDY, n_predict=40, stop=stop)
    assert stopped.text == whole.text[: whole.text.index(stop)]
    assert (stopped.finish_reason, stopped.stopping_word) == ("word", stop)
    likely = SamplingParams(temperature=0.0, n_probs=3)
    (completion,) = llm.generate("stop", likely, n_predict=5)
    assert [probs.token for probs in completion.probs] == completion.token_ids
    for probs in completion.probs:
        ids, logits, _ = zip(*probs.top, strict=True)
        assert ids[0] == probs.token
        assert sorted(logits, reverse=True) == list(logits)
        assert probs.logprob <= 0


class Say:
    """Makes the model say a text."""

    said: ClassVar[bytes] = b""

    def __init__(self) -> None:
        self.num = 0
        self.words = array("I", [0] * ((VOCAB_ROWS + 31) // 32))

    def mask_address(self) -> int:
        token = self.said[self.num] if self.num < len(self.said) else FIRST_SPECIAL
        self.words[:] = array("I", [0] * len(self.words))
        self.words[token // 32] |= 1 << token % 32
        return self.words.buffer_info()[0]

    def accept(self, token: int) -> None:
        self.num += 1


@pytest.fixture
def saying(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> type[Say]:
    """Constrains every answer to Say.said."""
    create = llm.loaded.engine.create

    def constrained(request: Request) -> object:
        return create(
            Request(request.prompt_ids, request.sampling, n_predict=-1, mask_provider=Say())
        )

    monkeypatch.setattr(llm.loaded.engine, "create", constrained)
    return Say


def test_chat_strips_the_newline_that_glm_begins_with(llm: LLM, saying: type[Say]) -> None:
    assert llm.chat_template.strip_leading_newline
    for said, shown in ((b"\nHi\n", "Hi\n"), (b"Hi", "Hi"), (b"\n", ""), (b"", "")):
        saying.said = said
        assert llm.chat("Hello", GREEDY).text == shown
        assert "".join(llm.chat("Hello", GREEDY, stream=True)) == shown
    saying.said = b"\nHi"
    assert llm.generate("Hello", GREEDY)[0].text == "\nHi"


def test_chat_reads_the_conversation_as_the_template_writes_it(
    llm: LLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[int]] = []
    create = llm.loaded.engine.create

    def watch(request: Request) -> object:
        seen.append(list(request.prompt_ids))
        return create(request)

    monkeypatch.setattr(llm.loaded.engine, "create", watch)
    completion = llm.chat(
        [
            {"role": "system", "content": "Be kind."},
            {"role": "user", "content": "What is <|user|>?"},
        ],
        GREEDY,
        n_predict=4,
    )
    assert llm.detokenize(seen[0]) == (
        "[gMASK]<sop><|system|>\nBe kind.<|user|>\nWhat is <|user|>?<|assistant|>"
    )
    user = llm.tokenize("<|user|>")
    assert len(user) == 1
    assert seen[0].count(user[0]) == 1, "what a user writes is never a special token"
    assert completion.num_prompt_tokens == len(seen[0])
    llm.chat("Hi", GREEDY, n_predict=1)
    assert llm.detokenize(seen[1]) == "[gMASK]<sop><|user|>\nHi<|assistant|>"


def test_tokenize_round_trip(llm: LLM) -> None:
    text = "[gMASK]<sop>Grüße, 你好 🙂"
    assert llm.detokenize(llm.tokenize(text)) == text
    assert llm.tokenize("<sop>") == [258]
    assert llm.tokenize("<sop>", parse_special=False) == list(b"<sop>")


def test_failures_name_what_is_wrong(models: dict[GGMLType, Path], llm: LLM) -> None:
    path = models[GGMLType.F16]
    with pytest.raises(RillmError, match=r"no-such-file\.gguf"):
        LLM("no-such-file.gguf")
    with pytest.raises(RillmError, match="KV cache of 512 tokens"):
        LLM(path, context_length=CONTEXT, cache_memory=1000)
    with pytest.raises(RillmError, match="num_threads"):
        LLM(path, num_threads=0)
    with pytest.raises(RillmError, match="context size"):
        llm.generate("x" * (CONTEXT + 1))
    with pytest.raises(RillmError, match="empty"):
        llm.generate("")
    with pytest.raises(RillmError, match="template"):
        LLM(path, chat_template="{% if %}").chat("Hi")
    assert llm.context_length == CONTEXT


def test_close_ends_running_answers(models: dict[GGMLType, Path]) -> None:
    llm = LLM(models[GGMLType.F16], num_threads=2)
    stream = llm.stream("x", SamplingParams(ignore_eos=True), n_predict=-1)
    next(stream)
    llm.close()
    llm.close()
    assert len(list(stream)) < CONTEXT
    with pytest.raises(RillmError, match="shutting down"):
        llm.generate("x")


def test_a_program_may_end_in_the_middle_of_an_answer(models: dict[GGMLType, Path]) -> None:
    code = (
        "import sys, rillm; llm = rillm.LLM(sys.argv[1], num_threads=2);"
        "params = rillm.SamplingParams(ignore_eos=True);"
        "streams = [llm.stream('x', params, n_predict=-1) for _ in range(8)];"
        "print([len(next(s)) > 0 for s in streams])"
    )
    command = [sys.executable, "-c", code, str(models[GGMLType.F16])]
    run = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (run.returncode, run.stderr) == (0, "")
    assert run.stdout == f"{[True] * 8}\n"


def test_a_model_that_nobody_uses_any_more_is_freed(models: dict[GGMLType, Path]) -> None:
    llm = LLM(models[GGMLType.F16], num_threads=1)
    llm.generate("x", GREEDY, n_predict=2)
    thread = llm._thread
    del llm
    with pytest.raises(RillmError, match="shutting down"):
        thread.call(lambda engine: None)


def test_weights_that_do_not_fit_are_refused(
    models: dict[GGMLType, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "available_memory", lambda: 1 << 20)
    with pytest.raises(RillmError, match=r"only 1\.00 MiB are available: use a smaller"):
        LLM(models[GGMLType.F16])
    LLM(models[GGMLType.F16], num_threads=1, cache_memory=1 << 20).close()


def test_progress_is_reported(models: dict[GGMLType, Path]) -> None:
    seen: list[tuple[int, int]] = []
    LLM(models[GGMLType.F16], num_threads=1, progress=lambda *done: seen.append(done)).close()
    assert seen == sorted(seen)
    assert seen[-1][0] == seen[-1][1] > 0


def test_the_cache_plan_is_what_the_core_allocates(models: dict[GGMLType, Path]) -> None:
    for cache_type in ("f16", "q8_0"):
        with LLM(models[GGMLType.F16], num_threads=1, cache_type=cache_type) as llm:
            plan = llm.loaded.cache_plan
            assert llm.loaded.model.cache_block_bytes == plan.block_bytes
            assert plan.num_tokens == 16 * CONTEXT
