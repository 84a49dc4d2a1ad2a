from __future__ import annotations

import os
import shutil
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest

from rillm.board import deploy as deployment
from rillm.board.deploy import DeployOptions
from rillm.board.inspection import (
    BoardFacts,
    check_board,
    choose_wheel,
    parse_facts,
    wheel_misfit,
)
from rillm.board.remote import Remote, RemoteError
from rillm.board.service import Place, install_unit, remove_files, state, unit_text
from rillm.cli.app import run as run_cli
from rillm.errors import RillmError
from rillm.gguf import GGMLType

GIB = 1 << 30
FACTS = BoardFacts(
    machine="riscv64",
    home="/home/me",
    uid=1000,
    user="me",
    glibc=(2, 41),
    python=(3, 13),
    has_venv=True,
    memory=16 * GIB,
    available=15 * GIB,
    disk=100 * GIB,
    has_sha256sum=True,
    has_systemd=True,
)


def test_facts_of_a_board():
    text = (
        "machine=riscv64\nhome=/home/a=b\nuid=1000\nuser=me\nglibc=glibc 2.41\npython=3.13\n"
        "venv=yes\nmemory=16000000\navailable=15000000\ndisk=30000000\n"
        "sha256sum=/usr/bin/sha256sum\nsystemd=\n"
    )
    facts = parse_facts("motd of some board\n" + text)
    assert (facts.home, facts.glibc, facts.python) == ("/home/a=b", (2, 41), (3, 13))
    assert facts.memory == 16000000 * 1024
    assert not facts.has_systemd
    with pytest.raises(RillmError, match="is it Linux"):
        parse_facts(text.replace("uid=1000", "uid="))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"python": (3, 9)}, "has Python 3.9"),
        ({"python": (0, 0)}, "no python3"),
        ({"has_venv": False}, "python3-venv"),
        ({"has_sha256sum": False}, "coreutils"),
        ({"has_systemd": False}, "leave out --service"),
        ({"disk": 6 * GIB}, "6.30 GiB are to be written"),
        ({"memory": 4 * GIB}, "use a smaller quantisation"),
    ],
)
def test_what_a_board_lacks_is_said_before_anything_is_copied(change, message):
    size = int(5.8 * GIB)
    assert check_board(FACTS, model_bytes=size, to_copy=size, service=True) == []
    with pytest.raises(RillmError, match=message):
        check_board(replace(FACTS, **change), model_bytes=size, to_copy=size, service=True)


def test_memory_that_is_taken_now_is_a_warning():
    facts = replace(FACTS, available=2 * GIB)
    (warning,) = check_board(facts, model_bytes=5 * GIB, to_copy=0, service=True)
    assert "only 2.00 GiB are available" in warning


def test_a_c_library_older_than_the_wheels_is_a_warning():
    facts = replace(FACTS, glibc=(2, 36))
    (warning,) = check_board(facts, model_bytes=GIB, to_copy=0, service=True)
    assert "glibc 2.36" in warning
    assert (
        check_board(replace(facts, machine="x86_64"), model_bytes=GIB, to_copy=0, service=True)
        == []
    )


def test_the_wheel_must_fit_machine_and_c_library(tmp_path):
    names = {
        "rillm-0.1.0-py3-none-manylinux_2_27_riscv64.whl": "",
        "rillm-0.1.0-py3-none-linux_riscv64.whl": "",
        "rillm-0.1.0-py3-none-manylinux_2_42_riscv64.whl": "needs glibc 2.42",
        "rillm-0.1.0-py3-none-manylinux_2_27_aarch64.whl": "is for aarch64",
        "numpy-2.0.0-cp313-cp313-linux_riscv64.whl": "no wheel of rillm",
    }
    for age, (name, misfit) in enumerate(names.items()):
        path = tmp_path / name
        path.touch()
        os.utime(path, (1000 + age, 1000 + age))
        found = wheel_misfit(path, FACTS)
        assert misfit in found
        assert bool(found) == bool(misfit)
    chosen = choose_wheel(sorted(tmp_path.iterdir()), FACTS)
    assert chosen is not None
    assert chosen.name == "rillm-0.1.0-py3-none-linux_riscv64.whl"
    assert choose_wheel([], FACTS) is None


def test_the_unit_restarts_and_quotes_what_systemd_would_read():
    place = Place.of("/home/me", 1000)
    model = '/home/me/models/100% "my" $model.gguf'
    text = unit_text(place, ["/home/me/venv/bin/rillm", "serve", "-m", model, "--port", "8080"])
    assert "Restart=always\n" in text
    assert '"-m" "/home/me/models/100%% \\"my\\" $$model.gguf" "--port" "8080"' in text
    assert "WantedBy=default.target" in text
    assert "WantedBy=multi-user.target" in unit_text(Place.of("/root", 0), ["rillm", "-m", "x"])
    assert place.unit == "/home/me/.config/systemd/user/rillm.service"


def test_the_unit_arrives_as_written_and_is_started(tmp_path):
    # systemctl and loginctl are recorded: the script itself runs.
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("systemctl", "loginctl"):
        (programs / name).write_text(f'#!/bin/sh\necho {name} "$@" >> "{tmp_path}/calls"\n')
        (programs / name).chmod(0o755)
    home = tmp_path / "ho me"
    place = Place.of(str(home), 1000)
    command = ["/bin/rillm", "serve", "-m", "/models/it's 5%.gguf"]
    environment = {"PATH": f"{programs}:{os.environ['PATH']}"}
    subprocess.run(["sh", "-c", install_unit(place, command)], check=True, env=environment)
    assert Path(place.unit).read_text() == unit_text(place, command)
    calls = (tmp_path / "calls").read_text().splitlines()
    assert calls == [
        "systemctl --user daemon-reload",
        "systemctl --user enable --quiet rillm.service",
        "systemctl --user restart rillm.service",
        "loginctl enable-linger",
    ]


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
def test_systemd_finds_no_fault_in_the_unit(tmp_path):
    command = [sys.executable, "serve", "-m", "/models/it's 5% of $x.gguf", "--port", "8080"]
    for place in (Place.of("/root", 0), Place.of("/home/me", 1000)):
        path = tmp_path / "rillm.service"
        path.write_text(unit_text(place, command))
        done = subprocess.run(
            ["systemd-analyze", "verify", "--man=no", path], capture_output=True, text=True
        )
        assert "rillm.service" not in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("listen", "asked"),
    [("127.0.0.1", "127.0.0.1"), ("0.0.0.0", "127.0.0.1"), ("192.168.1.5", "192.168.1.5")],
)
def test_health_is_asked_for_where_the_server_listens(listen, asked):
    script = state(Place.of("/root", 0), service=False, listen=listen, port=81)
    assert f"http://{asked}:81/health" in script


@pytest.mark.parametrize(
    ("active", "restarts", "word"),
    [("active", 0, "loading"), ("activating", 1, "loading"), ("activating", 3, "dead"),
     ("failed", 0, "dead")],
)  # fmt: skip
def test_a_unit_that_fails_over_and_over_is_dead(tmp_path, active, restarts, word):
    # Restart=always never lets it become "failed", and deploy would wait to the end.
    programs = tmp_path / "bin"
    programs.mkdir()
    answers = {
        "systemctl": f"case $1 in is-active) echo {active};; show) echo {restarts};; esac",
        "journalctl": "echo no such model",
    }
    for name, text in answers.items():
        (programs / name).write_text(f"#!/bin/sh\n{text}\n")
        (programs / name).chmod(0o755)
    place = replace(Place.of("/root", 0), folder=str(tmp_path))
    python = tmp_path / "venv/bin/python"
    python.parent.mkdir(parents=True)
    python.symlink_to(sys.executable)
    script = state(place, service=True, listen="127.0.0.1", port=1)
    done = subprocess.run(
        ["sh", "-c", script], capture_output=True, text=True, check=True,
        env={"PATH": f"{programs}:/usr/bin:/bin"},
    )  # fmt: skip
    assert done.stdout.split("\n")[0] == word
    assert ("no such model" in done.stdout) == (word == "dead")


def test_removing_leaves_what_deploy_did_not_make(tmp_path):
    place = Place.of(str(tmp_path), 1000)
    folder = Path(place.folder)
    for name in ("venv/bin", "models", "wheels"):
        (folder / name).mkdir(parents=True)
    (folder / "env").write_text("LLAMA_API_KEY=secret\n")
    subprocess.run(["sh", "-c", remove_files(place)], check=True)
    assert [path.name for path in folder.iterdir()] == ["env"]
    (folder / "env").unlink()
    subprocess.run(["sh", "-c", remove_files(place)], check=True)
    assert not folder.exists()


def test_a_dry_run_prints_every_step_and_contacts_nobody(models, capsys):
    model = str(models[GGMLType.Q8_0])
    code = run_cli(
        ["deploy", "me@board", model, "--dry-run", "--service", "--ssh", "/nonexistent/ssh"]
    )
    text = capsys.readouterr().out
    assert code == 0
    steps = ["check the board", "copy", "install", "start the server", "wait for health", "print"]
    places = [text.index(f". {step}\n") for step in steps]
    assert places == sorted(places)
    assert "Restart=always" in text
    assert "/home/me/.local/share/rillm/models" in text
    assert run_cli(["deploy", "me@board", "--remove", "--dry-run", "--ssh", "/nonexistent"]) == 0
    assert "delete the files" in capsys.readouterr().out


def test_a_board_that_does_not_answer_is_one_line(models):
    options = DeployOptions("me@board", models[GGMLType.Q8_0], ssh=("/nonexistent/ssh",))
    with pytest.raises(RemoteError, match="install it"):
        deployment.deploy(options, say=print, bar=nullcontext)
    with pytest.raises(RillmError, match="is no USER@BOARD"):
        Remote("-oProxyCommand=true")
