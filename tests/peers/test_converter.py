"""rillm convert and prepare beside llama.cpp's converter and llama-quantize: the same tensors, with
the same values as long as they are floats.

RILLM_LLAMA_CONVERT  the command that runs convert_hf_to_gguf.py up to the script's path, such as
                     "chroot /some/root python3 /some/llama.cpp/convert_hf_to_gguf.py"

As a program this file writes golden/llama_converter.json.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import peer
import pytest

sys.path.append(str(Path(__file__).parents[1]))
from converter_layouts import GOLDEN, KINDS, LAYOUTS, golden, listing, make

from rillm.gguf import GGUFReader

COMMAND = os.environ.get("RILLM_LLAMA_CONVERT")


def run_converter(checkpoint: Path, out: Path) -> None:
    """convert_hf_to_gguf.py --outtype bf16, without the vocabulary."""
    *python, script = shlex.split(COMMAND or "")
    driver = checkpoint.parent / "convert_tensors.py"  # where llama.cpp's Python sees it
    shutil.copy(Path(__file__).with_name("convert_tensors.py"), driver)
    command = [*python, driver, script, checkpoint, "--outfile", out, "--outtype", "bf16"]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-3000:]


def write_theirs(layout: str, folder: Path) -> dict[str, Path]:
    """The checkpoint, and llama.cpp's file of each kind."""
    LAYOUTS[layout](folder / "checkpoint")
    paths = {kind: folder / f"{kind}.gguf" for kind in KINDS}
    run_converter(folder / "checkpoint", paths["BF16"])
    for kind in KINDS[1:]:
        peer.tool("quantize", paths["BF16"], paths[kind], kind, 1)
    return paths


@pytest.mark.skipif(COMMAND is None, reason="no converter: set RILLM_LLAMA_CONVERT")
@pytest.mark.parametrize("layout", LAYOUTS)
def test_same_tensors(layout: str, shared: Path) -> None:
    folder = shared / layout
    folder.mkdir()
    for kind, theirs in write_theirs(layout, folder).items():
        ours = make(folder / "checkpoint", kind, folder / "ours.gguf")
        assert listing(ours) == listing(theirs), kind
        assert golden()[layout][kind] == listing(theirs), kind
        if kind == "BF16":
            with GGUFReader(ours) as a, GGUFReader(theirs) as b:
                for name, info in a.tensors.items():
                    assert info.data == b.tensors[name].data, name
    shutil.rmtree(folder)


def main() -> None:
    """Records llama.cpp's lists."""
    entries = {}
    for layout in LAYOUTS:
        with tempfile.TemporaryDirectory(dir=os.environ.get("RILLM_SHARED_DIR")) as folder:
            lists = {k: listing(path) for k, path in write_theirs(layout, Path(folder)).items()}
        entries[layout] = {
            name: " ".join([text, *(lists[kind][name].split()[1] for kind in KINDS[1:])])
            for name, text in lists["BF16"].items()
        }
    GOLDEN.write_text(json.dumps(entries, indent=0) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
