"""The answer to one request as it grows: text, stops, limits, timings."""

from __future__ import annotations

import time

from rillm.core.sampling import SamplingRequest
from rillm.engine.outputs import (
    Finish,
    FinishReason,
    Output,
    PromptProgress,
    Timings,
    TokenProbs,
)
from rillm.engine.pooling import Pooler
from rillm.engine.request import Request
from rillm.engine.sequence import Sequence
from rillm.engine.speculation import Drafter
from rillm.engine.text import StopMatcher
from rillm.errors import RillmError
from rillm.tokenizer import StreamDecoder, Tokenizer


class Generation:
    """Turns the tokens drawn for one sequence into outputs, and decides when it is finished."""

    def __init__(
        self,
        sequence: Sequence,
        request: Request,
        tokenizer: Tokenizer,
        draw: SamplingRequest,
        *,
        context_length: int,
        draft_tokens: int = 0,
    ) -> None:
        """draft_tokens: guesses of a step at most."""
        self.sequence = sequence
        self.request = request
        self.draw = draw
        self.pooler: Pooler | None = None
        self.prompt_probs: list[TokenProbs] = []
        self._stop_ids = frozenset() if request.sampling.ignore_eos else tokenizer.stop_ids
        self._decoder = StreamDecoder(tokenizer)
        self._stops = StopMatcher(request.stop)
        room = context_length - sequence.num_prompt_tokens
        self._max_tokens = room if request.n_predict < 0 else min(request.n_predict, room)
        if draft_tokens:
            end = sequence.num_prompt_tokens + self._max_tokens
            sequence.drafter = Drafter(draft_tokens, end)
        self._context_length = context_length
        self._has_new_line = False
        self._started: float | None = None  # when the first chunk of the prompt was scheduled
        self._first_token: float | None = None
        self._last_token = 0.0

    def start(self) -> None:
        """Notes that the prompt is being evaluated from now on."""
        if self._started is None:
            self._started = time.perf_counter()

    def prompt_output(self) -> Output | None:
        """Progress after a chunk of the prompt, where asked for."""
        sequence = self.sequence
        if not self.request.return_progress or sequence.num_generated_tokens:
            return None
        started = self._started if self._started is not None else time.perf_counter()
        progress = PromptProgress(
            total=sequence.num_prompt_tokens,
            cache=max(0, sequence.num_cached_tokens),
            processed=min(sequence.num_computed_tokens, sequence.num_prompt_tokens),
            time_ms=1000.0 * (time.perf_counter() - started),
        )
        timings = self.timings() if self.request.timings_per_token else None
        return Output(sequence.sequence_id, progress=progress, timings=timings)

    def accept(self, token: int, probs: TokenProbs | None) -> Output:
        """Appends a drawn token and says what can be shown, and whether this was the end."""
        sequence = self.sequence
        self._last_token = time.perf_counter()
        if self._first_token is None:
            self._first_token = self._last_token
        sequence.token_ids.append(token)
        if token in self._stop_ids:
            return self._end("eos", token=token, probs=probs)
        text, word = self._stops.push(self._decoder.push(token))
        self._has_new_line = self._has_new_line or "\n" in text
        if word is not None:
            return self._end("word", word=word, token=token, probs=probs, text=text)
        if sequence.num_generated_tokens >= self._max_tokens or self._is_late():
            return self._end("limit", token=token, probs=probs, text=text)
        timings = self.timings() if self.request.timings_per_token else None
        return Output(sequence.sequence_id, token, text, probs, timings=timings)

    def end(self, reason: FinishReason, error: RillmError | None = None) -> Output:
        """Ends the sequence without a further token."""
        return self._end(reason, error=error)

    def timings(self) -> Timings:
        """The figures so far."""
        sequence = self.sequence
        now = time.perf_counter()
        started = self._started if self._started is not None else now
        first = self._first_token if self._first_token is not None else now
        num_cached = max(0, sequence.num_cached_tokens)
        drafter = sequence.drafter
        return Timings(
            cache_n=num_cached,
            prompt_n=sequence.num_prompt_tokens - num_cached,
            prompt_ms=1000.0 * (first - started),
            predicted_n=sequence.num_generated_tokens,
            predicted_ms=1000.0 * max(0.0, self._last_token - first),
            draft_n=0 if drafter is None else drafter.num_drafted,
            draft_n_accepted=0 if drafter is None else drafter.num_accepted,
        )

    def _is_late(self) -> bool:
        limit = self.request.t_max_predict_ms
        if limit <= 0 or not self._has_new_line or self._first_token is None:
            return False
        return 1000.0 * (self._last_token - self._first_token) > limit

    def _end(
        self,
        reason: FinishReason,
        *,
        word: str = "",
        token: int | None = None,
        text: str = "",
        probs: TokenProbs | None = None,
        error: RillmError | None = None,
    ) -> Output:
        sequence = self.sequence
        if reason != "word":
            tail, stopped = self._stops.push(self._decoder.finish())
            text += tail
            if stopped is None:
                text += self._stops.flush()
            elif reason != "abort":
                reason, word = "word", stopped
            self._has_new_line = self._has_new_line or "\n" in text
        timings = self.timings()
        finish = Finish(
            reason=reason,
            stopping_word=word,
            truncated=reason == "limit" and sequence.num_tokens >= self._context_length,
            has_new_line=self._has_new_line,
            num_prompt_tokens=sequence.num_prompt_tokens,
            num_generated_tokens=sequence.num_generated_tokens,
            num_cached_tokens=sequence.num_computed_tokens,
            timings=timings,
            error=error,
        )
        return Output(sequence.sequence_id, token, text, probs, timings=timings, finish=finish)
