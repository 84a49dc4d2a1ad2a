"""XTheadVector (RVV 0.7.1) under an emulator that has it, and which libraries use a vector unit."""

from __future__ import annotations

import subprocess
from pathlib import Path

import lab
import pytest
from board_cpuinfo import BPI_F3, JH7110, LICHEE_PI_4A_MAINLINE, LICHEE_PI_4A_VENDOR, PIONEER
from vector_code import VLENB, csr_of, vector_instructions

BUILD, QEMU = lab.XTHEAD_BUILD, lab.QEMU_0_7_1
CPU = "rv64,x-v=true,vext_spec=v0.7.1,vlen=128"

needs_build = pytest.mark.skipif(
    not (BUILD / "librillm_riscv_xthead.so").is_file(),
    reason="no cross build by GCC 15 or newer: make test-riscv makes one",
)
needs_emulator = pytest.mark.skipif(
    not QEMU, reason="no emulator of 0.7.1: make test-riscv gets one"
)


def emulate(
    *arguments: str, cpu: str = CPU, root: str | Path | None = lab.ROOT
) -> subprocess.CompletedProcess[str]:
    """Runs the test driver on a CPU with RVV 0.7.1."""
    command = [QEMU, "-cpu", cpu, *(["-L", str(root)] if root else [])]
    return subprocess.run(
        [*command, str(BUILD / "kernels"), *arguments],
        capture_output=True, text=True, timeout=1800,
    )  # fmt: skip


@needs_build
@needs_emulator
def test_kernels() -> None:
    done = emulate(str(BUILD / "librillm_riscv_xthead.so"))
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) >= 20
    assert all(line.startswith("ok   riscv_xthead ") for line in lines), done.stdout


@needs_build
@needs_emulator
@pytest.mark.parametrize(
    ("cpuinfo", "cpu", "features"),
    [
        (PIONEER, CPU, "xtheadvector,vlen128"),
        (LICHEE_PI_4A_VENDOR, CPU, "xtheadvector,vlen128"),
        (LICHEE_PI_4A_VENDOR, CPU.replace("128", "256"), "xtheadvector,vlen256"),
        (LICHEE_PI_4A_MAINLINE, CPU, ""),  # not asked, although it would answer
        (JH7110, "rv64", ""),
        (PIONEER, "rv64", ""),  # asked, and the fault is caught
        (BPI_F3, CPU, ""),  # a contradiction
    ],
)
def test_probe(cpuinfo: str, cpu: str, features: str, tmp_path: Path) -> None:
    # The emulator looks for files below its root first, so the guest reads this as /proc/cpuinfo.
    for folder in Path(lab.ROOT or "/").iterdir():
        if folder.name != "proc":
            (tmp_path / folder.name).symlink_to(folder.resolve())
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc" / "cpuinfo").write_text(cpuinfo, encoding="utf-8")
    done = emulate(str(BUILD / "librillm_probe.so"), "--features", cpu=cpu, root=tmp_path)
    assert done.returncode == 0, done.stderr
    found, reason = done.stdout.splitlines()
    assert found == features, reason
    assert reason.startswith("no hwprobe")


@needs_build
def test_vector_code_is_where_it_belongs() -> None:
    """Nothing can fault before the probe has spoken; and 0.7.1 has no register vlenb."""
    code = {
        name: vector_instructions(BUILD / f"librillm_{name}.so")
        for name in ("probe", "scalar", "riscv_xthead")
    }
    # vsetvli t0, x0 with vtype 0 and 8: those that probe.cpp guards.
    assert code["probe"] == [0x000072D7, 0x008072D7]
    # The compiler's unwinder reads vlenb for a frame whose size depends on it. We have none such.
    # (vl and vtype, which GCC saves around copies of registers, are there in 0.7.1.)
    assert {csr_of(word) for word in code["scalar"]} <= {None, VLENB}
    reads = {name: [csr_of(word) for word in words].count(VLENB) for name, words in code.items()}
    assert reads["riscv_xthead"] == reads["scalar"]
    assert len(code["riscv_xthead"]) > 1000
