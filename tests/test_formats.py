"""The core's weight formats: dequantisation against the gguf package, quality of the quantisers."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys

import gguf
import numpy as np
import pytest

from rillm.core import CoreError, load_core, supported_variants

CORE = load_core()
FORMATS = {fmt.name: fmt for fmt in CORE.formats}
QUANTIZED = [name for name, fmt in FORMATS.items() if fmt.block_size > 1]
# Where the blocks of a format hold their halfs.
HALFS = {
    "F16": (0,), "Q8_0": (0,), "Q4_0": (0,), "Q4_1": (0, 2), "Q5_0": (0,), "Q5_1": (0, 2),
    "Q2_K": (80, 82), "Q3_K": (108,), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,),
    "IQ4_NL": (0,), "IQ4_XS": (0,),
}  # fmt: skip
# Relative error of llama.cpp's quantisers (ggml 0.27.0) on sample("gaussian") and sample("heavy"):
# plain, then weighted by importance and quantised with it.
LLAMA_CPP = {
    "Q8_0": ((0.00534, 0.00532), (0.00853, 0.00850)),
    "Q4_0": ((0.08572, 0.07694), (0.12909, 0.12217)),
    "Q4_1": ((0.07798, 0.06374), (0.10070, 0.08316)),
    "Q5_0": ((0.04263, 0.03832), (0.06718, 0.06476)),
    "Q5_1": ((0.03777, 0.03096), (0.04836, 0.04047)),
    "Q2_K": ((0.29406, 0.23668), (0.35695, 0.27603)),
    "Q3_K": ((0.15053, 0.13404), (0.18889, 0.17310)),
    "Q4_K": ((0.07101, 0.06470), (0.09380, 0.08602)),
    "Q5_K": ((0.03592, 0.03292), (0.04716, 0.04407)),
    "Q6_K": ((0.01773, 0.01610), (0.02582, 0.02445)),
    "IQ4_NL": ((0.07611, 0.07048), (0.10287, 0.09609)),
    "IQ4_XS": ((0.07666, 0.07126), (0.10417, 0.09800)),
}


def sample(kind, shape=(64, 1024)):
    rng = np.random.default_rng(11)
    heavy = kind == "heavy"
    weights = rng.standard_t(3, shape) if heavy else rng.standard_normal(shape)
    importance = rng.lognormal(size=shape[1])
    return (0.02 * weights).astype(np.float32), importance.astype(np.float32)


def quantize(name, weights, importance=None):
    fmt = FORMATS[name]
    rows, cols = weights.shape
    blocks = np.full((rows, cols // fmt.block_size * fmt.block_bytes), 0xA5, np.uint8)
    weights = np.ascontiguousarray(weights, np.float32)
    CORE.quantize(fmt.ggml_type, weights, blocks, cols, importance)
    return blocks


def dequantize(name, blocks):
    fmt = FORMATS[name]
    out = np.full(blocks.size // fmt.block_bytes * fmt.block_size, np.nan, np.float32)
    CORE.dequantize(fmt.ggml_type, np.ascontiguousarray(blocks), out)
    return out.reshape(blocks.shape[0], -1)


def round_trip(name, weights, importance=None):
    return dequantize(name, quantize(name, weights, importance))


def relative_error(weights, got, importance=1.0):
    error = (got.astype(np.float64) - weights) ** 2 * importance
    return float(np.sqrt(error.sum() / (weights.astype(np.float64) ** 2 * importance).sum()))


def test_formats_are_those_of_the_gguf_package():
    assert len(FORMATS) == 15
    for name, fmt in FORMATS.items():
        ggml_type = gguf.GGMLQuantizationType[name]
        assert fmt.ggml_type == ggml_type
        assert (fmt.block_size, fmt.block_bytes) == gguf.GGML_QUANT_SIZES[ggml_type]
        assert fmt.can_quantize


@pytest.mark.parametrize("name", FORMATS)
def test_dequantize_equals_the_gguf_package_bit_for_bit(name):
    fmt = FORMATS[name]
    rng = np.random.default_rng(fmt.ggml_type)
    blocks = rng.integers(0, 256, (3001, fmt.block_bytes), np.uint8)
    for at in HALFS.get(name, ()):
        halfs = blocks[:, at : at + 2].copy().view(np.uint16)
        halfs[(halfs & 0x7C00) == 0x7C00] &= 0x83FF  # not finite: make it subnormal
        halfs[::17], halfs[1::17], halfs[2::17] = 0x8000, 0x0001, 0xFBFF
        blocks[:, at : at + 2] = halfs.view(np.uint8)
    expected = gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType[name])
    got = dequantize(name, blocks)
    same = expected.astype(np.float32).view(np.uint32).ravel() == got.view(np.uint32).ravel()
    if name in ("F32", "BF16"):  # random bits are not always a number
        same |= np.isnan(got).ravel() & np.isnan(expected).ravel()
    assert same.all()


@pytest.mark.parametrize("name", ["F32", "F16", "BF16"])
def test_float_formats_round_as_the_gguf_package(name):
    rng = np.random.default_rng(3)
    exponents = rng.integers(-30, 15, (50, 64)).astype(np.float32)
    weights = (rng.standard_normal((50, 64)) * 2.0**exponents).astype(np.float32)
    weights[0, :4] = [0.0, -0.0, 2.0**-25, -(2.0**-24) * 1.5]  # ties of subnormal halfs
    expected = gguf.quants.quantize(weights, gguf.GGMLQuantizationType[name])
    assert quantize(name, weights).tobytes() == expected.tobytes()


@pytest.mark.parametrize("kind", ["gaussian", "heavy"])
@pytest.mark.parametrize("name", QUANTIZED)
def test_error_is_below_llama_cpp(name, kind):
    weights, importance = sample(kind)
    plain, weighted = LLAMA_CPP[name][kind == "heavy"]
    assert relative_error(weights, round_trip(name, weights)) < plain
    got = round_trip(name, weights, importance)
    assert relative_error(weights, got, importance) < weighted


@pytest.mark.parametrize("name", ["Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"])
def test_error_is_below_the_gguf_package(name):
    ggml_type = gguf.GGMLQuantizationType[name]
    weights = np.random.default_rng(5).laplace(size=(32, 512)).astype(np.float32)
    theirs = gguf.quants.dequantize(gguf.quants.quantize(weights, ggml_type), ggml_type)
    ours = relative_error(weights, round_trip(name, weights))
    assert ours < relative_error(weights, theirs)


@pytest.mark.parametrize("name", [name for name in QUANTIZED if name != "Q8_0"])
def test_importance_moves_error_to_columns_that_matter_less(name):
    weights, _ = sample("gaussian", (16, 512))
    importance = np.where(np.arange(512) % 4 == 0, 50.0, 1.0).astype(np.float32)
    plain, weighted = round_trip(name, weights), round_trip(name, weights, importance)
    assert relative_error(weights[:, ::4], weighted[:, ::4]) < 0.95 * relative_error(
        weights[:, ::4], plain[:, ::4]
    )
    for constant in (3e-5, 0.0):  # as if there were none; but where it is given, more is tried
        got = round_trip(name, weights, np.full(512, constant, np.float32))
        ratio = relative_error(weights, got) / relative_error(weights, plain)
        assert 0.92 < ratio < 1.001


@pytest.mark.parametrize("name", QUANTIZED)
def test_rows_do_not_depend_on_their_neighbours(name):
    weights, importance = sample("heavy", (7, 1280))  # 5 blocks of 256, 40 of 32: short groups
    whole = quantize(name, weights, importance)
    for row in range(7):
        assert np.array_equal(
            whole[row : row + 1], quantize(name, weights[row : row + 1], importance)
        )
    one_block = FORMATS[name].block_size
    first = quantize(name, weights[:, :one_block].copy())
    assert np.array_equal(quantize(name, weights)[:, : FORMATS[name].block_bytes], first)


@pytest.mark.parametrize("name", QUANTIZED)
def test_scaling_by_a_power_of_two_scales_the_result(name):
    weights = sample("gaussian", (8, 512))[0] * np.float32(50)
    base = round_trip(name, weights)
    assert np.array_equal(round_trip(name, weights * np.float32(16)), base * np.float32(16))


@pytest.mark.parametrize("name", QUANTIZED)
def test_values_on_the_grid_come_back(name):
    """Weights that a block can hold: integers of one scale, over the whole range of codes."""
    values = {
        "Q8_0": np.arange(-127, 128), "Q4_0": np.arange(-8, 8), "Q4_1": np.arange(16) + 3,
        "Q5_0": np.arange(-16, 16), "Q5_1": np.arange(32) - 40, "Q2_K": np.arange(4),
        "Q3_K": np.arange(-4, 4), "Q4_K": np.arange(16), "Q5_K": np.arange(32),
        "Q6_K": np.arange(-32, 32),
        "IQ4_NL": gguf.quants.IQ4_NL.kvalues, "IQ4_XS": gguf.quants.IQ4_NL.kvalues,
    }[name]  # fmt: skip
    rng = np.random.default_rng(9)
    sub_block = min(len(values), 16)
    # Each run of 16 holds the extremes, so that every sub-block has the same scale.
    rows = [
        rng.permutation(np.append(rng.choice(values, sub_block - 2), [values[0], values[-1]]))
        for _ in range(4 * 512 // sub_block)
    ]
    weights = (np.float32(0.125) * np.concatenate(rows)).reshape(4, 512).astype(np.float32)
    assert relative_error(weights, round_trip(name, weights)) < 2e-3


def test_q4_1_stays_q4_1():
    """Also where the ends of a block's range count for next to nothing."""
    weights, _ = sample("normal")
    once = round_trip("Q4_1", weights)
    importance = np.random.default_rng(4).lognormal(0, 6, weights.shape[1]).astype(np.float32)
    assert (round_trip("Q4_1", once, importance) == once).all()


@pytest.mark.parametrize("name", QUANTIZED)
def test_zeros_stay_zeros(name):
    weights = np.zeros((3, 512), np.float32)
    weights[1, 7] = -0.0
    assert not round_trip(name, weights).any()
    assert not round_trip(name, weights, np.ones(512, np.float32)).any()


@pytest.mark.parametrize("name", QUANTIZED)
def test_one_outlier_keeps_its_value(name):
    weights = sample("gaussian", (4, 512))[0]
    weights[:, 100] = [1e3, -1e3, 1e4, -1e4]
    got = round_trip(name, weights)
    assert np.allclose(got[:, 100], weights[:, 100], rtol=0.01)
    assert np.abs(got[:, 256:]).max() < 0.2  # and its neighbours in other blocks theirs


@pytest.mark.parametrize("exponent", [-45, -30, -9, -7, -6, -5, -4, 3, 6, 12, 38])
@pytest.mark.parametrize("name", QUANTIZED)
def test_any_magnitude_gives_finite_weights(name, exponent):
    rng = np.random.default_rng(exponent + 100)
    weights = (rng.uniform(-3, 3, (5, 512)) * 10.0**exponent).astype(np.float32)
    weights[1] = np.abs(weights[1])
    weights[2] = -np.abs(weights[2])
    weights[3, :256] = weights[3, 0]
    got = round_trip(name, weights)
    assert np.isfinite(got).all()
    if exponent < -8:  # below what a half scale can express
        assert np.abs(got).max() <= 2.0**-20
    if exponent in (-6, -5, -4, 3):  # subnormal scales are coarse, but scales still
        limit = {"Q2_K": 0.5, "Q3_K": 0.3}.get(name, 0.2)
        assert relative_error(weights[[0, 3, 4]], got[[0, 3, 4]]) < limit


@pytest.mark.parametrize("name", QUANTIZED)
def test_non_finite_weights_do_not_spread(name):
    weights = sample("gaussian", (3, 1024))[0]
    clean = quantize(name, weights).reshape(-1, FORMATS[name].block_bytes)
    weights[0, 3], weights[1, 3], weights[2, 3] = np.nan, np.inf, -np.inf
    blocks = quantize(name, weights)
    assert np.isfinite(dequantize(name, blocks)).all()
    touched = (blocks.reshape(clean.shape) != clean).any(axis=1)
    per_row = 1024 // FORMATS[name].block_size
    assert set(np.flatnonzero(touched)) <= {0, per_row, 2 * per_row}


def test_wrong_sizes_are_refused():
    weights = np.zeros((2, 288), np.float32)
    with pytest.raises(CoreError, match="Q4_K"):
        CORE.quantize(FORMATS["Q4_K"].ggml_type, weights, np.zeros(288, np.uint8), 288)
    with pytest.raises(CoreError):
        CORE.dequantize(15, np.zeros(292, np.uint8), np.zeros(256, np.float32))  # Q8_K


DIGEST = "from test_formats import CORE, digest; print(CORE.variant, digest())"


def digest():
    """What this process' variant writes for every format, with tails and odd magnitudes."""
    sums = hashlib.sha256()
    weights, importance = sample("heavy", (3, 1280))
    weights[1] *= np.float32(1e-4)
    weights[2, ::3] = 0
    for name in FORMATS:
        sums.update(quantize(name, weights).tobytes())
        sums.update(quantize(name, weights, importance).tobytes())
        sums.update(dequantize(name, quantize(name, weights)).tobytes())
    return sums.hexdigest()


def test_every_isa_variant_writes_the_same_bytes():
    names = [variant.name for variant in supported_variants()]
    assert "scalar" in names
    tests = os.path.dirname(__file__)
    for name in names:
        path = os.pathsep.join([tests, *sys.path])
        env = os.environ | {"RILLM_ISA": name, "PYTHONPATH": path}
        run = subprocess.run(
            [sys.executable, "-c", DIGEST], env=env, capture_output=True, text=True, check=False
        )
        assert run.returncode == 0, run.stderr
        assert run.stdout.split() == [name, digest()]
