"""The kernels of every RISC-V variant that was built, under QEMU, at its vector length."""

from __future__ import annotations

import re
import subprocess

import lab
import pytest

VLENS = (128, 256, 512, 1024)
# `make test` has an older emulator and little time; `make test-riscv` runs every case. (QEMU 7.2
# stops at an assertion of its own, decode_save_opc, in the formats of two scales a strip.)
CASES = () if lab.HAS_BOARD else ("Q4_K", "Q8_0", "rows")
RVV = [row["name"] for row in lab.variants() if re.fullmatch(r"riscv_rvv\d+(_f16)?", row["name"])]

pytestmark = [
    pytest.mark.skipif(not lab.HAS_KERNELS, reason=lab.MISSING),
    pytest.mark.timeout(1500),
]


def emulate(cpu: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = lab.command(cpu, lab.BUILD / "kernels", *arguments)
    return subprocess.run(command, capture_output=True, text=True, timeout=1400)


def features(cpu: str) -> set[str]:
    done = emulate(cpu, str(lab.BUILD / "librillm_probe.so"), "--features")
    assert done.returncode == 0, done.stderr
    return set(filter(None, done.stdout.splitlines()[0].split(",")))


@pytest.mark.parametrize("vlen", VLENS)
def test_probe_reports_the_vector_length(vlen: int) -> None:
    found = features(lab.cpu_of(vlen, half=True))
    assert {"v", f"vlen{vlen}"} <= found
    assert not any(f"vlen{other}" in found for other in VLENS if other != vlen)
    if lab.has_half():  # and with it riscv_hwprobe, the only way to learn of these
        assert {"zvfhmin", "zba", "zbb"} <= found
        assert "zvfhmin" not in features(lab.cpu_of(vlen, half=False))


def test_probe_finds_no_vector_where_there_is_none() -> None:
    found = features(lab.cpu_of(0, half=False))
    assert not any(name == "v" or name.startswith("vlen") for name in found)


@pytest.mark.parametrize("name", RVV)
def test_kernels(name: str) -> None:
    half = name.endswith("_f16")
    vlen = int(re.findall(r"\d+", name)[0])
    if half and not lab.has_half():
        pytest.skip(f"{lab.QEMU} is older than 8.0")
    cpu = lab.cpu_of(vlen, half=half)
    (row,) = [row for row in lab.variants() if row["name"] == name]
    assert set(row["features"].split(",")) <= features(cpu)
    done = emulate(cpu, str(lab.BUILD / f"librillm_{name}.so"), *CASES)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) >= (len(CASES) or 20)
    assert all(line.startswith(f"ok   {name} ") for line in lines), done.stdout


def test_scalar_runs_without_a_vector_unit() -> None:
    cases = ("Q4_K", "rows") if CASES else ("linear", "rows")
    cpu = lab.cpu_of(0, half=False)
    done = emulate(cpu, str(lab.BUILD / "librillm_scalar.so"), *cases)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "ok   scalar linear Q4_K" in done.stdout


def test_the_lengths_that_were_to_be_built_were_built() -> None:
    lengths = {int(re.findall(r"\d+", name)[0]) for name in RVV}
    assert {128, 256} <= lengths
    assert not lab.HAS_BOARD or lengths == set(VLENS)
