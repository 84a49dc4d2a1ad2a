"""Sets up what the RISC-V tests need without a board, once, in build/riscv.

    python tools/riscv_lab.py           two emulators, a Debian root with Python, all kernels
    python tools/riscv_lab.py --fast    with the emulator and C library that are installed, if any:
                                        two vector lengths, and a message where there is no emulator

Needs a Debian with mmdebstrap (as root it is installed here). The compilers are zig, from PyPI,
and for XTheadVector GCC 15, from Debian. What the tests then use is written to
build/riscv/lab.json; RILLM_QEMU and RILLM_RISCV_ROOT name an emulator and a root of your own.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from rillm.board.build import compile_core, pack_wheel
from rillm.board.toolchains import find_zig
from rillm.errors import RillmError

SOURCE = Path(__file__).resolve().parents[1]
LAB = SOURCE / "build/riscv"
DRIVER = SOURCE / "tests/native/kernels.cpp"
CROSS_LIBC = Path("/usr/riscv64-linux-gnu")  # Debian's libc6-riscv64-cross
FAST = ("scalar", "riscv_rvv128", "riscv_rvv256")  # what QEMU 7.2 (Debian 12) can run
# Without the security and update suites, which mirrors renew at other times than their indexes.
MIRROR = "http://deb.debian.org/debian"
SUITE = "trixie"
XTHEAD_SUITE = "forky"  # the first Debian with GCC 15
OLD_SUITE = "bullseye"  # the last Debian whose emulator has RVV 0.7.1
HALF_PRECISION = (8, 0)  # QEMU before it has no Zvfh
EMULATORS = ("qemu-riscv64", "qemu-riscv64-static")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--fast", action="store_true")
    fast = parser.parse_args().fast
    LAB.mkdir(parents=True, exist_ok=True)
    qemu, root = installed_emulator(), os.environ.get("RILLM_RISCV_ROOT", "")
    if fast:
        root = root or (str(CROSS_LIBC) if CROSS_LIBC.is_dir() else "")
        if not qemu or not root:
            say("no RISC-V tests: apt-get install qemu-user-static libc6-riscv64-cross")
            return without_lab()
        try:
            find_zig(say)
        except RillmError as error:
            say(f"no RISC-V tests: {error}")
            return without_lab()
    else:
        if not qemu or version_of(qemu) < HALF_PRECISION:
            qemu = extracted(LAB / "emulator", "amd64", ["qemu-user"]) + "/usr/bin/qemu-riscv64"
        root = root or extracted(
            LAB / "root", "riscv64", ["python3", "python3-pip", "libopenblas0"]
        )
    folder = LAB / ("fast" if fast else "all")
    compile_kernels(folder, FAST if fast else ())
    # Packed anew each time: it is the Python code that changes oftenest, and takes no compiler.
    wheel, _ = pack_wheel("riscv64", folder / "lib", SOURCE, folder)
    kernels = folder / "kernels"
    facts = {"qemu": qemu, "root": root, "kernels": str(kernels), "wheel": str(wheel)}
    if not fast:
        facts |= set_up_xthead()
    (LAB / "lab.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    return 0


def without_lab() -> int:
    (LAB / "lab.json").unlink(missing_ok=True)
    return 0


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def installed_emulator() -> str:
    """RILLM_QEMU, else the newest on the PATH; empty if there is none."""
    if named := os.environ.get("RILLM_QEMU"):
        return named
    return max(filter(None, map(shutil.which, EMULATORS)), key=version_of, default="")


def version_of(qemu: str) -> tuple[int, int]:
    shown = subprocess.run([qemu, "--version"], capture_output=True, text=True, check=False).stdout
    match = re.search(r"version (\d+)\.(\d+)", shown)
    return (int(match[1]), int(match[2])) if match else (0, 0)


def extracted(folder: Path, architecture: str, packages: list[str], suite: str = SUITE) -> str:
    """A folder with the packages' files and those that they depend on; nothing in it has run."""
    if not folder.is_dir():
        if shutil.which("mmdebstrap") is None:
            install_mmdebstrap()
        say(f"fetching {', '.join(packages)} ({architecture}) of Debian {suite} into {folder}")
        partial = folder.with_name(folder.name + ".partial")
        subprocess.run(["rm", "-rf", partial], check=True)
        subprocess.run(
            ["mmdebstrap", "--quiet", "--variant=extract", f"--architectures={architecture}",
             # A mirror may lag behind the date until which a testing release calls itself valid.
             '--aptopt=Acquire::Check-Valid-Until "false"', "--skip=check/qemu",
             f"--include={','.join(packages)}", suite, partial, f"deb {MIRROR} {suite} main"],
            check=True,
        )  # fmt: skip
        for name in ("bin", "lib", "lib64"):  # base-files makes them where /usr is merged
            if (partial / "usr" / name).is_dir() and not (partial / name).exists():
                (partial / name).symlink_to(f"usr/{name}")
        partial.rename(folder)
    return str(folder)


def install_mmdebstrap() -> None:
    command = ["apt-get", "install", "-y", "-qq", "--no-install-recommends", "mmdebstrap"]
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        sys.exit(f"mmdebstrap is missing: sudo {' '.join(command)}")
    subprocess.run(["apt-get", "update", "-qq"], check=True)
    subprocess.run(command, check=True)


def compile_kernels(folder: Path, variants: tuple[str, ...]) -> None:
    """The libraries of this very source in folder/lib, and with the test driver in folder/kernels.

    Empty `variants` are all.
    """
    digest = hashlib.sha256(" ".join(variants).encode())
    for path in sources():
        digest.update(path.relative_to(SOURCE).as_posix().encode() + path.read_bytes())
    mark = folder / "source.sha256"
    if mark.is_file() and mark.read_text() == digest.hexdigest():
        return
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    compile_core("riscv64", folder / "lib", SOURCE, variants=variants, say=say)
    kernels = folder / "kernels"
    shutil.copytree(folder / "lib", kernels)
    compiler = [sys.executable, SOURCE / "src/rillm/board/zig_cxx.py"]
    subprocess.run(
        [*compiler, "-std=c++20", "-O2", "-I", SOURCE / "csrc", DRIVER, "-o", kernels / "kernels"],
        check=True, env=os.environ | {"RILLM_ZIG": find_zig(say)},
    )  # fmt: skip
    mark.write_text(digest.hexdigest())


def set_up_xthead() -> dict[str, str]:
    """The XTheadVector variant, which only GCC 15 compiles, and the old emulator that runs it."""
    emulator = extracted(LAB / "emulator-0.7.1", "amd64", ["qemu-user-static"], OLD_SUITE)
    packages = ["g++-15-riscv64-linux-gnu", "cmake", "ninja-build", "dash"]
    root = Path(extracted(LAB / "gcc-15", "amd64", packages, XTHEAD_SUITE))
    inside = root / "rillm"
    for path in sources():  # ninja compiles what has changed
        target = inside / path.relative_to(SOURCE)
        target.parent.mkdir(parents=True, exist_ok=True)
        if not target.is_file() or target.read_bytes() != path.read_bytes():
            shutil.copyfile(path, target)
    # A compiler launcher of the environment is not in there. (An empty one as an argument does not
    # reach CMake's first test of the compiler.)
    environment = {k: v for k, v in os.environ.items() if k != "CMAKE_CXX_COMPILER_LAUNCHER"}
    enter = ["chroot"] if os.geteuid() == 0 else ["unshare", "--map-root-user", "chroot"]
    for command in (
        ["cmake", "-G", "Ninja", "-S", "/rillm", "-B", "/build", "-DCMAKE_SYSTEM_NAME=Linux",
         "-DCMAKE_SYSTEM_PROCESSOR=riscv64", "-DRILLM_TESTS=ON",
         "-DCMAKE_CXX_COMPILER=riscv64-linux-gnu-g++-15", "-DRILLM_VARIANTS=scalar;riscv_xthead"],
        ["cmake", "--build", "/build"],
    ):  # fmt: skip
        done = subprocess.run(
            [*enter, root, *command], env=environment, capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            raise RillmError(f"{' '.join(command)} in {root}:\n{done.stdout}{done.stderr}")
    qemu = f"{emulator}/usr/bin/qemu-riscv64-static"
    return {"qemu_0_7_1": qemu, "xthead": str(root / "build")}


def sources() -> Iterator[Path]:
    yield SOURCE / "CMakeLists.txt"
    for folder in (SOURCE / "csrc", DRIVER.parent):
        yield from (path for path in sorted(folder.rglob("*")) if path.is_file())


if __name__ == "__main__":
    try:
        sys.exit(main())
    except RillmError as error:
        sys.exit(f"riscv_lab: {error}")
