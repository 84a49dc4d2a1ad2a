"""How the server is started, watched and stopped on a board: as a systemd unit, or by itself."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass

_UNIT = """\
[Unit]
Description=rillm: {model}
After=network-online.target
Wants=network-online.target

[Service]
ExecStart={command}
EnvironmentFile=-{folder}/env
Restart=always
RestartSec=5
TimeoutStopSec=60

[Install]
WantedBy={wanted_by}
"""
_MOST_RESTARTS = 3


@dataclass(frozen=True)
class Place:
    """Where everything lies on the board."""

    folder: str  # ~/.local/share/rillm
    unit_folder: str
    is_root: bool

    @classmethod
    def of(cls, home: str, uid: int) -> Place:
        """root gets a system unit, everyone else one of their own."""
        root = uid == 0
        units = "/etc/systemd/system" if root else f"{home}/.config/systemd/user"
        return cls(f"{home}/.local/share/rillm", units, root)

    @property
    def unit(self) -> str:
        """Path of the unit file."""
        return f"{self.unit_folder}/rillm.service"

    @property
    def systemctl(self) -> str:
        """The command for this kind of unit; over ssh a user's manager has to be pointed to."""
        if self.is_root:
            return "systemctl"
        return 'XDG_RUNTIME_DIR="${XDG_RUNTIME_DIR:-/run/user/$(id -u)}" systemctl --user'

    def path(self, name: str) -> str:
        """A file of ours, quoted for the shell."""
        return shlex.quote(f"{self.folder}/{name}")


def unit_text(place: Place, command: Sequence[str]) -> str:
    """The unit file. systemd reads % and $ in a command line, so both are doubled."""
    words = [word.replace("%", "%%").replace("$", "$$") for word in command]
    quoted = " ".join('"' + word.replace("\\", "\\\\").replace('"', '\\"') + '"' for word in words)
    return _UNIT.format(
        model=command[command.index("-m") + 1].rpartition("/")[2].replace("%", "%%"),
        command=quoted,
        folder=place.folder.replace("%", "%%"),
        wanted_by="multi-user.target" if place.is_root else "default.target",
    )


def install_unit(place: Place, command: Sequence[str]) -> str:
    """Script: writes the unit and (re)starts it, at boot too."""
    text = shlex.quote(unit_text(place, command))
    lines = [
        f"mkdir -p {shlex.quote(place.unit_folder)}",
        f"printf %s {text} > {shlex.quote(place.unit)}",
        f"{place.systemctl} daemon-reload",
        f"{place.systemctl} enable --quiet rillm.service",
        f"{place.systemctl} restart rillm.service",
    ]
    if not place.is_root:  # without it the server would start at the user's first login only
        lines.append(
            'loginctl enable-linger || echo "warning: it starts at login only;'
            ' on the board: sudo loginctl enable-linger $(id -un)"'
        )
    return "set -e\n" + "\n".join(lines)


def start_process(place: Place, command: Sequence[str]) -> str:
    """Script: starts the server without systemd; it lives on after the ssh session."""
    return "\n".join(
        [
            "set -e",
            f"if [ -f {place.path('env')} ]; then set -a; . {place.path('env')}; set +a; fi",
            f"nohup {shlex.join(command)} </dev/null >{place.path('server.log')} 2>&1 &",
            f"echo $! > {place.path('server.pid')}",
        ]
    )


def stop_process(place: Place) -> str:
    """Script: stops what start_process started; a foreign process that has its number lives on."""
    pid_file = place.path("server.pid")
    return f"""\
if [ -f {pid_file} ]; then
  pid=$(cat {pid_file})
  if tr '\\0' ' ' < /proc/$pid/cmdline 2>/dev/null | grep -qF {place.path("venv/bin/")}; then
    kill $pid
    for i in $(seq 60); do kill -0 $pid 2>/dev/null || break; sleep 0.5; done
    kill -9 $pid 2>/dev/null || true
  fi
  rm -f {pid_file}
fi"""


def remove_unit(place: Place) -> str:
    """Script: stops and deletes the unit, if there is one."""
    return f"""\
if [ -f {shlex.quote(place.unit)} ]; then
  {place.systemctl} disable --quiet --now rillm.service || true
  rm -f {shlex.quote(place.unit)}
  {place.systemctl} daemon-reload || true
fi"""


def remove_files(place: Place) -> str:
    """Script: deletes what deploy put there, and the folder unless something else is in it."""
    names = ("venv", "wheels", "models", "installed", "server.pid", "server.log")
    files = " ".join(place.path(name) for name in names)
    return f"rm -rf {files}\nrmdir {shlex.quote(place.folder)} 2>/dev/null || true"


def state(place: Place, *, service: bool, listen: str, port: int) -> str:
    """Script: prints "ok" (healthy), "loading", or "dead" and the end of its log.

    systemd starts a server that ends again and again; after _MOST_RESTARTS it counts as dead.
    """
    ask = (
        "import sys, urllib.request as u\n"
        "try: u.urlopen(sys.argv[1], timeout=5); print('ok')\n"
        "except Exception: print('loading')"
    )
    if service:
        restarts = f"{place.systemctl} show --property=NRestarts --value rillm.service"
        alive = (
            f'[ "$({place.systemctl} is-active rillm.service)" != failed ]'
            f' && [ "$({restarts})" -lt {_MOST_RESTARTS} ]'
        )
        log = f"journalctl {'-u' if place.is_root else '--user-unit'} rillm.service -n 5 -o cat"
    else:
        alive = f"kill -0 $(cat {place.path('server.pid')}) 2>/dev/null"
        log = f"tail -n 5 {place.path('server.log')}"
    everywhere = listen in ("0.0.0.0", "localhost")
    url = shlex.quote(f"http://{'127.0.0.1' if everywhere else listen}:{port}/health")
    python = place.path("venv/bin/python")
    return f"if {alive}; then {python} -c {shlex.quote(ask)} {url}; else echo dead; {log}; fi"
