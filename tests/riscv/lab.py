"""What the RISC-V tests run on: made by tools/riscv_lab.py, or named by environment variables.

RILLM_RISCV_BUILD   folder with the libraries, variants.jsonl and the test driver `kernels`
RILLM_QEMU          qemu-riscv64, 7.2 or newer; variants with _f16 need 8.0
RILLM_RISCV_ROOT    a riscv64 root for qemu's -L: libc for the kernels, and Python for the board
RILLM_RISCV_WHEEL   a wheel for riscv64
RILLM_XTHEAD_BUILD  a build with riscv_xthead and its test driver, by GCC 15 or newer
RILLM_QEMU_0_7_1    qemu-riscv64 5.1 to 6.2: later ones have RVV 1.0 only
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from functools import cache
from pathlib import Path

_MADE = Path(__file__).parents[2] / "build/riscv/lab.json"
_FACTS = json.loads(_MADE.read_text(encoding="utf-8")) if _MADE.is_file() else {}

BUILD = Path(os.environ.get("RILLM_RISCV_BUILD") or _FACTS.get("kernels", "/nonexistent"))
QEMU = os.environ.get("RILLM_QEMU") or _FACTS.get("qemu") or shutil.which("qemu-riscv64") or ""
ROOT = os.environ.get("RILLM_RISCV_ROOT") or _FACTS.get("root", "")
WHEEL = Path(os.environ.get("RILLM_RISCV_WHEEL") or _FACTS.get("wheel", "/nonexistent"))
XTHEAD_BUILD = Path(os.environ.get("RILLM_XTHEAD_BUILD") or _FACTS.get("xthead", BUILD))
QEMU_0_7_1 = os.environ.get("RILLM_QEMU_0_7_1") or _FACTS.get("qemu_0_7_1", "")
HAS_KERNELS = bool(QEMU) and (BUILD / "kernels").is_file()
HAS_BOARD = (
    bool(QEMU) and WHEEL.is_file() and (Path(ROOT or "/nonexistent") / "usr/bin/python3").exists()
)
MISSING = "nothing to run on: make test-riscv sets it up"
# Tail and masked-off elements become ones, as hardware may do.
_ALL_ONES = "rvv_ta_all_1s=true,rvv_ma_all_1s=true"


@cache
def qemu_version() -> tuple[int, int]:
    if not QEMU:
        return 0, 0
    shown = subprocess.run([QEMU, "--version"], capture_output=True, text=True, check=False).stdout
    match = re.search(r"version (\d+)\.(\d+)", shown)
    return (int(match[1]), int(match[2])) if match else (0, 0)


def has_half() -> bool:
    """Whether the emulator knows Zvfh."""
    return qemu_version() >= (8, 0)


def cpu_of(vlen: int, *, half: bool) -> str:
    """qemu's -cpu: RVV 1.0 at a vector length, with or without Zvfh; 0: no vector unit."""
    if vlen == 0:
        return "rv64,v=false"
    zvfh = f"zvfh={'true' if half else 'false'}," if has_half() else ""
    return f"rv64,v=true,vext_spec=v1.0,vlen={vlen},{zvfh}zba=true,zbb=true,{_ALL_ONES}"


def command(cpu: str, program: Path, *arguments: object) -> list[str]:
    root = ["-L", ROOT] if ROOT else []
    return [QEMU, "-cpu", cpu, *root, str(program), *map(str, arguments)]


def variants() -> list[dict[str, str]]:
    """The rows of variants.jsonl."""
    if not HAS_KERNELS:
        return []
    lines = (BUILD / "variants.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]
