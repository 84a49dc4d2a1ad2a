"""Special tokens, decoding and streaming around the plain-text encoder."""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterable, Mapping

from rillm.tokenizer.encoders import SPACE, build_encoder, byte_alphabet
from rillm.tokenizer.vocabulary import TokenizerError, TokenType, Vocabulary

_WORD = re.compile(r"\w+", re.ASCII)


_BYTE_OF_CHAR = {char: byte for byte, char in byte_alphabet().items()}


class Tokenizer:
    """The tokenizer of one GGUF file. Threads may share it."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._encoder = build_encoder(vocabulary)
        self._special = _special_pattern(vocabulary.specials)
        self.specials: Mapping[str, int] = vocabulary.specials
        self.stop_ids: frozenset[int] = vocabulary.stop_ids
        self.bos_id: int | None = vocabulary.bos_id
        self.eos_id: int | None = vocabulary.eos_id
        self.add_bos: bool = vocabulary.add_bos
        self.vocab_size: int = len(vocabulary.tokens)
        # What StreamDecoder found tokens to be, with and without special ones (by skip_special).
        self.pieces: tuple[dict[int, bytes], dict[int, bytes]] = ({}, {})

    @classmethod
    def from_gguf(cls, metadata: Mapping[str, object]) -> Tokenizer:
        """From the `tokenizer.ggml.*` keys; raises TokenizerError if they are unusable."""
        return cls(Vocabulary.from_gguf(metadata))

    def encode(
        self, text: str, *, add_special: bool = False, parse_special: bool = False
    ) -> list[int]:
        """Token ids of `text`.

        `parse_special`: special tokens spelled in the text become their ids; otherwise no spelling
        does. `add_special`: the file's bos and eos, where its keys ask for them (never in GLM,
        whose prefix the chat template supplies).
        """
        vocabulary = self._vocabulary
        ids: list[int] = []
        if add_special and vocabulary.add_bos and vocabulary.bos_id is not None:
            ids.append(vocabulary.bos_id)
        for part in self.split_special(text) if parse_special else [text]:
            if isinstance(part, int):
                ids.append(part)
            else:
                ids += self._encode_plain(part)
        if add_special and vocabulary.add_eos and vocabulary.eos_id is not None:
            ids.append(vocabulary.eos_id)
        return ids

    def split_special(self, text: str) -> list[str | int]:
        """Cut `text` at the special tokens spelled in it: non-empty stretches of text, and ids."""
        if self._special is None:
            return [text] if text else []
        pieces = self._special.split(text)  # the pattern is one group: odd places are specials
        return [self.specials[piece] if i % 2 else piece for i, piece in enumerate(pieces) if piece]

    def _encode_plain(self, text: str) -> list[int]:
        if not text:
            return []
        if not text.isascii():
            # A lone surrogate (JSON can spell one) has no UTF-8; it becomes U+FFFD.
            text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        return self._encoder.encode(text)

    def decode(self, ids: Iterable[int], *, skip_special: bool = False) -> str:
        """Text of `ids`; bytes that are not UTF-8 become U+FFFD.

        Where encode() puts a space before text (SentencePiece-style, at the start and after a
        special token), that space is taken off again.
        """
        parts: list[bytes] = []
        drop_space = self._vocabulary.add_space_prefix
        for token_id in ids:
            piece = self.token_bytes(token_id)
            special = self._vocabulary.types[token_id] not in (TokenType.NORMAL, TokenType.BYTE)
            if drop_space and not special:
                piece = piece.removeprefix(b" ")
            drop_space = special and self._vocabulary.add_space_prefix
            if not (skip_special and self.is_special(token_id)):
                parts.append(piece)
        return b"".join(parts).decode("utf-8", "replace")

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that a token stands for; of a special token, its spelling."""
        text = self.token_text(token_id)
        kind = self._vocabulary.types[token_id]
        if kind not in (TokenType.NORMAL, TokenType.BYTE):
            return text.encode("utf-8", "replace")
        if self._vocabulary.model == "llama":
            if kind == TokenType.BYTE:
                return bytes([int(text[3:5], 16)])
            return text.replace(SPACE, " ").encode("utf-8", "replace")
        try:
            return bytes([_BYTE_OF_CHAR[char] for char in text])
        except KeyError:  # not spelled in the byte alphabet: a converter kept the plain text
            return text.encode("utf-8", "replace")

    def token_text(self, token_id: int) -> str:
        """The token as the file spells it."""
        if not 0 <= token_id < self.vocab_size:
            raise TokenizerError(f"token id {token_id}: the ids are 0 to {self.vocab_size - 1}")
        return self._vocabulary.tokens[token_id]

    def is_special(self, token_id: int) -> bool:
        """Whether the token is control, unknown or unused, so not part of an answer's text."""
        self.token_text(token_id)
        kind = self._vocabulary.types[token_id]
        return kind in (TokenType.CONTROL, TokenType.UNKNOWN, TokenType.UNUSED)


def _special_pattern(specials: Iterable[str]) -> re.Pattern[str] | None:
    """Longest first. A bare word (chatglm3's `sop`) counts only where no word goes on."""
    alternatives = []
    for text in sorted(specials, key=len, reverse=True):
        spelled = re.escape(text)
        if _WORD.fullmatch(text):
            spelled = rf"(?<![A-Za-z0-9_]){spelled}(?![A-Za-z0-9_])"
        alternatives.append(spelled)
    return re.compile(f"({'|'.join(alternatives)})") if alternatives else None


class StreamDecoder:
    """Text of a growing answer, token by token.

    push() returns only whole characters: bytes that may still become one are held back, bytes
    that never can become U+FFFD.
    """

    def __init__(self, tokenizer: Tokenizer, *, skip_special: bool = True) -> None:
        self._tokenizer = tokenizer
        self._skip_special = skip_special
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._pieces = tokenizer.pieces[skip_special]

    def push(self, token_id: int) -> str:
        """Text that is certain after this token; may be empty."""
        piece = self._pieces.get(token_id)
        if piece is None:
            is_skipped = self._skip_special and self._tokenizer.is_special(token_id)
            piece = b"" if is_skipped else self._tokenizer.token_bytes(token_id)
            self._pieces[token_id] = piece
        return self._utf8.decode(piece) if piece else ""

    def finish(self) -> str:
        """What was held back; the decoder can then be used anew."""
        text = self._utf8.decode(b"", final=True)
        self._utf8.reset()
        return text
