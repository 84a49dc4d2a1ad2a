"""docs/api.md: its examples are run, in order, against a server started as it says."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import running, tiny_config

from rillm.server.app import ROUTES

FOLDER = Path(__file__).parents[2] / "docs"
ADDRESS = "http://127.0.0.1:8080"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
TEXT = (FOLDER / "api.md").read_text(encoding="utf-8")
BLOCKS = BLOCK.findall(TEXT)
HELPERS = {kind: next(code for k, code in BLOCKS if k == kind) for kind in ("python", "js")}
RUN = {
    "sh": ["sh", "-c"],
    "python": [sys.executable, "-c"],
    "js": ["node", "--input-type=module", "-e"],
}
# What the bundled model cannot do; the text says so.
NOT_HERE = ("/infill", "/rerank", "/models/load", "/models/unload")


@pytest.fixture(scope="module")
def address(model_path, tmp_path_factory):
    config = tiny_config(
        model_path, alias="glm-tiny", embeddings=True, pooling="mean", metrics=True, n_predict=32,
        slot_save_path=tmp_path_factory.mktemp("slots"), chat_template="glm-4-9b-chat",
    )  # fmt: skip
    with running(config) as server:
        yield server.url


def examples(kind):
    found = [code for name, code in BLOCKS if name == kind and code != HELPERS.get(kind)]
    return [pytest.param(code, id=f"{i}") for i, code in enumerate(found)]


def run(kind, code, address):
    program = RUN[kind]
    if shutil.which(program[0]) is None or (kind == "sh" and shutil.which("curl") is None):
        pytest.skip(f"needs {'curl' if kind == 'sh' else program[0]}")
    code = (HELPERS.get(kind, "") + "\n" + code).replace(ADDRESS, address)
    code = code.replace("curl ", "curl --no-progress-meter ")
    done = subprocess.run([*program, code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert not done.stderr, done.stderr
    assert done.stdout.strip(), "it says nothing"
    failed = re.search(r"""["']?error["']?: ?\{""", done.stdout)
    assert bool(failed) == any(f"{path}" in code for path in NOT_HERE), done.stdout
    return done.stdout


@pytest.mark.parametrize("code", examples("sh"))
def test_curl(address, code):
    output = run("sh", code, address)
    if "metrics" not in code and "stream" not in code:
        json.loads(output)


@pytest.mark.parametrize("code", examples("python"))
def test_python(address, code):
    run("python", code, address)


@pytest.mark.parametrize("code", examples("js"))
def test_javascript(address, code):
    run("js", code, address)


def test_every_endpoint_has_its_examples():
    for route in ROUTES:
        if route.method == "GET" and route.paths[0] in ("/", "/docs", "/openapi.json"):
            continue
        for kind in ("sh", "python", "js"):
            codes = "".join(code for name, code in BLOCKS if name == kind)
            paths = [path.replace("{slot_id}", "0") for path in route.paths]
            assert any(f"{path}" in codes for path in paths), (kind, route.paths)


def test_every_field_is_named():
    from rillm.server.schema import Controls

    for name in Controls.model_fields:
        if name not in ("verbose",):
            assert name in TEXT, name


def test_the_chinese_text_has_the_same_examples():
    chinese = (FOLDER / "api.zh.md").read_text(encoding="utf-8")
    assert BLOCK.findall(chinese) == BLOCKS
    assert chinese.count("\n## ") == TEXT.count("\n## ")
    assert chinese.count("\n| ") == TEXT.count("\n| ")
