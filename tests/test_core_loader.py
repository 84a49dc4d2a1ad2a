"""Which variant of the core runs, and that all variants of this machine pass the core's tests."""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from rillm.core import (
    CoreError,
    abi,
    cpu_features,
    load_core,
    loader,
    supported_variants,
    variants,
)
from rillm.core.library import Core
from rillm.core.loader import choose_variant

ROOT = Path(__file__).resolve().parents[1]
# What must hold in every variant, whichever of them the rest of the tests runs on.
IN_EVERY_VARIANT = (
    ["tests/test_core_ops.py"],
    ["tests/test_core_invariants.py", "-k", "not Q6_K and not glm4-Q8_0"],
    ["tests/golden/test_logits.py", "-k", "glm_9b or glm4_32b or llama_smollm"],
)
# Prints the variant and the libraries that are mapped into the process.
REPORT = """
import json
from rillm.core import load_core
name = load_core().variant
maps = open("/proc/self/maps").read().split()
print(json.dumps([name, sorted({path for path in maps if "librillm_" in path})]))
"""
# Prints a number made of a prompt's results in every quantised format.
RESULTS = """
import hashlib
import numpy as np
from test_core_ops import CORE, FLOATS, FORMATS, Tiny, linear, matrix, random_blocks

digest, rng = hashlib.sha256(), np.random.default_rng(1)
with CORE.team(1) as team:
    for ggml_type in FORMATS:
        if ggml_type in FLOATS:
            continue
        cols = 1056 if 1056 % ggml_type.block_size == 0 else 768
        tiny = Tiny(team)
        x = tiny.input(rng.standard_normal((100, cols)).astype(np.float32))
        weight = matrix(tiny, ggml_type, random_blocks(rng, ggml_type, 70, cols), (70, cols))
        out = linear(tiny, x, tiny.quantized(x), [(weight, 70, False)])
        digest.update(tiny.run(out, range(100)).tobytes())
print(digest.hexdigest())
"""


def run_python(*arguments, isa):
    env = os.environ | {"RILLM_ISA": isa, "PYTHONPATH": str(ROOT / "tests")}
    return subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env=env, capture_output=True, text=True, check=False
    )


def names(rows):
    return [row.name for row in rows]


@pytest.fixture
def no_choice(monkeypatch):
    monkeypatch.delenv("RILLM_ISA", raising=False)


# ---- the probe ---------------------------------------------------------------------------------


def test_probe_agrees_with_the_kernel():
    flags = set()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith(("flags", "Features")):
            flags |= set(line.partition(":")[2].split())
    if "fpu" not in flags:
        pytest.skip("this kernel names the features of an x86 CPU only")
    kernel = {name.replace("_", "") for name in flags}
    known = {"avx2", "fma", "f16c", "bmi2", "avx512f", "avx512bw", "avx512vl", "avx512vnni"}
    assert known & cpu_features() == known & kernel


def test_variants_are_distinct_and_scalar_runs_anywhere():
    assert len(set(names(variants()))) == len({row.score for row in variants()}) == len(variants())
    assert "scalar" in names(supported_variants())
    assert all(row.path.is_file() for row in variants())


# ---- the choice --------------------------------------------------------------------------------


def test_best_supported_variant_is_chosen(no_choice, monkeypatch):
    assert choose_variant().score == max(row.score for row in supported_variants())
    for row in variants():
        monkeypatch.setattr(loader, "cpu_features", lambda row=row: row.features)
        better = [other for other in variants() if other.features <= row.features]
        assert choose_variant() == max(better, key=lambda other: other.score)


def test_a_cpu_without_features_gets_scalar(no_choice, monkeypatch):
    monkeypatch.setattr(loader, "cpu_features", frozenset)
    assert choose_variant().name == "scalar"
    assert names(supported_variants()) == ["scalar"]


def test_name_and_environment_force_a_variant(monkeypatch):
    monkeypatch.setenv("RILLM_ISA", "scalar")
    assert choose_variant().name == "scalar"
    for row in supported_variants():
        assert choose_variant(row.name) == row  # the argument goes before the environment
    monkeypatch.setenv("RILLM_ISA", "")
    assert choose_variant() == supported_variants()[0]


def test_unknown_variant(monkeypatch):
    monkeypatch.setenv("RILLM_ISA", "mmx")
    with pytest.raises(CoreError, match=r"RILLM_ISA=mmx: no such variant; this build has .*scalar"):
        choose_variant()


def test_unsupported_variant(monkeypatch):
    needy = next((row for row in variants() if row.features), None)
    if needy is None:
        pytest.skip("this build has no variant with requirements")
    missing = min(needy.features)
    monkeypatch.setattr(loader, "cpu_features", lambda: needy.features - {missing})
    with pytest.raises(CoreError, match=f"RILLM_ISA={needy.name}: this CPU lacks {missing}$"):
        choose_variant(needy.name)


def test_no_variant_for_this_cpu(no_choice, monkeypatch):
    needy = tuple(row for row in variants() if row.features)
    monkeypatch.setattr(loader, "variants", lambda: needy)
    monkeypatch.setattr(loader, "cpu_features", frozenset)
    with pytest.raises(CoreError, match="no variant for this CPU"):
        choose_variant()


def test_core_that_was_not_built(monkeypatch, tmp_path):
    monkeypatch.setattr(loader, "_library_folders", lambda: iter([tmp_path]))
    with pytest.raises(CoreError, match="core is not built"):
        variants.__wrapped__()


# ---- loading -----------------------------------------------------------------------------------


def test_a_process_has_one_core():
    core = load_core()
    assert load_core() is core
    assert load_core(core.variant) is core
    with pytest.raises(CoreError, match=f"variant {core.variant} is loaded already"):
        load_core("another")


def test_library_that_is_missing_or_not_ours(tmp_path):
    with pytest.raises(CoreError, match=r"nothing\.so: cannot be loaded"):
        Core(tmp_path / "nothing.so")
    (tmp_path / "text.so").write_text("this is no library")
    with pytest.raises(CoreError, match=r"text\.so: cannot be loaded"):
        Core(tmp_path / "text.so")
    probe = variants()[0].path.with_name("librillm_probe.so")
    with pytest.raises(CoreError, match=r"librillm_probe\.so: is not a library of rillm's core"):
        Core(probe)


def test_other_abi_version(monkeypatch):
    monkeypatch.setattr(abi, "ABI_VERSION", abi.ABI_VERSION + 1)
    expected = rf"version is {abi.ABI_VERSION - 1}, this rillm expects {abi.ABI_VERSION}: .*reinst"
    with pytest.raises(CoreError, match=expected):
        Core(choose_variant(load_core().variant).path)


@pytest.mark.parametrize("name", ["CoreFormat", "CoreTensor", "CoreOp", "CoreBatch"])
def test_other_structure_size(monkeypatch, name):
    class Longer(getattr(abi, name)):
        _fields_ = (("one_more", ctypes.c_int64),)

    monkeypatch.setattr(abi, name, Longer)
    field = "sizeof_" + name.removeprefix("Core").lower()
    with pytest.raises(CoreError, match=f"{field} is .*this rillm expects {ctypes.sizeof(Longer)}"):
        Core(choose_variant(load_core().variant).path)


# ---- every variant in a process of its own -------------------------------------------------------


@pytest.mark.parametrize("name", names(supported_variants()))
def test_environment_decides_which_variant_runs(name):
    done = run_python("-c", REPORT, isa=name)
    assert done.returncode == 0, done.stderr
    variant, libraries = json.loads(done.stdout)
    assert variant == name
    loaded = [Path(path).name for path in libraries if "probe" not in path]
    assert loaded == [f"librillm_{name}.so"]


def test_amx_gives_the_bits_of_avx512():
    """Another unit makes the sums of a prompt; they and what follows are the same."""
    if "x86_amx" not in names(supported_variants()):
        pytest.skip("this CPU has no AMX")
    amx, avx512 = (run_python("-c", RESULTS, isa=isa) for isa in ("x86_amx", "x86_avx512"))
    assert amx.returncode == avx512.returncode == 0, amx.stderr + avx512.stderr
    assert len(amx.stdout) == 65
    assert amx.stdout == avx512.stdout


def test_environment_with_an_unknown_name_fails_with_one_line():
    done = run_python("-c", REPORT, isa="mmx")
    assert done.returncode != 0
    assert "CoreError: RILLM_ISA=mmx: no such variant" in done.stderr.splitlines()[-1]


@pytest.mark.timeout(900)  # the scalar variant on a busy machine
@pytest.mark.parametrize("arguments", IN_EVERY_VARIANT, ids=lambda arguments: arguments[0])
@pytest.mark.parametrize(
    "name", [name for name in names(supported_variants()) if name != load_core().variant]
)
def test_other_variants_pass_the_same_tests(name, arguments):
    done = run_python("-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments, isa=name)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    assert "passed" in done.stdout
