"""Which type each tensor of a quantised file gets: the mixes that llama-quantize makes.

Files are interchangeable with llama.cpp's only if the mixes are the same, so these are its rules,
quirks included (a rule counts the tensors it is asked about, so that an override moves the later
ones). tests/golden/llama_quantize_mixes.json holds what llama-quantize chose.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rillm.gguf import GGMLType
from rillm.prepare.errors import PrepareError

Q2_K, Q3_K, Q4_K = GGMLType.Q2_K, GGMLType.Q3_K, GGMLType.Q4_K
Q5_K, Q6_K, Q8_0 = GGMLType.Q5_K, GGMLType.Q6_K, GGMLType.Q8_0
FLOAT_TYPES = frozenset({GGMLType.F32, GGMLType.F16, GGMLType.BF16})

# A row must be a whole number of blocks; where it is not 256 wide, a type with blocks of 32 serves.
_FALLBACK = {
    Q2_K: GGMLType.Q4_0,
    Q3_K: GGMLType.Q4_0,
    Q4_K: GGMLType.Q5_0,
    Q5_K: GGMLType.Q5_1,
    Q6_K: Q8_0,
    GGMLType.IQ4_XS: GGMLType.IQ4_NL,
}


@dataclass(frozen=True)
class Site:
    """Where a rule is asked about a tensor."""

    index: int  # how many tensors of this kind the rule has seen before
    count: int  # how many there are in the model
    query_group: int  # query heads that share a KV head
    has_importance: bool

    @property
    def more_bits(self) -> bool:
        """The first and the last eighth of the layers, and every third one between them."""
        eighth = self.count // 8
        outer = self.index < eighth or self.index >= 7 * self.count // 8
        return outer or (self.index - eighth) % 3 == 2


# A rule gives a type, or None for the base type of the mix.
Rule = Callable[[Site], GGMLType | None]


def _base(_: Site) -> None:
    return None


def _always(type_: GGMLType) -> Rule:
    return lambda site: type_


def _more_bits(type_: GGMLType) -> Rule:
    return lambda site: type_ if site.more_bits else None


def _first(part: int, type_: GGMLType, other: GGMLType | None = None) -> Rule:
    """`type_` for the first 1/part of the layers."""
    return lambda site: type_ if site.index < site.count // part else other


def _first_if(importance: bool, type_: GGMLType) -> Rule:
    """`type_` for the first eighth of the layers with (or without) an importance matrix."""
    first = _first(8, type_)
    return lambda site: first(site) if site.has_importance == importance else None


def _grouped(type_: GGMLType, other: GGMLType | None = None) -> Rule:
    """`type_` where four or more query heads share a value head, which makes attn_v small."""
    return lambda site: type_ if site.query_group >= 4 else other


def _first_tensors(number: int, type_: GGMLType, other: GGMLType | None = None) -> Rule:
    return lambda site: type_ if site.index < number else other


@dataclass(frozen=True)
class Mix:
    """A file type of llama.cpp: a base type, and rules for the tensors that differ from it."""

    name: str
    file_type: int  # general.file_type
    base: GGMLType
    attn_v: Rule = _base  # and attn_qkv
    attn_output: Rule = _base
    ffn_down: Rule = _base


_MIXES = (
    Mix("F32", 0, GGMLType.F32),
    Mix("F16", 1, GGMLType.F16),
    Mix("BF16", 32, GGMLType.BF16),
    Mix("Q8_0", 7, Q8_0),
    Mix("Q6_K", 18, Q6_K),
    Mix("Q5_K_M", 17, Q5_K, attn_v=_more_bits(Q6_K), ffn_down=_more_bits(Q6_K)),
    Mix("Q5_K_S", 16, Q5_K),
    Mix("Q5_1", 9, GGMLType.Q5_1),
    Mix("Q5_0", 8, GGMLType.Q5_0, ffn_down=_first_if(True, GGMLType.Q5_1)),
    Mix("Q4_K_M", 15, Q4_K, attn_v=_more_bits(Q6_K), ffn_down=_more_bits(Q6_K)),
    Mix("Q4_K_S", 14, Q4_K, attn_v=_first_tensors(4, Q5_K), ffn_down=_first(8, Q5_K)),
    Mix("Q4_1", 3, GGMLType.Q4_1),
    Mix("Q4_0", 2, GGMLType.Q4_0, ffn_down=_first_if(True, GGMLType.Q4_1)),
    Mix("IQ4_NL", 25, GGMLType.IQ4_NL, attn_v=_grouped(Q5_K), ffn_down=_first_if(False, Q5_K)),
    Mix("IQ4_XS", 30, GGMLType.IQ4_XS, attn_v=_grouped(Q5_K), ffn_down=_first_if(False, Q5_K)),
    Mix("Q3_K_L", 13, Q3_K, _always(Q5_K), _always(Q5_K), _always(Q5_K)),
    Mix(
        "Q3_K_M",
        12,
        Q3_K,
        attn_v=_first_tensors(2, Q5_K, Q4_K),
        attn_output=_always(Q4_K),
        ffn_down=_first(16, Q5_K, Q4_K),
    ),
    Mix("Q3_K_S", 11, Q3_K),
    Mix("Q2_K", 10, Q2_K, _grouped(Q4_K, Q3_K), _always(Q3_K), _always(Q3_K)),
)
MIXES = {mix.name: mix for mix in _MIXES}
ALIASES = {"Q5_K": "Q5_K_M", "Q4_K": "Q4_K_M", "Q3_K": "Q3_K_M"}


def find_mix(name: str) -> Mix:
    """The mix called `name`, in any case; "Q4_K" is "Q4_K_M", as for llama-quantize.

    Raises PrepareError for a name that no file can have.
    """
    key = name.upper()
    mix = MIXES.get(ALIASES.get(key, key))
    if mix is None:
        raise PrepareError(_not_a_type(name, MIXES))
    return mix


def find_type(name: str) -> GGMLType:
    """The tensor type called `name`, in any case. Raises PrepareError where we do not write it."""
    type_ = GGMLType.__members__.get(name.upper())
    writable = {mix.base.name: mix.base for mix in _MIXES}
    if type_ is None or type_.name not in writable:
        raise PrepareError(_not_a_type(name, writable))
    return type_


def _not_a_type(name: str, known: Mapping[str, Any]) -> str:
    if name.upper() in ("Q8_K", "Q8_1"):
        return (
            f"{name.upper()} is a format for activations while a model runs, never for stored "
            "weights; use Q8_0"
        )
    return f"unknown type {name!r}; use one of {', '.join(known)}"


@dataclass(frozen=True)
class ModelFacts:
    """What the rules ask about a model, from its GGUF metadata."""

    architecture: str
    num_layers: int
    query_group: int  # query heads that share a KV head
    num_experts: int = 0

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, Any], file: str) -> ModelFacts:
        """Read the facts; raises PrepareError naming the key that `file` lacks."""

        def number(key: str, default: int | None = None) -> int:
            value = metadata.get(f"{architecture}.{key}", default)
            if isinstance(value, list) and value:  # one for each layer
                value = value[0]
            if not isinstance(value, int) or value < 0:
                raise PrepareError(f"{file}: no usable {architecture}.{key}; is it a model?")
            return value

        architecture = str(metadata.get("general.architecture", ""))
        num_heads = number("attention.head_count")
        num_kv_heads = number("attention.head_count_kv", num_heads)
        return cls(
            architecture,
            number("block_count"),
            num_heads // num_kv_heads if num_kv_heads else 0,
            number("expert_count", 0),
        )


@dataclass(frozen=True)
class TypeOptions:
    """What the user asked for beyond the name of the mix."""

    pure: bool = False  # the base type everywhere
    leave_output_tensor: bool = False  # output.weight keeps its type
    overrides: Sequence[tuple[str, str]] = ()  # (regular expression, type); the first match wins
    has_importance: bool = False


@dataclass
class Assignment:
    """A type for each tensor, in the order of a quantised file."""

    types: dict[str, GGMLType] = field(default_factory=dict)
    # Tensors whose rows are no multiple of the block: name -> the type they would have had.
    fallbacks: dict[str, GGMLType] = field(default_factory=dict)


def assign_types(
    mix: Mix,
    tensors: Mapping[str, tuple[Sequence[int], GGMLType]],
    model: ModelFacts,
    options: TypeOptions,
) -> Assignment:
    """Choose the type of every tensor, given as name -> (shape [rows, cols], type now).

    Raises PrepareError for an override that is no regular expression, names no type or is found in
    no tensor's name.
    """
    overrides = [(_compile(pattern), find_type(name)) for pattern, name in options.overrides]
    for pattern, _ in overrides:
        if not any(pattern.search(name) for name in tensors):
            raise PrepareError(
                f"--tensor-type {pattern.pattern!r} is found in no tensor's name; see "
                "`rillm inspect --tensors`"
            )
    tied = "output.weight" not in tensors
    num_attn_v = sum(_kind(name) == "attn_v" for name in tensors)
    seen: Counter[str] = Counter()
    result = Assignment()

    def by_rule(name: str, columns: int) -> GGMLType:
        kind = _kind(name)
        if kind == "output" or (kind == "token_embd" and tied):
            if columns % mix.base.block_size:
                return Q8_0
            return mix.base if mix.base is Q8_0 else Q6_K
        rule: Rule = getattr(mix, kind) if kind in ("attn_v", "attn_output", "ffn_down") else _base
        index = seen[kind]
        seen[kind] += 1
        if kind == "ffn_down" and model.num_experts > 1:
            index = layer_of(name)  # experts and shared experts: several such tensors a layer
        count = num_attn_v if kind == "attn_v" else model.num_layers
        choice = rule(Site(index, count, model.query_group, options.has_importance)) or mix.base
        # Llama 70B: attn_v is an eighth of attn_q, so that more bits cost next to nothing.
        is_70b = model.architecture == "llama" and model.num_layers == 80 and model.query_group > 1
        if kind == "attn_v" and is_70b and choice in (Q3_K, Q4_K):
            return Q5_K
        return choice

    for name in sorted(tensors, key=lambda name: (layer_of(name), name)):
        shape, current = tensors[name]
        if not _is_quantizable(name, shape, options):
            result.types[name] = current
            continue
        override = next((type_ for pattern, type_ in overrides if pattern.search(name)), None)
        if override is not None:
            wanted = override
        elif options.pure or mix.base in FLOAT_TYPES:
            wanted = mix.base
        else:
            wanted = by_rule(name, shape[-1])
        chosen = fitting_type(wanted, shape[-1])
        result.types[name] = chosen
        if chosen is not wanted:
            result.fallbacks[name] = wanted
    return result


def fitting_type(wanted: GGMLType, columns: int) -> GGMLType:
    """`wanted`, or the type that llama.cpp takes instead where `columns` is no multiple of it."""
    for candidate in (wanted, _FALLBACK.get(wanted)):
        if candidate is not None and columns % candidate.block_size == 0:
            return candidate
    return GGMLType.F16


def layer_of(name: str) -> int:
    """The layer of a tensor, -1 for those outside the layers."""
    match = re.match(r"blk\.(\d+)\.", name)
    return int(match[1]) if match else -1


def _compile(pattern: str) -> re.Pattern[str]:
    try:
        # llama-quantize lowers the case of its patterns; tensor names are lower case.
        return re.compile(pattern, re.IGNORECASE)
    except re.error as error:
        raise PrepareError(f"--tensor-type {pattern!r} is no regular expression: {error}") from None


def _kind(name: str) -> str:
    if name in ("output.weight", "token_embd.weight"):
        return name.removesuffix(".weight")
    if re.search(r"attn_(v|qkv|kv_b)\.weight", name):
        return "attn_v"
    if "attn_output.weight" in name:
        return "attn_output"
    return "ffn_down" if "ffn_down" in name else "other"


def _is_quantizable(name: str, shape: Sequence[int], options: TypeOptions) -> bool:
    if name == "output.weight" and options.leave_output_tensor:
        return False
    # A dimension of 1 in front does not make a vector a matrix; the router of experts stays exact.
    num_dims = len(shape) - next((i for i, n in enumerate(shape) if n != 1), len(shape))
    exact = "_norm.weight" in name or "ffn_gate_inp.weight" in name
    return num_dims >= 2 and name.endswith("weight") and not exact
