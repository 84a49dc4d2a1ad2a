"""What the application knows while it runs: the settings, and the model once it is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from starlette.requests import Request
from starlette.types import Scope

from rillm.server.config import ServerConfig
from rillm.server.errors import ApiError, FieldError
from rillm.server.models_pool import ModelPool, PooledModel
from rillm.server.service import Service
from rillm.server.sse import until_disconnect

_HELD = "rillm.held"  # in a request's scope: the models that it holds


class ServerState:
    """Shared by all requests, in `app.state.server`."""

    def __init__(self, config: ServerConfig) -> None:
        self.config = config
        self.service: Service | None = None  # the model, where there is one
        self.pool: ModelPool | None = None  # the models, where there are several
        self.progress = 0.0  # of loading, 0 to 1

    def require_ready(self) -> None:
        """ApiError 503 while the model loads."""
        if self.service is None and self.pool is None:
            raise ApiError(503, "Loading model", progress=round(self.progress, 3))

    def release(self, scope: Scope) -> None:
        """Gives back the models that a request holds: its reply is sent."""
        for model in scope.pop(_HELD, ()):
            assert self.pool is not None
            self.pool.release(model)


def state_of(request: Request) -> ServerState:
    """The application's."""
    state: ServerState = request.app.state.server
    return state


async def service_for(
    request: Request, body: Mapping[str, Any] | None = None, *, may_load: bool = True
) -> Service:
    """The model that a request is for: with several, the one that it names as `model`.

    Call it once the body is read. The model stays loaded until the reply is sent. may_load: False
    where a look at a model is no reason to load it (ApiError 503).
    """
    state = state_of(request)
    state.require_ready()
    if state.pool is None:  # what a request calls the model does not matter
        assert state.service is not None
        return state.service
    model = named_model(state.pool, request, body)
    if model.service is None:
        if not may_load:
            raise ApiError(503, f"model {model.name} is not loaded")
        if not state.config.models_autoload and model.loading is None:
            raise ApiError(400, f"model {model.name} is not loaded: POST /models/load loads it")
    service = await until_disconnect(request, state.pool.acquire(model))
    request.scope.setdefault(_HELD, []).append(model)
    return service


def named_model(pool: ModelPool, request: Request, body: Mapping[str, Any] | None) -> PooledModel:
    """The model that a request names, the first where it names none; ApiError 404 if unknown."""
    name = (body or {}).get("model", request.query_params.get("model"))
    if name is not None and not isinstance(name, str):
        raise FieldError("model", "must be a string")
    return pool.find(name)
