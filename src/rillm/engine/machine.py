"""What this process may use of the machine: CPUs and memory, within its control groups."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Iterator
from pathlib import Path

from rillm.core import Core, ThreadTeam, allowed_cpus
from rillm.core.placement import format_cpu_list, place, read_cpus

_log = logging.getLogger(__name__)
_CGROUP_ROOT = Path("/sys/fs/cgroup")


def default_num_threads() -> int:
    """Allowed CPUs, or fewer where a container's CPU quota gives less than one of each."""
    return max(1, math.ceil(min(len(allowed_cpus()), cpu_quota())))


def start_team(core: Core, num_threads: int | None = None) -> ThreadTeam:
    """A thread team placed on the CPUs that this process may use, never more than one on each.

    num_threads: None for `default_num_threads`.
    """
    allowed = allowed_cpus()
    wanted = num_threads or default_num_threads()
    if wanted > len(allowed):
        _log.warning(
            "%d threads were asked for, but only CPUs %s are ours: %d threads",
            wanted, format_cpu_list(allowed), len(allowed),
        )  # fmt: skip
    placement = place(read_cpus(allowed), wanted)
    return core.team(placement.num_threads, placement.cpus, caller=placement.caller)


def cpu_quota() -> float:
    """CPUs' worth of time the control groups allow (infinite without a quota)."""
    quota = math.inf
    for folder in _cgroups():
        fields = _read(folder / "cpu.max").split()
        if len(fields) == 2 and fields[0] != "max":
            quota = min(quota, int(fields[0]) / int(fields[1]))
    return quota


def available_memory() -> int:
    """Bytes that can be allocated without swapping, within the control groups' limits.

    Page cache counts as available: the kernel drops it when memory is wanted.
    """
    available = _meminfo("MemAvailable")
    for folder in _cgroups():
        limit = _read(folder / "memory.max").strip()
        if not limit.isdigit():
            continue
        used = int(_read(folder / "memory.current").strip() or 0)
        reclaimable = 0
        for line in _read(folder / "memory.stat").splitlines():
            name, _, value = line.partition(" ")
            if name in ("inactive_file", "active_file"):
                reclaimable += int(value)
        available = min(available, int(limit) - max(0, used - reclaimable))
    return max(0, available)


def _meminfo(field: str) -> int:
    for line in _read(Path("/proc/meminfo")).splitlines():
        name, _, value = line.partition(":")
        if name == field:
            return int(value.split()[0]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _cgroups() -> Iterator[Path]:
    """The folders of our control group (version 2) and of every group above it."""
    for line in _read(Path("/proc/self/cgroup")).splitlines():
        if line.startswith("0::"):
            path = Path(line[3:].lstrip("/"))
            yield from (_CGROUP_ROOT / part for part in (path, *path.parents))


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
