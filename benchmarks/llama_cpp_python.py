"""One run of llama-cpp-python for compare.py: FILE THREADS PROMPT STEPS -> JSON."""

from __future__ import annotations

import json
import random
import sys
import time

from llama_cpp import Llama


def main() -> None:
    """Prefill of PROMPT random tokens, then STEPS greedy tokens."""
    path, threads, prompt, steps = sys.argv[1], *map(int, sys.argv[2:5])
    model = Llama(
        path, n_ctx=prompt + steps + 8, n_threads=threads, n_threads_batch=threads, n_batch=512,
        flash_attn=True, verbose=False,
    )  # fmt: skip
    source = random.Random(0)
    tokens = [source.randrange(256) for _ in range(prompt)]
    model.eval(tokens[:8])
    model.reset()
    start = time.perf_counter()
    model.eval(tokens)
    middle = time.perf_counter()
    for _ in range(steps):
        model.eval([source.randrange(256)])
    end = time.perf_counter()
    rates = [[f"pp{prompt}", prompt / (middle - start)], [f"tg{steps}", steps / (end - middle)]]
    print(json.dumps(rates))


if __name__ == "__main__":
    main()
