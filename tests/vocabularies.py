"""Vocabularies for the tests of tokenizers and templates: trained here, in GLM's form."""

from __future__ import annotations

import base64
import random
import tempfile
from collections.abc import Collection, Iterable
from functools import cache
from pathlib import Path

import tiktoken
from hypothesis import settings
from hypothesis import strategies as st
from tokenizers import Regex, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as HFTokenizer

from rillm.gguf import WriterValue
from rillm.prepare.tiktoken_vocab import GLM_SPECIALS, TiktokenVocab, spell
from rillm.prepare.vocab import tiktoken_keys

GLM_REGEX = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
KEY = "tokenizer.ggml."
ENGLISH = """The board has four cores, and it's running a small language model. What's RISC-V? It is
an open instruction set; we've built the kernels for it. One, two, three: 1234567 tokens!
def step(self, batch):\n    return self.model(batch)  # the whole batch\n\n"""
CHINESE = (
    "你好，世界！我是一个语言模型，可以用中文回答问题。"
    "今天天气很好,我们去公园吧。王先生说:“好的。”\n"
)

# All planes, with what the regexes treat specially made frequent.
texts = st.text(
    st.one_of(
        st.sampled_from(
            list("aAbez sStTrRvVmMlLdD'   \n\r\t0123456789.,:-_=|<>[]你好王世界，。！🙂é")
        ),
        st.sampled_from("qwertyuiop"),
        st.characters(codec="utf-8", exclude_categories=["Cn", "Co"]),
    ),
    max_size=60,
)
checked = settings(max_examples=300, deadline=None, derandomize=True)


def byte_order() -> list[bytes]:
    """Single bytes in the order of GPT-2's and GLM's ids: printable ones first."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    return [bytes([b]) for b in [*printable, *(b for b in range(256) if b not in printable)]]


def all_splits(ordered: Iterable[str], known: Collection[str]) -> list[tuple[str, str]]:
    """Every way to make each of `ordered` from two known tokens: tiktoken's rule as a list."""
    return [
        (text[:middle], text[middle:])
        for text in ordered
        for middle in range(1, len(text))
        if text[:middle] in known and text[middle:] in known
    ]


def write_model(path: Path, ranks: list[bytes]) -> Path:
    lines = [base64.b64encode(t) + b" %d\n" % i for i, t in enumerate(ranks)]
    path.write_bytes(b"".join(lines))
    return path


def reference(ranks: list[bytes]) -> tiktoken.Encoding:
    return tiktoken.Encoding(
        "reference",
        pat_str=GLM_REGEX,
        mergeable_ranks={token: rank for rank, token in enumerate(ranks)},
        special_tokens={text: len(ranks) + i for i, text in enumerate(GLM_SPECIALS)},
    )


@cache
def glm_ranks() -> list[bytes]:
    """Trained byte-level BPE, then entries that merging cannot reach, or only out of order."""
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    model = HFTokenizer(models.BPE())
    model.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(GLM_REGEX), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    model.train_from_iterator([ENGLISH, CHINESE] * 3, trainer)
    spelled = {spell(bytes([b])): bytes([b]) for b in range(256)}
    trained = [
        b"".join(spelled[c] for c in text)
        for text, _ in sorted(model.get_vocab().items(), key=lambda item: item[1])
    ]
    singles = byte_order()
    unreachable = [" 龘".encode(), "龘靐".encode(), b" zzqq", b"'sqz"]
    out_of_order = [b"qzx", b"zx", b"jqzxw", b"xw", b"qzxw"]  # "qzx" needs "zx", of higher rank
    row = b"qwertyuiop"  # every stretch of it, in any order: many splits, few of them in order
    stretches = [row[i:j] for i in range(10) for j in range(i + 2, 11)]
    random.Random(3).shuffle(stretches)
    long = [t for t in trained if len(t) > 1] + stretches + unreachable + out_of_order
    ranks = [*singles, *dict.fromkeys(long)]
    assert len(ranks) > 500
    return ranks


@cache
def glm_vocab() -> TiktokenVocab:
    """glm_ranks(), GLM's special tokens and 26 padding tokens."""
    ranks = glm_ranks()
    with tempfile.TemporaryDirectory() as folder:
        path = write_model(Path(folder) / "tokenizer.model", ranks)
        return TiktokenVocab.from_file(path, vocab_size=len(ranks) + 40)


def gguf_keys(vocab: TiktokenVocab, pre: str = "chatglm-bpe") -> dict[str, WriterValue]:
    """What a GGUF file of the vocabulary holds."""
    return tiktoken_keys(vocab, pre, Path("tokenizer.model"))
