"""A board behind ssh: shell scripts on it, and files to it that survive a broken line."""

from __future__ import annotations

import contextlib
import hashlib
import shlex
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from rillm.closing import Closing
from rillm.errors import RillmError

_CHUNK = 1 << 20
_SSH_FAILED = 255  # ssh's own exit code; any other is the remote command's


class RemoteError(RillmError):
    """ssh failed, or a command on the board did."""


class Remote(Closing):
    """One host. All commands share one ssh connection, so a password is asked for once."""

    def __init__(self, host: str, ssh: Sequence[str] = ("ssh",)) -> None:
        if not host or host.startswith("-"):
            raise RillmError(f"{host!r} is no USER@BOARD")
        self.host = host
        self._folder = tempfile.TemporaryDirectory(prefix="rillm-ssh-")
        control = f"ControlPath={self._folder.name}/%C"
        self._ssh = [*ssh, "-o", "ControlMaster=auto", "-o", control, "-o", "ControlPersist=60"]

    def close(self) -> None:
        """Ends the connection."""
        with contextlib.suppress(OSError):
            subprocess.run([*self._ssh, "-O", "exit", self.host], capture_output=True, check=False)
        self._folder.cleanup()

    def run(self, script: str) -> str:
        """Runs a POSIX shell script there and returns what it printed.

        Errors: RemoteError with the last line that it wrote on stderr.
        """
        try:
            result = subprocess.run(
                self._command(script),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                check=False,
            )
        except OSError as error:
            raise RemoteError(f"{self._ssh[0]} cannot be run ({error}): install it") from None
        if result.returncode != 0:
            raise self._failure(result.returncode, result.stderr or result.stdout)
        return result.stdout

    def upload(
        self, path: Path, target: str, progress: Callable[[int, int], None] | None = None
    ) -> bool:
        """Copies a file to the absolute path `target`; returns whether anything was to do.

        What an earlier attempt left in <target>.partial is kept and continued. The file gets its
        name only when its SHA-256 is right.
        """
        size = path.stat().st_size
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if self._size(target) == size and self._digest(target) == digest:
            return False
        partial = target + ".partial"
        for attempt in range(2):
            done = self._size(partial)
            if done > size or attempt > 0:
                self.run(f"rm -f {shlex.quote(partial)}")
                done = 0
            self._append(path, partial, done, size, progress)
            if self._digest(partial) == digest:
                self.run(f"mv -f {shlex.quote(partial)} {shlex.quote(target)}")
                return True
        raise RemoteError(
            f"{self.host}:{target}: arrived with a wrong checksum twice: check the board's disk"
        )

    def _append(
        self,
        path: Path,
        partial: str,
        done: int,
        size: int,
        progress: Callable[[int, int], None] | None,
    ) -> None:
        process = subprocess.Popen(
            self._command(f"cat >> {shlex.quote(partial)}"),
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        assert process.stdin is not None
        with path.open("rb") as file:
            file.seek(done)
            try:
                while chunk := file.read(_CHUNK):
                    process.stdin.write(chunk)
                    done += len(chunk)
                    if progress is not None:
                        progress(done, size)
            except BrokenPipeError:
                pass  # its exit code says why
        message = process.communicate()[1].decode(errors="replace")
        if process.returncode != 0:
            raise self._failure(process.returncode, message)

    def _size(self, target: str) -> int:
        name = shlex.quote(target)
        return int(self.run(f"if [ -f {name} ]; then wc -c < {name}; else echo 0; fi"))

    def _digest(self, target: str) -> str:
        return self.run(f"sha256sum < {shlex.quote(target)}").split()[0]

    def _command(self, script: str) -> list[str]:
        return [*self._ssh, self.host, f"sh -c {shlex.quote(script)}"]

    def _failure(self, code: int, message: str) -> RemoteError:
        lines = [line.strip() for line in message.splitlines() if line.strip()]
        reason = lines[-1] if lines else f"exit code {code}"
        where = f"ssh {self.host}" if code == _SSH_FAILED else self.host
        return RemoteError(f"{where}: {reason}")
