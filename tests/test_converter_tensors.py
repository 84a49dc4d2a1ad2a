"""Names, shapes and types of all tensors against llama.cpp's converter and llama-quantize.

golden/llama_converter.json was made by `python tests/peers/test_converter.py` (llama.cpp 0.7.0):
what convert_hf_to_gguf.py --outtype bf16 makes of each checkpoint, and llama-quantize of that file
in Q4_K_M and Q6_K. An entry is a tensor's shape and its three types.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from converter_layouts import KINDS, LAYOUTS, golden, listing, make


@pytest.mark.parametrize("layout", LAYOUTS)
def test_tensors_are_those_of_llama_cpp(layout: str, tmp_path: Path) -> None:
    LAYOUTS[layout](tmp_path / "checkpoint")
    for kind in KINDS:
        ours = listing(make(tmp_path / "checkpoint", kind, tmp_path / "model.gguf"))
        assert ours == golden()[layout][kind], kind


def test_every_layout_is_recorded() -> None:
    assert set(golden()) == set(LAYOUTS)
    assert sum(len(entry["BF16"]) for entry in golden().values()) > 300
