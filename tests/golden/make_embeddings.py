r"""Record llama.cpp's embeddings by SmolLM2-135M-Instruct, and write smollm2_embeddings.json.

The model files are those of make_smollm2.py: Q4_1 as it is, and dequantised to f32. Each is run
with every way of pooling that llama.cpp has for it:

    llama-server -m f32.gguf -t 1 -c 512 -ctk f32 -ctv f32 -fa off --embeddings --pooling mean
    python tests/golden/make_embeddings.py f32.mean=http://127.0.0.1:8080 f32.last=... q4_1.mean=...

Keys of the file: texts; then for each server of that name a list with an entry for each text, what
/embedding replied: its vector of length 1 (with pooling `none` a vector for each token, of any
length, and only of the first text), to 5 significant digits. Entries of other servers stay.
"""

from __future__ import annotations

import json
import sys
import urllib.request
from pathlib import Path
from typing import Any

TEXTS = (
    "The sky is blue.",
    "RISC-V is an open instruction set architecture that anyone may build and extend.",
)


def main() -> None:
    """Ask each server for the embedding of every text."""
    path = Path(__file__).with_name("smollm2_embeddings.json")
    result: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    result["texts"] = TEXTS
    for item in sys.argv[1:]:
        name, url = item.split("=", 1)
        texts = TEXTS[:1] if name.endswith(".none") else TEXTS
        data = json.dumps({"content": texts}).encode()
        with urllib.request.urlopen(url + "/embedding", data) as answer:
            replies = json.load(answer)
        result[name] = [
            [[float(f"{value:.5g}") for value in vector] for vector in reply["embedding"]]
            for reply in replies
        ]
    lines = [f"{json.dumps(key)}:{json.dumps(value)}" for key, value in result.items()]
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
