"""What the kernel says about this machine: CPUs, clusters, memory, clocks, heat.

Everything is read from /proc and /sys below a root, so that tests can show it other machines.
Source: Documentation/ABI/testing/sysfs-devices-system-cpu and proc(5).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from rillm.core.placement import format_cpu_list as format_cpu_list
from rillm.core.placement import parse_cpu_list as parse_cpu_list

_CPUS = "sys/devices/system/cpu"


@dataclass(frozen=True)
class Cluster:
    """CPUs that are alike and share a cluster, and with it usually a cache."""

    cpus: tuple[int, ...]
    name: str  # vendor's name of the core, where the kernel knows it
    max_mhz: int  # 0: unknown
    capacity: int  # the kernel's relative speed, 1024 = the fastest; 0: unknown
    governor: str


@dataclass(frozen=True)
class Node:
    """A NUMA node. Bytes."""

    number: int
    cpus: tuple[int, ...]
    memory: int


@dataclass(frozen=True)
class Machine:
    """The hardware and its state. Memory in bytes, temperatures in degrees Celsius."""

    isa: str  # the ISA string of /proc/cpuinfo (RISC-V), else its flags
    vendor_ids: str  # mvendorid/marchid/mimpid on RISC-V
    online: tuple[int, ...]
    present: tuple[int, ...]
    clusters: tuple[Cluster, ...]
    nodes: tuple[Node, ...]
    load: float  # runnable tasks, mean of a minute
    memory: int
    memory_available: int
    swap: int
    swap_used: int
    huge_pages: str  # always, madvise, never, or empty where the kernel has none
    temperature: float | None  # the hottest zone
    throttled: str  # what slows the CPUs down now; empty: nothing that the kernel tells


def read_machine(root: Path = Path("/")) -> Machine:
    """Reads everything; what a kernel does not tell is empty or 0, never an error."""
    blocks = _cpuinfo(root)
    meminfo = _meminfo(_text(root / "proc/meminfo"))
    online = parse_cpu_list(_text(root / _CPUS / "online")) or tuple(sorted(blocks)) or (0,)
    first = blocks.get(online[0], {})
    return Machine(
        isa=first.get("isa") or first.get("flags") or first.get("Features") or "",
        vendor_ids="/".join(
            first[key] for key in ("mvendorid", "marchid", "mimpid") if key in first
        ),
        online=online,
        present=parse_cpu_list(_text(root / _CPUS / "present")) or online,
        clusters=_clusters(root, online, blocks),
        nodes=_nodes(root),
        load=float((_text(root / "proc/loadavg").split() or ["0"])[0]),
        memory=meminfo.get("MemTotal", 0),
        memory_available=meminfo.get("MemAvailable", 0),
        swap=meminfo.get("SwapTotal", 0),
        swap_used=meminfo.get("SwapTotal", 0) - meminfo.get("SwapFree", 0),
        huge_pages=_chosen(_text(root / "sys/kernel/mm/transparent_hugepage/enabled")),
        temperature=_temperature(root),
        throttled=_throttled(root, online),
    )


def _clusters(
    root: Path, online: tuple[int, ...], blocks: dict[int, dict[str, str]]
) -> tuple[Cluster, ...]:
    groups: dict[tuple[str, ...], list[int]] = {}
    for cpu in online:
        folder = root / _CPUS / f"cpu{cpu}"
        block = blocks.get(cpu, {})
        key = (
            block.get("uarch") or block.get("model name") or block.get("CPU part") or "",
            _text(folder / "cpufreq/cpuinfo_max_freq").strip(),
            _text(folder / "cpu_capacity").strip(),
            _text(folder / "cpufreq/scaling_governor").strip(),
            _text(folder / "topology/cluster_cpus_list").strip(),
            _text(folder / "topology/physical_package_id").strip(),
        )
        groups.setdefault(key, []).append(cpu)
    clusters = [
        Cluster(tuple(cpus), key[0], _number(key[1]) // 1000, _number(key[2]), key[3])
        for key, cpus in groups.items()
    ]
    # Where every CPU is a cluster of its own (virtual machines say so), the grouping says nothing.
    if len(clusters) == len(online) and len({_without_cpus(one) for one in clusters}) == 1:
        one = clusters[0]
        return (Cluster(online, one.name, one.max_mhz, one.capacity, one.governor),)
    return tuple(sorted(clusters, key=lambda one: (-one.capacity, -one.max_mhz, one.cpus)))


def _without_cpus(cluster: Cluster) -> tuple[str, int, int, str]:
    return cluster.name, cluster.max_mhz, cluster.capacity, cluster.governor


def _nodes(root: Path) -> tuple[Node, ...]:
    nodes = []
    for folder in (root / "sys/devices/system/node").glob("node[0-9]*"):
        text = re.sub(r"(?m)^Node \d+ ", "", _text(folder / "meminfo"))
        cpus = parse_cpu_list(_text(folder / "cpulist"))
        nodes.append(Node(int(folder.name[4:]), cpus, _meminfo(text).get("MemTotal", 0)))
    return tuple(sorted(nodes, key=lambda node: node.number))


def _throttled(root: Path, online: tuple[int, ...]) -> str:
    for folder in sorted((root / "sys/class/thermal").glob("cooling_device*")):
        kind, state = _text(folder / "type").strip(), _number(_text(folder / "cur_state"))
        if state > 0 and re.search(r"cpu|processor", kind, re.IGNORECASE):
            return f"cooling device {kind} is at {state} of {_number(_text(folder / 'max_state'))}"
    for cpu in online:
        folder = root / _CPUS / f"cpu{cpu}/cpufreq"
        allowed, best = (
            _number(_text(folder / name)) for name in ("scaling_max_freq", "cpuinfo_max_freq")
        )
        if 0 < allowed < best:
            return f"CPU {cpu} is held at {allowed // 1000} of {best // 1000} MHz"
    return ""


def _temperature(root: Path) -> float | None:
    zones = (root / "sys/class/thermal").glob("thermal_zone*")
    values = [_number(_text(zone / "temp")) / 1000 for zone in zones]
    return max((value for value in values if value > 0), default=None)


def _cpuinfo(root: Path) -> dict[int, dict[str, str]]:
    blocks: dict[int, dict[str, str]] = {}
    for number, text in enumerate(_text(root / "proc/cpuinfo").strip().split("\n\n")):
        pairs = (line.partition(":") for line in text.splitlines())
        block = {name.strip(): value.strip() for name, colon, value in pairs if colon}
        if "processor" in block or "isa" in block:
            blocks[_number(block.get("processor", ""), number)] = block
    return blocks


def _meminfo(text: str) -> dict[str, int]:
    found = re.findall(r"(?m)^(\w+):\s+(\d+) kB", text)
    return {name: int(value) * 1024 for name, value in found}


def _chosen(text: str) -> str:
    match = re.search(r"\[(\w+)\]", text)
    return match[1] if match else ""


def _number(text: str, default: int = 0) -> int:
    return int(text) if re.fullmatch(r"-?\d+\s*", text) else default


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:  # some files exist and cannot be read, as a sensor that is asleep
        return ""
