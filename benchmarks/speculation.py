"""Speculation by prompt look-up on prompts that ask for an edited text, and on one that does not.

    python benchmarks/speculation.py -t 2 --draft-max 8 SmolLM2-135M-Instruct.Q4_1.gguf

Both engines run in this process in turn and must write the same tokens. Every figure is appended
to benchmarks/results/speculation.jsonl.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

from record import git_commit, record

from rillm import LLM, SamplingParams
from rillm.bench import cpu_name

_TEXT = """\
def mean(values):
    total = 0
    for value in values:
        total = total + value
    return total / len(values)

def variance(values):
    center = mean(values)
    total = 0
    for value in values:
        total = total + (value - center) * (value - center)
    return total / len(values)

def largest(values):
    best = values[0]
    for value in values:
        if value > best:
            best = value
    return best
"""
_EDIT = (
    "Repeat the following Python code exactly, with the name `values` changed to `numbers`:\n\n"
    f"```python\n{_TEXT}```"
)
_LETTER = """\
Correct the spelling mistakes in this text and write out the whole text again:

Dear Mrs. Baker,

Thank you for your letter of 12 March. We have checked your order number 48213, and we are sory to \
say that the blue lamp is not in stock at the momment. It will be sent to you as soon as it \
arrives, which should be within two weeks. The white lamp and the two chairs were sent yesterday. \
Please let us know if you would rather have your money back.

Yours sincerely,
Thomas Miller
"""
PROMPTS = {
    "letter": _LETTER,
    "edit": _EDIT,
    "copy": _EDIT.replace(", with the name `values` changed to `numbers`", ""),
    "free": "Write a short story about a lighthouse keeper and a whale.",
}
SAMPLED = SamplingParams(temperature=0.7, seed=1)


def main() -> None:
    """Prints a line for every prompt and way of sampling."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("-t", "--threads", type=int, default=2)
    parser.add_argument("--draft-max", type=int, default=8)
    parser.add_argument("-n", "--tokens", type=int, default=256)
    parser.add_argument("-r", "--rounds", type=int, default=3)
    args = parser.parse_args()
    print(f"{cpu_name()}, {args.threads} threads, commit {git_commit()}, {args.model.name}")
    sizes = {"num_threads": args.threads, "max_num_seqs": 1, "context_length": 2048}
    with (
        LLM(args.model, **sizes) as plain,
        LLM(args.model, **sizes, draft_tokens=args.draft_max) as guessing,
    ):
        for name, prompt in PROMPTS.items():
            for params in (SamplingParams(temperature=0.0), SAMPLED):
                rates: list[list[float]] = [[], []]
                tokens = []
                for _ in range(args.rounds):
                    for llm, row in zip((plain, guessing), rates, strict=True):
                        message = [{"role": "user", "content": prompt}]
                        answer = llm.chat(message, params, n_predict=args.tokens)
                        row.append(answer.timings.predicted_per_second)
                        tokens.append(answer.token_ids)
                if any(each != tokens[0] for each in tokens):
                    raise SystemExit(f"{name}: speculation changed the answer")
                before, after = map(statistics.median, rates)
                timings = answer.timings
                share = timings.draft_n_accepted / max(1, timings.draft_n)
                print(
                    f"{name} t={params.temperature}: {len(tokens[0])} tokens, {before:.1f} -> "
                    f"{after:.1f} tokens/s = {after / before:.2f}x, {share:.0%} of "
                    f"{timings.draft_n} guesses came true",
                    flush=True,
                )
                record(
                    "speculation", model=args.model.name, threads=args.threads, prompt=name,
                    temperature=params.temperature, draft_max=args.draft_max,
                    tokens=len(tokens[0]), plain=before, guessing=after,
                    guesses=timings.draft_n, came_true=timings.draft_n_accepted,
                )  # fmt: skip


if __name__ == "__main__":
    main()
