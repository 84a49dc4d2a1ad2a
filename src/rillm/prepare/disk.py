"""Whether a disk has the room, asked before anything is written."""

from __future__ import annotations

import shutil
from pathlib import Path

from rillm.prepare.errors import PrepareError


def check_free(path: Path, folder: Path, num_bytes: int, other: str) -> None:
    """PrepareError where `folder`, an existing one on the disk of `path`, has fewer bytes free.

    `other` is what else the user may give: "another output path".
    """
    free = shutil.disk_usage(folder).free
    if free < num_bytes:
        needed, left = f"{num_bytes / 1e6:,.1f} MB", f"{free / 1e6:,.1f} MB"
        raise PrepareError(
            f"{path}: needs {needed}, but only {left} are free in {folder}; "
            f"free some space or give {other}"
        )
