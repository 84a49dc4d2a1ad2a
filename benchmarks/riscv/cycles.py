"""Cycles of the matmul loops on modelled cores, by llvm-mca, beside what the multiplier allows.

    python benchmarks/riscv/cycles.py --build DIR [--llvm 21] [--prefix "chroot ROOT"]

For each quantised kernel of a variant: its innermost multiplying loop for 16 tokens (prefill) and
for one (decode) is cut out of the built library's disassembly and given to llvm-mca. The limit is
what llvm-mca says of the same multiplications alone, with nothing to wait for; `share` is limit /
cycles. llvm-mca knows pipes and latencies, not caches: it says whether a loop can feed the
multiplier, and nothing about memory. Decode waits for memory on real boards.

LLVM has models of three cores with vectors; each is asked about the variant of its VLEN.
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

CORES = {"spacemit-x60": 256, "sifive-x280": 512, "sifive-p470": 128}
# Kernels by the template arguments of their symbols: codes and scales of csrc/formats/format.h.
CODES = ("None", "U4", "U4P1", "U4P2", "U2", "U2P1", "I8", "Lut4")
SCALES = ("None", "G32", "G32Min", "K32Min", "K32", "K16I8", "K16S6", "K16Min4")
FORMATS = {
    ("U4", "G32"): "Q4_0", ("U4", "G32Min"): "Q4_1", ("U4P1", "G32"): "Q5_0",
    ("U4P1", "G32Min"): "Q5_1", ("I8", "G32"): "Q8_0", ("U2", "K16Min4"): "Q2_K",
    ("U2P1", "K16S6"): "Q3_K", ("U4", "K32Min"): "Q4_K", ("U4P1", "K32Min"): "Q5_K",
    ("U4P2", "K16I8"): "Q6_K", ("Lut4", "G32"): "IQ4_NL", ("Lut4", "K32"): "IQ4_XS",
}  # fmt: skip
SYMBOL = re.compile(
    r"QuantizedKernelILNS_5CodesE(\d)ELNS_6ScalesE(\d)E\w*?(run_alone|run_batch|runILi(?:1|16)E)"
)
MULTIPLIES = ("vwmacc.vx", "vwmul.vx", "vwmaccsu.vx")


@dataclass
class Function:
    """One symbol's instructions with their addresses."""

    name: str
    code: list[tuple[int, str]] = field(default_factory=list)


def functions(text: str) -> list[Function]:
    """What llvm-objdump printed, cut at its symbols."""
    found: list[Function] = []
    for line in text.splitlines():
        if match := re.match(r"[0-9a-f]+ <(.+)>:$", line):
            found.append(Function(match[1]))
        elif found and (match := re.match(r"\s*([0-9a-f]+):\s+(\S.*)$", line)):
            found[-1].code.append((int(match[1], 16), match[2].split("<")[0].strip()))
    return found


def hot_loop(function: Function) -> list[str]:
    """The shortest loop that has most of the function's multiplications."""
    addresses = [address for address, _ in function.code]
    best: list[str] = []
    loops = []
    for end, (_, text) in enumerate(function.code):
        words = text.replace(",", " ").split()
        if words[0][0] in "bj" and re.fullmatch("0x[0-9a-f]+", words[-1]):
            target = int(words[-1], 16)
            if target in addresses and addresses.index(target) <= end:
                loops.append([text for _, text in function.code[addresses.index(target) : end]])
    for loop in sorted(loops, key=len):
        if num_multiplies(loop) > 1.5 * num_multiplies(best):
            best = loop
    return best


def num_multiplies(loop: list[str]) -> int:
    """Its multiplications of columns."""
    return sum(text.split()[0] in MULTIPLIES for text in loop)


def only_multiplies(loop: list[str]) -> list[str]:
    """The loop's multiplications on registers of their own, and the vsetvli before the first."""
    setup = ""
    kept: list[str] = []
    for text in loop:
        if text.split()[0].startswith("vset"):
            setup = text
        elif text.split()[0] in MULTIPLIES:
            if not kept:
                kept.append(setup)
            kept.append(f"vwmul.vx v{(8, 12, 16, 20)[len(kept) % 4]}, v0, a0")
    return kept


class Mca:
    """llvm-mca of one release."""

    def __init__(self, prefix: list[str], release: str) -> None:
        self._mca = [*prefix, f"llvm-mca-{release}"]
        self._objdump = [*prefix, f"llvm-objdump-{release}"]

    def disassemble(self, library: Path) -> list[Function]:
        """The library's functions."""
        run = subprocess.run(
            [*self._objdump, "-d", "--no-show-raw-insn", "--mattr=+v,+zvfhmin,+zicbop,+zba,+zbb",
             "-M", "no-aliases", str(library)],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        return functions(run.stdout)

    def cycles(self, core: str, code: list[str]) -> float:
        """Cycles of one turn of the loop when it runs again and again."""
        run = subprocess.run(
            [*self._mca, "-mtriple=riscv64", f"-mcpu={core}", "-mattr=+v,+zvfhmin,+zicbop",
             "-iterations=20", "-skip-unsupported-instructions=any", "--json", "-"],
            input="\n".join(code), capture_output=True, text=True, check=False,
        )  # fmt: skip
        if run.returncode != 0:
            raise SystemExit(f"llvm-mca -mcpu={core}: {run.stderr.splitlines()[:1]}")
        summary = json.loads(run.stdout)["CodeRegions"][0]["SummaryView"]
        return float(summary["TotalCycles"]) / 20


def main() -> None:
    """Prints a Markdown table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--build", type=Path, required=True)
    parser.add_argument("--llvm", default="21", help="release in the tools' names")
    parser.add_argument("--prefix", default="", help="put before the tools, e.g. chroot ROOT")
    arguments = parser.parse_args()
    mca = Mca(shlex.split(arguments.prefix), arguments.llvm)
    print("| core | format | phase | multiplies | cycles | limit | share |")
    print("|---|---|---|---|---|---|---|")
    for core, vlen in CORES.items():
        library = arguments.build / f"librillm_riscv_rvv{vlen}_f16.so"
        rows = []
        for function in mca.disassemble(library):
            match = SYMBOL.search(function.name)
            loop = hot_loop(function) if match else []
            if match is None or num_multiplies(loop) < 16:
                continue
            name = FORMATS.get((CODES[int(match[1])], SCALES[int(match[2])]), "?")
            phase = "decode" if match[3] in ("run_alone", "runILi1E") else "prefill"
            cycles, limit = mca.cycles(core, loop), mca.cycles(core, only_multiplies(loop))
            rows.append(
                f"| {core} | {name} | {phase} | {num_multiplies(loop)} | {cycles:.0f} "
                f"| {limit:.0f} | {limit / cycles:.0%} |"
            )
        print("\n".join(sorted(rows)), flush=True)


if __name__ == "__main__":
    main()
