"""From a tiktoken vocabulary file (GLM's `tokenizer.model`) to the GGUF tokenizer keys.

The file holds one `base64 rank` pair a line; the rank is the token id and the merge priority.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rillm.prepare.errors import PrepareError

# In this order after the last rank, in GLM-4, GLM-4-0414, GLM-Z1 and GLM-Edge.
GLM_SPECIALS = (
    "<|endoftext|>", "[MASK]", "[gMASK]", "[sMASK]", "<sop>", "<eop>",
    "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>",
    "<|begin_of_image|>", "<|end_of_image|>", "<|begin_of_video|>", "<|end_of_video|>",
)  # fmt: skip
_NORMAL, _CONTROL, _UNUSED = 1, 3, 5  # tokenizer.ggml.token_type


def read_ranks(path: str | Path) -> list[bytes]:
    """The tokens of a tiktoken file; index = rank. Checks that every rank and byte is there."""
    path = Path(path)
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise PrepareError(f"{path}: {error.strerror or error}") from error
    by_rank: dict[int, bytes] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        fields = line.split()
        try:
            encoded, rank_text = fields
            token, rank = base64.b64decode(encoded, validate=True), int(rank_text)
        except (ValueError, binascii.Error):
            raise PrepareError(f"{path}:{number}: not a `base64 rank` pair") from None
        if not token or rank in by_rank:
            fault = f"rank {rank} is given twice" if token else "the token is empty"
            raise PrepareError(f"{path}:{number}: {fault}")
        by_rank[rank] = token
    tokens = [by_rank[rank] for rank in range(len(by_rank)) if rank in by_rank]
    if len(tokens) != len(by_rank):
        missing = next(rank for rank in range(len(by_rank)) if rank not in by_rank)
        raise PrepareError(f"{path}: rank {missing} is missing")
    unique = set(tokens)
    if len(unique) != len(tokens):
        raise PrepareError(f"{path}: a token has two ranks")
    lacking = next((byte for byte in range(256) if bytes([byte]) not in unique), None)
    if lacking is not None:
        raise PrepareError(f"{path}: the single byte 0x{lacking:02x} is not a token")
    return tokens


def _byte_spelling() -> list[str]:
    """GPT-2's character for each byte: printable Latin-1 as itself, the others from U+0100 on."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    spare = iter(range(256, 512))
    return [chr(byte if byte in printable else next(spare)) for byte in range(256)]


_SPELLING = dict(enumerate(_byte_spelling()))


def spell(token: bytes) -> str:
    """The token as `tokenizer.ggml.tokens` holds it."""
    return token.decode("latin-1").translate(_SPELLING)


def derive_merges(tokens: Sequence[bytes]) -> list[tuple[bytes, bytes]]:
    """The merge that makes each multi-byte token, in rank order.

    That is what rank-ordered BPE with only the lower ranks leaves of the token's own bytes. A
    token of which it leaves more than two parts cannot be reached by merging and has no merge.
    """
    ranks = {token: rank for rank, token in enumerate(tokens)}
    merges = []
    for rank, token in enumerate(tokens):
        if len(token) == 1:
            continue
        parts = _parts_below(token, rank, ranks)
        if len(parts) == 2:
            merges.append((parts[0], parts[1]))
    return merges


def _parts_below(token: bytes, limit: int, ranks: dict[bytes, int]) -> list[bytes]:
    parts = [token[i : i + 1] for i in range(len(token))]
    # pair_ranks[i]: rank of parts[i] + parts[i + 1], or `limit` if they do not merge
    pair_ranks = [min(ranks.get(token[i : i + 2], limit), limit) for i in range(len(token) - 1)]
    while pair_ranks:
        best = min(pair_ranks)
        if best >= limit:
            break
        at = pair_ranks.index(best)
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
        del pair_ranks[at]
        if at < len(pair_ranks):
            pair_ranks[at] = min(ranks.get(parts[at] + parts[at + 1], limit), limit)
        if at > 0:
            pair_ranks[at - 1] = min(ranks.get(parts[at - 1] + parts[at], limit), limit)
    return parts


@dataclass(frozen=True)
class TiktokenVocab:
    """A vocabulary ready to be written: id i is tokens[i], of type token_types[i]."""

    tokens: list[str]
    token_types: list[int]
    merges: list[str]
    special_ids: dict[str, int]

    @classmethod
    def from_file(
        cls,
        path: str | Path,
        vocab_size: int | None = None,
        specials: Sequence[str] = GLM_SPECIALS,
    ) -> TiktokenVocab:
        """Ranks, then `specials`, then `[PAD{id}]` up to `vocab_size` (the embedding's rows)."""
        ranks = read_ranks(path)
        first = len(ranks)
        total = first + len(specials)
        size = total if vocab_size is None else vocab_size
        if size < total:
            raise PrepareError(
                f"{path}: {first} ranks and {len(specials)} special tokens do not fit "
                f"the model's vocabulary of {size}"
            )
        return cls(
            tokens=[*map(spell, ranks), *specials, *(f"[PAD{i}]" for i in range(total, size))],
            token_types=[_NORMAL] * first + [_CONTROL] * len(specials) + [_UNUSED] * (size - total),
            merges=[f"{spell(left)} {spell(right)}" for left, right in derive_merges(ranks)],
            special_ids={text: first + i for i, text in enumerate(specials)},
        )
