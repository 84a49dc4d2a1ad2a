from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from rillm.engine.block_manager import BlockManager
from rillm.engine.pacer import PrefillPacer, Room, prompt_work
from rillm.engine.scheduler import Scheduler, Step
from rillm.engine.sequence import Sequence


@dataclass(frozen=True)
class Machine:
    """What the steps of a made-up machine and model take, in seconds."""

    step: float  # reading the weights
    decode: float  # of a sequence, beside
    token: float  # of a prompt
    read: float = 0.0  # a key, once a step and sequence
    key: float = 0.0  # a key, for every token of a chunk
    tile: int = 1  # tokens are computed in groups of so many

    def decodes(self, step: Step) -> float:
        """Without the prompts of the step."""
        return self.step + sum(
            self.decode + self.read * item.sequence.num_tokens
            for item in step.scheduled
            if item.sequence.num_generated_tokens
        )

    def seconds(self, step: Step) -> float:
        """The whole step."""
        total = self.decodes(step)
        for item in step.scheduled:
            if not item.sequence.num_generated_tokens:
                start, num = item.sequence.num_computed_tokens, item.num_tokens
                total += -(-num // self.tile) * self.tile * self.token
                total += self.read * (start + num) + self.key * num * (start + 0.5 * num)
        return total


def make(pacer: PrefillPacer, num_blocks: int = 3000) -> Scheduler:
    return Scheduler(
        BlockManager(num_blocks, 16), max_num_seqs=8, max_num_batched_tokens=512, pacer=pacer
    )


def advance(scheduler: Scheduler, step: Step, seconds: float) -> None:
    scheduler.pacer.observe(step.num_decodes, step.num_prefill_tokens, step.prefill_work, seconds)
    for item in step.scheduled:
        sequence = item.sequence
        sequence.num_computed_tokens += item.num_tokens
        scheduler.blocks.commit(sequence)
        if sequence.num_uncomputed_tokens == 0:
            sequence.token_ids.append(1)


def start_chats(scheduler: Scheduler, machine: Machine, num: int = 4) -> None:
    for i in range(num):
        scheduler.add(Sequence(i, [i] * 60))
    # Until all of them answer, and for some steps more.
    while sum(chat.num_generated_tokens > 10 for chat in scheduler.running) < num:
        step = scheduler.schedule()
        advance(scheduler, step, machine.seconds(step))


def delays_of_prompt(
    scheduler: Scheduler,
    machine: Machine,
    prompt: Sequence,
    noise: random.Random | None = None,
    slowness: Callable[[float], float] = lambda now: 1.0,
) -> list[float]:
    """How much longer each step took that had a piece of `prompt`, in times of its decodes."""
    scheduler.add(prompt)
    delays = []
    now = 0.0
    while not prompt.num_generated_tokens:
        step = scheduler.schedule()
        seconds = machine.seconds(step)
        if noise is not None:
            seconds *= max(0.8, noise.gauss(1.0, 0.05))
        if step.num_prefill_tokens:
            delays.append(seconds / machine.decodes(step) - 1.0)
        seconds *= slowness(now)
        now += seconds
        advance(scheduler, step, seconds)
        assert len(delays) < 20_000
    return delays


# small: SmolLM2-135M on two cores with AVX2, where attention over 8000 keys costs more than the
# weights. large: 4 layers of GLM-4-9B there. board: all 40, where a prompt token costs a quarter of
# a step. unexpected: a machine whose attention is slower than anybody said.
SMALL = Machine(10e-3, 1e-3, 1e-3, read=1.4e-6, key=3.3e-7)
MACHINES = {
    "small": (SMALL, 6.5e-4),
    "small, tiles": (Machine(10e-3, 1e-3, 1e-3, read=1.4e-6, key=3.3e-7, tile=4), 6.5e-4),
    "large": (Machine(0.04, 1e-3, 2e-3, read=1e-7, key=8e-8, tile=8), 8e-5),
    "board": (Machine(2.0, 0.1, 0.5, read=1e-6, key=2e-5), 8e-5),
    "unexpected": (Machine(10e-3, 1e-3, 1e-3, read=1e-6, key=1e-6), 0.0),
}


@pytest.mark.parametrize("name", MACHINES)
def test_a_16k_prompt_delays_others_by_at_most_two_decode_steps(name: str) -> None:
    machine, key_cost = MACHINES[name]
    length = 8000 if name != "large" else 16_000
    scheduler = make(PrefillPacer(2.0, 1.0, key_cost))
    start_chats(scheduler, machine)
    delays = delays_of_prompt(scheduler, machine, Sequence(9, range(length)))
    assert sorted(delays)[int(0.99 * len(delays))] <= 2.0
    assert max(delays) <= 2.2  # the first of a tile, which the aim is then corrected for
    if name != "board":  # there a second is less than two steps
        # And it does use what it may.
        assert sorted(delays)[len(delays) // 2] > 1.1


def share_late(name: str, slowness: Callable[[float], float] = lambda now: 1.0) -> float:
    """Of the steps of three prompts on a machine whose times vary: those that exceed two steps."""
    machine, key_cost = MACHINES[name]
    late = num = 0
    for seed in range(3):
        noise = random.Random(seed)
        scheduler = make(PrefillPacer(2.0, 1.0, key_cost))
        start_chats(scheduler, machine)
        delays = delays_of_prompt(scheduler, machine, Sequence(9, range(8000)), noise, slowness)
        late += sum(delay > 2.0 for delay in delays)
        num += len(delays)
    return late / num


@pytest.mark.parametrize("name", ["small", "large"])
def test_times_that_vary_exceed_two_steps_less_than_once_in_a_hundred(name: str) -> None:
    assert share_late(name) <= 0.01


@pytest.mark.parametrize("name", ["small", "large"])
def test_a_machine_that_changes_its_speed(name: str) -> None:
    # Twice as slow every other three seconds.
    assert share_late(name, lambda now: 1.0 + int(now / 3.0) % 2) <= 0.02


def test_a_prompt_that_goes_on_from_a_deep_prefix() -> None:
    scheduler = make(PrefillPacer(2.0, 1.0, MACHINES["small"][1]))
    deep = Sequence(9, range(7000))
    scheduler.add(deep)
    while not deep.num_generated_tokens:
        step = scheduler.schedule()
        advance(scheduler, step, SMALL.seconds(step))
    scheduler.remove(deep)
    start_chats(scheduler, SMALL)
    for length in (500, 7500, 600, 7600):
        # Short and deep ones in turn: what was learned of one serves the other.
        start = 6900 if length > 7000 else 0
        tokens = [*range(start), *range(50_000, 50_000 + length - start)]
        prompt = Sequence(10 + start + length, tokens)
        delays = delays_of_prompt(scheduler, SMALL, prompt)
        assert prompt.num_cached_tokens >= start
        assert max(delays) <= 2.0
        scheduler.remove(prompt)


def test_where_one_token_takes_too_long_prompts_still_come_to_an_end() -> None:
    machine = Machine(0.01, 0.0, 0.1)
    scheduler = make(PrefillPacer(2.0, 1.0))
    start_chats(scheduler, machine)
    delays = delays_of_prompt(scheduler, machine, Sequence(9, range(1000, 1300)))
    assert len(delays) == 299  # one token a step; the last one is like a decode
    assert max(delays) < 11.0


def test_decodes_are_timed_again_from_time_to_time() -> None:
    pacer = PrefillPacer(2.0)
    assert pacer.limit(0) is None
    assert pacer.limit(4) == 0.0
    pacer.observe(4, 0, 0.0, 0.1)
    zeros = 0
    for _ in range(200):
        limit = pacer.limit(4)
        if limit == 0.0:
            zeros += 1
            pacer.observe(4, 0, 0.0, 0.1)
        else:
            assert limit is not None
            pacer.observe(4, int(limit), limit, 0.1 + 0.005 * limit)
    assert zeros == 11
    limit = pacer.limit(4)
    assert limit is not None
    assert 24 < limit <= 36  # of the 40 that take 0.2 s
    assert pacer.limit(16) == 0.0  # so many were never measured
    # One decode is held up longer for the sake of many prompts.
    assert [pacer.limit(4, num) for num in (1, 4, 8)] == pytest.approx(
        [limit, limit, 2 * limit], rel=0.01
    )
    assert PrefillPacer(0.0).limit(4) is None


def test_one_slow_or_fast_step_changes_little() -> None:
    def limit_after(*seconds: float) -> float:
        pacer = PrefillPacer(2.0)
        for each in seconds:
            pacer.observe(4, 0, 0.0, each)
        for _ in range(8):
            limit = pacer.limit(4)
            assert limit
            pacer.observe(4, int(limit), limit, 0.1 + 0.005 * limit)
        return limit

    usual = limit_after(0.1, 0.1, 0.1)
    assert limit_after(0.1, 0.1, 0.1, 0.3) == usual
    assert limit_after(0.1, 0.1, 0.1, 0.05) == usual


def test_a_stall_is_soon_forgotten() -> None:
    pacer = PrefillPacer(2.0)
    limits = []
    for i in range(80):
        limit = pacer.limit(4)
        if not limit:
            pacer.observe(4, 0, 0.0, 0.1)
            continue
        limits.append(limit)
        stall = 5.0 if i == 40 else 0.0
        pacer.observe(4, int(limit), limit, 0.1 + 0.05 + 0.005 * limit + stall)
    before, after = max(limits[30:38]), limits[-8:]
    assert min(limits[38:]) < 0.7 * before
    assert min(after) > 0.8 * before


def test_a_first_guess_that_is_far_off_shows_at_once() -> None:
    # The clock of the first mixed step stood still: it seems to have cost nothing.
    pacer = PrefillPacer(2.0)
    pacer.observe(4, 0, 0.0, 0.1)
    limits = []
    for extra in (0.0, 0.05, 0.1):
        limit = pacer.limit(4)
        assert limit
        limits.append(limit)
        pacer.observe(4, int(limit), limit, 0.1 + extra)
    assert limits[0] == 1.0
    assert limits[1] <= 3.0  # each is at most twice the one before, and a token
    assert limits[2] <= 7.0


def test_steps_of_prompts_alone_stay_short_on_a_slow_machine() -> None:
    pacer = PrefillPacer(2.0, max_seconds=1.0)
    sizes = []
    for _ in range(6):
        num = pacer.limit(0)
        assert num is not None
        sizes.append(num)
        pacer.observe(0, int(num), num, 0.2 + 0.01 * num)
    assert sizes[0] == 64
    assert all(0.2 + 0.01 * num <= 1.2 for num in sizes[1:])
    assert sizes[-1] >= 70
    for _ in range(9):
        pacer.observe(1, 0, 0.0, 3.0)
    for _ in range(9):
        limit = pacer.limit(1, 5)
        assert limit
        pacer.observe(1, int(limit), limit, 3.0 + 0.1 * limit)
    assert 8.5 < limit < 10
    for _ in range(9):
        pacer.observe(0, 64, 64.0, 64.0)
    assert pacer.limit(0) == 32  # however slow, it goes on
    pacer.observe(0, 3, 3.0, 100.0)  # a short prompt says nothing
    assert pacer.limit(0) == 32


@pytest.mark.parametrize("key_cost", [0.0, 1e-9, 1e-3, 0.1])
def test_room_is_what_the_work_says(key_cost: float) -> None:
    for start in (0, 1, 100, 16_000):
        for num in (1, 2, 7, 300):
            room = Room(512, prompt_work(start, num, key_cost), key_cost)
            assert room.fit(start) == num
            room.work *= 0.999
            assert room.fit(start) == num - 1
            room.take(start, num - 1)
            assert not room.fit(start + num - 1)
    assert Room(5, float("inf"), key_cost).fit(1000) == 5
