"""Runs inside the emulator: loads a model and computes a number of equal steps.

    python3 step.py SRC BUILD FILE.gguf TOKENS STEPS

SRC is the checkout's src folder, BUILD the cross build (variants.jsonl and libraries). A step is a
prompt of TOKENS tokens, or a decode step after 8 tokens of context where TOKENS is 1; as in
llama-bench only the last token's logits are computed. Needs nothing but Python.
"""

from __future__ import annotations

import sys
import tempfile
from array import array
from pathlib import Path


def main() -> None:
    """Computes the steps; prints the variant that did."""
    source, build, path, tokens, steps = sys.argv[1:]
    sys.path.insert(0, source)
    import rillm.core

    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "lib").symlink_to(Path(build).resolve())
        rillm.core.__path__.insert(0, folder)
        run(Path(path), int(tokens), int(steps))


def run(path: Path, tokens: int, steps: int) -> None:
    """`steps` batches of `tokens` tokens of one sequence, at the same positions each time."""
    from rillm.core import Batch, load_core
    from rillm.gguf import GGUFReader
    from rillm.models import load_model

    core = load_core()
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
        for _ in range(steps):
            model.run(batch)
        model.close()
    print(core.variant)


if __name__ == "__main__":
    main()
