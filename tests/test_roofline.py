"""The limits that bench prints beside its figures."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from rillm.bench import BenchResult
from rillm.errors import RillmError
from rillm.roofline import Machine, Work, limit
from rillm.roofline_plot import roofline_png, write_plot

MACHINE = Machine(bandwidth=1000.0, int8_rate=100.0, float_rate=10.0)
WORK = Work(
    int8_macs=40, float_macs=0, head_macs=10, head_is_float=False, attention_macs=2,
    num_layers=3, weight_bytes=5000, cache_bytes=4.0,
)  # fmt: skip


def test_a_decode_step_reads_the_weights_and_every_cache() -> None:
    found = limit(MACHINE, WORK, num_seqs=1, num_tokens=1, num_logits=1, depth=0)
    assert found.bound == "memory"
    assert found.tokens_per_second == pytest.approx(1 / ((5000 + 4) / 1000))
    deep = limit(MACHINE, WORK, num_seqs=2, num_tokens=1, num_logits=1, depth=1)
    assert deep.tokens_per_second == pytest.approx(2 / ((5000 + 2 * 2 * 4) / 1000))


def test_a_prompt_is_bound_by_its_multiplications() -> None:
    found = limit(MACHINE, WORK, num_seqs=1, num_tokens=100, num_logits=1, depth=10)
    keys = 100 * 10 + 100 * 101 / 2
    seconds = 100 * 40 / 100 + 10 / 100 + keys * 2 * 3 / 10
    assert found.bound == "multiply"
    assert found.tokens_per_second == pytest.approx(100 / seconds)


def test_float_matrices_are_counted_at_the_float_rate() -> None:
    floats = replace(WORK, int8_macs=0, float_macs=40, head_is_float=True, attention_macs=0)
    found = limit(MACHINE, floats, num_seqs=1, num_tokens=100, num_logits=1, depth=0)
    assert found.tokens_per_second == pytest.approx(100 / (100 * 40 / 10 + 10 / 10))


def result(test: str, rate: float, intensity: float) -> BenchResult:
    return BenchResult(
        model="glm", test=test, tokens_per_second=rate, slowest=rate, fastest=rate, limit=2 * rate,
        bound="memory", intensity=intensity, weight_bytes=1 << 30, macs_per_token=10**9,
        bandwidth=1e10, multiply_peak=1e11, variant="scalar", num_threads=2, repeats=1, cpu="CPU",
        blas="off",
    )  # fmt: skip


def test_a_png_shows_roof_points_and_labels() -> None:
    one = Image.open(io.BytesIO(roofline_png([result("tg8", 5.0, 2.0)])))
    both = Image.open(
        io.BytesIO(roofline_png([result("tg8", 5.0, 2.0), result("pp512", 50.0, 500.0)]))
    )
    assert one.size == both.size == (1720, 1040)

    def count(image: Image.Image, color: tuple[int, int, int]) -> int:
        data = image.tobytes()
        return sum(tuple(data[i : i + 3]) == color for i in range(0, len(data), 3))

    roof, point, ink = (0xBB, 0x33, 0x33), (0x15, 0x65, 0xC0), (0x22, 0x22, 0x22)
    assert count(one, roof) > 2000
    assert 150 < count(one, point) < 250  # a disc of radius 8
    assert count(both, point) == 2 * count(one, point)
    assert count(both, ink) > count(one, ink) > 1000  # labels


def test_a_plot_needs_a_known_suffix_and_png_the_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = [result("tg8", 5.0, 2.0)]
    with pytest.raises(RillmError, match=r"roof\.jpg: a plot is written as \.html, \.svg, \.png"):
        write_plot(results, tmp_path / "roof.jpg")
    write_plot(results, tmp_path / "roof.PNG")
    assert (tmp_path / "roof.PNG").read_bytes().startswith(b"\x89PNG")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(RillmError, match=r"pip install 'rillm\[plot\]'"):
        write_plot(results, tmp_path / "other.png")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["roof.PNG"]
