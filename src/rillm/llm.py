"""The public Python API: a model file, and what can be asked of it."""

from __future__ import annotations

import os
import weakref
from array import array
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from queue import SimpleQueue
from typing import Any, Literal, overload

from rillm.chat_template import ChatTemplate
from rillm.closing import Closing
from rillm.engine.config import EngineConfig
from rillm.engine.engine_thread import EngineThread
from rillm.engine.loading import LoadedEngine, load_engine
from rillm.engine.outputs import Finish, FinishReason, Output, Timings, TokenProbs
from rillm.engine.pooling import Pooling, normalized
from rillm.engine.request import Request
from rillm.errors import RillmError
from rillm.sampling import SamplingParams

Prompt = str | Sequence[int]
Message = Mapping[str, Any]
# Long enough for an answer; a model that repeats itself on a slow board still comes to an end.
_N_PREDICT = 512


@dataclass(frozen=True, slots=True)
class Completion:
    """One answer.

    finish_reason: "eos" (the model stopped), "word" (a stop string, see stopping_word) or "limit"
    (n_predict reached, or the context full: see truncated).
    """

    text: str
    token_ids: list[int]  # with the stop token
    finish_reason: FinishReason
    stopping_word: str
    truncated: bool
    num_prompt_tokens: int
    timings: Timings
    probs: list[TokenProbs]  # one a token, where SamplingParams.n_probs > 0


class LLM(Closing):
    """A model in memory. Threads may share it; requests made at the same time are batched.

        with LLM("glm-4-9b-chat.Q4_K_M.gguf") as llm:
            print(llm.generate(["[gMASK]<sop>One, two,"], n_predict=16)[0].text)
            for text in llm.stream("[gMASK]<sop>Once upon a time"):
                print(text, end="", flush=True)
            print(llm.chat([{"role": "user", "content": "Hello"}]).text)

    Failures raise rillm.RillmError with one line that names file, field or value.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        num_threads: int | None = None,
        context_length: int = 0,
        max_num_seqs: int = 16,
        cache_type: str = "f16",
        cache_memory: int | None = None,
        blas: str = "off",
        isa: str | None = None,
        chat_template: str | None = None,
        draft_tokens: int = 0,
        embeddings: bool = False,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        """Loads a GGUF file.

        num_threads: None for every CPU this process may use. context_length: tokens of the longest
        sequence; 0 for the model's own, as far as memory allows. max_num_seqs: answers computed
        together. cache_type: "f16" or "q8_0" keys and values. cache_memory: bytes for them; None
        for what the sequences need, up to half of the available memory. blas: "openblas" for
        prefill with f32, f16 and bf16 weights by OpenBLAS, "auto" where it is measured to be
        faster; answers may then depend, in the last bits of the logits, on what else is computed.
        isa: a kernel variant by name. chat_template: name of a built-in one, or Jinja source; None
        for the file's. draft_tokens: guess up to so many tokens of a step from the text before them
        (the answer stays the same). embeddings: `embed` can be used. progress: called with bytes
        loaded and bytes in total.
        """
        config = EngineConfig(
            num_threads=num_threads,
            context_length=context_length,
            max_num_seqs=max_num_seqs,
            cache_type=cache_type,
            cache_memory=cache_memory,
            embeddings=embeddings,
            blas=blas,
            isa=isa,
            draft_tokens=draft_tokens,
        )
        self._loaded: LoadedEngine = load_engine(
            path, config, chat_template=chat_template, progress=progress
        )
        self._queues: dict[int, SimpleQueue[Output]] = {}
        # In a thread of its own, so that Ctrl-C interrupts who waits and never a step.
        self._thread = EngineThread(self._loaded.engine, partial(_deliver, self._queues))
        self._free = weakref.finalize(self, _free, self._thread, self._loaded)
        self._last_timings = Timings()

    # ---- text ----------------------------------------------------------------------------

    def tokenize(
        self, text: str, *, add_special: bool = False, parse_special: bool = True
    ) -> list[int]:
        """Token ids of a text; special tokens spelled in it count as such by default."""
        return self._loaded.tokenizer.encode(
            text, add_special=add_special, parse_special=parse_special
        )

    def detokenize(self, token_ids: Sequence[int]) -> str:
        """Text of token ids, special tokens spelled out."""
        return self._loaded.tokenizer.decode(token_ids)

    # ---- answers -------------------------------------------------------------------------

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        params: SamplingParams | None = None,
        *,
        n_predict: int = _N_PREDICT,
        stop: Sequence[str] = (),
    ) -> list[Completion]:
        """Continues each prompt; returns the answers in the order of the prompts.

        A prompt is a text (special tokens in it are parsed) or a list of token ids. n_predict:
        tokens at most, -1 until the context is full. stop: texts that end an answer.
        """
        requests = [
            self._request(prompt, params, n_predict, stop) for prompt in _as_prompts(prompts)
        ]
        running = [self._start(request) for request in requests]
        try:
            return [_collect(outputs) for outputs in running]
        finally:
            for outputs in running:
                outputs.close()

    def stream(
        self,
        prompt: Prompt,
        params: SamplingParams | None = None,
        *,
        n_predict: int = _N_PREDICT,
        stop: Sequence[str] = (),
    ) -> Iterator[str]:
        """Continues a prompt; yields the text as it comes. Leaving the loop ends the answer."""
        return _texts(self._start(self._request(prompt, params, n_predict, stop)))

    @overload
    def chat(
        self,
        messages: str | Sequence[Message],
        params: SamplingParams | None = None,
        *,
        stream: Literal[False] = False,
        tools: Sequence[Mapping[str, Any]] | None = None,
        n_predict: int = _N_PREDICT,
        stop: Sequence[str] = (),
        **template_options: Any,
    ) -> Completion: ...

    @overload
    def chat(
        self,
        messages: str | Sequence[Message],
        params: SamplingParams | None = None,
        *,
        stream: Literal[True],
        tools: Sequence[Mapping[str, Any]] | None = None,
        n_predict: int = _N_PREDICT,
        stop: Sequence[str] = (),
        **template_options: Any,
    ) -> Iterator[str]: ...

    def chat(
        self,
        messages: str | Sequence[Message],
        params: SamplingParams | None = None,
        *,
        stream: bool = False,
        tools: Sequence[Mapping[str, Any]] | None = None,
        n_predict: int = _N_PREDICT,
        stop: Sequence[str] = (),
        **template_options: Any,
    ) -> Completion | Iterator[str]:
        """Answers a conversation, written as the model was trained to read it.

        messages: OpenAI's ({"role": "user", "content": "Hi"}, ...), or one text of the user. What
        they say never counts as a special token. tools: OpenAI's function declarations.
        template_options go to the template. stream: yields the text as it comes.
        """
        if isinstance(messages, str):
            messages = [{"role": "user", "content": messages}]
        template = self.chat_template
        prompt = template.encode(self._loaded.tokenizer, messages, tools=tools, **template_options)
        outputs = self._start(self._request(prompt, params, n_predict, stop))
        if template.strip_leading_newline:
            outputs = _without_leading_newline(outputs)
        if stream:
            return _texts(outputs)
        try:
            return _collect(outputs)
        finally:
            outputs.close()

    def embed(
        self, prompts: Prompt | Sequence[Prompt], *, pooling: Pooling = "mean", norm: int = 2
    ) -> list[list[float]]:
        """A vector [hidden_size] for each prompt, from the hidden states after the last norm.

        pooling: "mean" of all tokens' states, "last" or "cls" (the first) token's. norm: as
        llama.cpp's embd_normalize, 2 for length 1, -1 for none. Needs embeddings=True at loading.
        """
        if pooling not in ("mean", "cls", "last"):
            raise RillmError(f"pooling must be mean, cls or last, not {pooling!r:.40}")
        running: list[Generator[Output, None, None]] = []
        try:
            for prompt in _as_prompts(prompts):
                ids = self.tokenize(prompt, add_special=True) if isinstance(prompt, str) else prompt
                running.append(self._start(Request(ids, n_predict=0, pooling=pooling)))
            return [normalized(_embedding(outputs), norm).tolist() for outputs in running]
        finally:
            for outputs in running:
                outputs.close()

    @property
    def chat_template(self) -> ChatTemplate:
        """How conversations are written."""
        return self._loaded.chat_template

    @property
    def context_length(self) -> int:
        """Tokens of the longest sequence, prompt and answer together."""
        return self._loaded.engine.context_length

    @property
    def loaded(self) -> LoadedEngine:
        """The engine and what it was made of."""
        return self._loaded

    @property
    def last_timings(self) -> Timings:
        """Figures of the answer that ended last (all zero before the first)."""
        return self._last_timings

    def close(self) -> None:
        """Ends what runs and frees the model. Closing twice is fine."""
        self._free()

    # ---- plumbing ------------------------------------------------------------------------

    def _request(
        self, prompt: Prompt, params: SamplingParams | None, n_predict: int, stop: Sequence[str]
    ) -> Request:
        ids = self.tokenize(prompt, add_special=True) if isinstance(prompt, str) else prompt
        if isinstance(stop, str):
            stop = (stop,)
        return Request(ids, params or SamplingParams(), n_predict=n_predict, stop=tuple(stop))

    def _start(self, request: Request) -> Generator[Output, None, None]:
        """Queues a request now (not when first iterated) and yields its outputs."""
        generation = self._loaded.engine.create(request)
        sequence_id = generation.sequence.sequence_id
        queue = self._queues[sequence_id] = SimpleQueue()
        try:
            self._thread.add(generation)
        except BaseException:
            del self._queues[sequence_id]
            raise
        outputs = self._outputs(sequence_id, queue)
        next(outputs)  # to where it waits: from here on, closing it aborts the sequence
        return outputs

    def _outputs(
        self, sequence_id: int, queue: SimpleQueue[Output]
    ) -> Generator[Output, None, None]:
        is_finished = False
        try:
            yield Output(sequence_id)
            while not is_finished:
                output = queue.get()
                if output.finish is not None:
                    is_finished = True
                    self._last_timings = output.finish.timings
                yield output
        finally:
            del self._queues[sequence_id]
            if not is_finished:
                self._thread.abort(sequence_id)


def _deliver(queues: dict[int, SimpleQueue[Output]], outputs: list[Output]) -> None:
    for output in outputs:
        queue = queues.get(output.sequence_id)
        if queue is not None:
            queue.put(output)


def _free(thread: EngineThread, loaded: LoadedEngine) -> None:
    thread.close()
    loaded.close()


def _as_prompts(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    if isinstance(prompts, str):
        return [prompts]
    if prompts and isinstance(prompts[0], int):
        return [prompts]  # type: ignore[list-item]
    return list(prompts)  # type: ignore[arg-type]


def _checked(output: Output) -> Output:
    if output.finish is not None and output.finish.error is not None:
        raise output.finish.error
    return output


def _embedding(outputs: Generator[Output, None, None]) -> array[float]:
    for output in outputs:
        vectors = _checked(output).embeddings
        if vectors is not None:
            return vectors[0]
    raise RillmError("the prompt was ended before its embedding was known")


def _texts(outputs: Generator[Output, None, None]) -> Iterator[str]:
    try:
        for output in outputs:
            if _checked(output).text:
                yield output.text
    finally:
        outputs.close()


def _collect(outputs: Generator[Output, None, None]) -> Completion:
    texts: list[str] = []
    token_ids: list[int] = []
    probs: list[TokenProbs] = []
    finish: Finish | None = None
    for output in outputs:
        finish = _checked(output).finish
        texts.append(output.text)
        if output.token is not None:
            token_ids.append(output.token)
        if output.probs is not None:
            probs.append(output.probs)
    assert finish is not None, "every stream of outputs ends with one that says how"
    return Completion(
        text="".join(texts),
        token_ids=token_ids,
        finish_reason=finish.reason,
        stopping_word=finish.stopping_word,
        truncated=finish.truncated,
        num_prompt_tokens=finish.num_prompt_tokens,
        timings=finish.timings,
        probs=probs,
    )


def _without_leading_newline(
    outputs: Generator[Output, None, None],
) -> Generator[Output, None, None]:
    """Drops the line feed with which GLM answers a bare <|assistant|>."""
    is_first = True
    try:
        for output in outputs:
            if is_first and output.text:
                is_first = False
                output = replace(output, text=output.text.removeprefix("\n"))
            yield output
    finally:
        outputs.close()
