"""llama.cpp's convert_hf_to_gguf.py without the vocabulary, which it takes from known models only.

    python3 convert_tensors.py SCRIPT CHECKPOINT --outfile OUT --outtype bf16

Run by llama.cpp's Python (torch, transformers, its own gguf), not by rillm's.
"""

from __future__ import annotations

import runpy
import sys
from pathlib import Path
from typing import Any

# Beside the script in llama.cpp's sources; where Debian puts it.
sys.path.insert(1, str(Path(sys.argv[1]).parent))
sys.path.insert(2, "/usr/share/llama.cpp/llama.cpp-tools")
import conversion

find_class = conversion.get_model_class


def without_vocabulary(*arguments: Any, **options: Any) -> Any:
    """The class of a model, which writes no tokens."""
    found = find_class(*arguments, **options)
    found.set_vocab = lambda self: None
    return found


conversion.get_model_class = without_vocabulary
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
