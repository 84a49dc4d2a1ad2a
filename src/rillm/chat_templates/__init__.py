"""The built-in chat templates (one .jinja file each) and which model each is for."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files

from rillm.errors import RillmError

_ALIASES = {"chatglm4": "glm-4-9b-chat", "glmedge": "glm-edge"}  # llama.cpp's names
# What the text must begin with, once: GLM's own tokenizer adds it, in a GGUF the template does.
PREFIXES = {
    "glm-4-9b-chat": "[gMASK]<sop>",
    "glm4-0414": "[gMASK]<sop>",
    "glm-z1": "[gMASK]<sop>",
    "glm-edge": "",
    "chatglm3": "[gMASK]sop",
}
BUILTIN_NAMES = (*PREFIXES, "chatml")
_EDGE_VOCAB = range(59246, 59393)  # 59246 ranks, the special tokens, padding


class ChatTemplateError(RillmError):
    """The chat template is missing or broken, or it refuses these messages."""


def builtin_name(name: str) -> str | None:
    """The built-in template that `name` (or llama.cpp's name for it) means."""
    name = _ALIASES.get(name, name)
    return name if name in BUILTIN_NAMES else None


def builtin_text(name: str) -> str:
    """The Jinja source of a built-in template."""
    return files(__name__).joinpath(f"{name}.jinja").read_text(encoding="utf-8")


def choose_builtin(metadata: Mapping[str, object], architecture: str) -> str | None:
    """The built-in template that fits a model, or None."""
    names = (metadata.get(f"general.{key}") for key in ("name", "basename", "finetune"))
    name = " ".join(str(part) for part in names).lower()
    tokens = metadata.get("tokenizer.ggml.tokens")
    tokens = tokens if isinstance(tokens, list) else []
    if architecture == "glm4":
        return "glm-z1" if "z1" in name else "glm4-0414"
    if architecture == "chatglm":
        if metadata.get("tokenizer.ggml.model") == "llama":
            return "chatglm3"
        is_edge = len(tokens) in _EDGE_VOCAB or "edge" in name
        return "glm-edge" if is_edge else "glm-4-9b-chat"
    return "chatml" if "<|im_start|>" in tokens else None
