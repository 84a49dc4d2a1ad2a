"""Structured output: masks of the tokens that a grammar, schema or regex allows, by llguidance.

llguidance is optional. Without it a request that asks for a grammar gets a 501; a grammar or schema
that cannot be enforced gets a 400 with the reason. None is ever ignored.
"""

from __future__ import annotations

import asyncio
import json
from array import array
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rillm.server.errors import ApiError, FieldError
from rillm.server.schema import Controls
from rillm.tokenizer import Tokenizer

if TYPE_CHECKING:
    from rillm.server.service import Service

_ANY_OBJECT = {"type": "object"}
# Between two tokens of JSON a space, or a line end and some indentation: with room for more, a
# small model may fill the whole answer with it. What cannot be enforced is an error (lenient).
_JSON_OPTIONS = {"whitespace_pattern": r"( |\n[ \t]{0,20})", "lenient": False}


@dataclass(frozen=True, slots=True)
class GrammarSource:
    """A grammar as it was asked for."""

    kind: str  # "gbnf", "json_schema", "regex" or "lark"
    text: str
    field: str  # of the request, for errors


class Grammar:
    """A checked grammar; `constraint()` starts a new text that follows it."""

    def __init__(self, compiler: GrammarCompiler, matcher: Any, begins_after: int | None) -> None:
        self._compiler = compiler
        self._matcher = matcher
        self._begins_after = begins_after

    def constraint(self) -> Constraint:
        """For one sequence."""
        words = (self._compiler.vocab_size + 31) // 32
        return Constraint(self._matcher.deep_copy(), words, self._begins_after)


class Constraint:
    """The engine's MaskProvider: which tokens may come next in one sequence."""

    def __init__(self, matcher: Any, num_words: int, begins_after: int | None) -> None:
        """begins_after: a token up to which everything is allowed (the end of thinking)."""
        self._matcher = matcher
        self._begins_after = begins_after
        self._mask = array("I", bytes(4 * num_words))
        if begins_after is not None:
            self._mask = array("I", b"\xff" * (4 * num_words))

    def mask_address(self) -> int:
        """Address of uint32 words with a bit for each allowed token."""
        address, num_words = self._mask.buffer_info()
        if self._begins_after is None:
            self._matcher.unsafe_compute_mask_ptr(address, 4 * num_words)
            self._check()
        return address

    def accept(self, token: int) -> None:
        """Moves on."""
        if self._begins_after is not None:
            if token == self._begins_after:
                self._begins_after = None
            return
        if not self._matcher.is_stopped():
            self._matcher.consume_token(token)
            self._check()

    def _check(self) -> None:
        if self._matcher.is_error():
            raise ValueError(str(self._matcher.get_error()).strip().splitlines()[0])


class GrammarCompiler:
    """Checks grammars against one vocabulary. Making it takes up to a second: keep it."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        try:
            import llguidance
        except ImportError:
            raise ApiError(
                501,
                "structured output needs the llguidance package: pip install llguidance",
            ) from None
        self.vocab_size = tokenizer.vocab_size
        if not tokenizer.stop_ids:
            raise ApiError(501, "structured output: the model has no token that ends an answer")
        self._library = llguidance
        self._tokenizer = llguidance.LLTokenizer(
            llguidance.TokenizerWrapper(_Vocabulary(tokenizer)),
            eos_token=sorted(tokenizer.stop_ids),
        )

    def compile(self, source: GrammarSource, begins_after: int | None = None) -> Grammar:
        """Raises FieldError with the reason if the grammar cannot be enforced."""
        library = self._library
        try:
            text = library.grammar_from(source.kind, source.text)
        except Exception as error:
            raise FieldError(source.field, _one_line(error)) from None
        is_error, messages = library.LLMatcher.validate_grammar_with_warnings(text, self._tokenizer)
        if is_error:
            raise FieldError(source.field, _one_line(messages[0]))
        matcher = library.LLMatcher(self._tokenizer, text, log_level=0)
        if matcher.is_error():
            raise FieldError(source.field, _one_line(matcher.get_error()))
        return Grammar(self, matcher, begins_after)


class _Vocabulary:
    """The tokenizer as llguidance wants it."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        stops = sorted(tokenizer.stop_ids)
        self.eos_token_id = tokenizer.eos_id if tokenizer.eos_id is not None else stops[0]
        self.bos_token_id = tokenizer.bos_id
        self.tokens = [tokenizer.token_bytes(i) for i in range(tokenizer.vocab_size)]
        self.special_token_ids = sorted(
            {i for i in range(tokenizer.vocab_size) if tokenizer.is_special(i)}
            | set(tokenizer.specials.values())
        )

    def __call__(self, text: str | bytes) -> list[int]:
        if isinstance(text, bytes):
            text = text.decode("utf-8", "replace")
        return self._tokenizer.encode(text)


def json_source(schema: Mapping[str, Any] | bool, field: str) -> GrammarSource:
    """A JSON schema; {} asks for any object, as in llama-server."""
    return GrammarSource("json_schema", schema_text(schema), field)


def schema_text(schema: Mapping[str, Any] | bool) -> str:
    """The schema as llguidance is given it."""
    if schema == {} or schema is True:
        schema = _ANY_OBJECT
    if isinstance(schema, Mapping):
        schema = {**schema, "x-guidance": _JSON_OPTIONS}
    return json.dumps(schema)


def requested_source(controls: Controls) -> GrammarSource | None:
    """The grammar, JSON schema or regular expression of a request's fields."""
    asked: list[GrammarSource] = []
    if controls.grammar:
        asked.append(GrammarSource("gbnf", controls.grammar, "grammar"))
    if controls.json_schema is not None:
        asked.append(json_source(controls.json_schema, "json_schema"))
    if controls.regex:
        asked.append(GrammarSource("regex", controls.regex, "regex"))
    if len(asked) > 1:
        raise FieldError(asked[0].field, f"cannot be combined with {asked[1].field}")
    return asked[0] if asked else None


def response_format_source(asked: Mapping[str, Any] | None) -> GrammarSource | None:
    """OpenAI's response_format."""
    if asked is None:
        return None
    kind = asked.get("type")
    if kind in (None, "text"):
        return None
    if kind == "json_object":
        schema = asked.get("schema") or {}
    elif kind == "json_schema":
        inner = asked.get("json_schema", asked)
        schema = inner.get("schema") if isinstance(inner, Mapping) else None
        if schema is None:
            raise FieldError("response_format", "json_schema.schema is missing")
    else:
        raise FieldError("response_format", f"type {kind!r:.40} is not known")
    if not isinstance(schema, (dict, bool)):
        raise FieldError("response_format", "the schema must be a JSON object")
    return json_source(schema, "response_format")


async def compile_grammar(
    service: Service, source: GrammarSource | None, begins_after: int | None = None
) -> Grammar | None:
    """Compiles in a thread of its own: a complex schema takes its time."""
    if source is None:
        return None
    limit = service.config.max_schema_bytes
    if len(source.text) > limit:
        raise FieldError(source.field, f"larger than {limit} bytes")
    return await asyncio.to_thread(lambda: service.grammar_compiler().compile(source, begins_after))


def _one_line(error: object) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    # "regex parse error:", the expression, a pointer into it, and then what is wrong with it.
    reason = f"{lines[0]} {lines[-1]}" if lines[0].endswith(":") and lines[1:] else lines[0]
    return reason[:300]
