"""The temporary file that becomes a GGUF file, and how far an interrupted run came with it.

It is called `.NAME.PID.partial`, or `.NAME.partial` where another run may go on with it. Until all
is written it begins with a journal, so that it is no GGUF file under whatever name:

    0 "PART" | 4 uint64: so many bytes are whole, and on the disk | 12 hash of what is being written

A process holds a lock on its own; one that nobody holds was left behind by a killed process.
"""

from __future__ import annotations

import fcntl
import os
import re
import struct
from contextlib import suppress
from typing import BinaryIO

from rillm.gguf.types import GGUFError

_JOURNAL = struct.Struct("<4sQ20s")  # 32 bytes: no GGUF file's head is shorter
HASH_BYTES = 20
_TAG = b"PART"


class PartialFile:
    """The open and locked temporary file for `path`; raises OSError, or GGUFError where another
    process is writing what this one would go on with."""

    def __init__(self, path: str, resumable: bool) -> None:
        self.resumable = resumable
        self.whole = 0  # the bytes that another run may go on from; 0: none
        self.left_over = False  # there was a file to go on with, but of something else
        self._path = path
        folder, name = os.path.split(path)
        self._folder = folder or "."
        self._delete_abandoned(name)
        number = "" if resumable else f".{os.getpid()}"
        self._temporary = os.path.join(folder, f".{name}{number}.partial")
        self._hash = bytes(HASH_BYTES)
        self.file = self._open()

    def resume(self, hash_: bytes) -> int:
        """How many bytes an interrupted run that wrote the same has left; all else is cut off."""
        self._hash = hash_
        tag, whole, found = _JOURNAL.unpack(
            self.file.read(_JOURNAL.size).ljust(_JOURNAL.size, b"\0")
        )
        size = os.fstat(self.file.fileno()).st_size
        if (tag, found) == (_TAG, hash_) and _JOURNAL.size < whole <= size:
            self.whole = whole
        else:
            self.left_over = size > 0
        self.file.truncate(self.whole)
        self.file.seek(self.whole)
        return self.whole

    def start(self, head: bytes) -> None:
        """Writes the first bytes of the new file, but for those where the journal is."""
        self.file.write(_JOURNAL.pack(_TAG, 0, self._hash) + head[_JOURNAL.size :])

    def keep(self, whole: int) -> None:
        """Makes the first `whole` bytes durable, for another run to go on from; cuts off others."""
        self.file.flush()
        self.file.truncate(whole)
        os.fsync(self.file.fileno())
        os.pwrite(self.file.fileno(), _JOURNAL.pack(_TAG, whole, self._hash), 0)
        self.whole = whole

    def finish(self, head: bytes) -> None:
        """Puts the head where the journal was, makes all durable and gives the file its name."""
        self.file.flush()
        os.fsync(self.file.fileno())
        os.pwrite(self.file.fileno(), head[: _JOURNAL.size], 0)
        os.fsync(self.file.fileno())
        os.replace(self._temporary, self._path)  # under the lock: no other process may open it
        self.file.close()
        with suppress(OSError):  # makes the new name durable too, where the file system can
            folder = os.open(self._folder, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)

    def delete(self) -> None:
        """Gives up."""
        if self.file.closed:
            return
        with suppress(OSError):
            os.unlink(self._temporary)
        self.leave()

    def leave(self) -> None:
        """Closes the file and leaves it to another run."""
        with suppress(OSError):
            self.file.close()  # flushes, which fails once more on a full disk

    def _open(self) -> BinaryIO:
        flags = os.O_RDWR | os.O_CREAT | (0 if self.resumable else os.O_EXCL)
        while True:
            file = os.fdopen(os.open(self._temporary, flags, 0o666), "r+b")
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.close()
                raise GGUFError(
                    f"{self._path}: is being written by another process; wait for it, or give "
                    "another output path"
                ) from None
            except OSError:
                return file  # a file system without locks
            # Had the other process finished in between, this would be its complete file.
            with suppress(OSError):
                if os.path.samestat(os.fstat(file.fileno()), os.stat(self._temporary)):
                    return file
            file.close()

    def _delete_abandoned(self, name: str) -> None:
        """Deletes files that nobody has locked and no run will go on with.

        They can be gigabytes that no user sees. One that had our process id would be in our way.
        """
        number = r"\.\d{1,7}" if self.resumable else r"(\.\d{1,7})?"
        pattern = re.compile(re.escape(f".{name}") + number + r"\.partial")
        for entry in os.listdir(self._folder):
            if pattern.fullmatch(entry) is None:
                continue
            path = os.path.join(self._folder, entry)
            with suppress(OSError), open(path, "rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.unlink(path)


def bytes_left(path: str | os.PathLike[str]) -> int:
    """Bytes on the disk of an interrupted run that wrote `path`."""
    folder, name = os.path.split(os.fspath(path))
    try:
        return os.stat(os.path.join(folder, f".{name}.partial")).st_size
    except OSError:
        return 0
