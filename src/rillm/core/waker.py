"""Wakes an event loop from another thread, and keeps the interpreter's lock meanwhile.

asyncio's call_soon_threadsafe writes to a socket, which gives the lock away: the loop takes it, and
the thread that woke it, which has the next step of the model to start, waits for its turn.
"""

from __future__ import annotations

import contextlib
import ctypes
import os

# PyDLL: calls keep the lock. This one takes a microsecond.
_write = ctypes.PyDLL(None).write
_write.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t)
_write.restype = ctypes.c_ssize_t


class Waker:
    """A file descriptor, for a loop's add_reader, that becomes readable by `wake`."""

    def __init__(self) -> None:
        self.fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._one = ctypes.c_uint64(1)

    def wake(self) -> None:
        """From any thread. Several before the next `clear` are as good as one."""
        _write(self.fd, ctypes.addressof(self._one), 8)

    def clear(self) -> None:
        """Makes it unreadable again; to be called before what it stands for is looked at."""
        with contextlib.suppress(BlockingIOError):
            os.read(self.fd, 8)

    def close(self) -> None:
        """Nobody may wake it any more."""
        os.close(self.fd)
