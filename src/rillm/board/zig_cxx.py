#!/usr/bin/env python3
"""The C++ compiler that the zig package carries, behind GCC's command line.

`zig c++` names instruction sets its own way (-mcpu=baseline_rv64+v for -march=rv64gcv). CMake runs
this file, by path, with nothing but the standard library. Environment:

    RILLM_ZIG         the zig program [default: python3 -m ziglang]
    RILLM_ZIG_TARGET  [default: riscv64-linux-gnu with the oldest glibc of a Python 3.11]
"""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Sequence

# Older than any distribution that has Python 3.11. What a library really needs is read from it.
GLIBC = "2.28"
# GCC's name -> zig's (LLVM's), where they differ.
_ARM_FEATURES = {"fp16": "fullfp16", "simd": "neon", "fp": "fp_armv8"}
_X86_FEATURE = re.compile(r"-m(no-)?(avx|amx|sse|f16c|fma|bmi|vaes|gfni|prefetch)[\w.-]*")
_DROPPED = {"-static-libstdc++", "-static-libgcc"}  # zig always links its libc++ into the library
_STANDARD_RISCV = "imafdc"  # what "baseline_rv64" has: rv64gc


class UnknownMarchError(Exception):
    """A -march that zig's compiler cannot build."""


def translate(arguments: Sequence[str]) -> list[str]:
    """GCC's arguments as zig's. Errors: UnknownMarchError."""
    result: list[str] = []
    cpu, features = "", list[str]()
    vector_bits = ""
    for argument in arguments:
        if argument in _DROPPED:
            continue
        if argument.startswith("-march="):
            cpu, features = _cpu(argument.removeprefix("-march="))
        elif argument.startswith("-mrvv-vector-bits="):
            vector_bits = argument.partition("=")[2]
        elif _X86_FEATURE.fullmatch(argument):
            name = argument.removeprefix("-m")
            sign = "-" if name.startswith("no-") else "+"
            features.append(sign + name.removeprefix("no-").replace("-", "_"))
        else:
            result.append(argument)
    if cpu or features:
        result.append(f"-mcpu={cpu or 'baseline'}{''.join(features)}")
    if vector_bits:
        result.append(f"-mrvv-vector-bits={_vector_bits(vector_bits, features)}")
    return result


def _cpu(march: str) -> tuple[str, list[str]]:
    if march.startswith("rv64"):
        base, *extensions = march.removeprefix("rv64").lower().split("_")
        letters = base.replace("g", _STANDARD_RISCV)
        if not set(_STANDARD_RISCV) <= set(letters):
            raise UnknownMarchError(f"-march={march}: less than rv64gc")
        names = [letter for letter in letters if letter not in _STANDARD_RISCV] + extensions
        if any(name == "xtheadvector" for name in names):
            raise UnknownMarchError(
                f"-march={march}: LLVM, and so zig, has no XTheadVector; GCC 15 or newer has it"
            )
        names = [re.sub(r"\d+p\d+$", "", name) for name in names]
        return "baseline_rv64", [f"+{name}" for name in names if name]
    if march.startswith("armv"):
        level, *extensions = march.split("+")
        match = re.fullmatch(r"armv(\d+)(?:\.(\d+))?-a", level)
        if not match:
            raise UnknownMarchError(f"-march={march}: not an architecture level of ARM's")
        version = f"v{match[1]}_{match[2]}a" if match[2] else f"v{match[1]}a"
        names = [version, *(_ARM_FEATURES.get(name, name) for name in extensions)]
        return "generic", [f"+{name}" for name in names]
    return march.replace("-", "_"), []


def _vector_bits(wanted: str, features: Sequence[str]) -> str:
    # zig hides the architecture string from clang's driver, so "zvl" has to be said as a number.
    if wanted != "zvl":
        return wanted
    lengths = [int(match[1]) for name in features if (match := re.fullmatch(r"\+zvl(\d+)b", name))]
    return str(max([128, *lengths]))


def main() -> None:
    """Becomes the compiler."""
    zig = shlex.split(os.environ.get("RILLM_ZIG", "python3 -m ziglang"))
    target = os.environ.get("RILLM_ZIG_TARGET", f"riscv64-linux-gnu.{GLIBC}")
    try:
        translated = translate(sys.argv[1:])
    except UnknownMarchError as error:
        sys.exit(f"error: {error}")
    os.execvp(zig[0], [*zig, "c++", "-target", target, *translated])


if __name__ == "__main__":
    main()
