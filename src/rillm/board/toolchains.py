"""Compilers for other machines: zig (from PyPI), GCC and clang (from the system)."""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rillm.board import zig_cxx
from rillm.errors import RillmError

TARGETS = ("riscv64", "aarch64", "x86_64")
TOOLCHAINS = ("zig", "gcc", "clang")

Say = Callable[[str], None]


@dataclass(frozen=True)
class Toolchain:
    """A compiler for a target, as CMake takes it."""

    name: str
    version: str  # for people
    cmake_arguments: tuple[str, ...]


def find_toolchain(name: str, target: str, work: Path, say: Say) -> Toolchain:
    """The toolchain `name` for `target`.

    work: folder for the scripts that it needs. say: gets a line before something is downloaded.
    Errors: RillmError saying what to install.
    """
    if name == "zig":
        return _zig(target, work, say)
    if name == "gcc":
        return _gcc(target)
    if name == "clang":
        return _clang(target)
    raise RillmError(f"--toolchain {name}: must be one of {', '.join(TOOLCHAINS)}")


def find_program(name: str, say: Say) -> str:
    """Path of cmake or ninja: this environment's, the system's, else installed from PyPI."""
    beside = Path(sys.executable).parent / name
    if beside.is_file():
        return str(beside)
    if found := shutil.which(name):
        return found
    own = _tools_folder() / "bin" / name
    if not own.is_file():
        _install(name, say)
    return str(own)


def _zig(target: str, work: Path, say: Say) -> Toolchain:
    zig = find_zig(say)
    version = _output([zig, "version"])
    if not version:
        raise RillmError(f"{zig}: does not run; reinstall it with pip install --upgrade ziglang")
    compiler = _script(
        work / "zig-c++",
        [
            "env", f"RILLM_ZIG={shlex.quote(zig)}",
            f"RILLM_ZIG_TARGET={target}-linux-gnu.{zig_cxx.GLIBC}",
            sys.executable, zig_cxx.__file__,
        ],
    )  # fmt: skip
    archiver = _script(work / "zig-ar", [zig, "ar"])
    ranlib = _script(work / "zig-ranlib", [zig, "ranlib"])
    return Toolchain(
        "zig",
        f"zig {version}, glibc {zig_cxx.GLIBC}",
        (
            f"-DCMAKE_CXX_COMPILER={compiler}",
            f"-DCMAKE_AR={archiver}",
            f"-DCMAKE_RANLIB={ranlib}",
            # Linking a test program would build zig's libc++ for the CPU of every variant: minutes.
            "-DCMAKE_TRY_COMPILE_TARGET_TYPE=STATIC_LIBRARY",
        ),
    )


def find_zig(say: Say) -> str:
    """Path of zig: this environment's package, else installed from PyPI. Errors: RillmError."""
    spec = importlib.util.find_spec("ziglang")
    if spec is not None and spec.submodule_search_locations:
        program = Path(spec.submodule_search_locations[0]) / "zig"
        if program.is_file():
            return str(program)
    pattern = "lib/python*/site-packages/ziglang/zig"
    if not any(_tools_folder().glob(pattern)):
        _install("ziglang", say)
    found = sorted(_tools_folder().glob(pattern))
    if not found:
        raise RillmError("ziglang was installed without its zig program; try --toolchain gcc")
    return str(found[-1])


def _gcc(target: str) -> Toolchain:
    prefixes = [f"{target}-linux-gnu-g++"]
    if target == os.uname().machine:
        prefixes.append("g++")
    candidates = [name for prefix in prefixes for name in _versions_of(prefix)]
    if not candidates:
        raise RillmError(
            f"no {target}-linux-gnu-g++: install it (Debian: "
            f"apt-get install g++-{target.replace('_', '-')}-linux-gnu) or use --toolchain zig"
        )
    best = max(candidates, key=lambda path: _major(_output([path, "-dumpversion"])))
    return Toolchain(
        "gcc", f"GCC {_output([best, '-dumpfullversion'])}", (f"-DCMAKE_CXX_COMPILER={best}",)
    )


def _clang(target: str) -> Toolchain:
    candidates = _versions_of("clang++")
    if not candidates:
        raise RillmError("no clang++: install it, or use --toolchain zig")
    best = max(candidates, key=lambda path: _major(_output([path, "-dumpversion"])))
    return Toolchain(
        "clang",
        f"clang {_output([best, '-dumpversion'])}",
        (f"-DCMAKE_CXX_COMPILER={best}", f"-DCMAKE_CXX_COMPILER_TARGET={target}-linux-gnu"),
    )


def _versions_of(name: str) -> list[str]:
    """`name` and `name-N` on the PATH."""
    found = []
    for folder in os.environ.get("PATH", os.defpath).split(os.pathsep):
        if not folder or not Path(folder).is_dir():
            continue
        for path in Path(folder).glob(f"{name}*"):
            if re.fullmatch(re.escape(name) + r"(-\d+)?", path.name) and os.access(path, os.X_OK):
                found.append(str(path))
    return found


def _major(version: str) -> int:
    match = re.match(r"\d+", version)
    return int(match[0]) if match else 0


def _tools_folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "rillm" / "build-tools"


def _install(package: str, say: Say) -> None:
    folder = _tools_folder()
    say(f"installing {package} from PyPI into {folder} (once)")
    python = folder / "bin" / "python"
    try:
        if not python.is_file():
            subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", package], check=True)
    except (subprocess.CalledProcessError, OSError) as error:
        raise RillmError(
            f"{package} cannot be installed into {folder} ({error}); "
            f"install it yourself: pip install {package}"
        ) from None


def _script(path: Path, command: list[str]) -> Path:
    path.write_text(f'#!/bin/sh\nexec {shlex.join(command)} "$@"\n', encoding="utf-8")
    path.chmod(0o755)
    return path


def _output(command: list[str]) -> str:
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return result.stdout.strip() if result.returncode == 0 else ""
