"""Kernel benchmark: the attention op alone, in GLM-4-9B's shape, beside its own limits.

    python benchmarks/attention.py --decode 4096,32768 --prefill 0,16384 -ctk f16,q8_0 -t 2

decode: one token with so many tokens before it; prefill: 512 tokens with so many before them. The
limit is the larger of two times: reading the keys and values once for every KV head, and the
multiplications in float32, both at rates measured in the same run.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
from array import array

from matmul import run_times

from rillm.bench import cpu_name
from rillm.core import (
    Batch,
    BufferKind,
    CompiledProgram,
    Core,
    CoreBuffer,
    CoreCacheConfig,
    CoreOp,
    KVCache,
    OpKind,
    Rows,
    ThreadTeam,
    Weight,
    WeightKind,
    allowed_cpus,
    load_core,
)
from rillm.gguf import GGMLType

HEADS, KV_HEADS, DIM, BLOCK = 32, 2, 128, 16
WIDTH = (HEADS + 2 * KV_HEADS) * DIM
COPIES = 4  # layers that are run in turn, so that a short context does not stay in a cache
CHUNK = 512


def make_program(
    core: Core, team: ThreadTeam, cache: KVCache, layer: int, max_tokens: int
) -> CompiledProgram:
    """embed (random q, k and v) -> attention on one layer of the cache."""
    source = random.Random(1)
    table = array("f", (source.gauss(0.0, 1.0) for _ in range(16 * WIDTH)))
    weight = Weight(core, WeightKind.TABLE, GGMLType.F32, (16, WIDTH), table)
    embed, attention = CoreOp(OpKind.EMBED), CoreOp(OpKind.ATTENTION)
    for op, inputs, outputs, weights in (
        (embed, (-1, -1, -1), (0, -1), (0,)),
        (attention, (0, -1, -1), (1, -1), ()),
    ):
        op.inputs[:], op.outputs[:] = inputs, outputs
        op.weight[:] = [*weights, *[-1] * (6 - len(weights))]
    attention.i[:2] = layer, HEADS
    attention.f[0] = DIM**-0.5
    buffers = [
        CoreBuffer(BufferKind.F32, Rows.TOKENS, WIDTH, 0),
        CoreBuffer(BufferKind.F32, Rows.TOKENS, HEADS * DIM, 1),
    ]
    return CompiledProgram(
        team, cache, [embed, attention], buffers, [weight], max_tokens=max_tokens, max_logits=1,
        output=1,
    )  # fmt: skip


def make_cache(core: Core, cache_type: GGMLType, num_tokens: int) -> KVCache:
    """Room for num_tokens, full of small random numbers."""
    blocks = -(-num_tokens // BLOCK)
    cache = KVCache(core, CoreCacheConfig(COPIES, KV_HEADS, DIM, BLOCK, blocks, cache_type))
    source = random.Random(2)
    values = array("f", (source.gauss(0.0, 1.0) for _ in range(cache.block_bytes)))
    row = bytearray(cache.block_bytes)
    count = cache.block_bytes // cache_type.block_bytes * cache_type.block_size
    core.quantize(cache_type, values[:count], row, count)
    for block in range(blocks):
        cache.write(block, row)
    return cache


def main() -> None:
    """Measures what the arguments ask for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--decode", default="4096,32768")
    parser.add_argument("--prefill", default="0,16384")
    parser.add_argument("-ctk", "--cache-type", default="f16,q8_0")
    parser.add_argument("-t", "--threads", type=int, default=len(allowed_cpus()))
    parser.add_argument("-r", "--repeats", type=int, default=9)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    tests = [(1, int(depth)) for depth in filter(None, arguments.decode.split(","))]
    tests += [(CHUNK, int(depth)) for depth in filter(None, arguments.prefill.split(","))]
    core = load_core()
    with core.team(arguments.threads) as team:
        data = array("B", bytes(256 << 20))
        bandwidth = team.read_bandwidth(data)
        float_rate = team.multiply_peak()[1]
        print(
            f"# {cpu_name()}, {core.variant}, {team.num_threads} threads, {bandwidth / 1e9:.1f} "
            f"GB/s, {float_rate / 1e9:.0f} float32 GMAC/s in registers"
        )
        for name in arguments.cache_type.upper().split(","):
            cache_type = GGMLType[name]
            cache = make_cache(core, cache_type, max(sum(test) for test in tests))
            for tokens, depth in tests:
                programs = [make_program(core, team, cache, i, tokens) for i in range(COPIES)]
                total = depth + tokens
                batch = Batch.alone(
                    [i % 16 for i in range(total)], depth, total, block_size=BLOCK,
                    wants_logits=False,
                )  # fmt: skip
                times = run_times(programs, batch, arguments.repeats)
                seconds = statistics.median(times)
                for program in programs:
                    program.close()
                keys = tokens * depth + tokens * (tokens + 1) / 2
                read = 2 * total * KV_HEADS * cache_type.row_bytes(DIM) / bandwidth
                multiply = 2 * keys * HEADS * DIM / float_rate
                row = {
                    "cache_type": name,
                    "tokens": tokens,
                    "depth": depth,
                    "ms": 1e3 * seconds,
                    "fastest_ms": 1e3 * min(times),
                    "read_ms": 1e3 * read,
                    "multiply_ms": 1e3 * multiply,
                    "of_limit": seconds / max(read, multiply),
                    "variant": core.variant,
                    "threads": team.num_threads,
                    "cpu": cpu_name(),
                }
                if arguments.json:
                    print(json.dumps(row), flush=True)
                else:
                    print(
                        f"{name:5} {tokens:4} tokens after {depth:6} {row['ms']:9.3f} ms (fastest "
                        f"{row['fastest_ms']:.3f}); limits: reading {row['read_ms']:.3f}, "
                        f"multiplying {row['multiply_ms']:.3f} ms: {row['of_limit']:.2f} times",
                        flush=True,
                    )
            cache.close()


if __name__ == "__main__":
    main()
