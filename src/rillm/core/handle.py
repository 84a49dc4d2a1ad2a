"""What everything that the core made has in common, and where buffers lie for it."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING

from rillm.closing import Closing
from rillm.core.loader import CoreError

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from rillm.core.library import Core


def address_of(buffer: Buffer) -> int:
    """Where a contiguous buffer lies in memory. The caller keeps the buffer alive."""
    view = memoryview(buffer)
    if not view.c_contiguous:
        raise ValueError("the buffer is not contiguous")
    if view.nbytes == 0:
        return 0
    if view.readonly:
        # ctypes takes addresses of writable buffers only; bytes objects go by c_char_p.
        if not isinstance(buffer, bytes):
            raise ValueError("a read-only buffer must be a bytes object")
        return ctypes.cast(ctypes.c_char_p(buffer), ctypes.c_void_p).value or 0
    return ctypes.addressof(ctypes.c_char.from_buffer(view.cast("B") if view.ndim else view))


class Handle(Closing):
    """Owns one handle of the ABI."""

    _destroy: str

    def __init__(self, core: Core, handle: int | None) -> None:
        self.core = core
        self._handle = handle

    @property
    def handle(self) -> int:
        """What the ABI knows the object by; CoreError once it is closed."""
        if self._handle is None:
            raise CoreError(f"this {type(self).__name__} is closed")
        return self._handle

    @property
    def is_open(self) -> bool:
        """Whether `close` has not been called yet."""
        return self._handle is not None

    def close(self) -> None:
        """Frees what the handle owns. Closing twice is fine."""
        handle, self._handle = self._handle, None
        if handle is not None:
            self.core.query(self._destroy, handle)

    def __del__(self) -> None:
        if getattr(self, "_handle", None) is not None:
            self.close()
