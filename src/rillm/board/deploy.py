"""`rillm deploy`: a board that has Python gets rillm, a model and a running server, over ssh.

Everything lies in ~/.local/share/rillm on the board and is safe to repeat: what is there with the
right checksum is not copied again.
"""

from __future__ import annotations

import hashlib
import shlex
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from rillm.board import service as scripts
from rillm.board.build import build_wheel, find_source
from rillm.board.inspection import (
    INSPECT,
    BoardFacts,
    check_board,
    choose_wheel,
    parse_facts,
    wheel_misfit,
)
from rillm.board.remote import Remote, RemoteError
from rillm.board.service import Place
from rillm.errors import RillmError
from rillm.gguf import GGUFReader

Say = Callable[[str], None]
Progress = Callable[[int, int], None]
Bar = Callable[[str], AbstractContextManager[Progress]]


@dataclass(frozen=True)
class DeployOptions:
    """What to put where."""

    host: str  # USER@BOARD, as ssh takes it
    model: Path
    wheel: Path | None = None  # None: the newest in dist/ that fits, else one is built
    service: bool = False
    listen: str = "127.0.0.1"
    port: int = 8080
    num_threads: int | None = None
    context_length: int | None = None
    timeout: float = 900.0  # seconds until the server must answer
    ssh: Sequence[str] = ("ssh",)


def deploy(options: DeployOptions, *, say: Say, bar: Bar) -> str:
    """Does it and returns the server's URL. Errors: RillmError naming step and fix."""
    with GGUFReader(options.model) as reader:
        files = list(reader.files)
        size = reader.file_size
    if options.wheel is not None and not options.wheel.is_file():
        raise RillmError(f"{options.wheel}: no such wheel")
    with Remote(options.host, options.ssh) as remote:
        say(f"checking {options.host}")
        facts = parse_facts(remote.run(INSPECT))
        place = Place.of(facts.home, facts.uid)
        folders = (shlex.quote(f"{place.folder}/{name}") for name in ("models", "wheels"))
        to_copy = size - _bytes_there(remote, place, files)
        for warning in check_board(
            facts, model_bytes=size, to_copy=to_copy, service=options.service
        ):
            say(f"warning: {warning}")
        wheel = _wheel_for(facts, options.wheel, say)
        remote.run(f"mkdir -p {' '.join(folders)}")
        for path, folder in [(wheel, "wheels"), *((file, "models") for file in files)]:
            with bar(f"copying {path.name}") as progress:
                copied = remote.upload(path, f"{place.folder}/{folder}/{path.name}", progress)
            say(f"{'copied' if copied else 'there already:'} {path.name}")
        say("installing into ~/.local/share/rillm/venv")
        remote.run(_install(place, wheel, _digest(wheel)))
        say("starting the server")
        _stop(remote, place)
        command = _command(place, options, files[0].name)
        script = scripts.install_unit if options.service else scripts.start_process
        if not options.service:
            remote.run(scripts.remove_unit(place))
        for line in remote.run(script(place, command)).splitlines():
            say(line)
        _wait(remote, place, options)
    return _url(options)


def remove(host: str, ssh: Sequence[str], *, say: Say) -> None:
    """Stops the server and deletes everything that deploy put on the board."""
    with Remote(host, ssh) as remote:
        facts = parse_facts(remote.run(INSPECT))
        place = Place.of(facts.home, facts.uid)
        say("stopping the server")
        _stop(remote, place)
        remote.run(scripts.remove_unit(place))
        say(f"deleting {place.folder}")
        remote.run(scripts.remove_files(place))


def plan(options: DeployOptions) -> list[tuple[str, str]]:
    """What `deploy` would do: (step, script or copy) in order. The board is not contacted."""
    with GGUFReader(options.model) as reader:
        files = list(reader.files)
    place = _guessed_place(options.host)
    wheel = options.wheel or Path("dist/rillm-VERSION-py3-none-manylinux_X_Y_MACHINE.whl")
    command = _command(place, options, files[0].name)
    steps = [("check the board", INSPECT.strip())]
    if options.wheel is None:
        steps.append(("find a wheel", "the newest in dist/ that fits, else rillm build"))
    steps += [
        ("copy", f"{path} -> {options.host}:{place.folder}/{folder}/ (continued, SHA-256)")
        for path, folder in [(wheel, "wheels"), *((file, "models") for file in files)]
    ]
    digest = _digest(wheel) if wheel.is_file() else "SHA256"
    steps.append(("install", _install(place, wheel, digest)))
    steps.append(("stop the old server", scripts.stop_process(place)))
    start = scripts.install_unit if options.service else scripts.start_process
    steps.append(("start the server", start(place, command)))
    steps.append(("wait for health", _state(place, options)))
    steps.append(("print", _url(options)))
    return steps


def plan_remove(host: str) -> list[tuple[str, str]]:
    """What `remove` would do."""
    place = _guessed_place(host)
    return [
        (f"stop the server on {host}", scripts.stop_process(place)),
        ("delete the unit", scripts.remove_unit(place)),
        ("delete the files", scripts.remove_files(place)),
    ]


def _guessed_place(host: str) -> Place:
    """Where it will probably lie: a dry run does not ask the board for its home folder."""
    user = host.rpartition("@")[0] or "USER"
    return Place.of("/root", 0) if user == "root" else Place.of(f"/home/{user}", 1000)


def _bytes_there(remote: Remote, place: Place, files: Sequence[Path]) -> int:
    """How much of the model an earlier attempt has copied."""
    total = 0
    for file in files:
        name = f"{place.folder}/models/{file.name}"
        script = f"cat {shlex.quote(name)} {shlex.quote(name + '.partial')} 2>/dev/null | wc -c"
        total += min(int(remote.run(script)), file.stat().st_size)
    return total


def _wheel_for(facts: BoardFacts, given: Path | None, say: Say) -> Path:
    if given is not None:
        if misfit := wheel_misfit(given, facts):
            raise RillmError(f"--wheel: {misfit}")
        return given
    try:
        folder = find_source() / "dist"
    except RillmError:
        folder = Path("dist")
    found = choose_wheel(sorted(folder.glob("rillm-*.whl")), facts)
    if found is not None:
        return found
    say(f"no wheel for {facts.machine} in {folder}: building one")
    wheel = build_wheel(facts.machine, say=say).wheel
    if misfit := wheel_misfit(wheel, facts):
        raise RillmError(misfit)
    return wheel


def _install(place: Place, wheel: Path, digest: str) -> str:
    """Script: the environment, unless this very wheel is installed in it already."""
    target, done = place.path(f"wheels/{wheel.name}"), place.path("installed")
    python = place.path("venv/bin/python")
    # A package without a wheel would be compiled for an hour, or fail after a while.
    # Python compiles what it imports; pip would compile hundreds of files that nothing imports.
    options = "--quiet --disable-pip-version-check --only-binary=:all: --no-compile"
    pip = f"{python} -m pip install {options}"
    return f"""\
set -e
if [ "$(cat {done} 2>/dev/null)" != {digest} ]; then
  rm -f {done}
  [ -x {python} ] || python3 -m venv {place.path("venv")}
  {pip} {target}
  {pip} --no-deps --force-reinstall {target}
  {place.path("venv/bin/rillm")} --version
  echo {digest} > {done}
fi"""


def _command(place: Place, options: DeployOptions, model: str) -> list[str]:
    command = [f"{place.folder}/venv/bin/rillm", "serve", "-m", f"{place.folder}/models/{model}"]
    command += ["--host", options.listen, "--port", str(options.port)]
    if options.num_threads is not None:
        command += ["-t", str(options.num_threads)]
    if options.context_length is not None:
        command += ["-c", str(options.context_length)]
    return command


def _stop(remote: Remote, place: Place) -> None:
    remote.run(scripts.stop_process(place))


def _state(place: Place, options: DeployOptions) -> str:
    return scripts.state(place, service=options.service, listen=options.listen, port=options.port)


def _wait(remote: Remote, place: Place, options: DeployOptions) -> None:
    script = _state(place, options)
    deadline = time.monotonic() + options.timeout
    while time.monotonic() < deadline:
        answer = remote.run(script).strip()
        if answer == "ok":
            return
        if answer.startswith("dead"):
            lines = [line for line in answer.splitlines()[1:] if line.strip()]
            raise RemoteError(f"{options.host}: the server ended: {' / '.join(lines) or 'no log'}")
        time.sleep(1)
    raise RemoteError(
        f"{options.host}: no answer on port {options.port} within {options.timeout:.0f} s; "
        "see ~/.local/share/rillm/server.log or journalctl on the board"
    )


def _url(options: DeployOptions) -> str:
    if options.listen in ("127.0.0.1", "localhost"):
        return f"http://127.0.0.1:{options.port}"
    name = options.host.rpartition("@")[2]
    return f"http://{name if options.listen == '0.0.0.0' else options.listen}:{options.port}"


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
