"""The route table."""

from __future__ import annotations

from starlette import routing
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp

from rillm.errors import RillmError
from rillm.server.anthropic import count_tokens, messages
from rillm.server.chat import apply_template, chat_completions, input_tokens
from rillm.server.completion import completion
from rillm.server.config import ServerConfig
from rillm.server.docs_page import docs
from rillm.server.embeddings import embeddings, openai_embeddings
from rillm.server.errors import ApiError, from_request
from rillm.server.gate import Gate
from rillm.server.health import health
from rillm.server.infill import infill
from rillm.server.info import metrics, props, slots
from rillm.server.json_io import error_reply
from rillm.server.models import load_model, models, unload_model
from rillm.server.openai_completions import openai_completions
from rillm.server.openapi import Route, describe, openapi
from rillm.server.page import page, page_files
from rillm.server.responses import responses
from rillm.server.schema import (
    AnthropicBody,
    ChatBody,
    CompletionBody,
    DetokenizeBody,
    EmbeddingBody,
    InfillBody,
    ModelBody,
    ResponsesBody,
    SlotBody,
    TokenizeBody,
)
from rillm.server.slot_files import slot_action
from rillm.server.state import ServerState
from rillm.server.tokens import detokenize, tokenize
from rillm.server.unsupported import change_props, rerank

ROUTES = [
    Route("GET", page, ("/", "/ui/{name}")),
    Route("GET", health, ("/health", "/v1/health")),
    Route("GET", openapi, ("/openapi.json",)),
    Route("GET", docs, ("/docs",)),
    Route("GET", props, ("/props",), query=("model",)),
    Route("POST", change_props, ("/props",)),
    Route("GET", models, ("/models", "/v1/models")),
    Route("POST", load_model, ("/models/load",), ModelBody),
    Route("POST", unload_model, ("/models/unload",), ModelBody),
    Route("GET", slots, ("/slots",), query=("fail_on_no_slot", "model")),
    Route(
        "POST", slot_action, ("/slots/{slot_id}",), SlotBody, query=("action=save|restore|erase",)
    ),
    Route("GET", metrics, ("/metrics",), query=("model",)),
    Route("POST", completion, ("/completion", "/completions"), CompletionBody, True),
    Route("POST", tokenize, ("/tokenize",), TokenizeBody),
    Route("POST", detokenize, ("/detokenize",), DetokenizeBody),
    Route("POST", apply_template, ("/apply-template",), ChatBody),
    Route("POST", openai_completions, ("/v1/completions",), CompletionBody, True),
    Route("POST", chat_completions, ("/v1/chat/completions", "/chat/completions"), ChatBody, True),
    Route("POST", input_tokens, ("/v1/chat/completions/input_tokens",), ChatBody),
    Route("POST", responses, ("/v1/responses", "/responses"), ResponsesBody),
    Route("POST", messages, ("/v1/messages",), AnthropicBody),
    Route("POST", count_tokens, ("/v1/messages/count_tokens",), AnthropicBody),
    Route("POST", embeddings, ("/embedding", "/embeddings"), EmbeddingBody),
    Route("POST", openai_embeddings, ("/v1/embeddings",), EmbeddingBody),
    Route("POST", infill, ("/infill",), InfillBody, True),
    Route("POST", rerank, ("/rerank", "/v1/rerank", "/reranking", "/v1/reranking")),
]


def create_app(config: ServerConfig) -> tuple[ASGIApp, ServerState]:
    """The application, and the state into which the loaded model is put."""
    state = ServerState(config)
    routes = [
        routing.Route(path, route.handler, methods=[route.method])
        for route in ROUTES
        for path in route.paths
    ]
    app = Starlette(
        routes=routes,
        exception_handlers={
            HTTPException: _http_error,
            RillmError: _known_error,
            Exception: _unknown_error,
        },
    )
    app.state.server = state
    app.state.openapi = describe(ROUTES)
    return Gate(app, state, frozenset(page_files())), state


def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code == 404:
        return error_reply(ApiError(404, "File Not Found"))
    reply = error_reply(ApiError(error.status_code, error.detail))
    reply.headers.update(error.headers or {})
    return reply


def _known_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RillmError)
    return error_reply(from_request(error))


def _unknown_error(request: Request, error: Exception) -> Response:
    # Starlette re-raises it after this reply, and uvicorn logs it with its traceback.
    return error_reply(ApiError(500, f"internal error ({type(error).__name__})"))
