"""Which CPUs the threads of a team run on.

Read from /proc/cpuinfo and /sys below a root, so that tests can show it other machines. Sources:
Documentation/ABI/testing/sysfs-devices-system-cpu, sysfs-devices-node and proc(5).
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

_CPUS = "sys/devices/system/cpu"
# What in /proc/cpuinfo decides which kernels a CPU can run: RISC-V, then x86 and ARM.
_KIND_FIELDS = ("isa", "hart isa", "uarch", "mvendorid", "marchid", "flags", "Features")
# CPUs that share one of these work well together. The first that is more than one core counts:
# a cluster is two hardware threads on some machines, and the second-level cache one core's.
_CLUSTER_FILES = (
    "topology/cluster_cpus_list",
    "cache/index2/shared_cpu_list",
    "cache/index3/shared_cpu_list",
    "topology/core_siblings_list",
)


@dataclass(frozen=True, slots=True)
class Cpu:
    """One CPU as the kernel describes it; what it does not tell is empty or 0."""

    number: int
    kind: str  # equal where the same kernels run equally well
    node: int  # NUMA
    cluster: tuple[int, ...]  # the CPUs that share a cluster or cache with it
    core: tuple[int, ...]  # the hardware threads of its core
    capacity: int  # relative speed, 1024 = the fastest


@dataclass(frozen=True, slots=True)
class Placement:
    """cpus: one a thread, neighbours close to each other, or None to leave it to the kernel.

    With several NUMA nodes the thread that calls the team must stay on `caller`: the weights that
    it packed lie there.
    """

    num_threads: int
    cpus: tuple[int, ...] | None = None
    caller: int | None = None


def parse_cpu_list(text: str) -> tuple[int, ...]:
    """The kernel's "0-3,8" -> (0, 1, 2, 3, 8)."""
    cpus: list[int] = []
    for part in text.strip().split(","):
        if match := re.fullmatch(r"(\d+)(?:-(\d+))?", part.strip()):
            cpus.extend(range(int(match[1]), int(match[2] or match[1]) + 1))
    return tuple(cpus)


def format_cpu_list(cpus: Iterable[int]) -> str:
    """(0, 1, 2, 3, 8) -> "0-3,8"."""
    runs: list[list[int]] = []
    for cpu in sorted(cpus):
        if runs and runs[-1][-1] == cpu - 1:
            runs[-1].append(cpu)
        else:
            runs.append([cpu])
    return ",".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)


def read_cpus(allowed: Sequence[int], root: Path = Path("/")) -> tuple[Cpu, ...]:
    """The CPUs in `allowed`."""
    kinds = _kinds(root)
    nodes = {
        cpu: int(folder.name[4:])
        for folder in (root / "sys/devices/system/node").glob("node[0-9]*")
        for cpu in parse_cpu_list(_text(folder / "cpulist"))
    }
    found = []
    for number in sorted(allowed):
        folder = root / _CPUS / f"cpu{number}"
        core = parse_cpu_list(_text(folder / "topology/thread_siblings_list")) or (number,)
        shared = (parse_cpu_list(_text(folder / name)) for name in _CLUSTER_FILES)
        cluster = next((cpus for cpus in shared if len(cpus) > len(core)), core)
        capacity = _text(folder / "cpu_capacity").strip()
        found.append(
            Cpu(
                number,
                kinds.get(number, ""),
                nodes.get(number, 0),
                cluster,
                core,
                int(capacity) if capacity.isdigit() else 1024,
            )
        )
    return tuple(found)


def one_kind(cpus: Sequence[Cpu], score: Callable[[Cpu], int]) -> tuple[Cpu, ...]:
    """The CPUs of the best kind: a team never mixes vector lengths or instruction sets.

    score: of the kernels that a CPU of a kind can run. Of equals the kind that computes most
    together wins (SpacemiT's K3: eight X100 before eight A100 cores).
    """
    kinds: dict[str, list[Cpu]] = defaultdict(list)
    for cpu in cpus:
        kinds[cpu.kind].append(cpu)
    if len(kinds) < 2:
        return tuple(cpus)

    def rank(group: Sequence[Cpu]) -> tuple[int, int, int]:
        return score(group[0]), sum(cpu.capacity for cpu in group), -group[0].number

    best: Sequence[Cpu] = max(kinds.values(), key=rank)
    return tuple(best)


def place(cpus: Sequence[Cpu], num_threads: int) -> Placement:
    """Places at most one thread on each of `cpus`.

    All of them: a thread on each, neighbours in the same cluster and node, because neighbours
    share out neighbouring weights. Fewer: the fastest cores, one hardware thread of each, spread
    evenly over nodes and clusters for their memory channels and caches. Nothing is pinned where
    the CPUs are alike and near each other: the kernel knows better which ones are idle.
    """
    num_threads = max(1, min(num_threads, len(cpus)))
    chosen = list(cpus)
    if num_threads < len(cpus):
        fast = _fastest(_first_of_each_core(cpus, num_threads), num_threads)
        is_uniform = len({(cpu.node, cpu.cluster) for cpu in fast}) == 1
        if is_uniform and len(fast) == len(cpus):
            return Placement(num_threads)
        chosen = _spread(fast, num_threads)
    if num_threads == 1 and len({cpu.node for cpu in cpus}) == 1:
        return Placement(1)
    chosen.sort(key=lambda cpu: (cpu.node, cpu.cluster, cpu.core, cpu.number))
    pins = tuple(cpu.number for cpu in chosen)
    many_nodes = len({cpu.node for cpu in chosen}) > 1
    return Placement(num_threads, pins, pins[0] if many_nodes else None)


def _first_of_each_core(cpus: Sequence[Cpu], wanted: int) -> list[Cpu]:
    firsts = list({cpu.core: cpu for cpu in reversed(cpus)}.values())[::-1]
    return firsts if len(firsts) >= wanted else list(cpus)


def _fastest(cpus: Sequence[Cpu], wanted: int) -> list[Cpu]:
    """All of at least the capacity that the `wanted` fastest have."""
    least = sorted((cpu.capacity for cpu in cpus), reverse=True)[wanted - 1]
    return [cpu for cpu in cpus if cpu.capacity >= least]


def _spread(cpus: Sequence[Cpu], count: int) -> list[Cpu]:
    """`count` of them: each next from the node, and there from the cluster, with fewest so far."""
    chosen: list[Cpu] = []
    in_node: dict[int, int] = defaultdict(int)
    in_cluster: dict[tuple[int, ...], int] = defaultdict(int)
    left = sorted(cpus, key=lambda cpu: -cpu.capacity)
    for _ in range(count):
        best = min(
            left,
            key=lambda cpu: (-cpu.capacity, in_node[cpu.node], in_cluster[cpu.cluster], cpu.number),
        )
        left.remove(best)
        chosen.append(best)
        in_node[best.node] += 1
        in_cluster[best.cluster] += 1
    return chosen


def _kinds(root: Path) -> dict[int, str]:
    kinds = {}
    for text in _text(root / "proc/cpuinfo").split("\n\n"):
        pairs = (line.partition(":") for line in text.splitlines())
        block = {name.strip(): value.strip() for name, colon, value in pairs if colon}
        if block.get("processor", "").isdigit():
            fields = (f"{name} {block[name]}" for name in _KIND_FIELDS if name in block)
            kinds[int(block["processor"])] = "; ".join(fields)
    return kinds


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
