"""Float weights by Debian's riscv64 OpenBLAS under QEMU; what test_kernels.py needs, and

RILLM_RISCV_ROOT    with libopenblas0-pthread in it
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from test_kernels import BUILD, QEMU, cpu_of, emulate

LIBRARY = (
    Path(os.environ.get("RILLM_RISCV_ROOT", "/nonexistent"))
    / "usr/lib/riscv64-linux-gnu/openblas-pthread/libopenblas.so.0"
)

pytestmark = pytest.mark.skipif(
    not (BUILD / "kernels").is_file() or not QEMU or not LIBRARY.exists(),
    reason="no RISC-V cross build, no emulator, or no libopenblas0-pthread in RILLM_RISCV_ROOT",
)


@pytest.mark.parametrize(
    ("cpu", "variant"),
    [
        ("rv64,v=false", "scalar"),
        (cpu_of(128), "riscv_rvv128_f16"),
        (cpu_of(256), "riscv_rvv256_f16"),
    ],
    ids=["no vector", "VLEN 128", "VLEN 256"],
)
def test_products(cpu: str, variant: str) -> None:
    """The driver compares with float64, and with rillm's own kernels below the least rows."""
    done = emulate(cpu, str(BUILD / f"librillm_{variant}.so"), "--blas", str(LIBRARY))
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("OpenBLAS ")
    assert [line.split()[:4] for line in lines[1:]] == [
        ["ok", variant, "blas", name] for name in ("F32", "F16", "BF16")
    ]
