"""Plain text (no special tokens) to ids: byte-level BPE and SentencePiece-style BPE.

Byte-level BPE. GLM's own tokenizer is tiktoken: of all adjacent pairs whose concatenation is a
token, merge the one of lowest rank, where the rank is the token id. The merge list of a GLM file
(one pair a token, or every split of every token) is a way to write that down for programs that
merge by a list; here the rule itself is used. As in tiktoken, a piece that is itself a token is
taken whole.

SentencePiece-style BPE is the same with the score as the rank, over characters; a character
that is not in the vocabulary falls back to its UTF-8 bytes, the tokens <0xNN>.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import regex

from rillm.tokenizer.merging import Merger
from rillm.tokenizer.vocabulary import GLM_PRE, KEY, TokenizerError, TokenType, Vocabulary

_GLM = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
# tokenizer.ggml.pre -> regexes, each applied to the pieces that the one before left. They are
# llama.cpp's, which for "default" are not GPT-2's alone.
PRE_TOKENIZERS: dict[str, tuple[str, ...]] = {
    "chatglm-bpe": (_GLM,),
    "glm4": (_GLM,),
    "llama-bpe": (_GLM,),
    "gpt-2": (_GPT2,),
    "smollm": (r"\p{N}", _GPT2),
    "default": (r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", r"[0-9][0-9][0-9]"),
}
_WHOLE_PIECES = GLM_PRE | {"llama-bpe"}
_MOST_CACHED = 1 << 16  # pieces; text repeats its words, so nearly every look-up is a hit
SPACE = "\u2581"  # SentencePiece writes a space so


def byte_alphabet() -> dict[int, str]:
    """GPT-2's spelling of a byte as a character: printable Latin-1 as itself, the rest from 256."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {b: chr(b) for b in printable} | {b: chr(256 + i) for i, b in enumerate(others)}


_SPELLING = byte_alphabet()


class Encoder(Protocol):
    """Text without special tokens in it -> ids."""

    def encode(self, text: str) -> list[int]:
        """The ids of `text`, which has UTF-8 (no lone surrogate)."""


def build_encoder(vocabulary: Vocabulary) -> Encoder:
    """The encoder that the vocabulary's keys ask for. Threads may share it."""
    return SentencePieceBPE(vocabulary) if vocabulary.model == "llama" else ByteLevelBPE(vocabulary)


class ByteLevelBPE:
    """Regexes cut the text; the UTF-8 bytes of each piece are merged."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        patterns = PRE_TOKENIZERS.get(vocabulary.pre)
        if patterns is None:
            known = ", ".join(PRE_TOKENIZERS)
            raise TokenizerError(f"{KEY}pre is {vocabulary.pre!r}; rillm knows {known}")
        # As a group: split() then returns the matches and what lies between them.
        self._patterns = [regex.compile(f"({pattern})") for pattern in patterns]
        # Special and unused tokens stay out: ordinary text must never become one.
        self._ids = _plain_ids(vocabulary)
        self._merger = _merger(vocabulary, self._ids)
        self._whole = vocabulary.pre in _WHOLE_PIECES
        self._cache: dict[str, list[int]] = {}

    def encode(self, text: str) -> list[int]:
        """The ids of `text`."""
        ids: list[int] = []
        cache = self._cache
        pieces = [text]
        for pattern in self._patterns:
            pieces = [part for piece in pieces for part in pattern.split(piece) if part]
        for piece in pieces:
            found = cache.get(piece)
            if found is None:
                if len(cache) >= _MOST_CACHED:
                    cache = self._cache = {}
                found = cache[piece] = self._encode_piece(piece)
            ids += found
        return ids

    def _encode_piece(self, piece: str) -> list[int]:
        spelled = piece.encode().decode("latin-1").translate(_SPELLING)
        ids = self._ids
        if self._whole and (token_id := ids.get(spelled)) is not None:
            return [token_id]
        # Only a vocabulary without all 256 bytes has symbols that are no token.
        return [ids[symbol] for symbol in self._merger.merge(spelled) if symbol in ids]


class SentencePieceBPE:
    """The characters of the whole text are merged; what is no token falls back to its bytes."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._ids = _plain_ids(vocabulary)
        self._unknown = [] if vocabulary.unknown_id is None else [vocabulary.unknown_id]
        self._prefix = SPACE if vocabulary.add_space_prefix else ""
        normal = TokenType.NORMAL
        ranks = {
            text: -vocabulary.scores[i]
            for text, i in self._ids.items()
            if vocabulary.types[i] == normal
        }
        self._merger = Merger(ranks, "")

    def encode(self, text: str) -> list[int]:
        """The ids of `text`."""
        ids: list[int] = []
        for symbol in self._merger.merge(self._prefix + text.replace(" ", SPACE)):
            token_id = self._ids.get(symbol)
            if token_id is not None:
                ids.append(token_id)
            else:
                ids += self._fall_back(symbol)
        return ids

    def _fall_back(self, symbol: str) -> list[int]:
        found = [self._ids.get(f"<0x{byte:02X}>") for byte in symbol.encode()]
        known = [token_id for token_id in found if token_id is not None]
        return known if len(known) == len(found) else self._unknown


def _plain_ids(vocabulary: Vocabulary) -> dict[str, int]:
    plain = (TokenType.NORMAL, TokenType.BYTE)
    types = vocabulary.types
    return {text: i for i, text in enumerate(vocabulary.tokens) if types[i] in plain}


def _merger(vocabulary: Vocabulary, ids: Mapping[str, int]) -> Merger:
    """By token id for GLM, unless its list has an order of its own; else by the list's order."""
    ranks: dict[str, int] = {}
    highest = -1
    in_id_order = True
    for i, merge in enumerate(vocabulary.merges):
        left, _, right = merge.partition(" ")
        if not left or not right:
            raise TokenizerError(f"{KEY}merges[{i}] is {merge!r}, not two parts")
        result = ids.get(left + right)
        # Some converters list three or more parts for a token that two cannot make: no merge.
        if result is None or left not in ids or right not in ids:
            continue
        in_id_order = in_id_order and result >= highest
        highest = max(highest, result)
        ranks.setdefault(merge, i)
    if vocabulary.pre in GLM_PRE and in_id_order:
        return Merger(ids, "")
    if not ranks:
        raise TokenizerError(f"{KEY}merges is missing or fits no token; the file is malformed")
    return Merger(ranks, " ")
