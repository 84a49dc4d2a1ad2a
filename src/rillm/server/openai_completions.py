"""POST /v1/completions."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from rillm.engine.outputs import TokenProbs
from rillm.server.completion import close_all
from rillm.server.grammar import response_format_source
from rillm.server.jobs import Job, finish_all, make_plan, merged, start
from rillm.server.json_io import JSONReply, read_object
from rillm.server.openai import envelope, finish_reason, logprobs, new_id, usage
from rillm.server.probabilities import LogprobLists
from rillm.server.prompts import read_prompts
from rillm.server.schema import CompletionBody
from rillm.server.service import Service
from rillm.server.sse import DONE, EventStream, event, until_disconnect
from rillm.server.state import service_for

_KIND = "text_completion"


async def openai_completions(request: Request) -> Response:
    """Continues a prompt; all parameters of /completion hold."""
    body = await read_object(request)
    service = await service_for(request, body)
    fields = CompletionBody.parse(body)
    num_top = _num_top(body)
    if num_top == 0:  # only the tokens' own
        body["n_probs"] = 1
    source = response_format_source(fields.response_format)
    plan = await make_plan(service, body, source=source)
    if fields.echo and num_top is not None:
        plan = replace(plan, prompt_probs=num_top)
    prompts, _ = await read_prompts(service, fields)
    jobs = start(service, plan, prompts)
    if plan.controls.stream:
        return EventStream(
            _events(service, jobs, fields.echo, num_top),
            close=lambda: close_all(jobs),
            ping_seconds=service.config.ping_seconds,
        )
    await until_disconnect(request, finish_all(jobs))
    choices = [
        {
            "text": (_prompt_text(service, job) if fields.echo else "") + job.text,
            "index": job.index,
            "logprobs": _logprobs(service, job, fields.echo, num_top),
            "finish_reason": finish_reason(job),
        }
        for job in jobs
    ]
    reply: dict[str, Any] = {"choices": choices, **envelope(service, _KIND, new_id("chatcmpl-"))}
    reply["usage"] = usage(jobs)
    reply["timings"] = jobs[0].timings.to_dict()
    return JSONReply(reply)


def _prompt_text(service: Service, job: Job) -> str:
    text = job.prompt.text
    return text if isinstance(text, str) else service.tokenizer.decode(job.prompt.ids)


def _num_top(body: Mapping[str, Any]) -> int | None:
    """How many likely tokens `logprobs` asks for; 0: only the tokens themselves, None: nothing."""
    asked = body.get("n_probs", body.get("logprobs"))
    if isinstance(asked, bool) or not isinstance(asked, int) or asked < 0:
        return None  # make_plan complains where that is wrong
    return None if asked == 0 and "logprobs" not in body else asked


def _logprobs(service: Service, job: Job, echo: bool, num_top: int | None) -> dict[str, Any] | None:
    if num_top is None:
        return logprobs(service, job.probs)
    lists = LogprobLists(service.tokenizer, num_top, _offset(service, job, echo))
    if echo:
        lists.add_prompt(job.prompt.ids, job.prompt_probs)
    return _both(service, lists, job.probs)


def _offset(service: Service, job: Job, echo: bool) -> int:
    return 0 if echo else len(_prompt_text(service, job))


def _both(
    service: Service, lists: LogprobLists, probs: Sequence[TokenProbs]
) -> dict[str, Any] | None:
    """llama-server's form of the logprobs and OpenAI's, under one roof."""
    lists.add(item for item in probs if item.token not in service.tokenizer.stop_ids)
    content = logprobs(service, probs)
    taken = lists.take()
    if content is None and not taken["tokens"]:
        return None
    return {**(content or {"content": []}), **taken}


async def _events(
    service: Service, jobs: Sequence[Job], echo: bool, num_top: int | None
) -> AsyncIterator[bytes]:
    frame = envelope(service, _KIND, new_id("chatcmpl-"))
    controls = jobs[0].plan.controls
    lists = [
        LogprobLists(service.tokenizer, num_top or 0, _offset(service, job, echo)) for job in jobs
    ]
    silent = {job.index for job in jobs} if echo else set()  # their prompt is not repeated yet

    def chunk(
        job: Job, text: str, extra: Mapping[str, Any] = MappingProxyType({}), **fields: Any
    ) -> bytes:
        choice = {"text": text, "index": job.index, "logprobs": None, "finish_reason": None}
        return event({"choices": [{**choice, **fields}], **frame, **extra})

    def probs(job: Job, items: Sequence[TokenProbs]) -> dict[str, Any] | None:
        if num_top is None:
            return logprobs(service, items)
        return _both(service, lists[job.index], items)

    async for job, part in merged(jobs):
        if job.index in silent and (part is None or part.progress is None):
            silent.remove(job.index)
            if num_top is not None:
                lists[job.index].add_prompt(job.prompt.ids, job.prompt_probs)
            yield chunk(job, _prompt_text(service, job), logprobs=probs(job, []))
        if part is None:
            last: dict[str, Any] = {}
            if not controls.stream_options.include_usage:
                last = {"timings": job.timings.to_dict(), "usage": usage([job])}
            yield chunk(job, "", last, finish_reason=finish_reason(job))
        elif part.text or part.probs:
            yield chunk(job, part.text, logprobs=probs(job, part.probs))
    if controls.stream_options.include_usage:
        timings = jobs[0].timings.to_dict()
        yield event({"choices": [], **frame, "usage": usage(jobs), "timings": timings})
    yield DONE
