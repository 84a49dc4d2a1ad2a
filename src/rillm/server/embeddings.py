"""POST /embedding and /v1/embeddings: texts as vectors."""

from __future__ import annotations

import asyncio
import base64
from array import array
from collections.abc import Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from rillm.engine.pooling import normalized
from rillm.engine.request import Request as EngineRequest
from rillm.errors import RillmError
from rillm.sampling import SamplingParams
from rillm.server.errors import ApiError, FieldError, from_engine, from_request
from rillm.server.jobs import Prompt
from rillm.server.json_io import JSONReply, read_object
from rillm.server.prompts import encode_all
from rillm.server.schema import Controls, EmbeddingBody
from rillm.server.service import Service
from rillm.server.settings import generation_settings
from rillm.server.sse import until_disconnect
from rillm.server.state import service_for


async def embeddings(request: Request) -> Response:
    """The embedding of each text of `content`, all tokens' ones where there is no pooling."""
    body = await read_object(request)
    service = await service_for(request, body)
    fields = _read(service, body)
    prompts = await _prompts(service, fields)
    results = await until_disconnect(request, _embed_all(service, prompts))
    norm = fields.embd_normalize if service.pooling != "none" else -1
    # Thousands of tokens have millions of numbers: not in the event loop.
    return await asyncio.to_thread(
        lambda: JSONReply(
            [
                {"index": index, "embedding": [_numbers(vector, norm) for vector in vectors]}
                for index, vectors in enumerate(results)
            ]
        )
    )


async def openai_embeddings(request: Request) -> Response:
    """The embedding of each text of `input`."""
    body = await read_object(request)
    service = await service_for(request, body)
    fields = _read(service, body)
    if service.pooling == "none":
        raise ApiError(
            400,
            "Pooling type 'none' is not OAI compatible. Please use a different pooling type "
            "(start the server with --pooling mean, cls or last)",
        )
    prompts = await _prompts(service, fields)
    results = await until_disconnect(request, _embed_all(service, prompts))
    data: list[dict[str, Any]] = []
    for index, (vector,) in enumerate(results):
        item: dict[str, Any] = {"index": index, "object": "embedding"}
        if fields.encoding_format == "base64":
            values = normalized(vector, fields.embd_normalize)
            item["embedding"] = base64.b64encode(values.tobytes()).decode()
            item["encoding_format"] = "base64"
        else:
            item["embedding"] = _numbers(vector, fields.embd_normalize)
        data.append(item)
    num_tokens = sum(len(prompt.ids) for prompt in prompts)
    usage = {"prompt_tokens": num_tokens, "total_tokens": num_tokens}
    return JSONReply({"model": service.name, "object": "list", "usage": usage, "data": data})


def _read(service: Service, body: dict[str, Any]) -> EmbeddingBody:
    if not service.config.embeddings:
        raise ApiError(501, "This server does not support embeddings. Start it with `--embeddings`")
    fields = EmbeddingBody.parse(body)
    if fields.input is None:
        raise FieldError("input", '"input" or "content" must be provided')
    return fields


async def _prompts(service: Service, fields: EmbeddingBody) -> list[Prompt]:
    prompts, _ = await encode_all(
        service, fields.input, field="input", limit=service.config.max_inputs
    )
    if not prompts or not all(prompt.ids for prompt in prompts):
        raise FieldError("input", "Input content cannot be empty")
    return prompts


async def _embed_all(service: Service, prompts: Sequence[Prompt]) -> list[list[array[float]]]:
    # A few at a time: others wait in the same queue, and a long list shall not fill it.
    free = asyncio.Semaphore(service.config.parallel)

    async def run(prompt: Prompt) -> list[array[float]]:
        async with free:
            return await _embed(service, prompt.ids)

    tasks = [asyncio.ensure_future(run(prompt)) for prompt in prompts]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:  # where one failed, or the client left
            task.cancel()


async def _embed(service: Service, ids: list[int]) -> list[array[float]]:
    try:
        stream = service.submit(EngineRequest(ids, n_predict=0, pooling=service.pooling))
    except RillmError as error:
        raise from_request(error) from None
    settings = generation_settings(service, Controls.parse({}), SamplingParams(), 0)
    ticket = service.slots.take(-1, settings, ids)
    try:
        async for output in stream:
            if output.finish is not None and output.finish.reason in ("error", "abort"):
                raise from_engine(output.finish.error)
            if output.embeddings is not None:
                return output.embeddings
    finally:
        service.release(stream)
        service.slots.release(ticket)
    raise ApiError(500, "the engine gave no embedding")


def _numbers(vector: array[float], norm: int) -> list[float]:
    # Nine digits are all that a float32 has.
    return [float(f"{value:.9g}") for value in normalized(vector, norm)]
