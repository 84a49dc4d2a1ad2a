"""POST /infill: the text between two others, for models that were trained to write it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from rillm.server.completion import answer
from rillm.server.errors import ApiError, FieldError
from rillm.server.jobs import Prompt, make_plan
from rillm.server.json_io import read_object
from rillm.server.schema import InfillBody
from rillm.server.service import Service
from rillm.server.state import service_for

# Of the tokens a prompt may have, the share of what comes before the gap.
_PREFIX_SHARE = 0.75
_NAMES: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    # name: (GGUF keys without tokenizer.ggml., spellings where no key says)
    "prefix": (
        ("fim_pre_token_id", "prefix_token_id"),
        ("<|fim_prefix|>", "<fim-prefix>", "<fim_prefix>", "<PRE>", "<|code_prefix|>"),
    ),
    "suffix": (
        ("fim_suf_token_id", "suffix_token_id"),
        ("<|fim_suffix|>", "<fim-suffix>", "<fim_suffix>", "<SUF>", "<|code_suffix|>"),
    ),
    "middle": (
        ("fim_mid_token_id", "middle_token_id"),
        ("<|fim_middle|>", "<fim-middle>", "<fim_middle>", "<MID>", "<|code_middle|>"),
    ),
    "repo": (("fim_rep_token_id",), ("<|repo_name|>", "<|fim_repo|>", "<reponame>")),
    "file": (("fim_sep_token_id",), ("<|file_sep|>",)),
}


@dataclass(frozen=True, slots=True)
class FimTokens:
    """The tokens that mark the parts; None where the vocabulary has none."""

    prefix: int
    suffix: int
    middle: int
    repo: int | None
    file: int | None

    @classmethod
    def of(cls, service: Service) -> FimTokens:
        """The model's; ApiError 501 if it was not trained for this."""
        metadata = service.loaded.reader.metadata
        specials = service.tokenizer.specials
        limit = service.tokenizer.vocab_size
        found: dict[str, int] = {}
        for name, (keys, spellings) in _NAMES.items():
            ids: list[Any] = [metadata.get(f"tokenizer.ggml.{key}") for key in keys]
            ids += [specials.get(spelling) for spelling in spellings]
            good = [item for item in ids if isinstance(item, int) and 0 <= item < limit]
            if good:
                found[name] = good[0]
        missing = [name for name in ("prefix", "suffix", "middle") if name not in found]
        if missing:
            reason = " ".join(f"{name} token is missing." for name in missing)
            raise ApiError(501, f"Infill is not supported by this model: {reason}")
        return cls(
            found["prefix"], found["suffix"], found["middle"], found.get("repo"), found.get("file")
        )


async def infill(request: Request) -> Response:
    """Writes what is missing between `input_prefix` and `input_suffix`."""
    body = await read_object(request)
    service = await service_for(request, body)
    fim = FimTokens.of(service)
    fields = InfillBody.parse(body)
    plan = await make_plan(service, body)
    ids = await asyncio.to_thread(_prompt_ids, service, fim, fields, plan.n_predict)
    return await answer(request, service, plan, [Prompt(service.tokenizer.decode(ids), ids)])


def _prompt_ids(service: Service, fim: FimTokens, fields: InfillBody, n_predict: int) -> list[int]:
    """[extra files] PRE prefix prompt SUF suffix MID, shortened at the far ends to fit."""

    def encode(text: str) -> list[int]:
        return service.tokenizer.encode(text, parse_special=False)

    prefix, suffix = encode(fields.input_prefix), encode(fields.input_suffix)
    begun = encode(fields.prompt)  # the line that the gap is in, up to it
    context = service.context_length
    room = context - (n_predict if 0 <= n_predict < context // 2 else context // 4)
    room -= len(begun) + 5
    if room < 2:
        raise FieldError("prompt", f"does not fit into the context of {context} tokens")
    num_prefix = min(len(prefix), max(int(_PREFIX_SHARE * room), room - len(suffix)))
    num_suffix = min(len(suffix), room - num_prefix)
    room -= num_prefix + num_suffix
    extra = _extra_ids(fim, fields, encode)
    extra = extra[len(extra) - min(room, len(extra)) :]
    bos_id = service.tokenizer.bos_id if service.tokenizer.add_bos else None
    return [
        *([] if bos_id is None else [bos_id]),
        *extra,
        fim.prefix,
        *prefix[len(prefix) - num_prefix :],
        *begun,
        fim.suffix,
        *suffix[:num_suffix],
        fim.middle,
    ]


def _extra_ids(fim: FimTokens, fields: InfillBody, encode: Any) -> list[int]:
    ids: list[int] = []
    if not fields.input_extra:
        return ids
    if fim.repo is not None:
        ids += [fim.repo, *encode("myproject\n")]
    for index, item in enumerate(fields.input_extra):
        text, name = item.get("text", ""), item.get("filename", "tmp")
        if not (isinstance(text, str) and isinstance(name, str)):
            raise FieldError(f"input_extra.{index}", "text and filename must be strings")
        if fim.file is not None:
            ids += [fim.file, *encode(f"{name}\n")]
        else:
            ids += encode("\n\n--- snippet ---\n\n")
        ids += encode(text)
    if fim.file is not None:
        ids += [fim.file, *encode("filename\n")]
    return ids
