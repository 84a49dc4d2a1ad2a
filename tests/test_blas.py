"""OpenBLAS for prefill with float weights. Tests that multiply need libopenblas (see .ci/run)."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from programs import Tiny, dequantize, float_rows, random_blocks, whole_batch
from random_gguf import write_random_glm

from rillm.cli.app import run as run_cli
from rillm.core import (
    BLAS_CHOICES,
    CompiledProgram,
    CoreError,
    OpKind,
    WeightKind,
    choose_blas,
    load_core,
    open_blas,
)
from rillm.core import blas as blas_module
from rillm.errors import RillmError
from rillm.gguf import GGMLType
from rillm.llm import LLM

CORE = load_core()
FLOATS = (GGMLType.F32, GGMLType.F16, GGMLType.BF16)
MIN_ROWS = 33


def _has_openblas() -> bool:
    with contextlib.suppress(CoreError):
        open_blas(CORE)
    return bool(CORE.blas_info)


needs_openblas = pytest.mark.skipif(not _has_openblas(), reason="no libopenblas0-pthread here")


@pytest.fixture(scope="module", params=[1, 2, 3], ids=lambda n: f"{n} threads")
def team(request):
    with CORE.team(request.param) as team:
        yield team


def run(tiny, output, num_tokens, min_rows):
    with contextlib.closing(
        CompiledProgram(
            tiny.team, None, tiny.ops, tiny.buffers, tiny.weights, max_tokens=num_tokens,
            max_logits=num_tokens, output=output, blas_min_rows=min_rows,
        )
    ) as program:  # fmt: skip
        program.run(whole_batch(range(num_tokens)))
        return float_rows(program.output_address(), num_tokens, program.output_width)


# ---- numbers -----------------------------------------------------------------------------------


@needs_openblas
@pytest.mark.parametrize("cols", [32, 544, 1056])
@pytest.mark.parametrize("ggml_type", FLOATS, ids=lambda type_: type_.name)
def test_products_of_float_weights(team, ggml_type, cols):
    rng = np.random.default_rng(cols)
    rows, num_tokens = 601, 70  # rows fill neither a tile nor a panel
    blocks = random_blocks(rng, ggml_type, rows, cols)
    w = dequantize(CORE, ggml_type, blocks, (rows, cols)).astype(np.float64)
    x = rng.standard_normal((num_tokens, cols)).astype(np.float32)
    tiny = Tiny(team)
    source = tiny.input(x)
    weight = tiny.add_weight(WeightKind.MATRIX, ggml_type, (rows, cols), blocks.data)
    out = tiny.op(OpKind.LINEAR, [None, None, source], [tiny.buffer(rows)], [weight])
    bound = 2e-6 * (np.abs(x.astype(np.float64)) @ np.abs(w).T)
    assert (
        np.abs(run(tiny, out, num_tokens, MIN_ROWS) - x.astype(np.float64) @ w.T) <= bound
    ).all()
    few = MIN_ROWS - 1
    np.testing.assert_array_equal(run(tiny, out, few, MIN_ROWS), run(tiny, out, few, 0))


@needs_openblas
@pytest.mark.parametrize("in_place", [False, True], ids=["apart", "in place"])
def test_parts_biases_and_residual(team, in_place):
    rng = np.random.default_rng(5)
    cols, num_tokens = 256, 40
    x = rng.standard_normal((num_tokens, cols)).astype(np.float32)
    tiny = Tiny(team)
    source = tiny.input(x)
    q8 = tiny.quantized(source)
    parts = [(GGMLType.F16, 300, True), (GGMLType.Q8_0, 41, False), (GGMLType.BF16, 17, True)]
    width = sum(rows for _, rows, _ in parts)
    extra = rng.normal(0, 30, (num_tokens, width)).astype(np.float32)
    residual = tiny.input(extra)
    weights, biases, expected = [], [], []
    for ggml_type, rows, has_bias in parts:
        blocks = random_blocks(rng, ggml_type, rows, cols)
        w = dequantize(CORE, ggml_type, blocks, (rows, cols)).astype(np.float64)
        weights.append(tiny.add_weight(WeightKind.MATRIX, ggml_type, (rows, cols), blocks.data))
        bias = rng.normal(0, 20, rows).astype(np.float32) if has_bias else np.zeros(rows)
        biases.append(tiny.vector(bias) if has_bias else None)
        expected.append(x.astype(np.float64) @ w.T + bias)
    out = residual if in_place else tiny.buffer(width)
    tiny.op(OpKind.LINEAR, [q8, residual, source], [out], weights + biases)
    got, own = (run(tiny, out, num_tokens, min_rows) for min_rows in (1, 0))
    expected = np.concatenate(expected, axis=1) + extra
    for part in (slice(0, 300), slice(341, 358)):
        error = np.abs(got[:, part] - expected[:, part]).max()
        assert error < 1e-5 * np.abs(expected).max()
    np.testing.assert_array_equal(got[:, 300:341], own[:, 300:341])  # quantised: never by BLAS


@needs_openblas
def test_a_model_answers_nearly_the_same(tmp_path):
    from rillm.gguf import GGUFReader
    from rillm.models import load_model

    path = tmp_path / "random.gguf"
    write_random_glm(path, CORE, GGMLType.F16, architecture="glm4")
    logits = []
    for choice in ("off", "openblas"):
        with GGUFReader(path) as reader, CORE.team(2) as team:
            model = load_model(
                reader, CORE, team, max_tokens=100, max_logits=1, num_blocks=7, blas=choice
            )
            batch = whole_batch(range(100), logits_rows=[99])
            batch.slot_mapping[:] = batch.positions[:]
            batch.block_tables.extend(range(7))
            batch.max_blocks = 7
            model.run(batch)
            logits.append(np.array(model.logits(0)))
            assert model.blas.startswith("off" if choice == "off" else "OpenBLAS ")
            model.close()
    assert np.isfinite(logits[0]).all()
    np.testing.assert_allclose(logits[0], logits[1], atol=1e-3 * np.abs(logits[0]).max())
    assert (logits[0] != logits[1]).any()  # it did compute in another order


@needs_openblas
def test_it_starts_no_threads_and_leaves_the_environment_alone():
    code = (
        "import ctypes, os\n"
        "from rillm.core import load_core, open_blas\n"
        "core = load_core()\n"
        "before = len(os.listdir('/proc/self/task'))\n"
        "open_blas(core)\n"
        "getenv = ctypes.CDLL(None).getenv\n"
        "getenv.restype = ctypes.c_char_p\n"
        "print(len(os.listdir('/proc/self/task')) - before, getenv(b'OPENBLAS_NUM_THREADS'))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"OPENBLAS_NUM_THREADS": "7"},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout == "0 b'7'\n"


@needs_openblas
def test_programs_of_several_threads_at_once():
    rng = np.random.default_rng(1)
    x = rng.standard_normal((64, 512)).astype(np.float32)
    blocks = random_blocks(rng, GGMLType.F16, 512, 512)
    results, errors = [], []

    def work():
        try:
            with CORE.team(2) as team:
                tiny = Tiny(team)
                source = tiny.input(x)
                weight = tiny.add_weight(WeightKind.MATRIX, GGMLType.F16, (512, 512), blocks.data)
                out = tiny.op(OpKind.LINEAR, [None, None, source], [tiny.buffer(512)], [weight])
                results.append([run(tiny, out, 64, 1) for _ in range(20)])
                tiny.close()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    for rows in results:
        for row in rows:
            np.testing.assert_array_equal(row, results[0][0])


# ---- the choice --------------------------------------------------------------------------------


def test_off_loads_nothing(monkeypatch):
    monkeypatch.setattr(blas_module, "open_blas", lambda core: pytest.fail("looked for OpenBLAS"))
    with CORE.team(1) as team:
        use = choose_blas(CORE, team, "off", [(1, 64, 64)])
    assert (use.min_rows, use.description) == (0, "off")


def test_a_missing_library_is_an_error_only_where_it_was_asked_for(monkeypatch, tmp_path, capsys):
    class Bare:  # a core that finds no library, whatever this machine has
        blas_info = ""

        def load_blas(self, path):
            raise CoreError(f"{path}: cannot open shared object file")

    monkeypatch.setattr(blas_module, "open_blas", lambda core: open_blas(Bare(), {}))
    with CORE.team(1) as team:
        use = choose_blas(CORE, team, "auto", [(1, 64, 64)])
        assert use.min_rows == 0
        assert "libopenblas0-pthread" in use.description
        with pytest.raises(CoreError, match="libopenblas0-pthread") as caught:
            choose_blas(CORE, team, "openblas", [(1, 64, 64)])
    assert "\n" not in str(caught.value)
    path = tmp_path / "random.gguf"
    write_random_glm(path, CORE, GGMLType.F16, architecture="glm4")
    assert (
        run_cli(["run", "-m", str(path), "--raw", "-p", "a", "-n", "1", "--blas", "openblas"]) == 1
    )
    assert "libopenblas0-pthread" in capsys.readouterr().err
    with LLM(path, context_length=64, blas="auto") as llm:
        assert len(llm.generate([[1, 2, 3]], n_predict=1)) == 1


def test_unknown_choices_are_named():
    with pytest.raises(RillmError, match="blas must be one of off, auto, openblas, not 'mkl'"):
        LLM("nowhere.gguf", blas="mkl")
    assert BLAS_CHOICES == ("off", "auto", "openblas")


def test_what_is_no_openblas_is_refused(tmp_path):
    import ctypes.util

    script = (
        "import sys\n"
        "from rillm.core import CoreError, load_core\n"
        "try:\n    load_core().load_blas(sys.argv[1])\n"
        "except CoreError as error:\n    print(error)\n"
    )

    def refusal(path):
        command = [sys.executable, "-c", script, str(path)]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    (tmp_path / "text.so").write_text("not a library")
    assert "text.so" in refusal(tmp_path / "text.so")
    assert "is no OpenBLAS" in refusal(ctypes.util.find_library("m") or "libm.so.6")
    assert "cannot open" in refusal("/nonexistent/libopenblas.so")


def test_a_quantised_model_has_no_use_for_it(monkeypatch):
    monkeypatch.setattr(blas_module, "open_blas", lambda core: None)
    with CORE.team(1) as team:
        use = choose_blas(CORE, team, "openblas", [(GGMLType.Q4_K, 256, 256)])
    assert (use.min_rows, use.description) == (0, "off: the model has no f32, f16 or bf16 matrix")


@pytest.mark.parametrize(
    ("speeds", "rows"),
    [
        ({64: 1.3, 128: 1.4, 256: 1.5}, 64),
        ({64: 1.0, 128: 1.4, 256: 1.5}, 128),
        ({64: 1.4, 128: 1.0, 256: 1.5}, 256),
        ({64: 1.4, 128: 1.4, 256: 1.1}, 0),
        ({64: 0.5, 128: 0.6, 256: 0.7}, 0),
    ],
)
def test_auto_takes_it_only_from_where_it_wins(monkeypatch, speeds, rows):
    assert blas_module.least_rows(speeds) == rows
    monkeypatch.setattr(blas_module, "open_blas", lambda core: None)
    monkeypatch.setattr(blas_module, "compare", lambda core, team, shape: speeds)
    with CORE.team(1) as team:
        assert choose_blas(CORE, team, "auto", [(1, 64, 64)]).min_rows == rows


@needs_openblas
@pytest.mark.parametrize("ggml_type", FLOATS, ids=lambda type_: type_.name)
def test_auto_measures_both(ggml_type):
    with CORE.team(2) as team:
        speeds = blas_module.compare(CORE, team, (ggml_type, 300, 544), counts=(8, 64))
    assert list(speeds) == [8, 64]
    assert all(0.01 < ratio < 100 for ratio in speeds.values())


# ---- where it is looked for --------------------------------------------------------------------


def test_the_variable_names_a_file_or_a_prefix(tmp_path: Path):
    assert list(blas_module.candidates({})) == list(blas_module._NAMES)
    assert list(blas_module.candidates({"OPENBLAS": "libx.so"})) == ["libx.so"]
    lib = tmp_path / "lib"
    lib.mkdir()
    for name in ("libopenblas_c910vp-r0.3.28.so", "libopenblas.so", "libopenblas.a", "libm.so"):
        (lib / name).touch()
    found = list(blas_module.candidates({"OPENBLAS": str(tmp_path)}))
    assert found == [str(lib / "libopenblas.so"), str(lib / "libopenblas_c910vp-r0.3.28.so")]
    assert list(blas_module.candidates({"OPENBLAS": str(lib)})) == found


@needs_openblas
def test_a_prefix_is_loaded(tmp_path):
    library = next(
        line.split()[-1]
        for line in Path("/proc/self/maps").read_text().splitlines()
        if "libopenblasp" in line
    )
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "libopenblas.so.0").symlink_to(library)
    code = (
        "from rillm.core import load_core, open_blas\n"
        "core = load_core()\nopen_blas(core)\nprint(core.blas_info)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"OPENBLAS": str(tmp_path)},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.strip() == CORE.blas_info


def test_the_doctor_says_what_is_there():
    from rillm.board.doctor import examine

    found = examine(measure=False).blas
    assert found == CORE.blas_info or "libopenblas0-pthread" in found
