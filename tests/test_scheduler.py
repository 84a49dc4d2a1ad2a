from __future__ import annotations

from rillm.engine.block_manager import BlockManager
from rillm.engine.pacer import PrefillPacer, prompt_work
from rillm.engine.scheduler import Scheduler, Step
from rillm.engine.sequence import Sequence, SequenceStatus


def make(
    num_blocks: int = 64, *, seqs: int = 4, tokens: int = 16, delay: float = 0.0, cache: bool = True
) -> Scheduler:
    blocks = BlockManager(num_blocks, 4, prefix_cache=cache)
    return Scheduler(
        blocks, max_num_seqs=seqs, max_num_batched_tokens=tokens, pacer=PrefillPacer(delay)
    )


def advance(scheduler: Scheduler, step: Step, token: int = 1) -> None:
    for item in step.scheduled:
        sequence = item.sequence
        sequence.num_computed_tokens += item.num_tokens
        scheduler.blocks.commit(sequence)
        if sequence.num_uncomputed_tokens == 0:
            sequence.token_ids.append(token)


def plan(step: Step) -> list[tuple[int, int]]:
    return [(item.sequence.sequence_id, item.num_tokens) for item in step.scheduled]


def test_prompts_are_cut_into_chunks_in_order_of_arrival() -> None:
    scheduler = make()
    scheduler.add(Sequence(0, range(0, 20)))
    scheduler.add(Sequence(1, range(100, 110)))
    seen = []
    for _ in range(4):
        step = scheduler.schedule()
        seen.append(plan(step))
        assert step.num_tokens == sum(num for _, num in seen[-1])
        advance(scheduler, step)
    assert seen == [[(0, 16)], [(0, 4), (1, 10)], [(0, 1), (1, 1)], [(0, 1), (1, 1)]]


def test_decodes_come_before_prompts_and_always_take_part() -> None:
    scheduler = make(tokens=6)
    for i in range(3):
        scheduler.add(Sequence(i, [i, i + 50]))
    advance(scheduler, scheduler.schedule())
    scheduler.add(Sequence(3, range(100, 130)))
    for _ in range(5):
        step = scheduler.schedule()
        assert plan(step) == [(0, 1), (1, 1), (2, 1), (3, 3)]
        advance(scheduler, step)


def test_no_more_than_max_num_seqs_run() -> None:
    scheduler = make(seqs=2)
    for i in range(4):
        scheduler.add(Sequence(i, [i, i]))
    advance(scheduler, scheduler.schedule())
    assert [s.sequence_id for s in scheduler.running] == [0, 1]
    scheduler.remove(scheduler.running[0])
    advance(scheduler, scheduler.schedule())
    assert [s.sequence_id for s in scheduler.running] == [1, 2]


def test_the_newest_is_preempted_and_comes_back_first() -> None:
    scheduler = make(num_blocks=6, cache=False)
    sequences = [Sequence(i, [10 * i + k for k in range(8)]) for i in range(2)]
    for sequence in sequences:
        scheduler.add(sequence)
    scheduler.add(Sequence(2, [90] * 4))
    for _ in range(5):
        advance(scheduler, scheduler.schedule())
    # 6 blocks: 0 and 1 have three each by now, and 2 still waits.
    assert [len(s.block_table) for s in sequences] == [3, 3]
    assert [s.sequence_id for s in scheduler.waiting] == [2]
    # Token 13 of sequence 0 needs a fourth block.
    while scheduler.running != [sequences[0]]:
        step = scheduler.schedule()
        advance(scheduler, step)
    assert step.num_preempted == 1
    assert sequences[1].status is SequenceStatus.WAITING
    assert sequences[1].num_computed_tokens == 0
    assert [s.sequence_id for s in scheduler.waiting] == [1, 2]
    # While 1 does not fit, 2 must not overtake it though it would.
    assert scheduler.blocks.num_free_blocks >= 2
    advance(scheduler, scheduler.schedule())
    assert [s.sequence_id for s in scheduler.running] == [0]
    scheduler.remove(sequences[0])
    advance(scheduler, scheduler.schedule())
    assert [s.sequence_id for s in scheduler.running] == [1, 2]


def test_admission_leaves_a_block_for_each_running_sequence() -> None:
    scheduler = make(num_blocks=8, cache=False)
    for i in range(2):
        scheduler.add(Sequence(i, [i] * 7))
    advance(scheduler, scheduler.schedule())
    scheduler.add(Sequence(2, [2] * 9))  # three blocks of the four that are free
    step = scheduler.schedule()
    assert plan(step) == [(0, 1), (1, 1)]
    advance(scheduler, step)
    scheduler.remove(scheduler.running[1])
    assert plan(scheduler.schedule()) == [(0, 1), (2, 9)]


def test_every_request_finishes_under_memory_pressure() -> None:
    for cache in (True, False):
        scheduler = make(num_blocks=10, tokens=8, cache=cache)
        for i in range(7):
            scheduler.add(Sequence(i, [i * 10 + k for k in range(3 + i)]))
        finished, steps = [], 0
        while scheduler.has_work:
            step = scheduler.schedule()
            assert step.scheduled, "a step without work"
            assert step.num_tokens <= 8
            advance(scheduler, step)
            for sequence in list(scheduler.running):
                if sequence.num_generated_tokens >= 25:
                    finished.append(sequence)
                    scheduler.remove(sequence)
            steps += 1
            assert steps < 3000
        assert len(finished) == 7
        assert sum(sequence.num_preemptions for sequence in finished) > 0
        assert scheduler.blocks.num_free_blocks == 10


def test_equal_prompts_of_one_moment_are_computed_once() -> None:
    scheduler = make(tokens=64)
    for i in range(4):
        scheduler.add(Sequence(i, [*range(13), 100 + i]))
    step = scheduler.schedule()
    assert plan(step) == [(0, 14)]
    advance(scheduler, step)
    step = scheduler.schedule()
    assert plan(step) == [(0, 1), (1, 2), (2, 2), (3, 2)]
    assert [len(scheduler.running[i].block_table) for i in range(4)] == [4, 4, 4, 4]


def test_a_sequence_that_waits_for_another_does_not_hold_up_the_rest() -> None:
    scheduler = make(tokens=64)
    scheduler.add(Sequence(0, range(14)))
    scheduler.add(Sequence(1, range(14)))
    scheduler.add(Sequence(2, range(50, 60)))
    step = scheduler.schedule()
    assert plan(step) == [(0, 14), (2, 10)]
    advance(scheduler, step)
    scheduler.schedule()
    assert [s.sequence_id for s in scheduler.running] == [0, 1, 2]


def test_removing_a_waiting_sequence() -> None:
    scheduler = make(seqs=1)
    first, second = Sequence(0, [1, 2]), Sequence(1, [3, 4])
    scheduler.add(first)
    scheduler.add(second)
    advance(scheduler, scheduler.schedule())
    scheduler.remove(second)
    assert second.status is SequenceStatus.FINISHED
    scheduler.remove(first)
    assert not scheduler.has_work


def test_a_short_prompt_does_not_wait_for_a_long_one_to_end() -> None:
    scheduler = make(num_blocks=500, tokens=32)
    scheduler.add(Sequence(0, range(1000)))
    advance(scheduler, scheduler.schedule())
    scheduler.add(Sequence(1, range(2000, 2040)))
    scheduler.add(Sequence(2, range(3000, 3010)))
    plans = []
    for _ in range(4):
        step = scheduler.schedule()
        plans.append(plan(step))
        advance(scheduler, step)
    assert plans[0] == [(0, 16), (1, 16)]
    assert plans[1] == [(0, 16), (1, 16)]
    assert plans[2] == [(0, 16), (1, 8), (2, 8)]
    # The oldest gets what the others leave.
    assert plans[3] == [(1, 1), (0, 29), (2, 2)]


def test_the_oldest_gets_the_whole_step_where_others_cannot_be_let_in() -> None:
    scheduler = make(num_blocks=52, tokens=32)
    scheduler.add(Sequence(0, range(200)))
    advance(scheduler, scheduler.schedule())
    scheduler.add(Sequence(1, range(2000, 2040)))
    assert plan(scheduler.schedule()) == [(0, 32)]


def test_of_many_sequences_of_one_request_later_ones_let_others_go_first() -> None:
    scheduler = make(num_blocks=500, seqs=2)
    for rank in range(6):
        scheduler.add(Sequence(rank, [rank, 7]), rank)
    scheduler.schedule()
    scheduler.add(Sequence(6, [6, 7]))
    scheduler.add(Sequence(7, [7, 7]))
    let_in = []
    for _ in range(4):
        before = list(scheduler.running)
        scheduler.remove(before[0])
        scheduler.schedule()
        let_in += [item.sequence_id for item in scheduler.running if item not in before]
    assert let_in == [6, 7, 2, 3]


def test_nobody_waits_for_ever() -> None:
    scheduler = make(num_blocks=500, seqs=2)
    for rank in range(3):
        scheduler.add(Sequence(rank, [rank, 7]), rank)
    for sequence_id in range(3, 100):
        scheduler.add(Sequence(sequence_id, [sequence_id, 7]))
        scheduler.schedule()
        if any(sequence.sequence_id == 2 for sequence in scheduler.running):
            break
        scheduler.remove(scheduler.running[-1])
    assert sequence_id < 12


class OneToken(PrefillPacer):
    """Room for a single token at whatever depth."""

    def limit(self, num_decodes: int, num_prompts: int = 1, start: int = 0) -> float:
        return prompt_work(start, 1, self.key_cost)


def test_by_turns_where_a_step_has_room_for_one_prompt_token() -> None:
    scheduler = make(num_blocks=500)
    scheduler.pacer = OneToken(key_cost=0.01)
    scheduler.add(Sequence(0, [0, 7]))
    for _ in range(3):
        advance(scheduler, scheduler.schedule())
    scheduler.add(Sequence(1, range(100, 140)))
    advance(scheduler, scheduler.schedule())
    scheduler.add(Sequence(2, range(200, 206)))
    computed = {1: 0, 2: 0}
    for _ in range(10):
        step = scheduler.schedule()
        assert step.num_prefill_tokens == 1
        for item in step.scheduled:
            if item.sequence.sequence_id in computed:
                computed[item.sequence.sequence_id] += item.num_tokens
        advance(scheduler, step)
    assert computed == {1: 5, 2: 5}


def test_a_step_is_never_empty_however_deep_a_cached_prompt_begins() -> None:
    scheduler = make(num_blocks=500, tokens=2000)
    scheduler.add(Sequence(0, range(1600)))
    advance(scheduler, scheduler.schedule())
    scheduler.remove(scheduler.running[0])
    scheduler.pacer = PrefillPacer(2.0, 1.0, key_cost=1.0)
    scheduler.add(Sequence(1, [*range(1590), *range(50)]))
    assert plan(scheduler.schedule()) == [(1, 1)]
    scheduler.add(Sequence(2, [5, 6]))
    advance(scheduler, scheduler.schedule())
    assert scheduler.running[0].num_computed_tokens > 1588
