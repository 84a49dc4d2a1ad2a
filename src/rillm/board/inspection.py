"""Whether a board can run a wheel and a model, asked before anything is copied to it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rillm.errors import RillmError
from rillm.units import format_bytes

# Prints NAME=VALUE lines. df may meet a folder that is not there yet: the home is.
INSPECT = r"""
echo machine=$(uname -m)
echo home=$HOME
echo uid=$(id -u)
echo user=$(id -un)
echo glibc=$(getconf GNU_LIBC_VERSION 2>/dev/null)
echo python=$(python3 -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)
echo venv=$(python3 -c 'import ensurepip, venv; print("yes")' 2>/dev/null)
echo memory=$(sed -n 's/^MemTotal: *\([0-9]*\) kB/\1/p' /proc/meminfo)
echo available=$(sed -n 's/^MemAvailable: *\([0-9]*\) kB/\1/p' /proc/meminfo)
echo disk=$(df -Pk "$HOME" | awk 'NR==2 {print $4}')
echo sha256sum=$(command -v sha256sum)
if [ -d /run/systemd/system ]; then echo systemd=yes; else echo systemd=; fi
"""

_OLDEST_PYTHON = (3, 11)
# The C library that rillm's dependencies ask for on riscv64 (llguidance's wheel does).
_RISCV_WHEELS_GLIBC = (2, 39)
_OTHER_DISK = 512 << 20  # the environment with its packages, and room to unpack them
_WHEEL = re.compile(r"rillm-[^-]+-py3-none-(?:manylinux_(\d+)_(\d+)|linux)_(\w+)\.whl")


@dataclass(frozen=True)
class BoardFacts:
    """What INSPECT found. Bytes; versions as (major, minor), (0, 0) where there is none."""

    machine: str
    home: str
    uid: int
    user: str
    glibc: tuple[int, int]
    python: tuple[int, int]
    has_venv: bool
    memory: int
    available: int
    disk: int
    has_sha256sum: bool
    has_systemd: bool


def parse_facts(text: str) -> BoardFacts:
    """The output of INSPECT. Errors: RillmError if it is not that."""
    values = dict(line.split("=", 1) for line in text.splitlines() if "=" in line)
    try:
        return BoardFacts(
            machine=values["machine"],
            home=values["home"],
            uid=int(values["uid"]),
            user=values["user"],
            glibc=_version(values["glibc"]),
            python=_version(values["python"]),
            has_venv=values["venv"] == "yes",
            memory=int(values["memory"]) * 1024,
            available=int(values["available"]) * 1024,
            disk=int(values["disk"]) * 1024,
            has_sha256sum=bool(values["sha256sum"]),
            has_systemd=values["systemd"] == "yes",
        )
    except (KeyError, ValueError) as error:
        raise RillmError(f"the board answers oddly ({error}): is it Linux?") from None


def choose_wheel(wheels: Sequence[Path], facts: BoardFacts) -> Path | None:
    """The newest file among `wheels` that the board can install."""
    fitting = [path for path in wheels if not wheel_misfit(path, facts)]
    return max(fitting, key=lambda path: path.stat().st_mtime, default=None)


def wheel_misfit(path: Path, facts: BoardFacts) -> str:
    """Why a wheel cannot be installed on the board; empty if it can."""
    match = _WHEEL.fullmatch(path.name)
    if not match:
        return f"{path.name} is no wheel of rillm for Linux"
    if match[3] != facts.machine:
        return f"{path.name} is for {match[3]}, the board is {facts.machine}"
    if match[1] and (int(match[1]), int(match[2])) > facts.glibc:
        return f"{path.name} needs glibc {match[1]}.{match[2]}, the board has {_text(facts.glibc)}"
    return ""


def check_board(facts: BoardFacts, *, model_bytes: int, to_copy: int, service: bool) -> list[str]:
    """Warnings. model_bytes: the model in memory; to_copy: bytes that go to its disk.

    Errors: RillmError naming the first thing that makes it impossible, and the fix.
    """
    if facts.python < _OLDEST_PYTHON:
        have = f"Python {_text(facts.python)}" if facts.python > (0, 0) else "no python3"
        raise RillmError(f"the board has {have}; rillm needs 3.11 or newer (Debian 12 has it)")
    if not facts.has_venv:
        raise RillmError(
            "the board's Python cannot make environments: sudo apt-get install python3-venv there"
        )
    if not facts.has_sha256sum:
        raise RillmError("the board has no sha256sum: install coreutils there")
    if service and not facts.has_systemd:
        raise RillmError("the board does not run systemd: leave out --service")
    if facts.disk < to_copy + _OTHER_DISK:
        raise RillmError(
            f"{format_bytes(to_copy + _OTHER_DISK)} are to be written, but {facts.home} has "
            f"{format_bytes(facts.disk)} left: free some, or use a smaller quantisation"
        )
    if facts.memory < model_bytes:
        raise RillmError(
            f"the model takes {format_bytes(model_bytes)} of memory, the board has "
            f"{format_bytes(facts.memory)}: use a smaller quantisation"
        )
    warnings = []
    if facts.available < model_bytes:
        warnings.append(
            f"the model takes {format_bytes(model_bytes)} of memory, only "
            f"{format_bytes(facts.available)} are available now: end other programs on the board"
        )
    if facts.machine == "riscv64" and facts.glibc < _RISCV_WHEELS_GLIBC:
        warnings.append(
            f"the board has glibc {_text(facts.glibc)}, and some packages are ready-made from "
            f"{_text(_RISCV_WHEELS_GLIBC)} on: if they cannot be installed, take a newer "
            "system (Debian 13, Ubuntu 24.04)"
        )
    return warnings


def _version(text: str) -> tuple[int, int]:
    match = re.search(r"(\d+)\.(\d+)", text)
    return (int(match[1]), int(match[2])) if match else (0, 0)


def _text(version: tuple[int, int]) -> str:
    return f"{version[0]}.{version[1]}"
