"""Hands out the blocks of the paged KV cache and remembers what they hold (the prefix cache).

A block is in one of three states:

    blank   nobody uses it and nothing in it is worth keeping: taken first
    idle    nobody uses it, but its keys and values may serve a later prompt: taken last,
            least recently used first
    in use  in the block table of one or more sequences; never taken away here

A full block is known by a digest chained over all tokens before it, so equal digests mean equal
prefixes (128-bit BLAKE2b: no token comparison needed). Blocks are shared by reference, also while
the sequence that filled them still runs. Of the block after the last shared one, the tokens that
agree are copied into a block of one's own, so a prompt that was seen before costs one token.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from dataclasses import dataclass
from hashlib import blake2b

from rillm.engine.sequence import Sequence

# Blocks that continue the same prefix with the same token: how many of them, newest first, are
# compared to find the one that agrees longest.
_MAX_CANDIDATES = 32


@dataclass(slots=True)
class PrefixMatch:
    """What the cache holds of a sequence's tokens."""

    blocks: list[int]  # full blocks, to be shared
    partial_block: int = -1  # a block whose first tokens agree, to be copied
    num_partial_tokens: int = 0
    next_digest: bytes | None = None  # the first full block that is not cached


class BlockManager:
    """Allocates blocks 0 .. num_blocks - 1 of `block_size` tokens each."""

    def __init__(self, num_blocks: int, block_size: int, *, prefix_cache: bool = True) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.prefix_cache = prefix_cache
        self._ref_counts = array("i", bytes(4 * num_blocks))
        self._blank = list(range(num_blocks - 1, -1, -1))
        self._idle: OrderedDict[int, None] = OrderedDict()  # least recently used first
        # What a known block holds: its tokens (fewer than block_size while it fills), the digest
        # once it is full, and its key in _children: the digest before it and its first token.
        self._tokens: dict[int, array[int]] = {}
        self._digests: dict[int, bytes] = {}
        self._keys: dict[int, tuple[bytes, int]] = {}
        self._by_digest: dict[bytes, int] = {}
        self._children: dict[tuple[bytes, int], dict[int, None]] = {}

    @property
    def num_free_blocks(self) -> int:
        """Blocks that nobody uses: blank and idle."""
        return len(self._blank) + len(self._idle)

    @property
    def num_cached_blocks(self) -> int:
        """Blocks whose content is known and can be shared."""
        return len(self._tokens)

    def ref_count(self, block: int) -> int:
        """How many sequences use a block."""
        return self._ref_counts[block]

    def blocks_for(self, num_tokens: int) -> int:
        """How many blocks hold `num_tokens` tokens."""
        return -(-num_tokens // self.block_size)

    # ---- what is cached ------------------------------------------------------------------

    def match_prefix(self, sequence: Sequence) -> PrefixMatch:
        """Finds the cached prefix of a sequence; takes nothing.

        The last token is never matched: it has to be computed, for its logits.
        """
        limit = sequence.num_tokens - 1
        if not (self.prefix_cache and sequence.use_prefix_cache):
            return PrefixMatch([])
        num_full = limit // self.block_size
        self.extend_digests(sequence, num_full)
        digests = sequence.block_digests
        blocks: list[int] = []
        while len(blocks) < num_full:
            block = self._by_digest.get(digests[len(blocks)])
            if block is None:
                break
            blocks.append(block)
        match = PrefixMatch(blocks)
        if len(blocks) < num_full:
            match.next_digest = digests[len(blocks)]
        start = len(blocks) * self.block_size
        if start < limit:
            tokens = sequence.token_ids[start : min(limit, start + self.block_size)]
            self._match_partial(match, digests[len(blocks) - 1] if blocks else b"", tokens)
        return match

    def _match_partial(self, match: PrefixMatch, parent: bytes, tokens: array[int]) -> None:
        candidates = self._children.get((parent, tokens[0]), {})
        for block, _ in zip(reversed(candidates), range(_MAX_CANDIDATES), strict=False):
            num_common = _common_prefix(tokens, self._tokens[block])
            if num_common > match.num_partial_tokens:
                match.partial_block, match.num_partial_tokens = block, num_common
                if num_common == len(tokens):
                    return

    def extend_digests(self, sequence: Sequence, num_blocks: int) -> None:
        """Makes sure that the digests of a sequence's first `num_blocks` blocks are known."""
        digests = sequence.block_digests
        size = self.block_size
        for index in range(len(digests), num_blocks):
            parent = digests[-1] if digests else b""
            tokens = sequence.token_ids[index * size : (index + 1) * size]
            digests.append(blake2b(parent + tokens.tobytes(), digest_size=16).digest())

    def commit(self, sequence: Sequence, *, partial: bool = False) -> None:
        """Makes the blocks known that `sequence` has filled so far.

        partial: also the last one that is only begun, so that an equal prompt need not compute it.
        """
        if not (self.prefix_cache and sequence.use_prefix_cache):
            return
        size = self.block_size
        num_full = sequence.num_computed_tokens // size
        if sequence.num_committed_blocks < num_full:
            self.extend_digests(sequence, num_full)
            for index in range(sequence.num_committed_blocks, num_full):
                digest = sequence.block_digests[index]
                if digest not in self._by_digest:  # else another sequence filled its twin
                    block = sequence.block_table[index]
                    self._remember(sequence, index, size)
                    self._by_digest[digest] = block
                    self._digests[block] = digest
            sequence.num_committed_blocks = num_full
        num_partial = sequence.num_computed_tokens - num_full * size
        if partial and num_partial:
            self._remember(sequence, num_full, num_partial)

    def _remember(self, sequence: Sequence, index: int, num_tokens: int) -> None:
        block = sequence.block_table[index]
        start = index * self.block_size
        tokens = sequence.token_ids[start : start + num_tokens]
        if block not in self._tokens:
            parent = sequence.block_digests[index - 1] if index else b""
            key = (parent, tokens[0])
            self._keys[block] = key
            self._children.setdefault(key, {})[block] = None
        self._tokens[block] = tokens

    def _forget(self, block: int) -> None:
        del self._tokens[block]
        key = self._keys.pop(block)
        siblings = self._children[key]
        del siblings[block]
        if not siblings:
            del self._children[key]
        digest = self._digests.pop(block, None)
        if digest is not None:
            del self._by_digest[digest]

    # ---- who uses what -------------------------------------------------------------------

    def allocate(self, sequence: Sequence, match: PrefixMatch, *, reserve: int = 0) -> bool:
        """Gives a sequence without blocks all that its tokens need, the matched ones shared.

        Returns False, and changes nothing, unless `reserve` free blocks would remain. Afterwards
        num_computed_tokens counts the matched tokens; where a block has to be copied first
        (match.partial_block), the copy is block_table[len(match.blocks)].
        """
        num_new = self.blocks_for(sequence.num_tokens) - len(match.blocks)
        num_idle = sum(1 for block in match.blocks if self._ref_counts[block] == 0)
        if self.num_free_blocks - num_idle < num_new + reserve:
            return False
        for block in match.blocks:
            self._share(block)
        sequence.block_table.extend(match.blocks)
        sequence.num_committed_blocks = len(match.blocks)
        sequence.num_computed_tokens = (
            len(match.blocks) * self.block_size + match.num_partial_tokens
        )
        if match.partial_block >= 0 and self._ref_counts[match.partial_block] == 0:
            self._idle.move_to_end(match.partial_block)  # it has just been of use
        for _ in range(num_new):
            sequence.block_table.append(self._take())
        return True

    def grow(self, sequence: Sequence, num_more: int = 0) -> bool:
        """Adds blocks until all tokens of a sequence, and num_more, have room; False if there are
        not enough."""
        num_new = self.blocks_for(len(sequence.token_ids) + num_more) - len(sequence.block_table)
        if num_new <= 0:  # nearly always
            return True
        if num_new > self.num_free_blocks:
            return False
        for _ in range(num_new):
            sequence.block_table.append(self._take())
        return True

    def free(self, sequence: Sequence, *, keep: bool = True) -> None:
        """Gives up a sequence's blocks; what it computed stays known until the room is needed.

        keep: False where a step failed, so that its blocks may not hold what they should.
        """
        if keep:
            self.commit(sequence, partial=True)
        # Last block first: the end of a prefix is of less use than its beginning.
        for block in reversed(sequence.block_table):
            self._ref_counts[block] -= 1
            if self._ref_counts[block] == 0:
                if block in self._tokens:
                    self._idle[block] = None
                else:
                    self._blank.append(block)
        del sequence.block_table[:]
        sequence.num_computed_tokens = 0

    def _share(self, block: int) -> None:
        if self._ref_counts[block] == 0:
            del self._idle[block]
        self._ref_counts[block] += 1

    def _take(self) -> int:
        if self._blank:
            block = self._blank.pop()
        else:
            block, _ = self._idle.popitem(last=False)
            self._forget(block)
        self._ref_counts[block] = 1
        return block


def _common_prefix(left: array[int], right: array[int]) -> int:
    num = min(len(left), len(right))
    if left[:num] == right[:num]:
        return num
    return next(i for i in range(num) if left[i] != right[i])
