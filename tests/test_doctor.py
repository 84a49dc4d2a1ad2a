from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from rillm.board.doctor import (
    Bandwidth,
    examine,
    read_speed,
    recommend_threads,
    thread_counts,
    variant_choices,
)
from rillm.board.machine import format_cpu_list, parse_cpu_list, read_machine
from rillm.board.problems import find_problems
from rillm.board.sizing import advise, size_of_file, sizes_of_shape
from rillm.board.vector import describe_vector
from rillm.cli.app import run as run_cli
from rillm.core.loader import choose_variant
from rillm.errors import RillmError
from rillm.gguf import GGMLType

GIB = 1 << 30
K3 = "rv64imafdcvh_zicbop_zfh_zba_zbb_zvfh_zvl256b"


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.fixture
def board(tmp_path: Path) -> Path:
    """A machine with two kinds of cores, as SpacemiT's K3, in trouble."""
    files = {
        "proc/meminfo": "MemTotal:       16000000 kB\nMemAvailable:    500000 kB\n"
        "SwapTotal:       4000000 kB\nSwapFree:        1000000 kB\n",
        "proc/loadavg": "7.50 7.0 6.0 9/300 1234\n",
        "proc/cpuinfo": "",
        "sys/devices/system/cpu/online": "0-5\n",
        "sys/devices/system/cpu/present": "0-7\n",
        "sys/devices/system/node/node0/cpulist": "0-3\n",
        "sys/devices/system/node/node0/meminfo": "Node 0 MemTotal:  8000000 kB\n",
        "sys/devices/system/node/node1/cpulist": "4-5\n",
        "sys/devices/system/node/node1/meminfo": "Node 1 MemTotal:  8000000 kB\n",
        "sys/kernel/mm/transparent_hugepage/enabled": "always madvise [never]\n",
        "sys/class/thermal/thermal_zone0/temp": "65000\n",
        "sys/class/thermal/thermal_zone1/temp": "97500\n",
    }
    for cpu in range(6):
        fast = cpu < 4
        folder = f"sys/devices/system/cpu/cpu{cpu}"
        files["proc/cpuinfo"] += (
            f"processor\t: {cpu}\nhart\t\t: {cpu}\nisa\t\t: {K3}\n"
            f"uarch\t\t: spacemit,{'x100' if fast else 'a100'}\nmvendorid\t: 0x710\n"
            "marchid\t\t: 0x8000\nmimpid\t\t: 0x1\n\n"
        )
        files[f"{folder}/cpufreq/cpuinfo_max_freq"] = "2400000\n" if fast else "1800000\n"
        files[f"{folder}/cpufreq/scaling_max_freq"] = "2400000\n" if fast else "1200000\n"
        files[f"{folder}/cpufreq/scaling_governor"] = "performance\n" if fast else "powersave\n"
        files[f"{folder}/cpu_capacity"] = "1024\n" if fast else "446\n"
        files[f"{folder}/topology/cluster_cpus_list"] = "0-3\n" if fast else "4-5\n"
    return write(tmp_path, files)


def test_clusters_nodes_and_memory(board):
    machine = read_machine(board)
    assert [(one.cpus, one.name, one.max_mhz) for one in machine.clusters] == [
        ((0, 1, 2, 3), "spacemit,x100", 2400),
        ((4, 5), "spacemit,a100", 1800),
    ]
    assert [(node.number, node.cpus, node.memory) for node in machine.nodes] == [
        (0, (0, 1, 2, 3), 8000000 * 1024),
        (1, (4, 5), 8000000 * 1024),
    ]
    assert machine.present == tuple(range(8))
    assert machine.swap_used == 3000000 * 1024
    assert machine.temperature == 97.5
    assert machine.throttled == "CPU 4 is held at 1200 of 1800 MHz"
    assert machine.vendor_ids == "0x710/0x8000/0x1"
    assert machine.isa == K3


def test_a_kernel_that_tells_nothing_is_no_error(tmp_path):
    machine = read_machine(tmp_path)
    assert machine.online == (0,)
    assert machine.temperature is None
    assert machine.throttled == machine.huge_pages == ""


def test_cpus_that_are_each_a_cluster_are_one(tmp_path):
    files = {"sys/devices/system/cpu/online": "0-3\n"}
    for cpu in range(4):
        files[f"sys/devices/system/cpu/cpu{cpu}/topology/cluster_cpus_list"] = f"{cpu}\n"
    (cluster,) = read_machine(write(tmp_path, files)).clusters
    assert cluster.cpus == (0, 1, 2, 3)


@pytest.mark.parametrize("text", ["0", "0-3", "0-3,8", "1,3,5-7"])
def test_cpu_lists(text):
    assert format_cpu_list(parse_cpu_list(text + "\n")) == text
    assert parse_cpu_list("") == ()


def _problems(machine, **changes):
    values = dict(
        architecture="riscv64", kernel="6.6.63", vector="RVV 1.0, VLEN 256", allowed=[0, 1, 2, 3],
        quota=None, available=8 * GIB, chosen="riscv_rvv256", core_error="", forced="",
        advice=None,
    )  # fmt: skip
    return find_problems(machine, **(values | changes))


def test_every_trouble_of_the_board_is_named_with_a_fix(board):
    machine = read_machine(board)
    found = _problems(
        machine, allowed=list(range(6)), quota=2.5, available=machine.memory_available,
        kernel="5.10.113-vendor", chosen="scalar",
    )  # fmt: skip
    text = "\n".join(problem.what for problem in found)
    for what in (
        "vector unit", "riscv_hwprobe", "slowed down: CPU 4", "governor is powersave",
        "488 MiB of memory", "2.9 GiB are swapped out", "huge pages are off", "load 7.5",
        "quota allows 2.5 of 6", "CPUs 6-7 are switched off",
    ):  # fmt: skip
        assert what in text
    assert all(problem.fix for problem in found)
    assert not any(problem.fatal for problem in found)


def test_a_healthy_board_has_no_problem(tmp_path):
    write(tmp_path, {"sys/devices/system/cpu/online": "0-3\n", "proc/loadavg": "0.1 0 0 1/1 1\n"})
    machine = read_machine(tmp_path)
    assert _problems(machine) == []
    assert _problems(machine, vector="none", chosen="scalar") == []
    assert [p.what for p in _problems(machine, forced="scalar")] == [
        "RILLM_ISA=scalar decides the kernels"
    ]
    (fatal,) = _problems(machine, core_error="no variant for this CPU")
    assert fatal.fatal
    assert "--target riscv64" in fatal.fix


@pytest.mark.parametrize(
    ("architecture", "features", "isa", "expected"),
    [
        ("riscv64", "v,vlen256,zba,zvfh", K3, "RVV 1.0, VLEN 256, zvfh"),
        ("riscv64", "v,vlen1024", "rv64imafdcv", "RVV 1.0, VLEN 1024"),
        ("riscv64", "zba,zbb", "rv64imafdc_zba", "none"),
        ("riscv64", "zba", "rv64imafdcv", "none that the probe confirms (the kernel claims v)"),
        (
            "riscv64",
            "xtheadvector,vlen128",
            "rv64imafdcv",
            "XTheadVector (RVV 0.7.1), VLEN 128",
        ),
        (
            "riscv64",
            "",
            "rv64imafdc_zicsr_xtheadvector",
            "none that the probe confirms (the kernel claims xtheadvector)",
        ),
        ("x86_64", "avx2,avx512f", "", "AVX-512, AVX2"),
        ("aarch64", "asimddp", "fp asimd", "NEON, asimddp"),
    ],
)
def test_vector_units_in_words(architecture, features, isa, expected):
    assert describe_vector(architecture, features.split(","), isa) == expected


def test_without_the_probe_the_vector_unit_is_what_the_kernel_claims():
    thead = "rv64imafdc_zicsr_xtheadvector"
    assert describe_vector("riscv64", (), thead, is_probed=False) == "XTheadVector (RVV 0.7.1)"
    assert describe_vector("riscv64", (), "rv64imafdcv", is_probed=False) == "RVV 1.0"
    assert describe_vector("riscv64", (), "rv64imafdc", is_probed=False) == "none"


def test_sizes_of_glm_4_9b_are_those_of_its_files():
    sizes = {size.quantization: size for size in sizes_of_shape("glm-4-9b")}
    assert sizes["Q4_K_M"].total == pytest.approx(5.82 * GIB, rel=0.01)
    assert sizes["Q8_0"].total > sizes["Q6_K"].total > sizes["Q2_K"].total
    # 40 layers, 2 KV heads of 128, keys and values, 2 bytes.
    assert sizes["Q4_K_M"].cache_per_token == 40 * 2 * 128 * 2 * 2
    assert sizes["Q4_K_M"].per_token < sizes["Q4_K_M"].total
    with pytest.raises(RillmError, match="glm-4-9b"):
        sizes_of_shape("gpt-5")


@pytest.mark.parametrize(
    ("available", "bandwidth", "quantization", "fits"),
    [
        (64 * GIB, 100e9, "Q8_0", True),  # room and speed for the best
        (8 * GIB, 100e9, "Q5_K_M", True),  # memory decides
        (64 * GIB, 40e9, "Q6_K", True),  # speed decides
        (15 * GIB, 4.5e9, "Q4_K_M", True),  # nothing is fluent: the usual compromise
        (6 * GIB, 4.5e9, "Q3_K_M", True),  # only that fits
        (3 * GIB, 4.5e9, "Q2_K", False),
    ],
)
def test_advice_for_machines(available, bandwidth, quantization, fits):
    advice = advise(sizes_of_shape("glm-4-9b"), available, bandwidth)
    assert (advice.model.quantization, advice.fits) == (quantization, fits)
    assert advice.decode == pytest.approx(bandwidth / advice.model.per_token)
    if fits:
        cache = advice.context * advice.model.cache_per_token
        assert advice.context >= 512
        assert advice.model.total + cache < available
    else:
        assert advice.context == 0


def test_advice_without_a_bandwidth_claims_no_speed():
    advice = advise(sizes_of_shape("glm-4-9b"), 64 * GIB, 0.0)
    assert advice.model.quantization == "Q4_K_M"
    assert "tokens/s" not in advice.reason


def test_a_file_is_measured_as_it_is(models):
    path = models[GGMLType.Q8_0]
    size = size_of_file(path)
    assert size.quantization == "Q8_0"
    assert 0 < size.per_token <= size.total < path.stat().st_size
    assert advise([size], 4 * GIB, 1e9).fits
    assert read_speed(path) > 0


def test_threads():
    assert thread_counts(1) == [1]
    assert thread_counts(6) == [1, 2, 4, 6]
    assert thread_counts(8) == [1, 2, 4, 8]
    rising = [Bandwidth(1, 4e9), Bandwidth(2, 6e9), Bandwidth(4, 5.9e9)]
    assert recommend_threads(rising, 4)[0] == 4
    falling = [Bandwidth(1, 4e9), Bandwidth(4, 6e9), Bandwidth(8, 3e9)]
    count, reason = recommend_threads(falling, 8)
    assert count == 4
    assert "8 threads read more slowly than 4" in reason
    assert recommend_threads([], 3)[0] == 3


def test_this_machine(models, capsys):
    path = models[GGMLType.Q8_0]
    report = examine(path, measure=False)
    chosen = [choice for choice in report.variants if choice.chosen]
    assert [choice.name for choice in chosen] == [choose_variant().name]
    assert report.num_threads <= len(report.allowed)
    assert run_cli(["doctor", "-m", str(path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["can_run"] is True
    assert found["bandwidth"][0]["num_threads"] == 1
    assert found["bandwidth"][0]["bytes_per_second"] > 1e7
    assert found["disk"] > 0
    assert run_cli(["doctor", "--model-shape", "glm-4-9b", "--no-measure"]) in (0, 1)
    assert "glm-4-9b in Q" in capsys.readouterr().out


def test_a_forced_variant_is_the_reason(monkeypatch):
    monkeypatch.setenv("RILLM_ISA", "scalar")
    choices = {choice.name: choice for choice in variant_choices()}
    assert choices["scalar"].chosen
    assert choices["scalar"].reason == "RILLM_ISA=scalar"
    assert sum(choice.chosen for choice in choices.values()) == 1


def test_disk_speed_of_a_short_file(tmp_path):
    path = tmp_path / "f"
    path.write_bytes(random.Random(5).randbytes(100_001))
    assert read_speed(path) > 0
