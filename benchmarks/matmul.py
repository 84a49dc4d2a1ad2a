"""Kernel benchmark: one linear op, every weight format, decode (1 token) to prefill (512).

Prints for each format the weight bytes read per second (the limit is the machine's read bandwidth,
measured before and after each figure, as it drifts on a shared machine) and multiply-accumulates
per second, beside what the vector units reach on registers; with --json one object a line.

    python benchmarks/matmul.py --tokens 1,8,512 --formats Q4_K,Q6_K -t 2
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from array import array

from rillm.bench import cpu_name
from rillm.core import (
    Batch,
    BufferKind,
    CompiledProgram,
    Core,
    CoreBuffer,
    CoreOp,
    Format,
    OpKind,
    Rows,
    ThreadTeam,
    Weight,
    WeightKind,
    allowed_cpus,
    load_core,
)

# GLM-4-9B's widest matrix that every format fits, and as many copies of it, run in turn, as no
# last-level cache holds: a model's weights come from memory at every step.
ROWS, COLS = 27392, 4096
COPIES_BYTES = 768 << 20


def make_weight(core: Core, team: ThreadTeam, fmt: Format) -> Weight:
    """A [ROWS, COLS] matrix: 64 random rows again and again."""
    source = random.Random(0)
    rows = array("f", (source.gauss(0.0, 0.02) for _ in range(64 * COLS)))
    row_bytes = COLS // fmt.block_size * fmt.block_bytes
    block = bytearray(64 * row_bytes)
    core.quantize(fmt.ggml_type, rows, block, COLS)
    data = block * (ROWS // 64)
    return Weight(core, WeightKind.MATRIX, fmt.ggml_type, (ROWS, COLS), data, team)


def make_program(core: Core, team: ThreadTeam, weight: Weight, tokens: int) -> CompiledProgram:
    """embed -> quantise -> linear for `tokens` rows."""
    source = random.Random(1)
    table = array("f", (source.gauss(0.0, 1.0) for _ in range(COLS * 16)))
    embedding = Weight(core, WeightKind.TABLE, 0, (16, COLS), table)
    embed = CoreOp(OpKind.EMBED)
    quantize = CoreOp(OpKind.QUANTIZE)
    linear = CoreOp(OpKind.LINEAR)
    ops = [embed, quantize, linear] if weight.is_quantized else [embed, linear]
    for op, inputs, outputs, weights in (
        (embed, (-1, -1, -1), (0, -1), (0,)),
        (quantize, (0, -1, -1), (-1, 1), ()),
        (linear, (1, -1, -1) if weight.is_quantized else (-1, -1, 0), (2, -1), (1,)),
    ):
        op.inputs[:], op.outputs[:] = inputs, outputs
        op.weight[:] = [*weights, *[-1] * (6 - len(weights))]
    buffers = [
        CoreBuffer(BufferKind.F32, Rows.TOKENS, COLS, 0),
        CoreBuffer(BufferKind.Q8, Rows.TOKENS, COLS, 1),
        CoreBuffer(BufferKind.F32, Rows.TOKENS, ROWS, 2),
    ]
    return CompiledProgram(
        team, None, ops, buffers, [embedding, weight], max_tokens=tokens, max_logits=1, output=2
    )


def run_times(programs: list[CompiledProgram], batch: Batch, repeats: int) -> list[float]:
    """Seconds of at least `repeats` runs over the programs in turn, after a run of each."""
    for program in programs:
        program.run(batch)
    times = []
    for i in range(max(repeats, len(programs))):
        start = time.perf_counter()
        programs[i % len(programs)].run(batch)
        times.append(time.perf_counter() - start)
    return times


def batch_of(tokens: int) -> Batch:
    """Tokens that need no cache."""
    return Batch(
        token_ids=array("i", (i % 16 for i in range(tokens))),
        positions=array("i", range(tokens)),
        slot_mapping=array("i", range(tokens)),
        cu_seqlens_q=array("i", [0, tokens]),
        context_lens=array("i", [tokens]),
    )


def main() -> None:
    """Measures what the arguments ask for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", default="1,8,512")
    parser.add_argument("--formats", default="")
    parser.add_argument("-t", "--threads", type=int, default=len(allowed_cpus()))
    parser.add_argument("-r", "--repeats", type=int, default=9)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    wanted = [name for name in arguments.formats.upper().split(",") if name]
    core = load_core()
    with core.team(arguments.threads) as team:
        data = array("B", bytes(256 << 20))
        bandwidth = team.read_bandwidth(data)
        int8_rate, float_rate = team.multiply_peak()
        print(
            f"# {cpu_name()}, {core.variant}, {team.num_threads} threads, "
            f"{bandwidth / 1e9:.1f} GB/s, {int8_rate / 1e9:.0f} int8 and {float_rate / 1e9:.0f} "
            f"float32 GMAC/s in registers, W [{ROWS}, {COLS}]"
        )
        for fmt in core.formats:
            if wanted and fmt.name not in wanted:
                continue
            weight = make_weight(core, team, fmt)
            copies = range(COPIES_BYTES // weight.num_bytes)
            weights = [weight, *(make_weight(core, team, fmt) for _ in copies)]
            for tokens in map(int, arguments.tokens.split(",")):
                programs = [make_program(core, team, each, tokens) for each in weights]
                before = team.read_bandwidth(data)
                seconds = statistics.median(
                    run_times(programs, batch_of(tokens), arguments.repeats)
                )
                bandwidth = (before + team.read_bandwidth(data)) / 2
                for program in programs:
                    program.close()
                rate = weight.num_bytes / seconds
                peak = int8_rate if weight.is_quantized else float_rate
                row = {
                    "format": fmt.name,
                    "tokens": tokens,
                    "ms": 1e3 * seconds,
                    "bytes_per_second": rate,
                    "of_bandwidth": rate / bandwidth,
                    "macs_per_second": ROWS * COLS * tokens / seconds,
                    "of_peak": ROWS * COLS * tokens / seconds / peak,
                    "variant": core.variant,
                    "threads": team.num_threads,
                    "cpu": cpu_name(),
                }
                if arguments.json:
                    print(json.dumps(row), flush=True)
                else:
                    print(
                        f"{fmt.name:7} {tokens:4} tokens {row['ms']:9.3f} ms "
                        f"{rate / 1e9:7.2f} GB/s ({row['of_bandwidth']:4.0%} of bandwidth) "
                        f"{row['macs_per_second'] / 1e9:8.1f} GMAC/s "
                        f"({row['of_peak']:4.0%} of peak)",
                        flush=True,
                    )
            for each in weights:
                each.close()


if __name__ == "__main__":
    main()
