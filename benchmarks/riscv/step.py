"""Runs inside the emulator: loads a model and computes a number of equal steps.

    python3 step.py SRC LIBRARY FILE.gguf TOKENS STEPS

SRC is the checkout's src folder, LIBRARY a variant of the core. A step is a prompt of TOKENS
tokens, or a decode step after 8 tokens of context where TOKENS is 1; as in llama-bench only the
last token's logits are computed. One decode step that is not counted goes before. Needs nothing
but Python.
"""

from __future__ import annotations

import contextlib
import os
import sys
from array import array
from pathlib import Path


def main() -> None:
    """Computes the steps."""
    source, library, path, tokens, steps = sys.argv[1:]
    sys.path.insert(0, source)
    run(Path(library), Path(path), int(tokens), int(steps))


def mark() -> None:
    """Tells count_plugin.c to write down its count."""
    with contextlib.suppress(OSError):  # there is no such process
        os.getpriority(os.PRIO_PROCESS, 0x72696C6C)


def run(library: Path, path: Path, tokens: int, steps: int) -> None:
    """`steps` batches of `tokens` tokens of one sequence, at the same positions each time."""
    from rillm.core import Batch
    from rillm.core.library import Core
    from rillm.gguf import GGUFReader
    from rillm.models import load_model

    core = Core(library)
    first = 8 if tokens == 1 else 0
    num_blocks = (first + tokens + 15) // 16
    batch = Batch(
        token_ids=array("i", (97 + i % 26 for i in range(tokens))),
        positions=array("i", range(first, first + tokens)),
        slot_mapping=array("i", range(first, first + tokens)),
        cu_seqlens_q=array("i", [0, tokens]),
        context_lens=array("i", [first + tokens]),
        block_tables=array("i", range(num_blocks)),
        logits_rows=array("i", [tokens - 1]),
        max_blocks=num_blocks,
    )
    with core.team(1) as team, GGUFReader(path) as reader:
        model = load_model(
            reader, core, team, max_tokens=tokens, max_logits=1, num_blocks=num_blocks
        )
        if tokens == 1:
            model.run(batch)
        mark()
        for _ in range(steps):
            model.run(batch)
        mark()
        model.close()


if __name__ == "__main__":
    main()
