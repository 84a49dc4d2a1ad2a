"""POST /completion: llama-server's own endpoint."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from rillm.engine.outputs import PromptProgress
from rillm.server.grammar import response_format_source
from rillm.server.jobs import Job, Part, Plan, Prompt, finish_all, make_plan, merged, start
from rillm.server.json_io import JSONReply, read_object
from rillm.server.probabilities import probability_list
from rillm.server.prompts import read_prompts
from rillm.server.schema import CompletionBody
from rillm.server.service import Service
from rillm.server.sse import EventStream, event, until_disconnect
from rillm.server.state import service_for


async def completion(request: Request) -> Response:
    """Continues a prompt."""
    body = await read_object(request)
    service = await service_for(request, body)
    fields = CompletionBody.parse(body)
    source = response_format_source(fields.response_format)
    plan = await make_plan(service, body, source=source)
    prompts, is_many = await read_prompts(service, fields)
    return await answer(request, service, plan, prompts, is_many=is_many)


async def answer(
    request: Request,
    service: Service,
    plan: Plan,
    prompts: Sequence[Prompt],
    *,
    is_many: bool = False,
) -> Response:
    """Continues the prompts; the reply is an array where there are many."""
    jobs = start(service, plan, prompts)
    if plan.controls.stream:
        return EventStream(
            _events(service, jobs),
            close=lambda: close_all(jobs),
            ping_seconds=service.config.ping_seconds,
        )
    await until_disconnect(request, finish_all(jobs))
    results = [final_object(service, job) for job in jobs]
    return JSONReply(results if is_many or len(results) > 1 else results[0])


def close_all(jobs: Sequence[Job]) -> None:
    """Ends all jobs that still run."""
    for job in jobs:
        job.close()


async def _events(service: Service, jobs: Sequence[Job]) -> AsyncIterator[bytes]:
    async for job, part in merged(jobs):
        yield event(final_object(service, job) if part is None else _chunk(service, job, part))


def _chunk(service: Service, job: Job, part: Part) -> dict[str, Any]:
    sampling = job.plan.sampling
    chunk: dict[str, Any] = {
        "index": job.index,
        "content": part.text,
        "tokens": part.token_ids,
        "stop": False,
        "id_slot": job.slot_id,
        "tokens_predicted": len(job.token_ids),
        "tokens_evaluated": len(job.prompt.ids),
    }
    if part.timings is not None and job.plan.controls.timings_per_token:
        chunk["timings"] = part.timings.to_dict()
    if part.progress is not None:
        chunk["prompt_progress"] = progress_object(part.progress)
    if sampling.n_probs > 0 and part.probs:
        chunk["completion_probabilities"] = probability_list(
            service.tokenizer, part.probs, after_sampling=sampling.post_sampling_probs
        )
    return _selected(chunk, job)


def final_object(service: Service, job: Job) -> dict[str, Any]:
    """The whole result; of a stream, its last event, without the text that was sent before."""
    controls, sampling = job.plan.controls, job.plan.sampling
    finish = job.finish
    result: dict[str, Any] = {
        "index": job.index,
        "content": "" if controls.stream else job.text,
        "tokens": job.token_ids if controls.return_tokens and not controls.stream else [],
        "id_slot": job.slot_id,
        "stop": True,
        "model": service.name,
        "tokens_predicted": finish.num_generated_tokens,
        "tokens_evaluated": finish.num_prompt_tokens,
        "generation_settings": job.settings,
        "prompt": job.prompt.text,
        "has_new_line": finish.has_new_line,
        "truncated": finish.truncated,
        "stop_type": finish.reason,
        "stopping_word": finish.stopping_word,
        "tokens_cached": finish.num_cached_tokens,
        "timings": job.timings.to_dict(),
    }
    if sampling.n_probs > 0 and not controls.stream:
        result["completion_probabilities"] = probability_list(
            service.tokenizer, job.probs, after_sampling=sampling.post_sampling_probs
        )
    return _selected(result, job)


def progress_object(progress: PromptProgress) -> dict[str, Any]:
    """`prompt_progress`."""
    return {
        "total": progress.total,
        "cache": progress.cache,
        "processed": progress.processed,
        "time_ms": round(progress.time_ms),
    }


def _selected(result: dict[str, Any], job: Job) -> dict[str, Any]:
    """Only the `response_fields`, where given: "a/b" is b of a, under that whole name."""
    fields = job.plan.controls.response_fields
    if not fields:
        return result
    selected: dict[str, Any] = {}
    for field in fields:
        value: Any = result
        for name in field.split("/"):
            if not isinstance(value, dict) or name not in value:
                break
            value = value[name]
        else:
            selected[field] = value
    return selected
