"""Thread placement on boards as their kernels describe them.

The layouts are written down from public sources (device trees, boot logs, lscpu listings), not
captured by us: SpacemiT K1 (two clusters of four X60, an L2 each), K3 (X100 and A100 cores whose
vector lengths differ), Sophgo SG2042 (four NUMA nodes, whose CPU numbers interleave in pairs of
eight; clusters of four share an L2), and PCs.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from array import array
from dataclasses import replace
from pathlib import Path

import pytest

from rillm.cli.app import run as run_cli
from rillm.core import allowed_cpus, load_core, loader
from rillm.core.placement import (
    Placement,
    format_cpu_list,
    one_kind,
    parse_cpu_list,
    place,
    read_cpus,
)
from rillm.engine import machine


def write_cpus(root: Path, cpus: dict[int, dict[str, str]], nodes: dict[int, str]) -> Path:
    """cpus: number -> file below its folder (or a /proc/cpuinfo field, with a colon) -> text."""
    info = ""
    for number, files in cpus.items():
        info += f"processor\t: {number}\nhart\t: {number}\n"
        for name, text in files.items():
            if name.endswith(":"):
                info += f"{name[:-1]}\t\t: {text}\n"
                continue
            path = root / f"sys/devices/system/cpu/cpu{number}" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{text}\n")
        info += "\n"
    (root / "proc").mkdir(parents=True)
    (root / "proc/cpuinfo").write_text(info)
    for node, text in nodes.items():
        folder = root / f"sys/devices/system/node/node{node}"
        folder.mkdir(parents=True)
        (folder / "cpulist").write_text(f"{text}\n")
    return root


@pytest.fixture
def k1(tmp_path):
    def files(cpu):
        return {
            "isa:": "rv64imafdcv_zicbom_zvfh_zvl256b",
            "uarch:": "spacemit,x60",
            "topology/cluster_cpus_list": "0-3" if cpu < 4 else "4-7",
            "topology/thread_siblings_list": str(cpu),
            "cache/index2/shared_cpu_list": "0-3" if cpu < 4 else "4-7",
        }

    root = write_cpus(tmp_path / "k1", {cpu: files(cpu) for cpu in range(8)}, {0: "0-7"})
    return read_cpus(range(8), root)


@pytest.fixture
def k3(tmp_path):
    def files(cpu):
        return {
            "isa:": "rv64imafdcv_zvfh" + ("_zvl256b" if cpu < 8 else "_zvl1024b"),
            "uarch:": "spacemit,x100" if cpu < 8 else "spacemit,a100",
            "cpu_capacity": "1024" if cpu < 8 else "500",
            "topology/cluster_cpus_list": f"{cpu // 4 * 4}-{cpu // 4 * 4 + 3}",
            "topology/thread_siblings_list": str(cpu),
        }

    root = write_cpus(tmp_path / "k3", {cpu: files(cpu) for cpu in range(16)}, {0: "0-15"})
    return read_cpus(range(16), root)


SG2042_NODES = {0: "0-7,16-23", 1: "8-15,24-31", 2: "32-39,48-55", 3: "40-47,56-63"}


@pytest.fixture
def sg2042(tmp_path):
    def files(cpu):
        first = cpu // 4 * 4
        return {
            "isa:": "rv64imafdcv",
            "mvendorid:": "0x5b7",
            "topology/cluster_cpus_list": f"{first}-{first + 3}",
            "topology/thread_siblings_list": str(cpu),
            "cache/index3/shared_cpu_list": "0-63",
        }

    root = write_cpus(tmp_path / "sg2042", {cpu: files(cpu) for cpu in range(64)}, SG2042_NODES)
    return read_cpus(range(64), root)


@pytest.fixture
def smt_pc(tmp_path):
    """Four cores of two hardware threads, CPU n + 4 beside CPU n; the kernel's clusters are L2s."""

    def files(cpu):
        pair = f"{cpu % 4},{cpu % 4 + 4}"
        return {
            "flags:": "fma avx2",
            "topology/cluster_cpus_list": pair,
            "topology/thread_siblings_list": pair,
            "cache/index2/shared_cpu_list": pair,
            "cache/index3/shared_cpu_list": "0-7",
        }

    root = write_cpus(tmp_path / "pc", {cpu: files(cpu) for cpu in range(8)}, {0: "0-7"})
    return read_cpus(range(8), root)


def test_what_is_read(k1, k3, sg2042):
    assert [cpu.cluster for cpu in k1] == [(0, 1, 2, 3)] * 4 + [(4, 5, 6, 7)] * 4
    assert {cpu.kind for cpu in k1} == {"isa rv64imafdcv_zicbom_zvfh_zvl256b; uarch spacemit,x60"}
    assert len({cpu.kind for cpu in k3}) == 2
    assert [sg2042[cpu].node for cpu in (0, 8, 16, 31, 32, 63)] == [0, 1, 0, 1, 2, 3]


def test_k1_all_cores_with_neighbours_in_one_cluster(k1):
    assert place(k1, 8) == Placement(8, tuple(range(8)))
    assert place(k1, 99).num_threads == 8  # never two threads on a CPU


@pytest.mark.parametrize(
    ("threads", "cpus"), [(2, (0, 4)), (3, (0, 1, 4)), (4, (0, 1, 4, 5)), (6, (0, 1, 2, 4, 5, 6))]
)
def test_k1_fewer_threads_use_both_clusters(k1, threads, cpus):
    assert place(k1, threads) == Placement(threads, cpus)


def test_k1_within_one_cluster_the_kernel_chooses(k1):
    assert place(k1[:4], 2) == Placement(2)
    assert place(k1[:4], 4) == Placement(4, (0, 1, 2, 3))
    assert place(k1[2:6], 2) == Placement(2, (2, 4))


def test_one_thread_is_not_pinned_on_one_node(k1):
    assert place(k1, 1) == Placement(1)


def test_k3_never_mixes_vector_lengths(k3):
    assert [cpu.number for cpu in one_kind(k3, lambda cpu: 200)] == list(range(8))
    # A cpuset of only A100 cores is one kind, and so is one with a variant for nothing else.
    assert [cpu.number for cpu in one_kind(k3[8:], lambda cpu: 200)] == list(range(8, 16))
    only_long = one_kind(k3, lambda cpu: 200 if "zvl1024b" in cpu.kind else 0)
    assert [cpu.number for cpu in only_long] == list(range(8, 16))
    # Two X100 cores compute less than eight A100 cores.
    assert len(one_kind(k3[6:], lambda cpu: 200)) == 8


def test_sg2042_spreads_over_nodes_with_neighbours_in_one(sg2042):
    everyone = place(sg2042, 64)
    assert everyone.cpus is not None
    nodes = [sg2042[cpu].node for cpu in everyone.cpus]
    assert nodes == sorted(nodes)
    assert sorted(everyone.cpus) == list(range(64))
    assert everyone.caller == everyone.cpus[0]
    for threads in (4, 8, 16, 32):
        cpus = place(sg2042, threads).cpus
        assert cpus is not None
        nodes = [sg2042[cpu].node for cpu in cpus]
        assert nodes == sorted(nodes)
        assert {nodes.count(node) for node in range(4)} == {threads // 4}
        clusters = [sg2042[cpu].cluster for cpu in cpus]
        assert max(map(clusters.count, clusters)) == max(1, threads // 16)


def test_sg2042_one_node_by_cpuset(sg2042):
    node = [sg2042[cpu] for cpu in parse_cpu_list(SG2042_NODES[2])]
    placed = place(node, 16)
    assert placed.cpus == parse_cpu_list(SG2042_NODES[2])
    assert placed.caller is None


def test_cores_before_their_second_threads(smt_pc):
    assert {cpu.cluster for cpu in smt_pc} == {tuple(range(8))}
    assert place(smt_pc, 4) == Placement(4, (0, 1, 2, 3))
    assert place(smt_pc, 8) == Placement(8, (0, 4, 1, 5, 2, 6, 3, 7))


def test_fast_cores_before_slow_ones(k1):
    mixed = [replace(cpu, capacity=1024 if cpu.number >= 4 else 400) for cpu in k1]
    assert place(mixed, 2) == Placement(2, (4, 5))
    assert place(mixed, 6).cpus == (0, 1, 4, 5, 6, 7)


def test_a_kernel_that_tells_nothing(tmp_path):
    cpus = read_cpus([0, 1, 2], tmp_path)
    assert one_kind(cpus, lambda cpu: 0) == cpus
    assert place(cpus, 3).cpus == (0, 1, 2)
    assert place(cpus, 2).num_threads == 2


@pytest.mark.parametrize("text", ["0", "0-3", "0-3,8", "1,3,5-7"])
def test_cpu_lists(text):
    assert format_cpu_list(parse_cpu_list(text + "\n")) == text


# ---- this process ------------------------------------------------------------------------------


def in_process(code, **options):
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, **options
    )
    return done.stdout.split(), done.stderr


def test_more_threads_than_cpus_are_not_started(caplog):
    cpus = len(allowed_cpus())
    with machine.start_team(load_core(), cpus + 3) as team:
        assert team.num_threads == cpus
    assert f"{cpus + 3} threads were asked for" in caplog.text
    code = (
        "import os\n"
        "os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
        "from rillm.core import load_core\n"
        "from rillm.engine.machine import start_team\n"
        "print(start_team(load_core()).num_threads, start_team(load_core(), 1).num_threads)\n"
    )
    assert in_process(code)[0] == ["1", "1"]


def test_cpus_of_another_kind_are_given_up(monkeypatch):
    """Every thread of the process, and those that it starts later."""
    allowed = allowed_cpus()
    if len(allowed) < 2:
        pytest.skip("needs two CPUs")
    code = (
        "import os, threading, time\n"
        "from dataclasses import replace\n"
        "from rillm.core import loader\n"
        "read = loader.read_cpus\n"
        "loader.read_cpus = lambda allowed: tuple(\n"
        "    replace(cpu, kind=str(i == 0), capacity=1024 - i)\n"
        "    for i, cpu in enumerate(read(allowed)[:2]))\n"
        "gate = threading.Event()\n"
        "other = threading.Thread(target=gate.wait); other.start()\n"
        "threading.Thread(target=loader.cpu_features).start()\n"
        "loader.cpu_features()\n"
        "print(*[len(os.sched_getaffinity(int(t))) for t in os.listdir('/proc/self/task')])\n"
        "gate.set()\n"
    )
    masks = in_process(code)[0]
    assert len(masks) >= 2
    assert set(masks) == {"1"}
    assert loader.keep_to_one_kind() == ()  # this machine's CPUs are alike
    assert allowed_cpus() == allowed


def test_the_caller_comes_back_from_its_cpu():
    core, allowed = load_core(), allowed_cpus()
    with core.team(1, caller=allowed[-1]) as team:
        with team.calling():
            assert allowed_cpus() == [allowed[-1]]
        assert allowed_cpus() == allowed


def test_cpu_list_option(capsys):
    code = (
        "import os, sys\n"
        "from rillm.cli.app import run\n"
        "run(['bench', '--cpu-list', sys.argv[1], '--dummy', 'nothing-like-it'])\n"
        "print(*sorted(os.sched_getaffinity(0)))\n"
    )
    first = str(allowed_cpus()[0])
    done = subprocess.run(
        [sys.executable, "-c", code, first], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == [first]
    assert run_cli(["bench", "--cpu-list", "99999", "--dummy", "glm-tiny"]) == 2
    assert "CPU 99999 is not ours" in capsys.readouterr().err.replace("\n", " ")


@pytest.mark.skipif(
    os.getloadavg()[0] > 1.5 * len(allowed_cpus()), reason="other programs use the CPUs, too"
)
def test_more_threads_than_cpus_cost_little():
    """Spinning threads give their CPU away: 8 threads on 2 CPUs finish as 2 do, within a factor."""
    core, data = load_core(), array("B", bytes(1 << 20))
    cpus = set(allowed_cpus()[:2])

    def seconds(num_threads):
        with core.team(num_threads) as team:
            team.read_bandwidth(data, 20)
            start = time.perf_counter()
            team.read_bandwidth(data, 600)
            return time.perf_counter() - start

    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cpus)
    try:
        few = min(seconds(len(cpus)) for _ in range(3))
        many = min(seconds(8) for _ in range(3))
    finally:
        os.sched_setaffinity(0, before)
    # Without yielding each of the 600 phases would wait for three time slices of some milliseconds.
    # The constant is for a machine that becomes busy with other things.
    assert many < 10 * few + 2.5, (few, many)
