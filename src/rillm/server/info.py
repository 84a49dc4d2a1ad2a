"""GET /props, /slots, /metrics: what is served, and how it is doing."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

import rillm
from rillm.chat_template import ChatTemplateError
from rillm.sampling import SamplingParams
from rillm.server.errors import ApiError
from rillm.server.json_io import JSONReply
from rillm.server.schema import Controls
from rillm.server.service import Service
from rillm.server.settings import generation_settings
from rillm.server.slots import Slot
from rillm.server.state import service_for, state_of

BUILD_INFO = f"rillm-{rillm.__version__}"


async def props(request: Request) -> Response:
    """The server's defaults and what the model can do."""
    service = await service_for(request)
    config = service.config
    tokenizer = service.tokenizer
    try:
        template, has_tools = service.template.text, service.template.supports_tools
    except ChatTemplateError:
        template, has_tools = "", False
    params = generation_settings(
        service, Controls.parse({}), SamplingParams.from_mapping(config.sampling), config.n_predict
    )
    return JSONReply(
        {
            "default_generation_settings": {"params": params, "n_ctx": service.context_length},
            "total_slots": config.parallel,
            "model_alias": service.name,
            "model_path": str(service.path),
            "modalities": {"vision": False, "audio": False, "video": False},
            "is_sleeping": False,
            "endpoint_slots": config.slots,
            "endpoint_props": False,
            "endpoint_metrics": config.metrics,
            "ui": config.ui,
            "chat_template": template,
            "chat_template_caps": {
                "supports_tools": has_tools,
                "supports_tool_calls": has_tools,
                "supports_parallel_tool_calls": has_tools,
                "supports_system_role": True,
            },
            "bos_token": _token_text(service, tokenizer.bos_id),
            "eos_token": _token_text(service, tokenizer.eos_id),
            "build_info": BUILD_INFO,
            "blas": service.loaded.model.blas,
        }
    )


def _token_text(service: Service, token: int | None) -> str:
    return "" if token is None else service.tokenizer.token_text(token)


async def slots(request: Request) -> Response:
    """What each slot is doing."""
    if not state_of(request).config.slots:
        raise ApiError(501, "This server does not show its slots. Start it without --no-slots")
    service = await service_for(request, may_load=False)
    table = service.slots
    if request.query_params.get("fail_on_no_slot") and table.num_busy == len(table.slots):
        raise ApiError(503, "no slot available")
    return JSONReply([_slot_object(service, slot) for slot in table.slots])


def _slot_object(service: Service, slot: Slot) -> dict[str, Any]:
    result: dict[str, Any] = {
        "id": slot.slot_id,
        "n_ctx": service.context_length,
        "is_processing": slot.ticket is not None,
    }
    ticket = slot.ticket or slot.last
    if ticket is not None:
        limit = ticket.settings["n_predict"]
        result["id_task"] = ticket.task_id
        result["n_prompt_tokens"] = ticket.num_prompt_tokens
        result["params"] = ticket.settings
        result["next_token"] = [
            {
                "has_next_token": slot.ticket is not None,
                "n_remain": limit - ticket.num_decoded if limit >= 0 else -1,
                "n_decoded": ticket.num_decoded,
            }
        ]
    return result


async def metrics(request: Request) -> Response:
    """Prometheus text."""
    if not state_of(request).config.metrics:
        raise ApiError(501, "This server does not support metrics endpoint. Start with --metrics")
    service = await service_for(request, may_load=False)
    stats = service.loaded.engine.stats
    blocks = service.loaded.engine.blocks
    rows: list[tuple[str, str, str, float]] = [
        ("prompt_tokens_total", "counter", "Prompt tokens computed", stats.prompt_tokens),
        (
            "prompt_tokens_cached_total",
            "counter",
            "Prompt tokens found in the prefix cache",
            stats.cached_prompt_tokens,
        ),
        (
            "prompt_seconds_total",
            "counter",
            "Time of steps with prompt tokens",
            stats.prompt_seconds,
        ),
        ("tokens_predicted_total", "counter", "Tokens generated", stats.generated_tokens),
        (
            "tokens_predicted_seconds_total",
            "counter",
            "Time of steps without prompt tokens",
            stats.generation_seconds,
        ),
        (
            "model_seconds_total",
            "counter",
            "Of both, time inside the model: the rest is sampling, scheduling and text",
            stats.model_seconds,
        ),
        ("n_decode_total", "counter", "Steps of the engine", stats.num_steps),
        (
            "n_tokens_max",
            "counter",
            "Longest sequence so far, prompt and answer",
            service.num_tokens_max,
        ),
        (
            "n_preemptions_total",
            "counter",
            "Sequences put off because memory was short",
            stats.num_preemptions,
        ),
        (
            "prompt_tokens_seconds",
            "gauge",
            "Average prompt throughput in tokens/s",
            _rate(stats.prompt_tokens, stats.prompt_seconds),
        ),
        (
            "predicted_tokens_seconds",
            "gauge",
            "Average generation throughput in tokens/s",
            _rate(stats.generated_tokens, stats.prompt_seconds + stats.generation_seconds),
        ),
        ("requests_processing", "gauge", "Requests being computed", service.slots.num_busy),
        ("requests_deferred", "gauge", "Requests waiting", len(service.slots.waiting)),
        (
            "n_busy_slots_per_decode",
            "gauge",
            "Average number of sequences generating in a step",
            _rate(stats.num_decoded_sequences, stats.num_steps),
        ),
        (
            "kv_cache_usage_ratio",
            "gauge",
            "Share of the KV cache in use, 1 = full",
            1 - blocks.num_free_blocks / blocks.num_blocks,
        ),
    ]
    lines: list[str] = []
    for name, kind, help_text, value in rows:
        lines.append(f"# HELP llamacpp:{name} {help_text}")
        lines.append(f"# TYPE llamacpp:{name} {kind}")
        lines.append(f"llamacpp:{name} {value:.10g}")
    headers = {"Process-Start-Time-Unix": str(service.created)}
    return PlainTextResponse(
        "\n".join(lines) + "\n", media_type="text/plain; version=0.0.4", headers=headers
    )


def _rate(amount: float, over: float) -> float:
    return amount / over if over > 0 else 0.0
