"""From a wheel to an answer on a Debian of riscv64, under QEMU: install it, serve, ask by HTTP.

What pip runs there is the root's own Python, so tags, markers and dependencies are a board's.
"""

from __future__ import annotations

import json
import re
import resource
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lab
import pytest

from rillm import LLM
from rillm.core import load_core
from rillm.data import glm_tiny_path
from rillm.prepare.convert import convert
from rillm.prepare.pack import pack
from rillm.prepare.quantize import quantize
from rillm.sampling import SamplingParams

CPU = lab.cpu_of(256, half=True) if lab.HAS_BOARD else ""
PROMPTS = ("[gMASK]<sop><|user|>\nWhat is RISC-V?<|assistant|>", "你好，", "One, two, three,")
NUM_TOKENS = 24
# Kernels round in their own order; beyond this a difference would be a fault of one of them.
NEAR_TIE = 1e-2

pytestmark = [
    pytest.mark.skipif(not lab.HAS_BOARD, reason=lab.MISSING),
    pytest.mark.timeout(1500),
]


def python(*arguments: object, site: Path | None = None, cpu: str = CPU) -> list[str]:
    path = [f"PYTHONPATH={site}"] if site else []
    program = Path(lab.ROOT) / "usr/bin/python3"
    return ["env", *path, *lab.command(cpu, program, *arguments)]


def run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=1400)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel with all that pip wants beside it, downloaded by the root's pip."""
    folder = tmp_path_factory.mktemp("packages")
    run(python("-m", "pip", "download", "--quiet", "--disable-pip-version-check",
               "--only-binary=:all:", "--dest", folder, lab.WHEEL))  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def installed(packages: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    """Where pip has put all of it, as for deploy, and its processor time under emulation."""
    folder = tmp_path_factory.mktemp("site")
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    run(python("-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-compile",
               "--no-index", "--find-links", packages, "--target", folder, "rillm"))  # fmt: skip
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return folder, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


@pytest.fixture(scope="module")
def site(installed: tuple[Path, float]) -> Path:
    return installed[0]


def test_installing_takes_less_than_a_minute(installed: tuple[Path, float]) -> None:
    print(f"pip install: {installed[1]:.0f} s of emulated processor time")
    assert installed[1] < 60


def test_everything_that_pip_takes_is_ready_made(packages: Path) -> None:
    names = sorted(path.name for path in packages.iterdir())
    assert len(names) > 15
    for name in names:
        assert re.search(r"-(none-any|\w*riscv64(\.manylinux\w*_riscv64)*)\.whl$", name), name
    assert not [name for name in names if name.startswith(("numpy", "pyyaml", "PyYAML"))]


def test_doctor_finds_the_vector_unit_and_takes_its_kernels(site: Path) -> None:
    for vlen, half, chosen in (
        (256, True, "riscv_rvv256_f16"), (128, False, "riscv_rvv128"), (0, False, "scalar")
    ):  # fmt: skip
        cpu = lab.cpu_of(vlen, half=half)
        shown = run(python("-m", "rillm", "doctor", "--json", "--no-measure", site=site, cpu=cpu))
        report = json.loads(shown)
        built = {row["name"] for row in report["variants"]}
        fitting = (chosen, chosen.removesuffix("_f16"), "scalar")
        expected = next(name for name in fitting if name in built)
        assert [row["name"] for row in report["variants"] if row["chosen"]] == [expected]
        assert report["architecture"] == "riscv64"
        assert report["vector"].startswith(f"RVV 1.0, VLEN {vlen}" if vlen else "none")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    convert(glm_tiny_path(), folder / "f16.gguf", out_type="f16")
    quantize(folder / "f16.gguf", folder / "glm-tiny.Q6_K.gguf", "Q6_K")
    return folder / "glm-tiny.Q6_K.gguf"


@pytest.fixture(scope="module")
def llm(model: Path) -> Iterator[LLM]:
    with LLM(model, num_threads=1, context_length=512) as llm:
        yield llm


@contextmanager
def served(model: Path, site: Path, cpu: str, log: Path) -> Iterator[Callable[..., dict[str, Any]]]:
    """`rillm serve` under emulation; yields post(path, **fields)."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    command = python("-m", "rillm", "serve", "-m", model, "--port", port, "-t", 2, "-c", 512,
                     site=site, cpu=cpu)  # fmt: skip
    with log.open("w") as output:
        server = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)

    def post(path: str, **fields: object) -> dict[str, Any]:
        body = json.dumps(fields).encode() if fields else None
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", body, headers)
        with urllib.request.urlopen(request, timeout=600) as reply:
            return dict(json.load(reply))

    try:
        deadline = time.monotonic() + 600
        while True:
            assert server.poll() is None, log.read_text()
            try:
                post("/health")
                break
            except OSError:
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.5)
        yield post
        server.terminate()
        assert server.wait(timeout=120) == 0, log.read_text()
    finally:
        if server.poll() is None:
            server.kill()
            server.wait()


@pytest.mark.parametrize("vlen", [256, 0], ids=["rvv256_f16", "scalar"])
def test_served_text_is_that_of_x86(
    vlen: int, site: Path, model: Path, llm: LLM, tmp_path: Path
) -> None:
    greedy = SamplingParams(temperature=0.0)
    cpu = lab.cpu_of(vlen, half=vlen > 0)
    differences = 0
    with served(model, site, cpu, tmp_path / "log") as post:
        for prompt in PROMPTS:
            (here,) = llm.generate(prompt, greedy, n_predict=NUM_TOKENS)
            expected = here.token_ids
            ids = llm.tokenize(prompt)
            done = 0
            while done < len(expected):
                answer = post(
                    "/completion", prompt=[*ids, *expected[:done]], temperature=0, n_probs=2,
                    n_predict=len(expected) - done, return_tokens=True,
                )  # fmt: skip
                rows = answer["completion_probabilities"]
                got = [row["id"] for row in rows]
                pairs = zip(got, expected[done:], strict=True)
                num_same = next((i for i, (a, b) in enumerate(pairs) if a != b), len(got))
                done += num_same
                if done < len(expected):
                    first, second = rows[num_same]["top_logprobs"]
                    assert {first["id"], second["id"]} == {got[num_same], expected[done]}
                    assert first["logprob"] - second["logprob"] < NEAR_TIE
                    differences += 1
                    done += 1
        text = post("/completion", prompt=PROMPTS[0], temperature=0, n_predict=NUM_TOKENS)
    assert text["content"].strip()
    print(f"{differences} near ties")


def test_a_file_packed_on_the_workstation_runs_there(
    site: Path, model: Path, tmp_path: Path
) -> None:
    """Its tiles are mapped as they are; the board compares their layout with its kernels' own."""
    packed = tmp_path / "packed.gguf"
    core = load_core()
    with core.team(1) as team:
        pack(model, packed, core, team, "riscv_rvv256")
    options = ["--raw", "-p", PROMPTS[0], "--temp", 0, "-n", NUM_TOKENS, "-t", 1]
    answers = [
        run(python("-m", "rillm", "run", "-m", path, *options, site=site))
        for path in (model, packed)
    ]
    assert answers[0].strip()
    assert answers[1] == answers[0]
