"""The probe's judgement on the vector unit of RISC-V boards, from what is known of them.

What vsetvli answers is the specification's: elements of one register for vtype 0 (8 bits in both
versions) and for vtype 8 (16 bits in RVV 1.0, 32 bits in 0.7.1).
"""

from __future__ import annotations

import ctypes
import platform

import pytest
from board_cpuinfo import (
    BPI_F3,
    JH7110,
    K230,
    LICHEE_PI_4A_MAINLINE,
    LICHEE_PI_4A_PATCHED,
    LICHEE_PI_4A_VENDOR,
    PIONEER,
)

from rillm.core import variants, vector_evidence

RVV_128, RVV_256, THEAD_128, ILLEGAL = (16, 8), (32, 16), (16, 4), (0, 0)


class Evidence(ctypes.Structure):
    """ProbeEvidence of csrc/probe_riscv.h."""

    _fields_ = (
        ("cpuinfo", ctypes.c_char_p),
        ("vendor", ctypes.c_longlong),
        ("architecture", ctypes.c_longlong),
        ("has_hwprobe", ctypes.c_int),
        ("hwprobe_v", ctypes.c_int),
        ("hwprobe_thead", ctypes.c_int),
        ("hwcap_v", ctypes.c_int),
        ("vl_of_vtype_0", ctypes.c_long),
        ("vl_of_vtype_8", ctypes.c_long),
    )


def judge(cpuinfo, answers=ILLEGAL, **evidence):
    """Features and reason for a board."""
    probe = ctypes.CDLL(str(variants()[0].path.parent / "librillm_probe.so"))
    ids = {"vendor": -1, "architecture": -1}
    given = Evidence(
        cpuinfo.encode(), vl_of_vtype_0=answers[0], vl_of_vtype_8=answers[1], **(ids | evidence)
    )
    features, reason = (ctypes.create_string_buffer(512) for _ in range(2))
    probe.probe_judge(ctypes.byref(given), features, reason, ctypes.c_size_t(512))
    return features.value.decode(), reason.value.decode()


HWPROBE_THEAD = {"has_hwprobe": 1, "vendor": 0x5B7, "architecture": 0}


@pytest.mark.parametrize(
    ("cpuinfo", "evidence", "answers", "features"),
    [
        (LICHEE_PI_4A_VENDOR, {"hwcap_v": 1}, THEAD_128, "xtheadvector,vlen128"),
        (LICHEE_PI_4A_VENDOR.replace("dcvsu", "dcsu"), {}, THEAD_128, "xtheadvector,vlen128"),
        (LICHEE_PI_4A_PATCHED, HWPROBE_THEAD, THEAD_128, "xtheadvector,vlen128"),
        ("", HWPROBE_THEAD | {"hwprobe_thead": 1}, THEAD_128, "xtheadvector,vlen128"),
        (PIONEER, {"hwcap_v": 1}, THEAD_128, "xtheadvector,vlen128"),
        (
            PIONEER,
            HWPROBE_THEAD | {"hwcap_v": 1, "hwprobe_v": 1},
            THEAD_128,
            "xtheadvector,vlen128",
        ),
        (BPI_F3, {"hwcap_v": 1}, RVV_256, "v,vlen256"),
        (BPI_F3, {"has_hwprobe": 1, "hwprobe_v": 1, "vendor": 0x710}, RVV_256, "v,vlen256"),
        (K230, {"hwcap_v": 1}, RVV_128, "v,vlen128"),
        (K230, HWPROBE_THEAD | {"architecture": 1 << 63, "hwprobe_v": 1}, RVV_128, "v,vlen128"),
        ("", {"hwcap_v": 1}, RVV_256, "v,vlen256"),
    ],
)
def test_a_vector_unit_is_recognised(cpuinfo, evidence, answers, features):
    found, reason = judge(cpuinfo, answers, **evidence)
    assert found == features
    version = "1.0" if features.startswith("v,") else "0.7.1"
    assert reason.endswith(f"vsetvli answers as RVV {version}, VLEN {8 * answers[0]}")


@pytest.mark.parametrize(
    ("cpuinfo", "evidence"),
    [(JH7110, {"has_hwprobe": 1, "vendor": 0x489}), (LICHEE_PI_4A_MAINLINE, HWPROBE_THEAD)],
)
def test_a_unit_that_nothing_claims_is_not_used(cpuinfo, evidence):
    for answers in (ILLEGAL, RVV_128, THEAD_128):
        found, reason = judge(cpuinfo, answers, **evidence)
        assert found == ""
        assert reason.endswith("nothing claims a vector unit, so none is used")


@pytest.mark.parametrize("cpuinfo", [PIONEER, LICHEE_PI_4A_VENDOR, BPI_F3, K230])
def test_a_unit_that_is_switched_off_is_not_used(cpuinfo):
    found, reason = judge(cpuinfo, ILLEGAL, hwcap_v=1)
    assert found == ""
    assert reason.endswith("vsetvli is illegal: the kernel leaves the unit off")


@pytest.mark.parametrize(
    ("cpuinfo", "answers"),
    [(PIONEER, RVV_128), (LICHEE_PI_4A_VENDOR, RVV_128), (BPI_F3, THEAD_128), (K230, (16, 16))],
)
def test_a_contradiction_is_no_vector_unit(cpuinfo, answers):
    found, reason = judge(cpuinfo, answers, hwcap_v=1)
    assert found == ""
    assert "contradicts the rest" in reason or "no version that is known" in reason


def test_the_reason_names_what_was_seen():
    _, reason = judge(PIONEER, THEAD_128, **HWPROBE_THEAD, hwcap_v=1)
    assert reason == (
        "hwprobe says no vector, hwcap v, cpuinfo v, vendor 0x5b7 architecture 0x0; "
        "vsetvli answers as RVV 0.7.1, VLEN 128"
    )


def test_xtheadvector_needs_its_variant_and_no_other():
    rows = {"riscv_rvv128": {"v", "vlen128"}, "riscv_xthead": {"xtheadvector", "vlen128"}}
    found = set(judge(PIONEER, THEAD_128, hwcap_v=1)[0].split(","))
    assert [name for name, needed in rows.items() if needed <= found] == ["riscv_xthead"]


def test_only_riscv_has_evidence_to_show():
    assert bool(vector_evidence()) == (platform.machine() == "riscv64")
