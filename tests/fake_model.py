"""A model whose every token depends on the whole KV cache content it is shown.

It keeps a memory of its own, one cell a slot, and derives the logits of a row from the cells that
it finds by walking the row's block table: a wrong slot, table, position, length or a block shared
or freed too early gives other tokens than those of `expected_tokens`, which knows no cache.
"""

from __future__ import annotations

import ctypes
import math
import random
from array import array
from collections.abc import Sequence

from rillm.core import Batch, SamplingRequest
from rillm.engine import Engine, EngineConfig, Finish, Output, Request
from rillm.errors import RillmError
from rillm.gguf import Value
from rillm.sampling import SamplingParams
from rillm.tokenizer import Tokenizer

GREEDY = SamplingParams(temperature=0.0)
SPECIALS = ["<|endoftext|>", "[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>"]
SPECIALS += ["<|observation|>"]
FIRST_SPECIAL = 256
VOCAB_SIZE = FIRST_SPECIAL + len(SPECIALS)
_MASK = (1 << 61) - 1


def vocabulary_keys(more: Sequence[str] = ()) -> dict[str, Value]:
    """The keys of a vocabulary of one token a byte, so that id < 256 is that byte, and GLM's.

    more: special tokens that follow.
    """
    specials = [*SPECIALS, *more]
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    spelling = {byte: chr(byte) for byte in printable}
    spelling |= {byte: chr(256 + i) for i, byte in enumerate(others)}
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "chatglm-bpe",
        "tokenizer.ggml.tokens": [spelling[byte] for byte in range(256)] + specials,
        "tokenizer.ggml.token_type": [1] * 256 + [3] * len(specials),
        "tokenizer.ggml.eos_token_id": FIRST_SPECIAL,
    }


def byte_tokenizer() -> Tokenizer:
    """The tokenizer of that vocabulary."""
    return Tokenizer.from_gguf(vocabulary_keys())


def _cell(token: int, position: int) -> int:
    return (token * 0x9E3779B97F4A7C15 + position * 0xC2B2AE3D27D4EB4F + 1) & _MASK


def _digest(cells: Sequence[int]) -> int:
    digest = 7
    for cell in cells:
        digest = (digest * 0x100000001B3 ^ cell) & _MASK
    return digest


def _logits(digest: int, eos_bonus: float) -> array[float]:
    generator = random.Random(digest)
    logits = array("f", (generator.uniform(-3, 3) for _ in range(VOCAB_SIZE)))
    for token in range(FIRST_SPECIAL, VOCAB_SIZE):
        logits[token] += eos_bonus
    return logits


class FakeCache:
    """Implements rillm.engine.model_runner.BlockStore."""

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.block_size = block_size
        self.cells = array("q", (random.getrandbits(60) for _ in range(num_blocks * block_size)))

    def read(self, block: int) -> bytearray:
        start = block * self.block_size
        return bytearray(self.cells[start : start + self.block_size].tobytes())

    def write(self, block: int, data: bytearray) -> None:
        start = block * self.block_size
        self.cells[start : start + self.block_size] = array("q", bytes(data))


class FakeModel:
    """Implements rillm.engine.model_runner.Model."""

    def __init__(self, num_blocks: int, block_size: int, *, eos_bonus: float = -100.0) -> None:
        self.block_size = block_size
        self.eos_bonus = eos_bonus
        self.kv_cache = FakeCache(num_blocks, block_size)
        self.batches: list[Batch] = []
        self.fail_next: RillmError | None = None
        self._rows: list[array[float]] = []

    def run(self, batch: Batch) -> None:
        if self.fail_next is not None:
            error, self.fail_next = self.fail_next, None
            raise error
        self.batches.append(batch)
        num_tokens = len(batch.token_ids)
        assert len(batch.positions) == len(batch.slot_mapping) == num_tokens > 0
        assert len(set(batch.slot_mapping)) == num_tokens, "two tokens in one slot"
        assert batch.cu_seqlens_q[0] == 0
        assert batch.cu_seqlens_q[-1] == num_tokens
        assert len(batch.block_tables) == len(batch.context_lens) * batch.max_blocks
        for token, position, slot in zip(
            batch.token_ids, batch.positions, batch.slot_mapping, strict=True
        ):
            self.kv_cache.cells[slot] = _cell(token, position)
        visible = [self._visible(batch, row) for row in batch.logits_rows]
        self._rows = [_logits(digest, self.eos_bonus) for digest in visible]

    def _visible(self, batch: Batch, row: int) -> int:
        owner = next(i for i in range(len(batch.context_lens)) if row < batch.cu_seqlens_q[i + 1])
        table = batch.block_tables[owner * batch.max_blocks : (owner + 1) * batch.max_blocks]
        last = batch.positions[row]
        assert batch.positions[batch.cu_seqlens_q[owner + 1] - 1] == batch.context_lens[owner] - 1
        size = self.block_size
        slots = [table[i // size] * size + i % size for i in range(last + 1)]
        return _digest([self.kv_cache.cells[slot] for slot in slots])

    def logits_address(self, row: int) -> int:
        return self._rows[row].buffer_info()[0]


def draw(requests: list[SamplingRequest]) -> None:
    """Draws in Python: bias and mask, then greedy or by temperature from (seed, counter)."""
    for request in requests:
        struct = request.struct
        size = struct.vocab_size
        logits = list((ctypes.c_float * size).from_address(struct.logits))
        if struct.num_bias:
            biases = (type(struct.chosen) * struct.num_bias).from_address(struct.bias)
            for bias in biases:
                logits[bias.id] += bias.logit
        if struct.mask:
            words = (ctypes.c_uint32 * ((size + 31) // 32)).from_address(struct.mask)
            for token in range(size):
                if not words[token // 32] >> token % 32 & 1:
                    logits[token] = -math.inf
        if max(logits) == -math.inf:
            raise RillmError("every token is excluded")
        if struct.temperature > 0:
            generator = random.Random(struct.seed * 1_000_003 + struct.counter)
            logits = [
                value / struct.temperature - math.log(-math.log(generator.random() or 0.5))
                for value in logits
            ]
        struct.chosen.id = max(range(size), key=logits.__getitem__)
        struct.chosen.prob = 0.5


def expected_tokens(
    prompt: Sequence[int], num_tokens: int, *, eos_bonus: float = -100.0
) -> list[int]:
    """The greedy continuation, from the definition alone."""
    tokens = list(prompt)
    for _ in range(num_tokens):
        digest = _digest([_cell(token, i) for i, token in enumerate(tokens)])
        logits = _logits(digest, eos_bonus)
        tokens.append(max(range(VOCAB_SIZE), key=logits.__getitem__))
    return tokens[len(prompt) :]


def fake_engine(
    *,
    num_blocks: int = 64,
    context_length: int = 256,
    eos_bonus: float = -100.0,
    **sizes: int | float | bool,
) -> tuple[Engine, FakeModel]:
    # No limits from measured times: tests of the order of things need it to be the same always.
    settings: dict[str, object] = {"max_prefill_delay": 0.0, "max_step_seconds": 0.0}
    settings |= {"block_size": 4} | sizes
    config = EngineConfig(**settings)  # type: ignore[arg-type]
    model = FakeModel(num_blocks, config.block_size, eos_bonus=eos_bonus)
    engine = Engine(
        model,
        byte_tokenizer(),
        draw,
        config,
        vocab_size=VOCAB_SIZE,
        context_length=context_length,
        num_blocks=num_blocks,
    )
    return engine, model


class Script:
    """A mask provider that allows one given token after another."""

    def __init__(self, tokens: list[int]) -> None:
        self.tokens = tokens
        self.accepted: list[int] = []
        self.mask = array("I", bytes(4 * ((VOCAB_SIZE + 31) // 32)))

    def mask_address(self) -> int:
        token = self.tokens[len(self.accepted)]
        self.mask = array("I", bytes(len(self.mask) * 4))
        self.mask[token // 32] |= 1 << token % 32
        return self.mask.buffer_info()[0]

    def accept(self, token: int) -> None:
        self.accepted.append(token)


def run(engine: Engine) -> dict[int, list[Output]]:
    """Steps until nothing is left; the outputs by sequence."""
    outputs: dict[int, list[Output]] = {}
    for _ in range(100_000):
        if not engine.has_work:
            break
        for output in engine.step():
            outputs.setdefault(output.sequence_id, []).append(output)
    assert not engine.has_work
    assert engine.blocks.num_free_blocks == engine.blocks.num_blocks
    return outputs


def tokens_of(outputs: list[Output]) -> list[int]:
    return [output.token for output in outputs if output.token is not None]


def text_of(outputs: list[Output]) -> str:
    return "".join(output.text for output in outputs)


def finish_of(outputs: list[Output]) -> Finish:
    *before, last = outputs
    assert not any(output.finish for output in before)
    assert last.finish is not None
    return last.finish


def generate(engine: Engine, prompt: list[int], n_predict: int = 20, **options) -> list[Output]:
    options = {"sampling": GREEDY} | options
    sequence_id = engine.add_request(Request(prompt, n_predict=n_predict, **options))
    return run(engine)[sequence_id]
