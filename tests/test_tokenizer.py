"""Byte-level BPE against tiktoken, special tokens, streaming, malformed vocabularies."""

from __future__ import annotations

import itertools
import random
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from vocabularies import (
    CHINESE,
    ENGLISH,
    KEY,
    all_splits,
    byte_order,
    checked,
    gguf_keys,
    glm_ranks,
    glm_vocab,
    reference,
    texts,
    write_model,
)

from rillm.prepare.tiktoken_vocab import GLM_SPECIALS, TiktokenVocab, read_ranks, spell
from rillm.tokenizer import StreamDecoder, Tokenizer, TokenizerError

GLM_TINY = Path(__file__).parents[1] / "src/rillm/data/glm-tiny/tokenizer.model"


@pytest.fixture(scope="module")
def ranks() -> list[bytes]:
    return glm_ranks()


@pytest.fixture(scope="module")
def encoding(ranks):
    return reference(ranks)


@pytest.fixture(scope="module")
def vocab() -> TiktokenVocab:
    return glm_vocab()


@pytest.fixture(scope="module")
def glm(vocab) -> Tokenizer:
    return Tokenizer.from_gguf(gguf_keys(vocab))


@pytest.fixture(scope="module")
def merge_forms(vocab, ranks) -> dict[str, Tokenizer]:
    """The same vocabulary with the merges that GLM files carry: short, full, none."""
    ids = {text: i for i, text in enumerate(vocab.tokens[: len(ranks)])}
    full = [f"{left} {right}" for left, right in all_splits(ids, ids)]
    parts = [*vocab.merges, "q z x"]  # llama.cpp's converter writes more than two parts too
    assert len(full) > len(ids) - 256 > len(vocab.merges)
    forms = {"short": parts, "full": full, "none": []}
    made = {
        name: Tokenizer.from_gguf({**gguf_keys(vocab, "glm4"), KEY + "merges": merges})
        for name, merges in forms.items()
    }
    without = gguf_keys(vocab)
    del without[KEY + "merges"], without[KEY + "pre"]
    return {**made, "no key": Tokenizer.from_gguf(without)}


@pytest.fixture(scope="module")
def golden(tmp_path_factory) -> Tokenizer:
    """GLM-4's size and ids: known tokens in their places, the rest bytes of no text."""
    known = {
        2082: "An", 7703: " increasing", 8499: " sequence", 825: " one", 1378: " two",
        2326: " three", 102322: " 王", 109377: "你好",
    }  # fmt: skip
    ranks = byte_order()
    filler = (b"\xff" + bytes(t) for t in itertools.product(range(128, 182), repeat=3))
    ranks += [known[i].encode() if i in known else next(filler) for i in range(256, 151329)]
    path = write_model(tmp_path_factory.mktemp("golden") / "tokenizer.model", ranks)
    return Tokenizer.from_gguf(gguf_keys(TiktokenVocab.from_file(path, 151552)))


class TestGLM:
    def test_golden_ids(self, golden):
        assert golden.vocab_size == 151552
        assert golden.encode("[gMASK]<sop>你好", parse_special=True) == [151331, 151333, 109377]
        turn = "[gMASK]<sop><|user|>\n你好<|assistant|>"
        ids = [151331, 151333, 151336, 198, 109377, 151337]
        assert golden.encode(turn, parse_special=True) == ids
        assert golden.decode(ids) == turn
        text = "An increasing sequence: one, two, three."
        assert golden.encode(text) == [2082, 7703, 8499, 25, 825, 11, 1378, 11, 2326, 13]
        assert golden.encode(" 王", add_special=True) == [102322]
        assert golden.stop_ids == {151329, 151336, 151338}
        assert (golden.eos_id, golden.token_text(151338)) == (151329, "<|observation|>")
        assert golden.token_text(151551) == "[PAD151551]"

    @checked
    @given(text=texts)
    @example("the aqzx jqzxw bqzxw qwertyuiop wertyu 龘靐 龘 zzqq'sqz'SQZ  x\n\n  y\r\n")
    def test_equals_tiktoken(self, merge_forms, encoding, text):
        expected = encoding.encode(text, disallowed_special=())
        for name, tokenizer in merge_forms.items():
            assert tokenizer.encode(text) == expected, name
            assert tokenizer.decode(expected) == text

    @checked
    @given(st.lists(st.one_of(st.sampled_from([*GLM_SPECIALS, "<|", "|>", "[", "user"]), texts)))
    def test_special_spellings(self, glm, ranks, encoding, parts):
        text = "".join(parts)
        expected = encoding.encode(text, allowed_special="all")
        assert glm.encode(text, parse_special=True) == expected
        plain = glm.encode(text, add_special=True)
        assert all(i < len(ranks) for i in plain)
        assert glm.decode(plain) == text

    def test_whole_pieces_that_merging_cannot_reach(self, glm, ranks, vocab):
        for text in (" 龘", " zzqq"):
            assert glm.encode(text) == [ranks.index(text.encode())]
        assert len(glm.encode("龘靐龘")) > 2  # not a whole piece: merging alone
        made = {merge.replace(" ", "") for merge in vocab.merges}
        assert spell(" 龘".encode()) not in made

    def test_words_of_a_trained_order_that_is_not_the_id_order(self):
        # Ids are alphabetical here, so the file's own merge order is the only truth.
        tokens = [spell(b) for b in sorted(byte_order())] + ["ab", "bc"]
        keys = {
            KEY + "model": "gpt2", KEY + "pre": "glm4", KEY + "tokens": tokens,
            KEY + "token_type": [1] * 258, KEY + "merges": ["b c", "a b"],
        }  # fmt: skip
        assert Tokenizer.from_gguf(keys).encode("abc") == [97, 257]

    def test_stops_do_not_depend_on_keys(self, vocab, ranks):
        first = len(ranks)
        keys = gguf_keys(vocab)
        for name in ("eos", "eot", "bos", "unknown", "padding"):
            del keys[f"{KEY}{name}_token_id"]
        bare = Tokenizer.from_gguf(keys)
        assert bare.stop_ids == {first, first + 7, first + 9}
        assert (bare.bos_id, bare.eos_id) == (None, None)
        types = list(vocab.token_types)
        types[first : first + 14] = [1] * 14  # all left NORMAL by the converter
        untyped = {k: v for k, v in keys.items() if k != KEY + "token_type"}
        for broken in ({**keys, KEY + "token_type": types}, untyped):
            tokenizer = Tokenizer.from_gguf(broken)
            assert tokenizer.stop_ids == {first, first + 7, first + 9}
            assert tokenizer.encode("<|user|>", parse_special=True) == [first + 7]
            assert max(tokenizer.encode("<|user|>")) < first

    def test_prefix_is_never_the_tokenizers(self, vocab):
        keys = {**gguf_keys(vocab), KEY + "add_bos_token": True}
        assert Tokenizer.from_gguf(keys).encode("a", add_special=True) == [vocab.tokens.index("a")]

    def test_special_tokens_in_decoding(self, glm, ranks):
        ids = glm.encode("[gMASK]<sop><|user|>\nhi", parse_special=True)
        assert glm.decode(ids, skip_special=True) == "\nhi"
        assert glm.is_special(len(ranks))
        assert not glm.is_special(0)
        assert glm.token_bytes(len(ranks) + 7) == b"<|user|>"
        with pytest.raises(TokenizerError, match=f"token id {glm.vocab_size}"):
            glm.decode([glm.vocab_size])

    def test_lone_surrogate_becomes_the_replacement_character(self, glm):
        assert glm.decode(glm.encode("a\ud800b\ud83d\ude00")) == "a\ufffdb\U0001f600"

    @pytest.mark.skipif(not GLM_TINY.exists(), reason="the bundled checkpoint is not there")
    def test_bundled_checkpoint(self):
        ranks = read_ranks(GLM_TINY)
        tokenizer = Tokenizer.from_gguf(gguf_keys(TiktokenVocab.from_file(GLM_TINY)))
        encoding = reference(ranks)
        for text in (ENGLISH, CHINESE, "[gMASK]<sop><|user|>\n你好 RISC-V 🙂<|assistant|>"):
            expected = encoding.encode(text, allowed_special="all")
            assert tokenizer.encode(text, parse_special=True) == expected
            assert tokenizer.decode(expected) == text


class TestStreaming:
    @checked
    @given(text=texts)
    def test_joined_pieces_are_the_text(self, glm, text):
        decoder = StreamDecoder(glm)
        pieces = [decoder.push(i) for i in glm.encode(text)]
        assert "".join(pieces) + decoder.finish() == text

    @checked
    @given(data=st.binary(max_size=40))
    def test_any_bytes(self, glm, ranks, data):
        id_of = {token: i for i, token in enumerate(ranks)}
        decoder = StreamDecoder(glm)
        seen = ""
        for length, byte in enumerate(data, 1):
            seen += decoder.push(id_of[bytes([byte])])
            # Certain text only: whatever bytes follow, it stays a prefix.
            for more in (b"", b"a", b"\x80", b"\xbf\xbf", b"\xf0"):
                assert (data[:length] + more).decode("utf-8", "replace").startswith(seen)
        assert seen + decoder.finish() == data.decode("utf-8", "replace")

    def test_half_characters_are_held_back(self, glm, ranks):
        decoder = StreamDecoder(glm)
        pushed = [decoder.push(ranks.index(bytes([b]))) for b in "好🙂".encode()]
        assert pushed == ["", "", "好", "", "", "", "🙂"]
        assert decoder.push(ranks.index(b"\xe5")) == ""
        assert decoder.push(len(ranks) + 7) == ""  # control tokens are not text
        assert decoder.push(ranks.index(b"a")) == "\ufffda"
        decoder.push(ranks.index(b"\xe5"))
        assert decoder.finish() == "\ufffd"
        assert decoder.finish() == ""
        shown = StreamDecoder(glm, skip_special=False)
        assert shown.push(len(ranks) + 7) == "<|user|>"


class TestOtherPreTokenizers:
    """Which byte pairs may merge shows where the text is cut."""

    def keys(self, pre: str, **more: object) -> dict[str, object]:
        singles = [spell(b) for b in byte_order()]
        pairs = [
            "1 2",
            "12 3",
            "123 4",
            "a b",
            "ab c",
            "Ġ !",
            "Ġ! !",
            "! !",
            "' S",
            "< >",
            "Ġ a",
            "Ġ Ġ",
        ]
        tokens = [*singles, *(p.replace(" ", "") for p in pairs), "<|im_end|>", "</s>", "<think>"]
        types = [1] * (len(tokens) - 3) + [3, 1, 4]
        return {
            KEY + "model": "gpt2", KEY + "pre": pre, KEY + "tokens": tokens,
            KEY + "token_type": types, KEY + "merges": pairs,
            **{KEY + name: value for name, value in more.items()},
        }  # fmt: skip

    @pytest.mark.parametrize(
        ("pre", "pieces"),
        [
            ("gpt-2", "1234|ab|'|S| !!|  | a|<>"),
            ("smollm", "1|2|3|4|ab|'|S| !!|  | a|<>"),
            ("default", "123|4|ab|'|S| |!!|  | a|<>"),
            ("llama-bpe", "123|4|ab|'S| !!|  | a|<>"),
            ("glm4", "123|4|ab|'S| !!|  | a|<>"),
        ],
    )
    def test_cuts(self, pre, pieces):
        tokenizer = Tokenizer.from_gguf(self.keys(pre))
        text = pieces.replace("|", "")
        got = [tokenizer.decode([i]) for i in tokenizer.encode(text)]
        assert got == pieces.split("|")

    def test_bos_and_stops(self):
        tokenizer = Tokenizer.from_gguf(self.keys("llama-bpe", bos_token_id=0, eos_token_id=5))
        markup = tokenizer.specials["<|im_end|>"]
        assert tokenizer.encode("a", add_special=True)[0] == 0  # llama-bpe's default
        assert tokenizer.stop_ids == {5, markup}  # and not the ordinary text </s>
        quiet = self.keys("smollm", bos_token_id=0, add_eos_token=True, eos_token_id=markup)
        tokenizer = Tokenizer.from_gguf(quiet)
        assert tokenizer.encode("a", add_special=True)[1:] == [markup]
        assert not tokenizer.is_special(tokenizer.specials["<think>"])
        assert tokenizer.encode("<think>", parse_special=True) == [tokenizer.specials["<think>"]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": None}, "model is missing"),
        ({"model": "bert"}, "model is 'bert'"),
        ({"model": "llama"}, "scores has 0 entries"),
        ({"pre": "other"}, "pre is 'other'"),
        ({"pre": 3}, "pre is 3"),
        ({"tokens": None}, "tokens is empty or missing"),
        ({"tokens": [1, 2]}, "tokens is not a list of str"),
        ({"token_type": [1]}, "token_type has 1 entries for"),
        ({"token_type": "x"}, "token_type is not a list of int"),
        ({"eos_token_id": 10_000_000}, "eos_token_id is 10000000"),
        ({"bos_token_id": -1}, "bos_token_id is -1"),
        ({"eot_token_id": "<|user|>"}, "eot_token_id is '<|user|>'"),
        ({"merges": ["ab"]}, r"merges\[0\] is 'ab'"),
        ({"merges": ["zz yy"], "pre": "gpt-2"}, "merges is missing or fits no token"),
        ({"add_eos_token": 1}, "add_eos_token is 1"),
    ],
)
def test_malformed_vocabulary(vocab, change, message):
    keys = gguf_keys(vocab)
    for name, value in change.items():
        keys[KEY + name] = value
        if value is None:
            del keys[KEY + name]
    with pytest.raises(TokenizerError, match=message) as caught:
        Tokenizer.from_gguf(keys)
    assert "\n" not in str(caught.value)


def test_bad_types_and_byte_tokens(vocab):
    types = list(vocab.token_types)
    types[3] = 9
    with pytest.raises(TokenizerError, match=r"token_type\[3\] is 9"):
        Tokenizer.from_gguf({**gguf_keys(vocab), KEY + "token_type": types})
    spm = {KEY + "model": "llama", KEY + "tokens": ["a", "b"], KEY + "scores": [0.0, 0.0]}
    with pytest.raises(TokenizerError, match="BYTE token"):
        Tokenizer.from_gguf({**spm, KEY + "token_type": [1, 6]})


def test_random_ids_round_trip_as_bytes(glm, ranks):
    rng = random.Random(7)
    for _ in range(200):
        ids = rng.choices(range(len(ranks)), k=rng.randint(0, 30))
        joined = b"".join(map(glm.token_bytes, ids))
        assert joined == b"".join(ranks[i] for i in ids)
        assert glm.decode(ids) == joined.decode("utf-8", "replace")
