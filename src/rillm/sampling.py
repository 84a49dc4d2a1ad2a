"""How the next token is drawn: the sampling fields of llama-server's /completion."""

from __future__ import annotations

import math
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from rillm.errors import RillmError

SAMPLER_NAMES = (
    "penalties",
    "dry",
    "top_n_sigma",
    "top_k",
    "typ_p",
    "top_p",
    "min_p",
    "xtc",
    "temperature",
)
"""Every sampler, in the default order of the chain."""

_ALIASES = {
    "typical": "typ_p",
    "typical_p": "typ_p",
    "typ": "typ_p",
    "nucleus": "top_p",
    "temp": "temperature",
}
# llama-server also takes a string with one letter for each sampler.
_LETTERS = dict(zip("edskypmxt", SAMPLER_NAMES, strict=True))
_MAX_SAMPLERS = 12  # of CoreSampling
_RANDOM_SEEDS = (-1, 2**32 - 1)  # the second is how llama.cpp stores the first

_INT32 = (-(2**31), 2**31 - 1)
_FLOAT = (-3.4e38, 3.4e38)
_RANGES: dict[str, tuple[float, float]] = {
    "temperature": _FLOAT,
    "dynatemp_range": (0, 3.4e38),
    "dynatemp_exponent": _FLOAT,
    "top_k": _INT32,
    "top_p": (0, 1),
    "min_p": (0, 1),
    "typical_p": (0, 1),
    "top_n_sigma": _FLOAT,
    "xtc_probability": (0, 1),
    "xtc_threshold": (0, 1),
    "repeat_penalty": (1e-6, 1e6),
    "repeat_last_n": (-1, _INT32[1]),
    "presence_penalty": _FLOAT,
    "frequency_penalty": _FLOAT,
    "dry_multiplier": _FLOAT,
    "dry_base": (1, 3.4e38),
    "dry_allowed_length": (0, _INT32[1]),
    "dry_penalty_last_n": (-1, _INT32[1]),
    "mirostat": (0, 2),
    "mirostat_tau": (0, 3.4e38),
    "mirostat_eta": (0, 3.4e38),
    "seed": (-1, 2**64 - 1),
    "min_keep": (0, _INT32[1]),
    "n_probs": (0, _INT32[1]),
}


class SamplingError(RillmError):
    """A sampling parameter with a wrong type or value; `field` is its name."""

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field}: {problem}")
        self.field = field


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """Sampling parameters with llama-server's names and defaults.

    A sampler takes part only if `samplers` names it, in that order. Off are: top_k <= 0, top_p 1,
    min_p 0, typical_p 1, top_n_sigma <= 0, xtc_probability 0 or xtc_threshold > 0.5,
    repeat_penalty 1, dry_multiplier 0, a `last_n` of 0 (-1 is the whole history). temperature <= 0
    is greedy. Mirostat 1 or 2 replaces the chain by temperature and itself.

    Construction checks and normalises everything; it raises SamplingError.
    """

    temperature: float = 0.8
    dynatemp_range: float = 0.0
    dynatemp_exponent: float = 1.0
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    typical_p: float = 1.0
    top_n_sigma: float = -1.0
    xtc_probability: float = 0.0
    xtc_threshold: float = 0.1
    repeat_penalty: float = 1.0
    repeat_last_n: int = 64
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    dry_multiplier: float = 0.0
    dry_base: float = 1.75
    dry_allowed_length: int = 2
    dry_penalty_last_n: int = 64
    dry_sequence_breakers: tuple[str, ...] = ("\n", ":", '"', "*")
    mirostat: int = 0
    mirostat_tau: float = 5.0
    mirostat_eta: float = 0.1
    seed: int = -1
    min_keep: int = 0
    samplers: tuple[str, ...] = SAMPLER_NAMES
    logit_bias: tuple[tuple[int | str, float], ...] = ()
    """(token id or text, value added to the logits); -inf = never."""
    ignore_eos: bool = False
    n_probs: int = 0
    """How many of the likeliest tokens to report with each draw."""
    post_sampling_probs: bool = False
    """Report probabilities after the chain, not those of the model's logits."""

    def __post_init__(self) -> None:
        for field in fields(self):
            name, value = field.name, getattr(self, field.name)
            if isinstance(field.default, bool):
                value = _boolean(name, value)
            elif name in _RANGES:
                value = _number(name, value, whole=isinstance(field.default, int))
            elif name == "samplers":
                value = _samplers(value)
            elif name == "logit_bias":
                value = _logit_bias(value)
            else:
                value = _strings(name, value)
            object.__setattr__(self, name, value)

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> SamplingParams:
        """Reads the fields of a request's JSON: unknown ones are ignored, null = absent."""
        names = (field.name for field in fields(cls))
        given = {name: values[name] for name in names if values.get(name) is not None}
        return cls(**given)

    def draw_seed(self) -> int:
        """The seed, or a random one of 32 bits where it is -1."""
        if self.seed in _RANDOM_SEEDS:
            return secrets.randbelow(2**32 - 1)
        return self.seed


def _boolean(name: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise SamplingError(name, f"expected true or false, not {value!r:.40}")
    return value


def _number(name: str, value: object, *, whole: bool) -> float | int:
    kind = "an integer" if whole else "a number"
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise SamplingError(name, f"expected {kind}, not {value!r:.40}")
    if whole and isinstance(value, float):
        if not value.is_integer():
            raise SamplingError(name, f"expected {kind}, not {value!r}")
        value = int(value)
    low, high = _RANGES[name]
    if not low <= value <= high:  # false for NaN, too
        bounds = {_FLOAT: "must be finite", _INT32: "does not fit 32 bits"}
        must = bounds.get((low, high), f"must be from {low} to {high}")
        raise SamplingError(name, f"{must}, not {value!r:.40}")
    return value if whole else float(value)


def _strings(name: str, value: object) -> tuple[str, ...]:
    if isinstance(value, (str, Mapping)) or not isinstance(value, Iterable):
        raise SamplingError(name, f"expected a list of strings, not {value!r:.40}")
    items = tuple(value)
    for item in items:
        if not isinstance(item, str) or not item:
            raise SamplingError(name, f"expected non-empty strings, not {item!r:.40}")
    return items


def _samplers(value: object) -> tuple[str, ...]:
    if isinstance(value, str):
        unknown = sorted(set(value) - set(_LETTERS))
        if unknown:
            letters = "".join(_LETTERS)
            raise SamplingError("samplers", f"unknown letter {unknown[0]!r}; known: {letters}")
        names = [_LETTERS[letter] for letter in value]
    else:
        names = []
        for item in _strings("samplers", value):
            plain = item.strip().lower().replace("-", "_")
            name = _ALIASES.get(plain, plain)
            if name not in SAMPLER_NAMES:
                known = ", ".join(SAMPLER_NAMES)
                raise SamplingError("samplers", f"unknown sampler {item!r:.40}; known: {known}")
            names.append(name)
    if len(names) > _MAX_SAMPLERS:
        raise SamplingError("samplers", f"more than {_MAX_SAMPLERS} samplers")
    return tuple(names)


def _logit_bias(value: object) -> tuple[tuple[int | str, float], ...]:
    if isinstance(value, Mapping):
        # JSON keys are strings: digits are a token id.
        pairs: list[Any] = [
            (int(key) if isinstance(key, str) and key.isdecimal() and key.isascii() else key, bias)
            for key, bias in value.items()
        ]
    elif isinstance(value, Iterable) and not isinstance(value, str):
        pairs = list(value)
    else:
        raise SamplingError("logit_bias", f"expected pairs or an object, not {value!r:.40}")
    return tuple(_bias(pair) for pair in pairs)


def _bias(pair: object) -> tuple[int | str, float]:
    if not isinstance(pair, (list, tuple)) or len(pair) != 2:
        raise SamplingError("logit_bias", f"expected [token, bias], not {pair!r:.40}")
    token, bias = pair
    if isinstance(token, bool) or not isinstance(token, (int, str)) or token == "":
        raise SamplingError("logit_bias", f"expected a token id or text, not {token!r:.40}")
    if isinstance(token, int) and not 0 <= token <= _INT32[1]:
        raise SamplingError("logit_bias", f"{token} is no token id")
    if bias is False:
        return token, -math.inf
    if isinstance(bias, bool) or not isinstance(bias, (int, float)) or math.isnan(bias):
        raise SamplingError("logit_bias", f"expected a number or false, not {bias!r:.40}")
    if bias != -math.inf and not abs(bias) <= _FLOAT[1]:
        raise SamplingError("logit_bias", f"{bias!r:.40} is out of range")
    return token, float(bias)
