"""The engine: step() = schedule -> run -> draw -> report."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from rillm.core.sampling import SamplingRequest
from rillm.engine.block_manager import BlockManager
from rillm.engine.config import EngineConfig
from rillm.engine.drawing import make_draw
from rillm.engine.generation import Generation
from rillm.engine.model_runner import Model, ModelRunner
from rillm.engine.outputs import ContextSizeError, FinishReason, Output, TokenProbs
from rillm.engine.pacer import PrefillPacer
from rillm.engine.pooling import Pooler
from rillm.engine.request import Request
from rillm.engine.scheduler import ScheduledSequence, Scheduler, Step
from rillm.engine.scoring import TokenScore
from rillm.engine.sequence import Sequence, SequenceStatus
from rillm.errors import RillmError
from rillm.tokenizer import Tokenizer


@dataclass(slots=True)
class EngineStats:
    """Totals since the start (counters only ever grow)."""

    num_steps: int = 0
    num_decoded_sequences: int = 0  # summed over the steps
    num_requests: int = 0
    num_preemptions: int = 0
    prompt_tokens: int = 0  # computed
    cached_prompt_tokens: int = 0  # found in the prefix cache
    generated_tokens: int = 0
    drafted_tokens: int = 0  # guessed by speculation, whether they came true or not
    prompt_seconds: float = 0.0  # of steps with prompt tokens
    generation_seconds: float = 0.0  # of steps without
    model_seconds: float = 0.0  # of both, inside the model


class Engine:
    """Runs many sequences on one model. Not thread-safe: one thread calls step() and the rest.

    Only `create` may be called from any thread.
    """

    def __init__(
        self,
        model: Model,
        tokenizer: Tokenizer,
        draw: Callable[[list[SamplingRequest]], None],
        config: EngineConfig,
        *,
        vocab_size: int,
        context_length: int,
        num_blocks: int,
        key_cost: float = 0.0,
    ) -> None:
        """draw: draws a token for each prepared request (core.sample with its team).

        The cache has num_blocks blocks; one sequence of context_length tokens has to fit.
        key_cost: what a key costs a token, to plan with (pacer.prompt_work).
        """
        if num_blocks * config.block_size < context_length:
            raise RillmError(
                f"{num_blocks} cache blocks of {config.block_size} tokens do not hold a context "
                f"of {context_length} tokens: lower the context length"
            )
        self.tokenizer = tokenizer
        self.config = config
        self.vocab_size = vocab_size
        self.context_length = context_length
        self.stats = EngineStats()
        self.num_blocks = num_blocks
        self._key_cost = key_cost
        self._clear()
        self._model = model
        self._runner = ModelRunner(model, config.block_size)
        self._draw = draw
        self._ids = itertools.count()
        self._generations: dict[int, Generation] = {}

    def _clear(self) -> None:
        config = self.config
        self.blocks = BlockManager(
            self.num_blocks, config.block_size, prefix_cache=config.prefix_cache
        )
        self.scheduler = Scheduler(
            self.blocks,
            max_num_seqs=config.max_num_seqs,
            max_num_batched_tokens=config.max_num_batched_tokens,
            draft_tokens=config.draft_tokens,
            max_prompt_logits=config.max_prompt_logits,
            pacer=PrefillPacer(config.max_prefill_delay, config.max_step_seconds, self._key_cost),
        )

    @property
    def has_work(self) -> bool:
        """Whether a step has anything to compute."""
        return self.scheduler.has_work

    # ---- requests ------------------------------------------------------------------------

    def create(self, request: Request) -> Generation:
        """Checks a request and prepares it; raises RillmError if it can never be served."""
        num_tokens = len(request.prompt_ids)
        if num_tokens == 0:
            raise RillmError("the prompt is empty: it needs at least one token")
        pooling = request.pooling
        if num_tokens >= self.context_length + (pooling is not None):  # no room for an answer
            raise ContextSizeError(num_tokens, self.context_length)
        if pooling is not None and not self._model.hidden_size:
            raise RillmError("the model was loaded without embeddings")
        if min(request.prompt_ids) < 0 or max(request.prompt_ids) >= self.vocab_size:
            raise RillmError(f"prompt: token ids must be from 0 to {self.vocab_size - 1}")
        if request.n_predict < -1:
            raise RillmError(f"n_predict must be -1 (no limit) or more, not {request.n_predict}")
        # Of a cached token there is neither hidden state nor probability left.
        needs_all = request.prompt_probs is not None or pooling not in (None, "last")
        sequence = Sequence(
            next(self._ids),
            request.prompt_ids,
            use_prefix_cache=request.cache_prompt and not needs_all,
        )
        sequence.wants_logits = request.n_predict != 0 and pooling is None
        if request.prompt_probs is not None:
            sequence.next_scored_token = 1
        draw = make_draw(request.sampling, self.tokenizer, self.vocab_size)
        generation = Generation(
            sequence,
            request,
            self.tokenizer,
            draw,
            context_length=self.context_length,
            draft_tokens=self.config.draft_tokens,
        )
        if pooling is not None:
            generation.pooler = Pooler(pooling, num_tokens, self._model.hidden_size)
        return generation

    def add(self, generation: Generation) -> None:
        """Queues what `create` made."""
        self._generations[generation.sequence.sequence_id] = generation
        self.scheduler.add(generation.sequence, generation.request.rank)
        self.stats.num_requests += 1

    def add_request(self, request: Request) -> int:
        """Checks and queues a request; returns its sequence id."""
        generation = self.create(request)
        self.add(generation)
        return generation.sequence.sequence_id

    def abort(self, sequence_id: int) -> Output | None:
        """Ends a sequence and frees what it holds; None if it has ended already."""
        generation = self._generations.get(sequence_id)
        if generation is None:
            return None
        return self._finish(generation.end("abort"))

    def abort_all(self) -> list[Output]:
        """Ends every sequence."""
        outputs = (self.abort(sequence_id) for sequence_id in list(self._generations))
        return [output for output in outputs if output is not None]

    def reset(self, error: RillmError) -> list[Output]:
        """Ends every sequence with an error and begins anew, with an empty prefix cache."""
        outputs = [generation.end("error", error) for generation in self._generations.values()]
        self._generations.clear()
        self._clear()
        return outputs

    # ---- steps ---------------------------------------------------------------------------

    def step(self) -> list[Output]:
        """Computes one batch; returns what became of each sequence in it that has news.

        If the step fails every sequence in it ends with finish.error; the engine goes on.
        """
        if not self.scheduler.has_work:
            return []
        started = time.perf_counter()
        step = self.scheduler.schedule()
        if step.num_prefill_tokens:
            for item in step.scheduled:
                self._generations[item.sequence.sequence_id].start()
        try:
            rows = self._runner.run(step)
        except (RillmError, MemoryError) as error:
            reason = error if isinstance(error, RillmError) else RillmError(f"memory: {error}")
            return [self._fail(item.sequence, reason) for item in step.scheduled]
        outputs = self._score(rows.scoring)
        first_row = 0
        for item in step.scheduled:
            sequence = item.sequence
            item_row, first_row = first_row, first_row + item.num_tokens + len(item.draft)
            if sequence.status is SequenceStatus.FINISHED:
                continue  # its scores could not be had
            pooler = self._generations[sequence.sequence_id].pooler
            if pooler is not None:
                start, num = sequence.num_computed_tokens, item.num_tokens
                pooler.push(self._model, item_row, start, num)
            sequence.num_computed_tokens += item.num_tokens
            is_prompt_done = sequence.num_computed_tokens == sequence.num_prompt_tokens
            self.blocks.commit(sequence, partial=is_prompt_done)
            if sequence.num_generated_tokens == 0:
                generation = self._generations[sequence.sequence_id]
                progress = generation.prompt_output()
                if progress is not None:
                    outputs.append(progress)
                if is_prompt_done:
                    self.stats.cached_prompt_tokens += sequence.num_cached_tokens
                    if not sequence.wants_logits:
                        output = generation.end("limit")
                        if pooler is not None:
                            output = replace(output, embeddings=pooler.result())
                        outputs.append(self._finish(output))
        outputs += self._draw_tokens(rows.drawing)
        num_drawn = sum(output.token is not None for output in outputs)
        self._count(step, num_drawn, time.perf_counter() - started)
        return outputs

    def _score(self, rows: list[tuple[int, Sequence, int]]) -> list[Output]:
        """Prompt tokens' probabilities; an output for each sequence whose last one is known."""
        outputs: list[Output] = []
        vocab_size = min(self.vocab_size, self.tokenizer.vocab_size)
        scores: dict[int, list[TokenScore]] = {}
        for row, sequence, index in rows:
            num_top = self._generations[sequence.sequence_id].request.prompt_probs or 0
            token, address = sequence.token_ids[index], self._runner.logits_address(row)
            score = TokenScore(token, num_top, vocab_size, address, sequence.token_ids)
            scores.setdefault(sequence.sequence_id, []).append(score)
            sequence.next_scored_token = index + 1
        if not scores:
            return outputs
        try:
            self._draw([score.draw for each in scores.values() for score in each])
        except RillmError as error:
            # Logits that are no numbers: whose they are, those end.
            for sequence_id, each in list(scores.items()):
                if any(score.draw.token < 0 for score in each):
                    del scores[sequence_id]
                    outputs.append(self._fail(self._generations[sequence_id].sequence, error))
        for sequence_id, each in scores.items():
            generation = self._generations[sequence_id]
            generation.prompt_probs += [score.result() for score in each]
            sequence = generation.sequence
            if sequence.next_scored_token == sequence.num_prompt_tokens:
                outputs.append(Output(sequence_id, prompt_probs=generation.prompt_probs))
        return outputs

    def _draw_tokens(self, drawing: list[tuple[int, ScheduledSequence]]) -> list[Output]:
        """Draws the next token of each, and goes on after it while the draft comes true.

        drawing: with the row of logits of its last token, after which come those of the draft.
        """
        outputs: list[Output] = []
        # Whose prompt could not be scored has ended already.
        turns = [turn for turn in drawing if turn[1].sequence.status is SequenceStatus.RUNNING]
        place = 0
        while turns:
            outputs += self._draw_once([(row + place, item.sequence) for row, item in turns])
            turns = [(row, item) for row, item in turns if self._came_true(item, place)]
            place += 1
        return outputs

    def _came_true(self, item: ScheduledSequence, place: int) -> bool:
        """Whether the token just drawn is the draft's at `place`; it is computed already then."""
        sequence = item.sequence
        if sequence.status is SequenceStatus.FINISHED or place >= len(item.draft):
            return False
        if sequence.token_ids[-1] != item.draft[place]:
            return False
        sequence.num_computed_tokens += 1
        assert sequence.drafter is not None
        sequence.drafter.accept()
        return True

    def _draw_once(self, rows: list[tuple[int, Sequence]]) -> list[Output]:
        """Draws one token for each sequence, from its row of logits."""
        outputs: list[Output] = []
        drawing: list[Generation] = []
        logits_address = self._runner.logits_address
        for row, sequence in rows:
            generation = self._generations[sequence.sequence_id]
            mask = generation.request.mask_provider
            try:
                address = None if mask is None else mask.mask_address()
            except Exception as error:  # a foreign object: its fault is this sequence's alone
                outputs.append(self._fail(sequence, RillmError(f"grammar: {error}")))
                continue
            generation.draw.prepare(
                logits_address(row),
                sequence.token_ids,
                sequence.num_generated_tokens,
                address,
            )
            drawing.append(generation)
        try:
            self._draw([generation.draw for generation in drawing])
        except RillmError:
            # Those that were drawn keep their token; the others learn their own reason.
            return outputs + [
                self._accept(generation)
                if generation.draw.token >= 0
                else self._draw_alone(generation)
                for generation in drawing
            ]
        return outputs + [self._accept(generation) for generation in drawing]

    def _draw_alone(self, generation: Generation) -> Output:
        """Draws again for one of several, so that only those which cannot be drawn for fail."""
        try:
            self._draw([generation.draw])
        except RillmError as error:
            return self._fail(generation.sequence, error)
        return self._accept(generation)

    def _accept(self, generation: Generation) -> Output:
        draw = generation.draw
        token = draw.token
        mask = generation.request.mask_provider
        try:
            if mask is not None:
                mask.accept(token)
        except Exception as error:
            return self._fail(generation.sequence, RillmError(f"grammar: {error}"))
        probs = None
        if generation.request.sampling.n_probs > 0:
            probs = TokenProbs(token, draw.logprob, draw.top)
        output = generation.accept(token, probs)
        return output if output.finish is None else self._finish(output)

    def _finish(self, output: Output, *, keep: bool = True) -> Output:
        generation = self._generations.pop(output.sequence_id)
        if generation.sequence.status is not SequenceStatus.FINISHED:
            self.scheduler.remove(generation.sequence, keep=keep)
        return output

    def _fail(self, sequence: Sequence, error: RillmError) -> Output:
        reason: FinishReason = "error"
        output = self._generations[sequence.sequence_id].end(reason, error)
        return self._finish(output, keep=False)

    def _count(self, step: Step, num_drawn: int, seconds: float) -> None:
        self.scheduler.pacer.observe(
            step.num_decodes, step.num_prefill_tokens, step.prefill_work, seconds
        )
        stats = self.stats
        stats.num_steps += 1
        stats.model_seconds = self._runner.model_seconds
        stats.num_decoded_sequences += step.num_decodes
        stats.num_preemptions += step.num_preempted
        stats.prompt_tokens += step.num_prefill_tokens
        stats.generated_tokens += num_drawn
        stats.drafted_tokens += step.num_draft_tokens
        if step.num_prefill_tokens:
            stats.prompt_seconds += seconds
        else:
            stats.generation_seconds += seconds
