"""The tokenizer files of a checkpoint -> the `tokenizer.*` keys of a GGUF file.

Three kinds of vocabulary: tokenizer.json (byte-level BPE), tokenizer.model in tiktoken form (GLM-4)
and tokenizer.model of SentencePiece (chatglm3, Llama 2). Ids without a token up to the rows of the
embedding become `[PAD{id}]`, as in llama.cpp's files.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rillm.gguf import WriterValue
from rillm.prepare.architecture import Config, ModelPlan
from rillm.prepare.checkpoint import read_json
from rillm.prepare.errors import PrepareError
from rillm.prepare.sentencepiece import read_sentencepiece
from rillm.prepare.tiktoken_vocab import TiktokenVocab

KEY = "tokenizer.ggml."
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED = 1, 2, 3, 4, 5

# Of GLM-4 and of Llama 3.
_GLM_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)

# chatglm3 numbers these after its SentencePiece pieces; its files do not list them all.
_CHATGLM3_SPECIALS = (
    "[MASK]", "[gMASK]", "[sMASK]", "sop", "eop",
    "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>",
)  # fmt: skip

_GGUF_IDS = {
    "bos_token": "bos_token_id",
    "eos_token": "eos_token_id",
    "unk_token": "unknown_token_id",
    "pad_token": "padding_token_id",
}


def tokenizer_metadata(directory: Path, config: Config, plan: ModelPlan) -> dict[str, WriterValue]:
    """The `tokenizer.*` keys for the checkpoint in `directory`.

    Raises PrepareError (or TiktokenVocabError) naming the file that is missing or not understood.
    """
    json_path, model_path = directory / "tokenizer.json", directory / "tokenizer.model"
    settings_path = directory / "tokenizer_config.json"
    settings = read_json(settings_path) if settings_path.exists() else {}
    if not model_path.exists() and not json_path.exists():
        raise PrepareError(
            f"{directory}: neither tokenizer.json nor tokenizer.model; fetch the tokenizer's files"
        )
    try:
        if not model_path.exists():
            keys = _json_keys(json_path, settings, config, plan)
        elif _is_tiktoken(model_path):
            keys = _tiktoken_keys(model_path, settings, plan)
        else:
            keys = _sentencepiece_keys(model_path, settings, config, plan)
    except (AttributeError, KeyError, TypeError) as error:  # JSON of another shape than it has
        raise PrepareError(
            f"{directory}: the tokenizer's files are malformed ({error}); fetch them again"
        ) from error
    return keys | _chat_templates(directory, settings, settings_path)


def _is_tiktoken(path: Path) -> bool:
    with path.open("rb") as file:
        return re.match(rb"[A-Za-z0-9+/]+=* \d+\s", file.read(4096)) is not None


def _tiktoken_keys(
    path: Path, settings: Mapping[str, Any], plan: ModelPlan
) -> dict[str, WriterValue]:
    if not plan.glm_pre:
        raise PrepareError(f"{path}: a tiktoken vocabulary is only known for GLM models")
    vocab = TiktokenVocab.from_file(path, plan.vocab_size)
    for id_, token in _added_tokens(settings).items():
        text = token["content"]
        if id_ >= len(vocab.tokens) or vocab.tokens[id_] != text:
            raise PrepareError(
                f"{path}: tokenizer_config.json says that token {id_} is {text!r}, which does not "
                "follow from this file; fetch both files again"
            )
    return tiktoken_keys(vocab, plan.glm_pre, path)


def tiktoken_keys(vocab: TiktokenVocab, pre: str, path: Path) -> dict[str, WriterValue]:
    """The keys of a GLM vocabulary that was read from `path`; `pre` is chatglm-bpe or glm4.

    PrepareError where it lacks a token that ends a turn.
    """
    keys = _bpe_keys(vocab.tokens, vocab.token_types, vocab.merges, pre)
    return keys | _glm_ids(vocab.special_ids, path)


def _json_keys(
    path: Path, settings: Mapping[str, Any], config: Config, plan: ModelPlan
) -> dict[str, WriterValue]:
    tokenizer = read_json(path)
    model = tokenizer.get("model")
    if not isinstance(model, dict) or not isinstance(model.get("vocab"), dict):
        raise PrepareError(f"{path}: has no model.vocab; fetch the file again")
    if model.get("type", "BPE") != "BPE" or model.get("byte_fallback"):
        kind = "byte-fallback BPE" if model.get("byte_fallback") else model["type"]
        raise PrepareError(f"{path}: {kind} needs the SentencePiece tokenizer.model; fetch it too")
    tokens: dict[int, str] = {id_: text for text, id_ in model["vocab"].items()}
    types = dict.fromkeys(tokens, NORMAL)
    added = {
        token["id"]: token
        for token in tokenizer.get("added_tokens") or []
        if isinstance(token, dict) and isinstance(token.get("id"), int)
    }
    for id_, token in (_added_tokens(settings) | added).items():
        tokens[id_] = str(token.get("content", ""))
        types[id_] = CONTROL if _is_special(token) else USER_DEFINED
    pre = _pre_tokenizer(path, tokenizer, plan)
    token_list, type_list = _padded(path, tokens, types, plan.vocab_size)
    keys = _bpe_keys(token_list, type_list, _merges(path, model.get("merges")), pre)
    ids = {token_list[i]: i for i, kind in enumerate(type_list) if kind != UNUSED}
    if plan.glm_pre:
        return keys | _glm_ids(ids, path)
    keys |= _special_ids(ids, settings, config)
    bos = next((text for text, id_ in ids.items() if id_ == keys.get(f"{KEY}bos_token_id")), None)
    # Always written: llama.cpp's default differs between the pre-tokenizers.
    keys[f"{KEY}add_bos_token"] = _adds_bos(tokenizer, settings, bos)
    if settings.get("add_eos_token") is True:
        keys[f"{KEY}add_eos_token"] = True
    return keys


def _sentencepiece_keys(
    path: Path, settings: Mapping[str, Any], config: Config, plan: ModelPlan
) -> dict[str, WriterValue]:
    model = read_sentencepiece(path)
    if not model.is_bpe and not plan.glm_pre:
        raise PrepareError(f"{path}: a unigram model; GGUF's llama tokenizer is BPE only")
    tokens, types = dict(enumerate(model.tokens)), dict(enumerate(model.types))
    num_pieces = len(tokens)
    added = _added_tokens(settings)
    if plan.glm_pre:
        specials = {num_pieces + i: text for i, text in enumerate(_CHATGLM3_SPECIALS)}
        added = {id_: {"content": text, "special": True} for id_, text in specials.items()} | added
    for id_, token in added.items():
        if id_ >= num_pieces:
            tokens[id_] = str(token["content"])
            types[id_] = CONTROL if _is_special(token) else USER_DEFINED
    token_list, type_list = _padded(path, tokens, types, plan.vocab_size)
    scores = model.scores + [0.0] * (len(token_list) - num_pieces)
    keys: dict[str, WriterValue] = {
        f"{KEY}model": "llama",
        f"{KEY}pre": "chatglm-spm" if plan.glm_pre else "default",
        f"{KEY}tokens": token_list,
        f"{KEY}scores": scores,
        f"{KEY}token_type": type_list,
        f"{KEY}add_space_prefix": model.add_space_prefix,
    }
    ids = (model.bos_id, model.eos_id, model.unknown_id)
    for name, id_ in zip(("bos_token_id", "eos_token_id", "unknown_token_id"), ids, strict=True):
        if id_ >= 0:
            keys[KEY + name] = id_
    if plan.glm_pre:  # the template supplies the prefix [gMASK]sop, and never bos
        positions = {text: id_ for id_, text in tokens.items()}
        keys[f"{KEY}eot_token_id"] = positions["<|user|>"]
        keys[f"{KEY}eom_token_id"] = positions["<|observation|>"]
        keys[f"{KEY}padding_token_id"] = config.values.get("pad_token_id") or 0
        keys[f"{KEY}add_bos_token"] = False
        return keys
    positions = {text: id_ for id_, text in tokens.items()}
    keys |= _special_ids(positions, settings, config)
    keys[f"{KEY}add_bos_token"] = settings.get("add_bos_token") is not False
    keys[f"{KEY}add_eos_token"] = settings.get("add_eos_token") is True
    return keys


def _bpe_keys(
    tokens: list[str], types: list[int], merges: list[str], pre: str
) -> dict[str, WriterValue]:
    keys: dict[str, WriterValue] = {
        f"{KEY}model": "gpt2",
        f"{KEY}pre": pre,
        f"{KEY}tokens": tokens,
        f"{KEY}token_type": types,
    }
    if merges:
        keys[f"{KEY}merges"] = merges
    return keys


def _glm_ids(ids: Mapping[str, int], path: Path) -> dict[str, WriterValue]:
    """The ids that a GLM file names, by spelling; a turn can end at each of three tokens.

    bos is set although GLM has none: some readers fail on a file without it.
    """
    wanted = {
        "bos_token_id": "<|endoftext|>",
        "eos_token_id": "<|endoftext|>",
        "eot_token_id": "<|user|>",
        "eom_token_id": "<|observation|>",
        "unknown_token_id": "<|endoftext|>",
        "padding_token_id": "<|endoftext|>",
    }
    missing = [text for text in wanted.values() if text not in ids]
    if missing:
        raise PrepareError(f"{path}: no token {missing[0]}; this is not a GLM vocabulary")
    keys: dict[str, WriterValue] = {KEY + name: ids[text] for name, text in wanted.items()}
    return keys | {f"{KEY}add_bos_token": False}


def _special_ids(
    ids: Mapping[str, int], settings: Mapping[str, Any], config: Config
) -> dict[str, WriterValue]:
    """bos, eos, unk, pad: by spelling from tokenizer_config.json, else by id from config.json."""
    keys: dict[str, WriterValue] = {}
    for name, gguf_name in _GGUF_IDS.items():
        text = settings.get(name)
        if isinstance(text, dict):
            text = text.get("content")
        id_ = ids.get(text) if isinstance(text, str) else config.values.get(f"{name}_id")
        if isinstance(id_, list) and id_:
            id_ = id_[0]
        if isinstance(id_, int) and 0 <= id_ < config.integer("vocab_size"):
            keys[KEY + gguf_name] = id_
    return keys


def _adds_bos(tokenizer: Mapping[str, Any], settings: Mapping[str, Any], bos: str | None) -> bool:
    """Whether encoding puts the bos token first: tokenizer_config.json or the post-processor."""
    if bos is None:
        return False
    if isinstance(settings.get("add_bos_token"), bool):
        return bool(settings["add_bos_token"])
    post = tokenizer.get("post_processor") or {}
    for step in post.get("processors", [post]):
        first: dict[str, Any] = next(iter(step.get("single") or []), {})
        if first.get("SpecialToken", {}).get("id") == bos:
            return True
    return False


def _pre_tokenizer(path: Path, tokenizer: Mapping[str, Any], plan: ModelPlan) -> str:
    """llama.cpp's name for how the text is cut before merging."""
    pre = tokenizer.get("pre_tokenizer") or {}
    steps = pre.get("pretokenizers", [pre])
    shape = []
    for step in steps:
        kind = step.get("type")
        if kind == "Split":
            is_known = (step.get("pattern") or {}).get("Regex") == _GLM_SPLIT
            kind = "glm" if is_known and step.get("behavior") == "Isolated" else "Split"
        elif kind == "Digits" and step.get("individual_digits"):
            kind = "digits"
        elif kind == "ByteLevel" and not step.get("add_prefix_space"):
            kind = "gpt2" if step.get("use_regex", True) else "bytes"
        shape.append(kind)
    known = {
        ("glm", "bytes"): plan.glm_pre or "llama-bpe",
        ("digits", "gpt2"): "smollm",
        ("gpt2",): "gpt-2",
    }
    name = known.get(tuple(shape))
    if name is None or tokenizer.get("normalizer") or (plan.glm_pre and name != plan.glm_pre):
        raise PrepareError(
            f"{path}: a pre-tokenizer that rillm does not know "
            f"({', '.join(str(step.get('type')) for step in steps)}); the text would be cut wrongly"
        )
    return name


def _merges(path: Path, merges: Any) -> list[str]:
    """Merges as "left right", from either form: that string, or a pair."""
    result = []
    for merge in merges if isinstance(merges, list) else []:
        parts = merge.split(" ") if isinstance(merge, str) else merge
        if (
            not isinstance(parts, list)
            or len(parts) != 2
            or not all(isinstance(part, str) and part and " " not in part for part in parts)
        ):
            raise PrepareError(f"{path}: {merge!r} is no merge of two tokens; fetch the file again")
        result.append(f"{parts[0]} {parts[1]}")
    return result


def _padded(
    path: Path, tokens: Mapping[int, str], types: Mapping[int, int], vocab_size: int
) -> tuple[list[str], list[int]]:
    """Tokens and types as lists of `vocab_size`; ids without a token become unused ones."""
    highest = max(tokens, default=-1)
    if highest >= vocab_size or min(tokens, default=0) < 0:
        raise PrepareError(
            f"{path}: has the token id {highest}, but config.json's vocabulary has {vocab_size}"
        )
    ids = range(vocab_size)
    return [tokens.get(i, f"[PAD{i}]") for i in ids], [types.get(i, UNUSED) for i in ids]


def _added_tokens(settings: Mapping[str, Any]) -> dict[int, dict[str, Any]]:
    decoder = settings.get("added_tokens_decoder")
    if not isinstance(decoder, dict):
        return {}
    return {
        int(id_): token
        for id_, token in decoder.items()
        if id_.isdecimal() and isinstance(token, dict) and isinstance(token.get("content"), str)
    }


def _is_special(token: Mapping[str, Any]) -> bool:
    """Whether no text may spell the token: marked so, or spelled like a control token."""
    text = str(token.get("content", ""))
    return bool(token.get("special")) or re.fullmatch(r"<\|.*\|>", text) is not None


def _chat_templates(
    directory: Path, settings: Mapping[str, Any], settings_path: Path
) -> dict[str, WriterValue]:
    """chat_template.jinja, or the template(s) of tokenizer_config.json; one is the default."""
    path = directory / "chat_template.jinja"
    if path.exists():
        try:
            return {"tokenizer.chat_template": path.read_text(encoding="utf-8")}
        except (OSError, UnicodeDecodeError) as error:
            raise PrepareError(f"{path}: cannot be read: {error}") from error
    templates = settings.get("chat_template")
    if not templates:
        return {}
    if isinstance(templates, str):
        return {"tokenizer.chat_template": templates}
    try:
        named = {str(entry["name"]): str(entry["template"]) for entry in templates}
    except (TypeError, KeyError):
        raise PrepareError(f"{settings_path}: chat_template is malformed") from None
    keys: dict[str, WriterValue] = {
        "tokenizer.chat_template" + ("" if name == "default" else f".{name}"): text
        for name, text in named.items()
    }
    others = [name for name in named if name != "default"]
    return keys | ({"tokenizer.chat_templates": others} if others else {})
