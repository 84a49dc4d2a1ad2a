"""`rillm build`: a wheel for another machine, with every kernel variant that fits it."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import rillm
from rillm.board.elf import SharedLibrary, read_shared_library
from rillm.board.toolchains import TARGETS, Say, find_program, find_toolchain
from rillm.board.wheel import write_wheel
from rillm.errors import RillmError

# What PEP 600 promises of any Linux; everything else has to be inside our libraries.
_PROMISED = re.compile(r"lib(c|m|dl|rt|pthread)\.so\.\d+|ld-linux[\w-]*\.so\.\d+|linux-vdso\.so\.1")
_OLDEST_GLIBC = (2, 17)  # the first that PEP 600 has a tag for


@dataclass(frozen=True)
class CompiledCore:
    """What compile_core made."""

    toolchain: str
    variants: tuple[str, ...]
    left_out: dict[str, str]  # variant -> why


@dataclass(frozen=True)
class BuildResult:
    """A wheel and what is in it."""

    wheel: Path
    target: str
    toolchain: str
    variants: tuple[str, ...]
    left_out: dict[str, str]  # variant -> why
    glibc: tuple[int, int]  # the oldest that it runs with


def find_source(start: Path | None = None) -> Path:
    """The source checkout: `start`, else the one that this package or the working folder is in."""
    if start is not None:
        candidates = [start.resolve()]
    else:
        package = Path(rillm.__file__).resolve().parent
        here = Path.cwd().resolve()
        candidates = [*package.parents[1:2], here, *here.parents]
    for folder in candidates:
        if (folder / "CMakeLists.txt").is_file() and (folder / "csrc" / "core.h").is_file():
            return folder
    raise RillmError(
        f"{candidates[0]}: has no C++ sources: an installed package carries none; run this in a "
        "source checkout of rillm, or name one with --source"
    )


def build_wheel(
    target: str,
    *,
    variants: Sequence[str] = (),
    toolchain: str = "zig",
    out: Path | None = None,
    source: Path | None = None,
    jobs: int | None = None,
    say: Say = lambda line: None,
) -> BuildResult:
    """Compiles the core for `target` and packs a wheel into `out` (default: <source>/dist).

    variants: names to build; empty for all that the compiler can. `say` gets lines for people.
    Errors: RillmError naming the compiler's first complaint.
    """
    folder = find_source(source)
    with tempfile.TemporaryDirectory(prefix="rillm-build-") as text:
        libraries = Path(text) / "lib"
        core = compile_core(
            target, libraries, folder,
            variants=variants, toolchain=toolchain, jobs=jobs, say=say,
        )  # fmt: skip
        wheel, glibc = pack_wheel(target, libraries, folder, out or folder / "dist")
    return BuildResult(wheel, target, core.toolchain, core.variants, core.left_out, glibc)


def compile_core(
    target: str,
    out: Path,
    source: Path,
    *,
    variants: Sequence[str] = (),
    toolchain: str = "zig",
    jobs: int | None = None,
    say: Say = lambda line: None,
) -> CompiledCore:
    """Compiles the variants of `source` for `target`; `out` gets libraries and variants.jsonl.

    Arguments and errors are build_wheel's.
    """
    if target not in TARGETS:
        raise RillmError(f"--target {target}: must be one of {', '.join(TARGETS)}")
    with tempfile.TemporaryDirectory(prefix="rillm-build-") as text:
        work = Path(text)
        tools = find_toolchain(toolchain, target, work, say)
        cmake, ninja = find_program("cmake", say), find_program("ninja", say)
        flags = f"-ffile-prefix-map={source}=rillm -ffile-prefix-map={work}=build"
        configure = [
            cmake, "-S", str(source), "-B", str(work / "build"), "-G", "Ninja",
            f"-DCMAKE_MAKE_PROGRAM={ninja}",
            "-DCMAKE_BUILD_TYPE=Release",
            "-DCMAKE_SYSTEM_NAME=Linux",
            f"-DCMAKE_SYSTEM_PROCESSOR={target}",
            f"-DCMAKE_INSTALL_PREFIX={work / 'stage'}",
            f"-DCMAKE_CXX_FLAGS={flags}",
            "-DCMAKE_SHARED_LINKER_FLAGS=-s",
            "-DCMAKE_SKIP_RPATH=ON",
            *tools.cmake_arguments,
        ]  # fmt: skip
        left_out = _left_out(_run(configure))
        built = _variants_in(work / "build")
        if variants:
            for name in variants:
                if name not in (*built, *left_out):
                    names = ", ".join((*built, *left_out))
                    raise RillmError(f"--variants {name}: for {target} there are {names}")
            left_out = {name: why for name, why in left_out.items() if name in variants}
            if not set(variants) - set(left_out):
                raise RillmError(f"nothing to build: {next(iter(left_out.values()))}")
            _run([*configure, f"-DRILLM_VARIANTS={';'.join(variants)}"])
            built = _variants_in(work / "build")
        for name, reason in left_out.items():
            say(f"left out {name}: {reason}")
        say(f"compiling for {target} with {tools.version}: {', '.join(built)}")
        _run([cmake, "--build", str(work / "build"), "-j", str(jobs or _num_jobs())])
        _run([cmake, "--install", str(work / "build")])
        shutil.copytree(_only_folder_with(work / "stage", "variants.jsonl"), out)
    return CompiledCore(tools.version, built, left_out)


def pack_wheel(
    target: str, libraries: Path, source: Path, out: Path
) -> tuple[Path, tuple[int, int]]:
    """Writes the wheel of compile_core's libraries; returns it and the oldest glibc that it needs.

    Errors: RillmError naming the library that is not what a wheel may carry.
    """
    glibc = _check_libraries(libraries, target)
    tag = f"manylinux_{glibc[0]}_{glibc[1]}_{target}"
    return write_wheel(source, libraries, tag, out), glibc


def _variants_in(folder: Path) -> tuple[str, ...]:
    rows = (folder / "variants.jsonl").read_text(encoding="utf-8").splitlines()
    return tuple(json.loads(row)["name"] for row in rows)


def _left_out(log: str) -> dict[str, str]:
    flat = re.sub(r"\s+", " ", log)  # CMake folds its warnings
    found = re.findall(r"variant (\w+) left out: (.*?)(?= Call Stack| CMake |$)", flat)
    return {name: _shorten(reason) for name, reason in found}


def _shorten(reason: str) -> str:
    return re.sub(r"\S*/zig-c\+\+", "zig", reason).strip()


def _check_libraries(folder: Path, target: str) -> tuple[int, int]:
    """The oldest glibc that all of them run with. RillmError if one is not what it should be."""
    glibc = _OLDEST_GLIBC
    for path in sorted(folder.glob("*.so")):
        library = read_shared_library(path)
        if library.machine != target:
            raise RillmError(f"{path.name}: is for {library.machine}, not {target}")
        if foreign := _foreign(library):
            raise RillmError(f"{path.name}: needs {foreign}, which not every Linux has")
        if not library.is_stripped:
            raise RillmError(f"{path.name}: the linker did not strip it")
        glibc = max(glibc, library.glibc)
    return glibc


def _foreign(library: SharedLibrary) -> str:
    return ", ".join(name for name in library.needed if not _PROMISED.fullmatch(name))


def _only_folder_with(root: Path, name: str) -> Path:
    found = sorted(root.rglob(name))
    if len(found) != 1:
        raise RillmError(f"the build installed {len(found)} files {name}, not one")
    return found[0].parent


def _num_jobs() -> int:
    return len(os.sched_getaffinity(0))


def _run(command: list[str]) -> str:
    """Runs a build step. RillmError with the first complaint, and where the whole log is."""
    result = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    if result.returncode == 0:
        return result.stdout
    handle, path = tempfile.mkstemp(prefix="rillm-build-", suffix=".log")
    os.write(handle, result.stdout.encode())
    os.close(handle)
    lines = [line.strip() for line in result.stdout.splitlines() if line.strip()]
    errors = [line for line in lines if re.search(r"\berror\b|Error:", line, re.IGNORECASE)]
    first = (errors or lines or ["no output"])[0]
    raise RillmError(f"{Path(command[0]).name} failed: {first} (whole log: {path})")
