"""The fields of requests, checked. Unknown fields are ignored, and null fields are already gone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import AliasChoices, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from rillm.server.errors import FieldError


def _whole(value: object) -> object:
    """5.0 is 5, as in JSON's own eyes; true is no number."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value


def _listed(value: object) -> object:
    return [value] if isinstance(value, str) else value


Whole = Annotated[int, BeforeValidator(_whole)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Strings = Annotated[list[str], BeforeValidator(_listed)]
TokenId = Annotated[int, BeforeValidator(_whole), Field(ge=0, lt=2**31)]
Prompt = str | list[str | TokenId | list[str | TokenId]]

_INT32 = 2**31 - 1
_TYPE_NAMES = frozenset({"bool", "dict", "float", "int", "list", "str"})


class Schema(BaseModel):
    """Base of all request bodies: JSON types are taken as they are, not converted."""

    model_config = ConfigDict(strict=True, extra="ignore", frozen=True)

    @classmethod
    def parse(cls, body: Mapping[str, Any]) -> Self:
        """Checks a body; FieldError names the first field that is wrong."""
        try:
            return cls.model_validate(body)
        except ValidationError as error:
            first = error.errors(include_url=False, include_context=False, include_input=False)[0]
            # Of a union every branch is named after the field: the field is what a user knows.
            path = [str(part) for part in first["loc"] if not _is_branch(part)]
            raise FieldError(".".join(path) or "body", first["msg"]) from None


def _is_branch(part: object) -> bool:
    return isinstance(part, str) and (not part.isidentifier() or part in _TYPE_NAMES)


class StreamOptions(Schema):
    """OpenAI's stream_options."""

    include_usage: bool = False


class Controls(Schema):
    """What every generating endpoint takes, beside the sampling parameters."""

    n_predict: Annotated[Whole, Field(ge=-1, le=_INT32)] | None = Field(
        None, validation_alias=AliasChoices("n_predict", "max_completion_tokens", "max_tokens")
    )
    stream: bool = False
    stop: Strings = []
    cache_prompt: bool = True
    id_slot: Annotated[Whole, Field(ge=-1, le=_INT32)] = -1
    n_keep: Annotated[Whole, Field(ge=-1, le=_INT32)] = 0
    t_max_predict_ms: Finite = -1.0
    n: Annotated[Whole, Field(ge=1)] = Field(1, validation_alias=AliasChoices("n", "n_cmpl"))
    return_tokens: bool = False
    return_progress: bool = False
    timings_per_token: bool = False
    verbose: bool = False
    response_fields: list[str] = []
    stream_options: StreamOptions = StreamOptions()
    grammar: str = ""
    json_schema: dict[str, Any] | bool | None = None
    regex: str = Field("", validation_alias=AliasChoices("regex", "guided_regex"))


class CompletionBody(Schema):
    """POST /completion and /v1/completions."""

    prompt: Prompt
    echo: bool = False
    response_format: dict[str, Any] | None = None


class EmbeddingBody(Schema):
    """POST /embedding and /v1/embeddings."""

    input: Prompt | None = Field(None, validation_alias=AliasChoices("input", "content"))
    encoding_format: Literal["float", "base64"] = "float"
    embd_normalize: Annotated[Whole, Field(ge=-1, le=100)] = 2


class InfillBody(Schema):
    """POST /infill."""

    input_prefix: str = ""
    input_suffix: str = ""
    input_extra: list[dict[str, Any]] = []
    prompt: str = ""


class ModelBody(Schema):
    """POST /models/load and /models/unload."""

    model: str


class SlotBody(Schema):
    """POST /slots/{id}?action=save|restore."""

    filename: str = ""


class TokenizeBody(Schema):
    """POST /tokenize."""

    content: Prompt = ""
    add_special: bool = False
    parse_special: bool = True
    with_pieces: bool = False


class DetokenizeBody(Schema):
    """POST /detokenize."""

    tokens: list[TokenId] = []


class ChatBody(Schema):
    """What every chat endpoint is brought down to: POST /v1/chat/completions."""

    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] = []
    tool_choice: str | dict[str, Any] = "auto"
    parallel_tool_calls: bool = False
    response_format: dict[str, Any] | None = None
    logprobs: bool = False
    top_logprobs: Annotated[Whole, Field(ge=0, le=1024)] | None = None
    chat_template_kwargs: dict[str, Any] = {}
    reasoning_format: str | None = None
    add_generation_prompt: bool = True


class AnthropicBody(Schema):
    """POST /v1/messages."""

    messages: list[dict[str, Any]]
    system: str | list[dict[str, Any]] = ""
    max_tokens: Annotated[Whole, Field(ge=1, le=_INT32)] | None = None
    stop_sequences: list[str] = []
    tools: list[dict[str, Any]] = []
    tool_choice: dict[str, Any] = {}
    thinking: dict[str, Any] = {}
    output_config: dict[str, Any] = {}
    output_format: dict[str, Any] | None = None  # what output_config.format was called before


class ResponsesBody(Schema):
    """POST /v1/responses."""

    input: str | list[dict[str, Any]]
    instructions: str = ""
    max_output_tokens: Annotated[Whole, Field(ge=1, le=_INT32)] | None = None
    tools: list[dict[str, Any]] = []
    tool_choice: str | dict[str, Any] = "auto"
    parallel_tool_calls: bool = False
    text: dict[str, Any] = {}
    reasoning: dict[str, Any] = {}
    previous_response_id: str | None = None
