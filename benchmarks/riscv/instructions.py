"""Instructions a token under emulation: rillm's whole model step and llama.cpp's, on one file.

    python benchmarks/riscv/instructions.py --build DIR --qemu QEMU --root ROOT \\
        --llama-root ROOT --formats Q4_K,Q6_K --vlens 128,256,512,1024

Emulated time says nothing about a vector unit; the number of instructions that a token takes is
exact and can be compared. The emulator's plugin (count_plugin.c, compiled here) counts the whole
process. Ours says where its steps begin and end. Of llama-bench a figure is the difference of two
runs that differ in their number of equal steps only, so that loading cancels out.

--build       a RISC-V build with its variants (cmake --toolchain cmake/riscv64-*.cmake)
--qemu        qemu-riscv64 with plugins: QEMU 9 or newer, configured with --enable-plugins
              (--target-list=riscv64-linux-user). Distributions' static ones have none.
--qemu-source folder of its qemu-plugin.h (include/qemu in QEMU's sources)
--old-qemu, --old-qemu-source  the same of QEMU 5.2, for --vlens xthead (RVV 0.7.1)
--root        a riscv64 root with python3 (no packages needed)
--models      a folder that keeps the models from one run to the next (optional)
--llama-root  a riscv64 root with llama-bench (optional)
The model has 2 layers, 57.7 M multiply-adds a decode token, 33.6 M of them in the output head.
Every figure is appended to benchmarks/results/riscv.jsonl.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from rillm.core import load_core
from rillm.prepare import dummy
from rillm.prepare.pack import pack

HERE = Path(__file__).parent
REPOSITORY = HERE.parents[1]
RESULTS = REPOSITORY / "benchmarks" / "results" / "riscv.jsonl"
# Mixes whose base type has no mix of its own name. Every matrix is of the format that is measured.
MIXES = {"Q4_K": "Q4_K_S", "Q5_K": "Q5_K_S", "Q3_K": "Q3_K_S"}


@dataclass(frozen=True)
class Emulator:
    """A qemu-riscv64 with the counting plugin."""

    qemu: Path
    plugin: Path
    folder: Path

    @classmethod
    def compile(cls, qemu: Path, source: Path, folder: Path) -> Emulator:
        """With the plugin for `qemu`, whose qemu-plugin.h is in `source`; both are tried."""
        glib = subprocess.run(
            ["pkg-config", "--cflags", "glib-2.0"], capture_output=True, text=True, check=True
        ).stdout.split()
        plugin = folder / "count_plugin.so"
        subprocess.run(
            [
                os.environ.get("CC", "cc"), "-O2", "-shared", "-fPIC",
                f"-I{source}", *glib, "-o", plugin, HERE / "count_plugin.c",
            ],
            check=True,
        )  # fmt: skip
        emulator = cls(qemu, plugin, folder)
        emulator.check()
        return emulator

    @cached_property
    def version(self) -> str:
        """What `--version` says first."""
        run = subprocess.run([self.qemu, "--version"], capture_output=True, text=True, check=True)
        return run.stdout.splitlines()[0]

    def count(self, cpu: str, root: Path | None, command: Sequence[str]) -> tuple[list[int], str]:
        """Instructions up to each mark and to the command's end, and what it printed."""
        out = self.folder / "count"
        out.unlink(missing_ok=True)
        argument = f"arg=out={out}" if " 5." in self.version else f"out={out}"
        arguments = [str(self.qemu), "-cpu", cpu, *(["-L", str(root)] if root else [])]
        arguments += ["-plugin", f"{self.plugin},{argument}", *command]
        # Python compiles its library once, and with a fixed seed it always takes the same way.
        environment = os.environ | {"PYTHONHASHSEED": "0"}
        environment |= {"PYTHONPYCACHEPREFIX": str(self.folder), "PYTHONDONTWRITEBYTECODE": ""}
        run = subprocess.run(
            arguments, capture_output=True, text=True, check=False, env=environment
        )
        if run.returncode != 0:
            last = (run.stderr.strip() or run.stdout.strip()).splitlines()[-1:]
            raise RuntimeError(f"exit status {run.returncode}: {''.join(last)}")
        return [int(line) for line in out.read_text().splitlines()], run.stdout

    def check(self) -> None:
        """Two programs whose difference is known: 1,000,000 turns of a loop of 2 instructions."""
        counts = []
        for turns in (1_000_000, 2_000_000):
            program = self.folder / f"loop{turns}"
            program.write_bytes(loop_program(turns))
            program.chmod(0o755)
            counts += self.count("rv64", None, [str(program)])[0]
        if counts[1] - counts[0] != 2_000_000:
            raise SystemExit(f"the plugin counts {counts} for loops of 2 and 4 M instructions")


def loop_program(turns: int) -> bytes:
    """An ELF program that runs `turns` turns of a loop of two instructions and exits with 0."""
    upper, lower = (turns + 0x800) >> 12, turns & 0xFFF
    code = [
        upper << 12 | 0x537,  # lui a0, upper
        lower << 20 | 0x50513 & 0xFFFFF,  # addi a0, a0, lower
        0xFFF50513,  # addi a0, a0, -1
        0xFE051EE3,  # bnez a0, -4
        0x05D00893,  # li a7, 93 (exit)
        0x00000073,  # ecall
    ]
    text = b"".join(word.to_bytes(4, "little") for word in code)
    base, size = 0x10000, 64 + 56
    numbers = [(b"\x7fELF\x02\x01\x01" + bytes(9))]
    for value, width in (
        (2, 2), (243, 2), (1, 4), (base + size, 8), (64, 8), (0, 8), (0, 4), (64, 2), (56, 2),
        (1, 2), (64, 2), (0, 2), (0, 2), (1, 4), (5, 4), (0, 8), (base, 8), (base, 8),
        (size + len(text), 8), (size + len(text), 8), (4096, 8),
    ):  # fmt: skip
        numbers.append(value.to_bytes(width, "little"))
    return b"".join(numbers) + text


@dataclass(frozen=True)
class Target:
    """A vector unit: the CPU that the emulator plays, and the variant for it."""

    emulator: Emulator
    cpu: str
    vlen: int
    library: Path

    @property
    def variant(self) -> str:
        """The name of the library's variant."""
        return self.library.stem.removeprefix("librillm_")


def find_target(name: str, emulators: dict[str, Emulator], build: Path) -> Target:
    """The target called `name` in --vlens."""
    if name == "xthead":
        if name not in emulators:
            raise SystemExit("--vlens xthead needs --old-qemu and --old-qemu-source")
        cpu = "rv64,x-v=true,vext_spec=v0.7.1,vlen=128"
        return Target(emulators[name], cpu, 128, build / "librillm_riscv_xthead.so")
    cpu = f"rv64,v=true,vlen={name},zvfh=true,zfh=true,zba=true,zbb=true,zicbop=true"
    library = build / f"librillm_riscv_rvv{name}_f16.so"
    return Target(emulators["rvv"], cpu, int(name), library)


def measure(
    target: Target, arguments: argparse.Namespace, path: Path, packed: Path, tokens: int
) -> dict[str, tuple[float, str]]:
    """Engine -> (instructions a token, variant or error) for a prompt or, tokens = 1, decoding.

    `packed`: the file of `path` with its tiles as the variant wants them, which loads sooner.
    """

    def ours() -> tuple[float, str]:
        command = [str(arguments.root / "usr/bin/python3"), "-S", str(HERE / "step.py")]
        command += [str(REPOSITORY / "src"), str(target.library), str(packed), str(tokens)]
        steps = 4 if tokens == 1 else 1
        counts, _ = target.emulator.count(target.cpu, arguments.root, [*command, str(steps)])
        return (counts[1] - counts[0]) / steps / tokens, target.variant

    def llama() -> tuple[float, str]:
        totals = []
        for steps in (1, 5) if tokens == 1 else (1, 2):
            sizes = ["-p", "0", "-n", str(steps)] if tokens == 1 else ["-p", str(tokens), "-n", "0"]
            sizes += ["-r", "1" if tokens == 1 else str(steps)]
            command = [str(arguments.llama_root / "usr/bin/llama-bench"), "-m", str(path), *sizes]
            command += ["-t", "1", "--no-warmup"]
            counts, _ = target.emulator.count(target.cpu, arguments.llama_root, command)
            totals.append(counts[-1])
        steps = 4 if tokens == 1 else 1
        return (totals[1] - totals[0]) / steps / tokens, arguments.llama_name

    results = {}
    for name, run in (("rillm", ours), ("llama.cpp", llama)):
        if name == "llama.cpp" and arguments.llama_root is None:
            continue
        try:
            results[name] = run()
        except RuntimeError as error:
            results[name] = (float("nan"), str(error))
    return results


def record(row: dict[str, str | int | None]) -> None:
    """Appends a figure to the results."""
    RESULTS.parent.mkdir(exist_ok=True)
    with RESULTS.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def main() -> None:
    """Measures what the arguments ask for; prints a Markdown table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--build", type=Path, required=True)
    parser.add_argument("--qemu", type=Path, required=True)
    parser.add_argument("--qemu-source", type=Path, required=True)
    parser.add_argument("--old-qemu", type=Path, help="of RVV 0.7.1")
    parser.add_argument("--old-qemu-source", type=Path)
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--llama-root", type=Path)
    parser.add_argument("--llama-name", default="llama.cpp")
    parser.add_argument("--models", type=Path, help="folder that keeps the models")
    parser.add_argument("--formats", default="Q4_0,Q4_K,Q5_0,Q5_K,Q6_K,Q8_0,Q2_K,Q3_K,IQ4_NL")
    parser.add_argument("--vlens", default="128,256,512,1024")
    parser.add_argument("--prompt", type=int, default=64)
    arguments = parser.parse_args()
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty=+"], capture_output=True, text=True, check=False,
        cwd=REPOSITORY,
    ).stdout.strip()  # fmt: skip
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        emulators = {}
        for kind, qemu, source in (
            ("rvv", arguments.qemu, arguments.qemu_source),
            ("xthead", arguments.old_qemu, arguments.old_qemu_source),
        ):
            if qemu:
                (folder / kind).mkdir()
                emulators[kind] = Emulator.compile(qemu, source, folder / kind)
        targets = {
            name: find_target(name, emulators, arguments.build)
            for name in arguments.vlens.split(",")
        }
        core = load_core()
        versions = ", ".join(emulator.version for emulator in emulators.values())
        print(f"{versions}, commit {commit}; millions of instructions a token\n")
        print("| VLEN | format | phase | rillm | llama.cpp | ratio |")
        print("|---|---|---|---|---|---|")
        for form in arguments.formats.split(","):
            path = (arguments.models or folder) / f"{form}.gguf"
            if not path.exists():
                mix = MIXES.get(form, form)
                dummy.write_dummy("glm-4-small", mix, path, core, pure=True)
            for name, target in targets.items():
                packed = folder / "packed.gguf"
                with core.team(1) as team:
                    pack(path, packed, core, team, target.variant)
                for phase, tokens in (("decode", 1), ("prefill", arguments.prompt)):
                    found = measure(target, arguments, path, packed, tokens)
                    for engine, (count, note) in found.items():
                        known = count == count  # not NaN
                        record({
                            "engine": engine, "format": form, "vlen": target.vlen, "phase": phase,
                            "tokens": tokens,
                            "instructions_per_token": round(count) if known else None,
                            "variant": note, "emulator": target.emulator.version, "commit": commit,
                        })  # fmt: skip
                    mine = found["rillm"][0]
                    peer = found.get("llama.cpp", (float("nan"), ""))[0]
                    print(
                        f"| {name} | {form} | {phase} | {mine / 1e6:.2f} | {peer / 1e6:.2f} "
                        f"| {mine / peer:.3f} |",
                        flush=True,
                    )
            if arguments.models is None:
                path.unlink()


if __name__ == "__main__":
    main()
