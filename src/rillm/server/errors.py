"""Failures as HTTP replies: {"error": {"code", "message", "type"}}."""

from __future__ import annotations

from typing import Any

from rillm.engine.outputs import ContextSizeError
from rillm.errors import RillmError

_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    404: "not_found_error",
    408: "invalid_request_error",
    413: "invalid_request_error",
    431: "invalid_request_error",
    500: "server_error",
    501: "not_supported_error",
    503: "unavailable_error",
}


class ApiError(RillmError):
    """A reply with an error status. `extra` goes into the error object."""

    def __init__(self, status: int, message: str, *, kind: str | None = None, **extra: Any) -> None:
        super().__init__(message)
        self.status = status
        self.kind = kind or _TYPES.get(status, "invalid_request_error")
        self.extra = extra

    @property
    def body(self) -> dict[str, Any]:
        """The reply's JSON."""
        error = {"code": self.status, "message": str(self), "type": self.kind, **self.extra}
        return {"error": error}


class FieldError(ApiError):
    """A field of the request has a bad value."""

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(400, f"{field}: {problem}")


def from_request(error: RillmError) -> ApiError:
    """What was wrong with a request, found while it was being prepared."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, ContextSizeError):
        return ApiError(
            400,
            str(error),
            kind="exceed_context_size_error",
            n_prompt_tokens=error.num_prompt_tokens,
            n_ctx=error.context_length,
        )
    return ApiError(400, str(error))


def from_engine(error: RillmError | None) -> ApiError:
    """What ended a sequence that was running; None: it was aborted."""
    if error is None:
        return ApiError(503, "the server is shutting down")
    return error if isinstance(error, ApiError) else ApiError(500, str(error))
