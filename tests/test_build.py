from __future__ import annotations

import base64
import csv
import hashlib
import io
import os
import random
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from rillm.board.build import _left_out, build_wheel, find_source
from rillm.board.elf import ELFError, read_shared_library
from rillm.board.toolchains import TARGETS, find_toolchain
from rillm.board.wheel import read_project, write_wheel
from rillm.board.zig_cxx import UnknownMarchError, translate
from rillm.errors import RillmError

SOURCE = find_source()


@pytest.fixture
def libraries(tmp_path: Path) -> Path:
    """Stand-ins for built libraries: what a wheel does with them does not depend on content."""
    folder = tmp_path / "lib"
    folder.mkdir()
    source = random.Random(3)
    for name in ("librillm_probe.so", "librillm_scalar.so"):
        (folder / name).write_bytes(source.randbytes(5000))
    (folder / "variants.jsonl").write_text('{"name": "scalar", "features": "", "score": 0}\n')
    return folder


def test_a_wheel_records_every_file_and_leaves_out_this_machines_libraries(libraries, tmp_path):
    wheel = write_wheel(SOURCE, libraries, "manylinux_2_27_riscv64", tmp_path / "out")
    version = read_project(SOURCE)["version"]
    assert wheel.name == f"rillm-{version}-py3-none-manylinux_2_27_riscv64.whl"
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        info = f"rillm-{version}.dist-info"
        record = archive.read(f"{info}/RECORD").decode()
        rows = {row[0]: row[1:] for row in csv.reader(io.StringIO(record))}
        assert set(rows) == set(names)
        for name in names:
            if name != f"{info}/RECORD":
                digest = base64.urlsafe_b64encode(hashlib.sha256(archive.read(name)).digest())
                assert rows[name] == [
                    f"sha256={digest.rstrip(b'=').decode()}", str(archive.getinfo(name).file_size)
                ]  # fmt: skip
        assert sorted(name for name in names if name.startswith("rillm/core/lib/")) == [
            f"rillm/core/lib/{path.name}" for path in sorted(libraries.iterdir())
        ]
        assert (
            archive.read(f"{info}/WHEEL")
            .decode()
            .endswith("Tag: py3-none-manylinux_2_27_riscv64\n")
        )
        metadata = archive.read(f"{info}/METADATA").decode()
        assert "Requires-Dist: regex>=2024.4\n" in metadata
        assert "Requires-Dist: numpy>=1.26; extra == 'prepare'\n" in metadata
        assert b"rillm = rillm.cli:main" in archive.read(f"{info}/entry_points.txt")
        assert "rillm/data/glm-tiny/model.safetensors" in names
        assert not [name for name in names if "__pycache__" in name]
        mode = archive.getinfo("rillm/core/lib/librillm_scalar.so").external_attr >> 16
        assert mode == 0o100755


def test_the_same_source_gives_the_same_wheel(libraries, tmp_path, monkeypatch):
    first = write_wheel(SOURCE, libraries, "linux_riscv64", tmp_path / "a").read_bytes()
    os.utime(libraries / "librillm_scalar.so", (1, 1))
    assert write_wheel(SOURCE, libraries, "linux_riscv64", tmp_path / "b").read_bytes() == first
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    wheel = write_wheel(SOURCE, libraries, "linux_riscv64", tmp_path / "c")
    with zipfile.ZipFile(wheel) as archive:
        assert {entry.date_time for entry in archive.infolist()} == {(2023, 11, 14, 22, 13, 20)}
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "yesterday")
    with pytest.raises(RillmError, match="SOURCE_DATE_EPOCH=yesterday"):
        write_wheel(SOURCE, libraries, "linux_riscv64", tmp_path / "d")


def test_pip_takes_the_wheel(libraries, tmp_path):
    wheel = write_wheel(SOURCE, libraries, f"linux_{os.uname().machine}", tmp_path / "out")
    target = tmp_path / "site"
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index",
         "--disable-pip-version-check", "--target", target, wheel],
        check=True,
    )  # fmt: skip
    installed = (target / "rillm/core/lib/librillm_scalar.so").read_bytes()
    assert installed == (libraries / "librillm_scalar.so").read_bytes()


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("-march=rv64gc", ["-mcpu=baseline_rv64"]),
        (
            "-march=rv64gcv_zvl256b_zicbop -mrvv-vector-bits=zvl",
            ["-mcpu=baseline_rv64+v+zvl256b+zicbop", "-mrvv-vector-bits=256"],
        ),
        (
            "-march=rv64gcv_zba1p0 -mrvv-vector-bits=zvl",
            ["-mcpu=baseline_rv64+v+zba", "-mrvv-vector-bits=128"],
        ),
        ("-march=rv64imafdcv -mrvv-vector-bits=512",
         ["-mcpu=baseline_rv64+v", "-mrvv-vector-bits=512"]),
        ("-march=x86-64-v4 -mavx512vnni -O3", ["-O3", "-mcpu=x86_64_v4+avx512vnni"]),
        ("-mamx-int8 -mno-avx2", ["-mcpu=baseline+amx_int8-avx2"]),
        ("-march=armv8.2-a+dotprod+fp16", ["-mcpu=generic+v8_2a+dotprod+fullfp16"]),
        ("-static-libgcc -Wl,-s -mfoo", ["-Wl,-s", "-mfoo"]),
    ],
)  # fmt: skip
def test_gcc_options_in_the_words_of_zig(given, expected):
    assert translate(given.split()) == expected


@pytest.mark.parametrize("march", ["rv64gc_xtheadvector", "rv64imac", "armv9"])
def test_what_zig_cannot_build_is_refused(march):
    with pytest.raises(UnknownMarchError, match=march):
        translate([f"-march={march}"])


def test_variants_that_cmake_left_out_are_found_in_its_folded_warnings():
    log = (
        "CMake Warning at CMakeLists.txt:36 (message):\n  variant xthead left out: "
        "/tmp/x/zig-c++ does not know\n  -march=rv64gc_xtheadvector\nCall Stack (most recent call "
        "first):\n  csrc/isa/variants.cmake:9 (rillm_variant)\n\n\n-- Configuring done\n"
    )
    assert _left_out(log) == {"xthead": "zig does not know -march=rv64gc_xtheadvector"}
    assert _left_out("-- Configuring done\n") == {}


def test_no_sources_no_build(tmp_path):
    with pytest.raises(RillmError, match="--source"):
        find_source(tmp_path)
    with pytest.raises(RillmError, match="riscv64, aarch64, x86_64"):
        build_wheel("sparc64")
    with pytest.raises(RillmError, match="zig, gcc, clang"):
        find_toolchain("tcc", "riscv64", tmp_path, print)


def test_a_missing_cross_compiler_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RillmError, match="riscv64-linux-gnu-g"):
        find_toolchain("gcc", "riscv64", tmp_path, print)
    with pytest.raises(RillmError, match="no clang"):
        find_toolchain("clang", "riscv64", tmp_path, print)


def test_the_newest_compiler_is_taken(tmp_path, monkeypatch):
    for suffix, version in (("", "12"), ("-9", "9"), ("-15", "15")):
        path = tmp_path / f"riscv64-linux-gnu-g++{suffix}"
        path.write_text(f"#!/bin/sh\necho {version}\n")
        path.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    tools = find_toolchain("gcc", "riscv64", tmp_path, print)
    assert tools.version == "GCC 15"
    assert tools.cmake_arguments == (f"-DCMAKE_CXX_COMPILER={tmp_path}/riscv64-linux-gnu-g++-15",)


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
def test_what_a_library_needs_is_read_from_it(tmp_path):
    source = tmp_path / "a.cpp"
    source.write_text(
        '#include <cmath>\nextern "C" double f(double x) { return std::exp(x) + std::pow(x, x); }'
    )
    path = tmp_path / "liba.so"
    subprocess.run(["g++", "-shared", "-fPIC", "-s", "-o", path, source, "-lm"], check=True)
    library = read_shared_library(path)
    assert library.machine == os.uname().machine
    assert "libm.so.6" in library.needed
    assert library.is_stripped
    assert library.glibc >= (2, 17) or os.uname().machine == "x86_64"
    assert any(name == "libm.so.6" for name, _ in library.versions)
    numbers = [int(v.split(".")[1]) for _, v in library.versions if v.startswith("GLIBC_2.")]
    assert library.glibc == (2, max(numbers))
    subprocess.run(["g++", "-shared", "-fPIC", "-g", "-o", path, source], check=True)
    assert not read_shared_library(path).is_stripped
    data = path.read_bytes()
    for cut in (0, 5, 70, 300, len(data) // 2):
        path.write_bytes(data[:cut])
        with pytest.raises(ELFError, match=r"liba\.so"):
            read_shared_library(path)


@pytest.mark.skipif(
    not os.environ.get("RILLM_TEST_BUILD"),
    reason="compiles for minutes, may download zig: set RILLM_TEST_BUILD=1",
)
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("target", TARGETS)
def test_a_wheel_by_zig_is_the_same_every_time(target, tmp_path):
    result = build_wheel(target, variants=["scalar"], out=tmp_path)
    assert result.variants == ("scalar",)
    assert result.wheel.name.endswith(f"manylinux_2_{result.glibc[1]}_{target}.whl")
    with zipfile.ZipFile(result.wheel) as archive:
        archive.extractall(tmp_path / "x")
    library = read_shared_library(tmp_path / "x/rillm/core/lib/librillm_scalar.so")
    assert library.machine == target
    assert library.is_stripped
    again = build_wheel(target, variants=["scalar"], out=tmp_path / "again")
    assert again.wheel.read_bytes() == result.wheel.read_bytes()

    with pytest.raises(RillmError, match="--variants nonsense"):
        build_wheel(target, variants=["nonsense"], out=tmp_path)
