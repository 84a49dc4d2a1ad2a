"""tokenizer.model -> GGUF keys."""

from __future__ import annotations

import base64
import random

import pytest
from vocabularies import KEY, byte_order, gguf_keys, glm_ranks, glm_vocab, reference, write_model

from rillm.prepare.errors import PrepareError
from rillm.prepare.tiktoken_vocab import (
    GLM_SPECIALS,
    TiktokenVocab,
    derive_merges,
    read_ranks,
    spell,
)


def test_file_round_trip_in_any_line_order(tmp_path):
    ranks = glm_ranks()
    path = write_model(tmp_path / "tokenizer.model", ranks)
    lines = path.read_bytes().splitlines()
    random.Random(1).shuffle(lines)
    path.write_bytes(b"\r\n".join([*lines, b""]))
    assert read_ranks(path) == ranks


def test_spelling_is_gpt2s():
    assert spell(b"\x00 \n\x7f\xad!\xff") == "\u0100\u0120\u010a\u0121\u0143!\xff"
    assert len({spell(bytes([b])) for b in range(256)}) == 256


def test_merges_are_what_tiktoken_does_below_each_rank():
    ranks = glm_ranks()
    merges = dict.fromkeys(derive_merges(ranks))
    made = [left + right for left, right in merges]
    assert made == sorted(made, key=ranks.index)
    found = {left + right: (left, right) for left, right in merges}
    sample = [r for r in range(256, len(ranks)) if ranks[r].isalpha() or r % 3 == 0]
    num_unreachable = 0
    for rank in sample:
        token = ranks[rank]
        # tiktoken itself, knowing the lower ranks only; its whole-piece lookup cannot help.
        parts = reference(ranks[:rank])._encode_single_piece(token)
        if len(parts) == 2:
            assert found[token] == (ranks[parts[0]], ranks[parts[1]])
        else:
            assert token not in found
            num_unreachable += 1
    assert 0 < num_unreachable < len(sample)


def test_layout_and_keys():
    ranks, vocab = glm_ranks(), glm_vocab()
    first = len(ranks)
    assert vocab.tokens[first : first + 14] == list(GLM_SPECIALS)
    assert vocab.tokens[first + 14 :] == [f"[PAD{i}]" for i in range(first + 14, first + 40)]
    assert vocab.token_types == [1] * first + [3] * 14 + [5] * 26
    keys = gguf_keys(vocab, "glm4")
    assert keys[KEY + "pre"] == "glm4"
    assert keys[KEY + "add_bos_token"] is False
    assert (keys[KEY + "eos_token_id"], keys[KEY + "eot_token_id"]) == (first, first + 7)
    assert keys[KEY + "padding_token_id"] == keys[KEY + "unknown_token_id"] == first


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"AAA= x", ":257: not a `base64 rank` pair"),
        (b"*** 256", ":257: not a `base64 rank` pair"),
        (b"YWI=", ":257: not a `base64 rank` pair"),
        (b"YWI= 256 7", ":257: not a `base64 rank` pair"),
        (b"YWI= 3", ":257: rank 3 is given twice"),
        (b"YWI= 300", "rank 256 is missing"),
        (b"YWI= -1", "rank 256 is missing"),
        (base64.b64encode(b"!") + b" 256", "a token has two ranks"),
    ],
)
def test_malformed_files(tmp_path, line, message):
    path = write_model(tmp_path / "tokenizer.model", byte_order())
    path.write_bytes(path.read_bytes() + line + b"\n")
    with pytest.raises(PrepareError, match=message) as caught:
        read_ranks(path)
    assert str(path) in str(caught.value)


def test_what_does_not_fit(tmp_path):
    path = write_model(tmp_path / "tokenizer.model", byte_order())
    with pytest.raises(PrepareError, match="256 ranks and 14 special tokens"):
        TiktokenVocab.from_file(path, vocab_size=269)
    with pytest.raises(PrepareError, match=r"no token <\|endoftext\|>"):
        gguf_keys(TiktokenVocab.from_file(path, specials=["<|user|>"]))
    with pytest.raises(PrepareError, match="No such file"):
        read_ranks(tmp_path / "absent")
    write_model(path, byte_order()[:-1])
    with pytest.raises(PrepareError, match="single byte 0xad"):
        read_ranks(path)
