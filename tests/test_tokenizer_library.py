"""Our encoders against the tokenizers library, for every pre-tokenizer, and their cost."""

from __future__ import annotations

import time

import pytest
from hypothesis import example, given
from tokenizers import Regex, models, pre_tokenizers
from tokenizers import Tokenizer as Library
from vocabularies import CHINESE, ENGLISH, KEY, all_splits, checked, glm_ranks, texts

from rillm.prepare.tiktoken_vocab import derive_merges, spell
from rillm.tokenizer import Tokenizer, encoders
from rillm.tokenizer.encoders import PRE_TOKENIZERS
from rillm.tokenizer.merging import Merger

WHOLE_PIECES = {"chatglm-bpe", "glm4", "llama-bpe"}


@pytest.fixture(scope="module")
def tokens() -> list[str]:
    return [spell(token) for token in glm_ranks()]


@pytest.fixture(scope="module")
def pairs() -> list[tuple[str, str]]:
    return [(spell(left), spell(right)) for left, right in derive_merges(glm_ranks())]


@pytest.fixture(scope="module")
def both(tokens, pairs) -> dict[str, tuple[Tokenizer, Library]]:
    """Pre-tokenizer -> the two, from the same vocabulary."""
    found = {}
    ids = {token: i for i, token in enumerate(tokens)}
    for pre, patterns in PRE_TOKENIZERS.items():
        by_id = pre in ("chatglm-bpe", "glm4")  # the library needs the rule as a list
        merges = all_splits(ids, ids) if by_id else pairs
        library = Library(models.BPE(ids, merges, ignore_merges=pre in WHOLE_PIECES))
        library.pre_tokenizer = pre_tokenizers.Sequence(
            [
                *(pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in patterns),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
        keys = {
            KEY + "model": "gpt2", KEY + "pre": pre, KEY + "tokens": tokens,
            KEY + "token_type": [1] * len(tokens),
            KEY + "merges": [f"{left} {right}" for left, right in pairs],
        }  # fmt: skip
        found[pre] = Tokenizer.from_gguf(keys), library
    return found


@checked
@given(text=texts)
@example(ENGLISH + CHINESE)
@example("qwertyuiop qwertyu'sqz zzqq 龘靐龘 12345 \u00a0\u3000 \u2028\r\n٣٤५ Ⅻ½ e\u0301")
@example("\U0001f468\u200d\U0001f469 ¿'S?\t\t<|x|>\n \n")
def test_every_pre_tokenizer_gives_the_librarys_ids(both, text):
    for pre, (ours, library) in both.items():
        assert ours.encode(text) == library.encode(text).ids, pre


def test_merging_is_the_librarys_for_lists_in_any_order():
    # Pairs of a long run overlap in every way; a list may rank a pair before its own parts.
    pairs = [("aa", "a"), ("a", "b"), ("a", "a"), ("b", "a"), ("ab", "ab"), ("aaa", "aa")]
    known = ["a", "b", *(left + right for left, right in pairs)]
    library = Library(models.BPE({token: i for i, token in enumerate(known)}, pairs))
    merger = Merger({" ".join(pair): rank for rank, pair in enumerate(pairs)}, " ")
    for number in range(1 << 11):
        text = format(number, "b").translate({48: "a", 49: "b"})
        assert merger.merge(text) == library.encode(text).tokens


def test_a_full_cache_starts_again(both, monkeypatch):
    ours, library = both["glm4"]
    monkeypatch.setattr(encoders, "_MOST_CACHED", 3)
    for text in (ENGLISH, CHINESE, ENGLISH):
        assert ours.encode(text) == library.encode(text).ids


@pytest.mark.parametrize("text", ["a", " ", "好", "qwertyuiop", "\n", "龘"])
def test_a_long_run_costs_what_its_length_does(both, text):
    # Quadratic merging of 200,000 symbols would take hours.
    ours, _ = both["glm4"]
    start = time.perf_counter()
    ids = ours.encode(text * (200_000 // len(text.encode())))
    assert ours.decode(ids).startswith(text)
    assert time.perf_counter() - start < 60


def test_bytes_that_no_token_spells_are_left_out():
    keys = {
        KEY + "model": "gpt2", KEY + "pre": "gpt-2", KEY + "tokens": ["a", "b", "ab"],
        KEY + "token_type": [1] * 3, KEY + "merges": ["a b"],
    }  # fmt: skip
    assert Tokenizer.from_gguf(keys).encode("ab?a") == [2, 0]
