"""What a CPU's vector unit is called, from the probe's features and the kernel's ISA string."""

from __future__ import annotations

import re
from collections.abc import Iterable


def describe_vector(
    architecture: str, features: Iterable[str], isa: str, *, is_probed: bool = True
) -> str:
    """In words, e.g. "RVV 1.0, VLEN 256, zvfh"; "none" if there is no vector unit.

    features: of the probe, where it could be asked. isa: the kernel's ISA string or flags. On
    RISC-V the probe decides: boards with XTheadVector (RVV 0.7.1) may claim `v` in the string.
    """
    known = set(features)
    if architecture == "riscv64":
        return _riscv(known, isa, is_probed)
    if architecture == "x86_64":
        flags = known | set(isa.split())
        names = [
            name
            for flag, name in (("amx_int8", "AMX"), ("avx512f", "AVX-512"), ("avx2", "AVX2"))
            if flag in flags
        ]
        return ", ".join(names) or "SSE2"
    flags = known | set(isa.split())
    names = [flag for flag in ("sve", "i8mm", "asimddp") if flag in flags]
    return ", ".join(["NEON", *names]) if architecture == "aarch64" else "none"


def _riscv(features: set[str], isa: str, is_probed: bool) -> str:
    letters, *extensions = isa.lower().removeprefix("rv64").split("_")
    claims = {"xtheadvector"} & set(extensions) or {"v"} & {*letters, *extensions}
    used = {"xtheadvector", "v"} & features if is_probed else claims
    if not used:
        (claim,) = claims or ("",)
        return f"none that the probe confirms (the kernel claims {claim})" if claim else "none"
    found = [re.fullmatch(r"(?:zvl|vlen)_?(\d+)b?", name) for name in {*features, *extensions}]
    lengths = [int(match[1]) for match in found if match]
    vlen = f", VLEN {max(lengths)}" if lengths else ""
    if "xtheadvector" in used:
        return f"XTheadVector (RVV 0.7.1){vlen}"
    extra = [name for name in ("zvfh", "zvfhmin", "zvbb") if name in features | set(extensions)]
    return ", ".join([f"RVV 1.0{vlen}", *extra])
