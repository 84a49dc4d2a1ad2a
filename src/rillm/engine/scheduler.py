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

from array import array
from bisect import insort
from collections import defaultdict, deque
from dataclasses import dataclass, field

from rillm.engine.block_manager import BlockManager
from rillm.engine.sequence import Sequence, SequenceStatus

# A prompt advances at least this much in every step, however slow the machine: with decodes, alone.
_MIN_CHUNK = 4
_MIN_CHUNK_ALONE = 32
# The first chunk of all, before any step was timed.
_FIRST_CHUNK = 64
# Of the delay allowed, what a chunk is cut for: some take longer than those before them did.
_AIM = 0.75
# Mixed steps after which the time of a step of decodes alone is measured again.
_REMEASURE = 64


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
    num_draft_tokens: int = 0
    num_prompt_logits: int = 0  # prompt tokens whose successors' probabilities are wanted
    num_preempted: int = 0

    @property
    def num_tokens(self) -> int:
        """Tokens of the batch."""
        return self.num_decodes + self.num_draft_tokens + self.num_prefill_tokens


class PrefillPacer:
    """Bounds the prompt tokens of a step, from the measured times of earlier steps.

    While one prompt is evaluated, a step may take at most `max_delay` decode steps longer than its
    decodes alone; where more prompts wait than sequences decode, so many times that (to hold up
    many for the sake of a few is no better). No step shall take much more than `max_seconds`, so
    that a slow machine notices soon when a request is new or gone. 0 = no limit. What a step
    computes never depends on how its prompts were cut, only when.
    """

    def __init__(self, max_delay: float = 0.0, max_seconds: float = 0.0) -> None:
        self._max_delay = max_delay
        self._max_seconds = max_seconds
        # Of steps of decodes alone, by the bit length of num_decodes: the latest times. Their
        # median counts, because a prompt slows the steps before its own (it is being encoded).
        self._decode_times: dict[int, deque[float]] = defaultdict(lambda: deque(maxlen=5))
        self._mixed_seconds: float | None = None  # of one prompt token in a step with decodes
        self._alone_seconds: float | None = None  # of one prompt token in a step without
        self._num_mixed_steps = 0

    def limit(self, num_decodes: int, num_prompts: int = 1) -> int | None:
        """Prompt tokens that the next step may have beside its decodes; None = no limit."""
        if num_decodes == 0:
            if self._max_seconds == 0:
                return None
            if self._alone_seconds is None:
                return _FIRST_CHUNK
            return max(_MIN_CHUNK_ALONE, int(self._max_seconds / self._alone_seconds))
        if self._max_delay == 0:
            return None
        decode_seconds = self._decode_seconds(num_decodes)
        if decode_seconds == 0 or self._num_mixed_steps >= _REMEASURE:
            return 0  # a step of decodes alone, to know how long that takes
        if self._mixed_seconds is None:
            return _MIN_CHUNK
        delay = _AIM * self._max_delay * decode_seconds * max(1.0, num_prompts / num_decodes)
        if self._max_seconds:
            delay = min(delay, self._max_seconds)
        return max(_MIN_CHUNK, int(delay / self._mixed_seconds))

    def observe(self, step: Step, seconds: float) -> None:
        """Learns from a finished step."""
        seconds = max(seconds, 1e-6)
        num_prompt = step.num_prefill_tokens
        if num_prompt == 0:
            self._decode_times[step.num_decodes.bit_length()].append(seconds)
            self._num_mixed_steps = 0
        elif step.num_decodes == 0:
            if num_prompt >= _MIN_CHUNK_ALONE:  # a short prompt costs a whole pass all the same
                self._alone_seconds = _mean(self._alone_seconds, seconds / num_prompt)
        else:
            self._num_mixed_steps += 1
            if num_prompt >= _MIN_CHUNK:
                extra = max(seconds - self._decode_seconds(step.num_decodes), 0.05 * seconds)
                self._mixed_seconds = _mean(self._mixed_seconds, extra / num_prompt)

    def _decode_seconds(self, num_decodes: int) -> float:
        """Of a step of so many decodes and nothing else; 0 if none was measured."""
        times = sorted(self._decode_times[num_decodes.bit_length()])
        return times[len(times) // 2] if times else 0.0


def _mean(known: float | None, measured: float) -> float:
    """Half old, half new."""
    return measured if known is None else 0.5 * (known + measured)


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
        budget = self.max_num_batched_tokens - step.num_tokens
        num_prompts = len(self.running) - step.num_decodes + len(self.waiting)
        limit = self.pacer.limit(step.num_decodes, min(num_prompts, self.max_num_seqs))
        if limit is not None:
            budget = min(budget, limit)
        # Digests of the blocks that this step fills: who needs the same ones waits for them.
        pending: set[bytes] = set()
        prompts = [sequence for sequence in self.running if sequence.num_uncomputed_tokens > 1]
        oldest = None
        if prompts and budget > 0:
            has_others = len(prompts) > 1 or (
                self.waiting and len(self.running) < self.max_num_seqs
            )
            share = max(budget // 2, min(budget, _MIN_CHUNK)) if has_others else budget
            num_items = len(step.scheduled)
            budget -= self._schedule_chunk(step, prompts[0], share, pending)
            if len(step.scheduled) > num_items:
                oldest = step.scheduled[-1]
            for sequence in sorted(prompts[1:], key=_need):
                if budget > 0:
                    budget -= self._schedule_chunk(step, sequence, budget, pending)
        budget = self._admit(step, budget, pending)
        if oldest is not None and budget > 0:
            self._schedule_chunk(step, oldest.sequence, budget, pending, oldest)
        return step

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
        budget: int,
        pending: set[bytes],
        item: ScheduledSequence | None = None,
    ) -> int:
        """Adds tokens of a prompt, at most budget; item: to those that the step has already."""
        num_before = 0 if item is None else item.num_tokens
        num_tokens = min(budget, sequence.num_uncomputed_tokens - num_before)
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
        step.num_prefill_tokens += num_tokens
        if sequence.use_prefix_cache:
            size = self.blocks.block_size
            first = sequence.num_computed_tokens // size
            last = (sequence.num_computed_tokens + num_before + num_tokens) // size
            self.blocks.extend_digests(sequence, last)
            pending.update(sequence.block_digests[first:last])
        return num_tokens

    def _admit(self, step: Step, budget: int, pending: set[bytes]) -> int:
        """Lets waiting sequences in, as far as there is room; returns what is left of budget."""
        index = 0
        while index < len(self.waiting):
            if budget <= 0 or len(self.running) >= self.max_num_seqs:
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
            budget -= self._schedule_chunk(step, sequence, budget, pending)
        return budget


def _need(sequence: Sequence) -> int:
    return sequence.num_uncomputed_tokens


def _waiting_order(sequence: Sequence) -> tuple[int, int]:
    return sequence.turn, sequence.sequence_id


def _arrival(sequence: Sequence) -> int:
    return sequence.sequence_id
