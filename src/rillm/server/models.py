"""GET /v1/models, POST /models/load and /models/unload: which models there are, and in memory."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from rillm.server.errors import ApiError
from rillm.server.json_io import JSONReply, read_object
from rillm.server.models_pool import ModelPool
from rillm.server.schema import ModelBody
from rillm.server.service import Service
from rillm.server.sse import until_disconnect
from rillm.server.state import named_model, service_for, state_of

OWNER = "rillm"


async def models(request: Request) -> Response:
    """The models, as OpenAI lists them."""
    state = state_of(request)
    state.require_ready()
    if state.pool is None:
        return JSONReply({"object": "list", "data": [_entry(await service_for(request))]})
    data = []
    for model in state.pool.models.values():
        entry: dict[str, Any] = {"id": model.name, "object": "model"}
        if model.service is not None:
            entry = _entry(model.service)
        status = {"value": model.status}
        data.append({"created": state.pool.created, "owned_by": OWNER, **entry, "status": status})
    return JSONReply({"object": "list", "data": data})


async def load_model(request: Request) -> Response:
    """Brings a model into memory; the reply comes when it is there."""
    pool, body = await _pool_and_body(request)
    model = named_model(pool, request, body)
    if model.service is not None and not model.is_leaving:
        raise ApiError(400, "model is already loaded")
    await until_disconnect(request, pool.acquire(model))
    pool.release(model)
    return JSONReply({"success": True})


async def unload_model(request: Request) -> Response:
    """Frees a model's memory, once its running requests are through."""
    pool, body = await _pool_and_body(request)
    if not await until_disconnect(request, pool.unload(named_model(pool, request, body))):
        raise ApiError(400, "model is not loaded")
    return JSONReply({"success": True})


async def _pool_and_body(request: Request) -> tuple[ModelPool, dict[str, Any]]:
    body = await read_object(request)
    ModelBody.parse(body)
    state = state_of(request)
    state.require_ready()
    if state.pool is None:
        raise ApiError(501, "This server has one model. Start it with --models-dir or several -m")
    return state.pool, body


def _entry(service: Service) -> dict[str, Any]:
    loaded = service.loaded
    model = loaded.model.config
    tensors = loaded.reader.tensors.values()
    meta = {
        "vocab_type": 1 if loaded.reader.metadata.get("tokenizer.ggml.model") == "llama" else 2,
        "n_vocab": model.vocab_size,
        "n_ctx": service.context_length,
        "n_ctx_train": model.context_length,
        "n_embd": model.hidden_size,
        "n_params": sum(_num_elements(tensor.shape) for tensor in tensors),
        "size": sum(tensor.nbytes for tensor in tensors),
    }
    return {
        "id": service.name,
        "object": "model",
        "created": service.created,
        "owned_by": OWNER,
        "meta": meta,
    }


def _num_elements(shape: Any) -> int:
    total = 1
    for size in shape:
        total *= size
    return total
