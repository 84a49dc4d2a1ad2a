"""Float weights by Debian's riscv64 OpenBLAS under QEMU, where the root has libopenblas0."""

from __future__ import annotations

from pathlib import Path

import lab
import pytest
from test_kernels import emulate

LIBRARY = (
    Path(lab.ROOT or "/nonexistent") / "usr/lib/riscv64-linux-gnu/openblas-pthread/libopenblas.so.0"
)

pytestmark = pytest.mark.skipif(
    not lab.HAS_KERNELS or not LIBRARY.exists(),
    reason="no RISC-V kernels, or no libopenblas0 in the root: make test-riscv sets both up",
)


@pytest.mark.parametrize(
    ("cpu", "variant"),
    [
        (lab.cpu_of(0, half=False), "scalar"),
        (lab.cpu_of(128, half=True), "riscv_rvv128_f16"),
        (lab.cpu_of(256, half=True), "riscv_rvv256_f16"),
    ],
    ids=["no vector", "VLEN 128", "VLEN 256"],
)
def test_products(cpu: str, variant: str) -> None:
    """The driver compares with float64, and with rillm's own kernels below the least rows."""
    done = emulate(cpu, str(lab.BUILD / f"librillm_{variant}.so"), "--blas", str(LIBRARY))
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("OpenBLAS ")
    assert [line.split()[:4] for line in lines[1:]] == [
        ["ok", variant, "blas", name] for name in ("F32", "F16", "BF16")
    ]
