"""Deployment over ssh to an sshd of our own: copies, installation, both ways to serve, removal."""

from __future__ import annotations

import getpass
import json
import os
import random
import shlex
import shutil
import socket
import subprocess
import sys
import sysconfig
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from rillm.board import deploy as deployment
from rillm.board.build import find_source
from rillm.board.deploy import DeployOptions
from rillm.board.elf import read_shared_library
from rillm.board.remote import Remote, RemoteError
from rillm.board.service import Place
from rillm.board.wheel import write_wheel
from rillm.core import variants
from rillm.gguf import GGMLType

SSHD = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


@dataclass
class Board:
    host: str
    ssh: tuple[str, ...]
    home: Path
    programs: Path  # first on the PATH of its sessions

    @property
    def folder(self) -> Path:
        return self.home / ".local/share/rillm"


@contextmanager
def no_bar(title):
    yield lambda done, total: None


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@pytest.fixture(scope="module")
def board(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Board]:
    """An sshd of our own on 127.0.0.1, whose sessions have a home and a Python of their own."""
    if SSHD is None or shutil.which("ssh") is None or shutil.which("ssh-keygen") is None:
        pytest.skip("needs ssh and sshd (Debian: apt-get install openssh-server)")
    folder = tmp_path_factory.mktemp("sshd")
    home = folder / "home"
    programs = folder / "bin"
    home.mkdir()
    programs.mkdir()
    for name in ("host", "user"):
        subprocess.run(
            ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name], check=True
        )
    base_python = Path(sys.base_prefix) / "bin" / f"python3.{sys.version_info[1]}"
    (programs / "python3").symlink_to(base_python)
    # The wheel's dependencies are this environment's: the test needs no network.
    session = folder / "session"
    session.write_text(
        f"#!/bin/sh\nexport HOME={shlex.quote(str(home))} PATH={programs}:/usr/bin:/bin\n"
        f"export PIP_NO_DEPS=1 PIP_NO_INDEX=1 PYTHONPATH={sysconfig.get_path('purelib')}\n"
        'cd "$HOME" && eval "$SSH_ORIGINAL_COMMAND"\n'
    )
    session.chmod(0o755)
    port = _free_port()
    (folder / "config").write_text(
        f"ListenAddress 127.0.0.1\nPort {port}\nHostKey {folder}/host\nPidFile none\n"
        f"AuthorizedKeysFile {folder}/user.pub\nStrictModes no\nUsePAM no\n"
        f"PasswordAuthentication no\nPermitRootLogin yes\nForceCommand {session}\n"
    )
    if os.getuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)
    log = (folder / "log").open("w")
    server = subprocess.Popen([SSHD, "-D", "-e", "-f", folder / "config"], stderr=log)
    ssh = (
        "ssh", "-p", str(port), "-i", str(folder / "user"), "-F", "none",
        "-o", "IdentitiesOnly=yes", "-o", "BatchMode=yes",
        "-o", f"UserKnownHostsFile={folder}/known", "-o", "StrictHostKeyChecking=accept-new",
    )  # fmt: skip
    host = f"{getpass.getuser()}@127.0.0.1"
    try:
        for _ in range(50):
            done = subprocess.run([*ssh, host, "true"], capture_output=True, text=True, check=False)
            if done.returncode == 0 or server.poll() is not None:
                break
            time.sleep(0.2)
        if done.returncode != 0:
            log.flush()
            pytest.skip(f"sshd does not run here: {done.stderr} {(folder / 'log').read_text()}")
        yield Board(host, ssh, home, programs)
    finally:
        server.terminate()
        server.wait()
        log.close()


def test_an_interrupted_copy_goes_on_and_a_wrong_one_starts_again(board, tmp_path):
    data = random.Random(1).randbytes(5 * 1024 * 1024 + 123)
    source = tmp_path / "a model.gguf"
    source.write_bytes(data)
    target = board.home / "a 'model'.gguf"
    partial = Path(f"{target}.partial")
    steps: list[int] = []
    with Remote(board.host, board.ssh) as remote:
        partial.write_bytes(data[:3_000_000])
        assert remote.upload(source, str(target), lambda done, total: steps.append(done))
        assert target.read_bytes() == data
        assert steps[0] > 3_000_000  # the first three million bytes were not sent again
        assert steps[-1] == len(data)
        assert not partial.exists()

        steps.clear()
        assert not remote.upload(source, str(target), lambda done, total: steps.append(done))
        assert steps == []

        target.write_bytes(data[:-1] + b"x")  # same size, other content
        partial.write_bytes(b"rubbish")
        assert remote.upload(source, str(target))
        assert target.read_bytes() == data

        partial.write_bytes(data + b"too long")
        target.unlink()
        assert remote.upload(source, str(target))
        assert target.read_bytes() == data
        with pytest.raises(RemoteError, match=r"127\.0\.0\.1: .*nonexistent"):
            remote.run("cat /nonexistent/file")


def test_a_broken_upload_says_why(board, tmp_path):
    source = tmp_path / "model"
    source.write_bytes(b"x" * 4_000_000)
    with (
        Remote(board.host, board.ssh) as remote,
        pytest.raises(RemoteError, match="nonexistent"),
    ):
        remote.upload(source, "/nonexistent/folder/model")


def _this_machines_wheel(folder: Path) -> Path:
    libraries = variants()[0].path.parent
    glibc = max(read_shared_library(path).glibc for path in libraries.glob("*.so"))
    tag = f"manylinux_{glibc[0]}_{glibc[1]}_{os.uname().machine}"
    return write_wheel(find_source(), libraries, tag, folder)


def test_deploy_serve_repeat_and_remove(board, models, tmp_path):
    wheel = _this_machines_wheel(tmp_path)
    model = models[GGMLType.Q8_0]
    lines: list[str] = []
    options = DeployOptions(
        board.host, model, wheel=wheel, port=_free_port(), num_threads=1, ssh=board.ssh,
        context_length=64, timeout=120,
    )  # fmt: skip
    url = deployment.deploy(options, say=lines.append, bar=no_bar)
    try:
        assert url == f"http://127.0.0.1:{options.port}"
        body = json.dumps({"prompt": "ab", "n_predict": 4, "temperature": 0}).encode()
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(f"{url}/completion", body, headers)
        with urllib.request.urlopen(request, timeout=60) as reply:
            assert json.load(reply)["timings"]["predicted_n"] >= 1
        assert (board.folder / "models" / model.name).read_bytes() == model.read_bytes()
        first = int((board.folder / "server.pid").read_text())
        command = Path(f"/proc/{first}/cmdline").read_bytes()
        assert str(board.folder).encode() in command

        lines.clear()
        deployment.deploy(options, say=lines.append, bar=no_bar)
        assert f"there already: {model.name}" in lines
        assert int((board.folder / "server.pid").read_text()) != first
        assert not Path(f"/proc/{first}").exists()
    finally:
        second = (board.folder / "server.pid").read_text().strip()
        deployment.remove(board.host, board.ssh, say=lines.append)
    assert not Path(f"/proc/{second}").exists()
    assert not board.folder.exists()
    deployment.remove(board.host, board.ssh, say=lines.append)  # nothing there: nothing to do


# What systemd does with the unit, as far as deploy relies on it; the unit is a user's.
SYSTEMCTL = """\
import os, shlex, signal, subprocess, sys, time
from pathlib import Path
home = Path(os.environ["HOME"])
unit, pid_file = home / ".config/systemd/user/rillm.service", home / "unit.pid"
alive = lambda: pid_file.exists() and Path(f"/proc/{pid_file.read_text()}").exists()
(verb,) = [word for word in sys.argv[1:] if not word.startswith("-")][:1]
if verb in ("restart", "disable") and alive():
    os.kill(int(pid_file.read_text()), signal.SIGTERM)
    while alive():
        time.sleep(0.1)
if verb == "restart":
    (line,) = [line for line in unit.read_text().splitlines() if line.startswith("ExecStart=")]
    words = shlex.split(line.removeprefix("ExecStart="))
    with (home / "unit.log").open("w") as log:
        process = subprocess.Popen(
            [word.replace("%%", "%").replace("$$", "$") for word in words],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
        )
    pid_file.write_text(str(process.pid))
elif verb == "is-active":
    print("active" if alive() else "failed")
elif verb == "show":
    print(0)
"""


def test_deploy_as_a_service_and_remove(board, models, tmp_path, monkeypatch):
    stand_ins = {
        "systemctl": f"#!{sys.executable}\n{SYSTEMCTL}",
        "journalctl": '#!/bin/sh\ntail -n 5 "$HOME/unit.log"\n',
        "loginctl": "#!/bin/sh\nexit 1\n",
    }
    for name, text in stand_ins.items():
        (board.programs / name).write_text(text)
        (board.programs / name).chmod(0o755)
    look = deployment.INSPECT.replace("/run/systemd/system", str(tmp_path))
    monkeypatch.setattr(deployment, "INSPECT", look)
    place = Place(str(board.folder), str(board.home / ".config/systemd/user"), is_root=False)
    monkeypatch.setattr(Place, "of", lambda home, uid: place)
    lines: list[str] = []
    options = DeployOptions(
        board.host, models[GGMLType.Q8_0], wheel=_this_machines_wheel(tmp_path), service=True,
        port=_free_port(), num_threads=1, ssh=board.ssh, context_length=64, timeout=120,
    )  # fmt: skip
    try:
        url = deployment.deploy(options, say=lines.append, bar=no_bar)
        with urllib.request.urlopen(f"{url}/health", timeout=60) as reply:
            assert json.load(reply)["status"] == "ok"
        assert any("loginctl enable-linger" in line for line in lines)
        pid = (board.home / "unit.pid").read_text()
        assert b"serve" in Path(f"/proc/{pid}/cmdline").read_bytes()
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            busy = replace(options, port=taken.getsockname()[1])
            with pytest.raises(RemoteError, match=r"the server ended: .*(in use|listen|bind)"):
                deployment.deploy(busy, say=lines.append, bar=no_bar)
    finally:
        deployment.remove(board.host, board.ssh, say=lines.append)
    assert not Path(place.unit).exists()
    assert not Path(f"/proc/{pid}").exists()
    assert not board.folder.exists()


def test_a_server_that_cannot_start_is_reported_with_its_log(board, models, tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        options = DeployOptions(
            board.host, models[GGMLType.Q8_0], wheel=_this_machines_wheel(tmp_path),
            port=taken.getsockname()[1], num_threads=1, ssh=board.ssh, context_length=64,
            timeout=60,
        )  # fmt: skip
        try:
            with pytest.raises(RemoteError, match=r"the server ended: .*(in use|listen|bind)"):
                deployment.deploy(options, say=print, bar=no_bar)
        finally:
            deployment.remove(board.host, board.ssh, say=print)
