"""Decides what every step computes: which sequences, and how many tokens of each.

All sequences advance in one ragged batch. Those that generate come first, one token each; what is
left of the step goes to prompts, in chunks, so that a long prompt neither stalls the others nor
needs a larger batch. The oldest prompt gets half of it, and all that the others leave; they come in
the order of what they still need, so that a short one does not wait for a long one to end. Of a
request for many sequences, the later ones let other requests go first. When blocks run out the
newest sequence gives up its own and is computed again later (from the prefix cache as far as that
still holds it).
"""

from __future__ import annotations

import math
from array import array
from bisect import insort
from dataclasses import dataclass, field

from rillm.engine.block_manager import BlockManager
from rillm.engine.pacer import PrefillPacer, Room, prompt_work
from rillm.engine.sequence import Sequence, SequenceStatus


@dataclass(slots=True)
class ScheduledSequence:
    """Compute the tokens [num_computed_tokens, num_computed_tokens + num_tokens), and guesses."""

    sequence: Sequence
    num_tokens: int
    draft: array[int] = field(default_factory=lambda: array("i"))  # what may follow them


@dataclass(slots=True)
class Step:
    """The work of one step, oldest sequence of each kind first."""

    scheduled: list[ScheduledSequence] = field(default_factory=list)
    copies: list[tuple[int, int]] = field(default_factory=list)  # blocks (from, to), in order
    num_decodes: int = 0
    num_prefill_tokens: int = 0
    prefill_work: float = 0.0  # of these tokens: see pacer.prompt_work
    num_draft_tokens: int = 0
    num_prompt_logits: int = 0  # prompt tokens whose successors' probabilities are wanted
    num_preempted: int = 0

    @property
    def num_tokens(self) -> int:
        """Tokens of the batch."""
        return self.num_decodes + self.num_draft_tokens + self.num_prefill_tokens


class Scheduler:
    """Owns the queue and the blocks; `schedule` plans one step at a time."""

    def __init__(
        self,
        blocks: BlockManager,
        *,
        max_num_seqs: int,
        max_num_batched_tokens: int,
        draft_tokens: int = 0,
        max_prompt_logits: int = 32,
        pacer: PrefillPacer | None = None,
    ) -> None:
        self.blocks = blocks
        self.max_prompt_logits = max_prompt_logits
        self.max_num_seqs = max_num_seqs
        self.max_num_batched_tokens = max_num_batched_tokens
        self.draft_tokens = draft_tokens
        self.pacer = PrefillPacer() if pacer is None else pacer
        self.waiting: list[Sequence] = []  # in the order of their turns
        self.running: list[Sequence] = []  # in the order of arrival: sequence ids ascend
        self._num_admitted = 0
        self._is_turn_of_oldest = False  # where a step has room for one prompt token only

    @property
    def has_work(self) -> bool:
        """Whether there is any sequence, waiting or running."""
        return bool(self.waiting or self.running)

    def add(self, sequence: Sequence, rank: int = 0) -> None:
        """Queues a sequence; rank: how many of the same request came before it.

        For each of those, as many others may be let in first as can run at a time.
        """
        sequence.turn = self._num_admitted + rank * self.max_num_seqs
        insort(self.waiting, sequence, key=_waiting_order)

    def remove(self, sequence: Sequence, *, keep: bool = True) -> None:
        """Takes a sequence out (finished or aborted) and frees its blocks (keep: see free)."""
        queue = self.running if sequence.status is SequenceStatus.RUNNING else self.waiting
        queue.remove(sequence)
        self.blocks.free(sequence, keep=keep)
        sequence.status = SequenceStatus.FINISHED

    def schedule(self) -> Step:
        """Plans the next step; it has tokens whenever there is any work."""
        step = Step()
        self._schedule_decodes(step)
        self._schedule_drafts(step)
        prompts = [sequence for sequence in self.running if sequence.num_uncomputed_tokens > 1]
        room = self._room_for_prompts(step, prompts)
        # Digests of the blocks that this step fills: who needs the same ones waits for them.
        pending: set[bytes] = set()
        first: ScheduledSequence | None = None
        if prompts and room.is_open:
            has_others = len(prompts) > 1 or (
                self.waiting and len(self.running) < self.max_num_seqs
            )
            share = self._share_of_oldest(prompts[0], room) if has_others else room
            num_items = len(step.scheduled)
            num_tokens = self._schedule_chunk(step, prompts[0], share, pending)
            if num_tokens:
                first = step.scheduled[num_items]
            if share is not room:
                room.take(prompts[0].num_computed_tokens, num_tokens)
            for sequence in sorted(prompts[1:], key=_need):
                self._schedule_chunk(step, sequence, room, pending)
        self._admit(step, room, pending)
        if prompts and room.is_open:
            self._schedule_chunk(step, prompts[0], room, pending, first)
        return step

    def _room_for_prompts(self, step: Step, prompts: list[Sequence]) -> Room:
        num_prompts = min(len(prompts) + len(self.waiting), self.max_num_seqs)
        start = prompts[0].num_computed_tokens if prompts else 0
        limit = self.pacer.limit(step.num_decodes, num_prompts, start)
        return Room(
            self.max_num_batched_tokens - step.num_tokens,
            math.inf if limit is None else limit,
            self.pacer.key_cost,
        )

    def _share_of_oldest(self, oldest: Sequence, room: Room) -> Room:
        """Half of the room; where that is not even a token, all or nothing by turns."""
        half = Room(room.tokens // 2, 0.5 * room.work, room.key_cost)
        if half.fit(oldest.num_computed_tokens) > 0:
            return half
        self._is_turn_of_oldest = not self._is_turn_of_oldest
        return room if self._is_turn_of_oldest else Room(0, 0.0, room.key_cost)

    def _schedule_decodes(self, step: Step) -> None:
        for sequence in list(self.running):
            if sequence.status is not SequenceStatus.RUNNING:
                break  # preempted for an older one, and so are all that follow
            if sequence.num_uncomputed_tokens > 1:
                continue
            if self._make_room(step, sequence):
                step.scheduled.append(ScheduledSequence(sequence, 1))
                step.num_decodes += 1

    def _schedule_drafts(self, step: Step) -> None:
        """Adds guesses to the decodes, as far as they take nothing from anybody."""
        room = min(self.draft_tokens, self.max_num_batched_tokens - step.num_decodes)
        for item in step.scheduled:
            sequence = item.sequence
            if room <= 0:
                return
            if sequence.drafter is None:
                continue
            draft = sequence.drafter.propose(sequence.token_ids, room)
            if draft and self.blocks.grow(sequence, len(draft)):
                item.draft = draft
                sequence.drafter.begin(len(draft))
                step.num_draft_tokens += len(draft)
                room -= len(draft)

    def _make_room(self, step: Step, sequence: Sequence) -> bool:
        """Finds the block for a sequence's next token, if need be a newer sequence's."""
        while not self.blocks.grow(sequence):
            newest = self.running.pop()
            self.blocks.free(newest)
            newest.status = SequenceStatus.WAITING
            newest.num_preemptions += 1
            step.num_preempted += 1
            insort(self.waiting, newest, key=_waiting_order)
            if newest is sequence:
                return False
        return True

    def _schedule_chunk(
        self,
        step: Step,
        sequence: Sequence,
        room: Room,
        pending: set[bytes],
        item: ScheduledSequence | None = None,
    ) -> int:
        """Takes room for tokens of a prompt; item: the step has some of it already."""
        num_before = 0 if item is None else item.num_tokens
        start = sequence.num_computed_tokens + num_before
        least = 0 if step.scheduled else 1  # a step computes something, whatever it takes
        num_tokens = min(max(room.fit(start), least), sequence.num_tokens - start)
        if sequence.next_scored_token < sequence.num_prompt_tokens:
            # Logits are large: what a step may keep of them also limits the chunk.
            num_tokens = min(num_tokens, self.max_prompt_logits - step.num_prompt_logits)
            step.num_prompt_logits += num_tokens
        if num_tokens == 0:
            return 0
        if item is None:
            step.scheduled.append(ScheduledSequence(sequence, num_tokens))
        else:
            item.num_tokens += num_tokens
        room.take(start, num_tokens)
        step.num_prefill_tokens += num_tokens
        step.prefill_work += prompt_work(start, num_tokens, room.key_cost)
        if sequence.use_prefix_cache:
            size = self.blocks.block_size
            first = sequence.num_computed_tokens // size
            last = (sequence.num_computed_tokens + num_before + num_tokens) // size
            self.blocks.extend_digests(sequence, last)
            pending.update(sequence.block_digests[first:last])
        return num_tokens

    def _admit(self, step: Step, room: Room, pending: set[bytes]) -> None:
        """Lets waiting sequences in, as far as there is room."""
        index = 0
        while index < len(self.waiting):
            if not room.is_open or len(self.running) >= self.max_num_seqs:
                break
            sequence = self.waiting[index]
            match = self.blocks.match_prefix(sequence)
            if match.next_digest in pending:
                index += 1  # an earlier sequence computes the same tokens now: share the result
                continue
            # Every running sequence may want a block soon; do not take the last ones.
            if not self.blocks.allocate(sequence, match, reserve=len(self.running)):
                break  # the first come is the first served, even if a later one would fit
            if match.partial_block >= 0:
                step.copies.append((match.partial_block, sequence.block_table[len(match.blocks)]))
            del self.waiting[index]
            self._num_admitted += 1
            sequence.status = SequenceStatus.RUNNING
            if sequence.num_cached_tokens < 0:  # of the first time: later ones are preemptions
                sequence.num_cached_tokens = sequence.num_computed_tokens
            insort(self.running, sequence, key=_arrival)
            self._schedule_chunk(step, sequence, room, pending)


def _need(sequence: Sequence) -> int:
    return sequence.num_uncomputed_tokens


def _waiting_order(sequence: Sequence) -> tuple[int, int]:
    return sequence.turn, sequence.sequence_id


def _arrival(sequence: Sequence) -> int:
    return sequence.sequence_id
