"""Commands that write, killed at random points: nothing is left that looks whole, and the next run
goes on to the same bytes.

The work runs in a forked child that gets SIGKILL, so that no handler of ours can tidy up.
"""

from __future__ import annotations

import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
from checkpoint_files import fresh
from hub_server import Hub

from rillm.gguf import GGUFError, GGUFReader
from rillm.prepare import convert as convert_module
from rillm.prepare.convert import convert
from rillm.prepare.prepare_model import prepare
from rillm.prepare.quantize import quantize

KILLS = 12
# Forks before any thread exists, so this is a process of its own. It runs the work once, to
# know how long it takes, then KILLS times, each killed at a random moment.
SCRIPT = """
import os, random, signal, sys, time
from pathlib import Path
from rillm.core import load_core
from rillm.gguf import writer
from rillm.prepare import collect_imatrix, streaming
from rillm.prepare.convert import convert
from rillm.prepare.prepare_model import prepare
from rillm.prepare.pull import pull
from rillm.prepare.quantize import quantize

what, source, folder, kills = sys.argv[1], sys.argv[2], Path(sys.argv[3]), int(sys.argv[4])
streaming.CHUNK_WEIGHTS = 1 << 14  # many steps, of many kinds, also for a small model
writer.KEEP_BYTES = 0  # after every tensor

def work(out):
    if what == "convert":
        convert(source, out / "model.gguf", num_threads=1)
    elif what == "quantize":
        quantize(source, out / "model.gguf", "Q4_K_M", num_threads=1)
    elif what == "imatrix":
        collect_imatrix.SAVE_SECONDS = 0.0  # a part after every chunk
        text = "The sun is out. " * 100
        collect_imatrix.collect(source, text, out / "model.gguf", context=64, num_threads=1)
    elif what == "prepare":
        prepare(source, type_name="Q4_K_M", out=out / "model.gguf", num_threads=1)
    else:
        pull("org/model", out=out)

def child(out):
    pid = os.fork()
    if pid == 0:
        try:
            work(out)
            os._exit(0)
        except BaseException as error:
            print(repr(error), file=sys.stderr)
            os._exit(1)
    return pid

(folder / "whole").mkdir()
start = time.perf_counter()
assert os.waitpid(child(folder / "whole"), 0)[1] == 0
seconds = time.perf_counter() - start
source_of_delays = random.Random(int(sys.argv[5]))
for number in range(kills):
    out = folder / str(number)
    # Every third into the folder that was interrupted before: it must be able to go on.
    if number % 3 == 1:
        out = folder / str(number - 1)
    out.mkdir(exist_ok=True)
    pid = child(out)
    time.sleep(seconds * source_of_delays.random())
    os.kill(pid, signal.SIGKILL)
    status = os.waitpid(pid, 0)[1]
    print(number, out.name, "killed" if os.WIFSIGNALED(status) else status, flush=True)
"""


def run_kills(what, source, folder, seed):
    """(number of the run, its folder, "killed" or the exit status) of each."""
    folder.mkdir()
    src = str(Path(convert_module.__file__).parents[2])
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT, what, source, folder, str(KILLS), str(seed)],
        capture_output=True, text=True, timeout=120, check=False,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([src, os.environ.get("PYTHONPATH", "")])},
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    rows = [line.split() for line in result.stdout.splitlines()]
    assert len(rows) == KILLS
    assert {row[2] for row in rows} <= {"killed", "0"}, result.stderr
    # The moments are random: most of them must have hit the work, or nothing was tested.
    assert sum(row[2] == "killed" for row in rows) >= KILLS // 2
    return rows


def visible(folder):
    """Files that a user would take for something."""
    return sorted(
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if path.is_file() and not (path.name.startswith(".") and path.name.endswith(".partial"))
    )


WRITERS = {
    "convert": convert,
    "quantize": partial(quantize, type_name="Q4_K_M"),
    "prepare": lambda source, out, **options: prepare(
        source, out=out, type_name="Q4_K_M", **options
    ),
}


@pytest.mark.parametrize("what", [*WRITERS, "imatrix"])
def test_a_killed_writer_leaves_no_model(what, tmp_path):
    source = fresh(tmp_path, "glm_9b", "chatglm")
    if what in ("quantize", "imatrix"):
        convert(source, tmp_path / "f16.gguf", num_threads=1)
        source = tmp_path / "f16.gguf"
    rows = run_kills(what, source, tmp_path / "out", seed=1)
    whole = (tmp_path / "out" / "whole" / "model.gguf").read_bytes()
    leftovers = []
    for _, name, status in rows:
        folder = tmp_path / "out" / name
        # Either nothing, or (killed after the last step) all of it.
        if status == "0":
            assert visible(folder) == ["model.gguf"]
        for file in visible(folder):
            assert file == "model.gguf"
            assert (folder / file).read_bytes() == whole
            GGUFReader(folder / file).close()
        leftovers += folder.glob(".*.partial")
    assert leftovers  # at least one was hit while it wrote
    if what == "imatrix":
        return
    lines = []
    for file in sorted(set(leftovers)):  # a folder may have been killed in twice
        # No GGUF file by whatever name, unless it was killed between the last byte and the name.
        if file.read_bytes() != whole:
            with pytest.raises(GGUFError):
                GGUFReader(file)
        out = file.with_name("model.gguf")
        WRITERS[what](source, out, num_threads=1, report=lines.append)
        assert out.read_bytes() == whole
        assert list(out.parent.iterdir()) == [out]
    assert sum("going on with" in line for line in lines) >= 2, lines


def test_a_killed_pull_leaves_whole_files_and_parts(tmp_path, monkeypatch):
    source = fresh(tmp_path, "glm_9b", "chatglm")
    files = {path.name: path.read_bytes() for path in source.iterdir()}
    files |= {"vocab.json": os.urandom(30_000_000)}  # longer, so that a kill finds it at work
    hub = Hub(files)
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "nowhere"))
    try:
        rows = run_kills("pull", "org/model", tmp_path / "out", seed=2)
    finally:
        hub.close()
    unfinished = 0
    for _, name, status in rows:
        folder = tmp_path / "out" / name
        for file in visible(folder):
            assert (folder / file).read_bytes() == files[file]  # never a part under its name
        if status == "0":
            assert set(visible(folder)) == set(files)
        unfinished += set(visible(folder)) != set(files)
    assert unfinished > 0
