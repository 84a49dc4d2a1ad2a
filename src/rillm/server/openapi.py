"""GET /openapi.json: the interface described for tools, from the route table and the schemas."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from dataclasses import fields
from typing import Any, NamedTuple

from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response

import rillm
from rillm.sampling import SamplingParams
from rillm.server.json_io import JSONReply
from rillm.server.schema import Controls

_REF = "#/components/schemas/{model}"
_SAMPLING_TYPES: dict[type, dict[str, Any]] = {
    bool: {"type": "boolean"},
    int: {"type": "integer"},
    float: {"type": "number"},
}


class Route(NamedTuple):
    """One line of the route table."""

    method: str
    handler: Any  # Request -> awaitable Response
    paths: tuple[str, ...]
    body: type[BaseModel] | None = None
    generates: bool = False  # also takes Controls and the sampling parameters
    query: tuple[str, ...] = ()  # parameters after the ?, all optional; "name=a|b" lists values


async def openapi(request: Request) -> Response:
    """This description."""
    return JSONReply(request.app.state.openapi)


def describe(routes: Iterable[Route]) -> dict[str, Any]:
    """The OpenAPI 3.1 document."""
    schemas: dict[str, Any] = {"Sampling": _sampling_schema(), "Error": _error_schema()}
    paths: dict[str, Any] = {}
    for route in routes:
        for path in route.paths:
            paths.setdefault(path, {})[route.method.lower()] = _operation(route, path, schemas)
    return {
        "openapi": "3.1.0",
        "info": {"title": "rillm", "version": rillm.__version__},
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{}, {"key": []}],
    }


def _tag(path: str) -> str:
    """Whose clients know the path."""
    if path.startswith("/v1/messages"):
        return "Anthropic"
    return "OpenAI" if path.startswith("/v1/") else "native"


def _operation(route: Route, path: str, schemas: dict[str, Any]) -> dict[str, Any]:
    names = [part[1:-1] for part in path.split("/") if part.startswith("{")]
    operation: dict[str, Any] = {
        "summary": (inspect.getdoc(route.handler) or "").partition("\n")[0],
        "tags": [_tag(path)],
        "responses": {
            "200": {"description": "done"},
            "default": {
                "description": "failed",
                "content": {"application/json": {"schema": _reference("Error")}},
            },
        },
    }
    parameters = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in names
    ]
    parameters += [_query_parameter(text) for text in route.query]
    if parameters:
        operation["parameters"] = parameters
    models = [route.body] if route.body is not None else []
    if route.generates:
        models.append(Controls)
    parts = [_reference(model.__name__) for model in models]
    if route.generates:
        parts.append(_reference("Sampling"))
    for model in models:
        schema = model.model_json_schema(ref_template=_REF)
        schemas.update(schema.pop("$defs", {}))
        schemas[model.__name__] = schema
    if parts:
        schema = parts[0] if len(parts) == 1 else {"allOf": parts}
        content = {"application/json": {"schema": schema}}
        operation["requestBody"] = {"required": True, "content": content}
    return operation


def _query_parameter(text: str) -> dict[str, Any]:
    name, _, values = text.partition("=")
    schema: dict[str, Any] = {"type": "string"}
    if values:
        schema["enum"] = values.split("|")
    return {"name": name, "in": "query", "required": False, "schema": schema}


def _reference(name: str) -> dict[str, str]:
    return {"$ref": _REF.format(model=name)}


def _sampling_schema() -> dict[str, Any]:
    properties: dict[str, Any] = {}
    for field in fields(SamplingParams):
        schema = dict(_SAMPLING_TYPES.get(type(field.default), {}))
        default = list(field.default) if isinstance(field.default, tuple) else field.default
        properties[field.name] = {**schema, "default": default}
    return {"type": "object", "properties": properties}


def _error_schema() -> dict[str, Any]:
    properties = {
        "code": {"type": "integer"},
        "message": {"type": "string"},
        "type": {"type": "string"},
    }
    error = {"type": "object", "properties": properties, "required": list(properties)}
    return {"type": "object", "properties": {"error": error}, "required": ["error"]}
