from __future__ import annotations

import math
from dataclasses import fields

import pytest

from rillm.sampling import SAMPLER_NAMES, SamplingError, SamplingParams


def test_defaults_are_llama_servers():
    params = SamplingParams.from_mapping({})
    assert params == SamplingParams()
    values = {field.name: getattr(params, field.name) for field in fields(params)}
    assert values == {
        "temperature": 0.8,
        "dynatemp_range": 0,
        "dynatemp_exponent": 1,
        "top_k": 40,
        "top_p": 0.95,
        "min_p": 0.05,
        "typical_p": 1,
        "top_n_sigma": -1,
        "xtc_probability": 0,
        "xtc_threshold": 0.1,
        "repeat_penalty": 1,
        "repeat_last_n": 64,
        "presence_penalty": 0,
        "frequency_penalty": 0,
        "dry_multiplier": 0,
        "dry_base": 1.75,
        "dry_allowed_length": 2,
        "dry_penalty_last_n": 64,
        "dry_sequence_breakers": ("\n", ":", '"', "*"),
        "mirostat": 0,
        "mirostat_tau": 5,
        "mirostat_eta": 0.1,
        "seed": -1,
        "min_keep": 0,
        "samplers": (
            "penalties",
            "dry",
            "top_n_sigma",
            "top_k",
            "typ_p",
            "top_p",
            "min_p",
            "xtc",
            "temperature",
        ),
        "logit_bias": (),
        "ignore_eos": False,
        "n_probs": 0,
        "post_sampling_probs": False,
    }


def test_from_mapping():
    params = SamplingParams.from_mapping(
        {
            "prompt": "hello",
            "temperature": None,
            "top_k": 7.0,
            "top_p": 1,
            "samplers": ["temp", "TOP-K", "typical_p", "nucleus"],
            "dry_sequence_breakers": ["\n"],
            "logit_bias": [[5, 1.5], ["text", False], [6, -1]],
            "ignore_eos": True,
        }
    )
    assert params.temperature == 0.8
    assert (params.top_k, type(params.top_k)) == (7, int)
    assert (params.top_p, type(params.top_p)) == (1.0, float)
    assert params.samplers == ("temperature", "top_k", "typ_p", "top_p")
    assert params.dry_sequence_breakers == ("\n",)
    assert params.logit_bias == ((5, 1.5), ("text", -math.inf), (6, -1.0))
    assert params.ignore_eos
    assert SamplingParams.from_mapping({"logit_bias": {"5": 1, "a": False}}).logit_bias == (
        (5, 1.0),
        ("a", -math.inf),
    )
    assert SamplingParams.from_mapping({"samplers": "edskypmxt"}).samplers == SAMPLER_NAMES
    assert SamplingParams.from_mapping({"samplers": []}).samplers == ()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", "hot"),
        ("temperature", math.nan),
        ("temperature", math.inf),
        ("temperature", True),
        ("top_k", 1.5),
        ("top_k", 2**40),
        ("top_p", 1.01),
        ("top_p", -0.1),
        ("min_p", 10**400),
        ("repeat_penalty", 0),
        ("repeat_last_n", -2),
        ("dry_base", 0.5),
        ("dry_penalty_last_n", -5),
        ("dry_sequence_breakers", "\n"),
        ("dry_sequence_breakers", [1]),
        ("mirostat", 3),
        ("seed", -2),
        ("seed", 2**64),
        ("min_keep", -1),
        ("samplers", ["top_k", "magic"]),
        ("samplers", "kz"),
        ("samplers", ["top_k"] * 13),
        ("samplers", 5),
        ("logit_bias", 5),
        ("logit_bias", [[1]]),
        ("logit_bias", [[-1, 2.0]]),
        ("logit_bias", [[1.5, 2.0]]),
        ("logit_bias", [[1, True]]),
        ("logit_bias", [[1, math.nan]]),
        ("logit_bias", {"5": "much"}),
        ("ignore_eos", 1),
        ("n_probs", -1),
        ("post_sampling_probs", "no"),
    ],
)
def test_bad_values_name_their_field(field, value):
    with pytest.raises(SamplingError, match=rf"^{field}: ") as caught:
        SamplingParams.from_mapping({field: value})
    assert caught.value.field == field
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 200


def test_a_seed_of_minus_one_is_random():
    assert SamplingParams(seed=5).draw_seed() == 5
    assert SamplingParams(seed=2**63).draw_seed() == 2**63
    seeds = {SamplingParams().draw_seed() for _ in range(20)}
    assert len(seeds) > 15
    assert all(0 <= seed < 2**32 - 1 for seed in seeds)
    assert SamplingParams(seed=2**32 - 1).draw_seed() != SamplingParams(seed=-1).draw_seed()


@pytest.mark.parametrize("name", ["dry_sequence_breakers", "samplers"])
@pytest.mark.parametrize("value", [{"x": 1}, 5, [5], [""]])
def test_lists_are_lists_of_texts(name: str, value: object) -> None:
    with pytest.raises(SamplingError, match=name):
        SamplingParams.from_mapping({name: value})
