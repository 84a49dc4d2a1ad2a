"""What is known to be wrong with GGUF files of these models, found without loading one.

Standard library and the serving path's packages only: it also runs on a board.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterator
from dataclasses import dataclass

from rillm.chat_template import ChatTemplate
from rillm.errors import RillmError
from rillm.gguf import GGMLType, GGUFReader
from rillm.models import supported_architectures
from rillm.models.config import read_config
from rillm.nn import ModelConfig
from rillm.tokenizer import Tokenizer

_GLM = ("chatglm", "glm4")
_GLM_STOPS = ("<|endoftext|>", "<|user|>", "<|observation|>")
_STOP_KEYS = ("eos_token_id", "eot_token_id", "eom_token_id")
_LARGE_VOCAB = range(151_329, 152_000)  # rows of GLM-4's embedding; Edge and chatglm3 have fewer
_EDGE_VOCAB = range(59_246, 59_400)
_MAX_CHECKED_BYTES = 8 << 20  # of float32 tensors; the larger ones are matrices


@dataclass(frozen=True)
class Fault:
    """Something wrong with a file.

    level: "error" (it cannot run, or its text will be wrong), "warning" (it may be wrong), "note"
    (rillm makes up for it, other programs may not).
    """

    level: str
    field: str  # the key or tensor
    message: str  # what is wrong, and what to do


def config_of(reader: GGUFReader) -> ModelConfig:
    """The model's hyperparameters. Raises ModelError where the file is no model that rillm runs."""
    shapes = {name: tensor.shape for name, tensor in reader.tensors.items()}
    architecture = str(reader.metadata.get("general.architecture"))
    module = supported_architectures().get(architecture)
    if module is None:
        names = ", ".join(sorted(supported_architectures()))
        raise RillmError(f"architecture {architecture!r} is not one that rillm runs ({names})")
    return read_config(reader.metadata, shapes, rope_interleaved=module.ROPE_INTERLEAVED)


def is_model(reader: GGUFReader) -> bool:
    """Whether a file says that it holds a model; some say nothing."""
    return reader.metadata.get("general.type", "model") == "model"


def find_faults(reader: GGUFReader) -> list[Fault]:
    """Everything that is known to be wrong with files of this kind, worst first.

    A file that says it is no model (an importance matrix, logits) is taken as it is.
    """
    if not is_model(reader):
        return []
    faults = [*_model_faults(reader), *_vocabulary_faults(reader), *_value_faults(reader)]
    if str(reader.metadata.get("general.architecture")) in _GLM:
        faults += _GlmFaults(reader).all()
    return sorted(faults, key=lambda fault: ("error", "warning", "note").index(fault.level))


def _model_faults(reader: GGUFReader) -> Iterator[Fault]:
    """Keys and tensors against what the architecture needs."""
    try:
        config = config_of(reader)
    except RillmError as error:
        yield Fault("error", "general.architecture", str(error))
        return
    module = supported_architectures()[config.architecture]
    wanted = dict(module.Model(config).named_parameters())
    for name, tensor in reader.tensors.items():
        if name in wanted:
            shape = (1, *tensor.shape)[-2:]
            if shape != wanted[name].shape:
                yield Fault(
                    "error",
                    name,
                    f"has shape {list(tensor.shape)}, the model's keys make it "
                    f"{list(wanted[name].shape)}",
                )
        elif name != "rope_freqs.weight":
            yield Fault("error", name, "is not part of this architecture")
    missing = [
        name
        for name, parameter in wanted.items()
        if name not in reader.tensors and not parameter.optional and name != "output.weight"
    ]
    if missing:
        more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        yield Fault("error", missing[0], f"is missing{more}; the file is incomplete")


def _vocabulary_faults(reader: GGUFReader) -> Iterator[Fault]:
    metadata = reader.metadata
    try:
        tokenizer = Tokenizer.from_gguf(metadata)
    except RillmError as error:
        yield Fault("error", "tokenizer.ggml", str(error))
        return
    embedding = reader.tensors.get("token_embd.weight")
    if embedding is not None and tokenizer.vocab_size > embedding.shape[0]:
        yield Fault(
            "error",
            "tokenizer.ggml.tokens",
            f"{tokenizer.vocab_size} tokens, but the embedding has {embedding.shape[0]} rows",
        )
    if not tokenizer.stop_ids:
        yield Fault(
            "warning", "tokenizer.ggml.eos_token_id", "no stop token is known: answers do not end"
        )
    if tokenizer.bos_id is None:
        yield Fault(
            "note",
            "tokenizer.ggml.bos_token_id",
            "is absent; some versions of llama-server crash on it in /props",
        )
    if not isinstance(metadata.get("tokenizer.chat_template"), str):
        try:
            architecture = str(metadata.get("general.architecture"))
            source = ChatTemplate.from_gguf(metadata, architecture).source
            message = f"is absent; rillm takes its {source} template"
        except RillmError:
            message = "is absent and no built-in template fits: give one with --chat-template"
        yield Fault("note", "tokenizer.chat_template", message)


def _value_faults(reader: GGUFReader) -> Iterator[Fault]:
    """NaN or infinity in norms and biases, where it is cheap to find."""
    for name, tensor in reader.tensors.items():
        if tensor.type is GGMLType.F32 and tensor.nbytes <= _MAX_CHECKED_BYTES:
            values = array("f", bytes(tensor.data))
            if not all(map(math.isfinite, values)):
                yield Fault("error", name, "holds NaN or infinity; the file is damaged")


class _GlmFaults:
    """What converters have got wrong with GLM-4 models."""

    def __init__(self, reader: GGUFReader) -> None:
        self.reader = reader
        self.metadata = reader.metadata
        self.arch = str(reader.metadata["general.architecture"])
        embedding = reader.tensors.get("token_embd.weight")
        self.vocab_size = embedding.shape[0] if embedding is not None else 0
        self.is_edge = self.vocab_size in _EDGE_VOCAB
        self.is_glm4_9b = self.arch == "chatglm" and self.vocab_size in _LARGE_VOCAB

    def all(self) -> list[Fault]:
        """Every fault of this kind."""
        return [*self.rope(), *self.norms(), *self.context(), *self.tokens(), *self.template()]

    def number(self, key: str) -> float | None:
        value = self.metadata.get(f"{self.arch}.{key}")
        good = isinstance(value, int | float) and not isinstance(value, bool)
        return float(value) if good else None  # type: ignore[arg-type]

    def fault(self, level: str, key: str, message: str) -> Fault:
        return Fault(level, f"{self.arch}.{key}", message)

    def rope(self) -> Iterator[Fault]:
        base = self.number("rope.freq_base")
        if self.is_glm4_9b and base in (None, 10000.0):
            yield self.fault(
                "error",
                "rope.freq_base",
                f"is {'absent (10000)' if base is None else '10000'}, but glm-4-9b has 5e6 (the 1M "
                "model 1e8): a known fault of converters; convert the checkpoint again with rillm",
            )
        heads, hidden = self.number("attention.head_count"), self.number("embedding_length")
        head_dim = self.number("attention.key_length")
        if head_dim is None and heads and hidden:
            head_dim = hidden // heads
        dims, key = self.number("rope.dimension_count"), "rope.dimension_count"
        if head_dim is None:
            return
        actual = head_dim if dims is None else dims
        right = head_dim if self.is_edge else head_dim // 2
        if actual != right and (self.is_edge or self.vocab_size in _LARGE_VOCAB):
            state = "is absent, so it counts as" if dims is None else "is"
            yield self.fault(
                "error",
                key,
                f"{state} {actual:.0f}, but this model rotates {right:.0f} of {head_dim:.0f}: its "
                "text turns into loops; convert the checkpoint again with rillm",
            )

    def norms(self) -> Iterator[Fault]:
        eps = self.number("attention.layer_norm_rms_epsilon")
        if self.is_glm4_9b and eps is not None and math.isclose(eps, 1e-5, rel_tol=1e-3):
            yield self.fault(
                "warning",
                "attention.layer_norm_rms_epsilon",
                "is 1e-5, but glm-4-9b has 1.5625e-07: a known fault of converters; convert the "
                "checkpoint again with rillm",
            )

    def context(self) -> Iterator[Fault]:
        context = self.number("context_length")
        if self.is_glm4_9b and context is not None and context < 32768:
            yield self.fault(
                "warning",
                "context_length",
                f"is {context:.0f}, but glm-4-9b-chat has 131072 (-1m: 1048576); only a base model "
                "may have less",
            )
        scaling = self.metadata.get(f"{self.arch}.rope.scaling.type", "none")
        if self.arch == "glm4" and context is not None and context > 32768 and scaling == "none":
            yield self.fault(
                "warning",
                "context_length",
                f"is {context:.0f}: beyond 32768 GLM-4-0414 needs YaRN (factor 4), which the file "
                "does not have",
            )

    def tokens(self) -> Iterator[Fault]:
        keys = self.metadata
        pre = keys.get("tokenizer.ggml.pre")
        if keys.get("tokenizer.ggml.model") == "gpt2" and pre not in ("chatglm-bpe", "glm4"):
            yield Fault(
                "warning",
                "tokenizer.ggml.pre",
                f"is {pre!r}, not chatglm-bpe or glm4: text is cut wrongly, in llama.cpp too",
            )
        tokens = keys.get("tokenizer.ggml.tokens")
        tokens = tokens if isinstance(tokens, list) else []
        positions = {text: id_ for id_, text in enumerate(tokens) if text in _GLM_STOPS}
        named = {keys.get(f"tokenizer.ggml.{key}") for key in _STOP_KEYS}
        if missing := [text for text, id_ in positions.items() if id_ not in named]:
            yield Fault(
                "note",
                "tokenizer.ggml.eot_token_id",
                f"no key names {', '.join(missing)} as an end of a turn; rillm stops there all the "
                "same, llama.cpp may run on",
            )
        if keys.get("tokenizer.ggml.add_bos_token") is True:
            yield Fault(
                "note",
                "tokenizer.ggml.add_bos_token",
                "is true, but the prefix [gMASK]<sop> is the template's: rillm does not add a bos, "
                "llama.cpp would",
            )

    def template(self) -> Iterator[Fault]:
        template = self.metadata.get("tokenizer.chat_template")
        needs_prefix = not self.is_edge and self.vocab_size in _LARGE_VOCAB
        if isinstance(template, str) and needs_prefix and "[gMASK]" not in template:
            yield Fault(
                "note",
                "tokenizer.chat_template",
                "lacks the prefix [gMASK]<sop>; rillm puts it in front, llama.cpp does not",
            )
