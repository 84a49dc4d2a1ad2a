"""From a checked request to running sequences, and their results as they come."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from types import NoneType
from typing import Any

from rillm.engine.outputs import Finish, PromptProgress, Timings, TokenProbs
from rillm.engine.request import Request
from rillm.errors import RillmError
from rillm.sampling import SamplingParams
from rillm.server.errors import FieldError, from_engine, from_request
from rillm.server.grammar import Grammar, GrammarSource, compile_grammar, requested_source
from rillm.server.schema import Controls
from rillm.server.service import Service
from rillm.server.settings import generation_settings


@dataclass(frozen=True, slots=True)
class Prompt:
    """What a sequence begins with."""

    text: str | list[Any]  # as it is shown in replies
    ids: list[int]


@dataclass(frozen=True, slots=True)
class Plan:
    """How all sequences of one request are to be continued."""

    controls: Controls
    sampling: SamplingParams
    n_predict: int
    grammar: Grammar | None = None
    prompt_probs: int | None = None  # likeliest tokens of each place in the prompt; None: not asked


@dataclass(slots=True)
class Part:
    """A piece of one answer: some tokens and the text that they settle."""

    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    probs: list[TokenProbs] = field(default_factory=list)
    progress: PromptProgress | None = None
    timings: Timings | None = None
    ends_turn: bool = False  # the model began another turn after it


async def make_plan(
    service: Service,
    body: Mapping[str, Any],
    *,
    source: GrammarSource | None = None,
    grammar_begins_after: int | None = None,
) -> Plan:
    """Checks the fields that every generating endpoint has; RillmError names a bad one.

    source: a grammar, where the body's own fields for it do not say. grammar_begins_after: the
    token up to which the answer is free (the end of thinking).
    """
    config = service.config
    controls = Controls.parse(body)
    _limit("stop", controls.stop, config.max_stops)
    _limit("logit_bias", body.get("logit_bias"), config.max_logit_bias)
    _limit("dry_sequence_breakers", body.get("dry_sequence_breakers"), config.max_breakers)
    fields = {**config.sampling, **body}
    logprobs = body.get("logprobs")
    if "n_probs" not in body and not isinstance(logprobs, (bool, NoneType)):
        if not isinstance(logprobs, int):
            raise FieldError("logprobs", "must be an integer")
        fields["n_probs"] = logprobs
    sampling = SamplingParams.from_mapping(fields)
    if sampling.n_probs > config.max_probs:
        raise FieldError("n_probs", f"at most {config.max_probs} (also by the name of logprobs)")
    n_predict = config.n_predict if controls.n_predict is None else controls.n_predict
    limit = config.max_n_predict
    if limit >= 0:
        n_predict = limit if n_predict < 0 else min(n_predict, limit)
    asked = requested_source(controls)
    if asked is not None and source is not None:
        raise FieldError(asked.field, f"cannot be combined with {source.field}")
    if sampling.ignore_eos and (asked or source) is not None:
        raise FieldError("ignore_eos", "cannot be combined with a grammar, which says what ends")
    grammar = await compile_grammar(service, asked or source, grammar_begins_after)
    return Plan(controls, sampling, n_predict, grammar)


def _limit(field: str, value: object, maximum: int) -> None:
    if isinstance(value, (list, dict)) and len(value) > maximum:
        raise FieldError(field, f"at most {maximum} entries")


class Job:
    """One sequence: iterate `parts()` once, or `close()` it; then the totals are complete."""

    def __init__(self, service: Service, plan: Plan, prompt: Prompt, index: int) -> None:
        """Queues the sequence; raises RillmError if it can never be served."""
        self.plan = plan
        self.prompt = prompt
        self.index = index
        self.text = ""
        self.history: list[Part] = []  # what parts() gave, without mere progress
        self.token_ids: list[int] = []
        self.prompt_probs: list[TokenProbs] = []  # of all prompt tokens but the first
        self.probs: list[TokenProbs] = []
        self.timings = Timings()
        # GLM separates several tool calls by this token, which has no text.
        self._turn_token = service.tokenizer.specials.get("<|assistant|>")
        self._finish: Finish | None = None
        self._service = service
        sampling = plan.sampling
        if index and sampling.seed >= 0:  # several answers with one seed should still differ
            sampling = replace(sampling, seed=sampling.seed + index)
        controls = plan.controls
        request = Request(
            prompt.ids,
            sampling,
            n_predict=plan.n_predict,
            stop=tuple(controls.stop),
            cache_prompt=controls.cache_prompt,
            t_max_predict_ms=controls.t_max_predict_ms,
            mask_provider=None if plan.grammar is None else plan.grammar.constraint(),
            return_progress=controls.return_progress and controls.stream,
            timings_per_token=controls.timings_per_token or controls.return_progress,
            prompt_probs=plan.prompt_probs,
            rank=index,
        )
        self._stream = service.submit(request)
        self.settings = generation_settings(service, controls, sampling, plan.n_predict)
        self._ticket = service.slots.take(controls.id_slot, self.settings, prompt.ids)

    @property
    def finish(self) -> Finish:
        """How it ended."""
        assert self._finish is not None, "only known once all parts were read"
        return self._finish

    @property
    def slot_id(self) -> int:
        """The slot it runs in, or ran in."""
        return max(0, self._ticket.slot_id)

    async def parts(self) -> AsyncIterator[Part]:
        """The answer as it comes. Leaving the loop early ends the sequence.

        Tokens whose text is withheld come with the part that settles it. Raises ApiError if the
        sequence failed or was aborted.
        """
        part = Part()
        try:
            async for output in self._stream:
                if output.progress is not None:
                    yield Part(progress=output.progress, timings=output.timings)
                    continue
                if output.prompt_probs is not None:
                    self.prompt_probs = output.prompt_probs
                    continue
                if output.token is not None:
                    self._ticket.token_ids.append(output.token)
                    self.token_ids.append(output.token)
                    part.token_ids.append(output.token)
                if output.probs is not None:
                    self.probs.append(output.probs)
                    part.probs.append(output.probs)
                if output.token is not None and output.token == self._turn_token:
                    part.ends_turn = True
                self.text += output.text
                part.text += output.text
                part.timings = output.timings
                if output.finish is not None:
                    self._finish = output.finish
                    self.timings = output.finish.timings
                    if output.finish.reason in ("error", "abort"):
                        raise from_engine(output.finish.error)
                    if part.text or part.probs:
                        self.history.append(part)
                        yield part
                elif part.text or part.ends_turn:
                    self.history.append(part)
                    yield part
                    part = Part()
        finally:
            self.close()

    def close(self) -> None:
        """Ends the sequence if it still runs, and gives its slot back."""
        service = self._service
        service.release(self._stream)
        service.slots.release(self._ticket)
        service.num_tokens_max = max(service.num_tokens_max, len(self._ticket.token_ids))


def start(service: Service, plan: Plan, prompts: Sequence[Prompt]) -> list[Job]:
    """Queues `n` sequences of each prompt; all or, with an ApiError, none."""
    num, limit = plan.controls.n * len(prompts), service.config.max_choices
    if num > limit:
        raise FieldError("n", f"{num} results asked for, at most {limit} are given")
    jobs: list[Job] = []
    try:
        for prompt in prompts:
            for _ in range(plan.controls.n):
                jobs.append(Job(service, plan, prompt, len(jobs)))
    except BaseException as error:
        for job in jobs:
            job.close()
        if isinstance(error, RillmError):
            raise from_request(error) from None
        raise
    return jobs


async def finish_all(jobs: Sequence[Job]) -> None:
    """Waits for all answers; leaving early ends them."""

    async def run(job: Job) -> None:
        async for _ in job.parts():
            pass

    try:
        if len(jobs) == 1:
            await run(jobs[0])
        else:
            await asyncio.gather(*map(run, jobs))
    finally:
        for job in jobs:
            job.close()


async def merged(jobs: Sequence[Job]) -> AsyncIterator[tuple[Job, Part | None]]:
    """The parts of several answers as they come; (job, None) when a job is finished."""
    queue: asyncio.Queue[tuple[Job, Part | None] | BaseException] = asyncio.Queue()

    async def pump(job: Job) -> None:
        try:
            async for part in job.parts():
                queue.put_nowait((job, part))
            queue.put_nowait((job, None))
        except Exception as error:
            queue.put_nowait(error)

    tasks: list[asyncio.Task[None]] = []
    try:
        if len(jobs) == 1:
            async with aclosing(jobs[0].parts()) as parts:  # type: ignore[type-var]
                async for part in parts:
                    yield jobs[0], part
            yield jobs[0], None
            return
        tasks = [asyncio.create_task(pump(job)) for job in jobs]
        num_left = len(jobs)
        while num_left:
            item = await queue.get()
            if isinstance(item, BaseException):
                raise item
            num_left -= item[1] is None
            yield item
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for job in jobs:
            job.close()
